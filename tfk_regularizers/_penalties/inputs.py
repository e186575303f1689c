"""What a penalty is called on, as a tensor or a matrix."""

import math
import sys
from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties.arguments import shown


def elements(name, x):
    """x as a tensor to sum over, of any shape: of a ragged one its values."""
    return tensor(name, x.flat_values if isinstance(x, tf.RaggedTensor) else x)


def tensor(name, x, dtypes="floating or complex"):
    """x as a dense tensor of one of the kinds of dtypes, converted once."""
    if isinstance(x, (tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(
            f"Inputs to {name} must be dense tensors. Received: a {type(x).__name__} of dtype {x.dtype.name} and "
            f"shape {x.shape}"
        )
    given = x
    if not isinstance(x, tf.Tensor):
        backend = other_backend(x)
        if backend is not None:
            raise TypeError(
                f"Inputs to {name} must be what TensorFlow can differentiate, and Keras 3 runs on its {backend!r} "
                f"backend. Set KERAS_BACKEND=tensorflow before Keras is imported. Received: a "
                f"{type(x).__module__}.{type(x).__qualname__}"
            )
        try:
            x = tf.convert_to_tensor(x)
        except (TypeError, ValueError) as error:  # whose text may be empty, in TensorFlow 2.22
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"Inputs to {name} must convert to a tensor. Received: {shown(given)}. {error}") from error
    if not (x.dtype.is_floating or (x.dtype.is_complex and "complex" in dtypes)):
        raise TypeError(
            f"Inputs to {name} must be of a {dtypes} dtype. Received: dtype {x.dtype.name}, shape {x.shape}"
            f"{_of_variable(given)}"
        )
    return x


def _of_variable(x: Any) -> str:
    """For a message: which variable of either Keras x is; nothing for what is none."""
    name = getattr(x, "path", None) or (x.name if isinstance(x, tf.Variable) else None)
    return f", of the variable {name.split(':')[0]!r}" if isinstance(name, str) else ""


def matrix(name, x):
    """x as a real matrix: all axes but the last become its rows."""
    given, x = x, tensor(name, x, "floating")
    rank = x.shape.rank
    if rank is not None and rank < 2:
        raise ValueError(
            f"Inputs to {name} must have rank 2 or more. Received: inputs.shape == {x.shape}{_of_variable(given)}"
            f"{'. For a bias take L1, L2 or L1L2.' if rank == 1 else ''}"
        )
    if rank == 2:
        return x
    if x.shape.is_fully_defined():
        *sizes, last = x.shape.as_list()
        return tf.reshape(x, [math.prod(sizes), last])
    message = f"Inputs to {name} must have rank 2 or more."
    checks = [tf.debugging.assert_rank_at_least(x, 2, message)] if rank is None else []
    with tf.control_dependencies(checks):
        shape = tf.shape(x)
    # XLA leaves assertions out. It stops at the axis that is not there, and shows the name of what asked for it.
    with tf.name_scope(message.rstrip(".").replace(" ", "_")):
        rows = shape[-2]
    return tf.reshape(x, [tf.reduce_prod(shape[:-2]) * rows, shape[-1]])


def other_backend(x: Any) -> str | None:
    """The backend of Keras 3 that x comes from, if that is not TensorFlow; None for what is no array of a backend.

    Such an array converts to a tensor, but no gradient passes through the conversion.
    """
    keras = sys.modules.get("keras")  # under TF_USE_LEGACY_KERAS=1 a program may have it as well
    if keras is None or type(x).__module__.partition(".")[0] not in ("keras", "jax", "jaxlib", "torch"):
        return None
    backend = keras.backend.backend()
    return None if backend == "tensorflow" else backend
