"""Codes that say nothing: posteriors that are the prior, features that are zero."""

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
    """Share of the codes whose posterior is the prior, whatever the row.

    A code is collapsed where the Kullback-Leibler divergence of its posterior from its prior is at
    most `kl_tol` for at least `share` of the rows: it tells nothing of them.

    Parameters
    ----------
    estimator : estimator instance
        Fitted, of this package. Taken is the posterior that its ``score`` uses, refined by
        ``n_refine`` sweeps where the estimator has them; of
        :class:`~sklearn_vsc.FISTADictionaryLearner` the Laplace law around the lasso code.

    X : array-like of shape (n_samples, n_features)
        Rows; NaN is a missing entry.

    kl_tol : float, default=1e-2
        Divergence, in nats, up to which a posterior counts as the prior.

    share : float, default=0.95
        Share of the rows that must have one.

    Returns
    -------
    collapsed : float
        Share of the codes, between 0 and 1. Codes are the columns of ``transform``: for grids of
        :class:`~sklearn_vsc.SCVAE` each atom at each position.

    Raises
    ------
    TypeError
        When the estimator is not one of this package.

    See Also
    --------
    feature_collapse : Share of the codes that are zero.

    Notes
    -----
    A posterior of another law than its prior is never the prior, and `kl_tol` must be above the
    least divergence that it can have. It is 0.048 nats for a Gaussian posterior under a Laplace
    prior, which is the default of :class:`~sklearn_vsc.SparseVAE` (give 0.06, say), 0.072 the
    other way round, and under a Cauchy prior 0.183 for a Gaussian posterior and 0.086 for a
    Laplace one.

    A divergence that has no closed form is estimated from the ``score_draws`` seeded draws of each
    row, by chance also below zero: with a Gaussian base and Gamma thresholds, and under a Cauchy
    prior with another posterior. More draws make it sharper.

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
    """Share of the codes that are zero, whatever the row.

    A code is collapsed where it is at most `tol` in size for at least `share` of the rows. So is
    one that is sparser than that: give a `share` beyond the sparsity that is meant.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, n_components)
        Codes.

    tol : float, default=1e-2
        Size up to which a code counts as zero, in units of the code.

    share : float, default=0.95
        Share of the rows that must have it.

    Returns
    -------
    collapsed : float
        Share of the codes, between 0 and 1.

    See Also
    --------
    posterior_collapse : Share of the codes whose posterior is the prior.

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
    """Share of the columns that are true in at least this share of the rows."""
    check_number(share, "share", high=1)
    return float(np.mean(collapsed.mean(axis=0) >= share))
