"""The mathematics of L1 and L2: sums over a tensor, with hand-written gradients that save passes over memory."""

import contextlib

import tensorflow as tf

from tfk_regularizers import _execution

# Lengths of the rows in which XLA sums: their speed hardly differs, a divisor of the size leaves no rest, and XLA of
# TensorFlow 2.16 adds up each row one by one (2.5e-5 from the truth at rows of 2048, 3.5e-6 at these).
_ROWS = range(256, 63, -1)


def result_dtype(x):
    """The dtype of a penalty on x: real, and float32 for halves, whose sums soon pass 65504 or lose their digits."""
    return tf.float32 if x.dtype.size < 4 else x.dtype.real_dtype


def wide(x):
    """x, or x as float32 if it is a half."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def size(x, axis):
    """The size of an axis: a Python int where it is static."""
    static = tf.compat.dimension_value(x.shape[axis])
    # Cut, because forward over forward mode stumbles over the shape of what it differentiates.
    return static if static is not None else tf.shape(tf.stop_gradient(x))[axis]


def row_sums(x):
    """Sums along the last axis, by a product with ones: under XLA on a CPU it is faster than a plain sum, and right."""
    return tf.linalg.matvec(x, tf.ones([size(x, -1)], x.dtype))


def absolute_sum(x):
    """Σ|x|, a scalar of `result_dtype(x)`, and 0 the gradient at 0."""
    return _total(
        x,
        in_xla=lambda x: _total_in_xla(tf.abs(x)),
        plain=_plain_absolute_sum,
        gradient=lambda x, dy: dy * tf.sign(x),
    )


def half_square_sum(x):
    """½ Σ|x|², a scalar of `result_dtype(x)`."""
    x = wide(x)
    if x.dtype.is_complex:
        return half_square_sum(tf.math.real(x)) + half_square_sum(tf.math.imag(x))
    if _execution.route(x) == "XLA":
        return 0.5 * _total_in_xla(tf.square(x))
    return tf.nn.l2_loss(x)  # one pass, without writing the squares, and one for the gradient


def elastic_net(x, l1, l2):
    """l1 Σ|x| + l2 Σ|x|², a scalar of `result_dtype(x)`, for numbers l1 and l2 that are not both 0."""
    scale = max(abs(l1), abs(l2))  # applied to the sum: times small elements, small factors would vanish
    return _total(
        x,
        in_xla=lambda x: scale * _total_in_xla(l1 / scale * tf.abs(x) + l2 / scale * tf.square(tf.abs(x))),
        plain=lambda x: l1 * _plain_absolute_sum(x) + l2 * (2.0 * half_square_sum(x)),
        gradient=lambda x, dy: (dy * l1) * tf.sign(x) + (dy * (2.0 * l2)) * x,
    )


def _plain_absolute_sum(x):
    return tf.reduce_sum(tf.abs(x))


def _total(x, in_xla, plain, gradient):
    """A sum over x, the way that `_execution.route` says; `plain` is the same by ops that are quick one by one."""
    route = _execution.route(x)
    if route == "XLA":
        return in_xla(wide(x))
    if route == "plain":
        return plain(wide(x))
    fused = route == "fused"
    scope = tf.xla.experimental.jit_scope if fused else contextlib.nullcontext

    @tf.custom_gradient
    def value(x):
        def by_hand(dy):
            with scope():
                return tf.cast(gradient(wide(x), dy), x.dtype)

        with scope():
            inside = wide(tf.stop_gradient(x))  # an eager tape would also record what happens in here
            return (in_xla if fused else plain)(inside), by_hand

    return value(x)


def _total_in_xla(x, levels=3):
    """Σx for XLA, which on a CPU adds a plain sum one by one: wrong in the third digit at 64M elements.

    A product with ones fuses what makes x, uses every core and is summed in parts. Each loop that XLA has to generate
    adds some 35 ms to the compilation, so there is one where there can be; where the size is unknown, so many levels.
    """
    flat = tf.reshape(x, [-1])
    count = flat.shape[0]
    if levels == 0 or (count is not None and count <= _ROWS[0]):
        return tf.reduce_sum(flat)
    row = next((row for row in _ROWS if count is not None and count % row == 0), _ROWS[0])
    whole = size(flat, 0) // row * row
    total = _total_in_xla(row_sums(tf.reshape(flat[:whole], [-1, row])), levels - 1)
    return total if count == whole else total + tf.reduce_sum(flat[whole:])
