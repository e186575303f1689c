"""log_penalties: log the data loss and the penalty separately, in addition to their sum."""

import contextlib
from typing import Any

from tfk_regularizers._keras import tree, versions
from tfk_regularizers._keras.hosts import checked_host
from tfk_regularizers._penalties.arguments import check_bool


class PenaltyLog(contextlib.ExitStack):
    """The context manager that `log_penalties` returns. `close`, or the end of the `with` block, ends the logging."""

    def __repr__(self) -> str:
        return "<PenaltyLog: data_loss and penalty are logged until `close` or the next `compile`>"


def log_penalties(model: Any, per_weight: bool = False) -> PenaltyLog:
    """Logs the data loss and the penalty of a compiled model, in addition to `loss`, which is their sum.

    Keras then shows `data_loss` and `penalty` wherever it shows `loss`: in the progress bar, `History`, `evaluate`,
    `CSVLogger` and `TensorBoard`. Validation adds `val_data_loss` and `val_penalty`, so
    `EarlyStopping(monitor="val_data_loss")` works. `penalty` is the sum of `model.losses`: the penalties of weights and
    activities, and losses from `add_loss`. Both are averaged over batches in the same way as `loss`.

    Logging ends with the next `compile`, or with the `with` block:

        with tfk_regularizers.log_penalties(model):
            model.fit(x, y)

    Training, saved models and checkpoints are not affected. The next `fit` and `evaluate` trace their steps again. Use
    `evaluate(..., return_dict=True)` to get the new values by name. Each value costs about 30 µs per step on two CPU
    cores.

    Args:
        model: A compiled model of tf_keras, or of Keras 3.12 or later on TensorFlow. Call this function before `fit`,
            not during it.
        per_weight: Whether to log the penalty of each regularized weight too, under its path in `penalties`. Defaults
            to False.

    Returns:
        A context manager with a method `close`.

    Raises:
        TypeError: If `model` is anything else.
        ValueError: If the model is not compiled, if `per_weight` is not a bool or the model has no weights yet, if
            another metric, output or weight has the same name, or if a `train_step`, `test_step` or `compute_loss` of
            the model's own computes the loss in a way that cannot be split. (A `train_step` may be refused only when it
            is traced, before any weight is updated; in Keras 3, one that returns its own logs, at the end of the first
            epoch. In tf_keras, such a step logs no parts, and is not refused.)
        RuntimeError: In TensorFlow 1 graphs.

    >>> import tensorflow as tf, tf_keras
    >>> half = tf_keras.regularizers.L2(0.5)
    >>> layer = tf_keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=half, name="head")
    >>> model = tf_keras.Sequential([layer])
    >>> model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    >>> x, y = tf.ones([4, 2]), tf.zeros([4, 1])
    >>> with log_penalties(model):
    ...     model.fit(x, y, verbose=0).history
    {'loss': [5.0], 'data_loss': [4.0], 'penalty': [1.0]}
    >>> log_penalties(model, per_weight=True)
    <PenaltyLog: data_loss and penalty are logged until `close` or the next `compile`>
    >>> model.evaluate(x, y, verbose=0, return_dict=True)
    {'loss': 5.0, 'data_loss': 4.0, 'penalty': 1.0, 'head/kernel': 1.0}
    """
    host = checked_host(model, "`log_penalties`")
    versions.check_tensorflow_2("`log_penalties`")
    if check_bool("per_weight", per_weight):
        tree.check_built(model)
    log = PenaltyLog()
    log.callback(host.join_loss, model, host.split_loss(model, per_weight))
    return log


def PenaltyLogger(*args: Any, **kwargs: Any) -> None:  # noqa: N802  # the name in version 0.2
    """Raises an error that names `log_penalties`, which has replaced this callback of version 0.2."""
    raise NotImplementedError(
        "The callback `PenaltyLogger` was replaced by a function. Write `with tfk_regularizers.log_penalties(model): "
        "model.fit(...)`, or call `tfk_regularizers.log_penalties(model)` once after `model.compile`."
    )
