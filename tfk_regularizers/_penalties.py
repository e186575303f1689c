"""The mathematics of L1 and L2: sums over a tensor, with their gradients.

The sums come without factors. A factor multiplies outside, so that it may be a number, a tensor or a variable, and has
its own gradient like any other operand.
"""

import tensorflow as tf

from tfk_regularizers import _execution

# The row length of the product that `_row_sums` makes; from 256 to 4096 the speed hardly changes.
_ROW = 1024


def wide(x):
    """x, with float16 and bfloat16 as float32: 65504 is soon passed by a sum, and eight bits are soon used up."""
    return x if x.dtype.is_complex else tf.cast(x, result_dtype(x))


def result_dtype(x):
    """The dtype of a penalty on x: real, and wide enough for a sum."""
    return tf.float32 if x.dtype.is_floating and x.dtype.size < 4 else x.dtype.real_dtype


def total(x):
    """Σx by plain ops.

    XLA:CPU adds a plain sum one by one, which is wrong in the third digit at 64M elements. Where the size is unknown it
    may be large, and a product with ones is summed in parts there, at no cost elsewhere.
    """
    if x.shape.rank is None or x.shape.rank < 2 or x.shape.is_fully_defined() or (x.shape[-1] or 0) < 16:
        return tf.reduce_sum(x)
    rows = tf.reshape(x, [-1, x.shape[-1]])
    return tf.reduce_sum(tf.linalg.matvec(rows, tf.ones([x.shape[-1]], x.dtype)))


def _total_in_xla(x):
    """Σx for XLA: a product with ones fuses what makes x, uses every core and sums in parts."""
    flat = tf.reshape(x, [-1])
    whole = flat.shape[0] // _ROW * _ROW
    rows = tf.reshape(flat[:whole], [-1, _ROW])
    return tf.reduce_sum(tf.linalg.matvec(rows, tf.ones([_ROW], x.dtype))) + tf.reduce_sum(flat[whole:])


def _absolute_sum(x, total=total):
    return total(tf.abs(wide(x)))


def _absolute_gradient(x, dy):
    return tf.cast(dy * tf.sign(wide(x)), x.dtype)


def _square_sum(x, total=total):
    if x.dtype.is_complex:
        return total(tf.square(tf.math.real(x))) + total(tf.square(tf.math.imag(x)))
    x = wide(x)
    if total is not _total_in_xla and x.shape.is_fully_defined():
        return 2.0 * tf.nn.l2_loss(x)  # one pass, without writing the squares
    return total(tf.square(x))


def _square_gradient(x, dy):
    return tf.cast(2.0 * dy * wide(x), x.dtype)


def _both_sums(x, total=total):
    return _absolute_sum(x, total), _square_sum(x, total)


def _both_gradients(x, d_absolute, d_square):
    y = wide(x)
    return tf.cast(d_absolute * tf.sign(y) + 2.0 * d_square * y, x.dtype)


def _routed(value, gradient, doc):
    """The function value(x) with gradient(x, *upstream), run the way that `_execution.route` says."""
    xla_value = tf.function(lambda x: value(x, _total_in_xla), jit_compile=True, autograph=False)
    xla_gradient = tf.function(gradient, jit_compile=True, autograph=False)

    @tf.custom_gradient
    def custom(x):
        return value(x), lambda *upstream: gradient(x, *upstream)

    @tf.custom_gradient
    def compiled(x):
        return xla_value(x), lambda *upstream: xla_gradient(x, *upstream)

    ways = {"plain": value, "custom": custom, "compiled": compiled}

    def routed(x):
        return ways[_execution.route(x)](x)

    routed.__doc__ = doc
    return routed


absolute_sum = _routed(_absolute_sum, _absolute_gradient, "Σ|x|, a real scalar, float32 for halves.")
square_sum = _routed(_square_sum, _square_gradient, "Σ|x|², a real scalar, float32 for halves.")
both_sums = _routed(_both_sums, _both_gradients, "(Σ|x|, Σ|x|²) whose gradient is one pass over memory.")
