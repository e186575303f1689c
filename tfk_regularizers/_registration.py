"""Putting this package's regularizers in the place of the built-in ones, and back."""

import sys
import warnings
from types import ModuleType
from typing import Any

import tf_keras

from tfk_regularizers._identifiers import deserialize, get, serialize
from tfk_regularizers._keras import builtin_warnings, versions
from tfk_regularizers._keras.keras2 import registry
from tfk_regularizers._penalties import KERAS_PENALTIES, NEW_PENALTIES, l1_l2
from tfk_regularizers._penalties.arguments import check_bool

PACKAGE = "tfk_regularizers"
_OURS: dict[str, Any] = {obj.__name__: obj for obj in (*KERAS_PENALTIES, l1_l2, get, serialize, deserialize)}  # type: ignore[attr-defined]


class _DefaultL1L2:
    """What the string `"l1_l2"` stands for in Keras 3, which instantiates classes only."""

    def __new__(cls):
        return l1_l2()


def register(keras3: bool = True) -> None:
    """Puts this package's regularizers in the place of the built-in ones. Importing the package has done it already.

    Afterwards the eight strings, configs and saved files give this package's classes, and `tf_keras.regularizers` holds
    them. So does `tf.keras.regularizers`, which is Keras 3 by default and the same as `keras.regularizers`. What is
    saved stays a plain Keras file. In Keras 3 what is its own keeps its meaning: the string `"l1l2"` and the alias
    `keras.regularizers.l1_l2` are the class, with factors of 0, and the string `"l1_l2"` is new.

    Keras 3 keeps its own regularizers before its version 3.12, under `TF_USE_LEGACY_KERAS=1`, and on another backend
    than TensorFlow. On TensorFlow, instances of this package's classes work there and can be saved, and `"l1_l2"` is a
    string.

    It may be called any number of times. A class that was imported before, by
    `from keras.regularizers import L2`, stays the built-in one.

    Args:
        keras3: Whether to replace the regularizers of Keras 3 too. `False` leaves it its own, or puts them back; models
            of Keras 3 with instances of this package's classes can be saved all the same. Defaults to `True`.

    Raises:
        ImportError: If the installed tf-keras is not one of the supported versions. Nothing is registered then.
        ValueError: If `keras3` is not a bool.

    Warns:
        UserWarning: If the installed Keras 3 is a later one that cannot be registered in. Its own regularizers stay.

    >>> register()
    >>> import tensorflow as tf, tf_keras
    >>> tf_keras.regularizers.get("l2"), tf.keras.regularizers.get("l2")
    (L2(l2=0.01), L2(l2=0.01))
    """
    check_bool("keras3", keras3)
    try:
        for name, ours in _OURS.items():
            builtin = getattr(registry.SOURCE, name)
            if builtin is not ours:
                registry.export_like(ours, builtin)
                registry.REPLACED[name] = builtin
        registry.replace_everywhere([(builtin, _OURS[name]) for name, builtin in registry.REPLACED.items()])
        for cls in KERAS_PENALTIES:
            _register_for_reading(tf_keras, cls)
        for cls in NEW_PENALTIES:
            tf_keras.saving.register_keras_serializable(PACKAGE)(cls)
        builtin_warnings.REPLACED.update(dict.fromkeys(registry.REPLACED.values(), "tf_keras"))
        _check(registry.SOURCE, registry.custom_objects())
    except Exception as error:
        unregister()
        raise ImportError(f"tfk_regularizers supports {versions.SUPPORTED}. Registration failed: {error}") from error
    _unregister_in_keras3()
    if versions.runs_on_tensorflow(versions.keras3()):
        _register_in_keras3(versions.keras3(), as_host=keras3 and versions.is_host(versions.keras3()), strings=keras3)


def unregister() -> None:
    """Puts the built-in regularizers of tf_keras and of Keras 3 back.

    It may be called any number of times. Layers that hold a regularizer of this package keep it.

    >>> import tf_keras
    >>> unregister()
    >>> tf_keras.regularizers.L2 is L2
    False
    >>> register()
    >>> tf_keras.regularizers.L2 is L2
    True
    """
    _unregister_in_keras3()  # first, for what is found in `tensorflow.keras` afterwards is tf_keras's
    for builtin in registry.REPLACED.values():
        registry.export_like(builtin, builtin)
    registry.replace_everywhere([(_OURS[name], builtin) for name, builtin in registry.REPLACED.items()])
    for name in registry.REPLACED:
        registry.forget_export(_OURS[name])
    registry.REPLACED.clear()
    builtin_warnings.REPLACED.clear()
    _forget_custom_objects(tf_keras)


def _register_in_keras3(keras: Any, as_host: bool, strings: bool) -> None:
    """Register in Keras 3 on TensorFlow: in the place of its classes, or as custom objects beside them."""
    try:
        from tfk_regularizers._keras.keras3 import registry as registry3

        for cls in (*KERAS_PENALTIES, *NEW_PENALTIES):
            if as_host and cls in KERAS_PENALTIES:
                _register_for_reading(keras, cls)
            else:
                keras.saving.register_keras_serializable(PACKAGE)(cls)
        if strings:
            registry3.add_string("l1_l2", _DefaultL1L2)
        if as_host:
            registry3.replace(KERAS_PENALTIES)
            builtin_warnings.REPLACED.update(dict.fromkeys(registry3.REPLACED, "Keras 3"))
            _check(keras.regularizers, keras.saving.get_custom_objects())
    except Exception as error:
        _unregister_in_keras3()
        warnings.warn(
            f"Keras {keras.__version__} keeps its own regularizers: tfk_regularizers could not be registered in it "
            f"({error!r}). In tf_keras it is.",
            stacklevel=3,
        )


def _unregister_in_keras3() -> None:
    keras = versions.keras3()
    if keras is None:
        return
    _forget_custom_objects(keras)
    registry3 = sys.modules.get("tfk_regularizers._keras.keras3.registry")
    if registry3 is not None:  # otherwise nothing was registered: on another backend it is never imported
        for builtin in registry3.REPLACED:
            builtin_warnings.REPLACED.pop(builtin, None)
        registry3.restore()
        registry3.remove_string("l1_l2", _DefaultL1L2)


def _register_for_reading(keras: ModuleType, cls: type) -> None:
    """Let configs of a class open that name this package. None is written: it would not open without the package."""
    keras.saving.get_custom_objects()[_registered_name(cls)] = cls


def _forget_custom_objects(keras: ModuleType) -> None:
    for cls in (*KERAS_PENALTIES, *NEW_PENALTIES):
        registry.forget_custom_object(keras, cls, _registered_name(cls))


def _registered_name(cls):
    return f"{PACKAGE}>{cls.__name__}"


def _check(regularizers: Any, custom: dict[str, Any]) -> None:
    """Raise RuntimeError unless the configs of the built-in classes give those of this package."""
    configs = {cls: regularizers.serialize(cls()) for cls in KERAS_PENALTIES}
    # A class of the user's wins, if it has the name of one of these.
    has_effect = all(type(regularizers.get(configs[cls])) is cls for cls in configs if cls.__name__ not in custom)
    if not has_effect or any(config.get("registered_name") for config in configs.values()):
        raise RuntimeError("registration had no effect")
