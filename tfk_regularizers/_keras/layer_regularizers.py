"""Set the regularizers of a single built layer, in a way that can be taken back."""

import contextlib
from typing import Any

from tfk_regularizers._keras import layers
from tfk_regularizers._keras.versions import SUPPORTED


def set_weight_regularizer(
    layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
) -> None:
    """Let a built layer penalize a weight as if constructed so. The attribute of a built layer has no effect."""
    undo.callback(layer._callable_losses.__setitem__, slice(None), list(layer._callable_losses))
    old = {id(loss.penalty) for loss in layers.weight_losses(layer) if any(loss.variable is one for one in variables)}
    layer._callable_losses[:] = [loss for loss in layer._callable_losses if id(loss) not in old]
    if regularizer is not None:
        for variable in variables:
            layer._handle_weight_regularization(variable.name.split(":")[0], variable, regularizer)
        # The order in which a rebuilt layer has them. Losses of no weight, the user's own, come last.
        places = {id(variable): place for place, variable in enumerate(layers.all_weights(layer))}
        order = {id(loss.penalty): places.get(id(loss.variable)) for loss in layers.weight_losses(layer)}
        layer._callable_losses.sort(key=lambda loss: order.get(id(loss), len(places)))
    penalized = [loss for loss in layers.weight_losses(layer) if any(loss.variable is one for one in variables)]
    if len(penalized) != (0 if regularizer is None else len(variables)):
        raise RuntimeError(f"tfk_regularizers supports {SUPPORTED}, which keeps penalties elsewhere.")
    assign(layer, layers.regularizer_attributes(layer)[keyword], regularizer, undo)


def set_activity_regularizer(layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
    """Replace the regularizer of a layer's output, and drop the penalties of the old one.

    The eager losses are those of the last call; the next call makes them anew.
    """
    for losses in (layer._losses, layer._eager_losses):
        undo.callback(losses.__setitem__, slice(None), list(losses))
    old = {id(loss) for loss in layers.activity_losses(layer)}
    layer._losses[:] = [loss for loss in layer._losses if id(loss) not in old]
    layer._eager_losses[:] = []
    assign(layer, "activity_regularizer", regularizer, undo)


def assign(obj: Any, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set an attribute, and note how to take that back."""
    if hasattr(obj, name):
        undo.callback(setattr, obj, name, getattr(obj, name))
    else:
        undo.callback(delattr, obj, name)
    setattr(obj, name, value)
