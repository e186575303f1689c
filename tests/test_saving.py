"""All ways to save and load a model, with this package and without it."""

import copy
import inspect
import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk

# These factors are exact in float32, so the built-in writes them unchanged.
REGULARIZERS = {
    "l1": ("L1", {"l1": 0.0078125}),
    "l2": ("L2", {"l2": 0.015625}),
    "l1_l2": ("L1L2", {"l1": 0.00390625, "l2": 0.03125}),
    "rows": ("OrthogonalRegularizer", {"factor": 0.0625, "mode": "rows"}),
    "columns": ("OrthogonalRegularizer", {"factor": 0.5, "mode": "columns"}),
    "activity": ("L2", {"l2": 0.001953125}),
}


def build():
    """A compiled model with the classes that are currently in tf_keras.regularizers."""

    def make(key):
        name, arguments = REGULARIZERS[key]
        return getattr(tf_keras.regularizers, name)(**arguments)

    layers = [
        tf_keras.layers.Dense(6, kernel_regularizer=make("l1"), bias_regularizer=make("l2"), name="a"),
        tf_keras.layers.Dense(7, kernel_regularizer=make("l2"), name="b"),
        tf_keras.layers.Dense(8, kernel_regularizer=make("l1_l2"), name="c"),
        tf_keras.layers.Dense(5, kernel_regularizer=make("rows"), activity_regularizer=make("activity"), name="d"),
        tf_keras.layers.Dense(4, kernel_regularizer=make("columns"), name="e"),
    ]
    model = tf_keras.Sequential(layers, name="model")
    model.build((None, 3))
    model.compile("sgd", "mse")
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def describe(model):
    """The regularizers of a model's layers, their factors and every loss they give."""
    names = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
    held = [(layer.name, name, getattr(layer, name)) for layer in model.layers for name in names]
    x = tf.reshape(tf.linspace(-1.0, 1.0, 12), (4, 3))
    model(x)
    return {
        "regularizers": [[*at, type(r).__module__, type(r).__name__, r.get_config()] for *at, r in held if r],
        "losses": sorted(float(loss) for loss in model.losses),
        "evaluated": model.evaluate(x, tf.ones((4, 4)), verbose=0),
    }


@tf_keras.saving.register_keras_serializable("test_saving")
class Counting(tf_keras.regularizers.L2):
    """A user's subclass that holds a variable."""

    def __init__(self, l2=0.25):
        super().__init__(l2)
        self.calls = tf.Variable(0.0, trainable=False)


def build_counting():
    layer = tf_keras.layers.Dense(3, input_shape=(4,), kernel_regularizer=Counting(), kernel_initializer="ones")
    model = tf_keras.Sequential([layer])
    model.compile("sgd", "mse")
    return model


def save_all(model, folder):
    """Save the model, and one with the subclass, in every format, with the suffix of the format."""
    for prefix, saved in (("", model), ("counting_", build_counting())):
        saved.save(folder / f"{prefix}model.keras")
        saved.save(folder / f"{prefix}model.h5")
        saved.save(folder / f"{prefix}model", save_format="tf")
        saved.save_weights(folder / f"{prefix}weights" / "checkpoint", save_format="tf")
    model.save_weights(folder / "some.weights.h5")
    (folder / "model.json").write_text(model.to_json())


def load(path):
    """Load a model. One from JSON is compiled, and gets the weights of the .keras file in the same folder."""
    if path.suffix != ".json":
        return tf_keras.models.load_model(path)
    model = tf_keras.models.model_from_json(path.read_text())
    model.compile("sgd", "mse")
    model.set_weights(tf_keras.models.load_model(path.with_name("model.keras")).get_weights())
    return model


def counting_losses(folder):
    """The losses of the model with the subclass in every file. Weights that do not match raise an error."""
    status = build_counting().load_weights(folder / "counting_weights" / "checkpoint")
    status.assert_existing_objects_matched().assert_consumed()
    files = [folder / f"counting_{file}" for file in ("model.keras", "model.h5", "model")]
    models = [tf_keras.models.load_model(file, custom_objects={"Counting": Counting}) for file in files]
    return [float(model.losses[0]) for model in models]


FILES = ("model.keras", "model.h5", "model", "model.json")
files = pytest.mark.parametrize("file", FILES)

# A program that never imports the package: it opens the files in one folder and writes its own into another.
PLAIN = f"""
import json, pathlib, sys
import numpy as np
import tensorflow as tf
import tf_keras

REGULARIZERS = {REGULARIZERS}
{"".join(inspect.getsource(f) for f in (build, describe, Counting, build_counting, save_all, load, counting_losses))}
theirs, own = map(pathlib.Path, sys.argv[1:])
model = build()
save_all(model, own)
build().load_weights(theirs / "weights" / "checkpoint").assert_existing_objects_matched().expect_partial()
report = {{"written": describe(model), "opened": {{file: describe(load(theirs / file)) for file in {FILES}}}}}
report["counting"] = counting_losses(theirs)
assert not any(name.startswith("tfk_regularizers") for name in sys.modules)
(own / "report.json").write_text(json.dumps(report))
"""

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def description(model):
    found = describe(model)
    assert len(found["regularizers"]) == len(found["losses"]) == 7
    assert min(found["losses"]) > 0
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A folder with the files of a model that has our regularizers, saved before any use, like the plain one."""
    folder = tmp_path_factory.mktemp("ours")
    save_all(build(), folder)
    return folder


@pytest.fixture(scope="module")
def plain(ours, tmp_path_factory, run_python):
    """A folder with the files of the same model from a process without this package, and its report on ours."""
    folder = tmp_path_factory.mktemp("plain")
    run_python("-c", PLAIN, ours, folder)
    return folder


def assert_same(found, expected, module):
    assert [r[:2] + r[3:] for r in found["regularizers"]] == [r[:2] + r[3:] for r in expected["regularizers"]]
    assert {r[2] for r in found["regularizers"]} == {module}
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=1e-6)


@files
def test_file_opened_here(ours, plain, description, file):
    for folder in (ours, plain):
        assert_same(describe(load(folder / file)), description, "tfk_regularizers")


@files
def test_file_opened_without_the_package(plain, description, file):
    report = json.loads((plain / "report.json").read_text())
    for found in (report["opened"][file], report["written"]):
        assert_same(found, description, tf_keras.regularizers.Regularizer.__module__)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "clone_model": tf_keras.models.clone_model,
    "from_config": lambda model: type(model).from_config(model.get_config()),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copy_of_a_model(model, description, copied):
    other = copied(model)
    other.set_weights(model.get_weights())
    other.compile("sgd", "mse")
    assert_same(describe(other), description, "tfk_regularizers")
    assert other.layers[0].kernel_regularizer is not model.layers[0].kernel_regularizer


def config_in(path):
    """The text of the config of the model in a file."""
    if path.suffix == ".keras":
        return zipfile.Path(path, "config.json").read_text()
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file.attrs["model_config"]
    if path.suffix == ".json":
        return path.read_text()
    metadata = (path / "keras_metadata.pb").read_bytes().decode(errors="replace")
    return json.dumps(json.JSONDecoder().raw_decode(metadata[metadata.index('{"name": "model"') :])[0]["config"])


@files
def test_config_is_the_one_of_plain_tf_keras(ours, plain, file):
    text, expected = (json.dumps(json.loads(config_in(folder / file))) for folder in (ours, plain))
    assert text == expected
    assert "OrthogonalRegularizer" in text
    assert "tfk_regularizers" not in text
    paths = [path for path in (ours / file, *(ours / file).rglob("*")) if path.is_file()]
    assert paths
    assert not any(b"tfk_regularizers" in path.read_bytes() for path in paths)


def variables(path):
    """Name and value of each variable of a weight file."""
    if path.suffix == ".h5":
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
        return found
    names = [name for name, _ in tf.train.list_variables(path) if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: tf.train.load_variable(path, name) for name in names}


@pytest.mark.parametrize("file", ["some.weights.h5", "weights/checkpoint"], ids=["h5", "tf"])
def test_weight_file_is_the_one_of_plain_tf_keras_and_is_loaded(ours, plain, model, file):
    found, expected = variables(ours / file), variables(plain / file)
    assert found.keys() == expected.keys()
    assert sum(np.size(value) for value in found.values()) > 200
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    other = tf_keras.models.clone_model(model)
    status = other.load_weights(plain / file)
    if status is not None:
        status.assert_existing_objects_matched().expect_partial()
    for value, expected in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_losses_of_a_saved_model_without_keras(ours, description):
    loaded = tf.saved_model.load(str(ours / "model"))
    weight_losses = sorted(float(loss()) for loss in loaded.regularization_losses)
    assert len(weight_losses) == 6
    assert all(any(loss == pytest.approx(other, rel=1e-6) for other in description["losses"]) for loss in weight_losses)


class Stronger(tfk.L2):
    """A user's subclass of our L2."""


@pytest.mark.parametrize("file", ["model.keras", "model.h5", "model"])
def test_subclass_of_the_user_is_saved_as_itself(builtin, tmp_path, file):
    class StrongerBuiltIn(builtin.L2):
        def get_config(self):
            return super().get_config()

    shared = Stronger(0.5), StrongerBuiltIn(0.25)
    layers = [tf_keras.layers.Dense(2, kernel_regularizer=each, bias_regularizer=each) for each in shared]
    model = tf_keras.Sequential([tf_keras.Input((3,)), *layers])
    model.save(tmp_path / file)
    objects = {"Stronger": Stronger, "StrongerBuiltIn": StrongerBuiltIn}
    loaded = tf_keras.models.load_model(tmp_path / file, custom_objects=objects)
    for name in ("kernel_regularizer", "bias_regularizer"):
        found = [getattr(layer, name) for layer in loaded.layers]
        assert [(type(r), r.l2) for r in found] == [(Stronger, 0.5), (StrongerBuiltIn, 0.25)]
    assert [float(loss) for loss in loaded.losses] == [float(loss) for loss in model.losses]


def test_subclass_that_holds_a_variable(ours, plain):
    """Each side opens its own files and the other's. A class that is registered needs no custom objects."""
    assert Counting.__mro__[1] is tfk.L2
    report = json.loads((plain / "report.json").read_text())
    assert counting_losses(ours) == counting_losses(plain) == report["counting"] == [3.0] * 3
    for file in ("counting_model.keras", "counting_model.h5", "counting_model"):
        assert isinstance(tf_keras.models.load_model(ours / file).layers[0].kernel_regularizer, Counting)


def missing(x):
    """A user's function as a regularizer."""
    return tf.reduce_sum(tf.square(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, tf_keras.models.clone_model, "keras"], ids=lambda how: str(how)[:16])
@pytest.mark.parametrize(
    "make",
    [Stronger, lambda: missing, lambda: tfk.L2(0.25) + Stronger() + tfk.GroupLasso(0.5)],
    ids=["class", "function", "sum"],
)
@pytest.mark.filterwarnings("ignore:.*may be serialized improperly:UserWarning")
@pytest.mark.light(make=[Stronger])
@pytest.mark.light(copied=["keras"])
def test_missing_class_or_function_raises_once_its_penalty_is_asked_for(tmp_path, make, copied):
    """As in tf_keras, the model can be used and saved again meanwhile, and its file then has the whole regularizer."""
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=make(), input_shape=(3,))])
    expected, x = float(model.losses[0]), np.ones((1, 3), "float32")
    model.save(tmp_path / "model.keras")
    other = tf_keras.models.load_model(tmp_path / "model.keras") if copied == "keras" else copied(model)
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    with pytest.raises(ValueError, match=r"Unknown regularizer: '(Stronger|missing)'.*register_keras_serializable"):
        float(other.losses[0])
    other.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Unknown regularizer: '(Stronger|missing)'"):
        other.fit(x, np.ones((1, 2)), verbose=0)
    other.set_weights(model.get_weights())
    other.save(tmp_path / "again.keras")
    objects = {"Stronger": Stronger, "missing": missing}
    known = tf_keras.models.load_model(tmp_path / "again.keras", custom_objects=objects)
    assert float(known.losses[0]) == pytest.approx(expected)


def test_class_of_the_main_program_in_h5(tmp_path, restored):
    """Keras writes no module for such a class."""
    functions = {"__call__": lambda self, x: 0.0, "get_config": lambda self: {}}
    own = type("Own", (tfk.L2,), {"__module__": "__main__"})
    other = type("Other", (tf_keras.regularizers.Regularizer,), {"__module__": "__main__", **functions})
    for cls in (own, other):
        tf_keras.saving.register_keras_serializable("test_saving")(cls)
    given = (own(), other(), tfk.L2() + other() + own())
    layers = [tf_keras.layers.Dense(2, kernel_regularizer=regularizer) for regularizer in given]
    tf_keras.Sequential([tf_keras.Input((3,)), *layers]).save(tmp_path / "model.h5")
    loaded = [layer.kernel_regularizer for layer in tf_keras.models.load_model(tmp_path / "model.h5").layers]
    assert [type(r) for r in (*loaded[:2], *loaded[2].regularizers)] == [own, other, tfk.L2, other, own]
