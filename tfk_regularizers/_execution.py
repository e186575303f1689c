"""Where a penalty runs: the one place that chooses between plain ops and compiled functions, and why."""

import sys

import tensorflow as tf

# In eager, tf.custom_gradient alone costs 60 µs, as much as a whole small penalty. An inner compiled function costs
# about 50 ms of compilation for each new shape and up to 1 ms a call in eager; on two CPU cores it is even with plain
# ops at 300 x 300 and faster from 1000 x 1000 on. `examples/benchmark.py` measures both.
LARGE = 2**18


def route(x):
    """How to compute a reduction of the tensor x: "plain", "custom" (own gradient) or "compiled" (inside XLA)."""
    if not isinstance(x, tf.Tensor) or x.dtype.is_complex:
        return "plain"  # a KerasTensor records each op as a layer; complex gradients are left to TensorFlow
    size = x.shape.num_elements()
    large = size is not None and size >= LARGE
    if large and may_nest_functions() and _cpu_only() and not tf.distribute.has_strategy():
        return "compiled"
    return "plain" if tf.executing_eagerly() and not large else "custom"


def may_nest_functions():
    """Whether a tf.function may stand inside a penalty: not in TensorFlow 1 graphs, not under DTensor's layouts."""
    dtensor = sys.modules.get("tensorflow.dtensor.python.api")
    return tf.compat.v1.executing_eagerly_outside_functions() and getattr(dtensor, "_dtensor_singleton", None) is None


def _cpu_only():
    """Whether the process sees CPUs alone: what compiling gains was measured there and nowhere else."""
    return all(device.device_type == "CPU" for device in tf.config.get_visible_devices())
