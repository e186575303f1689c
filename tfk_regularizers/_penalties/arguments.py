"""Checks of what a constructor is given, and the messages of what fails."""

import math
import operator
import reprlib

import numpy as np
import tensorflow as tf


def invalid(argument, expected, received):
    """The ValueError for a bad argument, in Keras's words."""
    return ValueError(
        f"Invalid value for argument `{argument}`. Expected {expected}. Received: {argument}={shown(received)}"
    )


def shown(value):
    """A repr short enough for a message, whatever the value."""
    if isinstance(value, tf.Variable):  # the end of its repr, which is cut, says least
        return f"<a variable of shape {value.shape}, dtype {value.dtype.name}, trainable={value.trainable}>"
    try:
        return reprlib.repr(value)
    except Exception:  # an int of more than 4300 digits has none
        return f"<{type(value).__name__}>"


def only_legacy_name(kwargs, name, value):
    value = kwargs.pop("l", value)
    if kwargs:
        raise TypeError(
            f"Argument(s) not recognized by {name}, whose factor is called `{name.lower()}`: "
            f"{', '.join(map(shown, kwargs))}"
        )
    return value


def finite(argument, value):
    """The value as a Python float, if it is one finite real number."""
    try:
        array = np.asarray(value)
        if array.ndim or array.dtype.kind in "cSUmM" or isinstance(array.item(), (str, bytes)):
            raise TypeError
        number = float(array.item())
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        raise invalid(argument, "a finite number", value) from None
    if not math.isfinite(number):
        raise invalid(argument, "a finite number", value)
    return number


def row_or_column_mode(mode):
    if not isinstance(mode, str) or mode not in ("rows", "columns"):
        raise invalid("mode", 'one of {"rows", "columns"}', mode)
    return str(mode)


def checked_flag(argument, value):
    """The value as a Python bool, if it is one, or one of NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise invalid(argument, "True or False", value)
    return bool(value)


def checked_sample_size(value):
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < 2:
        raise invalid("sample_size", "an integer of at least 2", value)
    return size
