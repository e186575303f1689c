"""Partitioned variables: a parameter server strategy makes several of one, and calls its regularizer for each of them.

A penalty that is no sum over the rows of a variable lets the first of them, which knows the others, pay for all.
"""

import warnings

import tensorflow as tf


def whole(name, x):
    """What a penalty on x takes: x itself; for the first of several shards all of them, for the others None."""
    find = getattr(x, "_sharded_container", None)
    if find is None:
        return x
    container = find()
    if container is None:
        warnings.warn(
            f"{name} was called on a shard of a partitioned variable that is not there any more, and sees the rows of "
            "that shard alone. For the whole, keep a reference to the variable, as a layer does.",
            stacklevel=3,
        )
        return x
    if len(container.variables) == 1:
        return x
    return container if x is container.variables[0] else None


def parts(x):
    """The shards of a partitioned variable, as one has them from `whole`; of anything else that alone."""
    return list(x.variables) if is_partitioned(x) else [x]


def is_partitioned(x):
    """Whether x is a variable in shards."""
    return type(x).__name__ == "ShardedVariable"


def gathered(x, rows):
    """Some rows of a table, given by numbers that stand for one row each: from its shards, if it has any.

    A lookup in shards deals the numbers out to them in turn, which is one to one where their sizes differ by one.
    """
    if not is_partitioned(x):
        return tf.gather(x, rows)
    sizes = [part.shape[0] for part in x.variables]
    dealt = [(sum(sizes) - turn - 1) // len(sizes) + 1 for turn in range(len(sizes))]
    return tf.nn.embedding_lookup(x, rows) if sizes == dealt else tf.gather(tf.convert_to_tensor(x), rows)
