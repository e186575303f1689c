"""The warning about an argument that is changed after a graph has read it: traced functions keep the old value."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, OrthogonalRegularizer

X, Y = np.zeros((4, 3), "float32"), np.zeros((4, 2), "float32")


def warns(penalty, name):
    advice = r"after a graph had read it.*call `compile` or `set_regularizers`.*tf\.Variable.*RegularizationScheduler"
    return pytest.warns(UserWarning, match=f"`{name}` of {type(penalty).__name__} was changed {advice}")


def build(penalty, keyword="kernel_regularizer", **compiling):
    layer = tf_keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", **{keyword: penalty})
    model = tf_keras.Sequential([tf_keras.Input((3,)), layer])
    model.compile(tf_keras.optimizers.SGD(0.0), "mse", **compiling)
    return model


def loss(model, step="fit"):
    result = getattr(model, step)(X, Y, **({} if step == "train_on_batch" else {"verbose": 0}))
    return result.history["loss"][0] if step == "fit" else result


@pytest.mark.parametrize("step", ["fit", "evaluate", "train_on_batch"])
@pytest.mark.parametrize("advised", ["compile", "set_regularizers"])
def test_warns_once_until_the_step_is_traced_again(step, advised):
    """The warning points to the line that sets the factor, and its advice works."""
    penalty = L2(0.5)
    model = build(penalty)
    assert loss(model, step) == 3.0
    with warns(penalty, "l2") as caught:
        penalty.l2 = 1.0
    assert [warning.filename for warning in caught] == [__file__]
    assert loss(model, step) == 3.0
    penalty.l2 = 2.0
    if advised == "compile":
        model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    else:
        tfk.set_regularizers(model, kernel_regularizer=penalty)
    assert loss(model, step) == 12.0
    with warns(penalty, "l2"):
        penalty.l2 = tf.Variable(1.0, trainable=False)


@pytest.mark.parametrize(
    ("penalty", "owner", "name", "other"),
    [
        (one := OrthogonalRegularizer(0.5), one, "mode", "columns"),
        (one := tfk.SampledOrthogonalRegularizer(0.5, sample_size=9), one, "sample_size", 2),
        (one := tfk.SoftOrthogonalRegularizer(0.5), one, "diagonal", False),
        (one := L1(0.5) + OrthogonalRegularizer(), one, "regularizers", [L1(0.25)]),
        ((term := L2(0.5)) + OrthogonalRegularizer(), term, "l2", 1.0),
    ],
    ids=["mode", "sample_size", "diagonal", "regularizers", "l2 of a term"],
)
def test_each_argument_warns_if_a_graph_has_read_it(penalty, owner, name, other):
    x = tf.constant([[1.0, 2.0, 0.5], [0.25, -3.0, 1.0], [1.0, 0.0, 2.0]])
    old = getattr(owner, name)
    penalty(x)  # eagerly
    setattr(owner, name, other)
    setattr(owner, name, old)
    function = tf.function(penalty)
    before = float(function(x))
    setattr(owner, name, old)
    for copied in (copy.copy(owner), copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        setattr(copied, name, other)  # does not warn
        assert repr(copied) != repr(owner)
    with warns(owner, name):
        setattr(owner, name, other)
    assert float(function(x)) == before != float(tf.function(penalty)(x))


def test_change_that_takes_effect_does_not_warn():
    """`filterwarnings = error` makes any warning an error."""

    def halved():
        penalty = L2(1.0)
        penalty.l2 = 0.5
        return penalty(tf.ones([2]))

    assert float(tf.function(halved)()) == 1.0
    penalty = L2(0.5)
    model = build(penalty, run_eagerly=True)
    assert loss(model) == 3.0
    tf_keras.models.clone_model(model)
    model.predict(X, verbose=0)
    penalty.l2 = 1.0
    assert loss(model) == 6.0
    penalty = L2(variable := tf.Variable(0.5, trainable=False))
    model = build(penalty)
    loss(model)
    variable.assign(1.0)
    penalty.l2 = variable
    assert loss(model) == 6.0
    scheduler = tfk.RegularizationScheduler(lambda epoch: 0.25 * epoch)
    build(L2(0.5)).fit(X, Y, epochs=2, verbose=0, callbacks=[scheduler])


@pytest.mark.parametrize("keyword", ["kernel_regularizer", "activity_regularizer"])
def test_building_copying_and_saving_a_model_does_not_warn(keyword, tmp_path):
    penalty = L2(0.5)
    model = build(penalty, keyword)
    penalty.l2 = 1.0
    tf_keras.models.clone_model(model)
    penalty.l2 = 2.0
    model.save(tmp_path / "model", save_format="tf")
    penalty.l2 = 3.0
