"""Putting this package's regularizers in the place of the built-in ones, and back."""

import functools
import threading
from typing import Any

import tf_keras

from tfk_regularizers._identifiers import IDENTIFIERS, deserialize, get, serialize
from tfk_regularizers._keras import registry, versions
from tfk_regularizers._penalties import PENALTIES, Penalty, l1_l2

PACKAGE = "tfk_regularizers"
_CLASSES = tuple(entry.cls for entry in PENALTIES if entry.in_keras)
_NEW_CLASSES = tuple(entry.cls for entry in PENALTIES if not entry.in_keras)  # what no built-in can read
_OURS: dict[str, Any] = {obj.__name__: obj for obj in (*_CLASSES, l1_l2, get, serialize, deserialize)}  # type: ignore[attr-defined]

_lock = threading.RLock()
_replaced: dict = {}  # what stood in the place of each of ours


class _DefaultL1L2:
    """What the string `"l1_l2"` is in Keras 3, which instantiates classes and nothing else."""

    def __new__(cls):
        return l1_l2()


def register() -> None:
    """Puts this package's regularizers in the place of tf_keras's. Importing the package has done it already.

    Afterwards the eight strings, configs and saved files give this package's classes, and `tf_keras.regularizers` (and
    `tf.keras.regularizers` under `TF_USE_LEGACY_KERAS=1`) holds them. What is saved stays a plain Keras file.
    In Keras 3 the classes are registered as custom objects, and the string `"l1_l2"` is added; nothing else changes.

    It may be called any number of times, from any thread. A class that was taken out of `tf_keras.regularizers` before,
    by `from tf_keras.regularizers import L2`, stays the built-in one.

    Raises:
        ImportError: If the installed tf-keras is not one of the supported versions. Nothing is registered then.

    >>> register()
    >>> import tf_keras
    >>> tf_keras.regularizers.get("l2")
    L2(l2=0.01)
    """
    with _lock:
        registry.check_supported(_OURS)
        try:
            for name, ours in _OURS.items():
                builtin = getattr(registry.SOURCE, name)
                if builtin is not ours:
                    registry.export_like(ours, builtin)
                    registry.keep_importable(builtin)
                    _replaced[name] = builtin
            registry.replace_everywhere([(builtin, _OURS[name]) for name, builtin in _replaced.items()])
            for cls in _CLASSES:
                # For reading alone: written into files, this name would keep them from opening without the package.
                tf_keras.saving.get_custom_objects()[_registered_name(cls)] = cls
            for cls in _NEW_CLASSES:
                tf_keras.saving.register_keras_serializable(PACKAGE)(cls)
            _register_in_keras3()
            _watch_for_keras3()
            _check()
        except BaseException as error:
            unregister()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            raise ImportError(
                f"tfk_regularizers supports {versions.SUPPORTED}. Registration in the installed tf-keras "
                f"{tf_keras.__version__} failed and has been undone: {error}"
            ) from error


def unregister() -> None:
    """Puts tf_keras's own regularizers back, and takes back what was added to Keras 3.

    It may be called any number of times, from any thread. Layers that hold a regularizer of this package keep it.

    >>> import tf_keras
    >>> unregister()
    >>> tf_keras.regularizers.L2 is L2
    False
    >>> register()
    >>> tf_keras.regularizers.L2 is L2
    True
    """
    with _lock:
        for builtin in _replaced.values():
            registry.export_like(builtin, builtin)
        registry.replace_everywhere([(_OURS[name], builtin) for name, builtin in _replaced.items()])
        registry.forget_importable(_replaced.values())
        for name in _replaced:
            registry.forget_export(_OURS[name])
        _replaced.clear()
        keras = versions.keras3()
        for cls in (*_CLASSES, *_NEW_CLASSES):
            registry.forget_custom_object(tf_keras, cls, _registered_name(cls))
            if keras is not None:
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
    if not issubclass(Penalty, keras.regularizers.Regularizer):  # as it came after this package
        Penalty.__bases__ = (*versions.regularizer_bases(), *Penalty.__bases__[1:])
    for cls in (*_CLASSES, *_NEW_CLASSES):
        keras.saving.register_keras_serializable(PACKAGE)(cls)
    table = registry.keras3_identifiers()
    if table is not None:
        table.setdefault("l1_l2", _DefaultL1L2)


@functools.cache  # once in a process
def _watch_for_keras3():
    def register_if_registered():
        with _lock:
            if _replaced:
                _register_in_keras3()

    versions.when_keras3_is_imported(register_if_registered)


def _check():
    """Every string and every config gives a class of this package, or registration has failed."""
    source, custom = registry.SOURCE, registry.custom_objects()  # a name of the user's own wins, and is no failure
    results = [type(source.get(source.serialize(cls()))) is cls for cls in _CLASSES if cls.__name__ not in custom]
    results += [type(source.get(name)) in _CLASSES for name in IDENTIFIERS if name != "L1L2" and name not in custom]
    results += [source.serialize(cls()).get("registered_name") is None for cls in _CLASSES]
    if not all(results):
        raise RuntimeError("it did not take effect")
