"""The mathematics of sampling: some of the rows of a table, drawn uniformly without replacement."""

import tensorflow as tf

from tfk_regularizers._penalties import size


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
    return tf.gather(x, drawn, axis=axis)


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
        return tf.concat([[False], drawn[1:] == drawn[:-1]], 0)

    def again(turn, drawn):
        return turn + 1, tf.sort(tf.where(repeats(drawn), draw(turn), drawn))

    start = (1, tf.sort(draw(0)))
    return tf.while_loop(lambda _, drawn: tf.reduce_any(repeats(drawn)), again, start, parallel_iterations=1)[1]
