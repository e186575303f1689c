"""Set regularizers, compute penalties and find regularizers in whole models, of either Keras."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfk_regularizers._keras import builtin_warnings, layer_configs, layers, targets, tree
from tfk_regularizers._keras.hosts import Host, check_is_model, host_of
from tfk_regularizers._keras.targets import ACTIVITY


def penalties(model: Any) -> dict[str, tf.Tensor]:
    """The penalty of each regularized weight of a model of either Keras, by path."""
    check_is_model(model, "`penalties`")
    host = host_of(model)
    tree.check_built(model)
    nodes = tree.walk(model)
    builtin_warnings.warn_of_builtins_in(nodes, stacklevel=4)  # with the frame of AutoGraph's wrapper
    losses = []
    for node in nodes:
        targets.check_not_revived(host, node, only_with_losses=True)
        keywords = layers.regularizer_attributes(node.layer).keys() - {ACTIVITY}
        is_regularized = any(layers.held_regularizer(node.layer, keyword) is not None for keyword in keywords)
        if is_regularized and not (model.built or layers.is_built(node.layer)):
            raise ValueError(f"The layer {node.path!r} has no weights yet. Call the model on data first.")
        of_weights = host.weight_losses(node.layer, model)
        paths = tree.weight_paths(node, [loss.variable for loss in of_weights])
        losses += [(path, loss.compute_penalty()) for path, loss in zip(paths, of_weights, strict=True)]
    return tree.sum_by_path(losses)


class ActiveRegularizer(NamedTuple):
    """A regularizer that has an effect, the path of its weight or output, its layer, and whether `where` chose it."""

    path: str
    regularizer: Any
    layer: Any
    chosen: bool


def active_regularizers(host: Host, model: Any, where: Any = None) -> list[ActiveRegularizer]:
    """All regularizers that have an effect in a model, built or not."""
    nodes = tree.walk(model)
    chosen = {id(node.layer) for node in tree.choose(nodes, where)}
    found = []
    for node in nodes:
        if id(node.layer) in chosen:
            targets.check_not_revived(host, node, only_with_losses=True)
        pairs = [] if host.is_revived(node.layer) else active_in_layer(host, node.layer)
        paths = iter(tree.weight_paths(node, [target for target, _ in pairs if not isinstance(target, str)]))
        for target, regularizer in pairs:
            path = tree.join_path(node.path, target) if isinstance(target, str) else next(paths)
            found.append(ActiveRegularizer(path, regularizer, node.layer, id(node.layer) in chosen))
    return found


def active_in_layer(host: Host, layer: Any) -> list[tuple[Any, Any]]:
    """Pairs of a target and its regularizer, for all regularizers that have an effect in a layer itself.

    A target is a variable, the name of a weight that is not built yet, or "activity". An attribute that was set on a
    built layer has no effect.
    """
    pairs = [(loss.variable, loss.regularizer) for loss in host.weight_losses(layer)]
    if not layers.is_built(layer):
        names = [name for name in layers.regularizer_attributes(layer) if name != ACTIVITY]
        pairs += [(name.removesuffix("_regularizer"), layers.held_regularizer(layer, name)) for name in names]
    pairs.append(("activity", getattr(layer, ACTIVITY, None)))
    return [(target, regularizer) for target, regularizer in pairs if regularizer is not None]


def retrace(host: Host, model: Any) -> None:
    """Make a model and the models inside it retrace their steps, and update the logged weights."""
    for inner in tree.models_among(tree.walk(model)):
        host.retrace(inner)


def set_regularizers(
    host: Host, model: Any, where: Any, regularizers: dict[str, Any], was_read_in_graph: Callable[[Any], bool]
) -> list[str]:
    """Check all regularizers, then set them; return the paths of the changed weights. An error changes nothing.

    `was_read_in_graph` is passed in, because the modules of penalties import this package.
    """
    tree.check_built(model)
    nodes = tree.walk(model)
    chosen = tree.choose(nodes, where)
    found = []
    for keyword in regularizers:
        if not (named := targets.find_targets(host, chosen, keyword)):
            raise ValueError(targets.no_target(model, keyword, where, nodes, chosen))
        found += named
    changes = [target for target in found if targets.needs_change(host, target, regularizers[target.keyword])]
    for target in changes:
        targets.check_regularizer(host, target, regularizers[target.keyword])
    with contextlib.ExitStack() as undo:
        for layer, keyword, _, weight, _, _ in changes:
            if keyword == ACTIVITY:
                host.set_activity_regularizer(layer, regularizers[keyword], undo)
            else:
                host.set_weight_regularizer(layer, keyword, weight, regularizers[keyword], undo)
        for owner in {id(owner): owner for target in changes for owner in target.enclosing}.values():
            host.update_bidirectional(owner, undo)
        for keyword, regularizer in regularizers.items():
            replaced = {id(target.layer): target.held for target in changes if target.keyword == keyword}
            if stale := layer_configs.update_configs(nodes, keyword, regularizer, replaced, undo):
                warnings.warn(
                    f"A saved model may contain the old `{keyword}` of {', '.join(map(repr, stale))}, because "
                    "`get_config` returns it. Call `set_regularizers` again after loading.",
                    stacklevel=3,
                )
        builtin_warnings.warn_of_builtins_in(nodes, stacklevel=3)
        is_traced = any(was_read_in_graph(target.held) for target in changes if target.keyword != ACTIVITY)
        if is_traced and not any(map(host.is_compiled, tree.models_among(nodes))):  # none has its own step
            warnings.warn(
                f"If the training step of a model that contains {model.name!r}, or a `tf.function`, was already "
                "traced, it keeps the old penalties. Call `set_regularizers` on the model that you train, or recompile "
                "it; re-create the `tf.function`.",
                stacklevel=3,
            )
        for inner in tree.models_among(nodes):
            host.retrace(inner)
        undo.pop_all()
    return [path for target in changes for path in target.paths]
