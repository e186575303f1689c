"""What acts during training: showing the penalty apart from the data loss."""

import contextlib
import functools
import inspect

import tensorflow as tf
import tf_keras

from tfk_regularizers import _keras

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
    they are.

    For the time of a `fit`, or of an `evaluate` with this callback, `model.compiled_loss` is replaced by an object that
    computes the same loss. Afterwards, also after an exception or Ctrl-C, everything is as it was. Training is the
    same, `model.weights` never changes, and no file saved meanwhile holds the two means. If another callback calls
    `model.evaluate` by itself, it gets what it would get without this one.

    Cost: some operations on scalars in each step, 15 µs on two CPU cores; and a retrace, of the training and the test
    step when a `fit` begins and of what is called after it. (A factor that is a number, and was changed since the step
    was traced last, takes effect then.)

    For tf_keras only, inside its `Model.fit` and `Model.evaluate`. A model with a `train_step` of its own may use it if
    the step calls `self.compute_loss` or `self.compiled_loss` and returns the results of `self.metrics`.

    Raises:
        TypeError: When training begins, if the model is none of tf_keras (a Keras 3 model, for one).
        ValueError: When the first step is traced, before it has changed a weight (with `run_eagerly`, after the first
            step), if a `train_step` or `test_step` bypasses the compiled loss, does not give it the penalties or does
            not return `self.metrics`; or if the model has a metric or a per-output loss of one of the two names.
        RuntimeError: If the training loop is none of `Model.fit` and `Model.evaluate`.

    >>> layer = tf_keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=tf_keras.regularizers.L2(0.5))
    >>> model = tf_keras.Sequential([layer])
    >>> model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    >>> x, y = tf.ones([4, 2]), tf.zeros([4, 1])
    >>> model.fit(x, y, verbose=0, callbacks=[PenaltyLogger()]).history
    {'loss': [5.0], 'data_loss': [4.0], 'penalty': [1.0]}
    """

    def set_model(self, model):
        if not isinstance(model, tf_keras.Model):
            raise TypeError(
                f"PenaltyLogger is for models of tf_keras. Received: model={model!r}, a "
                f"{type(model).__module__}.{type(model).__qualname__}"
            )
        super().set_model(model)

    def on_train_begin(self, logs=None):
        self._check_loop()

    def on_test_begin(self, logs=None):
        self._check_loop()

    def _check_loop(self):
        if not isinstance(self.model.compiled_loss, _SplitLoss):
            raise RuntimeError(
                "PenaltyLogger works inside `Model.fit` and `Model.evaluate`, while tfk_regularizers is registered. "
                "Received: a call from another loop, or from a `fit` that was looked up before. In a loop of your "
                "own, `tf.add_n(model.losses)` is the penalty."
            )


_wrapped: dict = {}  # what stood in the place of each of our methods, by name: (original, ours)


def install():
    """Let each `Model.fit` and `Model.evaluate` split its loss if a PenaltyLogger is among its callbacks.

    A callback cannot undo anything when a fit fails: `on_train_end` is not called then, and nothing that Keras runs on
    the way out can be reached from a callback. Only a frame around the call always has the last word. It has to be
    there before the first PenaltyLogger: `model.fit(x, y, callbacks=[PenaltyLogger()])` looks `fit` up before that.
    """
    for name in ("fit", "evaluate"):
        if name not in _wrapped:
            original = getattr(tf_keras.Model, name)
            _wrapped[name] = original, _inside(original, _split_if_asked)
            setattr(tf_keras.Model, name, _wrapped[name][1])


def uninstall():
    """Undo `install`; a method that somebody has wrapped once more stays wrapped."""
    for name, (original, ours) in list(_wrapped.items()):
        if getattr(tf_keras.Model, name) is ours:
            setattr(tf_keras.Model, name, original)
            del _wrapped[name]


def _inside(method, around):
    signature = inspect.signature(method)

    @functools.wraps(method)
    def inside(model, *args, **kwargs):
        call = functools.partial(method, model, *args, **kwargs)
        try:
            callbacks = signature.bind(model, *args, **kwargs).arguments.get("callbacks")
        except TypeError:
            return call()  # which says better what is wrong
        return around(call, model, tf.nest.flatten(getattr(callbacks, "callbacks", callbacks)))

    return inside


def _split_if_asked(call, model, callbacks):
    """Call a `fit` or an `evaluate`, with the loss split for that time if a PenaltyLogger is among its callbacks."""
    asked = any(isinstance(callback, PenaltyLogger) for callback in callbacks)
    loss = getattr(model, "compiled_loss", None)
    if isinstance(loss, _SplitLoss):  # within a fit: its own evaluation, or one that another callback makes for itself
        return call() if asked else loss.without_parts(call())
    if not asked or loss is None:
        return call()
    with _loss_split(model):
        return call()


@contextlib.contextmanager
def _loss_split(model):
    """Let a model report the two parts of its loss beside it."""
    split = _SplitLoss(model)
    with contextlib.ExitStack() as stack:
        stack.callback(_keras.forget_traces, model)  # what is traced meanwhile goes through the _SplitLoss
        stack.enter_context(_set_for_now(model, "compiled_loss", split))
        for name in ("train_step", "test_step"):
            stack.enter_context(_set_for_now(model, name, _checked(getattr(model, name), name, model, split)))
        _keras.forget_traces(model)
        yield


@contextlib.contextmanager
def _set_for_now(model, name, value):
    """Set an attribute of a model, and put back what was, unless somebody has set it again meanwhile (`compile`)."""
    before = vars(model).get(name)  # None for a method, which is the class's
    setattr(model, name, value)
    try:
        yield
    finally:
        if vars(model).get(name) is value:
            if before is None:
                delattr(model, name)
            else:
                setattr(model, name, before)


def _checked(step, name, model, split):
    """The train_step or test_step, checked when it is traced: the step has not run then, and no weight has changed."""

    def checked(data):
        calls, penalized = split.calls, split.penalized
        logs = step(data)
        if split.calls == calls:
            raise _bypassed(model, f"a `{name}` that computes its loss without them")
        if split.penalized == penalized and model.losses:
            raise _bypassed(model, f"a `{name}` that gives `self.compiled_loss` no `regularization_losses`")
        if not set(NAMES) <= set(logs):
            raise _bypassed(model, f"a `{name}` that does not return 'data_loss' and 'penalty' with its metrics")
        taken = [label for label in NAMES if model.metrics_names.count(label) > 1]
        if taken:
            raise ValueError(
                f"PenaltyLogger cannot log {' and '.join(map(repr, taken))}: model {model.name!r} has a metric, or an "
                "output whose loss is logged, under that name."
            )
        return logs

    return checked


def _bypassed(model, received):
    return ValueError(
        f"PenaltyLogger cannot tell data loss and penalty of model {model.name!r} apart. Its steps must take their "
        "loss from `self.compute_loss(x, y, y_pred, sample_weight)` or from `self.compiled_loss(y, y_pred, "
        "sample_weight, regularization_losses=self.losses)`, and return all `self.metrics`, as those of Keras do. "
        f"Received: a {type(model).__name__} with {received}"
    )


class _SplitLoss:
    """Stands in for the compiled loss of a model: the same loss, and a mean for each of its two parts.

    What is not defined here is the original's.
    """

    def __init__(self, model):
        self._original, self._model, self.calls, self.penalized = model.compiled_loss, model, 0, 0
        with model.distribute_strategy.scope():
            self._means = [tf_keras.metrics.Mean(name) for name in NAMES]
        self._shown = [_Shown(mean) for mean in self._means]

    def __getattr__(self, name):
        return getattr(self._original, name)

    @property
    def metrics(self):
        """The original's, which begin with `loss`, and the two after that; none before the first step, as there."""
        metrics = self._original.metrics
        return [*metrics[:1], *self._shown, *metrics[1:]] if metrics else []

    def without_parts(self, result):
        """What `evaluate` has returned, as it would be without the two."""
        if isinstance(result, dict):
            return {name: value for name, value in result.items() if name not in NAMES}
        names = self._model.metrics_names
        if not isinstance(result, list) or len(result) != len(names):
            return result
        kept = [value for name, value in zip(names, result, strict=True) if name not in NAMES]
        return kept if len(kept) > 1 else kept[0]

    def __call__(self, y_true, y_pred, sample_weight=None, regularization_losses=None):
        self.calls += 1
        self.penalized += bool(regularization_losses)
        loss, data_loss, weight = _keras.call_recorded(self._original, y_true, y_pred, sample_weight)
        if not regularization_losses and loss is None:
            return None
        penalty = tf.add_n(_keras.common_dtype(regularization_losses or [tf.zeros_like(data_loss)]))
        if loss is None:  # compiled without one: all the loss there is comes from add_loss
            loss = data_loss = tf.zeros_like(penalty)
        parts = _keras.common_dtype([data_loss, penalty])
        for mean, value in zip((self._original.metrics[0], *self._means), (tf.add_n(parts), *parts), strict=True):
            mean.update_state(value, sample_weight=weight)
        # Every replica adds the whole penalty, and their gradients are summed.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return tf.add_n(_keras.common_dtype([loss, penalty / replicas]))


class _Shown:
    """A mean among `model.metrics` that is no `Metric`: Keras would write one into every file saved meanwhile."""

    def __init__(self, mean):
        self.name, self.result = mean.name, mean.result
        self.reset_state = self.reset_states = mean.reset_state

    def update_state(self, *args, **kwargs):
        """Do nothing: a train_step may give its predictions to all metrics but `loss`."""
