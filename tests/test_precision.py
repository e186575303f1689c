"""Mixed and pure half precision, and float64: a few steps of training, compared with float32 and NumPy."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import assert_close
from libraries import IN_KERAS, KERASES, activity_share, both_kerases
from oracles import PENALTIES

import tfk_regularizers as tfk
from tfk_regularizers._penalties import execution

STEPS, BATCH = 5, 8
# Half a unit in the last place of 1: the relative error of one rounding.
ROUNDOFF = {"mixed_float16": 2.0**-11, "mixed_bfloat16": 2.0**-8, "float16": 2.0**-11}

penalties = pytest.mark.parametrize("name", PENALTIES)
mixed = pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])


@pytest.fixture(autouse=True)
def as_before():
    """Restore floatx and the global policy, which follows floatx if it is not set."""
    floatx = tf_keras.backend.floatx()
    yield
    tf_keras.mixed_precision.set_global_policy(None)
    for keras in KERASES.values():
        if keras is not tf_keras:
            keras.mixed_precision.set_global_policy("float32")
    tf_keras.backend.set_floatx(floatx)


def away_from_zero(shape, seed):
    """Numbers of both signs that are exact in every half type, and at least 1/4 in absolute value.

    At the kink of |x|, a rounding error decides the sign, and a flipped sign changes a gradient completely.
    """
    random = np.random.default_rng(seed)
    return random.choice([-1.0, 1.0], shape) * random.integers(16, 48, shape) / 64


def places_of_the_built_in(name):
    """Where tf_keras's own penalty works: its orthogonality fails if the batch size is unknown."""
    return ("kernel", "activity") if name.startswith("l") else ("kernel",)


def data(inputs):
    return away_from_zero((STEPS * BATCH, inputs), 1), away_from_zero((STEPS * BATCH, 4), 2)


def build(module, name, places, *, units=24, inputs=12, policy=None, keras=tf_keras):
    """A model whose first layer has the penalty in these places; its outputs are positive, so they avoid the kink."""
    if policy is not None:
        keras.mixed_precision.set_global_policy(policy)
    regularizers = {f"{place}_regularizer": PENALTIES[name][0](module) for place in places}
    hidden = keras.layers.Dense(units, "sigmoid", **regularizers)
    model = keras.Sequential([keras.Input((inputs,)), hidden, keras.layers.Dense(4)])
    shapes = [weight.shape for weight in model.get_weights()]
    model.set_weights([away_from_zero(shape, 3 + i) / np.sqrt(shape[0]) for i, shape in enumerate(shapes)])
    return model


def fitted(model):
    """The loss of each step, and the weights before and after."""
    x, y = data(model.input_shape[1])
    before = [weight.astype("float64") for weight in model.get_weights()]
    units = model.layers[0].units
    keras = tf_keras if isinstance(model, tf_keras.Model) else KERASES["Keras 3"]
    model.compile(keras.optimizers.SGD(1.2 / units), "mse")  # the gradient of the outputs grows with the units
    losses = [model.train_on_batch(*batch) for batch in zip(np.split(x, STEPS), np.split(y, STEPS), strict=True)]
    return np.array(losses), before, [weight.astype("float64") for weight in model.get_weights()]


@functools.cache
def in_float32(name, places, **sizes):
    return fitted(build(tfk, name, places, policy="float32", **sizes))


def assert_trained_alike(name, places, policy, weights_are_halves=False, **sizes):
    """Assert that losses and changes of weights are the same as in float32, up to the rounding of the half type.

    A loss keeps a relative error of one or two roundings, because its many roundings have both signs. A gradient is a
    product of activations and gradients, each rounded; a half-precision weight is rounded once more in each step.
    """
    unit = ROUNDOFF[policy]
    expected_losses, expected_before, expected = in_float32(name, places, **sizes)
    model = build(tfk, name, places, policy=policy, **sizes)
    losses, before, weights = fitted(model)
    np.testing.assert_allclose(losses, expected_losses, rtol=4 * unit)
    for start, end, expected_start, expected_end in zip(before, weights, expected_before, expected, strict=True):
        assert np.all(np.isfinite(end))
        change = np.linalg.norm(expected_end - expected_start)
        assert change > 0
        rounded = np.linalg.norm(expected_end) if weights_are_halves else 0.0
        np.testing.assert_allclose(start, expected_start, rtol=unit if weights_are_halves else 1e-7)
        assert np.linalg.norm(end - expected_end) <= unit * (4 * change + (STEPS + 1) * rounded)
    return model


@mixed
@pytest.mark.parametrize("place", ["kernel", "activity"])
@penalties
@pytest.mark.light(policy=["mixed_float16"], place=["kernel"], name=["l1_l2", "columns"])
@both_kerases
def test_mixed_precision_trains_as_float32(name, place, policy, keras):
    model = assert_trained_alike(name, (place,), policy, keras=keras)
    scaled = isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    if scaled:  # no gradient was infinite, so no step was skipped and the scale was not lowered
        assert int(model.optimizer.iterations) == STEPS
        scale = model.optimizer.loss_scale if keras is tf_keras else model.optimizer.dynamic_scale
        assert float(scale) == model.optimizer.initial_scale


@mixed
@penalties
@pytest.mark.heavy
def test_mixed_precision_of_a_wide_layer(name, policy, monkeypatch):
    """Sums use XLA clusters and pairs use blocks, for the kernel and for the outputs, which have few rows."""
    monkeypatch.setattr(execution, "XLA_CLUSTER_IN_GRAPH_FROM", 2**18)
    assert_trained_alike(name, ("kernel", "activity"), policy, units=1100, inputs=300)


@penalties
@pytest.mark.heavy
@both_kerases
def test_pure_float16_trains_as_float32(name, keras):
    model = assert_trained_alike(name, ("kernel", "activity"), "float16", weights_are_halves=True, keras=keras)
    assert {weight.dtype for weight in model.get_weights()} == {np.dtype("float16")}


@pytest.mark.parametrize("policy", ROUNDOFF)
@penalties
@both_kerases
def test_penalties_of_a_half_model_are_float32_and_right(name, policy, keras):
    """Penalties receive kernels as they are stored and activities in half precision, and have float32's error."""
    model = build(tfk, name, ("kernel", "activity"), policy=policy, keras=keras)
    layer = model.layers[0]
    x, _ = data(12)
    outputs = layer(x[:BATCH])
    assert outputs.dtype == policy.removeprefix("mixed_")
    oracle = PENALTIES[name][1]
    activity, kernel = layer.losses
    assert (kernel.dtype, activity.dtype) == (tf.float32, tf.float32)
    assert_close(kernel, oracle(layer.kernel.numpy().astype("float64"))[0], 2e-6)
    share = activity_share(keras, BATCH)
    assert_close(activity, oracle(tf.cast(outputs, tf.float64).numpy())[0] * share, 2e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["l1_l2", "columns"])
def test_scale_that_overflows_is_lowered_as_with_the_built_in(builtin, name):
    """With a scale of 2**18 gradients are infinite: such steps are skipped, and the scale is halved."""
    scales = []
    for module in (builtin, tfk):
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.SGD(0.05), initial_scale=2.0**18)
        model = build(module, name, places_of_the_built_in(name), policy="mixed_float16")
        x, y = data(12)
        model.compile(optimizer, "mse")
        for _ in range(8):
            before, scale = model.get_weights(), float(optimizer.loss_scale)
            model.train_on_batch(x[:BATCH], y[:BATCH])
            weights = model.get_weights()
            assert all(np.all(np.isfinite(weight)) for weight in weights)
            skipped = all(np.array_equal(*pair) for pair in zip(before, weights, strict=True))
            assert skipped == (float(optimizer.loss_scale) == scale / 2)
        scales.append(float(optimizer.loss_scale))
    assert scales[0] == scales[1] < 2.0**18


@pytest.fixture
def float64():
    """Let Keras compute in float64; `as_before` restores the setting."""
    tf_keras.backend.set_floatx("float64")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sizes", [{}, {"units": 1100, "inputs": 300}], ids=["small", "wide"])
@penalties
def test_float64_losses_are_right_to_the_last_digits(name, sizes):
    model = build(tfk, name, ("kernel", "activity"), **sizes)
    layer, oracle = model.layers[0], PENALTIES[name][1]
    assert layer.kernel.dtype == tf.float64
    x, y = data(layer.kernel.shape[0])
    outputs = layer(x).numpy()
    activity, kernel = layer.losses
    assert (kernel.dtype, activity.dtype) == (tf.float64, tf.float64)
    expected = [oracle(layer.kernel.numpy())[0], oracle(outputs)[0] / len(x)]
    assert_close(kernel, expected[0], 1e-12)
    assert_close(activity, expected[1], 1e-12)
    model.compile("sgd", "mse")
    error = np.mean((outputs @ model.layers[1].kernel.numpy() + model.layers[1].bias.numpy() - y) ** 2)
    result = model.test_step((tf.constant(x), tf.constant(y)))
    assert_close(result["loss"], error + sum(expected), 1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", IN_KERAS)
@pytest.mark.light(name=["l1_l2", "rows"])
def test_float64_trains_as_with_the_built_in(builtin, name):
    (expected_losses, _, expected), (losses, before, weights) = (
        fitted(build(module, name, places_of_the_built_in(name))) for module in (builtin, tfk)
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    for start, end, expected_end in zip(before, weights, expected, strict=True):
        assert not np.array_equal(start, end)
        assert_close(end, expected_end, 1e-12)


def test_float64_was_put_back():
    assert tf_keras.backend.floatx() == "float32"
    assert tf_keras.layers.Dense(1).dtype == "float32"
