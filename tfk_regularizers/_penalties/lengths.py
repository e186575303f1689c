"""The L2 lengths of the rows or columns of a matrix."""

import math

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.reductions import in_parts, row_sums, wide

# Longer slices are summed in parts. On a CPU those of a column stay in the cache, which is faster from 1024 rows on.
_LONG = 4096
_LONG_COLUMN_ON_CPU = 1024
# From 2.22 on XLA sums in parts itself, and has a kernel of `reduce_euclidean_norm`. Before, it may come to compile a
# function that was traced without it.
_XLA_IS_NEW = execution.TENSORFLOW >= (2, 22)


def lengths(x, axis):
    """The L2 lengths of the slices of a matrix along an axis, which is kept with size 1. Half precision gives float32.

    The gradient is the slice divided by its length, and 0 for a slice of zeros. It reads the lengths as they are
    returned, through which it can be differentiated again.
    """
    if not execution.may_loop(x) or execution.saving():  # the custom gradient, or its own gradient, would be lost
        return _differentiable(wide(x), axis)
    returned = []

    @tf.custom_gradient
    def differentiable(x):
        def gradient(upstream):
            return tf.cast(wide(x) * tf.math.divide_no_nan(upstream, returned[0]), x.dtype)

        return _lengths(wide(execution.inside(x)), axis), gradient

    returned.append(differentiable(execution.here(x)))
    return returned[0]


def _lengths(x, axis):
    if execution.under_xla() or not (_XLA_IS_NEW or tf.executing_eagerly()):
        return tf.sqrt(squared_lengths(x, axis))
    # Squares and sums in one pass over memory.
    return in_parts(lambda x, axis: tf.math.reduce_euclidean_norm(x, axis, keepdims=True), x, axis, _long(x, axis))


def _differentiable(x, axis):
    """The lengths by operations that TensorFlow differentiates, with derivative 0 at a length of 0."""
    squares = squared_lengths(x, axis)
    # Without `stop_gradient` forward-over-forward mode fails at the comparison.
    zeros = tf.cast(tf.equal(tf.stop_gradient(squares), 0.0), squares.dtype)
    return (tf.sqrt(squares + zeros) - zeros) * (1.0 - zeros)


def squared_lengths(x, axis):
    """Sums of squares along an axis of a matrix, which is kept with size 1."""
    return in_parts(_sums_by_products if execution.route(x) == "XLA" else _sums, tf.square(x), axis, _long(x, axis))


def _long(x, axis):
    """Above how many elements a slice is summed in parts."""
    if execution.under_dtensor() or (_XLA_IS_NEW and execution.under_xla()):  # layouts do not follow, XLA has its own
        return math.inf
    return _LONG_COLUMN_ON_CPU if axis == 0 and execution.on_cpu(x) else _LONG


def _sums(x, axis):
    return tf.reduce_sum(x, axis, keepdims=True)


def _sums_by_products(x, axis):
    """Sums of rows, or of the columns of several parts, by a product with ones."""
    if axis == x.shape.rank - 1:
        return row_sums(x)[..., tf.newaxis]
    return tf.matmul(tf.ones([1, tf.shape(x)[1]], x.dtype), x) if x.shape.rank == 3 else _sums(x, axis)
