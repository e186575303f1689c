"""L1, L2 and the elastic net: sums over the elements, with hand-written gradients that save passes over memory."""

import contextlib
from typing import Any, SupportsFloat, TypeVar

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.annotations import Factor, FactorAttribute
from tfk_regularizers._penalties.arguments import finite, invalid, only_legacy_name
from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.factors import checked_factor, is_zero, scaled
from tfk_regularizers._penalties.inputs import elements
from tfk_regularizers._penalties.reductions import result_dtype, sum_by_products, wide

_SomeL2 = TypeVar("_SomeL2", bound="L2")


class L1(Penalty, autograph=False):
    """Pulls weights to zero, small ones as hard as large ones: adds `l1 * sum(abs(x))` to the loss.

    Formula: `l1 * Σ|x|` over all elements of a tensor of any shape, ragged ones included. Gradient: `l1 * sign(x)`, 0
    at 0.

    What the data does not hold against that comes close to zero, not onto it: a step of any of Keras's optimizers leaps
    over 0 and back. For exact zeros cut what is small after training, as `examples/anneal_l1.py` does; for whole units
    see `GroupLasso`.

    May be passed to a layer as the string `"l1"`, which means `L1(l1=0.01)`.

    Differs from tf_keras: the factor stays a Python float, float16 and bfloat16 are summed in float32 and give a
    float32 result, and large sums keep their digits under XLA.

    Args:
        l1: A finite number, the factor of the penalty; `None` means the default. Defaults to 0.01. One below zero
            rewards, as in tf_keras. Mutable, and read at each call; a step that is traced already keeps the number that
            it was traced with. Or a scalar floating `tf.Variable(..., trainable=False)`, which is read at each call
            inside traced and compiled functions too: `assign` takes effect at the next step. What files, `clone_model`,
            `deepcopy` and the copies inside a `Bidirectional` carry is its current value, which has to be finite then;
            `tf.train.Checkpoint` restores the variable. Give it to the regularizer before a layer gets that, or call
            `set_regularizers` after: a layer takes no notice of a variable that comes later. As an activity
            regularizer, assign it (`layer.activity_regularizer = L1(variable)`): Keras does not track what the
            constructor is given, so SavedModels and checkpoints would not find the variable. What is set later is
            checked as the constructor checks it, but in a subclass with a `__call__` of its own, which may keep there
            what it likes.
        **kwargs: `l`, the name that `l1` had in old versions of Keras.

    Raises:
        ValueError: If `l1` is not a finite number; when saved or copied, if it is a variable that holds none.
        TypeError: If there is another keyword argument; when called, if x is not of a floating or complex dtype.

    >>> L1(0.5)
    L1(l1=0.5)
    >>> float(L1(0.5)([[1.0, -2.0], [0.0, 3.0]]))
    3.0

    References:
        Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.
    """

    factor_names = ("l1",)
    l1: FactorAttribute

    def __init__(self, l1: Factor | None = 0.01, **kwargs: Factor | None) -> None:
        l1 = only_legacy_name(kwargs, "L1", l1)
        self.l1 = checked_factor("l1", 0.01 if l1 is None else l1)

    def __call__(self, x: Any) -> tf.Tensor:
        return scaled(self.l1, absolute_sum(elements("L1", x)))


class L2(Penalty, autograph=False):
    """Keeps weights small: adds `l2 * sum(square(x))` to the loss.

    Formula: `l2 * Σx²` over all elements of a tensor of any shape (`|x|²` for complex ones). Gradient: `2 * l2 * x`.

    As the `embeddings_regularizer` of a large table it costs more than the rest of a step: all rows are read, and all
    are updated, where the step would touch those alone that were looked up (`examples/embedding_table.py`). An
    `activity_regularizer` of the `Embedding` penalizes just these, each as often as it occurs, and divides by the size
    of the batch, as Keras does with any activity penalty.

    May be passed to a layer as the string `"l2"`, which means `L2(l2=0.01)`.

    Differs from tf_keras: the factor stays a Python float, complex and ragged tensors work, float16 and bfloat16 are
    summed in float32 and give a float32 result, and large sums keep their digits under XLA.

    Args:
        l2: A finite number, the factor of the penalty; `None` means the default. Defaults to 0.01. Mutable, and read at
            each call. Or a variable, as for `L1`.
        **kwargs: `l`, the name that `l2` had in old versions of Keras.

    Raises:
        ValueError: If `l2` is not a finite number.
        TypeError: If there is another keyword argument; when called, if x is not of a floating or complex dtype.

    >>> L2(0.5)
    L2(l2=0.5)
    >>> float(L2(0.5)([[1.0, -2.0], [0.0, 3.0]]))
    7.0

    References:
        Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970.
    """

    factor_names = ("l2",)
    l2: FactorAttribute

    def __init__(self, l2: Factor | None = 0.01, **kwargs: Factor | None) -> None:
        l2 = only_legacy_name(kwargs, "L2", l2)
        self.l2 = checked_factor("l2", 0.01 if l2 is None else l2)

    def __call__(self, x: Any) -> tf.Tensor:
        return scaled(self.l2, half_square_sum(elements("L2", x)), times=2.0)

    @classmethod
    def from_weight_decay(cls: type[_SomeL2], decay: SupportsFloat) -> _SomeL2:
        """Returns the `L2` whose gradient is `decay * x`, which is `L2(decay / 2)`.

        Weight decay is defined by what it does to a step, L2 by what it adds to the loss, and `l2 * Σx²` has the
        gradient `2 * l2 * x`: hence the factor of two between the two numbers. With this regularizer an SGD step of
        learning rate η takes the weights to `(1 - η * decay) * x` before the data's gradient is subtracted, as
        `torch.optim.SGD(lr=η, weight_decay=decay)` does, momentum included.

        It equals *decoupled* weight decay (AdamW, `weight_decay=` of a tf_keras optimizer) under plain SGD alone. An
        adaptive optimizer divides the penalty's gradient, like any other, by the size of past gradients, so weights
        with large gradients decay less; AdamW does not. There is then no `l2` that does the same. Both shrink with the
        learning rate: the weights decay by η times `decay`, so a schedule that lowers η lowers the decay of each step.
        The equilibrium depends on the product, and whoever changes η may want to change `decay` inversely.

        Args:
            decay: A finite number, the share of a weight that a step of learning rate 1 removes.

        Returns:
            An `L2`.

        Raises:
            ValueError: If `decay` is not a finite number.

        >>> L2.from_weight_decay(1e-4)
        L2(l2=5e-05)

        References:
            Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
        """
        if hasattr(decay, "assign"):
            raise invalid("decay", "a finite number", decay)
        return cls(finite("decay", decay) / 2)


class L1L2(Penalty, autograph=False):
    """Adds `l1 * sum(abs(x)) + l2 * sum(square(x))` to the loss (the elastic net).

    Formula: `l1 * Σ|x| + l2 * Σx²` over all elements of a tensor of any shape. Gradient: `l1 * sign(x) + 2 * l2 * x`,
    with `sign(0) = 0`. A factor that is the number 0 leaves its term out.

    The string `"l1_l2"` means `L1L2(l1=0.01, l2=0.01)`. The string `"L1L2"` means `L1L2()`, which does nothing.

    Differs from tf_keras: as for `L1` and `L2`.

    Args:
        l1: A finite number, the factor of the sum of absolute values; `None` means the default. Defaults to 0.0.
        l2: A finite number, the factor of the sum of squares; `None` means the default. Defaults to 0.0. Both are
            mutable, and read at each call. Or variables, as for `L1`.

    Raises:
        ValueError: If `l1` or `l2` is not a finite number.
        TypeError: When called, if x is not of a floating or complex dtype.

    >>> L1L2(l1=0.5, l2=0.25)
    L1L2(l1=0.5, l2=0.25)
    >>> float(L1L2(l1=0.5, l2=0.25)([[1.0, -2.0], [0.0, 3.0]]))
    6.5

    References:
        Zou and Hastie, "Regularization and Variable Selection via the Elastic Net", 2005.
    """

    factor_names = ("l1", "l2")
    l1: FactorAttribute
    l2: FactorAttribute

    def __init__(self, l1: Factor | None = 0.0, l2: Factor | None = 0.0) -> None:
        self.l1 = checked_factor("l1", 0.0 if l1 is None else l1)
        self.l2 = checked_factor("l2", 0.0 if l2 is None else l2)

    def __call__(self, x: Any) -> tf.Tensor:
        x = elements("L1L2", x)
        if is_zero(self.l1) and is_zero(self.l2):
            return tf.zeros([], result_dtype(x))
        if is_zero(self.l1):
            return scaled(self.l2, half_square_sum(x), times=2.0)
        if is_zero(self.l2):
            return scaled(self.l1, absolute_sum(x))
        are_numbers = not (isinstance(self.l1, tf.Variable) or isinstance(self.l2, tf.Variable))
        if are_numbers and execution.route(x) in ("XLA", "fused"):  # in one pass over memory
            return elastic_net(x, float(self.l1), float(self.l2))
        return scaled(self.l1, absolute_sum(x)) + scaled(self.l2, half_square_sum(x), times=2.0)


def l1_l2(l1: Factor | None = 0.01, l2: Factor | None = 0.01) -> L1L2:
    """Returns `L1L2(l1, l2)`, with the defaults that the string `"l1_l2"` stands for.

    Args:
        l1: A finite number, the factor of the sum of absolute values. Defaults to 0.01.
        l2: A finite number, the factor of the sum of squares. Defaults to 0.01.

    Returns:
        An `L1L2`.

    Raises:
        ValueError: If `l1` or `l2` is not a finite number.

    >>> l1_l2()
    L1L2(l1=0.01, l2=0.01)
    """
    return L1L2(l1=l1, l2=l2)


def absolute_sum(x):
    """Σ|x|, a scalar of `result_dtype(x)`, and 0 the gradient at 0."""
    return _sum(x, tf.abs, lambda x, dy: dy * tf.sign(x))


def half_square_sum(x):
    """½ Σ|x|², a scalar of `result_dtype(x)`."""
    x = wide(x)
    if x.dtype.is_complex:
        return half_square_sum(tf.math.real(x)) + half_square_sum(tf.math.imag(x))
    if execution.route(x) == "XLA":
        return 0.5 * sum_by_products(tf.square(x))
    if execution.in_vectorized_map():  # which has nothing to put in the place of an l2_loss but a loop
        return 0.5 * tf.reduce_sum(tf.square(x))
    return tf.nn.l2_loss(x)  # one pass, without writing the squares, and one for the gradient


def elastic_net(x, l1, l2):
    """l1 Σ|x| + l2 Σ|x|², a scalar of `result_dtype(x)`, for numbers l1 and l2 that are not both 0, in a single sum."""
    scale = max(abs(l1), abs(l2))  # applied to the sum: times small elements, small factors would vanish
    return scale * _sum(
        x,
        lambda x: l1 / scale * tf.abs(x) + l2 / scale * tf.square(tf.abs(x)),
        lambda x, dy: (dy * (l1 / scale)) * tf.sign(x) + (dy * (2.0 * l2 / scale)) * x,
    )


def _sum(x, terms, gradient):
    """The sum of `terms(x)`, with the gradient by hand or by TensorFlow, as `execution.route` says."""
    route = execution.route(x)
    by_products = route == "XLA" or (route == "fused" and execution.XLA_ADDS_ONE_BY_ONE)
    reduce_sum = sum_by_products if by_products else tf.reduce_sum
    if route == "plain" or x.dtype.is_complex:  # complex gradients are left to TensorFlow
        return reduce_sum(terms(wide(x)))
    scope = tf.xla.experimental.jit_scope if route == "fused" else contextlib.nullcontext

    @tf.custom_gradient
    def by_hand(x):
        def backward(dy):
            with scope():
                return tf.cast(gradient(wide(x), dy), x.dtype)

        with scope():
            return reduce_sum(terms(wide(execution.inside(x)))), backward

    return by_hand(execution.here(x))
