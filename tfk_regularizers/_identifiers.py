"""From identifiers and configs to regularizers, and back: get, serialize, deserialize."""

import difflib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, overload

import tf_keras
from tf_keras.regularizers import Regularizer

from tfk_regularizers import _earlier
from tfk_regularizers._keras import registry, versions
from tfk_regularizers._penalties import PENALTIES, l1_l2
from tfk_regularizers._penalties.arguments import shown

_BY_NAME = {name: make for entry in PENALTIES for name, make in entry.identifiers.items()}
_IN_CONFIGS = {entry.cls.__name__: entry.cls for entry in PENALTIES} | _BY_NAME  # which say of what a sum is
_LIBRARIES = ("tf_keras", "tfk_regularizers")  # what they register is not the user's own
_OTHER_WORDS = {  # of the field for what has another name here
    "ridge": "l2",
    "weight_decay": "l2",
    "lasso": "l1",
    "elastic_net": "l1_l2",
    "orthogonal": "orthogonal_regularizer",
    "sampled_orthogonal": "SampledOrthogonalRegularizer",
    "soft_orthogonal": "SoftOrthogonalRegularizer",
    "group_lasso": "GroupLasso",
    "l1l2": "l1_l2",  # what "L1L2" stands for does nothing
}
IDENTIFIERS = tuple(name for entry in PENALTIES if entry.in_keras for name in entry.identifiers)

_Some = TypeVar("_Some", bound=Callable[..., Any])


@overload
def get(identifier: _Some) -> _Some: ...
@overload
def get(identifier: str | dict[str, Any]) -> Regularizer: ...
@overload
def get(identifier: None) -> None: ...
def get(identifier: Any) -> Any:
    """Returns the regularizer that an identifier or a config stands for.

    Args:
        identifier: One of the strings `"l1"`, `"l2"`, `"l1_l2"`, `"L1"`, `"L2"`, `"L1L2"`, `"orthogonal_regularizer"`,
            `"OrthogonalRegularizer"` or a name among the custom objects; a config dict, in the new format (with a
            `"module"`) or the legacy one; an instance or any other callable; or `None`.

    Returns:
        A regularizer; a callable that is none and `None` are returned as they are. A config that names the module of
        a class or function which this program lacks gives a stand-in that raises the error when it is called: a model
        that was saved with it still loads and predicts. (Of a class of the main program files name no module.)

    Warns:
        UserWarning: Once a process, if a regularizer of tf_keras itself is passed, of a name from before the import.

    Raises:
        ValueError: If the string or the config names no regularizer, if a factor in the config is not a finite number,
            or if the identifier is of another type or is a `Regularizer` class instead of an instance.
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
    if identifier is l1_l2 or _is_class(identifier):
        kind, name = "class" if _is_class(identifier) else "function", identifier.__name__
        raise ValueError(
            f"Expected an instance of a regularizer. Received: the {kind} {name}; did you mean `{name}()`?"
        )
    if callable(identifier):
        _earlier.tell_of_a_name(identifier)
        return identifier
    several = " For several on one weight write `L2() + OrthogonalRegularizer()`."
    raise ValueError(
        f"Could not interpret regularizer identifier: {shown(identifier)}. Expected a regularizer, such as `L2(0.01)`, "
        f"its name, its config or None.{several if isinstance(identifier, (list, tuple)) else ''}"
    )


@overload
def serialize(regularizer: Callable[..., Any], use_legacy_format: bool = False) -> dict[str, Any]: ...
@overload
def serialize(regularizer: None, use_legacy_format: bool = False) -> None: ...
def serialize(regularizer: Any, use_legacy_format: bool = False) -> Any:
    """Returns the config of a regularizer, the same that tf_keras writes.

    Args:
        regularizer: A regularizer, or `None`.
        use_legacy_format: Boolean, whether to write the format of `.h5` files and SavedModels instead of the one of
            `.keras` files. Defaults to `False`.

    Returns:
        A dict that JSON can hold, or `None`.

    Warns:
        UserWarning: If `regularizer` is not a `Regularizer`.

    >>> serialize(L2(0.5))
    {'module': 'keras.regularizers', 'class_name': 'L2', 'config': {'l2': 0.5}, 'registered_name': None}
    >>> serialize(L2(0.5), use_legacy_format=True)
    {'class_name': 'L2', 'config': {'l2': 0.5}}
    """
    if regularizer is None:
        return None
    if isinstance(regularizer, _Missing):
        return dict(regularizer.config)
    if not isinstance(regularizer, versions.regularizer_bases()):
        warnings.warn(
            "`regularizers.serialize()` is for objects of type `Regularizer`. Received an object of type "
            f"{type(regularizer).__name__}, which may be serialized improperly.",
            stacklevel=2,
        )
    saving = tf_keras.utils.legacy if use_legacy_format else tf_keras.saving
    return saving.serialize_keras_object(regularizer)


def deserialize(
    config: Any, custom_objects: dict[str, Any] | None = None, use_legacy_format: bool = False
) -> Regularizer:
    """Returns the regularizer that a config stands for: the inverse of `serialize`.

    Args:
        config: A config dict, or anything else that `get` takes.
        custom_objects: A dict from names to the user's classes and functions, which win over this package's. Defaults
            to `None`.
        use_legacy_format: Boolean, whether the config is in the format of `.h5` files and SavedModels. Defaults to
            `False`.

    Returns:
        A regularizer; a callable that is none and `None` are returned as they are. A config that names the module of
        a class or function which this program lacks gives a stand-in that raises the error when it is called: a model
        that was saved with it still loads and predicts. (Of a class of the main program files name no module.)

    Raises:
        ValueError: If the config names no regularizer or is malformed, or a factor in it is not a finite number.
        TypeError: If the config has arguments that the regularizer does not take.

    >>> deserialize({"class_name": "OrthogonalRegularizer", "config": {"factor": 0.5, "mode": "rows"}})
    OrthogonalRegularizer(factor=0.5, mode='rows')
    """
    if config is None or callable(config):
        return config
    names, arguments = _parse(config)
    custom = registry.custom_objects(custom_objects)
    is_custom = any(name in custom for name in names)
    known = _BY_NAME if isinstance(config, str) else _IN_CONFIGS
    if not is_custom and names[0] not in known:
        if not use_legacy_format and _is_of_a_program(config):
            return _Missing(config, _unknown(names[0], custom))
        raise ValueError(_unknown(names[0], custom))
    if config == "l1_l2" or (names[0] == "l1_l2" and not is_custom):
        return l1_l2(**arguments)
    if config == "L1L2" and not is_custom:
        warnings.warn(
            "The identifier 'L1L2' stands for `L1L2(l1=0.0, l2=0.0)`, which does nothing. 'l1_l2', which stands for "
            "`L1L2(l1=0.01, l2=0.01)`, was probably meant.",
            stacklevel=3,
        )
    if isinstance(config, dict) and "module" in config:
        # Keras imports the module of a config whose class it does not find among the custom objects. For a class of the
        # main program it writes none.
        config = {**config, "module": config["module"] and "keras.regularizers"}
        if config.get("registered_name") and config["registered_name"] not in custom and names[0] in custom:
            config["registered_name"] = names[0]  # the one name that it looks for
        elif not use_legacy_format and names[0] == config["class_name"] not in custom and names[-1] in custom:
            config["class_name"] = names[-1]  # the one name that it looks for while it opens an .h5 file
    saving = tf_keras.utils.legacy if use_legacy_format else tf_keras.saving
    try:
        result = saving.deserialize_keras_object(
            config, module_objects=known, custom_objects=custom_objects, printable_module_name="regularizer"
        )
    except (AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"Could not interpret regularizer config {shown(config)}: {error!r}") from error
    if inspect.isclass(result):  # which tf_keras gives for a name among the custom objects
        result = result()
    if not callable(result) or any(result is function for function in (get, serialize, deserialize, l1_l2)):
        raise ValueError(f"Could not interpret regularizer config {shown(config)}: it gives {shown(result)}")
    return result


class _Missing(Regularizer):  # type: ignore[misc]
    """Stands for what a file names and the program lacks: all but its penalty goes on, as in tf_keras.

    It is saved as it was loaded, so that the file opens where the regularizer is known.
    """

    def __init__(self, config, message):
        self.config, self.message = config, message

    def __call__(self, x):
        raise ValueError(self.message)

    def __repr__(self):
        return f"<{self.message.partition('.')[0]}>"


def _is_of_a_program(config):
    """Whether a config is of a class or function that some program has, in the format that says where it was."""
    module = config.get("module") if isinstance(config, dict) else None
    return isinstance(module, str) and module.split(".")[0] not in ("keras", "tf_keras")


def _is_class(value):
    """Whether the value is a class of regularizers instead of one of them."""
    return inspect.isclass(value) and issubclass(value, versions.regularizer_bases())


def _parse(config):
    """The names that a config may be found under, its own first, and its arguments."""
    if isinstance(config, str):
        return [config], {}
    if not isinstance(config, dict):
        raise ValueError(f"Could not interpret regularizer config: {shown(config)}")
    name, inner = config.get("class_name"), config.get("config")
    is_function = name == "function" and isinstance(inner, str)
    if (
        not isinstance(name, str)
        or "config" not in config
        or not (isinstance(inner, dict) or inner is None or is_function)
    ):
        raise ValueError(
            "Improper regularizer config. Expected a dict with the keys `class_name`, a string, and `config`, a dict. "
            f"Received: {shown(config)}"
        )
    registered = config.get("registered_name")
    if registered is not None and not isinstance(registered, str):
        raise ValueError(
            f"Improper regularizer config. Expected `registered_name` to be a string. Received: {shown(config)}"
        )
    if is_function:
        return [inner], {}
    return [name] + ([registered] if registered else []), inner or {}


def _unknown(name, custom):
    """The message for a name that stands for nothing: the valid ones and the nearest."""
    own = [
        other for other, obj in custom.items() if str(getattr(obj, "__module__", "")).split(".")[0] not in _LIBRARIES
    ]
    candidates = {other.lower(): other for other in (*_BY_NAME, *reversed(IDENTIFIERS))}
    candidates |= _OTHER_WORDS | {other.lower(): other for other in own}
    nearest = difflib.get_close_matches(name[:100].lower(), candidates, n=1, cutoff=0.5)
    hint = f" Did you mean {candidates[nearest[0]]!r}?" if nearest else ""
    listed = ", ".join(map(repr, (*_BY_NAME, *own[:20]))) + (", …" if len(own) > 20 else "")
    return (
        f"Unknown regularizer: {shown(name)}.{hint} Expected one of {listed}. One of your own is known by its name "
        "once it is registered with `register_keras_serializable`, or given in `custom_objects` or a "
        "`custom_object_scope`."
    )
