"""Update the configs of layers that passed a regularizer on to the layers inside them."""

import contextlib
import warnings
from typing import Any

from tfk_regularizers._keras import layers
from tfk_regularizers._keras.hosts import host_of
from tfk_regularizers._keras.targets import ACTIVITY, regularized_weights
from tfk_regularizers._keras.tree import Node, walk


def update_configs(
    nodes: list[Node], keyword: str, regularizer: Any, replaced: dict[int, Any], undo: contextlib.ExitStack
) -> list[str]:
    """Set the new regularizer on outer layers that had passed on the old one as well.

    For example, a block whose `kernel_regularizer` its constructor passed to the Dense layers inside: a saved model
    builds the block from its config, and with it the layers.

    `replaced` has the old regularizers of the changed layers, by id. Return the names of the layers whose config may
    still contain an old one.
    """
    owners = [node.layer for node in nodes if layers.constructor_takes(node.layer, keyword)]
    updated = [(owner.name, _update_config(owner, keyword, regularizer, replaced, undo)) for owner in owners]
    return [name for name, is_right in updated if not is_right]


def _update_config(owner: Any, keyword: str, new: Any, replaced: dict[int, Any], undo: contextlib.ExitStack) -> bool:
    """Update one layer. Return whether its config certainly has the new regularizer, if it has one at all.

    It had passed its own on if every regularizer replaced inside it was that same instance. Keras's layers do so.
    """
    host, keywords = host_of(owner), layers.regularizer_attributes(owner)
    inside = [node.layer for node in walk(owner)[1:]]
    changed = [layer for layer in inside if id(layer) in replaced]
    is_of_keras, is_certain = host.is_of_keras(owner), True
    if not changed and (is_of_keras or id(owner) not in replaced):
        return True
    if changed and keyword in keywords and keyword != ACTIVITY:  # ACTIVITY is for the owner's own output
        old = replaced.get(id(owner), getattr(owner, keywords[keyword]))
        others = [layer for layer in inside if id(layer) not in replaced and regularized_weights(host, layer, keyword)]
        names = [(layer, name) for layer in inside for name in layers.regularizer_attributes(layer) if name != keyword]
        passed_on = [replaced[id(layer)] is old for layer in changed]
        passed_on += [layers.held_regularizer(layer, name) is not old for layer, name in names]
        is_certain = not others and (is_of_keras or (old is not None and all(passed_on)))
        if is_certain or (old is None and not others):  # for None it is unknown whether it was passed on
            layers.assign(owner, keywords[keyword], new, undo)
    with contextlib.suppress(Exception), warnings.catch_warnings():  # saving will warn too
        warnings.simplefilter("ignore")
        config = owner.get_config()
        return keyword not in config or (is_certain and config[keyword] in (new, *host.configs_of(new)))
    return True
