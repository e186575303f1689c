"""Where a penalty runs: the one place that chooses between plain ops and compiled functions, and why."""

import sys

import tensorflow as tf

# All measured on two CPU cores, by examples/benchmark.py. A penalty and its gradient cost some 35 ms of compilation
# each for each new shape. In a graph they are even with plain ops at 300 x 300 and win 0.2 to 0.5 ms a step at
# 1000 x 1000. In eager a compiled function adds up to 1 ms to a call; there tf.custom_gradient alone costs 60 µs, as
# much as a whole small penalty.
COMPILE_IN_GRAPH_FROM = 2**19
COMPILE_IN_EAGER_FROM = 2**22


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


def may_nest_functions():
    """Whether a tf.function may stand inside a penalty: not in TensorFlow 1 graphs, not under DTensor's layouts."""
    dtensor = sys.modules.get("tensorflow.dtensor.python.api")
    return tf.compat.v1.executing_eagerly_outside_functions() and getattr(dtensor, "_dtensor_singleton", None) is None


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
    devices = tf.config.get_visible_devices()
    return all(device.device_type == "CPU" for device in devices) and not tf.distribute.has_strategy()
