"""Where a penalty runs, and how: the one place that chooses by device and by what is asked for, and why."""

import sys
from typing import NamedTuple

import tensorflow as tf

try:  # what is recorded has no public reader; where this one is absent, the functions below say what is always right
    from tensorflow.python.eager import forwardprop_util, record
    from tensorflow.python.saved_model import save_context
except ImportError:
    forwardprop_util = record = save_context = None

# All measured on two CPU cores, by examples/benchmark.py. A penalty and its gradient cost some 35 ms of compilation
# each for each new shape. In a graph they are even with plain ops at 300 x 300 and win 0.2 to 0.5 ms a step at
# 1000 x 1000. In eager a compiled function adds up to 1 ms to a call; there tf.custom_gradient alone costs 60 µs, as
# much as a whole small penalty.
COMPILE_IN_GRAPH_FROM = 2**19
COMPILE_IN_EAGER_FROM = 2**22


class _Blocks(NamedTuple):
    """Into what blocks of rows orthogonality cuts a matrix."""

    whole: int  # up to so many rows there is one block,
    per_column: float  # and with a gradient up to so many for each column: a small Gram matrix takes less than blocks
    entries: int  # about so many entries of the Gram matrix are made at a time
    least: int  # rows of a block
    most: int
    multiple: int  # of which the rows of a block are one


# Measured by .ci/orthogonality.py. On two CPU cores one block wins up to 1024 rows; above, larger blocks pass over the
# rows less often, and smaller ones stay in the cache. To an accelerator a product is cheap, and a pass over memory is
# not: one block as long as it takes no more memory than the built-in, and then few. (3 * 2**24 entries are 200 MB.)
ON_CPU = _Blocks(whole=1024, per_column=0.5, entries=2**21, least=256, most=512, multiple=16)
ON_ACCELERATOR = _Blocks(whole=8192, per_column=2.0, entries=3 * 2**24, least=1024, most=8192, multiple=128)


def route(x, one_pass=False):
    """How to reduce the tensor x to a scalar: by "plain" ops, with a "custom" gradient, or "compiled" by XLA.

    `one_pass` says that the plain ops read x once, value and gradient each: outside a graph nothing beats them.
    """
    if not isinstance(x, tf.Tensor) or x.dtype.is_complex:
        return "plain"  # a KerasTensor records each op as a layer; complex gradients are left to TensorFlow
    eager = tf.executing_eagerly()
    size = x.shape.num_elements() or 0
    if eager and (one_pass or size < COMPILE_IN_EAGER_FROM):
        return "plain"
    large = size >= COMPILE_IN_GRAPH_FROM
    return "compiled" if large and may_nest_functions() and _cpu_only() else "custom"


def may_loop(x):
    """Whether a penalty on x may loop over blocks: not where x is none of TensorFlow's tensors, nor under DTensor.

    And not in forward mode, which looks past custom gradients wherever a graph is built, and cannot follow a loop. It
    leaves derivatives on the tensors.
    """
    forward = forwardprop_util is None or bool(forwardprop_util.pack_tangents([x]).tangents)
    return isinstance(x, tf.Tensor) and not forward and not under_dtensor()


def wants_gradient(x):
    """Whether a tape is there that records what is done to x. A gradient may be asked for without one, later."""
    return record is None or record.should_record_backprop([x])


def saving():
    """Whether a SavedModel is being written: it can hold the gradient of a custom gradient, and nothing beyond."""
    return save_context is not None and save_context.in_save_context()


def block_rows(x, share):
    """How many rows of the matrix x a block is to have, at most: where 1 / `share` of all rows meet it at a time.

    All of them meet it for the value alone, half of them with the gradient.
    """
    (n, columns), blocks = map(tf.compat.dimension_value, x.shape), _blocks(x)
    if n is None:
        return blocks.most
    whole = max(blocks.whole, blocks.per_column * (columns or 0) * (share > 1))
    return n + 1 if n <= whole else min(max(share * blocks.entries // n, blocks.least), blocks.most, n // 2)


def block_multiple(x):
    """Of what the rows of a block of x are a multiple, where there are several."""
    return _blocks(x).multiple


def _blocks(x):
    return ON_CPU if _on_cpu(x) else ON_ACCELERATOR


def may_nest_functions():
    """Whether a tf.function may stand inside a penalty: not in TensorFlow 1 graphs, not under DTensor's layouts."""
    return tf.compat.v1.executing_eagerly_outside_functions() and not under_dtensor()


def under_dtensor():
    """Whether a DTensor device is there: its layouts pass through some operations alone."""
    dtensor = sys.modules.get("tensorflow.dtensor.python.api")
    return getattr(dtensor, "_dtensor_singleton", None) is not None


def expect_many_shapes(*functions):
    """Keep TensorFlow from warning of retracing: one trace for each shape is meant."""
    for function in functions:
        function._omit_frequent_tracing_warning = True


def is_shard(x):
    """Whether x is one of several variables into which a parameter server strategy has partitioned a larger one."""
    container = getattr(x, "_sharded_container", lambda: None)()
    return container is not None and len(container.variables) > 1


def _cpu_only():
    """Whether CPUs of this process are all there is: what compiling gains was measured there and nowhere else."""
    return _visible_kinds() == {"CPU"} and not tf.distribute.has_strategy()


def _on_cpu(x):
    """Whether what is done to x is done on a CPU: by the device that is set, or by those that there are."""
    device = x.device if tf.executing_eagerly() else tf.no_op().device or x.device
    if device:
        return tf.DeviceSpec.from_string(device).device_type in ("CPU", None)
    return _visible_kinds() == {"CPU"} and "TPU" not in type(tf.distribute.get_strategy()).__name__


def _visible_kinds():
    return {device.device_type for device in tf.config.get_visible_devices()}
