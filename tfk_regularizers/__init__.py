"""Replaces Keras's weight regularizers on TensorFlow with more accurate and faster ones, and adds new ones.

Importing this package replaces the built-in regularizers of `tf_keras` (Keras 2) and of `tf.keras` (Keras 3.12 or
later). Strings, class names and saved models then give the classes below:

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

Import it before you create layers or import a class by its name: those keep the built-in classes. `register` says what
an older Keras 3, another backend and `TF_USE_LEGACY_KERAS=1` change.

Classes that Keras also has give the same values up to rounding, with these differences. float16 and bfloat16 are summed
in float32, and the result is float32 (or `keras.config.floatx()` if that is a half type, because Keras 3 can add no
other type to it). Large sums are accurate under XLA. `L1`, `L2` and `L1L2` accept complex and ragged tensors.
`OrthogonalRegularizer` accepts kernels with more than two axes, single rows and unknown shapes, and its memory is
linear in the number of rows. Factors stay Python floats, and can be variables.

Penalties (the first four are also in Keras):

- `L1`: l1 · Σ|x|, for sparse weights.
- `L2`: l2 · Σx², for small weights.
- `L1L2`: the sum of both. `l1_l2` makes one with factors of 0.01.
- `OrthogonalRegularizer`: the mean absolute cosine between rows or columns.
- `SampledOrthogonalRegularizer`: the same for a random sample of rows, for huge kernels.
- `SoftOrthogonalRegularizer`: ‖x xᵀ - I‖², which also pulls norms to 1.
- `GroupLasso`: the norms of columns or rows, to prune whole units.
- `Sum`: several penalties on one weight, as in `L2(0.1) + GroupLasso(0.01)`.

Functions for whole models:

- `summary`: prints a table of a model's regularizers and penalties.
- `set_regularizers`: sets, replaces or removes the regularizers of a built model.
- `penalties`: returns the penalty of each weight.
- `log_penalties`: logs the data loss and the penalty separately.
- `RegularizationScheduler`: a callback that changes a factor during training.

Strings and configs, as in `tf_keras.regularizers`:

- `get`, `serialize`, `deserialize`: from strings and configs to regularizers, and back.

For penalties of your own:

- `Penalty`: a base class with checked arguments, variable factors, configs and sums.
- `Factor`, `Argument`: declare the arguments of a `Penalty`.

Registration:

- `register`: replaces Keras's regularizers. Importing the package calls it.
- `unregister`: restores them.

The names `l1`, `l2`, `orthogonal_regularizer` and `Regularizer` are here too, as in `tf_keras.regularizers`.
"""

from tf_keras.regularizers import Regularizer as Regularizer

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

# In the order of the reference. The aliases `l1`, `l2`, `orthogonal_regularizer` and tf_keras's `Regularizer` are left
# out, because `help` and the reference would repeat their text.
__all__ = [  # noqa: RUF022
    "L1",
    "L2",
    "L1L2",
    "l1_l2",
    "OrthogonalRegularizer",
    "SampledOrthogonalRegularizer",
    "SoftOrthogonalRegularizer",
    "GroupLasso",
    "Sum",
    "summary",
    "set_regularizers",
    "penalties",
    "log_penalties",
    "RegularizationScheduler",
    "get",
    "serialize",
    "deserialize",
    "Penalty",
    "Factor",
    "Argument",
    "register",
    "unregister",
]

for _name in __all__:  # keep private modules out of files and pickles
    if globals()[_name].__module__.startswith(f"{__name__}."):
        globals()[_name].__module__ = __name__
del _name

register()
