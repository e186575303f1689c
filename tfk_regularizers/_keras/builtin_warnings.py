"""Warnings about built-in regularizers that were created or imported before this package."""

import warnings
from collections.abc import Iterable
from typing import Any

from tfk_regularizers._keras.layers import regularizer_attributes

REPLACED: dict[Any, str] = {}  # the built-in classes that registration has replaced, and which Keras has them


def warn_of_builtins_in(nodes: Iterable[Any], stacklevel: int) -> None:
    """Warn of layers of a model that hold built-in regularizers."""
    held = [(node.path, map(vars(node.layer).get, regularizer_attributes(node.layer).values())) for node in nodes]
    classes = [(path, next(filter(None, map(builtin_class, regularizers)), None)) for path, regularizers in held]
    found = [path for path, builtin in classes if builtin is not None]
    if found:
        keras = next(REPLACED[builtin] for _, builtin in classes if builtin is not None)
        listed = ", ".join([*map(repr, found[:5]), *(["…"] if len(found) > 5 else [])])
        warn(f"Built-in regularizers of {keras} are in {listed}", stacklevel + 1)


def warn(found: str, stacklevel: int) -> None:
    """Warn of what was found, at a line of the user's."""
    warnings.warn(
        f"{found}: made, or the class imported, before tfk_regularizers. Import tfk_regularizers first, or take the "
        "class from it. In a model, `tfk_regularizers.set_regularizers(model, kernel_regularizer=...)` replaces it.",
        stacklevel=stacklevel + 1,
    )


def builtin_class(regularizer: Any) -> type | None:
    """The replaced class that computes a penalty, if one does. A subclass with its own `__call__` is the user's."""
    owner = next((cls for cls in type(regularizer).__mro__ if "__call__" in vars(cls)), object)
    return owner if owner in REPLACED else None
