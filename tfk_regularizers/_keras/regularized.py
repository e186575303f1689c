"""The rows of `summary`: all regularized weights and outputs of a model, with notes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tfk_regularizers._keras import builtin_warnings, layers, tree, versions
from tfk_regularizers._keras.hosts import Host
from tfk_regularizers._keras.regularization import active_in_layer
from tfk_regularizers._keras.targets import ACTIVITY
from tfk_regularizers._keras.tree import Node

_PACKAGES = {"keras": "Keras 3", "__main__": "your program"}


class Regularized(NamedTuple):
    """A row of `summary`: its path, shape, regularizer, penalty (None if not computed) and note."""

    path: str
    shape: Any
    regularizer: Any
    penalty: Any
    note: str


def regularized(host: Host, model: Any) -> list[Regularized]:
    """All regularized weights and outputs of a model, and the attributes that have no effect."""
    nodes = tree.walk(model)
    active = {id(regularizer) for node in nodes for _, regularizer in active_in_layer(host, node.layer)}
    found = [row for node in nodes for row in (*_weights(host, node, model), *_attributes(node, active))]
    notes = ["; ".join(filter(None, (row.note, _note(host, row.regularizer)))) for row in found]
    return [row._replace(note=note) for row, note in zip(found, notes, strict=True)]


def source(regularizer: Any) -> str:
    """Which package a regularizer comes from."""
    if builtin := builtin_warnings.builtin_class(regularizer):
        return builtin_warnings.REPLACED[builtin]
    root = type(regularizer).__module__.partition(".")[0]
    return _PACKAGES.get(root, root)


def _weights(host: Host, node: Node, model: Any) -> Iterator[Regularized]:
    """The regularized weights of a layer."""
    penalized = {id(loss.variable) for loss in host.weight_losses(node.layer, model)}
    losses = host.weight_losses(node.layer)
    for path, loss in zip(tree.weight_paths(node, [loss.variable for loss in losses]), losses, strict=True):
        is_penalized = id(loss.variable) in penalized
        penalty = loss.compute_penalty() if is_penalized else None
        note = "" if is_penalized else "frozen, not penalized"
        yield Regularized(path, loss.variable.shape, loss.regularizer, penalty, note)


def _attributes(node: Node, active: set[int]) -> Iterator[Regularized]:
    """The regularizer of a layer's output, and regularizers in attributes that have no effect."""
    for keyword in layers.regularizer_attributes(node.layer):
        regularizer = layers.held_regularizer(node.layer, keyword)
        if not callable(regularizer):  # None, or a list that tf_keras stores under such a name
            continue
        if keyword == ACTIVITY:
            note = ""
        elif not layers.is_built(node.layer):
            note = "the layer has no weights yet"
        elif id(regularizer) not in active:
            note = "set on a built layer: no effect until the model is saved and loaded"
        else:
            continue
        path = tree.join_path(node.path, keyword.removesuffix("_regularizer"))
        yield Regularized(path, None, regularizer, None, note)


def _note(host: Host, regularizer: Any) -> str:
    """A note if a regularizer is built-in or belongs to the other Keras."""
    if builtin_warnings.builtin_class(regularizer):
        return "built-in, from before the import of tfk_regularizers"
    if isinstance(regularizer, versions.regularizer_bases()) and not isinstance(regularizer, host.regularizer_base()):
        return "derived from the base class of the other Keras"
    return ""
