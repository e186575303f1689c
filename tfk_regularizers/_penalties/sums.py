"""Sums of regularizers: several penalties on one weight."""

import contextlib
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras import versions
from tfk_regularizers._messages import invalid_argument, short_repr
from tfk_regularizers._penalties.arguments import Argument
from tfk_regularizers._penalties.base import Penalty, penalty_method
from tfk_regularizers._penalties.elementwise import L1, L1L2, L2


class Sum(Penalty):
    """Adds several penalties on one weight. `L2(1e-4) + OrthogonalRegularizer(0.01)` makes one.

    The value is the sum of the values of its terms. It is float64 if any of them is, and float32 otherwise.

    A term may be a regularizer of your own, derived from `Regularizer` of tf_keras or Keras 3. Python's `sum` works
    too. Adding two of `L1`, `L2` and `L1L2` gives an `L1L2`, whose file is a plain Keras file; if one of them has a
    variable as a factor, or is of a subclass, it gives a `Sum`.

    A sum holds its terms in the tuple `regularizers` and does not copy them: changing a factor of a term changes the
    sum. Sums of sums are flattened.

    Keras has no such class: saved models with it do not load without tfk_regularizers, except in tf_keras from a
    SavedModel, or from a `.keras` file for prediction.

    Args:
        regularizers: A list or tuple of at least one regularizer.

    Raises:
        ValueError: If `regularizers` is not a list of regularizers. When called: if a term does not return one real
            number.
        TypeError: From `+`: if the other side is not a regularizer.

    >>> L2(1e-4) + OrthogonalRegularizer(0.01)
    L2(l2=0.0001) + OrthogonalRegularizer(factor=0.01, mode='rows')
    >>> float(sum([L2(0.5), OrthogonalRegularizer(3.0)])([[1.0, 0.0], [1.0, 0.0]]))
    4.0
    >>> L1(0.5) + L2(0.25)
    L1L2(l1=0.5, l2=0.25)
    """

    regularizers = Argument[Sequence[Any], tuple[Any, ...]](lambda value: _flatten(value))  # noqa: PLW0108  # defined below

    def __init__(self, regularizers: Sequence[tf_keras.regularizers.Regularizer]) -> None:
        self.regularizers = regularizers

    @penalty_method
    def __call__(self, x: Any) -> tf.Tensor:
        values = [_check_number(regularizer, regularizer(x)) for regularizer in self.regularizers]
        floating = [dtype for dtype in (tf.as_dtype(value.dtype) for value in values) if dtype.is_floating]
        dtype = max([tf.float32, *floating], key=lambda dtype: dtype.size)
        return functools.reduce(operator.add, (tf.reshape(tf.cast(value, dtype), []) for value in values))

    def __repr__(self):
        terms = list(map(repr, self.regularizers))
        if type(self) is Sum and len(terms) > 1:
            return " + ".join(terms)
        return f"{type(self).__name__}([{', '.join(terms)}])"

    def get_config(self) -> dict[str, Any]:
        return {"regularizers": list(map(versions.serialize, self.regularizers))}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "Sum":
        """Returns the sum that a config describes, in any format of tf_keras and Keras 3.

        Args:
            config: What `get_config` has returned.
            custom_objects: A dict from names to classes of your own. Defaults to `None`.

        Raises:
            ValueError: If the config holds anything but configs of regularizers.
            TypeError: If the config has arguments that a regularizer does not take.
        """
        configs = config.get("regularizers")
        if isinstance(configs, (list, tuple)):
            with tf_keras.saving.custom_object_scope({**versions.keras3_regularizers(), **(custom_objects or {})}):
                # This package's `get`, unless it was unregistered.
                config = {**config, "regularizers": [tf_keras.regularizers.get(inner) for inner in configs]}
        return cls(**config)


def add(left, right):
    """`left + right`, one of which is a regularizer of this package."""
    if type(left) in (int, float) and left == 0:  # the start of `sum`
        return right
    for side in (left, right):
        if not isinstance(side, versions.regularizer_bases()):
            hint = " Use a class instead of a string, as in `L1(0.1) + L2()`." if isinstance(side, str) else ""
            received = f"Received: {short_repr(side)} of {type(side)}"
            raise TypeError(f"Expected regularizers on both sides of +.{hint} {received}")
    return _merge(left, right) or Sum([left, right])


def _merge(left, right):
    """The L1L2 that equals the sum of two penalties, or None if there is no such L1L2."""
    if any(type(side) not in (L1, L2, L1L2) for side in (left, right)):
        return None
    factors = [[getattr(side, name, 0.0) for side in (left, right)] for name in ("l1", "l2")]
    if any(isinstance(factor, tf.Variable) for pair in factors for factor in pair):
        return None
    factors = [sum(pair) for pair in factors]
    return L1L2(*factors) if all(map(math.isfinite, factors)) else None


def _flatten(regularizers):
    """The terms as a tuple, with sums among them flattened."""
    is_list = isinstance(regularizers, (list, tuple)) and len(regularizers) > 0
    if not is_list or not all(isinstance(term, versions.regularizer_bases()) for term in regularizers):
        expected = "a list of regularizers, such as [L2(1e-4), OrthogonalRegularizer(0.01)]"
        raise invalid_argument("regularizers", expected, regularizers)
    return tuple(inner for term in regularizers for inner in (term.regularizers if type(term) is Sum else (term,)))


def _check_number(regularizer, value):
    """The value of a term; ValueError unless it is one real number (its shape may be unknown)."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # not an array
        given = value if hasattr(value, "dtype") else tf.convert_to_tensor(value)
        dtype, count = tf.as_dtype(given.dtype), tf.TensorShape(given.shape).num_elements()
        if count in (1, None) and (dtype.is_floating or dtype.is_integer):
            return given
    raise ValueError(
        f"Expected a real number from each term of a sum. Received: {short_repr(value)} from {short_repr(regularizer)}"
    )
