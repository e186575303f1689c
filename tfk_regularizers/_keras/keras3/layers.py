"""The penalties, weights and outputs of a layer of Keras 3."""

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfk_regularizers._keras.layers import WeightLoss, assign, constructor_takes, own_weights, regularizer_attributes


def weight_losses(layer: Any, model: Any = None) -> list[WeightLoss]:
    """The penalties of a layer's weights; with a model, only of those that are trainable and hence penalized."""
    variables = [variable for variable in own_weights(layer) if variable.regularizer is not None]
    if model is not None:
        trainable = {id(variable) for variable in model.trainable_weights}
        variables = [variable for variable in variables if id(variable) in trainable]
    return [WeightLoss(one, one.regularizer, functools.partial(one.regularizer, one)) for one in variables]


def weights_called(keyword: str, layer: Any, enclosing: Iterable[Any]) -> list[Any]:
    """The weights named `X` or `X_kernel` for `X_regularizer`; with LoRA the two that are trained instead."""
    name = keyword.removesuffix("_regularizer")
    names = [name, f"{name}_kernel"]
    if name == "depthwise":
        names.append("kernel")  # of a DepthwiseConv
    weights = own_weights(layer)
    low_rank = [weight for weight in weights if weight.name in (f"lora_{name}_a", f"lora_{name}_b")]
    equal = [weight for weight in weights if weight.name in names]
    return low_rank or equal or [one for one in weights if one.trainable and one.name.startswith(f"{name}_")]


def is_revived(layer: Any) -> bool:
    """False: Keras 3 does not load layers without their class."""
    return False


def takes_activity_regularizer(layer: Any, enclosing: Iterable[Any]) -> bool:
    """Whether a layer takes an activity regularizer by name, only for its own output, applies it, and saves it."""
    if isinstance(layer, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
        return False  # they pass it on to the layers inside
    if any(isinstance(one, keras.layers.TimeDistributed) and one.layer is layer for one in enclosing):
        return False  # it calls the wrapped layer without its activity regularizer
    if isinstance(layer, keras.layers.SimpleRNN):  # whose constructor ignores it in Keras 3.15
        zeros = dict.fromkeys(("kernel_initializer", "recurrent_initializer"), "zeros")  # no random number is drawn
        arguments = {**zeros, "seed": 0, "name": "test"}
        return keras.layers.SimpleRNN(1, activity_regularizer=abs, **arguments).activity_regularizer is abs
    return constructor_takes(layer, "activity_regularizer") or isinstance(layer, keras.layers.Embedding)


def activity_losses(layer: Any) -> list[Any]:
    """Empty: the losses stored in a layer are from its last call."""
    return []


def zero_outputs(layer: Any) -> list[Any]:
    """Zeros of the shapes of a layer's outputs, for a batch of one; an empty list if they are unknown."""
    try:
        outputs = keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):
        return []
    return [tf.zeros([size or 1 for size in output.shape], output.dtype) for output in outputs]


def set_weight_regularizer(
    layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
) -> None:
    """Set a regularizer of a built layer, as if it had been passed to the constructor: each variable has one."""
    for variable in variables:
        assign(variable, "regularizer", regularizer, undo)
    assign(layer, regularizer_attributes(layer)[keyword], regularizer, undo)


def set_activity_regularizer(layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
    """Replace the regularizer of a layer's output, and remove the losses of the last call."""
    undo.callback(layer._losses.__setitem__, slice(None), list(layer._losses))
    layer._losses[:] = []
    assign(layer, "activity_regularizer", regularizer, undo)


def update_bidirectional(owner: Any, undo: contextlib.ExitStack) -> None:
    """Does nothing: a Bidirectional of Keras 3 saves its two layers."""


def is_of_keras(layer: Any) -> bool:
    """Whether the class of a layer is Keras's own."""
    return type(layer).__module__.startswith("keras.")


def regularizer_base() -> type:
    """The base class of this Keras's regularizers."""
    return keras.regularizers.Regularizer  # type: ignore[no-any-return]


def as_loss(value: Any) -> Any:
    """The value of a regularizer as a tensor; TypeError for a Python number, which Keras 3 cannot add to a loss."""
    if not hasattr(value, "dtype"):
        raise TypeError("Keras 3 adds only tensors. Return one: `keras.ops.convert_to_tensor(0.0)`.")
    return tf.convert_to_tensor(value)


def configs_of(regularizer: Any) -> list[Any]:
    """The configs that Keras may write for a regularizer."""
    return [keras.regularizers.serialize(regularizer)]
