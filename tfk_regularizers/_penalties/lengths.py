"""The L2 lengths of the rows or columns of a matrix."""

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.reductions import in_parts, row_sums, wide

_SUMMED_FASTER_IN_PARTS_FROM = 1024  # rows of a column, outside XLA: the parts stay in the cache


def lengths(x, axis, compiled=None):
    """The lengths ‖xᵢ‖₂ of the slices of a matrix along an axis, which stays with size 1. Halves give float32.

    The gradient is xᵢ / ‖xᵢ‖₂, to any order, and 0 at a slice of zeros. It takes the lengths anew, which a graph
    computes once, and as the value did: nothing tells a gradient of a gradient that XLA will compile it.
    """
    if not execution.may_loop(x) or execution.saving():  # where a custom gradient, or that of it, is lost
        return _differentiable(wide(x), axis)
    compiled = execution.under_xla() if compiled is None else compiled

    @tf.custom_gradient
    def differentiable(x):
        def gradient(upstream):
            units = tf.math.divide_no_nan(upstream, lengths(x, axis, compiled))
            return tf.cast(wide(x) * units, x.dtype)

        return (_by_squares if compiled else _by_kernel)(wide(x), axis), gradient

    return differentiable(execution.here(x))


def _by_squares(x, axis):
    return tf.sqrt(squared_lengths(x, axis))


def _by_kernel(x, axis):
    """Outside XLA, whose older versions lack it, a kernel that squares and sums in one pass over memory."""
    longer_than = {"longer_than": _SUMMED_FASTER_IN_PARTS_FROM} if axis == 0 else {}
    return in_parts(lambda x, axis: tf.math.reduce_euclidean_norm(x, axis, keepdims=True), x, axis, **longer_than)


def _differentiable(x, axis):
    """The lengths, for TensorFlow to differentiate: 0 at 0, where the derivative of a root is infinite."""
    squares = squared_lengths(x, axis)
    # Cut, because forward over forward mode stumbles over a comparison of what it differentiates.
    zeros = tf.cast(tf.equal(tf.stop_gradient(squares), 0.0), squares.dtype)
    return (tf.sqrt(squares + zeros) - zeros) * (1.0 - zeros)


def squared_lengths(x, axis):
    """Sums of squares along an axis of a matrix, which stays with size 1."""
    if axis == 1 and execution.route(x) == "XLA":
        return in_parts(lambda x, _: row_sums(x)[..., tf.newaxis], tf.square(x), axis)
    return in_parts(lambda x, axis: tf.reduce_sum(x, axis, keepdims=True), tf.square(x), axis)
