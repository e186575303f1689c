"""Training and test steps of a Keras 3 model, and what callbacks need of Keras."""

import sys
from typing import Any

import keras


def forget_traces(model: Any) -> None:
    """Let a model trace its steps anew: a traced step keeps the penalties that it was traced with."""
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)  # made at once, because a running `fit` calls the attribute again
            getattr(model, f"make_{name}")()


def iterations(model: Any) -> int:
    """The steps that the optimizer of a model has taken."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def print_message(text: str) -> None:
    """Print as Keras's callbacks do: to where `keras.config.disable_interactive_logging` sends it."""
    sys.modules[keras.config.disable_interactive_logging.__module__].print_msg(text)
