"""What a single layer has: sublayers, weights, regularizers, penalties."""

import functools
import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from tfk_regularizers._tensorflow_internals import is_sharded


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
    """The weights of a layer of either Keras that belong to none of its sublayers, in order of creation."""
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


def is_revived(layer: Any) -> bool:
    """Whether Keras has loaded a layer from a SavedModel without its class: it is made of graphs that cannot change."""
    return any(cls.__name__ == "RevivedLayer" for cls in type(layer).__mro__)


def regularized_weight(layer: Any, keyword: str, enclosing: Iterable[Any] = ()) -> list[Any]:
    """The variables that `X_regularizer` regularizes: those that it penalizes now, otherwise those called X."""
    keywords = regularizer_attributes(layer)
    if keyword not in keywords:
        return []
    regularizer, named = held_regularizer(layer, keyword), _weight_called(keyword, layer, enclosing)
    others = [held_regularizer(layer, other) for other in keywords if other not in (keyword, "activity_regularizer")]
    if any(other is regularizer for other in others):  # then the name alone tells which weight is meant
        return named
    return [loss.variable for loss in weight_losses(layer) if loss.regularizer is regularizer] or named


def _weight_called(keyword: str, layer: Any, enclosing: Iterable[Any]) -> list[Any]:
    """The variables of the attribute `X` or `X_kernel` for `X_regularizer`, otherwise the weights of such names."""
    name = keyword.removesuffix("_regularizer")
    for attribute in (name, f"{name}_kernel"):
        weight: Any = getattr(layer, attribute, None)
        if is_sharded(weight) or isinstance(weight, tf.Variable):
            return list(weight.variables) if is_sharded(weight) else [weight]
    # A wrapper that quantizes, for instance, puts a tensor in the place of the variable, and may keep that itself.
    wrappers = [one for one in enclosing if isinstance(one, tf_keras.layers.Wrapper) and one.layer is layer]
    weights = [variable for one in (layer, *wrappers) for variable in own_weights(one) if variable.trainable]
    names = [(variable.name.rpartition("/")[2].split(":")[0], variable) for variable in weights]
    equal = [variable for other, variable in names if other in (name, f"{name}_kernel")]
    return equal or [variable for other, variable in names if other.startswith(f"{name}_")]


class WeightLoss(NamedTuple):
    """A regularized variable, its regularizer, and the function that returns its penalty."""

    variable: Any
    regularizer: Any
    penalty: Any


def weight_losses(layer: Any, model: Any = None) -> list[WeightLoss]:
    """The penalties of a layer's weights.

    In Keras 3 a variable has its regularizer as an attribute, and only the model's trainable weights are penalized.
    """
    if isinstance(layer, tf_keras.layers.Layer):
        return [found for found in map(as_weight_loss, layer._callable_losses) if found is not None]
    penalized = {id(variable) for variable in model.trainable_weights if variable.regularizer is not None}
    variables = [variable for variable in own_weights(layer) if id(variable) in penalized]
    return [WeightLoss(one, one.regularizer, functools.partial(one.regularizer, one)) for one in variables]


def as_weight_loss(loss: Any) -> WeightLoss | None:
    """A loss of a layer of tf_keras as the penalty of a weight, if `add_weight` made it: its function tells."""
    inner = (getattr(loss, "args", None) or [None])[0]
    function: Any = getattr(inner, "func", None)
    if not getattr(function, "__qualname__", "").endswith("_handle_weight_regularization.<locals>._loss_for_variable"):
        return None
    return WeightLoss(inner.args[0], inspect.getclosurevars(function).nonlocals["regularizer"], loss)


def active_regularizers(layer: Any) -> list[tuple[Any, Any]]:
    """Pairs of a target and its regularizer, for all regularizers that have an effect in a layer itself.

    A target is a variable, the name of a weight that is not built yet, or "activity". An attribute that was set on a
    built layer has no effect.
    """
    pairs = [(loss.variable, loss.regularizer) for loss in weight_losses(layer)]
    if not is_built(layer):
        names = [name for name in regularizer_attributes(layer) if name != "activity_regularizer"]
        pairs += [(name.removesuffix("_regularizer"), held_regularizer(layer, name)) for name in names]
    pairs.append(("activity", getattr(layer, "activity_regularizer", None)))
    return [(target, regularizer) for target, regularizer in pairs if regularizer is not None]


def takes_activity_regularizer(layer: Any) -> bool:
    """Whether a layer takes an activity regularizer by name, and saves it. An EinsumDense drops it."""
    return constructor_takes(layer, "activity_regularizer") and not isinstance(layer, tf_keras.layers.EinsumDense)


def constructor_takes(layer: Any, keyword: str) -> bool:
    """Whether the constructor of a layer, or of a base class, names an argument."""
    constructors = [vars(cls)["__init__"] for cls in type(layer).__mro__ if "__init__" in vars(cls)]
    return any(keyword in inspect.signature(constructor).parameters for constructor in constructors)


def activity_losses(layer: Any) -> list[Any]:
    """The losses of an activity regularizer in a Functional model, identified by their name scope."""
    return [loss for loss in layer._losses if re.search(r"ActivityRegularizer(_\d+)?/", loss.name)]


def zero_outputs(layer: Any) -> list[Any]:
    """Zeros of the shapes of a layer's outputs, for a batch of one; none if only a call tells the shapes."""
    try:
        outputs = tf.nest.flatten(layer.get_output_at(0))
    except (AttributeError, RuntimeError, ValueError):
        return []
    return [tf.zeros([size or 1 for size in output.shape], output.dtype) for output in outputs]
