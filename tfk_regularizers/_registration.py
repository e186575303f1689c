"""Replace Keras's built-in regularizers with this package's, and restore them."""

import sys
import warnings
from types import ModuleType
from typing import Any

import tf_keras

from tfk_regularizers._identifiers import deserialize, get, serialize
from tfk_regularizers._keras import builtin_warnings, versions
from tfk_regularizers._keras.keras2 import registry
from tfk_regularizers._penalties import KERAS_PENALTIES, NEW_PENALTIES, Sum, l1_l2
from tfk_regularizers._penalties.arguments import check_bool

PACKAGE = "tfk_regularizers"
_OURS: dict[str, Any] = {obj.__name__: obj for obj in (*KERAS_PENALTIES, l1_l2, get, serialize, deserialize)}  # type: ignore[attr-defined]


class _DefaultL1L2:
    """The class for the string `"l1_l2"` in Keras 3, which does not call functions."""

    def __new__(cls):
        return l1_l2()


# The strings that Keras 3 lacks. A `Sum` needs arguments.
_NEW_STRINGS = {"l1_l2": _DefaultL1L2} | {cls.__name__: cls for cls in NEW_PENALTIES if cls is not Sum}


def register(keras3: bool = True) -> None:
    """Replaces Keras's built-in regularizers with this package's. Importing the package calls it.

    Afterwards strings, configs and saved models give the classes of this package, and so do `tf_keras.regularizers`
    and, with Keras 3, `keras.regularizers` and `tf.keras.regularizers`. Models with the four classes that Keras has are
    saved as plain Keras files. Keras 3 keeps two peculiarities: the string `"l1l2"` and `keras.regularizers.l1_l2()`
    mean factors of 0. The string `"l1_l2"`, with factors of 0.01, and the names of the new penalties are added.

    In Keras 3 before version 3.12, on a backend other than TensorFlow, or with `TF_USE_LEGACY_KERAS=1`, the built-in
    classes of Keras 3 stay. On TensorFlow, you can still pass instances of this package's classes to its layers, save
    them, and use the new strings. (If Keras 3 is not `tf.keras`, import it before this package, or call this function
    after importing it.)

    You can call this function any number of times. Names that were imported before, as by `from keras.regularizers
    import L2`, still mean the built-in classes.

    Args:
        keras3: Whether to replace the regularizers of Keras 3 too. `False` restores them if they were replaced.
            Defaults to `True`.

    Raises:
        ImportError: If the installed version of tf-keras is not supported. Then nothing is replaced.
        ValueError: If `keras3` is not a bool.

    Warns:
        UserWarning: If the installed version of Keras 3 is not supported. Then its regularizers are not replaced.

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
    """Restores the built-in regularizers of tf_keras and Keras 3.

    Layers that have a regularizer of this package keep it. You can call this function any number of times.

    >>> import tf_keras
    >>> unregister()
    >>> tf_keras.regularizers.L2 is L2
    False
    >>> register()
    >>> tf_keras.regularizers.L2 is L2
    True
    """
    _unregister_in_keras3()  # first: otherwise tf_keras's classes end up in `tf.keras`
    for builtin in registry.REPLACED.values():
        registry.export_like(builtin, builtin)
    registry.replace_everywhere([(_OURS[name], builtin) for name, builtin in registry.REPLACED.items()])
    for name in registry.REPLACED:
        registry.forget_export(_OURS[name])
    registry.REPLACED.clear()
    builtin_warnings.REPLACED.clear()
    _forget_custom_objects(tf_keras)


def _register_in_keras3(keras: Any, as_host: bool, strings: bool) -> None:
    """Replace the classes of Keras 3 on TensorFlow, or only add custom objects."""
    try:
        from tfk_regularizers._keras.keras3 import registry as registry3

        for cls in (*KERAS_PENALTIES, *NEW_PENALTIES):
            if as_host and cls in KERAS_PENALTIES:
                _register_for_reading(keras, cls)
            else:
                keras.saving.register_keras_serializable(PACKAGE)(cls)
        if strings:
            for name, cls in _NEW_STRINGS.items():
                registry3.add_string(name, cls)
        if as_host:
            registry3.replace(KERAS_PENALTIES)
            builtin_warnings.REPLACED.update(dict.fromkeys(registry3.REPLACED, "Keras 3"))
            _check(keras.regularizers, keras.saving.get_custom_objects())
    except Exception as error:
        _unregister_in_keras3()
        warnings.warn(
            f"tfk_regularizers does not support Keras {keras.__version__}: its built-in regularizers are kept. Those "
            f"of tf_keras are replaced. Error: {error!r}",
            stacklevel=3,
        )


def _unregister_in_keras3() -> None:
    keras = versions.keras3()
    if keras is None:
        return
    _forget_custom_objects(keras)
    registry3 = sys.modules.get("tfk_regularizers._keras.keras3.registry")
    if registry3 is not None:  # it is not imported on other backends, where nothing is registered
        for builtin in registry3.REPLACED:
            builtin_warnings.REPLACED.pop(builtin, None)
        registry3.restore()
        for name, cls in _NEW_STRINGS.items():
            registry3.remove_string(name, cls)


def _register_for_reading(keras: ModuleType, cls: type) -> None:
    """Make configs that name this package load. (None are written; they would not load without it.)"""
    keras.saving.get_custom_objects()[_registered_name(cls)] = cls


def _forget_custom_objects(keras: ModuleType) -> None:
    for cls in (*KERAS_PENALTIES, *NEW_PENALTIES):
        registry.forget_custom_object(keras, cls, _registered_name(cls))


def _registered_name(cls):
    return f"{PACKAGE}>{cls.__name__}"


def _check(regularizers: Any, custom: dict[str, Any]) -> None:
    """Raise RuntimeError unless configs of the built-in classes load as this package's classes."""
    configs = {cls: regularizers.serialize(cls()) for cls in KERAS_PENALTIES}
    # A custom object of the same name takes precedence.
    has_effect = all(type(regularizers.get(configs[cls])) is cls for cls in configs if cls.__name__ not in custom)
    if not has_effect or any(config.get("registered_name") for config in configs.values()):
        raise RuntimeError("registration had no effect")
