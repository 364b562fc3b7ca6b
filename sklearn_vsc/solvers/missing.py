"""Rows with missing entries, which are NaN, and their reconstruction from codes."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from .sparse_rows import SparseRows

# Without ``fastmath``, which assumes that there is no NaN.
_compiled: Any = njit(cache=True, nogil=True, error_model="numpy")


def observed(x: Tensor) -> Tensor | None:
    """Return a bool mask of the observed entries, or None if every entry is observed."""
    # A sum is much cheaper than a mask and detects NaN just as well.
    return ~x.isnan() if x.sum().isnan() else None


def n_observed(x: Tensor) -> Tensor | int:
    """Return the number of observed entries per row: shape (n,), or an int if none is missing."""
    mask = observed(x)
    return x.shape[-1] if mask is None else mask.sum(-1)


def rows_with_missing(X: Tensor | SparseRows) -> Tensor:
    """Return which rows have missing entries, without a temporary array of the size of X."""
    return X.amax(1).isnan()


def mean_filled(X: Tensor | SparseRows) -> Tensor | SparseRows:
    """Return X with missing entries filled with the mean of their column."""
    if isinstance(X, SparseRows):
        return X.mean_filled()
    return torch.where(X.isnan(), X.nanmean(0).nan_to_num(), X)


def natural_reach(X: Tensor | SparseRows) -> float:
    """Return the ``reach`` for ``fill_missing`` that makes up for the missing entries of X.

    It is one over the observed share of a column, where the share is averaged over all observed
    entries.
    """
    counts = X.n_observed() if isinstance(X, SparseRows) else (~X.isnan()).sum(0)
    n_observed = counts.cpu().double()
    return float(len(X) * n_observed.sum() / n_observed.square().sum())


def observed_residual(X: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    """Return X - U V, with zeros where X is missing."""
    residual = torch.addmm(X, codes, dictionary, alpha=-1)
    missing = X.isnan()
    # The mask comes from X, since overflow can produce NaN in the residual too.
    return residual.masked_fill_(missing, 0) if missing.any() else residual


def fill_missing(X: Tensor, codes: Tensor, dictionary: Tensor, reach: float = 1.0) -> Tensor:
    """Return X with missing entries filled by their reconstruction; X itself if none is missing.

    For any dictionary, the squared distance to the filled rows is at least the squared distance
    to the observed entries, with equality at this dictionary: lowering the former also lowers the
    latter.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows; missing entries are NaN.
    codes : Tensor of shape (n_rows, n_components)
        Their codes.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    reach : float, default=1
        Factor on the residual of the observed entries. Missing entries shorten the steps of the
        dictionary by the observed share; a factor above one lengthens them again.

    Returns
    -------
    filled : Tensor of shape (n_rows, n_features)
    """
    missing = X.isnan()
    if not missing.any():
        return X
    if X.device.type == "cpu":
        filled = torch.empty_like(X, memory_format=torch.contiguous_format)
        arrays = (tensor.contiguous().numpy() for tensor in (X, codes, dictionary, filled))
        _fill_missing(*arrays, X.new_tensor(reach - 1).numpy()[()])
        return filled
    reconstruction = codes @ dictionary
    filled = torch.where(missing, reconstruction, X)
    return filled if reach == 1 else torch.lerp(reconstruction, filled, reach)


@_compiled
def _fill_missing(X, codes, dictionary, filled, beyond):  # type: ignore[no-untyped-def]
    for i in range(len(X)):
        x, row = X[i], filled[i]
        row[:] = 0
        for k in range(len(dictionary)):
            code, atom = codes[i, k], dictionary[k]
            if code != 0:
                for j in range(len(row)):
                    row[j] += code * atom[j]
        for j in range(len(row)):
            # Only NaN differs from itself.
            if x[j] == x[j]:
                row[j] = x[j] + beyond * (x[j] - row[j])
