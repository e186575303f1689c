"""Which Keras `tf.keras` is, and which penalties tf_keras has too.

Told by classes: under TF_USE_LEGACY_KERAS=1, too, `tf.keras` is a module of its own.
"""

import pytest
import tensorflow as tf
import tf_keras
from oracles import PENALTIES

import tfk_regularizers as tfk
from tfk_regularizers._penalties import KERAS_PENALTIES

KERAS3 = None if tf.keras.regularizers.Regularizer is tf_keras.regularizers.Regularizer else tf.keras
needs_keras3 = pytest.mark.skipif(KERAS3 is None, reason="tf.keras is tf_keras")

IN_KERAS = [name for name, (make, _) in PENALTIES.items() if type(make(tfk)) in KERAS_PENALTIES]
