"""What was made before the import: it keeps the regularizers of tf_keras itself, and that is told once."""

import inspect
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from tfk_regularizers._keras import layers
from tfk_regularizers._registration import replaced, unregister

_LISTED = 5
_told: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id: they may compare as they like


def tell_at_import() -> None:
    """Warn of layers that are there already. Where that is an error, nothing is registered."""
    try:
        tell(((layer.name, layer) for layer in layers.alive()), stacklevel=4)
    except UserWarning:
        unregister()
        raise


def tell(named_layers: Iterable[tuple[str, Any]], stacklevel: int = 3) -> None:
    """Warn of layers that have built-in regularizers, of each of these once; of none while nothing is registered.

    A subclass that computes its penalty itself is meant as it is.
    """
    calls = {builtin.__call__ for builtin in replaced() if inspect.isclass(builtin)}
    found: dict[str, list[str]] = {}
    regularizers = {}
    for path, layer in named_layers if calls else ():
        for keyword, regularizer in layers.own_regularizers(layer).items():
            is_builtin = any(type(regularizer).__call__ is call for call in calls)
            if is_builtin and _told.get(id(regularizer)) is not regularizer:
                found.setdefault(path, []).append(keyword)
                regularizers[id(regularizer)] = regularizer
    if not found:
        return
    listed = [f"{path!r} ({', '.join(keywords)})" for path, keywords in found.items()]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    warnings.warn(
        "Built-in regularizers of tf_keras, from before `import tfk_regularizers`, are still in "
        f"{', '.join(listed[:_LISTED])}{more}. Import tfk_regularizers before the layers are made, and before names "
        "such as L2 are imported from `tf_keras.regularizers`. Or replace them: "
        "`tfk_regularizers.set_regularizers(model, kernel_regularizer=tfk_regularizers.L2(0.01))`.",
        stacklevel=stacklevel,
    )
    _told.update(regularizers)
