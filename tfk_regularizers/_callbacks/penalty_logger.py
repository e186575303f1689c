"""PenaltyLogger: the penalty apart from the data loss."""

import functools
from collections.abc import Mapping

import tensorflow as tf
import tf_keras

from tfk_regularizers import _models
from tfk_regularizers._keras import training, versions
from tfk_regularizers._penalties.arguments import checked_flag

NAMES = ("data_loss", "penalty")


class PenaltyLogger(tf_keras.callbacks.Callback):
    """Shows the data loss and the penalty apart, wherever Keras shows `loss`, which is their sum.

    `History`, the progress bar, `CSVLogger`, `TensorBoard` and every other callback get `data_loss` and `penalty`, and
    with validation `val_data_loss` and `val_penalty`, so `EarlyStopping(monitor="val_data_loss")` works. The place of
    this callback in the list does not matter.

    `penalty` is all that Keras adds to the data loss: `model.losses`, which holds kernel, bias and activity penalties
    and what `add_loss` was given. `data_loss` is what the compiled loss gives without it. Both are computed in the
    training step, before its update, and averaged over the batches as Keras averages `loss`, by their sizes; so
    `data_loss` is right in all its digits even where the penalty is a million times larger. Per-output losses stay as
    they are. `evaluate` with this callback returns the two behind what `model.metrics_names` names.

    With `per_weight=True` the penalty of each regularized weight is logged too, under its path, the very keys of
    `penalties(model)`, and as `val_<path>` in validation. They are the terms of `penalty`, of the same steps and the
    same samples, and add up to it where there are neither activity penalties nor `add_loss`. A weight whose
    regularizer is removed during a `fit` goes on with 0.0. `evaluate` without `return_dict=True` returns them and the
    two in the alphabetical order of their names.

    The model is never changed but while one of its steps runs: other callbacks see it, save it and evaluate it as
    without this one, and so does whoever comes after a `fit` that failed. Training is the same.

    Cost: some operations on scalars in each step, 15 µs on two CPU cores, and 5 µs for each weight with
    `per_weight`; and one more trace of the training and the test step, in the first `fit` after `compile` with a
    PenaltyLogger, of either `per_weight`.

    For tf_keras only, inside its `Model.fit` and `Model.evaluate`. In a `MultiWorkerMirroredStrategy` give it to all
    workers or to none: they compute the means together. A model with a `train_step` of its own may use it if
    the step calls `self.compute_loss` or `self.compiled_loss` and returns a dict.

    Args:
        per_weight: Whether to log the penalty of each regularized weight too. Beside a PenaltyLogger that does, another
            one changes nothing. Defaults to False.

    Raises:
        ValueError: If `per_weight` is not a bool.
        TypeError: When training begins, if the model is none of tf_keras (a Keras 3 model, for one).
        ValueError: When the first step is traced, before it has changed a weight (with `run_eagerly`, after the first
            step), if a `train_step` or `test_step` bypasses the compiled loss, does not give it the penalties or does
            not return a dict; or if the model has a metric or a per-output loss of one of the two names, or of the path
            of a weight, or a weight whose path is one of the two.
        RuntimeError: If the training loop is none of `Model.fit` and `Model.evaluate`, or one of TensorFlow 1 graphs.

    >>> import tensorflow as tf, tf_keras
    >>> half = tf_keras.regularizers.L2(0.5)
    >>> layer = tf_keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=half, name="head")
    >>> model = tf_keras.Sequential([layer])
    >>> model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    >>> x, y = tf.ones([4, 2]), tf.zeros([4, 1])
    >>> model.fit(x, y, verbose=0, callbacks=[PenaltyLogger()]).history
    {'loss': [5.0], 'data_loss': [4.0], 'penalty': [1.0]}
    >>> logger = PenaltyLogger(per_weight=True)
    >>> list(model.evaluate(x, y, verbose=0, callbacks=[logger], return_dict=True))
    ['loss', 'data_loss', 'penalty', 'head/kernel']
    """

    def __init__(self, per_weight: bool = False) -> None:
        super().__init__()
        self.per_weight = checked_flag("per_weight", per_weight)
        self._supports_tf_logs = True  # or Keras would fetch the logs of each step for its sake

    def set_model(self, model):
        versions.check_is_of_tf_keras("PenaltyLogger", model)
        super().set_model(model)
        self._split()

    def on_train_begin(self, logs=None):
        self._check_loop()

    def on_test_begin(self, logs=None):
        self._check_loop()
        self._split().begin_test_unless_begun()

    def _split(self):
        """What splits the loss for the list of callbacks that calls this one, None where there is none."""
        callbacks = training.calling(self)
        if callbacks is None:
            return None
        split = getattr(callbacks, _Split.ATTRIBUTE, None) or _Split(callbacks)
        split.per_weight |= self.per_weight
        return split

    def _check_loop(self):
        if not tf.compat.v1.executing_eagerly_outside_functions():
            received = (
                "a TensorFlow 1 graph, as after `tf.compat.v1.disable_eager_execution()`, whose steps it cannot see"
            )
        elif self._split() is None or training.running_model("fit", "evaluate") is None:
            received = "a call from another loop"
        else:
            return
        raise RuntimeError(
            f"PenaltyLogger works inside `Model.fit` and `Model.evaluate` of tf_keras. Received: {received}. In a loop "
            "of your own, `tf.add_n(model.losses)` is the penalty."
        )


class _Split:
    """Splits the loss of one `fit` or `evaluate`.

    All of it hangs on the list of callbacks that this call has made for itself, and that ends with it, however it ends.
    Each hook of the list goes through here. On the model something else stands in the place of a step only from just
    before it is called, and takes itself away.
    """

    ATTRIBUTE = "_tfk_split"  # of the list

    def __init__(self, callbacks):
        setattr(callbacks, self.ATTRIBUTE, self)
        self._train = self._test = None
        self.per_weight = False
        for name in [name for name in vars(_Split) if name.startswith("on_")]:
            setattr(callbacks, name, functools.partial(getattr(self, name), getattr(callbacks, name)))
        bars = (tf_keras.callbacks.ProgbarLogger, tf_keras.callbacks.BaseLogger)
        self._bars = [callback for callback in callbacks.callbacks if isinstance(callback, bars)]

    def on_epoch_begin(self, call, epoch, logs=None):
        model = training.running_model("fit")
        self._train = None if model is None else _Parts.of(model, "train", self.per_weight, begin=True)
        call(epoch, logs)

    def on_train_batch_begin(self, call, batch, logs=None):
        call(batch, logs)
        if self._train is not None:
            self._train = self._train.now()
            self._train.stand_in_once()

    def on_train_batch_end(self, call, batch, logs=None):
        if self._train is None:
            return call(batch, logs)
        with self._train.shown():
            return call(batch, self._added(self._train, logs))

    def on_epoch_end(self, call, epoch, logs=None):
        if self._train is not None:
            self._train.add_means(logs)
        call(epoch, logs)

    def on_test_begin(self, call, logs=None):
        self._test = None
        self.begin_test_unless_begun()
        call(logs)

    def begin_test_unless_begun(self):
        """Before other hooks: the step of an evaluation is looked up by then, and what they set is of the next one."""
        model = training.running_model("evaluate")
        if self._test is None and model is not None:
            self._test = _Parts.of(model, "test", self.per_weight, begin=True)
            training.let_evaluation_call(self._test.call)

    def on_test_batch_end(self, call, batch, logs=None):
        call(batch, logs if self._test is None else self._added(self._test, logs))

    def on_test_end(self, call, logs=None):
        if self._test is not None:
            self._test.add_means(logs)
        call(logs)

    def _added(self, parts, logs):
        """The logs of a step with the parts, for all who show them and take a mean of what is no mean already."""
        for bar in self._bars:
            bar.stateful_metrics = {*(bar.stateful_metrics or ()), *parts.names()}
        return parts.added(logs)


class _Parts:
    """The two parts of the loss and, if wanted, those of the penalty, in the steps of one kind: "train" or "test".

    They stay with the function of the model that they stand in for: a later `fit` goes on with what is traced, with its
    random numbers, and what makes Keras trace anew (`compile`, for one) does so here.
    """

    ATTRIBUTES = ("_tfk_parts", "_tfk_parts_per_weight")  # of the model's function

    def __init__(self, model, kind, per_weight, plain, means):
        self._model, self._kind, self._step, self._plain, self.means = model, kind, f"{kind}_step", plain, means
        self._per_weight = per_weight
        with model.distribute_strategy.scope():
            self._make(NAMES)
            if per_weight and model.built:
                self._make(tuple(dict.fromkeys(path for path in _models.penalized_paths(model) if path is not None)))
        self._function, self._traced = training.another_step_function(model, kind)
        self._last, self._called = None, False

    @classmethod
    def of(cls, model, kind, per_weight, begin=False, means=None):
        """Those of a model; with all means begun anew, or with the means of those before, in the same epoch."""
        plain, attribute = training.step_function(model, kind), cls.ATTRIBUTES[per_weight]
        parts = getattr(plain, attribute, None)
        if parts is None or parts._model is not model or (means is not None and parts.means is not means):
            parts = cls(model, kind, per_weight, plain, {} if means is None else means)
            setattr(plain, attribute, parts)
        if begin:
            parts._last, parts._called = None, False
            for mean in parts.means.values():
                mean.reset_state()
        return parts

    def _make(self, names):
        """Make the mean of some parts, one vector of all: for each a mean of its own takes three times as long."""
        if names:
            mean = self.means.pop(names, None)
            self.means[names] = tf_keras.metrics.MeanTensor(shape=[len(names)]) if mean is None else mean

    def names(self):
        return [name for names in self.means for name in names]

    def _results(self):
        """The means by name; of a part that stands in several, which a change of regularizers makes, the latest."""
        vectors = [(names, tf.unstack(mean.result())) for names, mean in self.means.items()]
        return {name: value for names, values in vectors for name, value in zip(names, values, strict=True)}

    def now(self):
        """Those that go on with these: others, if the model has another function since."""
        if training.step_function(self._model, self._kind) is self._plain:
            return self
        parts = _Parts.of(self._model, self._kind, self._per_weight, means=self.means)
        parts._called = self._called
        return parts

    def stand_in_once(self):
        """Let the next step of the model be the one that knows the parts."""
        own, name = vars(self._model), f"{self._kind}_function"

        def once(iterator):
            own[name] = self._plain
            return self.call(iterator)

        own[name] = once

    def shown(self):
        """For the time of a hook, let the model have the traced function that runs: TensorBoard draws it."""
        return training.in_place(self._model, **({} if self._traced is None else {"train_tf_function": self._traced}))

    def added(self, logs):
        """The logs of a step, with all parts behind the loss."""
        return logs if self._last is None or not isinstance(logs, Mapping) else _with_parts(logs, self._last)

    def add_means(self, logs):
        """Add all parts to the logs of an epoch, which Keras hands on to others afterwards."""
        if logs is None or not self._called:
            return
        parts = _with_parts(logs, {name: float(value) for name, value in self._results().items()})
        logs.clear()
        logs.update(parts)

    def call(self, iterator):
        """A step, which notes its parts."""
        model, step = self._model, training.python_step(self._model, self._kind)
        loss = _SplitLoss(model.compiled_loss, self._noted)
        checked = functools.partial(self._checked, step, loss)
        self._called, self._last = True, None
        with training.in_place(model, **{"compiled_loss": loss, self._step: checked}):
            logs = self._function(iterator)
        if training.is_on_cluster(model):  # of whose workers nothing is known yet
            return logs
        if not isinstance(logs, Mapping) or not set(NAMES) <= set(logs):
            raise _bypassed(model, f"a `make_{self._kind}_function` whose function does not call `{self._step}` anew")
        self._last = {name: logs[name] for name in self.names() if name in logs}
        return {name: value for name, value in logs.items() if name not in self._last}

    def _noted(self, data_loss, penalty, penalties, weight):
        """Note the parts of one batch in their means, inside a step."""
        parts = {NAMES: (data_loss, penalty)}
        if self._per_weight:
            values = _models.penalties_among(self._model, penalties)
            taken = [name for name in NAMES if name in values]
            if taken:
                raise self._taken(taken, "a regularized weight of that path")
            parts |= {tuple(values): values.values()} if values else {}
        if not parts.keys() <= self.means.keys():  # the model was not built before this step
            tf.distribute.get_replica_context().merge_call(functools.partial(self._make_outside, tuple(values)))
        for names, values in parts.items():
            mean = self.means[names]
            mean.update_state(tf.stack([tf.cast(value, mean.dtype) for value in values]), sample_weight=weight)

    @tf.autograph.experimental.do_not_convert
    def _make_outside(self, names, strategy):
        """Make a mean outside of the graph of a step, for all replicas at once."""
        with tf.init_scope():
            self._make(names)

    def _checked(self, step, loss, data):
        """A train_step or test_step, checked when it is traced: it has not run then, and no weight has changed."""
        model, calls, penalized = self._model, loss.calls, loss.penalized
        logs = step(data)
        if loss.calls == calls:
            raise _bypassed(model, f"a `{self._step}` that computes its loss without them")
        if loss.penalized == penalized and model.losses:
            raise _bypassed(model, f"a `{self._step}` that gives `self.compiled_loss` no `regularization_losses`")
        if not isinstance(logs, Mapping):
            raise _bypassed(model, f"a `{self._step}` that does not return a dict")
        taken = [name for name in self.names() if name in logs]
        if taken:
            raise self._taken(taken, "a metric, or an output whose loss is logged, under that name")
        if training.is_on_cluster(model):
            return logs
        return _with_parts(logs, self._results())

    def _taken(self, names, owner):
        return ValueError(
            f"PenaltyLogger cannot log {' and '.join(map(repr, names))}: model {self._model.name!r} has {owner}."
        )


def _with_parts(logs, parts):
    """The logs with the parts of the loss behind it."""
    loss = {name: value for name, value in logs.items() if name == "loss"}
    return {**loss, **parts, **{name: value for name, value in logs.items() if name != "loss"}}


def _bypassed(model, received):
    return ValueError(
        f"PenaltyLogger cannot tell data loss and penalty of model {model.name!r} apart. Its steps must take their "
        "loss from `self.compute_loss(x, y, y_pred, sample_weight)` or from `self.compiled_loss(y, y_pred, "
        "sample_weight, regularization_losses=self.losses)`, and return a dict, as those of Keras do. Received: a "
        f"{type(model).__name__} with {received}"
    )


class _SplitLoss:
    """Stands in for the compiled loss of a model: the same loss, whose parts are noted.

    What is not defined here is the original's.
    """

    def __init__(self, original, note):
        self._original, self._note, self.calls, self.penalized = original, note, 0, 0

    def __getattr__(self, name):
        if name == "_original":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._original, name)

    def __call__(self, y_true, y_pred, sample_weight=None, regularization_losses=None):
        self.calls += 1
        self.penalized += bool(regularization_losses)
        loss, data_loss, weight = training.call_recorded(self._original, y_true, y_pred, sample_weight)
        if not regularization_losses and loss is None:
            return None
        penalty = tf.add_n(training.common_dtype(regularization_losses or [tf.zeros_like(data_loss)]))
        if loss is None:  # compiled without one: all the loss there is comes from add_loss
            loss = data_loss = tf.zeros_like(penalty)
        parts = training.common_dtype([data_loss, penalty])
        self._original.metrics[0].update_state(tf.add_n(parts), sample_weight=weight)
        self._note(*parts, regularization_losses or [], weight)
        # Every replica adds the whole penalty, and their gradients are summed.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return tf.add_n(training.common_dtype([loss, penalty / replicas]))
