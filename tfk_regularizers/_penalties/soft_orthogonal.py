"""Soft orthogonality: the squared distance of a kernel's Gram matrix from the identity, by the smaller Gram matrix.

Let x be k vectors of e elements, and G (k x k) and C (e x e) its Gram matrices: x xᵀ and xᵀx if the vectors are rows.
Both have the same nonzero eigenvalues, so tr G² = tr C² and tr G = tr C, and with more vectors than elements

    ‖G - I‖² = tr G² - 2 tr G + k = ‖C - I‖² + (k - e),
    ‖G without its diagonal‖² = ‖C‖² - Σᵢ ‖xᵢ‖⁴.

The first is a sum of nonnegative terms, hence accurate. The second is a difference, accurate to the rounding of ‖C‖².
More vectors than elements cannot all be orthogonal: if their norms are equal, the difference is at least 1 - e / k of
‖C‖². It is nearly zero only if at most e vectors are much longer than the others, and orthogonal; then it is 0 up to
the rounding of ‖C‖². With no more vectors than elements, G itself is used and nothing is subtracted.
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
    r"""Penalizes squared inner products of rows (or columns), which makes them orthogonal and of norm 1.

    $$\text{factor} \cdot \|x x^T - I\|_F^2$$

    Here x is the matrix of n rows with d elements; for `mode="columns"` it is transposed. With `diagonal=False` the
    diagonal of `x xᵀ - I` is left out, so norms are not pulled to 1; rows that overlap still shrink. The gradient is
    `4 * factor * (x xᵀ - I) x`, or the same without the diagonal.

    The penalty is a sum over pairs, not a mean. Pairs are pulled more strongly the more they overlap;
    `OrthogonalRegularizer` pulls all pairs equally and ignores norms. More than d rows cannot all be orthogonal: with
    the diagonal, the smallest possible value is then `factor * (n - d)`.

    A kernel with more than two axes is reshaped to a matrix whose columns are its last axis; see the table of
    `OrthogonalRegularizer`.

    The smaller of the matrices `x xᵀ` and `xᵀx` is computed, so a million rows of 64 elements need a matrix of 64 x 64.
    The value takes n d min(n, d) multiply-adds, and the gradient as many again. If a size is unknown, XLA and
    forward-mode differentiation compute `x xᵀ`.

    If a parameter server strategy partitions the variable, the first shard returns the whole penalty and the others 0.
    DTensor is not supported. float16 and bfloat16 are computed in float32, and the result is float32.

    Keras has no such class: saved models with it do not load without tfk_regularizers, except in tf_keras from a
    SavedModel, or from a `.keras` file for prediction.

    Args:
        factor: The factor, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.
        diagonal: Whether norms are pulled to 1. Defaults to True.

    Raises:
        ValueError: If `factor` is not a finite number, or if `mode` or `diagonal` is invalid. When called: if x has
            fewer than two axes.
        TypeError: When called: if x is not of a floating dtype.

    >>> SoftOrthogonalRegularizer(factor=0.5, diagonal=False)
    SoftOrthogonalRegularizer(factor=0.5, mode='rows', diagonal=False)
    >>> float(SoftOrthogonalRegularizer(factor=1.0)([[1.0, 0.0], [0.0, 2.0]]))
    9.0
    >>> float(SoftOrthogonalRegularizer(factor=1.0, diagonal=False)([[1.0, 0.0], [0.0, 2.0]]))
    0.0

    References:
        Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", 2018; Brock et al.,
        "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019 (without the diagonal).
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
    """‖G - I‖² for the Gram matrix G of the vectors along an axis of a matrix, given as shards of its rows.

    Without the diagonal: the sum of squares of the other entries of G. A scalar of `result_dtype` of the matrix.
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
    if is_compiled_by_xla() or not execution.supports_custom_gradients(shards[0]):  # `tf.cond` has no gradient there
        return distance_by(vector_axis)
    return tf.cond(rows <= columns, lambda: distance_by(0), lambda: distance_by(1))


def _distance_by(gram_axis, shards, vector_axis, diagonal):
    """`squared_gram_distance` by the Gram matrix of an axis: G if the vectors are along this axis, otherwise C."""
    is_own = gram_axis == vector_axis
    if diagonal:
        excess = 0 if is_own else sum(size(x, vector_axis) for x in shards) - size(shards[0], gram_axis)
        return _square_sum(shards, gram_axis, lambda squares: squares - 1.0) + tf.cast(excess, shards[0].dtype)
    if is_own:  # zeros the diagonal but keeps NaN: a single vector has no other entry
        return _square_sum(shards, gram_axis, lambda squares: tf.stop_gradient(tf.minimum(tf.abs(squares), 0.0)))
    total, fourth_powers = _square_sum_and_lengths(shards, gram_axis)
    # An infinite ‖C‖² stays infinite. Where rounding makes the difference negative, it is 0, and keeps its gradient.
    difference = total - tf.minimum(fourth_powers, total.dtype.max)
    return difference - tf.stop_gradient(tf.minimum(difference, 0.0))


def _square_sum(shards, axis, on_diagonal):
    """The sum of squares of the Gram matrix of an axis, with `on_diagonal` applied to its diagonal.

    The matrix is symmetric, so the gradient takes one product (TensorFlow's takes two).
    """

    def matrix(*shards):
        return _map_diagonal(on_diagonal, _gram(shards, axis))

    if not isinstance(shards[0], tf.Tensor):  # KerasTensors record each operation as a layer
        return 2.0 * half_square_sum(matrix(*shards))

    @tf.custom_gradient
    def differentiable(*shards):
        computed = matrix(*map(execution.detach_from_eager_tape, shards))

        def gradient(upstream):
            symmetric = computed if _is_reusable(shards) else matrix(*shards)
            return _products(4.0 * upstream * symmetric, shards, axis)

        return 2.0 * half_square_sum(computed), gradient

    return differentiable(*map(execution.capture_in_current_graph, shards))


def _square_sum_and_lengths(shards, axis):
    """The sum of squares of the Gram matrix of an axis, and the sum of fourth powers of the norms along this axis.

    The gradients of both are added at once, so that at most two matrices of the size of x exist at a time.
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
            symmetric, squares = computed if _is_reusable(shards) else parts(*shards)
            products = _products(4.0 * upstream * symmetric, shards, axis)
            of_lengths = [x * (4.0 * upstream_of_lengths * one) for x, one in zip(shards, squares, strict=True)]
            return [one + other for one, other in zip(products, of_lengths, strict=True)]

        return values(*computed), gradient

    return differentiable(*map(execution.capture_in_current_graph, shards))


def _gram(shards, axis):
    """The Gram matrix of an axis of a matrix, given as shards of its rows."""
    return functools.reduce(tf.add, [tf.matmul(x, x, transpose_a=axis == 1, transpose_b=axis == 0) for x in shards])


def _products(symmetric, shards, axis):
    """The products of the shards with a Gram matrix of an axis."""
    return [tf.matmul(symmetric, x) if axis == 0 else tf.matmul(x, symmetric) for x in shards]


def _is_reusable(shards):
    """Whether the gradient may reuse a matrix of the forward pass. In eager mode, outer tapes did not record it."""
    return not tf.executing_eagerly() or not any(is_recorded(x) or has_tangent(x) for x in shards)


def _map_diagonal(function, matrix):
    """A square matrix with an elementwise function applied to its diagonal."""
    if is_compiled_by_xla():  # there `set_diag` has no gradient for unknown shapes
        return tf.where(tf.eye(size(matrix, 0), dtype=matrix.dtype) > 0, function(matrix), matrix)
    return tf.linalg.set_diag(matrix, function(tf.linalg.diag_part(matrix)))
