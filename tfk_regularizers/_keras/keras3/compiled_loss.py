"""A stand-in for the compiled loss of a Keras 3 model, with the means of its two parts as metrics."""

import threading
from typing import Any

import keras
import tensorflow as tf

from tfk_regularizers._keras import tree
from tfk_regularizers._keras.keras3.layers import weight_losses
from tfk_regularizers._keras.keras3.steps import forget_traces
from tfk_regularizers._keras.variables import is_building_model

PARTS = ("data_loss", "penalty")


class SplitLoss:
    """The compiled loss of a model, with a metric for the data loss, for the penalty and for each of some weights.

    `model.metrics` contains the metrics of the compiled loss, so Keras itself resets, averages, logs and returns them.
    Three calls of a step meet here: the compiled loss, `_aggregate_additional_loss` with each of `model.losses`, and
    the update of the mean of `loss`, which has the weight of the batch. Other attributes are the compiled loss's.
    """

    def __init__(self, model: Any, per_weight: bool) -> None:
        self._model, self.previous, self.previous_tracker = model, model._compile_loss, model._loss_tracker
        self._losses: Any = self.previous._losses if isinstance(self.previous, SplitLoss) else self.previous
        self._per_weight, self._noted, self._has_parts, self.has_ended = per_weight, _Noted(), False, False
        self._means: dict[str, _Part] = {}
        self.find_weights()
        with model.distribute_strategy.scope():
            self.tracker = _LossTracker(self)

    def find_weights(self) -> None:
        """Make a metric for each weight that is penalized now, and drop those of others."""
        with self._model.distribute_strategy.scope():
            names = (*PARTS, *(dict.fromkeys(_penalized_paths(self._model)) if self._per_weight else ()))
            self._check_names([name for name in PARTS if names.count(name) > 1])
            self._means = {name: self._means.get(name) or _Part(self, name) for name in names}

    def _check_names(self, taken: list[str]) -> None:
        if taken:
            raise ValueError(f"`log_penalties` cannot log {taken}: a metric, an output or a weight has that name.")

    def __getattr__(self, name: str) -> Any:
        if name == "_losses":  # while a copy is made, which has no attributes yet
            raise AttributeError(name)
        return getattr(self._losses, name)

    @property
    def metrics(self) -> list[Any]:
        """Those of the compiled loss and, until the next `compile`, of the parts."""
        is_active = self._model._loss_tracker is self.tracker
        return [*self._losses.metrics, *(self._means.values() if is_active else ())]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        data_loss = self._losses(y_true, y_pred, sample_weight)
        self._noted.data_loss, self._noted.penalties = data_loss, []
        return data_loss

    def aggregate(self, loss: Any) -> Any:
        """Note one of the `losses` of the model, and go on as Keras does."""
        if self._model._loss_tracker is self.tracker:
            self._noted.penalties.append(loss)
        return type(self._model)._aggregate_additional_loss(self._model, loss)

    def add_parts(self, loss: Any, sample_weight: Any) -> None:
        """Add the parts of a loss to their means, with the weight that the loss has in its mean."""
        data_loss, penalties = self._noted.data_loss, self._noted.penalties
        if data_loss is None:
            raise ValueError(_bypassed(self._model))
        names = [metric.name for metric in self._model.metrics if metric not in self._means.values()]
        names += [metric.name for metric in getattr(self._model._compile_metrics, "metrics", [])]
        self._check_names([name for name in names if name in self._means])
        self._noted.data_loss, self._noted.penalties, self._has_parts = None, [], True
        penalties = [keras.ops.cast(keras.ops.sum(one), self.tracker.dtype) for one in penalties]
        penalty = tf.add_n(penalties) if penalties else tf.zeros([], self.tracker.dtype)
        if type(self._model).compute_loss is keras.Model.compute_loss:
            # Keras has divided it by the number of replicas, whose gradients are summed.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            data_loss = keras.ops.cast(data_loss, self.tracker.dtype) * replicas
        else:  # which may add terms of its own
            data_loss = keras.ops.cast(loss, self.tracker.dtype) - penalty
        values = {"data_loss": data_loss, "penalty": penalty}
        if self._per_weight:
            paths = _penalized_paths(self._model)
            values |= tree.sum_by_path(zip(paths, penalties[len(penalties) - len(paths) :], strict=True))
        for name, mean in self._means.items():
            mean.add(values.get(name, 0.0), sample_weight)

    def check_has_parts(self) -> None:
        """Raise ValueError if no step of the model has updated the mean of its loss."""
        if not self._has_parts and not is_building_model():
            raise ValueError(_bypassed(self._model))


class _Noted(threading.local):
    """What a step has computed so far. The steps of replicas run in threads."""

    data_loss: Any = None
    penalties: list[Any] = []  # noqa: RUF012  # replaced, not changed


class _LossTracker(keras.metrics.Mean):  # type: ignore[misc]
    """The mean of `loss`, which has the parts averaged as it is."""

    def __init__(self, split: SplitLoss) -> None:
        super().__init__("loss")
        self._split = split

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        super().update_state(values, sample_weight)
        self._split.add_parts(values, sample_weight)


class _Part(keras.metrics.Mean):  # type: ignore[misc]
    """The mean of a part of the loss over batches."""

    def __init__(self, split: SplitLoss, name: str) -> None:
        super().__init__(name)
        self._split = split

    def add(self, value: Any, sample_weight: Any) -> None:
        """Add the value of a batch."""
        super().update_state(value, sample_weight)

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a `train_step` may update all of `self.metrics` with labels and predictions."""

    def result(self) -> Any:
        self._split.check_has_parts()
        return super().result()


def split_loss(model: Any, per_weight: bool) -> SplitLoss:
    """Put a split loss in the place of a model's compiled loss. The steps are traced anew."""
    if model._compile_loss is None:
        state = "compiled without a loss" if model.compiled else "not compiled"
        raise ValueError(f"The model {model.name!r} is {state}. Call `model.compile` before `log_penalties`.")
    split = SplitLoss(model, per_weight)
    _put(model, split, split.tracker)
    if not any(metric is part for metric in model.metrics for part in split.metrics):
        join_loss(model, split)
        raise ValueError(_bypassed(model))
    return split


def join_loss(model: Any, split: SplitLoss) -> None:
    """End a split loss: put back the previous loss, unless a later split loss or `compile` has taken its place."""
    split.has_ended = True
    while isinstance(model._compile_loss, SplitLoss) and model._compile_loss.has_ended:
        ended = model._compile_loss
        is_active = model._loss_tracker is ended.tracker
        _put(model, ended.previous, ended.previous_tracker if is_active else model._loss_tracker)


def _put(model: Any, loss: Any, tracker: Any) -> None:
    """Give a model a compiled loss and a mean of its loss, past the tracking of metrics."""
    vars(model).update(_compile_loss=loss, _loss_tracker=tracker)
    vars(model).pop("_aggregate_additional_loss", None)
    if isinstance(loss, SplitLoss):
        vars(model)["_aggregate_additional_loss"] = loss.aggregate
    forget_traces(model)


def retrace(model: Any) -> None:
    """Let a model trace its steps anew, and log the weights that are penalized now."""
    if isinstance(model._compile_loss, SplitLoss):
        model._compile_loss.find_weights()
    forget_traces(model)


def is_compiled(model: Any) -> bool:
    """Whether a model is compiled."""
    return bool(model.compiled)


def _penalized_paths(model: Any) -> list[str]:
    """The path of each penalized weight, in the order of the last of the `losses` of a model."""
    paths: dict[int, str] = {}
    for node in tree.walk(model):
        variables = [loss.variable for loss in weight_losses(node.layer)]
        paths |= zip(map(id, variables), tree.weight_paths(node, variables), strict=True)
    return [paths[id(variable)] for variable in model.trainable_weights if variable.regularizer is not None]


def _bypassed(model: Any) -> str:
    return (
        f"`log_penalties` cannot split the loss of the model {model.name!r}. Its steps must take the loss from "
        "`self.compute_loss`, whose own version must call `super().compute_loss`, update `self._loss_tracker` with it, "
        "and return the results of `self.metrics`, which must contain those of the superclass. A step that adds "
        "`self.losses` itself can log their sum, by two lines in a class derived from the model's:\n\n"
        "    def train_step(self, data):\n"
        '        return {**super().train_step(data), "penalty": sum(self.losses)}'
    )
