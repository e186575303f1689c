"""Training with TensorFlow's debugging switches, which users turn on when a loss has become NaN."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfk_regularizers._penalties import execution

UNITS = 1024, 512


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    """Compute sums over the kernel in an XLA cluster, as for larger kernels."""
    monkeypatch.setattr(execution, "XLA_CLUSTER_IN_GRAPH_FROM", 2**19)


@contextlib.contextmanager
def check_numerics(_):
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


@contextlib.contextmanager
def dump_debug_info(folder):
    tf.debugging.experimental.enable_dump_debug_info(str(folder), "FULL_HEALTH")
    try:
        yield
    finally:
        tf.debugging.experimental.disable_dump_debug_info()


SWITCHES = {switch.__name__: switch for switch in (check_numerics, dump_debug_info)}


def losses(regularizer, start=None):
    inputs, outputs = UNITS
    layer = tf_keras.layers.Dense(outputs, kernel_initializer="ones", kernel_regularizer=regularizer)
    model = tf_keras.Sequential([layer])
    model.build((None, inputs))
    if start is not None:
        layer.kernel.assign(tf.fill(layer.kernel.shape, start))
    model.compile(tf_keras.optimizers.SGD(1e-6), "mse")
    # The data loss is nearly zero: with the switches, TensorFlow 2.22 rounds it differently, even without a penalty.
    targets = np.full((8, outputs), inputs, "f")
    return model.fit(np.ones((8, inputs), "f"), targets, 4, epochs=2, verbose=0).history["loss"]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("regularizer", ["l1", "l2", "l1_l2", "orthogonal_regularizer"])
@pytest.mark.light(regularizer=["l1_l2"], switch=["check_numerics"])
def test_a_fit_has_the_same_losses_as_without(regularizer, switch, tmp_path):
    expected = losses(regularizer)
    with SWITCHES[switch](tmp_path):
        assert losses(regularizer) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("regularizer", ["l1", "l2", "l1_l2", "orthogonal_regularizer"])
@pytest.mark.light(regularizer=["l1_l2"])
def test_check_numerics_finds_the_nan(regularizer, tmp_path):
    with check_numerics(tmp_path), pytest.raises(tf.errors.InvalidArgumentError, match=r"NaN|nan"):
        losses(regularizer, start=np.nan)
