"""What was made or named before the import: it keeps the regularizers of tf_keras itself, and that is told once."""

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from tfk_regularizers._keras import layers, registry

_LISTED = 5
_BETWEEN = ("tfk_regularizers", "tf_keras", "tensorflow", "importlib")  # the user's line and this file
_told: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id: they may compare as they like
_has_told_of_a_name = False


def tell_at_import(undo: Callable[[], None]) -> None:
    """Warn of layers that are there already. Where that is an error, nothing stays registered."""
    try:
        tell((layer.name, layer) for layer in layers.alive())
    except UserWarning:
        undo()
        raise


def tell(named_layers: Iterable[tuple[str, Any]]) -> None:
    """Warn of layers that have built-in regularizers, of each of these once; of none while nothing is registered."""
    found: dict[str, list[str]] = {}
    regularizers = {}
    for path, layer in named_layers:
        for keyword, regularizer in layers.own_regularizers(layer).items():
            if _is_built_in(regularizer) and _told.get(id(regularizer)) is not regularizer:
                found.setdefault(path, []).append(keyword)
                regularizers[id(regularizer)] = regularizer
    if not found:
        return
    listed = [f"{path!r} ({', '.join(keywords)})" for path, keywords in found.items()]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    _warn(
        "Built-in regularizers of tf_keras, from before `import tfk_regularizers`, are still in "
        f"{', '.join(listed[:_LISTED])}{more}. Import tfk_regularizers before the layers are made, and before names "
        "such as L2 are imported from `tf_keras.regularizers`. Or replace them: "
        "`tfk_regularizers.set_regularizers(model, kernel_regularizer=tfk_regularizers.L2(0.01))`."
    )
    _told.update(regularizers)


def tell_of_a_name(regularizer: Any) -> None:
    """Warn, once a process, of a built-in regularizer that is given after the import: its class is from before."""
    global _has_told_of_a_name
    if _has_told_of_a_name or not _is_built_in(regularizer):
        return
    name = type(regularizer).__name__
    _warn(
        f"The {name} of tf_keras itself is in use: it was imported by name, or pickled, before "
        f"`import tfk_regularizers`. Import that first, or write `from tfk_regularizers import {name}`."
    )
    _has_told_of_a_name = True


def _is_built_in(regularizer: Any) -> bool:
    """Whether a class whose place is taken computes the penalty. A subclass that does so itself is meant as it is."""
    owner = next((cls for cls in type(regularizer).__mro__ if "__call__" in vars(cls)), object)
    return registry.is_replaced(owner)


def _warn(message: str) -> None:
    """A warning at the line of the user's that it is about."""
    level, frame = 1, sys._getframe()
    while (package := frame.f_globals.get("__name__", "").partition(".")[0]) in _BETWEEN and frame.f_back is not None:
        level, frame = level + (package != "importlib"), frame.f_back  # whose frames are not counted
    warnings.warn(message, stacklevel=level)
