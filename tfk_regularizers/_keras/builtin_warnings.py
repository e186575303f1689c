"""Warnings about built-in regularizers that were created or imported before this package."""

import warnings
from collections.abc import Iterable
from typing import Any

from tfk_regularizers._keras.layers import regularizer_attributes

REPLACED: dict[Any, str] = {}  # replaced built-in classes, and the Keras that they belong to


def warn_of_builtins_in(nodes: Iterable[Any], stacklevel: int) -> None:
    """Warn of layers of a model that hold built-in regularizers."""
    held = [(node.path, map(vars(node.layer).get, regularizer_attributes(node.layer).values())) for node in nodes]
    classes = [(path, next(filter(None, map(builtin_class, regularizers)), None)) for path, regularizers in held]
    found = [path for path, builtin in classes if builtin is not None]
    if found:
        keras = next(REPLACED[builtin] for _, builtin in classes if builtin is not None)
        listed = ", ".join([*map(repr, found[:5]), *(["…"] if len(found) > 5 else [])])
        warn(f"There are built-in regularizers of {keras} in {listed}", stacklevel + 1)


def warn(found: str, stacklevel: int) -> None:
    """Warn of a built-in regularizer."""
    warnings.warn(
        f"{found}, because tfk_regularizers was imported later. Import it first, or use its classes. In a model, "
        "`tfk_regularizers.set_regularizers(model, kernel_regularizer=...)` replaces a regularizer.",
        stacklevel=stacklevel + 1,
    )


def builtin_class(regularizer: Any) -> type | None:
    """The replaced class that computes the penalty, or None. A subclass may have a `__call__` of its own."""
    owner = next((cls for cls in type(regularizer).__mro__ if "__call__" in vars(cls)), object)
    return owner if owner in REPLACED else None
