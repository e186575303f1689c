"""Weights, penalties and configs of single layers."""

import contextlib
import functools
import inspect
import re
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras.versions import SUPPORTED


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer of either Keras holds itself; only a model has a public list, and not of all of them."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def own_weights(layer: Any) -> list[Any]:
    """The weights of a layer of either Keras that belong to none of its sublayers, in order of creation."""
    inner = {id(variable) for sublayer in sublayers(layer) for variable in sublayer.weights}
    return [variable for variable in layer.weights if id(variable) not in inner]


def keywords(layer: Any) -> set[str]:
    """The names of the attributes of a layer for regularizers of weights.

    An RNN layer has properties instead, which read its cell. The cell is a layer itself.
    """
    return {name for name in vars(layer) if name.endswith("_regularizer")}


def own_regularizers(layer: Any) -> list[Any]:
    """The regularizers that a layer holds itself."""
    return [value for name, value in vars(layer).items() if name.endswith("_regularizer") and value is not None]


def is_revived(layer: Any) -> bool:
    """Whether Keras has loaded a layer from a SavedModel without its class: it is made of graphs that cannot change."""
    return any(cls.__name__ == "RevivedLayer" for cls in type(layer).__mro__)


def regularized_weight(layer: Any, keyword: str) -> list[Any]:
    """The variables of the weight that `X_regularizer` regularizes: the attribute `X` or `X_kernel`."""
    if keyword not in keywords(layer):
        return []
    name = keyword.removesuffix("_regularizer")
    weight = getattr(layer, name, None)
    weight = weight if weight is not None else getattr(layer, f"{name}_kernel", None)
    if weight is None or _variables_of(weight):
        return _variables_of(weight)
    # A wrapper, such as one that quantizes, has put a tensor in the place of the variable.
    names = (name, f"{name}_kernel")
    return [variable for variable in own_weights(layer) if variable.name.rpartition("/")[2].split(":")[0] in names]


def _variables_of(weight: Any) -> list[Any]:
    """A weight as a list of variables: the shards of a partitioned one."""
    if type(weight).__name__ == "ShardedVariable":
        return list(weight.variables)
    return [weight] if isinstance(weight, tf.Variable) else []


def weight_losses(layer: Any, model: Any = None) -> list[tuple[Any, Any]]:
    """The regularized variables of a layer, each with a function that returns its penalty.

    In Keras 3 a variable has its regularizer as an attribute, and only the model's trainable weights are penalized.
    """
    if isinstance(layer, tf_keras.layers.Layer):
        pairs = [(_regularized_variable(loss), loss) for loss in layer._callable_losses]
        return [(variable, loss) for variable, loss in pairs if variable is not None]
    penalized = {id(variable) for variable in model.trainable_weights if variable.regularizer is not None}
    variables = [variable for variable in own_weights(layer) if id(variable) in penalized]
    return [(variable, functools.partial(variable.regularizer, variable)) for variable in variables]


def penalized_variables(layer: Any) -> list[Any]:
    """For each of the losses that a layer of tf_keras itself adds to `losses`, the penalized variable, or None."""
    others = layer._eager_losses or layer._losses
    return [None] * len(others) + [_regularized_variable(loss) for loss in layer._callable_losses]


def _regularized_variable(loss: Any) -> Any:
    """The variable of a loss that `add_weight` made, identified by its function; None for other losses."""
    inner = (getattr(loss, "args", None) or [None])[0]
    name = getattr(getattr(inner, "func", None), "__qualname__", "")
    return inner.args[0] if name.endswith("_handle_weight_regularization.<locals>._loss_for_variable") else None


def active_regularizers(layer: Any) -> list[tuple[Any, Any]]:
    """Pairs of a target and its regularizer, for all regularizers that have an effect in a layer itself.

    A target is a variable, the name of a weight that is not built yet, or "activity". An attribute that was set on a
    built layer has no effect.
    """
    calls = [(variable, inspect.getclosurevars(loss.args[0].func)) for variable, loss in weight_losses(layer)]
    pairs = [(variable, call.nonlocals["regularizer"]) for variable, call in calls]
    if not layer.built:
        names = [name for name in keywords(layer) if "activity" not in name]
        pairs += [(name.removesuffix("_regularizer").lstrip("_"), getattr(layer, name)) for name in names]
    pairs.append(("activity", getattr(layer, "activity_regularizer", None)))
    return [(target, regularizer) for target, regularizer in pairs if regularizer is not None]


def set_weight_regularizer(
    layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
) -> None:
    """Let a built layer penalize a weight as if constructed so. The attribute of a built layer has no effect."""
    undo.callback(layer._callable_losses.__setitem__, slice(None), list(layer._callable_losses))
    ids = {id(variable) for variable in variables}
    layer._callable_losses[:] = [loss for loss in layer._callable_losses if id(_regularized_variable(loss)) not in ids]
    if regularizer is not None:
        for variable in variables:
            layer._handle_weight_regularization(variable.name.split(":")[0], variable, regularizer)
        # The order in which a rebuilt layer has them. Losses of no weight, the user's own, come last.
        order = {id(variable): position for position, variable in enumerate(layer.weights)}
        layer._callable_losses.sort(key=lambda loss: order.get(id(_regularized_variable(loss)), len(order)))
    penalized = [variable for variable, _ in weight_losses(layer) if id(variable) in ids]
    if len(penalized) != (0 if regularizer is None else len(variables)):
        raise RuntimeError(f"tfk_regularizers supports {SUPPORTED}, which keeps penalties elsewhere.")
    _assign(layer, keyword, regularizer, undo)


def takes_activity_regularizer(layer: Any) -> bool:
    """Whether the constructor names an activity regularizer: these layers write it to their config.

    An EinsumDense names it and drops it.
    """
    if isinstance(layer, tf_keras.layers.EinsumDense):
        return False
    constructors = [vars(cls)["__init__"] for cls in type(layer).__mro__ if "__init__" in vars(cls)]
    return any("activity_regularizer" in inspect.signature(constructor).parameters for constructor in constructors)


def set_activity_regularizer(layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
    """Replace the regularizer of a layer's output, and drop the penalties of the old one.

    The eager losses are those of the last call; the next call makes them anew.
    """
    for losses in (layer._losses, layer._eager_losses):
        undo.callback(losses.__setitem__, slice(None), list(losses))
    old = {id(loss) for loss in activity_losses(layer)}
    layer._losses[:] = [loss for loss in layer._losses if id(loss) not in old]
    layer._eager_losses[:] = []
    _assign(layer, "activity_regularizer", regularizer, undo)


def activity_losses(layer: Any) -> list[Any]:
    """The losses of an activity regularizer in a Functional model, identified by their name scope."""
    return [loss for loss in layer._losses if re.search(r"ActivityRegularizer(_\d+)?/", loss.name)]


def sample_outputs(layer: Any) -> list[Any]:
    """Zeros of the shapes of a layer's outputs, for a batch of one; none if only a call tells the shapes."""
    try:
        outputs = tf.nest.flatten(layer.get_output_at(0))
    except (AttributeError, RuntimeError, ValueError):
        return []
    return [tf.zeros([size or 1 for size in output.shape], output.dtype) for output in outputs]


def check_enclosing_config(owner: Any, keyword: str, changed: set[int]) -> None:
    """Raise ValueError if the config of a layer cannot hold a change of some of the layers inside it."""
    if isinstance(owner, tf_keras.layers.MultiHeadAttention):
        projections = {id(layer) for layer in sublayers(owner) if isinstance(layer, tf_keras.layers.EinsumDense)}
        if not projections <= changed:
            raise ValueError(
                f"The config of {owner.name!r}, a MultiHeadAttention, holds one `{keyword}` for all its projections. "
                "Expected `where` to choose all of them or none."
            )


def update_enclosing_config(owner: Any, keyword: str, undo: contextlib.ExitStack) -> None:
    """Bring the config of a layer in line with the layers inside it, where it does not come from them.

    A MultiHeadAttention saves one regularizer for all its projections. A Bidirectional saves the unbuilt layer that it
    copied for both directions, and the config of a backward layer that it was given.
    """
    if isinstance(owner, tf_keras.layers.MultiHeadAttention):
        projections = [layer for layer in sublayers(owner) if isinstance(layer, tf_keras.layers.EinsumDense)]
        _assign(owner, f"_{keyword}", getattr(projections[0], keyword), undo)
    elif isinstance(owner, tf_keras.layers.Bidirectional):
        pairs = zip(owner.layer._flatten_layers(), owner.forward_layer._flatten_layers(), strict=False)
        for template, layer in pairs:
            for name in keywords(layer):
                _assign(template, name, getattr(layer, name), undo)
        differ = _direction_config(owner.forward_layer) != _direction_config(owner.backward_layer)
        if differ or hasattr(owner, "_backward_layer_config"):
            config = tf_keras.saving.serialize_keras_object(owner.backward_layer)
            config["config"]["name"] = owner.backward_layer.name.removeprefix("backward_")
            _assign(owner, "_backward_layer_config", config, undo)


def _direction_config(layer: Any) -> dict[str, Any]:
    """The config of one direction of a Bidirectional, without the entries in which the two always differ."""
    return {key: value for key, value in layer.get_config().items() if key not in ("name", "go_backwards")}


def _assign(obj: Any, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set an attribute, and note how to take that back."""
    if hasattr(obj, name):
        undo.callback(setattr, obj, name, getattr(obj, name))
    else:
        undo.callback(delattr, obj, name)
    setattr(obj, name, value)
