"""The generative model of non-negative codes: z ~ Exponential, x given z ~ N(z V, s2 I)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from .._rows.arrays import draw_blocks, row_generators, row_slices, to_numpy
from ..solvers.missing import observed_residual
from ..solvers.posterior.exponential_bound import (
    ExponentialModel,
    Factors,
    best_factors,
    lower_bounds,
    noise_variance_update,
)
from .lasso_model import NOISE_FLOOR, LassoModel

# Rows whose posteriors are computed at once, in float64.
_CHUNK_ROWS = 1024
# Maximum number of rows that the noise variance is estimated from.
_NOISE_ROWS = 1024
# Where it only corrects an earlier estimate: share of the rows, and least number of them.
_CORRECTING_SHARE, _CORRECTING_ROWS = 1 / 16, 64
# The search for it begins with a share of the rows, if they are this many. Its first steps, in the
# log of the noise variance, without and with an estimate to start from.
_FEW_SHARE, _FEW_ROWS = 1 / 16, 16
_FAR_STEP, _NEAR_STEP = 0.5, 0.02
# Accuracies of the posteriors and of the log of the noise variance: around its maximum the bound is
# flat.
_SEARCH_TOLERANCE = 1e-3
_NOISE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PositiveLassoModel(LassoModel):
    """Codes that are never negative, z ~ Exponential with mean b.

    The posterior of a row is the best product of distributions of its codes, which are truncated
    normal distributions; it is computed from the lasso code.
    """

    @cached_property
    def _model(self) -> ExponentialModel:
        return ExponentialModel(float(self.coder.alpha), self.noise_variance)

    def bounds(self, X: NDArray) -> NDArray:
        parts = [
            lower_bounds(block, factors, self._atoms, self._model)
            for _, block, factors in self._posteriors(X)
        ]
        return to_numpy(torch.cat(parts))

    def posterior(self, X: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        means, stds = (np.empty((len(X), len(self.dictionary)), X.dtype) for _ in range(2))
        for rows, _, factors in self._posteriors(X):
            means[rows], stds[rows] = factors.means.numpy(), factors.variances.sqrt().numpy()
        return means, stds, np.ones_like(means)

    def sample_posterior(self, X: NDArray, n_draws: int) -> NDArray:
        n_components = len(self.dictionary)
        draws = np.empty((n_draws, len(X), n_components), dtype=X.dtype)
        for rows, _, factors in self._posteriors(X):
            for row, generator in enumerate(row_generators(X[rows], self.seed)):
                blocks = [
                    torch.empty(size, n_components, dtype=torch.float64).exponential_(
                        generator=generator
                    )
                    for size in draw_blocks(n_draws)
                ]
                exponentials = torch.cat(blocks)[:n_draws].numpy()
                draws[:, rows.start + row] = factors.draw(row, exponentials)
        return draws

    def code_divergence(self, X: NDArray) -> NDArray:
        parts = [factors.divergences for _, _, factors in self._posteriors(X)]
        return to_numpy(torch.cat(parts))

    def _prior_codes(self, random_state: np.random.RandomState, shape: tuple[int, int]) -> NDArray:
        return random_state.exponential(1 / self._model.rate, shape)

    def _posteriors(self, X: NDArray) -> Iterator[tuple[slice, Tensor, Factors]]:
        """Yield slices of rows, the rows in float64, and their posteriors."""
        for rows in row_slices(len(X), self._rows_at_once(_CHUNK_ROWS)):
            block = torch.from_numpy(X[rows].astype(np.float64))
            codes = self._codes(X[rows]).double()
            yield rows, block, best_factors(block, codes, self._atoms, self._model)


def best_noise_variance(
    blocks: Iterable[tuple[Tensor, Tensor]],
    dictionary: Tensor,
    alpha: float,
    start: float = math.nan,
) -> float:
    """Return the noise variance under which the mean bound of rows is highest.

    Parameters
    ----------
    blocks : iterable of (Tensor, Tensor)
        Rows, in which NaN is a missing entry, and their codes. Of many rows a sample is used.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    alpha : float
        Weight of the l1 norm, the ratio of noise variance and prior mean.
    start : float, optional
        Estimate from earlier rows, which these rows will only correct. The sample is smaller then.

    Returns
    -------
    noise_variance : float
        At least a floor that is proportional to the mean square of the rows.
    """
    X, codes = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    n_rows = _NOISE_ROWS
    if not math.isnan(start):
        n_rows = min(n_rows, max(_CORRECTING_ROWS, int(_CORRECTING_SHARE * len(X))))
    every = math.ceil(len(X) / n_rows)
    X, codes = (part[::every].cpu().double() for part in (X, codes))
    V, alpha = dictionary.cpu().double(), float(alpha)
    few = round(1 / _FEW_SHARE)
    if math.isnan(start) and len(X) >= few * _FEW_ROWS:
        start = _highest_bound(X[::few], codes[::few], V, alpha)
    return _highest_bound(X, codes, V, alpha, start)


def _highest_bound(
    X: Tensor, codes: Tensor, V: Tensor, alpha: float, start: float = math.nan
) -> float:
    """Return the noise variance at which the mean bound is highest, not below a floor."""
    n_observed = int((~X.isnan()).sum())
    power = float(X.square().nansum()) / n_observed
    floor = NOISE_FLOOR * (power or alpha**2 or 1.0)
    energy = float(observed_residual(X, codes, V).square().sum())
    if alpha == 0:
        return max(energy / n_observed, floor)
    means = codes

    @cache
    def pull(log_variance: float) -> float:
        nonlocal means
        model = ExponentialModel(alpha, math.exp(log_variance))
        factors = best_factors(X, means, V, model, _SEARCH_TOLERANCE)
        # The next posteriors will be similar.
        means = factors.means
        return math.log(noise_variance_update(X, factors, V, model)) - log_variance

    # The objective of the lasso at its minimum is below its mean under any posterior.
    objective = 0.5 * energy + alpha * float(codes.sum())
    least = math.log(max(objective / (0.5 * n_observed + codes.numel()), floor))
    step = _FAR_STEP if math.isnan(start) else _NEAR_STEP
    low = high = least if math.isnan(start) else max(math.log(start), least)
    while pull(low) <= 0:
        if low <= least:
            return math.exp(least)
        low, high, step = max(low - step, least), low, 2 * step
    # This ends: a noise variance above the mean square of the rows is too large.
    while pull(high) > 0:
        low, high, step = high, high + step, 2 * step
    return math.exp(brentq(pull, low, high, xtol=_NOISE_TOLERANCE))
