"""The tables in which Keras 3 looks up regularizers, and the modules that export them."""

import contextlib
import importlib
import inspect
import sys
from typing import Any

import keras
from keras.src import api_export, regularizers

REPLACED: dict[Any, Any] = {}  # replaced built-in classes, and the classes that replace them
# Each copies the built-in classes when it is imported, so it must be imported before they are replaced.
EXPORTS = ("keras.regularizers", "keras._tf_keras.keras.regularizers", "tensorflow.keras.regularizers")


def replace(classes: tuple[type, ...]) -> None:
    """Replace the built-in classes of the same names, but not where they are defined: pickle looks there."""
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
    """Restore the built-in classes."""
    if REPLACED:
        _rebind({ours: builtin for builtin, ours in REPLACED.items()})
    for ours in REPLACED.values():
        api_export.REGISTERED_OBJS_TO_NAMES.pop(ours, None)
    REPLACED.clear()


def _rebind(new: dict[Any, Any]) -> None:
    """Replace old classes with new ones: for strings, for configs, and as attributes of modules."""
    tables = [regularizers.ALL_OBJECTS_DICT, api_export.REGISTERED_NAMES_TO_OBJS]
    for name, module in list(sys.modules.items()):
        parts, defines = name.split("."), keras.regularizers.Regularizer.__module__
        if parts[0] in ("keras", "tensorflow") and parts[-1] == "regularizers" and name != defines and module:
            tables.append(vars(module))
    for table in tables:
        table.update({key: new[cls] for key, cls in table.items() if inspect.isclass(cls) and cls in new})


def add_string(name: str, cls: type) -> None:
    """Add a string that stands for a class, unless Keras has it."""
    regularizers.ALL_OBJECTS_DICT.setdefault(name, cls)


def remove_string(name: str, cls: type) -> None:
    """Undo `add_string`."""
    strings = getattr(regularizers, "ALL_OBJECTS_DICT", {})
    if strings.get(name) is cls:
        del strings[name]
