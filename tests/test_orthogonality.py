"""What is particular to the orthogonality penalty: its matrices, its edges, and its tiles."""

import re

import numpy as np
import pytest
import tensorflow as tf
from differentiation import MODES, assert_close, forward_derivative, hessian_product, run, value_and_gradient
from oracles import orthogonal

import tfk_regularizers as tfk
from tfk_regularizers import _orthogonality

ROWS = 13
modes = pytest.mark.parametrize("mode", MODES)
block_rows = pytest.mark.parametrize("rows", [1, 2, 3, 7, ROWS - 1, ROWS, ROWS + 1])


def normal(shape, dtype="float64", seed=0):
    return tf.cast(tf.constant(np.random.default_rng(seed).standard_normal(shape)), dtype)


def tiled(rows):
    return lambda x: _orthogonality.mean_absolute_cosine(x, block_rows=rows)


@modes
@block_rows
def test_tiles_of_any_size_give_the_same(rows, mode):
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)
    whole = _orthogonality.mean_absolute_cosine
    value, gradient = run(mode, value_and_gradient(tiled(rows)), x)
    expected_value, expected_gradient = orthogonal(x.numpy(), 1.0, "rows")
    assert_close(value, expected_value, 1e-12)
    assert_close(gradient, expected_gradient, 1e-12)
    assert_close(run(mode, hessian_product(tiled(rows)), x, v), hessian_product(whole)(x, v), 1e-12)
    assert_close(run(mode, forward_derivative(tiled(rows)), x, v), np.sum(expected_gradient * v), 1e-12)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@block_rows
def test_tiles_of_an_unknown_shape(rows, mode):
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)
    unknown = [tf.TensorSpec([None, None], tf.float64)] * 2
    jit = mode == "xla" or None
    first = tf.function(value_and_gradient(tiled(rows)), input_signature=unknown[:1], jit_compile=jit)
    second = tf.function(hessian_product(tiled(rows)), input_signature=unknown, jit_compile=jit)
    for actual, expected in zip(first(x), orthogonal(x.numpy(), 1.0, "rows"), strict=True):
        assert_close(actual, expected, 1e-12)
    assert_close(second(x, v), hessian_product(_orthogonality.mean_absolute_cosine)(x, v), 1e-12)


def test_second_order_from_outside_of_a_function():
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)
    expected = hessian_product(_orthogonality.mean_absolute_cosine)(x, v)
    for jit_compile in (None, True):
        penalty = tf.function(tiled(3), jit_compile=jit_compile)
        assert_close(hessian_product(penalty)(x, v), expected, 1e-12)
        assert_close(forward_derivative(penalty)(x, v), forward_derivative(tiled(3))(x, v), 1e-12)


def test_third_order():
    """The penalty is a quadratic form of the normalized rows, so what is beyond comes from the normalization alone."""
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)

    def third(penalty):
        with tf.GradientTape() as tape:
            tape.watch(x)
            product = hessian_product(penalty)(x, v)
        return tape.gradient(product, x)

    assert_close(third(tiled(3)), third(_orthogonality.mean_absolute_cosine), 1e-10)


@pytest.mark.parametrize("rows", [None, 3], ids=["direct", "tiled"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype, rows):
    x = normal((ROWS, 5), dtype)
    value, gradient = value_and_gradient(lambda x: _orthogonality.mean_absolute_cosine(x, rows))(x)
    assert (value.dtype, gradient.dtype) == (tf.float32, x.dtype)
    expected_value, expected_gradient = orthogonal(tf.cast(x, tf.float64).numpy(), 1.0, "rows")
    assert_close(value, expected_value, 1e-6)
    assert_close(tf.cast(gradient, tf.float64), expected_gradient, 8e-3 if dtype == "bfloat16" else 1e-3)


@modes
@pytest.mark.parametrize("rows", [None, 2], ids=["direct", "tiled"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0)], ids=str)
def test_without_a_pair_it_is_zero(shape, rows, mode):
    penalty = value_and_gradient(lambda x: _orthogonality.mean_absolute_cosine(x, rows))
    value, gradient = run(mode, penalty, normal(shape, "float32"))
    assert float(value) == 0
    assert np.array_equal(gradient, np.zeros(shape))


def test_one_row_through_the_regularizer():
    value, gradient = value_and_gradient(tfk.OrthogonalRegularizer())(tf.constant([[3.0, 4.0]]))
    assert float(value) == 0
    assert gradient.numpy().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6, 1e-3, 1e15])
def test_zero_and_tiny_and_huge_rows_equal_the_built_in(builtin, scale):
    x = normal((6, 4), "float32").numpy()
    x[1] *= scale
    x[4] = 0
    expected = value_and_gradient(builtin.OrthogonalRegularizer())(tf.constant(x))
    for penalty in (tfk.OrthogonalRegularizer(), lambda x: 0.01 * tiled(2)(x)):
        for actual, wanted in zip(value_and_gradient(penalty)(tf.constant(x)), expected, strict=True):
            assert_close(actual, wanted, 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 3, 2, 8), (2, 2, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_kernels_of_more_axes_are_a_matrix(shape, mode):
    x = normal(shape)
    value, gradient = value_and_gradient(tfk.OrthogonalRegularizer(0.3, mode))(x)
    expected_value, expected_gradient = orthogonal(x.numpy().reshape(-1, shape[-1]), 0.3, mode)
    assert_close(value, expected_value, 1e-12)
    assert_close(gradient, expected_gradient.reshape(shape), 1e-12)


def test_columns_of_a_convolution_are_its_filters():
    filters = np.zeros((3, 3, 2, 4))
    filters[0, 0, 0, 0] = filters[1, 0, 0, 1] = filters[2, 2, 1, 2] = filters[0, 2, 1, 3] = 5
    assert float(tfk.OrthogonalRegularizer(1.0, "columns")(filters)) == 0
    filters[..., 1] = -filters[..., 0]
    assert float(tfk.OrthogonalRegularizer(1.0, "columns")(filters)) == pytest.approx(1 / 6)


@pytest.mark.parametrize("x", [1.0, [1.0, 2.0]], ids=["rank 0", "rank 1"])
def test_fewer_than_two_axes_are_refused(x):
    with pytest.raises(ValueError, match=r"rank 2 or more. Received: inputs.shape == \((2,)?\)"):
        tfk.OrthogonalRegularizer()(x)


def test_fewer_than_two_axes_are_refused_where_the_rank_is_known_to_a_call_alone():
    penalty = tf.function(tfk.OrthogonalRegularizer(), input_signature=[tf.TensorSpec(None, tf.float32)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have rank 2 or more"):
        penalty(tf.constant([1.0, 2.0]))


def test_orthogonality_of_complex_numbers():
    with pytest.raises(TypeError, match=r"floating dtype. Received: dtype complex64, shape \(2, 2\)"):
        tfk.OrthogonalRegularizer()(tf.eye(2, dtype=tf.complex64))


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_the_compiled_program_holds_no_gram_matrix(mode):
    shape = [3000, 16] if mode == "rows" else [16, 3000]
    program = tf.function(value_and_gradient(tfk.OrthogonalRegularizer(0.01, mode)), jit_compile=True)
    text = program.experimental_get_compiler_ir(tf.TensorSpec(shape, tf.float32))(stage="optimized_hlo")
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert 3000 * 16 <= max(sizes) <= 3000 * 700


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_memory_grows_with_the_rows_alone(run_python, mode, tmp_path):
    """(16384, 32) would take 1 GB for one Gram matrix; the built-in takes several."""
    script = tmp_path / "peak.py"
    script.write_text(
        f"""
import resource
import tensorflow as tf
import tfk_regularizers as tfk

def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tfk.OrthogonalRegularizer()(x)
    return tape.gradient(value, x)

if {mode != "eager"}:
    step = tf.function(step, jit_compile={mode == "xla"} or None)
step(tf.random.normal((2048, 32)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(tf.random.normal((16384, 32))).numpy()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    )
    assert int(run_python(script)) < 300
