"""Which Keras there is: tf_keras, and Keras 3 as `tf.keras` or beside it."""

import contextlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf
import tf_keras

SUPPORTED = "tf-keras 2.16 to 2.22"

with contextlib.suppress(ImportError, AttributeError):
    tf.keras.regularizers  # noqa: B018  # loads whichever Keras it is


def keras3() -> ModuleType | None:
    """Keras 3, where the program has it: as `tf.keras`, or beside it under TF_USE_LEGACY_KERAS=1; None before that."""
    keras = sys.modules.get("keras")
    loaded = all(hasattr(keras, name) for name in ("regularizers", "saving", "Model"))
    return keras if loaded and not str(getattr(keras, "__version__", "")).startswith("2.") else None


def when_keras3_is_imported(function: Callable[[], Any]) -> None:
    """Call a function once Keras 3 is imported, at once if it is. Without wrapt, which TensorFlow needs, never."""
    with contextlib.suppress(ImportError):
        from wrapt import register_post_import_hook

        register_post_import_hook(lambda _: function(), "keras")


def regularizer_bases() -> tuple[type, ...]:
    """The base classes of regularizers: tf_keras's, and that of Keras 3."""
    keras = keras3()
    return (tf_keras.regularizers.Regularizer, *([keras.regularizers.Regularizer] if keras else []))


def model_bases() -> tuple[type, ...]:
    """The classes of models: tf_keras's, and that of Keras 3."""
    keras = keras3()
    return (tf_keras.Model, *([keras.Model] if keras else []))


def instead_of_keras3(model: Any) -> str:
    """For the message that refuses a model: what to do where it is one of Keras 3; nothing elsewhere."""
    keras = keras3()
    if keras is None or not isinstance(model, keras.Model):
        return ""
    return ", of Keras 3. Make the model with `tf_keras`, or set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported."


def check_is_of_tf_keras(callback: str, model: Any) -> None:
    """Raise TypeError, in the name of a callback, for what is no model of tf_keras."""
    if not isinstance(model, tf_keras.Model):
        kind = type(model)
        raise TypeError(
            f"{callback} is for models of tf_keras. Received: model={model!r}, a "
            f"{kind.__module__}.{kind.__qualname__}{instead_of_keras3(model)}"
        )
