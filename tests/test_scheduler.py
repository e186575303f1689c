"""RegularizationScheduler against NumPy and against variables assigned by hand, and what it must refuse."""

import csv
import dataclasses
import itertools
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import KERAS3, needs_keras3

import tfk_regularizers as tfk
from tfk_regularizers import L1, L1L2, L2, PenaltyLogger, RegularizationScheduler

RATE = 0.125
X, Y = np.zeros((8, 3), "float32"), np.zeros((8, 2), "float32")  # no gradient but that of a penalty
EPOCHS = [0.5, 0.0, 0.03125]


def dense(regularizer=None, **arguments):
    arguments = {"use_bias": False, "kernel_initializer": "ones"} | arguments
    return tf_keras.layers.Dense(2, kernel_regularizer=regularizer, **arguments)


def build(*regularizers, **compiling):
    layers = [dense(regularizer, name=f"dense{i}") for i, regularizer in enumerate(regularizers)]
    model = tf_keras.Sequential([tf_keras.Input((3,)), *layers])
    model.compile(tf_keras.optimizers.SGD(RATE), "mse", **compiling)
    return model


def fit(model, *callbacks, x=X, y=Y, **arguments):
    arguments = {"batch_size": 4, "epochs": len(EPOCHS), "shuffle": False, "verbose": 0} | arguments
    return model.fit(x, y, callbacks=list(callbacks), **arguments).history


def by_epoch(epoch):
    return EPOCHS[epoch]


def after_l2(factors, start=1.0):
    """A weight after SGD steps with these factors, in float64."""
    for factor in factors:
        start -= RATE * 2 * factor * start
    return start


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"schedule": 0.5}, "schedule"),
        ({"schedule": None}, "schedule"),
        ({"schedule": tf_keras.optimizers.schedules.PolynomialDecay}, "schedule"),
        ({"schedule": lambda: 0.5}, "schedule"),
        ({"schedule": lambda epoch, factor, more: 0.5}, "schedule"),
        ({"schedule": by_epoch, "factor": 3}, "factor"),
        ({"schedule": by_epoch, "where": "dense"}, "where"),
        ({"schedule": by_epoch, "where": tf_keras.layers.Dense}, "where"),
        ({"schedule": by_epoch, "where": tf_keras.layers.Dense(2)}, "where"),
    ],
)
def test_bad_argument(arguments, names):
    with pytest.raises(ValueError, match=f"argument `{names}`"):
        RegularizationScheduler(**arguments)


def test_the_class_of_a_schedule():
    with pytest.raises(ValueError, match=r"LearningRateSchedule \(did you mean an instance of PolynomialDecay\?\)\."):
        RegularizationScheduler(tf_keras.optimizers.schedules.PolynomialDecay)


def test_two_schedules_of_one_factor():
    """The later one would win, silently."""
    model = build(L2(0.5), L2(0.25))
    one = RegularizationScheduler(by_epoch, where=lambda layer: layer.name == "dense1")
    with pytest.raises(ValueError, match=r"the `l2` of 'dense1/kernel', .* another RegularizationScheduler .* `where`"):
        fit(model, one, RegularizationScheduler(by_epoch))
    assert "l2" in fit(model, RegularizationScheduler(by_epoch))


class Foreign(tf_keras.regularizers.Regularizer):
    def __init__(self):
        self.l2 = 0.5

    def __call__(self, x):
        return self.l2 * tf.reduce_sum(x**2)


SHARED = L2(0.5)


@pytest.mark.parametrize(
    ("regularizers", "arguments", "says"),
    [
        ([None], {}, "no penalty of the model .* has a factor. Give a layer one"),
        ([L2(0.5)], {"factor": "l1"}, "has a factor `l1`. Expected one of: l2"),
        ([L1L2(0.5, 0.5)], {}, 'have l1, l2. Expected one of them, as in `factor="l1"`'),
        ([L1(0.5), L2(0.5)], {}, "have l1, l2"),
        ([L2(0.5)], {"where": lambda layer: False}, "`where` passes for none of .* have a penalty: 'dense0/kernel'"),
        ([L2(0.5)], {"where": lambda layer: True, "factor": "l1"}, "in the layers that pass `where` has a factor `l1`"),
        ([Foreign()], {}, "none of this package, but a test_scheduler.Foreign"),
        ([L2(0.5), L2(0.5) + Foreign()], {}, "the `l2` of 'dense1/kernel'"),
        ([SHARED, SHARED], {"where": lambda layer: layer.name == "dense0"}, "'dense1/kernel', which `where` leaves"),
    ],
)
def test_nothing_to_schedule(regularizers, arguments, says):
    model = build(*regularizers)
    before = list(map(repr, regularizers))
    with pytest.raises(ValueError, match=says):
        fit(model, RegularizationScheduler(by_epoch, **arguments))
    assert list(map(repr, regularizers)) == before
    assert all((weights == 1).all() for weights in model.get_weights())


def test_built_in_instance(builtin):
    model = build(builtin.L2(0.5))
    with pytest.raises(ValueError, match=r"made before `import tfk_regularizers`. Set another by `set_regularizers`"):
        fit(model, RegularizationScheduler(by_epoch))


@pytest.mark.parametrize("given", [np.nan, np.inf, None, "0.1", [0.1, 0.2], 1j])
@pytest.mark.parametrize("epoch", [0, 1])
def test_schedule_that_gives_no_number(given, epoch):
    model = build(L2(0.5))
    with pytest.raises(ValueError, match=r"has to give a finite number for `l2`. Received: .* at epoch") as caught:
        fit(model, RegularizationScheduler(lambda now: given if now == epoch else 0.25))
    assert repr(given) in str(caught.value)
    assert f"at epoch {epoch}" in str(caught.value)
    assert model.layers[0].kernel_regularizer.get_config() == {"l2": [0.5, 0.25][epoch]}
    np.testing.assert_allclose(model.get_weights()[0], after_l2([0.25] * 2 * epoch), rtol=1e-6)


def test_error_of_the_schedule_itself_is_seen():
    """A TypeError in it does not mean the other signature."""

    def schedule(epoch):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        fit(build(L2(0.5)), RegularizationScheduler(schedule))


@needs_keras3
def test_keras_3_model():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1, kernel_regularizer=L2(0.5))])
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="RegularizationScheduler is for models of tf_keras"):
        model.fit(X, Y, callbacks=[RegularizationScheduler(by_epoch)], verbose=0)


def test_another_loop():
    callbacks = tf_keras.callbacks.CallbackList([RegularizationScheduler(by_epoch)], model=build(L2(0.5)))
    with pytest.raises(RuntimeError, match=r"works inside `Model\.fit`"):
        callbacks.on_train_begin()


# --- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compiling",
    [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=["graph", "eager", "xla", "steps_per_execution"],
)
@pytest.mark.light(compiling=[{}, {"run_eagerly": True}])
def test_equals_numpy(compiling):
    model = build(L2(9.0), **compiling)
    fit(model, epochs=1)  # traced already, with the number
    model.layers[0].set_weights([np.ones((3, 2))])
    history = fit(model, RegularizationScheduler(by_epoch))
    np.testing.assert_allclose(model.get_weights()[0], after_l2(np.repeat(EPOCHS, 2)), rtol=1e-6)
    assert history["l2"] == EPOCHS
    assert repr(model.layers[0].kernel_regularizer) == "L2(l2=<variable: 0.03125>)"


@pytest.mark.parametrize("order", [1, -1])
def test_equals_a_variable_assigned_by_hand(order):
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=(22, 3)).astype("float32"), "y": random.normal(size=(22, 2)).astype("float32")}
    variable = tf.Variable(0.0, trainable=False)
    by_hand = tf_keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: variable.assign(EPOCHS[epoch]))
    plain, model = build(L1L2(0.125, variable)), build(L1L2(0.125, 9.0))
    expected = fit(plain, PenaltyLogger(), by_hand, **data)
    callbacks = [PenaltyLogger(), RegularizationScheduler(by_epoch, "l2")][::order]
    found = fit(model, *callbacks, **data)
    assert found.pop("l2") == EPOCHS
    assert found == expected
    np.testing.assert_array_equal(model.get_weights()[0], plain.get_weights()[0])


def test_signatures():
    """Two required arguments get the factor of each; one with a default is the user's own."""
    model = build(L2(0.5), L2(0.25))
    history = fit(model, RegularizationScheduler(lambda epoch, factor: factor / 2))
    assert history["dense0/kernel/l2"] == [0.25, 0.125, 0.0625]
    assert history["dense1/kernel/l2"] == [0.125, 0.0625, 0.03125]
    assert "l2" not in history
    assert fit(build(L2(9.0)), RegularizationScheduler(lambda epoch, most=0.5: most * epoch))["l2"] == [0.0, 0.5, 1.0]


KERASES = [tf_keras] + ([] if KERAS3 is None else [KERAS3])


@pytest.mark.parametrize("keras", KERASES)
@pytest.mark.parametrize("per_execution", [1, 2])
def test_learning_rate_schedule(keras, per_execution):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 8, 0.0)
    model = build(L2(9.0), steps_per_execution=per_execution)
    history = fit(model, RegularizationScheduler(schedule))
    factors = [0.5 * (1 - step / 8) for step in range(6)]
    factors = np.repeat(factors[::per_execution], per_execution)
    np.testing.assert_allclose(model.get_weights()[0], after_l2(factors), rtol=1e-5)
    np.testing.assert_allclose(history["l2"], factors[1::2], rtol=1e-6)


def test_traced_once_more_and_not_again():
    """A second fit goes on, from `initial_epoch` too."""
    model = build(L2(9.0))
    scheduler = RegularizationScheduler(lambda epoch: 0.125 * epoch)
    assert fit(model, scheduler, epochs=2)["l2"] == [0.0, 0.125]
    step, traces = model.train_function, model.train_function.experimental_get_tracing_count()
    assert fit(model, scheduler, epochs=4, initial_epoch=2)["l2"] == [0.25, 0.375]
    assert fit(model, RegularizationScheduler(by_epoch))["l2"] == EPOCHS
    assert model.train_function is step
    assert step.experimental_get_tracing_count() == traces


class Subclassed(tf_keras.Model):
    """Not built before its first step."""

    def __init__(self):
        super().__init__()
        self.dense = dense(L2(9.0))

    def call(self, inputs):
        return self.dense(inputs)


def subclassed():
    model = Subclassed()
    model.compile(tf_keras.optimizers.SGD(RATE), "mse")
    return model


def loaded(path):
    build(L2(9.0)).save(path)
    return tf_keras.models.load_model(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: subclassed(),
        *(lambda folder, name=name: loaded(folder / name) for name in ("model.keras", "model.h5", "model")),
    ],
    ids=["subclassed", "keras", "h5", "saved_model"],
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_models(make, tmp_path):
    model = make(tmp_path)
    assert fit(model, RegularizationScheduler(by_epoch))["l2"] == EPOCHS
    np.testing.assert_allclose(model.get_weights()[0], after_l2(np.repeat(EPOCHS, 2)), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Frozen(tfk.Penalty):
    factor_names = ("factor",)
    factor: float

    def __call__(self, x):
        return self.factor * tf.reduce_sum(x**2)


LAYERS = {
    "time_distributed": lambda r: tf_keras.layers.TimeDistributed(dense(r)),
    "rnn": lambda r: tf_keras.layers.RNN(tf_keras.layers.SimpleRNNCell(2, kernel_regularizer=r)),
    "gru": lambda r: tf_keras.layers.GRU(2, recurrent_regularizer=r),
    "bidirectional": lambda r: tf_keras.layers.Bidirectional(tf_keras.layers.GRU(2, kernel_regularizer=r)),
    "bidirectional_two": lambda r: tf_keras.layers.Bidirectional(
        tf_keras.layers.GRU(2, kernel_regularizer=r),
        backward_layer=tf_keras.layers.GRU(2, kernel_regularizer=L2(4.0), go_backwards=True),
    ),
    "attention": lambda r: Attention(2, 3, kernel_regularizer=r),
    "activity": lambda r: dense(bias_initializer="ones", use_bias=True, activity_regularizer=r),
    "nested": lambda r: tf_keras.Sequential([tf_keras.Sequential([dense(r)])]),
    "inline": lambda r: Inline(),
}
WHEN = ("built", "unbuilt")
WITHOUT = [("inline", "unbuilt")]  # where there is no regularizer yet


@tf_keras.utils.register_keras_serializable("test_scheduler")
class Attention(tf_keras.layers.MultiHeadAttention):
    def call(self, x):
        return super().call(x, x)

    def build(self, shape):
        self._build_from_signature(query=shape, value=shape)
        super().build(shape)


@tf_keras.utils.register_keras_serializable("test_scheduler")
class Inline(tf_keras.layers.Layer):
    """A layer that keeps its regularizer under no attribute."""

    def build(self, shape):
        self.scale = self.add_weight("scale", (), initializer="ones", regularizer=L2(9.0))

    def call(self, x):
        return x * self.scale


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "when"), [pair for pair in itertools.product(LAYERS, WHEN) if pair not in WITHOUT])
def test_layers_and_their_files(name, when, tmp_path):
    built = when == "built"
    x = np.ones((4, 5, 3), "float32")
    layer = LAYERS[name](L2(9.0))
    model = tf_keras.Sequential([*([tf_keras.Input((5, 3))] if built else []), layer])
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros(model(x).shape) if built else tf.zeros_like(layer_output(layer, x)), verbose=0)
    loss, penalty = [], []
    for factor in (0.5, 0.25):
        history = model.fit(
            x,
            np.zeros(model(x).shape),
            verbose=0,
            callbacks=[PenaltyLogger(), RegularizationScheduler(lambda _, given=factor: given)],
        ).history
        loss.append(history["loss"][0])
        penalty.append(history["penalty"][0])
        assert history["l2"] == [factor]
    assert penalty[0] == pytest.approx(2 * penalty[1])
    assert penalty[1] > 0
    for file in ("model.keras", *(["model"] if built else [])):  # a SavedModel of some takes ten seconds
        model.save(tmp_path / file)
        again = tf_keras.models.load_model(tmp_path / file)
        if name != "inline":  # whose constructor has its own
            assert again.evaluate(x, np.zeros(model(x).shape), verbose=0) == pytest.approx(loss[1], rel=1e-5)


def layer_output(layer, x):
    return type(layer).from_config(layer.get_config())(x)


def test_terms_of_sums_shared_ones_and_frozen_dataclasses():
    shared = L2(9.0)
    model = build(shared + tfk.OrthogonalRegularizer(0.5), shared, L1(9.0) + (L2(3.0) + Foreign2()))
    assert set(fit(model, RegularizationScheduler(by_epoch, "l2"))) == {"loss", "l2"}
    assert [repr(layer.kernel_regularizer) for layer in model.layers] == [
        "L2(l2=<variable: 0.03125>) + OrthogonalRegularizer(factor=0.5, mode='rows')",
        "L2(l2=<variable: 0.03125>)",
        "L1(l1=9.0) + L2(l2=<variable: 0.03125>) + Foreign2()",
    ]
    frozen = build(Frozen(9.0))
    fit(frozen, RegularizationScheduler(by_epoch))
    np.testing.assert_allclose(frozen.get_weights()[0], after_l2(np.repeat(EPOCHS, 2)), rtol=1e-6)


class Foreign2(tf_keras.regularizers.Regularizer):
    def __call__(self, x):
        return tf.reduce_sum(x) * 0.0

    def __repr__(self):
        return "Foreign2()"


def test_live_already():
    variable = tf.Variable(9.0, trainable=False)
    model = build(L2(variable))
    fit(model)
    step = model.train_function
    fit(model, RegularizationScheduler(by_epoch))
    assert model.train_function is step
    assert model.layers[0].kernel_regularizer.l2 is variable
    assert float(variable) == EPOCHS[-1]


# --- logs -------------------------------------------------------------------------------------------------------------


def test_logs_in_any_order(tmp_path, capsys):
    one, other = (
        RegularizationScheduler(schedule, where=lambda layer, name=name: layer.name == name, verbose=1)
        for name, schedule in [("dense0", by_epoch), ("dense1", lambda epoch: 0.5)]
    )
    logger = tf_keras.callbacks.CSVLogger(tmp_path / "log.csv")
    board = tf_keras.callbacks.TensorBoard(str(tmp_path))
    history = fit(build(L2(9.0), L2(9.0)), logger, board, one, other)
    assert history["dense0/kernel/l2"] == EPOCHS
    assert history["dense1/kernel/l2"] == [0.5, 0.5, 0.5]
    assert "l2" not in history
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [float(row["dense0/kernel/l2"]) for row in rows] == EPOCHS
    assert "\nEpoch 2: RegularizationScheduler setting l2 to 0.0.\n" in capsys.readouterr().out
    found = [
        float(tf.make_ndarray(value.tensor))
        for file in (tmp_path / "train").glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
        if value.tag == "epoch_dense0/kernel/l2"
    ]
    assert found == EPOCHS


def test_one_list_of_callbacks_for_several_fits():
    models = [build(L2(9.0)), build(L2(9.0))]
    callbacks = tf_keras.callbacks.CallbackList([RegularizationScheduler(by_epoch)], add_history=True, model=models[0])
    for model in (*models, models[0]):
        model.set_weights([np.ones((3, 2))])
        model.fit(X, Y, 4, len(EPOCHS), shuffle=False, verbose=0, callbacks=callbacks)
        assert callbacks._history.history["l2"][-3:] == EPOCHS
        np.testing.assert_allclose(model.get_weights()[0], after_l2(np.repeat(EPOCHS, 2)), rtol=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_backup_and_restore(order, tmp_path):
    """A schedule that goes by the factor goes on from the one of the epoch before, in a new process too."""

    def callbacks():
        decay = RegularizationScheduler(lambda epoch, factor: factor / 2)
        return [decay, tf_keras.callbacks.BackupAndRestore(str(tmp_path))][::order]

    def interrupt(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build(L2(0.5)), *callbacks(), tf_keras.callbacks.LambdaCallback(on_epoch_begin=interrupt))
    resumed = build(L2(0.5))
    assert fit(resumed, *callbacks())["l2"] == [0.125, 0.0625]
    factors = np.repeat([0.25, 0.125, 0.0625], 2)
    np.testing.assert_allclose(resumed.get_weights()[0], after_l2(factors), rtol=1e-6)


def test_a_checkpoint_of_another_dtype_changes_nothing(tmp_path):
    """A variable of the user's own is float32, one of a scheduler float64."""
    build(L2(tf.Variable(0.25, trainable=False))).save_weights(tmp_path / "weights", save_format="tf")
    model = build(L2(0.5))
    model.load_weights(tmp_path / "weights").expect_partial()
    with pytest.raises(tf.errors.InvalidArgumentError, match="dtype"):
        fit(model, RegularizationScheduler(by_epoch))
    assert repr(model.layers[0].kernel_regularizer) == "L2(l2=0.5)"
    assert fit(model, RegularizationScheduler(by_epoch))["l2"] == EPOCHS
    assert model.layers[0]._lookup_dependency("kernel_regularizer") is model.layers[0].kernel_regularizer


# --- replicas ---------------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    import numpy as np
    import tensorflow as tf
    import tf_keras

    import tfk_regularizers as tfk

    random = np.random.default_rng(0)
    x, y = random.normal(size=(24, 5)).astype("f4"), random.normal(size=(24, 3)).astype("f4")

    def run(strategy):
        tf_keras.utils.set_random_seed(1)
        with strategy.scope():
            layers = [
                tf_keras.layers.Dense(5, "tanh", kernel_regularizer=tfk.L1(9.0)),
                tf_keras.layers.Dense(5, kernel_regularizer=tfk.L1(9.0) + tfk.OrthogonalRegularizer(0.1)),
                tf_keras.layers.Dense(3, activity_regularizer=tfk.L1(9.0)),
            ]
            model = tf_keras.Sequential([tf_keras.Input((5,)), *layers])
            model.compile(tf_keras.optimizers.SGD(0.1), "mse")
        schedule = lambda epoch: [0.125, 0.0, 0.03125][epoch]
        callbacks = [tfk.RegularizationScheduler(schedule, "l1"), tfk.PenaltyLogger()]
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True).repeat()
        history = model.fit(data, epochs=3, steps_per_epoch=3, verbose=0, callbacks=callbacks).history
        return history, model.get_weights(), model

    def assert_equal(one, other):
        for name in one[0]:
            np.testing.assert_allclose(other[0][name], one[0][name], rtol=1e-5, err_msg=name)
        for ours, theirs in zip(one[1], other[1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert other[0]["l1"] == [0.125, 0.0, 0.03125]
"""


@pytest.mark.heavy
def test_mirrored(run_python, tmp_path):
    program = """
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    one, two = run(tf.distribute.get_strategy()), run(strategy)
    assert_equal(one, two)
    two[2].save(sys.argv[1] + "/model.keras")
    assert tf_keras.models.load_model(sys.argv[1] + "/model.keras").layers[0].kernel_regularizer.l1 == 0.03125
    print("same")
    """
    assert "same" in run_python("-c", textwrap.dedent(PROGRAM + program), tmp_path, TF_CPP_MIN_LOG_LEVEL="3")


@pytest.mark.heavy
def test_parameter_server(run_python):
    program = """
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    worker, server = (f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    one = run(tf.distribute.get_strategy())
    cluster = tf.train.ClusterSpec({"worker": [worker], "ps": [server]})
    servers = [tf.distribute.Server(cluster, job_name=job, task_index=0, protocol="grpc") for job in ("worker", "ps")]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    assert_equal(one, run(tf.distribute.ParameterServerStrategy(resolver)))
    print("same")
    """
    assert "same" in run_python("-c", textwrap.dedent(PROGRAM + program), TF_CPP_MIN_LOG_LEVEL="3")
