"""Factors that are variables: read at each call, plain numbers in files; and the L2 that is a weight decay."""

import copy
import json
import pickle
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import h5py
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, assert_close, compiled, value_and_gradient
from libraries import KERAS3, needs_keras3

import tfk_regularizers as tfk
from tfk_regularizers._penalties import execution


class Case(NamedTuple):
    """A class, the names of its factors that are variables, its other arguments and its truth in NumPy."""

    cls: type
    live: tuple[str, ...]
    fixed: dict
    truth: Callable

    def make(self, factor):
        """The regularizer with factor(name) for each live factor."""
        return self.cls(**{name: factor(name) for name in self.live}, **self.fixed)

    def expected(self, x, numbers):
        """Value and gradient on x for the numbers of the live factors, in float64."""
        return self.truth(np.asarray(x, np.float64), *(numbers[name] for name in self.live))


ROWS, COLUMNS = ((lambda x, factor, mode=mode: oracles.orthogonal(x, factor, mode)) for mode in ("rows", "columns"))
CASES = {
    "l1": Case(tfk.L1, ("l1",), {}, oracles.l1),
    "l2": Case(tfk.L2, ("l2",), {}, oracles.l2),
    "l1_l2.l1": Case(tfk.L1L2, ("l1",), {"l2": 0.75}, lambda x, l1: oracles.l1_l2(x, l1, 0.75)),
    "l1_l2.l2": Case(tfk.L1L2, ("l2",), {"l1": 0.375}, lambda x, l2: oracles.l1_l2(x, 0.375, l2)),
    "l1_l2.both": Case(tfk.L1L2, ("l1", "l2"), {}, oracles.l1_l2),
    "rows": Case(tfk.OrthogonalRegularizer, ("factor",), {}, ROWS),
    "columns": Case(tfk.OrthogonalRegularizer, ("factor",), {"mode": "columns"}, COLUMNS),
    # Of no more rows than it draws it takes all: the one case in which its value is known.
    "sampled": Case(tfk.SampledOrthogonalRegularizer, ("factor",), {"sample_size": 2000}, ROWS),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
TERMS = tuple(name for name in CASES if name.startswith("l"))
modes = pytest.mark.parametrize("mode", MODES)

KERAS = {"tf_keras": tf_keras} | ({} if KERAS3 is None else {"keras3": KERAS3})
kerases = pytest.mark.parametrize("keras", KERAS.values(), ids=KERAS.keys())

pytestmark = [
    # tf_keras says this on every save to .h5.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    # Keras 3 up to 3.15 has variables whose __array__ does not take NumPy 2's keyword `copy`.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


def strength(value=0.25, dtype=tf.float32, **arguments):
    return tf.Variable(value, trainable=False, dtype=dtype, **arguments)


def matrix(*shape, dtype="float32"):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


# --- a call -----------------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(
    ("mode", "shape"),
    [*((mode, (7, 5)) for mode in MODES), ("graph", (1100, 240))],
    ids=[*MODES, "graph-large"],  # large enough for fused sums and for blocks
)
def test_read_at_every_call(case, mode, shape, monkeypatch):
    monkeypatch.setattr(execution, "FUSED_IN_GRAPH_FROM", 2**18)
    variables = {name: strength() for name in case.live}
    traces = []

    def counted(x):
        traces.append(1)
        return value_and_gradient(case.make(variables.get))(x)

    x = matrix(*shape)
    function = compiled(mode, counted)
    for number in (0.0, 0.3, 1.7):
        numbers = {name: number + i for i, name in enumerate(case.live)}
        for name, variable in variables.items():
            variable.assign(numbers[name])
        for found, expected in zip(function(x), case.expected(x, numbers), strict=True):
            assert_close(found, expected, 2e-5)
    assert len(traces) == (3 if mode == "eager" else 1)


EPSILON = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-22, "float64": 2**-50, "complex64": 2**-22}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in CASES for dtype in EPSILON if dtype != "complex64" or name in TERMS],
)
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.light(mode=["eager"])
@pytest.mark.light(dtype=["float32"])
def test_equals_the_number(name, dtype, mode):
    """A float32 variable and the float that it holds: the same value and gradient to the last digits of x's dtype."""
    case = CASES[name]
    variable = strength(0.3)
    x = matrix(7, 5, dtype=dtype)
    live = compiled(mode, value_and_gradient(case.make(lambda _: variable)))(x)
    number = compiled(mode, value_and_gradient(case.make(lambda _: float(variable.numpy()))))(x)
    for found, expected in zip(live, number, strict=True):
        assert found.dtype == expected.dtype
        in_x = found.dtype == x.dtype
        assert_close(found, expected, EPSILON[dtype if in_x else "float32"])


@cases
@pytest.mark.parametrize(
    ("dtype", "number"),
    [("float16", 40000.0), ("float16", 6e-8), ("bfloat16", 0.1), ("float64", 0.1)],
    ids=str,
)
def test_dtype_of_the_variable(case, dtype, number):
    variable = strength(number, dtype)
    x = matrix(7, 5)
    live = value_and_gradient(case.make(lambda _: variable))(x)
    for found, expected in zip(live, case.expected(x, dict.fromkeys(case.live, float(variable.numpy()))), strict=True):
        assert_close(found, expected, 1e-5)


@cases
@modes
def test_gradient_for_the_variable(case, mode):
    """The penalty is linear in each factor; a tape does not watch a variable that is not trainable by itself."""
    variables = {name: strength(0.3) for name in case.live}
    regularizer = case.make(variables.get)

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(list(variables.values()))
            value = regularizer(x)
        return tape.gradient(value, list(variables.values()))

    x = matrix(7, 5)
    zeros = dict.fromkeys(case.live, 0.0)
    at_zero, _ = case.expected(x, zeros)
    for name, gradient in zip(case.live, compiled(mode, gradients)(x), strict=True):
        at_one, _ = case.expected(x, zeros | {name: 1.0})
        assert_close(gradient, at_one - at_zero, 1e-5)


@modes
@pytest.mark.parametrize(
    ("l1", "l2", "x", "expected"),
    [
        (0, 0, np.nan, 0.0),
        (strength(0.0), 0, np.nan, np.nan),
        (0, strength(0.0), np.nan, np.nan),
        (strength(0.0), strength(0.0), np.nan, np.nan),
        (0, strength(1.0), np.inf, np.inf),  # 0 * inf is NaN
        (strength(0.0), strength(1.0), np.inf, np.nan),
        (strength(1.0), 0, 1e30, 1e30),  # its square is inf
        (strength(1.0), strength(0.0), 1e30, np.nan),
        (strength(1.0), 0.0, 1e30, 1e30),
    ],
    ids=["0-0", "live0-0", "0-live0", "live0-live0", "0-live", "live0-live", "live-0", "live-live0", "live-0.0"],
)
def test_zero_leaves_a_term_out_if_it_is_a_number(mode, l1, l2, x, expected):
    value = compiled(mode, tfk.L1L2(l1, l2))(tf.constant([x]))
    np.testing.assert_allclose(value, np.float32(expected), rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", pytest.param("sampled", marks=pytest.mark.heavy)])
def test_float16_activity(name):
    """Under mixed precision an activity penalty meets float16 tensors of unknown batch size."""
    case, variable = CASES[name], strength(0.5)
    function = tf.function(case.make(lambda _: variable), input_signature=[tf.TensorSpec([None, 5], tf.float16)])
    x = matrix(7, 5, dtype="float16")
    for number in (0.5, 2.0):
        variable.assign(number)
        value = function(x)
        assert value.dtype == tf.float32
        assert_close(value, case.expected(x, dict.fromkeys(case.live, number))[0], 1e-4)


class Own(tf_keras.layers.Layer):
    """A layer with the factor of its penalties among its weights."""

    def build(self, shape):
        constant = tf_keras.initializers.Constant(1e-8)  # 0 in float16
        self.strength = self.add_weight("strength", (), "float32", constant, trainable=False)
        self.activity_regularizer = tfk.L1(self.strength)

    def call(self, x):
        self.add_loss(tfk.L2(self.strength)(tf.ones([3], tf.float32)))
        return x


def test_weight_of_a_layer_under_mixed_precision():
    """Keras reads such a weight as float16 inside the layer."""
    layer = Own(dtype="mixed_float16")
    layer(tf.ones((1, 5)))
    np.testing.assert_allclose(sorted(map(float, layer.losses)), [3e-8, 5e-8], rtol=1e-6)


# --- bad variables ----------------------------------------------------------------------------------------------------

BAD = {
    "vector": lambda: strength([0.1]),
    "matrix_of_one": lambda: strength([[0.1]]),
    "shape_unknown": lambda: strength(0.1, shape=tf.TensorShape(None)),
    "int": lambda: strength(1, tf.int32),
    "bool": lambda: strength(True, tf.bool),
    "complex": lambda: strength(1, tf.complex64),
    "trainable": lambda: tf.Variable(0.1),
    "of_keras3": lambda: KERAS["keras3"].Variable(0.1, trainable=False),
}


SCHEDULES = {
    "schedule": lambda: tf_keras.optimizers.schedules.PolynomialDecay(0.1, 10),
    "function": lambda: lambda epoch: 0.1 * epoch,
    "class": lambda: tf_keras.optimizers.schedules.PolynomialDecay,
} | ({} if KERAS3 is None else {"of_keras3": lambda: KERAS3.optimizers.schedules.PolynomialDecay(0.1, 10)})


@cases
@pytest.mark.parametrize("bad", BAD)
def test_bad_variable(case, bad):
    if bad == "of_keras3" and "keras3" not in KERAS:
        pytest.skip("tf.keras is tf_keras")
    variable = BAD[bad]()
    for name in case.live:
        with pytest.raises(ValueError, match=f"argument `{name}`") as caught:
            case.make(lambda other, name=name: variable if other == name else 0.1)
        assert "a scalar floating tf.Variable(..., trainable=False)" in str(caught.value)
        assert f"Received: {name}=<" in str(caught.value)
        assert bad != "trainable" or "dtype float32, trainable=True>" in str(caught.value)
        regularizer = case.make(lambda _: 0.1)
        before = regularizer.get_config()
        with pytest.raises(ValueError, match=f"argument `{name}`") as later:
            setattr(regularizer, name, variable)
        assert str(later.value) == str(caught.value)
        assert regularizer.get_config() == before


@cases
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_as_a_factor(case, schedule):
    """It would be read once if it were taken for a number; the message says what does follow it."""
    for name in case.live:
        with pytest.raises(ValueError, match=rf"argument `{name}`\. Expected a finite number") as caught:
            case.make(lambda other, name=name: schedule() if other == name else 0.1)
        assert "`fit(callbacks=[RegularizationScheduler(schedule)])`" in str(caught.value)
        regularizer = case.make(lambda _: 0.1)
        with pytest.raises(ValueError, match="RegularizationScheduler"):
            setattr(regularizer, name, schedule())
        assert getattr(regularizer, name) == 0.1


TENSORS = {
    "number": (lambda: tf.constant(0.5), 0.5),
    "int": (lambda: tf.constant(2), 2.0),
    "vector": (lambda: tf.constant([0.1]), None),
    "nan": (lambda: tf.constant(np.nan), None),
    "text": (lambda: tf.constant("0.1"), None),
    "complex": (lambda: tf.constant(1j), None),
}


@cases
@pytest.mark.parametrize(("tensor", "number"), TENSORS.values(), ids=TENSORS)
def test_tensor(case, tensor, number):
    """A constant that is one finite number is taken as that number, by the constructor and later."""

    def assigned(name):
        regularizer = case.make(lambda _: 0.1)
        setattr(regularizer, name, tensor())
        return regularizer

    def constructed(name):
        return case.make(lambda other: tensor() if other == name else 0.1)

    for name in case.live:
        for make in (assigned, constructed):
            if number is None:
                with pytest.raises(ValueError, match=f"argument `{name}`. Expected a finite number"):
                    make(name)
            else:
                assert type(getattr(make(name), name)) is float
                assert make(name).get_config()[name] == number


def test_tensor_of_a_traced_function():
    """It has no number while it is traced, and must not get out of there."""
    regularizer = tfk.L1(0.5)

    def set_later(factor):
        regularizer.l1 = factor

    for function in (tfk.L1, set_later):
        with pytest.raises(ValueError, match=r"argument `l1`\. Expected a finite number"):
            tf.function(function, autograph=False)(tf.constant(0.5))
    assert regularizer.l1 == 0.5


def saved(file):
    return lambda model, folder: model.save(folder / file)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(
    "copied",
    [
        *map(saved, ("model.keras", "model.h5", "model")),
        lambda model, _: tf_keras.models.clone_model(model),
        lambda model, _: copy.deepcopy(model),
        lambda model, _: pickle.dumps(model),
        lambda model, _: model.to_json(),
        lambda model, _: copy.deepcopy(model.layers[0].kernel_regularizer),
        lambda model, _: pickle.dumps(model.layers[0].kernel_regularizer),
        lambda model, _: tfk.serialize(model.layers[0].kernel_regularizer),
    ],
    ids=[
        *("keras", "h5", "saved_model", "clone_model", "deepcopy_model", "pickle_model", "json"),
        *("deepcopy", "pickle", "serialize"),
    ],
)
@pytest.mark.light(number=[np.inf])
def test_no_finite_number_is_neither_saved_nor_copied(copied, number, tmp_path):
    """What could not be opened is not written. Training goes on, and so do checkpoints."""
    variable = strength()
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=tfk.L1(variable), input_shape=(3,))])
    model.compile("sgd", "mse")
    variable.assign(number)
    with pytest.raises(ValueError, match=rf"factor `l1` of a regularizer L1 is {number}.*Expected a finite number"):
        copied(model, tmp_path)
    # Keras opens an .h5 file before it asks for the config.
    assert [path for path in tmp_path.iterdir() if path.suffix != ".h5"] == []
    assert repr(model.layers[0].kernel_regularizer) == f"L1(l1=<variable: {number}>)"
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    variable.assign(0.5)
    copied(model, tmp_path)
    checkpoint.read(path).assert_consumed()
    np.testing.assert_equal(float(variable), number)


# --- what a regularizer writes of itself ------------------------------------------------------------------------------

COPIES = {
    "from_config": lambda regularizer: type(regularizer).from_config(regularizer.get_config()),
    "serialize": lambda regularizer: tfk.deserialize(tfk.serialize(regularizer)),
    "json": lambda regularizer: type(regularizer)(**json.loads(json.dumps(regularizer.get_config()))),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda regularizer: pickle.loads(pickle.dumps(regularizer)),
}


@cases
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_config_holds_the_current_number(case, dtype):
    variables = {name: strength(0.1, dtype) for name in case.live}
    regularizer = case.make(variables.get)
    for number in (0.1, 0.3):
        for variable in variables.values():
            variable.assign(number)
        config = regularizer.get_config()
        for name in case.live:
            assert type(config[name]) is float
            assert config[name] == float(strength(number, dtype).numpy())
        assert config | case.fixed == config
        written = {name: f"<variable: {value}>" if name in case.live else repr(value) for name, value in config.items()}
        arguments = ", ".join(f"{name}={value}" for name, value in written.items())
        assert repr(regularizer) == f"{case.cls.__name__}({arguments})"


def test_config_and_repr_inside_a_traced_function():
    """What code prints while it is traced."""
    regularizer = tfk.L2(strength(0.25))
    found = []
    tf.function(lambda: found.extend([regularizer.get_config(), repr(regularizer)]), autograph=False)()
    assert found == [{"l2": 0.25}, "L2(l2=<variable: 0.25>)"]


def test_config_and_repr_before_the_variable_has_a_value():
    """One that is made while a function is traced gets its value when the trace is done."""
    made, shown = [], []

    def function():
        if not made:
            made.append(tfk.L2(strength(lambda: 0.25)))
            shown.append(repr(made[0]))
            with pytest.raises(ValueError, match=r"factor `l2` .* cannot be read here.*initialized"):
                made[0].get_config()
        return made[0](tf.ones([2]))

    assert float(tf.function(function, autograph=False)()) == 0.5
    assert shown == ["L2(l2=<a variable of shape (), dtype float32, trainable=False>)"]
    assert repr(made[0]) == "L2(l2=<variable: 0.25>)"


def test_repr_of_what_is_not_there():
    class Unfinished(tfk.L2):
        def __init__(self):
            self.power = 3

    assert repr(Unfinished()) == "Unfinished(power=3)"


@cases
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
def test_copy_holds_the_current_number(case, copied):
    variables = {name: strength(0.1) for name in case.live}
    regularizer = case.make(variables.get)
    for variable in variables.values():
        variable.assign(0.3)
    other = copied(regularizer)
    before = regularizer.get_config()
    for variable in variables.values():
        variable.assign(9.0)
    assert type(other) is case.cls
    assert other.get_config() == before
    assert all(type(getattr(other, name)) is float for name in case.live)
    assert regularizer.get_config() == before | dict.fromkeys(case.live, 9.0)
    x = matrix(7, 5)
    assert_close(other(x), case.expected(x, {name: before[name] for name in case.live})[0], 1e-5)


# --- models -----------------------------------------------------------------------------------------------------------

CASES_IN_FILES = [name for name in CASES if name != "sampled"]  # with that one a file needs the package


def build(make, names=tuple(CASES), keras=tf_keras):
    """A stack of layers without bias, one for each case; make(case) gives its regularizer."""
    layers = [
        keras.layers.Dense(6, use_bias=False, kernel_regularizer=make(CASES[name]), name=name.replace(".", "_"))
        for name in names
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    random = np.random.default_rng(2)
    model.set_weights([random.normal(size=(6, 6)).astype("float32") for _ in names])
    return model


class Live(NamedTuple):
    """A model and the variables in it, in the order of its layers."""

    model: object
    variables: list

    def assign(self, number):
        """A different value for each variable, and none what it was built with."""
        for i, variable in enumerate(self.variables):
            variable.assign(number * (1 + i / 8))

    def numbers(self, case_index):
        """The current numbers of the live factors of a case."""
        start = sum(len(CASES[name].live) for name in list(CASES)[:case_index])
        live = list(CASES.values())[case_index].live
        return {name: float(v.numpy()) for name, v in zip(live, self.variables[start:], strict=False)}


def build_live(names=tuple(CASES), keras=tf_keras):
    variables = []

    def new_strength(_):
        variables.append(strength())
        return variables[-1]

    return Live(build(lambda case: case.make(new_strength), names, keras), variables)


def configs(model):
    """Config of the regularizer of each layer."""
    return [layer.kernel_regularizer.get_config() for layer in model.layers if layer.weights]


def held(model):
    """The factors as the regularizers hold them."""
    return [
        getattr(layer.kernel_regularizer, name)
        for layer in model.layers
        if layer.weights
        for name in ("l1", "l2", "factor")
        if hasattr(layer.kernel_regularizer, name)
    ]


def losses(model):
    return [float(loss) for loss in model.losses]


@kerases
@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit_compile"])
@pytest.mark.light(jit=[False], keras=[tf_keras])
def test_fit(keras, jit):
    """Input 0 has no gradient for the data, so each kernel moves by its penalty alone, as written here in NumPy."""
    live = build_live(keras=keras)
    model, rate = live.model, 0.125
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit)
    kernels = [kernel.astype("float64") for kernel in model.get_weights()]

    def truth():
        """The loss at the current kernels and numbers, where 1 is that of the data, and the gradients."""
        cases = enumerate(zip(CASES.values(), kernels, strict=True))
        values, gradients = zip(*(case.expected(kernel, live.numbers(i)) for i, (case, kernel) in cases), strict=True)
        return 1 + sum(values), gradients

    expected = []

    def on_epoch_begin(epoch, logs=None):
        value, gradients = truth()
        expected.append(value)
        kernels[:] = [kernel - rate * gradient for kernel, gradient in zip(kernels, gradients, strict=True)]

    def on_epoch_end(epoch, logs=None):
        live.assign([0.0, 0.5, 0.03125][epoch])

    live.assign(0.25)
    moves = keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin, on_epoch_end=on_epoch_end)
    data = np.zeros((4, 6), "float32"), np.ones((4, 6), "float32")
    history = model.fit(*data, batch_size=4, epochs=3, verbose=0, callbacks=[moves]).history["loss"]
    np.testing.assert_allclose(history, expected, rtol=1e-5)
    assert len(set(history)) == 3
    for found, kernel in zip(model.get_weights(), kernels, strict=True):
        np.testing.assert_allclose(found, kernel, rtol=1e-5, atol=1e-5)
    for number in (0.03125, 2.0):
        live.assign(number)
        assert model.evaluate(*data, verbose=0) == pytest.approx(truth()[0], rel=1e-5)


def test_assigned_within_an_epoch():
    """After a batch, and before the next one, without another trace."""
    variable = strength(0.0)
    layer = tf_keras.layers.Dense(1, "linear", False, "ones", kernel_regularizer=tfk.L1(variable), input_shape=(1,))
    model = tf_keras.Sequential([layer])
    model.compile(tf_keras.optimizers.SGD(1.0), "mse")
    seen, traces = [], set()

    def on_train_batch_end(batch, logs):
        traces.add(model.train_function.experimental_get_tracing_count())
        seen.append(float(layer.kernel.numpy()[0, 0]))
        variable.assign(2.0 ** -(batch + 2))

    moves = tf_keras.callbacks.LambdaCallback(on_train_batch_end=on_train_batch_end)
    model.fit(np.zeros((4, 1)), np.zeros((4, 1)), 1, verbose=0, callbacks=[moves])
    assert seen == [1.0, 0.75, 0.625, 0.5625]
    assert len(traces) == 1


class TestActivityRegularizer:
    """It is called inside the traced call of the model, and Keras divides by the batch size.

    Keras does not track one that is given to the constructor of a layer, so it is assigned.
    """

    x, y = np.ones((4, 3), "float32"), np.full((4, 2), 3.0, "float32")

    @pytest.fixture
    def variable(self):
        return strength(0.5)

    @pytest.fixture
    def model(self, variable):
        inputs = tf_keras.Input((3,))
        layer = tf_keras.layers.Dense(2, kernel_initializer="ones")
        layer.activity_regularizer = tfk.L1(variable)
        model = tf_keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse")
        return model

    def test_read_at_every_call(self, model, variable):
        for number in (0.5, 2.0):
            variable.assign(number)
            assert model.evaluate(self.x, self.y, verbose=0) == pytest.approx(number * 6)

    @pytest.mark.parametrize("file", ["model.keras", "model.h5", "model"])
    def test_saved_and_loaded(self, model, variable, file, tmp_path):
        variable.assign(2.0)
        model.save(tmp_path / file)
        variable.assign(0.0)
        loaded = tf_keras.models.load_model(tmp_path / file)
        assert loaded.evaluate(self.x, self.y, verbose=0) == pytest.approx(12)
        assert type(loaded.layers[-1].activity_regularizer.l1) is float

    def test_checkpoint(self, model, variable, tmp_path):
        checkpoint = tf.train.Checkpoint(model=model)
        path = checkpoint.write(str(tmp_path / "checkpoint"))
        variable.assign(2.0)
        checkpoint.read(path).assert_consumed()
        assert float(variable) == 0.5


@pytest.mark.parametrize(
    "layer",
    [
        lambda k: k.layers.TimeDistributed(k.layers.Dense(2, kernel_regularizer=tfk.L2(STRENGTH))),
        lambda k: k.layers.RNN(k.layers.LSTMCell(2, kernel_regularizer=tfk.L2(STRENGTH))),
        lambda k: k.layers.GRU(2, recurrent_regularizer=tfk.L2(STRENGTH)),
        lambda k: k.layers.SeparableConv1D(2, 2, depthwise_regularizer=tfk.L2(STRENGTH)),
        lambda k: k.layers.BatchNormalization(gamma_regularizer=tfk.L2(STRENGTH)),
        lambda k: k.layers.MultiHeadAttention(2, 3, kernel_regularizer=tfk.L2(STRENGTH)),
    ],
    ids=["TimeDistributed", "RNN", "GRU", "SeparableConv1D", "BatchNormalization", "MultiHeadAttention"],
)
@kerases
def test_layer(layer, keras):
    layer = layer(keras)
    x = tf.ones((1, 3, 2))
    layer(x, x) if isinstance(layer, keras.layers.MultiHeadAttention) else layer(x)
    STRENGTH.assign(0.5)
    before = sum(losses(layer))
    STRENGTH.assign(1.5)
    assert sum(losses(layer)) == pytest.approx(3 * before)
    assert before > 0


STRENGTH = strength()


def test_set_regularizers():
    """Also where a constructor would have copied the regularizer through its config, as that of Bidirectional does."""
    model = tf_keras.Sequential([tf_keras.layers.Bidirectional(tf_keras.layers.GRU(2))])
    model.build((None, 3, 2))
    variable = strength(0.5)
    tfk.set_regularizers(model, kernel_regularizer=tfk.L2(variable))
    before = sum(losses(model))
    variable.assign(1.5)
    assert sum(losses(model)) == pytest.approx(3 * before)
    assert before > 0


# --- weights ----------------------------------------------------------------------------------------------------------


def in_weight_file(model, path):
    found = {}
    model.save_weights(path)
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


@kerases
def test_weights_are_those_without_it(keras, tmp_path):
    live, plain = build_live(keras=keras).model, build(lambda case: case.make(lambda _: 0.25), keras=keras)
    for attribute in ("weights", "trainable_weights", "non_trainable_weights", "variables"):
        found, expected = ([v.name for v in getattr(model, attribute)] for model in (live, plain))
        assert found == expected
    assert len(live.weights) == len(CASES)
    files = [in_weight_file(live, tmp_path / "live.weights.h5"), in_weight_file(plain, tmp_path / "plain.weights.h5")]
    assert files[0].keys() == files[1].keys()
    for name, value in files[0].items():
        np.testing.assert_array_equal(value, files[1][name])
    plain.load_weights(tmp_path / "live.weights.h5")
    live.load_weights(tmp_path / "plain.weights.h5")


def test_tf_format_weights(tmp_path):
    live, plain = build_live(), build(lambda case: case.make(lambda _: 0.25))
    live.model.save_weights(tmp_path / "live", save_format="tf")
    saved = live.model.get_weights()
    plain.set_weights([2 * weight for weight in saved])
    plain.save_weights(tmp_path / "plain", save_format="tf")
    live.assign(0.4)
    live.model.load_weights(tmp_path / "plain").expect_partial()
    plain.load_weights(tmp_path / "live").expect_partial()
    for was, found, other in zip(saved, live.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(found, 2 * was)
        np.testing.assert_array_equal(other, was)
    assert float(live.variables[0]) == np.float32(0.4)  # a file without it leaves it as it is
    live.model.load_weights(tmp_path / "live").assert_consumed()
    assert float(live.variables[0]) == 0.25


def test_checkpoint(tmp_path):
    live, other = build_live(), build_live()
    live.assign(0.4)
    saved = [float(variable) for variable in live.variables]
    path = tf.train.Checkpoint(model=live.model).write(str(tmp_path / "checkpoint"))
    live.assign(3.0)
    for restored in (live, other):
        tf.train.Checkpoint(model=restored.model).read(path).assert_consumed()
        assert [float(variable) for variable in restored.variables] == saved
        assert losses(restored.model) == losses(live.model)


def test_checkpoint_of_a_regularizer(tmp_path):
    """Also of one set on a built model, and of a copy that is made live again."""
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer="l1", input_shape=(3,))])
    regularizer = copy.deepcopy(tfk.L2(strength()))
    regularizer.l2 = variable = strength(0.5)
    tfk.set_regularizers(model, kernel_regularizer=regularizer)
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    variable.assign(3.0)
    checkpoint.read(path).assert_consumed()
    assert float(variable) == 0.5


@tf_keras.saving.register_keras_serializable("test_live_factors")
class Annealed(tfk.L1):
    """A user's subclass that makes its factor's variable itself."""

    def __init__(self, l1=0.25):
        super().__init__(strength(l1))


@tf_keras.saving.register_keras_serializable("test_live_factors")
class Counting(tfk.L2):
    """One that holds a variable of another kind, and reads it."""

    def __init__(self, l2=0.25):
        super().__init__(l2)
        self.calls = strength(1.0)

    def __call__(self, x):
        return super().__call__(x) * self.calls


class TestSubclass:
    @pytest.fixture
    def model(self):
        layers = [
            tf_keras.layers.Dense(2, kernel_regularizer=make(), kernel_initializer="ones")
            for make in (Annealed, Counting)
        ]
        model = tf_keras.Sequential([tf_keras.Input((3,)), *layers])
        model.compile("sgd", "mse")
        return model

    @pytest.mark.parametrize("file", ["model.keras", "model.h5", "model"])
    def test_saved_and_loaded(self, model, file, tmp_path):
        """In a SavedModel its variables are carried too, and a second one is as good as the first."""
        annealed, counting = (layer.kernel_regularizer for layer in model.layers)
        annealed.l1.assign(0.5)
        if file == "model":
            counting.calls.assign(3.0)
        expected = losses(model)
        for name in (file, f"again_{file}"):
            model.save(tmp_path / name)
            model = tf_keras.models.load_model(tmp_path / name, {"Annealed": Annealed, "Counting": Counting})
            assert losses(model) == expected
        annealed = model.layers[0].kernel_regularizer
        annealed.l1.assign(1.0)
        assert losses(model) == [2 * expected[0], expected[1]]

    def test_saved_model_without_keras(self, model, tmp_path):
        model.save(tmp_path / "model")
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        assert sorted(float(loss()) for loss in loaded.regularization_losses) == sorted(losses(model))

    def test_checkpoint_has_its_factor_alone(self, model, tmp_path):
        """What else it holds tf_keras would not find either."""
        checkpoint = tf.train.Checkpoint(model=model)
        path = checkpoint.write(str(tmp_path / "checkpoint"))
        names = [name for name, _ in tf.train.list_variables(path) if "regularizer" in name]
        assert [name.split("/")[-3:-1] for name in names] == [["l1", ".ATTRIBUTES"]]
        model.layers[0].kernel_regularizer.l1.assign(3.0)
        checkpoint.read(path).assert_consumed()
        assert float(model.layers[0].kernel_regularizer.l1) == 0.25

    def test_loaded_number_is_no_more_in_checkpoints(self, tmp_path):
        layer = tf_keras.layers.Dense(2, kernel_regularizer=tfk.L1(strength()), input_shape=(3,))
        tf_keras.Sequential([layer]).save(tmp_path / "model", save_format="tf")
        loaded = tf_keras.models.load_model(tmp_path / "model", compile=False)
        loaded.save_weights(tmp_path / "weights", save_format="tf")
        assert not [name for name, _ in tf.train.list_variables(tmp_path / "weights") if "regularizer" in name]

    def test_all_that_a_checkpoint_has_is_restored(self, tmp_path):
        """Version 0.1 wrote every variable."""
        written = tf.train.Checkpoint(l2=strength(0.5), calls=strength(7.0)).write(str(tmp_path / "checkpoint"))
        regularizer = Counting()
        regularizer.l2 = strength()
        tf.train.Checkpoint(root=regularizer).read(written).assert_existing_objects_matched()
        assert (float(regularizer.l2), float(regularizer.calls)) == (0.5, 7.0)


# --- files ------------------------------------------------------------------------------------------------------------


FILES = ("model.keras", "model.h5", "model")


@pytest.fixture(scope="module")
def live():
    live = build_live(CASES_IN_FILES)
    live.model.compile("sgd", "mse")
    live.assign(0.4)
    return live


@pytest.fixture(scope="module")
def folder(live, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for file in FILES:
        live.model.save(folder / file)
    return folder


def assert_plain_copy(other, live):
    """The other model has plain floats, the current ones, and moves no more with the variables."""
    before = losses(live.model)
    assert losses(other) == before
    assert len(before) == len(live.model.weights)
    assert configs(other) == configs(live.model)
    assert {type(factor) for factor in held(other)} == {float}
    live.assign(7.0)
    assert losses(other) == before
    assert losses(live.model) != before
    live.assign(0.4)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.light(file=["model.keras"])
def test_loaded(live, folder, file):
    assert_plain_copy(tf_keras.models.load_model(folder / file), live)


@pytest.mark.parametrize("file", FILES)
def test_loaded_sampled(file, tmp_path):
    live = build_live(["sampled"])
    live.assign(0.4)
    live.model.save(tmp_path / file)
    assert_plain_copy(tf_keras.models.load_model(tmp_path / file, compile=False), live)


@pytest.mark.parametrize(
    "copied",
    [
        tf_keras.models.clone_model,
        lambda model: type(model).from_config(model.get_config()),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
    ids=["clone_model", "from_config", "deepcopy", "pickle"],
)
def test_copy_of_a_model(copied):
    live = build_live()
    live.model.compile("sgd", "mse")
    live.assign(0.4)
    other = copied(live.model)
    other.set_weights(live.model.get_weights())
    assert_plain_copy(other, live)


def test_saved_model_without_keras(live, folder):
    loaded = tf.saved_model.load(str(folder / "model"))
    found = sorted(float(loss()) for loss in loaded.regularization_losses)
    np.testing.assert_allclose(found, sorted(losses(live.model)), rtol=1e-6)


@pytest.mark.heavy
def test_files_open_without_the_package(live, folder, run_python):
    program = """
        import json, pathlib, sys
        import tf_keras

        for name in sys.argv[2:]:
            model = tf_keras.models.load_model(pathlib.Path(sys.argv[1]) / name)
            configs = [layer.kernel_regularizer.get_config() for layer in model.layers]
            print(json.dumps([configs, [float(loss) for loss in model.losses]]))
        assert not any(name.startswith("tfk_regularizers") for name in sys.modules)
    """
    found = [json.loads(line) for line in run_python("-c", textwrap.dedent(program), folder, *FILES).splitlines()]
    assert len(found) == 3
    for written, values in found:
        assert written == configs(live.model)
        np.testing.assert_allclose(values, losses(live.model), rtol=1e-6)


def loaded_by_keras3(model, path):
    model.save(path)
    return tf.keras.models.load_model(path)


@needs_keras3
@pytest.mark.parametrize(
    "copied",
    [
        lambda model, folder: loaded_by_keras3(model, folder / "model.keras"),
        lambda model, folder: loaded_by_keras3(model, folder / "model.h5"),
        lambda model, _: tf.keras.models.clone_model(model),
        lambda model, _: copy.deepcopy(model),
        lambda model, _: pickle.loads(pickle.dumps(model)),
    ],
    ids=["keras", "h5", "clone_model", "deepcopy", "pickle"],
)
def test_copy_of_a_keras3_model(copied, tmp_path):
    live = build_live(keras=tf.keras)
    live.assign(0.4)
    other = copied(live.model, tmp_path)
    other.set_weights(live.model.get_weights())
    assert_plain_copy(other, live)


@needs_keras3
def test_keras3_checkpoint_and_export(tmp_path):
    live = build_live(keras=tf.keras)
    live.assign(0.4)
    saved = [float(variable) for variable in live.variables]
    checkpoint = tf.train.Checkpoint(model=live.model)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    live.model.export(tmp_path / "exported", verbose=False)
    live.assign(3.0)
    checkpoint.read(path).assert_consumed()
    assert [float(variable) for variable in live.variables] == saved
    x = np.ones((2, 6), "float32")
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(x), live.model(x), rtol=1e-5)


# --- replicas ---------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_mirrored(run_python, tmp_path):
    program = """
        import pathlib, sys
        import numpy as np
        import tensorflow as tf
        import tf_keras

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

        import tfk_regularizers as tfk

        folder = pathlib.Path(sys.argv[1])
        random = np.random.default_rng(0)
        x, y = random.normal(size=(24, 5)).astype("f4"), random.normal(size=(24, 3)).astype("f4")

        def run(strategy, inside):
            new = lambda: tf.Variable(0.0, trainable=False)
            tf_keras.utils.set_random_seed(1)
            v = None if inside else new()
            with strategy.scope():
                v = new() if inside else v
                makers = [tfk.L1, tfk.L2, lambda v: tfk.L1L2(v, v), lambda v: tfk.OrthogonalRegularizer(v, "columns")]
                makers.append(lambda v: tfk.SampledOrthogonalRegularizer(v, sample_size=9))
                layers = [tf_keras.layers.Dense(5, "tanh", kernel_regularizer=make(v)) for make in makers]
                layers.append(tf_keras.layers.Dense(3, activity_regularizer=tfk.L2(v)))
                model = tf_keras.Sequential(layers)
                model.compile(tf_keras.optimizers.SGD(0.1, 0.9), "mse")
            change = lambda epoch, logs: v.assign([0.125, 0.0, 0.03125][epoch])
            callback = tf_keras.callbacks.LambdaCallback(on_epoch_end=change)
            history = model.fit(x, y, 8, 3, shuffle=False, verbose=0, callbacks=[callback]).history["loss"]
            history.append(model.evaluate(x, y, 8, verbose=0))
            assert [layer.kernel_regularizer.get_config() for layer in layers[:2]] == [{"l1": 0.03125}, {"l2": 0.03125}]
            checkpoint = tf.train.Checkpoint(model=model)
            path = checkpoint.write(str(folder / "checkpoint"))
            v.assign(5.0)
            checkpoint.read(path)
            assert float(v.numpy()) == 0.03125
            assert len(model.weights) == 2 * len(layers)
            return history, np.concatenate([w.ravel() for w in model.get_weights()]), model

        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert mirrored.num_replicas_in_sync == 2
        losses, weights, _ = run(tf.distribute.get_strategy(), False)
        for inside in (False, True):
            history, found, model = run(mirrored, inside)
            np.testing.assert_allclose(history, losses, rtol=1e-5)
            np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)
            model.save(folder / "model.keras")
            loaded = tf_keras.models.load_model(folder / "model.keras")
            assert loaded.layers[0].kernel_regularizer.l1 == 0.03125
            np.testing.assert_allclose(loaded.evaluate(x, y, 8, verbose=0), losses[-1], rtol=1e-5)
        print("same")
    """
    program = textwrap.dedent(program)
    assert "same" in run_python("-c", program, tmp_path, TF_CPP_MIN_LOG_LEVEL="3")


# --- weight decay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["sgd", "momentum"])
@kerases
def test_step_is_the_weight_decay_step(keras, momentum):
    """Against w ← w (1 - ηλ) - η ∇, in float64, with the momentum m ← μ m + ∇ + λ w of PyTorch's weight_decay."""
    rate, decay = 0.1, 0.3
    random = np.random.default_rng(3)
    x, y = random.normal(size=(8, 4)), random.normal(size=(8, 2))
    regularizer = tfk.L2.from_weight_decay(decay)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, "linear", False, kernel_regularizer=regularizer)]
    )
    model.compile(keras.optimizers.SGD(rate, momentum), "mse")
    w = model.get_weights()[0].astype("float64")
    m = np.zeros_like(w)
    for _ in range(5):
        gradient = 2 * x.T @ (x @ w - y) / y.size
        if momentum:
            m = momentum * m + gradient + decay * w
            w = w - rate * m
        else:
            w = w * (1 - rate * decay) - rate * gradient
        model.train_on_batch(x.astype("float32"), y.astype("float32"))
        np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-5, atol=1e-6)


def test_plain_sgd_decays_as_decoupled():
    """`weight_decay=` of a tf_keras optimizer does the same under plain SGD, and under no other optimizer."""
    x, y = matrix(8, 4), matrix(8, 2)

    def weights(optimizer, regularizer):
        layer = tf_keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", kernel_regularizer=regularizer)
        model = tf_keras.Sequential([layer])
        model.compile(optimizer, "mse")
        for _ in range(3):
            model.train_on_batch(x, y)
        return layer.kernel.numpy()

    for name, same in (("SGD", True), ("Adam", False)):
        optimizer = getattr(tf_keras.optimizers, name)
        penalized = weights(optimizer(0.1), tfk.L2.from_weight_decay(0.3))
        decoupled = weights(optimizer(0.1, weight_decay=0.3), None)
        assert np.allclose(penalized, decoupled, rtol=1e-5, atol=1e-6) == same


@pytest.mark.parametrize("decay", [0, 0.5, -1, True, np.float32(0.25), np.array(2), "class"], ids=repr)
def test_decay_is_halved(decay):
    cls = tfk.L2
    if decay == "class":

        class Decay(tfk.L2):
            """A user's subclass."""

        cls, decay = Decay, 0.5
    regularizer = cls.from_weight_decay(decay)
    assert type(regularizer) is cls
    assert regularizer.get_config() == {"l2": float(decay) / 2}


@pytest.mark.parametrize(
    "decay",
    [None, "0.1", np.nan, np.inf, -np.inf, 10**400, [0.1], 1j, strength(0.1), tf.Variable(0.1)],
    ids=["None", "str", "nan", "inf", "-inf", "10**400", "list", "complex", "variable", "trainable"],
)
def test_bad_decay(decay):
    """A variable among them: half of it is no variable, so it would silently be read once and never again."""
    with pytest.raises(ValueError, match=r"argument `decay`\. Expected a finite number\. Received: decay="):
        tfk.L2.from_weight_decay(decay)


def test_what_a_subclass_holds_of_its_own_is_copied_as_it_is():
    class FromStart(tfk.L2):
        def __init__(self, l2, start):
            super().__init__(l2)
            self.start, self.axes = tf.Variable(start), [0, 1]

    regularizer = FromStart(tf.Variable(0.5, trainable=False), np.ones((2, 3), "float32"))
    duplicate = copy.deepcopy(regularizer)
    assert duplicate.l2 == 0.5
    assert isinstance(duplicate.start, tf.Variable)
    assert duplicate.start.shape == (2, 3)
    assert type(regularizer.axes) is type(duplicate.axes) is list
