"""Every touch of an internal of Keras, each checked, each with its reason."""

import contextlib
import copy
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, ModuleType
from typing import Any

import tensorflow as tf
import tf_keras

SUPPORTED = "tf-keras 2.16 to 2.21"

# The module that defines the regularizers: layers resolve strings and configs through its globals. It is found through
# the base class, the one name that registration never replaces.
SOURCE: ModuleType = sys.modules[tf_keras.regularizers.Regularizer.__module__]


with contextlib.suppress(ImportError, AttributeError):
    tf.keras.regularizers  # noqa: B018  # loads whichever Keras it is


def keras3() -> ModuleType | None:
    """Keras 3, where the program has it: as `tf.keras`, or beside it under TF_USE_LEGACY_KERAS=1; None before that."""
    keras = sys.modules.get("keras")
    loaded = all(hasattr(keras, name) for name in ("regularizers", "saving", "Model"))
    return keras if loaded and not str(getattr(keras, "__version__", "")).startswith("2.") else None


def when_keras3_is_imported(function: Callable[[], Any]) -> None:
    """Call a function once Keras 3 is imported, at once if it is. Without wrapt, which TensorFlow needs, never."""
    with contextlib.suppress(ImportError):
        from wrapt import register_post_import_hook

        register_post_import_hook(lambda _: function(), "keras")


def regularizer_bases() -> tuple[type, ...]:
    """The base classes of regularizers: tf_keras's, and that of Keras 3."""
    keras = keras3()
    return (tf_keras.regularizers.Regularizer, *([keras.regularizers.Regularizer] if keras else []))


def other_backend(x: Any) -> str | None:
    """The backend of Keras 3 that x comes from, if that is not TensorFlow; None for what is no array of a backend.

    Such an array converts to a tensor, but no gradient passes through the conversion.
    """
    keras = sys.modules.get("keras")  # under TF_USE_LEGACY_KERAS=1 a program may have it as well
    if keras is None or type(x).__module__.partition(".")[0] not in ("keras", "jax", "jaxlib", "torch"):
        return None
    backend = keras.backend.backend()
    return None if backend == "tensorflow" else backend


def check_supported(names: Any) -> None:
    """Raise ImportError unless every internal that registration needs is where it is expected."""
    missing = [name for name in ("keras_export", *names) if not hasattr(SOURCE, name)]
    missing += [name for name in names if "_keras_api_names" not in vars(getattr(SOURCE, name, object))]
    if missing:
        raise ImportError(
            f"tfk_regularizers supports {SUPPORTED}, and the installed tf-keras {tf_keras.__version__} lacks "
            f"{', '.join(sorted(set(missing)))} in {SOURCE.__name__}."
        )


def export_like(new: Any, old: Any) -> None:
    """Give `new` the canonical names of `old`, as attribute and in the table that deserialization reads.

    One without the other is worse than neither: files would name a class that they do not open with.
    """
    SOURCE.keras_export(*old._keras_api_names, v1=old._keras_api_names_v1)(new)


def keep_importable(builtin: Any) -> None:
    """Let pickle find what is about to be replaced, and is held elsewhere: it looks for it by name, in any process.

    The module of the public names has a second name, and as a module of that name it keeps what it imports now.
    """
    builtin.__module__ = importlib.import_module(_SECOND_NAME).__name__
    vars(tf_keras.regularizers).pop("__init__", None)  # none of its names


def forget_importable(builtins: Iterable[Any]) -> None:
    """Undo `keep_importable`."""
    for builtin in builtins:
        builtin.__module__ = SOURCE.__name__
    sys.modules.pop(_SECOND_NAME, None)


_SECOND_NAME = "tf_keras.regularizers.__init__"


def forget_export(obj: Any) -> None:
    """Take the canonical names from `obj` again."""
    for attribute in ("_keras_api_names", "_keras_api_names_v1"):
        if attribute in vars(obj):
            delattr(obj, attribute)


def replace_everywhere(pairs: list[tuple[Any, Any]]) -> None:
    """Rebind each old object to its new one in the defining module and in those of tf_keras and tensorflow like it."""
    new = {id(old): new for old, new in pairs}
    for name, module in list(sys.modules.items()):
        if module is None or not name.endswith(".regularizers") or name.split(".")[0] not in ("tf_keras", "tensorflow"):
            continue
        for key, value in list(vars(module).items()):
            if id(value) in new:
                setattr(module, key, new[id(value)])


def keras3_identifiers() -> dict[str, Any] | None:
    """The table from which Keras 3 resolves strings, None where there is none."""
    keras = keras3()
    return getattr(sys.modules[keras.regularizers.get.__module__], "ALL_OBJECTS_DICT", None) if keras else None


def forget_custom_object(keras: ModuleType, cls: type, name: str) -> None:
    """Undo `keras.saving.register_keras_serializable`, which has no public inverse."""
    if keras.saving.get_custom_objects().get(name) is cls:
        del keras.saving.get_custom_objects()[name]
    registry = sys.modules[keras.saving.get_registered_name.__module__]
    for table in ("_GLOBAL_CUSTOM_NAMES", "GLOBAL_CUSTOM_NAMES"):
        getattr(registry, table, {}).pop(cls, None)


def custom_objects(given: dict[str, Any] | None = None) -> dict[str, Any]:
    """All custom objects in force: those given, those of a `custom_object_scope` and the global ones.

    Those of a scope have no public reader.
    """
    registry = sys.modules[tf_keras.saving.get_registered_name.__module__]
    scoped = getattr(registry, "_THREAD_LOCAL_CUSTOM_OBJECTS", None)
    return {**(given or {}), **getattr(scoped, "__dict__", {}), **tf_keras.saving.get_custom_objects()}


def at_full_precision(variable: Any) -> Any:
    """What is inside a variable that Keras casts to a half wherever a layer under mixed precision reads it."""
    return getattr(variable, "_variable", variable) if "AutoCast" in type(variable).__name__ else variable


def model_bases() -> tuple[type, ...]:
    """The classes of models: tf_keras's, and that of Keras 3."""
    keras = keras3()
    return (tf_keras.Model, *([keras.Model] if keras else []))


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer of either Keras holds itself; only a model has a public list, and not of all of them."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def own_weights(layer: Any) -> list[Any]:
    """The weights of a layer of either Keras that are none of its sublayers', in order of creation."""
    inner = {id(variable) for sublayer in sublayers(layer) for variable in sublayer.weights}
    return [variable for variable in layer.weights if id(variable) not in inner]


def keywords(layer: Any) -> set[str]:
    """The names under which a layer has regularizers, `activity_regularizer` aside.

    An RNN layer has them as properties that read its cell, and is passed over: the cell is a layer itself.
    """
    return {name for name in (*vars(layer), *(_revived_config(layer) or {})) if name.endswith("_regularizer")}


def _revived_config(layer: Any) -> dict[str, Any] | None:
    """The config of a layer that Keras has revived from a SavedModel, for want of its class; None for any other layer.

    It is all that is known of the constructor, and what the layer is saved with.
    """
    return getattr(layer, "_config", {}) if _is_revived(layer) else None


def _is_revived(layer: Any) -> bool:
    """Whether Keras has made a layer from the graphs of a SavedModel: its classes for that have no public name."""
    return any(cls.__name__ == "RevivedLayer" for cls in type(layer).__mro__)


def revived_around(layers: list[Any]) -> dict[int, Any]:
    """The revived layers, by the ids of all layers inside them and their own: their outputs come of a saved graph."""
    revived = [layer for layer in layers if _is_revived(layer)]
    return {id(inner): layer for layer in revived for inner in layer._flatten_layers()}


def regularized_weight(layer: Any, keyword: str) -> list[Any]:
    """The variables of the weight that `X_regularizer` regularizes, the attribute `X` or `X_kernel`, if it has any."""
    if keyword not in keywords(layer):
        return []
    name = keyword.removesuffix("_regularizer")
    weight = getattr(layer, name, None)
    return _shards(weight if weight is not None else getattr(layer, f"{name}_kernel", None))


def _shards(weight: Any) -> list[Any]:
    """A weight as a list of variables, of several where a parameter server strategy has partitioned it."""
    if type(weight).__name__ == "ShardedVariable":
        return list(weight.variables)
    return [weight] if isinstance(weight, tf.Variable) else []


def weight_losses(layer: Any, model: Any = None) -> list[tuple[Any, Any]]:
    """The regularized variables of a layer, each with the function that gives its penalty.

    Keras 3 has the regularizer as a public attribute of the variable, and penalizes what is trainable in the model.
    """
    if isinstance(layer, tf_keras.layers.Layer):
        pairs = [(_regularized_variable(layer, loss), loss) for loss in layer._callable_losses]
        return [(variable, loss) for variable, loss in pairs if variable is not None]
    penalized = {id(variable) for variable in model.trainable_weights if variable.regularizer is not None}
    variables = [variable for variable in own_weights(layer) if id(variable) in penalized]
    return [(variable, functools.partial(variable.regularizer, variable)) for variable in variables]


def _regularized_variable(layer: Any, loss: Any) -> Any:
    """The variable of a loss that `add_weight` made, told by its function; None for a loss of the user's own.

    A revived layer has graphs in place of functions. There it is told by the name scope around all that is computed.
    """
    inner = (getattr(loss, "args", None) or [None])[0]
    for concrete in getattr(inner, "concrete_functions", ()):
        computed = [op.name for op in concrete.graph.get_operations() if op.type not in _PLUMBING or "/" in op.name]
        if computed and all(re.search(r"/Regularizer(_\d+)?/", name) for name in computed):
            weights = {id(weight) for weight in layer.weights}
            return next((variable for variable in concrete.variables if id(variable) in weights), None)
    name = getattr(getattr(inner, "func", None), "__qualname__", "")
    return inner.args[0] if name.endswith("_handle_weight_regularization.<locals>._loss_for_variable") else None


_PLUMBING = ("Placeholder", "Identity", "NoOp")  # what any function has around what it computes


def set_weight_regularizer(
    layer: Any, keyword: str, variables: list[Any], regularizer: Any, undo: contextlib.ExitStack
) -> None:
    """Let a built layer penalize a weight as if constructed so; on such a layer the attribute alone changes nothing."""
    undo.callback(layer._callable_losses.__setitem__, slice(None), list(layer._callable_losses))
    ids = {id(variable) for variable in variables}
    kept = [loss for loss in layer._callable_losses if id(_regularized_variable(layer, loss)) not in ids]
    layer._callable_losses[:] = kept
    if regularizer is not None:
        for variable in variables:
            layer._handle_weight_regularization(variable.name.split(":")[0], variable, regularizer)
        # The order in which a rebuilt layer has them; what is not a weight's, the user's own, comes last.
        order = {id(variable): position for position, variable in enumerate(layer.weights)}
        layer._callable_losses.sort(key=lambda loss: order.get(id(_regularized_variable(layer, loss)), len(order)))
    penalized = [variable for variable, _ in weight_losses(layer) if id(variable) in ids]
    if len(penalized) != (0 if regularizer is None else len(variables)):
        raise RuntimeError(
            f"tfk_regularizers supports {SUPPORTED}. The installed tf-keras {tf_keras.__version__} keeps the penalties "
            "of weights elsewhere."
        )
    _assign_regularizer(layer, keyword, regularizer, undo)


def takes_activity_regularizer(layer: Any) -> bool:
    """Whether the constructor takes an activity regularizer by name: just these layers write it to their config.

    All but EinsumDense, which takes it by name and drops it.
    """
    config = _revived_config(layer)
    if config is not None:
        return "activity_regularizer" in config
    if isinstance(layer, tf_keras.layers.EinsumDense):
        return False
    constructors = [vars(cls)["__init__"] for cls in type(layer).__mro__ if "__init__" in vars(cls)]
    return any("activity_regularizer" in inspect.signature(constructor).parameters for constructor in constructors)


def set_activity_regularizer(layer: Any, regularizer: Any, undo: contextlib.ExitStack) -> None:
    """Replace the regularizer of a layer's output, and drop the penalties of the old one.

    The eager losses are those of the last call; the next call makes them anew.
    """
    for losses in (layer._losses, layer._eager_losses):
        undo.callback(losses.__setitem__, slice(None), list(losses))
    old = {id(loss) for loss in activity_losses(layer)}
    layer._losses[:] = [loss for loss in layer._losses if id(loss) not in old]
    layer._eager_losses[:] = []
    _assign_regularizer(layer, "activity_regularizer", regularizer, undo)


def activity_losses(layer: Any) -> list[Any]:
    """What an activity regularizer given at construction leaves in a Functional model, told by its name scope."""
    return [loss for loss in layer._losses if re.search(r"ActivityRegularizer(_\d+)?/", loss.name)]


def sample_outputs(layer: Any) -> list[Any]:
    """Zeros of the shape of a layer's outputs, one example of them; none where the shape is known to a call alone."""
    try:
        outputs = tf.nest.flatten(layer.get_output_at(0))
    except (AttributeError, RuntimeError, ValueError):
        return []
    return [tf.zeros([size or 1 for size in output.shape], output.dtype) for output in outputs]


def update_config_of_owner(owner: Any, keyword: str, undo: contextlib.ExitStack) -> None:
    """Bring what a layer would save in line with the layers inside it, where its config does not come from them.

    A MultiHeadAttention saves one regularizer for all its projections. A Bidirectional saves the unbuilt layer that it
    copied for both directions, and a config that it took of a backward layer of its own.
    """
    if isinstance(owner, tf_keras.layers.MultiHeadAttention):
        projections = [layer for layer in sublayers(owner) if isinstance(layer, tf_keras.layers.EinsumDense)]
        regularizer = getattr(projections[0], keyword)
        if any(getattr(layer, keyword) is not regularizer for layer in projections):
            raise ValueError(
                f"The config of {owner.name!r}, a MultiHeadAttention, holds one `{keyword}` for all its projections. "
                "Expected `where` to choose all of them or none."
            )
        _assign(owner, f"_{keyword}", regularizer, undo)
    elif isinstance(owner, tf_keras.layers.Bidirectional):
        pairs = zip(owner.layer._flatten_layers(), owner.forward_layer._flatten_layers(), strict=False)
        for template, layer in pairs:
            for name in [name for name in vars(layer) if name.endswith("_regularizer")]:
                _assign(template, name, getattr(layer, name), undo)
        differ = _direction(owner.forward_layer) != _direction(owner.backward_layer)
        if differ or hasattr(owner, "_backward_layer_config"):
            config = tf_keras.saving.serialize_keras_object(owner.backward_layer)
            config["config"]["name"] = owner.backward_layer.name.removeprefix("backward_")
            _assign(owner, "_backward_layer_config", config, undo)


def _direction(layer: Any) -> dict[str, Any]:
    """The config of one direction of a Bidirectional, without what tells the two apart in any case."""
    return {key: value for key, value in layer.get_config().items() if key not in ("name", "go_backwards")}


def _assign_regularizer(layer: Any, keyword: str, regularizer: Any, undo: contextlib.ExitStack) -> None:
    """Set the attribute of a layer, and what it would save where that does not come from its attributes.

    The graphs of a revived layer go on reading a variable that was a factor, so it has to stay.
    """
    config, old = _revived_config(layer) or {}, getattr(layer, keyword, None)
    if _is_revived(layer) and old is not None and not hasattr(layer, f"_{keyword}_of_graphs"):
        _assign(layer, f"_{keyword}_of_graphs", old, undo)
    _assign(layer, keyword, regularizer, undo)
    if keyword in config:
        undo.callback(config.__setitem__, keyword, config[keyword])
        config[keyword] = tf_keras.saving.serialize_keras_object(regularizer)


def _assign(obj: Any, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set an attribute, and note how to take that back.

    What is tracked of an object, and so written to checkpoints and SavedModels, stays tracked when something untracked
    takes its place. And setting it back would track what the constructor had not.
    """
    for tracked in _TRACKED:
        container = getattr(obj, tracked, None)
        if container is not None:
            content = list(container if isinstance(container, list) else container.items())
            undo.callback(_put_back, obj, tracked, container, content)
    if hasattr(obj, name):
        undo.callback(setattr, obj, name, getattr(obj, name))
    else:
        undo.callback(delattr, obj, name)
    obj._delete_tracking(_tracked_name(obj, name))
    setattr(obj, name, value)


_TRACKED = (
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
    "_self_unconditional_deferred_dependencies",
    "_self_tracked_trackables",
    "_obj_reference_counts_dict",
)


def _put_back(obj: Any, name: str, container: Any, content: list[Any]) -> None:
    """Let an attribute hold the same list or mapping as before, with the same content."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
    object.__setattr__(obj, name, container)


def _tracked_name(obj: Any, name: str) -> str:
    """The name under which the value of an attribute is tracked: the property `activity_regularizer` has another."""
    return f"_{name}" if isinstance(getattr(type(obj), name, None), property) else name


def tracks(layer: Any, keyword: str) -> bool:
    """Whether checkpoints of a layer hold a regularizer: one that was replaced by hand stays in them."""
    return layer._lookup_dependency(_tracked_name(layer, keyword)) is not None


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
    """The list of callbacks that calls one of them now, if any: a callback is not handed it."""
    for frame in _frames():
        holder = frame.f_locals.get("self")
        if isinstance(holder, tf_keras.callbacks.CallbackList) and any(one is callback for one in holder.callbacks):
            return holder
    return None


def is_in_loop() -> bool:
    """Whether this is called in `fit` or `evaluate` of Keras, whoever has wrapped them."""
    return any(_is_in(frame, "fit") or _is_in(frame, "evaluate") for frame in _frames())


def let_evaluation_call(function: Any) -> None:
    """Let the evaluation that calls a hook call another function than the model's, for this one time."""
    frame = next((frame for frame in _frames() if _is_in(frame, "evaluate")), None)
    runner = frame.f_locals.get("test_function_runner") if frame is not None else None
    if type(runner).__name__ == "_TestFunction":  # not one for shards of the data on the workers of a cluster
        runner._function = function  # type: ignore[union-attr]


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def _is_in(frame: FrameType, method: str) -> bool:
    return frame.f_code.co_name == method and frame.f_globals.get("__name__") == tf_keras.Model.__module__


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
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


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
