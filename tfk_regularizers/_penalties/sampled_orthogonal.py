"""Orthogonality of a table too large even for blocks: that of some of its rows, drawn afresh at each call."""

from types import MappingProxyType
from typing import Any, SupportsIndex

import tensorflow as tf

from tfk_regularizers._penalties.annotations import Factor, FactorAttribute, Mode
from tfk_regularizers._penalties.arguments import checked_sample_size, row_or_column_mode
from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.factors import checked_factor, scaled
from tfk_regularizers._penalties.inputs import matrix
from tfk_regularizers._penalties.orthogonal import mean_absolute_cosine
from tfk_regularizers._penalties.reductions import size
from tfk_regularizers._penalties.shards import gathered, is_partitioned, whole


class SampledOrthogonalRegularizer(Penalty, autograph=False):
    """Pushes the rows (or columns) of a huge table to be orthogonal, by a fresh sample of them at each call.

    Formula: that of `OrthogonalRegularizer` on `sample_size` rows (or columns), drawn uniformly without replacement at
    each call, also inside a traced function; on all of them, exactly, if there are no more. An unbiased estimate of the
    same mean. Gradient: that of the formula, for the drawn rows alone (`IndexedSlices` for the rows of a variable).

    Time: O(sample_size² d) instead of O(n² d) for n rows of d elements, however many there are. Peak memory: that of
    `OrthogonalRegularizer` on `sample_size` rows. For a square kernel of 2048 rows a sample of 256 takes a twentieth of
    the exact penalty's time, and about ten times as many steps to get as far (`examples/sample_orthogonality.py`).

    `tf.random.set_seed` makes the draws repeatable in eager mode and in a `tf.function`. XLA draws its random numbers
    from a generator of its own, which TensorFlow gives no way to seed: there they are fresh, but not repeatable. On a
    DTensor mesh nothing is drawn, for its operations are not there: `sample_size` has to cover all rows.

    tf_keras has no such class. It is registered as `tfk_regularizers>SampledOrthogonalRegularizer`, and a file that
    contains one opens only where this package is imported.

    Args:
        factor: A finite number, the factor of the penalty; or a variable, as for `L1`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.
        sample_size: An integer of at least 2, the number of rows (or columns) to draw. Defaults to 4096.

    Raises:
        ValueError: If `factor` is not a finite number, `mode` is none of the two or `sample_size` is not an integer of
            at least 2; when called, if x has fewer than two axes.
        TypeError: When called, if x is not of a floating dtype.

    >>> SampledOrthogonalRegularizer(factor=0.5, sample_size=512)
    SampledOrthogonalRegularizer(factor=0.5, mode='rows', sample_size=512)
    >>> float(SampledOrthogonalRegularizer(factor=1.0, sample_size=2)([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    0.0
    """

    factor_names = ("factor",)
    factor: FactorAttribute
    mode: Mode
    sample_size: int
    _checks = MappingProxyType({"mode": row_or_column_mode, "sample_size": checked_sample_size})

    def __init__(self, factor: Factor = 0.01, mode: Mode = "rows", sample_size: SupportsIndex = 4096) -> None:
        self.factor = checked_factor("factor", factor)
        self.mode = row_or_column_mode(mode)
        self.sample_size = checked_sample_size(sample_size)

    def __call__(self, inputs: Any) -> tf.Tensor:
        inputs = whole("SampledOrthogonalRegularizer", inputs)
        if inputs is None:
            return tf.zeros([])
        # Rows are gathered from a variable itself, or from its shards: reading a huge one first would copy it.
        is_variable = isinstance(inputs, tf.Variable) or is_partitioned(inputs)
        is_table = is_variable and inputs.shape.rank == 2 and inputs.dtype.is_floating
        axis = 0 if row_or_column_mode(self.mode) == "rows" else 1
        if not is_table or axis == 1:
            inputs = matrix("SampledOrthogonalRegularizer", inputs)
        sample = sampled(inputs, self.sample_size, axis)
        if axis == 1:
            sample = tf.transpose(sample)
        return scaled(self.factor, mean_absolute_cosine(sample))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"mode": self.mode, "sample_size": self.sample_size}


def sampled(x, count, axis):
    """`count` slices of x along an axis, drawn uniformly without replacement; all of them if there are no more."""
    n = size(x, axis)
    if isinstance(n, int) and n <= count:
        return tf.convert_to_tensor(x)
    if isinstance(n, int):
        drawn = _distinct(n, count) if n >= 2 * count else tf.random.shuffle(tf.range(n))[:count]
    else:
        count = tf.minimum(tf.cast(count, tf.int64), tf.cast(n, tf.int64))
        drawn = tf.cond(
            tf.cast(n, tf.int64) >= 2 * tf.maximum(count, 1),  # of none there is none to draw
            lambda: _distinct(n, count),
            lambda: tf.random.shuffle(tf.range(tf.cast(n, tf.int64)))[:count],
        )
    return gathered(x, drawn) if axis == 0 else tf.gather(x, drawn, axis=axis)


def _distinct(n, count):
    """`count` distinct integers below n, at least twice as many: those that have been drawn before are drawn again.

    Which of two equal ones is drawn again depends on nothing but that they are equal, so no set is more likely than
    another. The cost is that of `count`, not of n; each round leaves at most half of the repetitions, on average.
    """
    n = tf.cast(n, tf.int64)
    # One seed, and numbers from it by their place: XLA of some versions repeats a draw within a program.
    seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)

    def draw(turn):
        return tf.random.stateless_uniform([count], seed + tf.stack([0, turn]), maxval=n, dtype=tf.int64)

    def repeats(drawn):  # in the ascending order that they have
        return tf.concat([[False], tf.equal(drawn[1:], drawn[:-1])], 0)

    def again(turn, drawn):
        return turn + 1, tf.sort(tf.where(repeats(drawn), draw(turn), drawn))

    start = (1, tf.sort(draw(0)))
    return tf.while_loop(lambda _, drawn: tf.reduce_any(repeats(drawn)), again, start, parallel_iterations=1)[1]
