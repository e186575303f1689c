"""The Keras versions of a program: tf_keras, and Keras 3 as `tf.keras` or beside it."""

import contextlib
import sys
from types import ModuleType
from typing import Any

import tensorflow as tf
import tf_keras

SUPPORTED = f"tf-keras 2.16 to 2.22. Received: tf-keras {tf_keras.__version__}"

with contextlib.suppress(ImportError, AttributeError):
    tf.keras.regularizers  # noqa: B018  # loads Keras 3, if it is `tf.keras`


def keras3() -> ModuleType | None:
    """Keras 3 if it was imported: as `tf.keras`, or beside it under TF_USE_LEGACY_KERAS=1."""
    keras = sys.modules.get("keras")
    loaded = all(hasattr(keras, name) for name in ("regularizers", "saving", "Model"))
    return keras if loaded and not str(getattr(keras, "__version__", "")).startswith("2.") else None


def regularizer_bases() -> tuple[type, ...]:
    """The base classes of regularizers: tf_keras's, and Keras 3's if it was imported."""
    keras = keras3()
    return (tf_keras.regularizers.Regularizer, *([keras.regularizers.Regularizer] if keras else []))


def model_bases() -> tuple[Any, ...]:
    """The base classes of models: tf_keras's, and Keras 3's if it was imported."""
    keras = keras3()
    return (tf_keras.Model, *([keras.Model] if keras else []))


def layer_bases() -> tuple[Any, ...]:
    """The base classes of layers: tf_keras's, and Keras 3's if it was imported."""
    keras = keras3()
    return (tf_keras.layers.Layer, *([keras.layers.Layer] if keras else []))


def check_tensorflow_2(name: str) -> None:
    """Raise RuntimeError, for the function or class of a name, where models run in TensorFlow 1 graphs."""
    if not tf.compat.v1.executing_eagerly_outside_functions():
        raise RuntimeError(
            f"{name} needs TensorFlow 2. Received: a program of TensorFlow 1 graphs, as after "
            "`tf.compat.v1.disable_eager_execution()`."
        )
