"""Strings, configs and regularizers: get, serialize, deserialize."""

import difflib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, overload

import tf_keras
from tf_keras.regularizers import Regularizer

from tfk_regularizers._keras import builtin_warnings, versions
from tfk_regularizers._keras.keras2 import registry
from tfk_regularizers._messages import short_repr
from tfk_regularizers._penalties import KERAS_PENALTIES, NEW_PENALTIES, SHORT_NAMES, l1_l2

_IN_CONFIGS: dict[str, Any] = SHORT_NAMES | {cls.__name__: cls for cls in (*KERAS_PENALTIES, *NEW_PENALTIES)}
_IN_STRINGS = {name: make for name, make in _IN_CONFIGS.items() if name != "Sum"}  # a string cannot name terms
_SYNONYMS = {"ridge": "l2", "weight_decay": "l2", "lasso": "l1", "elastic_net": "l1_l2", "l1l2": "l1_l2"}

_Some = TypeVar("_Some", bound=Callable[..., Any])


@overload
def get(identifier: _Some) -> _Some: ...
@overload
def get(identifier: str | dict[str, Any]) -> Regularizer: ...
@overload
def get(identifier: None) -> None: ...
def get(identifier: Any) -> Any:
    """Returns the regularizer that a string, a config or another identifier stands for.

    Args:
        identifier: A string: `"l1"`, `"l2"`, `"l1_l2"`, `"orthogonal_regularizer"`, the name of a class of this package
            except `Sum`, or the name of a custom object. Or a config dict, in the current or the legacy format; a
            regularizer or another callable; or `None`.

    Returns:
        A regularizer. `None` and callables are returned unchanged. If a config names a class in a module other than
        Keras's, and this program lacks the class, a stand-in is returned that raises the error when it is called, so
        that saved models of tf_keras with it load and predict.

    Warns:
        UserWarning: If a built-in regularizer from before the import of this package is passed, or the string `"L1L2"`,
            which penalizes nothing.

    Raises:
        ValueError: If the string or config names no regularizer, if a factor in the config is not a finite number, or
            if the identifier is of another type or a regularizer class instead of an instance.
        TypeError: If the config has arguments that the regularizer does not take.

    >>> get("l1_l2")
    L1L2(l1=0.01, l2=0.01)
    >>> get({"class_name": "L2", "config": {"l2": 0.5}})
    L2(l2=0.5)
    """
    if identifier is None:
        return None
    if isinstance(identifier, dict):
        return deserialize(identifier, use_legacy_format="module" not in identifier)
    if isinstance(identifier, str):
        return deserialize(str(identifier))
    is_class = inspect.isclass(identifier) and issubclass(identifier, versions.regularizer_bases())
    if identifier is l1_l2 or is_class:
        kind, name = "class" if is_class else "function", identifier.__name__
        raise ValueError(f"Expected a regularizer. Received: the {kind} {name}; did you mean `{name}()`?")
    if callable(identifier):
        if builtin := builtin_warnings.builtin_class(identifier):
            found = f"{builtin.__name__} is the built-in regularizer of {builtin_warnings.REPLACED[builtin]}"
            builtin_warnings.warn(found, stacklevel=4)  # the line that creates a Dense layer
        return identifier
    several = " To combine several on one weight, add them: `L2() + OrthogonalRegularizer()`."
    raise ValueError(
        f"Could not interpret regularizer identifier: {short_repr(identifier)}. Expected a regularizer, such as "
        f"`L2(0.01)`, its name, its config or None.{several if isinstance(identifier, (list, tuple)) else ''}"
    )


@overload
def serialize(regularizer: Callable[..., Any], use_legacy_format: bool = False) -> dict[str, Any]: ...
@overload
def serialize(regularizer: None, use_legacy_format: bool = False) -> None: ...
def serialize(regularizer: Any, use_legacy_format: bool = False) -> Any:
    """Returns the config of a regularizer, as tf_keras writes it.

    Args:
        regularizer: A regularizer, or `None`.
        use_legacy_format: Whether to return the format of `.h5` files and SavedModels instead of the one of
            `.keras` files. Defaults to `False`.

    Returns:
        A dict that can be written as JSON, or `None`.

    Warns:
        UserWarning: If `regularizer` is not derived from a `Regularizer` class.

    >>> serialize(L2(0.5))
    {'module': 'keras.regularizers', 'class_name': 'L2', 'config': {'l2': 0.5}, 'registered_name': None}
    >>> serialize(L2(0.5), use_legacy_format=True)
    {'class_name': 'L2', 'config': {'l2': 0.5}}
    """
    if regularizer is None:
        return None
    if isinstance(regularizer, _MissingRegularizer):
        return dict(regularizer.config)
    if not isinstance(regularizer, versions.regularizer_bases()):
        warnings.warn(
            f"Expected a `Regularizer`. Received: {type(regularizer)}, which may be serialized improperly.",
            stacklevel=2,
        )
    saving = tf_keras.utils.legacy if use_legacy_format else tf_keras.saving
    return saving.serialize_keras_object(regularizer)


def deserialize(
    config: Any, custom_objects: dict[str, Any] | None = None, use_legacy_format: bool = False
) -> Regularizer:
    """Returns the regularizer that a config describes: the inverse of `serialize`.

    Args:
        config: A config dict, or any other identifier that `get` accepts.
        custom_objects: A dict from names to classes and functions of your own. They take precedence over this
            package's, except over Keras's names in a config with `module`. Defaults to `None`.
        use_legacy_format: Whether the config has the format of `.h5` files and SavedModels. Defaults to `False`.

    Returns:
        A regularizer, or what `get` returns for `None`, callables and unknown classes.

    Raises:
        ValueError: If the config is malformed or names no regularizer, or if a factor in it is not a finite number.
        TypeError: If the config has arguments that the regularizer does not take.

    >>> deserialize({"class_name": "OrthogonalRegularizer", "config": {"factor": 0.5, "mode": "rows"}})
    OrthogonalRegularizer(factor=0.5, mode='rows')
    """
    if config is None or callable(config):
        return config
    names, arguments = _parse(config)
    custom = registry.custom_objects(custom_objects)
    is_custom = any(name in custom for name in names)
    known = _IN_STRINGS if isinstance(config, str) else _IN_CONFIGS
    if not is_custom and names[0] not in known:
        module = str(config.get("module") or "keras") if isinstance(config, dict) else "keras"
        if not use_legacy_format and module.split(".")[0] not in ("keras", "tf_keras"):
            return _MissingRegularizer(config, _unknown_name(names[0], custom))
        raise ValueError(_unknown_name(names[0], custom))
    if config == "l1_l2" or (names[0] == "l1_l2" and not is_custom):
        return l1_l2(**arguments)
    if config == "L1L2" and not is_custom:
        warnings.warn(
            "The identifier 'L1L2' means `L1L2(l1=0.0, l2=0.0)`, which penalizes nothing. Did you mean 'l1_l2', which "
            "means `L1L2(l1=0.01, l2=0.01)`?",
            stacklevel=3,
        )
    if isinstance(config, dict) and "module" in config:
        config = _config_for_lookup(config, names, custom, use_legacy_format)
    saving = tf_keras.utils.legacy if use_legacy_format else tf_keras.saving
    try:
        result = saving.deserialize_keras_object(
            config, module_objects=known, custom_objects=custom_objects, printable_module_name="regularizer"
        )
    except (AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"Could not interpret regularizer config {short_repr(config)}: {error!r}") from error
    if inspect.isclass(result):  # tf_keras returns the class for the name of a custom object
        result = result()
    if not callable(result) or any(result is function for function in (get, serialize, deserialize, l1_l2)):
        raise ValueError(f"Could not interpret regularizer config {short_repr(config)}: it names {short_repr(result)}")
    return result


def _config_for_lookup(config, names, custom, use_legacy_format):
    """The config of a known class, with the name under which Keras finds the class."""
    # Keras imports the module unless the class is a custom object. A class of the main program has no module.
    config = {**config, "module": config["module"] and "keras.regularizers"}
    if config.get("registered_name") and config["registered_name"] not in custom and names[0] in custom:
        config["registered_name"] = names[0]
    elif not use_legacy_format and names[0] == config["class_name"] not in custom and names[-1] in custom:
        config["class_name"] = names[-1]  # for Keras's legacy loader
    return config


class _MissingRegularizer(Regularizer):  # type: ignore[misc]
    """A stand-in for a regularizer of a saved model whose class this program lacks.

    The model loads and predicts, as in tf_keras. The stand-in is saved with the config it was loaded from.
    """

    def __init__(self, config, message):
        self.config, self.message = config, message

    def __call__(self, x):
        raise ValueError(self.message)

    def __repr__(self):
        return f"<{self.message.partition('.')[0]}>"


def _parse(config):
    """The names under which to look up a config, the class name first, and the arguments."""
    if isinstance(config, str):
        return [config], {}
    if not isinstance(config, dict):
        raise ValueError(f"Could not interpret regularizer config: {short_repr(config)}")
    name, inner, registered = map(config.get, ("class_name", "config", "registered_name"))
    is_function = name == "function" and isinstance(inner, str)
    has_arguments = is_function or ("config" in config and isinstance(inner, (dict, type(None))))
    if not (isinstance(name, str) and has_arguments and isinstance(registered, (str, type(None)))):
        raise ValueError(
            "Improper regularizer config. Expected a dict with the keys `class_name` (a string) and `config` (a dict), "
            f"and optionally `registered_name` (a string). Received: {short_repr(config)}"
        )
    if is_function:
        return [inner], {}
    return [name] + ([registered] if registered else []), inner or {}


def _unknown_name(name, custom):
    """The message for an unknown name, with the most similar name and all valid ones."""
    packages = {other: str(getattr(obj, "__module__", "")).split(".")[0] for other, obj in custom.items()}
    own = [other for other, package in packages.items() if package not in ("tf_keras", "tfk_regularizers")]
    candidates = {other.lower(): other for other in reversed(_IN_STRINGS)}  # the short names win
    candidates |= _SYNONYMS | {other.lower(): other for other in own}
    nearest = difflib.get_close_matches(name[:100].lower(), candidates, n=1, cutoff=0.5)
    hint = f" Did you mean {candidates[nearest[0]]!r}?" if nearest else ""
    listed = ", ".join(map(repr, (*_IN_STRINGS, *own[:20]))) + (", …" if len(own) > 20 else "")
    return (
        f"Unknown regularizer: {short_repr(name)}.{hint} Expected one of {listed}. To use a class of your "
        "own by name, register it with `register_keras_serializable`, or pass it in `custom_objects` or a "
        "`custom_object_scope`."
    )
