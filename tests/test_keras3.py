"""The same regularizer instances in Keras 3: they work on its TensorFlow backend, and raise an error on another."""

import functools
import importlib.util
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, assert_close, run
from libraries import KERAS3
from oracles import PENALTIES

import tfk_regularizers as tfk

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
    """What the last call of a model has left, in any order."""
    model(x)
    return sorted(float(loss) for loss in model.losses)


def activity_share(library):
    """What becomes of a penalty of 1 on outputs: all but early versions of Keras 3 divide it by the batch size."""
    layer = library.layers.Dense(3, activity_regularizer=lambda _: tf.constant(1.0))
    layer(data(BATCH)[0])
    return float(layer.losses[0])


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
        share = activity_share(library)
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
    """Its kernels arrive cast to halves where a layer casts them, and as they are stored where losses are added."""
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
with contextlib.suppress(TypeError):  # by which some versions refuse
    load()
del sys.modules["tfk_regularizers"]
import tfk_regularizers
load()
"""


@pytest.mark.heavy
def test_a_file_of_keras_3_needs_the_package_to_give_ours(run_python, tmp_path):
    """Without it, Keras 3 takes the class of its own that has the same name."""
    build(keras, tfk.L1L2(0.25, 0.5)).save(tmp_path / "model.keras")
    *before, after = run_python("-c", LOAD, tmp_path / "model.keras", TF_CPP_MIN_LOG_LEVEL="3").splitlines()
    assert before in ([str(keras.regularizers.L1L2)], [])
    assert after == str(tfk.L1L2)


def array_of(module):
    """An object that converts to a tensor, as those of JAX and PyTorch do."""

    class Array:
        __module__, shape, dtype = module, (2, 2), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            return np.ones(self.shape, dtype or self.dtype)

    return Array()


@pytest.mark.parametrize("kind", ["keras", "jaxlib._jax", "jax._src.interpreters.partial_eval", "torch"])
@pytest.mark.parametrize("name", ALL)
def test_another_backend_is_named(monkeypatch, name, kind):
    """On the TensorFlow backend all of them convert; on another, no gradient would come back."""
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

# The numpy backend of Keras 3 imports JAX for its Fourier transforms, which nothing here computes.
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
import tfk_regularizers as tfk

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
    """There Keras 3 gets the error, and tf_keras works."""
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
