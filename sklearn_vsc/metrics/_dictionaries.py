"""Dictionaries: what codes stand for, whether known atoms were found, how alike atoms are."""

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
    """Linear dictionary that decodes codes best, by least squares.

    The A that makes ``||X - codes A||`` least, of all such the shortest: what each code stands
    for in rows, where the decoder is a network [1]_. Without an intercept and uncentred, as
    published [2]_: subtract the mean of X first where it is not part of what codes explain.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows. NaN is a missing entry, which counts in no sum of squares.

    codes : array-like or sparse matrix of shape (n_samples, n_components)
        Their codes.

    Returns
    -------
    dictionary : ndarray of shape (n_components, n_features)
        The dictionary, float64; zeros, to rounding, for codes that are never used.

    See Also
    --------
    attribute_correlation : What codes tell of labels.

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
    # Copies: torch does not know of read-only memory.
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
        Mean over the true atoms of the absolute cosine with their match; zero for those that
        have none.
    cosines : ndarray of shape (n_true,)
        The absolute cosine of each true atom.
    matches : ndarray of shape (n_true,)
        The row of `components` that each true atom is matched with, -1 where there is none left.
    """

    recovered: float
    mean_cosine: float
    cosines: NDArray = field(repr=False)
    matches: NDArray = field(repr=False)


def atom_recovery(
    components: ArrayLike, true_components: ArrayLike, *, threshold: float = 0.99
) -> AtomRecovery:
    """Match learned atoms with the true ones, and say how well these were found.

    Each true atom is given one learned atom and no two the same, such that the sum of absolute
    cosines is highest (the Hungarian method). Order, sign and length of atoms do not count.

    Parameters
    ----------
    components : array-like of shape (n_components, n_features)
        Learned atoms. More of them than true ones make high cosines easier.

    true_components : array-like of shape (n_true, n_features)
        The atoms that made the data.

    threshold : float, default=0.99
        Absolute cosine from which a true atom counts as found.

    Returns
    -------
    recovery : AtomRecovery
        With ``recovered``, the share that was found, ``mean_cosine``, and for each true atom its
        ``cosines`` and ``matches``.

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
    """Mutual coherence of a dictionary: the largest absolute cosine of two different atoms.

    Parameters
    ----------
    components : array-like of shape (n_components, n_features)
        Two atoms or more. Atoms of length zero are alike to none.

    Returns
    -------
    coherence : float
        Between 0, for orthogonal atoms, and 1, for two in one direction. K atoms in D < K
        dimensions have at least ``sqrt((K - D) / (D (K - 1)))``, the bound of Welch. A code with
        fewer than ``(1 + 1 / coherence) / 2`` entries that are not zero is the sparsest one of
        its row, and the lasso can find it.

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
    """Rows of unit norm; those of zeros stay so."""
    # Squares of tiny entries would be zero.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
