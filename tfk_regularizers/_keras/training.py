"""Steps, loops and compiled losses of a model that trains or is evaluated."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import tf_keras


def forget_traces(model: Any) -> None:
    """Let a model trace its steps anew: a traced one keeps the losses that it was traced with.

    A model of TensorFlow 1 makes its steps when they are called, from a sum of losses that `compile` makes.
    """
    if hasattr(model, "_compile_weights_loss_and_weighted_metrics"):
        if getattr(model, "total_loss", None) is not None:
            model._compile_weights_loss_and_weighted_metrics()
            model.train_function = model.test_function = None
        return
    for name in ("train_tf_function", "train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
            if name != "train_tf_function":  # made at once: a `fit` that is running calls the attribute again
                setattr(model, name, getattr(model, f"make_{name}")())


def calling(callback: Any) -> Any:
    """The list of callbacks that calls one of them now, if any: a callback is not handed it.

    One that holds it, or the nearest one: what is called may be a callback around it.
    """
    holders = [frame.f_locals.get("self") for frame in _frames()]
    lists = [holder for holder in holders if isinstance(holder, tf_keras.callbacks.CallbackList)]
    return next(
        (one for one in lists if any(other is callback for other in one.callbacks)), lists[0] if lists else None
    )


def running_model(*methods: str) -> Any:
    """The model in whose `fit` or `evaluate` of Keras this is called, whoever has wrapped them; None elsewhere."""
    frame = _nearest(*methods)
    return None if frame is None else frame.f_locals["self"]


def let_evaluation_call(function: Any) -> None:
    """Let the evaluation that calls a hook call another function than the model's, for this one time."""
    frame = _nearest("evaluate")
    runner = frame.f_locals.get("test_function_runner") if frame is not None else None
    if type(runner).__name__ == "_TestFunction":  # not one for shards of the data on the workers of a cluster
        runner._function = function  # type: ignore[union-attr]


def _nearest(*methods: str) -> FrameType | None:
    loops = tf_keras.Model.__module__
    inside = (frame for frame in _frames() if frame.f_code.co_name in methods)
    return next((frame for frame in inside if frame.f_globals.get("__name__") == loops), None)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def step_function(model: Any, kind: str) -> Any:
    """The function of a model for its "train" or "test" steps, which Keras makes where it has none."""
    if getattr(model, f"{kind}_function") is None:
        setattr(model, f"{kind}_function", getattr(model, f"make_{kind}_function")())
    return getattr(model, f"{kind}_function")


def another_step_function(model: Any, kind: str) -> tuple[Any, Any]:
    """One more function for the steps, not traced yet, and what TensorFlow traces of it, as far as Keras tells."""
    names = [name for name in (f"{kind}_function", f"{kind}_tf_function") if hasattr(model, name)]
    before = {name: getattr(model, name) for name in names}
    try:
        for name in names:
            setattr(model, name, None)
        return getattr(model, f"make_{kind}_function")(), getattr(model, f"{kind}_tf_function", None)
    finally:
        for name, value in before.items():
            setattr(model, name, value)


@contextlib.contextmanager
def in_place(model: Any, **attributes: Any) -> Iterator[None]:
    """Let a model have other attributes for a time, past its tracking of what is set."""
    own = vars(model)
    before = {name: own[name] for name in attributes if name in own}
    try:
        own.update(attributes)
        yield
    finally:  # in this order, so that Ctrl-C leaves no model without an attribute
        own.update(before)
        for name in attributes.keys() - before.keys():
            own.pop(name, None)


def python_step(model: Any, kind: str) -> Any:
    """The `train_step` or `test_step` of a model, as a function that runs at each call: not one that is traced."""
    step = getattr(model, f"{kind}_step")
    return getattr(step, "python_function", step)


def is_on_cluster(model: Any) -> bool:
    """Whether workers of a parameter server strategy run the steps of a model: what they give is not known at once."""
    return bool(model.distribute_strategy._should_use_with_coordinator)


def call_recorded(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Call a compiled loss, all but the update of its mean: the loss, and the value and weight meant for that update.

    All three are None where the compiled loss has nothing to compute.
    """
    if not loss.built:
        loss.build(y_pred)
    # A copy for this call alone, because replicas run in threads; it shares all that `build` made.
    loss = copy.copy(loss)
    loss._total_loss_mean = mean = _Recorder()
    return loss(y_true, y_pred, sample_weight), mean.value, mean.weight


class _Recorder:
    value = weight = None

    def update_state(self, value, sample_weight=None):
        self.value, self.weight = value, sample_weight


def common_dtype(losses: list[Any]) -> list[Any]:
    """Losses in the one dtype in which Keras adds them: under mixed precision some are halves and some are not."""
    return sys.modules[tf_keras.losses.Loss.__module__].losses_utils.cast_losses_to_common_dtype(losses)


def print_message(text: str) -> None:
    """Print as Keras's callbacks do: to where `tf_keras.utils.disable_interactive_logging` sends it."""
    sys.modules[tf_keras.utils.disable_interactive_logging.__module__].print_msg(text)
