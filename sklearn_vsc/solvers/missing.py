"""Rows with missing entries, which are NaN, beside the reconstruction of their codes."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

# Without ``fastmath``, which takes it that there is no NaN.
_compiled: Any = njit(cache=True, nogil=True, error_model="numpy")


def observed(x: Tensor) -> Tensor | None:
    """Return where rows are observed, a bool Tensor like them, or None where they all are."""
    # A sum is much cheaper than a mask, and finds NaN as well.
    return ~x.isnan() if x.sum().isnan() else None


def n_observed(x: Tensor) -> Tensor | int:
    """Return the number of observed entries: of each row (n,), or one number for all."""
    mask = observed(x)
    return x.shape[-1] if mask is None else mask.sum(-1)


def rows_with_holes(X: Tensor) -> Tensor:
    """Return which rows have missing entries, without an array of the size of X."""
    return X.amax(1).isnan()


def natural_reach(X: Tensor) -> float:
    """Return the ``reach`` of ``fill_holes`` that makes up for the holes of X.

    It is one over the share of its column that is observed, of an average observed entry.
    """
    n_observed = (~X.isnan()).sum(0).cpu().double()
    return float(len(X) * n_observed.sum() / n_observed.square().sum())


def observed_residual(X: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    """Return X - U V, zero where X is missing."""
    residual = torch.addmm(X, codes, dictionary, alpha=-1)
    holes = X.isnan()
    # Not every NaN of the residual is a hole: overflow makes some too.
    return residual.masked_fill_(holes, 0) if holes.any() else residual


def fill_holes(X: Tensor, codes: Tensor, dictionary: Tensor, reach: float = 1.0) -> Tensor:
    """Return X with what the codes stand for in its holes; X itself where it has none.

    Squared distances to the filled rows are at least those to the observed entries, whatever
    the dictionary, and equal at this one: to lower the former is to lower the latter.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows, NaN where nothing was observed.
    codes : Tensor of shape (n_rows, n_components)
        Their codes.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    reach : float, default=1
        Factor on the residual of what is observed. Above one, the filled rows ask for longer
        steps, which holes otherwise make shorter by the share of what is observed.

    Returns
    -------
    filled : Tensor of shape (n_rows, n_features)
    """
    holes = X.isnan()
    if not holes.any():
        return X
    if X.device.type == "cpu":
        filled = torch.empty_like(X, memory_format=torch.contiguous_format)
        arrays = (tensor.contiguous().numpy() for tensor in (X, codes, dictionary, filled))
        _fill_holes(*arrays, X.new_tensor(reach - 1).numpy()[()])
        return filled
    reconstruction = codes @ dictionary
    filled = torch.where(holes, reconstruction, X)
    return filled if reach == 1 else torch.lerp(reconstruction, filled, reach)


@_compiled
def _fill_holes(X, codes, dictionary, filled, beyond):  # type: ignore[no-untyped-def]
    for i in range(len(X)):
        x, row = X[i], filled[i]
        row[:] = 0
        for k in range(len(dictionary)):
            code, atom = codes[i, k], dictionary[k]
            if code != 0:
                for j in range(len(row)):
                    row[j] += code * atom[j]
        for j in range(len(row)):
            # Only a hole differs from itself.
            if x[j] == x[j]:
                row[j] = x[j] + beyond * (x[j] - row[j])
