"""L1, L2 and the elastic net: sums over the elements, with hand-written gradients that save passes over memory."""

import contextlib
import functools
import operator
from typing import Any, SupportsFloat, TypeVar

import tensorflow as tf

from tfk_regularizers._messages import invalid_argument, short_repr
from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.arguments import Factor, FactorLike
from tfk_regularizers._penalties.base import Penalty, penalty_method
from tfk_regularizers._penalties.execution import Kernel
from tfk_regularizers._penalties.factors import is_zero, scale, to_finite_float
from tfk_regularizers._penalties.inputs import as_elements
from tfk_regularizers._penalties.reductions import matmul_sum, promote_half, result_dtype

_SomeL2 = TypeVar("_SomeL2", bound="L2")


class L1(Penalty):
    r"""Penalizes the absolute values of weights: adds `l1 * sum(abs(x))` to the loss.

    $$l_1 \sum_i |x_i|$$

    The sum is over all elements of x, which may have any shape. The gradient is `l1 * sign(x)`, with `sign(0) = 0`. The
    string `"l1"` means `L1(l1=0.01)`.

    Small weights are pulled towards zero as strongly as large ones, so many of them end up close to zero. They do not
    become exactly zero, because the steps of Keras's optimizers overshoot. For exact zeros, set small weights to zero
    after training, as `examples/anneal_l1.py` does. To remove whole units, use `GroupLasso`.

    Args:
        l1: The factor, a finite number or a variable: see `Factor`. `None` means the default, 0.01.
        kwargs: `l`, the name of `l1` in old versions of Keras.

    Raises:
        ValueError: If `l1` is not a finite number.
        TypeError: If there is any other keyword argument. When called: if x is not of a floating or complex dtype.

    >>> L1(0.5)
    L1(l1=0.5)
    >>> float(L1(0.5)([[1.0, -2.0], [0.0, 3.0]]))
    3.0

    References:
        Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.
    """

    l1: Factor = Factor()

    def __init__(self, l1: FactorLike | None = 0.01, **kwargs: FactorLike | None) -> None:
        l1 = _pop_legacy_l(kwargs, "L1", l1)
        self.l1 = 0.01 if l1 is None else l1

    @penalty_method
    def __call__(self, x: Any) -> tf.Tensor:
        return scale(self.l1, absolute_sum(as_elements("L1", x)))


class L2(Penalty):
    r"""Penalizes the squares of weights: adds `l2 * sum(square(x))` to the loss.

    $$l_2 \sum_i x_i^2$$

    The sum is over all elements of x, which may have any shape (of `|x|²` for complex x). The gradient is `2 * l2 * x`.
    The string `"l2"` means `L2(l2=0.01)`.

    Args:
        l2: The factor, a finite number or a variable: see `Factor`. `None` means the default, 0.01.
        kwargs: `l`, the name of `l2` in old versions of Keras.

    Raises:
        ValueError: If `l2` is not a finite number.
        TypeError: If there is any other keyword argument. When called: if x is not of a floating or complex dtype.

    >>> float(L2(0.5)([[1.0, -2.0], [0.0, 3.0]]))
    7.0
    """

    l2: Factor = Factor()

    def __init__(self, l2: FactorLike | None = 0.01, **kwargs: FactorLike | None) -> None:
        l2 = _pop_legacy_l(kwargs, "L2", l2)
        self.l2 = 0.01 if l2 is None else l2

    @penalty_method
    def __call__(self, x: Any) -> tf.Tensor:
        return scale(self.l2, half_square_sum(as_elements("L2", x)), constant=2.0)

    @classmethod
    def from_weight_decay(cls: type[_SomeL2], decay: SupportsFloat) -> _SomeL2:
        """Returns the `L2` whose gradient is `decay * x`, for a finite number `decay`: `L2(decay / 2)`.

        With plain SGD it equals weight decay. With adaptive optimizers it differs from decoupled weight decay, as in
        AdamW (Loshchilov and Hutter, 2019): weights with large gradients decay less.

        >>> L2.from_weight_decay(1e-4)
        L2(l2=5e-05)
        """
        if hasattr(decay, "assign"):
            raise invalid_argument("decay", "a finite number", decay)
        return cls(to_finite_float("decay", decay) / 2)


class L1L2(Penalty):
    r"""Penalizes absolute values and squares: adds `l1 * sum(abs(x)) + l2 * sum(square(x))` to the loss.

    $$l_1 \sum_i |x_i| + l_2 \sum_i x_i^2$$

    This is the elastic net. The sums are over all elements of x, which may have any shape. The gradient is `l1 *
    sign(x) + 2 * l2 * x`, with `sign(0) = 0`. If a factor is the number 0, its term is not computed.

    The string `"l1_l2"` means `L1L2(l1=0.01, l2=0.01)`. The string `"L1L2"` means `L1L2()`, which penalizes nothing.

    Args:
        l1: The factor of the absolute values, a finite number or a variable: see `Factor`. `None` means the default,
            0.0.
        l2: The factor of the squares, likewise.

    Raises:
        ValueError: If `l1` or `l2` is not a finite number.
        TypeError: When called: if x is not of a floating or complex dtype.

    >>> L1L2(l1=0.5, l2=0.25)
    L1L2(l1=0.5, l2=0.25)
    >>> float(L1L2(l1=0.5, l2=0.25)([[1.0, -2.0], [0.0, 3.0]]))
    6.5

    References:
        Zou and Hastie, "Regularization and Variable Selection via the Elastic Net", 2005.
    """

    l1: Factor = Factor()
    l2: Factor = Factor()

    def __init__(self, l1: FactorLike | None = 0.0, l2: FactorLike | None = 0.0) -> None:
        self.l1 = 0.0 if l1 is None else l1
        self.l2 = 0.0 if l2 is None else l2

    @penalty_method
    def __call__(self, x: Any) -> tf.Tensor:
        x = as_elements("L1L2", x)
        are_numbers = all(isinstance(factor, (int, float)) and factor != 0 for factor in (self.l1, self.l2))
        if are_numbers and execution.choose_kernel(x) in (Kernel.MATMUL_SUMS, Kernel.XLA_CLUSTER):
            return elastic_net_sum(x, float(self.l1), float(self.l2))  # one pass over memory
        terms = [] if is_zero(self.l1) else [scale(self.l1, absolute_sum(x))]
        terms += [] if is_zero(self.l2) else [scale(self.l2, half_square_sum(x), constant=2.0)]
        return functools.reduce(operator.add, terms) if terms else tf.zeros([], result_dtype(x))


def l1_l2(l1: FactorLike | None = 0.01, l2: FactorLike | None = 0.01) -> L1L2:
    """Returns `L1L2(l1, l2)`, with the defaults that the string `"l1_l2"` stands for.

    Args:
        l1: The factor of the absolute values, a finite number or a variable. Defaults to 0.01.
        l2: The factor of the squares, likewise. Defaults to 0.01.

    Raises:
        ValueError: If `l1` or `l2` is not a finite number.

    >>> l1_l2()
    L1L2(l1=0.01, l2=0.01)
    """
    return L1L2(l1=l1, l2=l2)


def absolute_sum(x):
    """Σ|x|, a scalar of `result_dtype(x)`, with the gradient sign(x)."""
    return _sum(x, tf.abs, lambda x, upstream: upstream * tf.sign(x))


def half_square_sum(x):
    """½ Σ|x|², a scalar of `result_dtype(x)`."""
    x = promote_half(x)
    if x.dtype.is_complex:
        return half_square_sum(tf.math.real(x)) + half_square_sum(tf.math.imag(x))
    if execution.choose_kernel(x) is Kernel.MATMUL_SUMS:
        return 0.5 * matmul_sum(tf.square(x))
    return tf.nn.l2_loss(x)  # one pass over memory, and one for the gradient


def elastic_net_sum(x, l1, l2):
    """l1 Σ|x| + l2 Σ|x|², a scalar of `result_dtype(x)`, in one sum. The numbers l1 and l2 are not both 0."""
    largest = max(abs(l1), abs(l2))  # scales the sum, because small factors times small elements could underflow
    l1, l2 = l1 / largest, l2 / largest
    return largest * _sum(
        x,
        lambda x: l1 * tf.abs(x) + l2 * tf.square(tf.abs(x)),
        lambda x, upstream: (upstream * l1) * tf.sign(x) + (upstream * 2.0 * l2) * x,
    )


def _sum(x, terms, gradient):
    """The sum of `terms(x)`, with the gradient `gradient(x, upstream)`, by the kernel chosen for x."""
    kernel = execution.choose_kernel(x)
    in_cluster = kernel is Kernel.XLA_CLUSTER
    by_matmul = kernel is Kernel.MATMUL_SUMS or (in_cluster and execution.XLA_SUMS_SEQUENTIALLY)
    reduce_sum = matmul_sum if by_matmul else tf.reduce_sum
    if kernel is Kernel.PLAIN or x.dtype.is_complex:
        return reduce_sum(terms(promote_half(x)))
    scope = tf.xla.experimental.jit_scope if in_cluster else contextlib.nullcontext

    @tf.custom_gradient
    def differentiable(x):
        def backward(upstream):
            with scope():
                return tf.cast(gradient(promote_half(x), upstream), x.dtype)

        with scope():
            return reduce_sum(terms(promote_half(execution.detach_from_eager_tape(x)))), backward

    return differentiable(execution.capture_in_current_graph(x))


def _pop_legacy_l(kwargs, name, value):
    """The factor, which is called `l` in old versions of Keras."""
    value = kwargs.pop("l", value)
    if kwargs:
        raise TypeError(f"{name} has no argument {', '.join(map(short_repr, kwargs))}. Its factor is `{name.lower()}`.")
    return value
