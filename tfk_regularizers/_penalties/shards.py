"""Partitioned variables: a parameter server strategy calls a regularizer once for each shard.

A penalty that is no sum over rows returns the penalty of the whole variable for the first shard, and 0 for the others.
"""

import tensorflow as tf

from tfk_regularizers._tensorflow_internals import is_sharded, sharded_variable


def resolve_shards(x):
    """x itself if it is no shard; for the first of several shards the partitioned variable, for the others None."""
    variable = sharded_variable(x)
    if variable is None or len(variable.variables) == 1:
        return x
    return variable if x is variable.variables[0] else None


def shard_list(x):
    """The shards of a partitioned variable; [x] for anything else."""
    return list(x.variables) if is_sharded(x) else [x]


def gather_rows(x, rows):
    """Rows of a table or of a partitioned variable, by random numbers that stand for one row each.

    A lookup in shards deals the numbers out to them in turn, which is one to one if their sizes differ by one at most.
    """
    if not is_sharded(x):
        return tf.gather(x, rows)
    sizes = [shard.shape[0] for shard in x.variables]
    dealt = [(sum(sizes) - turn - 1) // len(sizes) + 1 for turn in range(len(sizes))]
    return tf.nn.embedding_lookup(x, rows) if sizes == dealt else tf.gather(tf.convert_to_tensor(x), rows)
