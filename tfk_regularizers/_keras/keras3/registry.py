"""Where Keras 3 looks for a regularizer: its tables of names, and the modules that export the classes."""

import contextlib
import importlib
import inspect
import sys
from typing import Any

import keras
from keras.src import api_export, regularizers

REPLACED: dict[Any, Any] = {}  # the classes of this package, by the built-in ones that they have replaced
# Each is a module of its own, and takes the built-in classes from where they are defined: import them before.
EXPORTS = ("keras.regularizers", "keras._tf_keras.keras.regularizers", "tensorflow.keras.regularizers")


def replace(classes: tuple[type, ...]) -> None:
    """Put classes in the place of the built-in ones of their names, which stay where they are defined, for pickle."""
    for module in EXPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for cls in classes:
        name = f"keras.regularizers.{cls.__name__}"
        builtin = api_export.REGISTERED_NAMES_TO_OBJS[name]
        if builtin is not cls:
            REPLACED[builtin] = cls
            api_export.REGISTERED_OBJS_TO_NAMES[cls] = name
    _rebind(REPLACED)


def restore() -> None:
    """Put the built-in classes back."""
    if REPLACED:
        _rebind({ours: builtin for builtin, ours in REPLACED.items()})
    for ours in REPLACED.values():
        api_export.REGISTERED_OBJS_TO_NAMES.pop(ours, None)
    REPLACED.clear()


def _rebind(new: dict[Any, Any]) -> None:
    """Put a new class in the place of each old one: for strings, for configs, and as attribute of modules."""
    tables = [regularizers.ALL_OBJECTS_DICT, api_export.REGISTERED_NAMES_TO_OBJS]
    for name, module in list(sys.modules.items()):
        parts, defines = name.split("."), keras.regularizers.Regularizer.__module__
        if parts[0] in ("keras", "tensorflow") and parts[-1] == "regularizers" and name != defines and module:
            tables.append(vars(module))
    for table in tables:
        table.update({key: new[cls] for key, cls in table.items() if inspect.isclass(cls) and cls in new})


def add_string(name: str, cls: type) -> None:
    """Let a string that Keras lacks stand for a class."""
    regularizers.ALL_OBJECTS_DICT.setdefault(name, cls)


def remove_string(name: str, cls: type) -> None:
    """Undo `add_string`."""
    strings = getattr(regularizers, "ALL_OBJECTS_DICT", {})
    if strings.get(name) is cls:
        del strings[name]
