"""The penalties, weights and outputs of a layer of tf_keras."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras.layers import WeightLoss, constructor_takes, own_weights
from tfk_regularizers._tensorflow_internals import is_sharded


def is_revived(layer: Any) -> bool:
    """Whether a layer was loaded from a SavedModel without its class, as graphs, which cannot be changed."""
    return any(cls.__name__ == "RevivedLayer" for cls in type(layer).__mro__)


def weights_called(keyword: str, layer: Any, enclosing: Iterable[Any]) -> list[Any]:
    """The variables in the attribute `X` or `X_kernel` for `X_regularizer`, or else the weights of these names."""
    name = keyword.removesuffix("_regularizer")
    for attribute in (name, f"{name}_kernel"):
        weight: Any = getattr(layer, attribute, None)
        if is_sharded(weight) or isinstance(weight, tf.Variable):
            return list(weight.variables) if is_sharded(weight) else [weight]
    # A wrapper, for instance one that quantizes, may store the variable itself and put a tensor in its place.
    wrappers = [one for one in enclosing if isinstance(one, tf_keras.layers.Wrapper) and one.layer is layer]
    weights = [variable for one in (layer, *wrappers) for variable in own_weights(one) if variable.trainable]
    names = [(variable.name.rpartition("/")[2].split(":")[0], variable) for variable in weights]
    equal = [variable for other, variable in names if other in (name, f"{name}_kernel")]
    return equal or [variable for other, variable in names if other.startswith(f"{name}_")]


def weight_losses(layer: Any, model: Any = None) -> list[WeightLoss]:
    """The penalties of a layer's weights."""
    return [found for found in map(as_weight_loss, layer._callable_losses) if found is not None]


def as_weight_loss(loss: Any) -> WeightLoss | None:
    """The penalty of a weight, if `add_weight` made this loss of a layer; otherwise None."""
    inner = (getattr(loss, "args", None) or [None])[0]
    function: Any = getattr(inner, "func", None)
    if not getattr(function, "__qualname__", "").endswith("_handle_weight_regularization.<locals>._loss_for_variable"):
        return None
    return WeightLoss(inner.args[0], inspect.getclosurevars(function).nonlocals["regularizer"], loss)


def takes_activity_regularizer(layer: Any, enclosing: Iterable[Any]) -> bool:
    """Whether a layer takes an activity regularizer by name, and saves it. An EinsumDense drops it."""
    return constructor_takes(layer, "activity_regularizer") and not isinstance(layer, tf_keras.layers.EinsumDense)


def activity_losses(layer: Any) -> list[Any]:
    """The losses of an activity regularizer in a Functional model, identified by their name scope."""
    return [loss for loss in layer._losses if re.search(r"ActivityRegularizer(_\d+)?/", loss.name)]


def zero_outputs(layer: Any) -> list[Any]:
    """Zeros of the shapes of a layer's outputs, for a batch of one; an empty list if they are unknown."""
    try:
        outputs = tf.nest.flatten(layer.get_output_at(0))
    except (AttributeError, RuntimeError, ValueError):
        return []
    return [tf.zeros([size or 1 for size in output.shape], output.dtype) for output in outputs]


def is_of_keras(layer: Any) -> bool:
    """Whether the class of a layer is Keras's own."""
    return type(layer).__module__.startswith("tf_keras.")


def regularizer_base() -> type:
    """The base class of this Keras's regularizers."""
    return tf_keras.regularizers.Regularizer  # type: ignore[no-any-return]


def as_loss(value: Any) -> Any:
    """The value of a regularizer as a tensor."""
    return value if tf.is_tensor(value) else tf.convert_to_tensor(value, tf_keras.backend.floatx())


def configs_of(regularizer: Any) -> list[Any]:
    """The configs that Keras may write for a regularizer."""
    return [tf_keras.regularizers.serialize(regularizer, use_legacy_format=legacy) for legacy in (False, True)]
