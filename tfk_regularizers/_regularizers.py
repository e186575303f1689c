"""The regularizers: each validates and holds its factors, calls a penalty and describes itself."""

import math
import operator
import reprlib
import warnings

import numpy as np
import tensorflow as tf
import tf_keras

from tfk_regularizers import _execution, _keras, _orthogonality, _penalties, _sampling

# How a SavedModel names a variable that a regularizer holds. A loader sets what it finds as an attribute of that name:
# under the name of the factor, it would put a variable in the place of the config's number.
_SAVED = "_self_live_"


class Penalty(*_keras.regularizer_bases(), tf.__internal__.tracking.Trackable):  # type: ignore[misc]
    """What the regularizers share: a `Regularizer` of tf_keras and of whichever Keras `tf.keras` is.

    It is trackable, so that checkpoints and SavedModels find a variable that serves as a factor, and so lightly that
    `model.weights` does not.
    """

    _factors: tuple[str, ...] = ()

    def __repr__(self):
        """Never fails, for it is what errors and logs show: what cannot be read is shown as it is."""
        try:
            arguments = {name: repr(value) for name, value in self.get_config().items()}
        except Exception:
            arguments = {name: _readable(value) for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"

    def __setattr__(self, name, value):
        """Keep factors valid. What a subclass with a `__call__` of its own keeps in them is its own affair."""
        if name in self._factors and getattr(type(self).__call__, "__module__", None) == __name__:
            value = _factor(name, value)
        super().__setattr__(name, value)
        if isinstance(value, tf.Variable):  # restored already, if a checkpoint has been waiting for it
            self._handle_deferred_dependencies(name, value)

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        """The live factors; in a SavedModel all variables, for what was traced may read any of them.

        A checkpoint has no more, because the weights that tf_keras itself writes for a subclass have no variables of
        its regularizers, and would not match.
        """
        children = dict(super()._trackable_children(save_type, **kwargs))
        if save_type != "savedmodel":
            return children | self._live()
        for name in self._live():
            self._number(name)  # or the SavedModel would be half written when its config is asked for
        held = {name: value for name, value in vars(self).items() if isinstance(value, tf.Variable)}
        loaded = {name: value for name, value in held.items() if name.startswith(_SAVED)}
        return children | loaded | {_SAVED + name: value for name, value in held.items() if name not in loaded}

    def _lookup_dependency(self, name, *args, **kwargs):
        """Any variable by its name here or in a SavedModel: to restore it where the file has it."""
        for attribute in (name.removeprefix(_SAVED), name):
            if isinstance(vars(self).get(attribute), tf.Variable):
                return vars(self)[attribute]
        return super()._lookup_dependency(name, *args, **kwargs)

    def _maybe_initialize_trackable(self):
        """Past a `__setattr__` that refuses, as that of a frozen dataclass."""
        if "_self_update_uid" not in vars(self):
            blank = tf.__internal__.tracking.Trackable()
            blank._maybe_initialize_trackable()
            vars(self).update(vars(blank))

    def __reduce_ex__(self, protocol):
        """For pickle and deepcopy: without what TensorFlow notes here, and with the number of a live factor."""
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced
        state, slots = reduced[2] if isinstance(reduced[2], tuple) else (reduced[2], None)
        if not isinstance(state, dict):
            return reduced
        state = {name: value for name, value in state.items() if not name.startswith("_self_")}
        state |= {name: self._number(name) for name, value in self._live().items() if state.get(name) is value}
        return (*reduced[:2], state if slots is None else (state, slots), *reduced[3:])

    def _live(self):
        """The variables that serve as factors. Others under these names are a subclass's own affair."""
        return {name: vars(self)[name] for name in self._factors if _may_be_live(vars(self).get(name))}

    def _number(self, name):
        """A factor as the number that files and copies carry: one that opens again."""
        factor = getattr(self, name)
        try:
            number = _current(factor)
        except Exception as error:
            if not isinstance(factor, tf.Variable):
                raise
            raise ValueError(
                f"The factor `{name}` of a regularizer {type(self).__name__} is a variable, and a copy or a file "
                f"carries the number that it holds, which cannot be read here: {type(error).__name__}. Expected a "
                f"variable that is initialized. Received: {name}={shown(factor)}"
            ) from error
        if not math.isfinite(number):
            raise ValueError(
                f"The factor `{name}` of a regularizer {type(self).__name__} is {number}, and a copy or a file that "
                f"carries it could not be opened. Expected a finite number: assign one first, or keep the weights "
                f"alone, by `save_weights` or `tf.train.Checkpoint`. Received: {name}={shown(factor)}"
            )
        return number


class L1(Penalty):
    """Pulls weights to exactly zero: adds `l1 * sum(abs(x))` to the loss.

    Formula: `l1 * Σ|x|` over all elements of a tensor of any shape, ragged ones included. Gradient: `l1 * sign(x)`, 0
    at 0.

    May be passed to a layer as the string `"l1"`, which means `L1(l1=0.01)`.

    Differs from tf_keras: the factor stays a Python float, float16 and bfloat16 are summed in float32 and give a
    float32 result, and large sums keep their digits under XLA.

    Args:
        l1: A finite number, the factor of the penalty; `None` means the default. Defaults to 0.01. Mutable, and read at
            each call; a step that is traced already keeps the number that it was traced with. Or a scalar floating
            `tf.Variable(..., trainable=False)`, which is read at each call inside traced and compiled functions too:
            `assign` takes effect at the next step. What files, `clone_model`, `deepcopy` and the copies inside a
            `Bidirectional` carry is its current value, which has to be finite then; `tf.train.Checkpoint` restores the
            variable. As an activity regularizer, assign it (`layer.activity_regularizer = L1(variable)`): Keras does
            not track what the constructor is given, so SavedModels and checkpoints would not find the variable. What
            is set later is checked as the constructor checks it, but in a subclass with a `__call__` of its own, which
            may keep there what it likes.
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

    _factors = ("l1",)

    def __init__(self, l1=0.01, **kwargs):
        l1 = _only_legacy_name(kwargs, "L1", l1)
        self.l1 = _factor("l1", 0.01 if l1 is None else l1)

    def __call__(self, x):
        return _scaled(self.l1, _penalties.absolute_sum(_elements("L1", x)))

    def get_config(self):
        return {"l1": self._number("l1")}


class L2(Penalty):
    """Keeps weights small: adds `l2 * sum(square(x))` to the loss.

    Formula: `l2 * Σx²` over all elements of a tensor of any shape (`|x|²` for complex ones). Gradient: `2 * l2 * x`.

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

    _factors = ("l2",)

    def __init__(self, l2=0.01, **kwargs):
        l2 = _only_legacy_name(kwargs, "L2", l2)
        self.l2 = _factor("l2", 0.01 if l2 is None else l2)

    def __call__(self, x):
        return _scaled(self.l2, _penalties.half_square_sum(_elements("L2", x)), times=2.0)

    @classmethod
    def from_weight_decay(cls, decay):
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
        return cls(_finite("decay", decay) / 2)

    def get_config(self):
        return {"l2": self._number("l2")}


class L1L2(Penalty):
    """Adds `l1 * sum(abs(x)) + l2 * sum(square(x))` to the loss (the elastic net).

    Formula: `l1 * Σ|x| + l2 * Σx²` over all elements of a tensor of any shape. Gradient: `l1 * sign(x) + 2 * l2 * x`,
    with `sign(0) = 0`, in one pass over memory where both factors are numbers. A factor that is the number 0 leaves its
    term out.

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

    _factors = ("l1", "l2")

    def __init__(self, l1=0.0, l2=0.0):
        self.l1 = _factor("l1", 0.0 if l1 is None else l1)
        self.l2 = _factor("l2", 0.0 if l2 is None else l2)

    def __call__(self, x):
        x = _elements("L1L2", x)
        if _is_zero(self.l1) and _is_zero(self.l2):
            return tf.zeros([], _penalties.result_dtype(x))
        if _is_zero(self.l1):
            return _scaled(self.l2, _penalties.half_square_sum(x), times=2.0)
        if _is_zero(self.l2):
            return _scaled(self.l1, _penalties.absolute_sum(x))
        if isinstance(self.l1, tf.Variable) or isinstance(self.l2, tf.Variable):
            absolute, half_square = _penalties.absolute_sum(x), _penalties.half_square_sum(x)
            return _scaled(self.l1, absolute) + _scaled(self.l2, half_square, times=2.0)
        return _penalties.elastic_net(x, float(self.l1), float(self.l2))

    def get_config(self):
        return {"l1": self._number("l1"), "l2": self._number("l2")}


class OrthogonalRegularizer(Penalty):
    """Pushes the rows (or columns) of a kernel to be orthogonal to each other.

    Formula: `factor` times the mean over all unordered pairs i < j of `|⟨x̂ᵢ, x̂ⱼ⟩|`, where the x̂ are the rows (or
    columns) of the matrix x divided by their L2 norms, as `tf.math.l2_normalize` does (`x * rsqrt(max(Σx², 1e-12))`).
    With fewer than two rows there is no pair, and the penalty is 0. Gradient: that of the formula, with `sign(0) = 0`,
    so a zero row stays where it is; for a row shorter than 1e-6 it is the one of `x * 1e6`.

    A parameter server strategy that partitions a variable calls its regularizer once a shard, which sees the pairs
    within that shard alone (a warning says so). For the whole variable, use
    `layer.add_loss(lambda: regularizer(layer.kernel))` instead.

    Above 1024 rows, or half of the columns if that is more, the pairs are computed in blocks of rows (on a GPU or a
    TPU above 8192 rows, or twice the columns). Time for n rows of d elements: 0.5 n² d multiply-adds for the value
    and 1.5 n² d with the gradient, in one block 1 and 2. Peak memory: about n t + 5 n d numbers, with t ≤ 512 rows in a
    block on a CPU; it does not grow with n². (Under DTensor and in forward mode there is one Gram matrix, and it takes
    about 3 n².)

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
        factor: A finite number, the factor of the penalty. Defaults to 0.01. Mutable, and read at each call. Or a
            variable, as for `L1`.
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

    _factors = ("factor",)

    def __init__(self, factor=0.01, mode="rows"):
        self.factor = _factor("factor", factor)
        self.mode = _row_or_column_mode(mode)

    def __call__(self, inputs):
        _warn_of_shard("OrthogonalRegularizer", inputs)
        x = _matrix("OrthogonalRegularizer", inputs)
        if _row_or_column_mode(self.mode) == "columns":
            x = tf.transpose(x)
        return _scaled(self.factor, _orthogonality.mean_absolute_cosine(x))

    def get_config(self):
        return {"factor": self._number("factor"), "mode": self.mode}


class SampledOrthogonalRegularizer(Penalty):
    """Pushes the rows (or columns) of a huge table to be orthogonal, by a fresh sample of them at each call.

    Formula: that of `OrthogonalRegularizer` on `sample_size` rows (or columns), drawn uniformly without replacement at
    each call, also inside a traced function; on all of them, exactly, if there are no more. An unbiased estimate of the
    same mean. Gradient: that of the formula, for the drawn rows alone (`IndexedSlices` for the rows of a variable).

    Time: O(sample_size² d) instead of O(n² d) for n rows of d elements, however many there are. Peak memory: that of
    `OrthogonalRegularizer` on `sample_size` rows.

    `tf.random.set_seed` makes the draws repeatable in eager mode and in a `tf.function`. XLA draws its random numbers
    from a generator of its own, which TensorFlow gives no way to seed: there they are fresh, but not repeatable.

    tf_keras has no such class. It is registered as `tfk_regularizers>SampledOrthogonalRegularizer`, and a file that
    contains one opens only where this package is imported.

    Args:
        factor: A finite number, the factor of the penalty; or a variable, as for `L1`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.
        sample_size: An integer of at least 2, the number of rows (or columns) to draw. Defaults to 4096.

    Raises:
        ValueError: If `factor` is not a finite number, `mode` is none of the two or `sample_size` is not an integer of
            at least 2; when called, if x has fewer than two axes.
        TypeError: When called, if x is not of a floating dtype.

    >>> SampledOrthogonalRegularizer(factor=0.5, sample_size=512)
    SampledOrthogonalRegularizer(factor=0.5, mode='rows', sample_size=512)
    >>> float(SampledOrthogonalRegularizer(factor=1.0, sample_size=2)([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    0.0
    """

    _factors = ("factor",)

    def __init__(self, factor=0.01, mode="rows", sample_size=4096):
        self.factor = _factor("factor", factor)
        self.mode = _row_or_column_mode(mode)
        self.sample_size = _sample_size(sample_size)

    def __call__(self, inputs):
        _warn_of_shard("SampledOrthogonalRegularizer", inputs)
        # Rows are gathered from a variable itself: reading a huge one first would copy it.
        is_table = isinstance(inputs, tf.Variable) and inputs.shape.rank == 2 and inputs.dtype.is_floating
        axis = 0 if _row_or_column_mode(self.mode) == "rows" else 1
        if not is_table or axis == 1:
            inputs = _matrix("SampledOrthogonalRegularizer", inputs)
        sample = _sampling.sampled(inputs, self.sample_size, axis)
        if axis == 1:
            sample = tf.transpose(sample)
        return _scaled(self.factor, _orthogonality.mean_absolute_cosine(sample))

    def get_config(self):
        return {"factor": self._number("factor"), "mode": self.mode, "sample_size": self.sample_size}


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
    if isinstance(value, tf.Variable):  # the end of its repr, which is cut, says least
        return f"<a variable of shape {value.shape}, dtype {value.dtype.name}, trainable={value.trainable}>"
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


def _row_or_column_mode(mode):
    if not isinstance(mode, str) or mode not in ("rows", "columns"):
        raise invalid("mode", 'one of {"rows", "columns"}', mode)
    return str(mode)


def _sample_size(value):
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < 2:
        raise invalid("sample_size", "an integer of at least 2", value)
    return size


def _factor(argument, value):
    """The value as a Python float; or as it is, if it is a variable to be read at each call."""
    if not hasattr(value, "assign"):
        return _finite(argument, value)
    if not _may_be_live(value):
        expected = "a finite number, or a scalar floating tf.Variable(..., trainable=False)"
        raise invalid(argument, expected, value)
    return value


def _may_be_live(value):
    """Whether the value is a variable of the kind that serves as a factor."""
    return isinstance(value, tf.Variable) and value.shape == () and value.dtype.is_floating and not value.trainable


def _current(factor):
    """A factor as a number; a variable that is mirrored on replicas has no `float`."""
    if not isinstance(factor, tf.Variable):
        return float(factor)
    with tf.init_scope():  # the number that it has while a function is traced
        if tf.executing_eagerly():
            return float(factor.numpy())
    return float(tf_keras.backend.get_value(factor))  # of a graph of TensorFlow 1


def _readable(value):
    """What a repr shows of an attribute when it cannot show the config."""
    try:
        return repr(_current(value)) if isinstance(value, tf.Variable) else shown(value)
    except Exception:
        return shown(value)


def _is_zero(factor):
    return not isinstance(factor, tf.Variable) and factor == 0


def _scaled(factor, value, times=1.0):
    """times * factor * value in the dtype of the value."""
    if isinstance(factor, (int, float)) and abs(times * factor) <= float(value.dtype.max):
        return tf.constant(times * factor, value.dtype) * value
    factor = _keras.at_full_precision(factor)
    factor = tf.cast(factor, value.dtype) if tf.is_tensor(factor) else tf.constant(factor, value.dtype)
    return factor * (times * value)


def _elements(name, x):
    """x as a tensor to sum over, of any shape: of a ragged one its values."""
    return _tensor(name, x.flat_values if isinstance(x, tf.RaggedTensor) else x)


def _tensor(name, x):
    """x as a dense tensor of a floating or complex dtype, converted once."""
    if isinstance(x, (tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(
            f"Inputs to {name} must be dense tensors. Received: a {type(x).__name__} of dtype {x.dtype.name} and "
            f"shape {x.shape}"
        )
    if not isinstance(x, tf.Tensor):
        backend = _keras.other_backend(x)
        if backend is not None:
            raise TypeError(
                f"Inputs to {name} must be what TensorFlow can differentiate, and Keras 3 runs on its {backend!r} "
                f"backend. Set KERAS_BACKEND=tensorflow before Keras is imported. Received: a "
                f"{type(x).__module__}.{type(x).__qualname__}"
            )
        x = tf.convert_to_tensor(x)
    if not (x.dtype.is_floating or x.dtype.is_complex):
        raise TypeError(
            f"Inputs to {name} must be of a floating or complex dtype. Received: dtype {x.dtype.name}, shape {x.shape}"
        )
    return x


def _warn_of_shard(name, x):
    if _execution.is_shard(x):
        warnings.warn(
            f"{name} was called on a shard of a partitioned variable, and compares the rows of each shard alone. For "
            "the whole, leave the regularizer out and use `layer.add_loss(lambda: regularizer(layer.kernel))`.",
            stacklevel=3,
        )


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
    if x.shape.is_fully_defined():
        *sizes, last = x.shape.as_list()
        return tf.reshape(x, [math.prod(sizes), last])
    message = f"Inputs to {name} must have rank 2 or more."
    checks = [tf.debugging.assert_rank_at_least(x, 2, message)] if rank is None else []
    with tf.control_dependencies(checks):
        shape = tf.shape(x)
    # XLA leaves assertions out. It stops at the axis that is not there, and shows the name of what asked for it.
    with tf.name_scope(message.rstrip(".").replace(" ", "_")):
        rows = shape[-2]
    return tf.reshape(x, [tf.reduce_prod(shape[:-2]) * rows, shape[-1]])
