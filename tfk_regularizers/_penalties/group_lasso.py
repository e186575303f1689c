"""Group lasso: the sum of the lengths of the columns or rows of a kernel, which takes whole ones to zero.

*Lengths that float32 cannot square.* The square of 1e-30 is 0 there, that of 1e30 is infinite. So each group whose sum
of squares is far from 1 has them summed times a power of two: exact, and a constant to whoever differentiates. With m
the largest exponent (128 in float32), sums between 2^(±5m/8) stay as they are. Where XLA fuses it, one pass over x does
that, which squares float32 in float64. Elsewhere there are two, the first to choose the powers; in eager the second is
left out if no group needs it. (In a graph a `tf.cond` could do so, and TensorFlow does not differentiate that twice
under XLA.)
"""

import contextlib
import functools
import math
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.annotations import Factor, FactorAttribute, Mode
from tfk_regularizers._penalties.arguments import row_or_column_mode
from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.factors import checked_factor, scaled
from tfk_regularizers._penalties.inputs import matrix
from tfk_regularizers._penalties.reductions import size, squares_along, wide
from tfk_regularizers._penalties.shards import parts, whole


class GroupLasso(Penalty, autograph=False):
    """Pulls whole units to zero, for pruning them: adds the lengths of the columns (or rows) of a kernel.

    Formula: `factor * sqrt(d) * Σᵢ ‖xᵢ‖₂`, where the xᵢ are the columns (or rows) of the matrix x, and d is the number
    of elements in each: so groups of kernels of different shapes are pulled alike. Gradient:
    `factor * sqrt(d) * xᵢ / ‖xᵢ‖₂`, 0 at a zero group, so a zero group stays where it is. Lengths whose squares
    overflow or vanish in the dtype of x are right.

    A kernel of more than two axes is taken as the matrix (product of all axes but the last, last axis), as by
    `OrthogonalRegularizer`, whose table says what columns and rows are for each layer: `mode="columns"` stands for the
    units of a `Dense` layer and the filters of a convolution, `mode="rows"` for the inputs of a `Dense` layer and the
    tokens of an `Embedding`.

    A gradient step takes a group close to zero, and across it, but rarely onto it: cut what is short after training, as
    below; `examples/prune_units.py` makes the smaller model of what is left.

    A parameter server strategy that partitions a variable, which it does by rows, calls its regularizer once a shard.
    Of columns the first pays for the whole, by the sums of squares of all shards, and the others give 0; rows are whole
    in each.

    tf_keras has no such class. It is registered as `tfk_regularizers>GroupLasso`, and a file that contains one opens
    only where this package is imported. float16 and bfloat16 are summed in float32 and give a float32 result.

    Args:
        factor: A finite number, the factor of the penalty; or a variable, as for `L1`. Defaults to 0.01. Mutable, and
            read at each call.
        mode: `"columns"` or `"rows"`, the groups. Defaults to `"columns"`.

    Raises:
        ValueError: If `factor` is not a finite number or `mode` is none of the two; when called, if x has fewer than
            two axes.
        TypeError: When called, if x is not of a floating dtype.

    >>> import numpy as np, tf_keras
    >>> GroupLasso(factor=0.5)
    GroupLasso(factor=0.5, mode='columns')
    >>> float(GroupLasso(factor=1.0)([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    10.0

    Of a trained layer, the units whose weights are short beside the longest:

    >>> layer = tf_keras.layers.Dense(3)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.array([[3.0, 1e-4, 0.0], [4.0, 2e-4, 5.0]]), np.ones(3)])
    >>> lengths = np.linalg.norm(layer.kernel, axis=0)
    >>> kept = lengths > 0.01 * lengths.max()
    >>> layer.set_weights([weight * kept for weight in layer.get_weights()])  # kernel and bias
    >>> layer.kernel.numpy().tolist()
    [[3.0, 0.0, 0.0], [4.0, 0.0, 5.0]]

    References:
        Yuan and Lin, "Model Selection and Estimation in Regression with Grouped Variables", 2006; Wen et al., "Learning
        Structured Sparsity in Deep Neural Networks", 2016.
    """

    factor_names = ("factor",)
    factor: FactorAttribute
    mode: Mode
    _checks = MappingProxyType({"mode": row_or_column_mode})

    def __init__(self, factor: Factor = 0.01, mode: Mode = "columns") -> None:
        self.factor = checked_factor("factor", factor)
        self.mode = row_or_column_mode(mode)

    def __call__(self, inputs: Any) -> tf.Tensor:
        axis = 0 if row_or_column_mode(self.mode) == "columns" else 1
        if axis == 0:  # variables are partitioned by rows, and no row is in two of the shards
            inputs = whole("GroupLasso", inputs)
            if inputs is None:
                return tf.zeros([])
        matrices = [matrix("GroupLasso", part) for part in (parts(inputs) if axis == 0 else [inputs])]
        lengths, d = sum_of_lengths(*matrices, axis=axis), sum(size(x, axis) for x in matrices)
        if isinstance(d, int):
            return scaled(self.factor, lengths, times=math.sqrt(d))
        return scaled(self.factor, tf.sqrt(tf.cast(d, lengths.dtype)) * lengths)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"mode": self.mode}


def sum_of_lengths(*matrices, axis):
    """Σ ‖xᵢ‖₂ over the slices that lie along an axis of a matrix, or of one in several parts along that axis."""
    x = matrices[0]
    if len(matrices) == 1 and execution.may_loop(x) and not execution.saving():
        return _by_hand(x, axis)
    scales, roots = _differentiable_roots(*map(wide, matrices), axis=axis)
    return tf.reduce_sum(roots / scales)


def _scales(squares):
    """By what power of two to multiply each group, given the sums of its squares. A NaN is none that needs it."""
    power = 2.0 ** (math.frexp(squares.dtype.max)[1] * 5 // 8)
    large, small = (tf.cast(which, squares.dtype) for which in (squares > power, squares < 1 / power))
    return (1.0 - large - small) + large / power + small * power


def _differentiable_roots(*matrices, axis):
    """A scale of each group, and its length times that, whose powers neither overflow nor vanish."""
    maxima = [tf.reduce_max(tf.abs(tf.stop_gradient(x)), axis=axis, keepdims=True) for x in matrices]
    bound = 2.0 ** (math.frexp(maxima[0].dtype.max)[1] - 2)
    scales = 1.0 / tf.maximum(tf.minimum(functools.reduce(tf.maximum, maxima), bound), 1 / bound)
    squares = [squares_along(x * scales, axis, execution.route(x) == "XLA") for x in matrices]
    return scales, _roots(functools.reduce(tf.add, squares))


def _roots(squares):
    """Square roots, with 0 as the derivative at 0, which otherwise is infinite."""
    # Cut, because forward over forward mode stumbles over a comparison of what it differentiates.
    zeros = tf.cast(tf.equal(tf.stop_gradient(squares), 0.0), squares.dtype)
    return (tf.sqrt(squares + zeros) - zeros) * (1.0 - zeros)


def _by_hand(x, axis):
    """Σ ‖xᵢ‖₂ with a gradient of one pass over x.

    The gradient takes the lengths of the value. What is derived from it makes them anew, by what can be differentiated.
    """
    here, inside, route = execution.here, execution.inside, execution.route(x)
    scope = tf.xla.experimental.jit_scope if route == "fused" else contextlib.nullcontext
    in_xla = route in ("XLA", "fused")

    @tf.custom_gradient
    def directions(x, by, scales, roots):  # of the groups, times `by`
        def second(w):
            at, along = wide(here(x)), wide(here(w))
            scales, roots = _differentiable_roots(at, axis=axis)
            units = tf.math.divide_no_nan(at * scales, roots)
            cosines = tf.reduce_sum(units * along, axis=axis, keepdims=True)
            across = tf.math.divide_no_nan(here(by), roots) * (along - units * cosines) * scales
            return tf.cast(across, x.dtype), tf.reduce_sum(cosines), None, None

        with scope():
            # A group of zeros is one whatever it is divided by. Last comes the division: XLA keeps its result, where it
            # would compute a cheaper one for each element anew.
            roots = inside(roots)
            lengths = roots + tf.cast(tf.equal(tf.stop_gradient(roots), 0.0), roots.dtype)
            return tf.cast(wide(inside(x)) * ((inside(by) * scales) / lengths), x.dtype), second

    @tf.custom_gradient
    def value(x):
        with scope():
            at = wide(inside(x))
            exact = tf.cast(at, tf.float64) if in_xla else at
            squares = squares_along(exact, axis, in_xla)
            scales = _scales(tf.cast(tf.stop_gradient(squares), at.dtype))
            if exact.dtype != at.dtype:
                squares = tf.cast(squares * tf.square(tf.cast(scales, exact.dtype)), at.dtype)
            elif not (tf.executing_eagerly() and bool(tf.reduce_all(tf.equal(scales, 1.0)))):
                squares = squares_along(at * scales, axis, in_xla)
            roots = _roots(squares)
            return tf.reduce_sum(roots / scales), lambda dy: directions(here(x), here(dy), here(scales), here(roots))

    return value(here(x))
