"""Any arguments of the public functions give the right number or the documented error.

Hypothesis draws the same examples in every run; `pytest tests/test_fuzzing.py --hypothesis-show-statistics` counts
them. All calls are eager, so nothing is traced.
"""

import contextlib
import functools
import json
import math
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN
from differentiation import value_and_gradient
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import group_lasso, l1, l1_l2, l2, orthogonal, soft_orthogonal

import tfk_regularizers as tfk

examples = functools.partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

OF_COSINES = (tfk.OrthogonalRegularizer, tfk.SampledOrthogonalRegularizer)
OF_MATRICES = (*OF_COSINES, tfk.SoftOrthogonalRegularizer, tfk.GroupLasso)
CLASSES = (tfk.L1, tfk.L2, tfk.L1L2, *OF_MATRICES)
MARKER = "tfk_regularizers_test_marker"  # a module on the path that must never be imported


@pytest.fixture(scope="module", autouse=True)
def marker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marker")
    (folder / f"{MARKER}.py").write_text("system = l1_l2 = print\nclass L2:\n    from_config = dict\n")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def attempt(function, /, *arguments, **keywords):
    """Return the documented error that a call raises, or None, and its result. Check that it imports nothing."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", message="The identifier 'L1L2' means")
        try:
            error, result = None, function(*arguments, **keywords)
        except (TypeError, ValueError) as raised:
            error, result = raised, None
    assert error is None or str(error)
    assert MARKER not in sys.modules
    return error, result


def called_if_missing(regularizer):
    """Return the regularizer; if it is a placeholder for a missing class, call it, so that it raises its error."""
    return regularizer(tf.ones([2, 2])) if repr(regularizer).startswith("<Unknown regularizer") else regularizer


NARROW = [(1, 900), (900, 1), (1, 1, 1, 1, 1, 900), (2, 2000), (30, 0), (0, 30), (1, 1)]
SHAPES = st.lists(st.integers(0, 5), max_size=6).map(tuple) | st.sampled_from(NARROW)
# Of the value, and of the gradient. Half types are computed in float32, and only gradients are rounded to them.
TOLERANCES = {
    **dict.fromkeys(("float32", "complex64"), (1e-5, 1e-5)),
    **dict.fromkeys(("float64", "complex128"), (1e-11, 1e-11)),
    "float16": (1e-5, 2e-3),
    "bfloat16": (1e-5, 1e-2),
}
# Special values, and numbers that overflow or underflow, or whose squares do, in float32 and in float64.
EXTREME = [0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 1e-30, 1e-7, 1e15, -1e25, 3e38, 5e-324, 1e300]
FACTORS = st.just(0) | st.integers(-9, 9) | st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6)


def make_array(dtype, shape, seed, power, entries):
    """Normal numbers times a power of ten, with some entries replaced."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        x = x + 1j * rng.standard_normal(shape)
    x = np.array(x * 10.0**power)
    for place, entry in entries.items() if x.size else ():
        x.reshape(-1)[place % x.size] = entry
    with np.errstate(all="ignore"):
        return x.astype(tf.as_dtype(dtype).as_numpy_dtype)


def arrays(dtypes, powers, entries):
    places = st.dictionaries(st.integers(0, 10**6), st.sampled_from(entries), max_size=3)
    return st.builds(make_array, st.sampled_from(list(dtypes)), SHAPES, st.integers(0, 2**32 - 1), powers, places)


@st.composite
def penalties(draw, factors=FACTORS):
    """Draw a regularizer, its oracle, its mode or None, and its built-in counterpart or None."""
    a, b, mode, diagonal = draw(factors), draw(factors), draw(st.sampled_from(["rows", "columns"])), draw(st.booleans())
    of_cosines = (lambda x: orthogonal(x, a, mode), mode, BUILTIN.OrthogonalRegularizer(a, mode))
    soft = tfk.SoftOrthogonalRegularizer(a, mode, diagonal)
    choices = [
        (tfk.L1(a), lambda x: l1(x, a), None, BUILTIN.L1(a)),
        (tfk.L2(a), lambda x: l2(x, a), None, BUILTIN.L2(a)),
        (tfk.L1L2(a, b), lambda x: l1_l2(x, a, b), None, BUILTIN.L1L2(a, b)),
        (tfk.OrthogonalRegularizer(a, mode), *of_cosines),
        (tfk.SampledOrthogonalRegularizer(a, mode, sample_size=2000), *of_cosines),
        (soft, lambda x: soft_orthogonal(x, a, mode, diagonal), mode, None),
        (tfk.GroupLasso(a, mode), lambda x: group_lasso(x, a, mode), mode, None),
    ]
    return draw(st.sampled_from(choices))


def as_matrix(x):
    """Reshape x to a matrix whose columns are the last axis."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def near(actual, expected, tolerance, smallest):
    """Whether differences are at most the tolerance times the largest number, plus `smallest` for underflow."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    allowed = tolerance * np.abs(expected).max(initial=0) + smallest
    return actual.shape == expected.shape and np.abs(actual - expected).max(initial=0) <= allowed


def signs_are_certain(x, mode):
    """Whether rounding to float32 leaves the sign of every cosine as it is."""
    x = x if mode == "rows" else x.T
    u = x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-6)
    cosines = np.abs(u @ u.T)
    return not np.any((cosines > 0) & (cosines < 1e-5))


def rounding(regularizer, x, mode):
    """Errors of value and gradient, in units of the last place, that come from the cancellation of large terms."""
    if isinstance(regularizer, tfk.SoftOrthogonalRegularizer):
        squares = (x**2).sum()
        return abs(regularizer.factor) * np.array([squares**2, 4 * squares**1.5])
    if mode and not isinstance(regularizer, tfk.GroupLasso):  # with a single column the exact gradient is 0
        shortest = np.sqrt((x**2).sum(1 if mode == "rows" else 0)).min(initial=np.inf)
        return 0.0, abs(regularizer.factor) / max(shortest, 1e-6)
    return 0.0, 0.0


@pytest.mark.heavy
@examples(max_examples=500)
@given(arrays(TOLERANCES, st.integers(-3, 2), [0.0]), penalties())
def test_value_and_gradient_are_those_of_the_oracle(x, penalty):
    regularizer, oracle, mode, _ = penalty
    if mode and (x.ndim < 2 or x.dtype.kind == "c"):
        with pytest.raises(TypeError if x.dtype.kind == "c" else ValueError, match=r"Inputs to .* must .*Received: "):
            regularizer(x)
        return
    value, gradient = value_and_gradient(regularizer)(tf.constant(x))
    assert value.shape == ()
    assert value.dtype == (tf.float32 if x.dtype.itemsize < 4 else tf.as_dtype(x.dtype).real_dtype)
    gradient = tf.zeros_like(x) if gradient is None else gradient  # for L1L2(0, 0), as in the built-in
    assert (gradient.dtype, gradient.shape) == (x.dtype, x.shape)
    exact = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    exact = as_matrix(exact) if mode else exact
    expected_value, expected_gradient = oracle(exact)
    of_value, of_gradient = TOLERANCES[tf.as_dtype(x.dtype).name]
    unit = 1e-14 if x.dtype == np.float64 else 1e-5
    value_rounding, gradient_rounding = rounding(regularizer, exact, mode)
    assert near(value, expected_value, of_value, 1e-30 + unit * value_rounding)
    if x.dtype.name == "float16" and np.abs(expected_gradient).max(initial=0) > 60000:
        return
    if isinstance(regularizer, OF_COSINES) and not signs_are_certain(exact, mode):
        return
    smallest = (1e-7 if x.dtype.name == "float16" else 1e-30) + unit * gradient_rounding
    gradient = gradient.numpy().astype(exact.dtype).reshape(expected_gradient.shape)
    assert near(gradient, expected_gradient, of_gradient, smallest)


# The factors are exact in float32, to which the built-in rounds them.
@pytest.mark.heavy
@examples(max_examples=400)
@given(arrays(("float32", "float64"), st.integers(-45, 38), EXTREME), penalties(st.sampled_from([0, 1, 0.25, -2.0])))
def test_extreme_numbers_give_what_the_built_in_gives(x, penalty):
    regularizer, _, mode, built_in = penalty
    assume(built_in is not None and not (mode and x.ndim < 2))
    matrix = as_matrix(x) if mode else x
    value, gradient = value_and_gradient(regularizer)(tf.constant(x))
    if mode and matrix.shape[mode == "columns"] < 2:  # there is no pair, and the built-in gives NaN
        assert np.isnan(value) if np.isnan(x).any() or np.isinf(x).any() else float(value) == 0
        return
    expected_value, expected_gradient = value_and_gradient(built_in)(tf.constant(matrix))
    rtol = 1e-5 if x.dtype == np.float32 else 1e-11
    smallest = float(np.finfo(x.dtype).tiny) * 8 * (x.size + 1)
    np.testing.assert_allclose(value, expected_value, rtol, smallest)
    if mode:
        gradient = gradient.numpy().reshape(matrix.shape)
        assert np.array_equal(np.isfinite(gradient), np.isfinite(expected_gradient))
    elif expected_gradient is None:  # for L1L2(0, 0)
        assert gradient is None
    else:
        np.testing.assert_allclose(gradient, expected_gradient, rtol, smallest)


DTYPES = (hnp.boolean_dtypes(), *(kind(endianness="=") for kind in (hnp.integer_dtypes, hnp.unsigned_integer_dtypes)))
NUMBERS = st.one_of(*DTYPES, hnp.floating_dtypes(endianness="="), st.just(np.dtype(np.longdouble)))
REALS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.booleans(),
    st.fractions(),
    st.decimals(allow_nan=False, allow_infinity=False),
    hnp.arrays(NUMBERS, ()).flatmap(lambda array: st.sampled_from([array, array[()]])),
)
NOT_REALS = st.one_of(
    st.sampled_from([np.nan, np.inf, -np.inf, np.float32("nan"), np.array(np.inf), b"1", object(), float]),
    st.integers(4, 6).map(lambda n: "9" * 10**n),
    *(st.complex_numbers(), st.text(), st.binary(), st.dates(), st.timedeltas()),
    # TensorFlow itself crashes (a segmentation fault) on a list that holds an array of timedelta64.
    hnp.scalar_dtypes().filter(lambda dtype: dtype.kind != "m").flatmap(lambda dtype: hnp.arrays(dtype, 1)),
)
WORDS = st.text(max_size=3) | st.integers()
NONSENSE = st.recursive(
    st.none() | REALS | NOT_REALS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
FACTOR_NAMES = [(cls, name) for cls in CLASSES for name in cls().get_config() if name in ("l1", "l2", "factor")]


@examples(max_examples=1000)
@given(st.tuples(REALS) | NOT_REALS | st.lists(NONSENSE, max_size=2), st.sampled_from(FACTOR_NAMES))
def test_a_factor_is_a_finite_real_number(value, argument):
    (cls, name), number, regularizer = argument, math.nan, argument[0]()
    if isinstance(value, tuple):
        (value,) = value
        with np.errstate(all="ignore"), contextlib.suppress(OverflowError):
            number = float(value)
    error, made = attempt(cls, **{name: value})
    assert str(attempt(setattr, regularizer, name, value)[0]) == str(error)
    if not math.isfinite(number):
        assert isinstance(error, ValueError)
        assert f"argument `{name}`. Expected a finite number" in str(error)
        assert len(str(error)) < 1000
        assert regularizer.get_config() == cls().get_config()
        return
    assert type(getattr(made, name)) is float
    assert made.get_config() == regularizer.get_config() == cls().get_config() | {name: number}
    for legacy in (False, True):
        read = tfk.get(json.loads(json.dumps(tfk.serialize(made, use_legacy_format=legacy))))
        assert (type(read), read.get_config()) == (cls, made.get_config())


@examples(max_examples=300)
@given(NONSENSE, st.sampled_from(OF_MATRICES))
def test_other_arguments_are_checked(value, cls):
    def assert_refused(message, cls, **argument):
        error, _ = attempt(cls, **argument)
        assert isinstance(error, ValueError)
        assert message in str(error)

    if not (isinstance(value, str) and value in ("rows", "columns")):
        assert_refused("argument `mode`", cls, mode=value)
    if not isinstance(value, (bool, np.bool_)):
        assert_refused("argument `diagonal`. Expected True or False", tfk.SoftOrthogonalRegularizer, diagonal=value)
    array = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iu"
    if (isinstance(value, (bool, int, np.integer)) or array) and int(value) >= 2:
        regularizer = tfk.SampledOrthogonalRegularizer(sample_size=value)
        assert regularizer.sample_size == int(value)
        assert float(regularizer([[1.0, 0.0], [0.0, 1.0]])) == 0
    else:
        message = "argument `sample_size`. Expected an integer of at least 2"
        assert_refused(message, tfk.SampledOrthogonalRegularizer, sample_size=value)


@examples(max_examples=400)
@given(NONSENSE | st.lists(st.floats(width=32) | st.integers() | st.none()), st.sampled_from(CLASSES))
def test_an_input_that_is_not_a_tensor_gives_a_scalar_or_a_clear_error(value, cls):
    error, result = attempt(cls(), value)
    if error is None:
        assert result.shape == ()
        assert result.dtype.is_floating


KEYS = ("module", "class_name", "config", "registered_name", "build_config", "compile_config", "spec_name", "name")
PASSIVE = "__passive_serialization__"
PARAMETERS = st.sampled_from(["l1", "l2", "l", "factor", "mode", "sample_size", "diagonal", "value", "name", PASSIVE])
OURS = [cls.__name__ for cls in CLASSES]
SPECIAL = [f"__{name}__" for name in ("lambda", "tensor", "numpy", "typespec", "bytes", "ellipsis", "slice")]
NAMES = st.sampled_from(
    [
        *(*OURS, "l1", "l2", "l1_l2", "orthogonal_regularizer", "Regularizer", "function", *SPECIAL),
        *("system", "os.system", "eval", "print", "Dense", "SGD", "Custom>SGD", "L3", "", MARKER, f"{MARKER}.system"),
        *("tfk_regularizers>L2", "tfk_regularizers>SampledOrthogonalRegularizer"),
    ]
)
KERAS_MODULES = ["keras", "keras.regularizers", "keras.layers", "tf_keras.regularizers", "tfk_regularizers"]
MODULES = st.sampled_from([*KERAS_MODULES, "builtins", "os", "", MARKER, f"{MARKER}.regularizers"])


def configs_with(arguments):
    named = {"module": MODULES | NONSENSE, "registered_name": st.none() | NAMES | NONSENSE, "spec_name": NAMES}
    other = {"build_config": arguments, "compile_config": arguments, PASSIVE: st.booleans()}
    required = {"class_name": NAMES | NONSENSE, "config": arguments}
    return st.fixed_dictionaries(required, optional=named | other)


CONFIGS = st.recursive(
    configs_with(st.dictionaries(PARAMETERS, REALS | NAMES | NONSENSE, max_size=3) | NAMES),
    lambda inner: configs_with(st.dictionaries(PARAMETERS, inner | REALS, max_size=2) | st.lists(inner, max_size=2)),
    max_leaves=4,
)
SERIALIZED = [types.SimpleNamespace(get_config=dict), tfk.L2, len, lambda x: x, tf.constant(1.0)]
KEYWORDS = st.sampled_from(["kernel_regularizer", "bias_regularizer", "activity_regularizer"])
WRONG_FUNCTIONS = st.sampled_from([lambda x: x, lambda x: None, lambda x: 1 / 0, lambda: 0.0, lambda x: "a"])


def config_of(class_name, config, module="keras.regularizers", registered_name=None):
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered_name}


@examples(max_examples=600)
@given(CONFIGS | st.dictionaries(st.sampled_from(KEYS), NAMES | NONSENSE) | NAMES | NONSENSE, st.booleans())
def test_identifier_gives_a_regularizer_or_a_clear_error_and_imports_nothing(config, legacy):
    for read in (tfk.get, functools.partial(tfk.deserialize, use_legacy_format=legacy)):
        error, result = attempt(lambda read: called_if_missing(read(config)), read)
        if error is None and config is not None and not callable(config):
            assert type(result) in CLASSES
            assert all(math.isfinite(v) for v in result.get_config().values() if not isinstance(v, str))


# Keras imports the module of a config whose class it does not find under its registered name.
@pytest.mark.parametrize("registered_name", [None, "system", "L2", "l1_l2"])
@pytest.mark.parametrize("class_name", ["tfk_regularizers>L2", "Custom>SGD", "L2", "system", "function"])
def test_config_with_a_registered_name_imports_nothing(class_name, registered_name):
    config = config_of(class_name, "system" if class_name == "function" else {}, MARKER, registered_name)
    error, result = attempt(lambda: called_if_missing(tfk.get(config)))
    assert error is not None or type(result) in CLASSES


@examples(max_examples=300)
@given(NONSENSE | st.sampled_from(SERIALIZED), st.booleans())
def test_serialize_gives_what_the_built_in_gives(builtin, value, legacy):
    def outcome(serialize):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return repr(serialize(value, use_legacy_format=legacy))
            except Exception as error:
                return type(error)

    assert outcome(tfk.serialize) == outcome(builtin.serialize)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a function that writes a regularizer into the JSON of a `.keras` file, and loads it from there."""
    path = tmp_path_factory.mktemp("file") / "model.keras"
    layer = tf_keras.layers.Dense(2, kernel_regularizer="l2", input_shape=(2,))
    tf_keras.Sequential([layer]).save(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}

    def load(regularizer):
        config = json.loads(members["config.json"])
        dense = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
        assert dense["config"]["kernel_regularizer"]["class_name"] == "L2"
        dense["config"]["kernel_regularizer"] = regularizer
        with zipfile.ZipFile(path, "w") as file:
            for name, content in {**members, "config.json": json.dumps(config)}.items():
                file.writestr(name, content)
        return called_if_missing(tf_keras.models.load_model(path).layers[-1].kernel_regularizer)

    return load


WRONG = {
    "number": 0.01,
    "NaN as factor": config_of("L2", {"l2": float("nan")}),
    "extra argument": config_of("L2", {"l2": 0.5, "l3": 0.5}),
    "function that names a class": config_of("function", "Custom>SGD", None, "Custom>SGD"),
    "the same in the legacy format": {"class_name": "function", "config": "Custom>SGD"},
    "class of a module": config_of("system", {}, MARKER),
    "function of a module": config_of("function", "system", MARKER, "L2"),
    "module in a module": config_of("system", {}, f"{MARKER}.os", "L2"),
    "lambda": {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}},
    "config of a module in the factor": config_of("L2", {"l2": config_of("system", {}, MARKER)}),
}
NAMED = {
    "L1(l1=0.5)": config_of("L1", {"l1": 0.5}),
    "L2(l2=0.01)": config_of("L2", {}, MARKER),
    "L1L2(l1=0.01, l2=0.01)": config_of("l1_l2", {}, MARKER),
}


@pytest.mark.parametrize(("name", "config"), {**WRONG, **NAMED}.items())
def test_file_with_a_regularizer_written_by_hand(load, name, config):
    error, regularizer = attempt(load, config)
    if name in NAMED:
        assert repr(regularizer) == name
    else:
        assert any(word in str(error) for word in ("egularizer", "argument", "keyword")), error


@examples(max_examples=60)
@given(st.one_of(CONFIGS, CONFIGS, NAMES, NONSENSE))
def test_file_with_anything_as_a_regularizer(load, config):
    try:
        config = json.loads(json.dumps(config))
    except (TypeError, ValueError):
        return
    error, regularizer = attempt(load, config)
    assert error is not None or type(regularizer) in (*CLASSES, type(None))


@pytest.fixture(scope="module")
def model():
    model = tf_keras.Sequential([tf_keras.layers.Dense(3, name="a"), tf_keras.layers.Dense(2, name="b")])
    model.build((None, 2))
    return model


@examples(max_examples=100)
@given(KEYWORDS | st.text(max_size=10), NAMES | CONFIGS | WRONG_FUNCTIONS | NONSENSE, st.none() | NONSENSE)
def test_set_regularizers_works_or_changes_nothing(model, keyword, value, where):
    tfk.set_regularizers(model, kernel_regularizer="l2", bias_regularizer=None, activity_regularizer=None)
    before = [layer.get_config() for layer in model.layers]
    error, paths = attempt(tfk.set_regularizers, model, where=where, **{keyword: value})
    if error is not None:
        assert [layer.get_config() for layer in model.layers] == before
        assert list(tfk.penalties(model)) == ["a/kernel", "b/kernel"]
    elif value is None:
        assert keyword in ("kernel_regularizer", "bias_regularizer", "activity_regularizer")
    else:
        assert paths == [f"{layer}/{keyword.removesuffix('_regularizer')}" for layer in "ab"]
        assert all(type(getattr(layer, keyword)) in CLASSES for layer in model.layers)


@examples(max_examples=100)
@given(NONSENSE | CONFIGS | st.sampled_from([tf_keras.layers.Dense(1), tf_keras.Model, tfk.L2(), tf.Module()]))
def test_a_value_that_is_not_a_model_is_refused(value):
    set_l2 = functools.partial(tfk.set_regularizers, kernel_regularizer="l2")
    for function in (tfk.penalties, tfk.log_penalties, set_l2):
        error, _ = attempt(function, value)
        assert isinstance(error, TypeError)
        assert "expects a Keras model. Received: " in str(error)
