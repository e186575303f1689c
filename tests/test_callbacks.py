"""PenaltyLogger against loops written by hand over the same batches, and what it must leave alone."""

import contextlib
import copy
import csv
import functools
import io
import pickle
import sys
import textwrap
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import needs_keras3

from tfk_regularizers import (
    L1,
    L2,
    PenaltyLogger,
    SampledOrthogonalRegularizer,
    penalties,
    register,
    set_regularizers,
    unregister,
)
from tfk_regularizers._keras import training

X = np.random.RandomState(0).randn(22, 3).astype("float32")
Y = (X[:, :1] * 2 - X[:, 1:2] + 0.5).astype("float32")
X_VAL, Y_VAL = X[:9] + 0.1, Y[:9] - 0.1
BATCH = 8  # the last batch of 22 has six
EPOCHS = 2
HUGE = L2(1e6)  # the penalty is a million times the data loss: what is lost by subtracting would show
RATE = 1e-8  # small enough for HUGE

# Saved in the middle of a fit, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def build(kernel=HUGE, rate=RATE, outputs=1, **compiling):
    tf_keras.utils.set_random_seed(1)
    inputs = tf_keras.Input((3,))
    hidden = tf_keras.layers.Dense(4, "tanh", kernel_regularizer=kernel, name="hidden")(inputs)
    heads = [tf_keras.layers.Dense(1, name=f"head{i}")(hidden) for i in range(outputs)]
    model = tf_keras.Model(inputs, heads if outputs > 1 else heads[0])
    compiling = {"loss": "mse", "metrics": ["mae"]} | compiling
    model.compile(tf_keras.optimizers.SGD(rate), **compiling)
    return model


def fit(model, callbacks=None, **arguments):
    arguments = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False, "verbose": 0} | arguments
    return model.fit(X, Y, callbacks=callbacks, **arguments).history


def mean_square(y, prediction, weight):
    return tf.reduce_mean(tf.cast(weight, prediction.dtype) * tf.reduce_mean((prediction - y) ** 2, -1))


def by_hand(model, data_loss=mean_square, rate=RATE, weights=None, epochs=EPOCHS):
    """What `fit` should log: a plain loop, data loss and penalty before each update, averaged by batch size."""
    weights = np.ones(len(X), "float32") if weights is None else weights
    sizes = [len(X[i : i + BATCH]) for i in range(0, len(X), BATCH)]
    logged = {"data_loss": [], "penalty": [], "val_data_loss": [], "val_penalty": []}
    for _ in range(epochs):
        steps = []
        for i in range(0, len(X), BATCH):
            batch = slice(i, i + BATCH)
            with tf.GradientTape() as tape:
                data = data_loss(Y[batch], model(X[batch], training=True), weights[batch])
                penalty = tf.add_n(model.losses)
                loss = data + tf.cast(penalty, data.dtype)
            steps.append((float(data), float(penalty)))
            for variable, gradient in zip(
                model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True
            ):
                variable.assign_sub(rate * gradient)
        data, penalty = np.average(steps, axis=0, weights=sizes)
        logged["data_loss"].append(data)
        logged["penalty"].append(penalty)
        logged["val_data_loss"].append(float(data_loss(Y_VAL, model(X_VAL), np.ones(len(X_VAL), "float32"))))
        logged["val_penalty"].append(float(tf.add_n(model.losses)))
    return logged


def assert_logged(history, expected, validated=True, rtol=1e-5):
    prefixes = ("", "val_") if validated else ("",)
    for prefix in prefixes:
        for name in ("data_loss", "penalty"):
            np.testing.assert_allclose(
                history[prefix + name], expected[prefix + name], rtol=rtol, err_msg=prefix + name
            )
        parts = np.add(history[f"{prefix}data_loss"], history[f"{prefix}penalty"])
        np.testing.assert_allclose(history[f"{prefix}loss"], parts, rtol=1e-6)
    if not validated:
        assert not any(name.startswith("val_") for name in history)


def assert_same_training(model, plain):
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def state(model):
    """All that a PenaltyLogger might leave behind."""
    return {
        "compiled_loss": model.compiled_loss,
        "loss_state": dict(vars(model.compiled_loss)),
        "attributes": set(vars(model)) - {"_eval_data_handler"},  # Keras keeps that of a fit that failed
        "metrics": list(model.metrics),
        "metrics_names": list(model.metrics_names),
        "weights": [variable.ref() for variable in model.weights],
        "variables": [variable.ref() for variable in model.variables],
        "train_step": model.train_step,
        "test_step": model.test_step,
        "evaluate": model.evaluate(X_VAL, Y_VAL, verbose=0, return_dict=True).keys(),
        "evaluate_list": len(model.evaluate(X_VAL, Y_VAL, verbose=0)),
    }


class Calls(tf_keras.callbacks.Callback):
    """Calls a function in one hook."""

    def __init__(self, hook, function):
        super().__init__()
        setattr(self, hook, lambda *_: function())


# --- what is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "rate", "compiling"),
    [
        (HUGE, RATE, {}),
        pytest.param(HUGE, RATE, {"run_eagerly": True}, marks=pytest.mark.heavy),
        pytest.param(HUGE, RATE, {"jit_compile": True}, marks=pytest.mark.heavy),
        pytest.param(HUGE, RATE, {"steps_per_execution": 2}, marks=pytest.mark.heavy),
        pytest.param(L1(0.1), 0.1, {}, marks=pytest.mark.heavy),
    ],
    ids=["graph", "eager", "xla", "steps_per_execution", "small_penalty"],
)
def test_equals_loop_by_hand(kernel, rate, compiling):
    model, plain = build(kernel, rate, **compiling), build(kernel, rate, **compiling)
    history = fit(model, [PenaltyLogger()], validation_data=(X_VAL, Y_VAL))
    without = fit(plain, validation_data=(X_VAL, Y_VAL))
    assert_logged(history, by_hand(build(kernel, rate), rate=rate))
    assert list(history) == [
        *("loss", "data_loss", "penalty", "mae"),
        *("val_loss", "val_data_loss", "val_penalty", "val_mae"),
    ]
    for name, values in without.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
    assert_same_training(model, plain)


def test_no_validation_data():
    assert_logged(fit(build(), [PenaltyLogger()]), by_hand(build()), validated=False)


def test_sample_weights():
    weights = np.linspace(0, 3, len(X)).astype("float32")
    history = fit(build(), [PenaltyLogger()], sample_weight=weights)
    assert_logged(history, by_hand(build(), weights=weights), validated=False)


@pytest.mark.heavy
def test_class_weight():
    labels = np.arange(len(X)) % 2
    model = build(L2(0.1), 0.1)
    logged = model.fit(
        X, labels, BATCH, EPOCHS, shuffle=False, verbose=0, class_weight={0: 1.0, 1: 5.0}, callbacks=[PenaltyLogger()]
    ).history
    plain = build(L2(0.1), 0.1)
    weighted = plain.fit(
        X,
        labels,
        BATCH,
        EPOCHS,
        shuffle=False,
        verbose=0,
        sample_weight=1.0 + 4.0 * labels,
        callbacks=[PenaltyLogger()],
    ).history
    np.testing.assert_allclose(logged["data_loss"], weighted["data_loss"], rtol=1e-6)
    assert_same_training(model, plain)


@pytest.mark.heavy
def test_several_outputs():
    compiling = {"outputs": 2, "loss": ["mse", "mae"], "loss_weights": [0.5, 3.0]}

    def data_loss(y, predictions, weight):
        return 0.5 * mean_square(y, predictions[0], weight) + 3.0 * tf.reduce_mean(abs(predictions[1] - y))

    model, plain = build(**compiling), build(**compiling)
    history = fit(model, [PenaltyLogger()], validation_data=(X_VAL, [Y_VAL, Y_VAL]))
    without = fit(plain, validation_data=(X_VAL, [Y_VAL, Y_VAL]))
    assert_logged(history, by_hand(build(**compiling), data_loss))
    assert {"head0_loss", "head1_loss", "val_head0_loss", "val_head1_loss"} < set(history)
    for name, values in without.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
    assert_same_training(model, plain)


def with_every_kind(loss="mse"):
    """A model with bias, activity and kernel penalties, one on a nested model, and a user's add_loss."""
    tf_keras.utils.set_random_seed(1)
    inputs = tf_keras.Input((3,))
    inner = tf_keras.Sequential([tf_keras.layers.Dense(4, kernel_regularizer=L2(3.0), bias_regularizer=L1(1.0))])
    hidden = tf_keras.layers.Dense(4, activity_regularizer=L2(2.0))(inner(inputs))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(1)(hidden))
    model.add_loss(tf.reduce_mean(abs(hidden)))
    model.compile(tf_keras.optimizers.SGD(1e-3), loss)
    return model


def test_penalty_is_all_that_keras_adds():
    model = with_every_kind()
    history = fit(model, [PenaltyLogger()], validation_data=(X_VAL, Y_VAL))
    assert_logged(history, by_hand(with_every_kind(), rate=1e-3))
    plain = with_every_kind()
    fit(plain, validation_data=(X_VAL, Y_VAL))
    assert_same_training(model, plain)


def test_no_compiled_loss():
    history = with_every_kind(loss=None).fit(X, batch_size=BATCH, verbose=0, callbacks=[PenaltyLogger()]).history
    assert history["data_loss"] == [0.0]
    assert history["penalty"] == history["loss"]
    assert history["loss"][0] > 0


def test_no_penalty():
    history = fit(build(kernel=None), [PenaltyLogger()])
    assert history["penalty"] == [0.0] * EPOCHS
    assert history["data_loss"] == history["loss"]


@pytest.mark.heavy
def test_mixed_float16():
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        models = [build(L2(0.1), rate) for rate in (0.0, 0.0, 1e-3, 1e-3)]
        history = fit(models[0], [PenaltyLogger()])
        fit(models[2], [PenaltyLogger()])
        fit(models[3])
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert isinstance(models[0].optimizer, tf_keras.mixed_precision.LossScaleOptimizer)

    def data_loss(y, prediction, weight):
        return mean_square(tf.cast(y, "float16"), prediction, weight)

    # Without updates, because how many of them scaling the loss leaves out is another matter.
    assert_logged(history, by_hand(models[1], data_loss, rate=0.0), validated=False, rtol=1e-3)  # float16 has 11 bits
    assert_same_training(models[2], models[3])


class Subclassed(tf_keras.Model):
    """A model that is not built before its first step, with a choice of training and test steps."""

    def __init__(self, **steps):
        super().__init__()
        self.dense = tf_keras.layers.Dense(1, kernel_regularizer=L2(0.1), name="dense")
        for name, step in steps.items():
            object.__setattr__(self, name, step.__get__(self))

    def call(self, inputs):
        return self.dense(inputs)


def test_unbuilt_model():
    tf_keras.utils.set_random_seed(1)
    model = Subclassed()
    model.compile("sgd", "mse")
    history = fit(model, [PenaltyLogger()])
    np.testing.assert_allclose(np.add(history["data_loss"], history["penalty"]), history["loss"], rtol=1e-6)
    assert model.metrics_names == ["loss"]


def test_reduction_sum():
    sums = fit(build(L2(0.1), loss=tf_keras.losses.MeanSquaredError(reduction="sum")), [PenaltyLogger()])

    def data_loss(y, prediction, weight):
        return tf.reduce_sum((prediction - y) ** 2)

    assert_logged(sums, by_hand(build(L2(0.1)), data_loss), validated=False)


# --- each weight's own penalty ----------------------------------------------------------------------------------------


class Chain(tf_keras.Model):
    """Some layers, one after another."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def call(self, inputs):
        return functools.reduce(lambda outputs, layer: layer(outputs), self.chain, inputs)


def nested(rate=0.1, built=True, **compiling):
    """A layer that is shared between the model and one inside it, a nested layer of two weights, and a frozen one."""
    tf_keras.utils.set_random_seed(1)
    shared = tf_keras.layers.Dense(3, "tanh", kernel_regularizer=L2(0.3), name="shared")
    both = tf_keras.layers.Dense(3, kernel_regularizer=L1(0.1), bias_regularizer=L2(0.7), name="both")
    frozen = tf_keras.layers.Dense(1, None, True, "ones", kernel_regularizer=L2(5.0), name="frozen", trainable=False)
    inner = tf_keras.Sequential([tf_keras.Input((3,)), shared, both], name="inner")
    model = Chain([shared, inner, frozen])
    if built:
        model.build([None, 3])
    model.compile(tf_keras.optimizers.SGD(rate), "mse", metrics=["mae"], **compiling)
    return model


PATHS = ["shared/kernel", "inner/both/kernel", "inner/both/bias", "frozen/kernel"]


def oracle(model):
    shared, both, frozen = (model.get_layer("shared"), model.get_layer("inner").layers[1], model.get_layer("frozen"))
    kernels = [np.float64(layer.kernel.numpy()) for layer in (shared, both, frozen)]
    bias = np.float64(both.bias.numpy())
    return [
        0.3 * (kernels[0] ** 2).sum(),
        0.1 * abs(kernels[1]).sum(),
        0.7 * (bias**2).sum(),
        5.0 * (kernels[2] ** 2).sum(),
    ]


def weights_by_hand(model, epochs=EPOCHS):
    """The means of the penalties before each update, by the sizes of the batches, and those of each epoch's end."""
    batches = [slice(i, i + BATCH) for i in range(0, len(X), BATCH)]
    means, ends = [], []
    for _ in range(epochs):
        steps = []
        for batch in batches:
            steps.append(oracle(model))
            model.train_on_batch(X[batch], Y[batch])
        means.append(np.average(steps, axis=0, weights=[len(X[batch]) for batch in batches]))
        ends.append(oracle(model))
    return np.transpose(means), np.transpose(ends)


def assert_weights_logged(history, model):
    for prefix, values in zip(("", "val_"), weights_by_hand(model), strict=True):
        for path, expected in zip(PATHS, values, strict=True):
            np.testing.assert_allclose(history[prefix + path], expected, rtol=1e-5, err_msg=prefix + path)
        np.testing.assert_allclose(sum(np.array(history[prefix + path]) for path in PATHS), history[f"{prefix}penalty"])


@pytest.mark.parametrize(
    "building",
    [{}, {"built": False}, {"run_eagerly": True, "built": False}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=["graph", "unbuilt", "eager", "xla", "steps_per_execution"],
)
@pytest.mark.light(building=[{}])
def test_per_weight(building):
    model = nested(**building)
    history = fit(model, [PenaltyLogger(per_weight=True)], validation_data=(X_VAL, Y_VAL))
    names = ["loss", "data_loss", "penalty", *PATHS, "mae"]
    assert list(history) == names + [f"val_{name}" for name in names]
    assert list(penalties(model)) == PATHS
    assert_weights_logged(history, nested())
    plain = nested(**building)
    fit(plain)
    assert_same_training(model, plain)


def test_per_weight_in_evaluate_and_beside_others(capsys):
    """Whichever stands first; and one without `per_weight` logs the two alone, before and after."""
    model, names = nested(), ["loss", "data_loss", "penalty", "mae"]
    loggers = [PenaltyLogger(), PenaltyLogger(per_weight=True)]
    for chosen in (loggers[:1], loggers, loggers[::-1], loggers[:1]):
        paths = PATHS if len(chosen) > 1 else []
        logs = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=chosen, return_dict=True)
        assert list(logs) == [*names[:3], *paths, "mae"]
        np.testing.assert_allclose([logs[path] for path in paths], oracle(model)[: len(paths)], rtol=1e-5)
        history = fit(model, chosen, epochs=1, verbose=1)
        assert list(history) == list(logs)
        last = capsys.readouterr().out.rstrip().splitlines()[-1].rpartition("\r")[2]
        assert all(f"- {name}: {history[name][-1]:.4f}" in last for name in history)  # no mean of means
        assert not any(name in last for name in set(PATHS).difference(paths))


def test_per_weight_among_penalties_of_other_kinds():
    model = with_every_kind()
    history = fit(model, [PenaltyLogger(per_weight=True)], epochs=1)
    paths = list(penalties(model))
    assert list(history) == ["loss", "data_loss", "penalty", *paths]
    assert len(paths) == 2
    logs = model.evaluate(X, Y, verbose=0, callbacks=[PenaltyLogger(per_weight=True)], return_dict=True)
    for path, value in penalties(model).items():
        np.testing.assert_allclose(logs[path], float(value), rtol=1e-6)


@pytest.mark.heavy
def test_per_weight_of_the_sample_that_is_penalized():
    sampled = SampledOrthogonalRegularizer(0.1, sample_size=4)
    layer = tf_keras.layers.Dense(60, kernel_regularizer=sampled, name="wide")
    model = tf_keras.Sequential([tf_keras.Input((3,)), layer, tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = fit(model, [PenaltyLogger(per_weight=True)])
    assert history["wide/kernel"] == history["penalty"]
    assert len(set(history["penalty"])) == EPOCHS


def test_per_weight_where_a_step_adds_the_penalties_up():
    def run(self, data):
        x, y, *_ = data
        y_pred = self(x, training=True)
        return {"loss": self.compiled_loss(y, y_pred, regularization_losses=[tf.add_n(self.losses)])}

    model = subclassed(train_step=run)
    history = fit(model, [PenaltyLogger(per_weight=True)])
    np.testing.assert_allclose(history["dense/kernel"], history["penalty"], rtol=1e-6)


def test_per_weight_without_regularized_weights():
    assert list(fit(build(kernel=None), [PenaltyLogger(per_weight=True)])) == ["loss", "data_loss", "penalty", "mae"]


@pytest.mark.heavy
def test_per_weight_of_regularizers_set_in_between(tmp_path):
    model = build(L2(0.1), 0.0)

    def change(epoch):
        set_regularizers(
            model, kernel_regularizer=[None, L1(1.0), None][epoch], where=lambda layer: layer.name == "head0"
        )

    expected = float(model.losses[0]), abs(model.get_layer("head0").kernel.numpy()).sum()
    changing = tf_keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: change(epoch) if epoch else None)
    saving = tf_keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, [changing, PenaltyLogger(per_weight=True), saving], epochs=3)
    np.testing.assert_allclose(history["hidden/kernel"], [expected[0]] * 3, rtol=1e-6)
    np.testing.assert_allclose(history["head0/kernel"], [expected[1], 0.0], rtol=1e-6)


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.light(built=[True])
def test_path_taken(built):
    model = Subclassed()
    model.compile("sgd", "mse", metrics=[tf_keras.metrics.MeanAbsoluteError(name="dense/kernel")])
    if built:
        model.build([None, 3])
    with pytest.raises(ValueError, match=r"cannot log 'dense/kernel': .* has a metric"):
        fit(model, [PenaltyLogger(per_weight=True)])
    fit(model, [PenaltyLogger()])

    class Own(Subclassed):
        def build(self, shape):
            self.own = self.add_weight("penalty", [2], regularizer=L2(0.1))
            super().build(shape)

    model = Own()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"cannot log 'penalty': .* has a regularized weight of that path"):
        fit(model, [PenaltyLogger(per_weight=True)])


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_per_weight_is_a_bool(value):
    with pytest.raises(ValueError, match=r"Invalid value for argument `per_weight`\. Expected True or False"):
        PenaltyLogger(per_weight=value)


# --- loops, epochs and evaluation -------------------------------------------------------------------------------------


def test_initial_epoch_and_same_object_twice():
    callback = PenaltyLogger()
    model = build()
    first = fit(model, [callback], epochs=1)
    second = fit(model, [callback], epochs=3, initial_epoch=1)
    expected = by_hand(build(), epochs=3)
    for name in ("data_loss", "penalty"):
        np.testing.assert_allclose(first[name] + second[name], expected[name], rtol=1e-5)


@pytest.mark.heavy
def test_validation_freq():
    history = fit(build(), [PenaltyLogger()], epochs=4, validation_data=(X_VAL, Y_VAL), validation_freq=2)
    assert len(history["data_loss"]) == 4
    assert len(history["val_data_loss"]) == 2


@pytest.mark.heavy
def test_dataset_callback_list_and_positional_callbacks():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)
    model = build()
    callbacks = tf_keras.callbacks.CallbackList([PenaltyLogger()], add_history=True, model=model)
    model.fit(data, epochs=EPOCHS, callbacks=callbacks)
    positional = build().fit(X, Y, BATCH, EPOCHS, 0, PenaltyLogger(), shuffle=False).history
    expected = by_hand(build())
    assert_logged(model.history.history, expected, validated=False)
    assert_logged(positional, expected, validated=False)


def test_evaluate():
    model = build(L2(0.1))
    fit(model)
    before = state(model)
    logs = model.evaluate(X_VAL, Y_VAL, BATCH, verbose=0, callbacks=[PenaltyLogger()], return_dict=True)
    assert list(logs) == ["loss", "data_loss", "penalty", "mae"]
    assert state(model) == before
    values = model.evaluate(X_VAL, Y_VAL, BATCH, verbose=0, callbacks=[PenaltyLogger()])
    names = [*model.metrics_names, "data_loss", "penalty"]
    assert values == [logs[name] for name in names]
    np.testing.assert_allclose(logs["penalty"], float(tf.add_n(model.losses)), rtol=1e-6)
    np.testing.assert_allclose(logs["data_loss"], np.mean((model.predict(X_VAL, verbose=0) - Y_VAL) ** 2), rtol=1e-5)
    model.predict(X_VAL, verbose=0, callbacks=[PenaltyLogger()])
    assert state(model) == before


@pytest.mark.parametrize("metrics", [["mae"], []], ids=["metrics", "no_metrics"])
@pytest.mark.heavy
def test_other_callbacks_evaluate_as_before(metrics):
    model, plain = build(L2(0.1), metrics=metrics), build(L2(0.1), metrics=metrics)
    seen = {}
    for name, subject, callbacks in [("with", model, [PenaltyLogger()]), ("without", plain, [])]:

        def evaluate(name=name, subject=subject):
            seen[name] = [subject.evaluate(X_VAL, Y_VAL, verbose=0, return_dict=as_dict) for as_dict in (False, True)]

        fit(subject, [*callbacks, Calls("on_epoch_end", evaluate)], epochs=1)
    assert seen["with"] == seen["without"]


# --- other callbacks --------------------------------------------------------------------------------------------------


def test_progress_bar_csv_and_any_order(tmp_path, capsys):
    callbacks = [
        tf_keras.callbacks.CSVLogger(tmp_path / "before.csv"),
        PenaltyLogger(),
        tf_keras.callbacks.CSVLogger(tmp_path / "after.csv"),
    ]
    history = fit(build(L2(0.1)), callbacks, validation_data=(X_VAL, Y_VAL), verbose=1)
    before, after = [(tmp_path / name).read_text() for name in ("before.csv", "after.csv")]
    assert before == after
    rows = list(csv.DictReader(before.splitlines()))
    for name in ("data_loss", "penalty", "val_data_loss", "val_penalty"):
        assert [float(row[name]) for row in rows] == history[name]
    # The last line of each epoch shows the means, no mean of means.
    last = capsys.readouterr().out.rstrip().splitlines()[-1].rpartition("\r")[2]
    for name in ("loss", "data_loss", "penalty", "val_data_loss", "val_penalty"):
        assert f"- {name}: {history[name][-1]:.4f}" in last


@pytest.mark.heavy
def test_tensorboard(tmp_path):
    callbacks = [tf_keras.callbacks.TensorBoard(str(tmp_path)), PenaltyLogger()]
    history = fit(build(L2(0.1)), callbacks, validation_data=(X_VAL, Y_VAL))
    found = {}
    for file in tmp_path.glob("*/events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.tag.startswith("epoch_"):
                    found.setdefault((file.parent.name, value.tag), []).append(float(tf.make_ndarray(value.tensor)))
    for name in ("loss", "data_loss", "penalty"):
        np.testing.assert_allclose(found["train", f"epoch_{name}"], history[name], rtol=1e-6)
        np.testing.assert_allclose(found["validation", f"epoch_{name}"], history[f"val_{name}"], rtol=1e-6)


@pytest.mark.heavy
def test_early_stopping_and_plateau():
    model = build(kernel=None, rate=0.0)  # nothing moves, so nothing improves
    stopping = tf_keras.callbacks.EarlyStopping("val_data_loss", patience=1, mode="min")
    plateau = tf_keras.callbacks.ReduceLROnPlateau("val_penalty", patience=1, mode="min")
    history = fit(model, [stopping, plateau, PenaltyLogger()], epochs=9, validation_data=(X_VAL, Y_VAL))
    assert len(history["val_data_loss"]) == 2
    assert state(model)["metrics_names"] == ["loss", "mae"]


def variables_in(path):
    if path.is_dir():
        names = [name for name, _ in tf.train.list_variables(str(path / "variables/variables"))]
        # Keras numbers the metrics by their places in model.metrics.
        return sorted("metrics" if "keras_api/metrics" in name else name for name in names)
    content = path.read_bytes()
    if path.suffix == ".keras":
        content = zipfile.ZipFile(path).read("model.weights.h5")
    names = []
    with h5py.File(io.BytesIO(content)) as file:
        file.visit(names.append)
    return names


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model", "model.weights.h5"])
@pytest.mark.heavy
def test_files_saved_meanwhile_are_as_without(name, tmp_path):
    for folder, callbacks in [("with", [PenaltyLogger()]), ("without", [])]:
        tf_keras.backend.clear_session()
        checkpoint = tf_keras.callbacks.ModelCheckpoint(
            str(tmp_path / folder / name), monitor="loss", mode="max", save_weights_only="weights" in name
        )
        model = build(L2(0.1), metrics=["mae", tf_keras.metrics.MeanSquaredError()])
        (tmp_path / folder).mkdir()
        fit(model, [*callbacks, checkpoint], epochs=1)
    assert variables_in(tmp_path / "with" / name) == variables_in(tmp_path / "without" / name)
    if "weights" not in name:
        loaded = tf_keras.models.load_model(tmp_path / "with" / name)
        np.testing.assert_allclose(loaded.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0), rtol=1e-6)
        assert loaded.metrics_names == model.metrics_names


def test_copies_and_weights_meanwhile():
    model = build(L2(0.1))
    seen = []

    def look():
        clone = copy.deepcopy(model)
        seen.append((len(model.weights), len(model.variables), len(clone.weights)))
        seen.append(type(clone.compiled_loss) if clone.compiled_loss else None)

    fit(model, [PenaltyLogger(), Calls("on_epoch_end", look)], epochs=1)
    assert seen[0] == (4, 4, 4)
    assert seen[1] in (None, type(model.compiled_loss))


@pytest.mark.heavy
def test_backup_and_restore(tmp_path):
    epochs = iter(range(EPOCHS))

    def interrupt_the_second():
        if next(epochs) == 1:
            raise KeyboardInterrupt

    callbacks = [PenaltyLogger(), tf_keras.callbacks.BackupAndRestore(str(tmp_path))]
    with pytest.raises(KeyboardInterrupt):
        fit(build(), [*callbacks, Calls("on_epoch_begin", interrupt_the_second)])
    resumed, expected = fit(build(), callbacks), by_hand(build())
    for name in ("data_loss", "penalty"):
        np.testing.assert_allclose(resumed[name], expected[name][1:], rtol=1e-5)


# --- it undoes what it did --------------------------------------------------------------------------------------------


def test_everything_is_as_before_after_fit():
    model, plain = build(L2(0.1), 0.1), build(L2(0.1), 0.1)
    fit(model)
    fit(plain)
    before = state(model)
    fit(model, [PenaltyLogger()], validation_data=(X_VAL, Y_VAL))
    fit(plain, validation_data=(X_VAL, Y_VAL))
    assert state(model) == before
    assert fit(model) == fit(plain)


@pytest.mark.parametrize(
    ("hook", "error", "order"),
    [
        ("on_train_begin", ZeroDivisionError, 1),
        ("on_train_begin", KeyboardInterrupt, -1),
        ("on_train_batch_begin", KeyboardInterrupt, 1),
        ("on_test_batch_end", ZeroDivisionError, -1),
        ("on_epoch_end", KeyboardInterrupt, -1),
        ("on_train_end", ZeroDivisionError, 1),
    ],
)
@pytest.mark.heavy
def test_undone_after_exception_in_another_callback(hook, error, order):
    def fail():
        raise error

    validation = {"epochs": 1, "validation_data": (X_VAL, Y_VAL)}
    before, after = {}, {}
    for name, callbacks in [("with", [PenaltyLogger()]), ("without", [])]:
        model = build(L2(0.1), 0.1)
        fit(model, epochs=1)
        before[name] = state(model)
        with pytest.raises(error) as caught:  # which keeps the frames of the fit alive
            fit(model, [*callbacks, Calls(hook, fail)][::order], **validation)
        assert state(model) == before[name]
        vars(model).pop("_eval_data_handler", None)
        after[name] = fit(model, **validation), caught.type
    assert after["with"] == after["without"]


@pytest.mark.parametrize("compiling", [{}, {"run_eagerly": True}], ids=["graph", "eager"])
@pytest.mark.light(compiling=[{}])
def test_undone_after_exception_in_the_data(compiling):
    def batches():
        yield X[:BATCH], Y[:BATCH]
        raise ZeroDivisionError

    signature = tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1])
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    model = build(**compiling)
    fit(model)
    before = state(model)
    with pytest.raises(tf.errors.OpError, match="ZeroDivisionError"):
        model.fit(data, verbose=0, callbacks=[PenaltyLogger()])
    assert state(model) == before
    with pytest.raises(tf.errors.OpError, match="ZeroDivisionError"):
        model.evaluate(data, verbose=0, callbacks=[PenaltyLogger()])
    assert state(model) == before


@pytest.mark.heavy
def test_undone_after_bad_validation_data():
    model = build()
    fit(model)
    before = state(model)
    with pytest.raises(ValueError, match="incompatible"):
        fit(model, [PenaltyLogger()], validation_data=(X_VAL[:, :2], Y_VAL))
    assert state(model) == before


def test_undone_after_exception_in_a_first_fit():
    model = build()
    compiled_loss, attributes = model.compiled_loss, set(vars(model))

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(model, [PenaltyLogger(), Calls("on_train_begin", fail)])
    assert model.compiled_loss is compiled_loss
    assert model.metrics_names == []
    assert set(vars(model)) <= attributes | {"history", "stop_training"}


@pytest.mark.heavy
def test_compile_in_a_callback_stays():
    model = build()
    fit(model, [PenaltyLogger(), Calls("on_train_end", lambda: model.compile("adam", "mae"))])
    assert model.loss == "mae"
    assert model.compiled_loss._user_losses == "mae"
    fit(model, epochs=1)
    assert model.metrics_names == ["loss"]


def test_fit_and_evaluate_keep_names_signatures_and_errors():
    assert tf_keras.Model.fit.__name__ == "fit"
    model = build()
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'"):
        model.fit(X, Y, epoch=3)
    uncompiled = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    with pytest.raises(RuntimeError, match="compile"):
        uncompiled.fit(X, Y, callbacks=[PenaltyLogger()])


def test_pickle():
    assert "penalty" in fit(build(), [pickle.loads(pickle.dumps(PenaltyLogger()))])


# --- steps of the user's own ------------------------------------------------------------------------------------------


def guide_step(self, data):
    """As the guide to customizing fit has it; it feeds its predictions to all metrics but `loss`."""
    x, y = data
    with tf.GradientTape() as tape:
        y_pred = self(x, training=True)
        loss = self.compute_loss(y=y, y_pred=y_pred)
    self.optimizer.apply_gradients(
        zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
    )
    for metric in self.metrics:
        if metric.name == "loss":
            metric.update_state(loss)
        else:
            metric.update_state(y, y_pred)
    return {metric.name: metric.result() for metric in self.metrics}


def step(penalties=True, compiled=True, results=True):
    """A train_step and test_step that may leave out a part of what PenaltyLogger needs."""

    def run(self, data):
        x, y, *_ = data
        with tf.GradientTape() as tape:
            y_pred = self(x)
            if compiled:
                loss = self.compiled_loss(y, y_pred, regularization_losses=self.losses if penalties else None)
            else:
                loss = tf.reduce_mean((y - y_pred) ** 2)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {metric.name: metric.result() for metric in self.metrics} if results else loss

    return run


def subclassed(*args, run_eagerly=False, **steps):
    tf_keras.utils.set_random_seed(1)
    model = Subclassed(*args, **steps)
    model.build([None, 3])
    model.compile(tf_keras.optimizers.SGD(0.01), "mse", run_eagerly=run_eagerly)
    return model


@pytest.mark.parametrize("run", [guide_step, step()], ids=["guide", "compiled_loss"])
def test_own_step_through_the_compiled_loss(run):
    history = fit(subclassed(train_step=run), [PenaltyLogger()])
    expected = by_hand(subclassed(), rate=0.01)
    for name in ("data_loss", "penalty"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("name", ["train_step", "test_step"])
@pytest.mark.parametrize(
    ("leaves_out", "says"),
    [
        ({"compiled": False}, "computes its loss without them"),
        ({"penalties": False}, "gives `self.compiled_loss` no `regularization_losses`"),
        ({"results": False}, "does not return a dict"),
    ],
    ids=["compiled_loss", "penalties", "results"],
)
@pytest.mark.light(run_eagerly=[False], name=["train_step"], says=["does not return a dict"])
def test_own_step_past_the_compiled_loss(name, leaves_out, says, run_eagerly):
    model = subclassed(**{name: step(**leaves_out)}, run_eagerly=run_eagerly)
    loss, weights = model.compiled_loss, model.get_weights()
    with pytest.raises(ValueError, match="PenaltyLogger cannot tell") as caught:
        fit(model, [PenaltyLogger()], epochs=1, validation_data=(X_VAL, Y_VAL))
    assert f"a Subclassed with a `{name}` that {says}" in str(caught.value)
    assert model.compiled_loss is loss
    if name == "train_step" and not run_eagerly:
        np.testing.assert_array_equal(model.get_weights()[0], weights[0])


@pytest.mark.parametrize("hides", ["metrics", "results"])
@pytest.mark.light(hides=["metrics"])
def test_own_step_that_logs_something_else(hides):
    class Hiding(Subclassed):
        if hides == "metrics":
            metrics = ()

        def train_step(self, data):
            super().train_step(data)
            return {} if hides == "metrics" else {"steps": tf.constant(1.0)}

    tf_keras.utils.set_random_seed(1)
    model = Hiding()
    model.build([None, 3])
    model.compile(tf_keras.optimizers.SGD(0.01), "mse")
    history = fit(model, [PenaltyLogger()])
    assert list(history) == ["data_loss", "penalty"] + ["steps"] * (hides == "results")
    expected = by_hand(subclassed(), rate=0.01)
    for name in ("data_loss", "penalty"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("kind", ["metric", "output"])
@pytest.mark.light(kind=["metric"])
def test_name_taken(kind):
    if kind == "metric":
        model = build(metrics=[tf_keras.metrics.MeanAbsoluteError(name="penalty")])
    else:
        inputs = tf_keras.Input((3,))
        outputs = [tf_keras.layers.Dense(1, name=name)(inputs) for name in ("data", "other")]
        model = tf_keras.Model(inputs, outputs)
        model.compile("sgd", "mse")
    taken = {"metric": "penalty", "output": "data_loss"}[kind]
    with pytest.raises(ValueError, match=f"cannot log '{taken}'"):
        fit(model, [PenaltyLogger()])
    fit(model)


@needs_keras3
def test_keras_3():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="PenaltyLogger is for models of tf_keras"):
        model.fit(X, Y, callbacks=[PenaltyLogger()], verbose=0)


def test_another_loop():
    callbacks = tf_keras.callbacks.CallbackList([PenaltyLogger()], model=build())
    with pytest.raises(RuntimeError, match=r"works inside `Model\.fit`"):
        callbacks.on_train_begin()


# --- replicas ---------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_mirrored(run_python):
    program = """
        import numpy as np
        import tensorflow as tf
        import tf_keras

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

        from tfk_regularizers import L2, PenaltyLogger

        x = np.random.RandomState(0).randn(22, 3).astype("float32")
        y = x[:, :1]

        def run(strategy, callbacks, built=False, **compiling):
            tf_keras.utils.set_random_seed(1)
            with strategy.scope():
                layers = [tf_keras.layers.Dense(4, kernel_regularizer=L2(1e3)), tf_keras.layers.Dense(1)]
                layers[1].kernel_regularizer = L2(2e3)
                model = tf_keras.Sequential(layers, name="model")
                if built:
                    model.build([None, 3])
                model.compile(tf_keras.optimizers.SGD(1e-5), "mse", **compiling)
            return model, model.fit(
                x, y, 8, 2, shuffle=False, verbose=0, validation_data=(x[:9], y[:9]), callbacks=callbacks
            ).history

        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert mirrored.num_replicas_in_sync == 2
        tf_keras.backend.clear_session()
        _, one = run(tf.distribute.get_strategy(), [PenaltyLogger(per_weight=True)])
        assert list(one)[3:5] == ["dense/kernel", "dense_1/kernel"], one
        for compiling in ({}, {"steps_per_execution": 2}, {"built": True}):
            plain, without = run(mirrored, [], **compiling)
            tf_keras.backend.clear_session()
            model, two = run(mirrored, [PenaltyLogger(per_weight=True)], **compiling)
            assert list(two) == list(one)
            assert model.metrics_names == ["loss"], model.metrics_names
            for name in one:
                np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
            for name in without:
                np.testing.assert_allclose(two[name], without[name], rtol=1e-6, err_msg=name)
            for ours, theirs in zip(model.get_weights(), plain.get_weights()):
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        print("same")
    """
    assert "same" in run_python("-c", textwrap.dedent(program), TF_CPP_MIN_LOG_LEVEL="3")


class Patch:
    """A patch of `Model.fit`, as experiment trackers put it on and take it off."""

    def __init__(self):
        self.calls, self.before = 0, tf_keras.Model.fit

        @functools.wraps(self.before)
        def fit(*args, **kwargs):
            self.calls += 1
            return self.before(*args, **kwargs)

        tf_keras.Model.fit = fit

    def take_off(self):
        tf_keras.Model.fit = self.before


def test_models_methods_are_not_touched():
    assert tf_keras.Model.fit.__module__ == tf_keras.Model.evaluate.__module__ == tf_keras.Model.__module__
    register()
    assert tf_keras.Model.fit.__wrapped__.__code__.co_filename.endswith("training.py")


@pytest.mark.heavy
def test_others_patch_fit():
    """Before, in between and after, and whatever they put back."""
    expected = fit(build(), [PenaltyLogger()])
    first = Patch()
    assert fit(build(), [PenaltyLogger()]) == expected
    second = Patch()
    assert fit(build(), [PenaltyLogger()]) == expected
    first.take_off()  # and with it the second, as it happens
    assert fit(build(), [PenaltyLogger()]) == expected
    second.take_off()
    assert fit(build(), [PenaltyLogger()]) == expected
    first.take_off()
    assert (first.calls, second.calls) == (3, 1)


@pytest.mark.usefixtures("restored")
def test_without_registration():
    unregister()
    assert set(fit(build(), [PenaltyLogger()])) == {"loss", "data_loss", "penalty", "mae"}


@pytest.mark.heavy
def test_two_of_them_and_one_list_for_several_calls():
    expected = fit(build(), [PenaltyLogger()], validation_data=(X_VAL, Y_VAL))
    assert fit(build(), [PenaltyLogger(), PenaltyLogger()], validation_data=(X_VAL, Y_VAL)) == expected
    model = build()
    callbacks = tf_keras.callbacks.CallbackList([PenaltyLogger()], add_history=True, model=model)
    for compiled_again in (False, True, False):
        if compiled_again:
            model.compile(tf_keras.optimizers.SGD(RATE), "mae")
        fit(model, callbacks, validation_data=(X_VAL, Y_VAL))
        logs = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=callbacks, return_dict=True)
        assert logs["penalty"] == model.history.history["val_penalty"][-1]
        np.testing.assert_allclose(logs["data_loss"] + logs["penalty"], logs["loss"], rtol=1e-6)


@pytest.mark.parametrize("trains", [True, False], ids=["fit", "evaluate"])
@pytest.mark.heavy
def test_undone_where_no_hook_is_called_any_more(trains):
    """Keras looks at validation data between two hooks; what comes next is as if nothing had been there."""
    model, plain = build(L2(0.1)), build(L2(0.1))
    for subject, callbacks in [(model, [PenaltyLogger()]), (plain, [])]:
        if trains:
            call = functools.partial(fit, subject, callbacks, validation_data=(X_VAL, Y_VAL[:2]))
        else:
            fit(subject, validation_data=(X_VAL, Y_VAL))
            call = functools.partial(subject.evaluate, X_VAL, Y_VAL[:2], verbose=0, callbacks=callbacks)
        with pytest.raises(ValueError, match="cardinality"):
            call()
    assert model.evaluate(X_VAL, Y_VAL, verbose=0) == plain.evaluate(X_VAL, Y_VAL, verbose=0)
    assert set(vars(model)) == set(vars(plain))
    assert model.train_function is not None
    assert fit(model, validation_data=(X_VAL, Y_VAL)) == fit(plain, validation_data=(X_VAL, Y_VAL))


@pytest.mark.heavy
def test_one_list_of_callbacks_for_two_models():
    """Keras hands a list on to whichever model it is passed to; the parts are those of the model that runs."""
    models = [build(L2(0.1), 0.1), build(L2(10.0), 0.001)]
    alone = [fit(build(L2(0.1), 0.1), [PenaltyLogger()]), fit(build(L2(10.0), 0.001), [PenaltyLogger()])]
    callbacks = tf_keras.callbacks.CallbackList([PenaltyLogger(), tf_keras.callbacks.History()], model=models[0])
    for model, expected in zip(models, alone, strict=True):
        model.fit(X, Y, BATCH, EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
        assert callbacks.callbacks[1].history == expected
        callbacks.callbacks[1].history = {}
        step = model.train_function
        logs = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=callbacks, return_dict=True)
        np.testing.assert_allclose(logs["penalty"], float(tf.add_n(model.losses)), rtol=1e-6)
        assert model.train_function is step


@pytest.mark.heavy
def test_traced_once_and_with_the_random_numbers_of_one_training():
    """Also where each epoch is a `fit` of its own."""
    logged = []
    for callbacks in ([], [PenaltyLogger()]):
        tf_keras.utils.set_random_seed(1)
        traces = []

        class Noisy(tf_keras.layers.Layer):
            def call(self, inputs, traces=traces):
                traces.append(1)
                return inputs + tf.random.normal(tf.shape(inputs))

        model = tf_keras.Sequential([tf_keras.Input((3,)), Noisy(), tf_keras.layers.Dense(1, kernel_regularizer="l2")])
        model.compile(tf_keras.optimizers.SGD(0.0), "mse")
        before = len(traces)
        losses = [fit(model, [*callbacks], epochs=1)["loss"][0] for _ in range(4)]
        assert len(set(losses)) == 4
        assert len(traces) - before <= 2  # the last batch is smaller
        logged.append(losses)
    assert logged[0] == logged[1]


@pytest.mark.parametrize("first", ["logged", "plain"])
def test_step_that_is_a_tf_function(first):
    class Traced(Subclassed):
        @tf.function
        def train_step(self, data):
            return super().train_step(data)

    tf_keras.utils.set_random_seed(1)
    model = Traced()
    model.build([None, 3])
    model.compile(tf_keras.optimizers.SGD(0.01), "mse")
    histories = [fit(model, [PenaltyLogger()] * (first == "logged" or turn > 0), epochs=1) for turn in range(2)]
    expected = by_hand(subclassed(), rate=0.01)
    for name in ("data_loss", "penalty"):
        logged = [value for history in histories for value in history.get(name, [])]
        np.testing.assert_allclose(logged, expected[name][-len(logged) :], rtol=1e-5)


def test_function_that_bypasses_the_step():
    class Own(Subclassed):
        def make_train_function(self, force=False):
            def run(iterator):
                x, y = next(iterator)
                return {"loss": tf.reduce_mean((self(x) - y) ** 2)}

            self.train_function = run
            return run

    model = Own()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`make_train_function` whose function does not call `train_step`"):
        fit(model, [PenaltyLogger()])
    assert fit(model)["loss"]


class Forwarding(tf_keras.callbacks.Callback):
    """A callback that hands the calls of some hooks on to another one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def set_model(self, model):
        self.inner.set_model(model)

    def on_train_begin(self, logs=None):
        self.inner.on_train_begin(logs)

    def on_test_begin(self, logs=None):
        self.inner.on_test_begin(logs)


class LateForwarding(Forwarding):
    """One that does not even hand the model on."""

    def set_model(self, model):
        self.inner.model = model


@pytest.mark.parametrize("cls", [Forwarding, LateForwarding])
@pytest.mark.heavy
def test_inside_another_callback(cls):
    expected = fit(build(), [PenaltyLogger()], validation_data=(X_VAL, Y_VAL))
    assert fit(build(), [cls(PenaltyLogger())], validation_data=(X_VAL, Y_VAL)) == expected
    model = build()
    fit(model)
    assert "data_loss" in model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[cls(PenaltyLogger())], return_dict=True)


def test_other_callbacks_keep_their_attributes():
    other = tf_keras.callbacks.Callback()
    other.stateful_metrics = ["mae"]
    fit(build(), [other, PenaltyLogger()])
    assert other.stateful_metrics == ["mae"]


def test_interrupted_at_any_line_of_a_step():
    """The model keeps its loss and its step, wherever Ctrl-C comes."""
    model = build()
    fit(model)
    loss, step = model.compiled_loss, model.train_step
    attributes = {"compiled_loss": "other", "train_step": "other", "new": 1}
    code = training.in_place.__wrapped__.__code__
    lines = {line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno}

    def interrupt(at, frame, event, argument):
        if frame.f_code is code and event == "line" and frame.f_lineno == at:
            raise KeyboardInterrupt
        return functools.partial(interrupt, at)

    for line in sorted(lines):
        sys.settrace(functools.partial(interrupt, line))
        try:
            with contextlib.suppress(KeyboardInterrupt), training.in_place(model, **attributes):
                pass
        finally:
            sys.settrace(None)
        assert hasattr(model, "compiled_loss")
        vars(model).update(compiled_loss=loss)
        for name in ("train_step", "new"):
            vars(model).pop(name, None)
    assert model.train_step == step


def test_hooks_find_the_step_that_runs():
    """TensorBoard draws it."""
    model, traces = build(), []
    look = Calls("on_train_batch_end", lambda: traces.append(model.train_tf_function.experimental_get_tracing_count()))
    fit(model, [look, PenaltyLogger()], epochs=1)
    assert traces
    assert min(traces) > 0
    assert model.train_tf_function.experimental_get_tracing_count() == 0


@pytest.mark.parametrize("inside", ["evaluate", "set_regularizers"])
def test_a_running_fit_goes_on(inside):
    """Both forget what is traced, and may be called by a callback of a fit that is traced already."""

    class Inside(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if inside == "evaluate":
                self.model.evaluate(X, Y, verbose=0, callbacks=[PenaltyLogger()])
            else:
                set_regularizers(self.model, kernel_regularizer=L2(float(epoch)))

    model = tf_keras.Sequential([tf_keras.layers.Dense(1, kernel_initializer="ones", input_shape=(3,))])
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    loss = model.fit(X, Y, epochs=3, verbose=0, callbacks=[Inside()]).history["loss"]
    grows = 3.0 if inside == "set_regularizers" else 0.0  # the sum of squares of the kernel
    assert np.diff(loss) == pytest.approx([grows, grows], rel=1e-5, abs=1e-5)
