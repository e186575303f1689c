"""Which traced functions have read the arguments of a penalty: what is set later does not reach them."""

import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import tensorflow as tf
import tf_keras

# By the id of a penalty, itself and what tells whether a function that has called it is still in use: users' classes
# may compare as they like, and nothing is added to a penalty itself.
_NOTES: dict[int, tuple[weakref.ref[Any], list[Callable[[], bool]]]] = {}
_STEPS = {  # which function of a model a loop of Keras runs; what `predict` computes of penalties it drops
    "fit": "train_function",
    "train_on_batch": "train_function",
    "evaluate": "test_function",
    "test_on_batch": "test_function",
    "predict": "predict_function",
    "predict_on_batch": "predict_function",
}
_FUNCTION = type(tf.function(lambda: None))


@tf.autograph.experimental.do_not_convert
def note(penalty: Any) -> None:
    """Note that a call of a penalty is traced, and by what."""
    in_use = _in_use()
    if in_use is None:
        return
    key = id(penalty)
    if key not in _NOTES or _NOTES[key][0]() is not penalty:
        _NOTES[key] = weakref.ref(penalty, lambda _: _NOTES.pop(key, None)), []
    notes = _NOTES[key][1]
    notes[:] = [*(other for other in notes if other()), in_use]


def forget(penalty: Any) -> list[Callable[[], bool]]:
    """Drop the notes about a penalty, and return them."""
    known, notes = _NOTES.pop(id(penalty), (lambda: None, []))
    return notes if known() is penalty else []


def warn_if_frozen(penalty: Any, name: str, old: Any, new: Any) -> None:
    """Warn, once a trace, where what is set does not reach a traced function that is in use."""
    same = old is new or (type(old) is type(new) and type(old) in (float, int, str, bool) and old == new)
    if same or not tf.executing_eagerly():
        return
    notes = [in_use for in_use in forget(penalty) if in_use()]
    if notes:
        gc.collect()  # a function that nobody holds any more is part of a cycle
    if any(in_use() for in_use in notes):
        warnings.warn(
            f"`{name}` of a regularizer {type(penalty).__name__} is set, and a traced function, such as the training "
            "step of a model, goes on with the value that it was traced with. Compile the model again, or call "
            "`set_regularizers`; or let the factor be a `tf.Variable(..., trainable=False)`, which is read at each "
            "step, or follow a schedule by the callback `RegularizationScheduler`.",
            UserWarning,
            stacklevel=_level_of_the_assignment(),
        )


def warn_of_no_effect(penalty: Any, name: str, arguments: tuple[str, ...]) -> None:
    """Warn where an attribute is set that is the argument of another penalty."""
    warnings.warn(
        f"{type(penalty).__name__} has no argument `{name}`, and to set it has no effect. It has "
        f"{', '.join(f'`{each}`' for each in arguments)}.",
        UserWarning,
        stacklevel=_level_of_the_assignment(),
    )


def _in_use() -> Callable[[], bool] | None:
    """What tells whether the function that is being traced is in use: a step of a model, or a function of the user's.

    A model lets go of its step when it is compiled again, or by `set_regularizers`, though others still hold that.
    """
    function = None
    for frame in _frames():
        name = frame.f_code.co_name
        if name == "__call__" and isinstance(frame.f_locals.get("self"), _FUNCTION):
            function = frame.f_locals["self"]
        elif name in _STEPS and isinstance(frame.f_locals.get("self"), tf_keras.Model):
            model, attribute = frame.f_locals["self"], _STEPS[name]
            step = getattr(model, attribute, None)
            if attribute == "predict_function":
                return None
            if step is not None:
                return _is_step(weakref.ref(model), attribute, weakref.ref(step))
    if function is None:
        return None
    held = weakref.ref(function)
    return lambda: held() is not None


def _frames() -> Iterator[FrameType]:
    """The frames of what is being traced, the innermost first. The main thread waits for those that trace replicas."""
    threads = [sys._getframe()]
    if threading.current_thread() is not threading.main_thread():
        threads.append(sys._current_frames()[threading.main_thread().ident])  # type: ignore[index]
    for innermost in threads:
        frame: FrameType | None = innermost
        while frame is not None:
            yield frame
            frame = frame.f_back


def _is_step(model: Callable[[], Any], attribute: str, step: Callable[[], Any]) -> Callable[[], bool]:
    return lambda: step() is not None and getattr(model(), attribute, None) is step()


def _level_of_the_assignment() -> int:
    """The stack level, for a warning of the caller, of the line that sets an attribute."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name == "__setattr__":
        level, frame = level + 1, frame.f_back
    return level
