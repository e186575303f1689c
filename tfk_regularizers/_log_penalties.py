"""log_penalties: the data loss and the penalty beside the loss."""

import contextlib
from typing import Any

from tfk_regularizers._keras import tree, versions
from tfk_regularizers._keras.hosts import checked_host
from tfk_regularizers._penalties.arguments import check_bool


class PenaltyLog(contextlib.ExitStack):
    """What `log_penalties` returns. `close`, or the end of its `with` block, stops the logging of the parts."""

    def __repr__(self) -> str:
        return "<PenaltyLog: data_loss and penalty are logged until `close` or the next `compile`>"


def log_penalties(model: Any, per_weight: bool = False) -> PenaltyLog:
    """Logs the data loss and the penalty of a compiled model beside `loss`, which is their sum.

    Afterwards Keras shows `data_loss` and `penalty` wherever it shows `loss`: in `fit` and its history, `evaluate`, the
    progress bar, `CSVLogger` and `TensorBoard`. With validation data there are `val_data_loss` and `val_penalty` too,
    so `EarlyStopping(monitor="val_data_loss")` works. `penalty` is the sum of `model.losses`: the penalties of weights
    and of activities, and what `add_loss` was given. `data_loss` is what the compiled loss returns without it. Both are
    metrics that Keras averages over batches as it averages `loss`, by their sizes. (In Keras 3, what a `compute_loss`
    of the model's own adds to that of Keras is a part of `data_loss`.)

    They stay until the next `compile`, as other metrics do. In a `with` statement they end with its block, also after
    an error or Ctrl-C:

        with tfk_regularizers.log_penalties(model):
            model.fit(x, y)

    Training, saved files, weights and checkpoints are the same as without. The next `fit` and `evaluate` trace their
    steps anew. An `evaluate` without `return_dict=True` returns the parts in the order of `model.metrics_names`, and so
    does one that another callback calls meanwhile.

    Cost: a metric's update for each part and step, about 30 µs on two CPU cores.

    Args:
        model: A compiled model of tf_keras, or of Keras 3.12 or later on its TensorFlow backend. Call this outside of a
            running `fit`.
        per_weight: Whether to log the penalty of each regularized weight as well, under its path, as `penalties`
            returns it. The names follow `set_regularizers`. Defaults to False.

    Returns:
        A context manager with a method `close`.

    Raises:
        TypeError: If `model` is no such model.
        ValueError: If the model is not compiled; if `per_weight` is not a bool, or is True and the model has no weights
            yet; or if a `train_step` of its own computes the loss without `compute_loss` and `compiled_loss` (in Keras
            3 when the step is traced, or at the end of the first epoch). When a step is traced, before it changes a
            weight: if it calls `compiled_loss` without the penalties, if a `compute_loss` of its own does without that
            of Keras, or if a metric, an output or a weight has the name of a part.
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
    """Raises an error that names what replaced this callback of version 0.2: `log_penalties`."""
    raise NotImplementedError(
        "The callback `PenaltyLogger` was replaced by a function. Write `with tfk_regularizers.log_penalties(model): "
        "model.fit(...)`, or call `tfk_regularizers.log_penalties(model)` once after `model.compile`."
    )
