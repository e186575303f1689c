"""Strings, configs and arguments: what get, serialize, deserialize and the constructors take, give and refuse."""

import contextlib
import copy
import functools
import inspect
import itertools
import json
import pickle
import re
import sys
import types
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk

STRINGS = {
    "l1": (tfk.L1, {"l1": 0.01}),
    "L1": (tfk.L1, {"l1": 0.01}),
    "l2": (tfk.L2, {"l2": 0.01}),
    "L2": (tfk.L2, {"l2": 0.01}),
    "l1_l2": (tfk.L1L2, {"l1": 0.01, "l2": 0.01}),
    "orthogonal_regularizer": (tfk.OrthogonalRegularizer, {"factor": 0.01, "mode": "rows"}),
    "OrthogonalRegularizer": (tfk.OrthogonalRegularizer, {"factor": 0.01, "mode": "rows"}),
}

# (class, arguments whose factors float32 holds exactly, so that the built-in writes them unchanged)
CONFIGS = {
    "L1": ("L1", {"l1": 0.25}),
    "L2": ("L2", {"l2": 0.5}),
    "L1L2": ("L1L2", {"l1": 0.125, "l2": 2.0}),
    "rows": ("OrthogonalRegularizer", {"factor": 0.75, "mode": "rows"}),
    "columns": ("OrthogonalRegularizer", {"factor": 0.75, "mode": "columns"}),
}
configs = pytest.mark.parametrize(("name", "arguments"), CONFIGS.values(), ids=CONFIGS)
legacy = pytest.mark.parametrize("legacy", [False, True], ids=["new", "legacy"])

LAYERS = {
    "Dense kernel": lambda identifier: tf_keras.layers.Dense(2, kernel_regularizer=identifier).kernel_regularizer,
    "Dense bias": lambda identifier: tf_keras.layers.Dense(2, bias_regularizer=identifier).bias_regularizer,
    "activity": lambda identifier: (
        tf_keras.layers.Activation("relu", activity_regularizer=identifier)._activity_regularizer
    ),
    "Conv2D": lambda identifier: tf_keras.layers.Conv2D(2, 3, kernel_regularizer=identifier).kernel_regularizer,
    "Embedding": lambda identifier: (
        tf_keras.layers.Embedding(3, 2, embeddings_regularizer=identifier).embeddings_regularizer
    ),
    "LSTM": lambda identifier: tf_keras.layers.LSTM(2, recurrent_regularizer=identifier).recurrent_regularizer,
}


def new_config(name, arguments, **changes):
    config = {"module": "keras.regularizers", "class_name": name, "config": arguments, "registered_name": None}
    return {**config, **changes}


def function_config(name, **changes):
    return {"module": "builtins", "class_name": "function", "config": name, "registered_name": name, **changes}


class Mine(tf_keras.regularizers.Regularizer):
    """A user's own regularizer, which takes whatever a config holds."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs

    def __call__(self, x):
        return tf.reduce_sum(x)

    def get_config(self):
        return self.kwargs


def my_penalty(x=None, **kwargs):
    """A user's own penalty, which makes a regularizer when called with a config, as legacy configs of functions do."""
    return Mine(**kwargs) if x is None else tf.reduce_sum(x)


# What may stand for a regularizer


@pytest.mark.parametrize("string", STRINGS)
def test_string_gives_our_class_with_the_factors_of_keras(string):
    cls, arguments = STRINGS[string]
    for regularizer in (tfk.get(string), tfk.deserialize(string), tf_keras.regularizers.get(string)):
        assert type(regularizer) is cls
        assert regularizer.get_config() == arguments


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("string", STRINGS)
def test_string_in_a_layer_gives_our_class_with_the_factors_of_keras(layer, string):
    cls, arguments = STRINGS[string]
    regularizer = layer(string)
    assert type(regularizer) is cls
    assert regularizer.get_config() == arguments


@pytest.mark.parametrize("get", [tfk.get, tfk.deserialize, LAYERS["Dense kernel"]], ids=["get", "deserialize", "Dense"])
def test_string_L1L2_does_nothing_and_says_so(get):  # noqa: N802
    with pytest.warns(UserWarning, match="'l1_l2'.*was probably meant"):
        regularizer = get("L1L2")
    assert type(regularizer) is tfk.L1L2
    assert regularizer.get_config() == {"l1": 0.0, "l2": 0.0}


def test_config_of_L1L2_does_not_warn():  # noqa: N802
    assert tfk.get(new_config("L1L2", {})).get_config() == {"l1": 0.0, "l2": 0.0}


def test_numpy_string_is_a_string():
    assert type(tfk.get(np.str_("l2"))) is tfk.L2


def test_none_gives_none():
    assert tfk.get(None) is None
    assert tfk.deserialize(None) is None
    assert tfk.serialize(None) is None
    assert tf_keras.layers.Dense(2, kernel_regularizer=None).kernel_regularizer is None


@configs
@pytest.mark.parametrize("make", [new_config, lambda n, a: {"class_name": n, "config": a}], ids=["new", "legacy"])
@pytest.mark.parametrize("get", [tfk.get, LAYERS["Dense kernel"]], ids=["get", "Dense"])
def test_config_gives_our_class_and_is_left_as_it_was(get, make, name, arguments):
    config = make(name, dict(arguments))
    before = copy.deepcopy(config)
    regularizer = get(config)
    assert type(regularizer) is getattr(tfk, name)
    assert regularizer.get_config() == arguments
    assert config == before


@pytest.mark.parametrize("alias", ["l1", "l2", "l1_l2", "orthogonal_regularizer"])
def test_lower_case_class_name_in_a_legacy_config(alias):
    cls, _ = STRINGS[alias]
    argument = {"l1": "l1", "l2": "l2", "l1_l2": "l2", "orthogonal_regularizer": "factor"}[alias]
    regularizer = tfk.get({"class_name": alias, "config": {argument: 0.5}})
    assert type(regularizer) is cls
    assert getattr(regularizer, argument) == 0.5


def test_legacy_config_of_old_keras_with_the_keyword_l():
    assert tfk.get({"class_name": "L2", "config": {"l": 0.5}}).get_config() == {"l2": 0.5}


def test_config_with_the_name_of_the_package_is_read():
    config = new_config("L2", {"l2": 0.5}, module="tfk_regularizers", registered_name="tfk_regularizers>L2")
    for get in (tfk.get, tf_keras.regularizers.get, tf_keras.saving.deserialize_keras_object):
        assert type(get(config)) is tfk.L2


CALLABLES = {
    "ours": tfk.L2(0.5),
    "function": my_penalty,
    "lambda": lambda x: 0.0,
    "partial": functools.partial(my_penalty, y=1),
    "user's regularizer": Mine(),
    "Keras of tf.keras": tf.keras.regularizers.L2(0.5),
    "builtin function": abs,
}


@pytest.mark.parametrize("regularizer", CALLABLES.values(), ids=CALLABLES)
def test_callable_is_returned_as_it_is(regularizer):
    assert tfk.get(regularizer) is regularizer
    assert tfk.deserialize(regularizer) is regularizer
    assert LAYERS["Dense kernel"](regularizer) is regularizer


def test_built_in_instance_is_returned_as_it_is(builtin):
    regularizer = builtin.L2(0.5)
    assert tfk.get(regularizer) is regularizer


# What may not


UNKNOWN = {
    "l3": "'l[12]'",
    "l1l2": "'l1_l2'",
    "L1_L2": "'l1_l2'",
    "l1_l2 ": "'l1_l2'",
    "orthogonal": "'orthogonal_regularizer'",
    "orthogonal_regulariser": "'orthogonal_regularizer'",
    "Orthogonalregularizer": "'OrthogonalRegularizer'",
    "sampled_orthogonal_regularizer": "'SampledOrthogonalRegularizer'",
    "ridge": "'l2'",
    "weight decay": "'l2'",
    "Lasso": "'l1'",
    "elastic_net": "'l1_l2'",
    "ElasticNet": "'l1_l2'",
    "group_lasso": "'GroupLasso'",
    "group lasso": "'GroupLasso'",
    "sampled_orthogonal": "'SampledOrthogonalRegularizer'",
    "soft_orthogonal": "'SoftOrthogonalRegularizer'",
    "softorthogonal": "'SoftOrthogonalRegularizer'",
}


@pytest.mark.parametrize("get", [tfk.get, tfk.deserialize, *LAYERS.values()], ids=["get", "deserialize", *LAYERS])
@pytest.mark.parametrize("string", UNKNOWN)
def test_unknown_string_names_the_nearest(get, string):
    with pytest.raises(ValueError, match=f"Unknown regularizer.*Did you mean {UNKNOWN[string]}"):
        get(string)


@pytest.mark.parametrize("get", [tfk.get, LAYERS["Dense kernel"]], ids=["get", "Dense"])
@pytest.mark.parametrize("string", ["l3", "math", "", "Regularizer", "tf_keras.regularizers.L2", "x" * 10**6])
def test_unknown_string_lists_the_valid_ones_in_a_short_message(get, string):
    with pytest.raises(ValueError, match="Unknown regularizer") as caught:
        get(string)
    message = str(caught.value)
    assert all(repr(name) in message for name in (*STRINGS, "L1L2"))
    assert repr(string) in message or len(string) == 10**6
    assert len(message) < 1000


@pytest.mark.parametrize("identifier", [b"l2", 1, 0.01, True, [], ["l2"], ("l2",), np.zeros(3)], ids=repr)
@pytest.mark.parametrize("get", [tfk.get, tfk.deserialize, LAYERS["Dense kernel"]], ids=["get", "deserialize", "Dense"])
def test_identifier_of_another_type_is_refused(get, identifier):
    with pytest.raises(ValueError, match="Could not interpret regularizer"):
        get(identifier)


@pytest.mark.parametrize(
    "cls",
    [tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer, tfk.Regularizer, Mine, tf.keras.regularizers.L2],
    ids=lambda cls: f"{cls.__module__.partition('.')[0]} {cls.__name__}",
)
@pytest.mark.parametrize("get", [tfk.get, LAYERS["Dense kernel"]], ids=["get", "Dense"])
def test_class_instead_of_an_instance_is_refused(get, cls):
    with pytest.raises(ValueError, match=rf"instance.*{cls.__name__}"):
        get(cls)


def test_function_that_makes_regularizers_is_refused():
    with pytest.raises(ValueError, match=r"the function l1_l2; did you mean `l1_l2\(\)`"):
        tf_keras.layers.Dense(2, kernel_regularizer=tfk.l1_l2)


def test_built_in_class_instead_of_an_instance_is_refused(builtin):
    with pytest.raises(ValueError, match=r"instance.*L2"):
        tfk.get(builtin.L2)


def nested(depth):
    config = {}
    for _ in range(depth):
        config = {"class_name": "L2", "config": config}
    return config


def cyclic():
    config = new_config("L2", {})
    config["config"]["l2"] = config
    return config


MALFORMED = {
    "empty": {},
    "module only": {"module": "keras.regularizers"},
    "no class name": {"config": {}},
    "no config": {"class_name": "L2"},
    "no config, new": {"class_name": "L2", "module": "keras.regularizers", "registered_name": None},
    "class name None": new_config(None, {}),
    "class name number": new_config(2, {}),
    "class name list": new_config(["L2"], {}),
    "class name dict": new_config({"class_name": "L2"}, {}),
    "class name class": new_config(tfk.L2, {}),
    "config string": new_config("L2", "l2"),
    "config list": new_config("L2", [0.01]),
    "config number": {"class_name": "L2", "config": 0.01},
    "config None, legacy": {"class_name": "L2", "config": None},
    "unknown class": new_config("L3", {}),
    "unknown class, legacy": {"class_name": "L3", "config": {}},
    "base class": new_config("Regularizer", {}),
    "no module": new_config("L2", {"l2": 0.5}, module=None),
    "registered name list": new_config("L2", {"l2": 0.5}, registered_name=[]),
    "registered name dict": new_config("L2", {"l2": 0.5}, registered_name={}),
    "extra argument": new_config("L2", {"l2": 0.5, "l3": 0.5}),
    "extra argument, legacy": {"class_name": "L2", "config": {"l2": 0.5, "l3": 0.5}},
    "extra argument, L1L2": new_config("L1L2", {"l3": 0.5}),
    "extra argument, l1_l2": {"class_name": "l1_l2", "config": {"l3": 0.5}},
    "argument of another class": new_config("OrthogonalRegularizer", {"l2": 0.5}),
    "argument name number": new_config("L2", {2: 0.5}),
    "factor string": new_config("L2", {"l2": "0.5"}),
    "factor NaN": new_config("L2", {"l2": float("nan")}),
    "factor None": new_config("OrthogonalRegularizer", {"factor": None}),
    "factor list": new_config("L2", {"l2": [0.5]}),
    "factor dict": new_config("L2", {"l2": new_config("L2", {})}),
    "factor passive config": {"class_name": "L2", "config": {"l2": {**nested(1), "__passive_serialization__": True}}},
    "mode": new_config("OrthogonalRegularizer", {"mode": "diagonal"}),
    "mode list": new_config("OrthogonalRegularizer", {"mode": []}),
    "nested": nested(3),
    "deeply nested": nested(5000),
    "cyclic": cyclic(),
    "1 MB class name": new_config("x" * 10**6, {}),
    "1 MB config": new_config("L2", "x" * 10**6),
    "1 MB factor": new_config("L2", {"l2": "9" * 10**6}),
    "function": function_config("system"),
    "function, legacy": {"class_name": "function", "config": "system"},
    "function that is a class": function_config("L2"),
    "function without a registered name": {"module": "builtins", "class_name": "function", "config": "L2"},
    "function under two names": function_config("L2", registered_name="getcwd"),
    "bytes": new_config("__bytes__", {"value": "l2"}),
    "tensor": new_config("__tensor__", {"value": 1.0, "dtype": "float32"}),
    "tensor under our name": new_config(
        "__tensor__", {"value": 1.0, "dtype": "float32"}, registered_name="tfk_regularizers>L2"
    ),
    "build config": new_config("L2", {}, registered_name="tfk_regularizers>L2", build_config={"input_shape": [1]}),
    "an optimizer": new_config("SGD", {}, module="keras.optimizers", registered_name="Custom>SGD"),
}


@pytest.mark.parametrize("config", MALFORMED.values(), ids=MALFORMED)
def test_malformed_config_gets_a_clear_error(config):
    with pytest.raises((ValueError, TypeError)) as caught:
        tfk.get(config)(tf.ones([2, 2]))  # a function may be one that a program had
    message = str(caught.value)
    assert len(message) < 1000
    assert any(word in message for word in ("egularizer", "rgument", "config", "keywords", "Cannot deserialize")), (
        message
    )


@pytest.mark.parametrize("config", [MALFORMED["unknown class"], MALFORMED["factor NaN"]], ids=["class", "factor"])
def test_malformed_config_fails_where_the_layer_is_made(config):
    with pytest.raises(ValueError, match=r"L3|finite"):
        tf_keras.layers.Dense(2, kernel_regularizer=config)


HOSTILE = {
    "class": {"class_name": "system"},
    "class with arguments": {"class_name": "system", "config": {"command": "touch executed"}},
    "class, no registered name": {"class_name": "system", "registered_name": None},
    "function": {"class_name": "function", "config": "system"},
    "function under a name of ours": {
        "class_name": "function",
        "config": "system",
        "registered_name": "tfk_regularizers>L2",
    },
    "function under a name of tf_keras": {
        "class_name": "function",
        "config": "system",
        "registered_name": "Custom>SGD",
    },
    "type under a name of ours": {
        "class_name": "__typespec__",
        "spec_name": "system",
        "registered_name": "tfk_regularizers>L2",
    },
    "lambda": {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}},
    "lambda under a name of ours": {
        "class_name": "__lambda__",
        "config": {"value": ["4wAAAA==", None, None]},
        "registered_name": "tfk_regularizers>L2",
    },
    "legacy": {"module": None},
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_config_imports_and_executes_nothing(parts, tmp_path, monkeypatch):
    (tmp_path / "hostile_module.py").write_text("import pathlib\npathlib.Path('imported').touch()\nsystem = print\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = {"module": "hostile_module", "class_name": "system", "config": {}, "registered_name": "system", **parts}
    if config["module"] is None:
        del config["module"], config["registered_name"]
    result = tfk.L2()
    with contextlib.suppress(ValueError, TypeError):
        result = tfk.get(config)
        result(tf.ones([2, 2]))
    assert sys.modules.pop("hostile_module", None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["hostile_module.py"]
    assert isinstance(result, tfk.L2) or repr(result).startswith("<Unknown regularizer")


# The user's own names win, as in the built-in

NAMES = ("mine", "l2", "L2", "L1L2", "l1_l2", "orthogonal_regularizer", "Custom>Mine")
FORMS = {
    "string": lambda name: name,
    "new": lambda name: new_config(name, {"l2": 0.5}, module="user", registered_name=name),
    "new, registered": lambda name: new_config("Mine", {"l2": 0.5}, module="user", registered_name=name),
    "new, not registered": lambda name: new_config(name, {"l2": 0.5}),
    "legacy": lambda name: {"class_name": name, "config": {"l2": 0.5}},
    "function": function_config,
}


def in_custom_objects(config, objects):
    return tf_keras.regularizers.deserialize(config, custom_objects=objects)


def in_custom_objects_legacy(config, objects):
    return tf_keras.regularizers.deserialize(config, custom_objects=objects, use_legacy_format=True)


def in_a_scope(config, objects):
    with tf_keras.saving.custom_object_scope(objects):
        return tf_keras.regularizers.get(config)


def among_the_global_objects(config, objects):
    tf_keras.saving.get_custom_objects().update(objects)
    return tf_keras.regularizers.get(config)


def registered(config, objects):
    for name, obj in objects.items():
        package, _, own = name.rpartition(">")
        tf_keras.saving.register_keras_serializable(package or "Custom", own)(obj)
    return tf_keras.regularizers.get(config)


OBJECTS = {"class": Mine, "function": my_penalty}
WAYS = (in_custom_objects, in_custom_objects_legacy, in_a_scope, among_the_global_objects, registered)


def outcome(way, config, objects):
    """What a config gives, told without regard to whether the library's classes are ours or the built-in ones."""
    try:
        result = way(config, objects)
    except (ValueError, TypeError, AttributeError, KeyError):
        return "error"
    if isinstance(result, (str, dict)) or result is tf_keras.regularizers.l1_l2:
        return "error"  # the built-in gives these back, to crash when the layer is built
    if repr(result).startswith("<Unknown regularizer"):
        return "error"  # ours gives this, to say so when the penalty is asked for
    if isinstance(result, tf_keras.regularizers.Regularizer):
        library = type(result).__module__.partition(".")[0] in ("tf_keras", "tfk_regularizers")
        config = {key: np.float32(value) for key, value in result.get_config().items() if key != "mode"}
        return ("library's" if library else "user's", type(result).__name__, config)
    return result


def outcomes(**objects):
    """The outcome for every way, object, form and name."""
    custom = tf_keras.saving.get_custom_objects()
    registry = sys.modules[tf_keras.saving.get_registered_name.__module__]
    before = dict(custom)
    found = {}
    for case in itertools.product(WAYS, objects, FORMS, NAMES):
        way, obj, form, name = case
        found[case] = outcome(way, FORMS[form](name), {name: objects[obj]})
        custom.clear()
        custom.update(before)
        registry._GLOBAL_CUSTOM_NAMES.pop(objects[obj], None)
    return found


@pytest.fixture(scope="module")
def outcomes_here_and_built_in():
    """What configs give while the package is registered, and while it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 'L1L2' warns unless it is the user's own
        here = outcomes(**OBJECTS)
        tfk.unregister()
        try:
            return here, outcomes(**OBJECTS)
        finally:
            tfk.register()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("obj", OBJECTS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_object_of_the_user_wins_as_in_the_built_in(outcomes_here_and_built_in, way, obj, form):
    for name in NAMES:
        ours, builtin = (outcomes[way, obj, form, name] for outcomes in outcomes_here_and_built_in)
        if name == "l1_l2" and builtin == "error":
            continue  # the built-in has no instance for a config of its function l1_l2
        if builtin is Mine:  # which the built-in gives for a string, and then calls on the weights
            builtin = ("user's", "Mine", Mine().get_config())
        assert ours == builtin, name


def test_object_of_the_user_wins_in_a_layer():
    with tf_keras.saving.custom_object_scope({"l2": my_penalty}):
        assert tf_keras.layers.Dense(2, kernel_regularizer="l2").kernel_regularizer is my_penalty
    assert type(tf_keras.layers.Dense(2, kernel_regularizer="l2").kernel_regularizer) is tfk.L2


def test_L1L2_of_the_user_does_not_warn():  # noqa: N802
    with tf_keras.saving.custom_object_scope({"L1L2": my_penalty}):
        assert tfk.get("L1L2") is my_penalty


@pytest.mark.usefixtures("restored")
def test_unknown_string_lists_the_names_of_the_user():
    tf_keras.saving.register_keras_serializable("my_package")(Mine)
    with (
        tf_keras.saving.custom_object_scope({"my_penalty": my_penalty}),
        pytest.raises(ValueError, match="Did you mean 'my_penalty'") as caught,
    ):
        tfk.get("my_penalti")
    assert "'my_penalty'" in str(caught.value).split("Expected one of")[1]
    assert "'my_package>Mine'" in str(caught.value).split("Expected one of")[1]
    assert "SGD" not in str(caught.value)
    with tf_keras.saving.custom_object_scope({"Ridge": Mine}), pytest.raises(ValueError, match="Did you mean 'Ridge'"):
        tfk.get("ridge")


def test_name_given_to_deserialize_is_listed_when_another_is_unknown():
    with pytest.raises(ValueError, match=r"Expected one of.*'my_penalty'"):
        tfk.deserialize("unknown", custom_objects={"my_penalty": my_penalty})


# Serialization


@configs
@legacy
def test_serialized_as_the_built_in(builtin, name, arguments, legacy):
    config = tfk.serialize(getattr(tfk, name)(**arguments), use_legacy_format=legacy)
    expected = builtin.serialize(getattr(builtin, name)(**arguments), use_legacy_format=legacy)
    assert json.dumps(config) == json.dumps(expected)


@configs
@legacy
def test_deserialize_is_the_inverse_of_serialize(name, arguments, legacy):
    regularizer = getattr(tfk, name)(**arguments)
    config = json.loads(json.dumps(tfk.serialize(regularizer, use_legacy_format=legacy)))
    for back in (tfk.deserialize(config, use_legacy_format=legacy), tfk.get(config)):
        assert type(back) is type(regularizer)
        assert back.get_config() == arguments


@legacy
def test_factor_0_01_is_written_as_it_was_given(builtin, legacy):
    assert tfk.serialize(tfk.L2(0.01), use_legacy_format=legacy)["config"] == {"l2": 0.01}
    assert builtin.serialize(builtin.L2(0.01), use_legacy_format=legacy)["config"] == {"l2": 0.009999999776482582}


def test_serialized_whether_registered_or_not(restored):
    tfk.unregister()
    assert type(tfk.get(tfk.serialize(tfk.L2(0.5)))) is tfk.L2
    assert type(tfk.get("l2")) is tfk.L2


@legacy
def test_serializing_a_function_warns_as_the_built_in(builtin, legacy):
    with pytest.warns(UserWarning, match="Regularizer.*function"):
        config = tfk.serialize(my_penalty, use_legacy_format=legacy)
    with pytest.warns(UserWarning, match="Regularizer.*function"):
        assert config == builtin.serialize(my_penalty, use_legacy_format=legacy)


def test_serializing_a_regularizer_of_the_user_does_not_warn(builtin):
    assert tfk.serialize(Mine(a=1)) == builtin.serialize(Mine(a=1))
    assert tfk.serialize(builtin.L2(0.5)) == tfk.serialize(tfk.L2(0.5))


# Constructors

FACTORS = {
    "L1 l1": ("l1", lambda value: tfk.L1(l1=value)),
    "L1 l": ("l1", lambda value: tfk.L1(l=value)),
    "L2 l2": ("l2", lambda value: tfk.L2(l2=value)),
    "L2 l": ("l2", lambda value: tfk.L2(l=value)),
    "L1L2 l1": ("l1", lambda value: tfk.L1L2(l1=value)),
    "L1L2 l2": ("l2", lambda value: tfk.L1L2(l2=value)),
    "l1_l2 l1": ("l1", lambda value: tfk.l1_l2(l1=value)),
    "l1_l2 l2": ("l2", lambda value: tfk.l1_l2(l2=value)),
    "Orthogonal factor": ("factor", lambda value: tfk.OrthogonalRegularizer(factor=value)),
}
factors = pytest.mark.parametrize(("argument", "make"), FACTORS.values(), ids=FACTORS)

NOT_FACTORS = {
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "numpy NaN": np.float32("nan"),
    "Decimal NaN": Decimal("NaN"),
    "Decimal sNaN": Decimal("sNaN"),
    "10**400": 10**400,
    "10**5000": 10**5000,
    "-10**5000": -(10**5000),
    "Fraction of 10**400": Fraction(10**400),
    "string": "0.01",
    "1 MB string": "1" * 10**6,
    "numpy string": np.str_("0.01"),
    "0-d string array": np.array("0.01"),
    "string tensor": tf.constant("0.01"),
    "bytes": b"1",
    "bytearray": bytearray(b"1"),
    "complex": 1j,
    "complex with no imaginary part": 1 + 0j,
    "numpy complex": np.complex64(1),
    "complex tensor": tf.constant(1 + 0j),
    "empty list": [],
    "list": [0.01],
    "tuple": (0.01,),
    "ragged list": [[1.0], [1.0, 2.0]],
    "array of one": np.array([0.01]),
    "array": np.ones((2, 2)),
    "tensor of one": tf.constant([0.01]),
    "dict": {"l2": 0.01},
    "object": object(),
    "regularizer": tfk.L2(),
    "class": float,
    "Keras tensor": tf_keras.Input(()),
}


@factors
@pytest.mark.parametrize("value", NOT_FACTORS.values(), ids=NOT_FACTORS)
def test_bad_factor_is_refused_by_name(argument, make, value):
    message = rf"Invalid value for argument `{argument}`\. Expected a finite number\. Received: {argument}="
    with pytest.raises(ValueError, match=message) as caught:
        make(value)
    assert len(str(caught.value)) < 300


@factors
def test_symbolic_tensor_is_refused_as_a_factor(argument, make):
    @tf.function
    def make_inside(value):
        with pytest.raises(ValueError, match=f"argument `{argument}`"):
            make(value)
        return value

    make_inside(tf.constant(0.5))


NUMBERS = {
    "float": (0.3, 0.3),
    "int": (2, 2.0),
    "zero": (0, 0.0),
    "negative": (-0.5, -0.5),
    "bool": (True, 1.0),
    "smallest float": (5e-324, 5e-324),
    "largest float": (1.7e308, 1.7e308),
    "float16": (np.float16(0.5), 0.5),
    "float32": (np.float32(0.5), 0.5),
    "float64": (np.float64(0.3), 0.3),
    "int64": (np.int64(3), 3.0),
    "numpy bool": (np.bool_(True), 1.0),
    "0-d array": (np.array(0.5), 0.5),
    "0-d int array": (np.array(3), 3.0),
    "Fraction": (Fraction(1, 2), 0.5),
    "Decimal": (Decimal("0.3"), 0.3),
    "eager tensor": (tf.constant(0.5), 0.5),
}


@factors
@pytest.mark.parametrize(("value", "expected"), NUMBERS.values(), ids=NUMBERS)
def test_any_finite_real_number_is_a_factor(argument, make, value, expected):
    factor = getattr(make(value), argument)
    assert type(factor) is float
    assert factor == expected


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (lambda: tfk.L1(None), {"l1": 0.01}),
        (lambda: tfk.L1(l=None), {"l1": 0.01}),
        (lambda: tfk.L2(None), {"l2": 0.01}),
        (lambda: tfk.L2(l=None), {"l2": 0.01}),
        (lambda: tfk.L1L2(None, None), {"l1": 0.0, "l2": 0.0}),
        (lambda: tfk.L1L2(l2=None, l1=0.5), {"l1": 0.5, "l2": 0.0}),
        (lambda: tfk.l1_l2(None, None), {"l1": 0.0, "l2": 0.0}),
    ],
    ids=["L1", "L1 l", "L2", "L2 l", "L1L2", "L1L2 l2", "l1_l2"],
)
def test_none_means_the_default_of_the_class(make, config):
    assert make().get_config() == config


def test_none_is_refused_where_it_means_nothing():
    with pytest.raises(ValueError, match=r"argument `factor`.*Received: factor=None"):
        tfk.OrthogonalRegularizer(None)
    with pytest.raises(ValueError, match=r"argument `mode`.*Received: mode=None"):
        tfk.OrthogonalRegularizer(mode=None)


@pytest.mark.parametrize(("cls", "argument"), [(tfk.L1, "l1"), (tfk.L2, "l2")], ids=["L1", "L2"])
def test_old_keyword_l(builtin, cls, argument):
    assert cls(l=0.5).get_config() == {argument: 0.5}
    assert cls(0.25, l=0.5).get_config() == getattr(builtin, cls.__name__)(0.25, l=0.5).get_config() == {argument: 0.5}


@pytest.mark.parametrize(
    ("cls", "keywords", "named"),
    [
        (tfk.L1, {"l2": 1}, "l2"),
        (tfk.L1, {"l": 1, "factor": 1}, "factor"),
        (tfk.L2, {"l1": 1}, "l1"),
        (tfk.L2, {"lambda": 1}, "lambda"),
        (tfk.L1L2, {"l": 1}, "l"),
        (tfk.OrthogonalRegularizer, {"l2": 1}, "l2"),
        (tfk.l1_l2, {"l": 1}, "l"),
    ],
)
def test_unknown_keyword_is_named(cls, keywords, named):
    with pytest.raises(TypeError, match=f"'{named}'"):
        cls(**keywords)


NOT_MODES = {
    "singular": "row",
    "upper case": "ROWS",
    "empty": "",
    "number": 1,
    "bool": True,
    "bytes": b"rows",
    "list": ["rows"],
    "set": {"rows"},
    "dict": {"rows": 1},
    "array": np.array(["rows", "columns"]),
    "1 MB string": "rows" * 250_000,
}


@pytest.mark.parametrize("mode", NOT_MODES.values(), ids=NOT_MODES)
def test_bad_mode_is_refused_by_name(mode):
    message = 'Invalid value for argument `mode`. Expected one of {"rows", "columns"}. Received: mode='
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as caught:
        tfk.OrthogonalRegularizer(mode=mode)
    assert len(str(caught.value)) < 300


REGULARIZERS = {
    "L1": tfk.L1(),
    "L1 third": tfk.L1(1 / 3),
    "L2": tfk.L2(0.01),
    "L2 tiny": tfk.L2(5e-324),
    "L2 float32": tfk.L2(np.float32(0.1)),
    "L2 negative int": tfk.L2(-1),
    "L1L2": tfk.L1L2(),
    "L1L2 both": tfk.L1L2(1e-30, 0.7),
    "l1_l2": tfk.l1_l2(),
    "rows": tfk.OrthogonalRegularizer(),
    "columns": tfk.OrthogonalRegularizer(0.3, "columns"),
    "numpy string": tfk.OrthogonalRegularizer(mode=np.str_("columns")),
}
regularizers = pytest.mark.parametrize("regularizer", REGULARIZERS.values(), ids=REGULARIZERS)
ROUND_TRIPS = {
    "repr": lambda regularizer: eval(repr(regularizer), {name: getattr(tfk, name) for name in tfk.__all__}),
    "pickle": lambda regularizer: pickle.loads(pickle.dumps(regularizer)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "from_config": lambda regularizer: type(regularizer).from_config(regularizer.get_config()),
    "json": lambda regularizer: tfk.get(json.loads(json.dumps(tfk.serialize(regularizer)))),
}


@regularizers
@pytest.mark.parametrize("round_trip", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip_gives_an_equal_regularizer(regularizer, round_trip):
    back = round_trip(regularizer)
    assert back is not regularizer
    assert type(back) is type(regularizer)
    assert back.get_config() == regularizer.get_config()


def test_repr_of_a_subclass_bears_its_name():
    class Stronger(tfk.L2):
        pass

    assert repr(Stronger(0.5)) == "Stronger(l2=0.5)"


@pytest.mark.parametrize(
    ("regularizer", "attribute"),
    [(tfk.L1, "l1"), (tfk.L2, "l2"), (tfk.L1L2, "l1"), (tfk.L1L2, "l2"), (tfk.OrthogonalRegularizer, "factor")],
    ids=["L1", "L2", "L1L2 l1", "L1L2 l2", "Orthogonal"],
)
def test_factor_is_read_at_each_call(regularizer, attribute):
    x = [[1.0, 2.0], [3.0, 4.0]]
    regularizer = regularizer(**{attribute: 0.5})
    before = float(regularizer(x))
    setattr(regularizer, attribute, 2)
    assert float(regularizer(x)) == pytest.approx(4 * before)
    assert regularizer.get_config()[attribute] == 2.0
    assert type(regularizer.get_config()[attribute]) is float


@factors
@pytest.mark.parametrize("value", ["0.5", None, float("nan"), [0.1]], ids=repr)
def test_factor_that_is_set_later_has_to_be_a_number_too(argument, make, value):
    regularizer = make(0.5)
    before = regularizer.get_config()
    with pytest.raises(ValueError, match=rf"argument `{argument}`\. Expected a finite number\. Received: {argument}="):
        setattr(regularizer, argument, value)
    assert regularizer.get_config() == before
    setattr(regularizer, argument, np.float32(0.25))
    assert regularizer.get_config()[argument] == 0.25


def test_factor_that_is_set_later_takes_effect_once_the_model_is_compiled_again():
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=tfk.L2(0.5))])
    x, y = np.zeros((4, 2), "float32"), np.zeros((4, 1), "float32")
    losses = []
    for _ in range(2):
        model.compile(tf_keras.optimizers.SGD(0.0), "mse")
        losses += model.fit(x, y, verbose=0).history["loss"]
        with pytest.warns(UserWarning, match="Compile the model again"):
            model.layers[0].kernel_regularizer.l2 = 2.0 * losses[-1]
    assert losses == [1.0, 4.0]


def test_mode_is_read_at_each_call():
    x = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    regularizer = tfk.OrthogonalRegularizer(1.0, "rows")
    regularizer.mode = "columns"
    assert float(regularizer(x)) == pytest.approx(float(tfk.OrthogonalRegularizer(1.0, "columns")(x)))
    assert regularizer.get_config()["mode"] == "columns"


CLASSES_WITH_MODE = (
    tfk.OrthogonalRegularizer,
    tfk.SampledOrthogonalRegularizer,
    tfk.SoftOrthogonalRegularizer,
    tfk.GroupLasso,
)
ARGUMENTS = [
    *((cls, "mode", bad) for cls in CLASSES_WITH_MODE for bad in ("cols", "ROWS", None, 1, ["rows"])),
    *((tfk.SampledOrthogonalRegularizer, "sample_size", bad) for bad in (1, -5, 2.5, "8", None)),
    *((tfk.SoftOrthogonalRegularizer, "diagonal", bad) for bad in (1, "yes", None, [True])),
]


@pytest.mark.parametrize(("cls", "argument", "bad"), ARGUMENTS)
def test_argument_that_is_set_later_is_checked_as_in_the_constructor(cls, argument, bad):
    class Sub(cls):
        pass

    with pytest.raises(ValueError, match=f"argument `{argument}`") as expected:
        cls(**{argument: bad})
    for regularizer in (cls(), Sub()):
        before = regularizer.get_config()
        with pytest.raises(ValueError, match=f"argument `{argument}`") as caught:
            setattr(regularizer, argument, bad)
        assert str(caught.value) == str(expected.value)
        assert regularizer.get_config() == before


def test_argument_that_is_set_later_is_kept_as_the_constructor_keeps_it():
    regularizer = tfk.SampledOrthogonalRegularizer()
    regularizer.mode, regularizer.sample_size = np.str_("columns"), np.int64(7)
    assert regularizer.get_config() == {"factor": 0.01, "mode": "columns", "sample_size": 7}
    assert (type(regularizer.mode), type(regularizer.sample_size)) == (str, int)
    soft = tfk.SoftOrthogonalRegularizer()
    soft.diagonal = np.bool_(False)
    assert soft.diagonal is False


@pytest.mark.parametrize("cls", CLASSES_WITH_MODE)
def test_subclass_with_a_call_of_its_own_keeps_what_it_likes_as_an_argument(cls):
    class Own(cls):
        def __call__(self, x):
            return tf.zeros([])

    regularizer = Own()
    regularizer.mode = "diagonals"
    assert regularizer.mode == "diagonals"


# Signatures


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"{cls}.{method}"
            for cls in ("L1", "L2", "L1L2", "OrthogonalRegularizer")
            for method in ("__init__", "__call__", "get_config", "from_config")
        ),
        "l1_l2",
        "get",
        "serialize",
        "deserialize",
    ],
)
def test_signature_is_the_one_of_keras_2(builtin, path):
    ours, theirs = tfk, builtin
    for part in path.split("."):
        ours, theirs = getattr(ours, part), getattr(theirs, part)
    assert parameters(ours) == parameters(theirs)


def test_public_names():
    assert {name for name in vars(tf_keras.regularizers) if not name.startswith("_")} <= set(tfk.__all__) | {"sys"}
    assert tfk.l1 is tfk.L1
    assert tfk.l2 is tfk.L2
    assert tfk.orthogonal_regularizer is tfk.OrthogonalRegularizer
    assert isinstance(tfk.l1_l2, types.FunctionType)


def test_nothing_but_public_names_is_in_sight():
    assert [name for name in dir(tfk) if not name.startswith("_")] == sorted(tfk.__all__)


def test_the_overview_names_all_that_is_public():
    listed = re.findall(r"^- (.*?)(?:\n\n|\Z|(?=\n- ))", tfk.__doc__, re.M | re.S)
    assert set(tfk.__all__) <= set(re.findall(r"`(\w+)`", "".join(listed)))


def test_a_registered_config_loads_by_the_name_of_its_class():
    """Trained with `register_keras_serializable`, loaded with `custom_objects`: as in the built-in, and no import."""

    class Mine(tfk.L2):
        pass

    config = {"module": "nowhere", "class_name": "Mine", "config": {"l2": 0.5}, "registered_name": "pkg>Mine"}
    loaded = tfk.deserialize(config, custom_objects={"Mine": Mine})
    assert type(loaded) is Mine
    assert loaded.l2 == 0.5
