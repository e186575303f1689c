"""RegularizationScheduler: factors that follow a schedule."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras import layers, training, versions
from tfk_regularizers._models import Acting, acting_regularizers, check_where, forget_traces, unique
from tfk_regularizers._penalties import PENALTIES, Penalty, Sum, traces
from tfk_regularizers._penalties.arguments import finite, invalid, shown
from tfk_regularizers._penalties.factors import current, may_be_live


class RegularizationScheduler(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Lets a factor of a model's penalties follow a schedule, as `LearningRateScheduler` does with the learning rate.

    The model needs no preparation: when training begins, the numbers that are to change become variables, which traced
    and compiled steps read anew, and the model traces its steps once more. After `fit` they stay variables, of the
    value that was scheduled last, which files carry as a number and `tf.train.Checkpoint` restores; so the next `fit`
    goes on without another trace, and so does one that `BackupAndRestore` resumes. Factors that are variables already
    are assigned.

    Weights' and activity regularizers are reached, those of nested models, wrappers, RNN cells and
    `MultiHeadAttention`, and terms of sums; an instance that several layers share is one factor, in other models too.

    The epoch's logs (`History`, `CSVLogger`, `TensorBoard`, in any order of the callbacks) get the factor under its
    name, as `l1`; if several differ, because the schedule goes by their own values or because another scheduler has
    some of them, each under its path, as `hidden/kernel/l1`.

    Args:
        schedule: What gives the factor, a finite number:
            - a function of the epoch, counted from 0 (or from `initial_epoch`), called when an epoch begins;
            - a function of two required arguments, which gets the current factor of each penalty as well;
            - a `LearningRateSchedule` of Keras, called with `model.optimizer.iterations` when an epoch begins and
              before each batch, or before each execution with `steps_per_execution` above 1. Reading that counter
              waits for the step before.
        factor: The name of the factor: `"l1"`, `"l2"`, `"factor"`, or one of a `Penalty` of your own. Defaults to
            `None`, the only name that there is.
        where: A function that is asked about a layer and returns whether its penalties are meant, as in
            `set_regularizers`. Defaults to `None`, all layers.
        verbose: 1 prints a line when an epoch begins. Defaults to 0.

    Raises:
        ValueError: If an argument is none of these. When training begins, if no penalty is found or several names are,
            or if one cannot be changed: a regularizer that is no `Penalty` (one of tf_keras made before this package
            was imported, for one), one of a layer that Keras has revived from graphs, one shared with a layer that
            `where` leaves out, or one that another scheduler of the same `fit` changes. From `fit`, if the schedule
            gives no finite number; the factor is then as before.
        TypeError: When training begins, if the model is none of tf_keras (a Keras 3 model, for one).
        RuntimeError: If the training loop is not `Model.fit`, or one of TensorFlow 1 graphs.

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
        where: Callable[[Any], Any] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self._supports_tf_logs = True  # or Keras would fetch the logs of each step for its sake
        self._gets = _arguments_of(schedule)
        if factor is not None and not isinstance(factor, str):
            raise invalid("factor", 'the name of a factor, such as "l1", or None', factor)
        check_where(where)
        self.schedule, self.factor, self.where, self.verbose = schedule, factor, where, verbose
        self._fitted: Any = None
        self._name, self._epoch, self._differ = "", 0, False
        self._penalties: dict[str, Penalty] = {}
        self._bidirectional: list[Any] = []

    def set_model(self, model: Any) -> None:
        versions.check_is_of_tf_keras("RegularizationScheduler", model)
        super().set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        callbacks, self._fitted = training.calling(self), training.running_model("fit")
        if not tf.compat.v1.executing_eagerly_outside_functions() or callbacks is None or self._fitted is None:
            raise RuntimeError(
                "RegularizationScheduler works inside `Model.fit` of tf_keras, in TensorFlow 2. In a loop of your own, "
                "give the regularizer a `tf.Variable(..., trainable=False)` as its factor and assign that."
            )
        acting = acting_regularizers(self._fitted, self.where)
        schedulers = vars(callbacks).setdefault("_tfk_schedulers", [])
        others = [other for other in schedulers if other is not self]
        self._name, self._penalties = _scheduled(self._fitted, acting, self.factor, self.where, others)
        owners = {id(owner): owner for each in acting if each.chosen for owner in each.owners}
        self._bidirectional = [one for one in owners.values() if isinstance(one, tf_keras.layers.Bidirectional)]
        self._make_live(acting)
        self._differ = self._gets == "factor" and len({*self._numbers().values()}) > 1
        if not any(scheduler is self for scheduler in schedulers):
            schedulers.append(self)
            callbacks.on_epoch_end = functools.partial(self._log, schedulers, callbacks.on_epoch_end)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        values = self._assign()
        self._update_configs()
        if self.verbose > 0:
            shared = f"{self._name} to {next(iter(values.values()))}"
            each = ", ".join(f"{path} to {value}" for path, value in values.items())
            training.print_message(
                f"\nEpoch {epoch + 1}: RegularizationScheduler setting {each if self._differ else shared}."
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._gets == "iterations":
            self._assign()

    def _make_live(self, acting: list[Acting]) -> None:
        """Turn the factors that are numbers into variables, which the layers track and new traces read."""
        fitted, name = self._fitted, self._name
        numbers = [penalty for penalty in self._penalties.values() if not may_be_live(getattr(penalty, name))]
        if not numbers:
            return
        dtypes = {id(term): each.layer.variable_dtype for each in acting for term in _terms(each.regularizer)}
        forget_traces(fitted)
        with contextlib.ExitStack() as undo, fitted.distribute_strategy.scope():
            for penalty in numbers:
                # float64 has the digits of the schedule's numbers, for logs and files. A class of the user's own
                # multiplies by the factor as it is, so there it has the dtype of the weights.
                exact = any(penalty.__class__ is entry.cls for entry in PENALTIES)
                variable = tf.Variable(
                    getattr(penalty, name),
                    trainable=False,
                    dtype=tf.float64 if exact else dtypes[id(penalty)],
                    name=name,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
                traces.forget(penalty)  # the model is to trace anew
                undo.callback(Penalty.__setattr__, penalty, name, getattr(penalty, name))
                Penalty.__setattr__(penalty, name, variable)  # that of a frozen dataclass would refuse
            changed = {id(penalty) for penalty in numbers}
            for each in acting:
                if changed & {id(term) for term in _terms(each.regularizer)}:
                    if isinstance(each.regularizer, Sum):
                        # Set again, it looks anew for what is to be tracked.
                        each.regularizer.regularizers = each.regularizer.regularizers
                    layers.track_regularizer(each.layer, each.path.rpartition("/")[2], each.regularizer)
            undo.pop_all()

    def _update_configs(self) -> None:
        """A Bidirectional saves what it has copied for both directions."""
        for owner in self._bidirectional:
            layers.update_config_of_owner(owner, "kernel_regularizer", contextlib.ExitStack())

    def _numbers(self) -> dict[str, float]:
        return {path: current(getattr(penalty, self._name)) for path, penalty in self._penalties.items()}

    def _assign(self) -> dict[str, float]:
        """Assign what the schedule gives now, once all of it is known to be right."""
        numbers = self._numbers()
        given = {number: self._given(number) for number in {*numbers.values()}}
        for path, number in numbers.items():
            if given[number] != number:
                getattr(self._penalties[path], self._name).assign(given[number])
        return {path: given[number] for path, number in numbers.items()}

    def _given(self, number: float) -> float:
        """What the schedule gives for a factor, checked."""
        when, arguments = f"epoch {self._epoch}", (self._epoch, number)[: 2 if self._gets == "factor" else 1]
        if self._gets == "iterations":
            arguments = (int(tf_keras.backend.get_value(self._fitted.optimizer.iterations)),)
            when = f"iteration {arguments[0]} in {when}"
        given = self.schedule(*arguments)
        try:
            return finite(self._name, given)
        except ValueError:
            raise ValueError(
                f"The schedule of a RegularizationScheduler has to give a finite number for `{self._name}`. Received: "
                f"{shown(given)} from {shown(self.schedule)} at {when}"
            ) from None

    def _log(self, schedulers: list[Any], call: Callable[..., Any], epoch: int, logs: Any = None) -> None:
        """Add the factors to the logs of an epoch, before any callback of the list sees them."""
        self._update_configs()
        if isinstance(logs, dict):
            numbers = self._numbers()
            alone = not any(other is not self and other._name == self._name for other in schedulers)
            logs.update({self._name: next(iter(numbers.values()))} if alone and not self._differ else numbers)
        call(epoch, logs)


def _arguments_of(schedule: Any) -> str:
    """What a schedule is called with: "iterations", or the "epoch", or that and the "factor"."""
    modules = (tf_keras, versions.keras3())
    kinds = tuple(module.optimizers.schedules.LearningRateSchedule for module in modules if module is not None)
    if isinstance(schedule, kinds):
        return "iterations"
    if callable(schedule) and not (inspect.isclass(schedule) and issubclass(schedule, kinds)):
        try:
            signature = inspect.signature(schedule)
        except ValueError:  # of what is written in C
            return "epoch"
        for kind, arguments in (("epoch", (0,)), ("factor", (0, 0.0))):
            with contextlib.suppress(TypeError):
                signature.bind(*arguments)
                return kind
    expected = "a function of the epoch, or of the epoch and the factor, or a LearningRateSchedule"
    if inspect.isclass(schedule):
        expected += f" (did you mean an instance of {schedule.__name__}?)"
    raise invalid("schedule", expected, schedule)


def _terms(regularizer: Any) -> list[Any]:
    """A regularizer, or the terms of a sum."""
    if not isinstance(regularizer, Sum):
        return [regularizer]
    return [inner for term in regularizer.regularizers for inner in _terms(term)]


_GIVE_ONE = (
    '. Give a layer one, as in `Dense(3, kernel_regularizer="l2")`, or the whole model, by '
    '`set_regularizers(model, kernel_regularizer="l2")`.'
)


def _names(term: Any) -> list[str]:
    """The names of the factors of a term; of one that is none of this package's, those that it seems to have."""
    names = term.factor_names if isinstance(term, Penalty) else ("l1", "l2", "factor")
    return [name for name in names if hasattr(term, name)]


def _scheduled(
    model: Any, acting: list[Acting], factor: str | None, where: Any, others: list[RegularizationScheduler]
) -> tuple[str, dict[str, Penalty]]:
    """The name of the factor that is meant, and the penalties that have it by its paths; ValueError if it cannot be."""
    chosen = [(each, term) for each in acting if each.chosen for term in _terms(each.regularizer)]
    names = sorted({name for _, term in chosen for name in _names(term)})
    if acting and not chosen:
        raise ValueError(
            "RegularizationScheduler has nothing to schedule: `where` passes for none of the layers that have a "
            f"penalty: {', '.join(repr(each.path) for each in acting)}."
        )
    place = f"of the model {model.name!r}" + (" in the layers that pass `where`" if where is not None else "")
    for each, term in chosen:
        if term is None:
            raise ValueError(
                f"RegularizationScheduler cannot change the penalty of {each.path!r}: Keras has revived the layer "
                f"{each.layer.name!r} from the graphs of a SavedModel. Pass its class to `load_model` in "
                "`custom_objects`, or leave the layer out by `where`."
            )
    if factor is None and len(names) > 1:
        raise ValueError(
            f"RegularizationScheduler needs the name of a factor: the penalties {place} have {', '.join(names)}. "
            f'Expected one of them, as in `factor="{names[0]}"`. Received: factor=None'
        )
    name = names[0] if factor is None and names else factor
    if name is None or name not in names:
        raise ValueError(
            f"RegularizationScheduler has nothing to schedule: no penalty {place} has a factor"
            + ("" if factor is None else f" `{factor}`")
            + (f". Expected one of: {', '.join(names)}." if names else _GIVE_ONE)
        )
    penalties: dict[int, tuple[str, Penalty]] = {}
    taken: set[str] = set()
    for each, term in chosen:
        if name in _names(term) and id(term) not in penalties:
            _check_may_be_scheduled(each, term, name, acting, others)
            penalties[id(term)] = unique(f"{each.path}/{name}", taken), term  # two terms of one sum have one path
    return name, dict(penalties.values())


def _check_may_be_scheduled(
    each: Acting, term: Any, name: str, acting: list[Acting], others: list[RegularizationScheduler]
) -> None:
    refused = f"RegularizationScheduler cannot change the `{name}` of {each.path!r}"
    if not isinstance(term, Penalty):
        kind = type(term)
        raise ValueError(
            f"{refused}: its regularizer is none of this package, but a {kind.__module__}.{kind.__qualname__}, as "
            "those of tf_keras are that were made before `import tfk_regularizers`. Set another by `set_regularizers`, "
            "derive its class from `tfk_regularizers.Penalty`, or leave the layer out by `where`."
        )
    value = getattr(term, name)
    if not may_be_live(value) and type(value) not in (int, float):
        raise ValueError(f"{refused}: expected a number or a variable there. Received: {name}={shown(value)}")
    for other in acting:
        if not other.chosen and any(term is inner for inner in _terms(other.regularizer)):
            raise ValueError(
                f"{refused}, and not that of {other.path!r}, which `where` leaves out: both have the same regularizer "
                f"{shown(term)}. Give one of them its own by `set_regularizers`."
            )
    if any(term is taken for other in others if other._name == name for taken in other._penalties.values()):
        raise ValueError(
            f"{refused}, which another RegularizationScheduler of this `fit` changes already. Give each its own "
            "layers by `where`."
        )
