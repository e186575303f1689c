"""Names, exports and custom objects: where Keras looks for a regularizer."""

import sys
from types import ModuleType
from typing import Any

import tf_keras

# The module that defines the regularizers: layers resolve strings and configs through its globals. It is found through
# the base class, the one name that registration never replaces.
SOURCE: ModuleType = sys.modules[tf_keras.regularizers.Regularizer.__module__]

REPLACED: dict[str, Any] = {}  # the built-in objects that registration has replaced, by name


def export_like(new: Any, old: Any) -> None:
    """Give `new` the canonical names of `old`, as attribute and in the table that deserialization reads.

    One without the other is worse than neither: files would name a class that they do not open with.
    """
    # By `vars`, for a class without names of its own would give those of its base.
    SOURCE.keras_export(*vars(old)["_keras_api_names"], v1=vars(old)["_keras_api_names_v1"])(new)


def forget_export(obj: Any) -> None:
    """Take the canonical names from `obj` again."""
    for attribute in ("_keras_api_names", "_keras_api_names_v1"):
        if attribute in vars(obj):
            delattr(obj, attribute)


def replace_everywhere(pairs: list[tuple[Any, Any]]) -> None:
    """Rebind each old object to its new one in every loaded module `*.regularizers` of tf_keras and tensorflow."""
    new = {id(old): new for old, new in pairs}
    for name, module in list(sys.modules.items()):
        if module is None or not name.endswith(".regularizers") or name.split(".")[0] not in ("tf_keras", "tensorflow"):
            continue
        for key, value in list(vars(module).items()):
            if id(value) in new:
                setattr(module, key, new[id(value)])


def forget_custom_object(keras: ModuleType, cls: type, name: str) -> None:
    """Undo `keras.saving.register_keras_serializable`, which has no public inverse."""
    if keras.saving.get_custom_objects().get(name) is cls:
        del keras.saving.get_custom_objects()[name]
    registry = sys.modules[keras.saving.get_registered_name.__module__]
    for table in ("_GLOBAL_CUSTOM_NAMES", "GLOBAL_CUSTOM_NAMES"):
        getattr(registry, table, {}).pop(cls, None)


def custom_objects(given: dict[str, Any] | None = None) -> dict[str, Any]:
    """All custom objects in force: those given, those of a `custom_object_scope` and the global ones.

    Those of a scope have no public reader.
    """
    registry = sys.modules[tf_keras.saving.get_registered_name.__module__]
    scoped = getattr(registry, "_THREAD_LOCAL_CUSTOM_OBJECTS", None)
    return {**(given or {}), **getattr(scoped, "__dict__", {}), **tf_keras.saving.get_custom_objects()}
