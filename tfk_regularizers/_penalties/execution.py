"""Where a penalty runs, and how: the one place that chooses by device and by what is asked for, and why."""

import sys
from typing import NamedTuple

import tensorflow as tf

from tfk_regularizers._penalties.reductions import size

try:  # what is recorded has no public reader; where this one is absent, the functions below say what is always right
    from tensorflow.python.eager import forwardprop_util, record  # type: ignore[attr-defined]
    from tensorflow.python.saved_model import save_context  # type: ignore[attr-defined]
except ImportError:
    forwardprop_util = record = save_context = None

TENSORFLOW = tuple(map(int, tf.__version__.split(".")[:2]))
# On a CPU XLA of TensorFlow 2.19 to 2.21 adds up a tensor by one core, one element after the other. When 2.22 is the
# oldest that is supported, this goes, and so do the sums by products and the route "XLA".
XLA_ADDS_ONE_BY_ONE = (2, 19) <= TENSORFLOW < (2, 22)

# Measured on two CPU cores, by examples/benchmark.py. In eager tf.custom_gradient costs 60 µs, as much as a whole small
# penalty. Operations that XLA fuses in a graph save 2 to 5 ms a step for 2**24 elements. Their compilation takes 0.1 s
# of the first step and 15 MB, which a model of many smaller kernels would pay for each of them.
BY_HAND_IN_EAGER_FROM = 2**18
FUSED_IN_GRAPH_FROM = 2**23


# Entries of a matrix or its Gram matrix. At 64 x 64 blocks take three times as long in eager, at 1024 x 1024 as long.
SMALL_UP_TO = 2**20


class _Blocks(NamedTuple):
    """Into what blocks of rows orthogonality cuts a matrix."""

    whole: int  # up to so many rows there is one block,
    per_column: float  # and with a gradient up to so many for each column: a small Gram matrix takes less than blocks
    halves: int  # up to so many rows there are two blocks with a gradient, if the tile of their pairs is no more than x
    entries: int  # about so many entries of the Gram matrix are made at a time
    least: int  # rows of a block
    most: int
    multiple: int  # of which the rows of a block are one


# Measured by .ci/orthogonality.py. On two CPU cores one block wins up to 1024 rows, and two are as fast as a loop up to
# 4096, with less memory; above, larger blocks pass over the rows less often, and smaller ones stay in the cache. To an
# accelerator a product is cheap, and a pass over memory is not: one block as long as it takes no more memory than the
# built-in, and then few. (3 * 2**24 entries are 200 MB.)
ON_CPU = _Blocks(whole=1024, per_column=0.5, halves=4096, entries=2**21, least=256, most=512, multiple=16)
ON_ACCELERATOR = _Blocks(whole=8192, per_column=2.0, halves=0, entries=3 * 2**24, least=1024, most=8192, multiple=128)


def route(x):
    """How to sum over the tensor x: by products under "XLA", by "plain" ops, or with the gradient "by hand" or "fused".

    Fused ops are ops of the graph like others, but marked for XLA. (A compiled tf.function in their place is as fast,
    and fails in forward mode, under TensorFlow's debuggers and in a process that connects to a cluster afterwards.)
    """
    if under_xla():  # which fuses what TensorFlow differentiates
        return "XLA" if XLA_ADDS_ONE_BY_ONE and on_cpu(x) else "plain"
    if not isinstance(x, tf.Tensor) or x.dtype.is_complex or _in_forward_mode(x) or _loses_custom_gradients():
        return "plain"  # a KerasTensor records each op as a layer; complex gradients are left to TensorFlow
    size = x.shape.num_elements() or 0
    if tf.executing_eagerly():
        return "by hand" if size >= BY_HAND_IN_EAGER_FROM and wants_gradient(x) else "plain"
    can_fuse = on_cpu(x) and not under_dtensor() and not saving()
    return "fused" if can_fuse and size >= FUSED_IN_GRAPH_FROM else "by hand"


def may_loop(x):
    """Whether a penalty on x may loop over blocks: not where x is none of TensorFlow's tensors, nor under DTensor.

    And neither in forward mode nor in `tf.vectorized_map`, which lose the custom gradient and cannot follow a loop.
    """
    lost = _in_forward_mode(x) or in_vectorized_map() or _saving_without_custom_gradients()
    return isinstance(x, tf.Tensor) and not lost and not under_dtensor()


def in_vectorized_map():
    """Whether `tf.vectorized_map` traces what it maps, or a function therein: told by its name scope alone."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if "loop_body" in graph.get_name_scope().split("/"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def inside(x):
    """x, as what a custom gradient has inside may use it, and none of what is done to it is differentiated.

    An eager tape would record that too. In a graph it does not, and `tf.vectorized_map`, which loses custom gradients,
    differentiates what is inside.
    """
    return tf.stop_gradient(x) if tf.executing_eagerly() else x


def here(x):
    """x as a tensor of the graph at hand: a branch of a `tf.cond` may keep no other for its gradient."""
    return x if tf.executing_eagerly() else tf.identity(x)


def is_of_this_graph(x):
    """Whether a tensor of a graph belongs to the one at hand, and not to one around it."""
    return not tf.executing_eagerly() and getattr(x, "graph", None) is tf.compat.v1.get_default_graph()


def under_xla():
    """Whether XLA compiles what is traced: under `jit_compile=True` and on a TPU, in whatever stands inside too."""
    return tf.__internal__.get_enclosing_xla_context() is not None


def _in_forward_mode(x):
    """Whether x has a derivative already: forward mode looks past custom gradients wherever a graph is built."""
    return forwardprop_util is None or bool(forwardprop_util.pack_tangents([x]).tangents)


def is_small(x):
    """Whether the matrix x has pairs of rows, but so few that what costs is the number of operations."""
    n, columns = map(tf.compat.dimension_value, x.shape)
    return n is not None and columns is not None and n >= 2 and n * max(n, columns) <= SMALL_UP_TO


def wants_gradient(x):
    """Whether a tape is there that records what is done to x. A gradient may be asked for without one, later."""
    return record is None or record.should_record_backprop([x])


def _loses_custom_gradients():
    """Whether custom gradients stay behind: when a graph of TensorFlow 1 is exported they do, as its names alone go."""
    return _saving_without_custom_gradients() or not tf.compat.v1.executing_eagerly_outside_functions()


def _saving_without_custom_gradients():
    return saving() and not save_context.get_save_options().experimental_custom_gradients


def saving():
    """Whether a SavedModel is being written: it can hold the gradient of a custom gradient, and nothing beyond."""
    return save_context is not None and save_context.in_save_context()


def block_count(x, with_gradient):
    """Into how many blocks of rows to cut the matrix x: 1, 2 or an odd number, a tensor where its size is unknown."""
    (n, columns), blocks = map(tf.compat.dimension_value, x.shape), _blocks(x)
    if n is None:
        return size(x, 0) // blocks.most // 2 * 2 + 1
    if n <= max(blocks.whole, blocks.per_column * (columns or 0) * with_gradient):
        return 1
    if with_gradient and n <= min(blocks.halves, 4 * (columns or 0)):
        return 2
    # Of the value alone all rows meet a block at a time, with the gradient half of them.
    entries = blocks.entries * (2 if with_gradient else 1)
    return n // min(max(entries // n, blocks.least), blocks.most, n // 2) // 2 * 2 + 1


def block_multiple(x):
    """Of what the rows of a block of x are a multiple, where there are several."""
    return _blocks(x).multiple


def _blocks(x):
    return ON_CPU if on_cpu(x) else ON_ACCELERATOR


def under_dtensor():
    """Whether a DTensor device is there: its layouts pass through some operations alone."""
    dtensor = sys.modules.get("tensorflow.dtensor.python.api")
    return getattr(dtensor, "_dtensor_singleton", None) is not None


def identity_beside(gram):
    """The identity matrix of the size of a Gram matrix; under DTensor by operations that it has, on the same mesh."""
    if not under_dtensor():
        return tf.eye(size(gram, 0), dtype=gram.dtype)
    places = tf.cumsum(tf.ones_like(gram[:, 0]))
    return tf.cast(tf.equal(places[tf.newaxis], places[:, tf.newaxis]), gram.dtype)


def on_cpu(x):
    """Whether what is done to x is done on a CPU: by the device that is set, or by those that there are."""
    device = getattr(x, "device", "") if tf.executing_eagerly() else tf.no_op().device or x.device
    if device:
        return tf.DeviceSpec.from_string(device).device_type in ("CPU", None)
    return _visible_kinds() == {"CPU"} and "TPU" not in type(tf.distribute.get_strategy()).__name__


def _visible_kinds():
    return {device.device_type for device in tf.config.get_visible_devices()}
