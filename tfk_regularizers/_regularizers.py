"""The regularizers: each validates and holds its factors, calls a penalty and describes itself."""

import math
import reprlib

import numpy as np
import tensorflow as tf

from tfk_regularizers import _keras, _orthogonality, _penalties


class Penalty(*_keras.REGULARIZER_BASES):  # type: ignore[misc]
    """What the regularizers of this package share: a `Regularizer` of tf_keras and of whichever Keras `tf.keras` is."""

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class L1(Penalty):
    """Pulls weights to exactly zero: adds `l1 * sum(abs(x))` to the loss.

    Formula: `l1 * Σ|x|` over all elements of a tensor of any shape. Gradient: `l1 * sign(x)`, 0 at 0.

    May be passed to a layer as the string `"l1"`, which means `L1(l1=0.01)`.

    Differs from tf_keras: the factor stays a Python float, float16 and bfloat16 are summed in float32 and give a
    float32 result, and the sum is right to 1e-5 under XLA at any size.

    Args:
        l1: A finite number, the factor of the penalty; `None` means the default. Defaults to 0.01. Mutable, and read at
            each call.
        **kwargs: `l`, the name that `l1` had in old versions of Keras.

    Raises:
        ValueError: If `l1` is not a finite number.
        TypeError: If there is another keyword argument; when called, if x is not of a floating or complex dtype.

    >>> L1(0.5)
    L1(l1=0.5)
    >>> float(L1(0.5)([[1.0, -2.0], [0.0, 3.0]]))
    3.0

    References:
        Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.
    """

    def __init__(self, l1=0.01, **kwargs):
        l1 = _only_legacy_name(kwargs, "L1", l1)
        self.l1 = _finite("l1", 0.01 if l1 is None else l1)

    def __call__(self, x):
        if isinstance(x, tf.RaggedTensor):
            x = x.flat_values
        return _scaled(self.l1, _penalties.absolute_sum(_tensor("L1", x)))

    def get_config(self):
        return {"l1": float(self.l1)}


class L2(Penalty):
    """Keeps weights small: adds `l2 * sum(square(x))` to the loss.

    Formula: `l2 * Σx²` over all elements of a tensor of any shape (`|x|²` for complex ones). Gradient: `2 * l2 * x`.

    May be passed to a layer as the string `"l2"`, which means `L2(l2=0.01)`.

    Differs from tf_keras: the factor stays a Python float, complex tensors work, float16 and bfloat16 are summed in
    float32 and give a float32 result, and the sum is right to 1e-5 under XLA at any size.

    Args:
        l2: A finite number, the factor of the penalty; `None` means the default. Defaults to 0.01. Mutable, and read at
            each call.
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

    def __init__(self, l2=0.01, **kwargs):
        l2 = _only_legacy_name(kwargs, "L2", l2)
        self.l2 = _finite("l2", 0.01 if l2 is None else l2)

    def __call__(self, x):
        return _scaled(2.0 * self.l2, _penalties.half_square_sum(_tensor("L2", x)))

    def get_config(self):
        return {"l2": float(self.l2)}


class L1L2(Penalty):
    """Adds `l1 * sum(abs(x)) + l2 * sum(square(x))` to the loss (the elastic net).

    Formula: `l1 * Σ|x| + l2 * Σx²` over all elements of a tensor of any shape. Gradient: `l1 * sign(x) + 2 * l2 * x`,
    with `sign(0) = 0`, in one pass over memory. A factor that is the number 0 leaves its term out.

    The string `"l1_l2"` means `L1L2(l1=0.01, l2=0.01)`. The string `"L1L2"` means `L1L2()`, which does nothing.

    Differs from tf_keras: as for `L1` and `L2`.

    Args:
        l1: A finite number, the factor of the sum of absolute values; `None` means the default. Defaults to 0.0.
        l2: A finite number, the factor of the sum of squares; `None` means the default. Defaults to 0.0. Both are
            mutable, and read at each call.

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

    def __init__(self, l1=0.0, l2=0.0):
        self.l1 = _finite("l1", 0.0 if l1 is None else l1)
        self.l2 = _finite("l2", 0.0 if l2 is None else l2)

    def __call__(self, x):
        x = _tensor("L1L2", x)
        if _is_zero(self.l1) and _is_zero(self.l2):
            return tf.zeros([], _penalties.result_dtype(x))
        if _is_zero(self.l1):
            return _scaled(2.0 * self.l2, _penalties.half_square_sum(x))
        if _is_zero(self.l2):
            return _scaled(self.l1, _penalties.absolute_sum(x))
        return _penalties.elastic_net(x, float(self.l1), float(self.l2))

    def get_config(self):
        return {"l1": float(self.l1), "l2": float(self.l2)}


class OrthogonalRegularizer(Penalty):
    """Pushes the rows (or columns) of a kernel to be orthogonal to each other.

    Formula: `factor` times the mean over all unordered pairs i < j of `|⟨x̂ᵢ, x̂ⱼ⟩|`, where the x̂ are the rows (or
    columns) of the matrix x divided by their L2 norms, as `tf.math.l2_normalize` does (`x * rsqrt(max(Σx², 1e-12))`).
    With fewer than two rows there is no pair, and the penalty is 0. Gradient: that of the formula, with `sign(0) = 0`,
    so a zero row stays where it is; for a row shorter than 1e-6 it is the one of `x * 1e6`.

    Above 1024 rows the pairs are computed in tiles. Time: 0.5 n² d multiply-adds for the value, 1.5 n² d with the
    gradient, for n rows of d elements. Peak memory: about 3 n t + 6 n d numbers, with t ≤ 512 rows in a tile; it does
    not grow with n². (Under DTensor and in TensorFlow 1 graphs there are no tiles, and it takes about 3 n².)

    A kernel of more than two axes is taken as the matrix (product of all axes but the last, last axis). What is made
    orthogonal:

    | layer | kernel | `mode="rows"` | `mode="columns"` |
    |---|---|---|---|
    | `Dense` | (inputs, units) | the weights that leave an input | the units |
    | `Embedding` | (tokens, dimensions) | the tokens' vectors | the dimensions |
    | `Conv1D/2D/3D` | (*size, channels, filters) | what leaves a tap and channel | the filters |
    | `Conv2D/3DTranspose` | (*size, filters, channels) | what leads to a tap and filter | the input channels |
    | `DepthwiseConv2D` | (*size, channels, multiplier) | what leaves a tap and channel | the multipliers |
    | `MultiHeadAttention`, query, key, value | (features, heads, size) | features of a head | the entries of a head |
    | `MultiHeadAttention`, output | (heads, size, features) | entries of the heads | the output features |

    Differs from tf_keras: kernels of more than two axes, single rows and unknown shapes work, float16 and bfloat16 are
    computed in float32 and give a float32 result.

    Args:
        factor: A finite number, the factor of the penalty. Defaults to 0.01. Mutable, and read at each call.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.

    Raises:
        ValueError: If `factor` is not a finite number or `mode` is none of the two; when called, if x has fewer than
            two axes.
        TypeError: When called, if x is not of a floating dtype.

    >>> OrthogonalRegularizer(factor=0.5, mode="columns")
    OrthogonalRegularizer(factor=0.5, mode='columns')
    >>> float(OrthogonalRegularizer(factor=1.0)([[3.0, 0.0], [0.0, 2.0]]))
    0.0
    >>> float(OrthogonalRegularizer(factor=1.0)([[1.0, 0.0], [-5.0, 0.0]]))
    1.0

    References:
        Brock et al., "Neural Photo Editing with Introspective Adversarial Networks", 2017; Rodríguez et al.,
        "Regularizing CNNs with Locally Constrained Decorrelations", 2017.
    """

    def __init__(self, factor=0.01, mode="rows"):
        self.factor = _finite("factor", factor)
        if not isinstance(mode, str) or mode not in ("rows", "columns"):
            raise invalid("mode", 'one of {"rows", "columns"}', mode)
        self.mode = str(mode)

    def __call__(self, inputs):
        x = _matrix("OrthogonalRegularizer", inputs)
        if self.mode == "columns":
            x = tf.transpose(x)
        return _scaled(self.factor, _orthogonality.mean_absolute_cosine(x))

    def get_config(self):
        return {"factor": float(self.factor), "mode": self.mode}


def l1_l2(l1=0.01, l2=0.01):
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


def invalid(argument, expected, received):
    """The ValueError for a bad argument, in Keras's words."""
    return ValueError(
        f"Invalid value for argument `{argument}`. Expected {expected}. Received: {argument}={shown(received)}"
    )


def shown(value):
    """A repr short enough for a message, whatever the value."""
    try:
        return reprlib.repr(value)
    except Exception:  # an int of more than 4300 digits has none
        return f"<{type(value).__name__}>"


def _only_legacy_name(kwargs, name, value):
    value = kwargs.pop("l", value)
    if kwargs:
        raise TypeError(f"Argument(s) not recognized by {name}: {', '.join(map(shown, kwargs))}")
    return value


def _finite(argument, value):
    """The value as a Python float, if it is one finite real number."""
    try:
        array = np.asarray(value)
        if array.ndim or array.dtype.kind in "cSUmM" or isinstance(array.item(), (str, bytes)):
            raise TypeError
        number = float(array.item())
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        raise invalid(argument, "a finite number", value) from None
    if not math.isfinite(number):
        raise invalid(argument, "a finite number", value)
    return number


def _is_zero(factor):
    return factor == 0


def _scaled(factor, value):
    return tf.constant(factor, value.dtype) * value


def _tensor(name, x):
    """x as a dense tensor of a floating or complex dtype, converted once."""
    if isinstance(x, (tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(
            f"Inputs to {name} must be dense tensors. Received: a {type(x).__name__} of dtype {x.dtype.name} and "
            f"shape {x.shape}"
        )
    if not isinstance(x, tf.Tensor):
        x = tf.convert_to_tensor(x)
    if not (x.dtype.is_floating or x.dtype.is_complex):
        raise TypeError(
            f"Inputs to {name} must be of a floating or complex dtype. Received: dtype {x.dtype.name}, shape {x.shape}"
        )
    return x


def _matrix(name, x):
    """x as a real matrix: all axes but the last become its rows."""
    x = _tensor(name, x)
    if x.dtype.is_complex:
        raise TypeError(
            f"Inputs to {name} must be of a floating dtype. Received: dtype {x.dtype.name}, shape {x.shape}"
        )
    rank = x.shape.rank
    if rank is not None and rank < 2:
        raise ValueError(f"Inputs to {name} must have rank 2 or more. Received: inputs.shape == {x.shape}")
    if rank == 2:
        return x
    shape = x.shape if x.shape.is_fully_defined() else tf.shape(x)
    return tf.reshape(x, [tf.reduce_prod(shape[:-1]), shape[-1]])
