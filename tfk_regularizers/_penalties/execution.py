"""Choose how to compute a penalty: by size and device, and whether eager mode, a graph or XLA runs it."""

import enum
from typing import NamedTuple

import tensorflow as tf

from tfk_regularizers._penalties.reductions import size
from tfk_regularizers._tensorflow_internals import has_tangent, is_compiled_by_xla, is_recorded

TENSORFLOW = tuple(map(int, tf.__version__.split(".")[:2]))
# XLA of TensorFlow 2.19 to 2.21 sums on one CPU core, element by element. When 2.22 is the oldest supported version,
# delete this, `Kernel.MATMUL_SUMS`, `matmul_sum` and their uses.
XLA_SUMS_SEQUENTIALLY = (2, 19) <= TENSORFLOW < (2, 22)

# Measured on two CPU cores by examples/benchmark.py. In eager mode a custom gradient costs 60 µs, as much as a whole
# small penalty. An XLA cluster in a graph saves 2 to 5 ms a step for 2**24 elements, and its compilation costs 0.1 s
# and 15 MB in the first step.
CUSTOM_GRADIENT_IN_EAGER_FROM = 2**18
XLA_CLUSTER_IN_GRAPH_FROM = 2**23

# Elements of a matrix or of its Gram matrix. In eager mode, blocks take three times as long at 64 x 64, and the same at
# 1024 x 1024.
SINGLE_GRAM_UP_TO = 2**20


class Kernel(enum.Enum):
    """The ways to compute an elementwise sum and its gradient."""

    PLAIN = "operations that TensorFlow differentiates"
    MATMUL_SUMS = "the same, with sums as matrix products with ones"
    CUSTOM_GRADIENT = "a custom gradient, which saves passes over memory"
    XLA_CLUSTER = "a custom gradient whose operations in a graph are compiled by XLA"


def choose_kernel(x):
    """The `Kernel` for an elementwise sum over the tensor x."""
    if is_compiled_by_xla():  # XLA fuses the plain operations
        return Kernel.MATMUL_SUMS if XLA_SUMS_SEQUENTIALLY and on_cpu(x) else Kernel.PLAIN
    if not isinstance(x, tf.Tensor) or x.dtype.is_complex:  # KerasTensors record each operation as a layer
        return Kernel.PLAIN
    elements = x.shape.num_elements() or 0
    if tf.executing_eagerly():
        is_worthwhile = elements >= CUSTOM_GRADIENT_IN_EAGER_FROM and is_recorded(x)
        return Kernel.CUSTOM_GRADIENT if is_worthwhile else Kernel.PLAIN
    is_worthwhile = elements >= XLA_CLUSTER_IN_GRAPH_FROM and on_cpu(x)
    return Kernel.XLA_CLUSTER if is_worthwhile else Kernel.CUSTOM_GRADIENT


def supports_custom_gradients(x):
    """Whether custom gradients and loops over blocks work: only on tensors, not in forward mode."""
    return isinstance(x, tf.Tensor) and not has_tangent(x)


def prefers_single_gram(x):
    """Whether the matrix x has at least two rows and is small enough to be faster without blocks."""
    rows, columns = map(tf.compat.dimension_value, x.shape)
    return rows is not None and columns is not None and rows >= 2 and rows * max(rows, columns) <= SINGLE_GRAM_UP_TO


def detach_from_eager_tape(x):
    """x for use in a custom gradient; detached in eager mode, where a tape would record operations on it."""
    return tf.stop_gradient(x) if tf.executing_eagerly() else x


def capture_in_current_graph(x):
    """x as a tensor of the current graph: in a `tf.cond` branch, gradients can use only tensors of the branch."""
    return x if tf.executing_eagerly() else tf.identity(x)


def is_in_current_graph(x):
    """Whether x is a tensor of the current graph, and not of an outer one."""
    return not tf.executing_eagerly() and getattr(x, "graph", None) is tf.compat.v1.get_default_graph()


# Measured by .ci/orthogonality.py. On two CPU cores one block is fastest up to 1024 rows, and two take as long as a
# loop up to 4096, with less memory; beyond that, larger blocks read rows less often and smaller ones stay in the cache.
# On an accelerator, products are cheap and passes over memory are not: use one block while it needs no more memory than
# the built-in, then a few. (3 * 2**24 entries are 200 MB.)
class _Blocking(NamedTuple):
    """How `orthogonal` cuts a matrix into blocks of rows; the defaults suit a CPU."""

    single_block_rows: int = 1024  # one block up to this many rows
    single_block_rows_per_column: float = 0.5  # with a gradient, up to this many per column: small Gram matrices win
    halves_rows: int = 4096  # two blocks up to this many rows with a gradient, if a tile of pairs is no larger than x
    gram_entries: int = 2**21  # about this many entries of the Gram matrix at a time
    min_rows: int = 256  # of a block
    max_rows: int = 512
    row_multiple: int = 16


_ON_CPU = _Blocking()
_ON_ACCELERATOR = _Blocking(8192, 2.0, 0, gram_entries=3 * 2**24, min_rows=1024, max_rows=8192, row_multiple=128)


def block_count(x, with_gradient):
    """The number of blocks of rows of the matrix x: 1, 2 or an odd number; a tensor if its size is unknown."""
    (rows, columns), blocking = map(tf.compat.dimension_value, x.shape), _blocking(x)
    if rows is None:
        return _odd_count(size(x, 0), blocking.max_rows)
    columns = columns or 0
    if rows <= max(blocking.single_block_rows, blocking.single_block_rows_per_column * columns * with_gradient):
        return 1
    if with_gradient and rows <= min(blocking.halves_rows, 4 * columns):
        return 2
    tile_rows = rows // 2 if with_gradient else rows  # rows of one step's tile: half of them with the gradient
    block_rows = min(max(blocking.gram_entries // tile_rows, blocking.min_rows), blocking.max_rows, rows // 2)
    return _odd_count(rows, block_rows)


def _odd_count(rows, block_rows):
    """An odd number of blocks, of about `block_rows` rows each."""
    return rows // block_rows // 2 * 2 + 1


def block_row_multiple(x):
    """If there are several blocks, the rows of each are rounded up to a multiple of this number."""
    return _blocking(x).row_multiple


def _blocking(x):
    return _ON_CPU if on_cpu(x) else _ON_ACCELERATOR


def on_cpu(x):
    """Whether operations on x run on a CPU, according to its device or to the devices of the machine."""
    device = getattr(x, "device", "") if tf.executing_eagerly() else tf.no_op().device or x.device
    if device:
        return tf.DeviceSpec.from_string(device).device_type in ("CPU", None)
    kinds = {device.device_type for device in tf.config.get_visible_devices()}
    return kinds == {"CPU"} and "TPU" not in type(tf.distribute.get_strategy()).__name__
