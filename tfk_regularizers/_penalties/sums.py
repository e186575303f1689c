"""Sums of regularizers: several penalties on one weight."""

import functools
import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfk_regularizers._penalties import traces
from tfk_regularizers._penalties.arguments import invalid, shown
from tfk_regularizers._penalties.base import SAVED, Penalty, track
from tfk_regularizers._penalties.elementwise import L1, L1L2, L2


class Sum(Penalty):
    """Adds several penalties on one weight: what `L2(1e-4) + OrthogonalRegularizer(0.01)` gives.

    Formula: the sum of what its terms give, in their order. Gradient: the sum of theirs. The result is float64 if a
    term's is, and float32 otherwise.

    `+` takes any number of terms, and so does Python's `sum`. A term may be a regularizer of your own, a subclass of
    `tf_keras.regularizers.Regularizer`, on either side of the `+`; for the files its class has to be registered, as
    without a sum. Sums within sums are one flat sum, and equal terms stay apart.

    `L1`, `L2` and `L1L2` whose factors are numbers give an `L1L2` instead, with the sums of the factors: it takes one
    pass over memory, and its file is a plain Keras file. (Instances of subclasses and those with a variable as a factor
    are terms like others, and a `Sum` keeps the terms that it has.)

    A sum holds its terms themselves: a factor that is set on one of them later is seen. It keeps them in a tuple,
    `regularizers`, which may be replaced. (A variable that serves as a factor of a term is best there before the sum is
    made: then checkpoints and SavedModels find it.)

    tf_keras has no such class. It is registered as `tfk_regularizers>Sum`, and a file that contains one opens only
    where this package is imported.

    Args:
        regularizers: A list or a tuple of regularizers, one at least. They are not merged.

    Raises:
        ValueError: If `regularizers` is not a list of regularizers of tf_keras; when called, if a term does not give
            one real number.
        TypeError: From `+`, if what stands on the other side is no regularizer of tf_keras (a function, for one).

    >>> L2(1e-4) + OrthogonalRegularizer(0.01)
    L2(l2=0.0001) + OrthogonalRegularizer(factor=0.01, mode='rows')
    >>> float(sum([L2(0.5), OrthogonalRegularizer(3.0)])([[1.0, 0.0], [1.0, 0.0]]))
    4.0
    >>> L1(0.5) + L2(0.25)
    L1L2(l1=0.5, l2=0.25)
    """

    regularizers: tuple[Any, ...]

    def __init__(self, regularizers: Sequence[tf_keras.regularizers.Regularizer]) -> None:
        self.regularizers = regularizers  # type: ignore[assignment]  # a tuple by `__setattr__`

    def __call__(self, x: Any) -> tf.Tensor:
        values = [_real_number(regularizer, regularizer(x)) for regularizer in self.regularizers]
        dtype = _common_dtype(values)
        return functools.reduce(operator.add, (_scalar(value, dtype) for value in values))

    def __repr__(self):
        """As it is written; never fails."""
        terms = [_written(regularizer) for regularizer in self.regularizers]
        if self.__class__ is Sum and len(terms) > 1:
            return " + ".join(terms)
        return f"{self.__class__.__name__}([{', '.join(terms)}])"

    def __setattr__(self, name, value):
        """Keep the terms valid, and let TensorFlow find the variables of those that it tracks."""
        if name == "regularizers":
            value, old = _flat(value), vars(self).get(name)
            if old is not None and [*map(id, old)] != [*map(id, value)]:
                traces.warn_if_frozen(self, name, old, value)
        super().__setattr__(name, value)
        if name == "regularizers" and any(map(_is_trackable, self.regularizers)):
            track(self)

    def get_config(self) -> dict[str, Any]:
        return {"regularizers": [_serialized(regularizer) for regularizer in self.regularizers]}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "Sum":
        """Returns the sum that a config stands for, in either format of tf_keras and in Keras 3.

        Args:
            config: What `get_config` has returned.
            custom_objects: A dict from names to the user's classes. Defaults to `None`.

        Returns:
            A `Sum`.

        Raises:
            ValueError: If the config holds anything but configs of regularizers.
            TypeError: If the config has arguments that a regularizer does not take.
        """
        configs = config.get("regularizers")
        if isinstance(configs, (list, tuple)):
            with tf_keras.saving.custom_object_scope({**_objects_of_keras3(configs), **(custom_objects or {})}):
                # The one that stands in tf_keras: this package's, once it is registered.
                config = {**config, "regularizers": [tf_keras.regularizers.get(inner) for inner in configs]}
        return cls(**config)

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        """The terms that hold variables; of those of this package, the ones that a file of this kind is to hold."""
        children = dict(super()._trackable_children(save_type, **kwargs))
        prefix = SAVED if save_type == "savedmodel" else ""
        for position, regularizer in enumerate(self.regularizers):
            if _is_trackable(regularizer) and (
                not isinstance(regularizer, Penalty) or regularizer._trackable_children(save_type, **kwargs)
            ):
                children[f"{prefix}{position}"] = regularizer
        return children

    def _lookup_dependency(self, name, *args, **kwargs):
        """A term by its position: to restore it where the file has it."""
        position = name.removeprefix(SAVED)
        if position.isdecimal() and int(position) < len(self.regularizers):
            regularizer = self.regularizers[int(position)]
            return regularizer if _is_trackable(regularizer) else None
        return super()._lookup_dependency(name, *args, **kwargs)


def added(left, right):
    """What `left + right` is, one of which is a regularizer of this package."""
    if type(left) in (int, float) and left == 0:  # with which `sum` begins
        return right
    for side in (left, right):
        if not _may_be_term(side):
            raise TypeError(
                "A regularizer can be added to another regularizer of tf_keras, as in `L2(1e-4) + "
                f"OrthogonalRegularizer(0.01)`. Received: {shown(left)} + {shown(right)}, where {_kind(side)} is none"
            )
    return _merged(left, right) or Sum([left, right])


def _merged(left, right):
    """The L1L2 that two elementwise penalties with numbers are; None if they are not."""
    if not all(side.__class__ in (L1, L2, L1L2) and not side._live() for side in (left, right)):
        return None
    factors = [getattr(left, name, 0.0) + getattr(right, name, 0.0) for name in ("l1", "l2")]
    return L1L2(*factors) if all(map(math.isfinite, factors)) else None


def _may_be_term(value):
    """Whether a value is a regularizer of tf_keras, as this package's are, and those of users, but not of Keras 3."""
    return isinstance(value, tf_keras.regularizers.Regularizer)


def _kind(value):
    """A value's type by its full name: Keras 3 has classes of the same names."""
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__} itself"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _flat(regularizers):
    """The terms of a sum as a tuple, those of sums in it in their places."""
    if not isinstance(regularizers, (list, tuple)) or not regularizers or not all(map(_may_be_term, regularizers)):
        expected = "a list of regularizers of tf_keras, such as [L2(1e-4), OrthogonalRegularizer(0.01)]"
        raise invalid("regularizers", expected, regularizers)
    parts = [term.regularizers if term.__class__ is Sum else (term,) for term in regularizers]
    return tuple(term for part in parts for term in part)


def _written(regularizer):
    """The repr of a term, which may be of any class."""
    try:
        return repr(regularizer)
    except Exception:
        return shown(regularizer)


def _is_trackable(value):
    return isinstance(value, tf.__internal__.tracking.Trackable)


# Values


def _real_number(regularizer, value):
    """What a term gave: a real tensor of one element or of unknown shape, or a Python number."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, (np.ndarray, np.generic)):
        dtype, elements = tf.as_dtype(value.dtype), tf.TensorShape(value.shape).num_elements()
        if elements in (1, None) and (dtype.is_floating or dtype.is_integer):
            return value
    else:
        try:
            array = np.asarray(value)
            if array.size == 1 and array.dtype.kind in "iuf":
                return array.item()
        except Exception:  # what is no array at all
            pass
    raise ValueError(
        f"Each term of a sum of regularizers gives a real number. Received: {shown(value)} from {_written(regularizer)}"
    )


def _common_dtype(values):
    """The widest dtype of the floating tensors, and float32 for halves. A Python number takes that of the others."""
    dtypes = [tf.as_dtype(value.dtype) for value in values if hasattr(value, "dtype")]
    dtypes = [dtype for dtype in dtypes if dtype.is_floating] or [tf.as_dtype(tf_keras.backend.floatx())]
    return max(*dtypes, tf.float32, key=lambda dtype: dtype.size)


def _scalar(value, dtype):
    if not hasattr(value, "dtype"):
        return tf.constant(value, dtype)
    value = value if value.dtype == dtype else tf.cast(value, dtype)
    return value if value.shape == () else tf.reshape(value, [])


# Configs


def _serialized(regularizer):
    """The config of a term as tf_keras writes it, in the legacy format while it writes a SavedModel.

    A class that is registered in Keras 3 alone goes by its name there.
    """
    config = tf_keras.regularizers.serialize(regularizer)
    saving, cls = _saving_of_keras3(), regularizer.__class__
    if saving is not None and not _is_registered(config.get("registered_name")):
        name = saving.get_registered_name(cls)
        if saving.get_registered_object(name) is cls:
            return {**config, "registered_name": name}
    return config


def _objects_of_keras3(configs):
    """The classes that configs name and that are custom objects of Keras 3 alone, of a scope or registered.

    A Keras that opens a file of its own knows of no other.
    """
    saving = _saving_of_keras3()
    keys = ("class_name", "registered_name") if saving is not None else ()
    names = [config.get(key) for config in configs if isinstance(config, dict) for key in keys]
    found = {name: saving.get_registered_object(name) for name in names if not _is_registered(name)}
    base = tf_keras.regularizers.Regularizer
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, base)}


def _saving_of_keras3():
    """The module of Keras 3 that has its custom objects; None where Keras 3 is not imported."""
    keras = sys.modules.get("keras")  # under TF_USE_LEGACY_KERAS=1 a program may have it as well
    return getattr(keras, "saving", None)


def _is_registered(name):
    """Whether tf_keras itself knows what a config names; and so it is where a config names nothing."""
    return not isinstance(name, str) or tf_keras.saving.get_registered_object(name) is not None
