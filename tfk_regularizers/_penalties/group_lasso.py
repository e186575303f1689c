"""Group lasso: the sum of the norms of a kernel's columns or rows, which drives whole ones to zero."""

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
    r"""Penalizes the norms of columns (or rows), which drives whole units towards zero so that they can be pruned.

    $$\text{factor} \cdot \sqrt{d} \; \sum_j \|x_j\|_2$$

    The x_j are the columns (or rows) of the matrix x, and d is the number of elements of each, so that kernels of
    different shapes are penalized alike. The gradient is `factor * sqrt(d) * x_j / norm(x_j)`, and 0 where a column is
    zero.

    A kernel with more than two axes is reshaped to a matrix whose columns are its last axis. `mode="columns"` penalizes
    the units of a `Dense` layer and the filters of a convolution, `mode="rows"` the inputs of a `Dense` layer and the
    tokens of an `Embedding`. The table of `OrthogonalRegularizer` lists other layers.

    Training brings a column close to zero, but rarely to exactly zero: the example below sets small columns to zero,
    and `examples/prune_units.py` removes them. In float32, a column counts as zero if all its elements are below 1e-19;
    with a norm above 1.8e19 the penalty is infinite, and the gradient of this column is 0.

    If a parameter server strategy partitions the variable, `mode="columns"` returns the whole penalty for the first
    shard and 0 for the others. float16 and bfloat16 are summed in float32, and the result is float32.

    Keras has no such class: saved models with it do not load without tfk_regularizers, except in tf_keras from a
    SavedModel, or from a `.keras` file for prediction.

    Args:
        factor: The factor, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"columns"` or `"rows"`. Defaults to `"columns"`.

    Raises:
        ValueError: If `factor` is not a finite number, or if `mode` is invalid. When called: if x has fewer than two
            axes.
        TypeError: When called: if x is not of a floating dtype.

    >>> import numpy as np, tf_keras
    >>> GroupLasso(factor=0.5)
    GroupLasso(factor=0.5, mode='columns')
    >>> float(GroupLasso(factor=1.0)([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    10.0

    After training, set the units to zero whose norm is below 1 % of the largest:

    >>> layer = tf_keras.layers.Dense(3)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.array([[3.0, 1e-4, 0.0], [4.0, 2e-4, 5.0]]), np.ones(3)])
    >>> norms = np.linalg.norm(layer.kernel, axis=0)
    >>> kept = norms > 0.01 * norms.max()
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
        if len(norms) > 1:  # the norm of a column is the norm of its norms in the shards
            norms = [lengths(tf.concat(norms, axis), axis)]
        total, group_size = tf.reduce_sum(norms[0]), sum(size(x, axis) for x in matrices)
        if isinstance(group_size, int):
            return scale(self.factor, total, constant=math.sqrt(group_size))
        return scale(self.factor, tf.sqrt(tf.cast(group_size, total.dtype)) * total)
