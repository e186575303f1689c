"""The base class of the penalties."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from tfk_regularizers._keras import versions
from tfk_regularizers._keras.variables import half_floatx
from tfk_regularizers._penalties.arguments import READ_IN_GRAPH, argument_names, saved_value
from tfk_regularizers._penalties.factors import factor_repr

_Function = TypeVar("_Function", bound=Callable[..., Any])


def without_autograph(function: _Function) -> _Function:
    """TensorFlow's `do_not_convert`, with types."""
    return tf.autograph.experimental.do_not_convert(function)  # type: ignore[no-any-return]


def penalty_method(call: _Function) -> _Function:
    """Decorate `__call__`: turn off AutoGraph, and return a dtype that Keras 3 can add to losses."""

    @functools.wraps(call)
    def method(self: Any, x: Any) -> Any:
        value, half = call(self, x), half_floatx()
        if half is not None and tf.as_dtype(getattr(x, "dtype", tf.float32)).size < 4:
            return tf.cast(value, half)
        return value

    return without_autograph(method)  # type: ignore[return-value]


class Penalty(*versions.regularizer_bases()):  # type: ignore[misc]
    """The base class of the penalties, and of penalties of your own.

    In a subclass, declare each factor as a `Factor` and any other argument of the constructor as an `Argument`, set
    them in `__init__`, and return the penalty of a tensor from `__call__`. The class then has checked arguments,
    factors that may be variables, `repr`, `get_config`, copies, and sums such as `L2(0.1) + Frobenius(0.1)`.

    To save models with it, register the class, as any Keras object. If `__call__` has no `if` or loop that depends on a
    tensor, decorate it with `tf.autograph.experimental.do_not_convert` for faster tracing.

    Plain subclasses of `Regularizer` of tf_keras or Keras 3 work as well.

    Raises:
        NotImplementedError: When called: if the subclass has no `__call__`. From `get_config`: if the constructor takes
            an argument that is not declared, and the class has no `get_config` of its own.

    >>> import tensorflow as tf, tf_keras
    >>> @tf_keras.utils.register_keras_serializable("my_package")
    ... class Frobenius(Penalty):
    ...     factor = Factor()
    ...
    ...     def __init__(self, factor=0.01):
    ...         self.factor = factor
    ...
    ...     def __call__(self, x):
    ...         return self.factor * tf.norm(x)
    >>> Frobenius(0.5)
    Frobenius(factor=0.5)
    >>> layer = tf_keras.layers.Dense(2, kernel_regularizer=Frobenius(0.5), kernel_initializer="ones")
    >>> layer.build((None, 2))
    >>> float(layer.losses[0])
    1.0
    """

    def __call__(self, x: Any, /) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} needs a method `__call__(self, x)` that returns the penalty of the tensor x."
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor as a dict."""
        unsaved = _unsaved_arguments(type(self))
        if unsaved:
            raise NotImplementedError(
                f"The config of {type(self).__name__} lacks its argument `{unsaved[0]}`. In the class, declare "
                f"`{unsaved[0]} = Factor()` or `{unsaved[0]} = Argument(check)`, or write a `get_config`."
            )
        return {name: saved_value(self, name, getattr(self, name)) for name in argument_names(type(self))}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Returns the penalty that a config describes."""
        return cls(**config)

    def __repr__(self) -> str:
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={factor_repr(value)}' for name, value in values.items())})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles hold numbers instead of variables.
        reduced = super().__reduce_ex__(protocol)
        if len(reduced) < 3 or not isinstance(reduced[2], dict):  # a subclass may have its own `__reduce__`
            return reduced
        state = {name: saved_value(self, name, value) for name, value in reduced[2].items() if name != READ_IN_GRAPH}
        return (*reduced[:2], state, *reduced[3:])

    def __add__(self, other: Callable[[Any], Any]) -> "Penalty":
        from tfk_regularizers._penalties.sums import add  # here, because it imports this module

        return add(self, other)

    def __radd__(self, other: Any) -> "Penalty":
        from tfk_regularizers._penalties.sums import add

        return add(other, self)


def _unsaved_arguments(cls: Any) -> list[str]:
    """The constructor's arguments that the config lacks. Subclasses of L1 etc. are not checked, as in tf_keras."""
    if any(base.__module__.split(".")[0] == "tfk_regularizers" and base is not Penalty for base in cls.__mro__):
        return []
    if cls.get_config is not Penalty.get_config:  # it has its own config
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls).parameters.values()
    return [one.name for one in parameters if one.kind in named and one.name not in argument_names(cls)]
