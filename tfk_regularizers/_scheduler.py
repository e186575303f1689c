"""RegularizationScheduler: a callback that changes factors during training."""

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras import tree, versions
from tfk_regularizers._keras.hosts import checked_host, host_of, leave_batch_logs_unread
from tfk_regularizers._keras.regularization import ActiveRegularizer, active_regularizers, retrace
from tfk_regularizers._messages import invalid_argument, short_repr
from tfk_regularizers._models import Where, check_where
from tfk_regularizers._penalties import KERAS_PENALTIES, NEW_PENALTIES, Penalty, Sum
from tfk_regularizers._penalties.arguments import Factor, argument_names
from tfk_regularizers._penalties.factors import factor_value, is_factor_variable, to_finite_float


class RegularizationScheduler(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Changes a factor of a model's penalties during training, as `LearningRateScheduler` changes the learning rate.

    It is a callback for `fit` of tf_keras and Keras 3 models. When training begins, it replaces the numbers that it
    schedules with variables, so the traced step reads the current value; the model traces its steps once more. After
    `fit`, the penalties keep these variables with their last value. Factors that are variables already are assigned.
    Saved models contain the current number.

    Penalties of weights and activities are scheduled, in nested models, wrappers and RNN cells, and as terms of sums.
    If layers share an instance, they share its factor, also with layers of other models. If two schedulers change the
    same factor, the later callback in the list wins, but a `LearningRateSchedule` wins over a function of the epoch.

    The factor is added to the logs of each epoch under its name, such as `l1`. If penalties have different values at
    the beginning, or the name is taken, the keys are paths such as `hidden/kernel/l1`. `History` and the callbacks
    after this one in the list receive it.

    Args:
        schedule: What determines the factor. The result must be a finite number. One of:
            - a function of the epoch, which is counted from 0;
            - a function of two required arguments, the epoch and the current factor of each penalty. (After an
              interruption, it starts again from the number in the model.)
            - a `LearningRateSchedule` of Keras, evaluated before each batch (or each execution of `steps_per_execution`
              batches) at the number of steps since this `fit` began, as counted by `model.optimizer`. This waits for
              the previous step. (With `BackupAndRestore`, put this callback before it in the list: then the steps
              before the interruption count.)
        factor: The name of the factor, such as `"l1"`, `"l2"` or `"factor"`. Defaults to `None`, which means the only
            factor that the penalties have.
        where: The layers whose penalties to schedule, as in `set_regularizers`. Defaults to `None`, all layers.
        verbose: 1 prints a line at the beginning of each epoch. Defaults to 0.

    Raises:
        ValueError: If an argument is invalid. When training begins: if no penalty has the factor, if they have several
            and `factor` is `None`, or if a penalty has such a factor and cannot be changed because its class is not
            derived from `Penalty`, because its layer was loaded from a SavedModel without its class, or because a layer
            outside `where` shares it. During training: if the schedule does not return a finite number; the factor is
            then unchanged.
        TypeError: If the model is not one of tf_keras, or of Keras 3.12 or later on TensorFlow.
        RuntimeError: When training begins in TensorFlow 1 graphs.

    >>> import tensorflow as tf, tf_keras
    >>> layer = tf_keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer="l1")
    >>> model = tf_keras.Sequential([layer])
    >>> model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    >>> warm_up = RegularizationScheduler(lambda epoch: 0.25 * epoch)
    >>> model.fit(tf.zeros([4, 2]), tf.zeros([4, 1]), epochs=3, verbose=0, callbacks=[warm_up]).history
    {'loss': [0.0, 0.5, 1.0], 'l1': [0.0, 0.25, 0.5]}
    >>> layer.kernel_regularizer
    L1(l1=<variable: 0.5>)
    """

    def __init__(
        self,
        schedule: Callable[..., Any],
        factor: str | None = None,
        where: Where = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        leave_batch_logs_unread(self)
        self._schedule_kind = _kind_of_schedule(schedule)
        if factor is not None and not isinstance(factor, str):
            raise invalid_argument("factor", 'the name of a factor, such as "l1", or None', factor)
        check_where(where)
        self.schedule, self.factor, self.where, self.verbose = schedule, factor, where, verbose
        self._name, self._values_differ, self._epoch, self._steps_before = "", False, 0, 0
        self._penalties: dict[str, Penalty] = {}

    def set_model(self, model: Any) -> None:
        """Called by Keras: checks the type of the model."""
        checked_host(model, "RegularizationScheduler")
        super().set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Called by Keras: finds the penalties, and replaces their factors with variables."""
        versions.check_tensorflow_2("RegularizationScheduler")
        if self._schedule_kind == "step" and self.model.optimizer is None:
            raise ValueError("A LearningRateSchedule counts optimizer steps. Compile the model with an optimizer.")
        active = active_regularizers(host_of(self.model), self.model, self.where)
        self._name, self._penalties = _find_penalties(self.model, active, self.factor, self.where)
        self._make_variables(active)
        self._values_differ = self._schedule_kind == "factor" and len({*self._factors().values()}) > 1
        self._steps_before = self._iterations() if self._schedule_kind == "step" else 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Called by Keras: assigns the factor."""
        self._epoch = epoch
        values = self._assign()
        self._update_configs()
        if self.verbose > 0:
            shown = values if self._values_differ else {self._name: next(iter(values.values()))}
            text = ", ".join(f"{name} to {value}" for name, value in shown.items())
            host_of(self.model).print_message(f"\nEpoch {epoch + 1}: RegularizationScheduler setting {text}.")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called by Keras: assigns the factor, if it is scheduled by step."""
        if self._schedule_kind == "step":
            self._assign()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Called by Keras: adds the factor to the logs."""
        self._update_configs()
        if self._schedule_kind == "step" and self._iterations() == self._steps_before:
            warnings.warn(
                "The schedule of a RegularizationScheduler did not advance: it counts the steps of `model.optimizer`, "
                "which took none. If the model has other optimizers, pass a function of the epoch.",
                stacklevel=2,
            )
        if logs is not None:
            factors = self._factors()
            by_name = {self._name: next(iter(factors.values()))}
            logs.update(factors if self._values_differ or self._name in logs else by_name)

    def _make_variables(self, active: list[ActiveRegularizer]) -> None:
        """Replace factors that are numbers with variables, and make the model retrace its steps."""
        numbers = [penalty for penalty in self._penalties.values() if not is_factor_variable(vars(penalty)[self._name])]
        if not numbers:
            return
        retrace(host_of(self.model), self.model)
        dtypes = {id(term): one.layer.variable_dtype for one in active for term in _terms(one.regularizer)}
        with self.model.distribute_strategy.scope():
            for penalty in numbers:
                # float64 keeps all digits for logs and files. User-defined classes need the dtype of the weights.
                is_ours = type(penalty) in (*KERAS_PENALTIES, *NEW_PENALTIES)
                penalty.__dict__[self._name] = tf.Variable(  # not by `setattr`, which warns that graphs have read it
                    vars(penalty)[self._name],
                    trainable=False,
                    dtype=tf.float64 if is_ours else dtypes[id(penalty)],
                    name=self._name,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )

    def _update_configs(self) -> None:
        """Update the configs of Bidirectional layers, which copy factors."""
        for node in tree.walk(self.model):
            host_of(self.model).update_bidirectional(node.layer, contextlib.ExitStack())

    def _iterations(self) -> int:
        return host_of(self.model).iterations(self.model)

    def _factors(self) -> dict[str, float]:
        """The current factors, by path."""
        return {path: factor_value(getattr(penalty, self._name)) for path, penalty in self._penalties.items()}

    def _assign(self) -> dict[str, float]:
        """Check all scheduled values, then assign them."""
        if self._schedule_kind == "factor":
            scheduled = {path: self._evaluate_schedule(self._epoch, factor) for path, factor in self._factors().items()}
        else:
            now = self._iterations() - self._steps_before if self._schedule_kind == "step" else self._epoch
            scheduled = dict.fromkeys(self._penalties, self._evaluate_schedule(now))
        for path, value in scheduled.items():
            getattr(self._penalties[path], self._name).assign(value)
        return scheduled

    def _evaluate_schedule(self, *arguments: Any) -> float:
        """The value of the schedule, a finite number."""
        given = self.schedule(*arguments)
        try:
            return to_finite_float(self._name, given)
        except ValueError:
            raise ValueError(
                f"The schedule of a RegularizationScheduler must return a finite number for `{self._name}`. Received: "
                f"{short_repr(given)} from {short_repr(self.schedule)} for the arguments {arguments}"
            ) from None


def _kind_of_schedule(schedule: Any) -> str:
    """What a schedule depends on: the "step", the "epoch", or the epoch and the "factor"."""
    modules = (tf_keras, versions.keras3())
    kinds = tuple(module.optimizers.schedules.LearningRateSchedule for module in modules if module is not None)
    if isinstance(schedule, kinds):
        return "step"
    if callable(schedule) and not inspect.isclass(schedule):
        try:
            signature = inspect.signature(schedule)
        except ValueError:  # it may be written in C
            return "epoch"
        for kind, arguments in (("epoch", (0,)), ("factor", (0, 0.0))):
            with contextlib.suppress(TypeError):
                signature.bind(*arguments)
                return kind
    expected = "a function of the epoch, or of the epoch and the factor, or an instance of a LearningRateSchedule"
    raise invalid_argument("schedule", expected, schedule)


def _terms(regularizer: Any) -> list[Any]:
    """The terms of a sum, or [regularizer]."""
    if not isinstance(regularizer, Sum):
        return [regularizer]
    return [inner for term in regularizer.regularizers for inner in _terms(term)]


def _factor_names(term: Any) -> list[str]:
    """The names of a term's factors. For classes not derived from `Penalty`, only Keras's names are known."""
    names = argument_names(type(term), Factor) if isinstance(term, Penalty) else ["l1", "l2", "factor"]
    return [name for name in names if hasattr(term, name)]


def _find_penalties(model: Any, active: Any, factor: str | None, where: Any) -> tuple[str, dict[str, Penalty]]:
    """The name of the factor to schedule, and the penalties that have it, by path."""
    chosen = [(one, term) for one in active if one.chosen for term in _terms(one.regularizer)]
    names = sorted({name for _, term in chosen for name in _factor_names(term)})
    place = f"{'' if where is None else 'the chosen layers of '}the model {model.name!r}"
    name = _choose_name(names, factor, place)
    penalties: dict[int, tuple[str, Penalty]] = {}
    taken: set[str] = set()
    for one, term in chosen:
        if name in _factor_names(term) and id(term) not in penalties:
            _check_schedulable(one, term, name, active)
            penalties[id(term)] = tree.deduplicate_path(f"{one.path}/{name}", taken), term  # a sum may repeat a path
    return name, dict(penalties.values())


def _choose_name(names: list[str], factor: str | None, place: str) -> str:
    """The name of the factor to schedule; ValueError if it is missing or ambiguous."""
    if factor in names or (factor is None and len(names) == 1):
        return factor or names[0]
    if names:
        raise invalid_argument("factor", f"one of {', '.join(map(repr, names))}, the factors in {place}", factor)
    raise ValueError(
        f'RegularizationScheduler found no factor in {place}. Add a penalty with `Dense(3, kernel_regularizer="l2")` '
        'or `set_regularizers(model, kernel_regularizer="l2")`.'
    )


def _check_schedulable(one: ActiveRegularizer, term: Any, name: str, active: list[ActiveRegularizer]) -> None:
    """Raise ValueError unless the factor of a term may be changed."""
    refused = f"RegularizationScheduler cannot change the `{name}` of {one.path!r}"
    if not isinstance(term, Penalty):
        raise ValueError(
            f"{refused}: its regularizer is of {type(term)}. Expected a class of tfk_regularizers, or one derived from "
            "its `Penalty`. Replace it with `set_regularizers`, or exclude the layer with `where`."
        )
    value = vars(term).get(name)
    if not is_factor_variable(value) and not isinstance(value, (int, float)):
        raise ValueError(f"{refused}: expected a number or a variable. Received: {name}={short_repr(value)}")
    for other in active:
        if not other.chosen and any(term is inner for inner in _terms(other.regularizer)):
            raise ValueError(
                f"{refused} without changing {other.path!r}, which `where` excludes: both have the same instance of "
                f"{type(term).__name__}. Give the chosen layers their own, with the same `where`: "
                f"`set_regularizers(model, kernel_regularizer={short_repr(one.regularizer)}, where=...)`."
            )
