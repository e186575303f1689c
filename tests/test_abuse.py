"""Whatever is thrown at the public functions: the right number, or the documented error.

The examples are drawn by hypothesis, the same at every run; `pytest tests/test_abuse.py --hypothesis-show-statistics`
counts them. All is called eagerly, where nothing is traced.
"""

import abc
import contextlib
import copy
import dataclasses
import functools
import json
import math
import pathlib
import pickle
import sys
import tempfile
import types
import warnings
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN
from differentiation import value_and_gradient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import PENALTIES, l1, l1_l2, l2, orthogonal

import tfk_regularizers as tfk

examples = functools.partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

CLASSES = (tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer, tfk.SampledOrthogonalRegularizer)
MARKER = "tfk_regularizers_test_marker"  # a module that must never be imported


@pytest.fixture(scope="module", autouse=True)
def marker(tmp_path_factory):
    """A module on the path, and the check that nothing has imported it."""
    folder = tmp_path_factory.mktemp("marker")
    code = "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\nL2 = system = l1_l2 = print\n"
    (folder / f"{MARKER}.py").write_text(code)
    sys.path.insert(0, str(folder))

    def check():
        assert MARKER not in sys.modules
        assert [path.name for path in folder.iterdir()] == [f"{MARKER}.py"]

    yield check
    sys.path.remove(str(folder))
    check()


def refusal(function, /, *arguments, **keywords):
    """The clear error that a call fails with, or None where it works, and what it returns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The identifier 'L1L2' stands for")
        try:
            return None, function(*arguments, **keywords)
        except (TypeError, ValueError) as raised:
            error = raised
    assert str(error)
    return error, None


def computed(regularizer):
    """The regularizer; if it stands for one that some program had, the error that its penalty is."""
    return regularizer(tf.ones([2, 2])) if repr(regularizer).startswith("<Unknown regularizer") else regularizer


# Tensors

NARROW = [(1, 900), (900, 1), (1, 1, 1, 1, 1, 900), (2, 2000), (30, 0), (0, 30), (1, 1)]
SHAPES = st.lists(st.integers(0, 5), max_size=6).map(tuple) | st.sampled_from(NARROW)
DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
# Of the value, of the gradient. Halves are computed in float32, and only their gradients are rounded to them.
TOLERANCES = {
    **dict.fromkeys(("float32", "complex64"), (1e-5, 1e-5)),
    **dict.fromkeys(("float64", "complex128"), (1e-11, 1e-11)),
    "float16": (1e-5, 2e-3),
    "bfloat16": (1e-5, 1e-2),
}
# Beyond what a square, or a number, can be in float32 and in float64.
EXTREME = [0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 1e-30, 1e-7, 1e15, -1e25, 3e38, 5e-324, 1e300]
FACTORS = st.just(0) | st.integers(-9, 9) | st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6)


@dataclasses.dataclass
class Drawn:
    """An array, and how to make it again: its numbers would fill the screen."""

    dtype: str
    shape: tuple[int, ...]
    seed: int
    power: int
    entries: dict[int, float]
    x: np.ndarray = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        """Normal numbers times a power of ten, with some entries of those given."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal(self.shape)
        if self.dtype.startswith("complex"):
            x = x + 1j * rng.standard_normal(self.shape)
        x = np.array(x * 10.0**self.power)
        for place, entry in self.entries.items():
            x.reshape(-1)[place % x.size] = entry
        with np.errstate(all="ignore"):
            self.x = x.astype(tf.as_dtype(self.dtype).as_numpy_dtype)


@st.composite
def arrays(draw, dtypes, powers, entries):
    """An array of any shape, of one of the dtypes and powers of ten, with some of the entries."""
    shape = draw(SHAPES)
    places = st.dictionaries(st.integers(0, 10**6), st.sampled_from(entries), max_size=3)
    entries = draw(places) if 0 not in shape else {}
    return Drawn(draw(st.sampled_from(dtypes)), shape, draw(st.integers(0, 2**32 - 1)), draw(powers), entries)


@st.composite
def penalties(draw, factors=FACTORS):
    """A regularizer, its oracle, and how to make it of the classes of another module; for orthogonality the mode."""
    first, second = draw(factors), draw(factors)
    mode = draw(st.sampled_from(["rows", "columns"]))
    return draw(
        st.sampled_from(
            [
                (tfk.L1(first), lambda x: l1(x, first), lambda module: module.L1(first), None),
                (tfk.L2(first), lambda x: l2(x, first), lambda module: module.L2(first), None),
                (tfk.L1L2(first, second), lambda x: l1_l2(x, first, second), lambda m: m.L1L2(first, second), None),
                (
                    tfk.OrthogonalRegularizer(first, mode),
                    lambda x: orthogonal(x, first, mode),
                    lambda module: module.OrthogonalRegularizer(first, mode),
                    mode,
                ),
                (
                    tfk.SampledOrthogonalRegularizer(first, mode, sample_size=2000),
                    lambda x: orthogonal(x, first, mode),
                    lambda module: module.OrthogonalRegularizer(first, mode),
                    mode,
                ),
            ]
        )
    )


def as_matrix(x):
    """All axes but the last as the rows."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def near(actual, expected, tolerance, smallest):
    """Whether the largest difference is within the tolerance of the largest number, or what underflow may take."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    allowed = tolerance * np.abs(expected).max(initial=0) + smallest
    return actual.shape == expected.shape and np.abs(actual - expected).max(initial=0) <= allowed


def signs_are_certain(x, mode):
    """Whether rounding to float32 leaves the sign of every cosine as it is."""
    x = x if mode == "rows" else x.T
    u = x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-6)
    cosines = np.abs(u @ u.T)
    return not np.any((cosines > 0) & (cosines < 1e-5))


@pytest.mark.heavy
@examples(max_examples=400)
@given(arrays(DTYPES, st.integers(-3, 2), [0.0]), penalties())
def test_value_and_gradient_are_those_of_the_oracle(drawn, penalty):
    x, (regularizer, oracle, _, mode) = drawn.x, penalty
    if mode and (x.ndim < 2 or x.dtype.kind == "c"):
        with pytest.raises(TypeError if x.dtype.kind == "c" else ValueError, match=r"Inputs to .* must .*Received: "):
            regularizer(x)
        return
    value, gradient = value_and_gradient(regularizer)(tf.constant(x))
    assert value.shape == ()
    assert value.dtype == (tf.float32 if x.dtype.itemsize < 4 else tf.as_dtype(x.dtype).real_dtype)
    gradient = tf.zeros_like(x) if gradient is None else gradient  # of L1L2(0, 0), as in the built-in
    assert gradient.dtype == x.dtype
    assert gradient.shape == x.shape
    exact = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    exact = as_matrix(exact) if mode else exact
    expected_value, expected_gradient = oracle(exact)
    of_value, of_gradient = TOLERANCES[tf.as_dtype(x.dtype).name]
    assert near(value, expected_value, of_value, 1e-30)
    if x.dtype.name == "float16" and np.abs(expected_gradient).max(initial=0) > 60000:
        return
    smallest = 1e-7 if x.dtype.name == "float16" else 1e-30
    if mode:
        if not signs_are_certain(exact, mode):
            return
        # Where terms cancel, in a single column for one, what is left is of the size of their rounding errors.
        axis = 1 if mode == "rows" else 0
        shortest = np.sqrt((exact**2).sum(axis)).min(initial=np.inf)
        smallest += (1e-14 if x.dtype == np.float64 else 1e-5) * abs(regularizer.factor) / max(shortest, 1e-6)
    gradient = gradient.numpy().astype(exact.dtype).reshape(expected_gradient.shape)
    assert near(gradient, expected_gradient, of_gradient, smallest)


# Factors that float32 holds exactly: the built-in rounds them to it.
@pytest.mark.heavy
@examples(max_examples=400)
@given(arrays(("float32", "float64"), st.integers(-45, 38), EXTREME), penalties(st.sampled_from([0, 1, 0.25, -2.0])))
def test_extreme_numbers_give_what_the_built_in_gives(builtin, drawn, penalty):
    x, (regularizer, _, make, mode) = drawn.x, penalty
    if mode and x.ndim < 2:
        return
    matrix = as_matrix(x) if mode else x
    value, gradient = value_and_gradient(regularizer)(tf.constant(x))
    if mode and matrix.shape[mode == "columns"] < 2:  # there is no pair, and the built-in gives NaN
        assert np.isnan(value) if np.isnan(x).any() or np.isinf(x).any() else float(value) in (0, np.nan)
        return
    expected_value, expected_gradient = value_and_gradient(make(builtin))(tf.constant(matrix))
    rtol = 1e-5 if x.dtype == np.float32 else 1e-11
    smallest = float(np.finfo(x.dtype).tiny) * 8 * (x.size + 1)
    np.testing.assert_allclose(value, expected_value, rtol, smallest)
    if expected_gradient is None:  # of L1L2(0, 0)
        assert gradient is None
        return
    if not mode:
        np.testing.assert_allclose(gradient, expected_gradient, rtol, smallest)
        return
    gradient, expected_gradient = gradient.numpy().reshape(matrix.shape), expected_gradient.numpy()
    assert np.array_equal(np.isfinite(gradient), np.isfinite(expected_gradient))


@pytest.mark.parametrize("shape", [(5000, 1), (1, 5000), (0, 5000), (5000, 0), (2, 2**20)], ids=str)
def test_huge_aspect_ratios(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    for mode, n in (("rows", shape[0]), ("columns", shape[1])):
        if n > 5000:
            continue
        value, gradient = value_and_gradient(tfk.OrthogonalRegularizer(0.5, mode))(tf.constant(x))
        expected_value, expected_gradient = orthogonal(x, 0.5, mode)
        assert near(value, expected_value, 1e-11, 0)
        assert near(gradient, expected_gradient, 1e-9, 1e-9)  # of one column, the exact gradient is 0


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_factors_of_any_size(cls):
    """Where the product is in range it is right, however large or small the factor is."""
    name = next(iter(cls().get_config()))
    for dtype, factor, size in (("float32", 3e38, 0.1), ("float32", 1e-30, 1e10), ("float64", 1.7e308, 1e-4)):
        x = tf.constant([[size, size], [size, size]], dtype)
        value = float(cls(**{name: factor})(x))
        scale = {"L2": factor * size * size * 4}.get(cls.__name__, factor * size * 4)
        expected = factor if "Orthogonal" in cls.__name__ else scale
        if expected < float(tf.as_dtype(dtype).max):
            assert value == pytest.approx(expected, rel=1e-5), (dtype, factor)
    if cls is tfk.L1L2:
        assert float(cls(1.0, 3e38)([[0.1]])) == pytest.approx(3e36, rel=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64", "bool", "string", "qint8"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_dtype_without_a_penalty_is_refused(cls, dtype):
    x = tf.constant([[1, 0], [0, 1]], tf.int8)
    x = tf.bitcast(x, dtype) if dtype == "qint8" else tf.as_string(x) if dtype == "string" else tf.cast(x, dtype)
    with pytest.raises(TypeError, match=rf"Inputs to {cls.__name__} must be .*{dtype}"):
        cls()(x)


# Nonsense

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="="),
    st.just(np.dtype(np.longdouble)),
)
REALS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.booleans(),
    st.fractions(),
    st.decimals(allow_nan=False, allow_infinity=False),
    hnp.arrays(NUMBERS, ()).flatmap(lambda array: st.sampled_from([array, array[()]])),
)
NO_REALS = st.one_of(
    st.sampled_from([np.nan, np.inf, -np.inf, np.float32("nan"), np.array(np.inf), b"1", object(), float]),
    st.integers(4, 6).map(lambda n: "9" * 10**n),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.dates(),
    st.timedeltas(),
    # TensorFlow itself crashes (a segmentation fault) on a list that holds an array of timedelta64.
    hnp.scalar_dtypes().filter(lambda dtype: dtype.kind != "m").flatmap(lambda dtype: hnp.arrays(dtype, 1)),
)
NONSENSE = st.recursive(
    st.none() | REALS | NO_REALS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = [(cls, name) for cls in CLASSES for name in cls().get_config() if name not in ("mode", "sample_size")]


@examples(max_examples=500)
@given(REALS, st.sampled_from(ARGUMENTS))
def test_any_real_number_is_a_factor_or_refused_if_it_is_not_finite(value, argument):
    cls, name = argument
    with np.errstate(all="ignore"), contextlib.suppress(OverflowError):
        number = float(value)
        if math.isfinite(number):
            regularizer = cls(**{name: value})
            assert type(getattr(regularizer, name)) is float
            assert getattr(regularizer, name) == number
            for legacy in (False, True):
                config = json.loads(json.dumps(tfk.serialize(regularizer, use_legacy_format=legacy)))
                assert type(tfk.get(config)) is cls
                assert tfk.get(config).get_config() == regularizer.get_config()
            return
    with pytest.raises(ValueError, match=f"argument `{name}`. Expected a finite number"):
        cls(**{name: value})


@examples(max_examples=300)
@given(NO_REALS | st.lists(NONSENSE, max_size=2), st.sampled_from(ARGUMENTS))
def test_no_number_is_refused_as_a_factor(value, argument):
    cls, name = argument
    error, _ = refusal(cls, **{name: value})
    assert isinstance(error, ValueError)
    assert f"argument `{name}`. Expected a finite number" in str(error)
    assert len(str(error)) < 1000


@examples(max_examples=300)
@given(REALS | NO_REALS | st.lists(NONSENSE, max_size=2), st.sampled_from(ARGUMENTS))
def test_what_the_constructor_takes_as_a_factor_can_be_set_later_and_nothing_else(value, argument):
    cls, name = argument
    constructed, expected = refusal(cls, **{name: value})
    regularizer = cls()
    error, _ = refusal(setattr, regularizer, name, value)
    assert str(error) == str(constructed)
    assert regularizer.get_config() == (expected or cls()).get_config()


@examples(max_examples=300)
@given(NONSENSE, st.sampled_from(CLASSES[3:]))
def test_mode_and_sample_size(value, cls):
    if not (isinstance(value, str) and value in ("rows", "columns")):
        error, _ = refusal(cls, mode=value)
        assert isinstance(error, ValueError)
        assert "argument `mode`" in str(error)
    error, regularizer = refusal(tfk.SampledOrthogonalRegularizer, sample_size=value)
    integers = (bool, int, np.integer)
    array = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iu"
    if (isinstance(value, integers) or array) and int(value) >= 2:
        assert regularizer.sample_size == int(value)
        assert float(regularizer([[1.0, 0.0], [0.0, 1.0]])) == 0
    else:
        assert isinstance(error, ValueError)
        assert "argument `sample_size`. Expected an integer of at least 2" in str(error)


@pytest.mark.heavy
def test_sample_size_beyond_32_bits_with_a_number_of_rows_that_is_not_known():
    penalty = tfk.SampledOrthogonalRegularizer(1.0, sample_size=2**40)
    function = tf.function(penalty, input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    assert float(function(tf.constant([[1.0, 0.0], [-5.0, 0.0]]))) == 1


@examples(max_examples=400)
@given(NONSENSE | st.lists(st.floats(width=32) | st.integers() | st.none()), st.sampled_from(CLASSES))
def test_what_is_no_tensor(value, cls):
    with np.errstate(all="ignore"):
        error, result = refusal(cls(), value)
    if error is None:
        assert result.shape == ()
        assert result.dtype.is_floating


# Subclasses that work with the built-in


def subclasses(module, name):
    """Classes of a user's own, made of those of tf_keras or of this package, in a global of that name."""

    class PerChannel(module.L2):
        def __init__(self, l2=(0.1, 0.2, 0.3)):
            self.l2 = np.asarray(l2, "float32")

        def __call__(self, x):
            return tf.reduce_sum(self.l2 * tf.reduce_sum(tf.square(x), 0))

    class PerChannelVariable(PerChannel):
        def __init__(self):
            self.l2 = tf.Variable([0.1, 0.2, 0.3])

    class Maybe(module.L2):
        def __init__(self, l2=None):
            self.l2 = l2

        def __call__(self, x):
            return tf.zeros([]) if self.l2 is None else super().__call__(x)

    @dataclasses.dataclass(frozen=True)
    class Frozen(module.L2):
        l2: float = 0.25

    @dataclasses.dataclass
    class Data(module.L2):
        l2: float = 0.25
        axes: list = dataclasses.field(default_factory=lambda: [0, 1])

    class Slots(module.L2):
        __slots__ = ("power",)

        def __init__(self, l2=0.25):
            super().__init__(l2)
            self.power = 3

    class Property(module.L1):
        def __init__(self):
            self.half = 0.25

        @property
        def l1(self):
            return tf.constant(2 * self.half)

    class Stateful(module.L2):
        def __getstate__(self):
            return {"number": 0.5}

        def __setstate__(self, state):
            self.l2 = state["number"]

    class Abstract(module.L2, abc.ABC):
        @tf.function
        def __call__(self, x):
            return 2.0 * super().__call__(x)

    class WithoutSuper(module.OrthogonalRegularizer):
        def __init__(self):
            self.power = 2

        def __call__(self, x):
            return tf.reduce_sum(x**self.power)

    local = [PerChannel, PerChannelVariable, Maybe, Frozen, Data, Slots, Property, Stateful, Abstract, WithoutSuper]
    for cls in local:  # where pickle finds them
        cls.__qualname__ = f"{name}.{cls.__name__}"
    return types.SimpleNamespace(**{cls.__name__: cls for cls in local})


OF_OURS, OF_BUILTIN = subclasses(tfk, "OF_OURS"), subclasses(BUILTIN, "OF_BUILTIN")


@pytest.mark.parametrize("name", vars(OF_OURS))
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda regularizer: pickle.loads(pickle.dumps(regularizer))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_subclass_as_of_the_built_in(name, copied):
    """What it holds, what a copy of it holds, and the loss and the weights' file of a layer with either."""

    def outcome(cls, folder):
        found = []
        for regularizer in (cls(), copied(cls())):
            layer = tf_keras.layers.Dense(3, kernel_initializer="ones", kernel_regularizer=regularizer)
            model = tf_keras.Sequential([tf_keras.Input((4,)), layer])
            names = {*vars(regularizer), *getattr(cls, "__slots__", ())} - {"__module__"}
            held = {name: np.asarray(getattr(regularizer, name)) for name in names if not name.startswith("_")}
            model.save_weights(folder, save_format="tf")
            found.append([float(model.losses[0]), held, tf.train.list_variables(folder)])
        return found

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (outcome(getattr(of, name), f"{folder}/weights") for of in (OF_OURS, OF_BUILTIN))
    for (loss, held, weights), (their_loss, their_held, their_weights) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(their_loss)
        assert held.keys() == their_held.keys()
        for key, value in held.items():
            assert value.dtype == object or np.allclose(value, their_held[key])
        assert weights == their_weights


# Identifiers and configs

KEYS = ("module", "class_name", "config", "registered_name", "build_config", "compile_config", "spec_name", "name")
PARAMETERS = ("l1", "l2", "l", "factor", "mode", "sample_size", "value", "dtype", "name", "__passive_serialization__")
NAMES = st.sampled_from(
    [
        *("L1", "L2", "L1L2", "l1", "l2", "l1_l2", "OrthogonalRegularizer", "orthogonal_regularizer", "Regularizer"),
        *("SampledOrthogonalRegularizer", "tfk_regularizers>L2", "tfk_regularizers>SampledOrthogonalRegularizer"),
        *(
            "function",
            "__lambda__",
            "__tensor__",
            "__numpy__",
            "__typespec__",
            "__bytes__",
            "__ellipsis__",
            "__slice__",
        ),
        *("system", "os.system", "eval", "print", "Dense", "SGD", "Custom>SGD", "L3", "", MARKER, f"{MARKER}.system"),
    ]
)
MODULES = st.sampled_from(
    [
        *("keras", "keras.regularizers", "keras.layers", "tf_keras.regularizers", "tfk_regularizers", "builtins", "os"),
        *("", MARKER, f"{MARKER}.regularizers"),
    ]
)


def config_of(arguments):
    return st.fixed_dictionaries(
        {"class_name": NAMES | NONSENSE, "config": arguments},
        optional={
            "module": MODULES | NONSENSE,
            "registered_name": st.none() | NAMES | NONSENSE,
            "build_config": arguments,
            "compile_config": arguments,
            "spec_name": NAMES,
            "__passive_serialization__": st.booleans(),
        },
    )


CONFIGS = st.recursive(
    config_of(st.dictionaries(st.sampled_from(PARAMETERS), REALS | NAMES | NONSENSE, max_size=3) | NAMES),
    lambda inner: config_of(
        st.dictionaries(st.sampled_from(PARAMETERS), inner | REALS, max_size=2) | st.lists(inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("module", [{}, {"module": None, "registered_name": "Custom>SGD"}])
def test_config_of_a_function_that_names_a_class_gives_none(module):
    with pytest.raises(ValueError, match=r"Could not interpret regularizer config .*: it gives <tf_keras"):
        tfk.deserialize({"class_name": "function", "config": "Custom>SGD", **module})


@examples(max_examples=600)
@given(CONFIGS | st.dictionaries(st.sampled_from(KEYS), NAMES | NONSENSE) | NAMES | NONSENSE, st.booleans())
def test_identifier_gives_a_regularizer_or_a_clear_error_and_imports_nothing(marker, config, legacy):
    for read in (tfk.get, functools.partial(tfk.deserialize, use_legacy_format=legacy)):
        with np.errstate(all="ignore"):
            error, result = refusal(lambda read: computed(read(config)), read)
        if isinstance(config, str) and ">" in config:
            continue  # a test of its own
        if error is None and config is not None and not callable(config):
            assert type(result) in CLASSES
            assert all(math.isfinite(v) for v in result.get_config().values() if not isinstance(v, str))
        marker()


# Keras imports the module of a config whose class it does not find under its registered name.
@pytest.mark.parametrize("registered_name", [None, "system", "L2", "l1_l2"])
@pytest.mark.parametrize("class_name", ["tfk_regularizers>L2", "Custom>SGD", "L2", "system", "function"])
def test_config_with_a_name_that_is_registered_imports_nothing(class_name, registered_name, tmp_path, monkeypatch):
    module = f"{MARKER}_of_a_registered_name"
    (tmp_path / f"{module}.py").write_text("class L2:\n    from_config = dict\nsystem = l1_l2 = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = "system" if class_name == "function" else {}
    config = {"module": module, "class_name": class_name, "config": arguments, "registered_name": registered_name}
    error, result = refusal(lambda: computed(tfk.get(config)))
    assert sys.modules.pop(module, None) is None
    assert error is not None or type(result) in CLASSES


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_registered_name_as_a_string_gives_an_instance_or_a_clear_error(cls):
    error, result = refusal(tfk.get, f"tfk_regularizers>{cls.__name__}")
    assert error is not None or type(result) is cls


class Other:
    """Not a regularizer, but with a config."""

    def get_config(self):
        return {}


@examples(max_examples=300)
@given(NONSENSE | st.sampled_from([Other(), tfk.L2, len, lambda x: x, tf.constant(1.0)]), st.booleans())
def test_anything_serialized_gives_what_the_built_in_gives(builtin, value, legacy):
    def outcome(serialize):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return repr(serialize(value, use_legacy_format=legacy))
            except Exception as error:
                return type(error)

    assert outcome(tfk.serialize) == outcome(builtin.serialize)


# Files


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A `.keras` file, as a dict from the names of its members to their contents."""
    model = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(2, kernel_regularizer="l2", name="dense")])
    path = tmp_path_factory.mktemp("file") / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def load(parts, tmp_path_factory):
    """Loads the file with another regularizer in its JSON; the layer."""
    path = tmp_path_factory.mktemp("edited") / "model.keras"

    def load(regularizer):
        config = json.loads(parts["config.json"])
        dense = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
        assert dense["config"]["kernel_regularizer"]["class_name"] == "L2"
        dense["config"]["kernel_regularizer"] = regularizer
        with zipfile.ZipFile(path, "w") as file:
            for name, content in {**parts, "config.json": json.dumps(config)}.items():
                file.writestr(name, content)
        return tf_keras.models.load_model(path).layers[-1]

    return load


def test_file_that_is_all_right(load):
    config = {"module": "keras.regularizers", "class_name": "L1", "config": {"l1": 0.5}, "registered_name": None}
    assert repr(load(config).kernel_regularizer) == "L1(l1=0.5)"


WRONG = {
    "string": "l3",
    "number": 0.01,
    "list": ["l2"],
    "empty": {},
    "no config": {"class_name": "L2"},
    "no class name": {"config": {"l2": 0.5}},
    "class name of another type": {"class_name": ["L2"], "config": {}},
    "config of another type": {"module": "keras.regularizers", "class_name": "L2", "config": "l2"},
    "factor of another type": {"module": "keras.regularizers", "class_name": "L2", "config": {"l2": [0.5]}},
    "factor that is no number": {"module": "keras.regularizers", "class_name": "L2", "config": {"l2": float("nan")}},
    "extra argument": {"module": "keras.regularizers", "class_name": "L2", "config": {"l2": 0.5, "l3": 0.5}},
    "nested": {"class_name": "L2", "config": {"l2": {"class_name": "L2", "config": {"l2": {"class_name": "L2"}}}}},
    "1 MB name": {"class_name": "x" * 2**20, "config": {}},
    "1 MB factor": {"class_name": "L2", "config": {"l2": "9" * 2**20}},
    "class of a module": {"module": MARKER, "class_name": "system", "config": {}, "registered_name": None},
    "function of a module": {"module": MARKER, "class_name": "function", "config": "system", "registered_name": "L2"},
    "module in a module": {"module": f"{MARKER}.os", "class_name": "system", "config": {}, "registered_name": "L2"},
    "lambda": {"class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}},
    "config of a module in the factor": {
        "module": "keras.regularizers",
        "class_name": "L2",
        "config": {"l2": {"module": MARKER, "class_name": "system", "config": {}, "registered_name": None}},
    },
}


@pytest.mark.parametrize("config", WRONG.values(), ids=WRONG)
def test_file_with_a_wrong_regularizer_gets_a_clear_error(marker, load, config):
    with pytest.raises((TypeError, ValueError)) as caught:
        computed(load(config).kernel_regularizer)
    assert any(word in str(caught.value) for word in ("egularizer", "argument", "keyword")), caught.value
    marker()


@pytest.mark.parametrize("name", ["L2", "l1_l2"])
def test_file_with_our_name_in_another_module_gives_ours(marker, load, name):
    config = {"module": MARKER, "class_name": name, "config": {}, "registered_name": None}
    assert type(load(config).kernel_regularizer) in CLASSES
    marker()


@examples(max_examples=60)
@given(st.one_of(CONFIGS, CONFIGS, NAMES, NONSENSE))
def test_file_with_anything_as_a_regularizer(marker, load, config):
    try:
        config = json.loads(json.dumps(config))
    except (TypeError, ValueError):
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The identifier 'L1L2' stands for")
            regularizer = computed(load(config).kernel_regularizer)
    except (TypeError, ValueError):
        pass
    else:
        assert type(regularizer) in (*CLASSES, type(None))
    marker()


# Models

KEYWORDS = st.sampled_from(["kernel_regularizer", "bias_regularizer", "activity_regularizer"])
WRONG_FUNCTIONS = st.sampled_from([lambda x: x, lambda x: None, lambda x: 1 / 0, lambda: 0.0, lambda x: "a"])


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
    error, paths = refusal(tfk.set_regularizers, model, where=where, **{keyword: value})
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
def test_what_is_no_model(value):
    for function in (tfk.penalties, functools.partial(tfk.set_regularizers, kernel_regularizer="l2")):
        error, _ = refusal(function, value)
        assert isinstance(error, TypeError)
        assert "is for models of tf_keras" in str(error)


# Processes of their own

DETERMINISTIC = """
import json, sys
import tf_keras
before = set(sys.modules)
import tfk_regularizers as tfk
result = {"imported": sorted(set(sys.modules) - before)}

import tensorflow as tf
sys.path.insert(0, TESTS)
from differentiation import MODES, run, value_and_gradient
from oracles import PENALTIES

tf.config.experimental.enable_op_determinism()
tf.random.set_seed(1)
# One block, halves and a loop over blocks; plain, by hand and fused.
from tfk_regularizers._penalties import execution
execution.FUSED_IN_GRAPH_FROM = 2**18
arrays = {str(shape): tf.random.normal(shape) for shape in ([64, 48], [1100, 300], [300, 1100], [1300, 300])}

def bits(mode, penalty, x):
    value, gradient = run(mode, value_and_gradient(penalty), x)
    return value.numpy().tobytes() + tf.convert_to_tensor(gradient).numpy().tobytes()

def seeded(mode, axis, x):
    tf.random.set_seed(7)
    return bits(mode, tfk.SampledOrthogonalRegularizer(0.3, axis, sample_size=50), x)

for mode in MODES:
    for shape, x in arrays.items():
        for name, (make, _) in PENALTIES.items():
            result[f"{mode} {shape} {name}"] = bits(mode, make(tfk), x) == bits(mode, make(tfk), x)
        for axis in ("rows", "columns") if mode != "xla" else ():
            result[f"{mode} {shape} sampled {axis}"] = seeded(mode, axis, x) == seeded(mode, axis, x)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def deterministic(run_python):
    """What a process with deterministic ops finds: for each case whether two runs give the same bits."""
    return json.loads(run_python("-c", f"TESTS = {str(pathlib.Path(__file__).parent)!r}\n{DETERMINISTIC}"))


@pytest.mark.heavy
def test_import_adds_no_other_module(deterministic):
    assert "tfk_regularizers" in deterministic["imported"]
    imported = set(deterministic["imported"]) - {"tf_keras.regularizers.__init__"}  # a second name of one that is there
    others = {name.partition(".")[0] for name in imported} - {"tfk_regularizers"}
    assert others <= sys.stdlib_module_names


@pytest.mark.heavy
def test_two_deterministic_runs_are_equal_bit_by_bit(deterministic):
    cases = {name: same for name, same in deterministic.items() if name != "imported"}
    assert len(cases) == 3 * 4 * len(PENALTIES) + 2 * 4 * 2
    assert [name for name, same in cases.items() if not same] == []


GRAPHS = """
import json, sys
import numpy as np
import tensorflow as tf
v1 = tf.compat.v1
if IMPORTED_BEFORE:
    import tfk_regularizers
v1.disable_v2_behavior()
import tfk_regularizers as tfk
import tf_keras
sys.path.insert(0, TESTS)
import oracles

result = {"eager": tf.executing_eagerly()}

def difference(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())

session = v1.Session()
random = np.random.default_rng(0)
for shape in ((37, 23), (1100, 300)):
    numbers = random.standard_normal(shape)
    for name, (make, oracle) in oracles.PENALTIES.items():
        for known in (True, False):
            x = v1.placeholder(tf.float64, shape if known else None)
            value = make(tfk)(x)
            pair = session.run([value, v1.gradients(value, x)[0]], {x: numbers})
            pairs = zip(pair, oracle(numbers), strict=True)
            result[f"{name} {shape} {known}"] = max(difference(a, b) for a, b in pairs)

numbers = random.standard_normal((37, 23))
x = v1.placeholder(tf.float64, (37, 23))
value = tfk.SampledOrthogonalRegularizer(0.3, sample_size=40)(x)
pair = session.run([value, v1.gradients(value, x)[0]], {x: numbers})
result["sampled"] = max(difference(a, b) for a, b in zip(pair, oracles.orthogonal(numbers, 0.3, "rows"), strict=True))

inputs = v1.placeholder(tf.float32, (None, 3))
layer = tf_keras.layers.Dense(4, kernel_regularizer="l1_l2", bias_regularizer="l2", bias_initializer="ones")
other = tf_keras.layers.Dense(2, kernel_regularizer="orthogonal_regularizer")
other(layer(inputs))
session.run(v1.global_variables_initializer())
*losses, kernel, second = session.run([*layer.losses, *other.losses, layer.kernel, other.kernel])
expected = [oracles.l1_l2(kernel, 0.01, 0.01)[0], 0.04, oracles.orthogonal(second, 0.01, "rows")[0]]
result["layers"] = difference(losses, np.array(expected))

model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer="l2", kernel_initializer="ones")])
model.compile(tf_keras.optimizers.legacy.SGD(0.1), "mse")
loss = model.fit(np.zeros((4, 3)), np.zeros((4, 2)), epochs=2, verbose=0).history["loss"]
result["fit"] = difference(loss, np.array([0.06, 0.06 * 0.998**2]))

# A variable as a factor: shown at any time, and written once Keras's session has given it a value.
variable = tf.Variable(0.125, trainable=False, use_resource=True)
regularizer = tfk.L2(variable)
assert repr(regularizer) == "L2(l2=<a variable of shape (), dtype float32, trainable=False>)"
try:
    regularizer.get_config()
except ValueError as error:
    assert "Expected a variable that is initialized" in str(error)
tf_keras.backend.set_value(variable, 0.125)
assert repr(regularizer) == "L2(l2=<variable: 0.125>)"
result["live"] = difference(regularizer.get_config()["l2"], np.array(0.125))
print(json.dumps(result))
"""


@pytest.mark.heavy
@pytest.mark.parametrize("before", [True, False], ids=["imported before", "imported after"])
def test_tensorflow_1_graphs(run_python, before):
    """The largest relative differences from the oracle, of values, gradients, losses of layers and a training."""
    program = f"TESTS = {str(pathlib.Path(__file__).parent)!r}\nIMPORTED_BEFORE = {before}\n{GRAPHS}"
    result = json.loads(run_python("-c", program))
    assert result.pop("eager") is False
    assert len(result) == 2 * len(PENALTIES) * 2 + 4
    assert {name: difference for name, difference in result.items() if not difference < 1e-6} == {}
