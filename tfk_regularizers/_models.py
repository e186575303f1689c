"""What acts on a whole model: its regularizers set in place, its penalties seen one by one."""

import contextlib
import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf
import tf_keras

from tfk_regularizers import _earlier
from tfk_regularizers._identifiers import get
from tfk_regularizers._keras import layers, training, versions
from tfk_regularizers._penalties.arguments import invalid, shown

_ACTIVITY = "activity_regularizer"
Identifier: TypeAlias = str | dict[str, Any] | Callable[[Any], Any] | None


def set_regularizers(
    model: tf_keras.Model, *, where: Callable[[Any], bool] | None = None, **regularizers: Identifier
) -> list[str]:
    """Sets, replaces or removes regularizers on the layers of a built tf_keras model, in place.

    `model.losses` is right at once: no rebuild, no reload, weights and optimizer state untouched. The next `fit` of
    `model` trains with the change, even if its step was traced before. A compiled model around `model` does not notice,
    nor does a `tf.function` of your own that was traced already: call this on the model that is trained.

    Saving to `.keras`, `.h5` or a SavedModel carries the change for Sequential and Functional models of tf_keras
    layers; a subclassed model or layer carries what its own `get_config` carries. What is removed or replaced is gone
    from SavedModels and checkpoints too, with its variables.

    A layer whose class the program lacks, which Keras revives from the graphs of a SavedModel, has the keywords of its
    saved config. A variable that was a factor stays in its files, because its graphs read it.

    A keyword is the name of the attribute that Keras's layers have, and means the weight that this attribute
    regularizes: a layer that has the attribute without the weight (`kernel_regularizer` of a `DepthwiseConv2D`) is left
    alone. `activity_regularizer` means the output of the layers that take it by name and save it (not an `EinsumDense`,
    which drops it). Layers inside nested models, wrappers and RNN layers are reached too, and shared layers once.
    Frozen layers (`trainable=False`) are penalized like others, as tf_keras does; `where` can leave them out.

    Args:
        model: A built tf_keras model, compiled or not.
        where: A function that is asked about a layer and returns whether to change it; `None` means all layers. A layer
            that is part of another layer (a cell of an RNN layer, what a wrapper wraps, a projection of a
            `MultiHeadAttention`) is changed if `where` passes for it or for the layer around it; a nested model is no
            such layer.
        **regularizers: From the name of an attribute (`kernel_regularizer`, `bias_regularizer`,
            `depthwise_regularizer`, `pointwise_regularizer`, `recurrent_regularizer`, `embeddings_regularizer`,
            `gamma_regularizer`, `beta_regularizer`, `alpha_regularizer`, `activity_regularizer`, or that of a layer of
            your own) to a regularizer, to anything that `get` takes, or to `None`, which removes.

    Returns:
        The list of the paths of the weights whose regularizer was set, replaced or removed, as `"block1/conv/kernel"`:
        the keys that `penalties` has. An output is listed as `"block1/conv/activity"`.

    Warns:
        UserWarning: Once, if a regularizer of tf_keras itself is in the model afterwards, from before the import.

    Raises:
        TypeError: If `model` is not a tf_keras model, a Keras 3 one for instance.
        ValueError: If the model or a layer to change is not built, if a keyword matches nothing, if a regularizer
            fails or gives no scalar on one of its weights, if the config of a layer cannot hold the choice (the
            projections of a `MultiHeadAttention` share one regularizer), or if an output comes of a graph that is not
            made again (the `activity_regularizer` of a revived layer or inside one; in TensorFlow 1 graphs, where it
            can be removed alone).
        NotImplementedError: If a regularizer without `get_config` is to be set inside a `Bidirectional`, or on a
            revived layer.

    After an error the model is exactly as it was.

    >>> import tf_keras
    >>> from tfk_regularizers import L2, set_regularizers
    >>> model = tf_keras.Sequential(
    ...     [tf_keras.layers.Dense(2, kernel_initializer="ones", name="hidden"), tf_keras.layers.Dense(1, name="head")]
    ... )
    >>> model.build((None, 3))
    >>> set_regularizers(model, kernel_regularizer=L2(0.5), where=lambda layer: layer.name == "hidden")
    ['hidden/kernel']
    >>> float(sum(model.losses))
    3.0
    >>> set_regularizers(model, kernel_regularizer=None)
    ['hidden/kernel']
    >>> model.losses
    []
    """
    _check_model(model, (tf_keras.Model,), "`set_regularizers` is for models of tf_keras")
    check_where(where)
    if not regularizers:
        raise ValueError("`set_regularizers` needs at least one keyword, such as `kernel_regularizer`.")
    nodes = _nodes(model)
    targets = _chosen_targets(model, nodes, where, regularizers)
    regularizers = {keyword: get(value) for keyword, value in regularizers.items()}

    changes = [(target, regularizers[target.keyword]) for target in targets]
    changes = [(target, regularizer) for target, regularizer in changes if _differs(target, regularizer)]
    _check_outputs(nodes, changes)
    for target, regularizer in changes:
        if regularizer is not None:
            _try(target, regularizer)
    with contextlib.ExitStack() as undo:
        for target, regularizer in changes:
            if target.keyword == _ACTIVITY:
                layers.set_activity_regularizer(target.layer, regularizer, undo)
            else:
                layers.set_weight_regularizer(target.layer, target.keyword, target.weight, regularizer, undo)
        owners = {(id(owner), target.keyword): owner for target, _ in changes for owner in target.owners}
        for (_, keyword), owner in owners.items():
            layers.update_config_of_owner(owner, keyword, undo)
        _forget_traces(nodes)
        _earlier.tell((node.path, node.layer) for node in nodes)
        undo.pop_all()
    return [path for target, _ in changes for path in target.paths]


def penalties(model: Any) -> dict[str, tf.Tensor]:
    """Returns the current penalty of each regularized weight of a model.

    The values are what Keras adds to the loss: they sum to `sum(model.losses)` as long as there is neither an activity
    regularizer nor an `add_loss`, which belong to no weight. (A `SampledOrthogonalRegularizer` draws
    afresh at each reading.)

    A custom training loop adds the penalties to the loss itself. Under a strategy each replica computes them and the
    gradients of the replicas are added up, so each takes its share; the loop equals `fit`, on any number of replicas:

    >>> import tensorflow as tf, tf_keras
    >>> model = tf_keras.Sequential([tf_keras.layers.Dense(1, kernel_regularizer="l2", kernel_initializer="ones")])
    >>> model.build((None, 2))
    >>> strategy = tf.distribute.get_strategy()  # or the MirroredStrategy in whose scope the model was made
    >>> optimizer = tf_keras.optimizers.SGD(1.0)
    >>> @tf.function
    ... def step(x, y):
    ...     with tf.GradientTape() as tape:
    ...         errors = tf_keras.losses.mean_squared_error(y, model(x, training=True))
    ...         loss = tf.nn.compute_average_loss(errors)  # over the global batch
    ...         loss += sum(penalties(model).values()) / strategy.num_replicas_in_sync
    ...     gradients = tape.gradient(loss, model.trainable_variables)
    ...     optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    ...     return loss
    >>> losses = strategy.run(step, args=(tf.zeros([4, 2]), tf.zeros([4, 1])))
    >>> print(f"{strategy.reduce('SUM', losses, axis=None):.6f}, then {float(sum(model.losses)):.6f}")
    0.020000, then 0.019208

    A layer that is reused is listed once, under the first of its paths; layers of the same name beside each other
    are told apart by `_1`, `_2` and so on, and so are weights of one layer.

    Args:
        model: A built model of tf_keras, or of Keras 3 (where weights of frozen layers are not penalized).

    Returns:
        A dict, in the order of the layers, from the path of each regularized weight, the names of the layers around it
        and its own, to its penalty, a scalar tensor: a number in eager mode, a part of the graph, with its gradient,
        inside a `tf.function`.

    Warns:
        UserWarning: Once, if a regularizer of tf_keras itself is in the model, from before the import.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built.

    >>> inner = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_initializer="ones", name="dense")], name="block1")
    >>> model = tf_keras.Sequential([inner, tf_keras.layers.Dense(1, name="head")])
    >>> model.build((None, 3))
    >>> set_regularizers(model, kernel_regularizer="l2", where=lambda layer: layer.name == "dense")
    ['block1/dense/kernel']
    >>> {path: round(float(value), 6) for path, value in penalties(model).items()}
    {'block1/dense/kernel': 0.06}
    """
    return _penalties(model)


@tf.autograph.experimental.do_not_convert
def _penalties(model: Any) -> dict[str, tf.Tensor]:
    """The `penalties`, in which AutoGraph has nothing to convert."""
    _check_model(model, versions.model_bases(), "`penalties` is for models of tf_keras or Keras 3")
    values: dict[str, tf.Tensor] = {}
    nodes = _nodes(model)
    _earlier.tell((node.path, node.layer) for node in nodes)
    for node in nodes:
        losses = layers.weight_losses(node.layer, model)
        paths = _paths(node, [variable for variable, _ in losses])
        for path, (_, loss) in zip(paths, losses, strict=True):
            values[path] = values[path] + loss() if path in values else loss()
    return values


def penalized_paths(model: Any) -> list[str | None]:
    """For each of the `losses` of a tf_keras model the path of the weight that it penalizes, None if it does not."""
    found: list[str | None] = []
    for node in _nodes(model):
        variables = layers.penalized_variables(node.layer)
        paths = iter(_paths(node, [variable for variable in variables if variable is not None]))
        found += [None if variable is None else next(paths) for variable in variables]
    return found


def penalties_among(model: Any, losses: list[Any]) -> dict[str, tf.Tensor]:
    """The `penalties` of a tf_keras model, found among its `losses`: a sampled one is not drawn a second time."""
    paths = penalized_paths(model)
    if len(paths) != len(losses):  # a step adds them up, say, or a loss of the user's own was None
        return penalties(model)
    values: dict[str, tf.Tensor] = {}
    for path, loss in zip(paths, losses, strict=True):
        if path is not None:
            values[path] = values[path] + loss if path in values else loss
    return values


class _Node(NamedTuple):
    """A layer, its path, and the layers around it that are not models, by their id."""

    layer: Any
    path: str
    owners: dict[int, Any]


class _Target(NamedTuple):
    """A keyword of a layer: the weight that it regularizes (None for the output), its paths, and the layers around."""

    layer: Any
    keyword: str
    weight: Any
    paths: list[str]
    owners: list[Any]


class Acting(NamedTuple):
    """A regularizer that acts in a layer, the path of what it acts on, the layers around, and whether it is chosen."""

    path: str
    regularizer: Any
    layer: Any
    owners: list[Any]
    chosen: bool


def acting_regularizers(model: Any, where: Any = None) -> list[Acting]:
    """All regularizers that act in a tf_keras model, built or not; None stands for that of a revived layer."""
    nodes = _nodes(model)
    chosen = {id(node.layer) for node in _chosen_nodes(nodes, where)}
    found = []
    for node in nodes:
        pairs = layers.acting_regularizers(node.layer)
        variables = [target for target, _ in pairs if not isinstance(target, str)]
        paths = iter(_paths(node, variables))
        for target, regularizer in pairs:
            path = _join(node.path, target) if isinstance(target, str) else next(paths)
            found.append(Acting(path, regularizer, node.layer, list(node.owners.values()), id(node.layer) in chosen))
    return found


def forget_traces(model: Any) -> None:
    """Let a model and those inside it trace their steps anew."""
    _forget_traces(_nodes(model))


def _forget_traces(nodes):
    for node in nodes:
        if isinstance(node.layer, tf_keras.Model):
            training.forget_traces(node.layer)


def check_where(where: Any) -> None:
    """Raise ValueError unless it is a function that may be asked about a layer, or None."""
    is_layer = isinstance(where, tf_keras.layers.Layer)
    if where is not None and (not callable(where) or inspect.isclass(where) or is_layer):
        such_as = f"layer.name == {where.name!r}" if is_layer else "isinstance(layer, Dense)"
        raise invalid("where", f"a function of a layer, such as `lambda layer: {such_as}`, or None", where)


def _chosen_nodes(nodes, where):
    """The layers for which `where` passes, or for a layer around them."""
    passes = {id(node.layer): where is None or bool(where(node.layer)) for node in nodes}
    return [node for node in nodes if passes[id(node.layer)] or any(passes[owner] for owner in node.owners)]


def _check_model(model, bases, purpose):
    if not isinstance(model, bases):
        kind = type(model)
        raise TypeError(
            f"{purpose}. Received: {shown(model)} of type {kind.__module__}.{kind.__qualname__}"
            f"{versions.instead_of_keras3(model)}"
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} has no weights yet. Call `model.build(input_shape)` or the model on data first."
        )


def _nodes(model):
    """The model and all layers inside it, each once, in the order in which Keras collects their losses."""
    nodes = {id(model): _Node(model, "", {})}
    taken = set()

    def visit(parent):
        owners = parent.owners
        if not isinstance(parent.layer, versions.model_bases()):
            owners = {**owners, id(parent.layer): parent.layer}
        for layer in layers.sublayers(parent.layer):
            known = nodes.get(id(layer))
            if known is None:
                nodes[id(layer)] = known = _Node(layer, unique(_join(parent.path, layer.name), taken), {})
            elif owners.keys() <= known.owners.keys():
                continue
            known.owners.update(owners)
            visit(known)

    visit(nodes[id(model)])
    return list(nodes.values())


def _paths(node, variables):
    """The paths of some weights of a layer, told apart among all its own."""
    taken = set()
    weights = layers.own_weights(node.layer) if variables else []
    paths = {id(variable): unique(_join(node.path, _own_name(variable)), taken) for variable in weights}
    return [paths.get(id(variable)) or _join(node.path, _own_name(variable)) for variable in variables]


def _own_name(variable):
    """The last part of a variable's name, and which part of it a shard is: "kernel", "kernel/part_0"."""
    return re.search(r"[^/:]+(/part_\d+)?(?=(:\d+)?$)", variable.name).group()


def _join(path, name):
    return f"{path}/{name}" if path else name


def unique(path, taken):
    """The path, or the first of path_1, path_2, … that is not taken; takes it."""
    candidates = itertools.chain([path], (f"{path}_{number}" for number in itertools.count(1)))
    unique = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(unique)
    return unique


def _chosen_targets(model, nodes, where, keywords):
    """What each keyword means on the layers that `where` chooses; ValueError if one means nothing."""
    chosen = _chosen_nodes(nodes, where)
    targets = []
    for keyword in keywords:
        found = _targets(chosen, keyword)
        if not found:
            raise ValueError(_no_match(model, keyword, where, nodes, chosen))
        targets += found
    return targets


def _targets(nodes, keyword):
    """What a keyword means on each of the layers that have it."""
    targets = []
    for node in nodes:
        layer, owners = node.layer, list(node.owners.values())
        if keyword == _ACTIVITY:
            if layers.takes_activity_regularizer(layer):
                targets.append(_Target(layer, keyword, None, [_join(node.path, "activity")], owners))
        elif not layer.built and keyword in layers.keywords(layer):
            raise ValueError(
                f"The layer {node.path!r} has no weights yet, so its `{keyword}` cannot be set in place. Call the "
                "model on data first, or leave the layer out by `where`."
            )
        elif weight := layers.regularized_weight(layer, keyword):
            targets.append(_Target(layer, keyword, weight, _paths(node, weight), owners))
    return targets


def _differs(target, regularizer):
    """Whether there is something to do: all but removing what is not there."""
    attribute = getattr(target.layer, target.keyword, None)
    if regularizer is not None or attribute is not None or layers.tracks(target.layer, target.keyword):
        return True
    if target.keyword == _ACTIVITY:
        return bool(layers.activity_losses(target.layer))
    penalized = {id(variable) for variable, _ in layers.weight_losses(target.layer)}
    return any(id(variable) in penalized for variable in target.weight)


def _check_outputs(nodes, changes):
    """Raise ValueError where the penalty of an output is part of a graph that is not made again."""
    revived = layers.revived_around([node.layer for node in nodes])
    for target, regularizer in changes:
        if target.keyword != _ACTIVITY:
            continue
        refused = f"The `{_ACTIVITY}` of {target.paths[0]!r} cannot be"
        if id(target.layer) in revived:
            layer = revived[id(target.layer)]
            raise ValueError(
                f"{refused} changed: without the class {type(layer).__name__!r} of the layer {layer.name!r}, Keras has "
                "revived it from the graphs of a SavedModel. Pass the class to `load_model` in `custom_objects`, or "
                "leave the layer out by `where`."
            )
        if regularizer is not None and not tf.compat.v1.executing_eagerly_outside_functions():
            raise ValueError(
                f"{refused} set in a TensorFlow 1 graph, which has the outputs already. Give it to the layer at "
                "construction."
            )


def _try(target, regularizer):
    """Raise ValueError unless the regularizer gives a scalar on what it is meant for, as far as that is known."""
    tensors = target.weight if target.weight is not None else layers.sample_outputs(target.layer)
    for path, tensor in zip(itertools.cycle(target.paths), tensors):
        place = f"{shown(regularizer)} cannot be the `{target.keyword}` of {path!r}, of shape {tensor.shape}"
        try:
            value = regularizer(tensor)
            value = value if tf.is_tensor(value) else tf.convert_to_tensor(value, tf_keras.backend.floatx())
        except Exception as error:
            raise ValueError(f"{place}: {type(error).__name__}: {error}") from error
        if value.shape.rank != 0 or not value.dtype.is_floating:
            raise ValueError(f"{place}: expected a scalar. Received: shape {value.shape}, dtype {value.dtype.name}")


def _no_match(model, keyword, where, nodes, chosen):
    """The message for a keyword that matched nothing: those that would."""
    if where is None:
        layers, present = "layer", _keywords(nodes)
    elif chosen:
        layers, present = "layer that passes `where`", _keywords(chosen)
    else:
        return f"`where` passes for no layer of the model {model.name!r}, so `{keyword}` would change nothing."
    return (
        f"`{keyword}` would change nothing: no {layers} in the model {model.name!r} regularizes anything by it. "
        f"Expected one of: {', '.join(sorted(present)) or 'none, for there is no weight to regularize'}."
    )


def _keywords(nodes):
    """All keywords that would change something on one of the layers."""
    candidates = {_ACTIVITY}.union(*(layers.keywords(node.layer) for node in nodes))
    return {keyword for keyword in candidates if _targets([node for node in nodes if node.layer.built], keyword)}
