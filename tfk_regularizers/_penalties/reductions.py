"""Sums that stay accurate for many elements, and sizes and dtypes of tensors."""

import tensorflow as tf

_BLOCK_SIZE = 64
_MATMUL_BLOCK_SIZE = 256


def result_dtype(x):
    """The dtype of a penalty on x: real; float32 for half types, which would overflow or lose digits."""
    return tf.float32 if x.dtype.size < 4 else x.dtype.real_dtype


def promote_half(x):
    """x, as float32 if it is float16 or bfloat16."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def size(x, axis):
    """The size of an axis: a Python int if it is static, otherwise a tensor."""
    static = tf.compat.dimension_value(x.shape[axis])
    # `stop_gradient`, because forward-over-forward mode fails at the shape of a differentiated tensor.
    return static if static is not None else tf.shape(tf.stop_gradient(x))[axis]


def row_sums(x):
    """Sums along the last axis, by a product with ones: faster and more accurate under XLA on a CPU."""
    return tf.linalg.matvec(x, tf.ones([size(x, -1)], x.dtype))


def matmul_sum(x, levels=3):
    """The sum of all elements by matrix products with ones, for XLA of TensorFlow 2.19 to 2.21 on a CPU.

    There a plain sum runs on one core, element by element: 4 % off at 64 million. A product with ones is fused with the
    operations that make x, uses all cores and sums in blocks. There are at most `levels` levels of blocks (exactly
    `levels` if the size is unknown).
    """
    flat = tf.reshape(x, [-1])
    count = tf.compat.dimension_value(flat.shape[0])
    if levels == 0 or (count is not None and count <= _MATMUL_BLOCK_SIZE):
        return tf.reduce_sum(flat)
    # A divisor of the size between 64 and 256, if there is one, leaves no remainder.
    divisors = (length for length in range(_MATMUL_BLOCK_SIZE, 63, -1) if count is not None and count % length == 0)
    block_size = next(divisors, _MATMUL_BLOCK_SIZE)
    divisible_size = size(flat, 0) // block_size * block_size
    blocks = tf.reshape(flat[:divisible_size], [-1, block_size])
    total = matmul_sum(row_sums(blocks), levels - 1)
    return total if count == divisible_size else total + tf.reduce_sum(flat[divisible_size:])


def reduce_in_blocks(reduce, x, axis, longer_than, levels=2):
    """`reduce(x, axis)` of a matrix, in blocks if the axis has more than `longer_than` elements.

    Adding a million numbers one by one is off by 3e-5. There are at most `levels` levels of blocks (exactly `levels` if
    the size is unknown).
    """
    count = tf.compat.dimension_value(x.shape[axis])
    if levels == 0 or (count is not None and count <= longer_than):
        return reduce(x, axis)
    num_blocks = size(x, axis) // _BLOCK_SIZE
    divisible_size = num_blocks * _BLOCK_SIZE
    if axis == 0:
        head, remainder, shape = x[:divisible_size], x[divisible_size:], [num_blocks, _BLOCK_SIZE, size(x, 1)]
    else:
        head, remainder, shape = x[:, :divisible_size], x[:, divisible_size:], [size(x, 0), num_blocks, _BLOCK_SIZE]
    reduced = tf.squeeze(reduce(tf.reshape(head, shape), axis + 1), axis + 1)
    if count is None or count % _BLOCK_SIZE:
        reduced = tf.concat([reduced, reduce(remainder, axis)], axis)
    return reduce_in_blocks(reduce, reduced, axis, longer_than, levels - 1)
