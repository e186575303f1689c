"""The regularizers and penalties of a whole model."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from tfk_regularizers._keras import builtin_warnings, layer_configs, layer_regularizers, layers, steps, tree, versions
from tfk_regularizers._keras.compiled_loss import SplitLoss
from tfk_regularizers._keras.tree import Node
from tfk_regularizers._messages import short_repr

_ACTIVITY = "activity_regularizer"


def penalties(model: Any) -> dict[str, tf.Tensor]:
    """The penalty of each regularized weight of a model of either Keras, by path."""
    versions.check_is_model("`penalties`", model)
    tree.check_built(model)
    nodes = tree.walk(model)
    builtin_warnings.warn_of_builtins_in(nodes, stacklevel=4)  # AutoGraph's wrapper is one of the frames
    losses = []
    for node in nodes:
        _check_not_revived(node, only_with_losses=True)
        keywords = layers.regularizer_attributes(node.layer).keys() - {_ACTIVITY}
        is_regularized = any(layers.held_regularizer(node.layer, keyword) is not None for keyword in keywords)
        if is_regularized and not (model.built or layers.is_built(node.layer)):
            raise ValueError(f"The layer {node.path!r} has no weights yet. Call the model on data first.")
        of_weights = layers.weight_losses(node.layer, model)
        paths = tree.weight_paths(node, [loss.variable for loss in of_weights])
        losses += [(path, loss.penalty()) for path, loss in zip(paths, of_weights, strict=True)]
    return _sum_by_path(losses)


def _sum_by_path(losses: Iterable[tuple[str | None, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """The sums of the losses of each path."""
    values: dict[str, tf.Tensor] = {}
    for path, loss in losses:
        if path is not None:
            values[path] = values[path] + loss if path in values else loss
    return values


def penalized_paths(model: Any) -> list[str]:
    """The paths of the penalized weights of a tf_keras model."""
    return list(dict.fromkeys(path for path in _path_of_each_loss(model) if path is not None))


def _path_of_each_loss(model: Any) -> list[str | None]:
    """For each of the `losses` of a tf_keras model the path of the penalized weight, None if there is none."""
    found: list[str | None] = []
    for node in tree.walk(model):
        others = node.layer._eager_losses or node.layer._losses
        of_weights = [loss and loss.variable for loss in map(layers.as_weight_loss, node.layer._callable_losses)]
        variables = [None] * len(others) + of_weights
        paths = iter(tree.weight_paths(node, [variable for variable in variables if variable is not None]))
        found += [None if variable is None else next(paths) for variable in variables]
    return found


def penalties_among(model: Any, losses: list[Any]) -> dict[str, tf.Tensor]:
    """The `penalties` of a tf_keras model, found among its `losses`, so that samples are not drawn a second time."""
    paths = _path_of_each_loss(model)
    if len(paths) != len(losses):  # a `train_step` adds them up, or a loss of the user's own was None
        return penalties(model)
    return _sum_by_path(zip(paths, losses, strict=True))


class ActiveRegularizer(NamedTuple):
    """A regularizer that has an effect, the path of what it penalizes, its layer and whether `where` chose that."""

    path: str
    regularizer: Any
    layer: Any
    chosen: bool


def active_regularizers(model: Any, where: Any = None) -> list[ActiveRegularizer]:
    """All regularizers that have an effect in a tf_keras model, built or not."""
    nodes = tree.walk(model)
    chosen = {id(node.layer) for node in tree.choose(nodes, where)}
    found = []
    for node in nodes:
        if id(node.layer) in chosen:
            _check_not_revived(node, only_with_losses=True)
        pairs = [] if layers.is_revived(node.layer) else layers.active_regularizers(node.layer)
        paths = iter(tree.weight_paths(node, [target for target, _ in pairs if not isinstance(target, str)]))
        for target, regularizer in pairs:
            path = tree.join_path(node.path, target) if isinstance(target, str) else next(paths)
            found.append(ActiveRegularizer(path, regularizer, node.layer, id(node.layer) in chosen))
    return found


def retrace(model: Any) -> None:
    """Let a model and those inside it trace their steps anew, and log the weights that are penalized now."""
    for inner in (node.layer for node in tree.walk(model) if isinstance(node.layer, tf_keras.Model)):
        if isinstance(inner.compiled_loss, SplitLoss):
            inner.compiled_loss.find_weights()
        steps.forget_traces(inner)


def _check_not_revived(node: Node, only_with_losses: bool = False) -> None:
    if layers.is_revived(node.layer) and (node.layer._callable_losses or not only_with_losses):
        raise ValueError(
            f"The layer {node.layer.name!r} was loaded from a SavedModel without its class, as graphs. Pass the class "
            f"to `load_model` in `custom_objects`{'' if only_with_losses else ', or leave the layer out by `where`'}."
        )


class _Target(NamedTuple):
    """A keyword of a layer, what is held under it, the weight (None: the output), its paths, the layers around."""

    layer: Any
    keyword: str
    held: Any
    weight: Any
    paths: list[str]
    enclosing: list[Any]


def find_targets(model: Any, where: Any, keywords: list[str]) -> list[_Target]:
    """The targets of each keyword on the layers that `where` chooses; ValueError if one has none."""
    tree.check_built(model)
    nodes = tree.walk(model)
    chosen = tree.choose(nodes, where)
    targets = []
    for keyword in keywords:
        if not (found := _targets(chosen, keyword)):
            raise ValueError(_no_target(model, keyword, where, nodes, chosen))
        targets += found
    return targets


def set_on_targets(
    model: Any, targets: list[_Target], regularizers: dict[str, Any], was_read_in_graph: Callable[[Any], bool]
) -> list[str]:
    """Check all regularizers, then set them; return the paths of what was changed. An error changes nothing."""
    changes = [target for target in targets if _needs_change(target, regularizers[target.keyword])]
    for target in changes:
        _check_regularizer(target, regularizers[target.keyword])
    nodes = tree.walk(model)
    with contextlib.ExitStack() as undo:
        for layer, keyword, _, weight, _, _ in changes:
            if keyword == _ACTIVITY:
                layer_regularizers.set_activity_regularizer(layer, regularizers[keyword], undo)
            else:
                layer_regularizers.set_weight_regularizer(layer, keyword, weight, regularizers[keyword], undo)
        for owner in {id(owner): owner for target in changes for owner in target.enclosing}.values():
            layer_configs.update_bidirectional(owner, undo)
        for keyword, regularizer in regularizers.items():
            replaced = {id(target.layer): target.held for target in changes if target.keyword == keyword}
            if stale := layer_configs.update_configs(nodes, keyword, regularizer, replaced, undo):
                warnings.warn(
                    f"A saved model may get the old `{keyword}` back inside {', '.join(map(repr, stale))}, whose "
                    "`get_config` has one of its own. Call `set_regularizers` again after loading.",
                    stacklevel=3,
                )
        builtin_warnings.warn_of_builtins_in(nodes, stacklevel=3)
        is_traced = any(was_read_in_graph(target.held) for target in changes if target.keyword != _ACTIVITY)
        if is_traced and not any(getattr(node.layer, "compiled_loss", None) for node in nodes):  # not by its own step
            warnings.warn(
                f"A traced step of a model around {model.name!r}, or a traced `tf.function`, keeps the penalties that "
                "were replaced. Call `set_regularizers` on the model that is trained, or `compile` it again; make "
                "the `tf.function` again.",
                stacklevel=3,
            )
        retrace(model)
        undo.pop_all()
    return [path for target in changes for path in target.paths]


def _targets(nodes: list[Node], keyword: str) -> list[_Target]:
    """The targets of a keyword on each of the layers."""
    targets = []
    for node in nodes:
        layer, held, enclosing = node.layer, layers.held_regularizer(node.layer, keyword), [*node.enclosing.values()]
        _check_not_revived(node)
        if keyword == _ACTIVITY:
            for owner in enclosing:  # whose graphs make the output
                _check_not_revived(node._replace(layer=owner))
            if layers.takes_activity_regularizer(layer):
                targets.append(_Target(layer, keyword, held, None, [tree.join_path(node.path, "activity")], enclosing))
        elif keyword in layers.regularizer_attributes(layer) and not layers.is_built(layer):
            raise ValueError(
                f"The layer {node.path!r} has no weights yet. Call the model on data first, or leave it out by `where`."
            )
        elif weight := layers.regularized_weight(layer, keyword, enclosing):
            targets.append(_Target(layer, keyword, held, weight, tree.weight_paths(node, weight), enclosing))
    return targets


def _needs_change(target: _Target, regularizer: Any) -> bool:
    """Whether setting the regularizer changes anything. Removing one that is not there does not."""
    if regularizer is not None or target.held is not None:
        return True
    if target.keyword == _ACTIVITY:
        return bool(layers.activity_losses(target.layer))
    return any(loss.variable is one for loss in layers.weight_losses(target.layer) for one in target.weight)


def _check_regularizer(target: _Target, regularizer: Any) -> None:
    """Raise ValueError unless the regularizer returns a scalar for what it is set on, as far as shapes are known."""
    if regularizer is None:
        return
    tensors = target.weight if target.weight is not None else layers.zero_outputs(target.layer)
    for path, tensor in zip(itertools.cycle(target.paths), tensors):
        place = f"{short_repr(regularizer)} cannot be the `{target.keyword}` of {path!r}, of shape {tensor.shape}"
        try:
            value = regularizer(tensor)
            value = value if tf.is_tensor(value) else tf.convert_to_tensor(value, tf_keras.backend.floatx())
        except Exception as error:
            raise ValueError(f"{place}: {type(error).__name__}: {error}") from error
        if value.shape.rank != 0 or not value.dtype.is_floating:
            raise ValueError(f"{place}: expected a scalar. Received: shape {value.shape}, dtype {value.dtype.name}")


def _no_target(model: Any, keyword: str, where: Any, nodes: list[Node], chosen: list[Node]) -> str:
    """The message for a keyword without a target: the keywords that have one."""
    if where is not None and not chosen:
        return f"`where` passes for no layer of the model {model.name!r}, so `{keyword}` would change nothing."
    built = [node for node in (nodes if where is None else chosen) if layers.is_built(node.layer)]
    candidates = {_ACTIVITY}.union(*(layers.regularizer_attributes(node.layer) for node in built))
    present = ", ".join(sorted(candidate for candidate in candidates if _targets(built, candidate)))
    return (
        f"`{keyword}` would change nothing: no layer {'' if where is None else 'that passes `where` '}in the model "
        f"{model.name!r} regularizes a weight by it. Expected one of: {present or 'none, without weights'}."
    )
