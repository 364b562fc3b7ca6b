"""Codes without information: posteriors equal to the prior, and codes that are always zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._rows.array_api import on_host, to_host
from .._rows.numbers import check_number
from ._checks import check_estimator, check_table


def posterior_collapse(
    estimator: Any, X: ArrayLike, kl_tol: float = 1e-2, share: float = 0.95
) -> float:
    """Share of the codes whose posterior equals the prior, whatever the row (posterior collapse).

    A code has collapsed if the Kullback-Leibler divergence of its posterior from its prior is at
    most `kl_tol` for at least `share` of the rows: it carries no information about them.

    Parameters
    ----------
    estimator : estimator instance
        A fitted estimator of this package. The posterior is the one that its ``score`` uses,
        refined by ``n_refine`` sweeps if the estimator has that parameter; for
        :class:`~sklearn_vsc.FISTADictionaryLearner` it is the Laplace distribution around the
        lasso code.

    X : array-like of shape (n_samples, n_features)
        Rows; missing entries are NaN.

    kl_tol : float, default=1e-2
        Divergence, in nats, up to which a posterior counts as equal to the prior.

    share : float, default=0.95
        Share of the rows for which the posterior must equal the prior.

    Returns
    -------
    collapsed : float
        Share of the codes, between 0 and 1. Codes are the columns of ``transform``: for grids of
        :class:`~sklearn_vsc.SCVAE`, each atom at each position counts as one.

    Raises
    ------
    TypeError
        If the estimator does not belong to this package.

    See Also
    --------
    feature_collapse : Share of the codes that are zero.

    Notes
    -----
    A posterior from a different family than its prior can never equal it, so `kl_tol` must then be
    above the smallest possible divergence. This is 0.048 nats for a Gaussian posterior with a
    Laplace prior, the default of :class:`~sklearn_vsc.SparseVAE` (use 0.06, for example), 0.072
    for a Laplace posterior with a Gaussian prior, and, with a Cauchy prior, 0.183 for a Gaussian
    and 0.086 for a Laplace posterior.

    A divergence without a closed form is estimated from ``score_draws`` seeded draws per row and
    may by chance fall below zero. This is the case for a Gaussian base with Gamma thresholds, and
    for a Cauchy prior with a non-Cauchy posterior. More draws make the estimate more precise.

    References
    ----------
    Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned Thresholding.
    International Conference on Machine Learning.

    Examples
    --------
    >>> from sklearn_vsc import SparseVAE
    >>> from sklearn_vsc.datasets import make_sparse_coded
    >>> from sklearn_vsc.metrics import posterior_collapse
    >>> X, _, _ = make_sparse_coded(300, 8, 8, noise=0.1, random_state=0)
    >>> model = SparseVAE(8, prior="gaussian", kl_weight=100, max_iter=20, random_state=0).fit(X)
    >>> posterior_collapse(model, X)
    1.0
    """
    check_estimator(
        estimator,
        "_code_divergence",
        "posterior_collapse needs a fitted estimator of sklearn_vsc",
    )
    check_number(kl_tol, "kl_tol")
    divergence = on_host(estimator)._code_divergence(to_host(X))
    return _share_of_columns(divergence <= kl_tol, share)


def feature_collapse(codes: ArrayLike, tol: float = 1e-2, share: float = 0.95) -> float:
    """Share of the codes that are zero, whatever the row (feature collapse).

    A code has collapsed if its absolute value is at most `tol` for at least `share` of the rows.
    Very sparse codes count as collapsed too, so choose `share` above the sparsity you expect.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, n_components)
        Codes.

    tol : float, default=1e-2
        Absolute value up to which a code counts as zero, in units of the code.

    share : float, default=0.95
        Share of the rows for which the code must be zero.

    Returns
    -------
    collapsed : float
        Share of the codes, between 0 and 1.

    See Also
    --------
    posterior_collapse : Share of the codes whose posterior equals the prior.

    Examples
    --------
    >>> from sklearn_vsc.metrics import feature_collapse
    >>> feature_collapse([[0.0, 1.0], [0.001, 0.0]])
    0.5
    """
    codes = check_table(codes, "codes")
    check_number(tol, "tol")
    return _share_of_columns(np.abs(codes) <= tol, share)


def _share_of_columns(collapsed: NDArray, share: float) -> float:
    """Return the share of the columns that are true in at least ``share`` of the rows."""
    check_number(share, "share", high=1)
    return float(np.mean(collapsed.mean(axis=0) >= share))
