"""Partitioned variables: a parameter server strategy calls a regularizer once for each shard.

A penalty that is not a sum over rows returns the penalty of the whole variable for the first shard, 0 for the others.
"""

import tensorflow as tf

from tfk_regularizers._tensorflow_internals import is_sharded, sharded_variable


def resolve_shards(x):
    """x unless it is a shard; the partitioned variable for the first of several shards, None for the others."""
    variable = sharded_variable(x)
    if variable is None or len(variable.variables) == 1:
        return x
    return variable if x is variable.variables[0] else None


def shard_list(x):
    """The shards of a partitioned variable; [x] for anything else."""
    return list(x.variables) if is_sharded(x) else [x]


def gather_rows(x, rows):
    """Random rows of a table or partitioned variable, by distinct random numbers below the number of rows.

    `embedding_lookup` assigns the numbers to the shards in turn, not in order. That is one-to-one if the
    sizes of the shards are those of such a division.
    """
    if not is_sharded(x):
        return tf.gather(x, rows)
    sizes = [shard.shape[0] for shard in x.variables]
    divided = [(sum(sizes) - turn - 1) // len(sizes) + 1 for turn in range(len(sizes))]
    return tf.nn.embedding_lookup(x, rows) if sizes == divided else tf.gather(tf.convert_to_tensor(x), rows)
