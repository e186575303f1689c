"""What AutoCastVariables wrap, and graphs that Keras builds only to infer shapes."""

from typing import Any

import tensorflow as tf


def without_autocast(variable: Any) -> Any:
    """The variable inside an AutoCastVariable, which mixed precision reads as a half; others as they are."""
    return getattr(variable, "_variable", variable) if "AutoCast" in type(variable).__name__ else variable


def is_building_model() -> bool:
    """Whether Keras calls layers to build a Functional model or to infer shapes: nothing of that graph ever runs."""
    name = getattr(tf.compat.v1.get_default_graph(), "name", "")
    return name.endswith("keras_graph") or "scratch_graph" in name
