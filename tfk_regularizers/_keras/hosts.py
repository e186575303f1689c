"""Which Keras a model is of: `keras2` for tf_keras, `keras3` for Keras 3, two packages with the same functions."""

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
        """The penalties of the layer's own weights; with a model only those that are in its loss."""

    def weights_called(self, keyword: str, layer: Any, enclosing: Iterable[Any]) -> list[Any]:
        """The weights of the layer that a keyword names, as `kernel_regularizer` names the kernel."""

    def is_revived(self, layer: Any) -> bool:
        """Whether the layer was loaded from a SavedModel without its class."""

    def takes_activity_regularizer(self, layer: Any, enclosing: Iterable[Any]) -> bool:
        """Whether the layer takes an activity regularizer by name, applies it, and saves it."""

    def activity_losses(self, layer: Any) -> list[Any]:
        """The losses of its activity regularizer that the layer keeps."""

    def zero_outputs(self, layer: Any) -> list[Any]:
        """Zeros of the shapes of the layer's outputs; an empty list if only a call shows them."""

    def set_weight_regularizer(
        self, layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
    ) -> None:
        """Let a built layer penalize weights as if constructed so."""

    def set_activity_regularizer(self, layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
        """Replace the regularizer of the layer's output."""

    def update_bidirectional(self, owner: Any, undo: contextlib.ExitStack) -> None:
        """Bring the config of a Bidirectional in line with its two layers."""

    def is_of_keras(self, layer: Any) -> bool:
        """Whether the class of the layer is Keras's own."""

    def regularizer_base(self) -> type:
        """The base class of its regularizers."""

    def as_loss(self, value: Any) -> Any:
        """What a regularizer returned, as a tensor; an error if Keras could not add it to a loss."""

    def configs_of(self, regularizer: Any) -> list[Any]:
        """The configs that Keras may write for the regularizer."""

    def is_compiled(self, model: Any) -> bool:
        """Whether the model is compiled."""

    def split_loss(self, model: Any, per_weight: bool) -> Any:
        """Log the data loss and the penalty of a compiled model. `join_loss` ends what this returns."""

    def join_loss(self, model: Any, split: Any) -> None:
        """End the logging that `split_loss` began."""

    def retrace(self, model: Any) -> None:
        """Let the model trace its steps anew, and log the weights that are penalized now."""

    def iterations(self, model: Any) -> int:
        """The steps that the optimizer has taken."""

    def print_message(self, text: str) -> None:
        """Print as Keras's callbacks do."""


def host_of(model: Any) -> Host:
    """The package for a model, or for a layer."""
    if isinstance(model, tf_keras.layers.Layer):
        return keras2
    from tfk_regularizers._keras import keras3  # which imports Keras 3, that is here if its model is

    return keras3


def checked_host(model: Any, name: str) -> Host:
    """The package for a model; TypeError, for the function or class of a name, unless that takes such models."""
    check_is_model(model, name)
    keras: Any = versions.keras3()
    if not isinstance(model, tf_keras.Model) and not versions.has_tools(keras):
        raise TypeError(
            f"{name} is for models of tf_keras, and of Keras 3.12 or later on its TensorFlow backend. Received: "
            f"{short_repr(model)} of type {type(model)}, of Keras {keras.__version__} on {keras.backend.backend()}."
        )
    return host_of(model)


def check_is_model(model: Any, name: str) -> None:
    """Raise TypeError, for the function or class of a name, unless this is a model of tf_keras or Keras 3."""
    if not isinstance(model, versions.model_bases()):
        raise TypeError(f"{name} is for Keras models. Received: {short_repr(model)} of type {type(model)}")


def leave_batch_logs_unread(callback: Any) -> None:
    """Let fits not wait for each step, to hand a callback the logs of a batch as numbers."""
    callback._supports_tf_logs = True  # for tf_keras
    callback.async_safe = True  # for Keras 3
