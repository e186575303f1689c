"""The same regularizer instances work in Keras 3 on its TensorFlow backend, and raise an error on another."""

import functools
import importlib.util
import json
import random
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, assert_close, run
from libraries import IN_KERAS, KERAS3, activity_share, needs_host
from oracles import PENALTIES

import tfk_regularizers as tfk
from tfk_regularizers._penalties import KERAS_PENALTIES

if KERAS3 is None:
    pytest.skip("tf.keras is tf_keras, not Keras 3", allow_module_level=True)

keras = sys.modules["keras"]
BATCH = 8

penalties = pytest.mark.parametrize("name", PENALTIES)
ALL = PENALTIES | {"sampled": (lambda module: module.SampledOrthogonalRegularizer(0.3), PENALTIES["rows"][1])}


def build(library, regularizer, jit_compile=None, activity_regularizer=None):
    """A model of tf_keras or of Keras 3 with a regularizer on a kernel, on a bias of two axes and on outputs."""
    layers = library.layers
    inputs = library.Input((6,))
    outputs = layers.EinsumDense(
        "ab,bcd->acd", (5, 4), bias_axes="cd", kernel_regularizer=regularizer, bias_regularizer=regularizer, name="a"
    )(inputs)
    outputs = layers.Flatten()(outputs)
    outputs = layers.Dense(3, "tanh", activity_regularizer=activity_regularizer or regularizer, name="b")(outputs)
    model = library.Model(inputs, outputs)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.get_weights()])
    model.compile(library.optimizers.SGD(0.02), "mse", jit_compile=jit_compile)
    return model


def data(rows=5 * BATCH):
    random = np.random.default_rng(1)
    return random.normal(size=(rows, 6)).astype("float32"), random.normal(size=(rows, 3)).astype("float32")


def losses(model, x):
    """Call the model, and return its losses, sorted."""
    model(x)
    return sorted(float(loss) for loss in model.losses)


def assert_same_training(one, other, x, y):
    found = [model.fit(x, y, BATCH, epochs=2, shuffle=False, verbose=0).history["loss"] for model in (one, other)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    for weight, expected in zip(other.get_weights(), one.get_weights(), strict=True):
        assert_close(weight, expected, 1e-5)


@penalties
@pytest.mark.light(name=["l1_l2", "rows"])
def test_one_instance_gives_the_same_losses_and_training_in_both(name):
    regularizer, oracle = PENALTIES[name][0](tfk), PENALTIES[name][1]
    models, (x, y) = [], data()
    for library in (tf_keras, keras):
        model = build(library, regularizer)
        share = activity_share(library, BATCH)
        kernel, bias = (weight.astype("float64") for weight in model.get_weights()[:2])
        outputs = np.asarray(model(x[:BATCH])).astype("float64")
        expected = [oracle(w.reshape(-1, w.shape[-1]))[0] for w in (kernel, bias)] + [oracle(outputs)[0] * share]
        np.testing.assert_allclose(losses(model, x[:BATCH]), sorted(expected), rtol=2e-6)
        mean = functools.partial(lambda share, outputs: regularizer(outputs) / (BATCH * share), share)
        models.append(build(library, regularizer, jit_compile=False, activity_regularizer=mean))
    assert_same_training(*models, x, y)


@penalties
@pytest.mark.light(name=["l1_l2", "rows"])
def test_kernel_bias_and_activity_are_saved_and_loaded(name, tmp_path):
    regularizer = PENALTIES[name][0](tfk)
    model = build(keras, regularizer)
    x, y = data()
    model.fit(x, y, BATCH, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    first, _, second = loaded.layers[1:]
    for found in (first.kernel_regularizer, first.bias_regularizer, second.activity_regularizer):
        assert (type(found), repr(found)) == (type(regularizer), repr(regularizer))
    assert losses(loaded, x) == losses(model, x)
    assert np.isfinite(loaded.train_on_batch(x, y))


@penalties
@pytest.mark.heavy
def test_jit_compile_with_a_ragged_last_batch(name):
    x, y = data(2 * BATCH + 4)
    models = (build(keras, PENALTIES[name][0](tfk), jit_compile) for jit_compile in (False, True))
    assert_same_training(*models, x, y)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.light(mode=["graph"])
def test_variable_of_keras_3(name, mode):
    make, oracle = ALL[name]
    penalty = make(tfk)
    values = np.random.default_rng(2).normal(size=(1100 if name in ("rows", "sampled") else 12, 7)).astype("float32")
    variable = keras.Variable(values)

    def step():
        with tf.GradientTape() as tape:
            value = penalty(variable)
        return value, tf.convert_to_tensor(tape.gradient(value, variable.value))

    for found, wanted in zip(run(mode, step), oracle(values.astype("float64")), strict=True):
        assert_close(found, wanted, 5e-6)


@penalties
def test_mixed_float16_of_keras_3(name):
    """Keras 3 casts kernels to float16 inside the layer, but computes the losses from the stored kernels."""
    layer = keras.layers.Dense(5, kernel_regularizer=PENALTIES[name][0](tfk), dtype="mixed_float16")
    assert layer(np.ones((3, 4), "float32")).dtype == tf.float16
    (loss,) = layer.losses
    assert loss.dtype == tf.float32
    assert_close(loss, PENALTIES[name][1](layer.get_weights()[0].astype("float64"))[0], 2e-6)


LOAD = """
import contextlib, sys
import keras

def load():
    print(type(keras.models.load_model(sys.argv[1]).layers[1].bias_regularizer))

sys.modules["tfk_regularizers"] = None  # as if it were not installed
with contextlib.suppress(TypeError):  # which some versions raise
    load()
del sys.modules["tfk_regularizers"]
import tfk_regularizers
load()
"""


@pytest.mark.heavy
def test_a_file_of_keras_3_needs_the_package_to_give_ours(run_python, tmp_path):
    """Without it, Keras 3 loads its own class of the same name, or refuses the file."""
    build(keras, tfk.L1L2(0.25, 0.5)).save(tmp_path / "model.keras")
    *before, after = run_python("-c", LOAD, tmp_path / "model.keras", TF_CPP_MIN_LOG_LEVEL="3").splitlines()
    assert before in ([str(own("L1L2"))], [])
    assert after == str(tfk.L1L2)


def array_of(module):
    """An object that converts to a tensor, like the arrays of JAX and PyTorch."""

    class Array:
        __module__, shape, dtype = module, (2, 2), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            return np.ones(self.shape, dtype or self.dtype)

    return Array()


@pytest.mark.parametrize("kind", ["keras", "jaxlib._jax", "jax._src.interpreters.partial_eval", "torch"])
@pytest.mark.parametrize("name", ALL)
def test_another_backend_is_named(monkeypatch, name, kind):
    """On the TensorFlow backend, all of these are converted. On another, they would get no gradient."""
    penalty = ALL[name][0](tfk)
    x = keras.Variable(np.ones((2, 2), "float32")) if kind == "keras" else array_of(kind)
    expected = float(penalty(np.ones((2, 2), "float32")))
    assert float(penalty(x)) == expected
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    message = r"Inputs to \w+ must be.*'jax' backend.*KERAS_BACKEND=tensorflow.*Received: <class "
    with pytest.raises(TypeError, match=message):
        penalty(x)
    for fine in (np.ones((2, 2), "float32"), tf.ones((2, 2)), tf.Variable(tf.ones((2, 2))), [[1.0, 1.0], [1.0, 1.0]]):
        assert float(penalty(fine)) == expected


OTHER = """
import importlib.abc, importlib.machinery, importlib.util, sys, unittest.mock

# The numpy backend of Keras 3 imports JAX for its Fourier transforms, which are not needed here.
class NoJax(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "jax" else None

    def create_module(self, spec):
        return unittest.mock.MagicMock(name=spec.name)

    def exec_module(self, module):
        pass

if importlib.util.find_spec("jax") is None:
    sys.meta_path.append(NoJax())

import keras, tf_keras
from keras.src import api_export, regularizers
from keras.src.saving import object_registration

tables = {name: table for name, table in vars(api_export).items() if name.startswith("REGISTERED")}
tables |= {name: table for name, table in vars(object_registration).items() if name.startswith("GLOBAL")}
modules = [module for name, module in sys.modules.items() if name.startswith("keras") and name.endswith("regularizers")]
tables |= {"strings": regularizers.ALL_OBJECTS_DICT} | {module.__name__: vars(module) for module in modules}
before = {name: dict(table) for name, table in tables.items()}

import tfk_regularizers as tfk

assert len(tables) >= 8
for name, table in tables.items():
    same = table.keys() == before[name].keys() and all(table[key] is before[name][key] for key in table)
    assert same, name
print(keras.backend.backend())
for regularizer in (tfk.L1(), tfk.L2(), tfk.L1L2(0.1, 0.1), tfk.OrthogonalRegularizer(),
                    tfk.SampledOrthogonalRegularizer(), tfk.SoftOrthogonalRegularizer(), tfk.GroupLasso()):
    layer = keras.layers.Dense(3, kernel_regularizer=regularizer)
    layer.build((None, 2))
    try:
        print(layer.losses)
    except TypeError as error:
        print(error)
layer = tf_keras.layers.Dense(3, kernel_regularizer=tfk.L2(0.5), kernel_initializer="ones")
layer.build((None, 2))
print(float(layer.losses[0]))
"""


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["numpy", *(name for name in ("jax", "torch") if importlib.util.find_spec(name))])
def test_process_with_another_backend(run_python, backend):
    """On another backend, Keras 3 is not changed, our penalties raise the error, and tf_keras works."""
    first, *errors, last = run_python("-c", OTHER, KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3").splitlines()
    assert (first, last, len(errors)) == (backend, "3.0", 7)
    assert all(f"Keras 3 runs on its '{backend}' backend" in error for error in errors)


def test_penalties_of_a_model_whose_own_call_never_runs():
    model = keras.Model()
    model.made = keras.Sequential([keras.layers.Dense(2, kernel_regularizer=tfk.L2(0.5), kernel_initializer="ones")])
    model.made.build((None, 3))
    model.plain = keras.layers.Dense(1)
    assert list(map(float, tfk.penalties(model).values())) == [3.0]
    model.waiting = keras.layers.Dense(1, kernel_regularizer="l2", name="waiting")
    with pytest.raises(ValueError, match="layer 'waiting' has no weights yet"):
        tfk.penalties(model)


# Keras 3 as a host


def own(name):
    """The built-in class of Keras 3, from where it is defined."""
    return getattr(sys.modules[keras.regularizers.Regularizer.__module__], name)


@needs_host
@pytest.mark.parametrize("name", IN_KERAS)
@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (3, 4), (4, 3), (17, 33), (1100, 40)], ids=str)
@pytest.mark.light(name=["l1_l2", "rows"])
def test_value_and_gradient_of_the_built_in(name, shape):
    """They are equal up to rounding, unless the built-in's is not finite, as for orthogonality of one row or column."""
    ours = PENALTIES[name][0](tfk)
    builtin = PENALTIES[name][0](types.SimpleNamespace(**{cls.__name__: own(cls.__name__) for cls in KERAS_PENALTIES}))
    variable = keras.Variable(np.random.default_rng(0).normal(size=shape).astype("float32"))
    results = []
    for penalty in (ours, builtin):
        with tf.GradientTape() as tape:
            value = penalty(variable)
        results.append((value, tf.convert_to_tensor(tape.gradient(value, variable.value))))
    assert np.isfinite(results[0][0])
    if np.isfinite(results[1][0]):
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, 5e-6)


MODEL = """
import json, sys
import keras, numpy as np

FACTORS = {"L1": {"l1": 0.25}, "L2": {"l2": 0.5}, "L1L2": {"l1": 0.125, "l2": 0.5}}
FACTORS |= {"OrthogonalRegularizer": {"factor": 0.5, "mode": "columns"}}

def build():
    makes = {name: lambda name=name: getattr(keras.regularizers, name)(**FACTORS[name]) for name in FACTORS}
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, kernel_regularizer=make(), name=name) for name, make in makes.items()]
    both = {"bias_regularizer": "l1", "activity_regularizer": makes["L2"]()}
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2, **both, name="last")])
    model.compile("sgd", keras.losses.MeanSquaredError())
    return model

def describe(model):
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    names = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
    held = [(layer.name, name, getattr(layer, name)) for layer in model.layers for name in names]
    return {
        "classes": [[*at, type(r).__module__.partition(".")[0], type(r).__name__] for *at, r in held if r],
        "configs": [r.get_config() for *at, r in held if r],
        "evaluated": model.evaluate(x, np.ones((4, 2)), verbose=0),
    }
"""

PLAIN = (
    MODEL
    + """
theirs, own = sys.argv[1:]
model = build()
for suffix in (".keras", ".h5"):
    model.save(own + suffix)
found = {"written": describe(model)}
found |= {suffix: describe(keras.models.load_model(theirs + suffix)) for suffix in (".keras", ".h5")}
assert not any(name.startswith("tfk_regularizers") for name in sys.modules)
print(json.dumps(found))
"""
)


@needs_host
@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_files_open_without_the_package_and_its_files_here(run_python, tmp_path):
    namespace = {}
    exec(MODEL, namespace)
    build, describe = namespace["build"], namespace["describe"]
    model, suffixes = build(), (".keras", ".h5")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    for suffix in suffixes:
        model.save(tmp_path / f"ours{suffix}")
    there = json.loads(run_python("-W", "ignore", "-c", PLAIN, tmp_path / "ours", tmp_path / "own").splitlines()[-1])
    here = describe(model)
    assert {module for *_, module, _ in here["classes"]} == {"tfk_regularizers"}

    def alike(ours, plain):
        assert [[*at, name] for *at, _, name in ours["classes"]] == [[*at, name] for *at, _, name in plain["classes"]]
        for config, other in zip(ours["configs"], plain["configs"], strict=True):
            assert config.keys() == other.keys()
            for key, value in config.items():  # plain Keras 3 keeps the factor 0.01 in float32
                assert value == other[key] or value == pytest.approx(other[key], rel=1e-7)
        assert ours["evaluated"] == pytest.approx(plain["evaluated"], rel=1e-5)

    for suffix in suffixes:
        assert {module for *_, module, _ in there[suffix]["classes"]} == {"keras"}
        alike(here, there[suffix])
        loaded = keras.models.load_model(tmp_path / f"own{suffix}")
        found = describe(loaded)
        assert {module for *_, module, _ in found["classes"]} == {"tfk_regularizers"}
        alike(found, there["written"])
        if suffix == ".keras":  # a model from an .h5 file of Keras 3.15 has an optimizer for other variables
            assert np.isfinite(loaded.train_on_batch(np.ones((4, 3)), np.ones((4, 2))))


@needs_host
def test_low_rank_adaptation():
    """With LoRA, the two small kernels are penalized instead of the frozen one, also after a copy by config."""
    for regularizer in (None, "l1"):
        layer = keras.layers.Dense(3, kernel_regularizer=regularizer, name="dense")
        table = keras.layers.Embedding(5, 4, embeddings_regularizer=regularizer, name="table")
        model = keras.Sequential([keras.Input((2,)), table, layer])
        for one in (layer, table):
            one.enable_lora(2)
        paths = ["table/lora_embeddings_a", "table/lora_embeddings_b", "dense/lora_kernel_a", "dense/lora_kernel_b"]
        keywords = dict.fromkeys(("kernel_regularizer", "embeddings_regularizer"), tfk.L2(0.5))
        assert set(paths) <= set(tfk.set_regularizers(model, **keywords))
        assert list(tfk.penalties(model)) == paths
        squares = [0.5 * np.sum(np.square(weight)) for one in (table, layer) for weight in one.trainable_weights[-2:]]
        np.testing.assert_allclose(list(tfk.penalties(model).values()), squares, rtol=1e-6)
        other = type(model).from_config(model.get_config())
        assert len(other.losses) == len(model.losses) == 4
        tfk.set_regularizers(model, **dict.fromkeys(keywords))
        assert model.losses == []


@needs_host
def test_quantized_kernel_is_refused():
    layer = keras.layers.Dense(3, kernel_regularizer="l2", name="dense")
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.quantize("int8")
    with pytest.raises(ValueError, match=r"cannot be the `kernel_regularizer` of 'dense/kernel'.*int8"):
        tfk.set_regularizers(model, kernel_regularizer="l1")
    assert model.losses == []


@needs_host
def test_projections_of_attention_follow_their_layer():
    x = keras.Input((3, 4))
    attention = keras.layers.MultiHeadAttention(2, 2, kernel_regularizer="l1", name="attention")
    grouped = keras.layers.GroupQueryAttention(2, 2, 1, bias_regularizer="l1", name="grouped")
    model = keras.Model(x, grouped(attention(x, x), x))
    for regularizer, count in ((tfk.L2(0.5), 8), (None, 0)):
        paths = tfk.set_regularizers(model, kernel_regularizer=regularizer, bias_regularizer=None)
        assert len([path for path in paths if path.endswith("kernel")]) == 8
        assert len(tfk.penalties(model)) == count
        loaded = keras.Model.from_config(model.get_config())
        assert len(loaded.losses) == count
    with pytest.warns(UserWarning, match="may contain the old `kernel_regularizer` of 'attention', 'grouped', because"):
        tfk.set_regularizers(model, kernel_regularizer="l2", where=lambda layer: layer.name == "query")


@needs_host
def test_frozen_weights_are_set_and_not_penalized():
    """Keras 3 penalizes trainable weights only."""
    hidden, head = keras.layers.Dense(3, name="hidden", trainable=False), keras.layers.Dense(1, name="head")
    model = keras.Sequential([keras.Input((4,)), hidden, head])
    assert tfk.set_regularizers(model, kernel_regularizer="l2") == ["hidden/kernel", "head/kernel"]
    assert list(tfk.penalties(model)) == ["head/kernel"]
    hidden.trainable = True
    assert list(tfk.penalties(model)) == ["hidden/kernel", "head/kernel"]


@keras.saving.register_keras_serializable("test_keras3")
class Cubes(keras.regularizers.Regularizer):
    """A regularizer as written by a user of Keras 3."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, x):
        return self.factor * keras.ops.sum(keras.ops.abs(x) ** 3)

    def get_config(self):
        return {"factor": self.factor}


@needs_host
def test_regularizer_of_the_users_own(tmp_path):
    """It can be given by its name, by its config, and as a term of a sum, which can be saved and loaded."""
    layer = keras.layers.Dense(2, kernel_initializer="ones", name="dense")
    model = keras.Sequential([keras.Input((3,)), layer])
    for given in ("test_keras3>Cubes", keras.regularizers.serialize(Cubes(0.5)), Cubes(0.5)):
        tfk.set_regularizers(model, kernel_regularizer=given)
        assert float(tfk.penalties(model)["dense/kernel"]) == 3.0
    for total in (tfk.L2(0.5) + Cubes(0.5), Cubes(0.5) + tfk.L2(0.5)):
        tfk.set_regularizers(model, kernel_regularizer=total)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert list(map(float, tfk.penalties(loaded).values())) == [6.0]
        assert {type(term) for term in loaded.layers[0].kernel_regularizer.regularizers} == {tfk.L2, Cubes}


@needs_host
def test_built_in_instances_from_before_are_named():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=own("L2")(0.5), name="old")])
    with pytest.warns(
        UserWarning, match="^There are built-in regularizers of Keras 3 in 'old', because .* imported later"
    ):
        tfk.penalties(model)
    with pytest.warns(UserWarning, match="^L2 is the built-in regularizer of Keras 3, because .* imported later"):
        tfk.get(own("L2")(0.5))


@needs_host
def test_tools_name_a_keras_3_that_is_too_old(monkeypatch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer="l2")])
    monkeypatch.setattr(keras, "__version__", "3.11.3")
    message = r"supports models of tf_keras, and of Keras 3\.12 or later on TensorFlow\. .* of Keras 3\.11\.3 on"
    for tool in (tfk.log_penalties, lambda model: tfk.set_regularizers(model, kernel_regularizer="l1")):
        with pytest.raises(TypeError, match=message):
            tool(model)
    assert len(tfk.penalties(model)) == 1


FLOATX = """
import sys
import keras, numpy as np
import tfk_regularizers as tfk

keras.config.set_floatx(sys.argv[1])
x, y = np.ones((4, 4)), np.ones((4, 1))
for regularizer in ("l1", "l2", "l1_l2", "orthogonal_regularizer", tfk.GroupLasso(), tfk.SoftOrthogonalRegularizer(),
                    tfk.SampledOrthogonalRegularizer(), tfk.L2() + tfk.GroupLasso()):
    both = {"kernel_regularizer": regularizer, "activity_regularizer": regularizer}
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, **both), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert np.isfinite(float(model.fit(x, y, verbose=0).history["loss"][0]))
    assert {loss.dtype.name for loss in model.losses} == {sys.argv[1]}
"""


@needs_host
@pytest.mark.heavy
@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_floatx_of_a_half_type(run_python, floatx):
    """Keras 3 then adds only losses of this dtype to the data loss."""
    run_python("-c", FLOATX, floatx, TF_CPP_MIN_LOG_LEVEL="3")


@needs_host
def test_regularizers_whose_values_keras_3_cannot_add_are_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    for function, says in ((lambda x: 0.0, "TypeError: Keras 3 adds"), (lambda x: x, r"expected a scalar.*\(3, 2\)")):
        with pytest.raises(ValueError, match=rf"cannot be the `kernel_regularizer` of 'dense/kernel'.*{says}"):
            tfk.set_regularizers(model, kernel_regularizer=function)
    assert model.losses == []


@needs_host
def test_outputs_that_keras_3_does_not_regularize_are_left_out():
    """A SimpleRNN ignores its activity regularizer, and a TimeDistributed ignores that of its inner layer."""
    wrapped = keras.layers.TimeDistributed(keras.layers.Dense(2, name="inner"), name="wrapper")
    layers = [keras.Input((3, 4)), wrapped, keras.layers.SimpleRNN(2, name="rnn"), keras.layers.Dense(2, name="head")]
    model = keras.Sequential(layers)
    keras.utils.set_random_seed(0)
    state = random.getstate()
    assert tfk.set_regularizers(model, activity_regularizer="l2") == ["head/activity"]
    assert random.getstate() == state
    model(np.ones((1, 3, 4)))
    assert len(model.losses) == 1
