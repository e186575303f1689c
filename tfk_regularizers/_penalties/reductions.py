"""Sums over a tensor that keep their digits."""

import tensorflow as tf

_PART = 64  # numbers in each part of a sum


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


def sum_by_products(x, levels=3, row=256):
    """Sum of all elements, by products with ones: what XLA of TensorFlow 2.19 to 2.21 needs on a CPU.

    A plain sum runs on one core there and adds one element after the other: 4 % off at 64 million. A product with ones
    is fused with the operations that make x, uses every core and is summed in parts. Where the size is unknown there
    are `levels` levels of them.
    """
    flat = tf.reshape(x, [-1])
    count = tf.compat.dimension_value(flat.shape[0])
    if levels == 0 or (count is not None and count <= row):
        return tf.reduce_sum(flat)
    # A divisor of the size between 64 and 256, if there is one, leaves no rest.
    row = next((length for length in range(row, 63, -1) if count is not None and count % length == 0), row)
    whole = size(flat, 0) // row * row
    total = sum_by_products(row_sums(tf.reshape(flat[:whole], [-1, row])), levels - 1)
    return total if count == whole else total + tf.reduce_sum(flat[whole:])


def in_parts(reduce, x, axis, longer_than, levels=2):
    """`reduce(x, axis)` of a matrix, which keeps the axis, with long slices reduced part by part first.

    A kernel that adds one number after the other is off by 3e-5 after a million. Where the size is unknown there are
    `levels` levels of parts.
    """
    count = tf.compat.dimension_value(x.shape[axis])
    if levels == 0 or (count is not None and count <= longer_than):
        return reduce(x, axis)
    parts = size(x, axis) // _PART
    whole = parts * _PART
    if axis == 0:
        head, rest, shape = x[:whole], x[whole:], [parts, _PART, size(x, 1)]
    else:
        head, rest, shape = x[:, :whole], x[:, whole:], [size(x, 0), parts, _PART]
    reduced = tf.squeeze(reduce(tf.reshape(head, shape), axis + 1), axis + 1)
    if count is None or count % _PART:
        reduced = tf.concat([reduced, reduce(rest, axis)], axis)
    return in_parts(reduce, reduced, axis, longer_than, levels - 1)
