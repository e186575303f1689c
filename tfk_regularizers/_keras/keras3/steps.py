"""Training and test steps of a Keras 3 model, and helpers for callbacks."""

import sys
from typing import Any

import keras


def forget_traces(model: Any) -> None:
    """Make a model retrace its steps, because a traced step keeps its penalties."""
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)  # at once, because a running `fit` calls the attribute
            getattr(model, f"make_{name}")()


def iterations(model: Any) -> int:
    """The number of steps that the optimizer of a model has taken."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def print_message(text: str) -> None:
    """Print as Keras's callbacks do, which `keras.config.disable_interactive_logging` redirects."""
    sys.modules[keras.config.disable_interactive_logging.__module__].print_msg(text)
