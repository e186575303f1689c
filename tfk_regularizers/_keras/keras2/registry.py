"""The tables in which tf_keras looks up regularizers: module globals, exported names and custom objects."""

import sys
from types import ModuleType
from typing import Any

import tf_keras

# The module that defines the regularizers. Layers look up strings and configs in its globals. It is found through the
# base class, which is never replaced.
SOURCE: ModuleType = sys.modules[tf_keras.regularizers.Regularizer.__module__]

REPLACED: dict[str, Any] = {}  # the built-in objects that registration has replaced, by name


def export_like(new: Any, old: Any) -> None:
    """Give `new` the exported names of `old`, as attributes and in the table for deserialization.

    Both are needed: otherwise files would be written with a name that does not load.
    """
    # `vars`, because a class without names of its own would inherit those of its base.
    SOURCE.keras_export(*vars(old)["_keras_api_names"], v1=vars(old)["_keras_api_names_v1"])(new)


def forget_export(obj: Any) -> None:
    """Remove the exported names of `obj`."""
    for attribute in ("_keras_api_names", "_keras_api_names_v1"):
        if attribute in vars(obj):
            delattr(obj, attribute)


def replace_everywhere(pairs: list[tuple[Any, Any]]) -> None:
    """Replace each old object with its new one in all loaded modules `*.regularizers` of tf_keras and tensorflow."""
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
    """The given and global custom objects, and those of `custom_object_scope`, which has no public reader."""
    registry = sys.modules[tf_keras.saving.get_registered_name.__module__]
    scoped = getattr(registry, "_THREAD_LOCAL_CUSTOM_OBJECTS", None)
    return {**(given or {}), **getattr(scoped, "__dict__", {}), **tf_keras.saving.get_custom_objects()}
