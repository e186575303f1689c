"""Drop-in regularizers for tf_keras: `import tfk_regularizers`, and every weight regularizer is one of these."""

from tf_keras.regularizers import Regularizer

from tfk_regularizers._callbacks import PenaltyLogger
from tfk_regularizers._earlier import tell_at_import as _tell_at_import
from tfk_regularizers._identifiers import deserialize, get, serialize
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
from tfk_regularizers._registration import register, unregister

l1 = L1
l2 = L2
orthogonal_regularizer = OrthogonalRegularizer

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "GroupLasso",
    "OrthogonalRegularizer",
    "Penalty",
    "PenaltyLogger",
    "Regularizer",
    "SampledOrthogonalRegularizer",
    "SoftOrthogonalRegularizer",
    "Sum",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "penalties",
    "register",
    "serialize",
    "set_regularizers",
    "unregister",
]

for _name in __all__:  # no private module's name in files and pickles
    if globals()[_name].__module__.startswith(f"{__name__}."):
        globals()[_name].__module__ = __name__

register()
_tell_at_import()
