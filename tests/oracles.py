"""The expected values: the penalties in float64 NumPy. This module never imports the package or TensorFlow."""

import numpy as np


def l1(x, factor):
    """Value and gradient."""
    return factor * np.abs(x).sum(), factor * (x / np.where(x == 0, 1, np.abs(x)))


def l2(x, factor):
    """Value and gradient."""
    return factor * (np.abs(x) ** 2).sum(), 2 * factor * x


def l1_l2(x, first, second):
    """Value and gradient."""
    return tuple(a + b for a, b in zip(l1(x, first), l2(x, second), strict=True))


def orthogonal(x, factor, mode):
    """Value and gradient, by the whole Gram matrix."""
    if mode == "columns":
        value, gradient = orthogonal(x.T, factor, "rows")
        return value, gradient.T
    n = len(x)
    squares = (x**2).sum(1, keepdims=True)
    inverse = 1 / np.sqrt(np.maximum(squares, 1e-12))
    u = x * inverse
    gram = u @ u.T
    np.fill_diagonal(gram, 0)
    scale = factor / max(n * (n - 1), 1)
    by_u = 2 * scale * np.sign(gram) @ u
    through_length = np.where(squares >= 1e-12, u * (u * by_u).sum(1, keepdims=True), 0)
    return scale * np.abs(gram).sum(), inverse * (by_u - through_length)


def soft_orthogonal(x, factor, mode, diagonal):
    """Value and gradient, by the whole Gram matrix."""
    if mode == "columns":
        value, gradient = soft_orthogonal(x.T, factor, "rows", diagonal)
        return value, gradient.T
    difference = x @ x.T
    np.fill_diagonal(difference, np.diag(difference) - 1 if diagonal else 0)
    return factor * (difference**2).sum(), 4 * factor * difference @ x


def group_lasso(x, factor, mode):
    """Value and gradient."""
    axis = 0 if mode == "columns" else 1
    factor *= np.sqrt(x.shape[axis])
    lengths = np.sqrt((x**2).sum(axis, keepdims=True))
    return factor * lengths.sum(), factor * x / np.where(lengths == 0, 1, lengths)


PENALTIES = {
    "l1": (lambda regularizers: regularizers.L1(0.3), lambda x: l1(x, 0.3)),
    "l2": (lambda regularizers: regularizers.L2(0.3), lambda x: l2(x, 0.3)),
    "l1_l2": (lambda regularizers: regularizers.L1L2(0.3, 0.7), lambda x: l1_l2(x, 0.3, 0.7)),
    "rows": (
        lambda regularizers: regularizers.OrthogonalRegularizer(0.3),
        lambda x: orthogonal(x, 0.3, "rows"),
    ),
    "columns": (
        lambda regularizers: regularizers.OrthogonalRegularizer(0.3, "columns"),
        lambda x: orthogonal(x, 0.3, "columns"),
    ),
    # These are of fourth order: with a larger factor, the training in some tests would diverge.
    "soft rows": (
        lambda regularizers: regularizers.SoftOrthogonalRegularizer(1e-4),
        lambda x: soft_orthogonal(x, 1e-4, "rows", True),
    ),
    "soft columns, lengths free": (
        lambda regularizers: regularizers.SoftOrthogonalRegularizer(1e-4, "columns", diagonal=False),
        lambda x: soft_orthogonal(x, 1e-4, "columns", False),
    ),
    "group columns": (
        lambda regularizers: regularizers.GroupLasso(0.3),
        lambda x: group_lasso(x, 0.3, "columns"),
    ),
    "group rows": (
        lambda regularizers: regularizers.GroupLasso(0.3, "rows"),
        lambda x: group_lasso(x, 0.3, "rows"),
    ),
}
