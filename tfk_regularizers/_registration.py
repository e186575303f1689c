"""Putting this package's regularizers in the place of the built-in ones, and back."""

from typing import Any

import tf_keras

from tfk_regularizers._identifiers import deserialize, get, serialize
from tfk_regularizers._keras import versions
from tfk_regularizers._keras.keras2 import registry
from tfk_regularizers._penalties import KERAS_PENALTIES, NEW_PENALTIES, l1_l2

PACKAGE = "tfk_regularizers"
_OURS: dict[str, Any] = {obj.__name__: obj for obj in (*KERAS_PENALTIES, l1_l2, get, serialize, deserialize)}  # type: ignore[attr-defined]


class _DefaultL1L2:
    """What the string `"l1_l2"` stands for in Keras 3, which instantiates classes only."""

    def __new__(cls):
        return l1_l2()


def register() -> None:
    """Puts this package's regularizers in the place of tf_keras's. Importing the package has done it already.

    Afterwards the eight strings, configs and saved files give this package's classes, and `tf_keras.regularizers` (and
    `tf.keras.regularizers` under `TF_USE_LEGACY_KERAS=1`) holds them. What is saved stays a plain Keras file.
    In Keras 3 the classes are registered as custom objects, and the string `"l1_l2"` is added; nothing else changes.

    It may be called any number of times. A class that was taken out of `tf_keras.regularizers` before,
    by `from tf_keras.regularizers import L2`, stays the built-in one.

    Raises:
        ImportError: If the installed tf-keras is not one of the supported versions. Nothing is registered then.

    >>> register()
    >>> import tf_keras
    >>> tf_keras.regularizers.get("l2")
    L2(l2=0.01)
    """
    try:
        for name, ours in _OURS.items():
            builtin = getattr(registry.SOURCE, name)
            if builtin is not ours:
                registry.export_like(ours, builtin)
                registry.REPLACED[name] = builtin
        registry.replace_everywhere([(builtin, _OURS[name]) for name, builtin in registry.REPLACED.items()])
        for cls in KERAS_PENALTIES:
            # Only for reading. A file with this name would not open without the package.
            tf_keras.saving.get_custom_objects()[_registered_name(cls)] = cls
        for cls in NEW_PENALTIES:
            tf_keras.saving.register_keras_serializable(PACKAGE)(cls)
        _register_in_keras3()
        _check()
    except Exception as error:
        unregister()
        raise ImportError(f"tfk_regularizers supports {versions.SUPPORTED}. Registration failed: {error}") from error


def unregister() -> None:
    """Puts tf_keras's own regularizers back, and takes back what was added to Keras 3.

    It may be called any number of times. Layers that hold a regularizer of this package keep it.

    >>> import tf_keras
    >>> unregister()
    >>> tf_keras.regularizers.L2 is L2
    False
    >>> register()
    >>> tf_keras.regularizers.L2 is L2
    True
    """
    for builtin in registry.REPLACED.values():
        registry.export_like(builtin, builtin)
    registry.replace_everywhere([(_OURS[name], builtin) for name, builtin in registry.REPLACED.items()])
    for name in registry.REPLACED:
        registry.forget_export(_OURS[name])
    registry.REPLACED.clear()
    for keras in filter(None, (tf_keras, versions.keras3())):
        for cls in (*KERAS_PENALTIES, *NEW_PENALTIES):
            registry.forget_custom_object(keras, cls, _registered_name(cls))
    table = registry.keras3_identifiers()
    if table is not None and table.get("l1_l2") is _DefaultL1L2:
        del table["l1_l2"]


def _registered_name(cls):
    return f"{PACKAGE}>{cls.__name__}"


def _register_in_keras3():
    keras = versions.keras3()
    if keras is None:
        return
    for cls in (*KERAS_PENALTIES, *NEW_PENALTIES):
        keras.saving.register_keras_serializable(PACKAGE)(cls)
    table = registry.keras3_identifiers()
    if table is not None:
        table.setdefault("l1_l2", _DefaultL1L2)


def _check():
    """Raise RuntimeError unless the configs of the built-in classes give those of this package."""
    configs = {cls: registry.SOURCE.serialize(cls()) for cls in KERAS_PENALTIES}
    custom = registry.custom_objects()  # a class of the user's wins, if it has the name of one of these
    has_effect = all(type(registry.SOURCE.get(configs[cls])) is cls for cls in configs if cls.__name__ not in custom)
    if not has_effect or any(config.get("registered_name") for config in configs.values()):
        raise RuntimeError("registration had no effect")
