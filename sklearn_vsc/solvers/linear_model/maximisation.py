"""Parameters of the sparse linear model that maximise the bound, given sums over rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from .parameters import LEAST_DENSITY, MOST_DENSITY, Contrasts, SparseLinear
from .sums import RowSums

# The noise of a feature is drawn towards that of the others as if so many more rows had it:
# measured, it costs large tables nothing and keeps small ones from features without noise.
_SHARED_ROWS = 5.0
# As if each atom had been seen in so many more rows, at its prior: an atom that no row uses stays.
_ATOM_ROWS = 1.0
# However much of the rows atoms fit, the noise is divided by at least this share of them.
_LEAST_FREE = 0.05
# Keeps the system of atoms that are always used together solvable.
_RIDGE = 1e-9
# Where that is too little, so much more, at most so many times.
_LARGER_RIDGE, _MOST_RIDGES = 1e-5, 100
# Steps of factor analysis for each step of the rest.
_DENSE_STEPS = 3
# Degrees of freedom of Student t rows, and how far one step moves the log scale of their noise.
_LEAST_FREEDOM, _MOST_FREEDOM, _LOG_SCALE = 2.0, 1e4, 20.0
# Spacing of the levels of contrast on the log scale, larger where they would not reach, and their
# number.
_LEVEL_STEP = 0.12
N_LEVELS = 64


@dataclass(frozen=True)
class WhatIsLearned:
    """Which parameters are learned, and how.

    Attributes
    ----------
    noise : {'shared', 'per_feature', 'fixed'}
        Whether the noise variance is one number, one for each feature, or given.
    density : {'shared', 'per_component', 'fixed', 'target'}
        Whether the density is one number, one for each atom, given, or given as the share of codes
        that may be active: the noise is then raised until no more are.
    target : float
        The share of active codes, for 'target'.
    scale : ndarray of shape (n_features,)
        Standard deviation of each feature, the unit of what is said about its noise.
    floor : ndarray of shape (n_features,)
        Least noise variances.
    """

    noise: str
    density: str
    target: float
    scale: NDArray
    floor: NDArray

    @property
    def learns_density(self) -> bool:
        """Whether densities are learned."""
        return self.density in ("shared", "per_component")


def maximise(
    model: SparseLinear, sums: RowSums, learned: WhatIsLearned, pressure: float = 1.0
) -> SparseLinear:
    """Return the model that is best for these sums.

    Parameters
    ----------
    model : SparseLinear
        The model under which rows were summed up.
    sums : RowSums
        Sums over rows.
    learned : WhatIsLearned
        Which parameters are learned.
    pressure : float
        Factor of the best noise variance.
    """
    present = model.present
    weights, n_fitted = _weights(sums, present)
    atoms, intercept = weights[:-1], weights[-1]
    noise, dense = _noise(model, sums, learned, weights, n_fitted)
    density = _density(model, sums, learned, present)
    if learned.noise != "fixed":
        noise = np.maximum(pressure * noise, learned.floor)
    # The slab has a fixed scale: what the codes say of it goes into the atoms.
    growth = model.slab.growth(density, sums.inclusion, sums.size, sums.square)
    atoms = atoms * growth[:, None]
    return replace(
        model, atoms=atoms, intercept=intercept, noise=noise, dense=dense, density=density
    )


def _weights(sums: RowSums, present: NDArray) -> tuple[NDArray, float]:
    """Return the best atoms and, below them, the best intercept; only some atoms are present.

    And how many of the numbers that each feature has, one for each row, its atoms fit by their
    freedom alone: the trace of what maps a feature to its fit, as in ridge regression.
    """
    used = np.append(present, len(sums.variance))
    design = sums.design[np.ix_(used, used)]
    system = design.copy()
    system[:-1, :-1][np.diag_indices(len(present))] += sums.variance[present]
    # In units in which every code has the same size, so that rare ones are solved as well.
    unit = 1 / np.sqrt(np.maximum(system.diagonal(), 1e-12 * max(system.diagonal().max(), 1e-300)))
    system *= unit[:, None] * unit
    diagonal = np.diag_indices_from(system)
    system[diagonal] += _RIDGE
    for _ in range(_MOST_RIDGES):
        try:
            factor = cho_factor(system, check_finite=False)
            break
        except LinAlgError:
            # Sums in float32 of rows of very different weight may round to this.
            system[diagonal] += _LARGER_RIDGE
    found = np.zeros_like(sums.data)
    scaled = unit[:, None] * sums.data[used]
    found[used] = unit[:, None] * cho_solve(factor, scaled, check_finite=False)
    fits = cho_solve(factor, unit[:, None] * design * unit, check_finite=False)
    return found, float(np.trace(fits[:-1, :-1]))


def _noise(
    model: SparseLinear,
    sums: RowSums,
    learned: WhatIsLearned,
    weights: NDArray,
    n_fitted: float,
) -> tuple[NDArray, NDArray]:
    """Return the best noise variances and dense columns."""
    # Rows that atoms were fitted to are nearer to them than others are.
    n_rows = float(sums.n_rows)
    n_free = max(n_rows - n_fitted, _LEAST_FREE * n_rows)
    # Atoms that are zero add nothing, and there may be many.
    used = np.append(model.present, len(weights) - 1)
    weights, data, design = weights[used], sums.data[used], sums.design[np.ix_(used, used)]
    atoms, variance = weights[:-1], sums.variance[used[:-1]]
    if len(model.dense):
        cross = data.T @ weights
        scatter = sums.products - cross - cross.T + weights.T @ design @ weights
        scatter = (scatter + (atoms.T * variance) @ atoms) / n_free
        noise, dense = _factor_steps(model, scatter, learned)
    else:
        fitted = np.einsum("kd,kd->d", weights, design @ weights)
        noise = sums.squares - 2 * np.einsum("kd,kd->d", weights, data) + fitted
        noise = (noise + variance @ atoms**2) / n_free
        dense = model.dense
    if learned.noise == "fixed":
        return model.noise, dense
    # A constant feature has no unit of its own but its floor.
    unit = np.maximum(learned.scale**2, learned.floor)
    relative = np.maximum(noise, 0) / unit
    if learned.noise == "per_feature":
        relative = (n_rows * relative + _SHARED_ROWS * relative.mean()) / (n_rows + _SHARED_ROWS)
        return relative * unit, dense
    return np.full_like(noise, np.maximum(noise, 0).mean()), dense


def _factor_steps(
    model: SparseLinear, scatter: NDArray, learned: WhatIsLearned
) -> tuple[NDArray, NDArray]:
    """Improve noise variances and dense columns for this covariance of residuals.

    Steps of factor analysis (Rubin and Thayer 1982).
    """
    noise, dense = model.noise, model.dense
    total = np.diag(scatter)
    for _ in range(_DENSE_STEPS):
        scaled = dense / noise
        inner = scaled @ dense.T
        inner[np.diag_indices_from(inner)] += 1
        weights = np.linalg.solve(inner, scaled)
        passed = weights @ scatter
        second = np.eye(len(dense)) - weights @ dense.T + passed @ weights.T
        dense = np.linalg.solve(second, passed)
        if learned.noise == "fixed":
            continue
        noise = np.maximum(total - np.einsum("rd,rd->d", dense, passed), 1e-3 * learned.floor)
        if learned.noise == "shared":
            noise = np.full_like(noise, noise.mean())
        noise = np.maximum(noise, learned.floor)
    return noise, dense


def _density(
    model: SparseLinear, sums: RowSums, learned: WhatIsLearned, present: NDArray
) -> NDArray:
    """Return the best densities, or those of before."""
    if not learned.learns_density:
        return model.density
    n_rows, best = float(sums.n_rows), model.slab.best_density
    all_inclusion, all_size = sums.inclusion[present], sums.size[present]
    inclusion, size = all_inclusion.mean(), all_size.mean()
    found = best(np.asarray(n_rows), inclusion, size)
    if learned.density == "per_component":
        # As many rows more as the others have on average.
        more = _ATOM_ROWS / n_rows
        found = best(
            np.asarray(n_rows + _ATOM_ROWS), all_inclusion + more * inclusion,
            all_size + more * size,
        )  # fmt: skip
    density = model.density.copy()
    density[present] = np.clip(found, LEAST_DENSITY, MOST_DENSITY)
    return density


def best_freedom(
    error: NDArray,
    n_features: NDArray,
    freedom: float,
    sample_weight: NDArray | None = None,
    *,
    fixed_scale: bool = False,
) -> tuple[float, float]:
    """Return the degrees of freedom and the scale of the noise that fit the errors of rows best.

    Parameters
    ----------
    error : ndarray of shape (n_rows,)
        Expected squared distances of rows and reconstructions, in the metric of the noise.
    n_features : ndarray of shape (n_rows,)
        Number of observed features of each row.
    freedom : float
        Where the search starts.
    sample_weight : ndarray of shape (n_rows,), default=None
        How often each row counts.
    fixed_scale : bool, default=False
        Whether the scale is one.

    Returns
    -------
    freedom, scale : float
        The scale is a factor of noise variances.
    """

    def loss(logs: NDArray) -> tuple[float, NDArray]:
        nu, log_scale = math.exp(logs[0]), logs[1]
        half = 0.5 * (nu + n_features)
        ratio = error * math.exp(-log_scale) / nu
        log_prob = gammaln(half) - gammaln(0.5 * nu) - 0.5 * n_features * (logs[0] + log_scale)
        log_prob -= half * np.log1p(ratio)
        pull = half * ratio / (1 + ratio) - 0.5 * n_features
        slope = digamma(half) - digamma(0.5 * nu) - np.log1p(ratio)
        slopes = [0.5 * nu * slope + pull, pull]
        return -float(average(log_prob)), -np.array([average(each) for each in slopes])

    average = partial(np.average, weights=sample_weight)
    start = math.log(min(max(freedom, _LEAST_FREEDOM), _MOST_FREEDOM))
    reach = 0.0 if fixed_scale else _LOG_SCALE
    bounds = [(math.log(_LEAST_FREEDOM), math.log(_MOST_FREEDOM)), (-reach, reach)]
    found = minimize(loss, [start, 0.0], jac=True, method="L-BFGS-B", bounds=bounds).x
    return math.exp(found[0]), math.exp(found[1])


def contrast_levels(contrast: NDArray) -> Contrasts:
    """Return the distribution of contrasts that these of rows suggest."""
    logs = np.log(contrast)
    low, high = np.quantile(logs, [0.001, 0.999])
    step = max(_LEVEL_STEP, (high - low) / (N_LEVELS - 2))
    levels = 0.5 * (low + high) + step * (np.arange(N_LEVELS) - N_LEVELS // 2)
    nearest = np.abs(logs[:, None] - levels).argmin(1)
    counts = np.bincount(nearest, minlength=N_LEVELS).astype(float)
    # Neighbours share, so that no level between two that rows have is empty.
    smooth = np.convolve(counts, [0.25, 0.5, 0.25], mode="same") + 1e-3
    return Contrasts(np.exp(levels), smooth / smooth.sum())
