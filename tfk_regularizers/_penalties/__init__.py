"""The penalties: their mathematics and their classes, a room for each, and the table of them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.elementwise import L1, L1L2, L2, l1_l2
from tfk_regularizers._penalties.group_lasso import GroupLasso
from tfk_regularizers._penalties.orthogonal import OrthogonalRegularizer
from tfk_regularizers._penalties.sampled_orthogonal import SampledOrthogonalRegularizer
from tfk_regularizers._penalties.soft_orthogonal import SoftOrthogonalRegularizer
from tfk_regularizers._penalties.sums import Sum


class Entry(NamedTuple):
    """A penalty, the strings that stand for one, and whether tf_keras has it too and opens its files."""

    cls: type[Penalty]
    identifiers: dict[str, Callable[[], Any]]
    in_keras: bool = False


PENALTIES = (
    Entry(L1, {"l1": L1, "L1": L1}, in_keras=True),
    Entry(L2, {"l2": L2, "L2": L2}, in_keras=True),
    Entry(L1L2, {"l1_l2": l1_l2, "L1L2": L1L2}, in_keras=True),
    Entry(
        OrthogonalRegularizer,
        {"orthogonal_regularizer": OrthogonalRegularizer, "OrthogonalRegularizer": OrthogonalRegularizer},
        in_keras=True,
    ),
    Entry(SampledOrthogonalRegularizer, {"SampledOrthogonalRegularizer": SampledOrthogonalRegularizer}),
    Entry(SoftOrthogonalRegularizer, {"SoftOrthogonalRegularizer": SoftOrthogonalRegularizer}),
    Entry(GroupLasso, {"GroupLasso": GroupLasso}),
    Entry(Sum, {}),  # no string can say of what
)
