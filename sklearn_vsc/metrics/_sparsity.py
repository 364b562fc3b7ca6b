"""How sparse codes are, and whether draws agree on their supports."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from .._rows.array_api import to_host
from .._rows.arrays import row_slices, rows_at_once
from .._rows.numbers import check_number
from ._checks import check_table


def hoyer_sparsity(codes: ArrayLike) -> float:
    """Hoyer sparsity of codes, averaged over rows.

    For each row z of length K, ``(sqrt(K) - |z|_1 / |z|_2) / (sqrt(K) - 1)``: 0 if all entries have
    the same absolute value, 1 if only one is non-zero, whatever the unit.

    Parameters
    ----------
    codes : array-like of shape (n_samples, n_components)
        Codes with at least two components. The measure is undefined for rows of zeros, which are
        left out of the mean.

    Returns
    -------
    sparsity : float
        Between 0 and 1; NaN if all rows are zero.

    References
    ----------
    Hoyer, P. (2004). Non-negative matrix factorization with sparseness constraints. Journal of
    Machine Learning Research.

    Examples
    --------
    >>> from sklearn_vsc.metrics import hoyer_sparsity
    >>> hoyer_sparsity([[0.0, -3.0, 0.0, 0.0], [1.0, 1.0, -1.0, 1.0]])
    0.5
    """
    codes = check_table(codes, "codes", ensure_min_features=2)
    size = np.abs(codes)
    # Squares of tiny entries would underflow.
    largest = size.max(axis=1, keepdims=True)
    used = largest[:, 0] > 0
    if not used.any():
        return float("nan")
    size = size[used] / largest[used]
    root = math.sqrt(codes.shape[1])
    return float(np.mean((root - size.sum(1) / np.linalg.norm(size, axis=1)) / (root - 1)))


def support_consistency(
    draws: ArrayLike, *, components: ArrayLike | None = None, min_norm: float = 0.1
) -> float:
    """Agreement of draws on which codes are non-zero: the mean Jaccard index of their supports.

    For each row and each pair of draws, the index is the number of codes that are on in both,
    divided by the number that are on in at least one; it is 1 if no code is on. The mean is over
    pairs, each counted once, and over rows.

    Parameters
    ----------
    draws : array-like of shape (n_draws, n_samples, n_components)
        At least two draws of the codes of the same rows, as ``sample_posterior`` returns them, with
        exact zeros. Codes from several fits can serve as draws if their atoms are in the same
        order.

    components : array-like of shape (n_components, n_features), default=None
        Atoms. If given, codes of atoms with a norm of at most `min_norm` are left out, since it
        does not matter whether an atom of norm zero is on or off.

    min_norm : float, default=0.1
        Norm that an atom must exceed to count, in units of X; unused without `components`.

    Returns
    -------
    consistency : float
        Between 0 and 1. Supports that are drawn independently do not give 0: if each code is on
        with probability p, independently of the others, the result is about p / (2 - p).

    Raises
    ------
    ValueError
        If there are fewer than two draws, or no atom exceeds that norm.

    References
    ----------
    Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned Thresholding.
    International Conference on Machine Learning.

    Examples
    --------
    >>> from sklearn_vsc.metrics import support_consistency
    >>> support_consistency([[[1.0, 2.0, 0.0]], [[3.0, 0.0, 0.0]]])
    0.5
    """
    draws = check_array(to_host(draws), dtype=None, allow_nd=True, input_name="draws")
    if draws.ndim != 3 or len(draws) < 2:
        raise ValueError(
            "draws must have shape (n_draws, n_samples, n_components) with at least two draws; "
            f"got an array of shape {draws.shape}."
        )
    active = draws != 0
    if components is not None:
        active = active[:, :, _long_atoms(components, active.shape[2], min_norm)]
    n_draws, n_rows, n_codes = active.shape
    first, second = np.triu_indices(n_draws, 1)
    total = 0.0
    for rows in row_slices(n_rows, rows_at_once(n_draws * max(n_codes, n_draws))):
        supports = active[:, rows].swapaxes(0, 1).astype(np.float32)
        both = (supports @ supports.swapaxes(1, 2))[:, first, second]
        sizes = supports.sum(2)
        either = sizes[:, first] + sizes[:, second] - both
        total += float(np.divide(both, either, out=np.ones_like(both), where=either > 0).sum())
    return total / (n_rows * len(first))


def _long_atoms(components: ArrayLike, n_codes: int, min_norm: float) -> NDArray:
    """Return which atoms are long enough to count."""
    check_number(min_norm, "min_norm")
    components = check_table(components, "components")
    if len(components) != n_codes:
        raise ValueError(
            f"components must have a row for each of the {n_codes} codes; got {len(components)}."
        )
    norms = np.linalg.norm(components, axis=1)
    long = norms > min_norm
    if not long.any():
        raise ValueError(
            f"No atom is longer than min_norm={min_norm:g}; the longest has norm "
            f"{norms.max():.3g}. Lower 'min_norm'."
        )
    return long
