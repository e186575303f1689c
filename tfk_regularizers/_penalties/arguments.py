"""The arguments of penalties as attributes, which are checked whenever they are set."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Generic, Literal, SupportsFloat, TypeAlias, TypeVar, overload

import numpy as np
import tensorflow as tf

from tfk_regularizers._keras.variables import is_building_model
from tfk_regularizers._messages import invalid_argument, short_repr
from tfk_regularizers._penalties.factors import check_factor, factor_value, is_factor_variable
from tfk_regularizers._tensorflow_internals import is_writing_saved_model

_Given = TypeVar("_Given")
_Kept = TypeVar("_Kept")
Mode: TypeAlias = Literal["rows", "columns"]
FactorLike: TypeAlias = SupportsFloat | tf.Variable
READ_IN_GRAPH = "_read_in_graph"


class Argument(Generic[_Given, _Kept]):
    """Declares an argument of a `Penalty`, other than its factors, as a class attribute.

    The attribute is checked whenever it is set (unless a subclass has a `__call__` of its own), and is saved in the
    config. It holds what `check` returns for the value that was set.

    Args:
        check: A function that takes the value and returns the value to keep, or raises an error.

    Raises:
        AttributeError: When read: if `__init__` has not set it.

    Warns:
        UserWarning: When set to another value after a graph, such as a traced training step, has read it: the graph
            keeps the old value.

    >>> import tensorflow as tf
    >>> class PowerSum(Penalty):
    ...     factor = Factor()
    ...     power = Argument(int)
    ...
    ...     def __init__(self, factor=0.01, power=4):
    ...         self.factor = factor
    ...         self.power = power
    ...
    ...     def __call__(self, x):
    ...         return self.factor * tf.reduce_sum(x**self.power)
    >>> PowerSum(0.5, power=2.0).get_config()
    {'factor': 0.5, 'power': 2}
    """

    def __init__(self, check: Callable[[Any], _Kept]) -> None:
        self.check = check
        self.__doc__ = ""  # otherwise `help` repeats the docstring of this class for each argument

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    @overload
    def __get__(self, instance: None, owner: Any = None) -> "Argument[_Given, _Kept]": ...
    @overload
    def __get__(self, instance: Any, owner: Any = None) -> _Kept: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        values = vars(instance)
        if self.name not in values:
            raise AttributeError(f"`{type(instance).__name__}.__init__` does not set the argument `{self.name}`.")
        value = values[self.name]
        if tf.executing_eagerly():
            return value
        if is_writing_saved_model():
            return saved_value(instance, self.name, value)
        if not is_building_model():
            values[READ_IN_GRAPH] = True
        return value

    def __set__(self, instance: Any, value: _Given) -> None:
        # A subclass with a `__call__` of its own may store anything here, as in tf_keras.
        is_overridden = "__call__" in vars(self.owner) and type(instance).__call__ is not self.owner.__call__
        values, kept = vars(instance), value if is_overridden else self.check(value)
        old = values.get(self.name)
        is_same = old is kept or (type(old) is type(kept) and not isinstance(kept, tf.Variable) and old == kept)
        if READ_IN_GRAPH in values and not is_same:
            warnings.warn(
                f"`{self.name}` of {type(instance).__name__} was changed after a graph had read it. "
                "Functions that are already traced keep the old value. For a model's training step, call `compile` or "
                "`set_regularizers` again; re-create your own `tf.function`. Or use a "
                "`tf.Variable(..., trainable=False)` as the factor, or the callback `RegularizationScheduler`.",
                stacklevel=2,
            )
            del values[READ_IN_GRAPH]
        values[self.name] = kept


class Factor(Argument[FactorLike, float]):
    """Declares a factor of a `Penalty` as a class attribute. It holds a number or a variable.

    - A finite number is kept as a Python float. A traced training step keeps the number that it was traced with: a
      warning says so if you change it later. (Negative numbers reward large weights. Keras 3 does not load them without
      this package.)
    - A scalar floating `tf.Variable(..., trainable=False)` is read at each call, in traced and compiled functions too,
      so `assign` takes effect in the next step. Saved models, copies and pickles hold its current number instead of the
      variable. For a checkpoint, pass the variable yourself: `tf.train.Checkpoint(model=model, l2=variable)`.

    Raises:
        ValueError: When set: if the value is neither. When saved or copied: if the number of a variable is not finite.

    >>> import tensorflow as tf
    >>> penalty = L2(tf.Variable(0.5, trainable=False))
    >>> penalty
    L2(l2=<variable: 0.5>)
    >>> penalty.get_config()
    {'l2': 0.5}
    """

    def __init__(self) -> None:
        super().__init__(lambda value: check_factor(self.name, value))


def argument_names(cls: type, kind: type = Argument) -> list[str]:
    """The names of the arguments, or of the factors, of a class and its bases."""
    found = [name for base in reversed(cls.__mro__) for name, value in vars(base).items() if isinstance(value, kind)]
    return list(dict.fromkeys([*found, *getattr(cls, "factor_names", ())]))  # `factor_names` is from 0.2


def saved_value(penalty: Any, name: str, value: Any) -> Any:
    """An attribute's value in files and copies; a variable factor becomes a float."""
    if not is_factor_variable(value) or name not in argument_names(type(penalty), Factor):
        return value
    number = factor_value(value)
    if not math.isfinite(number):
        raise ValueError(
            f"The factor `{name}` of {type(penalty).__name__} is {number}, which cannot be saved or copied. "
            f"Expected a finite number. Assign one, or save only the weights. Received: {name}={short_repr(value)}"
        )
    return number


def was_read_in_graph(regularizer: Any) -> bool:
    """Whether a graph has read an argument of a penalty, or of a term of a sum."""
    terms = getattr(regularizer, "regularizers", [regularizer])
    return any(READ_IN_GRAPH in getattr(term, "__dict__", {}) for term in terms)


def check_mode(value: Any) -> Any:
    """The mode, if it is "rows" or "columns"."""
    if isinstance(value, str) and value in ("rows", "columns"):
        return str(value)
    received = value[:100] if isinstance(value, str) else short_repr(value)  # without quotes, as in Keras
    raise ValueError(
        f'Invalid value for argument `mode`. Expected one of {{"rows", "columns"}}. Received: mode={received}'
    )


def check_bool(argument: str, value: Any) -> bool:
    """The value as a bool, if it is one or is a NumPy bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise invalid_argument(argument, "True or False", value)
    return bool(value)


def check_sample_size(value: Any) -> int:
    """The sample size, if it is an integer of at least 2."""
    if isinstance(value, (int, np.integer)) and value >= 2:
        return int(value)
    raise invalid_argument("sample_size", "an integer of at least 2", value)
