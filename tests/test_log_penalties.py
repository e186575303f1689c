"""log_penalties against gradient descent by hand in float64, and what it must leave alone."""

import contextlib
import copy
import csv
import itertools
import pathlib
import pickle
import textwrap
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import KERAS3

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, log_penalties, penalties, set_regularizers

X = np.random.RandomState(0).randn(22, 3).astype("float32")
Y = (X[:, :1] * 2 - X[:, 1:2] + 0.5).astype("float32")
WEIGHTS = np.linspace(0, 3, 22).astype("float32")
VALIDATION = X[:9] + 0.1, Y[:9] - 0.1, WEIGHTS[3:12]
DATA = {"sample_weight": WEIGHTS, "validation_data": VALIDATION}
BATCH, EPOCHS, RATE = 8, 2, 0.1  # the last batch of 22 has six
FACTOR_L2, FACTOR_L1 = 0.1, 0.05
PATHS = ["hidden/kernel", "head/kernel"]
PARTS = ["loss", "data_loss", "penalty"]

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def build(l2=FACTOR_L2, l1=FACTOR_L1, rate=RATE, cls=tf_keras.Model, *, heads=("head",), policy="float32", **compiling):
    """A compiled model of two dense layers; without penalties if the factors are None."""
    tf_keras.utils.set_random_seed(1)
    tf_keras.mixed_precision.set_global_policy(policy)
    inputs = tf_keras.Input((3,))
    hidden = tf_keras.layers.Dense(4, "tanh", kernel_regularizer=l2 and L2(l2), name="hidden")(inputs)
    outputs = [tf_keras.layers.Dense(1, kernel_regularizer=l1 and L1(l1), name=name)(hidden) for name in heads]
    model = cls(inputs, outputs if len(heads) > 1 else outputs[0])
    model.compile(tf_keras.optimizers.SGD(rate), **{"loss": "mse", "metrics": ["mae"]} | compiling)
    tf_keras.mixed_precision.set_global_policy("float32")
    return model


def fit(model, y=Y, **arguments):
    arguments = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False, "verbose": 0} | arguments
    return model.fit(X, y, **arguments).history


def fit_logged(model, per_weight=False, **arguments):
    with log_penalties(model, per_weight):
        return fit(model, **arguments)


def by_hand(model, weights=1.0):
    """What `fit` should log: gradient descent in float64, and means of the values before each step by batch sizes."""
    kernel, bias, head, shift = map(np.float64, model.get_weights())
    logged = []

    def evaluate(x, y, weights):
        hidden = np.tanh(x @ kernel + bias)
        errors = hidden @ head + shift - y
        data_loss = np.mean(weights * errors[:, 0] ** 2)
        values = FACTOR_L2 * (kernel**2).sum(), FACTOR_L1 * abs(head).sum()
        return hidden, errors, [data_loss + sum(values), data_loss, sum(values), *values]

    for _ in range(EPOCHS):
        means = 0
        for start in range(0, len(X), BATCH):
            x, y, weight = (np.float64(data[start : start + BATCH]) for data in (X, Y, weights * np.ones(22)))
            hidden, errors, values = evaluate(x, y, weight)
            means += np.array(values) * len(x) / len(X)
            slope = 2 / len(x) * weight[:, None] * errors
            inner = slope @ head.T * (1 - hidden**2)
            kernel = kernel - RATE * (x.T @ inner + 2 * FACTOR_L2 * kernel)
            bias = bias - RATE * inner.sum(0)
            head = head - RATE * (hidden.T @ slope + FACTOR_L1 * np.sign(head))
            shift = shift - RATE * slope.sum(0)
        logged.append([*means, *evaluate(*map(np.float64, VALIDATION))[2]])
    names = [*PARTS, *PATHS]
    return dict(zip(names + [f"val_{name}" for name in names], np.transpose(logged), strict=True))


def assert_close(history, expected, names=None):
    for name in names or expected:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-5, err_msg=name)


def assert_same_training(model, history, plain, plain_history):
    for name in plain_history:  # to the rounding of a sum, whose order depends on what else reads its terms
        np.testing.assert_allclose(history[name], plain_history[name], rtol=2**-22, err_msg=name)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", [None, "run_eagerly", "jit_compile", "steps_per_execution"])
@pytest.mark.light(mode=[None, "run_eagerly"])
def test_equals_gradient_descent_by_hand(mode):
    compiling = {mode: 2 if mode == "steps_per_execution" else True} if mode else {}
    model, plain, expected = build(**compiling), build(**compiling), by_hand(build(), WEIGHTS)
    history = fit_logged(model, per_weight=True, **DATA)
    names = [*PARTS, *PATHS, "mae"]
    assert list(history) == names + [f"val_{name}" for name in names]
    assert_close(history, expected)
    assert_same_training(model, history, plain, fit(plain, **DATA))


@pytest.mark.parametrize(
    ("l2", "compiling", "data"),
    [
        (3e8, {}, {}),  # the penalty is 1e8 times the data loss
        (0.1, {"heads": ("one", "two"), "loss": ["mse", "mae"], "loss_weights": [0.5, 3.0]}, {}),
        (0.1, {"loss": tf_keras.losses.MeanSquaredError(reduction="sum")}, {}),
        (0.1, {}, {"y": np.arange(22) % 2, "class_weight": {0: 1.0, 1: 5.0}}),
        pytest.param(0.1, {"policy": "mixed_float16"}, {}, marks=pytest.mark.heavy),
    ],
)
def test_data_loss_is_the_loss_of_a_model_without_penalties(l2, compiling, data):
    model = build(l2, rate=0.0, **compiling)
    history, bare = fit_logged(model, **data), fit_logged(build(None, None, rate=0.0, **compiling), **data)
    assert history["data_loss"] == bare["data_loss"] == bare["loss"]
    assert bare["penalty"] == [0.0] * EPOCHS
    expected = l2 * (np.float64(model.get_weights()[0]) ** 2).sum()
    expected += FACTOR_L1 * sum(abs(np.float64(kernel)).sum() for kernel in model.get_weights()[2::2])
    np.testing.assert_allclose(history["penalty"], expected, rtol=1e-6)
    model, plain = build(l2, rate=1e-2 / l2, **compiling), build(l2, rate=1e-2 / l2, **compiling)
    assert_same_training(model, fit_logged(model, **data), plain, fit(plain, **data))


@pytest.mark.parametrize(("loss", "y"), [("mse", Y), (None, None)])
def test_penalties_of_every_kind(loss, y):
    """Of a shared, a nested and a frozen layer, of weights and activities, and losses from add_loss."""
    shared = tf_keras.layers.Dense(3, kernel_regularizer=L2(0.3), name="shared")
    both = tf_keras.layers.Dense(3, kernel_regularizer=L1(0.1), bias_regularizer=L2(0.7), name="both")
    frozen = tf_keras.layers.Dense(1, kernel_regularizer=L2(5.0), name="frozen", trainable=False)
    active = tf_keras.layers.Dense(3, activity_regularizer=L2(2.0))
    inputs = tf_keras.Input((3,))
    hidden = tf_keras.Sequential([tf_keras.Input((3,)), shared, both], name="inner")(shared(inputs))
    model = tf_keras.Model(inputs, frozen(active(hidden)))
    model.add_loss(tf.reduce_mean(abs(hidden)))
    model.compile(tf_keras.optimizers.SGD(0.0), loss)
    log_penalties(model, per_weight=True)
    history = fit(model, y, batch_size=22, epochs=1)
    weights = {path: float(value) for path, value in penalties(model).items()}
    assert set(weights) == {"shared/kernel", "inner/both/kernel", "inner/both/bias", "frozen/kernel"}
    data_loss, penalty = float(np.mean((model(X) - Y) ** 2)) * (loss == "mse"), sum(map(float, model.losses))
    expected = pytest.approx({"loss": data_loss + penalty, "data_loss": data_loss, "penalty": penalty, **weights})
    assert list(history) == model.metrics_names == [*PARTS, *weights]
    assert {name: value for name, (value,) in history.items()} == expected
    assert model.evaluate(X, y, verbose=0, return_dict=True) == expected
    assert dict(zip(history, model.evaluate(X, y, verbose=0), strict=True)) == expected
    assert dict(zip(history, model.test_on_batch(X, y), strict=True)) == expected
    assert model.train_on_batch(X, y, return_dict=True) == expected


def test_unbuilt_model():
    layers = [tf_keras.layers.Dense(1, None, True, "ones", kernel_regularizer="l2") for _ in range(2)]
    model, plain = (build(cls=lambda inputs, outputs, layer=layer: tf_keras.Sequential([layer])) for layer in layers)
    with pytest.raises(ValueError, match="has no weights yet"):
        log_penalties(model, per_weight=True)
    history = fit_logged(model)
    assert_same_training(model, history, plain, fit(plain))
    assert_close(history, {"loss": np.add(history["data_loss"], history["penalty"])})


@pytest.mark.heavy
def test_replicas(run_python):
    program = """
        import sys
        import numpy as np
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        import tf_keras
        sys.path.append(sys.argv[1])
        import test_log_penalties as tests
        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # two replicas
        for compiling in ({}, {"steps_per_execution": 2}, {"loss": tf_keras.losses.MeanSquaredError(reduction="sum")}):
            with mirrored.scope():
                model, plain = tests.build(**compiling), tests.build(**compiling)
            history = tests.fit_logged(model, per_weight=True, **tests.DATA)
            tests.assert_same_training(model, history, plain, tests.fit(plain, **tests.DATA))
            np.testing.assert_allclose(history["loss"], np.add(history["data_loss"], history["penalty"]), rtol=1e-6)
            if "loss" not in compiling:  # by sums, Keras itself gives a loss that depends on the number of replicas
                expected = tests.by_hand(tests.build(), tests.WEIGHTS)
                tests.assert_close(history, expected)
        print("same")
    """
    assert "same" in run_python("-c", textwrap.dedent(program), pathlib.Path(__file__).parent)


def test_samples_are_drawn_once():
    model = build(l1=None)
    sampled = tfk.SampledOrthogonalRegularizer(0.1, sample_size=2)
    set_regularizers(model, kernel_regularizer=sampled, where=lambda layer: layer.name == "hidden")
    history = fit_logged(model, per_weight=True)
    assert history["hidden/kernel"] == history["penalty"]


@pytest.mark.parametrize("within", [True, False], ids=["within_a_fit", "between_fits"])
def test_names_follow_set_regularizers(within, tmp_path):
    model = build(l1=None, rate=0.0)
    kernel, head = float(model.losses[0]), 2 * abs(model.get_layer("head").kernel.numpy()).sum()
    regularizers, evaluated = iter([None, L1(2.0), None]), []

    def change(epoch, logs):
        set_regularizers(model, kernel_regularizer=next(regularizers), where=lambda layer: layer.name == "head")
        evaluated.append(model.evaluate(X, Y, BATCH, verbose=0, return_dict=True))
        assert list(evaluated[-1]) == [*PARTS, *penalties(model), "mae"]

    callbacks = [tf_keras.callbacks.LambdaCallback(change), tf_keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    with log_penalties(model, per_weight=True):
        histories = [fit(model, epochs=3 if within else 1, callbacks=callbacks) for _ in range(1 if within else 3)]
    expected = {"penalty": [kernel, kernel + head, kernel], "hidden/kernel": [kernel] * 3, "head/kernel": [head]}
    expected |= {name: [logs[name] for logs in evaluated] for name in ("loss", "data_loss")}
    for name, values in expected.items():
        logged = [value for history in histories for value in history.get(name, [])]
        np.testing.assert_allclose(logged, values, rtol=1e-5, err_msg=name)


def test_progress_bar_csv_and_early_stopping_at_any_place(tmp_path, capsys):
    for place in range(2):
        callbacks = [tf_keras.callbacks.EarlyStopping("val_data_loss", patience=1, mode="min")]
        callbacks.insert(place, tf_keras.callbacks.CSVLogger(tmp_path / "log.csv"))
        model = build(rate=0.0)  # nothing moves, so nothing improves
        history = fit_logged(model, validation_data=VALIDATION, callbacks=callbacks, epochs=9, verbose=1)
        assert len(history["val_data_loss"]) == 2
        rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
        last = capsys.readouterr().out.rstrip().splitlines()[-1].rpartition("\r")[2]
        for name in [*PARTS, "val_loss", "val_data_loss", "val_penalty"]:
            assert [float(row[name]) for row in rows] == history[name]
            assert f"- {name}: {history[name][-1]:.4f}" in last


@pytest.mark.heavy
def test_tensorboard_and_backup(tmp_path):
    """The second epoch is interrupted, and another fit goes on from the backup."""
    callbacks = [
        tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        tf_keras.callbacks.TensorBoard(str(tmp_path / "logs")),
        tf_keras.callbacks.LambdaCallback(mock.Mock(side_effect=[None, KeyboardInterrupt, None])),
    ]
    expected = by_hand(build())
    with pytest.raises(KeyboardInterrupt):
        fit_logged(build(), validation_data=VALIDATION, callbacks=callbacks)
    resumed = fit_logged(build(), validation_data=VALIDATION, callbacks=callbacks)
    assert_close(resumed, {name: values[1:] for name, values in expected.items()}, PARTS)
    found = {}
    for file in sorted(tmp_path.glob("logs/*/events*")):
        prefix = "val_" if file.parent.name == "validation" else ""
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in (value for value in event.summary.value if "epoch_" in value.tag):
                found[value.tag.replace("epoch_", prefix), event.step] = float(tf.make_ndarray(value.tensor))
    for name, epoch in itertools.product([*PARTS, *(f"val_{name}" for name in PARTS)], range(EPOCHS)):
        np.testing.assert_allclose(found[name, epoch], expected[name][epoch], rtol=1e-5, err_msg=name)


@pytest.mark.heavy
def test_files_and_copies_are_as_without_and_load_without_the_package(tmp_path, run_python):
    program = """
        import sys
        import numpy as np
        import tf_keras
        x = np.arange(12.0).reshape(4, 3)
        for path in sys.argv[1:]:
            model = tf_keras.models.load_model(path)
            values = model.evaluate(x, x[:, :1], verbose=0)
            print("LOADED", values, model.metrics_names, [variable.name for variable in model.variables])
            model.fit(x, x[:, :1], verbose=0)
        assert "tfk_regularizers" not in sys.modules
    """
    seen = []
    for logging in (lambda model: log_penalties(model, per_weight=True), contextlib.nullcontext):
        tf_keras.backend.clear_session()
        model = build()
        files = [tmp_path / f"{len(seen)}{name}" for name in (".keras", ".h5", "", "_weights")]
        saving = [tf_keras.callbacks.ModelCheckpoint(str(file), save_weights_only=file == files[3]) for file in files]
        with logging(model):
            fit(model, epochs=1, callbacks=saving)
            checkpoint = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            counts = len(model.weights), len(model.variables)
        printed = run_python("-c", textwrap.dedent(program), *files[:3], TF_CPP_MIN_LOG_LEVEL="3").splitlines()
        loaded = [line for line in printed if line.startswith("LOADED")]
        lists = map(tf.train.list_variables, (str(files[2] / "variables/variables"), str(files[3]), checkpoint))
        names = [name for variables in lists for name, _ in variables]
        seen.append([loaded, [file.stat().st_size for file in files[:2]], names, counts])
        assert [list(fit(other)) for other in copies] == [["loss", "mae"]] * 2
    assert len(seen[0][0]) == 3
    assert seen[0] == seen[1]


def test_weights_saved_before_load_meanwhile(tmp_path):
    model = build()
    for logging in (contextlib.nullcontext, log_penalties):
        with logging(model):
            fit(model)
            (model.load_weights if logging is log_penalties else model.save_weights)(tmp_path / "old.weights.h5")


def state(model):
    """All that might be left behind; Keras itself keeps `_eval_data_handler` of a fit that failed."""
    evaluated = [*model.evaluate(X, Y, verbose=0, return_dict=True), len(model.evaluate(X, Y, verbose=0))]
    loss = model.compiled_loss, dict(vars(model.compiled_loss)), model.train_step, model.test_step
    variables = [variable.ref() for variable in [*model.weights, *model.variables]]
    return evaluated, loss, variables, set(vars(model)) - {"_eval_data_handler"}, model.metrics, model.metrics_names


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, tf.errors.OpError])
def test_model_is_as_before_after_the_block(error):
    def batches():
        yield X[:BATCH], Y[:BATCH]
        yield 1 / 0

    models = build(), build()
    for model, logging in zip(models, (log_penalties, contextlib.nullcontext), strict=True):
        fit(model)
        before = state(model)
        with pytest.raises(error) if error else contextlib.nullcontext(), logging(model):
            if error is tf.errors.OpError:
                model.fit(batches(), verbose=0)
            end = tf_keras.callbacks.LambdaCallback(on_epoch_end=mock.Mock(side_effect=error))
            fit(model, validation_data=VALIDATION, callbacks=[end])
        assert state(model) == before
    assert fit(models[0]) == fit(models[1])


def test_nested_called_twice_and_compiled():
    model = build()
    fit(model)
    before = state(model)
    with log_penalties(model):
        outer = model.compiled_loss
        with log_penalties(model, per_weight=True):
            assert list(fit(model)) == [*PARTS, *PATHS, "mae"]
        assert model.compiled_loss is outer
    assert state(model) == before
    first, second = log_penalties(model, per_weight=True), log_penalties(model)
    expected = by_hand(model)
    assert_close(fit(model), expected, PARTS)
    first.close()
    assert list(fit(model)) == [*PARTS, "mae"]
    second.close()
    assert state(model) == before
    with log_penalties(model):
        model.compile("sgd", "mae", metrics=[tf_keras.metrics.MeanAbsoluteError(name="penalty")])
        assert list(fit(model)) == ["loss", "penalty"]
    assert list(fit(model)) == ["loss", "penalty"]


def test_fits_are_traced_once_and_draw_the_same_random_numbers():
    losses, traces = [], []
    for logging in (log_penalties, lambda model: None):
        model = build(
            rate=0.0,
            cls=lambda inputs, outputs: tf_keras.Model(inputs, tf_keras.layers.GaussianNoise(1.0)(outputs)),
            loss=lambda y, y_pred: traces.append(1) or (y_pred - y) ** 2,
        )
        logging(model)
        histories = [fit(model, epochs=1) for _ in range(4)]
        assert all(("data_loss" in history) == (logging is log_penalties) for history in histories)
        losses.append([history["loss"][0] for history in histories])
    assert len(traces) <= 4  # two for each model, because the last batch is smaller
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


def own_train_step(self, data):
    """As the guides to `train_step` have it: a newer one updates all metrics with labels and predictions."""
    x, y = data
    with tf.GradientTape() as tape:
        y_pred = self(x, training=True)
        loss = self.loss_of(y, y_pred)
    self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
    if self.is_old:
        self.compiled_metrics.update_state(y, y_pred)
    for metric in [] if self.is_old else self.metrics:
        metric.update_state(*([loss] if metric.name == "loss" else [y, y_pred]))
    return {metric.name: metric.result() for metric in self.metrics}


METHODS = {
    "train_step": own_train_step,
    "test_step": lambda self, data: {"loss": self.loss_of(data[1], self(data[0]))},
    "make_train_function": lambda self: lambda iterator: {"loss": self.loss_of(*next(iterator))},
}
LOSSES = {
    "compute_loss": lambda self, y, y_pred: self.compute_loss(None, y, y_pred),
    "compiled_loss": lambda self, y, y_pred: self.compiled_loss(y, y_pred, regularization_losses=self.losses),
    "sum": lambda self, y, y_pred: self.compiled_loss(y, y_pred, regularization_losses=[tf.add_n(self.losses)]),
    "no_penalties": lambda self, y, y_pred: self.compiled_loss(y, y_pred),
    "bypass": lambda self, y, y_pred: tf.reduce_mean((y_pred - y) ** 2) + tf.add_n(self.losses),
}


def build_custom(loss, is_old=True, **methods):
    return build(cls=type("Custom", (tf_keras.Model,), {"loss_of": LOSSES[loss], "is_old": is_old, **methods}))


@pytest.mark.parametrize(("loss", "is_old"), [("compute_loss", False), ("compiled_loss", True), ("sum", True)])
def test_own_step_through_the_compiled_loss(loss, is_old):
    model = build_custom(loss, is_old, train_step=own_train_step)
    expected = by_hand(model)
    assert_close(fit_logged(model, per_weight=True), expected, ["data_loss", "penalty", *PATHS])


@pytest.mark.parametrize("own", ["train_step", "train_step but not test_step", "test_step", "make_train_function"])
@pytest.mark.parametrize(
    ("loss", "says"),
    [("bypass", "computes its loss without them"), ("no_penalties", "without `regularization_losses`")],
)
def test_own_step_past_the_compiled_loss(own, loss, says):
    methods = {name: method for name, method in METHODS.items() if name in own}
    if "not" in own:
        methods["test_step"] = lambda self, data: {"loss": self.compute_loss(None, data[1], self(data[0]))}
    model = build_custom(loss, **methods)
    compiled_loss, before = model.compiled_loss, model.get_weights()
    raises = pytest.raises(ValueError, match=f"cannot split the loss of the model .* Received: .* {says}")
    with raises, log_penalties(model):
        (model.evaluate if own == "test_step" else model.fit)(X, Y, BATCH)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert model.compiled_loss is compiled_loss


def test_own_step_that_is_a_tf_function():
    """It keeps its traces, so that it would go on with means that nothing shows any more, or not fill those shown."""
    model = build_custom("compute_loss", train_step=tf.function(own_train_step, autograph=False))
    with pytest.raises(ValueError, match=r"cannot split the loss of the model .* a `tf\.function` itself"):
        log_penalties(model)
    assert list(fit(model)) == ["loss", "mae"]


def add_metric(inputs, outputs):
    model = tf_keras.Model(inputs, outputs)
    model.add_metric(outputs, name="penalty", aggregation="mean")
    return model


@pytest.mark.parametrize(
    ("building", "name"),
    [
        ({"metrics": [tf_keras.metrics.MeanAbsoluteError(name="penalty")]}, "penalty"),
        ({"metrics": [tf_keras.metrics.MeanAbsoluteError(name="hidden/kernel")]}, "hidden/kernel"),
        ({"heads": ("data", "other")}, "data_loss"),
        ({"cls": add_metric}, "penalty"),
    ],
)
def test_name_taken(building, name):
    model = build(**building)
    before = model.get_weights()
    for _ in range(2):  # Keras makes its metrics in the first fit
        with pytest.raises(ValueError, match=f"cannot log .*'{name}'.*: .* has"), log_penalties(model, True):
            fit(model)
        np.testing.assert_array_equal(model.get_weights()[0], before[0])
    fit(model)


def test_invalid_arguments_and_name_of_a_weight_taken():
    for value in ("yes", 1, None):
        with pytest.raises(ValueError, match=r"Invalid value for argument `per_weight`\. Expected True or False"):
            log_penalties(build(), per_weight=value)
    with pytest.raises(TypeError, match=r"`log_penalties` is for Keras models\. Received: 3 of type .*int"):
        log_penalties(3)
    with pytest.raises(ValueError, match=r"is not compiled\. Call `model\.compile` before `log_penalties`"):
        log_penalties(tf_keras.Sequential())
    with tf.Graph().as_default(), pytest.raises(RuntimeError, match="`log_penalties` needs TensorFlow 2"):
        log_penalties(tf_keras.Sequential())
    with pytest.raises(NotImplementedError, match=r"Write `with tfk_regularizers\.log_penalties\(model\)"):
        tfk.PenaltyLogger(per_weight=True)
    if KERAS3:
        with pytest.raises(TypeError, match="`log_penalties` is for models of tf_keras"):
            log_penalties(tf.keras.Sequential())
    model = build()
    model.add_weight("penalty", [2], regularizer=L2(0.1))
    log_penalties(model)
    split = model.compiled_loss
    with pytest.raises(ValueError, match=r"cannot log .*'penalty'.* weight"):
        log_penalties(model, per_weight=True)
    assert model.compiled_loss is split
