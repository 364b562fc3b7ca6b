"""The generative model behind a lasso: z ~ Laplace(0, b), x given z ~ N(z V, s2 I)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from .._rows.arrays import draw_blocks, row_generators, row_slices, to_numpy
from ..latents.laplace import Laplace
from ..solvers.missing import observed_residual
from ..solvers.posterior.laplace_bound import (
    CodeStatistics,
    LaplaceModel,
    atom_energies,
    lower_bounds,
    posterior_scales,
)
from .lasso_model import NOISE_FLOOR, LassoModel

# Rows whose bound is computed at once, in float64.
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class SignedLassoModel(LassoModel):
    """Codes of both signs, z ~ Laplace(0, b).

    The posterior of a row is a product of Laplace distributions around its code, with the scales
    that maximise the bound on log p(x).
    """

    @cached_property
    def _model(self) -> LaplaceModel:
        return LaplaceModel(float(self.coder.alpha), self.noise_variance)

    def bounds(self, X: NDArray) -> NDArray:
        bounds = []
        for rows in row_slices(len(X), self._rows_at_once(_CHUNK_ROWS)):
            codes = self._codes(X[rows]).double()
            block = torch.from_numpy(X[rows].astype(np.float64))
            energy = observed_residual(block, codes, self._atoms).square().sum(1)
            observed = _observed(X[rows])
            bounds.append(lower_bounds(codes, energy, self._atoms, self._model, observed))
        return to_numpy(torch.cat(bounds))

    def posterior(self, X: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        codes, scales = self._centres_and_scales(X)
        return codes, np.sqrt(2).astype(X.dtype) * scales, np.ones_like(codes)

    def sample_posterior(self, X: NDArray, n_draws: int) -> NDArray:
        codes, scales = self._centres_and_scales(X)
        draws = np.empty((n_draws, *codes.shape), dtype=X.dtype)
        for row, generator in enumerate(row_generators(X, self.seed)):
            # A Laplace draw is the difference of two exponential ones.
            blocks = [
                torch.empty(2, size, codes.shape[1], dtype=torch.float64).exponential_(
                    generator=generator
                )
                for size in draw_blocks(n_draws)
            ]
            rise, fall = torch.cat(blocks, dim=1)[:, :n_draws]
            draws[:, row] = codes[row] + scales[row] * (rise - fall).numpy()
        return draws

    def code_divergence(self, X: NDArray) -> NDArray:
        codes, scales = (torch.from_numpy(part).double() for part in self._centres_and_scales(X))
        return to_numpy(Laplace.kl(codes, scales, self._model.prior_scale))

    def _prior_codes(self, random_state: np.random.RandomState, shape: tuple[int, int]) -> NDArray:
        return random_state.laplace(0, self._model.prior_scale, shape)

    def _centres_and_scales(self, X: NDArray) -> tuple[NDArray, NDArray]:
        codes = self._codes(X)
        scales = [
            posterior_scales(codes[rows].double(), self._atoms, self._model, _observed(X[rows]))
            for rows in row_slices(len(X), self._rows_at_once(_CHUNK_ROWS))
        ]
        return to_numpy(codes, X.dtype), to_numpy(torch.cat(scales), X.dtype)


def best_noise_variance(
    blocks: Iterable[tuple[Tensor, Tensor]], dictionary: Tensor, alpha: float
) -> float:
    """Return the noise variance under which the mean bound of rows is highest.

    Parameters
    ----------
    blocks : iterable of (Tensor, Tensor)
        Rows, in which NaN is a missing entry, and their codes. Only sums are kept.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms.
    alpha : float
        Weight of the l1 norm, the ratio of noise variance and prior scale.

    Returns
    -------
    noise_variance : float
        At least a floor that is proportional to the mean square of the rows.
    """
    V = dictionary.cpu().double()
    parts, energy = [], 0.0
    for block in blocks:
        X, U = (tensor.cpu().double() for tensor in block)
        residual_energy = observed_residual(X, U, V).square_().sum(1)
        observed = _observed(X.numpy())
        if observed is None:
            n_features, energies = X.shape[1], None
        else:
            n_features, energies = int(observed.sum()) / len(X), atom_energies(V, observed)
        energy += float(X.square().nansum())
        parts.append(CodeStatistics.from_codes(U, residual_energy, n_features, energies))
    statistics = CodeStatistics.join(parts)
    power = energy / (statistics.n_rows * statistics.n_features)
    return _highest_bound(statistics, float(alpha), power)


def _observed(X: NDArray) -> Tensor | None:
    """Return which entries of X are observed; None where all are."""
    missing = np.isnan(X)
    return torch.from_numpy(~missing) if missing.any() else None


def _highest_bound(statistics: CodeStatistics, alpha: float, power: float) -> float:
    """Return the noise variance at which the mean bound is highest, not below a floor."""
    unit = power or alpha**2 or 1.0
    floor = NOISE_FLOOR * unit
    if alpha == 0:
        return max(statistics.residual_energy / statistics.n_features, floor)

    def pull(log_ratio: float) -> float:
        variance = unit * math.exp(log_ratio)
        better = statistics.noise_variance_update(LaplaceModel(alpha, variance))
        return math.log(better / variance)

    lowest = math.log(NOISE_FLOOR)
    if pull(lowest) <= 0:
        return floor
    # At this end the pull is downwards for any lasso codes.
    highest = math.log(8 * (1 + alpha**2 / unit))
    return unit * math.exp(brentq(pull, lowest, highest, xtol=1e-12))
