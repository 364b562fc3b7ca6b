"""Posteriors of rows under the sparse linear model, whole or partly observed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from ..posterior.free_form import MOST_SWEEPS, Factors, RowNoise, solve
from .noise_metric import NoiseMetric
from .parameters import SparseLinear

_LOG_2PI = math.log(2 * math.pi)
# The bound of a row sums over the levels of contrast that are this near to the row's own: in
# standard deviations of its log contrast, which is known to 1 / sqrt(2 n_features), and at least so
# many on each side. All others have little mass, and leaving them out keeps it a bound.
_REACH_OF_A_ROW, _LEAST_REACH = 3.0, 3
# Least contrast of a row. The bound of a row that equals the intercept rises without end as its
# contrast falls, and the row would outweigh all others in learning.
_LEAST_CONTRAST = 1e-3


@dataclass(frozen=True)
class Stops:
    """When the sweeps over the codes of a row end: arguments of `solve`."""

    max_sweeps: int = MOST_SWEEPS
    tol: float = 0.05
    bound_tol: float = 0.05


@dataclass(frozen=True)
class RowPosteriors:
    """Posteriors of rows.

    Attributes
    ----------
    factors : Factors
        Posterior factors of the codes of each row, at its contrast.
    contrast : ndarray of shape (n_rows,)
        The contrast of each row: the one given, or the most likely one; one where the model has
        none.
    bound : ndarray of shape (n_rows,)
        Lower bound on log p(x), in nats; where contrasts were given, on that of x given them.
    """

    factors: Factors
    contrast: NDArray
    bound: NDArray

    def rows(self, numbers: NDArray) -> RowPosteriors:
        """Return the posteriors of some rows."""
        factors = Factors(*(values[numbers] for values in vars(self.factors).values()))
        return RowPosteriors(factors, self.contrast[numbers], self.bound[numbers])


def infer(
    model: SparseLinear,
    X: NDArray,
    stops: Stops,
    start: NDArray | None = None,
    contrast: NDArray | None = None,
    weight: NDArray | None = None,
) -> RowPosteriors:
    """Find the posterior of each row.

    Parameters
    ----------
    model : SparseLinear
        The model.
    X : ndarray of shape (n_rows, n_features)
        Rows; NaN is a missing entry.
    stops : Stops
        When sweeps end.
    start : ndarray of shape (n_rows, n_components), default=None
        Fields to start from; None: codes enter one by one, as always where contrasts are summed
        over.
    contrast : ndarray of shape (n_rows,), default=None
        Contrasts that are known, as in learning. None: those of the model, summed over.
    weight : ndarray of shape (n_rows,), default=None
        Weights of the noise of rows to start from, for Student t rows. None: one.

    Returns
    -------
    posteriors : RowPosteriors
        Of all rows.
    """
    present = model.present
    if len(present) < len(model.atoms):
        start = None if start is None else start[:, present]
        part = infer(model.only(present), X, stops, start, contrast, weight)
        return _with_absent(model, present, part)
    n_rows, dtype = len(X), X.dtype
    found = Factors.empty(n_rows, len(model.atoms), dtype)
    contrasts, bound = np.ones(n_rows), np.empty(n_rows)
    for rows, metric, residual in residuals(model, X):
        begin = _Begin() if start is None else _Begin(start, weight).rows(rows)
        if contrast is not None:
            solved = _at_contrast(model, metric, residual, contrast[rows], stops, begin)
        elif model.contrasts is not None:
            solved = _over_contrasts(model, metric, residual, stops)
        else:
            solved = _at_contrast(model, metric, residual, None, stops, begin)
        found.put(rows, solved.factors)
        contrasts[rows], bound[rows] = solved.contrast, solved.bound
    return RowPosteriors(found, contrasts, bound)


def _with_absent(model: SparseLinear, present: NDArray, part: RowPosteriors) -> RowPosteriors:
    """Add the codes whose atoms are zero, to which rows say nothing."""
    density, slab = model.density, model.slab
    size = density * slab.mean_size(density)
    absent = {
        "field": np.zeros_like(density),
        "mean": size if slab.positive else np.zeros_like(density),
        "second": density * slab.mean_square(density),
        "inclusion": density,
        "size": size,
    }
    found = {}
    for name, value in vars(part.factors).items():
        if name in absent:
            found[name] = np.tile(absent[name].astype(value.dtype), (len(value), 1))
            found[name][:, present] = value
        else:
            found[name] = value
    return replace(part, factors=Factors(**found))


def same_observed(X: NDArray) -> Iterator[tuple[NDArray, NDArray | None]]:
    """Yield the numbers of rows with the same observed features, and those features.

    The features are a mask; None: all are observed.
    """
    observed = ~np.isnan(X)
    whole = observed.all(1)
    if whole.any():
        yield np.flatnonzero(whole), None
    if whole.all():
        return
    rest = np.flatnonzero(~whole)
    packed = np.packbits(observed[rest], axis=1)
    _, kind = np.unique(packed, axis=0, return_inverse=True)
    order = np.argsort(kind.ravel(), kind="stable")
    ends = np.flatnonzero(np.diff(kind.ravel()[order])) + 1
    for rows in np.split(rest[order], ends):
        yield rows, observed[rows[0]]


def residuals(model: SparseLinear, X: NDArray) -> Iterator[tuple[NDArray, NoiseMetric, NDArray]]:
    """Yield what rows leave beyond the intercept, those with the same observed features together.

    With the numbers of the rows, and the metric of the noise of these features.
    """
    for rows, observed in same_observed(X):
        metric = NoiseMetric(model, X.dtype, observed)
        part = X[rows] if observed is None else X[np.ix_(rows, observed)]
        yield rows, metric, part - metric.intercept.astype(X.dtype)


@dataclass(frozen=True)
class _Begin:
    """Fields of codes and weights of rows to start from, if there are any."""

    fields: NDArray | None = None
    weight: NDArray | None = None

    def rows(self, numbers: NDArray) -> _Begin:
        """Return those of some rows."""
        fields = None if self.fields is None else self.fields[numbers]
        return _Begin(fields, None if self.weight is None else self.weight[numbers])


def _at_contrast(
    model: SparseLinear,
    metric: NoiseMetric,
    residual: NDArray,
    contrast: NDArray | None,
    stops: Stops,
    begin: _Begin,
) -> RowPosteriors:
    """Posteriors of rows whose contrasts are known; None: they are one."""
    if contrast is not None:
        residual = residual / contrast[:, None].astype(residual.dtype)
    n_features = np.full(len(residual), float(metric.n_features))
    factors = solve(
        np.ascontiguousarray(metric.products(residual)),
        metric.gram,
        metric.energy(residual),
        n_features,
        model.priors,
        RowNoise(model.freedom),
        start=begin.fields,
        start_weight=begin.weight,
        max_sweeps=stops.max_sweeps,
        tol=stops.tol,
        bound_tol=stops.bound_tol,
    )
    log_det = np.full(len(residual), metric.log_det)
    if contrast is None:
        contrast = np.ones(len(residual))
    else:
        log_det = log_det + 2 * metric.n_features * np.log(contrast)
    log_likelihood = expected_log_prob(factors.error, log_det, metric.n_features, model.freedom)
    return RowPosteriors(factors, contrast, log_likelihood - factors.kl)


def expected_log_prob(
    error: NDArray, log_det: NDArray | float, n_features: int, freedom: float
) -> NDArray:
    """Return a lower bound on the expected log density of rows, given their expected errors.

    Exact for normal noise. For Student t rows it is Jensen's inequality: the scale of the row is
    integrated out after the codes (Archambeau and Verleysen 2007).
    """
    if math.isinf(freedom):
        return -0.5 * (error + log_det + n_features * _LOG_2PI)
    half = 0.5 * (freedom + n_features)
    constant = (
        gammaln(half) - gammaln(0.5 * freedom) - 0.5 * n_features * math.log(freedom * math.pi)
    )
    return constant - 0.5 * log_det - half * np.log1p(error / freedom)


def _over_contrasts(
    model: SparseLinear, metric: NoiseMetric, residual: NDArray, stops: Stops
) -> RowPosteriors:
    """Posteriors at the most likely contrast, and bounds that sum over contrasts."""
    assert model.contrasts is not None
    levels, shares = model.contrasts.levels, model.contrasts.shares
    at = partial(_at_contrast, model, metric, residual, stops=stops)
    # A first look, at the contrast that explains the size of the row without any code.
    guess = row_contrast(metric, residual)
    first = at(contrast=guess, begin=_Begin())
    guess = best_contrast(metric, residual, first)
    nearest = np.abs(np.log(guess)[:, None] - np.log(levels)).argmin(1)
    most = min(2 * _reach(levels, metric.n_features) + 1, len(levels))
    lowest = np.clip(nearest - most // 2, 0, len(levels) - most)
    log_weights, best, chosen = [], None, None
    begin = _Begin(first.factors.field, first.factors.weight)
    for step in range(most):
        level = lowest + step
        solved = at(contrast=levels[level], begin=begin)
        with np.errstate(divide="ignore"):
            weight = solved.bound + np.log(shares[level])
        log_weights.append(weight)
        if best is None or chosen is None:
            best, chosen = weight, solved
            continue
        better = np.flatnonzero(weight > best)
        best = np.maximum(best, weight)
        chosen.contrast[better] = solved.contrast[better]
        chosen.factors.put(better, solved.rows(better).factors)
    assert chosen is not None
    return RowPosteriors(chosen.factors, chosen.contrast, logsumexp(log_weights, axis=0))


def _reach(levels: NDArray, n_features: int) -> int:
    """Return how many levels on each side of that of a row have some mass."""
    if len(levels) == 1 or not n_features:
        return len(levels)
    step = max(math.log(levels[-1] / levels[0]) / (len(levels) - 1), 1e-6)
    return max(_LEAST_REACH, math.ceil(_REACH_OF_A_ROW / (step * math.sqrt(2 * n_features))))


def row_contrast(metric: NoiseMetric, residual: NDArray) -> NDArray:
    """Return the contrast at which a row without codes has the size of an average one."""
    if not metric.n_features:
        return np.ones(len(residual))
    covariance = metric.noise + np.einsum("rd,rd->d", metric.dense, metric.dense)
    signal = np.einsum("kd,kd->d", metric.atoms, metric.atoms) / max(1, len(metric.atoms))
    size = np.mean(residual.astype(float) ** 2 / (covariance + signal), axis=1)
    return np.maximum(np.sqrt(size), _LEAST_CONTRAST)


def best_contrast(metric: NoiseMetric, residual: NDArray, solved: RowPosteriors) -> NDArray:
    """Return the contrast of each row that raises its bound most, with its codes and weight held.

    With s = 1 / contrast, the bound is D log s - weight (s^2 energy - 2 s fit) / 2 + constant.
    """
    if not metric.n_features:
        return np.ones(len(residual))
    weight = solved.factors.weight
    energy = weight * np.maximum(metric.energy(residual), 1e-30)
    mean = solved.factors.mean
    fit = weight * np.einsum("nk,nk->n", mean, metric.products(residual), dtype=float)
    inverse = (fit + np.sqrt(fit**2 + 4 * energy * metric.n_features)) / (2 * energy)
    return np.maximum(1 / inverse, _LEAST_CONTRAST)
