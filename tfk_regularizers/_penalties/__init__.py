"""The penalties, their helpers, and tables of them."""

from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.elementwise import L1, L1L2, L2, l1_l2
from tfk_regularizers._penalties.group_lasso import GroupLasso
from tfk_regularizers._penalties.orthogonal import OrthogonalRegularizer
from tfk_regularizers._penalties.sampled_orthogonal import SampledOrthogonalRegularizer
from tfk_regularizers._penalties.soft_orthogonal import SoftOrthogonalRegularizer
from tfk_regularizers._penalties.sums import Sum

KERAS_PENALTIES: tuple[type[Penalty], ...] = (L1, L2, L1L2, OrthogonalRegularizer)  # Keras has them too
NEW_PENALTIES = (SampledOrthogonalRegularizer, SoftOrthogonalRegularizer, GroupLasso, Sum)
SHORT_NAMES = {"l1": L1, "l2": L2, "l1_l2": l1_l2, "orthogonal_regularizer": OrthogonalRegularizer}
