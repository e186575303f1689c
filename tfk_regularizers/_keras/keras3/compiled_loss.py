"""A replacement for the compiled loss of a Keras 3 model, which also keeps the means of its two parts as metrics."""

import threading
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers import compile_utils

from tfk_regularizers._keras import tree
from tfk_regularizers._keras.keras3.layers import weight_losses
from tfk_regularizers._keras.keras3.steps import forget_traces
from tfk_regularizers._keras.variables import is_building_model

PARTS = ("data_loss", "penalty")


class SplitLoss:
    """The compiled loss of a model, with a metric for the data loss, for the penalty and for each of some weights.

    `model.metrics` contains the metrics of the compiled loss, so Keras itself resets, averages, logs and returns them.
    A step calls the compiled loss, then `_aggregate_additional_loss` for each of `model.losses`, then `update_state` of
    the mean of `loss` with the weight of the batch. Other attributes are forwarded to the compiled loss.
    """

    def __init__(self, model: Any, per_weight: bool) -> None:
        self._model, self.previous, self.previous_tracker = model, model._compile_loss, model._loss_tracker
        is_split = isinstance(self.previous, SplitLoss)
        self._compiled_loss: Any = self.previous._compiled_loss if is_split else self.previous
        self._per_weight, self._noted, self.has_ended = per_weight, _Noted(), False
        self._means: dict[str, _Part] = {}
        self.update_metrics()
        with model.distribute_strategy.scope():
            self.tracker = _LossTracker(self)

    def update_metrics(self) -> None:
        """Create metrics for the weights that are penalized now, and remove the others."""
        with self._model.distribute_strategy.scope():
            names = (*PARTS, *(dict.fromkeys(_penalized_paths(self._model)) if self._per_weight else ()))
            self._refuse_names([name for name in PARTS if names.count(name) > 1])
            self._means = {name: self._means.get(name) or _Part(self, name) for name in names}
        self._names_are_checked = False

    def _refuse_names(self, taken: list[str]) -> None:
        if taken:
            raise ValueError(f"`log_penalties` cannot log {taken}: a metric, an output or a weight has that name.")

    def check_names(self) -> None:
        """Raise ValueError if a metric has the name of a part. Compiled metrics have names only after an update."""
        compiled = self._model._compile_metrics
        if self._names_are_checked or (compiled is not None and not compiled.built):
            return
        others = [one for one in self._model.metrics if one is not compiled and one not in self._means.values()]
        names = [*(metric.name for metric in others), *(compiled.result() if compiled is not None else ())]
        self._refuse_names([name for name in names if name in self._means])
        self._names_are_checked = True

    def __getattr__(self, name: str) -> Any:
        if name == "_compiled_loss":  # a copy that is being made has no attributes yet
            raise AttributeError(name)
        return getattr(self._compiled_loss, name)

    @property
    def built(self) -> bool:
        """Whether the compiled loss, if there is one, is built."""
        return self._compiled_loss is None or self._compiled_loss.built

    @property
    def metrics(self) -> list[Any]:
        """The metrics of the compiled loss and, until the next `compile`, of the parts."""
        metrics = [] if self._compiled_loss is None else self._compiled_loss.metrics
        return [*metrics, *(self._means.values() if self._is_active() else ())]

    def _is_active(self) -> bool:
        """Whether the model still uses this split."""
        return self._model._loss_tracker is self.tracker

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        data_loss = None if self._compiled_loss is None else self._compiled_loss(y_true, y_pred, sample_weight)
        self._noted.is_open, self._noted.data_loss = True, data_loss
        self._noted.losses, self._noted.penalties = [] if data_loss is None else [data_loss], []
        return data_loss

    def aggregate(self, loss: Any) -> Any:
        """Store one of the `losses` of the model, and return what Keras returns."""
        aggregated = type(self._model)._aggregate_additional_loss(self._model, loss)
        if not self._is_active():
            vars(self._model).pop("_aggregate_additional_loss", None)
        elif self._noted.is_open:
            self._noted.losses.append(aggregated)
            self._noted.penalties.append(keras.ops.cast(keras.ops.sum(loss), self.tracker.dtype))
        return aggregated

    def add_parts(self, loss: Any, sample_weight: Any) -> None:
        """Update the means of the parts of a loss, with the weight of the batch."""
        noted, penalties = self._noted, self._noted.penalties
        if not noted.is_open:
            raise ValueError(_bypassed(self._model, "a loss from elsewhere"))
        noted.is_open, noted.graph = False, tf.compat.v1.get_default_graph()
        total = keras.ops.sum(noted.losses) if len(noted.losses) > 1 else noted.losses[0]  # exactly as Keras
        # Keras has divided these by the number of replicas, whose gradients are summed.
        replicas, dtype = tf.distribute.get_strategy().num_replicas_in_sync, self.tracker.dtype
        data_loss = 0.0 if noted.data_loss is None else noted.data_loss
        data_loss, total = (keras.ops.cast(one, dtype) * replicas for one in (data_loss, total))
        penalty = tf.add_n(penalties) if penalties else tf.zeros([], dtype)
        # Anything that a custom step or `compute_loss` adds counts as data loss.
        values = {"data_loss": data_loss + (keras.ops.cast(loss, dtype) - total), "penalty": penalty}
        if self._per_weight:
            paths = _penalized_paths(self._model)
            values |= tree.sum_by_path(zip(paths, penalties[len(penalties) - len(paths) :], strict=True))
        for name, mean in self._means.items():
            mean.add(values.get(name, 0.0), sample_weight)

    def check_has_parts(self, mean: Any) -> None:
        """Raise ValueError if the step being traced (eagerly: any since the reset) has not updated a mean."""
        if tf.executing_eagerly():
            has_parts = float(keras.ops.convert_to_numpy(mean.count)) > 0
        else:
            has_parts = self._noted.graph is tf.compat.v1.get_default_graph()
        if not has_parts and not is_building_model():
            raise ValueError(_bypassed(self._model, "a step without it"))


class _Noted(threading.local):
    """The losses of the current step, per thread, because replicas run in threads."""

    def __init__(self) -> None:
        self.is_open = False  # between the call of the compiled loss and the update of the means
        self.data_loss: Any = None
        self.losses: list[Any] = []  # as Keras adds them: the data loss, and `model.losses` divided by the replicas
        self.penalties: list[Any] = []  # `model.losses` as they are
        self.graph: Any = None  # the graph of the step that last updated the means


class _LossTracker(keras.metrics.Mean):  # type: ignore[misc]
    """The mean of `loss`, which also updates the means of the parts."""

    def __init__(self, split: SplitLoss) -> None:
        super().__init__("loss")
        self._split = split

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        super().update_state(values, sample_weight)
        self._split.add_parts(values, sample_weight)


class _Part(compile_utils.MetricsList):  # type: ignore[misc]
    """The mean of a part of the loss over batches, in a list: `EarlyStopping` looks for metrics in such lists."""

    def __init__(self, split: SplitLoss, name: str) -> None:
        self._mean, self._split = keras.metrics.Mean(name), split
        self._mean._direction = "down"  # less is better
        super().__init__([self._mean], name)
        self.add = self._mean.update_state

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a `train_step` may update all of `self.metrics` with labels and predictions."""

    def result(self) -> Any:
        self._split.check_has_parts(self._mean)
        self._split.check_names()
        return self._mean.result()


def split_loss(model: Any, per_weight: bool) -> SplitLoss:
    """Replace a model's compiled loss with a split loss. The steps are traced again."""
    if not model.compiled:
        raise ValueError(f"The model {model.name!r} is not compiled. Call `model.compile` before `log_penalties`.")
    if any(hasattr(step, "python_function") for step in (type(model).train_step, type(model).test_step)):
        raise ValueError(_bypassed(model, "a step that is a `tf.function` itself, and keeps its traces"))
    split = SplitLoss(model, per_weight)
    _put(model, split, split.tracker)
    if not any(metric is part for metric in model.metrics for part in split.metrics):
        join_loss(model, split)
        raise ValueError(_bypassed(model, "`metrics` of its own, without the superclass's"))
    return split


def join_loss(model: Any, split: SplitLoss) -> None:
    """End a split loss: restore the previous loss, unless a later split loss or `compile` has replaced this one."""
    split.has_ended = True
    if not isinstance(model._compile_loss, SplitLoss):
        vars(model).pop("_aggregate_additional_loss", None)
    while isinstance(model._compile_loss, SplitLoss) and model._compile_loss.has_ended:
        ended = model._compile_loss
        is_active = model._loss_tracker is ended.tracker
        _put(model, ended.previous, ended.previous_tracker if is_active else model._loss_tracker)


def _put(model: Any, loss: Any, tracker: Any) -> None:
    """Set a model's compiled loss and the mean of its loss, without tracking them as metrics."""
    vars(model).update(_compile_loss=loss, _loss_tracker=tracker)
    vars(model).pop("_aggregate_additional_loss", None)
    if isinstance(loss, SplitLoss):
        vars(model)["_aggregate_additional_loss"] = loss.aggregate
    forget_traces(model)


def retrace(model: Any) -> None:
    """Make a model retrace its steps, and update the weights whose penalties are logged."""
    if isinstance(model._compile_loss, SplitLoss):
        model._compile_loss.update_metrics()
    forget_traces(model)


def is_compiled(model: Any) -> bool:
    """Whether a model is compiled."""
    return bool(model.compiled)


def _penalized_paths(model: Any) -> list[str]:
    """The paths of the penalized weights, in the order of the last elements of `model.losses`."""
    paths: dict[int, str] = {}
    for node in tree.walk(model):
        variables = [loss.variable for loss in weight_losses(node.layer)]
        paths |= zip(map(id, variables), tree.weight_paths(node, variables), strict=True)
    return [paths[id(variable)] for variable in model.trainable_weights if variable.regularizer is not None]


def _bypassed(model: Any, received: str) -> str:
    return (
        f"`log_penalties` cannot split the loss of the model {model.name!r}. A `train_step` or `test_step` of its own "
        "must take the loss from `self.compute_loss`, give it to `self._loss_tracker.update_state` and return the "
        "results of `self.metrics`; a `compute_loss` of its own must call `super().compute_loss`. Received: "
        f"{received}. With any other step, log the sum of `self.losses` yourself, in a subclass:\n\n"
        "    def train_step(self, data):\n"
        '        return {**super().train_step(data), "penalty": sum(self.losses)}'
    )
