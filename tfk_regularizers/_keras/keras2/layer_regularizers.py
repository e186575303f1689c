"""Set regularizers of a built layer, reversibly."""

import contextlib
from typing import Any

import tf_keras

from tfk_regularizers._keras.keras2.layers import activity_losses, weight_losses
from tfk_regularizers._keras.layers import all_weights, assign, regularizer_attributes
from tfk_regularizers._keras.versions import SUPPORTED


def set_weight_regularizer(
    layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
) -> None:
    """Set a built layer's regularizer as if it had been passed to the constructor; its attribute is not enough."""
    undo.callback(layer._callable_losses.__setitem__, slice(None), list(layer._callable_losses))
    old = {id(loss.compute_penalty) for loss in weight_losses(layer) if any(loss.variable is one for one in variables)}
    layer._callable_losses[:] = [loss for loss in layer._callable_losses if id(loss) not in old]
    if regularizer is not None:
        for variable in variables:
            layer._handle_weight_regularization(variable.name.split(":")[0], variable, regularizer)
        # In the order of a newly built layer. Other losses, added by the user, come last.
        places = {id(variable): place for place, variable in enumerate(all_weights(layer))}
        order = {id(loss.compute_penalty): places.get(id(loss.variable)) for loss in weight_losses(layer)}
        layer._callable_losses.sort(key=lambda loss: order.get(id(loss), len(places)))
    penalized = [loss for loss in weight_losses(layer) if any(loss.variable is one for one in variables)]
    if len(penalized) != (0 if regularizer is None else len(variables)):
        raise RuntimeError(f"tfk_regularizers supports {SUPPORTED}, which stores penalties elsewhere.")
    assign(layer, regularizer_attributes(layer)[keyword], regularizer, undo)


def set_activity_regularizer(layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
    """Replace the regularizer of a layer's output, and remove the losses of the old one.

    Eager losses belong to the last call; the next call computes them again.
    """
    for losses in (layer._losses, layer._eager_losses):
        undo.callback(losses.__setitem__, slice(None), list(losses))
    old = {id(loss) for loss in activity_losses(layer)}
    layer._losses[:] = [loss for loss in layer._losses if id(loss) not in old]
    layer._eager_losses[:] = []
    assign(layer, "activity_regularizer", regularizer, undo)


def update_bidirectional(owner: Any, undo: contextlib.ExitStack) -> None:
    """Update the config of a Bidirectional from its two layers.

    It saves the unbuilt layer from which both directions were copied, and the config of a backward layer, if given.
    """
    if not isinstance(owner, tf_keras.layers.Bidirectional):
        return
    for template, layer in zip(owner.layer._flatten_layers(), owner.forward_layer._flatten_layers(), strict=False):
        for name in regularizer_attributes(layer).values():
            assign(template, name, getattr(layer, name), undo)
    differ = _direction_config(owner.forward_layer) != _direction_config(owner.backward_layer)
    if differ or hasattr(owner, "_backward_layer_config"):
        config = tf_keras.saving.serialize_keras_object(owner.backward_layer)
        config["config"]["name"] = owner.backward_layer.name.removeprefix("backward_")
        assign(owner, "_backward_layer_config", config, undo)


def _direction_config(layer: Any) -> dict[str, Any]:
    """The config of one direction of a Bidirectional, without the entries that always differ."""
    return {key: value for key, value in layer.get_config().items() if key not in ("name", "go_backwards")}
