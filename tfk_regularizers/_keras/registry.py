"""Names, exports and custom objects: where Keras looks for a regularizer."""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import tf_keras

from tfk_regularizers._keras.versions import SUPPORTED, keras3

# The module that defines the regularizers: layers resolve strings and configs through its globals. It is found through
# the base class, the one name that registration never replaces.
SOURCE: ModuleType = sys.modules[tf_keras.regularizers.Regularizer.__module__]


def check_supported(names: Any) -> None:
    """Raise ImportError unless every internal that registration needs is where it is expected."""
    found = {name: getattr(SOURCE, name, None) for name in ("keras_export", *names)}
    unnamed = [name for name in names if found[name] is not None and "_keras_api_names" not in vars(found[name])]
    for name in unnamed:
        value: Any = found[name]
        if value.__module__ != SOURCE.__name__:
            raise ImportError(
                f"tfk_regularizers cannot take the place of `{name}` in {SOURCE.__name__}, for another package has put "
                f"`{value.__module__}.{value.__qualname__}` there. Import tfk_regularizers first."
            )
    missing = [*unnamed, *(name for name, value in found.items() if value is None)]
    if missing:
        raise ImportError(
            f"tfk_regularizers supports {SUPPORTED}, and the installed tf-keras {tf_keras.__version__} lacks "
            f"{', '.join(sorted(set(missing)))} in {SOURCE.__name__}."
        )


def export_like(new: Any, old: Any) -> None:
    """Give `new` the canonical names of `old`, as attribute and in the table that deserialization reads.

    One without the other is worse than neither: files would name a class that they do not open with.
    """
    SOURCE.keras_export(*old._keras_api_names, v1=old._keras_api_names_v1)(new)


def keep_importable(builtin: Any) -> None:
    """Let pickle find what is about to be replaced, and is held elsewhere: it looks for it by name, in any process.

    The module of the public names has a second name, and as a module of that name it keeps what it imports now.
    """
    second = importlib.import_module(_SECOND_NAME).__name__
    if builtin.__module__ == SOURCE.__name__:
        _first_lines[builtin] = vars(builtin).get("__firstlineno__")
        builtin.__module__ = second
    vars(tf_keras.regularizers).pop("__init__", None)  # none of its names


def forget_importable(builtins: Iterable[Any]) -> None:
    """Undo `keep_importable`."""
    for builtin in builtins:
        if builtin.__module__ == _SECOND_NAME:
            builtin.__module__ = SOURCE.__name__
            line = _first_lines.pop(builtin, None)
            if line is not None:
                builtin.__firstlineno__ = line
    sys.modules.pop(_SECOND_NAME, None)


def is_replaced(cls: type) -> bool:
    """Whether a class is one that `keep_importable` was called for."""
    return cls.__module__ == _SECOND_NAME


_SECOND_NAME = "tf_keras.regularizers.__init__"
_first_lines: dict[Any, int | None] = {}  # of the replaced: Python 3.13 drops that of a class whose module is set


def forget_export(obj: Any) -> None:
    """Take the canonical names from `obj` again."""
    for attribute in ("_keras_api_names", "_keras_api_names_v1"):
        if attribute in vars(obj):
            delattr(obj, attribute)


def replace_everywhere(pairs: list[tuple[Any, Any]]) -> None:
    """Rebind each old object to its new one in the defining module and in those of tf_keras and tensorflow like it."""
    new = {id(old): new for old, new in pairs}
    for name, module in list(sys.modules.items()):
        if module is None or not name.endswith(".regularizers") or name.split(".")[0] not in ("tf_keras", "tensorflow"):
            continue
        for key, value in list(vars(module).items()):
            if id(value) in new:
                setattr(module, key, new[id(value)])


def keras3_identifiers() -> dict[str, Any] | None:
    """The table from which Keras 3 resolves strings, None where there is none."""
    keras = keras3()
    return getattr(sys.modules[keras.regularizers.get.__module__], "ALL_OBJECTS_DICT", None) if keras else None


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
