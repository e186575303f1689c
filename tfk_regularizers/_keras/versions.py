"""The Keras versions that are imported: tf_keras, and possibly Keras 3."""

import contextlib
import inspect
import sys
from types import ModuleType
from typing import Any

import tensorflow as tf
import tf_keras

SUPPORTED = f"tf-keras 2.16 to 2.21. Received: tf-keras {tf_keras.__version__}"

with contextlib.suppress(ImportError, AttributeError):
    tf.keras.regularizers  # noqa: B018  # loads Keras 3, if it is `tf.keras`


def keras3() -> ModuleType | None:
    """Keras 3 if it was imported, as `tf.keras` or as `keras`; otherwise None."""
    keras = sys.modules.get("keras")
    loaded = all(hasattr(keras, name) for name in ("regularizers", "saving", "Model"))
    return keras if loaded and not str(getattr(keras, "__version__", "")).startswith("2.") else None


def runs_on_tensorflow(keras: Any) -> bool:
    """Whether this is Keras 3 on its TensorFlow backend. False for None."""
    return keras is not None and keras.backend.backend() == "tensorflow"


def has_tools(keras: Any) -> bool:
    """Whether `set_regularizers` and the like support models of this Keras 3."""
    version = tuple(int(number) for number in keras.__version__.split(".")[:2])
    return version >= (3, 12) and runs_on_tensorflow(keras)


def is_host(keras: Any) -> bool:
    """Whether this Keras 3 is supported and is `tf.keras`: its classes can be replaced."""
    return has_tools(keras) and tf.keras.regularizers.Regularizer is keras.regularizers.Regularizer  # type: ignore[attr-defined]


def regularizer_bases() -> tuple[type, ...]:
    """The base classes of regularizers, of Keras 3 too if it was imported."""
    keras = keras3()
    return (tf_keras.regularizers.Regularizer, *([keras.regularizers.Regularizer] if keras else []))


def keras3_regularizers() -> dict[str, Any]:
    """The user's regularizer classes that are registered in Keras 3, also under their names without a package."""
    keras = keras3()
    found = {name: cls for name, cls in keras.saving.get_custom_objects().items() if _is_own(cls)} if keras else {}
    taken = {name.rpartition(">")[2] for name in tf_keras.saving.get_custom_objects()}
    return found | {cls.__name__: cls for cls in found.values() if cls.__name__ not in taken}


def _is_own(cls: Any) -> bool:
    """Whether this is a user-defined regularizer class."""
    is_class = inspect.isclass(cls) and issubclass(cls, regularizer_bases())
    return is_class and cls.__module__.partition(".")[0] != "tfk_regularizers"


def serialize(regularizer: Any) -> Any:
    """The config of a regularizer of either Keras."""
    is_of_tf_keras = isinstance(regularizer, tf_keras.regularizers.Regularizer)
    keras: Any = tf_keras if is_of_tf_keras else keras3()
    return keras.regularizers.serialize(regularizer)


def model_bases() -> tuple[Any, ...]:
    """The base classes of models, of Keras 3 too if it was imported."""
    keras = keras3()
    return (tf_keras.Model, *([keras.Model] if keras else []))


def layer_bases() -> tuple[Any, ...]:
    """The base classes of layers, of Keras 3 too if it was imported."""
    keras = keras3()
    return (tf_keras.layers.Layer, *([keras.layers.Layer] if keras else []))


def check_tensorflow_2(name: str) -> None:
    """Raise RuntimeError for the function or class `name` if models run in TensorFlow 1 graphs."""
    if not tf.compat.v1.executing_eagerly_outside_functions():
        raise RuntimeError(
            f"{name} needs TensorFlow 2. Received: TensorFlow 1 graphs, for example after "
            "`tf.compat.v1.disable_eager_execution()`."
        )
