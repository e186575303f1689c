"""What importing, registering and unregistering the package changes in Keras."""

import inspect
import itertools
import pickle
import sys
import warnings

import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN
from libraries import needs_host
from tensorflow.python.util import tf_export

import tfk_regularizers as tfk

CLASSES = (tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer)
FUNCTIONS = ("l1_l2", "get", "serialize", "deserialize")
ALIASES = ("l1", "l2", "orthogonal_regularizer")
NAMES = ("Regularizer", *(cls.__name__ for cls in CLASSES), *ALIASES, *FUNCTIONS)


def state(builtin):
    """The content of all tables that registration may touch, and the attributes of the built-in objects."""
    tables = {("attributes", name): vars(obj) for name, obj in builtin.items()}
    for name, module in list(sys.modules.items()):
        path = name.split(".")
        if path[0] in ("tf_keras", "tensorflow", "keras") and path[-1] == "regularizers" and module is not None:
            tables[name] = vars(module)
    for keras in filter(None, (sys.modules.get("keras"), tf_keras)):
        registry = sys.modules[keras.saving.get_registered_name.__module__]
        tables.update({(keras.__name__, k): v for k, v in vars(registry).items() if "GLOBAL_CUSTOM" in k})
    tables["strings of Keras 3"] = getattr(sys.modules.get("keras.src.regularizers"), "ALL_OBJECTS_DICT", {})
    for name, table in vars(sys.modules.get("keras.src.api_export", sys)).items():
        if name.startswith("REGISTERED"):
            tables[name] = {k: v for k, v in table.items() if "egularizer" in f"{k} {v}"}
    tables["exports"] = {k: v for k, v in tf_export._NAME_TO_SYMBOL_MAPPING.items() if "regularizers" in k}
    # Python adds `__annotations__` to a class only when they are read.
    return {name: {k: v for k, v in table.items() if k != "__annotations__"} for name, table in tables.items()}


def changes(before, builtin):
    """The entries of the earlier tables that are another object now, or not equal if they are strings or tuples."""
    found, after = [], state(builtin)
    for table, content in before.items():
        for name in {**content, **after.get(table, {})}:
            one, other = content.get(name, ...), after.get(table, {}).get(name, ...)
            if one is not other and not (isinstance(one, (str, tuple)) and one == other):
                found.append(f"{table} {name}")
    return found


def program(source):
    """A program with the names and functions above, which do not import the package."""
    imports = "import importlib, sys, warnings\nimport tensorflow as tf\nfrom tensorflow.python.util import tf_export\n"
    return f"{imports}NAMES = {NAMES}\n{inspect.getsource(state)}\n{inspect.getsource(changes)}\n{source}"


FRESH = """
import tf_keras
from tf_keras.regularizers import L2 as held
import keras

class Own(held):
    def get_config(self):
        return {**super().get_config()}

def assert_same_as(before):
    found = changes(before, BUILTIN)
    assert not found, found

BUILTIN = {k: v for k, v in vars(tf_keras.regularizers).items() if callable(v)}
older, dense = held(0.5), tf_keras.layers.Dense
first = dense(2, kernel_regularizer="l2", activity_regularizer=held(0.5))
model = tf_keras.Sequential([first, dense(2), dense(2, bias_regularizer="l1")])
model.build((None, 2))
before = state(BUILTIN)
assert "l1_l2" not in before["strings of Keras 3"]

# An import that fails
export = tf_keras.src.regularizers.keras_export
del tf_keras.src.regularizers.keras_export
try:
    import tfk_regularizers
except ImportError as error:
    said = str(error)
tf_keras.src.regularizers.keras_export = export
assert "supports tf-keras 2.16 to 2.21" in said and "no attribute 'keras_export'" in said, said
assert_same_as(before)

import tfk_regularizers as tfk

assert len(changes(before, BUILTIN)) > 30  # an import does change the tables
registered = state(BUILTIN)
assert "l1_l2" in registered["strings of Keras 3"]

# Names and instances from before the import
assert held is BUILTIN["L2"] is not tf_keras.regularizers.L2
config = {"module": "keras.regularizers", "class_name": "L2", "config": {"l2": 0.5}, "registered_name": None}
assert tf_keras.regularizers.serialize(older) == config
config = tf_keras.regularizers.serialize(Own(0.5))
assert config["class_name"] == "Own"
with tf_keras.saving.custom_object_scope({"Own": Own}):
    assert type(tf_keras.regularizers.get(config)) is Own
layer = dense(2, kernel_regularizer=Own(0.5), kernel_initializer="ones")
layer.build((None, 3))
assert float(layer.losses[0]) == 3.0

# Layers from before the import cause a warning
warnings.simplefilter("error", UserWarning)
content = lambda: [(vars(layer).copy(), list(layer._callable_losses)) for layer in model.layers]
kept = content()
for function in (tfk.penalties, lambda model: tfk.set_regularizers(model, kernel_regularizer="l1_l2")):
    said = ""
    try:
        function(model)
    except UserWarning as warning:
        said = str(warning)
    assert said.startswith("There are built-in regularizers of tf_keras in 'dense', 'dense_2', because "), said
    assert "Import it first, or use its classes" in said, said
assert kept == content()
tfk.set_regularizers(model, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer=tfk.L2(0.5))
assert len(tfk.penalties(model)) == 6

# Facades that are imported afterwards, and repeated calls
late = [importlib.import_module(f"tf_keras.api._{v}.keras.regularizers") for v in ("v1", "v2")]

def hold(modules, expected):
    for module in modules:
        is_first = "_v1" in module.__name__  # v1 has no orthogonality
        names = [name for name in NAMES if not (is_first and "rthogonal" in name)]
        assert all(getattr(module, name) is expected[name] for name in names), module

modules = [tf_keras.regularizers, tf_keras.src.regularizers, *late]
hold(modules, vars(tfk))
tfk.unregister()
assert_same_as(before)
hold(modules, BUILTIN)
for _ in range(2):
    tfk.register()
assert_same_as(registered)
hold(modules, vars(tfk))
for _ in range(2):
    tfk.unregister()
assert_same_as(before)

# If the package is imported again, it replaces the former one
tfk.register()
for name in [name for name in sys.modules if name.startswith("tfk_regularizers")]:
    del sys.modules[name]
import tfk_regularizers as anew

assert type(tf_keras.regularizers.get("l2")) is anew.L2 is not tfk.L2
"""


def test_import_register_and_unregister_in_a_fresh_process(run_python):
    run_python("-c", program(FRESH))


# tf_keras


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_class_is_a_regularizer_of_every_keras_with_canonical_names(builtin, cls):
    for keras in (tf_keras, tf.keras):
        assert issubclass(cls, keras.regularizers.Regularizer)
        assert isinstance(cls(), keras.regularizers.Regularizer)
    assert not issubclass(cls, getattr(builtin, cls.__name__))
    assert tfk.Regularizer is builtin.L2.__base__
    alias = {"L1": "l1", "L2": "l2", "OrthogonalRegularizer": "orthogonal_regularizer"}.get(cls.__name__, "L1L2")
    for name in (cls.__name__, alias):
        assert tf_export.get_symbol_from_name(f"keras.regularizers.{name}") is cls
    assert tf_export.get_canonical_name_for_symbol(cls, api_name="keras") == f"keras.regularizers.{cls.__name__}"
    assert tf_export.get_symbol_from_name("keras.regularizers.Regularizer") is tf_keras.regularizers.Regularizer


@pytest.mark.usefixtures("restored")
def test_unregistered_names_of_tf_keras_are_the_built_in_ones(builtin):
    layer = tf_keras.layers.Dense(2, kernel_regularizer="l2", kernel_initializer="ones")
    layer.build((None, 3))
    tfk.unregister()
    for name, obj in vars(builtin).items():
        assert getattr(tf_keras.regularizers, name) is obj
    assert type(tf_keras.layers.Dense(2, kernel_regularizer="l2").kernel_regularizer) is builtin.L2
    assert type(tf_keras.regularizers.get(tfk.serialize(builtin.L2(0.5)))) is builtin.L2
    assert type(layer.kernel_regularizer) is tfk.L2  # a layer keeps its regularizer
    assert float(layer.losses[0]) == pytest.approx(0.06)
    assert type(tfk.get("l2")) is type(tfk.get(tfk.serialize(tfk.L2(0.5)))) is tfk.L2  # these need no registration


@pytest.mark.usefixtures("restored")
def test_objects_of_the_user_stay_and_prevent_nothing():
    class Mine(tfk.L2):
        pass

    class L2(tf_keras.regularizers.Regularizer):
        """A class of the same name as ours."""

    tf_keras.saving.register_keras_serializable("my_package")(Mine)
    tf_keras.saving.get_custom_objects()["L2"] = L2
    tfk.unregister()
    tfk.register()
    assert tf_keras.saving.get_registered_object("my_package>Mine") is Mine
    assert tf_keras.saving.get_registered_name(Mine) == "my_package>Mine"
    assert type(tf_keras.regularizers.get(tf_keras.regularizers.serialize(Mine(0.5)))) is Mine
    assert tf_keras.regularizers.L2 is tfk.L2
    with tf_keras.saving.custom_object_scope({"l1": L2, "OrthogonalRegularizer": L2}):
        tfk.register()
    assert tf_keras.regularizers.L1 is tfk.L1


# Failures


def failing_midway(*names, **keywords):
    if next(CALLS) == 3:
        raise RuntimeError("midway")
    return EXPORT(*names, **keywords)


SAVING, SOURCE = tf_keras.saving, sys.modules[tf_keras.regularizers.Regularizer.__module__]
CALLS, EXPORT = itertools.count(), SOURCE.keras_export
BREAK = {  # owner, name and replacement of an attribute; None deletes it
    "no export": (SOURCE, "keras_export", None),
    "export of another signature": (SOURCE, "keras_export", lambda *names: SOURCE),
    "export that fails midway": (SOURCE, "keras_export", failing_midway),
    "export without effect": (SOURCE, "keras_export", lambda *names, **_: lambda obj: obj),
    "no l1_l2": (SOURCE, "l1_l2", None),
    "function without a canonical name": (BUILTIN.get, "_keras_api_names", None),
    "class without a canonical name": (BUILTIN.L2, "_keras_api_names", None),
    "built-in deserialized": (SAVING, "deserialize_keras_object", lambda config, **_: BUILTIN.L2()),
    "no deserialization": (SAVING, "deserialize_keras_object", None),
}


@pytest.mark.parametrize(("owner", "name", "replacement"), BREAK.values(), ids=BREAK)
@pytest.mark.usefixtures("restored")
def test_failure_names_the_versions_and_leaves_nothing_registered(builtin, monkeypatch, owner, name, replacement):
    tfk.unregister()
    before = state(vars(builtin))
    with monkeypatch.context() as patch:
        patch.delattr(owner, name)
        if replacement:
            patch.setattr(owner, name, replacement, raising=False)
        with pytest.raises(ImportError, match=r"tf-keras 2\.16 to 2\.21\..* tf-keras 2\.\d\d?\.\d"):
            tfk.register()
    assert changes(before, vars(builtin)) == []
    assert "_keras_api_names" not in vars(tfk.L1)
    tfk.register()
    assert tf_keras.regularizers.L2 is tfk.L2
    tfk.unregister()
    assert changes(before, vars(builtin)) == []


# Built-in regularizers from before the import


@pytest.mark.parametrize(
    "make",
    [
        lambda regularizer: tf_keras.layers.Dense(1, kernel_regularizer=regularizer),
        lambda regularizer: tf_keras.layers.Conv2D(1, 3, kernel_regularizer=regularizer),
        lambda regularizer: tf_keras.layers.Embedding(3, 2, embeddings_regularizer=regularizer),
        lambda regularizer: tf_keras.layers.LSTM(2, recurrent_regularizer=regularizer),
    ],
    ids=["Dense", "Conv2D", "Embedding", "LSTM"],
)
def test_built_in_regularizer_in_a_layer_warns_at_the_line_of_the_user(builtin, make):
    message = r"^L2 is the built-in regularizer of tf_keras, because .* was imported later\. Import it first"
    with pytest.warns(UserWarning, match=message) as caught:
        make(builtin.L2(0.1))
    assert (caught[0].filename, caught[0].lineno) == (__file__, make.__code__.co_firstlineno)


@pytest.mark.usefixtures("restored")
def test_others_do_not_warn_nor_anything_while_nothing_is_registered(builtin):
    class Own(builtin.L2):
        def __call__(self, x):
            return 2.0 * super().__call__(x)

    class Ours(tfk.L2):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for regularizer in (Own(0.1), Ours(0.1), tfk.L2(0.1), "l2", tf.reduce_sum, builtin.l1_l2(0.1)):
            tf_keras.layers.Dense(2, kernel_regularizer=regularizer)
        with pytest.raises(UserWarning, match=r"^L2 is the built-in"):
            tf_keras.layers.Dense(2, kernel_regularizer=type("Renamed", (builtin.L2,), {})(0.1))
        with pytest.raises(UserWarning, match=r"^OrthogonalRegularizer is the built-in"):
            tf_keras.layers.Dense(2, kernel_regularizer=builtin.OrthogonalRegularizer(0.1))
        tfk.unregister()
        tf_keras.layers.Dense(2, kernel_regularizer=builtin.L2(0.1))
        tfk.get(builtin.L2(0.1))


# Processes in which tf.keras is tf_keras

LEGACY = """
import tfk_regularizers as tfk
import tf_keras
import tensorflow.keras.regularizers as imported

facades = [imported, *(k.regularizers for k in (tf.keras, tf_keras, tf.compat.v1.keras, tf.compat.v2.keras))]
ours = {name: getattr(tfk, name) for name in NAMES}
assert tf.keras.layers.Dense is tf_keras.layers.Dense
for facade in facades:
    assert all(getattr(facade, name, ours[name]) is ours[name] for name in NAMES), facade
assert repr(tf.keras.layers.Dense(2, kernel_regularizer="l1_l2").kernel_regularizer) == "L1L2(l1=0.01, l2=0.01)"
assert [cls.__name__ for cls in tfk.L2.__mro__].count("Regularizer") == 1
model = tf.keras.Sequential([tf.keras.layers.Dense(2, kernel_regularizer="orthogonal_regularizer", input_shape=(3,))])
model.compile("sgd", "mse")
assert model.fit(tf.ones((4, 3)), tf.ones((4, 2)), verbose=0).history["loss"][0] < 1e6
tfk.unregister()
for facade in facades:
    assert not any(getattr(facade, name, None) is ours[name] for name in NAMES[1:]), facade
"""

KERAS_3_BESIDE_IT = """
import keras
import numpy as np
import tfk_regularizers as tfk

path = sys.argv[1]
total = tfk.L2(0.5) + tfk.OrthogonalRegularizer(0.5)
for regularizer in ("l1_l2", tfk.L2(0.5), total, total.regularizers[1], tfk.SampledOrthogonalRegularizer(0.5)):
    layer = keras.layers.Dense(3, kernel_initializer="ones", kernel_regularizer=regularizer)
    model = keras.Sequential([keras.layers.Input((4,)), layer])
    model.compile("sgd", "mse")
    penalty = sum(tfk.penalties(model).values())
    assert float(penalty) == float(sum(model.losses)) > 0
    model.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    model.save(path)
    loaded = keras.saving.load_model(path).layers[0].kernel_regularizer
    assert type(loaded) is type(tfk.get(regularizer))
    assert isinstance(loaded, keras.regularizers.Regularizer)
tfk.unregister()
assert "l1_l2" not in vars(sys.modules[keras.regularizers.get.__module__])["ALL_OBJECTS_DICT"]
assert not any(name.startswith("tfk_regularizers") for name in keras.saving.get_custom_objects())
"""


@pytest.mark.parametrize("source", [LEGACY, KERAS_3_BESIDE_IT], ids=["tf_keras only", "Keras 3 imported before"])
@pytest.mark.heavy
def test_where_tf_keras_is_the_keras_of_tensorflow(run_python, source, tmp_path):
    if source is KERAS_3_BESIDE_IT:
        pytest.importorskip("keras", minversion="3.0")
    path = tmp_path / "model.keras"
    run_python("-c", program(source), path, TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")


@pytest.mark.heavy
def test_import_before_any_other_does_not_warn(run_python):
    source = "import tfk_regularizers, tf_keras; print(tf_keras.regularizers.L2())"
    assert run_python("-W", "error", "-c", source) == "L2(l2=0.01)\n"


# Keras 3


NAMES_IN_KERAS_3 = {
    **{name: getattr(tfk, name) for cls in CLASSES for name in [cls.__name__]},
    **{"l1": tfk.L1, "l2": tfk.L2, "l1_l2": tfk.L1L2, "orthogonal_regularizer": tfk.OrthogonalRegularizer},
}
NEW_CLASSES = (tfk.GroupLasso, tfk.SoftOrthogonalRegularizer, tfk.SampledOrthogonalRegularizer)


@needs_host
def test_strings_classes_configs_and_modules_of_keras_3_give_ours():
    import keras as itself
    import tensorflow.keras.regularizers as imported
    from keras._tf_keras.keras import regularizers as facade
    from keras.src import regularizers as source

    for module in (tf.keras.regularizers, itself.regularizers, imported, facade):
        assert all(getattr(module, name) is cls for name, cls in NAMES_IN_KERAS_3.items()), module
    assert all(getattr(source, cls.__name__) is cls for cls in CLASSES)
    for layer in (tf.keras.layers.Dense, itself.layers.Dense):
        for string, cls in {**NAMES_IN_KERAS_3, **{cls.__name__: cls for cls in NEW_CLASSES}}.items():
            regularizer = layer(3, kernel_regularizer=string).kernel_regularizer
            assert repr(regularizer) == repr(tfk.l1_l2() if string == "l1_l2" else cls())
    for cls in CLASSES:
        config = itself.regularizers.serialize(cls())
        module, factors = "keras.regularizers", cls().get_config()
        assert config == {"module": module, "class_name": cls.__name__, "config": factors, "registered_name": None}
        legacy = {"class_name": cls.__name__, "config": factors}
        older = config | {"module": "tfk_regularizers", "registered_name": f"tfk_regularizers>{cls.__name__}"}
        for each in (config, legacy, older):
            assert type(itself.regularizers.get(each)) is cls
            assert itself.regularizers.get(each).get_config() == factors


@needs_host
def test_what_keras_3_has_of_its_own_keeps_its_meaning():
    regularizers = tf.keras.regularizers
    assert repr(regularizers.get("l1l2")) == repr(regularizers.l1_l2()) == "L1L2(l1=0.0, l2=0.0)"
    for function in (regularizers.get, regularizers.serialize, regularizers.deserialize):
        assert function.__module__ == "keras.src.regularizers"
    with pytest.raises(ValueError, match="Could not interpret regularizer identifier: l3"):
        tf.keras.layers.Dense(3, kernel_regularizer="l3")


@needs_host
def test_a_built_in_instance_of_keras_3_pickles():
    """Its class stays where pickle looks for it."""
    source = sys.modules[tf.keras.regularizers.Regularizer.__module__]
    assert source.L2 is not tfk.L2
    assert type(pickle.loads(pickle.dumps(source.L2(0.5)))) is source.L2
    layer = tf.keras.layers.Dense(2, kernel_regularizer=source.L2(0.5))
    assert layer.get_config()["kernel_regularizer"]["module"] == "keras.regularizers"


@needs_host
@pytest.mark.usefixtures("restored")
def test_keras_3_can_be_left_out():
    source = sys.modules[tf.keras.regularizers.Regularizer.__module__]
    tfk.unregister()
    before = state({})
    tfk.register(keras3=False)
    assert tf_keras.regularizers.L2 is tfk.L2
    assert type(tf.keras.layers.Dense(3, kernel_regularizer="l2").kernel_regularizer) is source.L2
    touched = {change.partition(" ")[0] for change in changes(before, {})}
    own = ("tf_keras", "exports", "('tf_keras'", "('keras'")  # the last one: custom objects of Keras 3
    assert all(name.startswith(own) for name in touched), touched
    tfk.register()
    tfk.register(keras3=False)
    assert {change.partition(" ")[0] for change in changes(before, {})} == touched
    for regularizer in (tfk.L2(0.5), tfk.GroupLasso(0.5)):
        layer = tf.keras.layers.Dense(2, kernel_regularizer=regularizer)
        assert repr(type(layer).from_config(layer.get_config()).kernel_regularizer) == repr(regularizer)
    with pytest.raises(ValueError, match=r"argument `keras3`\. Expected True or False"):
        tfk.register(keras3="no")
    assert tf.keras.regularizers.L2 is source.L2


@needs_host
@pytest.mark.usefixtures("restored")
def test_a_string_that_keras_3_already_has_stays(monkeypatch):
    class Mine(tf.keras.regularizers.Regularizer):
        pass

    strings = sys.modules["keras.src.regularizers"].ALL_OBJECTS_DICT
    tfk.unregister()
    monkeypatch.setitem(strings, "l1_l2", Mine)
    tfk.register()
    assert type(tf.keras.regularizers.get("l1_l2")) is Mine
    tfk.unregister()
    assert strings["l1_l2"] is Mine


@needs_host
@pytest.mark.parametrize("missing", ["ALL_OBJECTS_DICT", "api_export"])
@pytest.mark.usefixtures("restored")
def test_keras_3_with_other_tables_keeps_its_own_and_tf_keras_gets_ours(missing, monkeypatch):
    registry = sys.modules["tfk_regularizers._keras.keras3.registry"]
    tfk.unregister()
    before = state({})
    owner = registry.regularizers if missing == "ALL_OBJECTS_DICT" else registry
    with monkeypatch.context() as patch:
        patch.delattr(owner, missing)
        with pytest.warns(UserWarning, match=r"^tfk_regularizers does not support Keras 3\.\S+: its .*Error"):
            tfk.register()
    assert type(tf_keras.regularizers.get("l1_l2")) is tfk.L1L2
    touched = {change.partition(" ")[0] for change in changes(before, {})}
    assert all(name.startswith(("tf_keras", "exports", "('tf_keras'")) for name in touched), touched


OLDER = """
import keras, tf_keras
{before}
import tfk_regularizers as tfk
print(type(keras.layers.Dense(2, kernel_regularizer="l2").kernel_regularizer).__module__.partition(".")[0])
print(keras.regularizers.L2 is tfk.L2, tf_keras.regularizers.L2 is tfk.L2)
"""


@needs_host
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("before", "environment"),
    [("keras.__version__ = '3.11.3'", {}), ("", {"TF_USE_LEGACY_KERAS": "1"})],
    ids=["an older Keras 3", "legacy Keras"],
)
def test_keras_3_that_keeps_its_own(run_python, before, environment):
    said = run_python("-c", OLDER.format(before=before), TF_CPP_MIN_LOG_LEVEL="3", **environment)
    assert said == "keras\nFalse True\n"
