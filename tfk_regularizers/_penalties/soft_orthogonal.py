"""Soft orthogonality: the squared distance of a kernel's Gram matrix from the identity, by the smaller Gram matrix.

Let x be k vectors of e elements, G its k x k Gram matrix and C its e x e one (x xᵀ and xᵀx, if the vectors are rows).
Both have the same nonzero eigenvalues, so tr G² = tr C² and tr G = tr C, and with more vectors than elements

    ‖G - I‖² = tr G² - 2 tr G + k = ‖C - I‖² + (k - e),        G x = x C,
    ‖G without its diagonal‖² = ‖C‖² - Σᵢ ‖xᵢ‖⁴.

The first is a sum of what is not negative, and right to the last digits. The second is a difference, right to the last
digits of ‖C‖²: of more vectors than elements not all can be orthogonal, and what is left of ‖C‖² is at least the share
1 - e / k if they are of one length. It is close to nothing only where no more than e vectors are much longer than the
others and these are orthogonal, and there it is 0 to the rounding of ‖C‖². With no more vectors than elements, where
orthogonality can be reached, nothing is subtracted: G itself gives both.
"""

import functools
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.annotations import Factor, FactorAttribute, Mode
from tfk_regularizers._penalties.arguments import checked_flag, row_or_column_mode
from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.elementwise import half_square_sum
from tfk_regularizers._penalties.factors import checked_factor, scaled
from tfk_regularizers._penalties.inputs import matrix
from tfk_regularizers._penalties.lengths import squared_lengths
from tfk_regularizers._penalties.reductions import size, wide
from tfk_regularizers._penalties.shards import parts, whole


class SoftOrthogonalRegularizer(Penalty, autograph=False):
    """Pulls the rows (or columns) of a kernel to be orthogonal and of length 1, by squares of their inner products.

    Formula: `factor * ‖x xᵀ - I‖²_F` for the n x d matrix x, the sum over all ordered pairs of rows of
    `(⟨xᵢ, xⱼ⟩ - δᵢⱼ)²`; with `diagonal=False` the pairs i ≠ j alone, which leaves the lengths free. (A sum, not a mean:
    what is copied around is one, too.) For `mode="columns"` x is transposed. Gradient: `4 * factor * (x xᵀ - I) x`,
    without the diagonal of x xᵀ likewise. More rows than elements cannot all be orthogonal, and the least is
    `factor * (n - d)` with the diagonal.

    Squares are the choice where the lengths should go to 1 as well, or pairs should be pulled the more the more they
    overlap. `OrthogonalRegularizer` takes absolute cosines, to which the scale of the rows does not matter.

    Time: n d min(n, d) multiply-adds for the value and as many for the gradient. Memory: the smaller of the matrices
    x xᵀ and xᵀx, for both have the same eigenvalues: a million rows of 64 take 64 x 64 numbers. Without the diagonal
    the value is a difference then, `‖xᵀx‖² - Σᵢ ‖xᵢ‖⁴`, right to the rounding of `‖xᵀx‖²`. (In forward mode, under
    DTensor and in `tf.vectorized_map` x xᵀ is taken where a size is unknown.)

    A kernel of more than two axes is taken as the matrix (product of all axes but the last, last axis), as by
    `OrthogonalRegularizer`, whose table says what rows and columns are for each layer.

    A parameter server strategy that partitions a variable calls its regularizer once a shard: the first pays for the
    whole, by the sum of the small matrices xᵀx of all shards, and the others give 0.

    tf_keras has no such class. It is registered as `tfk_regularizers>SoftOrthogonalRegularizer`, and a file that
    contains one opens only where this package is imported. float16 and bfloat16 are computed in float32 and give a
    float32 result.

    Args:
        factor: A finite number, the factor of the penalty; or a variable, as for `L1`. Defaults to 0.01. Mutable, and
            read at each call.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.
        diagonal: Whether the lengths are pulled to 1. Defaults to True.

    Raises:
        ValueError: If `factor` is not a finite number, `mode` is none of the two or `diagonal` is not a bool; when
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

    factor_names = ("factor",)
    factor: FactorAttribute
    mode: Mode
    diagonal: bool
    _checks = MappingProxyType({"mode": row_or_column_mode, "diagonal": functools.partial(checked_flag, "diagonal")})

    def __init__(self, factor: Factor = 0.01, mode: Mode = "rows", diagonal: bool = True) -> None:
        self.factor = checked_factor("factor", factor)
        self.mode = row_or_column_mode(mode)
        self.diagonal = checked_flag("diagonal", diagonal)

    def __call__(self, inputs: Any) -> tf.Tensor:
        inputs = whole("SoftOrthogonalRegularizer", inputs)
        if inputs is None:
            return tf.zeros([])
        matrices = [matrix("SoftOrthogonalRegularizer", part) for part in parts(inputs)]
        over = 0 if row_or_column_mode(self.mode) == "rows" else 1
        return scaled(
            self.factor, gram_distance(*matrices, over=over, diagonal=checked_flag("diagonal", self.diagonal))
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"mode": self.mode, "diagonal": self.diagonal}


def gram_distance(*matrices, over, diagonal):
    """‖G - I‖² for the slices over an axis of a matrix, which may come in parts of its rows; or ‖G‖² but its diagonal.

    It is of the `result_dtype` of the matrix.
    """
    rows, columns = sum(size(x, 0) for x in matrices), size(matrices[0], 1)
    if len(matrices) > 1 and (over == 1 or rows > columns):  # by the sum of their small Gram matrices
        matrices, form = [wide(x) for x in matrices], _Form(over, 1, diagonal)
        return form.value(form.gram(*matrices), *matrices)
    x = matrices[0] if len(matrices) == 1 else tf.concat(matrices, 0)
    if execution.may_loop(x):
        return _by_hand(x, over, diagonal)
    x, side = wide(x), _smaller(x)
    form = _Form(over, over if side is None else side, diagonal, plain=True)
    return form.value(form.gram(x), x)


def _by_hand(x, over, diagonal):
    """The value with a gradient that is one product, and nothing beside it as large as x but what halves are cast to.

    Right to any order in reverse mode: the gradient takes the matrix of the value, and what is derived from the
    gradient makes it anew by ops of TensorFlow. In a SavedModel the gradient does so too, for no other is held there.
    """
    here, inside = execution.here, execution.inside

    def choose(function, x):
        return _by_smaller(x, lambda side: function(_Form(over, side, diagonal)))

    def slope(x, dy, *known):
        @tf.custom_gradient
        def differentiable(x, dy, *known):  # an argument, or a graph of TensorFlow 1 finds the variable behind it
            def second(w):
                at, by, along = wide(here(x)), here(dy), wide(here(w))
                product, share = choose(lambda form: form.second(here(at), here(by), here(along)), at)
                return tf.cast(product, x.dtype), share, *(None for _ in known)

            at, by, gram = wide(inside(x)), inside(dy), [inside(one) for one in known]
            result = choose(lambda form: form.slope(here(at), here(by), *map(here, gram)), at)
            return tf.cast(result, x.dtype), second

        if execution.saving():
            return tf.cast(choose(lambda form: form.slope(wide(here(x)), here(dy)), x), x.dtype)
        return differentiable(x, dy, *map(here, known))

    @tf.custom_gradient
    def value(x):
        at = wide(inside(x))
        side = _smaller(at)
        if side is None:
            return choose(lambda form: form.value(form.gram(here(at)), here(at)), at), lambda dy: slope(
                here(x), here(dy)
            )
        form = _Form(over, side, diagonal)
        gram = form.gram(at)
        return form.value(gram, at), lambda dy: slope(here(x), here(dy), gram)

    return value(here(x))


def _smaller(x):
    """The axis over which the matrix x has fewer slices, the first if equal; None if that is not known."""
    n, d = map(tf.compat.dimension_value, x.shape)
    return None if n is None or d is None else int(n > d)


def _by_smaller(x, function):
    """function(axis) for the axis over which x has fewer slices, chosen at run time if need be."""
    side = _smaller(x)
    if side is not None:
        return function(side)
    return tf.cond(size(x, 0) <= size(x, 1), lambda: function(0), lambda: function(1))


class _Form(NamedTuple):
    """The mathematics for a wide x: of the slices over one axis, by the Gram matrix of those over an axis `side`."""

    over: int
    side: int
    diagonal: bool
    plain: bool = False  # by ops that DTensor and forward mode follow: no diagonal is set, no factor transposed

    def products(self, a, b):
        """The inner products of the slices of two matrices over `side`."""
        if execution.under_dtensor():  # by whose layouts nothing else follows a kernel that is split by column
            return tf.einsum("ij,kj->ik" if self.side == 0 else "ij,ik->jk", a, b)
        if self.plain:
            return tf.matmul(a, tf.transpose(b)) if self.side == 0 else tf.matmul(tf.transpose(a), b)
        return tf.matmul(a, b, transpose_a=self.side == 1, transpose_b=self.side == 0)

    def times(self, gram, x):
        """The product of a symmetric matrix with x, from the side on which it fits."""
        return tf.matmul(gram, x) if self.side == 0 else tf.matmul(x, gram)

    def is_corrected(self):
        """Whether ‖C‖² has the squared lengths of the slices in it, which have no place there."""
        return not self.diagonal and self.side != self.over

    def masked(self, gram):
        """The matrix without its diagonal, where that is what the penalty leaves out."""
        if self.diagonal or self.side != self.over:
            return gram
        if self.plain:
            return gram - gram * execution.identity_beside(gram)
        # 0, or the NaN of a slice that has no other to meet.
        return tf.linalg.set_diag(gram, tf.stop_gradient(tf.minimum(tf.abs(tf.linalg.diag_part(gram)), 0.0)))

    def gram(self, *matrices):
        """G - I, C - I, G without its diagonal, or C."""
        gram = functools.reduce(tf.add, (self.products(x, x) for x in matrices))
        if not self.diagonal:
            return self.masked(gram)
        if self.plain:
            return gram - execution.identity_beside(gram)
        return tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) - 1.0)

    def squared_lengths(self, x):
        return squared_lengths(x, 1 - self.over)

    def value(self, gram, *matrices):
        total = 2.0 * half_square_sum(gram)
        if self.side == self.over:
            return total
        if self.diagonal:
            count = sum(size(x, self.over) for x in matrices)
            return total + tf.cast(count - size(matrices[0], self.side), total.dtype)
        # An infinite ‖C‖² stays one, and where rounding takes the difference below 0, it is 0 and has its gradient.
        fourths = functools.reduce(tf.add, (2.0 * half_square_sum(self.squared_lengths(x)) for x in matrices))
        difference = total - tf.minimum(fourths, total.dtype.max)
        return difference - tf.stop_gradient(tf.minimum(difference, 0.0))

    def slope(self, x, by, gram=None):
        """The gradient times `by`."""
        result = self.times(4.0 * by * (self.gram(x) if gram is None else gram), x)
        return result - (4.0 * by * self.squared_lengths(x)) * x if self.is_corrected() else result

    def second(self, x, by, w):
        """What `slope` hands on of w: the Hessian times w, times `by`, and the inner product of w with the gradient."""
        mixed = self.products(x, w)
        mixed = self.masked(mixed + tf.transpose(mixed))
        first, then = self.times(self.gram(x), w), self.times(mixed, x)
        if self.is_corrected():
            first -= self.squared_lengths(x) * w
            then -= 2.0 * tf.reduce_sum(x * w, axis=1 - self.over, keepdims=True) * x
        return 4.0 * by * (first + then), 4.0 * tf.reduce_sum(first * x)
