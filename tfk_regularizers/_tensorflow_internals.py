"""TensorFlow internals without a public equivalent. No other module of this package uses any."""

from typing import Any

import tensorflow as tf
from tensorflow.python.distribute.sharded_variable import ShardedVariable
from tensorflow.python.eager import forwardprop_util, record  # type: ignore[attr-defined]
from tensorflow.python.saved_model import save_context  # type: ignore[attr-defined]


def is_compiled_by_xla() -> bool:
    """Whether XLA compiles the function being traced: with `jit_compile=True`, on a TPU, or nested in either."""
    return tf.__internal__.get_enclosing_xla_context() is not None


def is_recorded(x: Any) -> bool:
    """Whether a gradient tape records operations on x."""
    return bool(record.should_record_backprop([x]))


def has_tangent(x: Any) -> bool:
    """Whether x is differentiated in forward mode, which ignores custom gradients in graphs."""
    return bool(forwardprop_util.pack_tangents([x]).tangents)


def is_writing_saved_model() -> bool:
    """Whether a SavedModel is being written, whose functions cannot contain the variables of regularizers."""
    return bool(save_context.in_save_context())


def is_sharded(x: Any) -> bool:
    """Whether x is a variable that a parameter server strategy has partitioned."""
    return isinstance(x, ShardedVariable)


def sharded_variable(x: Any) -> Any:
    """The partitioned variable that x is a shard of, or None."""
    return x._sharded_container() if hasattr(x, "_sharded_container") else None
