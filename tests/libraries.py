"""Which Keras `tf.keras` is, which versions of Keras the package supports, and which penalties they also have.

`tf.keras` is identified by its classes, because it is a separate module even with TF_USE_LEGACY_KERAS=1.
"""

import sys

import pytest
import tensorflow as tf
import tf_keras
from oracles import PENALTIES

import tfk_regularizers as tfk
from tfk_regularizers._penalties import KERAS_PENALTIES

KERAS3 = None if tf.keras.regularizers.Regularizer is tf_keras.regularizers.Regularizer else tf.keras
IS_HOST = KERAS3 is not None and tuple(map(int, sys.modules["keras"].__version__.split(".")[:2])) >= (3, 12)
KERASES = {"tf_keras": tf_keras} | ({"Keras 3": sys.modules["keras"]} if IS_HOST else {})
both_kerases = pytest.mark.parametrize("keras", KERASES.values(), ids=KERASES)
needs_host = pytest.mark.skipif(not IS_HOST, reason="tf.keras is not a Keras 3 that the package supports")
needs_keras3 = pytest.mark.skipif(KERAS3 is None, reason="tf.keras is tf_keras")


def activity_share(keras, batch):
    """The loss from an activity penalty of 1: tf_keras and some versions of Keras 3 divide it by the batch size."""
    one = type("One", (tfk.Penalty,), {"__call__": lambda self, x: tf.constant(1.0)})()
    layer = keras.layers.Dense(3, activity_regularizer=one)
    layer(tf.ones([batch, 2]))
    return float(layer.losses[0])


IN_KERAS = [name for name, (make, _) in PENALTIES.items() if type(make(tfk)) in KERAS_PENALTIES]
