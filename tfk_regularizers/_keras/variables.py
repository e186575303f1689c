"""What AutoCastVariables wrap, graphs that Keras builds only to infer shapes, and the dtype of losses."""

from typing import Any

import tensorflow as tf

from tfk_regularizers._keras.versions import keras3


def without_autocast(variable: Any) -> Any:
    """The variable inside an AutoCastVariable, which mixed precision reads as a half; others as they are."""
    return getattr(variable, "_variable", variable) if "AutoCast" in type(variable).__name__ else variable


def is_building_model() -> bool:
    """Whether Keras calls layers to build a Functional model or to infer shapes: nothing of that graph ever runs."""
    name = getattr(tf.compat.v1.get_default_graph(), "name", "")
    return name.endswith("keras_graph") or "scratch_graph" in name


def half_of_losses() -> str | None:
    """The half type in which Keras 3 adds up losses, if its `floatx` is one: it adds no other type to that."""
    keras: Any = keras3()
    floatx = "float32" if keras is None else keras.backend.floatx()
    return floatx if floatx in ("float16", "bfloat16") else None
