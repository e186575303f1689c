"""Tests specific to the group lasso: groups of any norm, and above all of norm zero."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import (
    MODES,
    SECOND_DERIVATIVES,
    assert_close,
    forward_derivative,
    hessian_product,
    run,
    value_and_gradient,
)
from oracles import group_lasso

import tfk_regularizers as tfk

modes = pytest.mark.parametrize("mode", MODES)
of = pytest.mark.parametrize("of", ["columns", "rows"])


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def hessian(x, v, factor, of):
    """The Hessian times v in NumPy, 0 at a group of zeros."""
    axis = 0 if of == "columns" else 1
    lengths = np.sqrt((x**2).sum(axis, keepdims=True))
    safe = np.where(lengths == 0, 1, lengths)
    units = x / safe
    across = v - units * (units * v).sum(axis, keepdims=True)
    return factor * np.sqrt(x.shape[axis]) * np.where(lengths == 0, 0, across / safe)


def with_lengths(scales, of, others=7, dtype="float32", seed=0):
    """A matrix with one group of each scale."""
    x = normal((others, len(scales)), seed) * np.array(scales)
    return (x if of == "columns" else x.T).astype(dtype)


def assert_each_close(actual, expected, of, tolerance):
    """Assert that each group is close, relative to its own scale."""
    for found, wanted in zip(*(np.asarray(a).T if of == "columns" else a for a in (actual, expected)), strict=True):
        assert_close(found, wanted, tolerance)


@modes
@of
@pytest.mark.parametrize("size", [7, 150_000], ids=["small", "in parts"])
@pytest.mark.parametrize("scales", [(0, 1, 0, 2), (1e-15, 0, 3e-15), (1e15, 1e14), (1e-15, 1, 0, 1e15)], ids=str)
@pytest.mark.light(size=[7], mode=["eager", "graph"])
def test_zero_and_tiny_and_huge_groups(scales, size, of, mode):
    x = with_lengths(scales, of, size)
    value, gradient = run(mode, value_and_gradient(tfk.GroupLasso(0.25, of)), tf.constant(x))
    expected_value, expected_gradient = group_lasso(x.astype("float64"), 0.25, of)
    assert_close(value, expected_value, 2e-6)
    assert_each_close(gradient, expected_gradient, of, 2e-6)


@modes
@of
def test_groups_whose_squares_vanish_or_overflow_count_as_zero_or_infinite(of, mode):
    value, gradient = run(mode, value_and_gradient(tfk.GroupLasso(1.0, of)), tf.fill([3, 3], 1e-25))
    assert float(value) == 0
    assert not np.any(gradient)
    value, gradient = run(mode, value_and_gradient(tfk.GroupLasso(1.0, of)), tf.fill([3, 3], 1e25))
    assert float(value) == np.inf
    assert not np.any(gradient)


@modes
@of
def test_long_and_short_groups_of_float64(of, mode):
    x = with_lengths((1e-140, 1e140, 0, 1), of, dtype="float64")
    value, gradient = run(mode, value_and_gradient(tfk.GroupLasso(1.0, of)), tf.constant(x))
    lengths = np.linalg.norm(x.astype(np.longdouble), axis=0 if of == "columns" else 1, keepdims=True)
    assert_close(value, np.sqrt(7) * lengths.sum().astype("float64"), 1e-12)
    units = (x / np.where(lengths == 0, 1, lengths)).astype("float64")
    assert_each_close(gradient, np.sqrt(7) * units, of, 1e-12)


# TensorFlow has no gradient of the forward-mode derivative of a function that is already traced.
@of
@pytest.mark.parametrize(
    ("composition", "mode"),
    [(composition, mode) for composition in SECOND_DERIVATIVES for mode in MODES]
    + [(c, f"{mode}, traced before") for c in SECOND_DERIVATIVES if c != "reverse over forward" for mode in MODES[1:]],
)
@pytest.mark.light(mode=["eager"], of=["rows"])
@pytest.mark.light(composition=["reverse over reverse"], mode=["graph"])
def test_every_composition_of_forward_and_reverse_mode(composition, mode, of):
    x, v = normal((7, 4)), normal((7, 4), 1)
    penalty, (mode, _, before) = tfk.GroupLasso(0.25, of), mode.partition(", ")
    if before:
        penalty, mode = tf.function(penalty, autograph=False, jit_compile=mode == "xla" or None), "eager"
        penalty(tf.constant(x))
    expected = hessian(x, v, 0.25, of)
    expected = (expected * v).sum() if composition == "forward over forward" else expected
    actual = run(mode, SECOND_DERIVATIVES[composition](penalty), tf.constant(x), tf.constant(v))
    assert_close(actual, expected, 1e-12)


@modes
@of
@pytest.mark.parametrize("scales", [(1, 0, 1e-15, 1e15), (1, 2, 0)], ids=str)
@pytest.mark.light(mode=["eager"])
def test_second_order_of_groups_of_any_length(scales, of, mode):
    x, v = with_lengths(scales, of), with_lengths(scales, of, seed=1)  # v has the scale of each group
    actual = run(mode, hessian_product(tfk.GroupLasso(0.25, of)), tf.constant(x), tf.constant(v))
    assert_each_close(actual, hessian(x.astype("float64"), v, 0.25, of), of, 5e-6)


@modes
def test_forward_mode_at_a_group_of_zeros(mode):
    x, v = with_lengths((1, 0, 1e-15), "columns"), with_lengths((1, 1, 1), "columns")
    expected = (group_lasso(x.astype("float64"), 0.25, "columns")[1] * v).sum()
    assert_close(run(mode, forward_derivative(tfk.GroupLasso(0.25)), tf.constant(x), tf.constant(v)), expected, 2e-6)


def test_third_order_equals_differences_of_the_second():
    x, v, step = normal((5, 4)), normal((5, 4), 1), 1e-6
    penalty = tfk.GroupLasso(1.0)

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            product = tf.reduce_sum(hessian_product(penalty)(x, tf.constant(v)) * v)
        return tape.gradient(product, x)

    ahead, behind = ((hessian(x + s * step * v, v, 1.0, "columns") * v).sum() for s in (1, -1))
    assert_close(tf.reduce_sum(slope(tf.constant(x)) * v), (ahead - behind) / (2 * step), 1e-7)


@modes
@of
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.light(mode=["eager", "graph"])
def test_nan_and_infinity_stay_in_their_group(number, of, mode):
    x = with_lengths((1, 1, 0), of)
    x[1, 1] = number
    value, gradient = run(mode, value_and_gradient(tfk.GroupLasso(1.0, of)), tf.constant(x))
    assert np.isnan(value) if np.isnan(number) else value == np.inf
    assert np.isnan(gradient[1, 1])
    others = [0, 2]
    kept = gradient.numpy()[:, others] if of == "columns" else gradient.numpy()[others]
    assert np.all(np.isfinite(kept))


@modes
@of
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)], ids=str)
def test_an_empty_matrix_has_penalty_zero(shape, of, mode):
    value, gradient = run(mode, value_and_gradient(tfk.GroupLasso(1.0, of)), tf.zeros(shape))
    assert float(value) == 0
    assert gradient.shape == shape


@pytest.mark.parametrize("shape", [None, [None, None], [None, 3], [100_003, None]], ids=str)
@of
@pytest.mark.light(shape=[None])
def test_sums_keep_their_digits_under_xla(of, shape):
    """A plain sum of so many equal numbers is off by 1e-4."""
    x = np.full((100_003, 3) if of == "columns" else (3, 100_003), 0.1, "float32")
    shape = shape[::-1] if shape and of == "rows" else shape
    function = tf.function(
        value_and_gradient(tfk.GroupLasso(1.0, of)), input_signature=[tf.TensorSpec(shape)], jit_compile=True
    )
    value, gradient = function(tf.constant(x))
    expected_value, expected_gradient = group_lasso(x.astype("float64"), 1.0, of)
    assert_close(value, expected_value, 5e-6)
    assert_close(gradient, expected_gradient, 5e-6)


@pytest.mark.parametrize("rows", [1024, 4096, 2**20])
@of
@modes
@pytest.mark.light(rows=[4096])
def test_lengths_of_equal_numbers_keep_their_digits(mode, of, rows):
    x = np.full((rows, 2) if of == "columns" else (2, rows), 0.1, "float32")
    value = run(mode, tfk.GroupLasso(1.0, of), tf.constant(x))
    assert_close(value, group_lasso(x.astype("float64"), 1.0, of)[0], 1e-5)


@of
def test_a_function_that_was_traced_outside_of_xla_compiles_inside(of):
    x = tf.constant(normal((5, 4)))
    penalty = tf.function(tfk.GroupLasso(1.0, of), autograph=False)
    penalty(x)
    for actual, expected in zip(
        run("xla", value_and_gradient(penalty), x), group_lasso(x.numpy(), 1.0, of), strict=True
    ):
        assert_close(actual, expected, 1e-12)


def test_filters_of_a_convolution_are_its_columns():
    kernel = normal((3, 3, 2, 4)).astype("float32")
    value, gradient = value_and_gradient(tfk.GroupLasso(0.5))(tf.constant(kernel))
    expected_value, expected_gradient = group_lasso(kernel.reshape(18, 4).astype("float64"), 0.5, "columns")
    assert_close(value, expected_value, 2e-6)
    assert_close(gradient, expected_gradient.reshape(kernel.shape), 2e-6)


def test_a_zero_matrix_under_vectorized_map():
    several = tf.stack([normal((5, 4)), np.zeros((5, 4))])
    _, gradients = tf.vectorized_map(value_and_gradient(tfk.GroupLasso(1.0)), several)
    for one, gradient in zip(several.numpy(), gradients, strict=True):
        np.testing.assert_allclose(gradient, group_lasso(one, 1.0, "columns")[1], rtol=1e-12)


def test_arguments_are_checked_and_saved():
    with pytest.raises(ValueError, match="argument `factor`"):
        tfk.GroupLasso(np.nan)
    with pytest.raises(ValueError, match="argument `mode`"):
        tfk.GroupLasso(mode="channels")
    with pytest.raises(ValueError, match="Inputs to GroupLasso must have rank 2"):
        tfk.GroupLasso()([1.0, 2.0])
    with pytest.raises(TypeError, match=r"Inputs to GroupLasso must be of a floating dtype\. "):
        tfk.GroupLasso()(tf.eye(2, dtype=tf.complex64))
    with pytest.raises(TypeError, match=r"Inputs to GroupLasso must be of a floating dtype\. Received: dtype int32"):
        tfk.GroupLasso()(tf.eye(2, dtype=tf.int32))
    with pytest.raises(
        ValueError, match=r"a finite number \(did you mean `mode='columns'`\?\)\. Received: factor='columns'"
    ):
        tfk.GroupLasso("columns")
    assert tfk.GroupLasso(0.5, "rows").get_config() == {"factor": 0.5, "mode": "rows"}
    assert repr(tfk.get("GroupLasso")) == "GroupLasso(factor=0.01, mode='columns')"


@pytest.mark.parametrize("file", ["model.keras", "model"])
def test_a_saved_model_trains(file, tmp_path):
    layer = tf_keras.layers.Dense(4, kernel_regularizer=tfk.GroupLasso(0.5, "rows"), input_shape=(3,))
    model = tf_keras.Sequential([layer])
    model.compile("sgd", "mse")
    model.save(tmp_path / file)
    loaded = tf_keras.models.load_model(tmp_path / file)
    assert repr(loaded.layers[0].kernel_regularizer) == "GroupLasso(factor=0.5, mode='rows')"
    assert_close(loaded.losses, model.losses, 1e-6)
    assert np.isfinite(loaded.train_on_batch(np.ones((2, 3)), np.ones((2, 4))))
