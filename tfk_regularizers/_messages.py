"""Error messages in Keras's manner."""

import reprlib
from typing import Any

import tensorflow as tf


def invalid_argument(argument: str, expected: str, received: Any) -> ValueError:
    """A ValueError that names the argument, the expected value and the received one."""
    return ValueError(
        f"Invalid value for argument `{argument}`. Expected {expected}. Received: {argument}={short_repr(received)}"
    )


def short_repr(value: Any) -> str:
    """A repr short enough for a message; it never fails."""
    if isinstance(value, tf.Variable):  # its own repr would be cut in the middle
        return f"<a variable of shape {value.shape}, dtype {value.dtype.name}, trainable={value.trainable}>"
    try:
        return reprlib.repr(value)
    except Exception:  # an int of more than 4300 digits
        return f"<{type(value).__name__}>"
