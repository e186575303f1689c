"""Soft orthogonality: the squared distance of a kernel's Gram matrix from the identity, by the smaller Gram matrix.

Let x be k vectors of e elements, G its k x k Gram matrix and C its e x e one (x xᵀ and xᵀx, if the vectors are rows).
Both have the same nonzero eigenvalues, so tr G² = tr C² and tr G = tr C, and with more vectors than elements

    ‖G - I‖² = tr G² - 2 tr G + k = ‖C - I‖² + (k - e),
    ‖G without its diagonal‖² = ‖C‖² - Σᵢ ‖xᵢ‖⁴.

The first is a sum of nonnegative terms, hence accurate. The second is a difference, accurate to the rounding of ‖C‖²:
more vectors than elements cannot all be orthogonal, and if they have one length, the difference is at least the share
1 - e / k of ‖C‖². It is nearly zero only if e vectors or fewer are much longer than the others, and orthogonal; then it
is 0 to the rounding of ‖C‖². With no more vectors than elements, which can become orthogonal, nothing is subtracted: G
itself gives both.
"""

import functools
from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.arguments import Argument, Factor, FactorLike, Mode, check_bool, check_mode
from tfk_regularizers._penalties.base import Penalty, penalty_method
from tfk_regularizers._penalties.elementwise import half_square_sum
from tfk_regularizers._penalties.factors import scale
from tfk_regularizers._penalties.inputs import as_matrix
from tfk_regularizers._penalties.lengths import squared_lengths
from tfk_regularizers._penalties.reductions import promote_half, size
from tfk_regularizers._penalties.shards import resolve_shards, shard_list
from tfk_regularizers._tensorflow_internals import has_tangent, is_compiled_by_xla, is_recorded


class SoftOrthogonalRegularizer(Penalty):
    """Pulls the rows (or columns) of a kernel to be orthogonal and of length 1, by squares of their inner products.

    Formula: `factor * ‖x xᵀ - I‖²_F` for the n x d matrix x, the sum over all ordered pairs of rows of
    `(⟨xᵢ, xⱼ⟩ - δᵢⱼ)²`; with `diagonal=False` only the pairs i ≠ j, which leaves the lengths free. (A sum, not a mean:
    what is copied around is one, too.) For `mode="columns"` x is transposed. Gradient: `4 * factor * (x xᵀ - I) x`,
    without the diagonal of x xᵀ likewise. More rows than elements cannot all be orthogonal, and the least is
    `factor * (n - d)` with the diagonal.

    Choose squares if the lengths should go to 1 as well, or if pairs should be pulled the more they overlap.
    `OrthogonalRegularizer` takes absolute cosines, to which the scale of the rows does not matter.

    Time: n d min(n, d) multiply-adds for the value and as many for the gradient. Memory: the smaller of the matrices
    x xᵀ and xᵀx, for both have the same eigenvalues: a million rows of 64 take 64 x 64 numbers. Without the diagonal
    the value is a difference then, `‖xᵀx‖² - Σᵢ ‖xᵢ‖⁴`, right to the rounding of `‖xᵀx‖²`. (If a
    size is unknown, XLA and forward mode take x xᵀ.)

    A kernel of more than two axes is taken as the matrix (product of all axes but the last, last axis), as by
    `OrthogonalRegularizer`, whose table says what rows and columns are for each layer.

    If a parameter server strategy has partitioned a variable, the penalty of the first shard is that of the whole
    variable, by the sum of the small matrices xᵀx of all shards, and that of the others is 0.

    Keras has no such class. It is registered as `tfk_regularizers>SoftOrthogonalRegularizer`, and a file that
    contains one opens only where this package is imported. float16 and bfloat16 are computed in float32 and give a
    float32 result.

    Args:
        factor: The factor of the penalty, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.
        diagonal: Whether the lengths are pulled to 1. Defaults to True.

    Raises:
        ValueError: If `factor` is not a finite number, `mode` is neither of the two or `diagonal` is not a bool; when
            called, if x has fewer than two axes.
        TypeError: When called, if x is not of a floating dtype.

    >>> SoftOrthogonalRegularizer(factor=0.5, diagonal=False)
    SoftOrthogonalRegularizer(factor=0.5, mode='rows', diagonal=False)
    >>> float(SoftOrthogonalRegularizer(factor=1.0)([[1.0, 0.0], [0.0, 2.0]]))
    9.0
    >>> float(SoftOrthogonalRegularizer(factor=1.0, diagonal=False)([[1.0, 0.0], [0.0, 2.0]]))
    0.0

    References:
        Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", 2018; Brock et al.,
        "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019, without the diagonal.
    """

    factor: Factor = Factor()
    mode = Argument[Mode, Mode](check_mode)
    diagonal = Argument[bool, bool](functools.partial(check_bool, "diagonal"))

    def __init__(self, factor: FactorLike = 0.01, mode: Mode = "rows", diagonal: bool = True) -> None:
        self.factor = factor
        self.mode = mode
        self.diagonal = diagonal

    @penalty_method
    def __call__(self, inputs: Any) -> tf.Tensor:
        inputs = resolve_shards(inputs)
        if inputs is None:
            return tf.zeros([])
        matrices = [as_matrix("SoftOrthogonalRegularizer", shard) for shard in shard_list(inputs)]
        vector_axis = 0 if self.mode == "rows" else 1
        return scale(self.factor, squared_gram_distance(matrices, vector_axis, self.diagonal))


def squared_gram_distance(shards, vector_axis, diagonal):
    """‖G - I‖² for the Gram matrix G of the vectors along an axis of a matrix, which may come in shards of its rows.

    Without the diagonal, the sum of squares of the other entries of G. A scalar of `result_dtype` of the matrix.
    """
    shards = [promote_half(x) for x in shards]
    rows, columns = sum(size(x, 0) for x in shards), size(shards[0], 1)
    if len(shards) > 1 and vector_axis == 0 and rows <= columns:
        shards = [tf.concat(shards, 0)]
    distance_by = functools.partial(_distance_by, shards=shards, vector_axis=vector_axis, diagonal=diagonal)
    if len(shards) > 1:
        return distance_by(1)
    if isinstance(rows, int) and isinstance(columns, int):
        return distance_by(int(rows > columns))
    if is_compiled_by_xla() or not execution.supports_custom_gradients(shards[0]):  # no gradient of `tf.cond`
        return distance_by(vector_axis)
    return tf.cond(rows <= columns, lambda: distance_by(0), lambda: distance_by(1))


def _distance_by(gram_axis, shards, vector_axis, diagonal):
    """`squared_gram_distance` by the Gram matrix of one axis: G if that is the axis of the vectors, otherwise C."""
    is_own = gram_axis == vector_axis
    if diagonal:
        excess = 0 if is_own else sum(size(x, vector_axis) for x in shards) - size(shards[0], gram_axis)
        return _square_sum(shards, gram_axis, lambda squares: squares - 1.0) + tf.cast(excess, shards[0].dtype)
    if is_own:  # NaN where the square is: a single slice has no other entry
        return _square_sum(shards, gram_axis, lambda squares: tf.stop_gradient(tf.minimum(tf.abs(squares), 0.0)))
    total, fourth_powers = _square_sum_and_lengths(shards, gram_axis)
    # An infinite ‖C‖² stays infinite. Where rounding makes the difference negative, it is 0, and keeps its gradient.
    difference = total - tf.minimum(fourth_powers, total.dtype.max)
    return difference - tf.stop_gradient(tf.minimum(difference, 0.0))


def _square_sum(shards, axis, on_diagonal):
    """The sum of squares of the Gram matrix of an axis, with `on_diagonal` applied to its diagonal.

    Its gradient takes one product, where TensorFlow takes two, for the matrix is symmetric.
    """

    def matrix(*shards):
        return _map_diagonal(on_diagonal, _gram(shards, axis))

    if not isinstance(shards[0], tf.Tensor):  # KerasTensors record each operation as a layer
        return 2.0 * half_square_sum(matrix(*shards))

    @tf.custom_gradient
    def differentiable(*shards):
        computed = matrix(*map(execution.detach_from_eager_tape, shards))

        def gradient(upstream):
            symmetric = computed if _is_seen(shards) else matrix(*shards)
            return _products(4.0 * upstream * symmetric, shards, axis)

        return 2.0 * half_square_sum(computed), gradient

    return differentiable(*map(execution.capture_in_current_graph, shards))


def _square_sum_and_lengths(shards, axis):
    """The sum of squares of the Gram matrix of an axis, and the sum of fourth powers of the lengths along this axis.

    The gradients of both are added at once: no more than two matrices of the size of x are there at a time.
    """

    def parts(*shards):
        return _gram(shards, axis), [squared_lengths(x, axis) for x in shards]

    def values(gram, squares):
        return 2.0 * half_square_sum(gram), functools.reduce(tf.add, [2.0 * half_square_sum(one) for one in squares])

    if not isinstance(shards[0], tf.Tensor):
        return values(*parts(*shards))

    @tf.custom_gradient
    def differentiable(*shards):
        computed = parts(*map(execution.detach_from_eager_tape, shards))

        def gradient(upstream, upstream_of_lengths):
            symmetric, squares = computed if _is_seen(shards) else parts(*shards)
            products = _products(4.0 * upstream * symmetric, shards, axis)
            of_lengths = [x * (4.0 * upstream_of_lengths * one) for x, one in zip(shards, squares, strict=True)]
            return [one + other for one, other in zip(products, of_lengths, strict=True)]

        return values(*computed), gradient

    return differentiable(*map(execution.capture_in_current_graph, shards))


def _gram(shards, axis):
    """The Gram matrix of an axis of a matrix that comes in shards of its rows."""
    return functools.reduce(tf.add, [tf.matmul(x, x, transpose_a=axis == 1, transpose_b=axis == 0) for x in shards])


def _products(symmetric, shards, axis):
    """The products of the shards with a matrix of the size of an axis."""
    return [tf.matmul(symmetric, x) if axis == 0 else tf.matmul(x, symmetric) for x in shards]


def _is_seen(shards):
    """Whether a further derivative sees how a matrix was computed. In eager mode it may have to be computed again."""
    return not tf.executing_eagerly() or not any(is_recorded(x) or has_tangent(x) for x in shards)


def _map_diagonal(function, matrix):
    """A square matrix with an elementwise function applied to its diagonal."""
    if is_compiled_by_xla():  # where `set_diag` has no gradient at unknown shapes
        return tf.where(tf.eye(size(matrix, 0), dtype=matrix.dtype) > 0, function(matrix), matrix)
    return tf.linalg.set_diag(matrix, function(tf.linalg.diag_part(matrix)))
