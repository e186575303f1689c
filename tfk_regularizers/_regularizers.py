"""Where pickles and files of version 0.1 look for the classes."""

from tfk_regularizers._penalties import (  # noqa: F401
    L1,
    L1L2,
    L2,
    OrthogonalRegularizer,
    SampledOrthogonalRegularizer,
    l1_l2,
)
