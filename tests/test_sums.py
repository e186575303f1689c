"""Sums of regularizers: their values, which terms merge, all ways to save them, and what is refused."""

import copy
import inspect
import itertools
import json
import pickle
import sys

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, assert_close, hessian_product, run, value_and_gradient
from libraries import KERAS3, needs_keras3

import tfk_regularizers as tfk
from tfk_regularizers import L1, L1L2, L2
from tfk_regularizers import OrthogonalRegularizer as Orthogonal

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    # Keras 3 up to 3.15 has variables whose __array__ does not take NumPy 2's keyword `copy`.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]
modes = pytest.mark.parametrize("mode", MODES)


@tf_keras.saving.register_keras_serializable("test_sums")
class Cubes(tf_keras.regularizers.Regularizer):
    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, x):
        return self.factor * tf.reduce_sum(tf.abs(x) ** 3)

    def get_config(self):
        return {"factor": self.factor}

    def __repr__(self):
        return f"Cubes({self.factor})"


class Stronger(L2):
    """A user's subclass."""


def gives(make):
    """A regularizer that returns make(x)."""
    return type("Gives", (tf_keras.regularizers.Regularizer,), {"__call__": lambda _, x: make(x)})()


def variable(value=0.25):
    return tf.Variable(value, trainable=False)


def dense(regularizer):
    return tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=regularizer, input_shape=(3,))])


def two():
    return L2(0.3) + Orthogonal(0.7)


def three():
    return Cubes(0.25) + L1(0.5) + Orthogonal(0.7, "columns")


def add(*pairs):
    return tuple(map(sum, zip(*pairs, strict=True)))


def cubes(x, factor):
    return factor * (np.abs(x) ** 3).sum(), 3 * factor * x * np.abs(x)


ORACLES = {
    "two": (two, lambda x: add(oracles.l2(x, 0.3), oracles.orthogonal(x, 0.7, "rows"))),
    "three": (three, lambda x: add(cubes(x, 0.25), oracles.l1(x, 0.5), oracles.orthogonal(x, 0.7, "columns"))),
    "variable": (
        lambda: L2(variable()) + Orthogonal(0.7),
        lambda x: add(oracles.l2(x, 0.25), oracles.orthogonal(x, 0.7, "rows")),
    ),
}


def matrix(dtype="float32"):
    return tf.constant(np.random.default_rng(1).normal(size=(7, 5)), dtype)


@modes
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("make", "oracle"), ORACLES.values(), ids=ORACLES)
@pytest.mark.light(mode=["eager", "graph"])
def test_value_gradient_and_second_derivative(make, oracle, dtype, mode):
    x, total = matrix(dtype), make()
    value, gradient = run(mode, value_and_gradient(total), x)
    assert value.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradient.dtype == dtype
    for found, expected in zip((value, gradient), oracle(np.asarray(x, "float64")), strict=True):
        assert_close(found, expected, {"float16": 3e-3, "float32": 3e-6, "float64": 1e-13}[dtype])
    if dtype == "float64":
        found, *others = (run(mode, hessian_product(penalty), x, x**2) for penalty in (total, *total.regularizers))
        assert_close(found, sum(others), 1e-13)


RETURNED = {
    "half": (lambda x: tf.reduce_sum(tf.cast(x, tf.float16)), "float32"),
    "double": (lambda x: tf.reduce_sum(tf.cast(x, tf.float64)), "float64"),
    "shape (1,)": (lambda x: tf.reshape(tf.reduce_sum(x), [1]), "float32"),
    "unknown shape": (lambda x: tf.reshape(tf.reduce_sum(x), tf.ones([tf.size(x) * 0 + 1], tf.int32)), "float32"),
    "integer": (tf.size, "float32"),
    "Python float": (lambda x: 0.1, "float32"),
    "Python int": (lambda x: 2, "float32"),
    "NumPy": (lambda x: np.float64(0.1), "float64"),
    "array": (lambda x: np.float32([0.1]), "float32"),
    "variable": (lambda x: variable() if tf.executing_eagerly() else 0.25, "float32"),
}
NOT_REAL = [None, "a", tf.ones(2), np.ones(2), [], 1j, tf.constant(1j), tf.constant(True), {}, tf.zeros([0])]


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(("make", "dtype"), RETURNED.values(), ids=RETURNED)
def test_a_term_may_return_any_real_number(make, dtype, mode):
    x = matrix()
    l2, _ = oracles.l2(np.asarray(x, "float64"), 0.5)
    for total, expected in ((gives(make) + L2(0.5), l2), (tfk.Sum([gives(make)]), 0.0)):
        value = run(mode, total, x)
        assert (value.dtype, value.shape) == (dtype, ())
        assert_close(value, float(np.sum(make(x))) + expected, 1e-3 if make is RETURNED["half"][0] else 1e-6)


@pytest.mark.parametrize("bad", NOT_REAL, ids=repr)
def test_a_term_that_returns_anything_else_is_refused(bad):
    message = r"Expected a real number from each term of a sum\. Received: .* from <test_sums\.Gi"
    with pytest.raises(ValueError, match=message):
        (L2() + gives(lambda x: bad))(matrix())


def test_each_term_is_called_on_the_input_of_the_sum():
    """Each term treats a ragged output as it does without the sum, and receives the variable itself."""
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0]])
    assert float(tfk.Sum([L1(0.5), L2(0.25)])(ragged)) == 3.0 + 3.5
    with pytest.raises(TypeError, match="Inputs to OrthogonalRegularizer must be dense"):
        two()(ragged)
    seen, kernel = [], tf.Variable(tf.ones((3, 2)))
    (L2() + gives(lambda x: seen.append(x) or 0.0))(kernel)
    assert seen[0] is kernel


def test_in_a_functional_model_and_on_a_symbolic_tensor():
    inputs = tf_keras.Input((5,))
    outputs = tf_keras.layers.Dense(5, activity_regularizer=two())(inputs)
    model = tf_keras.Model(inputs, outputs)
    model.add_loss(two()(outputs))
    model(matrix())
    activity, added = sorted(float(loss) for loss in model.losses)  # tf_keras divides the first by the batch size
    assert activity == pytest.approx(added / 7, rel=1e-6)


WRITTEN = {
    "different": (lambda: L2(1e-4) + tfk.GroupLasso(), "L2(l2=0.0001) + GroupLasso(factor=0.01, mode='columns')"),
    "L2 + L2": (lambda: L2(0.25) + L2(0.5), "L1L2(l1=0.0, l2=0.75)"),
    "L1L2 + L1 + L2": (lambda: L1L2(0.25, 0.5) + L1(1) + L2(2), "L1L2(l1=1.25, l2=2.5)"),
    "no finite factor": (lambda: L2(1e308) + L2(1e308), "L2(l2=1e+308) + L2(l2=1e+308)"),
    "sum": (lambda: sum([L2(0.5), Cubes(), L1(0.5)]), "L2(l2=0.5) + Cubes(0.5) + L1(l1=0.5)"),
    "sum of one": (lambda: sum([L2(0.5)]), "L2(l2=0.5)"),
    "sum from 0.0": (lambda: sum([L2(0.5)], 0.0), "L2(l2=0.5)"),
    "flat": (lambda: (Cubes() + L2(1)) + (L2(1) + Cubes(1)), "Cubes(0.5) + L2(l2=1.0) + L2(l2=1.0) + Cubes(1)"),
    "subclass": (lambda: Stronger(1) + L2(1), "Stronger(l2=1.0) + L2(l2=1.0)"),
    "variable": (lambda: L1(variable()) + L2(1), "L1(l1=<variable: 0.25>) + L2(l2=1.0)"),
    "one": (lambda: tfk.Sum([L2(1)]), "Sum([L2(l2=1.0)])"),
    "tuple with a sum": (lambda: tfk.Sum((Cubes(), tfk.Sum([L2(1)]))), "Cubes(0.5) + L2(l2=1.0)"),
}


@pytest.mark.parametrize(("make", "written"), WRITTEN.values(), ids=WRITTEN)
def test_what_plus_gives(make, written):
    total = make()
    assert repr(total) == written
    is_sum = " + " in written or "Sum" in written
    assert type(total) is (tfk.Sum if is_sum else getattr(tfk, written.partition("(")[0]))
    x = matrix()
    if not written.startswith("L2(l2=1e+308)"):
        names = {**vars(tfk), "Cubes": Cubes, "Stronger": Stronger}
        assert_close(eval(written.replace("<variable: 0.25>", "0.25"), names)(x), total(x), 1e-6)


def test_a_sum_holds_its_terms_and_leaves_them_as_they_are():
    first, second = L2(0.5), Orthogonal(0.5)
    total = held = first + second
    total += Cubes()
    assert held.regularizers == total.regularizers[:2] == (first, second)
    first.l2 = 8.0
    assert float(held(matrix())) == float(first(matrix()) + second(matrix()))
    merged = first + L1(1)
    merged.l2 = 3.0
    assert first.l2 == 8.0
    held.regularizers = [second, total]
    assert held.regularizers == (second, *total.regularizers)


def test_a_built_in_instance_from_before_the_import_is_a_term(builtin):
    for total in (builtin.L2(0.5) + Orthogonal(0.25), Orthogonal(0.25) + builtin.L2(0.5), builtin.L2(0.5) + L1(0.0)):
        assert type(total) is tfk.Sum
        expected = sum(float(term(matrix())) for term in total.regularizers)
        assert float(total(matrix())) == pytest.approx(expected, rel=1e-6)
        reread = tfk.get(tfk.serialize(total))
        assert sorted(type(term).__module__ for term in reread.regularizers) == ["tfk_regularizers"] * 2


REFUSED = {
    "function": lambda x: 0.0,
    "None": None,
    "string": "l2",
    "number": 1,
    "list": [L2()],
    "class": L2,
    "dict": {"class_name": "L2", "config": {}},
}
BAD_CONFIGS = [
    ({}, "regularizers"),
    ({"regularizers": 5}, "argument `regularizers`"),
    ({"regularizers": [None]}, "argument `regularizers`"),
    ({"regularizers": ["l3"]}, "Unknown regularizer"),
    ({"regularizers": [{"class_name": "L2", "config": {"l2": "a"}}]}, "argument `l2`"),
    ({"regularizers": ["l2"], "other": 1}, "other"),
]


@pytest.mark.parametrize("make", [lambda: L2(0.5), two], ids=["L2", "Sum"])
@pytest.mark.parametrize("other", REFUSED.values(), ids=REFUSED)
def test_plus_refuses_anything_else(other, make):
    for left, right in ((make(), other), (other, make())):
        with pytest.raises(TypeError, match=r"^Expected regularizers on both sides of \+\.") as caught:
            left + right
        assert str(caught.value).endswith(f" of {type(other)}")


@pytest.mark.parametrize("bad", [[], (), L2(), {L2()}, [L2(), [L2()]], *([L2(), other] for other in REFUSED.values())])
def test_the_constructor_refuses_anything_else(bad):
    with pytest.raises(ValueError, match=r"argument `regularizers`\. Expected a list of regularizers, such as"):
        tfk.Sum(bad)
    total = two()
    with pytest.raises(ValueError, match="Invalid value for argument `regularizers`"):
        total.regularizers = bad
    assert repr(total) == repr(two())


@pytest.mark.parametrize("several", [[L2(), Orthogonal()], (L2(), Orthogonal())], ids=["list", "tuple"])
def test_a_list_as_regularizer_is_refused_with_a_hint(several):
    for use in (tfk.get, lambda several: tf_keras.layers.Dense(2, kernel_regularizer=several)):
        with pytest.raises(ValueError, match=r"add them: `L2\(\) \+ OrthogonalRegularizer\(\)`"):
            use(several)


@pytest.mark.parametrize("legacy", [False, True], ids=["new", "legacy"])
def test_config(legacy):
    config = json.loads(json.dumps(tfk.serialize(three(), use_legacy_format=legacy)))
    assert (config["class_name"] if legacy else config["registered_name"]) == "tfk_regularizers>Sum"
    before = copy.deepcopy(config)
    for read in (tfk.get, lambda config: tfk.deserialize(config, use_legacy_format=legacy), tf_keras.regularizers.get):
        loaded = read(config)
        assert repr(loaded) == repr(three())
        assert [type(term) for term in loaded.regularizers] == [Cubes, L1, Orthogonal]
    assert config == before


def test_term_that_is_not_registered_is_found_in_custom_objects():
    config = tfk.serialize(Stronger(0.5) + Orthogonal())
    lacks = tfk.get(config)
    assert tfk.serialize(lacks) == config
    with pytest.raises(ValueError, match="Unknown regularizer: 'Stronger'"):
        lacks(tf.ones([2, 2]))
    loaded = tfk.deserialize(config, custom_objects={"Stronger": Stronger})
    direct = tfk.Sum.from_config(config["config"], custom_objects={"Stronger": Stronger})
    assert type(loaded.regularizers[0]) is type(direct.regularizers[0]) is Stronger


@pytest.mark.parametrize(("config", "message"), BAD_CONFIGS)
def test_a_bad_config_is_refused(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tfk.get({"class_name": "tfk_regularizers>Sum", "config": config})
    with pytest.raises(ValueError, match="Unknown regularizer: 'Sum'"):
        tfk.get("Sum")


class Louder(tfk.Sum):
    def __call__(self, x):
        return 2.0 * super().__call__(x)


def test_a_subclass_of_a_sum_is_a_term():
    louder = Louder([L2(0.5), Orthogonal()])
    total = louder + Orthogonal()
    assert type(total) is tfk.Sum
    assert total.regularizers[0] is louder
    assert repr(louder) == "Louder([L2(l2=0.5), OrthogonalRegularizer(factor=0.01, mode='rows')])"
    loaded = tfk.deserialize(tfk.serialize(total), custom_objects={"Louder": Louder})
    assert float(loaded(matrix())) == float(total(matrix()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda total: pickle.loads(pickle.dumps(total))])
def test_a_copy_has_terms_of_its_own(copied):
    total = three() + L2(variable())
    other = copied(total)
    assert repr(other) == repr(total).replace("<variable: 0.25>", "0.25")
    other.regularizers[0].factor = 9.0
    assert total.regularizers[0].factor == 0.25


FILES = ("model.keras", "model.h5", "model")
TERMS = (L2(variable(0.5)), Orthogonal(0.25), Orthogonal(0.125, "columns"), Cubes(0.5), L1(0.125))
OURS = [term for term in TERMS if not isinstance(term, Cubes)]


def build(keras=tf_keras, terms=TERMS):
    """A model with sums of two neighboring terms on kernels and outputs, and of all terms on the last layer."""
    layers = [keras.Input((4,))]
    for one, other in itertools.pairwise(terms):
        layers.append(keras.layers.Dense(4, "tanh", kernel_regularizer=one + other, activity_regularizer=other + one))
    bias = [term for term in terms if not isinstance(term, Orthogonal)]
    layers.append(keras.layers.Dense(3, kernel_regularizer=sum(terms), bias_regularizer=sum(bias)))
    model = keras.Sequential(layers)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape).astype("float32") for weight in model.get_weights()])
    model.compile("sgd", "mse")
    return model


def describe(model):
    """The regularizers, with variable factors written as numbers, as in files, and every loss."""
    model(np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4))
    found = [
        getattr(layer, f"{kind}_regularizer", None) for layer in model.layers for kind in ("kernel", "bias", "activity")
    ]
    losses = sorted(float(loss) for loss in model.losses)
    return {"regularizers": [repr(one).replace("<variable: 0.5>", "0.5") for one in found], "losses": losses}


def assert_same(found, expected):
    assert found["regularizers"] == expected["regularizers"]
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-6)


def reloaded(model, path):
    model.save(path)
    return tf_keras.models.load_model(path)


COPIES = {
    **{file: lambda model, folder, file=file: reloaded(model, folder / file) for file in FILES},
    "json": lambda model, _: tf_keras.models.model_from_json(model.to_json()),
    "clone_model": lambda model, _: tf_keras.models.clone_model(model),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_files_and_copies_of_a_model_hold_the_sums(tmp_path, copied):
    model = build()
    expected = describe(model)
    assert sum(" + " in written for written in expected["regularizers"]) == len(expected["losses"]) == 10
    other = copied(model, tmp_path)
    other.set_weights(model.get_weights())
    assert_same(describe(other), expected)
    assert isinstance(other.layers[0].kernel_regularizer.regularizers[0].l2, float)
    other.compile("sgd", "mse")
    assert np.isfinite(other.train_on_batch(np.ones((2, 4)), np.ones((2, 3))))
    if (tmp_path / "model").exists():  # without Keras, only the losses of the weights can be loaded
        plain = tf.saved_model.load(str(tmp_path / "model"))
        found = [float(loss()) for loss in plain.regularization_losses]
        assert len(found) == 6
        assert all(any(loss == pytest.approx(other, rel=1e-6) for other in expected["losses"]) for loss in found)


def test_checkpoints_and_weights_hold_nothing_of_a_sum(tmp_path):
    models = dense(None), dense(Orthogonal() + L2(variable()))
    for source, target in itertools.permutations(models):
        source.save_weights(tmp_path / "checkpoint", save_format="tf")
        target.load_weights(tmp_path / "checkpoint").assert_consumed()
        np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])


ELSEWHERE = """
import json, sys
import numpy as np
import tf_keras

files, refused = json.loads(sys.argv[1]), []
sys.modules["tfk_regularizers"] = None  # as if it were not installed
for file in files:
    try:
        tf_keras.models.load_model(file)
    except (TypeError, ValueError) as error:
        refused.append(str(error))
del sys.modules["tfk_regularizers"]
import tfk_regularizers
print(json.dumps([refused, [describe(tf_keras.models.load_model(file)) for file in files]]))
"""


@pytest.mark.heavy
def test_files_open_in_another_process(tmp_path, run_python):
    """Without the package, Keras raises its error; with it, the files open."""
    sums, files = build(terms=OURS), [str(tmp_path / file) for file in FILES]
    for file in files:
        sums.save(file)
    program = f"{inspect.getsource(describe)}\n{ELSEWHERE}"
    printed = run_python("-c", program, json.dumps(files), TF_CPP_MIN_LOG_LEVEL="3")
    refused, loaded = json.loads(printed.splitlines()[-1])
    assert len(refused) == len(loaded) == 3
    for opened in loaded:
        assert_same(opened, describe(sums))


@needs_keras3
def test_sums_work_in_keras_3(tmp_path):
    model, same = build(KERAS3, OURS), build(terms=OURS)
    weights = [float(value) for value in tfk.penalties(model).values()]
    np.testing.assert_allclose(weights, [float(value) for value in tfk.penalties(same).values()], rtol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = sys.modules["keras"].saving.load_model(tmp_path / "model.keras")
    assert_same(describe(loaded), describe(model))
    assert type(loaded.layers[0].kernel_regularizer) is tfk.Sum
    assert np.isfinite(loaded.train_on_batch(np.ones((2, 4), "float32"), np.ones((2, 3), "float32")))


@needs_keras3
def test_a_term_that_is_registered_in_keras_3_is_found(tmp_path):
    @sys.modules["keras"].saving.register_keras_serializable("test_sums")
    class Mine(L2):
        """A user's subclass."""

    layer = KERAS3.layers.Dense(2, kernel_regularizer=Mine(0.5) + Orthogonal())
    model = KERAS3.Sequential([KERAS3.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = sys.modules["keras"].saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0].kernel_regularizer.regularizers[0]) is Mine
    assert [float(loss) for loss in loaded.losses] == [float(loss) for loss in model.losses]


@needs_keras3
def test_a_class_that_is_registered_in_keras_3_replaces_no_class_of_its_name(monkeypatch):
    config = two().get_config()
    other = type("L2", (KERAS3.regularizers.L2,), {})
    monkeypatch.setitem(sys.modules["keras"].saving.get_custom_objects(), "test_sums>L2", other)
    assert repr(tfk.Sum.from_config(config)) == repr(two())


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_file_written_while_unregistered_opens(file, tmp_path, restored):
    penalty = L1(0.5) + Orthogonal(0.25)
    model = dense(penalty)
    tfk.unregister()
    model.save(tmp_path / file)
    tfk.register()
    loaded = tf_keras.models.load_model(tmp_path / file)
    assert repr(loaded.layers[0].kernel_regularizer) == repr(penalty)
