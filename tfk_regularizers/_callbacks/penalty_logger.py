"""PenaltyLogger: the penalty apart from the data loss."""

import functools
from collections.abc import Mapping

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras import training

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

    The model is never changed but while one of its steps runs: other callbacks see it, save it and evaluate it as
    without this one, and so does whoever comes after a `fit` that failed. Training is the same.

    Cost: some operations on scalars in each step, 15 µs on two CPU cores; and one more trace of the training and the
    test step, in the first `fit` with a PenaltyLogger after `compile`.

    For tf_keras only, inside its `Model.fit` and `Model.evaluate`. In a `MultiWorkerMirroredStrategy` give it to all
    workers or to none: they compute the means together. A model with a `train_step` of its own may use it if
    the step calls `self.compute_loss` or `self.compiled_loss` and returns a dict.

    Raises:
        TypeError: When training begins, if the model is none of tf_keras (a Keras 3 model, for one).
        ValueError: When the first step is traced, before it has changed a weight (with `run_eagerly`, after the first
            step), if a `train_step` or `test_step` bypasses the compiled loss, does not give it the penalties or does
            not return a dict; or if the model has a metric or a per-output loss of one of the two names.
        RuntimeError: If the training loop is none of `Model.fit` and `Model.evaluate`, or one of TensorFlow 1 graphs.

    >>> import tensorflow as tf, tf_keras
    >>> layer = tf_keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=tf_keras.regularizers.L2(0.5))
    >>> model = tf_keras.Sequential([layer])
    >>> model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    >>> x, y = tf.ones([4, 2]), tf.zeros([4, 1])
    >>> model.fit(x, y, verbose=0, callbacks=[PenaltyLogger()]).history
    {'loss': [5.0], 'data_loss': [4.0], 'penalty': [1.0]}
    """

    def __init__(self) -> None:
        super().__init__()
        self._supports_tf_logs = True  # or Keras would fetch the logs of each step for its sake

    def set_model(self, model):
        if not isinstance(model, tf_keras.Model):
            raise TypeError(
                f"PenaltyLogger is for models of tf_keras. Received: model={model!r}, a "
                f"{type(model).__module__}.{type(model).__qualname__}"
            )
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
        return getattr(callbacks, _Split.ATTRIBUTE, None) or _Split(callbacks)

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
        for name in [name for name in vars(_Split) if name.startswith("on_")]:
            setattr(callbacks, name, functools.partial(getattr(self, name), getattr(callbacks, name)))
        bars = (tf_keras.callbacks.ProgbarLogger, tf_keras.callbacks.BaseLogger)
        for callback in callbacks.callbacks:
            if isinstance(callback, bars):  # which take a mean of what is no mean already
                callback.stateful_metrics = {*(callback.stateful_metrics or ()), *NAMES}

    def on_epoch_begin(self, call, epoch, logs=None):
        model = training.running_model("fit")
        self._train = None if model is None else _Parts.of(model, "train", begin=True)
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
            return call(batch, self._train.added(logs))

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
            self._test = _Parts.of(model, "test", begin=True)
            training.let_evaluation_call(self._test.call)

    def on_test_batch_end(self, call, batch, logs=None):
        call(batch, logs if self._test is None else self._test.added(logs))

    def on_test_end(self, call, logs=None):
        if self._test is not None:
            self._test.add_means(logs)
        call(logs)


class _Parts:
    """The two parts of the loss, in the steps of one kind: "train" or "test".

    They stay with the function of the model that they stand in for: a later `fit` goes on with what is traced, with its
    random numbers, and what makes Keras trace anew (`compile`, for one) does so here.
    """

    ATTRIBUTE = "_tfk_parts"  # of the model's function

    def __init__(self, model, kind, plain, means):
        self._model, self._kind, self._step, self._plain, self.means = model, kind, f"{kind}_step", plain, means
        self._function, self._traced = training.another_step_function(model, kind)
        self._last, self._called = None, False

    @classmethod
    def of(cls, model, kind, begin=False, means=None):
        """Those of a model; with both means begun anew, or with the means of those before, in the same epoch."""
        plain = training.step_function(model, kind)
        parts = getattr(plain, cls.ATTRIBUTE, None)
        if parts is None or parts._model is not model or (means is not None and parts.means is not means):
            if means is None:
                with model.distribute_strategy.scope():
                    means = [tf_keras.metrics.Mean(name) for name in NAMES]
            parts = cls(model, kind, plain, means)
            setattr(plain, cls.ATTRIBUTE, parts)
        if begin:
            parts._last, parts._called = None, False
            for mean in parts.means:
                mean.reset_state()
        return parts

    def now(self):
        """Those that go on with these: others, if the model has another function since."""
        if training.step_function(self._model, self._kind) is self._plain:
            return self
        parts = _Parts.of(self._model, self._kind, means=self.means)
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
        """The logs of a step, with both parts behind the loss."""
        return logs if self._last is None or not isinstance(logs, Mapping) else _with_parts(logs, self._last)

    def add_means(self, logs):
        """Add both parts to the logs of an epoch, which Keras hands on to others afterwards."""
        if logs is None or not self._called:
            return
        parts = _with_parts(logs, {mean.name: float(mean.result()) for mean in self.means})
        logs.clear()
        logs.update(parts)

    def call(self, iterator):
        """A step, which notes its parts."""
        model, step = self._model, training.python_step(self._model, self._kind)
        loss = _SplitLoss(model.compiled_loss, self.means)
        checked = functools.partial(self._checked, step, loss)
        self._called, self._last = True, None
        with training.in_place(model, **{"compiled_loss": loss, self._step: checked}):
            logs = self._function(iterator)
        if training.is_on_cluster(model):  # of whose workers nothing is known yet
            return logs
        if not isinstance(logs, Mapping) or not set(NAMES) <= set(logs):
            raise _bypassed(model, f"a `make_{self._kind}_function` whose function does not call `{self._step}` anew")
        self._last = {name: logs[name] for name in NAMES}
        return {name: value for name, value in logs.items() if name not in NAMES}

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
        taken = [name for name in NAMES if name in logs]
        if taken:
            raise ValueError(
                f"PenaltyLogger cannot log {' and '.join(map(repr, taken))}: model {model.name!r} has a metric, or an "
                "output whose loss is logged, under that name."
            )
        if training.is_on_cluster(model):
            return logs
        return _with_parts(logs, {mean.name: mean.result() for mean in self.means})


def _with_parts(logs, parts):
    """The logs with both parts of the loss behind it."""
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
    """Stands in for the compiled loss of a model: the same loss, which is noted in a mean for each of its two parts.

    What is not defined here is the original's.
    """

    def __init__(self, original, means):
        self._original, self._means, self.calls, self.penalized = original, means, 0, 0

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
        for mean, value in zip((self._original.metrics[0], *self._means), (tf.add_n(parts), *parts), strict=True):
            mean.update_state(value, sample_weight=weight)
        # Every replica adds the whole penalty, and their gradients are summed.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return tf.add_n(training.common_dtype([loss, penalty / replicas]))
