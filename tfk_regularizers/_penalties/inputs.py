"""Inputs of penalties, as tensors and matrices."""

import math
import sys
from typing import Any

import tensorflow as tf

from tfk_regularizers._messages import short_repr


def as_elements(name, x):
    """x as a tensor of any shape, to sum over: the values of a ragged one."""
    return as_tensor(name, x.flat_values if isinstance(x, tf.RaggedTensor) else x)


def as_tensor(name, x, dtypes="floating or complex"):
    """x as a dense tensor of one of the kinds of dtypes."""
    if isinstance(x, (tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(
            f"Inputs to {name} must be dense. Received: a {type(x).__name__} of dtype {x.dtype.name}, shape {x.shape}"
        )
    given = x
    if not isinstance(x, tf.Tensor):
        backend = _other_backend(x)
        if backend is not None:
            raise TypeError(
                f"Inputs to {name} must be tensors of TensorFlow, and Keras 3 runs on its {backend!r} backend. Set "
                f"KERAS_BACKEND=tensorflow before Keras is imported. Received: {type(x)}"
            )
        try:
            x = tf.convert_to_tensor(x)
        except (TypeError, ValueError) as error:  # whose text may be empty, in TensorFlow 2.22
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"Inputs to {name} must convert to a tensor. Received: {short_repr(given)}. {error}") from error
    if not (x.dtype.is_floating or (x.dtype.is_complex and "complex" in dtypes)):
        raise TypeError(
            f"Inputs to {name} must be of a {dtypes} dtype. Received: dtype {x.dtype.name}, shape {x.shape}"
            f"{_of_variable(given)}"
        )
    return x


def _of_variable(x: Any) -> str:
    """For a message, the name of the variable x; empty if x is no variable."""
    name = getattr(x, "path", None) or (x.name if isinstance(x, tf.Variable) else None)
    return f", of the variable {name.split(':')[0]!r}" if isinstance(name, str) else ""


def as_matrix(name, x):
    """x as a real matrix: all axes but the last become its rows."""
    given, x = x, as_tensor(name, x, "floating")
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
    shape = tf.shape(x)
    with tf.name_scope(f"Inputs_to_{name}_must_have_rank_2_or_more"):  # for the error of the indices below rank 2
        return tf.reshape(x, [tf.reduce_prod(shape[:-2]) * shape[-2], shape[-1]])


def _other_backend(x: Any) -> str | None:
    """The backend of Keras 3 if x is an array of one other than TensorFlow, through which no gradient passes."""
    keras = sys.modules.get("keras")  # under TF_USE_LEGACY_KERAS=1 a program may have it as well
    if keras is None or type(x).__module__.partition(".")[0] not in ("keras", "jax", "jaxlib", "torch"):
        return None
    backend = keras.backend.backend()
    return None if backend == "tensorflow" else backend
