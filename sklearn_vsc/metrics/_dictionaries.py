"""Dictionary metrics: effective dictionary, recovery of known atoms, and coherence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from .._rows.numbers import check_number
from ..solvers import least_squares
from ._checks import check_same_rows, check_table


def effective_dictionary(X: ArrayLike, codes: ArrayLike) -> NDArray:
    """Linear dictionary that best decodes the codes in the least-squares sense.

    Returns the A of minimum norm among those that minimise ``||X - codes A||``. It shows what each
    code represents in the rows when the decoder is a network [1]_. The fit is uncentred and
    without intercept, as published [2]_: subtract the mean of X first if the codes are not meant
    to explain it.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows. Missing entries are NaN and are left out of the sum of squares.

    codes : array-like or sparse matrix of shape (n_samples, n_components)
        Their codes.

    Returns
    -------
    dictionary : ndarray of shape (n_components, n_features)
        The dictionary in float64; zero up to rounding for codes that are never used.

    See Also
    --------
    attribute_correlation : Correlation of codes with labels.

    References
    ----------
    .. [1] Isely, G., Hillar, C. and Sommer, F. (2010). Deciphering subsampled data: adaptive
       compressive sampling as a principle of brain communication. Advances in Neural
       Information Processing Systems.
    .. [2] Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned
       Thresholding. International Conference on Machine Learning.

    Examples
    --------
    >>> from sklearn_vsc.metrics import effective_dictionary
    >>> effective_dictionary([[2.0, 4.0], [3.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]])
    array([[1., 2.],
           [3., 0.]])
    """
    X = check_table(X, "X", ensure_all_finite="allow-nan")
    codes = check_table(codes, "codes")
    check_same_rows(X, codes, ("X", "codes"))
    # Copies, because torch does not support read-only memory.
    tensors = (torch.from_numpy(array.copy()) for array in (X, codes))
    return least_squares.effective_dictionary(*tensors).numpy()


@dataclass(frozen=True)
class AtomRecovery:
    """How well known atoms were found.

    Attributes
    ----------
    recovered : float
        Share of the true atoms whose match has an absolute cosine of at least the threshold.
    mean_cosine : float
        Mean over the true atoms of the absolute cosine with their match; zero for atoms without
        a match.
    cosines : ndarray of shape (n_true,)
        Absolute cosine of each true atom with its match.
    matches : ndarray of shape (n_true,)
        Index of the row of `components` matched with each true atom, or -1 without a match.
    """

    recovered: float
    mean_cosine: float
    cosines: NDArray = field(repr=False)
    matches: NDArray = field(repr=False)


def atom_recovery(
    components: ArrayLike, true_components: ArrayLike, *, threshold: float = 0.99
) -> AtomRecovery:
    """Match learned atoms with the true ones and measure how well the true ones were found.

    Each true atom is matched with a different learned atom, such that the sum of absolute cosines
    is largest (the Hungarian method). Order, sign and length of the atoms do not matter.

    Parameters
    ----------
    components : array-like of shape (n_components, n_features)
        Learned atoms. Having more of them than true atoms makes high cosines easier to reach.

    true_components : array-like of shape (n_true, n_features)
        The atoms that generated the data.

    threshold : float, default=0.99
        Absolute cosine at and above which a true atom counts as found.

    Returns
    -------
    recovery : AtomRecovery
        Result with ``recovered``, the share of true atoms that were found, ``mean_cosine``, and,
        for each true atom, its ``cosines`` and ``matches``.

    Examples
    --------
    >>> from sklearn_vsc.metrics import atom_recovery
    >>> atom_recovery([[0.0, -3.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    AtomRecovery(recovered=0.5, mean_cosine=0.853...)
    """
    check_number(threshold, "threshold", high=1)
    components = check_table(components, "components")
    true_components = check_table(true_components, "true_components")
    if components.shape[1] != true_components.shape[1]:
        raise ValueError(
            "components and true_components must have the same number of columns; got "
            f"{components.shape[1]} and {true_components.shape[1]}."
        )
    alike = np.abs(_unit_rows(true_components) @ _unit_rows(components).T)
    found, matched = linear_sum_assignment(alike, maximize=True)
    cosines, matches = np.zeros(len(alike)), np.full(len(alike), -1)
    cosines[found], matches[found] = np.minimum(alike[found, matched], 1), matched
    recovered = float(np.mean(cosines >= threshold))
    return AtomRecovery(recovered, float(cosines.mean()), cosines, matches)


def coherence(components: ArrayLike) -> float:
    """Mutual coherence of a dictionary: the largest absolute cosine between two different atoms.

    Parameters
    ----------
    components : array-like of shape (n_components, n_features)
        At least two atoms. Zero atoms have cosine zero with all others.

    Returns
    -------
    coherence : float
        Between 0, for orthogonal atoms, and 1, if two atoms are parallel. The coherence of K atoms
        in D < K dimensions is at least ``sqrt((K - D) / (D (K - 1)))``, the Welch bound. A code
        with fewer than ``(1 + 1 / coherence) / 2`` non-zero entries is the sparsest code of its
        row, and the lasso can find it.

    References
    ----------
    Donoho, D. and Elad, M. (2003). Optimally sparse representation in general (nonorthogonal)
    dictionaries via l1 minimization. Proceedings of the National Academy of Sciences.

    Examples
    --------
    >>> from sklearn_vsc.metrics import coherence
    >>> coherence([[1.0, 0.0], [0.0, 2.0], [-3.0, 4.0]])
    0.8
    """
    atoms = _unit_rows(check_table(components, "components", ensure_min_samples=2))
    cosines = np.abs(atoms @ atoms.T)
    np.fill_diagonal(cosines, 0)
    return min(1.0, float(cosines.max()))


def _unit_rows(rows: NDArray) -> NDArray:
    """Return the rows scaled to unit norm; rows of zeros stay zero."""
    # Squares of tiny entries would underflow.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
