"""The layers of a model as a tree, with the paths of layers and weights."""

import difflib
import itertools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from tfk_regularizers._keras import layers, versions


class Node(NamedTuple):
    """A layer, its path, and, by id, the layers around it: those that are not models, and all but the root model."""

    layer: Any
    path: str
    enclosing: dict[int, Any]
    ancestors: dict[int, Any]


def walk(model: Any) -> list[Node]:
    """The model and all layers inside it, each once, in the order in which Keras collects their losses."""
    nodes = {id(model): Node(model, "", {}, {})}
    taken: set[str] = set()

    def visit(parent: Node) -> None:
        enclosing = parent.enclosing
        ancestors = {**parent.ancestors, **({} if parent.layer is model else {id(parent.layer): parent.layer})}
        if not isinstance(parent.layer, versions.model_bases()):
            enclosing = {**enclosing, id(parent.layer): parent.layer}
        for layer in layers.sublayers(parent.layer):
            node = nodes.get(id(layer))
            if node is None:
                path = deduplicate_path(join_path(parent.path, layer.name), taken)
                nodes[id(layer)] = node = Node(layer, path, {}, {})
            elif enclosing.keys() <= node.enclosing.keys() and ancestors.keys() <= node.ancestors.keys():
                continue
            node.enclosing.update(enclosing)
            node.ancestors.update(ancestors)
            visit(node)

    visit(nodes[id(model)])
    return list(nodes.values())


def models_among(nodes: Iterable[Node]) -> list[Any]:
    """The models among layers."""
    return [node.layer for node in nodes if isinstance(node.layer, versions.model_bases())]


def choose(nodes: list[Node], where: Any) -> list[Node]:
    """The layers that `where` chooses, and those inside; if a function chooses a model, not the model's layers."""
    if where is None:
        return nodes
    if callable(where) and not isinstance(where, versions.layer_bases()):
        passes = {id(node.layer): bool(where(node.layer)) for node in nodes}
        return [node for node in nodes if passes[id(node.layer)] or any(passes[owner] for owner in node.enclosing)]
    wanted = where if isinstance(where, (list, tuple)) else [where]
    missing = [one for one in wanted if not any(one is node.layer or one == node.layer.name for node in nodes)]
    if missing:
        raise ValueError(_not_in_model(missing[0], nodes))

    def is_wanted(layer: Any) -> bool:
        return any(layer is one or layer.name == one for one in wanted)

    return [node for node in nodes if is_wanted(node.layer) or any(map(is_wanted, node.ancestors.values()))]


def _not_in_model(missing: Any, nodes: list[Node]) -> str:
    """The message for a layer or name that is not in the model."""
    model = nodes[0].layer.name
    if not isinstance(missing, str):
        return f"`where` has a layer {missing.name!r}, which is not in the model {model!r}."
    nearest = difflib.get_close_matches(missing, [node.layer.name for node in nodes[1:]], n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"`where` names {missing!r}, but no layer of the model {model!r} has that name.{hint}"


def weight_paths(node: Node, variables: list[Any]) -> list[str]:
    """The paths of some weights of a layer, distinct among all its weights."""
    taken: set[str] = set()
    weights = layers.own_weights(node.layer) if variables else []
    paths = {id(variable): deduplicate_path(join_path(node.path, _own_name(variable)), taken) for variable in weights}
    return [paths.get(id(variable)) or join_path(node.path, _own_name(variable)) for variable in variables]


def _own_name(variable: Any) -> str:
    """The last part of a variable's name, such as "kernel", or "kernel/part_0" for a shard."""
    match = re.search(r"[^/:]+(/part_\d+)?(?=(:\d+)?$)", variable.name)
    return match.group() if match else str(variable.name)


def join_path(path: str, name: str) -> str:
    """A path and a name, joined by a slash."""
    return f"{path}/{name}" if path else name


def sum_by_path(losses: Iterable[tuple[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """The sums of the losses of each path."""
    values: dict[str, tf.Tensor] = {}
    for path, loss in losses:
        values[path] = values[path] + loss if path in values else loss
    return values


def deduplicate_path(path: str, taken: set[str]) -> str:
    """The path, or the first of path_1, path_2, … that is not in `taken`, to which it is added."""
    candidates = itertools.chain([path], (f"{path}_{number}" for number in itertools.count(1)))
    unique = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(unique)
    return unique


def check_built(model: Any) -> None:
    """Raise ValueError if a model has no weights yet."""
    if not layers.is_built(model):
        has_call = type(model).call not in [base.call for base in versions.model_bases()]
        how = "Call it on a batch of data" if has_call else "Its class has no `call`: train it for a step"
        raise ValueError(f"The model {model.name!r} has no weights yet. {how} first.")
