"""The weights and outputs that the keywords of `set_regularizers` mean in a model."""

import difflib
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from tfk_regularizers._keras import layers, tree
from tfk_regularizers._keras.hosts import Host, host_of
from tfk_regularizers._keras.tree import Node
from tfk_regularizers._messages import short_repr

ACTIVITY = "activity_regularizer"


class Target(NamedTuple):
    """A keyword of a layer, its old regularizer, the weights (None for the output), paths, and enclosing layers."""

    layer: Any
    keyword: str
    held: Any
    weights: Any
    paths: list[str]
    enclosing: list[Any]


def regularized_weights(host: Host, layer: Any, keyword: str, enclosing: Iterable[Any] = ()) -> list[Any]:
    """The variables that `X_regularizer` penalizes now, or else those named X."""
    keywords = layers.regularizer_attributes(layer)
    if keyword not in keywords:
        return []
    regularizer, named = layers.held_regularizer(layer, keyword), host.weights_called(keyword, layer, enclosing)
    others = [layers.held_regularizer(layer, other) for other in keywords if other not in (keyword, ACTIVITY)]
    if any(other is regularizer for other in others):  # then only the name tells the weights apart
        return named
    return [loss.variable for loss in host.weight_losses(layer) if loss.regularizer is regularizer] or named


def find_targets(host: Host, nodes: list[Node], keyword: str) -> list[Target]:
    """The targets of a keyword on each of the layers."""
    targets = []
    for node in nodes:
        layer, held, enclosing = node.layer, layers.held_regularizer(node.layer, keyword), [*node.enclosing.values()]
        check_not_revived(host, node)
        if keyword == ACTIVITY:
            for owner in enclosing:  # their graphs compute the output
                check_not_revived(host, node._replace(layer=owner))
            if host.takes_activity_regularizer(layer, enclosing):
                targets.append(Target(layer, keyword, held, None, [tree.join_path(node.path, "activity")], enclosing))
        elif keyword in layers.regularizer_attributes(layer) and not layers.is_built(layer):
            raise ValueError(
                f"The layer {node.path!r} has no weights yet. Call the model on data first, or exclude the layer with "
                "`where`."
            )
        elif weight := regularized_weights(host, layer, keyword, enclosing):
            targets.append(Target(layer, keyword, held, weight, tree.weight_paths(node, weight), enclosing))
    return targets


def needs_change(host: Host, target: Target, regularizer: Any) -> bool:
    """Whether setting the regularizer changes anything. Removing one that does not exist does not."""
    if regularizer is not None or target.held is not None:
        return True
    if target.keyword == ACTIVITY:
        return bool(host.activity_losses(target.layer))
    return any(loss.variable is one for loss in host.weight_losses(target.layer) for one in target.weights)


def check_regularizer(host: Host, target: Target, regularizer: Any) -> None:
    """Raise ValueError unless the regularizer returns a scalar for its weights or output, if the shape is known."""
    if regularizer is None:
        return
    tensors = target.weights if target.weights is not None else host.zero_outputs(target.layer)
    for path, tensor in zip(itertools.cycle(target.paths), tensors):
        place = f"{short_repr(regularizer)} cannot be the `{target.keyword}` of {path!r}, of shape {tensor.shape}"
        try:
            value = host.as_loss(regularizer(tensor))
        except Exception as error:
            raise ValueError(f"{place}: {type(error).__name__}: {error}") from error
        if value.shape.rank != 0 or not value.dtype.is_floating:
            raise ValueError(f"{place}: expected a scalar. Received: shape {value.shape}, dtype {value.dtype.name}")


def no_target(model: Any, keyword: str, where: Any, nodes: list[Node], chosen: list[Node]) -> str:
    """The message for a keyword that matches nothing, with the keywords that do."""
    if where is not None and not chosen:
        return f"`where` chooses no layer of the model {model.name!r}, so `{keyword}` would change nothing."
    host = host_of(model)
    built = [node for node in (nodes if where is None else chosen) if layers.is_built(node.layer)]
    candidates = {ACTIVITY}.union(*(layers.regularizer_attributes(node.layer) for node in built))
    present = sorted(candidate for candidate in candidates if find_targets(host, built, candidate))
    nearest = difflib.get_close_matches(keyword, present, n=1)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    expected = f"Expected one of: {', '.join(present)}." if present else "No keyword applies there."
    place = f"of the model {model.name!r}{'' if where is None else ' that `where` chooses'}"
    return f"`{keyword}` would change nothing: it does not apply to any layer {place}.{hint} {expected}"


def check_not_revived(host: Host, node: Node, only_with_losses: bool = False) -> None:
    """Raise ValueError if a layer was loaded from a SavedModel without its class."""
    if host.is_revived(node.layer) and (node.layer._callable_losses or not only_with_losses):
        raise ValueError(
            f"The layer {node.layer.name!r} was loaded from a SavedModel without its class, as graphs. Pass the class "
            f"to `load_model` in `custom_objects`{'' if only_with_losses else ', or exclude the layer with `where`'}."
        )
