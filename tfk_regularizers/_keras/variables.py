"""Unwrap AutoCastVariables, detect Keras's scratch graphs, and find the dtype of its losses."""

from typing import Any

import tensorflow as tf

from tfk_regularizers._keras.versions import keras3


def without_autocast(variable: Any) -> Any:
    """Unwrap an AutoCastVariable, which mixed precision reads as a half type. Return others unchanged."""
    return getattr(variable, "_variable", variable) if "AutoCast" in type(variable).__name__ else variable


def is_building_model() -> bool:
    """Whether Keras is building a Functional model or inferring shapes, in a graph that never runs."""
    name = getattr(tf.compat.v1.get_default_graph(), "name", "")
    return name.endswith("keras_graph") or "scratch_graph" in name


def half_floatx() -> str | None:
    """Keras 3's `floatx` if it is a half type, to which it can add no other type; otherwise None."""
    keras: Any = keras3()
    floatx = "float32" if keras is None else keras.backend.floatx()
    return floatx if floatx in ("float16", "bfloat16") else None
