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
    """Sets, replaces or removes regularizers of a built model, in place.

    `model.losses` changes at once (with an activity regularizer, at the next call), and the next `fit` of `model`
    trains with the new penalties. Weights and optimizer state are kept; you need not rebuild or recompile the model.

    Each keyword is an argument of layers' constructors. `kernel_regularizer` changes the penalty of the weights that a
    layer regularizes by this argument, or else of its weight `kernel` (or those whose names begin with `kernel_`).
    Layers without such an argument or weight are left unchanged. `activity_regularizer` changes the penalty of the
    output, for layers that accept the argument, apply it to their own output, and save it. Layers inside nested models,
    wrappers and RNN layers are included, shared layers once, and frozen layers too (Keras 3 penalizes these only after
    they are made trainable). In Keras 3, `depthwise_regularizer` means the kernel of a `DepthwiseConv2D`, and with
    LoRA, `kernel_regularizer` means the two LoRA matrices (and the frozen kernel if it has a regularizer).

    Saved models contain the change if they are Sequential or Functional and made of Keras's layers, in every format. (A
    `MultiHeadAttention` saves one regularizer for all its projections.) A subclassed model or layer saves what its
    `get_config` returns. If it has passed its regularizer on to the layers inside it, its own attribute is updated too;
    a warning names layers that may get the old regularizer back.

    If the training step of a larger model that contains `model`, or a `tf.function` of your own, was traced before, it
    keeps the old penalties. Call this function on the model that you train, and create your functions again.

    Args:
        model: A model of tf_keras, or of Keras 3.12 or later on TensorFlow. It must have its weights, and may be
            compiled.
        where: The layers to change: the name of a layer, or of a nested model or wrapper that contains it; a layer; a
            list of names and layers; or a function that takes a layer and returns whether to change it. `None`, the
            default, means all layers. Layers inside a chosen layer are changed too: the cell of an RNN layer, the layer
            in a wrapper, the projections of a `MultiHeadAttention`. If a function chooses a nested model, it must
            choose the model's layers as well.
        regularizers: For each keyword (`kernel_regularizer`, `bias_regularizer`, `depthwise_regularizer`,
            `pointwise_regularizer`, `recurrent_regularizer`, `embeddings_regularizer`, `gamma_regularizer`,
            `beta_regularizer`, `alpha_regularizer`, `activity_regularizer`, or a keyword of your own layers), a
            regularizer, any other identifier that `get` accepts, or `None` to remove the regularizer.

    Returns:
        A list of the paths of the changed weights and outputs, such as `"block1/conv/kernel"` and
        `"block1/conv/activity"`. `penalties` uses the same paths.

    Warns:
        UserWarning: If a penalty is replaced that a graph has read, and no model in `model` is compiled; if a saved
            model may contain the old regularizer, or if the model still has a built-in regularizer from before the
            import of this package.

    Raises:
        TypeError: If `model` is anything else.
        ValueError: If the model or a layer to change has no weights yet, if a keyword matches no weight, if a
            regularizer fails or returns no scalar for one of its weights, or if a layer to change was loaded from a
            SavedModel without its class.
        NotImplementedError: If a regularizer without `get_config` is to be set inside a `Bidirectional` of tf_keras.
        RuntimeError: In TensorFlow 1 graphs.

    After an error the model is unchanged.

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

    The values add up to `sum(model.losses)`, unless the model has activity regularizers or calls `add_loss`. Those
    losses depend on the data and have no names in Keras, so they are not listed; nor are frozen weights in Keras 3,
    which does not penalize them. A `SampledOrthogonalRegularizer` draws a new sample each time.

    A custom training loop adds the penalties to the loss. With several replicas, divide their sum by the number of
    replicas, because the gradients of the replicas are added up. This loop gives the same weights as `fit`:

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

    Args:
        model: A model of tf_keras or of Keras 3 that has its weights.

    Returns:
        A dict from paths to penalties, in the order of the layers. A path consists of the names of the enclosing
        layers, of the layer and of the weight; if two are equal, `_1`, `_2` and so on are appended. A reused layer is
        listed once, under its first path. A penalty is a scalar tensor, with a gradient inside a `tf.GradientTape` or
        `tf.function`.

    Warns:
        UserWarning: If the model has a built-in regularizer from before the import of this package.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model has no weights yet, or if a layer with losses was loaded from a SavedModel without its
            class.

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
            expected = "a name, a function such as `lambda layer: isinstance(layer, Dense)`, or None"
            raise invalid_argument("where", f"a layer, a list of layers and names, {expected}", where)
    if isinstance(where, (list, tuple)) and not where:
        raise invalid_argument("where", "at least one layer or name", where)
