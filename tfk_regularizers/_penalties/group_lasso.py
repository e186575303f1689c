"""Group lasso: the sum of the lengths of the columns or rows of a kernel, which takes whole ones to zero."""

import math
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties.annotations import Factor, FactorAttribute, Mode
from tfk_regularizers._penalties.arguments import row_or_column_mode
from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.factors import checked_factor, scaled
from tfk_regularizers._penalties.inputs import matrix
from tfk_regularizers._penalties.lengths import lengths
from tfk_regularizers._penalties.reductions import size
from tfk_regularizers._penalties.shards import parts, whole


class GroupLasso(Penalty, autograph=False):
    """Pulls whole units to zero, for pruning them: adds the lengths of the columns (or rows) of a kernel.

    Formula: `factor * sqrt(d) * Σᵢ ‖xᵢ‖₂`, where the xᵢ are the columns (or rows) of the matrix x, and d is the number
    of elements in each: so groups of kernels of different shapes are pulled alike. Gradient:
    `factor * sqrt(d) * xᵢ / ‖xᵢ‖₂`, 0 at a zero group, so a zero group stays where it is. A group whose
    squares all vanish (elements below 1e-19 in float32) counts as zero. One whose squares overflow (elements above
    1e19) makes the penalty infinite, and has gradient 0.

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
        norms = [lengths(x, axis) for x in matrices]
        if len(norms) > 1:  # a column's length is that of the vector of the lengths of its shards
            norms = [lengths(tf.concat(norms, axis), axis)]
        total, d = tf.reduce_sum(norms[0]), sum(size(x, axis) for x in matrices)
        if isinstance(d, int):
            return scaled(self.factor, total, times=math.sqrt(d))
        return scaled(self.factor, tf.sqrt(tf.cast(d, total.dtype)) * total)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"mode": self.mode}
