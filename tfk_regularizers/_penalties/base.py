"""What the penalties share."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._penalties import traces
from tfk_regularizers._penalties.arguments import shown
from tfk_regularizers._penalties.factors import checked_factor, current, may_be_live, readable

# How a SavedModel names a variable that a regularizer holds. A loader sets what it finds as an attribute of that name:
# under the name of the factor, it would put a variable in the place of the config's number.
SAVED = "_self_live_"
_ARGUMENTS = ("l1", "l2", "factor", "mode")  # each of some penalties and not of others


class Penalty(tf_keras.regularizers.Regularizer):  # type: ignore[misc]
    """The base class of this package's regularizers, and of yours where checks and live factors are wanted.

    A subclass names its factors in `factor_names`, takes them as arguments and gives the penalty of a tensor. What it
    gets: each factor is a finite number, or a scalar floating `tf.Variable(..., trainable=False)` that is read at each
    call, and anything else is a `ValueError` that names it; `repr`, `get_config`, copies and files, which carry the
    current number of a variable; `tf.train.Checkpoint`, which restores it; and sums, as `L2(0.1) + Frobenius(0.1)`.
    With more arguments than factors it has a `get_config` of its own, which calls this one. `class
    Frobenius(Penalty, autograph=False)` says that its `__call__` has no `if` or loop on a tensor: a `tf.function` then
    traces it in milliseconds, without AutoGraph.

    A plain subclass of `tf_keras.regularizers.Regularizer` works as it always did, in sums too.

    >>> import tensorflow as tf, tf_keras
    >>> @tf_keras.utils.register_keras_serializable("my_package")
    ... class Frobenius(Penalty):
    ...     factor_names = ("factor",)
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

    # As long as it holds numbers, TensorFlow takes no more notice of it than of a built-in one: see `_Tracked`.
    factor_names: tuple[str, ...] = ()
    _checks: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})  # of other arguments: what they are kept as

    def __init_subclass__(cls, autograph: bool = True, **kwargs: Any) -> None:
        """Let calls be noted that are traced: a number that is set later does not reach them, which is worth a word.

        With `autograph=False` AutoGraph leaves a `__call__` of the class as it is, as it does those of tf_keras: to
        convert all that a penalty calls takes a second of the first trace, and is of use to an `if` on a tensor alone.
        """
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.factor_names, (tuple, list)):
            raise TypeError(
                f"`factor_names` of {cls.__name__} has to be a tuple of names, such as `('factor',)`. Received: "
                f"{cls.factor_names!r}"
            )
        call = vars(cls).get("__call__")
        if inspect.isfunction(call):
            cls.__call__ = _noted(call, autograph)  # type: ignore[method-assign]

    def __call__(self, x: Any, /) -> Any:
        """The penalty of a tensor, which a subclass computes: that of Keras itself would be 0."""
        inherited = super().__call__
        if getattr(inherited, "__func__", None) is not tf_keras.regularizers.Regularizer.__call__:
            return inherited(x)
        raise NotImplementedError(
            f"{type(self).__name__} needs a method `__call__(self, x)` that returns the penalty of the tensor x."
        )

    def get_config(self) -> dict[str, Any]:
        lost = _lost_arguments(self)
        if lost:
            raise NotImplementedError(
                f"{type(self).__name__} takes {', '.join(f'`{name}`' for name in lost)} and has no `get_config` that "
                "carries it. Name what is a factor in `factor_names`, and return the rest, as in "
                f"`super().get_config() | {{{lost[0]!r}: self.{lost[0]}}}`."
            )
        return {name: self._number(name) for name in self.factor_names}

    def __repr__(self) -> str:
        """Shows a variable as one, with its number: `L1(l1=<variable: 0.5>)`.

        Never fails, for it is what errors and logs show: what cannot be read is shown as it is.
        """
        try:
            arguments = {name: repr(value) for name, value in self.get_config().items()}
            arguments |= {name: readable(factor) for name, factor in self._live().items() if name in arguments}
        except Exception:
            arguments = {name: readable(value) for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"

    def __add__(self, other: tf_keras.regularizers.Regularizer) -> "Penalty":
        """A regularizer that gives both penalties."""
        from tfk_regularizers._penalties.sums import added  # which knows the classes that are made of this one

        return added(self, other)

    def __radd__(self, other: Any) -> "Penalty":
        """The same from the other side: what `sum` begins with, and regularizers that are not of this package."""
        from tfk_regularizers._penalties.sums import added

        return added(other, self)

    def __setattr__(self, name, value):
        """Keep arguments valid. What a subclass with a `__call__` of its own keeps in them is its own affair."""
        if name in self.factor_names and _owner(self, "__call__") is _owner(self, "factor_names"):
            value = checked_factor(name, value)
        elif name in self._checks and _owner(self, "__call__") is _owner(self, "_checks"):
            value = self._checks[name](value)
        arguments = (*self.factor_names, *self._checks)
        if name in arguments and name in vars(self):
            traces.warn_if_frozen(self, name, vars(self)[name], value)
        elif name in _ARGUMENTS and name not in arguments and _is_ours(type(self)):
            traces.warn_of_no_effect(self, name, arguments)
        super().__setattr__(name, value)
        if isinstance(value, tf.Variable):
            track(self)
            self._handle_deferred_dependencies(name, value)  # restored already, if a checkpoint has been waiting

    def __reduce_ex__(self, protocol):
        """For pickle and deepcopy: without what TensorFlow notes here, and with the number of a live factor."""
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced
        make, arguments, state, *rest = reduced
        state, *slots = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if not isinstance(state, dict):  # of a subclass that has its own way
            return reduced
        arguments = tuple(self.__class__ if argument is type(self) else argument for argument in arguments)
        state = {name: value for name, value in state.items() if name not in _NOTES and not name.startswith(SAVED)}
        state |= {name: self._number(name) for name, value in self._live().items() if state.get(name) is value}
        return (make, arguments, (state, *slots) if slots else state, *rest)

    def _live(self):
        """The variables that serve as factors. Others under these names are a subclass's own affair."""
        return {name: vars(self)[name] for name in self.factor_names if may_be_live(vars(self).get(name))}

    def _number(self, name):
        """A factor as the number that files and copies carry: one that opens again."""
        if not hasattr(self, name):
            raise AttributeError(
                f"{type(self).__name__} has `{name}` among its `factor_names`, and its `__init__` does not set it."
            )
        factor = getattr(self, name)
        try:
            number = current(factor)
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


class _Tracked(tf.__internal__.tracking.Trackable):
    """What a penalty that holds a variable is as well: tracked, and so lightly that `model.weights` is not.

    What is tracked stays in checkpoints and SavedModels when it is taken off a layer by hand, and cannot stand in every
    container: so the class of an instance changes when it is given a variable, in all but what it says of itself.
    """

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
        loaded = {name: value for name, value in held.items() if name.startswith(SAVED)}
        return children | loaded | {SAVED + name: value for name, value in held.items() if name not in loaded}

    def _lookup_dependency(self, name, *args, **kwargs):
        """Any variable by its name here or in a SavedModel: to restore it where the file has it."""
        for attribute in (name.removeprefix(SAVED), name):
            if isinstance(vars(self).get(attribute), tf.Variable):
                return vars(self)[attribute]
        return super()._lookup_dependency(name, *args, **kwargs)

    def _maybe_initialize_trackable(self):
        """Past a `__setattr__` that refuses, as that of a frozen dataclass."""
        if "_self_update_uid" not in vars(self):
            vars(self).update(vars(_blank()))


def _noted(call, autograph):
    """A `__call__` that is noted where it is traced."""
    traced = call if autograph else tf.autograph.experimental.do_not_convert(call)

    @functools.wraps(call)
    def __call__(self, *args, **kwargs):  # noqa: N807
        if tf.executing_eagerly():
            return call(self, *args, **kwargs)
        traces.note(self)
        return traced(self, *args, **kwargs)

    return __call__


def _owner(penalty, name):
    """The class that says what a penalty has under a name."""
    return next(cls for cls in type(penalty).__mro__ if name in vars(cls))


def _is_ours(cls):
    return cls.__module__.partition(".")[0] == "tfk_regularizers"


def _lost_arguments(penalty):
    """The arguments that its config lacks. A subclass of L1, L2 or L1L2 is saved with theirs, as in tf_keras."""
    names = _owner(penalty, "factor_names")
    if type(penalty).get_config is not Penalty.get_config or (names is not Penalty and _is_ours(names)):
        return []
    taken = inspect.signature(penalty.__class__).parameters.values()
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in taken if each.kind not in stars and each.name not in penalty.factor_names]


def track(penalty):
    """Let TensorFlow track a penalty: its class becomes one that is `_Tracked` too."""
    plain = type(penalty)
    if issubclass(plain, _Tracked):
        return
    if "_tracked" not in vars(plain):
        names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
        # To files, copies and pickles it is the class that they find by its name, and whoever calls it gets that one.
        itself = {"__class__": property(lambda _: plain), "__new__": lambda _, *args, **kwargs: plain(*args, **kwargs)}
        plain._tracked = type(plain)(plain.__name__, (plain, _Tracked), names | itself)
    object.__dict__["__class__"].__set__(penalty, plain._tracked)


def _blank():
    blank = tf.__internal__.tracking.Trackable()
    blank._maybe_initialize_trackable()
    return blank


_NOTES = frozenset(vars(_blank()))  # the attributes in which TensorFlow notes what it tracks
