"""log_penalties, compared with gradient descent by hand in float64, and what it must leave unchanged."""

import contextlib
import copy
import csv
import io
import itertools
import json
import pathlib
import pickle
import sys
import textwrap
import zipfile
from unittest import mock

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import KERAS3, KERASES, both_kerases, needs_host, needs_keras3

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, log_penalties, penalties, set_regularizers

X = np.random.RandomState(0).randn(22, 3).astype("float32")
Y = (X[:, :1] * 2 - X[:, 1:2] + 0.5).astype("float32")
WEIGHTS = np.linspace(0, 3, 22).astype("float32")
VALIDATION = X[:9] + 0.1, Y[:9] - 0.1, WEIGHTS[3:12]
DATA = {"sample_weight": WEIGHTS, "validation_data": VALIDATION}
BATCH, EPOCHS, RATE = 8, 3, 0.1  # the last batch has 6 of the 22 rows
FACTOR_L2, FACTOR_L1 = 0.1, 0.05
PATHS = ["hidden/kernel", "head/kernel"]
PARTS = ["loss", "data_loss", "penalty"]

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def build(keras, l2=FACTOR_L2, l1=FACTOR_L1, rate=RATE, cls=None, *, heads=("head",), policy="float32", **compiling):
    """A compiled model of two dense layers; without penalties if the factors are None."""
    keras.utils.set_random_seed(1)
    keras.mixed_precision.set_global_policy(policy)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, "tanh", kernel_regularizer=l2 and L2(l2), name="hidden")(inputs)
    outputs = [keras.layers.Dense(1, kernel_regularizer=l1 and L1(l1), name=name)(hidden) for name in heads]
    model = (cls or keras.Model)(inputs, outputs if len(heads) > 1 else outputs[0])
    model.compile(**{"optimizer": keras.optimizers.SGD(rate), "loss": "mse", "metrics": ["mae"]} | compiling)
    keras.mixed_precision.set_global_policy("float32")
    return model


def in_order(keras, names):
    """The names of logs in the order in which this version of Keras shows them."""
    return list(names) if keras is tf_keras else sorted(names)


def compiled_loss(model):
    return model.compiled_loss if isinstance(model, tf_keras.Model) else model._compile_loss


def fit(model, y=Y, **arguments):
    arguments = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False, "verbose": 0} | arguments
    return model.fit(X, y, **arguments).history


def fit_logged(model, per_weight=False, **arguments):
    with log_penalties(model, per_weight):
        return fit(model, **arguments)


def by_hand(model, weights=1.0, batch_sizes=True):
    """The expected logs of `fit`: gradient descent in float64, with values before each step averaged by batch size."""
    starts = range(0, len(X), BATCH)
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
        for start in starts:
            x, y, weight = (np.float64(data[start : start + BATCH]) for data in (X, Y, weights * np.ones(22)))
            hidden, errors, values = evaluate(x, y, weight)
            means += np.array(values) * (len(x) / len(X) if batch_sizes else 1 / len(starts))
            slope = 2 / len(x) * weight[:, None] * errors
            inner = slope @ head.T * (1 - hidden**2)
            kernel = kernel - RATE * (x.T @ inner + 2 * FACTOR_L2 * kernel)
            bias = bias - RATE * inner.sum(0)
            head = head - RATE * (hidden.T @ slope + FACTOR_L1 * np.sign(head))
            shift = shift - RATE * slope.sum(0)
        logged.append([*means, *evaluate(*map(np.float64, VALIDATION))[2]])
    names = [*PARTS, *PATHS]
    return dict(zip(names + [f"val_{name}" for name in names], np.transpose(logged), strict=True))


def assert_close(history, expected, names=None, rtol=1e-5):
    for name in names or expected:
        np.testing.assert_allclose(history[name], expected[name], rtol=rtol, err_msg=name)


def assert_same_training(model, history, plain, plain_history):
    for name in plain_history:  # up to rounding: the order of a sum depends on what else uses its terms
        np.testing.assert_allclose(history[name], plain_history[name], rtol=2**-22, err_msg=name)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@both_kerases
@pytest.mark.parametrize("mode", [None, "run_eagerly", "jit_compile", "steps_per_execution"])
@pytest.mark.light(mode=[None, "run_eagerly"])
def test_equals_gradient_descent_by_hand(keras, mode):
    compiling = {mode: 2 if mode == "steps_per_execution" else True} if mode else {}
    model, plain, expected = build(keras, **compiling), build(keras, **compiling), by_hand(build(keras), WEIGHTS)
    history = fit_logged(model, per_weight=True, **DATA)
    names = in_order(keras, [*PARTS, *PATHS, "mae"])
    assert list(history) == names + [f"val_{name}" for name in names]
    assert_close(history, expected, rtol=1e-6)
    assert_same_training(model, history, plain, fit(plain, **DATA))


TWO_HEADS = {"heads": ("data", "other"), "metrics": [["mae"], ["mae"]]}
CASES = {
    "large_penalty": (3e8, {}, {}),  # 1e8 times the data loss
    "two_outputs": (
        0.1,
        TWO_HEADS | {"heads": ("one", "two"), "loss": ["mse", "mae"], "loss_weights": [0.5, 3.0]},
        {"y": [Y, Y]},
    ),
    "sum": (0.1, {"loss": "sum"}, {}),
    "class_weight": (0.1, {}, {"y": np.arange(22) % 2, "class_weight": {0: 1.0, 1: 5.0}}),
    "mixed_float16": (0.1, {"policy": "mixed_float16"}, {}),
}


@both_kerases
@pytest.mark.parametrize("case", CASES)
@pytest.mark.light(keras=[tf_keras], case=[*CASES][:4])
@pytest.mark.light(case=[*CASES][:2])
def test_data_loss_is_the_loss_of_a_model_without_penalties(keras, case):
    l2, compiling, data = CASES[case]
    if case == "sum":
        compiling = {"loss": keras.losses.MeanSquaredError(reduction="sum")}
    model = build(keras, l2, rate=0.0, **compiling)
    history, bare = fit_logged(model, **data), fit_logged(build(keras, None, None, rate=0.0, **compiling), **data)
    assert history["data_loss"] == bare["data_loss"] == bare["loss"]
    assert bare["penalty"] == [0.0] * EPOCHS
    expected = l2 * (np.float64(model.get_weights()[0]) ** 2).sum()
    expected += FACTOR_L1 * sum(abs(np.float64(kernel)).sum() for kernel in model.get_weights()[2::2])
    np.testing.assert_allclose(history["penalty"], expected, rtol=1e-6)
    model, plain = (build(keras, l2, rate=1e-2 / l2, **compiling) for _ in range(2))
    assert_same_training(model, fit_logged(model, **data), plain, fit(plain, **data))


@both_kerases
@pytest.mark.light(keras=[*KERASES.values()][1:])
def test_weights_and_optimizer_are_equal_to_the_bit(keras):
    model, plain = build(keras, optimizer="adam"), build(keras, optimizer="adam")
    assert_same_training(model, fit_logged(model, per_weight=True, **DATA), plain, fit(plain, **DATA))
    for ours, theirs in zip(model.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def add_loss(keras, inputs, outputs, hidden):
    """A model with the mean of |hidden| as an additional loss; in Keras 3 a layer adds it, because a model cannot."""

    class Loss(keras.layers.Layer):
        def call(self, outputs, hidden):
            self.add_loss(tf.reduce_mean(abs(hidden)))
            return outputs

    if keras is not tf_keras:
        return keras.Model(inputs, Loss()(outputs, hidden))
    model = keras.Model(inputs, outputs)
    model.add_loss(tf.reduce_mean(abs(hidden)))
    return model


@pytest.mark.parametrize(
    ("library", "loss", "y"),
    [*((library, "mse", Y) for library in KERASES), ("tf_keras", None, None)],  # a Keras 3 model needs a loss
    ids=[*KERASES, "no_loss"],
)
def test_penalties_of_every_kind(library, loss, y):
    """The logs include shared, nested and frozen layers, weights and activities, and losses from add_loss."""
    keras = KERASES[library]
    layers = keras.layers
    shared = layers.Dense(3, kernel_regularizer=L2(0.3), name="shared")
    both = layers.Dense(3, kernel_regularizer=L1(0.1), bias_regularizer=L2(0.7), name="both")
    frozen = layers.Dense(1, kernel_regularizer=L2(5.0), name="frozen", trainable=False)
    active = layers.Dense(3, activity_regularizer=L2(2.0))
    inputs = keras.Input((3,))
    hidden = keras.Sequential([keras.Input((3,)), shared, both], name="inner")(shared(inputs))
    model = add_loss(keras, inputs, frozen(active(hidden)), hidden)
    model.compile(keras.optimizers.SGD(0.0), loss)
    log_penalties(model, per_weight=True)
    history = fit(model, y, batch_size=22, epochs=1)
    weights = {path: float(value) for path, value in penalties(model).items()}
    of_frozen = {"frozen/kernel"} if keras is tf_keras else set()  # Keras 3 does not penalize it
    assert set(weights) == {"shared/kernel", "inner/both/kernel", "inner/both/bias"} | of_frozen
    data_loss, penalty = float(np.mean((model(X) - Y) ** 2)) * (loss == "mse"), sum(map(float, model.losses))
    assert len(model.losses) == len(weights) + 2
    expected = pytest.approx({"loss": data_loss + penalty, "data_loss": data_loss, "penalty": penalty, **weights})
    assert model.metrics_names == [*PARTS, *weights]
    assert list(history) == in_order(keras, model.metrics_names)
    assert {name: value for name, (value,) in history.items()} == expected
    assert model.evaluate(X, y, verbose=0, return_dict=True) == expected
    assert dict(zip(model.metrics_names, model.evaluate(X, y, verbose=0), strict=True)) == expected
    assert dict(zip(model.metrics_names, model.test_on_batch(X, y), strict=True)) == expected
    assert model.train_on_batch(X, y, return_dict=True) == expected


@both_kerases
def test_unbuilt_model(keras):
    layers = [keras.layers.Dense(1, None, True, "ones", kernel_regularizer="l2") for _ in range(2)]
    model, plain = (
        build(keras, cls=lambda inputs, outputs, layer=layer: keras.Sequential([layer])) for layer in layers
    )
    with pytest.raises(ValueError, match="has no weights yet"):
        log_penalties(model, per_weight=True)
    history = fit_logged(model)
    assert_same_training(model, history, plain, fit(plain))
    assert_close(history, {"loss": np.add(history["data_loss"], history["penalty"])})


@pytest.mark.heavy
@pytest.mark.parametrize("library", KERASES)
def test_replicas(library, run_python):
    program = """
        import sys
        import numpy as np
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        import tf_keras
        sys.path.append(sys.argv[1])
        import test_log_penalties as tests
        keras = tests.KERASES[sys.argv[2]]
        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # two replicas
        several = [{"steps_per_execution": 2}] if keras is tf_keras else []  # this fails in Keras 3 itself
        for compiling in ({}, *several, {"loss": keras.losses.MeanSquaredError(reduction="sum")}):
            with mirrored.scope():
                model, plain = tests.build(keras, **compiling), tests.build(keras, **compiling)
            history = tests.fit_logged(model, per_weight=True, **tests.DATA)
            tests.assert_same_training(model, history, plain, tests.fit(plain, **tests.DATA))
            np.testing.assert_allclose(history["loss"], np.add(history["data_loss"], history["penalty"]), rtol=1e-6)
            if "loss" not in compiling:  # with sums, Keras's own loss depends on the number of replicas
                expected = tests.by_hand(tests.build(keras), tests.WEIGHTS)
                tests.assert_close(history, expected)
        print("same")
    """
    assert "same" in run_python("-c", textwrap.dedent(program), pathlib.Path(__file__).parent, library)


@both_kerases
def test_samples_are_drawn_once(keras):
    model = build(keras, l1=None)
    sampled = tfk.SampledOrthogonalRegularizer(0.1, sample_size=2)
    set_regularizers(model, kernel_regularizer=sampled, where=lambda layer: layer.name == "hidden")
    history = fit_logged(model, per_weight=True)
    assert history["hidden/kernel"] == history["penalty"]


@both_kerases
@pytest.mark.parametrize("within", [True, False], ids=["within_a_fit", "between_fits"])
@pytest.mark.light(keras=[tf_keras])
@pytest.mark.light(within=[True])
def test_names_follow_set_regularizers(keras, within, tmp_path):
    model = build(keras, l1=None, rate=0.0)
    kernel, head = float(model.losses[0]), 2 * abs(model.get_layer("head").kernel.numpy()).sum()
    regularizers, evaluated = iter([None, L1(2.0), None]), []

    def change(epoch, logs):
        set_regularizers(model, kernel_regularizer=next(regularizers), where=lambda layer: layer.name == "head")
        evaluated.append(model.evaluate(X, Y, BATCH, verbose=0, return_dict=True))
        assert list(evaluated[-1]) == in_order(keras, [*PARTS, *penalties(model), "mae"])

    callbacks = [keras.callbacks.LambdaCallback(change), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    with log_penalties(model, per_weight=True):
        histories = [fit(model, epochs=3 if within else 1, callbacks=callbacks) for _ in range(1 if within else 3)]
    expected = {"penalty": [kernel, kernel + head, kernel], "hidden/kernel": [kernel] * 3, "head/kernel": [head]}
    expected |= {name: [logs[name] for logs in evaluated] for name in ("loss", "data_loss")}
    for name, values in expected.items():
        logged = [value for history in histories for value in history.get(name, [])]
        np.testing.assert_allclose(logged, values, rtol=1e-5, err_msg=name)


@both_kerases
def test_progress_bar_csv_and_early_stopping_at_any_place(keras, tmp_path, capsys):
    for place in range(2):
        callbacks = [keras.callbacks.EarlyStopping("val_data_loss", patience=1, mode="min")]
        callbacks.insert(place, keras.callbacks.CSVLogger(tmp_path / "log.csv"))
        model = build(keras, rate=0.0)  # nothing moves, so nothing improves
        history = fit_logged(model, validation_data=VALIDATION, callbacks=callbacks, epochs=9, verbose=1)
        assert len(history["val_data_loss"]) == 2
        rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
        last = capsys.readouterr().out.rstrip().splitlines()[-1].rpartition("\r")[2]
        for name in [*PARTS, "val_loss", "val_data_loss", "val_penalty"]:
            assert [float(row[name]) for row in rows] == history[name]
            assert f"- {name}: {history[name][-1]:.4f}" in last


@both_kerases
def test_early_stopping_takes_less_as_better(keras):
    """`mode="min"` is not needed, although Keras 3 infers it only for its own losses."""
    stopping = keras.callbacks.EarlyStopping("val_data_loss", patience=1)
    model = build(keras, run_eagerly=True)
    values = fit_logged(model, validation_data=VALIDATION, callbacks=[stopping])["val_data_loss"]
    assert len(values) == EPOCHS
    assert values == sorted(values, reverse=True)


@pytest.mark.heavy
@both_kerases
def test_tensorboard_and_backup(keras, tmp_path):
    """The second epoch is interrupted, and another fit resumes from the backup."""
    callbacks = [
        keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        keras.callbacks.TensorBoard(str(tmp_path / "logs")),
        keras.callbacks.LambdaCallback(mock.Mock(side_effect=[None, KeyboardInterrupt, None, None])),
    ]
    expected = by_hand(build(keras))
    with pytest.raises(KeyboardInterrupt):
        fit_logged(build(keras), validation_data=VALIDATION, callbacks=callbacks)
    resumed = fit_logged(build(keras), validation_data=VALIDATION, callbacks=callbacks)
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
        model = build(tf_keras)
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


def contents(file):
    """The arrays in a file of Keras 3, by their names, and the configs without the addresses of objects."""

    def without_address(config):
        return {name: value for name, value in config.items() if name != "shared_object_id"}

    found, weights = {}, file
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            found = {
                "names": archive.namelist(),
                "config": json.loads(archive.read("config.json"), object_hook=without_address),
            }
            weights = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights) as opened:
        found |= {name: np.array(value).tolist() for name, value in opened.attrs.items()}
        opened.visititems(lambda name, one: found.update({name: one[()].tolist() if hasattr(one, "shape") else None}))
    return found


@pytest.mark.heavy
@needs_host
def test_files_and_copies_of_keras_3_are_as_without(tmp_path):
    seen = []
    for logging in (lambda model: log_penalties(model, per_weight=True), contextlib.nullcontext):
        KERAS3.backend.clear_session()
        model = build(KERAS3)
        files = [tmp_path / f"{len(seen)}{name}" for name in ("_checked.keras", ".keras", ".weights.h5", ".h5")]
        with logging(model):
            fit(model, epochs=1, callbacks=[KERAS3.callbacks.ModelCheckpoint(files[0])])
            checkpoint = tf.train.Checkpoint(model=model).write(str(tmp_path / f"{len(seen)}"))
            model.save(files[1])
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), KERAS3.models.load_model(files[1])]
            model.save_weights(files[2])
            model.save(files[3])  # last, because afterwards Keras omits the optimizer from other files
            counts = len(model.weights), len(model.variables)
        seen.append([tf.train.list_variables(checkpoint), counts, *map(contents, files)])
        assert [sorted(fit(other, epochs=1)) for other in copies] == [["loss", "mae"]] * 3
    assert all(np.size(kernel) == 12 for kernel in [found["layers/dense/vars/0"] for found in seen[0][2:5]])
    for ours, theirs in zip(*seen, strict=True):
        assert ours == theirs


@both_kerases
def test_weights_saved_before_load_meanwhile(keras, tmp_path):
    model = build(keras)
    for logging in (contextlib.nullcontext, log_penalties):
        with logging(model):
            fit(model)
            (model.load_weights if logging is log_penalties else model.save_weights)(tmp_path / "old.weights.h5")


def state(model):
    """Everything that might be left behind. Keras itself keeps its validation iterators after a failed fit."""
    evaluated = [*model.evaluate(X, Y, verbose=0, return_dict=True), len(model.evaluate(X, Y, verbose=0))]
    loss = compiled_loss(model), dict(vars(compiled_loss(model))), model.train_step, model.test_step
    variables = [id(variable) for variable in [*model.weights, *model.variables]]
    attributes = set(vars(model)) - {"_eval_data_handler", "_eval_epoch_iterator"}
    return evaluated, loss, variables, attributes, model.metrics, model.metrics_names


@both_kerases
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, tf.errors.OpError])
@pytest.mark.light(keras=[tf_keras])
@pytest.mark.light(error=[KeyboardInterrupt])
def test_model_is_as_before_after_the_block(keras, error):
    def batches():
        yield from [(X[:BATCH], Y[:BATCH])] * 3  # Keras 3 reads the first ones before training
        yield 1 / 0

    models = build(keras), build(keras)
    for model, logging in zip(models, (log_penalties, contextlib.nullcontext), strict=True):
        fit(model)
        before = state(model)
        with pytest.raises(error) if error else contextlib.nullcontext(), logging(model):
            if error is tf.errors.OpError:
                model.fit(batches(), shuffle=False, verbose=0)
            end = keras.callbacks.LambdaCallback(on_epoch_end=mock.Mock(side_effect=error))
            fit(model, validation_data=VALIDATION, callbacks=[end])
        assert state(model) == before
    assert fit(models[0]) == fit(models[1])


@both_kerases
def test_nested_called_twice_and_compiled(keras):
    model = build(keras)
    fit(model)
    before = state(model)
    with log_penalties(model):
        outer = compiled_loss(model)
        with log_penalties(model, per_weight=True):
            assert list(fit(model)) == in_order(keras, [*PARTS, *PATHS, "mae"])
        assert compiled_loss(model) is outer
    assert state(model) == before
    first, second = log_penalties(model, per_weight=True), log_penalties(model)
    expected = by_hand(model)
    assert_close(fit(model), expected, PARTS)
    first.close()
    assert list(fit(model)) == in_order(keras, [*PARTS, "mae"])
    second.close()
    assert state(model) == before
    with log_penalties(model):
        model.compile("sgd", "mae", metrics=[keras.metrics.MeanAbsoluteError(name="penalty")])
        assert list(fit(model)) == ["loss", "penalty"]
    assert list(fit(model)) == ["loss", "penalty"]


@both_kerases
def test_fits_are_traced_once_and_draw_the_same_random_numbers(keras):
    losses, counts = [], []
    for logging in (log_penalties, lambda model: None):
        traces = []
        model = build(
            keras,
            rate=0.0,
            cls=lambda inputs, outputs: keras.Model(inputs, keras.layers.GaussianNoise(1.0)(outputs)),
            loss=lambda y, y_pred, traces=traces: traces.append(1) or (y_pred - y) ** 2,
        )
        logging(model)
        histories = [fit(model, epochs=1) for _ in range(4)]
        counts.append(len(traces))
        assert all(("data_loss" in history) == (logging is log_penalties) for history in histories)
        losses.append([history["loss"][0] for history in histories])
    assert counts[0] <= counts[1] <= 3  # the last batch is smaller, and some versions build the loss beforehand
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


def own_train_step(self, data):
    """A step as in Keras's guides: a newer guide updates all metrics with labels and predictions."""
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
    return build(
        tf_keras, cls=type("Custom", (tf_keras.Model,), {"loss_of": LOSSES[loss], "is_old": is_old, **methods})
    )


@pytest.mark.parametrize(("loss", "is_old"), [("compute_loss", False), ("compiled_loss", True), ("sum", True)])
def test_own_step_through_the_compiled_loss(loss, is_old):
    model = build_custom(loss, is_old, train_step=own_train_step)
    expected = by_hand(model)
    assert_close(fit_logged(model, per_weight=True), expected, ["data_loss", "penalty", *PATHS])


@pytest.mark.parametrize("own", ["train_step", "train_step but not test_step", "test_step", "make_train_function"])
@pytest.mark.parametrize(
    ("loss", "says"),
    [("bypass", "calls neither"), ("no_penalties", "without `regularization_losses`")],
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
    """It keeps its traces, so it would update metrics that are no longer shown, or not update those that are."""
    model = build_custom("compute_loss", train_step=tf.function(own_train_step, autograph=False))
    with pytest.raises(ValueError, match=r"cannot split the loss of the model .* a `tf\.function` itself"):
        log_penalties(model)
    assert list(fit(model)) == ["loss", "mae"]


def guide_train_step(self, data):
    """A step as in Keras 3's guide: all batches have the same weight in the mean of the losses."""
    x, y = data
    with tf.GradientTape() as tape:
        y_pred = self(x, training=True)
        loss = self.compute_loss(y=y, y_pred=y_pred)
    self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
    for metric in self.metrics:
        metric.update_state(*([loss] if metric.name == "loss" else [y, y_pred]))
    return {metric.name: metric.result() for metric in self.metrics}


def bypassing_step(self, data):
    """Computes and logs its loss by itself, without gradients, as a `test_step` does."""
    loss = tf.reduce_mean((self(data[0]) - data[1]) ** 2) + tf.add_n(self.losses)
    self.own.update_state(loss)
    return {"loss": self.own.result()}


def bypassing_train_step(self, data):
    with tf.GradientTape() as tape:
        logs = bypassing_step(self, data)
        loss = tf.reduce_mean((self(data[0]) - data[1]) ** 2) + tf.add_n(self.losses)
    self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
    return logs


def all_metrics(step):
    """Return the step, changed so that its logs are the results of all metrics."""

    def full_step(self, data):
        step(self, data)
        return {metric.name: metric.result() for metric in self.metrics}

    return full_step


def build_custom_3(rate=RATE, **methods):
    def init(self, *arguments):
        KERAS3.Model.__init__(self, *arguments)
        self.own = KERAS3.metrics.Mean("own")

    custom = type("Custom", (KERAS3.Model,), {"__init__": init, **methods})
    return build(KERAS3, rate=rate, cls=custom, metrics=None)


@needs_host
def test_step_of_the_guide_of_keras_3():
    model, plain = (build_custom_3(train_step=guide_train_step) for _ in range(2))
    expected = by_hand(model, batch_sizes=False)
    history = fit_logged(model, per_weight=True, validation_data=VALIDATION)
    assert_close(history, expected)
    assert_same_training(model, history, plain, fit(plain, validation_data=VALIDATION))


@needs_host
def test_own_compute_loss_that_adds_to_that_of_keras_3():
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: PLR0917
        loss = KERAS3.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
        return loss + 0.25 * tf.reduce_mean(abs(y_pred))

    model, plain = (build_custom_3(compute_loss=compute_loss) for _ in range(2))
    outputs, penalty = np.float64(model(X)), sum(map(float, model.losses))
    data_loss = np.mean((outputs - Y) ** 2) + 0.25 * np.mean(abs(outputs))
    with log_penalties(model):
        logs = model.evaluate(X, Y, 22, verbose=0, return_dict=True)
    logs.pop("own")
    assert logs == pytest.approx({"loss": data_loss + penalty, "data_loss": data_loss, "penalty": penalty}, rel=1e-6)
    history = fit_logged(model, **DATA)
    assert_close(history, {"loss": np.add(history["data_loss"], history["penalty"])})
    assert_same_training(model, history, plain, fit(plain, **DATA))


def assert_refused(model, train, *, at_once=True):
    """Assert that the error suggests a fix, and that no weight has changed if the error is raised at once."""
    before, loss = model.get_weights(), model._compile_loss
    raises = pytest.raises(ValueError, match=r"cannot split the loss of the model .* `super\(\)\.compute_loss`")
    with raises, log_penalties(model):
        train(model)
    if at_once:
        for weight, expected in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, expected)
    assert model._compile_loss is loss


@needs_host
@pytest.mark.parametrize("eager", [False, True], ids=["traced", "eager"])
def test_own_compute_loss_that_does_without_that_of_keras_3(eager):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: PLR0917
        return tf.reduce_mean((y_pred - y) ** 2) + tf.add_n(self.losses)

    model = build_custom_3(compute_loss=compute_loss)
    model.run_eagerly = eager
    assert_refused(model, fit)
    assert list(fit(model)) == ["loss", "own"]


@needs_host
@pytest.mark.parametrize("full", [False, True], ids=["own_logs", "all_metrics"])
@pytest.mark.light(full=[True])
@pytest.mark.parametrize("own", ["train_step", "train_step after evaluate", "test_step", "validation"])
def test_own_step_of_keras_3_past_the_compiled_loss(own, full):
    step = bypassing_train_step if own.startswith("train") else bypassing_step
    name = "train_step" if own.startswith("train") else "test_step"
    model = build_custom_3(rate=0.0 if own == "validation" else RATE, **{name: all_metrics(step) if full else step})

    def train(model):
        if own == "train_step after evaluate":
            model.evaluate(X, Y, verbose=0)
        if own == "test_step":
            model.evaluate(X, Y, verbose=0)
        else:
            fit(model, validation_data=VALIDATION if own == "validation" else None)

    # A step that returns logs of its own is detected when Keras reads the metrics at the end of the epoch.
    assert_refused(model, train, at_once=full or not own.startswith("train"))


@needs_host
def test_own_metrics_of_keras_3_without_those_of_the_superclass():
    model = build_custom_3(metrics=property(lambda self: [self.own]))
    assert_refused(model, fit)


@needs_host
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")
def test_keras_3_model_compiled_without_a_loss():
    history = fit_logged(build(KERASES["Keras 3"], loss=None, metrics=None))
    assert list(history) == ["data_loss", "loss", "penalty"]
    np.testing.assert_array_equal(history["data_loss"], 0.0)
    np.testing.assert_array_equal(history["penalty"], history["loss"])


@needs_host
@pytest.mark.parametrize("losses", ["one", "two"])
def test_own_step_of_keras_3_with_another_loss(losses):
    """If a step adds to `compute_loss`, or averages two calls, the logged `loss` is the sum of the logged parts."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            if losses == "one":
                loss = self.compute_loss(x, y, self(x, training=True)) + 7.0
            else:
                loss = sum(self.compute_loss(x[i::2], y[i::2], self(x[i::2], training=True)) for i in range(2)) / 2
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self._loss_tracker.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}

    history = fit_logged(build_custom_3(train_step=train_step))
    np.testing.assert_allclose(history["loss"], np.add(history["data_loss"], history["penalty"]), rtol=1e-6)


@needs_host
def test_own_step_of_keras_3_that_is_a_tf_function():
    """It keeps its traces, so it would update metrics that are no longer shown, or not update those that are."""
    model = build_custom_3(train_step=tf.function(guide_train_step, autograph=False))
    with contextlib.suppress(ValueError):  # it may also be refused
        fit_logged(model)
    history = fit(model)
    assert sorted(history) == ["loss", "own"]
    assert history["loss"][0] > 0


def add_metric(keras):
    def make(inputs, outputs):
        model = keras.Model(inputs, outputs)
        if keras is tf_keras:
            model.add_metric(outputs, name="penalty", aggregation="mean")
        else:
            model.own = keras.metrics.Mean("penalty")
        return model

    return make


@both_kerases
@pytest.mark.parametrize(
    ("building", "name"),
    [
        (lambda keras: {"metrics": [keras.metrics.MeanAbsoluteError(name="penalty")]}, "penalty"),
        (lambda keras: {"metrics": [keras.metrics.MeanAbsoluteError(name="hidden/kernel")]}, "hidden/kernel"),
        (lambda keras: TWO_HEADS, "data_loss"),
        (lambda keras: {"cls": add_metric(keras)}, "penalty"),
    ],
    ids=["metric", "path", "output", "metric_of_the_model"],
)
def test_name_taken(keras, building, name):
    model = build(keras, **building(keras))
    before, y = model.get_weights(), [Y] * len(model.outputs)
    for _ in range(2):  # Keras creates its metrics in the first fit
        with pytest.raises(ValueError, match=f"cannot log .*'{name}'.*: .* has"), log_penalties(model, True):
            fit(model, y)
        np.testing.assert_array_equal(model.get_weights()[0], before[0])
    fit(model, y)


@both_kerases
def test_name_that_only_looks_taken(keras):
    """The log of a metric of one of several outputs begins with the name of the output."""
    metrics = [[keras.metrics.MeanAbsoluteError(name="penalty")], []]
    model = build(keras, heads=("one", "two"), metrics=metrics)
    assert {"penalty", "one_penalty"} <= set(fit_logged(model, y=[Y, Y]))


def model_with_weight(keras):
    """A model whose own weight is called `penalty`."""

    class WithWeight(keras.Model):
        def __init__(self):
            super().__init__()
            self.own = self.add_weight(name="penalty", shape=[2], regularizer=L2(0.1))

        def call(self, x):
            return tf.reduce_sum(x, 1, keepdims=True) * self.own

    model = WithWeight()
    model.compile("sgd", "mse")
    model(X)
    return model


@both_kerases
def test_invalid_arguments_and_name_of_a_weight_taken(keras):
    for value in ("yes", 1, None):
        with pytest.raises(ValueError, match=r"Invalid value for argument `per_weight`\. Expected True or False"):
            log_penalties(build(keras), per_weight=value)
    with pytest.raises(TypeError, match=r"`log_penalties` expects a Keras model\. Received: 3 of type .*int"):
        log_penalties(3)
    with pytest.raises(ValueError, match=r"is not compiled\. Call `model\.compile` before `log_penalties`"):
        log_penalties(keras.Sequential())
    with tf.Graph().as_default(), pytest.raises(RuntimeError, match="`log_penalties` needs TensorFlow 2"):
        log_penalties(keras.Sequential())
    with pytest.raises(NotImplementedError, match=r"Write `with tfk_regularizers\.log_penalties\(model\)"):
        tfk.PenaltyLogger(per_weight=True)
    model = model_with_weight(keras)
    log_penalties(model)
    split = compiled_loss(model)
    with pytest.raises(ValueError, match=r"cannot log .*'penalty'.* weight"):
        log_penalties(model, per_weight=True)
    assert compiled_loss(model) is split


@needs_keras3
def test_model_of_an_older_keras_3(monkeypatch):
    monkeypatch.setattr(sys.modules["keras"], "__version__", "3.11.3")
    refusal = r"`log_penalties` supports models of tf_keras, and of Keras 3\.12 .* Received: .* of Keras 3\.11\.3 on "
    with pytest.raises(TypeError, match=refusal):
        log_penalties(build(KERAS3))
