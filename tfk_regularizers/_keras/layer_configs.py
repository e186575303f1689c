"""Keep the configs of layers in line with the regularizers of the layers inside them."""

import contextlib
from typing import Any

import tf_keras

from tfk_regularizers._keras.layer_regularizers import assign
from tfk_regularizers._keras.layers import held_regularizer, regularized_weight, regularizer_attributes
from tfk_regularizers._keras.tree import walk


def update_config(
    keyword: str, regularizer: Any, replaced: dict[int, Any], undo: contextlib.ExitStack, owner: Any
) -> bool:
    """Give a layer the regularizer of the layers inside it, if it has passed its own on to them.

    It has, if it holds what was replaced, and no other layer inside still holds that. `replaced` has the old
    regularizers of the layers that were changed, by id. Return False if the config may still have the old one.
    """
    inside = [node.layer for node in walk(owner)]
    changed = [layer for layer in inside if id(layer) in replaced]
    is_model_of_keras = isinstance(owner, tf_keras.Model) and type(owner).get_config.__module__.startswith("tf_keras.")
    if not changed or is_model_of_keras:  # whose config has those of its layers
        return True
    attribute, is_certain = regularizer_attributes(owner).get(keyword), True
    if attribute and id(owner) not in replaced and keyword != "activity_regularizer":  # which is that of its own output
        old, passes_on = getattr(owner, attribute), isinstance(owner, tf_keras.layers.MultiHeadAttention)
        others = [layer for layer in inside if id(layer) not in replaced and regularized_weight(layer, keyword)]
        was_passed_on = passes_on or all(_are_equal(old, replaced[id(layer)]) for layer in changed)
        if was_passed_on and not any(_are_equal(old, held_regularizer(layer, keyword)) for layer in others):
            assign(owner, attribute, regularizer, undo)
            is_certain = passes_on or old is not None  # None may have been there without being passed on
    config: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # otherwise it cannot be saved
        config = owner.get_config()
    return keyword not in config or (is_certain and _are_equal(config[keyword], regularizer))


def _are_equal(*regularizers: Any) -> bool:
    """Whether two regularizers, strings or configs have the same config."""
    get, serialize = tf_keras.regularizers.get, tf_keras.regularizers.serialize
    one, other = (get(each) if isinstance(each, (str, dict)) else each for each in regularizers)
    have_configs = all(hasattr(each, "get_config") for each in (one, other))
    return one is other or (have_configs and serialize(one) == serialize(other))


def update_bidirectional(owner: Any, undo: contextlib.ExitStack) -> None:
    """Bring the config of a Bidirectional in line with its two layers.

    It saves the unbuilt layer that it copied for both directions, and the config of a backward layer that it was given.
    """
    if not isinstance(owner, tf_keras.layers.Bidirectional):
        return
    for template, layer in zip(owner.layer._flatten_layers(), owner.forward_layer._flatten_layers(), strict=False):
        for name in regularizer_attributes(layer).values():
            assign(template, name, getattr(layer, name), undo)
    differ = _direction_config(owner.forward_layer) != _direction_config(owner.backward_layer)
    if differ or hasattr(owner, "_backward_layer_config"):
        config = tf_keras.saving.serialize_keras_object(owner.backward_layer)
        config["config"]["name"] = owner.backward_layer.name.removeprefix("backward_")
        assign(owner, "_backward_layer_config", config, undo)


def _direction_config(layer: Any) -> dict[str, Any]:
    """The config of one direction of a Bidirectional, without the entries in which the two always differ."""
    return {key: value for key, value in layer.get_config().items() if key not in ("name", "go_backwards")}
