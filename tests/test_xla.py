"""XLA: training that is compiled as a whole, and the programs that are compiled for a GPU and for a CPU."""

import re
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import hessian_product, value_and_gradient
from oracles import PENALTIES

import tfk_regularizers as tfk

ROWS = 3000  # above 1024 rows orthogonality is tiled
REGULARIZERS = {name: (lambda make=make: make(tfk)) for name, (make, _) in PENALTIES.items()}
SAMPLED = {
    "sampled": lambda: tfk.SampledOrthogonalRegularizer(0.3, sample_size=100),
    "sampled columns": lambda: tfk.SampledOrthogonalRegularizer(0.3, "columns", sample_size=100),
    "sampled tiled": lambda: tfk.SampledOrthogonalRegularizer(0.3, sample_size=2000),
}
# With no more rows than the sample size, all rows are used: only then are two runs equal.
EXACT = REGULARIZERS | {"sampled": lambda: tfk.SampledOrthogonalRegularizer(0.3, sample_size=2000)}


# Training


class Counting(tf_keras.regularizers.Regularizer):
    """A regularizer that records the shape at each call, that is, at each trace of a compiled step."""

    def __init__(self, regularizer):
        self.regularizer, self.shapes = regularizer, []

    def __call__(self, x):
        self.shapes.append(tuple(x.shape))
        return self.regularizer(x)


def build(kernel, activity, jit_compile, units=7):
    layer = tf_keras.layers.Dense(
        units, "tanh", kernel_regularizer=kernel, activity_regularizer=activity, input_shape=(6,)
    )
    model = tf_keras.Sequential([layer, tf_keras.layers.Dense(2)])
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.get_weights()])
    model.compile(tf_keras.optimizers.SGD(0.1 / units), "mse", jit_compile=jit_compile)
    return model


def data(rows):
    random = np.random.default_rng(1)
    return random.normal(size=(rows, 6)).astype("float32"), random.normal(size=(rows, 2)).astype("float32")


@pytest.mark.parametrize("units", [7, 1100], ids=["small", "tiled"])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.heavy
def test_fit_with_a_ragged_last_batch_equals_one_without_xla(name, units):
    """No layer knows the batch sizes 8, 8 and 4. For unknown sizes, and for more than 1024 columns, tiles are used.

    The gradient for an unknown number of outputs needs a loop whose slices have a size that XLA can infer.
    """
    if units == 1100 and name not in ("columns", "l1_l2"):
        units = 200
    x, y = data(20)
    losses, weights = [], []
    for jit_compile in (False, True):
        kernel, activity = Counting(EXACT[name]()), Counting(EXACT[name]())
        model = build(kernel, activity, jit_compile, units)
        first = model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0).history["loss"]
        traces = len(kernel.shapes), len(activity.shapes)
        # The step is traced once for all batches, with an unknown batch size, and once before that, because its first
        # call creates variables.
        assert kernel.shapes == [(6, units)] * 2
        assert set(activity.shapes) == {(None, units)}
        more = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
        assert (len(kernel.shapes), len(activity.shapes)) == traces
        losses.append(first + more)
        weights.append(model.get_weights())
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)
    for compiled, plain in zip(*reversed(weights), strict=True):
        np.testing.assert_allclose(compiled, plain, atol=2e-5 * np.abs(plain).max())


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.light(name=["l1_l2", "columns"])
def test_compiled_function_is_traced_once_for_each_shape(name):
    counting = Counting(REGULARIZERS[name]())
    step = tf.function(value_and_gradient(counting), jit_compile=True, autograph=False)
    for size in (5, 9, 5, 9, 5):
        step(tf.ones([size, 3]))
    assert counting.shapes == [(5, 3), (9, 3)]


# Programs


def forget_shape(penalty):
    """The penalty, called on a tensor whose static shape TensorFlow does not know, but XLA does."""
    return lambda x: penalty(tf.compat.v1.placeholder_with_default(x, [None] * x.shape.rank))


def program(function, specs, **stage):
    compiled = tf.function(function, jit_compile=True, autograph=False)
    return compiled.experimental_get_compiler_ir(*specs)(**stage)


def largest(text):
    """The elements of the largest array in a program, written `f32[3000,16]` in HLO."""
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("gpu_listed", [False, True], ids=["CPU process", "GPU process"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(64, 48), (ROWS, 100), (100, ROWS)], ids=str)
@pytest.mark.parametrize("name", [*REGULARIZERS, *SAMPLED])
@pytest.mark.light(dtype=["float32"], gpu_listed=[False])
def test_lowers_for_a_gpu(monkeypatch, name, shape, dtype, gpu_listed):
    """Value and gradient can be lowered without a GPU. If a GPU is listed, blocks are used only above 8192 rows."""
    kinds = ["CPU", "GPU"] if gpu_listed else ["CPU"]
    devices = [types.SimpleNamespace(device_type=kind) for kind in kinds]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda: devices)
    function = value_and_gradient((REGULARIZERS | SAMPLED)[name]())
    text = program(function, [tf.TensorSpec(shape, dtype)], stage="hlo", platform_name="GPU")
    assert text.startswith("HloModule")
    if ROWS in shape:
        assert largest(text) <= ROWS * (ROWS if gpu_listed else 700)


PROGRAMS = {
    "value and gradient": (value_and_gradient, 1),
    "Hessian product": (hessian_product, 2),
    "value": (lambda penalty: penalty, 1),
}


@pytest.mark.parametrize("known", [True, False], ids=["known shape", "unknown shape"])
@pytest.mark.parametrize(
    ("what", "dtype"), [("value and gradient", "bfloat16"), ("Hessian product", "float32"), ("value", "float32")]
)
@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.light(name=["rows"], known=[False])
def test_optimized_program_holds_no_gram_matrix(name, what, dtype, known):
    make, arguments = PROGRAMS[what]
    penalty = REGULARIZERS[name]() if known else forget_shape(REGULARIZERS[name]())
    spec = tf.TensorSpec([ROWS, 16] if name == "rows" else [16, ROWS], dtype)
    text = program(make(penalty), [spec] * arguments, stage="optimized_hlo")
    assert ROWS * 16 <= largest(text) <= ROWS * 700


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.light(axis=["rows"])
def test_optimized_program_of_a_sample_holds_no_gram_matrix(axis):
    penalty = tfk.SampledOrthogonalRegularizer(0.3, axis, sample_size=2000)
    spec = tf.TensorSpec([20000, 16] if axis == "rows" else [16, 20000], tf.float32)
    text = program(value_and_gradient(penalty), [spec], stage="optimized_hlo")
    assert 20000 * 16 <= largest(text) <= 2000 * 700


@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2", "soft rows", "soft columns, lengths free"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_optimized_program_holds_nothing_larger_than_its_input(name, dtype):
    shape = [3000, 16] if name == "soft rows" else [16, 3000]
    text = program(value_and_gradient(REGULARIZERS[name]()), [tf.TensorSpec(shape, dtype)], stage="optimized_hlo")
    assert largest(text) == 3000 * 16


def test_largest_finds_the_gram_matrix_of_the_built_in(builtin):
    """The Gram matrix, which the tests above must not find, is found in the built-in."""
    built_in = value_and_gradient(builtin.OrthogonalRegularizer(0.3))
    spec = [tf.TensorSpec([ROWS, 16], tf.float32)]
    assert largest(program(built_in, spec, stage="optimized_hlo")) >= ROWS**2
    assert largest(program(built_in, spec, stage="hlo", platform_name="GPU")) >= ROWS**2
