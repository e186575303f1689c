"""What import, register and unregister put into Keras, and take out again."""

import importlib
import itertools
import json
import sys
import threading
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import KERAS3, needs_keras3
from tensorflow.python.util import tf_export

import tfk_regularizers as tfk
from tfk_regularizers import _earlier

CLASSES = (tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer)
FUNCTIONS = ("l1_l2", "get", "serialize", "deserialize")
ALIASES = ("l1", "l2", "orthogonal_regularizer")
NAMES = ("Regularizer", *(cls.__name__ for cls in CLASSES), *ALIASES, *FUNCTIONS)

# A program that snapshots whatever registration may touch, before the package is imported. Values stand for objects by
# identity, and for tables by their content.
SNAPSHOT = """
import importlib, json, sys
import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.python.util import tf_export

def snapshot():
    found = {}
    for name, module in list(sys.modules.items()):
        path = name.split(".")
        if path[0] in ("tf_keras", "tensorflow", "keras") and path[-1] == "regularizers" and module is not None:
            found[name] = dict(vars(module))
    found["exports"] = {k: v for k, v in tf_export._NAME_TO_SYMBOL_MAPPING.items() if "regularizers" in k}
    for keras in filter(None, (sys.modules.get("keras"), tf_keras)):
        registry = sys.modules[keras.saving.get_registered_name.__module__]
        found.update({(keras.__name__, k): dict(v) for k, v in vars(registry).items() if "GLOBAL_CUSTOM" in k})
    table = getattr(sys.modules.get("keras.src.regularizers"), "ALL_OBJECTS_DICT", None)
    found["strings of Keras 3"] = table and dict(table)
    for name, obj in BUILTIN.items():
        found["attributes", name] = dict(vars(obj))
    return found

BUILTIN = {k: v for k, v in vars(tf_keras.regularizers).items() if callable(v)}
"""

FRESH = (
    SNAPSHOT
    + """
from tf_keras.regularizers import L2 as held
import keras

class Own(held):
    def get_config(self):
        return {**super().get_config()}

def fails(make):
    try:
        make()
    except ValueError:
        return True
    return False

def same(one, other):
    return one is other or (type(one) is type(other) is tuple and one == other)

def differences(after):
    return [str((key, name)) for key in before for name in {**before[key], **after.get(key, {})}
            if not same(before[key].get(name), after.get(key, {}).get(name))]

result = {}
older = held(0.5)
before = snapshot()
result["string l1_l2 fails in Keras 3 before the import"] = fails(
    lambda: tf.keras.layers.Dense(3, kernel_regularizer="l1_l2"))

export = tf_keras.src.regularizers.keras_export
del tf_keras.src.regularizers.keras_export
try:
    import tfk_regularizers
except ImportError as error:
    result["error of a failed import"] = str(error)
tf_keras.src.regularizers.keras_export = export
result["left over by a failed import"] = differences(snapshot())

import tfk_regularizers as tfk
result["changed by the import"] = len(differences(snapshot()))
result["class held from before is the built-in"] = held is BUILTIN["L2"] and held is not tf_keras.regularizers.L2
result["module of the held class"] = held.__module__
result["written by an instance held from before"] = tf_keras.regularizers.serialize(older)

config = tf_keras.regularizers.serialize(Own(0.5))
result["written by a subclass held from before"] = config["class_name"]
with tf_keras.saving.custom_object_scope({"Own": Own}):
    result["subclass held from before is loaded"] = type(tf_keras.regularizers.get(config)) is Own
layer = tf_keras.layers.Dense(2, kernel_regularizer=Own(0.5), kernel_initializer="ones")
layer.build((None, 3))
result["loss of a subclass held from before"] = float(layer.losses[0])

late = [importlib.import_module(f"tf_keras.api._{v}.keras.regularizers") for v in ("v1", "v2")]
result["facades imported afterwards are ours"] = [
    name for module in late for name in NAMES if getattr(module, name, getattr(tfk, name)) is not getattr(tfk, name)]
tfk.unregister()
result["left over by unregister"] = differences(snapshot())
result["facades imported afterwards are built-in again"] = [
    name for module in late for name in NAMES if getattr(module, name, BUILTIN[name]) is not BUILTIN[name]]
result["string l1_l2 fails in Keras 3 after unregister"] = fails(
    lambda: tf.keras.layers.Dense(3, kernel_regularizer="l1_l2"))
for _ in range(2):
    tfk.register()
result["registered again"] = [
    name for module in (tf_keras.regularizers, *late) for name in NAMES
    if getattr(module, name, getattr(tfk, name)) is not getattr(tfk, name)]
for _ in range(2):
    tfk.unregister()
result["left over by the second unregister"] = differences(snapshot())
print(json.dumps(result))
"""
)

LEGACY = """
import json, sys
import tensorflow as tf
import tfk_regularizers as tfk
import tf_keras
import tensorflow.keras.regularizers as imported

facades = [imported] + [keras.regularizers for keras in (tf.keras, tf_keras, tf.compat.v1.keras, tf.compat.v2.keras)]
result = {}
result["tf.keras is tf_keras"] = tf.keras.layers.Dense is tf_keras.layers.Dense
result["names that are not ours"] = [
    (facade.__name__, name) for facade in facades for name in NAMES
    if getattr(facade, name, getattr(tfk, name)) is not getattr(tfk, name)]
result["string"] = repr(tf.keras.layers.Dense(2, kernel_regularizer="l1_l2").kernel_regularizer)
result["bases"] = [cls.__name__ for cls in tfk.L2.__mro__]
result["keras imported"] = "keras" in sys.modules
model = tf.keras.Sequential([tf.keras.layers.Dense(2, kernel_regularizer="orthogonal_regularizer", input_shape=(3,))])
model.compile("sgd", "mse")
result["loss is finite"] = model.fit(tf.ones((4, 3)), tf.ones((4, 2)), verbose=0).history["loss"][0] < 1e6
tfk.unregister()
result["names that are ours after unregister"] = [
    (facade.__name__, name) for facade in facades for name in NAMES[1:]
    if getattr(facade, name, None) is getattr(tfk, name)]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def fresh(run_python):
    """What a fresh process sees before, between and after import, unregister and register."""
    return json.loads(run_python("-c", f"NAMES = {NAMES}\n{FRESH}"))


@pytest.fixture(scope="module")
def legacy(run_python):
    """What a process sees in which tf.keras is tf_keras."""
    return json.loads(run_python("-c", f"NAMES = {NAMES}\n{LEGACY}", TF_USE_LEGACY_KERAS="1"))


def state():
    """What registration may touch in this process."""
    found = {}
    for name, module in list(sys.modules.items()):
        path = name.split(".")
        if path[0] in ("tf_keras", "tensorflow", "keras") and path[-1] == "regularizers" and module is not None:
            found.update({(name, key): value for key, value in vars(module).items()})
    found.update({("exports", k): v for k, v in tf_export._NAME_TO_SYMBOL_MAPPING.items() if "regularizers" in k})
    for keras in filter(None, (sys.modules.get("keras"), tf_keras)):
        found.update({(keras.__name__, k): v for k, v in keras.saving.get_custom_objects().items()})
    if KERAS3:
        table = sys.modules["keras.src.regularizers"].ALL_OBJECTS_DICT
        found.update({("strings of Keras 3", k): v for k, v in table.items()})
    return found


def same(one, other):
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)


# tf_keras


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "module",
    ["tf_keras.regularizers", "tf_keras.src.regularizers", "tf_keras.api._v2.keras.regularizers"],
)
def test_public_name_of_tf_keras_is_ours(module, name):
    assert getattr(importlib.import_module(module), name) is getattr(tfk, name)


@pytest.mark.parametrize("name", [name for name in NAMES if "rthogonal" not in name])
def test_public_name_of_tf_keras_1_is_ours(name):
    assert getattr(importlib.import_module("tf_keras.api._v1.keras.regularizers"), name) is getattr(tfk, name)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_class_is_a_regularizer_of_every_keras(builtin, cls):
    assert issubclass(cls, tf_keras.regularizers.Regularizer)
    assert issubclass(cls, tf.keras.regularizers.Regularizer)
    assert isinstance(cls(), tf_keras.regularizers.Regularizer)
    assert isinstance(cls(), tf.keras.regularizers.Regularizer)
    assert not issubclass(cls, getattr(builtin, cls.__name__))


def test_base_class_is_the_one_of_tf_keras(builtin):
    assert tfk.Regularizer is builtin.L2.__base__


@pytest.mark.parametrize("alias", [False, True], ids=["canonical", "alias"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_canonical_name_is_ours(cls, alias):
    name = {"L1": "l1", "L2": "l2", "OrthogonalRegularizer": "orthogonal_regularizer"}.get(cls.__name__, "L1L2")
    name = f"keras.regularizers.{name if alias else cls.__name__}"
    assert tf_export.get_symbol_from_name(name) is cls
    assert tf_export.get_canonical_name_for_symbol(cls, api_name="keras") == f"keras.regularizers.{cls.__name__}"


def test_base_class_keeps_its_canonical_name():
    assert tf_export.get_symbol_from_name("keras.regularizers.Regularizer") is tf_keras.regularizers.Regularizer


@pytest.mark.usefixtures("restored")
def test_unregistered_names_of_tf_keras_are_the_built_in_ones(builtin):
    tfk.unregister()
    for name, obj in vars(builtin).items():
        assert getattr(tf_keras.regularizers, name) is obj
    assert type(tf_keras.layers.Dense(2, kernel_regularizer="l2").kernel_regularizer) is builtin.L2
    assert type(tf_keras.regularizers.get(tfk.serialize(builtin.L2(0.5)))) is builtin.L2


@pytest.mark.usefixtures("restored")
def test_registering_twice_changes_nothing():
    registered = state()
    tfk.register()
    assert same(state(), registered)
    tfk.unregister()
    unregistered = state()
    tfk.unregister()
    assert same(state(), unregistered)
    tfk.register()
    assert same(state(), registered)
    tfk.unregister()
    assert same(state(), unregistered)


@pytest.mark.usefixtures("restored")
def test_layer_keeps_its_regularizer_when_unregistered():
    layer = tf_keras.layers.Dense(2, kernel_regularizer="l2", kernel_initializer="ones")
    layer.build((None, 3))
    tfk.unregister()
    assert type(layer.kernel_regularizer) is tfk.L2
    assert float(layer.losses[0]) == pytest.approx(0.06)


@pytest.mark.usefixtures("restored")
def test_object_of_the_user_is_left_alone():
    class Mine(tfk.L2):
        pass

    tf_keras.saving.register_keras_serializable("my_package")(Mine)
    tfk.unregister()
    tfk.register()
    assert tf_keras.saving.get_registered_object("my_package>Mine") is Mine
    assert tf_keras.saving.get_registered_name(Mine) == "my_package>Mine"
    assert type(tf_keras.regularizers.get(tf_keras.regularizers.serialize(Mine(0.5)))) is Mine


# Failures


def without_export(source, builtin, monkeypatch):
    monkeypatch.delattr(source, "keras_export")


def export_of_another_signature(source, builtin, monkeypatch):
    original = source.keras_export

    def export(*names):
        return original(*names)

    monkeypatch.setattr(source, "keras_export", export)


def export_that_fails_midway(source, builtin, monkeypatch):
    original, calls = source.keras_export, itertools.count()

    def export(*names, **keywords):
        if next(calls) == 3:
            raise RuntimeError("midway")
        return original(*names, **keywords)

    monkeypatch.setattr(source, "keras_export", export)


def export_without_effect(source, builtin, monkeypatch):
    monkeypatch.setattr(source, "keras_export", lambda *names, **keywords: lambda obj: obj)


def without_l1_l2(source, builtin, monkeypatch):
    monkeypatch.delattr(source, "l1_l2")


def function_without_a_canonical_name(source, builtin, monkeypatch):
    monkeypatch.delattr(builtin.get, "_keras_api_names")


def class_without_a_canonical_name(source, builtin, monkeypatch):
    monkeypatch.delattr(builtin.L2, "_keras_api_names")


def deserialization_that_finds_the_built_in(source, builtin, monkeypatch):
    monkeypatch.setattr(tf_keras.saving, "deserialize_keras_object", lambda config, **_: builtin.L2())


def deserialization_that_fails(source, builtin, monkeypatch):
    monkeypatch.delattr(tf_keras.saving, "deserialize_keras_object")


@pytest.mark.parametrize(
    "break_it",
    [
        without_export,
        export_of_another_signature,
        export_that_fails_midway,
        export_without_effect,
        without_l1_l2,
        function_without_a_canonical_name,
        class_without_a_canonical_name,
        deserialization_that_finds_the_built_in,
        deserialization_that_fails,
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.usefixtures("restored")
def test_failure_names_the_versions_and_leaves_nothing_registered(builtin, monkeypatch, break_it):
    source = sys.modules[tf_keras.regularizers.Regularizer.__module__]
    tfk.unregister()
    before = state()
    with monkeypatch.context() as broken:
        break_it(source, builtin, broken)
        with pytest.raises(ImportError, match=r"supports tf-keras 2\.16 to 2\.22.*installed tf-keras"):
            tfk.register()
    assert same(state(), before)
    assert "_keras_api_names" not in vars(tfk.L1)
    tfk.register()
    assert tf_keras.regularizers.L2 is tfk.L2
    tfk.unregister()
    assert same(state(), before)


# Threads


@pytest.mark.usefixtures("restored")
def test_layers_are_built_while_other_threads_register_and_unregister():
    configs = [tfk.serialize(tfk.L2(0.5)), {"class_name": "L2", "config": {"l2": 0.5}}, "l2", "l1_l2", "L1"]
    layers = [tf_keras.layers.Dense(2, kernel_regularizer=tfk.L2(0.5)).get_config()]
    interval, done, errors, built = sys.getswitchinterval(), threading.Event(), [], itertools.count()

    def collect(function):
        def run():
            try:
                function()
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=run)

    def read():
        while not done.is_set():
            regularizers = [
                tf_keras.layers.Dense(2, kernel_regularizer=config).kernel_regularizer for config in configs
            ]
            regularizers += [tf_keras.layers.Dense.from_config(layer).kernel_regularizer for layer in layers]
            for regularizer in regularizers:
                assert isinstance(regularizer, tf_keras.regularizers.Regularizer)
                assert type(regularizer).__name__ in ("L1", "L2", "L1L2")
                assert tf_keras.regularizers.serialize(regularizer)["class_name"] == type(regularizer).__name__
            next(built)

    def write():
        for _ in range(20):
            tfk.unregister()
            tfk.register()

    readers, writers = [collect(read) for _ in range(2)], [collect(write) for _ in range(2)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
    finally:
        done.set()
        for thread in readers:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors
    assert next(built) > 0
    assert tf_keras.regularizers.L2 is tfk.L2


# Processes of their own


@pytest.mark.parametrize(
    "what",
    [
        "left over by a failed import",
        "left over by unregister",
        "left over by the second unregister",
        "facades imported afterwards are ours",
        "facades imported afterwards are built-in again",
        "registered again",
    ],
)
def test_in_a_fresh_process_there_is_nothing(fresh, what):
    assert fresh[what] == []


@pytest.mark.parametrize(
    "what",
    [
        "string l1_l2 fails in Keras 3 before the import",
        "string l1_l2 fails in Keras 3 after unregister",
        "class held from before is the built-in",
        "subclass held from before is loaded",
    ],
)
def test_in_a_fresh_process_it_is_true(fresh, what):
    assert fresh[what] is True


def test_snapshot_sees_what_the_import_changes(fresh):
    assert fresh["changed by the import"] > 30


def test_failed_import_names_the_versions(fresh):
    assert "supports tf-keras 2.16 to 2.22" in fresh["error of a failed import"]
    assert "lacks keras_export" in fresh["error of a failed import"]


def test_built_in_held_from_before_the_import_works_as_it_did(fresh, builtin):
    assert fresh["module of the held class"] == builtin.L2.__module__
    assert fresh["written by an instance held from before"] == tfk.serialize(tfk.L2(0.5))
    assert fresh["written by a subclass held from before"] == "Own"
    assert fresh["loss of a subclass held from before"] == 3.0


@pytest.mark.heavy
def test_where_tf_keras_is_the_keras_of_tensorflow(legacy):
    assert legacy["tf.keras is tf_keras"]
    assert legacy["names that are not ours"] == []
    assert legacy["string"] == "L1L2(l1=0.01, l2=0.01)"
    assert legacy["bases"].count("Regularizer") == 1
    assert legacy["loss is finite"]
    assert legacy["names that are ours after unregister"] == []


KERAS_3_BESIDE_IT = """
import sys

import tfk_regularizers as tfk

assert ("keras" in sys.modules) == (len(sys.argv) > 2)
import keras
import numpy as np

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


@pytest.mark.parametrize("first", ["tfk_regularizers", "keras"])
@pytest.mark.heavy
def test_keras_3_beside_tf_keras_as_the_keras_of_tensorflow(run_python, first, tmp_path):
    pytest.importorskip("keras", minversion="3.0")
    program = KERAS_3_BESIDE_IT if first == "tfk_regularizers" else f"import keras\n{KERAS_3_BESIDE_IT}"
    arguments = [str(tmp_path / "model.keras"), *(["keras"] if first == "keras" else [])]
    assert "as elsewhere" in run_python("-c", program, *arguments, TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")


PICKLE_WHAT_WAS_HELD = """
import pickle, sys

import tf_keras
from tf_keras.regularizers import L1, L2, L1L2, OrthogonalRegularizer, l1_l2, get

import tfk_regularizers as tfk

class Own(L2):
    pass

held = [L1(0.5), L2(0.5), L1L2(0.5, 0.25), OrthogonalRegularizer(0.5, "columns"), L1, l1_l2, get, Own(0.5)]
for _ in range(2):
    again = pickle.loads(pickle.dumps(held))
    for one, other in zip(held, again):
        assert type(one) is type(other)
        assert one is other if callable(one) and not hasattr(one, "get_config") else True
    assert [one.get_config() for one in again[:4]] == [one.get_config() for one in held[:4]]
    with open(sys.argv[1], "wb") as file:
        pickle.dump([*held[:6], tfk.L1], file)
    tfk.unregister()
    assert L1 is tf_keras.regularizers.L1
    assert L1.__module__ == get.__module__ == tf_keras.regularizers.Regularizer.__module__
    pickle.loads(pickle.dumps(held))
    tfk.register()
"""


@pytest.mark.parametrize("imports", [[], ["import tfk_regularizers"]], ids=["without", "with"])
@pytest.mark.heavy
def test_built_in_held_from_before_the_import_is_pickled(run_python, imports, tmp_path):
    run_python("-c", PICKLE_WHAT_WAS_HELD, tmp_path / "held", TF_CPP_MIN_LOG_LEVEL="3")
    program = [
        *imports,
        "import pickle, sys",
        "held = pickle.load(open(sys.argv[1], 'rb'))",
        "print(held[3].get_config())",
    ]
    program.append("print([type(one).__module__.split('.')[0] for one in held[:4]])")
    printed = run_python("-c", "\n".join(program), tmp_path / "held", TF_CPP_MIN_LOG_LEVEL="3")
    assert printed.splitlines() == ["{'factor': 0.5, 'mode': 'columns'}", str(["tf_keras"] * 4)]


@pytest.mark.heavy
def test_import_after_another_package_has_replaced_something(run_python):
    program = """
import sys, tf_keras
source = sys.modules[tf_keras.regularizers.Regularizer.__module__]
source.get = lambda identifier: identifier
try:
    import tfk_regularizers
except ImportError as error:
    print(error)
"""
    assert "another package has put `__main__.<lambda>` there" in run_python("-c", program)


@pytest.mark.heavy
def test_imported_anew(run_python):
    """Whoever purges sys.modules and imports again keeps what there was."""
    program = """
import pickle, sys
import tfk_regularizers
held = tfk_regularizers.L2(0.5)
for name in [name for name in sys.modules if name.startswith("tfk_regularizers")]:
    del sys.modules[name]
import tfk_regularizers as anew
import tf_keras
assert type(held).__module__ == "tfk_regularizers"
assert type(tf_keras.regularizers.get("l2")) is anew.L2 is not type(held)
"""
    run_python("-c", program)


@pytest.mark.heavy
def test_import_is_silent_before_any_other(run_python):
    assert run_python("-W", "error", "-c", "import tfk_regularizers, tf_keras; print(tf_keras.regularizers.L2())") == (
        "L2(l2=0.01)\n"
    )


# Keras 3


@needs_keras3
# Keras 3 up to 3.15 has variables whose __array__ does not take NumPy 2's keyword `copy`.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_keras_3_trains_saves_and_loads(cls, tmp_path):
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(4, kernel_regularizer=cls())])
    model.compile("sgd", "mse")
    before = model.get_weights()[0]
    assert np.isfinite(model.train_on_batch(np.ones((2, 3)), np.ones((2, 4))))
    assert not np.array_equal(model.get_weights()[0], before)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0].kernel_regularizer) is cls
    assert float(loaded.losses[0]) == float(model.losses[0])
    assert float(model.losses[0]) == pytest.approx(float(cls()(model.get_weights()[0])), rel=1e-5)


@needs_keras3
@pytest.mark.usefixtures("restored")
def test_keras_3_knows_the_string_l1_l2():
    layer = tf.keras.layers.Dense(3, kernel_regularizer="l1_l2")
    assert repr(layer.kernel_regularizer) == "L1L2(l1=0.01, l2=0.01)"
    assert type(tf.keras.layers.Dense.from_config(layer.get_config()).kernel_regularizer) is tfk.L1L2
    tfk.unregister()
    with pytest.raises(ValueError, match="l1_l2"):
        tf.keras.layers.Dense(3, kernel_regularizer="l1_l2")


@needs_keras3
@pytest.mark.parametrize("string", ["l1", "l2", "L1", "L2", "L1L2", "orthogonal_regularizer", "OrthogonalRegularizer"])
def test_other_strings_of_keras_3_are_its_own(string):
    assert type(tf.keras.layers.Dense(3, kernel_regularizer=string).kernel_regularizer).__module__.startswith("keras.")


@needs_keras3
@pytest.mark.usefixtures("restored")
def test_rest_of_keras_3_is_untouched():
    table = sys.modules["keras.src.regularizers"].ALL_OBJECTS_DICT
    registered = dict(table)
    saving = sys.modules["keras"].saving
    facade, objects = dict(vars(tf.keras.regularizers)), dict(saving.get_custom_objects())
    tfk.unregister()
    assert set(registered) - set(table) == {"l1_l2"}
    assert all(registered[name] is table[name] for name in table)
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


@pytest.mark.usefixtures("restored")
def test_a_custom_object_of_the_same_name_is_no_obstacle():
    class L2(tf_keras.regularizers.Regularizer):
        """Somebody else's."""

    tf_keras.saving.get_custom_objects()["L2"] = L2
    tfk.unregister()
    tfk.register()
    assert tf_keras.regularizers.L2 is tfk.L2
    with tf_keras.saving.custom_object_scope({"l1": L2, "OrthogonalRegularizer": L2}):
        tfk.register()
    assert tf_keras.regularizers.L1 is tfk.L1


EARLIER = """
import sys, warnings
import tf_keras

class Own(tf_keras.regularizers.L2):
    def __call__(self, x):
        return 2.0 * super().__call__(x)

builtin = tf_keras.regularizers.L2
early = tf_keras.layers.Dense(2, kernel_regularizer="l2", activity_regularizer=builtin(0.5), name="early")
rest = [tf_keras.layers.Dense(2), tf_keras.layers.Dense(2, kernel_regularizer=Own(0.5))]
model = tf_keras.Sequential([early, *rest])
model.build((None, 2))
with warnings.catch_warnings():
    warnings.simplefilter("error")
    try:
        import tfk_regularizers
    except UserWarning:
        print("tfk_regularizers" in sys.modules, tf_keras.regularizers.L2 is builtin)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tfk_regularizers as tfk
    tfk.penalties(model)
    tfk.set_regularizers(model, bias_regularizer="l2")
print(len(caught), caught[0].filename, caught[0].message)
"""


@pytest.mark.heavy
def test_layers_from_before_the_import_are_told_of(run_python):
    failed, told = run_python("-c", EARLIER).splitlines()
    assert failed == "False True"
    place = "early' (kernel_regularizer, activity_regularizer). Import tfk_regularizers before"
    assert told.startswith("1 <string> Built-in regularizers of tf_keras, ")
    assert place in told


def test_a_name_from_before_the_import_is_told_of_once(builtin, monkeypatch):
    monkeypatch.setattr(_earlier, "_has_told_of_a_name", False)

    class Own(builtin.L2):
        def __call__(self, x):
            return 2.0 * super().__call__(x)

    class Ours(tfk.L2):
        pass

    for meant in (Own(0.1), Ours(0.1), tfk.L2(0.1), "l2", tf.reduce_sum, builtin.l1_l2(0.1)):
        tf_keras.layers.Dense(2, kernel_regularizer=meant)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="itself is in use"):
            tf_keras.layers.Dense(2, kernel_regularizer=builtin.L2(0.1))
        with pytest.warns(UserWarning, match=r"^The L2 of tf_keras itself .*`from tfk_regularizers import L2`") as told:
            tf_keras.layers.Dense(2, kernel_regularizer=builtin.L2(0.1))
        tf_keras.layers.Dense(2, kernel_regularizer=builtin.OrthogonalRegularizer(0.1))
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.usefixtures("restored")
def test_nothing_is_from_before_where_nothing_is_registered(builtin, monkeypatch):
    monkeypatch.setattr(_earlier, "_has_told_of_a_name", False)
    tfk.unregister()
    tf_keras.layers.Dense(2, kernel_regularizer=builtin.L2(0.1))
    tfk.get(builtin.L2(0.1))


@pytest.mark.heavy
def test_looking_for_earlier_layers_costs_nothing_where_there_is_none(run_python):
    program = "import gc, tf_keras; gc.get_objects = None; import tfk_regularizers"
    assert run_python("-W", "error", "-c", program) == ""
