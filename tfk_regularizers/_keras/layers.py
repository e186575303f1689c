"""Weights, losses and configs of layers."""

import contextlib
import functools
import gc
import inspect
import re
import sys
from typing import Any

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras.versions import SUPPORTED


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


def own_regularizers(layer: Any) -> dict[str, Any]:
    """The regularizers that a layer of tf_keras has been given and holds itself, by their keywords."""
    if not isinstance(layer, tf_keras.layers.Layer):
        return {}
    held = {name: value for name, value in vars(layer).items() if name.endswith("_regularizer") and name[0] != "_"}
    held["activity_regularizer"] = vars(layer).get("_activity_regularizer")
    return {keyword: regularizer for keyword, regularizer in held.items() if regularizer is not None}


def alive() -> list[Any]:
    """All layers of tf_keras that there are. Where none has had a name yet, which is known at once, none is looked for.

    The garbage collector is asked, which takes 0.1 s; after `clear_session` no name is known, and none is found.
    """
    backend = sys.modules[tf_keras.backend.clear_session.__module__]
    if not any(len(getattr(backend, names, ())) for names in ("OBSERVED_NAMES", "PER_GRAPH_OBJECT_NAME_UIDS")):
        return []
    objects = gc.get_objects()
    kinds = {kind for kind in {type(obj) for obj in objects} if tf_keras.layers.Layer in kind.__mro__}
    return [obj for obj in objects if type(obj) in kinds]


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
    weight = weight if weight is not None else getattr(layer, f"{name}_kernel", None)
    if weight is None or _shards(weight):
        return _shards(weight)
    # A wrapper has put what it makes of the variable in its place, as one that quantizes does.
    names = (name, f"{name}_kernel")
    return [variable for variable in own_weights(layer) if variable.name.rpartition("/")[2].split(":")[0] in names]


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


def penalized_variables(layer: Any) -> list[Any]:
    """What each of the losses that a layer of tf_keras itself adds to `losses` penalizes: a variable, or None."""
    others = layer._eager_losses or layer._losses
    if others and isinstance(others[0], str):  # what a revived layer has in place of those of its parent
        others = []
    return [None] * len(others) + [_regularized_variable(layer, loss) for loss in layer._callable_losses]


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


def acting_regularizers(layer: Any) -> list[tuple[Any, Any]]:
    """The regularizers that act in a layer itself, each behind what it acts on.

    That is a variable, or the name of a weight that is not built yet, or "activity". The regularizer is None where a
    graph acts in its place, in a revived layer. An attribute that was set on a built layer does not act.
    """
    losses = [(_regularized_variable(layer, loss), loss.args[0]) for loss in layer._callable_losses]
    pairs = [(variable, _closed_over(inner)) for variable, inner in losses if variable is not None]
    if not layer.built:
        names = [name for name in vars(layer) if name in keywords(layer) and "activity" not in name]
        pairs += [(name.removesuffix("_regularizer").lstrip("_"), getattr(layer, name)) for name in names]
        pairs = [(target, regularizer) for target, regularizer in pairs if regularizer is not None]
    activity = getattr(layer, "activity_regularizer", None)
    if activity is not None:
        pairs.append(("activity", None if _is_revived(layer) else activity))
    return pairs


def _closed_over(inner: Any) -> Any:
    """The regularizer that the function of a weight's penalty calls; None for a graph."""
    return inspect.getclosurevars(inner.func).nonlocals.get("regularizer") if hasattr(inner, "func") else None


def track_regularizer(layer: Any, name: str, regularizer: Any) -> None:
    """Let a layer track a regularizer that acts in it and holds a variable since, for SavedModels and checkpoints."""
    names = [key for key, value in vars(layer).items() if value is regularizer and key.endswith("_regularizer")]
    for key in names or [f"_{name}_regularizer"]:
        setattr(layer, key, regularizer)


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
