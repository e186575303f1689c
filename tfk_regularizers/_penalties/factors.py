"""Factors of a penalty: numbers, or variables that are read at each call."""

import inspect
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._penalties.arguments import finite, invalid, shown


def checked_factor(argument, value):
    """The value as a Python float; or as it is, if it is a variable to be read at each call."""
    if _is_schedule(value):
        expected = "a finite number; what follows a schedule is `fit(callbacks=[RegularizationScheduler(schedule)])`"
        raise invalid(argument, expected, value)
    if isinstance(value, str) and value in ("rows", "columns"):
        raise invalid(argument, f"a finite number (did you mean `mode={value!r}`?)", value)
    if not hasattr(value, "assign"):
        return finite(argument, value)
    if not may_be_live(value):
        raise invalid(argument, "a finite number, or a scalar floating tf.Variable(..., trainable=False)", value)
    if value.synchronization is tf.VariableSynchronization.ON_READ and value.aggregation not in _SAME_EVERYWHERE:
        expected = "a variable that replicas read as it is, with an aggregation of MEAN or ONLY_FIRST_REPLICA"
        raise invalid(argument, expected, f"<a variable of {value.synchronization} and {value.aggregation}>")
    return value


def _is_schedule(value):
    """Whether the value is a function or a learning rate schedule of either Keras, or the class of one."""
    kinds = (value if isinstance(value, type) else type(value)).__mro__
    return inspect.isroutine(value) or any(kind.__name__ == "LearningRateSchedule" for kind in kinds)


_SAME_EVERYWHERE = (tf.VariableAggregation.MEAN, tf.VariableAggregation.ONLY_FIRST_REPLICA)


def may_be_live(value):
    """Whether the value is a variable of the kind that serves as a factor."""
    return isinstance(value, tf.Variable) and value.shape == () and value.dtype.is_floating and not value.trainable


def current(factor):
    """A factor as a number; a variable that is mirrored on replicas has no `float`."""
    if not isinstance(factor, tf.Variable):
        return float(factor)
    with tf.init_scope():  # the number that it has while a function is traced
        if tf.executing_eagerly():
            return float(factor.numpy())
    return float(tf_keras.backend.get_value(factor))  # of a graph of TensorFlow 1


def readable(value):
    """What a repr shows of an attribute when it cannot show the config, and of any variable."""
    try:
        return f"<variable: {current(value)}>" if isinstance(value, tf.Variable) else shown(value)
    except Exception:
        return shown(value)


def is_zero(factor):
    return not isinstance(factor, tf.Variable) and factor == 0


def scaled(factor, value, times=1.0):
    """times * factor * value in the dtype of the value."""
    if isinstance(factor, (int, float)) and abs(times * factor) <= float(value.dtype.max):
        return tf.constant(times * factor, value.dtype) * value
    factor = at_full_precision(factor)
    factor = tf.cast(factor, value.dtype) if tf.is_tensor(factor) else tf.constant(factor, value.dtype)
    return factor * (times * value)


def at_full_precision(variable: Any) -> Any:
    """What is inside a variable that Keras casts to a half wherever a layer under mixed precision reads it."""
    return getattr(variable, "_variable", variable) if "AutoCast" in type(variable).__name__ else variable
