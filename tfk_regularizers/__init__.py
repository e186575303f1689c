"""Drop-in regularizers for Keras on TensorFlow: import this, and every weight regularizer is one of these.

Import it first. From then on the regularizers of `tf_keras` (Keras 2) and of `tf.keras` (Keras 3) are those of this
package, by string, by class and in files:

>>> import tfk_regularizers as tfk
>>> import tensorflow as tf
>>> layer = tf.keras.layers.Dense(3, kernel_regularizer="l2", kernel_initializer="ones")
>>> head = tf.keras.layers.Dense(1, kernel_regularizer=tfk.L1(0.1) + tfk.L2(0.01), kernel_initializer="ones")
>>> model = tf.keras.Sequential([layer, head])
>>> model.build((None, 4))
>>> layer.kernel_regularizer, head.kernel_regularizer
(L2(l2=0.01), L1L2(l1=0.1, l2=0.01))
>>> [round(float(penalty), 4) for penalty in tfk.penalties(model).values()]
[0.12, 0.33]

`tf.keras` is the same as `keras`. It has to be Keras 3.12 or later, on its TensorFlow backend. An older Keras 3, and
one beside tf_keras under `TF_USE_LEGACY_KERAS=1`, keep their own regularizers; instances of these classes work there.

Penalties, of which Keras has the first four too:

- `L1`: l1 * Σ|x|, towards few weights. Also `l1`.
- `L2`: l2 * Σx², towards small weights. Also `l2`.
- `L1L2`: both; `l1_l2` makes one with factors of 0.01.
- `OrthogonalRegularizer`: the mean absolute cosine between rows or columns. Also `orthogonal_regularizer`.
- `SampledOrthogonalRegularizer`: the same over a fresh sample, for tables of millions of rows.
- `SoftOrthogonalRegularizer`: ‖x xᵀ - I‖², which takes lengths to 1 as well.
- `GroupLasso`: the lengths of columns or rows, which takes whole units to zero.
- `Sum`: several penalties on one weight, as `L2(0.1) + GroupLasso(0.01)` gives it.

What acts on a model of either Keras:

- `summary`: prints a table of a model's regularizers and their penalties.
- `set_regularizers`: sets, replaces or removes regularizers of a built model.
- `penalties`: the penalty of each weight, by its path.
- `log_penalties`: logs the data loss and the penalty beside the loss.
- `RegularizationScheduler`: a callback that lets a factor follow a schedule.

Names and configs, as in tf_keras.regularizers:

- `get`, `serialize`, `deserialize`: from strings and configs to regularizers, and back.

For a penalty of your own:

- `Penalty`: a base class with checked factors, variables as factors, configs and sums.
- `Factor`, `Argument`: declare the arguments of a `Penalty`.
- `Regularizer`: the plain base class of tf_keras. Keras 3 has one of its own, which works in its models.

In the place of Keras's own:

- `register`, which the import has called; `register(keras3=False)` leaves Keras 3 its own; `unregister` undoes both.
"""

from tf_keras.regularizers import Regularizer

from tfk_regularizers._identifiers import deserialize, get, serialize
from tfk_regularizers._log_penalties import PenaltyLogger as PenaltyLogger
from tfk_regularizers._log_penalties import log_penalties
from tfk_regularizers._models import penalties, set_regularizers
from tfk_regularizers._penalties import (
    L1,
    L1L2,
    L2,
    GroupLasso,
    OrthogonalRegularizer,
    Penalty,
    SampledOrthogonalRegularizer,
    SoftOrthogonalRegularizer,
    Sum,
    l1_l2,
)
from tfk_regularizers._penalties.arguments import Argument, Factor
from tfk_regularizers._registration import register, unregister
from tfk_regularizers._scheduler import RegularizationScheduler
from tfk_regularizers._summary import summary

l1 = L1
l2 = L2
orthogonal_regularizer = OrthogonalRegularizer

__version__ = "0.4.0"

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "Argument",
    "Factor",
    "GroupLasso",
    "OrthogonalRegularizer",
    "Penalty",
    "RegularizationScheduler",
    "Regularizer",
    "SampledOrthogonalRegularizer",
    "SoftOrthogonalRegularizer",
    "Sum",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "log_penalties",
    "orthogonal_regularizer",
    "penalties",
    "register",
    "serialize",
    "set_regularizers",
    "summary",
    "unregister",
]

for _name in __all__:  # no private module's name in files and pickles
    if globals()[_name].__module__.startswith(f"{__name__}."):
        globals()[_name].__module__ = __name__
del _name

register()
