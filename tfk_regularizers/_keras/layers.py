"""What a single layer has in either Keras: sublayers, weights, attributes for regularizers."""

import contextlib
import inspect
from typing import Any, NamedTuple

import tf_keras

from tfk_regularizers._keras import versions


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer of either Keras holds itself; only a model has a public list, and not of all of them."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def all_weights(layer: Any) -> list[Any]:
    """The weights of a layer of either Keras and of those inside it. A model that is not built may refuse `weights`."""
    if not isinstance(layer, tf_keras.Model) or layer.built:
        return list(layer.weights)
    inner = layer._flatten_layers()
    return [weight for one in inner for weight in (*one._trainable_weights, *one._non_trainable_weights)]


def own_weights(layer: Any) -> list[Any]:
    """The weights of a layer of either Keras without those of its sublayers, in order of creation."""
    inner = {id(variable) for sublayer in sublayers(layer) for variable in all_weights(sublayer)}
    return [variable for variable in all_weights(layer) if id(variable) not in inner]


def regularizer_attributes(layer: Any) -> dict[str, str]:
    """The attributes of a layer for regularizers, by keyword: `kernel_regularizer` may be kept with an underscore.

    An RNN layer has properties instead, which read its cell. The cell is a layer itself.
    """
    return {name.lstrip("_"): name for name in vars(layer) if name.endswith("_regularizer")}


def held_regularizer(layer: Any, keyword: str) -> Any:
    """The regularizer that a layer holds under a keyword. It has an effect if it was there when the layer was built."""
    return getattr(layer, regularizer_attributes(layer).get(keyword, keyword), None)


def is_built(layer: Any) -> bool:
    """Whether a layer of either Keras has its weights. A model that its own step calls in parts is never `built`."""
    return bool(layer.built or all_weights(layer))


class WeightLoss(NamedTuple):
    """A regularized variable, its regularizer, and the function that returns its penalty."""

    variable: Any
    regularizer: Any
    penalty: Any


def constructor_takes(layer: Any, keyword: str) -> bool:
    """Whether the constructor of a layer, or of a base class but `Layer` itself, names an argument."""
    classes = [cls for cls in type(layer).__mro__ if cls not in versions.layer_bases()]
    constructors = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)]
    return any(keyword in inspect.signature(constructor).parameters for constructor in constructors)


def assign(obj: Any, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set an attribute, and note how to take that back."""
    if hasattr(obj, name):
        undo.callback(setattr, obj, name, getattr(obj, name))
    else:
        undo.callback(delattr, obj, name)
    setattr(obj, name, value)
