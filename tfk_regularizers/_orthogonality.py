"""The mathematics of orthogonality: the mean absolute cosine between the rows of a matrix."""

import tensorflow as tf

from tfk_regularizers import _penalties

_EPSILON = 1e-12  # as in tf.math.l2_normalize


def mean_absolute_cosine(x):
    """Mean over the unordered pairs i < j of |⟨x̂ᵢ, x̂ⱼ⟩|, x̂ the L2-normalized rows of the matrix x; 0 without a pair."""
    x = _penalties.wide(x)
    rows = x.shape[0]
    pairs = max(rows * (rows - 1), 1) if rows is not None else _count_pairs(x)
    return _absolute_cosines(_normalized(x)) / tf.cast(pairs, x.dtype)


def _count_pairs(x):
    """n (n - 1), at least 1, in a float: int32 overflows from n = 46342."""
    rows = tf.cast(tf.shape(x)[0], x.dtype)
    return tf.maximum(rows * (rows - 1.0), 1.0)


def _normalized(x):
    """The rows of x at length 1; a row shorter than 1e-6 is multiplied by 1e6."""
    return x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(x), axis=1, keepdims=True), _EPSILON))


def _absolute_cosines(u):
    """Σ|⟨uᵢ, uⱼ⟩| over i ≠ j by one Gram matrix."""
    if not isinstance(u, tf.Tensor):
        return _penalties.total(tf.abs(_off_diagonal_gram(u)))  # a KerasTensor records plain ops alone
    return _direct(u)


def _off_diagonal_gram(u):
    gram = tf.matmul(u, u, transpose_b=True)
    return tf.linalg.set_diag(gram, tf.zeros_like(u[:, 0]))


@tf.custom_gradient
def _direct(u):
    """One Gram matrix; its gradient 2 sign(G) u saves the built-in's passes over the n x n matrices."""
    gram = _off_diagonal_gram(u)
    value = tf.reduce_sum(tf.linalg.matvec(tf.abs(gram), tf.ones_like(u[:, 0])))
    return value, lambda dy: 2.0 * dy * tf.matmul(tf.sign(gram), u)
