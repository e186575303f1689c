"""Which Keras `tf.keras` is, which Kerases the package serves, and which penalties they have too.

Told by classes: under TF_USE_LEGACY_KERAS=1, too, `tf.keras` is a module of its own.
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
needs_host = pytest.mark.skipif(not IS_HOST, reason="tf.keras is no Keras 3 that the package serves")
needs_keras3 = pytest.mark.skipif(KERAS3 is None, reason="tf.keras is tf_keras")


def activity_share(keras, batch):
    """What becomes of a penalty of 1 on outputs: tf_keras and some versions of Keras 3 divide it by the batch size."""
    one = type("One", (tfk.Penalty,), {"__call__": lambda self, x: tf.constant(1.0)})()
    layer = keras.layers.Dense(3, activity_regularizer=one)
    layer(tf.ones([batch, 2]))
    return float(layer.losses[0])


IN_KERAS = [name for name, (make, _) in PENALTIES.items() if type(make(tfk)) in KERAS_PENALTIES]
