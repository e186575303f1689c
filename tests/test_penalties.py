"""Values and gradients of the penalties, against float64 NumPy and against tf_keras's own."""

import sys

import differentiation
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, SECOND_DERIVATIVES, assert_close, compiled, run, value_and_gradient
from libraries import IN_KERAS
from oracles import PENALTIES

import tfk_regularizers as tfk
from tfk_regularizers._penalties import KERAS_PENALTIES, NEW_PENALTIES, execution

# Of the value, and of the gradient. Half types are computed in float32, and only gradients are rounded to them.
TOLERANCES = {
    "float16": (2e-6, 1e-3),
    "bfloat16": (2e-6, 8e-3),
    "float32": (2e-6, 2e-6),
    "float64": (1e-12, 1e-12),
    "complex64": (2e-6, 2e-6),
}
# L1 and L1L2 use custom gradients in eager mode from 2**18 elements, and an XLA cluster in a graph from 2**23. Above
# 1024 rows, orthogonality is computed in halves or in blocks.
SHAPES = [(3, 4), (4, 3), (64, 64), (300, 2000), (2000, 300)]
SMALL = [(), (0,), (5,), (2, 0, 3), (2, 3, 4, 5, 2, 2)]
LARGE = [(2**18,), (2**22 + 7,), (2**23 - 1,), (2**23,), (2**23 + 2**11 - 1,)]
FACTORS = [("float32", 3e38, 0.1), ("float32", 1e-30, 1e10), ("float64", 1.7e308, 1e-4)]

penalties = pytest.mark.parametrize("name", PENALTIES)
in_keras = pytest.mark.parametrize("name", IN_KERAS)
modes = pytest.mark.parametrize("mode", MODES)
elementwise = pytest.mark.parametrize("name", ["l1", "l2", "l1_l2"])


def normal(shape, dtype="float32", seed=0):
    values = np.random.default_rng(seed).standard_normal((2, *shape))
    values = values[0] + 1j * values[1] if tf.as_dtype(dtype).is_complex else values[0]
    return tf.cast(tf.constant(values), dtype)


@pytest.fixture
def cluster_from_half_a_million(monkeypatch):
    """Use the code path for 2**23 elements, whose derivatives would take too long here, for smaller tensors."""
    monkeypatch.setattr(execution, "XLA_CLUSTER_IN_GRAPH_FROM", 2**19)


def exact(x):
    """The numbers in x as NumPy float64 or complex128."""
    return tf.cast(x, tf.complex128 if x.dtype.is_complex else tf.float64).numpy()


def made(name):
    return PENALTIES[name][0](tfk)


def assert_right(results, name, x, tolerances=(2e-6, 2e-6)):
    """Assert that a value and a gradient are those of the oracle."""
    for result, expected, tolerance in zip(results, PENALTIES[name][1](exact(x)), tolerances, strict=True):
        assert_close(exact(result), expected, tolerance)


@modes
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in PENALTIES for dtype in TOLERANCES if name.startswith("l") or dtype != "complex64"],
)
@pytest.mark.light(mode=["eager"])
@pytest.mark.light(dtype=["float32"])
def test_value_and_gradient(name, dtype, mode):
    x = normal((37, 23), dtype)
    value, gradient = run(mode, value_and_gradient(made(name)), x)
    assert value.dtype == (tf.float32 if x.dtype.size < 4 else x.dtype.real_dtype)
    assert gradient.dtype == x.dtype
    assert_right((value, gradient), name, x, TOLERANCES[dtype])


@modes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@in_keras
@pytest.mark.light(mode=["eager"])
@pytest.mark.light(shape=[(64, 64)])
def test_equals_the_built_in(builtin, name, shape, mode):
    x = normal(shape)
    expected_value, expected_gradient = value_and_gradient(PENALTIES[name][0](builtin))(x)
    value, gradient = run(mode, value_and_gradient(made(name)), x)
    assert_close(value, expected_value, 2e-6)
    assert_close(gradient, expected_gradient, 1e-5)


@pytest.mark.parametrize("shape", SMALL + LARGE, ids=str)
@pytest.mark.parametrize("mode", ["eager", "graph"])
@elementwise
@pytest.mark.light(shape=[*SMALL, LARGE[0]], mode=["eager"])
@pytest.mark.light(shape=[LARGE[3]], mode=["graph"])
def test_sums_over_any_shape(name, mode, shape):
    """Some elements are 0 or -0, where the gradient of L1 is 0."""
    x = normal(shape)
    x *= tf.cast(tf.abs(x) > 0.3, tf.float32)
    assert_right(run(mode, value_and_gradient(made(name)), x), name, x)


@pytest.mark.heavy
@modes
@pytest.mark.parametrize("values", ["normal", "equal"])
@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2", "group columns", "group rows"])
def test_sums_of_64_million_are_right_and_equal_in_every_run(name, values, mode):
    """Under XLA of TensorFlow 2.21, a plain sum is off by percents; nightlies of 2.22 had a race in reductions."""
    make, oracle = PENALTIES[name]
    x = tf.fill([2**13, 2**13], 0.1) if values == "equal" else tf.random.stateless_normal([2**13, 2**13], [1, 2])
    parts = np.split(x.numpy(), 16, axis=1 if name == "group columns" else 0)
    expected = sum(oracle(part.astype("float64"))[0] for part in parts)
    function = compiled(mode, make(tfk))
    runs = {float(function(x)) for _ in range(8)}
    assert len(runs) == 1
    assert_close(runs.pop(), expected, 1e-5)


# The strategy, the static shape and the shape of a sum: XLA:CPU adds the elements of a plain sum one by one.
COMPILED = {
    "small": (None, [724, 724], [724, 724]),
    "large": (None, [4096, 1024], [4096, 1024]),
    "unknown batch": (None, [None, 8], [2**19, 8]),
    "unknown shape": (None, [None, None], [4096, 1024]),
    "unknown rank": (None, None, [4096, 1024]),
    "one device": (lambda: tf.distribute.OneDeviceStrategy("/cpu:0"), [4096, 1024], [4096, 1024]),
    "mirrored": (lambda: tf.distribute.MirroredStrategy(["/cpu:0"]), [4096, 1024], [4096, 1024]),
}


@pytest.mark.parametrize(("strategy", "static_shape", "shape"), COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@elementwise
@pytest.mark.light(name=["l1_l2"], dtype=["float32"])
def test_sums_keep_their_digits_wherever_xla_compiles(name, dtype, strategy, static_shape, shape):
    x = tf.cast(tf.fill(shape, 0.1), dtype)
    function = tf.function(made(name), [tf.TensorSpec(static_shape, dtype)], jit_compile=True, autograph=False)
    value = strategy().run(function, args=(x,)) if strategy else function(x)
    assert_close(value, PENALTIES[name][1](exact(x))[0], 1e-5)


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.light(mode=["rows"])
def test_mean_cosine_does_not_drift_under_xla(mode):
    x = normal((16384, 32) if mode == "rows" else (32, 16384))
    blocks = exact(x if mode == "rows" else tf.transpose(x))
    blocks /= np.sqrt((blocks**2).sum(1, keepdims=True))
    total = sum(np.abs(blocks[i : i + 1024] @ blocks.T).sum() for i in range(0, 16384, 1024)) - 16384
    assert_close(run("xla", made(mode), x), 0.3 * total / (16384 * 16383), 1e-5)


@penalties
def test_gradient_equals_finite_differences(name):
    penalty = made(name)
    x, v = normal((7, 5), "float64", 1), normal((7, 5), "float64", 2)
    _, gradient = value_and_gradient(penalty)(x)
    step = 1e-6
    slope = (penalty(x + step * v) - penalty(x - step * v)) / (2 * step)
    assert_close(tf.reduce_sum(gradient * v), slope, 1e-8)


@modes
@pytest.mark.parametrize("shape", [(7, 5), (1200, 500), (1300, 300)], ids=str)
@in_keras
@pytest.mark.light(shape=[(7, 5)], mode=["graph"])
@pytest.mark.light(mode=["eager"])
def test_second_order_equals_the_built_in(builtin, name, shape, mode):
    x, v = normal(shape, "float64", 1), normal(shape, "float64", 2)
    expected = differentiation.hessian_product(PENALTIES[name][0](builtin))(x, v)
    assert_close(run(mode, differentiation.hessian_product(made(name)), x, v), expected, 1e-6)


@modes
@pytest.mark.parametrize("shape", [(7, 5), (1200, 500), (1300, 300)], ids=str)
@penalties
@pytest.mark.light(shape=[(7, 5)], mode=["eager", "graph"])
def test_forward_mode(name, shape, mode):
    x, v = normal(shape, "float64", 1), normal(shape, "float64", 2)
    expected = (PENALTIES[name][1](exact(x))[1] * exact(v)).sum()
    assert_close(run(mode, differentiation.forward_derivative(made(name)), x, v), expected, 1e-10)


# TensorFlow has no gradient of the forward-mode derivative of a function that is already traced.
@pytest.mark.parametrize("size", [35, 2**18, 2**19], ids=["small", "custom gradient in eager", "cluster in a graph"])
@pytest.mark.usefixtures("cluster_from_half_a_million")
@pytest.mark.parametrize(
    ("composition", "mode"),
    [(composition, mode) for composition in SECOND_DERIVATIVES for mode in MODES]
    + [(composition, "traced before") for composition in SECOND_DERIVATIVES if composition != "reverse over forward"],
)
@elementwise
@pytest.mark.light(name=["l1_l2"], mode=["graph"], size=[2**19])
@pytest.mark.light(name=["l1_l2"], composition=["reverse over reverse"])
@pytest.mark.light(mode=["eager"], size=[35])
def test_any_composition_of_forward_and_reverse_mode(name, composition, mode, size):
    """The Hessian is 2 l2 times the identity."""
    penalty = made(name)
    l2 = penalty.get_config().get("l2", 0.0)
    x, v = normal((size,), "float64", 1), normal((size,), "float64", 2)
    if mode == "traced before":
        penalty, mode = tf.function(penalty, autograph=False), "eager"
        penalty(x)
    expected = 2 * l2 * (np.square(v).sum() if composition == "forward over forward" else v.numpy())
    actual = run(mode, SECOND_DERIVATIVES[composition](penalty), x, v)
    assert_close(np.zeros_like(expected) if actual is None else actual, expected, 1e-12)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("signature", [(None, None), (None, 64), (40, None), None], ids=str)
@penalties
@pytest.mark.light(mode=["graph"], signature=[(None, None)])
@pytest.mark.light(signature=[(None, None)], name=["rows"])
def test_unknown_static_shapes(name, signature, mode):
    x = normal((40, 64))
    jit_compile = mode == "xla" or None
    function = tf.function(value_and_gradient(made(name)), [tf.TensorSpec(signature)], jit_compile=jit_compile)
    assert_right(function(x), name, x)


@penalties
def test_autograph_converts_no_penalty(name):
    """There is nothing to convert, and the conversion would add a second to a user's first step."""
    penalty = made(name)
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=penalty, input_shape=(3,))])
    converted = set()

    def step(x):
        return penalty(x), tfk.penalties(model)

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_name.startswith("tf__"):
            converted.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        tf.function(step).get_concrete_function(tf.TensorSpec((4, 3)))
    finally:
        sys.setprofile(None)
    assert converted == {"tf__step", "tf__wrapper"}  # the wrapper of `do_not_convert`


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@penalties
def test_halves_neither_overflow_nor_vanish(name, dtype):
    x = normal((1024, 1024), dtype)
    value, gradient = value_and_gradient(made(name))(x)
    assert value.dtype == tf.float32
    assert_close(value, PENALTIES[name][1](exact(x))[0], 1e-5)
    assert np.all(np.isfinite(exact(gradient)))


@elementwise
def test_mixed_float16_activity_penalty(name):
    """tf_keras then divides the activity penalty by the batch size: the sum exceeds 65504, and the mean does not."""
    arguments = {"kernel_initializer": "ones", "activity_regularizer": made(name), "dtype": "mixed_float16"}
    model = tf_keras.Sequential([tf_keras.layers.Dense(2000, input_shape=(20,), **arguments)])
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    x, y = np.ones((8, 20), "float32"), np.full((8, 2000), 20, "float32")
    total, _ = PENALTIES[name][1](np.full((8, 2000), 20.0))
    assert total > 65504
    history = model.fit(x, y, batch_size=8, epochs=1, verbose=0).history
    assert_close(history["loss"][0], total / 8, 2e-6)


MATRIX = [[1.0, 2.0], [3.0, -4.0]]
CONVERTIBLE = {
    "list": MATRIX,
    "array": np.array(MATRIX),
    "variable": tf.Variable(MATRIX),
    "indexed slices": tf.IndexedSlices(tf.constant(MATRIX[::-1]), tf.constant([1, 0]), tf.constant([2, 2])),
}


@pytest.mark.parametrize("x", CONVERTIBLE.values(), ids=CONVERTIBLE)
@penalties
def test_takes_whatever_converts_to_a_tensor(name, x):
    assert_close(made(name)(x), PENALTIES[name][1](np.array(MATRIX))[0], 1e-6)


@pytest.mark.parametrize("batch_size", [4, None])
@penalties
def test_keras_tensors(name, batch_size):
    """A penalty on a symbolic input, as in `model.add_loss(L2()(x))`, records ops that a config can hold."""
    inputs = tf_keras.Input((3,), batch_size=batch_size)
    model = tf_keras.Model(inputs, made(name)(inputs))
    x = normal((4, 3))
    for each in (model, tf_keras.Model.from_config(model.get_config())):
        assert_close(each(x), PENALTIES[name][1](exact(x))[0], 2e-6)


@pytest.mark.parametrize("cls", [cls for cls in (*KERAS_PENALTIES, *NEW_PENALTIES) if cls is not tfk.Sum])
def test_other_dtypes_and_tensors_that_are_not_dense_are_refused(cls):
    x = tf.constant([[1, 0], [0, 1]], tf.int8)
    for dtype in ("int8", "uint8", "int32", "int64", "uint64", "bool", "string", "qint8"):
        bad = tf.bitcast(x, dtype) if dtype == "qint8" else tf.as_string(x) if dtype == "string" else tf.cast(x, dtype)
        message = rf"Inputs to {cls.__name__} must be of a floating.*Received: dtype {dtype}, shape \(2, 2\)"
        with pytest.raises(TypeError, match=message):
            cls()(bad)
    with pytest.raises(TypeError, match=r"must be dense.*SparseTensor of dtype float32, shape \(3, 3\)"):
        cls()(tf.sparse.eye(3))
    if cls not in (tfk.L1, tfk.L2, tfk.L1L2):
        with pytest.raises(TypeError, match=r"must be dense.*RaggedTensor of dtype float32"):
            cls()(tf.ragged.constant([[1.0], [2.0, 3.0]]))


@modes
@elementwise
def test_a_ragged_tensor_is_summed_over_its_values(name, mode):
    values = normal((6, 2), "float16")
    of_ragged = value_and_gradient(lambda values: made(name)(tf.RaggedTensor.from_row_lengths(values, [3, 0, 1, 2])))
    value, gradient = run(mode, of_ragged, values)
    assert value.dtype == tf.float32
    assert_right((value, gradient), name, values, TOLERANCES["float16"])


@pytest.mark.parametrize(("name", "terms"), [("l1", 1), ("l2", 1), ("l1_l2", 2)])
def test_activity_penalty_of_a_ragged_output(name, terms):
    layer = tf_keras.layers.Embedding(10, 4, embeddings_initializer="ones", activity_regularizer=name)
    model = tf_keras.Sequential([tf_keras.layers.Input((None,), ragged=True, dtype=tf.int64), layer])
    model(tf.ragged.constant([[1, 2], [3]], dtype=tf.int64))
    np.testing.assert_allclose(model.losses, [0.01 * terms * 12 / 2], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@in_keras
def test_bad_numbers_propagate_as_in_the_built_in(builtin, name, bad):
    x = normal((5, 4)).numpy()
    x[2, 1] = bad
    expected, actual = (value_and_gradient(PENALTIES[name][0](module))(tf.constant(x)) for module in (builtin, tfk))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [tf.constant, tf.ragged.constant])
def test_a_zero_factor_leaves_its_term_out_of_l1_l2_only(builtin, kind):
    x = kind([[np.nan, 1.0], [1.0, 2.0]])
    for module in (builtin, tfk):
        assert float(module.L1L2(0, 0)(x)) == 0
        assert np.isnan(module.L1L2(0.1, 0)(x))
        assert np.isnan(module.L1(0)(x))
        assert np.isnan(module.L2(0)(x if module is tfk else x[0]))  # the built-in L2 refuses ragged tensors
    assert tfk.L1L2()(tf.constant([1.0], tf.float64)).dtype == tf.float64
    assert float(tfk.L1L2(l1=0.3)(x[1])) == float(tfk.L1(0.3)(x[1]))
    assert float(tfk.L1L2(l2=0.3)(x[1])) == float(tfk.L2(0.3)(x[1]))


@pytest.mark.parametrize("cls", [tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer, tfk.SampledOrthogonalRegularizer])
@pytest.mark.parametrize(("dtype", "factor", "size"), FACTORS)
def test_factors_of_any_size(cls, dtype, factor, size):
    """If the product is in range, it is right, however large or small the factor is."""
    name = "factor" if "Orthogonal" in cls.__name__ else "l2" if cls is tfk.L2 else "l1"
    expected = factor * {"factor": 1, "l1": 4 * size, "l2": 4 * size * size}[name]
    if expected < float(tf.as_dtype(dtype).max):
        assert float(cls(**{name: factor})(tf.fill([2, 2], tf.constant(size, dtype)))) == pytest.approx(expected, 1e-5)
    assert float(tfk.L1L2(1.0, 3e38)([[0.1]])) == pytest.approx(3e36, rel=1e-5)


@modes
@pytest.mark.parametrize("size", [100, 2**19])
@pytest.mark.usefixtures("cluster_from_half_a_million")
def test_small_factors_times_small_elements_do_not_vanish(size, mode):
    x = tf.fill([size], 1e-3)
    assert_close(run(mode, tfk.L1L2(1e-33, 1e-33), x), 1e-33 * size * (1e-3 + 1e-6), 1e-5)
