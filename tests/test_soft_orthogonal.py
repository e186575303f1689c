"""What is particular to soft orthogonality: two forms of one formula, by the smaller Gram matrix."""

import re

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


# TensorFlow has no gradient of the forward derivative of a function that it has traced before.
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
    for shape in [(7, 5)] + [(4, 5)] * (not signature or signature[0] is None) + [(7, 9)] * (signature == [7, None]):
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
def test_near_the_least(shape, diagonal, mode):
    """Orthonormal rows, or columns, but for 1e-3: right to the last digits of what is summed, or of ‖xᵀx‖²."""
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
    """Orthogonal rows, and many of zeros: ‖xᵀx‖² and Σ‖xᵢ‖⁴ are equal."""
    for seed in range(5):
        x = np.zeros((300, 50), "float32")
        x[::6] = np.linalg.qr(normal((50, 50), seed))[0] * np.linspace(1, 3, 50)[:, np.newaxis]
        value = run(mode, tfk.SoftOrthogonalRegularizer(1.0, diagonal=False), tf.constant(x))
        assert 0 <= float(value) <= 1e-6 * np.sum(np.linspace(1, 3, 50) ** 4)


@modes
@diagonal
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 3), (3, 1)], ids=str)
def test_empty_and_single(shape, diagonal, mode):
    x = normal(shape)
    step = value_and_gradient(tfk.SoftOrthogonalRegularizer(0.3, "rows", diagonal))
    for actual, expected in zip(
        run(mode, step, tf.constant(x)), soft_orthogonal(x, 0.3, "rows", diagonal), strict=True
    ):
        assert_close(actual, expected, 1e-12)


@modes
@diagonal
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 3)], ids=str)
@pytest.mark.light(mode=["eager", "graph"])
def test_nan_stays_nan_and_overflow_is_infinite(shape, diagonal, mode):
    penalty = tfk.SoftOrthogonalRegularizer(1.0, "rows", diagonal)
    x = normal(shape).astype("float32")
    if shape[0] > 1:
        assert float(run(mode, penalty, tf.constant(1e15 * x))) == np.inf
    x[-1, 1] = np.nan
    assert np.isnan(run(mode, penalty, tf.constant(x)))


def test_kernels_of_more_axes_are_a_matrix():
    kernel = normal((3, 3, 2, 4))
    value, gradient = value_and_gradient(tfk.SoftOrthogonalRegularizer(0.5, "columns"))(tf.constant(kernel))
    expected_value, expected_gradient = soft_orthogonal(kernel.reshape(18, 4), 0.5, "columns", True)
    assert_close(value, expected_value, 1e-12)
    assert_close(gradient, expected_gradient.reshape(kernel.shape), 1e-12)


@diagonal
def test_in_a_branch_and_under_vectorized_map(diagonal):
    x, penalty = tf.constant(normal((7, 5))), tfk.SoftOrthogonalRegularizer(1.0, "rows", diagonal)
    step = value_and_gradient(lambda x: tf.cond(tf.reduce_sum(x) < 1e9, lambda: penalty(x), lambda: x[0, 0]))
    for actual, expected in zip(tf.function(step)(x), soft_orthogonal(x.numpy(), 1.0, "rows", diagonal), strict=True):
        assert_close(actual, expected, 1e-12)
    several = tf.stack([x, 2 * x])
    _, gradients = tf.vectorized_map(value_and_gradient(penalty), several)
    for one, gradient in zip(several.numpy(), gradients, strict=True):
        assert_close(gradient, soft_orthogonal(one, 1.0, "rows", diagonal)[1], 1e-12)


@diagonal
@pytest.mark.parametrize("known", [True, False], ids=["known shape", "unknown shape"])
def test_the_compiled_program_holds_nothing_larger_than_its_input(diagonal, known):
    penalty = tfk.SoftOrthogonalRegularizer(diagonal=diagonal)

    def forgetful(x):
        return penalty(x if known else tf.compat.v1.placeholder_with_default(x, [None, None]))

    step = tf.function(value_and_gradient(forgetful), jit_compile=True, autograph=False)
    text = step.experimental_get_compiler_ir(tf.TensorSpec([3000, 16]))(stage="optimized_hlo")
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == 3000 * 16


@pytest.mark.heavy
@diagonal
@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
def test_a_million_rows_of_64(run_python, jit_compile, diagonal):
    """Beside x and its gradient no more than one matrix like x, which is 256 MB."""
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


def test_errors_and_config():
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
    """With a penalty on outputs of an unknown number as well."""
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
