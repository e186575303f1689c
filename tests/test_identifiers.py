"""Strings, configs and arguments that get, serialize, deserialize and the constructors accept, return or refuse."""

import contextlib
import copy
import functools
import inspect
import itertools
import json
import pickle
import re
import reprlib
import sys
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN
from tf_keras import layers

import tfk_regularizers as tfk

ORTHOGONAL = "OrthogonalRegularizer(factor=0.01, mode='rows')"
STRINGS = {
    **dict.fromkeys(("l1", "L1"), "L1(l1=0.01)"),
    **dict.fromkeys(("l2", "L2"), "L2(l2=0.01)"),
    **dict.fromkeys(("orthogonal_regularizer", "OrthogonalRegularizer"), ORTHOGONAL),
    "l1_l2": "L1L2(l1=0.01, l2=0.01)",
}

# (class, arguments), with factors that are exact in float32, so that the built-in writes them unchanged.
CONFIGS = [
    *(("L1", {"l1": 0.25}), ("L2", {"l2": 0.5}), ("L1L2", {"l1": 0.125, "l2": 2.0})),
    *(("OrthogonalRegularizer", {"factor": 0.75, "mode": mode}) for mode in ("rows", "columns")),
]
legacy = pytest.mark.parametrize("legacy", [False, True], ids=["new", "legacy"])

LAYERS = {  # functions from an identifier to the regularizer that a layer makes from it
    "Dense": lambda given: layers.Dense(2, kernel_regularizer=given).kernel_regularizer,
    "bias": lambda given: layers.Dense(2, bias_regularizer=given).bias_regularizer,
    "activity": lambda given: layers.Activation("relu", activity_regularizer=given).activity_regularizer,
    "Conv2D": lambda given: layers.Conv2D(2, 3, kernel_regularizer=given).kernel_regularizer,
    "Embedding": lambda given: layers.Embedding(3, 2, embeddings_regularizer=given).embeddings_regularizer,
    "LSTM": lambda given: layers.LSTM(2, recurrent_regularizer=given).recurrent_regularizer,
}
GETS = {"get": tfk.get, "deserialize": tfk.deserialize, "Dense": LAYERS["Dense"]}
gets = pytest.mark.parametrize("get", GETS.values(), ids=GETS)


def new_config(name, arguments, **changes):
    config = {"module": "keras.regularizers", "class_name": name, "config": arguments, "registered_name": None}
    return {**config, **changes}


def legacy_config(name, arguments):
    return {"class_name": name, "config": arguments}


def function_config(name, **changes):
    return {"module": "builtins", "class_name": "function", "config": name, "registered_name": name, **changes}


class Mine(tf_keras.regularizers.Regularizer):
    """A user's own regularizer, which accepts any config."""

    def __init__(self, **kwargs):
        self.kwargs = kwargs

    def __call__(self, x):
        return tf.reduce_sum(x)

    def get_config(self):
        return self.kwargs


def my_penalty(x=None, **kwargs):
    """A user's own penalty. Legacy configs of functions call it with a config; it then returns a regularizer."""
    return Mine(**kwargs) if x is None else tf.reduce_sum(x)


# Valid identifiers


@pytest.mark.parametrize("string", STRINGS)
@pytest.mark.parametrize(
    "get", [*GETS.values(), tf_keras.regularizers.get, *LAYERS.values()], ids=[*GETS, "get of tf_keras", *LAYERS]
)
def test_string_gives_our_class_with_the_factors_of_keras(get, string):
    for given in (string, np.str_(string)):
        regularizer = get(given)
        assert type(regularizer).__module__ == "tfk_regularizers"
        assert repr(regularizer) == STRINGS[string]


@gets
def test_string_L1L2_gives_zeros_and_warns(get):  # noqa: N802
    with pytest.warns(UserWarning, match="Did you mean 'l1_l2'"):
        assert repr(get("L1L2")) == "L1L2(l1=0.0, l2=0.0)"
    assert repr(get(new_config("L1L2", {}))) == "L1L2(l1=0.0, l2=0.0)"
    with tf_keras.saving.custom_object_scope({"L1L2": my_penalty, "l2": my_penalty}):
        assert get("L1L2") is get("l2") is my_penalty


@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2", "orthogonal_regularizer"])
def test_legacy_config_with_an_older_name(name):
    argument = {"l1_l2": "l2", "orthogonal_regularizer": "factor"}.get(name, name)
    expected = STRINGS[name].replace(f"{argument}=0.01", f"{argument}=0.5")
    assert repr(tfk.get(legacy_config(name, {argument: 0.5}))) == expected
    assert repr(tfk.get(legacy_config("L1", {"l": 0.5}))) == "L1(l1=0.5)"


def test_registered_names_in_a_config():
    """A registered class can also be loaded with `custom_objects`, as in the built-in, without importing its module."""
    config = new_config("L2", {"l2": 0.5}, module="tfk_regularizers", registered_name="tfk_regularizers>L2")
    for get in (tfk.get, tf_keras.regularizers.get, tf_keras.saving.deserialize_keras_object):
        assert type(get(config)) is tfk.L2
    config = new_config("Mine", {"l2": 0.5}, module="nowhere", registered_name="pkg>Mine")
    loaded = tfk.deserialize(config, custom_objects={"Mine": Mine})
    assert type(loaded) is Mine
    assert loaded.kwargs == {"l2": 0.5}


CALLABLES = [
    *(None, my_penalty, lambda x: 0.0, functools.partial(my_penalty, y=1), abs),
    *(tfk.L2(0.5), BUILTIN.L2(0.5), tf.keras.regularizers.L2(0.5), Mine()),
]


@gets
@pytest.mark.parametrize("regularizer", CALLABLES, ids=lambda value: type(value).__name__)
def test_none_and_callables_are_returned_as_they_are(get, regularizer):
    assert get(regularizer) is regularizer


# Invalid identifiers


UNKNOWN = {  # by the suggestion in the error
    "'l[12]'": ("l3",),
    "'l1'": ("Lasso",),
    "'l2'": ("ridge", "weight decay"),
    "'l1_l2'": ("l1l2", "L1_L2", "l1_l2 ", "elastic_net", "ElasticNet"),
    "'orthogonal_regularizer'": ("orthogonal_regulariser",),
    "'OrthogonalRegularizer'": ("orthogonal", "Orthogonalregularizer"),
    "'SampledOrthogonalRegularizer'": ("sampled_orthogonal", "sampled_orthogonal_regularizer"),
    "'SoftOrthogonalRegularizer'": ("soft_orthogonal", "softorthogonal"),
    "'GroupLasso'": ("group_lasso", "group lasso"),
    None: ("math", "", "Regularizer", "tf_keras.regularizers.L2", "x" * 10**6),
}


@gets
@pytest.mark.parametrize(("nearest", "string"), [(key, name) for key, names in UNKNOWN.items() for name in names])
def test_unknown_string_names_the_nearest_and_the_valid_ones(get, nearest, string):
    hint = f"Did you mean {nearest}" if nearest else ""
    with pytest.raises(ValueError, match=f"^Unknown regularizer: .*{hint}.*Expected one of") as caught:
        get(string)
    message = str(caught.value)
    assert all(repr(name) in message.split("Expected one of")[1] for name in (*STRINGS, "L1L2"))
    assert reprlib.repr(string) in message
    assert len(message) < 1000


OTHERS = (b"l2", 1, 0.01, True, [], ["l2"], ("l2",), np.zeros(3))
MAKERS = (tfk.L1, tfk.L1L2, tfk.Regularizer, Mine, tf.keras.regularizers.L2, BUILTIN.L2, tfk.l1_l2)


@pytest.mark.parametrize("identifier", [*OTHERS, *MAKERS])
def test_identifier_of_another_type_is_refused(identifier):
    name, message = getattr(identifier, "__name__", None), "Could not interpret regularizer identifier"
    if name:
        message = rf"Expected a regularizer.*Received: the (class|function) {name}; did you mean `{name}\(\)`"
    for get in (tfk.get, LAYERS["Dense"]):
        with pytest.raises(ValueError, match=message):
            get(identifier)
    if not name:
        with pytest.raises(ValueError, match="Could not interpret regularizer config"):
            tfk.deserialize(identifier)


def nested(depth):
    return functools.reduce(lambda config, _: legacy_config("L2", config), range(depth), {})


def cyclic():
    config = new_config("L2", {})
    config["config"]["l2"] = config
    return config


UNDER_OURS = {"registered_name": "tfk_regularizers>L2"}
MALFORMED = [
    *({}, {"module": "keras.regularizers"}, {"config": {}}, {"class_name": "L2"}),
    {"class_name": "L2", "module": "keras.regularizers", "registered_name": None},
    *(new_config(name, {}) for name in (None, 2, ["L2"], {"class_name": "L2"}, tfk.L2)),
    *(new_config(name, {}) for name in ("L3", "Regularizer", "x" * 10**6)),
    *(new_config("L2", arguments) for arguments in ("l2", [0.01], "x" * 10**6)),
    *(legacy_config("L2", arguments) for arguments in (0.01, None)),
    legacy_config("L3", {}),
    new_config("L2", {"l2": 0.5}, module=None),
    *(new_config("L2", {"l2": 0.5}, registered_name=name) for name in ([], {})),
    # Arguments
    *(make("L2", {"l2": 0.5, "l3": 0.5}) for make in (new_config, legacy_config)),
    *(new_config("L1L2", {"l3": 0.5}), legacy_config("l1_l2", {"l3": 0.5}), new_config("L2", {2: 0.5})),
    *(new_config("L2", {"l2": bad}) for bad in ("0.5", "9" * 10**6, float("nan"), [0.5], new_config("L2", {}))),
    legacy_config("L2", {"l2": {**nested(1), "__passive_serialization__": True}}),
    *(new_config("OrthogonalRegularizer", arguments) for arguments in ({"l2": 0.5}, {"factor": None}, {"mode": []})),
    nested(3),
    # Functions and other objects
    *(function_config("system"), function_config("L2"), function_config("L2", registered_name="getcwd")),
    *(legacy_config("function", "system"), {"module": "builtins", **legacy_config("function", "L2")}),
    new_config("__bytes__", {"value": "l2"}),
    *(new_config("__tensor__", {"value": 1.0, "dtype": "float32"}, **changes) for changes in ({}, UNDER_OURS)),
    new_config("L2", {}, **UNDER_OURS, build_config={"input_shape": [1]}),
    new_config("SGD", {}, module="keras.optimizers", registered_name="Custom>SGD"),
]


def get_and_call(get, config):
    regularizer = get(config)
    assert config["module"] == "builtins"  # only a function, which may exist elsewhere, gets a placeholder
    regularizer(tf.ones([2, 2]))


DEEP = [nested(5000), cyclic()]  # too deep for Keras itself in the constructor of a layer
CASES = [*itertools.product(["get"], MALFORMED + DEEP), *itertools.product(["Dense"], MALFORMED)]


@pytest.mark.parametrize(("get", "config"), CASES, ids=reprlib.repr)
def test_malformed_config_gets_a_clear_error(get, config):
    with pytest.raises((ValueError, TypeError)) as caught:
        get_and_call(GETS[get], config)
    assert len(str(caught.value)) < 1000
    assert re.search("egularizer|rgument|config|keywords|Cannot deserialize", str(caught.value))


FUNCTION = {"class_name": "function", "config": "system"}
LAMBDA = {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}}
HOSTILE = {
    "class": {},
    "function": FUNCTION,
    "function under a name of ours": FUNCTION | UNDER_OURS,
    "function under a name of tf_keras": FUNCTION | {"registered_name": "Custom>SGD"},
    "type under a name of ours": {"class_name": "__typespec__", "spec_name": "system", **UNDER_OURS},
    "lambda": LAMBDA,
    "lambda under a name of ours": LAMBDA | UNDER_OURS,
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_config_imports_and_executes_nothing(parts, tmp_path, monkeypatch):
    (tmp_path / "hostile_module.py").write_text("system = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"module": "hostile_module", "class_name": "system", "config": {}, "registered_name": "system", **parts}
    result = tfk.L2()
    with contextlib.suppress(ValueError, TypeError):
        result = tfk.get(config)
        result(tf.ones([2, 2]))
    assert sys.modules.pop("hostile_module", None) is None
    assert isinstance(result, tfk.L2) or repr(result).startswith("<Unknown regularizer")


# The user's own names win, as in the built-in

NAMES = ("mine", "l2", "L2", "L1L2", "l1_l2", "orthogonal_regularizer", "Custom>Mine")
FORMS = {
    "string": lambda name: name,
    "new": lambda name: new_config(name, {"l2": 0.5}, module="user", registered_name=name),
    "new, registered": lambda name: new_config("Mine", {"l2": 0.5}, module="user", registered_name=name),
    "new, not registered": lambda name: new_config(name, {"l2": 0.5}),
    "legacy": lambda name: legacy_config(name, {"l2": 0.5}),
    "function": function_config,
}
OBJECTS = {"class": Mine, "function": my_penalty}


def in_a_scope(config, objects):
    with tf_keras.saving.custom_object_scope(objects):
        return tf_keras.regularizers.get(config)


def registered(config, objects):
    for name, obj in objects.items():
        package, _, own = name.rpartition(">")
        tf_keras.saving.register_keras_serializable(package or "Custom", own)(obj)
    return tf_keras.regularizers.get(config)


def among_the_global_objects(config, objects):
    tf_keras.saving.get_custom_objects().update(objects)
    return tf_keras.regularizers.get(config)


WAYS = {
    "custom objects": lambda config, objects: tf_keras.regularizers.deserialize(config, custom_objects=objects),
    "custom objects, legacy": lambda config, objects: tf_keras.regularizers.deserialize(config, objects, True),
    **{function.__name__: function for function in (in_a_scope, registered, among_the_global_objects)},
}


def outcome(way, config, objects):
    """The result of a config, in which the classes of this package and the built-in ones count as equal."""
    try:
        result = WAYS[way](config, objects)
    except (ValueError, TypeError, AttributeError, KeyError):
        return "error"
    # The built-in returns some of these and crashes when the layer is built; our placeholder raises when it is called.
    is_stand_in = repr(result).startswith("<Unknown regularizer")
    if is_stand_in or isinstance(result, (str, dict)) or result is tf_keras.regularizers.l1_l2:
        return "error"
    if isinstance(result, tf_keras.regularizers.Regularizer):
        library = type(result).__module__.partition(".")[0] in ("tf_keras", "tfk_regularizers")
        config = {key: np.float32(value) for key, value in result.get_config().items() if key != "mode"}
        return ("library's" if library else "user's", type(result).__name__, config)
    return result


def outcomes():
    """The outcome for every way, object, form and name."""
    custom = tf_keras.saving.get_custom_objects()
    registry = sys.modules[tf_keras.saving.get_registered_name.__module__]
    before, found = dict(custom), {}
    for way, obj, form, name in itertools.product(WAYS, OBJECTS, FORMS, NAMES):
        found[way, obj, form, name] = outcome(way, FORMS[form](name), {name: OBJECTS[obj]})
        custom.clear()
        custom.update(before)
        registry._GLOBAL_CUSTOM_NAMES.pop(OBJECTS[obj], None)
    return found


@pytest.fixture(scope="module")
def outcomes_here_and_built_in():
    """The outcomes while the package is registered, and while it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 'L1L2' warns unless it is the user's own
        here = outcomes()
        tfk.unregister()
        try:
            return here, outcomes()
        finally:
            tfk.register()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("obj", OBJECTS)
@pytest.mark.parametrize("way", WAYS)
def test_object_of_the_user_wins_as_in_the_built_in(outcomes_here_and_built_in, way, obj, form):
    for name in NAMES:
        ours, builtin = (outcomes[way, obj, form, name] for outcomes in outcomes_here_and_built_in)
        if name == "l1_l2" and builtin == "error":
            continue  # the built-in has no instance for a config of its function l1_l2
        if builtin is Mine:  # for a string, the built-in returns the class, and later calls it on weights
            builtin = ("user's", "Mine", Mine().get_config())
        assert ours == builtin, name


@pytest.mark.usefixtures("restored")
def test_unknown_string_lists_the_names_of_the_user():
    tf_keras.saving.register_keras_serializable("my_package")(Mine)
    with tf_keras.saving.custom_object_scope({"my_penalty": my_penalty, "Ridge": Mine}):
        with pytest.raises(ValueError, match="Did you mean 'Ridge'"):
            tfk.get("ridge")
        with pytest.raises(ValueError, match=r"Did you mean 'my_penalty'.*Expected one of.*'my_penalty'") as caught:
            tfk.get("my_penalti")
    assert "'my_package>Mine'" in str(caught.value).split("Expected one of")[1]
    assert "SGD" not in str(caught.value)
    with pytest.raises(ValueError, match=r"Expected one of.*'my_penalty'"):
        tfk.deserialize("unknown", custom_objects={"my_penalty": my_penalty})


# Serialization


@pytest.mark.parametrize(("name", "arguments"), CONFIGS)
@legacy
def test_config_is_the_one_of_the_built_in_and_gives_our_class(builtin, name, arguments, legacy):
    config = tfk.serialize(getattr(tfk, name)(**arguments), use_legacy_format=legacy)
    expected = json.dumps(builtin.serialize(getattr(builtin, name)(**arguments), use_legacy_format=legacy))
    for get in (functools.partial(tfk.deserialize, use_legacy_format=legacy), tfk.get, LAYERS["Dense"]):
        assert json.dumps(config) == expected  # reading leaves it unchanged
        regularizer = get(config)
        assert type(regularizer) is getattr(tfk, name)
        assert regularizer.get_config() == arguments
    assert json.dumps(config) == expected


@legacy
def test_serialize_beside_the_built_in(builtin, legacy):
    with pytest.warns(UserWarning, match="Regularizer.*function"):
        config = tfk.serialize(my_penalty, use_legacy_format=legacy)
    with pytest.warns(UserWarning, match="Regularizer.*function"):
        assert config == builtin.serialize(my_penalty, use_legacy_format=legacy)
    # The built-in rounds factors to float32, and ours does not. None and regularizers do not warn.
    assert tfk.serialize(tfk.L2(0.01), use_legacy_format=legacy)["config"] == {"l2": 0.01}
    assert builtin.serialize(builtin.L2(0.01), use_legacy_format=legacy)["config"] == {"l2": 0.009999999776482582}
    assert tfk.serialize(None) is None
    assert tfk.serialize(Mine(a=1)) == builtin.serialize(Mine(a=1))
    assert tfk.serialize(builtin.L2(0.5)) == tfk.serialize(tfk.L2(0.5))


# Constructors

FACTORS = [
    *((tfk.L1, "l1"), (tfk.L1, "l"), (tfk.L2, "l2"), (tfk.L2, "l"), (tfk.L1L2, "l1"), (tfk.L1L2, "l2")),
    *((tfk.l1_l2, "l1"), (tfk.l1_l2, "l2"), (tfk.OrthogonalRegularizer, "factor")),
]
factors = pytest.mark.parametrize(("make", "keyword"), FACTORS)


def attribute(make, keyword):
    return make.__name__.lower() if keyword == "l" else keyword


NOT_FACTORS = [
    *(float("nan"), float("inf"), -float("inf"), np.float32("nan"), Decimal("NaN"), Decimal("sNaN")),
    *(10**400, 10**5000, -(10**5000), Fraction(10**400)),
    *("0.01", "1" * 10**6, np.str_("0.01"), np.array("0.01"), tf.constant("0.01"), b"1", bytearray(b"1")),
    *(1j, 1 + 0j, np.complex64(1), tf.constant(1 + 0j)),
    *([], [0.01], (0.01,), [[1.0], [1.0, 2.0]], np.array([0.01]), np.ones((2, 2)), tf.constant([0.01])),
    *({"l2": 0.01}, object(), tfk.L2(), float, tf_keras.Input(())),
]


NUMBERS = [
    *((value, float(value)) for value in (0.3, 2, 0, -0.5, True, 5e-324, 1.7e308)),
    *((value, 0.5) for value in (np.float16(0.5), np.float32(0.5), np.array(0.5), Fraction(1, 2), tf.constant(0.5))),
    *((np.float64(0.3), 0.3), (Decimal("0.3"), 0.3), (np.int64(3), 3.0), (np.array(3), 3.0), (np.bool_(True), 1.0)),
]


@factors
@pytest.mark.parametrize(("value", "expected"), NUMBERS, ids=lambda value: f"{type(value).__name__} {value}")
def test_any_finite_real_number_is_a_factor(make, keyword, value, expected):
    argument = attribute(make, keyword)
    regularizer = make(**{keyword: 0.25})
    setattr(regularizer, argument, value)
    for factor in (getattr(make(**{keyword: value}), argument), getattr(regularizer, argument)):
        assert type(factor) is float
        assert factor == expected


def test_none_means_the_default_of_the_class_and_is_no_factor_later():
    assert repr([tfk.L1(None), tfk.L1(l=None)]) == "[L1(l1=0.01), L1(l1=0.01)]"
    assert repr([tfk.L2(None), tfk.L2(l=None)]) == "[L2(l2=0.01), L2(l2=0.01)]"
    assert repr([tfk.L1L2(None, None), tfk.L1L2(l2=None, l1=0.5)]) == "[L1L2(l1=0.0, l2=0.0), L1L2(l1=0.5, l2=0.0)]"
    assert repr(tfk.l1_l2(None, None)) == "L1L2(l1=0.0, l2=0.0)"
    for make, keyword in FACTORS:
        with pytest.raises(ValueError, match=r"Expected a finite number[.;].* Received: \w+=None"):
            setattr(make(), attribute(make, keyword), None)


def test_old_keyword_l_comes_first_as_in_the_built_in(builtin):
    assert tfk.L1(0.25, l=0.5).get_config() == builtin.L1(0.25, l=0.5).get_config() == {"l1": 0.5}
    assert tfk.L2(0.25, l=0.5).get_config() == builtin.L2(0.25, l=0.5).get_config() == {"l2": 0.5}


@pytest.mark.parametrize(
    ("make", "keywords"),
    [
        *((tfk.L1, {"l2": 1}), (tfk.L1, {"l": 1, "factor": 1}), (tfk.L2, {"lambda": 1}), (tfk.L1L2, {"l": 1})),
        *((tfk.OrthogonalRegularizer, {"l2": 1}), (tfk.l1_l2, {"l": 1})),
    ],
)
def test_unknown_keyword_is_named(make, keywords):
    with pytest.raises(TypeError, match=f"'{list(keywords)[-1]}'"):
        make(**keywords)


NOT_MODES = [
    *("row", "cols", "ROWS", "", "rows" * 250_000, b"rows", None, 1, True),
    *(["rows"], {"rows"}, {"rows": 1}, np.array(["rows", "columns"])),
]
SAMPLED, SOFT = tfk.SampledOrthogonalRegularizer, tfk.SoftOrthogonalRegularizer
CLASSES_WITH_MODE = (tfk.OrthogonalRegularizer, SAMPLED, SOFT, tfk.GroupLasso)
ARGUMENTS = [  # maker, keyword, expected, received
    *((make, keyword, "a finite number[.;].*", bad) for make, keyword in FACTORS for bad in NOT_FACTORS),
    *((cls, "mode", r'one of \{"rows", "columns"\}\.', bad) for cls in CLASSES_WITH_MODE for bad in NOT_MODES),
    *((SAMPLED, "sample_size", r"an integer of at least 2\.", bad) for bad in (1, -5, 2.5, "8", None)),
    *((SOFT, "diagonal", r"True or False\.", bad) for bad in (1, "yes", None, [True])),
    (tfk.OrthogonalRegularizer, "factor", r"a finite number\.", None),
]
IDS = [f"{make.__name__} {keyword} {type(bad).__name__}" for make, keyword, _, bad in ARGUMENTS]


@pytest.mark.parametrize(("make", "keyword", "wanted", "bad"), ARGUMENTS, ids=IDS)
def test_bad_argument_is_refused_by_name(make, keyword, wanted, bad):
    argument = attribute(make, keyword)
    message = rf"Invalid value for argument `{argument}`\. Expected {wanted} Received: {argument}="
    with pytest.raises(ValueError, match=message) as expected:
        make(**{keyword: bad})
    assert len(str(expected.value)) < 300
    for regularizer in (make(), type("Sub", (type(make()),), {})()):
        before = regularizer.get_config()
        with pytest.raises(ValueError, match=message) as caught:
            setattr(regularizer, argument, bad)
        assert str(caught.value) == str(expected.value)
        assert regularizer.get_config() == before


def test_argument_that_is_set_later_is_kept_as_the_constructor_keeps_it_and_used():
    regularizer = tfk.SampledOrthogonalRegularizer()
    regularizer.mode, regularizer.sample_size = np.str_("columns"), np.int64(7)
    assert regularizer.get_config() == {"factor": 0.01, "mode": "columns", "sample_size": 7}
    assert (type(regularizer.mode), type(regularizer.sample_size)) == (str, int)
    x = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert float(regularizer(x)) == pytest.approx(float(tfk.OrthogonalRegularizer(mode="columns")(x)))
    soft = tfk.SoftOrthogonalRegularizer()
    soft.diagonal = np.bool_(False)
    assert soft.diagonal is False


@pytest.mark.parametrize("cls", CLASSES_WITH_MODE)
def test_subclass_with_a_call_of_its_own_keeps_any_argument(cls):
    regularizer = type("Own", (cls,), {"__call__": lambda self, x: 0.0})(0.5)
    regularizer.mode = "diagonals"
    assert repr(regularizer).startswith("Own(factor=0.5, mode='diagonals'")


REGULARIZERS = [
    *(tfk.L1(), tfk.L1(1 / 3), tfk.L2(5e-324), tfk.L2(np.float32(0.1)), tfk.L2(-1), tfk.L1L2(1e-30, 0.7), tfk.l1_l2()),
    *(tfk.OrthogonalRegularizer(), tfk.OrthogonalRegularizer(0.3, np.str_("columns"))),
]
ROUND_TRIPS = {
    "repr": lambda regularizer: eval(repr(regularizer), {name: getattr(tfk, name) for name in tfk.__all__}),
    "pickle": lambda regularizer: pickle.loads(pickle.dumps(regularizer)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "from_config": lambda regularizer: type(regularizer).from_config(regularizer.get_config()),
    "json": lambda regularizer: tfk.get(json.loads(json.dumps(tfk.serialize(regularizer)))),
}


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@pytest.mark.parametrize("round_trip", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip_gives_an_equal_regularizer(regularizer, round_trip):
    back = round_trip(regularizer)
    assert back is not regularizer
    assert type(back) is type(regularizer)
    assert back.get_config() == regularizer.get_config()


@factors
def test_factor_is_read_at_each_call(make, keyword):
    x = [[1.0, 2.0], [3.0, 4.0]]
    regularizer = make(**{"l1": 0.0, "l2": 0.0, keyword: 0.5} if make in (tfk.L1L2, tfk.l1_l2) else {keyword: 0.5})
    before = float(regularizer(x))
    setattr(regularizer, attribute(make, keyword), 2)
    assert float(regularizer(x)) == pytest.approx(4 * before)


# Signatures


CLASSES = ("L1", "L2", "L1L2", "OrthogonalRegularizer")
METHODS = ("__init__", "__call__", "get_config", "from_config")
FUNCTIONS = ("l1_l2", "get", "serialize", "deserialize")


@pytest.mark.parametrize("path", [*FUNCTIONS, *map(".".join, itertools.product(CLASSES, METHODS))])
def test_signature_is_the_one_of_keras_2(builtin, path):
    functions = [functools.reduce(getattr, path.split("."), library) for library in (tfk, builtin)]
    ours, theirs = (inspect.signature(function).parameters.values() for function in functions)
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


# The names of tf_keras that `help` leaves out, and one that only raises an error naming its successor.
NOT_IN_HELP = {"l1", "l2", "orthogonal_regularizer", "Regularizer", "PenaltyLogger"}


def test_public_names():
    """All names of tf_keras exist, and the overview lists all public names."""
    names = {name for name in dir(tfk) if not name.startswith("_")}
    assert {name for name in vars(tf_keras.regularizers) if not name.startswith("_")} <= names | {"sys"}
    assert (tfk.l1, tfk.l2, tfk.orthogonal_regularizer) == (tfk.L1, tfk.L2, tfk.OrthogonalRegularizer)
    assert tfk.Regularizer is tf_keras.regularizers.Regularizer
    assert names == set(tfk.__all__) | NOT_IN_HELP
    listed = re.findall(r"^- (.*?)(?:\n\n|\Z|(?=\n- ))", tfk.__doc__, re.M | re.S)
    assert set(tfk.__all__) <= set(re.findall(r"`(\w+)`", "".join(listed)))
