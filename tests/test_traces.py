"""The warning where a factor is set that a traced function goes on without; and none where it takes effect."""

import pickle
import textwrap
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2

X, Y = np.zeros((4, 3), "float32"), np.zeros((4, 2), "float32")
frozen = pytest.warns(UserWarning, match=r"goes on with the value.*Compile.*set_regularizers.*Variable.*Scheduler")


def build(regularizer, **compiling):
    layer = tf_keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", kernel_regularizer=regularizer)
    model = tf_keras.Sequential([tf_keras.Input((3,)), layer])
    model.compile(tf_keras.optimizers.SGD(0.0), "mse", **compiling)
    return model


def fit(model):
    return model.fit(X, Y, verbose=0).history["loss"][0]


def test_once_a_trace_at_the_line_that_sets_it():
    penalty = L2(0.5)
    model = build(penalty)
    assert fit(model) == 3.0
    with frozen as caught:
        penalty.l2 = 1.0
    assert [warning.filename for warning in caught] == [__file__]
    assert fit(model) == 3.0
    penalty.l2 = 2.0
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    assert fit(model) == 12.0
    with frozen:
        penalty.l2 = 1.0


REMEDIES = {
    "compile": lambda model, penalty: model.compile(tf_keras.optimizers.SGD(0.0), "mse"),
    "set_regularizers": lambda model, penalty: tfk.set_regularizers(model, kernel_regularizer=penalty),
}


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
def test_none_after_a_remedy(remedy):
    penalty = L2(0.5)
    model = build(penalty)
    fit(model)
    model.evaluate(X, Y, verbose=0)
    remedy(model, penalty)
    penalty.l2 = 1.0
    assert fit(model) == 6.0


def test_evaluate_and_a_function_of_the_users():
    penalty = L2(0.5)
    model = build(penalty)
    model.evaluate(X, Y, verbose=0)
    with frozen:
        penalty.l2 = 1.0
    model = build(penalty)
    read = tf.function(lambda: sum(tfk.penalties(model).values()))
    assert float(read()) == 6.0
    with frozen:
        penalty.l2 = tf.Variable(2.0, trainable=False)
    assert float(read()) == 6.0
    del read
    tf.function(penalty)(tf.ones([2]))  # gone at once
    penalty.l2 = 3.0


def test_mode():
    penalty = tfk.OrthogonalRegularizer(0.5)
    model = build(penalty)
    fit(model)
    penalty.mode = "".join("rows")
    with frozen:
        penalty.mode = "columns"


def test_penalty_logger_and_single_batches():
    penalty = L2(0.5)
    model = build(penalty)
    logger = [tfk.PenaltyLogger()]
    model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=logger)
    with frozen:
        penalty.l2 = 1.0
    assert model.fit(X, Y, verbose=0, callbacks=logger).history["penalty"] == [3.0]
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    penalty.l2 = 2.0
    assert model.fit(X, Y, verbose=0, callbacks=logger).history["penalty"] == [12.0]
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch(X, Y)
    with frozen:
        penalty.l2 = 1.0


def test_terms_of_a_sum():
    term = L2(0.5)
    total = term + tfk.OrthogonalRegularizer(0.0)
    model = build(total)
    fit(model)
    with frozen:
        term.l2 = 1.0
    with frozen:
        total.regularizers = [L1(0.5)]
    total.regularizers = [L1(0.25)]
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    assert fit(model) == 1.5


def test_no_warning_where_it_takes_effect(tmp_path):
    """Under `filterwarnings = error` any is an error."""
    penalty, variable = L2(0.5), tf.Variable(0.5, trainable=False)
    model = build(penalty, run_eagerly=True)
    fit(model)
    penalty.l2 = 1.0
    assert fit(model) == 6.0
    model.save(tmp_path / "model")
    tf_keras.models.clone_model(model)
    model.predict(X, verbose=0)
    penalty.l2 = 2.0
    live = L2(variable)
    model = build(live)
    fit(model)
    variable.assign(1.0)
    live.l2 = variable
    assert fit(model) == 6.0
    same = L1(0.5)
    model = build(same)
    fit(model)
    same.l1 = 0.5
    same.l1 = np.float32(0.5)
    model.fit(X, Y, verbose=0, callbacks=[tfk.RegularizationScheduler(lambda epoch: 0.25)])


def test_an_error_leaves_it_as_it_was():
    penalty = L2(0.5)
    step = tf.function(penalty)
    step(tf.ones([2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            penalty.l2 = 1.0
    assert penalty.l2 == 0.5


@pytest.mark.heavy
def test_replicas(run_python):
    """Each is traced in a thread of its own."""
    program = """
        import numpy as np
        import tensorflow as tf
        import tf_keras

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

        import warnings
        import tfk_regularizers as tfk

        penalty = tfk.L2(0.5)
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2, kernel_regularizer=penalty)])
            model.compile("sgd", "mse")
        for compiled in (False, True):
            model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
            if compiled:
                model.compile("sgd", "mse")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                penalty.l2 += 1.0
            print(sum("Compile the model again" in str(warning.message) for warning in caught))
    """
    assert run_python("-c", textwrap.dedent(program)).split() == ["1", "0"]


class Odd(tfk.Penalty):
    """One that may not be compared, with Python control flow on tensors."""

    factor_names = ("factor",)
    __hash__ = None

    def __init__(self, factor=0.5):
        self.factor = factor

    def __eq__(self, other):
        raise AssertionError

    def __call__(self, x):
        if tf.reduce_sum(x) > 0.0:
            return self.factor * tf.reduce_sum(x)
        return tf.zeros([])


def test_nothing_is_added_to_a_penalty_and_autograph_converts_it():
    penalty = Odd()
    step = tf.function(lambda x: penalty(x))  # noqa: PLW0108  # or TensorFlow would compare it
    assert float(step(tf.ones([2]))) == 1.0
    assert float(step(-tf.ones([2]))) == 0.0
    assert vars(penalty) == {"factor": 0.5}
    assert vars(pickle.loads(pickle.dumps(penalty))) == {"factor": 0.5}
    with frozen:
        penalty.factor = 1.0
