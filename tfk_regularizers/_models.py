"""Functions on whole models: `set_regularizers` and `penalties`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
import tf_keras

from tfk_regularizers._identifiers import get
from tfk_regularizers._keras import regularization, versions
from tfk_regularizers._keras.hosts import checked_host
from tfk_regularizers._messages import invalid_argument
from tfk_regularizers._penalties.arguments import was_read_in_graph
from tfk_regularizers._penalties.base import without_autograph

Where: TypeAlias = str | Callable[[Any], Any] | Sequence[str | Callable[[Any], Any]] | None  # a layer is callable
Identifier: TypeAlias = str | dict[str, Any] | Callable[[Any], Any] | None


def set_regularizers(model: Any, *, where: Where = None, **regularizers: Identifier) -> list[str]:
    """Sets, replaces or removes regularizers on the layers of a built model, in place.

    `model.losses` is right at once: no rebuild, no reload, weights and optimizer state untouched. The next `fit` of
    `model` trains with the change, even if its step was traced before. A step of a compiled model around `model`, or a
    `tf.function` of your own, that was traced before keeps the old penalties: call this on the model that is trained.
    If `model` is not compiled itself, a warning says so where a penalty of this package is replaced. Where there was no
    penalty, Keras leaves no sign of a trace.

    Saving to `.keras` or `.h5` (with tf_keras a SavedModel too) carries the change for Sequential and Functional models
    of Keras's layers; a subclassed model or layer carries what its own `get_config` carries. If that has a regularizer
    under the same keyword, which the layer has passed on to layers inside it, it follows. A warning names the layer
    where this is not certain.

    Each keyword names an attribute of layers, as Keras's constructors do, and changes the weights that the layer
    penalizes by it; if there are none yet, the weight of that name (`kernel`, or those whose names begin with
    `kernel_`). A layer that has the attribute without the weight (`kernel_regularizer` of a `DepthwiseConv2D`) stays as
    it is.
    `activity_regularizer` means the output of the layers that take it by name and save it (not an `EinsumDense`, which
    drops it). Layers inside nested models, wrappers and RNN layers are reached too, and shared layers once.

    Frozen layers (`trainable=False`) are changed too: tf_keras penalizes them like others, Keras 3 only once they are
    trainable; `where` can leave them out. In Keras 3, `depthwise_regularizer` means the kernel of a `DepthwiseConv2D`,
    and where LoRA is enabled, `kernel_regularizer` means the two small kernels that are trained.

    Args:
        model: A model of tf_keras, or of Keras 3.12 or later on its TensorFlow backend. It must have its weights, and
            may be compiled or not.
        where: Which layers to change: the name of a layer or of one around it (a nested model, a wrapper), a layer, a
            list of these, or a function of a layer that returns whether to change it; `None` means all layers. What is
            part of a chosen layer (a cell of an RNN layer, what a wrapper wraps, a projection of a
            `MultiHeadAttention`) is changed too. A function that passes for a nested model does not choose its layers.
        **regularizers: From the name of an attribute (`kernel_regularizer`, `bias_regularizer`,
            `depthwise_regularizer`, `pointwise_regularizer`, `recurrent_regularizer`, `embeddings_regularizer`,
            `gamma_regularizer`, `beta_regularizer`, `alpha_regularizer`, `activity_regularizer`, or that of a layer of
            your own) to a regularizer, to anything that `get` takes, or to `None`, which removes.

    Returns:
        The list of the paths of the weights whose regularizer was set, replaced or removed, as `"block1/conv/kernel"`:
        the keys that `penalties` has. An output is listed as `"block1/conv/activity"`.

    Warns:
        UserWarning: If a traced step keeps penalties that are replaced, if a file brings them back (a part of the
            projections of a `MultiHeadAttention`, which saves one regularizer for all), or if a built-in regularizer
            from before the import is in the model afterwards.

    Raises:
        TypeError: If `model` is no such model.
        ValueError: If the model or a layer to change has no weights yet, if a keyword matches nothing, if a
            regularizer fails or gives no scalar on one of its weights, or if a layer to change was loaded from a
            SavedModel without its class.
        NotImplementedError: If a regularizer without `get_config` is to be set inside a `Bidirectional` of tf_keras.
        RuntimeError: In TensorFlow 1 graphs.

    After an error the model is exactly as it was.

    >>> import tf_keras
    >>> from tfk_regularizers import L2, set_regularizers
    >>> model = tf_keras.Sequential(
    ...     [tf_keras.layers.Dense(2, kernel_initializer="ones", name="hidden"), tf_keras.layers.Dense(1, name="head")]
    ... )
    >>> model.build((None, 3))
    >>> set_regularizers(model, kernel_regularizer=L2(0.5), where="hidden")
    ['hidden/kernel']
    >>> float(sum(model.losses))
    3.0
    >>> set_regularizers(model, kernel_regularizer=None)
    ['hidden/kernel']
    >>> model.losses
    []
    """
    host = checked_host(model, "`set_regularizers`")
    versions.check_tensorflow_2("`set_regularizers`")
    check_where(where)
    if not regularizers:
        raise ValueError("`set_regularizers` needs at least one keyword, such as `kernel_regularizer`.")
    with tf_keras.saving.custom_object_scope(versions.keras3_regularizers()):
        values = {keyword: get(value) for keyword, value in regularizers.items()}
    return regularization.set_regularizers(host, model, where, values, was_read_in_graph)


@without_autograph
def penalties(model: Any) -> dict[str, tf.Tensor]:
    """Returns the current penalty of each regularized weight of a model.

    The values are what Keras adds to the loss: they sum to `sum(model.losses)` as long as there is neither an activity
    regularizer nor an `add_loss`. Those are not listed: they depend on data, and Keras keeps them without names.
    Keras 3 does not penalize frozen weights. (A `SampledOrthogonalRegularizer` draws afresh at each reading.)

    A custom training loop adds the penalties to the loss itself. Under a strategy each replica computes them and the
    gradients of the replicas are added up, so each takes its share; the loop equals `fit`, on any number of replicas:

    >>> import tensorflow as tf, tf_keras
    >>> model = tf_keras.Sequential([tf_keras.layers.Dense(1, kernel_regularizer="l2", kernel_initializer="ones")])
    >>> model.build((None, 2))
    >>> strategy = tf.distribute.get_strategy()  # or the MirroredStrategy in whose scope the model was made
    >>> optimizer = tf_keras.optimizers.SGD(1.0)
    >>> @tf.function
    ... def step(x, y):
    ...     with tf.GradientTape() as tape:
    ...         errors = tf_keras.losses.mean_squared_error(y, model(x, training=True))
    ...         loss = tf.nn.compute_average_loss(errors)  # over the global batch
    ...         loss += sum(penalties(model).values()) / strategy.num_replicas_in_sync
    ...     gradients = tape.gradient(loss, model.trainable_variables)
    ...     optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    ...     return loss
    >>> losses = strategy.run(step, args=(tf.zeros([4, 2]), tf.zeros([4, 1])))
    >>> print(f"{strategy.reduce('SUM', losses, axis=None):.6f}, then {float(sum(model.losses)):.6f}")
    0.020000, then 0.019208

    A layer that is reused is listed once, under the first of its paths; layers of the same name beside each other
    are told apart by `_1`, `_2` and so on, and so are weights of one layer.

    Args:
        model: A model of tf_keras or of Keras 3 that has its weights.

    Returns:
        A dict, in the order of the layers, from the path of each regularized weight, the names of the layers around it
        and its own, to its penalty, a scalar tensor: a number in eager mode, a part of the graph, with its gradient,
        inside a `tf.function`.

    Warns:
        UserWarning: If a built-in regularizer from before the import is in the model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model has no weights yet, or if a layer that has losses was loaded from a SavedModel without
            its class.

    >>> inner = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_initializer="ones", name="dense")], name="block1")
    >>> model = tf_keras.Sequential([inner, tf_keras.layers.Dense(1, name="head")])
    >>> model.build((None, 3))
    >>> set_regularizers(model, kernel_regularizer="l2", where="block1")
    ['block1/dense/kernel']
    >>> {path: round(float(value), 6) for path, value in penalties(model).items()}
    {'block1/dense/kernel': 0.06}
    """
    return regularization.penalties(model)


def check_where(where: Any) -> None:
    """Raise ValueError unless `where` is a function, a layer, a name, a list of layers and names, or None."""
    for one in where if isinstance(where, (list, tuple)) else [where]:
        is_nested = one is not where and not isinstance(one, (str, *versions.layer_bases()))
        if where is not None and (inspect.isclass(one) or is_nested or not (callable(one) or isinstance(one, str))):
            expected = "a name or a function of a layer, such as `lambda layer: isinstance(layer, Dense)`, or None"
            raise invalid_argument("where", f"a layer, a list of layers, {expected}", where)
    if isinstance(where, (list, tuple)) and not where:
        raise invalid_argument("where", "a layer, a name, or a list of some", where)
