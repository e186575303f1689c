"""Which Keras `tf.keras` is. Told by its classes: under TF_USE_LEGACY_KERAS=1, too, it is a module of its own."""

import pytest
import tensorflow as tf
import tf_keras

KERAS3 = None if tf.keras.regularizers.Regularizer is tf_keras.regularizers.Regularizer else tf.keras
needs_keras3 = pytest.mark.skipif(KERAS3 is None, reason="tf.keras is tf_keras")
