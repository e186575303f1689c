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
    """Distinct random rows of x, one for each of `rows`: distinct random numbers below the number of rows.

    `embedding_lookup` takes number i from shard i mod n: not row i, but still a distinct row for each, if the shards
    have the sizes of such a split.
    """
    if not is_sharded(x):
        return tf.gather(x, rows)
    sizes = [shard.shape[0] for shard in x.variables]
    divided = [(sum(sizes) - turn - 1) // len(sizes) + 1 for turn in range(len(sizes))]
    return tf.nn.embedding_lookup(x, rows) if sizes == divided else tf.gather(tf.convert_to_tensor(x), rows)
