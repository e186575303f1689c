"""Inputs of penalties, as tensors and matrices."""

import math
import sys
from typing import Any

import tensorflow as tf

from tfk_regularizers._messages import short_repr


def as_elements(name, x):
    """x as a tensor of any shape; for a ragged tensor its values."""
    return as_tensor(name, x.flat_values if isinstance(x, tf.RaggedTensor) else x)


def as_tensor(name, x, dtypes="floating or complex"):
    """x as a dense tensor; an error unless it has one of these kinds of dtype."""
    if isinstance(x, (tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(
            f"Inputs to {name} must be dense. Received: a {type(x).__name__} of dtype {x.dtype.name}, shape {x.shape}"
        )
    given = x
    if not isinstance(x, tf.Tensor):
        backend = _other_backend(x)
        if backend is not None:
            raise TypeError(
                f"Inputs to {name} must be TensorFlow tensors, but Keras 3 runs on its {backend!r} backend. Set "
                f"KERAS_BACKEND=tensorflow before Keras is imported. Received: {type(x)}"
            )
        try:
            x = tf.convert_to_tensor(x)
        except (TypeError, ValueError) as error:  # its text may be empty in TensorFlow 2.22
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"Inputs to {name} must convert to a tensor. Received: {short_repr(given)}. {error}") from error
    if not (x.dtype.is_floating or (x.dtype.is_complex and "complex" in dtypes)):
        raise TypeError(
            f"Inputs to {name} must be of a {dtypes} dtype. Received: dtype {x.dtype.name}, shape {x.shape}"
            f"{_of_variable(given)}"
        )
    return x


def _of_variable(x: Any) -> str:
    """A part of a message that names the variable x; empty if x is not a variable."""
    name = getattr(x, "path", None) or (x.name if isinstance(x, tf.Variable) else None)
    return f", of the variable {name.split(':')[0]!r}" if isinstance(name, str) else ""


def as_matrix(name, x):
    """x as a real matrix, whose columns are the last axis of x."""
    given, x = x, as_tensor(name, x, "floating")
    rank = x.shape.rank
    if rank is not None and rank < 2:
        raise ValueError(
            f"Inputs to {name} must have rank 2 or more. Received: inputs.shape == {x.shape}{_of_variable(given)}"
            f"{'. For a bias use L1, L2 or L1L2.' if rank == 1 else ''}"
        )
    if rank == 2:
        return x
    if x.shape.is_fully_defined():
        *sizes, last = x.shape.as_list()
        return tf.reshape(x, [math.prod(sizes), last])
    shape = tf.shape(x)
    with tf.name_scope(f"Inputs_to_{name}_must_have_rank_2_or_more"):  # shown in the error for a rank below 2
        return tf.reshape(x, [tf.reduce_prod(shape[:-2]) * shape[-2], shape[-1]])


def _other_backend(x: Any) -> str | None:
    """The backend of Keras 3 if it is not TensorFlow and x is one of its arrays (no gradient here), or None."""
    keras = sys.modules.get("keras")  # may be imported under TF_USE_LEGACY_KERAS=1 too
    if keras is None or type(x).__module__.partition(".")[0] not in ("keras", "jax", "jaxlib", "torch"):
        return None
    backend = keras.backend.backend()
    return None if backend == "tensorflow" else backend
