"""tensorflow-probability: variational layers, whose `losses` include divergences, and normalized weights."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from common import by_path, check_everything, history_of

import tfk_regularizers as tfk

X, Y = np.random.default_rng(0).normal(size=(32, 6)).astype("float32"), np.zeros((32, 2), "float32")


@pytest.mark.parametrize("regularizer", ["l2", None])
def test_weight_norm(regularizer):
    inner = tf_keras.layers.Dense(4, kernel_regularizer=regularizer, name="inner")
    wrapped = tfp.layers.weight_norm.WeightNorm(inner, data_init=False, name="norm")
    model = tf_keras.Sequential([tf_keras.Input((6,)), wrapped, tf_keras.layers.Dense(2, name="head")])
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    check_everything(model, X, Y, 2)


def test_divergences_stay_where_they_are():
    flipout = tfp.layers.DenseFlipout(4, activation="relu", name="flipout")
    model = tf_keras.Sequential([flipout, tf_keras.layers.Dense(2, name="head")])
    model(X)
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    (divergence,) = map(float, model.losses)
    for regularizer in (tfk.L2(0.5), tfk.L1(0.5), None):
        assert tfk.set_regularizers(model, kernel_regularizer=regularizer) == ["head/kernel"]
        penalty = sum(by_path(model).values())
        assert (penalty > 0.01) is (regularizer is not None)
        with tfk.log_penalties(model):
            history = history_of(model, X, Y)
        assert history["penalty"][0] == pytest.approx(divergence + penalty, rel=1e-4)
        assert history["loss"][0] == pytest.approx(history["data_loss"][0] + history["penalty"][0])


def test_distribution_layer_trains():
    parameters = tf_keras.layers.Dense(2, kernel_regularizer="l2", input_shape=(6,), name="parameters")

    def distribution(t):
        return tfp.distributions.Normal(t[..., :1], 1e-3 + tf.nn.softplus(t[..., 1:]))

    model = tf_keras.Sequential([parameters, tfp.layers.DistributionLambda(distribution)])
    model.compile(tf_keras.optimizers.SGD(0.0), lambda y, distribution: -distribution.log_prob(y))
    with tfk.log_penalties(model):
        history = model.fit(X, Y[:, :1], batch_size=32, verbose=0).history
    assert history["penalty"][0] == pytest.approx(by_path(model)["parameters/kernel"])
