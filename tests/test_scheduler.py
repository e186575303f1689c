"""RegularizationScheduler, compared with SGD steps in NumPy, and what it must refuse."""

import csv
import dataclasses
import itertools
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN
from libraries import KERAS3, KERASES, both_kerases, needs_keras3

import tfk_regularizers as tfk
from tfk_regularizers import L1, L1L2, L2, RegularizationScheduler, log_penalties

RATE = 0.125
X, Y = np.zeros((8, 3), "float32"), np.zeros((8, 2), "float32")  # only a penalty has a gradient
EPOCHS = [0.5, 0.0, 0.03125]
LIBRARIES = [tf_keras] + ([] if KERAS3 is None else [KERAS3])
COMPILING = [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}]
SHARED = L2(0.5)


def dense(keras, regularizer=None, **arguments):
    arguments = {"use_bias": False, "kernel_initializer": "ones"} | arguments
    return keras.layers.Dense(2, kernel_regularizer=regularizer, **arguments)


def build(keras, *regularizers, **compiling):
    hidden = [dense(keras, regularizer, name=f"dense{i}") for i, regularizer in enumerate(regularizers)]
    model = keras.Sequential([keras.Input((3,)), *hidden])
    model.compile(keras.optimizers.SGD(RATE), **{"loss": "mse"} | compiling)
    return model


def fit(model, *callbacks, **arguments):
    arguments = {"batch_size": 4, "epochs": len(EPOCHS), "shuffle": False, "verbose": 0} | arguments
    return model.fit(X, Y, callbacks=list(callbacks), **arguments).history


def decay(library=tf_keras):
    return library.optimizers.schedules.PolynomialDecay(0.5, 8, 0.0)


def builtin_of(keras):
    """The built-in regularizers of a version of Keras."""
    return BUILTIN if keras is tf_keras else sys.modules[keras.regularizers.Regularizer.__module__]


def by_epoch(epoch):
    return EPOCHS[epoch]


def assert_trained_by_l2(model, factors):
    """Assert that weights of ones were changed as by SGD steps with these factors in float64."""
    expected = np.prod(1 - RATE * 2 * np.array(factors))
    np.testing.assert_allclose(model.get_weights()[0], np.full((3, 2), expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"schedule": 0.5}, "`schedule`. Expected a function of the epoch, .* Received: schedule=0.5"),
        *[({"schedule": type(decay(library))}, "`schedule`.* an instance .* schedule=<class") for library in LIBRARIES],
        ({"schedule": lambda: 0.5}, "`schedule`"),
        ({"schedule": lambda epoch, factor, more: 0.5}, "`schedule`"),
        ({"schedule": by_epoch, "factor": 3}, "`factor`.*factor=3"),
        ({"schedule": by_epoch, "where": 3}, "`where`.*where=3"),
        (
            {"schedule": by_epoch, "where": tf_keras.layers.Dense},
            r"`where`.*`lambda layer: isinstance\(layer, Dense\)`",
        ),
        ({"schedule": by_epoch, "where": []}, r"`where`.*where=\[\]"),
        ({"schedule": by_epoch, "where": [len]}, r"`where`.*where=\[<built-in"),
    ],
)
def test_bad_argument(arguments, says):
    with pytest.raises(ValueError, match=f"argument {says}"):
        RegularizationScheduler(**arguments)


@dataclasses.dataclass(frozen=True)
class Frozen(tfk.Penalty):
    factor_names = ("factor",)  # as a class written for version 0.2 declares them
    factor: float

    def __call__(self, x):
        return self.factor * tf.reduce_sum(x**2)


@both_kerases
@pytest.mark.parametrize(
    ("regularizers", "arguments", "says"),
    [
        ([None], {}, "found no factor in the model '.*'. Add a penalty with `Dense"),
        ([L2(0.5)], {"factor": "l1"}, "Expected one of 'l2', .* Received: factor='l1'"),
        ([L1L2(0.5, 0.5)], {}, "Expected one of 'l1', 'l2', the factors in the model '.*'. Received: factor=None"),
        ([L1(0.5), L2(0.5)], {}, "Expected one of 'l1', 'l2'"),
        ([L2(0.5)], {"where": lambda layer: False}, "found no factor in the chosen layers of the model"),
        (
            [L2(0.5)],
            {"where": lambda layer: True, "factor": "l1"},
            "Expected one of 'l2', the factors in the chosen",
        ),
        ([BUILTIN.L2(0.5)], {}, "`l2` of 'dense0/kernel': its regularizer is of <.*L2'>. Expected a class of tfk_"),
        ([L2(0.5), L2(0.5) + BUILTIN.L2(0.5)], {}, "the `l2` of 'dense1/kernel'"),
        ([Frozen("x")], {}, "`factor` of 'dense0/kernel': expected a number or a variable. Received: factor='x'"),
        ([SHARED, SHARED], {"where": lambda layer: layer.name == "dense0"}, "'dense1/kernel', which `where` excludes"),
    ],
)
def test_nothing_to_schedule(keras, regularizers, arguments, says):
    regularizers = [builtin_of(keras).L2(0.5) if type(one) is BUILTIN.L2 else one for one in regularizers]
    model = build(keras, *regularizers)
    before = list(map(repr, regularizers))
    with pytest.raises(ValueError, match=says):
        fit(model, RegularizationScheduler(by_epoch, **arguments))
    assert list(map(repr, regularizers)) == before
    assert all((weights == 1).all() for weights in model.get_weights())


@both_kerases
@pytest.mark.parametrize("failure", [np.nan, np.inf, None, "0.1", [0.1, 0.2], 1j, TypeError("mine")], ids=repr)
@pytest.mark.parametrize("when", [0, 1])
@pytest.mark.light(keras=[tf_keras])
@pytest.mark.light(failure=[None])
def test_fit_that_the_schedule_ends(keras, failure, when):
    """The factor stays, and training can go on. A TypeError in a schedule is not taken for another signature."""

    def schedule(epoch):
        if epoch == when and isinstance(failure, TypeError):
            raise failure
        return failure if epoch == when else 0.25

    received = rf"{re.escape(repr(failure))} from <.*> for the arguments \({when},\)$"
    says = rf"must return a finite number for `l2`\. Received: {received}"
    model = build(keras, L2(0.5))
    with pytest.raises((ValueError, TypeError), match="^mine$" if isinstance(failure, TypeError) else says):
        fit(model, RegularizationScheduler(schedule))
    factor = [0.5, 0.25][when]
    assert model.layers[0].kernel_regularizer.get_config() == {"l2": factor}
    fit(model, epochs=1)
    assert_trained_by_l2(model, [factor] * 2 * (when + 1))


@needs_keras3
def test_model_of_an_older_keras_3(monkeypatch):
    monkeypatch.setattr(sys.modules["keras"], "__version__", "3.11.3")
    model = build(KERAS3, L2(0.5))
    refusal = (
        r"RegularizationScheduler supports models of tf_keras, and of Keras 3\.12 .* Received: .* of Keras 3\.11\.3 on "
    )
    with pytest.raises(TypeError, match=refusal):
        fit(model, RegularizationScheduler(by_epoch))


@both_kerases
@pytest.mark.parametrize("compiling", COMPILING, ids=str)
@pytest.mark.light(compiling=COMPILING[:2])
def test_equals_numpy(keras, compiling):
    model = build(keras, L2(9.0), **compiling)
    fit(model, epochs=1)  # the step is traced with the number
    model.set_weights([np.ones((3, 2))])
    history = fit(model, RegularizationScheduler(by_epoch))
    assert_trained_by_l2(model, np.repeat(EPOCHS, 2))
    assert history["l2"] == EPOCHS
    assert repr(model.layers[0].kernel_regularizer) == "L2(l2=<variable: 0.03125>)"


@both_kerases
def test_signatures(keras):
    """A second required argument receives the factor of each penalty; one with a default is the user's own."""
    model = build(keras, L2(0.5), L2(0.25))
    history = fit(model, RegularizationScheduler(lambda epoch, factor: factor / 2))
    assert history["dense0/kernel/l2"] == [0.25, 0.125, 0.0625]
    assert history["dense1/kernel/l2"] == [0.125, 0.0625, 0.03125]
    assert "l2" not in history
    model, own = build(keras, L2(9.0)), RegularizationScheduler(lambda epoch, most=0.5: most * epoch)
    assert fit(model, own)["l2"] == [0.0, 0.5, 1.0]


@both_kerases
@pytest.mark.parametrize("per_execution", [1, 2])
def test_learning_rate_schedule_counts_the_steps_of_this_fit(keras, per_execution):
    """Each schedule works, whichever version of Keras the schedule and the model belong to."""
    model = build(keras, L2(9.0), steps_per_execution=per_execution)
    fit(model, epochs=1)
    factors = np.repeat([0.5 * (1 - step / 8) for step in range(0, 6, per_execution)], per_execution)
    for scheduler in [RegularizationScheduler(decay(library)) for library in LIBRARIES for _ in range(2)]:
        model.set_weights([np.ones((3, 2))])
        history = fit(model, scheduler)
        assert_trained_by_l2(model, factors)
        np.testing.assert_allclose(history["l2"], factors[1::2], rtol=1e-6)


@both_kerases
@pytest.mark.parametrize("factor", [9.0, tf.Variable(9.0, trainable=False)], ids=["number", "variable"])
def test_traced_once_more_and_not_again(keras, factor):
    """Later fits use the same trace, also with `initial_epoch`. If the factor is a variable, no new trace is needed."""
    traces = []
    model = build(keras, L2(factor), loss=lambda y, y_pred: traces.append(1) or (y_pred - y) ** 2)
    fit(model, epochs=1)
    first = model.train_function
    scheduler = RegularizationScheduler(lambda epoch: 0.125 * epoch)
    assert fit(model, scheduler, epochs=2)["l2"] == [0.0, 0.125]
    step, count = model.train_function, len(traces)
    assert (step is first) == isinstance(factor, tf.Variable)
    assert fit(model, scheduler, epochs=4, initial_epoch=2)["l2"] == [0.25, 0.375]
    assert fit(model, RegularizationScheduler(by_epoch))["l2"] == EPOCHS
    assert model.train_function is step
    assert len(traces) == count
    assert isinstance(factor, float) or model.layers[0].kernel_regularizer.l2 is factor


@both_kerases
def test_one_scheduler_for_several_models(keras):
    """The models may belong to different versions of Keras."""
    models, scheduler = [build(tf_keras, L2(9.0)), build(keras, L2(9.0), L2(9.0))], RegularizationScheduler(by_epoch)
    for model in models:
        assert fit(model, scheduler)["l2"] == EPOCHS
    assert_trained_by_l2(models[0], np.repeat(EPOCHS, 2))
    assert fit(models[1], scheduler, epochs=1)["l2"] == EPOCHS[:1]
    assert repr(models[0].layers[0].kernel_regularizer) == "L2(l2=<variable: 0.03125>)"


@both_kerases
def test_loop_of_ones_own(keras):
    model, scheduler = build(keras, L2(9.0)), RegularizationScheduler(by_epoch)
    model.train_on_batch(X, Y)  # traces the step
    model.set_weights([np.ones((3, 2))])
    scheduler.set_model(model)
    scheduler.on_train_begin()
    for epoch, factor in enumerate(EPOCHS):
        scheduler.on_epoch_begin(epoch)
        model.train_on_batch(X, Y)
        logs = {}
        scheduler.on_epoch_end(epoch, logs)
        assert logs == {"l2": factor}
    assert_trained_by_l2(model, EPOCHS)


@pytest.mark.parametrize(
    ("library", "file"),
    [*itertools.product(KERASES, ["model.keras", "model.h5"]), ("tf_keras", "model")],  # Keras 3 loads no SavedModel
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_loaded_models(library, file, tmp_path):
    keras = KERASES[library]
    build(keras, L2(9.0)).save(tmp_path / file)
    is_compiled = library == "tf_keras" or file == "model.keras"  # Keras 3 fails to compile a model from .h5
    model = keras.models.load_model(tmp_path / file, compile=is_compiled)
    if not is_compiled:
        model.compile(keras.optimizers.SGD(RATE), "mse")
    assert fit(model, RegularizationScheduler(by_epoch))["l2"] == EPOCHS
    assert_trained_by_l2(model, np.repeat(EPOCHS, 2))


def attention(keras, regularizer):
    """A MultiHeadAttention with one input, so that a Sequential model accepts it."""

    @keras.utils.register_keras_serializable("test_scheduler")
    class Attention(keras.layers.MultiHeadAttention):
        def call(self, x):
            return super().call(x, x)

        def build(self, shape):
            if keras is not tf_keras:
                return super().build(shape, shape)
            self._build_from_signature(query=shape, value=shape)
            return super().build(shape)

        def compute_output_spec(self, x):  # called by Keras 3
            return super().compute_output_spec(x, x)

    return Attention(2, 3, kernel_regularizer=regularizer)


def inline(keras, _):
    """A layer that does not keep its regularizer in an attribute."""

    @keras.utils.register_keras_serializable("test_scheduler")
    class Inline(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones", regularizer=L2(9.0))

        def call(self, x):
            return x * self.scale

    return Inline()


LAYERS = {
    "rnn": lambda keras, r: keras.layers.RNN(keras.layers.SimpleRNNCell(2, kernel_regularizer=r)),
    "bidirectional": lambda keras, r: keras.layers.Bidirectional(keras.layers.GRU(2, kernel_regularizer=r)),
    "bidirectional_two": lambda keras, r: keras.layers.Bidirectional(
        keras.layers.GRU(2, kernel_regularizer=r),
        backward_layer=keras.layers.GRU(2, kernel_regularizer=L2(4.0), go_backwards=True),
    ),
    "attention": attention,
    "activity": lambda keras, r: dense(keras, bias_initializer="ones", use_bias=True, activity_regularizer=r),
    "nested": lambda keras, r: keras.Sequential([keras.Sequential([dense(keras, r)])]),
    "inline": inline,
}


@pytest.mark.heavy
@both_kerases
@pytest.mark.parametrize(("name", "built"), [*itertools.product(LAYERS, [True, False])])
def test_layers_and_their_files(keras, name, built, tmp_path):
    x = np.ones((4, 5, 3), "float32")
    layer = LAYERS[name](keras, L2(9.0))
    y = np.zeros(type(layer).from_config(layer.get_config())(x).shape)
    model = keras.Sequential([*([keras.Input((5, 3))] if built else []), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    if built or name == "inline":  # `inline` has no regularizer until it is built
        model.fit(x, y, verbose=0)
    logs = []
    for factor in (0.5, 0.25):
        with log_penalties(model):
            scheduler = RegularizationScheduler(lambda _, given=factor: given)
            logs.append(model.fit(x, y, verbose=0, callbacks=[scheduler]).history)
        assert logs[-1]["l2"] == [factor]
    assert logs[0]["penalty"][0] == pytest.approx(2 * logs[1]["penalty"][0])
    assert logs[1]["penalty"][0] > 0
    for file in (
        "model.keras",
        *(["model"] if built and keras is tf_keras else []),
    ):  # some take ten seconds as a SavedModel
        model.save(tmp_path / file)
        again = keras.models.load_model(tmp_path / file)
        if name != "inline":  # `inline` always starts with L2(9.0)
            assert again.evaluate(x, y, verbose=0) == pytest.approx(logs[1]["loss"][0], rel=1e-5)


@both_kerases
def test_terms_of_sums_shared_ones_and_classes_of_version_0_2(keras):
    shared = L2(9.0)
    nested = L1(9.0) + (L2(3.0) + builtin_of(keras).OrthogonalRegularizer(0.1))
    model = build(keras, shared + tfk.OrthogonalRegularizer(0.5), shared, nested)
    assert set(fit(model, RegularizationScheduler(by_epoch, "l2"))) == {"loss", "l2"}
    assert [repr(layer.kernel_regularizer).partition(" + <")[0] for layer in model.layers] == [
        "L2(l2=<variable: 0.03125>) + OrthogonalRegularizer(factor=0.5, mode='rows')",
        "L2(l2=<variable: 0.03125>)",
        "L1(l1=9.0) + L2(l2=<variable: 0.03125>)",
    ]
    frozen = build(keras, Frozen(9.0))
    assert fit(frozen, RegularizationScheduler(by_epoch))["factor"] == EPOCHS
    assert_trained_by_l2(frozen, np.repeat(EPOCHS, 2))


@both_kerases
def test_logs_of_two_schedulers_of_one_name(keras, tmp_path, capsys):
    """The second logs its factor under its path, for the callbacks after it."""
    one = RegularizationScheduler(by_epoch, where=lambda layer: layer.name == "dense0", verbose=1)
    other = RegularizationScheduler(lambda epoch: 0.25, where=lambda layer: layer.name == "dense1", verbose=1)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(build(keras, L2(9.0), L2(9.0)), one, other, logger)
    expected = {"l2": EPOCHS, "dense1/kernel/l2": [0.25] * 3}
    assert {name: history[name] for name in history if name != "loss"} == expected
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert {name: [float(row[name]) for row in rows] for name in expected} == expected
    printed = re.findall("\nEpoch 2: RegularizationScheduler setting (.*)\n", capsys.readouterr().out)
    assert printed == ["l2 to 0.0.", "l2 to 0.25."]


@both_kerases
def test_the_later_scheduler_of_a_factor_wins(keras):
    model = build(keras, L2(9.0))
    history = fit(model, RegularizationScheduler(lambda epoch: 0.25), RegularizationScheduler(by_epoch))
    assert history["l2"] == history["dense0/kernel/l2"] == EPOCHS
    assert_trained_by_l2(model, np.repeat(EPOCHS, 2))


@both_kerases
@pytest.mark.parametrize(
    ("schedule", "order", "resumed"),
    [
        (by_epoch, 1, EPOCHS[1:]),
        (by_epoch, -1, EPOCHS[1:]),
        (lambda epoch, factor: factor / 2, 1, [0.25, 0.125]),  # it starts from the current number of the penalty
        (decay(), 1, [0.3125, 0.1875]),  # before BackupAndRestore, it counts the earlier steps too
        (decay(), -1, [0.4375, 0.3125]),
    ],
)
def test_backup_and_restore(keras, schedule, order, resumed, tmp_path):
    def callbacks():
        return [RegularizationScheduler(schedule), keras.callbacks.BackupAndRestore(str(tmp_path))][::order]

    def interrupt(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    model = build(keras, L2(0.5))
    with pytest.raises(KeyboardInterrupt):
        fit(model, *callbacks(), keras.callbacks.LambdaCallback(on_epoch_begin=interrupt))
    assert "l2" not in fit(model)
    assert fit(build(keras, L2(0.5)), *callbacks())["l2"] == resumed


@both_kerases
def test_where_is_a_name_or_a_layer(keras):
    """A name that the model lacks is an error when training begins, before anything changes."""
    for where in ("dense0", 0, ["dense0"]):
        model = build(keras, L2(0.5), L2(0.5))
        fit(model, RegularizationScheduler(by_epoch, where=model.layers[0] if where == 0 else where))
        first, second = (layer.kernel_regularizer for layer in model.layers)
        assert (repr(first), repr(second)) == (f"L2(l2=<variable: {EPOCHS[-1]}>)", "L2(l2=0.5)")
    model = build(keras, L2(0.5))
    with pytest.raises(ValueError, match=r"no layer of the model .* has that name\. Did you mean 'dense0'"):
        fit(model, RegularizationScheduler(by_epoch, where="dens0"))
    assert repr(model.layers[0].kernel_regularizer) == "L2(l2=0.5)"


@both_kerases
def test_schedule_by_step_of_a_model_with_optimizers_of_its_own(keras):
    class Own(keras.Model):
        def train_step(self, data):
            return {"loss": tf.add_n(self.losses)}

    x = keras.Input((3,))
    model = Own(x, dense(keras, L2(0.5))(x))
    model.compile(keras.optimizers.SGD(RATE), "mse")
    decay = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)
    with pytest.warns(UserWarning, match=r"did not advance: it counts the steps of `model\.optimizer`, which"):
        model.fit(X, Y, verbose=0, callbacks=[RegularizationScheduler(decay)])
