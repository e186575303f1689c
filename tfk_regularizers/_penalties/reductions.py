"""Sums over a tensor that keep their digits, and what they are made of."""

import tensorflow as tf

# Lengths of the rows in which XLA sums: their speed hardly differs, a divisor of the size leaves no rest, and XLA of
# TensorFlow 2.16 adds up each row one by one (2.5e-5 from the truth at rows of 2048, 3.5e-6 at these).
_ROWS = range(256, 63, -1)
# And so many rows of a matrix at a time, for sums of its columns: more do not stay in the cache.
_PARTS = range(64, 15, -1)
_LONG = 4096  # rows up to which a plain sum of columns keeps its digits
# XLA of TensorFlow before 2.19 adds up a tensor in parts itself, by every core and fused with what makes it. A product
# with ones is not fused there, and L1 takes twice as long.
_XLA_SUMS_IN_PARTS = tuple(map(int, tf.__version__.split(".")[:2])) < (2, 19)


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


def total_in_xla(x, levels=3):
    """Σx for XLA, which on a CPU adds a plain sum one by one: by TensorFlow 2.21 it is percents off at 64M elements.

    A product with ones fuses what makes x, uses every core and is summed in parts. Each loop that XLA has to generate
    adds some 35 ms to the compilation, so there is one where there can be; where the size is unknown, so many levels.
    """
    flat = tf.reshape(x, [-1])
    count = flat.shape[0]
    if _XLA_SUMS_IN_PARTS or levels == 0 or (count is not None and count <= _ROWS[0]):
        return tf.reduce_sum(flat)
    row = next((row for row in _ROWS if count is not None and count % row == 0), _ROWS[0])
    whole = size(flat, 0) // row * row
    total = total_in_xla(row_sums(tf.reshape(flat[:whole], [-1, row])), levels - 1)
    return total if count == whole else total + tf.reduce_sum(flat[whole:])


def column_sums_in_xla(x, levels=2):
    """Sums along the first axis of a matrix for XLA, which on a CPU adds up a column one by one and by one core.

    A product with ones again, some rows at a time: it fuses what makes x, uses every core and leaves x as it lies.
    """
    count = x.shape[0]
    if levels == 0 or (count is not None and count <= _PARTS[0]):
        return tf.reduce_sum(x, axis=0)
    part = next((part for part in _PARTS if count is not None and count % part == 0), _PARTS[0])
    parts = size(x, 0) // part
    whole = parts * part
    blocks = tf.reshape(x[:whole], [parts, part, size(x, 1)])
    total = column_sums_in_xla(tf.einsum("r,prc->pc", tf.ones([part], x.dtype), blocks), levels - 1)
    return total if count == whole else total + tf.reduce_sum(x[whole:], axis=0)


def row_sums_in_xla(x):
    """Sums along the last axis of a matrix for XLA: of long rows first those of their parts."""
    count = x.shape[1]
    if count is not None and count <= _ROWS[0]:
        return row_sums(x)
    row = next((row for row in _ROWS if count is not None and count % row == 0), _ROWS[0])
    parts = size(x, 1) // row
    whole = parts * row
    total = row_sums(row_sums(tf.reshape(x[:, :whole], [size(x, 0), parts, row])))
    return total if count == whole else total + row_sums(x[:, whole:])


def squares_along(x, axis, in_xla):
    """Sums of squares of a matrix along an axis, which is left with the size 1."""
    if in_xla:
        return tf.expand_dims((row_sums_in_xla if axis else column_sums_in_xla)(tf.square(x)), axis)
    squares, count = tf.square(x), x.shape[axis]
    if axis == 0 and isinstance(count, int) and count > _LONG:  # one number would be added to another so many times
        parts = count // _PARTS[0]
        whole = parts * _PARTS[0]
        blocks = tf.reshape(squares[:whole], [parts, _PARTS[0], size(x, 1)])
        rest = tf.reduce_sum(squares[whole:], axis=0, keepdims=True)
        return tf.reduce_sum(tf.reduce_sum(blocks, axis=1), axis=0, keepdims=True) + rest
    return tf.reduce_sum(squares, axis=axis, keepdims=True)
