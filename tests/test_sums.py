"""Sums of regularizers: their values, what merges, every route by which they are saved, and what is refused."""

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

pytestmark = [
    # tf_keras says this on every save to .h5.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    # Keras 3 up to 3.15 has variables whose __array__ does not take NumPy 2's keyword `copy`.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]
modes = pytest.mark.parametrize("mode", MODES)


@tf_keras.saving.register_keras_serializable("test_sums")
class Cubes(tf_keras.regularizers.Regularizer):
    """A user's own regularizer, which gives what it is told to."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, x):
        return self.factor * tf.reduce_sum(tf.abs(x) ** 3)

    def get_config(self):
        return {"factor": self.factor}

    def __repr__(self):
        return f"Cubes({self.factor})"


class Gives(tf_keras.regularizers.Regularizer):
    """A user's own regularizer that gives whatever it is told to."""

    def __init__(self, make):
        self.make = make

    def __call__(self, x):
        return self.make(x)


class Stronger(tfk.L2):
    """A user's subclass of ours."""


def strength(value=0.25):
    return tf.Variable(value, trainable=False)


def two():
    return tfk.L2(0.3) + tfk.OrthogonalRegularizer(0.7)


def three():
    return Cubes(0.25) + tfk.L1(0.5) + tfk.OrthogonalRegularizer(0.7, "columns")


def truth(*pairs):
    """Sum of (value, gradient)."""
    return tuple(sum(parts) for parts in zip(*pairs, strict=True))


TRUTHS = {
    "two": (two, lambda x: truth(oracles.l2(x, 0.3), oracles.orthogonal(x, 0.7, "rows"))),
    "three": (
        three,
        lambda x: truth(
            (0.25 * (np.abs(x) ** 3).sum(), 0.75 * x * np.abs(x)),
            oracles.l1(x, 0.5),
            oracles.orthogonal(x, 0.7, "columns"),
        ),
    ),
}


def matrix(dtype="float32", shape=(7, 5)):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


# --- values -----------------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("make", "oracle"), TRUTHS.values(), ids=TRUTHS)
@pytest.mark.light(mode=["eager", "graph"])
def test_value_and_gradient(make, oracle, dtype, mode):
    x = matrix(dtype)
    value, gradient = run(mode, value_and_gradient(make()), x)
    assert value.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradient.dtype == dtype
    for found, expected in zip((value, gradient), oracle(x.numpy().astype("float64")), strict=True):
        assert_close(found, expected, {"float16": 3e-3, "float32": 3e-6, "float64": 1e-13}[dtype])


@modes
@pytest.mark.parametrize("make", [two, three])
@pytest.mark.light(make=[two], mode=["eager", "graph"])
def test_it_is_the_sum_of_its_terms_to_the_second_order(make, mode):
    x, v, total = matrix("float64"), matrix("float64") ** 2, make()
    for function in (value_and_gradient, lambda penalty: lambda x: hessian_product(penalty)(x, v)):
        found = tf.nest.flatten(run(mode, function(total), x))
        terms = [tf.nest.flatten(run(mode, function(term), x)) for term in total.regularizers]
        for one, *others in zip(found, *terms, strict=True):
            assert_close(one, sum(others), 1e-13)


GIVEN = {
    "half": (lambda x: tf.reduce_sum(tf.cast(x, tf.float16)), "float32"),
    "double": (lambda x: tf.reduce_sum(tf.cast(x, tf.float64)), "float64"),
    "shape (1,)": (lambda x: tf.reshape(tf.reduce_sum(x), [1]), "float32"),
    "unknown shape": (lambda x: tf.reshape(tf.reduce_sum(x), tf.ones([tf.size(x) * 0 + 1], tf.int32)), "float32"),
    "integer": (tf.size, "float32"),
    "Python float": (lambda x: 0.1, "float32"),
    "Python int": (lambda x: 2, "float32"),
    "NumPy": (lambda x: np.float64(0.1), "float32"),
    "variable": (lambda x: strength() if tf.executing_eagerly() else 0.25, "float32"),
}


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(("make", "dtype"), GIVEN.values(), ids=GIVEN)
def test_what_a_users_term_may_give(make, dtype, mode):
    x = matrix()
    value = run(mode, Gives(make) + tfk.L2(0.5), x)
    assert (value.dtype, value.shape) == (dtype, ())
    assert_close(value, float(np.sum(make(x))) + oracles.l2(x.numpy().astype("float64"), 0.5)[0], 1e-3)


def test_a_number_of_python_keeps_its_digits_in_float64():
    assert float((Gives(lambda x: 0.1) + tfk.L2(0.0))(matrix("float64"))) == 0.1
    assert (Gives(lambda x: 0.1) + Stronger(0.0)).regularizers[0].make(0) == 0.1
    assert float(tfk.Sum([Gives(lambda x: 0.5)])(matrix("float16"))) == 0.5
    assert tfk.Sum([Gives(lambda x: tf.constant(0.5, tf.float16))])(matrix()).dtype == "float32"


@pytest.mark.parametrize(
    "bad", [None, "a", tf.ones(2), np.ones(2), [], 1j, tf.constant(1j), tf.constant(True), {}], ids=repr
)
def test_what_a_users_term_may_not_give(bad):
    with pytest.raises(ValueError, match=r"Each term .* gives a real number\. Received: .* from .*Gives"):
        (tfk.L2() + Gives(lambda x: bad))(matrix())


def test_each_term_is_called_on_what_the_sum_is():
    """A ragged output is for each term what it is for it alone; a variable is handed on, and not its value."""
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0]])
    total = tfk.Sum([tfk.L1(0.5), tfk.L2(0.25)])
    assert float(total(ragged)) == 3.0 + 3.5
    with pytest.raises(TypeError, match="Inputs to OrthogonalRegularizer must be dense"):
        two()(ragged)
    seen = []
    variable = tf.Variable(tf.ones((3, 2)))
    (tfk.L2() + Gives(lambda x: seen.append(x) or 0.0))(variable)
    assert seen[0] is variable


def test_in_a_functional_model_and_on_a_symbolic_tensor():
    inputs = tf_keras.Input((5,))
    outputs = tf_keras.layers.Dense(5, activity_regularizer=two())(inputs)
    model = tf_keras.Model(inputs, outputs)
    model.add_loss(two()(outputs))
    model(matrix())
    activity, added = sorted(float(loss) for loss in model.losses)  # tf_keras divides the first by the batch's size
    assert activity == pytest.approx(added / 7, rel=1e-6)


# --- what + gives -----------------------------------------------------------------------------------------------------

L1, L2, L1L2, ORTHOGONAL = tfk.L1, tfk.L2, tfk.L1L2, tfk.OrthogonalRegularizer
WRITTEN = {
    "different": (
        lambda: L2(1e-4) + ORTHOGONAL(0.01),
        "L2(l2=0.0001) + OrthogonalRegularizer(factor=0.01, mode='rows')",
    ),
    "L1 + L2": (lambda: L1(0.1) + L2(0.2), "L1L2(l1=0.1, l2=0.2)"),
    "L2 + L1": (lambda: L2(0.2) + L1(0.1), "L1L2(l1=0.1, l2=0.2)"),
    "L2 + L2": (lambda: L2(0.25) + L2(0.5), "L1L2(l1=0.0, l2=0.75)"),
    "L1L2 + L1 + L2": (lambda: L1L2(0.25, 0.5) + L1(1) + L2(2), "L1L2(l1=1.25, l2=2.5)"),
    "sum of elementwise": (lambda: sum([L1(0.25), L2(0.5), L1(1)]), "L1L2(l1=1.25, l2=0.5)"),
    "no finite factor": (lambda: L2(1e308) + L2(1e308), "L2(l2=1e+308) + L2(l2=1e+308)"),
    "sum": (lambda: sum([L2(0.5), Cubes(), L1(0.5)]), "L2(l2=0.5) + Cubes(0.5) + L1(l1=0.5)"),
    "sum of one": (lambda: sum([L2(0.5)]), "L2(l2=0.5)"),
    "sum from 0.0": (lambda: sum([L2(0.5)], 0.0), "L2(l2=0.5)"),
    "flat": (lambda: (Cubes() + L2(1)) + (L1(1) + Cubes(1)), "Cubes(0.5) + L2(l2=1.0) + L1(l1=1.0) + Cubes(1)"),
    "equal": (lambda: Cubes() + L2(1) + L2(1), "Cubes(0.5) + L2(l2=1.0) + L2(l2=1.0)"),
    "theirs + ours": (lambda: Cubes() + L2(1), "Cubes(0.5) + L2(l2=1.0)"),
    "theirs + ours + theirs": (lambda: Cubes() + L2(1) + Cubes(2), "Cubes(0.5) + L2(l2=1.0) + Cubes(2)"),
    "subclass": (lambda: Stronger(1) + L2(1), "Stronger(l2=1.0) + L2(l2=1.0)"),
    "variable": (lambda: L1(strength()) + L2(1), "L1(l1=<variable: 0.25>) + L2(l2=1.0)"),
    "one": (lambda: tfk.Sum([L2(1)]), "Sum([L2(l2=1.0)])"),
    "tuple with a sum": (lambda: tfk.Sum((Cubes(), tfk.Sum([L2(1)]))), "Cubes(0.5) + L2(l2=1.0)"),
}


@pytest.mark.parametrize(("make", "written"), WRITTEN.values(), ids=WRITTEN)
def test_repr_and_what_it_is(make, written):
    total = make()
    assert repr(total) == written
    is_sum = " + " in written or "Sum" in written
    assert total.__class__ is (tfk.Sum if is_sum else getattr(tfk, written.partition("(")[0]))
    x = matrix()
    if not written.startswith("L2(l2=1e+308)"):
        names = {**vars(tfk), "Cubes": Cubes, "Stronger": Stronger}
        assert_close(eval(written.replace("<variable: 0.25>", "0.25"), names)(x), total(x), 1e-6)


def test_operands_are_left_as_they_are_and_held():
    first, second = L2(0.5), ORTHOGONAL(0.5)
    total = held = first + second
    total += Cubes()
    assert held.regularizers == (first, second)
    assert total.regularizers[:2] == (first, second)
    assert repr(first) == "L2(l2=0.5)"
    first.l2 = 8.0
    assert repr(held).startswith("L2(l2=8.0)")
    assert float(held(matrix())) == float(first(matrix()) + second(matrix()))
    merged = first + L1(1)
    merged.l2 = 3.0
    assert first.l2 == 8.0
    held.regularizers = [second, total]
    assert held.regularizers == (second, *total.regularizers)


def test_built_in_instance_from_before_the_import(builtin):
    for total in (builtin.L2(0.5) + ORTHOGONAL(0.25), ORTHOGONAL(0.25) + builtin.L2(0.5), builtin.L2(0.5) + L1(0.0)):
        assert total.__class__ is tfk.Sum
        expected = sum(float(term(matrix())) for term in total.regularizers)
        assert float(total(matrix())) == pytest.approx(expected, rel=1e-6)
        reread = tfk.get(tfk.serialize(total))
        assert sorted(type(term).__module__ for term in reread.regularizers) == ["tfk_regularizers"] * 2


REFUSED = {
    "function": lambda x: 0.0,
    "None": None,
    "string": "l2",
    "number": 1,
    "list": [tfk.L2()],
    "class": tfk.L2,
    "dict": {"class_name": "L2", "config": {}},
    **({} if KERAS3 is None else {"Keras 3": KERAS3.regularizers.L2(0.5)}),
}


@pytest.mark.parametrize("make", [lambda: L2(0.5), two], ids=["L2", "Sum"])
@pytest.mark.parametrize("other", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused(other, make):
    for left, right in ((make(), other), (other, make())):
        with pytest.raises(TypeError, match=r"added to another regularizer of tf_keras.*Received: ") as caught:
            left + right
        cls = other if isinstance(other, type) else type(other)
        article = "the class" if cls is other else "a"
        assert f", where {article} {cls.__module__}.{cls.__qualname__}" in str(caught.value)


@pytest.mark.parametrize("bad", [[], (), L2(), {L2()}, [L2(), [L2()]], *([L2(), other] for other in REFUSED.values())])
def test_what_the_constructor_refuses(bad):
    with pytest.raises(ValueError, match=r"argument `regularizers`\. Expected a list of regularizers of tf_keras"):
        tfk.Sum(bad)
    total = two()
    with pytest.raises(ValueError, match="Invalid value for argument `regularizers`"):
        total.regularizers = bad
    assert repr(total) == repr(two())


@pytest.mark.parametrize("several", [[L2(), ORTHOGONAL()], (L2(), ORTHOGONAL())], ids=["list", "tuple"])
def test_a_list_as_regularizer_says_what_to_write(several):
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    for use in (
        tfk.get,
        tf_keras.regularizers.get,
        lambda several: tf_keras.layers.Dense(2, kernel_regularizer=several),
        lambda several: tf_keras.layers.Dense(2, activity_regularizer=several),
        lambda several: tfk.set_regularizers(model, kernel_regularizer=several),
    ):
        with pytest.raises(ValueError, match=r"write `L2\(\) \+ OrthogonalRegularizer\(\)`"):
            use(several)


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["new", "legacy"])
def test_config(legacy):
    config = json.loads(json.dumps(tfk.serialize(three(), use_legacy_format=legacy)))
    assert (config["class_name"] if legacy else config["registered_name"]) == "tfk_regularizers>Sum"
    before = copy.deepcopy(config)
    for loaded in (
        tfk.get(config),
        tfk.deserialize(config, use_legacy_format=legacy),
        tf_keras.regularizers.get(config),
    ):
        assert repr(loaded) == repr(three())
        assert [term.__class__ for term in loaded.regularizers] == [Cubes, L1, ORTHOGONAL]
    assert config == before


def test_term_that_is_not_registered_is_found_in_custom_objects():
    config = tfk.serialize(Stronger(0.5) + ORTHOGONAL())
    lacks = tfk.get(config)
    assert tfk.serialize(lacks) == config
    with pytest.raises(ValueError, match="Unknown regularizer: 'Stronger'"):
        lacks(tf.ones([2, 2]))
    loaded = tfk.deserialize(config, custom_objects={"Stronger": Stronger})
    direct = tfk.Sum.from_config(config["config"], custom_objects={"Stronger": Stronger})
    assert type(loaded.regularizers[0]) is type(direct.regularizers[0]) is Stronger


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "regularizers"),
        ({"regularizers": 5}, "argument `regularizers`"),
        ({"regularizers": []}, "argument `regularizers`"),
        ({"regularizers": [None]}, "argument `regularizers`"),
        ({"regularizers": ["l3"]}, "Unknown regularizer"),
        ({"regularizers": [{"class_name": "L2", "config": {"l2": "a"}}]}, "argument `l2`"),
        ({"regularizers": [{"class_name": "__lambda__", "config": {"value": "a"}}]}, "Unknown regularizer"),
        ({"regularizers": ["l2"], "other": 1}, "other"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tfk.get({"class_name": "tfk_regularizers>Sum", "config": config})


def test_its_name_as_a_string_says_nothing():
    with pytest.raises(ValueError, match="Unknown regularizer: 'Sum'"):
        tfk.get("Sum")


class Louder(tfk.Sum):
    """A user's subclass of a sum: a term like others."""

    def __call__(self, x):
        return 2.0 * super().__call__(x)


def test_subclass_of_a_sum():
    louder = Louder([L2(0.5), ORTHOGONAL()])
    total = louder + ORTHOGONAL()
    assert total.__class__ is tfk.Sum
    assert total.regularizers[0] is louder
    assert repr(louder) == "Louder([L2(l2=0.5), OrthogonalRegularizer(factor=0.01, mode='rows')])"
    loaded = tfk.deserialize(tfk.serialize(total), custom_objects={"Louder": Louder})
    assert float(loaded(matrix())) == float(total(matrix()))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda total: pickle.loads(pickle.dumps(total))], ids=["deepcopy", "pickle"]
)
def test_copy(copied):
    total = three() + L2(strength())
    other = copied(total)
    assert repr(other) == repr(total).replace("<variable: 0.25>", "0.25")
    assert other.__class__ is tfk.Sum
    assert all(one is not another for one, another in zip(other.regularizers, total.regularizers, strict=True))
    assert type(other.regularizers[-1].l2) is float
    other.regularizers[0].factor = 9.0
    assert total.regularizers[0].factor == 0.25


# --- files ------------------------------------------------------------------------------------------------------------

FILES = ("model.keras", "model.h5", "model")
TERMS = (L2(0.5), ORTHOGONAL(0.25), ORTHOGONAL(0.125, "columns"), Cubes(0.5), L1(0.125))


def build(keras=tf_keras, terms=TERMS):
    """A model with a sum of two on every kernel and output, one term shared, and of all on a bias."""
    layers = [keras.Input((4,))]
    for one, other in itertools.pairwise(terms):
        layers.append(keras.layers.Dense(4, "tanh", kernel_regularizer=one + other, activity_regularizer=other + one))
    bias = [term for term in terms if not isinstance(term, ORTHOGONAL)]
    layers.append(keras.layers.Dense(3, kernel_regularizer=sum(terms), bias_regularizer=sum(bias)))
    model = keras.Sequential(layers)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape).astype("float32") for weight in model.get_weights()])
    model.compile("sgd", "mse")
    return model


def describe(model):
    """What is regularized by what, and every loss."""
    model(np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4))
    attributes = [f"{kind}_regularizer" for kind in ("kernel", "bias", "activity")]
    return {
        "regularizers": [repr(getattr(layer, name, None)) for layer in model.layers for name in attributes],
        "losses": sorted(float(loss) for loss in model.losses),
    }


@pytest.fixture(scope="module")
def description():
    return describe(build())


def merged():
    """A model whose sum has merged into an L1L2."""
    return tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=L1(0.25) + L2(0.5), input_shape=(3,))])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a file, written when it is first asked for: of a model with sums, or of one whose sum merged."""
    folder = tmp_path_factory.mktemp("sums")

    def save(file, make=build):
        path = folder / f"{make.__name__}_{file}"
        if not path.exists():
            make().save(path)
        return path

    return save


def assert_same(model, description):
    found = describe(model)
    assert found["regularizers"] == description["regularizers"]
    np.testing.assert_allclose(found["losses"], description["losses"], rtol=1e-6)


def test_every_layer_has_a_sum(description):
    assert sum(" + " in written for written in description["regularizers"]) == 10
    assert len(description["losses"]) == 10


@pytest.mark.parametrize("file", FILES)
@pytest.mark.light(file=["model.keras", "model.h5"])
def test_loaded(saved, description, file):
    loaded = tf_keras.models.load_model(saved(file))
    assert_same(loaded, description)
    assert np.isfinite(loaded.train_on_batch(np.ones((2, 4)), np.ones((2, 3))))


@pytest.mark.parametrize(
    "copied",
    [
        lambda model: tf_keras.models.model_from_json(model.to_json()),
        tf_keras.models.clone_model,
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
    ids=["json", "clone_model", "deepcopy", "pickle"],
)
def test_copy_of_a_model(description, copied):
    model = build()
    other = copied(model)
    other.set_weights(model.get_weights())
    assert_same(other, description)


def test_weights_are_those_of_a_model_without(tmp_path):
    """No node of a checkpoint stands for a sum of numbers, or what was saved without could not be matched."""
    plain, other = (
        tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=regularizer, input_shape=(3,))])
        for regularizer in (None, two())
    )
    plain.save_weights(tmp_path / "checkpoint", save_format="tf")
    status = other.load_weights(tmp_path / "checkpoint")
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(other.get_weights()[0], plain.get_weights()[0])


@pytest.mark.heavy
def test_saved_model_without_keras(saved, description):
    loaded = tf.saved_model.load(str(saved("model")))
    found = [float(loss()) for loss in loaded.regularization_losses]
    assert len(found) == 6
    assert all(any(loss == pytest.approx(other, rel=1e-6) for other in description["losses"]) for loss in found)


ELSEWHERE = """
import json, sys
import numpy as np
import tensorflow as tf
import tf_keras

files, merged_files = json.loads(sys.argv[1]), json.loads(sys.argv[2])
report = {"merged": [], "refused": [], "opened": []}
hidden = {"tfk_regularizers": None}  # as if it were not installed
sys.modules.update(hidden)
for file, merged_file in zip(files, merged_files):
    regularizer = tf_keras.models.load_model(merged_file).layers[0].kernel_regularizer
    report["merged"].append([type(regularizer).__module__.partition(".")[0], regularizer.get_config()])
    try:
        tf_keras.models.load_model(file)
        report["refused"].append("opened")
    except (TypeError, ValueError) as error:
        report["refused"].append(f"{type(error).__name__}: {error}")
del sys.modules["tfk_regularizers"]
import tfk_regularizers
"""


@pytest.mark.heavy
def test_in_another_process(saved, description, run_python):
    """Without the package the merged ones open, and for the others there is Keras's error; with it, all open."""
    program = "\n".join(
        [
            ELSEWHERE,
            inspect.getsource(Cubes),
            inspect.getsource(describe),
            'report["opened"] = [describe(tf_keras.models.load_model(file)) for file in files]',
            "print(json.dumps(report))",
        ]
    )
    files = [json.dumps([str(saved(file, make)) for file in FILES]) for make in (build, merged)]
    report = json.loads(run_python("-c", program, *files, TF_CPP_MIN_LOG_LEVEL="3").splitlines()[-1])
    assert report["merged"] == [["tf_keras", {"l1": 0.25, "l2": 0.5}]] * 3
    assert all("Error: " in error for error in report["refused"])
    for opened in report["opened"]:
        assert opened["regularizers"] == description["regularizers"]
        np.testing.assert_allclose(opened["losses"], description["losses"], rtol=1e-6)


# --- Keras 3 ----------------------------------------------------------------------------------------------------------


@needs_keras3
def test_in_keras_3(tmp_path):
    terms = [term for term in TERMS if not isinstance(term, Cubes)]
    model, same = build(KERAS3, terms), build(terms=terms)
    x, y = np.ones((2, 4), "float32"), np.ones((2, 3), "float32")
    weights = [float(value) for value in tfk.penalties(model).values()]
    np.testing.assert_allclose(weights, [float(value) for value in tfk.penalties(same).values()], rtol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = sys.modules["keras"].saving.load_model(tmp_path / "model.keras")
    assert_same(loaded, describe(model))
    assert loaded.layers[0].kernel_regularizer.__class__ is tfk.Sum
    assert np.isfinite(loaded.train_on_batch(x, y))
    copied = KERAS3.models.clone_model(model)
    copied.set_weights(model.get_weights())
    assert_same(copied, describe(model))


@needs_keras3
@pytest.mark.parametrize("how", ["registered", "custom_objects"])
def test_users_term_that_keras_3_alone_knows(tmp_path, how):
    class Mine(tfk.L2):
        """A user's, for Keras 3."""

    if how == "registered":
        sys.modules["keras"].saving.register_keras_serializable("test_sums")(Mine)
    layer = KERAS3.layers.Dense(2, kernel_regularizer=Mine(0.5) + ORTHOGONAL())
    model = KERAS3.Sequential([KERAS3.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    objects = None if how == "registered" else {"Mine": Mine}
    loaded = sys.modules["keras"].saving.load_model(tmp_path / "model.keras", custom_objects=objects)
    assert loaded.layers[0].kernel_regularizer.regularizers[0].__class__ is Mine
    assert [float(loss) for loss in loaded.losses] == [float(loss) for loss in model.losses]


@needs_keras3
def test_regularizer_of_keras_3_under_a_name_of_ours_is_no_term():
    config = two().get_config()
    with sys.modules["keras"].saving.custom_object_scope({"L2": KERAS3.regularizers.L2}):
        assert repr(tfk.Sum.from_config(config)) == repr(two())


# --- on models --------------------------------------------------------------------------------------------------------


def test_set_regularizers_penalties_and_penalty_logger():
    model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,), name="a"), tf_keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    total = two()
    assert tfk.set_regularizers(model, kernel_regularizer=total, where=lambda layer: layer.name == "a") == ["a/kernel"]
    (value,) = tfk.penalties(model).values()
    assert float(value) == float(total(model.layers[0].kernel))
    x, y = np.ones((4, 4)), np.ones((4, 2))
    history = model.fit(x, y, verbose=0, callbacks=[tfk.PenaltyLogger()]).history
    assert history["penalty"][0] == pytest.approx(float(value), rel=1e-6)
    assert history["loss"][0] == pytest.approx(history["penalty"][0] + history["data_loss"][0], rel=1e-6)


def test_trains_under_a_strategy_as_without(tmp_path):
    """And with a live factor: one variable for all replicas."""
    weights = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0"])):
        with strategy.scope():
            factor = strength(0.5)
            total = ORTHOGONAL(0.25) + L2(factor)
            layer = tf_keras.layers.Dense(3, kernel_regularizer=total, kernel_initializer="ones", input_shape=(4,))
            model = tf_keras.Sequential([layer])
            model.compile("sgd", "mse")
        for number in (0.5, 0.0):
            factor.assign(number)
            model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
        weights.append(model.get_weights()[0])
        assert float(tfk.penalties(model).popitem()[1]) == pytest.approx(0.25, rel=1e-5)
    np.testing.assert_allclose(*weights, rtol=1e-6)


# --- live factors -----------------------------------------------------------------------------------------------------


def live_model(number, make=lambda factor: ORTHOGONAL(0.25) + L2(factor)):
    factor = strength(number)
    layer = tf_keras.layers.Dense(3, kernel_regularizer=make(factor), kernel_initializer="ones", input_shape=(4,))
    model = tf_keras.Sequential([layer])
    model.compile("sgd", "mse")
    return model, factor


@modes
def test_live_factor_is_read_at_each_call(mode):
    factor = strength()
    total = ORTHOGONAL(0.25) + L2(factor) + L1(factor)
    function = total if mode == "eager" else tf.function(total, jit_compile=mode == "xla" or None, autograph=False)
    x = matrix()
    numbers = x.numpy().astype("float64")
    for number in (0.5, 0.0, 2.0):
        factor.assign(number)
        expected = oracles.orthogonal(numbers, 0.25, "rows")[0] + oracles.l1_l2(numbers, number, number)[0]
        assert_close(function(x), expected, 3e-6)


def test_checkpoint_restores_a_live_factor(tmp_path):
    model, factor = live_model(0.5)
    assert len(model.weights) == 2
    written = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    other, restored = live_model(9.0)
    tf.train.Checkpoint(model=other).read(written).assert_existing_objects_matched()
    assert float(restored) == 0.5
    factor.assign(0.75)
    model.save_weights(tmp_path / "weights", save_format="tf")
    other.load_weights(tmp_path / "weights").assert_existing_objects_matched()
    assert float(restored) == 0.75


@pytest.mark.parametrize("file", FILES)
def test_file_carries_the_number_of_a_live_factor(tmp_path, file):
    model, factor = live_model(9.0)
    factor.assign(0.5)
    model.save(tmp_path / file)
    loaded = tf_keras.models.load_model(tmp_path / file)
    total = loaded.layers[0].kernel_regularizer
    assert total.regularizers[1].l2 == 0.5
    assert type(total.regularizers[1].l2) is float
    assert float(loaded.losses[0]) == float(model.losses[0])
    factor.assign(9.0)
    assert float(loaded.losses[0]) != float(model.losses[0])
    loaded.save(tmp_path / f"again_{file}")
    again = tf_keras.models.load_model(tmp_path / f"again_{file}")
    assert float(again.losses[0]) == float(loaded.losses[0])
    other = pickle.loads(pickle.dumps(total))
    assert repr(copy.deepcopy(other)) == repr(total) == repr(other)


def test_number_that_cannot_be_saved_is_not_written(tmp_path):
    model, factor = live_model(0.5)
    factor.assign(np.nan)
    for file in ("model.keras", "model"):
        with pytest.raises(ValueError, match="factor `l2` of a regularizer L2 is nan"):
            model.save(tmp_path / file)
        assert not (tmp_path / file).exists()
    assert repr(model.layers[0].kernel_regularizer).endswith("+ L2(l2=<variable: nan>)")


class Tracked(Cubes, tf.Module):
    """A user's own regularizer that TensorFlow tracks."""

    def __init__(self, factor):
        tf.Module.__init__(self)
        super().__init__(factor)


def test_users_term_that_tensorflow_tracks_is_tracked_in_a_sum(tmp_path):
    terms = [Tracked(strength(number)) for number in (0.5, 9.0)]
    models = [live_model(1.0, lambda factor, term=term: L2(factor) + term)[0] for term in terms]
    written = tf.train.Checkpoint(model=models[0]).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=models[1]).read(written).assert_existing_objects_matched()
    assert float(terms[1].factor) == 0.5


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_written_while_unregistered(file, tmp_path, restored):
    penalty = tfk.L1(0.5) + tfk.OrthogonalRegularizer(0.25)
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=penalty, input_shape=(3,))])
    tfk.unregister()
    model.save(tmp_path / file)
    tfk.register()
    loaded = tf_keras.models.load_model(tmp_path / file)
    assert repr(loaded.layers[0].kernel_regularizer) == repr(penalty)
