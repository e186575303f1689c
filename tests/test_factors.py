"""Variable factors, which are read at each call and are numbers in files and copies; and L2 as weight decay."""

import copy
import json
import pickle
import textwrap
from collections.abc import Callable
from typing import NamedTuple

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
    """A class, the names of its factors that are variables, its other arguments, and its oracle in NumPy."""

    cls: type
    names: tuple[str, ...]
    fixed: dict
    truth: Callable

    def make(self, factor):
        """The regularizer with factor(name) for each of the names."""
        return self.cls(**{name: factor(name) for name in self.names}, **self.fixed)

    def expected(self, x, numbers):
        """Value and gradient at x for these numbers as factors, in float64."""
        return self.truth(np.asarray(x, np.float64), *(numbers[name] for name in self.names))


ROWS, COLUMNS = ((lambda x, factor, mode=mode: oracles.orthogonal(x, factor, mode)) for mode in ("rows", "columns"))
CASES = {
    "l1": Case(tfk.L1, ("l1",), {}, oracles.l1),
    "l2": Case(tfk.L2, ("l2",), {}, oracles.l2),
    "l1_l2.l1": Case(tfk.L1L2, ("l1",), {"l2": 0.75}, lambda x, l1: oracles.l1_l2(x, l1, 0.75)),
    "l1_l2.l2": Case(tfk.L1L2, ("l2",), {"l1": 0.375}, lambda x, l2: oracles.l1_l2(x, 0.375, l2)),
    "l1_l2.both": Case(tfk.L1L2, ("l1", "l2"), {}, oracles.l1_l2),
    "rows": Case(tfk.OrthogonalRegularizer, ("factor",), {}, ROWS),
    "columns": Case(tfk.OrthogonalRegularizer, ("factor",), {"mode": "columns"}, COLUMNS),
    # With no more rows than the sample size, all rows are used: only then is the value known.
    "sampled": Case(tfk.SampledOrthogonalRegularizer, ("factor",), {"sample_size": 2000}, ROWS),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
modes = pytest.mark.parametrize("mode", MODES)

KERAS = {"tf_keras": tf_keras} | ({} if KERAS3 is None else {"keras3": KERAS3})
kerases = pytest.mark.parametrize("keras", KERAS.values(), ids=KERAS)

pytestmark = [
    # tf_keras warns at every save to .h5.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    # Keras 3 up to 3.15 has variables whose __array__ does not take NumPy 2's keyword `copy`.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


def strength(value=0.25, dtype=tf.float32, **arguments):
    return tf.Variable(value, trainable=False, dtype=dtype, **arguments)


def matrix(*shape, dtype="float32"):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


# --- calls ------------------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(("mode", "shape"), [*((mode, (7, 5)) for mode in MODES), ("graph", (1100, 240))], ids=str)
def test_variable_is_read_at_every_call(case, mode, shape, monkeypatch):
    monkeypatch.setattr(execution, "XLA_CLUSTER_IN_GRAPH_FROM", 2**18)  # so the large one uses fused sums and blocks
    variables = {name: strength() for name in case.names}
    traces = []

    def counted(x):
        traces.append(1)
        return value_and_gradient(case.make(variables.get))(x)

    x = matrix(*shape)
    function = compiled(mode, counted)
    for number in (0.0, 0.3, 1.7):
        numbers = {name: number + i for i, name in enumerate(case.names)}
        for name, variable in variables.items():
            variable.assign(numbers[name])
        for found, expected in zip(function(x), case.expected(x, numbers), strict=True):
            assert_close(found, expected, 2e-5)
    assert len(traces) == (3 if mode == "eager" else 1)


EPSILON = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-22, "float64": 2**-50, "complex64": 2**-22}
OTHERS = [("float16", 40000.0), ("float16", 6e-8), ("bfloat16", 0.1), ("float64", 0.1)]


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(
    ("name", "dtype", "of_variable", "number"),
    [(name, dtype, "float32", 0.3) for name in CASES for dtype in EPSILON if dtype != "complex64" or name[0] == "l"]
    + [(name, "float32", *other) for name in CASES for other in OTHERS],
)
@pytest.mark.light(mode=["eager"])
@pytest.mark.light(dtype=["float32"])
def test_variable_equals_the_number(name, dtype, of_variable, number, mode):
    """A variable and its number give the same value and gradient, to the last digits of x's dtype."""
    case, variable, x = CASES[name], strength(number, of_variable), matrix(7, 5, dtype=dtype)
    numbers = dict.fromkeys(case.names, float(variable.numpy()))
    live, plain = (compiled(mode, value_and_gradient(case.make(get)))(x) for get in (lambda _: variable, numbers.get))
    for found, same, expected in zip(live, plain, case.expected(tf.math.real(x), numbers), strict=True):
        epsilon = EPSILON[dtype if found.dtype == x.dtype else "float32"]
        assert found.dtype == same.dtype
        assert_close(found, same, epsilon)
        assert_close(found, expected, max(4 * epsilon, 1e-5))


@cases
@modes
def test_gradient_for_the_variable(case, mode):
    """The penalty is linear in each factor. A tape watches a variable that is not trainable only on request."""
    variables = {name: strength(0.3) for name in case.names}
    regularizer = case.make(variables.get)

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(list(variables.values()))
            value = regularizer(x)
        return tape.gradient(value, list(variables.values()))

    x = matrix(7, 5)
    zeros = dict.fromkeys(case.names, 0.0)
    at_zero, _ = case.expected(x, zeros)
    for name, gradient in zip(case.names, compiled(mode, gradients)(x), strict=True):
        at_one, _ = case.expected(x, zeros | {name: 1.0})
        assert_close(gradient, at_one - at_zero, 1e-5)


ZERO, ONE = strength(0.0), strength(1.0)


@modes
@pytest.mark.parametrize(
    ("l1", "l2", "x", "expected"),
    [
        (ZERO, 0, np.nan, np.nan),
        (0, ZERO, np.nan, np.nan),
        (0, ONE, np.inf, np.inf),  # 0 * inf is NaN
        (ZERO, ONE, np.inf, np.nan),
        (ONE, 0, 1e30, 1e30),  # its square is inf
        (ONE, ZERO, 1e30, np.nan),
    ],
)
def test_zero_leaves_a_term_out_if_it_is_a_number(mode, l1, l2, x, expected):
    value = compiled(mode, tfk.L1L2(l1, l2))(tf.constant([x]))
    np.testing.assert_allclose(value, np.float32(expected), rtol=1e-6)


def test_weight_of_a_layer_under_mixed_precision():
    """Keras reads such a weight as float16 inside the layer."""
    layer = tf_keras.layers.Layer(dtype="mixed_float16")
    constant = tf_keras.initializers.Constant(1e-8)  # 0 in float16
    layer.activity_regularizer = tfk.L1(layer.add_weight("strength", (), "float32", constant, trainable=False))
    layer(tf.ones((1, 5)))
    assert float(layer.losses[0]) == pytest.approx(5e-8, rel=1e-6)


# --- invalid factors --------------------------------------------------------------------------------------------------

A_VARIABLE = r"a finite number, or a scalar floating tf\.Variable\(\.\.\., trainable=False\)\. Received: {}=<"
A_SCHEDULE = r"a finite number; for a schedule use `fit\(callbacks=\[RegularizationScheduler\(schedule\)\]\)`"
BAD = {
    "vector": (lambda: strength([0.1]), A_VARIABLE),
    "shape unknown": (lambda: strength(0.1, shape=tf.TensorShape(None)), A_VARIABLE),
    "int": (lambda: strength(1, tf.int32), A_VARIABLE),
    "trainable": (lambda: tf.Variable(0.1), A_VARIABLE + r"a variable of shape \(\), dtype float32, trainable=True>"),
    "schedule": (lambda: tf_keras.optimizers.schedules.PolynomialDecay(0.1, 10), A_SCHEDULE),
    "function": (lambda: lambda epoch: 0.1 * epoch, A_SCHEDULE),
    "tensor": (lambda: tf.constant(np.nan), r"a finite number\. Received: {}=<tf\.Tensor"),
}
if KERAS3 is not None:
    BAD["keras3 variable"] = (lambda: KERAS3.Variable(0.1, trainable=False), A_VARIABLE)


@cases
@pytest.mark.parametrize(("bad", "expected"), BAD.values(), ids=BAD)
def test_bad_factor(case, bad, expected):
    value = bad()
    for name in case.names:
        message = rf"argument `{name}`\. Expected {expected.format(name)}"
        with pytest.raises(ValueError, match=message):
            case.make(lambda other, name=name: value if other == name else 0.1)
        regularizer = case.make(lambda _: 0.1)
        before = regularizer.get_config()
        with pytest.raises(ValueError, match=message):
            setattr(regularizer, name, value)
        assert regularizer.get_config() == before


def test_tensor_of_a_traced_function_is_refused():
    """Such a tensor has no value during tracing, and must not leak out of the function."""
    regularizer = tfk.L1(0.5)
    for function in (tfk.L1, lambda factor: setattr(regularizer, "l1", factor)):
        with pytest.raises(ValueError, match=r"argument `l1`\. Expected a finite number"):
            tf.function(function, autograph=False)(tf.constant(0.5))
    assert regularizer.l1 == 0.5


# --- configs, repr and copies -----------------------------------------------------------------------------------------

FILES = ("model.keras", "model.h5", "model")
COPIES = {
    "from_config": lambda regularizer: type(regularizer).from_config(json.loads(json.dumps(regularizer.get_config()))),
    "serialize": lambda regularizer: tfk.deserialize(tfk.serialize(regularizer)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda regularizer: pickle.loads(pickle.dumps(regularizer)),
}


@cases
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_config_repr_and_copies_hold_the_current_number(case, dtype):
    variables = {name: strength(0.1, dtype) for name in case.names}
    regularizer = case.make(variables.get)
    for number in (0.1, 0.3):
        for variable in variables.values():
            variable.assign(number)
        config = regularizer.get_config()
        numbers = dict.fromkeys(case.names, float(strength(number, dtype).numpy()))
        assert config == config | case.fixed | numbers
        assert all(type(config[name]) is float for name in case.names)
        written = config | {name: f"<variable: {value}>" for name, value in numbers.items()}
        arguments = [f"{name}={value if name in numbers else repr(value)}" for name, value in written.items()]
        assert repr(regularizer) == f"{case.cls.__name__}({', '.join(arguments)})"
    copies = [copied(regularizer) for copied in COPIES.values()]
    for variable in variables.values():
        variable.assign(9.0)
    assert regularizer.get_config() == config | dict.fromkeys(case.names, 9.0)
    for other in copies:
        assert type(other) is case.cls
        assert other.get_config() == config
        assert all(type(getattr(other, name)) is float for name in case.names)
        assert_close(other(matrix(7, 5)), case.expected(matrix(7, 5), numbers)[0], 1e-5)


def test_config_and_repr_inside_a_traced_function():
    """A variable that is created during tracing gets its value only afterwards."""
    regularizer, made, shown = tfk.L2(strength(0.75)), [], []

    def function():
        if not made:
            made.append(tfk.L2(strength(lambda: 0.25)))
            shown.extend([regularizer.get_config(), repr(regularizer), repr(made[0])])
        return made[0](tf.ones([2]))

    assert float(tf.function(function, autograph=False)()) == 0.5
    before = "L2(l2=<a variable of shape (), dtype float32, trainable=False>)"
    assert shown == [{"l2": 0.75}, "L2(l2=<variable: 0.75>)", before]
    assert repr(made[0]) == "L2(l2=<variable: 0.25>)"


# --- models -----------------------------------------------------------------------------------------------------------


class Live(NamedTuple):
    """A model with one layer without bias for each case, and the factors of each layer."""

    model: object
    factors: list[dict]

    def assign(self, number):
        """Assign `number` to the variables, scaled differently for each."""
        for i, variable in enumerate(variable for held in self.factors for variable in held.values()):
            variable.assign(number * (1 + i / 8))


def build(names=tuple(CASES), keras=tf_keras, factor=strength):
    factors = [{name: factor() for name in CASES[case].names} for case in names]
    model = keras.Sequential([keras.Input((6,))])
    for case, held in zip(names, factors, strict=True):
        regularizer = CASES[case].make(held.get)
        model.add(keras.layers.Dense(6, use_bias=False, kernel_regularizer=regularizer, name=case.replace(".", "_")))
    random = np.random.default_rng(2)
    model.set_weights([random.normal(size=(6, 6)).astype("float32") for _ in names])
    return Live(model, factors)


def configs(model):
    return [layer.kernel_regularizer.get_config() for layer in model.layers]


def losses(model):
    return [float(loss) for loss in model.losses]


@kerases
@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit_compile"])
@pytest.mark.light(jit=[False], keras=[tf_keras])
def test_fit(keras, jit):
    """With zeros as input, the data loss has no gradient: each kernel moves only by its penalty, computed in NumPy."""
    live = build(keras=keras)
    model, rate = live.model, 0.125
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit)
    kernels = [kernel.astype("float64") for kernel in model.get_weights()]

    def truth():
        """The loss for the current kernels and factors, of which the data loss is 1, and the gradients."""
        numbers = [{name: float(variable) for name, variable in held.items()} for held in live.factors]
        values, gradients = zip(*map(Case.expected, CASES.values(), kernels, numbers), strict=True)
        return 1 + sum(values), gradients

    numbers, expected = [0.25, 0.0, 0.5, 0.03125], []
    for number in numbers[:3]:
        live.assign(number)
        value, gradients = truth()
        expected.append(value)
        kernels = [kernel - rate * gradient for kernel, gradient in zip(kernels, gradients, strict=True)]
    live.assign(numbers[0])
    moves = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: live.assign(numbers[epoch + 1]))
    data = np.zeros((4, 6), "float32"), np.ones((4, 6), "float32")
    history = model.fit(*data, batch_size=4, epochs=3, verbose=0, callbacks=[moves]).history["loss"]
    np.testing.assert_allclose(history, expected, rtol=1e-5)
    assert len(set(history)) == 3
    for found, kernel in zip(model.get_weights(), kernels, strict=True):
        np.testing.assert_allclose(found, kernel, rtol=1e-5, atol=1e-5)
    for number in (0.03125, 2.0):
        live.assign(number)
        assert model.evaluate(*data, verbose=0) == pytest.approx(truth()[0], rel=1e-5)


@tf_keras.saving.register_keras_serializable("test_factors")
class Annealed(tfk.L1):
    """A user's subclass that creates the variable of its factor itself."""

    def __init__(self, l1=0.25):
        super().__init__(strength(l1))


@pytest.mark.parametrize("file", FILES)
def test_activity_regularizer_of_a_subclass(file, tmp_path):
    """The regularizer is called inside the traced call of the model, and Keras divides by the batch size."""
    x, y = np.ones((4, 3), "float32"), np.full((4, 2), 3.0, "float32")
    layer = tf_keras.layers.Dense(2, kernel_initializer="ones", activity_regularizer=Annealed(), input_shape=(3,))
    model = tf_keras.Sequential([layer])
    model.compile("sgd", "mse")
    for name in (file, f"again_{file}"):
        variable = model.layers[-1].activity_regularizer.l1
        for number in (0.5, 2.0):
            variable.assign(number)
            assert model.evaluate(x, y, verbose=0) == pytest.approx(number * 6)
        model.save(tmp_path / name)
        variable.assign(1.0)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(6)
        model = tf_keras.models.load_model(tmp_path / name)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(12)


def test_set_regularizers():
    """The variable is kept in a Bidirectional too, whose constructor would copy the regularizer through its config."""
    model = tf_keras.Sequential([tf_keras.layers.Bidirectional(tf_keras.layers.GRU(2))])
    model.build((None, 3, 2))
    variable = strength(0.5)
    tfk.set_regularizers(model, kernel_regularizer=tfk.L2(variable))
    before = losses(model)
    variable.assign(1.5)
    assert losses(model) == pytest.approx([3 * loss for loss in before])
    assert min(before) > 0


@kerases
@pytest.mark.parametrize("kind", ["h5", "checkpoint"])
def test_weights_are_those_without_variables(keras, kind, tmp_path):
    """Models with and without variable factors have the same weights, so each opens the other's files."""
    live, plain = (build(keras=keras, factor=factor) for factor in (strength, lambda: 0.25))
    for attribute in ("weights", "trainable_weights", "non_trainable_weights", "variables"):
        found, expected = ([v.name for v in getattr(each.model, attribute)] for each in (live, plain))
        assert found == expected
    assert len(live.model.weights) == len(CASES)
    saved = [weight.copy() for weight in live.model.get_weights()]
    for each, name in ((live, "live"), (plain, "plain")):
        each.model.save_weights(tmp_path / f"{name}.weights.h5")
        tf.train.Checkpoint(model=each.model).write(str(tmp_path / name))
    live.assign(0.4)
    for each, name in ((plain, "live"), (live, "plain")):
        each.model.set_weights([2 * weight for weight in saved])
        if kind == "h5":
            each.model.load_weights(tmp_path / f"{name}.weights.h5")
        else:
            tf.train.Checkpoint(model=each.model).read(str(tmp_path / name)).assert_consumed()
        for found, expected in zip(each.model.get_weights(), saved, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert float(live.factors[0]["l1"]) == np.float32(0.4)


# --- files ------------------------------------------------------------------------------------------------------------


def reload(keras, model, path):
    model.save(path)
    return keras.models.load_model(path)


MODEL_COPIES = {
    "clone_model": lambda keras, model, _: keras.models.clone_model(model),
    "from_config": lambda keras, model, _: type(model).from_config(model.get_config()),
    "deepcopy": lambda keras, model, _: copy.deepcopy(model),
    "pickle": lambda keras, model, _: pickle.loads(pickle.dumps(model)),
} | dict.fromkeys(FILES, reload)


@pytest.mark.parametrize(
    ("keras", "copied"),
    [(keras, copied) for keras in KERAS for copied in MODEL_COPIES if (keras, copied) != ("keras3", "model")],
)
def test_copy_of_a_model_has_numbers(keras, copied, tmp_path):
    """A copy has the current factors as floats, which no longer follow the variables."""
    live = build(keras=KERAS[keras])
    if keras == "tf_keras":  # Keras 3 does not open an .h5 of a compiled model
        live.model.compile("sgd", "mse")
    live.assign(0.4)
    other = MODEL_COPIES[copied](KERAS[keras], live.model, tmp_path / copied)
    other.set_weights(live.model.get_weights())
    before = losses(live.model)
    assert losses(other) == before
    assert len(before) == len(live.model.weights)
    assert configs(other) == configs(live.model)
    for layer, held in zip(other.layers, live.factors, strict=True):
        assert all(type(getattr(layer.kernel_regularizer, name)) is float for name in held)
    live.assign(7.0)
    assert losses(other) == before
    assert losses(live.model) != before


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("copied", [*MODEL_COPIES, *(f"regularizer.{name}" for name in COPIES)])
@pytest.mark.light(number=[np.inf])
def test_number_that_is_not_finite_is_neither_saved_nor_copied(copied, number, tmp_path):
    """A file with such a number could not be opened. Training and checkpoints still work."""
    variable = strength(number)
    regularizer = tfk.L1(variable)
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=regularizer, input_shape=(3,))])
    model.compile("sgd", "mse")

    def copy_it():
        if copied in MODEL_COPIES:
            return MODEL_COPIES[copied](tf_keras, model, tmp_path / copied)
        return COPIES[copied.removeprefix("regularizer.")](regularizer)

    with pytest.raises(ValueError, match=rf"factor `l1` of L1 is {number}.*Expected a finite number.*Received: l1="):
        copy_it()
    # Keras opens an .h5 file before it asks for the config.
    assert [path for path in tmp_path.iterdir() if path.suffix != ".h5"] == []
    assert repr(regularizer) == f"L1(l1=<variable: {number}>)"
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    variable.assign(0.5)
    copy_it()


@needs_keras3
def test_export_of_a_keras3_model(tmp_path):
    live = build(keras=KERAS3)
    live.model.export(tmp_path / "exported", verbose=False)
    x = np.ones((2, 6), "float32")
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(x), live.model(x), rtol=1e-5)


@pytest.mark.heavy
def test_files_open_without_the_package(tmp_path, run_python):
    live = build([name for name in CASES if name != "sampled"])  # a file with that one needs the package
    live.model.compile("sgd", "mse")
    live.assign(0.4)
    for file in FILES:
        live.model.save(tmp_path / file)
    program = """
        import json, pathlib, sys
        import tf_keras

        for name in sys.argv[2:]:
            model = tf_keras.models.load_model(pathlib.Path(sys.argv[1]) / name)
            configs = [layer.kernel_regularizer.get_config() for layer in model.layers]
            print(json.dumps([configs, [float(loss) for loss in model.losses]]))
        assert not any(name.startswith("tfk_regularizers") for name in sys.modules)
    """
    lines = run_python("-c", textwrap.dedent(program), tmp_path, *FILES).splitlines()
    assert len(lines) == 3
    for written, values in map(json.loads, lines):
        assert written == configs(live.model)
        np.testing.assert_allclose(values, losses(live.model), rtol=1e-6)


@pytest.mark.heavy
def test_mirrored_strategy_equals_one_device(run_python):
    """The variable may be created inside or outside the scope of the strategy."""
    program = """
        import numpy as np
        import tensorflow as tf
        import tf_keras

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

        import tfk_regularizers as tfk

        random = np.random.default_rng(0)
        x, y = random.normal(size=(24, 5)).astype("f4"), random.normal(size=(24, 3)).astype("f4")

        def run(strategy, of_variable):
            tf_keras.utils.set_random_seed(1)
            with of_variable.scope():
                v = tf.Variable(0.0, trainable=False)
            with strategy.scope():
                penalties = [tfk.L1(v), tfk.L2(v), tfk.L1L2(v, v), tfk.OrthogonalRegularizer(v, "columns")]
                penalties.append(tfk.SampledOrthogonalRegularizer(v, sample_size=9))
                layers = [tf_keras.layers.Dense(5, "tanh", kernel_regularizer=penalty) for penalty in penalties]
                layers.append(tf_keras.layers.Dense(3, activity_regularizer=tfk.L2(v)))
                model = tf_keras.Sequential(layers)
                model.compile(tf_keras.optimizers.SGD(0.1, 0.9), "mse")
            change = lambda epoch, logs: v.assign([0.125, 0.0, 0.03125][epoch])
            callback = tf_keras.callbacks.LambdaCallback(on_epoch_end=change)
            history = model.fit(x, y, 8, 3, shuffle=False, verbose=0, callbacks=[callback]).history["loss"]
            history.append(model.evaluate(x, y, 8, verbose=0))
            assert [penalty.get_config() for penalty in penalties[:2]] == [{"l1": 0.03125}, {"l2": 0.03125}]
            assert len(model.weights) == 2 * len(layers)
            return history, np.concatenate([w.ravel() for w in model.get_weights()])

        one, mirrored = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert mirrored.num_replicas_in_sync == 2
        losses, weights = run(one, one)
        for of_variable in (one, mirrored):
            history, found = run(mirrored, of_variable)
            np.testing.assert_allclose(history, losses, rtol=1e-5)
            np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)
    """
    run_python("-c", textwrap.dedent(program))


# --- weight decay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["sgd", "momentum"])
@kerases
def test_step_is_the_weight_decay_step(keras, momentum):
    """PyTorch's step is m ← μ m + ∇ + λ w and w ← w - η m, which is w ← w (1 - ηλ) - η ∇ without momentum."""
    rate, decay = 0.1, 0.3
    random = np.random.default_rng(3)
    x, y = random.normal(size=(8, 4)), random.normal(size=(8, 2))
    layer = keras.layers.Dense(2, "linear", False, kernel_regularizer=tfk.L2.from_weight_decay(decay))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(rate, momentum), "mse")
    w = model.get_weights()[0].astype("float64")
    m = np.zeros_like(w)
    for _ in range(5):
        m = momentum * m + 2 * x.T @ (x @ w - y) / y.size + decay * w
        w = w - rate * m
        model.train_on_batch(x.astype("float32"), y.astype("float32"))
        np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0, 0.5, -1, True, np.float32(0.25), np.array(2)], ids=repr)
def test_decay_is_halved(decay):
    cls = type("Decay", (tfk.L2,), {})  # a user's subclass
    regularizer = cls.from_weight_decay(decay)
    assert type(regularizer) is cls
    assert regularizer.get_config() == {"l2": float(decay) / 2}


@pytest.mark.parametrize("decay", [None, "0.1", np.nan, 10**400, [0.1], 1j, strength(0.1), tf.Variable(0.1)], ids=type)
def test_bad_decay(decay):
    """A variable is refused too: half of it is not a variable, so it would silently be read only once."""
    with pytest.raises(ValueError, match=r"argument `decay`\. Expected a finite number\. Received: decay="):
        tfk.L2.from_weight_decay(decay)
