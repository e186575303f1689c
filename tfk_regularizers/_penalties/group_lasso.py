"""Group lasso: the sum of the lengths of the columns or rows of a kernel, which takes whole ones to zero."""

import math
from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties.arguments import Argument, Factor, FactorLike, Mode, check_mode
from tfk_regularizers._penalties.base import Penalty, penalty_method
from tfk_regularizers._penalties.factors import scale
from tfk_regularizers._penalties.inputs import as_matrix
from tfk_regularizers._penalties.lengths import lengths
from tfk_regularizers._penalties.reductions import size
from tfk_regularizers._penalties.shards import resolve_shards, shard_list


class GroupLasso(Penalty):
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

    Gradient steps take a group close to zero and across it, but rarely onto it: cut short groups after training, as
    below. `examples/prune_units.py` makes the smaller model that remains.

    A parameter server strategy partitions variables by rows. With `mode="columns"` the penalty of the first shard is
    that of the whole variable, by the sums of squares of all shards, and that of the others is 0. With `mode="rows"`
    each shard has the penalty of its rows.

    Keras has no such class. It is registered as `tfk_regularizers>GroupLasso`, and a file that contains one opens
    only where this package is imported. float16 and bfloat16 are summed in float32 and give a float32 result.

    Args:
        factor: The factor of the penalty, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"columns"` or `"rows"`, the groups. Defaults to `"columns"`.

    Raises:
        ValueError: If `factor` is not a finite number or `mode` is neither of the two; when called, if x has fewer than
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

    factor: Factor = Factor()
    mode = Argument[Mode, Mode](check_mode)

    def __init__(self, factor: FactorLike = 0.01, mode: Mode = "columns") -> None:
        self.factor = factor
        self.mode = mode

    @penalty_method
    def __call__(self, inputs: Any) -> tf.Tensor:
        axis = 0 if self.mode == "columns" else 1
        if axis == 0:  # variables are partitioned by rows: a column has elements in all shards, a row is in one
            inputs = resolve_shards(inputs)
        if inputs is None:
            return tf.zeros([])
        matrices = [as_matrix("GroupLasso", shard) for shard in (shard_list(inputs) if axis == 0 else [inputs])]
        norms = [lengths(x, axis) for x in matrices]
        if len(norms) > 1:  # a column's length is that of the vector of its lengths in the shards
            norms = [lengths(tf.concat(norms, axis), axis)]
        total, group_size = tf.reduce_sum(norms[0]), sum(size(x, axis) for x in matrices)
        if isinstance(group_size, int):
            return scale(self.factor, total, constant=math.sqrt(group_size))
        return scale(self.factor, tf.sqrt(tf.cast(group_size, total.dtype)) * total)
