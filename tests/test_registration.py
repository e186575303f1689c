"""What import, register and unregister put into Keras, and take out again."""

import importlib
import inspect
import itertools
import json
import sys
import warnings

import pytest
import tensorflow as tf
import tf_keras
from libraries import needs_keras3
from tensorflow.python.util import tf_export

import tfk_regularizers as tfk

CLASSES = (tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer)
classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
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
    exports = {k: v for k, v in tf_export._NAME_TO_SYMBOL_MAPPING.items() if "regularizers" in k}
    return {name: dict(table) for name, table in tables.items()} | {"exports": exports}


def differences(before, after):
    """The entries that are another object (another text or tuple for these), in the tables that were there before."""
    found = []
    for table, content in before.items():
        for name in {**content, **after.get(table, {})}:
            one, other = content.get(name, ...), after.get(table, {}).get(name, ...)
            if one is not other and not (isinstance(one, (str, tuple)) and one == other):
                found.append(f"{table} {name}")
    return found


def program(source):
    """A program with the names and functions above. It imports tf_keras, and not the package."""
    imports = "import importlib, json, sys\nimport tensorflow as tf\nfrom tensorflow.python.util import tf_export\n"
    return f"{imports}NAMES = {NAMES}\n{inspect.getsource(state)}\n{inspect.getsource(differences)}\n{source}"


FRESH = """
import tf_keras
from tf_keras.regularizers import L2 as held
import keras

class Own(held):
    def get_config(self):
        return {**super().get_config()}

def fails_in_keras3():
    try:
        tf.keras.layers.Dense(3, kernel_regularizer="l1_l2")
    except ValueError:
        return True
    return False

BUILTIN = {k: v for k, v in vars(tf_keras.regularizers).items() if callable(v)}
result = {}
older = held(0.5)
before = state(BUILTIN)
result["string l1_l2 fails in Keras 3 before the import"] = fails_in_keras3()

export = tf_keras.src.regularizers.keras_export
del tf_keras.src.regularizers.keras_export
try:
    import tfk_regularizers
except ImportError as error:
    result["error of a failed import"] = str(error)
tf_keras.src.regularizers.keras_export = export
result["left over by a failed import"] = differences(before, state(BUILTIN))

import tfk_regularizers as tfk
result["changed by the import"] = len(differences(before, state(BUILTIN)))
result["class held from before is the built-in"] = held is BUILTIN["L2"] and held is not tf_keras.regularizers.L2
result["written by an instance held from before"] = tf_keras.regularizers.serialize(older)

config = tf_keras.regularizers.serialize(Own(0.5))
result["written by a subclass held from before"] = config["class_name"]
with tf_keras.saving.custom_object_scope({"Own": Own}):
    result["subclass held from before is loaded"] = type(tf_keras.regularizers.get(config)) is Own
layer = tf_keras.layers.Dense(2, kernel_regularizer=Own(0.5), kernel_initializer="ones")
layer.build((None, 3))
result["loss of a subclass held from before"] = float(layer.losses[0])

late = [importlib.import_module(f"tf_keras.api._{v}.keras.regularizers") for v in ("v1", "v2")]

def names_other_than(expected, modules):
    return [n for module in modules for n in NAMES if getattr(module, n, expected[n]) is not expected[n]]

result["facades imported afterwards are not ours"] = names_other_than(vars(tfk), late)
tfk.unregister()
result["left over by unregister"] = differences(before, state(BUILTIN))
result["facades imported afterwards are not built-in again"] = names_other_than(BUILTIN, late)
result["string l1_l2 fails in Keras 3 after unregister"] = fails_in_keras3()
for _ in range(2):
    tfk.register()
result["not registered again"] = names_other_than(vars(tfk), (tf_keras.regularizers, *late))
for _ in range(2):
    tfk.unregister()
result["left over by the second unregister"] = differences(before, state(BUILTIN))
print(json.dumps(result))
"""

IN_A_FRESH_PROCESS = {
    "string l1_l2 fails in Keras 3 before the import": True,
    "left over by a failed import": [],
    "class held from before is the built-in": True,
    "written by an instance held from before": tfk.serialize(tfk.L2(0.5)),
    "written by a subclass held from before": "Own",
    "subclass held from before is loaded": True,
    "loss of a subclass held from before": 3.0,
    "facades imported afterwards are not ours": [],
    "left over by unregister": [],
    "facades imported afterwards are not built-in again": [],
    "string l1_l2 fails in Keras 3 after unregister": True,
    "not registered again": [],
    "left over by the second unregister": [],
}


@pytest.fixture(scope="module")
def fresh(run_python):
    """What a fresh process sees before, between and after import, unregister and register."""
    return json.loads(run_python("-c", program(FRESH)))


@pytest.mark.parametrize("key", IN_A_FRESH_PROCESS)
def test_fresh_process_finds(fresh, key):
    assert fresh[key] == IN_A_FRESH_PROCESS[key]


def test_state_shows_what_the_import_changes(fresh):
    assert fresh["changed by the import"] > 30


def test_failed_import_names_the_versions_and_what_is_missing(fresh):
    assert "supports tf-keras 2.16 to 2.22" in fresh["error of a failed import"]
    assert "in which keras_export of tf_keras" in fresh["error of a failed import"]


# tf_keras


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "module",
    [
        "tf_keras.regularizers",
        "tf_keras.src.regularizers",
        "tf_keras.api._v2.keras.regularizers",
        "tf_keras.api._v1.keras.regularizers",
    ],
)
def test_public_name_of_tf_keras_is_ours(module, name):
    if "_v1" not in module or "rthogonal" not in name:  # which the first version does not have
        assert getattr(importlib.import_module(module), name) is getattr(tfk, name)


@classes
def test_class_is_a_regularizer_of_every_keras(builtin, cls):
    for keras in (tf_keras, tf.keras):
        assert issubclass(cls, keras.regularizers.Regularizer)
        assert isinstance(cls(), keras.regularizers.Regularizer)
    assert not issubclass(cls, getattr(builtin, cls.__name__))
    assert tfk.Regularizer is builtin.L2.__base__


@classes
def test_canonical_names_are_ours(cls):
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
    assert type(layer.kernel_regularizer) is tfk.L2  # a layer keeps what it has
    assert float(layer.losses[0]) == pytest.approx(0.06)


@pytest.mark.usefixtures("restored")
def test_registering_twice_changes_nothing(builtin):
    found = {}
    for function in (tfk.register, tfk.register, tfk.unregister, tfk.unregister, tfk.register, tfk.unregister):
        function()
        assert differences(found.setdefault(function, state(vars(builtin))), state(vars(builtin))) == []


@pytest.mark.usefixtures("restored")
def test_object_of_the_user_is_left_as_it_is():
    class Mine(tfk.L2):
        pass

    tf_keras.saving.register_keras_serializable("my_package")(Mine)
    tfk.unregister()
    tfk.register()
    assert tf_keras.saving.get_registered_object("my_package>Mine") is Mine
    assert tf_keras.saving.get_registered_name(Mine) == "my_package>Mine"
    assert type(tf_keras.regularizers.get(tf_keras.regularizers.serialize(Mine(0.5)))) is Mine


@pytest.mark.usefixtures("restored")
def test_custom_object_of_the_same_name_does_not_prevent_registration():
    class L2(tf_keras.regularizers.Regularizer):
        """The user's own."""

    tf_keras.saving.get_custom_objects()["L2"] = L2
    tfk.unregister()
    tfk.register()
    assert tf_keras.regularizers.L2 is tfk.L2
    with tf_keras.saving.custom_object_scope({"l1": L2, "OrthogonalRegularizer": L2}):
        tfk.register()
    assert tf_keras.regularizers.L1 is tfk.L1


# Failures


def failing_midway(export):
    calls = itertools.count()

    def fail(*names, **keywords):
        if next(calls) == 3:
            raise RuntimeError("midway")
        return export(*names, **keywords)

    return fail


EXPORT, SOURCE = "keras_export", sys.modules[tf_keras.regularizers.Regularizer.__module__]
BREAK = {
    "no export": lambda patch, builtin: patch.delattr(SOURCE, EXPORT),
    "export of another signature": lambda patch, builtin: patch.setattr(SOURCE, EXPORT, lambda *names: SOURCE),
    "export that fails midway": lambda patch, builtin: patch.setattr(
        SOURCE, EXPORT, failing_midway(SOURCE.keras_export)
    ),
    "export without effect": lambda patch, builtin: patch.setattr(SOURCE, EXPORT, lambda *names, **_: lambda obj: obj),
    "no l1_l2": lambda patch, builtin: patch.delattr(SOURCE, "l1_l2"),
    "function without a canonical name": lambda patch, builtin: patch.delattr(builtin.get, "_keras_api_names"),
    "class without a canonical name": lambda patch, builtin: patch.delattr(builtin.L2, "_keras_api_names"),
    "built-in deserialized": lambda patch, builtin: patch.setattr(
        tf_keras.saving, "deserialize_keras_object", lambda config, **_: builtin.L2()
    ),
    "no deserialization": lambda patch, builtin: patch.delattr(tf_keras.saving, "deserialize_keras_object"),
}


@pytest.mark.parametrize("break_it", BREAK.values(), ids=BREAK)
@pytest.mark.usefixtures("restored")
def test_failure_names_the_versions_and_leaves_nothing_registered(builtin, monkeypatch, break_it):
    tfk.unregister()
    before = state(vars(builtin))
    with monkeypatch.context() as patch:
        break_it(patch, builtin)
        with pytest.raises(ImportError, match=r"tf-keras 2\.16 to 2\.22\..* tf-keras 2\.\d\d?\.\d"):
            tfk.register()
    assert differences(before, state(vars(builtin))) == []
    assert "_keras_api_names" not in vars(tfk.L1)
    tfk.register()
    assert tf_keras.regularizers.L2 is tfk.L2
    tfk.unregister()
    assert differences(before, state(vars(builtin))) == []


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
    message = r"^L2 is the built-in regularizer of tf_keras: .* before tfk_regularizers\. Import tfk_regularizers first"
    with pytest.warns(UserWarning, match=message) as caught:
        make(builtin.L2(0.1))
    assert (caught[0].filename, caught[0].lineno) == (__file__, make.__code__.co_firstlineno)


def test_regularizer_of_another_class_does_not_warn(builtin):
    class Own(builtin.L2):
        def __call__(self, x):
            return 2.0 * super().__call__(x)

    class Ours(tfk.L2):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for regularizer in (Own(0.1), Ours(0.1), tfk.L2(0.1), "l2", tf.reduce_sum, builtin.l1_l2(0.1)):
            tf_keras.layers.Dense(2, kernel_regularizer=regularizer)
        with pytest.raises(UserWarning, match=r"^OrthogonalRegularizer is the built-in"):
            tf_keras.layers.Dense(2, kernel_regularizer=builtin.OrthogonalRegularizer(0.1))


@pytest.mark.usefixtures("restored")
def test_built_in_regularizer_does_not_warn_while_nothing_is_registered(builtin):
    tfk.unregister()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_keras.layers.Dense(2, kernel_regularizer=builtin.L2(0.1))
        tfk.get(builtin.L2(0.1))


LATE_IMPORT = """
import warnings
import tf_keras

first = tf_keras.layers.Dense(2, kernel_regularizer="l2", activity_regularizer=tf_keras.regularizers.L2(0.5))
model = tf_keras.Sequential([first, tf_keras.layers.Dense(2), tf_keras.layers.Dense(2, bias_regularizer="l1")])
model.build((None, 2))
warnings.simplefilter("error")
import tfk_regularizers as tfk

before = [vars(layer).copy() for layer in model.layers], [list(layer._callable_losses) for layer in model.layers]
for function in (tfk.penalties, lambda model: tfk.set_regularizers(model, kernel_regularizer="l1_l2")):
    try:
        function(model)
    except UserWarning as warning:
        print(warning)
assert before == ([vars(layer) for layer in model.layers], [list(layer._callable_losses) for layer in model.layers])
tfk.set_regularizers(model, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer=tfk.L2(0.5))
print(len(tfk.penalties(model)))
"""


@pytest.mark.heavy
def test_layers_from_before_the_import_warn_where_they_are_met(run_python):
    of_penalties, of_set_regularizers, number = run_python("-c", LATE_IMPORT).splitlines()
    for warning in (of_penalties, of_set_regularizers):
        assert warning.startswith("Built-in regularizers of tf_keras are in 'dense', 'dense_2': made, ")
        assert "Import tfk_regularizers first" in warning
    assert number == "6"


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
print("as elsewhere")
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
print("as elsewhere")
"""


@pytest.mark.parametrize("source", [LEGACY, KERAS_3_BESIDE_IT], ids=["tf_keras only", "Keras 3 imported before"])
@pytest.mark.heavy
def test_where_tf_keras_is_the_keras_of_tensorflow(run_python, source, tmp_path):
    if source is KERAS_3_BESIDE_IT:
        pytest.importorskip("keras", minversion="3.0")
    path = tmp_path / "model.keras"
    output = run_python("-c", program(source), path, TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")
    assert "as elsewhere" in output


# Processes of their own


@pytest.mark.heavy
def test_package_that_is_imported_anew_takes_the_place_of_the_former(run_python):
    source = """
import sys
import tfk_regularizers
held = tfk_regularizers.L2(0.5)
for name in [name for name in sys.modules if name.startswith("tfk_regularizers")]:
    del sys.modules[name]
import tfk_regularizers as anew
import tf_keras
assert type(held).__module__ == "tfk_regularizers"
assert type(tf_keras.regularizers.get("l2")) is anew.L2 is not type(held)
"""
    run_python("-c", source)


@pytest.mark.heavy
def test_import_before_any_other_does_not_warn(run_python):
    assert run_python("-W", "error", "-c", "import tfk_regularizers, tf_keras; print(tf_keras.regularizers.L2())") == (
        "L2(l2=0.01)\n"
    )


# Keras 3


@needs_keras3
@pytest.mark.usefixtures("restored")
def test_keras_3_resolves_the_string_l1_l2():
    layer = tf.keras.layers.Dense(3, kernel_regularizer="l1_l2")
    assert repr(layer.kernel_regularizer) == "L1L2(l1=0.01, l2=0.01)"
    assert type(tf.keras.layers.Dense.from_config(layer.get_config()).kernel_regularizer) is tfk.L1L2
    for string in ("l1", "l2", "L1", "L2", "L1L2", "orthogonal_regularizer", "OrthogonalRegularizer"):
        regularizer = tf.keras.layers.Dense(3, kernel_regularizer=string).kernel_regularizer
        assert type(regularizer).__module__.startswith("keras.")


@needs_keras3
@pytest.mark.usefixtures("restored")
def test_rest_of_keras_3_is_untouched():
    table, saving = sys.modules["keras.src.regularizers"].ALL_OBJECTS_DICT, sys.modules["keras"].saving
    strings, facade, objects = dict(table), dict(vars(tf.keras.regularizers)), dict(saving.get_custom_objects())
    tfk.unregister()
    assert set(strings) - set(table) == {"l1_l2"}
    assert all(strings[name] is table[name] for name in table)
    assert facade == dict(vars(tf.keras.regularizers))
    new = (tfk.SampledOrthogonalRegularizer, tfk.SoftOrthogonalRegularizer, tfk.GroupLasso, tfk.Sum)
    ours = {f"tfk_regularizers>{cls.__name__}" for cls in (*CLASSES, *new)}
    assert set(objects) - set(saving.get_custom_objects()) == ours
    assert saving.get_registered_name(tfk.L2) == "L2"


@needs_keras3
@pytest.mark.usefixtures("restored")
def test_string_that_keras_3_has_already_is_left_as_it_is(monkeypatch):
    tfk.unregister()
    table = sys.modules["keras.src.regularizers"].ALL_OBJECTS_DICT
    monkeypatch.setitem(table, "l1_l2", tf.keras.regularizers.L1)
    tfk.register()
    assert type(tf.keras.regularizers.get("l1_l2")) is tf.keras.regularizers.L1
    tfk.unregister()
    assert table["l1_l2"] is tf.keras.regularizers.L1


@needs_keras3
@pytest.mark.usefixtures("restored")
def test_keras_3_without_its_table_of_strings(monkeypatch):
    tfk.unregister()
    with monkeypatch.context() as changed:
        changed.delattr(sys.modules["keras.src.regularizers"], "ALL_OBJECTS_DICT")
        tfk.register()
        assert type(tf_keras.regularizers.get("l1_l2")) is tfk.L1L2
        tfk.unregister()
