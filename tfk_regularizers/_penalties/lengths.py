"""The L2 norms ("lengths") of the rows or columns of a matrix."""

import functools
import math

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.execution import Kernel
from tfk_regularizers._penalties.reductions import promote_half, reduce_in_blocks, row_sums
from tfk_regularizers._tensorflow_internals import is_compiled_by_xla

# Longer slices are summed in blocks. On a CPU the blocks of a column stay in the cache: faster above 1024 rows.
_LONG = 4096
_LONG_COLUMN_ON_CPU = 1024
# Since 2.22, XLA sums in blocks itself and supports `reduce_euclidean_norm`. Earlier versions do not, and a function
# that is traced without XLA may be compiled by XLA later.
_HAS_NORM_UNDER_XLA = execution.TENSORFLOW >= (2, 22)
_SUMS = functools.partial(tf.reduce_sum, keepdims=True)
_NORMS = functools.partial(tf.math.reduce_euclidean_norm, keepdims=True)  # one pass over memory


def lengths(x, axis):
    """The L2 norms of a matrix's rows (axis 1) or columns (axis 0); the axis is kept. float32 for half types.

    The gradient is the slice divided by its length, and 0 for a slice of zeros. It uses the returned lengths, so it can
    be differentiated again.
    """
    if not execution.supports_custom_gradients(x):  # forward mode would ignore the custom gradient
        return _differentiable_lengths(promote_half(x), axis)

    @tf.custom_gradient
    def differentiable(x):
        def gradient(upstream):
            return tf.cast(promote_half(x) * tf.math.divide_no_nan(upstream, result), x.dtype)

        return _lengths(promote_half(execution.detach_from_eager_tape(x)), axis), gradient

    result = differentiable(execution.capture_in_current_graph(x))
    return result


def _lengths(x, axis):
    if is_compiled_by_xla() or not (_HAS_NORM_UNDER_XLA or tf.executing_eagerly()):
        return tf.sqrt(squared_lengths(x, axis))
    return reduce_in_blocks(_NORMS, x, axis, _longest_unblocked(x, axis))


def _differentiable_lengths(x, axis):
    """The lengths by operations that TensorFlow differentiates, with derivative 0 at a length of 0."""
    squares = squared_lengths(x, axis)
    # Without `stop_gradient` forward-over-forward mode fails at the comparison.
    zeros = tf.cast(tf.equal(tf.stop_gradient(squares), 0.0), squares.dtype)
    return (tf.sqrt(squares + zeros) - zeros) * (1.0 - zeros)


def squared_lengths(x, axis):
    """Sums of squares along an axis of a matrix; the axis is kept."""
    sums = _matmul_sums if execution.choose_kernel(x) is Kernel.MATMUL_SUMS else _SUMS
    return reduce_in_blocks(sums, tf.square(x), axis, _longest_unblocked(x, axis))


def _longest_unblocked(x, axis):
    """The number of elements above which a slice is summed in blocks."""
    if _HAS_NORM_UNDER_XLA and is_compiled_by_xla():  # XLA sums in blocks itself
        return math.inf
    return _LONG_COLUMN_ON_CPU if axis == 0 and execution.on_cpu(x) else _LONG


def _matmul_sums(x, axis):
    """Sums by a product with ones; by `reduce_sum` for columns of a matrix."""
    if axis == x.shape.rank - 1:
        return row_sums(x)[..., tf.newaxis]
    return tf.matmul(tf.ones([1, tf.shape(x)[1]], x.dtype), x) if x.shape.rank == 3 else _SUMS(x, axis)
