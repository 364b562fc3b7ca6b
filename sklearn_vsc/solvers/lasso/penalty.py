"""The range of the penalty of a lasso."""

from __future__ import annotations

from torch import Tensor


def largest_alpha(rows: Tensor, dictionary: Tensor, *, positive: bool) -> float:
    """Return the smallest weight of the l1 norm at which the codes of all rows are zero.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_features)
        Rows; missing entries are NaN, and do not count.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    positive : bool
        Whether codes must be non-negative.
    """
    products = rows.nan_to_num() @ dictionary.T
    return max(0.0, float(products.amax() if positive else products.abs().amax()))
