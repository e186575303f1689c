"""Every touch of an internal of Keras, each checked, each with its reason."""

import contextlib
import sys
from types import ModuleType
from typing import Any

import tensorflow as tf
import tf_keras

SUPPORTED = "tf-keras 2.16 to 2.21"

# The module that defines the regularizers: layers resolve strings and configs through its globals. It is found through
# the base class, the one name that registration never replaces.
SOURCE: ModuleType = sys.modules[tf_keras.regularizers.Regularizer.__module__]


def _keras3() -> ModuleType | None:
    """Keras 3 where `tf.keras` is Keras 3, None where it is tf_keras or absent."""
    with contextlib.suppress(ImportError, AttributeError):
        if tf.keras.regularizers.Regularizer is not tf_keras.regularizers.Regularizer:
            return sys.modules["keras"]
    return None


KERAS3 = _keras3()
REGULARIZER_BASES: tuple[type, ...] = (tf_keras.regularizers.Regularizer,)
if KERAS3 is not None:
    REGULARIZER_BASES += (KERAS3.regularizers.Regularizer,)


def check_supported(names: Any) -> None:
    """Raise ImportError unless every internal that registration needs is where it is expected."""
    missing = [name for name in ("keras_export", *names) if not hasattr(SOURCE, name)]
    missing += [name for name in names if not hasattr(getattr(SOURCE, name, None), "_keras_api_names")]
    if missing:
        raise ImportError(
            f"tfk_regularizers supports {SUPPORTED}, and the installed tf-keras {tf_keras.__version__} lacks "
            f"{', '.join(sorted(set(missing)))} in {SOURCE.__name__}."
        )


def export_like(new: Any, old: Any) -> None:
    """Give `new` the canonical names of `old`, as attribute and in the table that deserialization reads.

    One without the other is worse than neither: files would name a class that they do not open with.
    """
    SOURCE.keras_export(*old._keras_api_names, v1=list(old._keras_api_names_v1))(new)


def forget_export(obj: Any) -> None:
    """Take the canonical names from `obj` again."""
    for attribute in ("_keras_api_names", "_keras_api_names_v1"):
        if attribute in vars(obj):
            delattr(obj, attribute)


def replace_everywhere(old: Any, new: Any) -> None:
    """Rebind `old` to `new` in the defining module and in all that re-export it under tf_keras and tensorflow."""
    for name, module in list(sys.modules.items()):
        path = name.split(".")
        if module is None or path[0] not in ("tf_keras", "tensorflow") or path[-1] != "regularizers":
            continue
        for key in [key for key, value in list(vars(module).items()) if value is old]:
            setattr(module, key, new)


def keras3_identifiers() -> dict[str, Any] | None:
    """The table from which Keras 3 resolves strings, None where there is none."""
    if KERAS3 is None:
        return None
    return getattr(sys.modules[KERAS3.regularizers.get.__module__], "ALL_OBJECTS_DICT", None)


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
