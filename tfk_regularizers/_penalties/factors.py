"""Factors of a penalty: finite numbers, or scalar variables that are read at each call."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfk_regularizers._keras.variables import without_autocast
from tfk_regularizers._messages import invalid_argument, short_repr


def check_factor(argument: str, value: Any) -> Any:
    """The value as a Python float, or unchanged if it is a suitable variable."""
    if callable(value) and not isinstance(value, tf_keras.regularizers.Regularizer):
        expected = "a finite number; for a schedule use `fit(callbacks=[RegularizationScheduler(schedule)])`"
        raise invalid_argument(argument, expected, value)
    if isinstance(value, str) and value in ("rows", "columns"):
        raise invalid_argument(argument, f"a finite number (did you mean `mode={value!r}`?)", value)
    if not hasattr(value, "assign"):
        return to_finite_float(argument, value)
    if not is_factor_variable(value):
        expected = "a finite number, or a scalar floating tf.Variable(..., trainable=False)"
        raise invalid_argument(argument, expected, value)
    return value


def to_finite_float(argument: str, value: Any) -> float:
    """The value as a Python float; ValueError unless it is one finite real number."""
    try:
        array = np.asarray(value)
        if array.ndim or array.dtype.kind in "cSUmM" or isinstance(array.item(), (str, bytes)):
            raise TypeError
        number = float(array.item())
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        raise invalid_argument(argument, "a finite number", value) from None
    if not math.isfinite(number):
        raise invalid_argument(argument, "a finite number", value)
    return number


def is_factor_variable(value: Any) -> bool:
    """Whether the value is a scalar floating variable that is not trainable."""
    return isinstance(value, tf.Variable) and value.shape == () and value.dtype.is_floating and not value.trainable


def factor_value(factor: Any) -> float:
    """The current value of a factor, even while a function is traced."""
    if not isinstance(factor, tf.Variable):
        return float(factor)
    with tf.init_scope():
        return float(tf_keras.backend.get_value(factor))


def factor_repr(value: Any) -> str:
    """The repr of a penalty's attribute; a variable is shown by its value."""
    try:
        return f"<variable: {factor_value(value)}>" if isinstance(value, tf.Variable) else short_repr(value)
    except Exception:
        return short_repr(value)


def is_zero(factor: Any) -> bool:
    """Whether the factor is the number 0."""
    return not isinstance(factor, tf.Variable) and factor == 0


def scale(factor: Any, value: tf.Tensor, constant: float = 1.0) -> tf.Tensor:
    """constant * factor * value, in the dtype of the value."""
    if isinstance(factor, (int, float)) and abs(constant * factor) <= float(value.dtype.max):
        return tf.constant(constant * factor, value.dtype) * value
    factor = without_autocast(factor)
    factor = tf.cast(factor, value.dtype) if tf.is_tensor(factor) else tf.constant(factor, value.dtype)
    return factor * (constant * value)
