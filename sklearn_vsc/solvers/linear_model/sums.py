"""Sums over rows from which the parameters of the sparse linear model follow."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .noise_metric import NoiseMetric
from .parameters import SparseLinear
from .row_posteriors import RowPosteriors, same_observed


@dataclass(frozen=True)
class RowSums:
    """Sums over rows; those of two sets of rows add.

    A row enters divided by its contrast, and times the root of the weight of its noise. Its design
    is its codes, and a one, treated alike. A missing entry enters by its expectation given the
    observed ones and the codes, with its variance.

    Attributes
    ----------
    n_rows : ndarray of shape ()
        Number of rows, each times its sample weight.
    design : ndarray of shape (n_components + 1, n_components + 1)
        Products of the means of the design.
    variance : ndarray of shape (n_components,)
        Variances of the codes.
    data : ndarray of shape (n_components + 1, n_features)
        Products of the design and the row.
    squares : ndarray of shape (n_features,)
        Squares of the row.
    products : ndarray of shape (n_features, n_features), or (0, 0)
        Products of features, where the model has dense columns.
    inclusion, size, square : ndarray of shape (n_components,)
        Probability of not being zero, absolute value and square of the codes.
    active : ndarray of shape (n_components,)
        Number of rows whose code is more likely not zero than zero.
    """

    n_rows: NDArray
    design: NDArray
    variance: NDArray
    data: NDArray
    squares: NDArray
    products: NDArray
    inclusion: NDArray
    size: NDArray
    square: NDArray
    active: NDArray

    def mixed(self, other: RowSums, keep: float, take: float) -> RowSums:
        """Return these sums times ``keep`` plus other sums times ``take``."""
        return RowSums(
            *(
                keep * getattr(self, each.name) + take * getattr(other, each.name)
                for each in fields(self)
            )
        )


def sums_of_rows(
    model: SparseLinear, X: NDArray, found: RowPosteriors, sample_weight: NDArray | None = None
) -> RowSums:
    """Sum rows up, given their posteriors under the model.

    Parameters
    ----------
    model : SparseLinear
        The model.
    X : ndarray of shape (n_rows, n_features)
        Rows; NaN is a missing entry.
    found : RowPosteriors
        Their posteriors under this model.
    sample_weight : ndarray of shape (n_rows,), default=None
        How often each row counts.
    """
    factors, dtype = found.factors, X.dtype
    counts = np.ones(len(X)) if sample_weight is None else sample_weight
    variance = factors.second - factors.mean**2
    filled, extra = _completed(model, X, found, variance, counts)
    # The design is in units of the row over its contrast: the codes themselves.
    root = np.sqrt(factors.weight * counts)
    design = np.empty((len(X), len(model.atoms) + 1), dtype)
    design[:, :-1] = factors.mean * root[:, None].astype(dtype)
    design[:, -1] = root / found.contrast
    rows = filled * (root / found.contrast)[:, None].astype(dtype)
    weights = (factors.weight * counts).astype(dtype)
    data = (design.T @ rows).astype(float)
    squares = np.einsum("nd,nd->d", rows, rows, dtype=float)
    has_dense = len(model.dense) > 0
    products = (rows.T @ rows).astype(float) if has_dense else np.zeros((0, 0))
    if extra is not None:
        data[:-1] += extra.data
        squares += extra.squares
        products = products + extra.products
    weighted = counts.astype(dtype)
    return RowSums(
        n_rows=np.asarray(float(counts.sum())),
        design=(design.T @ design).astype(float),
        variance=(weights @ variance).astype(float),
        data=data,
        squares=squares,
        products=products,
        inclusion=(weighted @ factors.inclusion).astype(float),
        size=(weighted @ factors.size).astype(float),
        square=(weighted @ factors.second).astype(float),
        active=(weighted @ (factors.inclusion > 0.5)).astype(float),
    )


@dataclass(frozen=True)
class _Extra:
    """What the variances of missing entries add to the sums."""

    data: NDArray
    squares: NDArray
    products: NDArray


def _completed(
    model: SparseLinear, X: NDArray, found: RowPosteriors, variance: NDArray, counts: NDArray
) -> tuple[NDArray, _Extra | None]:
    """Fill missing entries by their expectation; return the rows, and what variances add."""
    missing = np.isnan(X)
    if not missing.any():
        return X, None
    n_features, has_dense = X.shape[1], len(model.dense) > 0
    filled, data = X.copy(), np.zeros_like(model.atoms)
    squares = np.zeros(n_features)
    products = np.zeros((n_features, n_features)) if has_dense else np.zeros((0, 0))
    for rows, observed in same_observed(X):
        if observed is None:
            continue
        hole = ~observed
        metric = NoiseMetric(model, X.dtype, observed)
        mean, contrast = found.factors.mean[rows], found.contrast[rows]
        atoms = model.atoms[:, hole]
        code = mean @ atoms
        if has_dense:
            # The dense codes pass on what the observed entries leave unexplained.
            passed = metric.dense_weights @ model.dense[:, hole]
            residual = X[np.ix_(rows, observed)] - metric.intercept
            residual = residual / contrast[:, None] - mean @ metric.atoms
            code = code + residual @ passed
            atoms = atoms - metric.atoms @ passed
        filled[np.ix_(rows, hole)] = model.intercept[hole] + contrast[:, None] * code
        weight = found.factors.weight[rows] * counts[rows]
        varied, n_rows = weight @ variance[rows], counts[rows].sum()
        data[:, hole] += varied[:, None] * atoms
        if has_dense:
            dense = model.dense[:, hole]
            spread = np.diag(model.noise[hole])
            spread += dense.T @ np.linalg.solve(metric.dense_precision, dense)
            added = (atoms.T * varied) @ atoms + n_rows * spread
            products[np.ix_(hole, hole)] += added
            squares[hole] += np.diag(added)
        else:
            squares[hole] += varied @ atoms**2 + n_rows * model.noise[hole]
    return filled, _Extra(data, squares, products)
