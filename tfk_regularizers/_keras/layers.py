"""Sublayers, weights and regularizer attributes of a layer of either Keras."""

import contextlib
import inspect
from typing import Any, NamedTuple

import tf_keras

from tfk_regularizers._keras import versions


def sublayers(layer: Any) -> list[Any]:
    """The direct sublayers of a layer. Only models have a public list of them, and it is incomplete."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def all_weights(layer: Any) -> list[Any]:
    """The weights of a layer and of the layers inside it. `weights` of an unbuilt model may raise an error."""
    if not isinstance(layer, tf_keras.Model) or layer.built:
        return list(layer.weights)
    inner = layer._flatten_layers()
    return [weight for one in inner for weight in (*one._trainable_weights, *one._non_trainable_weights)]


def own_weights(layer: Any) -> list[Any]:
    """The weights of a layer without those of its sublayers, in order of creation."""
    inner = {id(variable) for sublayer in sublayers(layer) for variable in all_weights(sublayer)}
    return [variable for variable in all_weights(layer) if id(variable) not in inner]


def regularizer_attributes(layer: Any) -> dict[str, str]:
    """The regularizer attributes of a layer, by keyword. The attribute may begin with an underscore.

    An RNN layer has properties instead, which read its cell. The cell is a layer itself.
    """
    return {name.lstrip("_"): name for name in vars(layer) if name.endswith("_regularizer")}


def held_regularizer(layer: Any, keyword: str) -> Any:
    """The regularizer in a layer's attribute. For weights, it has an effect only if it was set before building."""
    return getattr(layer, regularizer_attributes(layer).get(keyword, keyword), None)


def is_built(layer: Any) -> bool:
    """Whether a layer has its weights. A model whose step calls its layers one by one is never `built`."""
    return bool(layer.built or all_weights(layer))


class WeightLoss(NamedTuple):
    """A regularized variable, its regularizer, and the function that returns its penalty."""

    variable: Any
    regularizer: Any
    compute_penalty: Any


def constructor_takes(layer: Any, keyword: str) -> bool:
    """Whether the constructor of a layer, or of a base class other than `Layer`, has an argument of this name."""
    classes = [cls for cls in type(layer).__mro__ if cls not in versions.layer_bases()]
    constructors = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)]
    return any(keyword in inspect.signature(constructor).parameters for constructor in constructors)


def assign(obj: Any, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set an attribute, and add to `undo` how to restore it."""
    if hasattr(obj, name):
        undo.callback(setattr, obj, name, getattr(obj, name))
    else:
        undo.callback(delattr, obj, name)
    setattr(obj, name, value)
