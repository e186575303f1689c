"""Orthogonality of a random sample of the rows of a table, drawn at each call."""

from typing import Any, SupportsIndex

import tensorflow as tf

from tfk_regularizers._penalties.arguments import Argument, Factor, FactorLike, Mode, check_mode, check_sample_size
from tfk_regularizers._penalties.base import Penalty, penalty_method
from tfk_regularizers._penalties.factors import scale
from tfk_regularizers._penalties.inputs import as_matrix
from tfk_regularizers._penalties.orthogonal import mean_absolute_cosine
from tfk_regularizers._penalties.reductions import size
from tfk_regularizers._penalties.shards import gather_rows, resolve_shards
from tfk_regularizers._tensorflow_internals import is_sharded


class SampledOrthogonalRegularizer(Penalty):
    """Penalizes the cosines between randomly sampled rows (or columns), for kernels that are too large for all pairs.

    This is `OrthogonalRegularizer` applied to `sample_size` rows (or columns). They are drawn uniformly without
    replacement at each call, inside a traced function too. This is an unbiased estimate of the penalty on all rows. If
    there are no more than `sample_size` rows, all are used. The gradient is nonzero only for sampled rows; for a sample
    of rows of a two-dimensional variable it is an `IndexedSlices`.

    Time and memory depend on `sample_size`, not on the number of rows n: O(sample_size² d) instead of O(n² d). On a
    square kernel of 2048 rows, 256 samples take a twentieth of the time of all pairs, and about ten times as many steps
    for the same effect (`examples/sample_orthogonality.py`).

    `tf.random.set_seed` makes the samples reproducible, except with `jit_compile=True`, where XLA's own random numbers
    cannot be seeded. DTensor is not supported.

    Keras has no such class: saved models with it do not load without tfk_regularizers, except in tf_keras from a
    SavedModel, or from a `.keras` file for prediction.

    Args:
        factor: The factor, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.
        sample_size: The number of rows (or columns) to sample, an integer of at least 2. Defaults to 4096.

    Raises:
        ValueError: If `factor` is not a finite number, or if `mode` or `sample_size` is invalid. When called: if x has
            fewer than two axes.
        TypeError: When called: if x is not of a floating dtype.

    >>> SampledOrthogonalRegularizer(factor=0.5, sample_size=512)
    SampledOrthogonalRegularizer(factor=0.5, mode='rows', sample_size=512)
    >>> float(SampledOrthogonalRegularizer(factor=1.0, sample_size=2)([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    0.0
    """

    factor: Factor = Factor()
    mode = Argument[Mode, Mode](check_mode)
    sample_size = Argument[SupportsIndex, int](check_sample_size)

    def __init__(self, factor: FactorLike = 0.01, mode: Mode = "rows", sample_size: SupportsIndex = 4096) -> None:
        self.factor = factor
        self.mode = mode
        self.sample_size = sample_size

    @penalty_method
    def __call__(self, inputs: Any) -> tf.Tensor:
        inputs = resolve_shards(inputs)
        if inputs is None:
            return tf.zeros([])
        # Rows are gathered from the variable itself, or from its shards, because reading all of it would copy it.
        is_variable = isinstance(inputs, tf.Variable) or is_sharded(inputs)
        is_table = is_variable and inputs.shape.rank == 2 and inputs.dtype.is_floating
        axis = 0 if self.mode == "rows" else 1
        if not is_table or axis == 1:
            inputs = as_matrix("SampledOrthogonalRegularizer", inputs)
        sample = draw_slices(inputs, self.sample_size, axis)
        if axis == 1:
            sample = tf.transpose(sample)
        return scale(self.factor, mean_absolute_cosine(sample))


def draw_slices(x, count, axis):
    """`count` slices of x along an axis, drawn uniformly without replacement; all if there are fewer."""
    n = size(x, axis)
    if isinstance(n, int) and n <= count:
        return tf.convert_to_tensor(x)
    if isinstance(n, int) and n >= 2 * count:
        drawn = _distinct_integers(n, count)
    else:
        drawn = tf.random.shuffle(tf.range(tf.cast(n, tf.int64)))[:count]
    return gather_rows(x, drawn) if axis == 0 else tf.gather(x, drawn, axis=axis)


def _distinct_integers(n, count):
    """`count` distinct random integers below n, for n of at least 2 * `count`. Repeated numbers are drawn again.

    All sets are equally likely, because the choice depends only on which numbers are equal. The cost depends on `count`
    and not on n; each round leaves at most half of the repetitions, on average.
    """
    n = tf.cast(n, tf.int64)
    # One seed with a counter, because some versions of XLA repeat random numbers in a program.
    seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)

    def draw(turn):
        return tf.random.stateless_uniform([count], seed + tf.stack([0, turn]), maxval=n, dtype=tf.int64)

    def repeats(drawn):  # `drawn` is sorted
        return tf.concat([[False], tf.equal(drawn[1:], drawn[:-1])], 0)

    def again(turn, drawn):
        return turn + 1, tf.sort(tf.where(repeats(drawn), draw(turn), drawn))

    start = (1, tf.sort(draw(0)))
    return tf.while_loop(lambda _, drawn: tf.reduce_any(repeats(drawn)), again, start, parallel_iterations=1)[1]
