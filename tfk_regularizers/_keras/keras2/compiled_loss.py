"""A replacement for the compiled loss of a model, which also keeps the means of its two parts as metrics."""

import copy
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, SimpleNamespace
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras import tree
from tfk_regularizers._keras.keras2.layers import as_weight_loss
from tfk_regularizers._keras.keras2.steps import forget_traces
from tfk_regularizers._keras.layers import WeightLoss
from tfk_regularizers._tensorflow_internals import is_writing_saved_model

PARTS = ("data_loss", "penalty")
STEPS = ("train_step", "test_step", "make_train_function", "make_test_function")


class SplitLoss:
    """The compiled loss of a model, with a metric for the data loss, for the penalty and for each of some weights.

    `model.metrics` contains the metrics of the compiled loss, so Keras itself resets, averages, logs and returns them.
    Other attributes are forwarded to the compiled loss.
    """

    def __init__(self, model: Any, per_weight: bool) -> None:
        self._model, self.previous, self.has_ended = model, model.compiled_loss, False
        self._container: Any = self.previous._container if isinstance(self.previous, SplitLoss) else self.previous
        self._per_weight = per_weight
        self._means: dict[str, _Part] = {}
        self.update_metrics()

    def update_metrics(self) -> None:
        """Create metrics for the weights that are penalized now, and remove the others."""
        with self._model.distribute_strategy.scope():
            names = (*PARTS, *(_penalized_paths(self._model) if self._per_weight else ()))
            self._refuse_names([name for name in PARTS if names.count(name) > 1])
            self._means = {name: self._means.get(name) or _Part(name) for name in names}

    def _refuse_names(self, taken: list[str]) -> None:
        if taken:
            raise ValueError(f"`log_penalties` cannot log {taken}: a metric, an output or a weight has that name.")

    def __getattr__(self, name: str) -> Any:
        if name == "_container":  # a copy that is being made has no attributes yet
            raise AttributeError(name)
        return getattr(self._container, name)

    @property
    def metrics(self) -> list[Any]:
        """The metrics of the compiled loss and of the parts; an empty list before the first step."""
        metrics = self._container.metrics
        others = [*metrics, *self._model.compiled_metrics.metrics]
        others += [metric for layer in self._model._flatten_layers() for metric in layer._metrics]
        self._refuse_names([metric.name for metric in others if metric.name in self._means])
        return metrics and [*metrics, *(() if is_writing_saved_model() else self._means.values())]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None, regularization_losses: Any = None) -> Any:
        if not regularization_losses and self._model.losses:
            raise ValueError(_bypassed(self._model, "a call without `regularization_losses`"))
        if not self._container.built:
            self._container.build(y_pred)
        penalties = _common_dtype(regularization_losses or [])
        penalty = tf.add_n(penalties) if penalties else tf.constant(0.0)

        def update_state(data_loss: Any, sample_weight: Any = None) -> None:  # the weight is the size of the batch
            data_loss, added = _common_dtype([data_loss, penalty])
            self._container._total_loss_mean.update_state(data_loss + added, sample_weight=sample_weight)
            values = {"data_loss": data_loss, "penalty": added}
            if len(self._means) > len(PARTS):
                values |= _penalties_by_path(self._model, regularization_losses or [])
            for name, mean in self._means.items():
                mean.add(values.get(name, 0.0), sample_weight=sample_weight)

        losses = copy.copy(self._container)  # for this call only, because replicas run in threads
        losses._total_loss_mean = SimpleNamespace(update_state=update_state)
        # A penalty of zero determines the dtype of the data loss, and updates its mean if there is no other loss.
        loss = losses(y_true, y_pred, sample_weight, [tf.zeros_like(penalty)] if penalties else None)
        if not penalties:
            return loss
        # Each replica adds the whole penalty, and the gradients of the replicas are summed.
        return tf.add_n(_common_dtype([loss, penalty / tf.distribute.get_strategy().num_replicas_in_sync]))


class _Part:
    """The mean of a part of the loss over batches. It is not a Keras metric, because Keras would save that in files."""

    def __init__(self, name: str) -> None:
        self.name, self._mean = name, tf_keras.metrics.Mean(name)
        self.result, self.reset_state, self.add = self._mean.result, self._mean.reset_state, self._mean.update_state

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a `train_step` may update all of `self.metrics` with labels and predictions."""


def split_loss(model: Any, per_weight: bool) -> SplitLoss:
    """Replace a model's compiled loss with a split loss. The steps are traced again."""
    if model.compiled_loss is None:
        raise ValueError(f"The model {model.name!r} is not compiled. Call `model.compile` before `log_penalties`.")
    _check_steps(model)
    split = SplitLoss(model, per_weight)
    model.compiled_loss = split
    forget_traces(model)
    return split


def join_loss(model: Any, split: SplitLoss) -> None:
    """End a split loss: restore the previous loss, unless a later split loss or `compile` has replaced this one."""
    split.has_ended = True
    while isinstance(model.compiled_loss, SplitLoss) and model.compiled_loss.has_ended:
        model.compiled_loss = model.compiled_loss.previous
    forget_traces(model)


def retrace(model: Any) -> None:
    """Make a model retrace its steps, and update the weights whose penalties are logged."""
    if isinstance(model.compiled_loss, SplitLoss):
        model.compiled_loss.update_metrics()
    forget_traces(model)


def is_compiled(model: Any) -> bool:
    """Whether a model is compiled."""
    return model.compiled_loss is not None


def _losses_by_path(model: Any) -> list[tuple[str, WeightLoss] | None]:
    """For each of a model's `losses`: the path and loss of its weight, or None if it is not a weight's."""
    found: list[tuple[str, WeightLoss] | None] = []
    for node in tree.walk(model):
        others = node.layer._eager_losses or node.layer._losses
        of_weights = list(map(as_weight_loss, node.layer._callable_losses))
        paths = iter(tree.weight_paths(node, [loss.variable for loss in of_weights if loss is not None]))
        found += [None] * len(others) + [loss and (next(paths), loss) for loss in of_weights]
    return found


def _penalized_paths(model: Any) -> list[str]:
    """The paths of the penalized weights of a model."""
    return list(dict.fromkeys(found[0] for found in _losses_by_path(model) if found is not None))


def _penalties_by_path(model: Any, losses: list[Any]) -> dict[str, tf.Tensor]:
    """The penalties of a model, taken from its `losses`, so that random samples are not drawn twice."""
    found = _losses_by_path(model)
    if len(found) == len(losses):
        return tree.sum_by_path((one[0], loss) for one, loss in zip(found, losses, strict=True) if one is not None)
    # a `train_step` has added them up, or a loss was None
    return tree.sum_by_path((path, loss.compute_penalty()) for path, loss in filter(None, found))


def _check_steps(model: Any) -> None:
    """Raise ValueError if a `train_step` or `compute_loss` of the model's own does not use the compiled loss."""
    if any(hasattr(step, "python_function") for step in (type(model).train_step, type(model).test_step)):
        raise ValueError(_bypassed(model, "a step that is a `tf.function` itself, and keeps its traces"))
    own = [cls for cls in type(model).__mro__ if cls.__module__.partition(".")[0] not in ("tf_keras", "tensorflow")]
    values = {name: getattr(value, "python_function", value) for cls in own[::-1] for name, value in vars(cls).items()}
    functions = {name: inspect.unwrap(value) for name, value in values.items()}
    used = {name: {*_names(value.__code__)} for name, value in functions.items() if inspect.isfunction(value)}

    def reaches_compiled_loss(name: str, visited: tuple[str, ...] = ()) -> bool:
        if name not in used or name in visited:  # Keras's own, or called by `super()`
            return name in (*STEPS, "compute_loss", "compiled_loss")
        return any(reaches_compiled_loss(other, (*visited, name)) for other in used[name])

    if not all(map(reaches_compiled_loss, STEPS)):
        raise ValueError(_bypassed(model, "a step or a `compute_loss` that calls neither"))


def _names(code: CodeType) -> Iterator[str]:
    """The names used in a function and in the functions inside it."""
    yield from code.co_names
    for constant in filter(inspect.iscode, code.co_consts):
        yield from _names(constant)


def _bypassed(model: Any, received: str) -> str:
    return (
        f"`log_penalties` cannot split the loss of the model {model.name!r}. Its steps must take the loss from "
        "`self.compute_loss(x, y, y_pred, sample_weight)` or `self.compiled_loss(y, y_pred, sample_weight, "
        f"regularization_losses=self.losses)`. Received: {received}. With any other "
        "step, log the sum of `self.losses` yourself, in a subclass:\n\n"
        "    def train_step(self, data):\n"
        '        return {**super().train_step(data), "penalty": tf.add_n(self.losses)}'
    )


def _common_dtype(losses: list[Any]) -> list[Any]:
    """Cast losses to one dtype, as Keras does: with mixed precision, only some are of a half type."""
    return sys.modules[tf_keras.losses.Loss.__module__].losses_utils.cast_losses_to_common_dtype(losses)
