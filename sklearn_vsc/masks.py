"""Which entries of rows are observed: NaN marks what is missing."""

from __future__ import annotations

from torch import Tensor


def observed(x: Tensor) -> Tensor | None:
    """Return where rows are observed, a bool Tensor like them, or None where they all are."""
    # A sum is much cheaper than a mask, and finds NaN as well.
    return ~x.isnan() if x.sum().isnan() else None


def n_observed(x: Tensor) -> Tensor | int:
    """Return the number of observed entries: of each row (n,), or one number for all."""
    mask = observed(x)
    return x.shape[-1] if mask is None else mask.sum(-1)
