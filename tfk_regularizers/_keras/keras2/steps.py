"""Training and test steps of a model, and helpers for callbacks."""

import sys
from typing import Any

import tf_keras


def forget_traces(model: Any) -> None:
    """Make a model retrace its steps, because a traced step keeps its penalties."""
    for name in ("train_tf_function", "train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
            if name != "train_tf_function":  # at once, because a running `fit` calls the attribute
                setattr(model, name, getattr(model, f"make_{name}")())


def iterations(model: Any) -> int:
    """The number of steps that the optimizer of a model has taken."""
    return int(tf_keras.backend.get_value(model.optimizer.iterations))


def print_message(text: str) -> None:
    """Print as Keras's callbacks do, which `tf_keras.utils.disable_interactive_logging` redirects."""
    sys.modules[tf_keras.utils.disable_interactive_logging.__module__].print_msg(text)
