"""Tests specific to soft orthogonality: two forms of one formula, using the smaller Gram matrix."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, SECOND_DERIVATIVES, assert_close, hessian_product, run, value_and_gradient
from oracles import soft_orthogonal

import tfk_regularizers as tfk

modes = pytest.mark.parametrize("mode", MODES)
of = pytest.mark.parametrize("of", ["rows", "columns"])
diagonal = pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "lengths free"])
shapes = pytest.mark.parametrize("shape", [(7, 5), (5, 7), (5, 5)], ids=str)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def hessian(x, v, factor, of, diagonal):
    """The Hessian times v in NumPy, by the whole Gram matrix."""
    if of == "columns":
        return hessian(x.T, v.T, factor, "rows", diagonal).T
    difference, change = x @ x.T, x @ v.T + v @ x.T
    np.fill_diagonal(difference, np.diag(difference) - 1 if diagonal else 0)
    if not diagonal:
        np.fill_diagonal(change, 0)
    return 4 * factor * (difference @ v + change @ x)


# TensorFlow has no gradient of the forward-mode derivative of a function that is already traced.
@diagonal
@pytest.mark.parametrize(("shape", "of"), [((7, 5), "rows"), ((7, 5), "columns")], ids=str)
@pytest.mark.parametrize(
    ("composition", "mode"),
    [(composition, mode) for composition in SECOND_DERIVATIVES for mode in (*MODES, "graph, unknown", "xla, unknown")]
    + [(c, f"{mode}, traced before") for c in SECOND_DERIVATIVES if c != "reverse over forward" for mode in MODES[1:]],
)
@pytest.mark.light(mode=["eager"])
@pytest.mark.light(composition=["reverse over reverse"], mode=["graph"])
def test_every_composition_of_forward_and_reverse_mode(composition, mode, shape, diagonal, of):
    x, v = normal(shape), normal(shape, 1)
    penalty, (mode, _, what) = tfk.SoftOrthogonalRegularizer(0.3, of, diagonal), mode.partition(", ")
    function = SECOND_DERIVATIVES[composition](penalty)
    if what == "traced before":
        penalty = tf.function(penalty, autograph=False, jit_compile=mode == "xla" or None)
        penalty(tf.constant(x))
        function, mode = SECOND_DERIVATIVES[composition](penalty), "eager"
    elif what == "unknown":
        signature = [tf.TensorSpec([None, None], tf.float64)] * 2
        function = tf.function(function, autograph=False, jit_compile=mode == "xla" or None, input_signature=signature)
        mode = "eager"
    expected = hessian(x, v, 0.3, of, diagonal)
    expected = (expected * v).sum() if composition == "forward over forward" else expected
    assert_close(run(mode, function, tf.constant(x), tf.constant(v)), expected, 1e-12)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("signature", [None, [None, None], [None, 5], [7, None]], ids=str)
@of
@diagonal
@pytest.mark.light(mode=["graph"])
def test_unknown_shapes(diagonal, of, signature, mode):
    step = value_and_gradient(tfk.SoftOrthogonalRegularizer(0.3, of, diagonal))
    spec = [tf.TensorSpec(signature, tf.float64)]
    function = tf.function(step, input_signature=spec, jit_compile=mode == "xla" or None)
    rows_vary, columns_vary = (not signature or signature[axis] is None for axis in (0, 1))
    for shape in [(7, 5)] + [(4, 5), (0, 5)] * rows_vary + [(7, 9), (7, 0)] * columns_vary:
        x = normal(shape)
        for actual, expected in zip(function(tf.constant(x)), soft_orthogonal(x, 0.3, of, diagonal), strict=True):
            assert_close(actual, expected, 1e-12)


@diagonal
@shapes
def test_third_order_equals_differences_of_the_second(shape, diagonal):
    x, v, step = normal(shape), normal(shape, 1), 1e-5
    penalty = tfk.SoftOrthogonalRegularizer(1.0, "rows", diagonal)
    with tf.GradientTape() as tape:
        point = tf.constant(x)
        tape.watch(point)
        product = tf.reduce_sum(hessian_product(penalty)(point, tf.constant(v)) * v)
    ahead, behind = ((hessian(x + s * step * v, v, 1.0, "rows", diagonal) * v).sum() for s in (1, -1))
    assert_close(tf.reduce_sum(tape.gradient(product, point) * v), (ahead - behind) / (2 * step), 1e-7)


@modes
@diagonal
@of
@pytest.mark.parametrize("shape", [(512, 4608), (2000, 64), (64, 2000)], ids=str)
@pytest.mark.light(mode=["graph"])
def test_equals_the_formula_by_the_whole_gram_matrix(shape, of, diagonal, mode):
    x = normal(shape if of == "rows" else shape[::-1]).astype("float32")
    step = value_and_gradient(tfk.SoftOrthogonalRegularizer(0.01, of, diagonal))
    expected = soft_orthogonal(x.astype("float64"), 0.01, of, diagonal)
    for actual, wanted, tolerance in zip(run(mode, step, tf.constant(x)), expected, (1e-6, 2e-6), strict=True):
        assert_close(actual, wanted, tolerance)


@modes
@diagonal
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (65, 64)], ids=str)
@pytest.mark.light(mode=["eager", "graph"])
def test_digits_are_kept_near_the_minimum(shape, diagonal, mode):
    """With rows or columns that are orthonormal up to 1e-3, errors are within the rounding of the sum, or of ‖xᵀx‖²."""
    q = np.linalg.qr(normal((max(shape), min(shape))))[0]
    x = ((q if shape[0] > shape[1] else q.T) + 1e-3 * normal(shape, 1)).astype("float32")
    value, gradient = run(
        mode, value_and_gradient(tfk.SoftOrthogonalRegularizer(1.0, "rows", diagonal)), tf.constant(x)
    )
    expected_value, expected_gradient = soft_orthogonal(x.astype("float64"), 1.0, "rows", diagonal)
    assert abs(float(value) - expected_value) <= 1e-6 * (expected_value if shape[0] < shape[1] else 64)
    assert_close(gradient, expected_gradient, 2e-4)


@modes
def test_a_difference_is_never_below_zero(mode):
    """If rows are orthogonal, and many of them zero, ‖xᵀx‖² and Σ‖xᵢ‖⁴ are equal."""
    for seed in range(5):
        x = np.zeros((300, 50), "float32")
        x[::6] = np.linalg.qr(normal((50, 50), seed))[0] * np.linspace(1, 3, 50)[:, np.newaxis]
        value = run(mode, tfk.SoftOrthogonalRegularizer(1.0, diagonal=False), tf.constant(x))
        assert 0 <= float(value) <= 1e-6 * np.sum(np.linspace(1, 3, 50) ** 4)


@modes
@diagonal
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 3), (3, 1)], ids=str)
def test_empty_matrices_and_single_slices(shape, diagonal, mode):
    x = normal(shape)
    step = value_and_gradient(tfk.SoftOrthogonalRegularizer(0.3, "rows", diagonal))
    for actual, expected in zip(
        run(mode, step, tf.constant(x)), soft_orthogonal(x, 0.3, "rows", diagonal), strict=True
    ):
        assert_close(actual, expected, 1e-12)


@modes
@diagonal
@of
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e15])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 3), (3, 1)], ids=str)
@pytest.mark.light(mode=["eager", "graph"], shape=[(6, 4), (4, 6)], of=["rows"])
@pytest.mark.light(mode=["eager"], shape=[(1, 3), (3, 1)])
def test_nan_stays_nan_and_overflow_is_infinite(shape, number, of, diagonal, mode):
    """The value is NumPy's in float32, except that NaN always gives NaN; the gradient hides no NaN and no infinity."""
    x = np.abs(normal(shape).astype("float32"))  # of one sign, to avoid inf - inf
    if np.isfinite(number):
        x *= number
    else:
        x[-1, -1] = number
    with np.errstate(all="ignore"):
        expected, expected_gradient = soft_orthogonal(x, 1.0, of, diagonal)
    value, gradient = run(mode, value_and_gradient(tfk.SoftOrthogonalRegularizer(1.0, of, diagonal)), tf.constant(x))
    np.testing.assert_allclose(value, np.nan if np.isnan(number) else expected, rtol=1e-5)
    assert np.all(np.isfinite(expected_gradient) | ~np.isfinite(gradient))


def test_kernels_of_more_axes_are_a_matrix():
    kernel = normal((3, 3, 2, 4))
    value, gradient = value_and_gradient(tfk.SoftOrthogonalRegularizer(0.5, "columns"))(tf.constant(kernel))
    expected_value, expected_gradient = soft_orthogonal(kernel.reshape(18, 4), 0.5, "columns", True)
    assert_close(value, expected_value, 1e-12)
    assert_close(gradient, expected_gradient.reshape(kernel.shape), 1e-12)


# Functions that call the penalty inside control flow, or recompute it.
CALLERS = {
    "cond": lambda penalty: lambda x: tf.cond(tf.reduce_sum(x) < 1e9, lambda: penalty(x), lambda: x[0, 0]),
    "cond in cond": lambda penalty: CALLERS["cond"](CALLERS["cond"](penalty)),
    "function in cond": lambda penalty: CALLERS["cond"](tf.function(penalty, autograph=False)),
    "recomputed": lambda penalty: tf.recompute_grad(lambda x: 1.0 * penalty(x)),
    "while": lambda penalty: (
        lambda x: tf.while_loop(
            lambda i, _: i < 2,
            lambda i, total: (i + 1, total + penalty(x) / 2),
            (0, tf.zeros([], x.dtype)),
            maximum_iterations=2,
        )[1]
    ),
}


@diagonal
@pytest.mark.parametrize("mode", ["eager", "graph", "graph, unknown"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)], ids=str)
def test_first_and_second_order_in_control_flow(shape, caller, mode, diagonal):
    x, v, penalty = (
        normal(shape),
        normal(shape, 1),
        CALLERS[caller](tfk.SoftOrthogonalRegularizer(0.3, "rows", diagonal)),
    )
    first, second = value_and_gradient(penalty), hessian_product(penalty)
    if mode != "eager":
        specs = [tf.TensorSpec(shape if mode == "graph" else [None, None], tf.float64)] * 2
        first = tf.function(first, autograph=False, input_signature=specs[:1])
        second = tf.function(second, autograph=False, input_signature=specs)
    for actual, expected in zip(first(tf.constant(x)), soft_orthogonal(x, 0.3, "rows", diagonal), strict=True):
        assert_close(actual, expected, 1e-12)
    if caller != "recomputed" or mode == "eager":  # TensorFlow has no second gradient of that in a graph
        assert_close(second(tf.constant(x), tf.constant(v)), hessian(x, v, 0.3, "rows", diagonal), 1e-12)


@diagonal
@of
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)], ids=str)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_whole_hessian_by_a_jacobian(mode, shape, of, diagonal):
    """A jacobian applies `tf.vectorized_map` to the gradient of the gradient."""
    x, penalty = normal(shape), tfk.SoftOrthogonalRegularizer(0.3, of, diagonal)

    def whole(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            _, gradient = value_and_gradient(penalty)(x)
        return tape.jacobian(gradient, x)

    expected = [hessian(x, v.reshape(shape), 0.3, of, diagonal) for v in np.eye(x.size)]
    assert_close(run(mode, whole, tf.constant(x)), np.reshape(expected, shape * 2), 1e-12)


@pytest.mark.heavy
@diagonal
@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_a_million_rows_of_64(run_python, jit_compile, diagonal):
    """Besides x and its gradient, there is at most one matrix of the size of x, which is 256 MB."""
    script = f"""
import re
import tensorflow as tf
import tfk_regularizers as tfk

penalty = tfk.SoftOrthogonalRegularizer(diagonal={diagonal})

@tf.function(jit_compile={jit_compile}, autograph=False)
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = penalty(x)
    return value, tape.gradient(value, x)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1000

step(tf.ones([1000, 64]))
x = tf.random.stateless_normal([10**6, 64], [1, 2])
x[0].numpy()
open("/proc/self/clear_refs", "w").write("5")
before = peak()
value, gradient = step(x)
float(value)
print(peak() - before - 256)
"""
    assert int(run_python("-c", script)) < 300


def test_arguments_are_checked_and_saved():
    for bad in (1, None, "True", np.ones(1)):
        with pytest.raises(ValueError, match=r"argument `diagonal`. Expected True or False. Received: diagonal="):
            tfk.SoftOrthogonalRegularizer(diagonal=bad)
    with pytest.raises(ValueError, match="argument `mode`"):
        tfk.SoftOrthogonalRegularizer(mode=0)
    with pytest.raises(ValueError, match="Inputs to SoftOrthogonalRegularizer must have rank 2"):
        tfk.SoftOrthogonalRegularizer()([1.0, 2.0])
    with pytest.raises(TypeError, match="Inputs to SoftOrthogonalRegularizer must be of a floating dtype"):
        tfk.SoftOrthogonalRegularizer()(tf.eye(2, dtype=tf.complex64))
    config = {"factor": 0.5, "mode": "columns", "diagonal": False}
    assert tfk.SoftOrthogonalRegularizer(0.5, "columns", np.bool_(False)).get_config() == config
    assert tfk.get("SoftOrthogonalRegularizer").get_config() == {"factor": 0.01, "mode": "rows", "diagonal": True}


@pytest.mark.parametrize("file", ["model.keras", "model"])
def test_a_saved_model_trains(file, tmp_path):
    """The penalty is also on outputs, whose number is unknown."""
    penalty = tfk.SoftOrthogonalRegularizer(0.5, "columns", diagonal=False)
    layer = tf_keras.layers.Dense(4, kernel_regularizer=penalty, activity_regularizer=penalty, input_shape=(3,))
    model = tf_keras.Sequential([layer])
    model.compile("sgd", "mse")
    model.save(tmp_path / file)
    loaded = tf_keras.models.load_model(tmp_path / file)
    assert repr(loaded.layers[0].kernel_regularizer) == repr(penalty)
    x, y = normal((6, 3)), normal((6, 4), 1)
    assert_close(loaded.train_on_batch(x, y), model.train_on_batch(x, y), 1e-6)
    assert_close(loaded.get_weights()[0], model.get_weights()[0], 1e-6)
