"""The Keras that a model belongs to: the packages `keras2` (tf_keras) and `keras3` have the same functions."""

import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

import tf_keras

from tfk_regularizers._keras import keras2, versions
from tfk_regularizers._keras.layers import WeightLoss
from tfk_regularizers._messages import short_repr


class Host(Protocol):
    """The functions that both packages have."""

    def weight_losses(self, layer: Any, model: Any = None) -> list[WeightLoss]:
        """The penalties of the layer's own weights; with a model, only those in the model's loss."""

    def weights_called(self, keyword: str, layer: Any, enclosing: Iterable[Any]) -> list[Any]:
        """The weights of the layer that a keyword names, as `kernel_regularizer` names the kernel."""

    def is_revived(self, layer: Any) -> bool:
        """Whether the layer was loaded from a SavedModel without its class."""

    def takes_activity_regularizer(self, layer: Any, enclosing: Iterable[Any]) -> bool:
        """Whether the layer takes an activity regularizer by name, applies it, and saves it."""

    def activity_losses(self, layer: Any) -> list[Any]:
        """The losses of the activity regularizer that the layer stores."""

    def zero_outputs(self, layer: Any) -> list[Any]:
        """Zeros of the shapes of the layer's outputs; an empty list if they are unknown before a call."""

    def set_weight_regularizer(
        self, layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
    ) -> None:
        """Set a regularizer of a built layer, as if it had been passed to the constructor."""

    def set_activity_regularizer(self, layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
        """Replace the regularizer of the layer's output."""

    def update_bidirectional(self, owner: Any, undo: contextlib.ExitStack) -> None:
        """Bring the config of a Bidirectional in line with its two layers."""

    def is_of_keras(self, layer: Any) -> bool:
        """Whether the class of the layer is Keras's own."""

    def regularizer_base(self) -> type:
        """The base class of its regularizers."""

    def as_loss(self, value: Any) -> Any:
        """The value of a regularizer as a tensor; an error if Keras cannot add it to a loss."""

    def configs_of(self, regularizer: Any) -> list[Any]:
        """The configs that Keras may write for the regularizer."""

    def is_compiled(self, model: Any) -> bool:
        """Whether the model is compiled."""

    def split_loss(self, model: Any, per_weight: bool) -> Any:
        """Begin to log the data loss and the penalty of a compiled model. Pass the result to `join_loss`."""

    def join_loss(self, model: Any, split: Any) -> None:
        """End the logging that `split_loss` began."""

    def retrace(self, model: Any) -> None:
        """Make the model retrace its steps, and update the weights whose penalties are logged."""

    def iterations(self, model: Any) -> int:
        """The number of steps that the optimizer has taken."""

    def print_message(self, text: str) -> None:
        """Print as Keras's callbacks do."""


def host_of(model: Any) -> Host:
    """The package for a model, or for a layer."""
    if isinstance(model, tf_keras.layers.Layer):
        return keras2
    from tfk_regularizers._keras import keras3  # here, because it imports Keras 3

    return keras3


def checked_host(model: Any, name: str) -> Host:
    """The package for a model; TypeError if the function or class `name` does not support the model."""
    check_is_model(model, name)
    keras: Any = versions.keras3()
    if not isinstance(model, tf_keras.Model) and not versions.has_tools(keras):
        raise TypeError(
            f"{name} supports models of tf_keras, and of Keras 3.12 or later on TensorFlow. Received: "
            f"{short_repr(model)} of type {type(model)}, of Keras {keras.__version__} on {keras.backend.backend()}."
        )
    return host_of(model)


def check_is_model(model: Any, name: str) -> None:
    """Raise TypeError for the function or class `name` unless this is a model of tf_keras or Keras 3."""
    if not isinstance(model, versions.model_bases()):
        raise TypeError(f"{name} expects a Keras model. Received: {short_repr(model)} of type {type(model)}")


def leave_batch_logs_unread(callback: Any) -> None:
    """Tell Keras that a callback does not read the logs of batches, so that `fit` need not wait for each step."""
    callback._supports_tf_logs = True  # for tf_keras
    callback.async_safe = True  # for Keras 3
