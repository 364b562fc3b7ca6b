"""Codes on a support that is given: the largest ones alone, and their least-squares values."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._kernels import compiled
from .._rows import over_rows
from .kernel import Rules, refit_rows

# How much faster a matrix product is than inner products one at a time.
_SPEED_OF_PRODUCTS = 4


def keep_largest(codes: Tensor, n_nonzero: int) -> Tensor:
    """Set all codes of a row to zero but for the largest in absolute value.

    Parameters
    ----------
    codes : Tensor of shape (n_rows, n_components)
        Codes; left as they are.
    n_nonzero : int
        Number of codes that stay; of equal ones, the first.

    Returns
    -------
    codes : Tensor of shape (n_rows, n_components)
    """
    kept = codes.cpu().clone(memory_format=torch.contiguous_format)
    array = kept.numpy()
    over_rows(lambda rows: _keep_largest(array[rows], n_nonzero), len(array))
    return kept.to(codes.device)


def least_squares_codes(
    X: Tensor, dictionary: Tensor, codes: Tensor, *, positive: bool = False
) -> Tensor:
    """Return the codes that fit each row best with the atoms that its codes use.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows; missing entries are NaN, and are left out of the sum of squares.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    codes : Tensor of shape (n_rows, n_components)
        Codes whose non-zero entries say which atoms a row may use.
    positive : bool, default=False
        Whether codes must be non-negative: then the fit is the best with non-negative codes.

    Returns
    -------
    codes : Tensor of shape (n_rows, n_components)
        Least-squares codes, computed in float64. Atoms that depend linearly on others of the same
        row get zero.
    """
    refitted = codes.cpu().clone(memory_format=torch.contiguous_format)
    missing = X.isnan()
    rows = X.masked_fill(missing, 0).cpu().contiguous().numpy()
    seen = (~missing).cpu().contiguous().numpy()
    array, atoms = refitted.numpy(), dictionary.cpu().contiguous().numpy()
    sizes = np.count_nonzero(array, axis=1)
    gram = np.zeros((0, 0))
    if not missing.any() and _worth_sharing(sizes, len(atoms)):
        exact = atoms.astype(np.float64, copy=False)
        gram = exact @ exact.T
    rules = Rules(-1.0, positive, float(np.finfo(np.float64).eps))
    largest = int(sizes.max(initial=0))

    def work(part: slice) -> None:
        refit_rows(atoms, gram, rules, largest, rows[part], seen[part], array[part])

    over_rows(work, len(array))
    return refitted.to(codes.device)


def _worth_sharing(sizes: NDArray, n_components: int) -> bool:
    """Whether the inner products of all atoms are less work than those of each support."""
    if n_components > len(sizes):
        return False
    return _SPEED_OF_PRODUCTS * int(np.sum(sizes**2)) >= n_components**2


@compiled
def _keep_largest(codes, n_nonzero):  # type: ignore[no-untyped-def]
    n_components = codes.shape[1]
    sizes = np.zeros(n_components, codes.dtype)
    for i in range(len(codes)):
        row, size = codes[i], 0
        for k in range(n_components):
            if row[k] != 0:
                sizes[size] = abs(row[k])
                size += 1
        if size <= n_nonzero:
            continue
        least = np.partition(sizes[:size], size - n_nonzero)[size - n_nonzero]
        # Of the codes equal to the smallest that stays, the first ones stay.
        left = n_nonzero
        for k in range(n_components):
            left -= abs(row[k]) > least
        for k in range(n_components):
            if abs(row[k]) == least and left > 0:
                left -= 1
            elif not abs(row[k]) > least:
                row[k] = 0
