"""Tests specific to the orthogonality penalty: its matrices, its edge cases and its tiles."""

import gc
import itertools

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
from libraries import KERAS3, needs_keras3
from oracles import orthogonal, soft_orthogonal
from tensorflow.python.eager import context as tf_context

import tfk_regularizers as tfk
from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.orthogonal import mean_absolute_cosine
from tfk_regularizers._penalties.reductions import size

ROWS = 13
modes = pytest.mark.parametrize("mode", MODES)
block_rows = pytest.mark.parametrize("rows", [1, 2, 3, 7, ROWS - 1, ROWS, ROWS + 1])
block_rows_or_halves = pytest.mark.parametrize("rows", [1, 2, 3, 7, ROWS - 1, ROWS, ROWS + 1, "halves"])


def normal(shape, dtype="float64", seed=0):
    return tf.cast(tf.constant(np.random.default_rng(seed).standard_normal(shape)), dtype)


def tiled(rows):
    """The penalty, computed in blocks of about `rows` rows, in "halves", or, if None, as it chooses."""

    def count(x, with_gradient):
        if rows == "halves":
            return 2 if with_gradient and x.shape[0] else 3
        return size(x, 0) // rows // 2 * 2 + 1

    def penalty(x):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execution, "SINGLE_GRAM_UP_TO", 0)
            if rows is not None:
                patch.setattr(execution, "block_count", count)
                patch.setattr(execution, "block_row_multiple", lambda x: 1)
            return mean_absolute_cosine(x)

    return penalty


@modes
@block_rows_or_halves
@pytest.mark.light(mode=["graph"], rows=[1, 7, ROWS, "halves"])
def test_tiles_of_any_size_give_the_same(rows, mode):
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)
    whole = mean_absolute_cosine
    value, gradient = run(mode, value_and_gradient(tiled(rows)), x)
    expected_value, expected_gradient = orthogonal(x.numpy(), 1.0, "rows")
    assert_close(value, expected_value, 1e-12)
    assert_close(gradient, expected_gradient, 1e-12)
    assert_close(run(mode, hessian_product(tiled(rows)), x, v), hessian_product(whole)(x, v), 1e-12)
    assert_close(run(mode, forward_derivative(tiled(rows)), x, v), np.sum(expected_gradient * v), 1e-12)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@block_rows
@pytest.mark.light(mode=["graph"], rows=[7])
def test_tiles_of_an_unknown_shape(rows, mode):
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)
    unknown = [tf.TensorSpec([None, None], tf.float64)] * 2
    how = {"jit_compile": mode == "xla" or None, "autograph": False}
    first = tf.function(value_and_gradient(tiled(rows)), input_signature=unknown[:1], **how)
    second = tf.function(hessian_product(tiled(rows)), input_signature=unknown, **how)
    for actual, expected in zip(first(x), orthogonal(x.numpy(), 1.0, "rows"), strict=True):
        assert_close(actual, expected, 1e-12)
    assert_close(second(x, v), hessian_product(mean_absolute_cosine)(x, v), 1e-12)


@pytest.fixture(scope="module")
def second_derivative():
    """x, v, and the Hessian times v by differences of the gradient: the penalty is smooth while no sign changes."""
    x, v, step = normal((ROWS, 5)).numpy(), normal((ROWS, 5), seed=1).numpy(), 1e-6
    ahead, behind = (orthogonal(x + sign * step * v, 1.0, "rows")[1] for sign in (1, -1))
    return tf.constant(x), tf.constant(v), (ahead - behind) / (2 * step)


@pytest.mark.parametrize("mode", [*MODES, "graph, unknown shape", "xla, unknown shape"])
@pytest.mark.parametrize("rows", [None, 2, "halves"], ids=["direct", "tiled", "halves"])
@pytest.mark.parametrize("composition", SECOND_DERIVATIVES)
@pytest.mark.light(rows=[2], mode=["eager"])
@pytest.mark.light(rows=[2], mode=["graph"], composition=["reverse over reverse"])
def test_every_composition_of_forward_and_reverse_mode(composition, rows, mode, second_derivative):
    x, v, expected = second_derivative
    if composition == "forward over forward":
        expected = np.sum(expected * v)
    function = SECOND_DERIVATIVES[composition](tiled(rows))
    mode, _, unknown = mode.partition(", ")
    if unknown:
        signature = [tf.TensorSpec([None, None], tf.float64)] * 2
        function = tf.function(function, autograph=False, jit_compile=mode == "xla" or None, input_signature=signature)
    assert_close(function(x, v) if unknown else run(mode, function, x, v), expected, 1e-7)


@pytest.mark.parametrize("jit_compile", [None, True], ids=["graph", "xla"])
@pytest.mark.parametrize("composition", [name for name in SECOND_DERIVATIVES if name != "reverse over forward"])
@pytest.mark.light(jit_compile=[None], composition=["reverse over reverse"])
def test_compositions_around_a_function(composition, jit_compile, second_derivative):
    """Reverse over forward mode is left out: TensorFlow returns None for it around any tf.function."""
    x, v, expected = second_derivative
    if composition == "forward over forward":
        expected = np.sum(expected * v)
    penalty = tf.function(tiled(2), autograph=False, jit_compile=jit_compile)
    assert_close(SECOND_DERIVATIVES[composition](penalty)(x, v), expected, 1e-7)


def test_third_order():
    """The penalty is a quadratic form of normalized rows, so its third derivatives come only from the normalization."""
    x, v = normal((ROWS, 5)), normal((ROWS, 5), seed=1)

    def third(penalty):
        with tf.GradientTape() as tape:
            tape.watch(x)
            product = hessian_product(penalty)(x, v)
        return tape.gradient(product, x)

    assert_close(third(tiled(3)), third(mean_absolute_cosine), 1e-10)


@pytest.mark.parametrize("rows", [None, 3], ids=["direct", "tiled"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype, rows):
    x = normal((ROWS, 5), dtype)
    value, gradient = value_and_gradient(tiled(rows))(x)
    assert (value.dtype, gradient.dtype) == (tf.float32, x.dtype)
    expected_value, expected_gradient = orthogonal(tf.cast(x, tf.float64).numpy(), 1.0, "rows")
    assert_close(value, expected_value, 1e-6)
    assert_close(tf.cast(gradient, tf.float64), expected_gradient, 8e-3 if dtype == "bfloat16" else 1e-3)


@modes
@pytest.mark.parametrize("rows", [None, 2], ids=["direct", "tiled"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0)], ids=str)
@pytest.mark.light(mode=["eager"])
def test_without_a_pair_it_is_zero(shape, rows, mode):
    penalty = value_and_gradient(tiled(rows))
    value, gradient = run(mode, penalty, normal(shape, "float32"))
    assert float(value) == 0
    assert np.array_equal(gradient, np.zeros(shape))


@modes
@pytest.mark.parametrize("rows", [None, 2], ids=["direct", "tiled"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 3), (3, 3)], ids=str)
@pytest.mark.light(mode=["eager"])
@pytest.mark.light(mode=["xla"], shape=[(6, 4)], number=[np.nan])
def test_nan_and_infinity_give_nan(shape, number, rows, mode):
    x = normal(shape, "float32").numpy()
    x[-1, 1] = number
    for function in (tiled(rows), value_and_gradient(tiled(rows))):
        value = tf.nest.flatten(run(mode, function, tf.constant(x)))[0]
        assert np.isnan(value)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_function_that_was_traced_without_a_tape_has_a_gradient(mode):
    x = normal((ROWS, 5))
    penalty = tf.function(tiled(2), autograph=False, jit_compile=mode == "xla" or None)
    penalty(x)
    for actual, expected in zip(value_and_gradient(penalty)(x), orthogonal(x.numpy(), 1.0, "rows"), strict=True):
        assert_close(actual, expected, 1e-12)


def test_new_shapes_leave_nothing_behind():
    context = tf_context.context()
    step = value_and_gradient(tfk.OrthogonalRegularizer())
    step(normal((1100, 2), "float32"))
    gc.collect()  # functions of other tests, which could disappear meanwhile
    before = set(context.list_function_names())
    for rows in range(1101, 1105):
        step(normal((rows, 2), "float32"))
    assert set(context.list_function_names()) == before


@pytest.mark.parametrize(
    ("regularizer", "oracle", "rows"),
    [
        (tfk.OrthogonalRegularizer(1.0), lambda x: orthogonal(x, 1.0, "rows"), 50),
        (tfk.SoftOrthogonalRegularizer(1.0), lambda x: soft_orthogonal(x, 1.0, "rows", True), 50),
    ],
    ids=["single Gram matrix", "soft"],
)
@pytest.mark.heavy
def test_a_saved_model_has_a_first_and_a_second_gradient(regularizer, oracle, rows, run_python, tmp_path):
    layer = tf_keras.layers.Dense(3, input_shape=(rows,), kernel_regularizer=regularizer)
    tf_keras.Sequential([layer]).save(tmp_path / "model", save_format="tf")
    script = tmp_path / "load.py"
    script.write_text(
        """
import sys
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1] + "/model")
kernel, loss = model.variables[0], model.keras_api.layers[0].regularization_losses
loss = (loss or model.regularization_losses)[0]
v = tf.constant(np.load(sys.argv[1] + "/v.npy"))
with tf.GradientTape() as outer:
    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, kernel)
    slope = tf.reduce_sum(gradient * v)
np.savez(sys.argv[1] + "/answers.npz", value=value, gradient=gradient, product=outer.gradient(slope, kernel))
assert "tfk_regularizers" not in sys.modules
"""
    )
    x, v = layer.kernel.numpy(), normal(layer.kernel.shape, "float32", seed=1)
    np.save(tmp_path / "v.npy", v)
    run_python(script, tmp_path)
    answers = np.load(tmp_path / "answers.npz")
    value, gradient = oracle(x.astype("float64"))
    assert_close(answers["value"], value, 1e-6)
    assert_close(answers["gradient"], gradient, 1e-4)
    assert_close(answers["product"], hessian_product(regularizer)(tf.constant(x), v), 1e-5)


@pytest.mark.parametrize("device", ["CPU:0", "GPU:0", "TPU:0"])
def test_the_blocks_are_those_of_the_device(device):
    """The value and the gradient each use one block, two halves or an odd number of blocks."""
    seen, multiples = {}, set()

    def trace(*matrices):
        with tf.device(device):
            for matrix in matrices:
                counts = [execution.block_count(matrix, with_gradient) for with_gradient in (False, True)]
                seen[tuple(matrix.shape)] = counts
                multiples.add(execution.block_row_multiple(matrix))
        return 0

    shapes = (1024, 64), (2048, 2048), (2048, 300), (2048, 8192), (4096, 1024), (4097, 4097), (8192, 64), (9000, 9000)
    tf.function(trace, autograph=False).get_concrete_function(*(tf.TensorSpec(shape) for shape in shapes))
    on_cpu = [1, 1], [5, 2], [5, 5], [5, 1], [9, 2], [9, 9], [33, 17], [35, 19]
    if device == "CPU:0":
        assert seen == dict(zip(shapes, on_cpu, strict=True))
        assert multiples == {16}
    else:
        assert seen == {shape: [1, 1] for shape in shapes[:-1]} | {(9000, 9000): [3, 1]}
        assert multiples == {128}


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6, 1e-3, 1e15])
def test_zero_and_tiny_and_huge_rows_equal_the_built_in(builtin, scale):
    x = normal((6, 4), "float32").numpy()
    x[1] *= scale
    x[4] = 0
    expected = value_and_gradient(builtin.OrthogonalRegularizer())(tf.constant(x))
    for penalty in (tfk.OrthogonalRegularizer(), lambda x: 0.01 * tiled(2)(x)):
        for actual, wanted in zip(value_and_gradient(penalty)(tf.constant(x)), expected, strict=True):
            assert_close(actual, wanted, 1e-5)


LONG_AND_WIDE = [*itertools.product([(5000, 1), (1, 5000), (0, 5000), (5000, 0)], ["rows", "columns"])]


@pytest.mark.parametrize(("shape", "mode"), [*LONG_AND_WIDE, ((2, 2**20), "rows")], ids=str)
def test_huge_aspect_ratios(shape, mode):
    x = normal(shape)
    value, gradient = value_and_gradient(tfk.OrthogonalRegularizer(0.5, mode))(x)
    expected_value, expected_gradient = orthogonal(x.numpy(), 0.5, mode)
    assert_close(value, expected_value, 1e-11)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-9)  # for one column, the exact one is 0


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


ORTHOGONAL = [tfk.OrthogonalRegularizer, tfk.SampledOrthogonalRegularizer, tfk.SoftOrthogonalRegularizer]


@pytest.mark.parametrize("cls", [*ORTHOGONAL, tfk.GroupLasso])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_weight_with_fewer_than_two_axes_is_named(cls, policy):
    layer = tf_keras.layers.Dense(3, bias_regularizer=cls(), name="logits", dtype=policy)
    layer.build((None, 2))
    for losses in (lambda: layer.losses, tf.function(lambda: layer.losses)):
        with pytest.raises(ValueError, match=r"inputs.shape == \(3,\), of the variable '(logits/)?bias'"):
            losses()


@needs_keras3
def test_a_weight_of_keras_3_with_fewer_than_two_axes_is_named():
    layer = KERAS3.layers.Dense(3, bias_regularizer=tfk.OrthogonalRegularizer(), name="logits")
    with pytest.raises(ValueError, match=r"inputs.shape == \(3,\), of the variable '(model/)?logits/bias'"):
        KERAS3.Sequential([KERAS3.Input((2,)), layer], name="model").losses  # noqa: B018


@pytest.mark.parametrize("x", [1.0, [1.0, 2.0]], ids=["rank 0", "rank 1"])
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("cls", [tfk.OrthogonalRegularizer, tfk.SampledOrthogonalRegularizer])
@pytest.mark.light(jit=[False], mode=["rows"], cls=[tfk.OrthogonalRegularizer])
def test_fewer_than_two_axes_are_refused_where_the_static_rank_is_unknown(cls, mode, jit, x):
    signature = [tf.TensorSpec(None, tf.float32)]
    penalty = tf.function(cls(1.0, mode), input_signature=signature, jit_compile=jit)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"Inputs.to.{cls.__name__}.must.have.rank.2.or.more"):
        penalty(tf.constant(x))
    assert float(penalty(tf.eye(3))) == 0
    assert float(penalty(tf.ones([2, 3, 2]))) == pytest.approx(1)


def test_complex_numbers_are_refused():
    with pytest.raises(TypeError, match=r"floating dtype. Received: dtype complex64, shape \(2, 2\)"):
        tfk.OrthogonalRegularizer()(tf.eye(2, dtype=tf.complex64))


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_memory_grows_with_the_rows_alone(run_python, mode, tmp_path):
    """For the shape (16384, 32), one Gram matrix takes 1 GB; the built-in needs several."""
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
