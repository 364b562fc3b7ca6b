"""The generative model behind a lasso: z ~ Laplace(0, b), x given z ~ N(z V, s2 I)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from .._rows.arrays import draw_blocks, private_random_state, row_generators, row_slices, to_numpy
from ..latents.laplace import Laplace
from ..solvers.missing import observed_residual
from ..solvers.posterior.laplace_bound import (
    CodeStatistics,
    LaplaceModel,
    atom_energies,
    lower_bounds,
    posterior_scales,
)
from .row_coder import RowCoder

# Rows whose bound is computed at once, in float64.
_CHUNK_ROWS = 4096
# Lowest noise variance, relative to the mean square of X.
_NOISE_FLOOR = 1e-12
# Alpha, relative to the size of X, is at most this, and at least its inverse.
_PROPORTION = 1e50


@dataclass(frozen=True)
class LassoModel:
    """A dictionary and a noise variance, with the lasso code as the posterior mode.

    The posterior of a row is a product of Laplace distributions around its code, with the scales
    that maximise the bound on log p(x).

    Attributes
    ----------
    dictionary : ndarray of shape (n_components, n_features)
        Atoms V.
    coder : RowCoder
        Solves the lasso for the alpha = s2 / b of the model.
    noise_variance : float
        Variance s2 of the observation noise.
    seed : int
        Seed of the posterior's draws.

    Raises
    ------
    ValueError
        Where alpha is zero, or out of proportion to the noise.
    """

    dictionary: NDArray
    coder: RowCoder
    noise_variance: float
    seed: int

    def __post_init__(self) -> None:
        if self.coder.alpha == 0:
            raise ValueError(
                "alpha=0 leaves the codes without a prior, and so without a likelihood: use a "
                "positive alpha for scores, posteriors and samples."
            )
        check_alpha(self.coder.alpha, math.sqrt(self.noise_variance))

    @cached_property
    def _model(self) -> LaplaceModel:
        return LaplaceModel(float(self.coder.alpha), self.noise_variance)

    @cached_property
    def _atoms(self) -> Tensor:
        return torch.from_numpy(self.dictionary).double()

    def bounds(self, X: NDArray) -> NDArray:
        """Return a lower bound on log p(x) of each row, in nats, (n_rows,), float64."""
        bounds = []
        for rows in row_slices(len(X), _CHUNK_ROWS):
            codes = self._codes(X[rows]).double()
            block = torch.from_numpy(X[rows].astype(np.float64))
            energy = observed_residual(block, codes, self._atoms).square().sum(1)
            observed = _observed(X[rows])
            bounds.append(lower_bounds(codes, energy, self._atoms, self._model, observed))
        return to_numpy(torch.cat(bounds))

    def posterior(self, X: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Return mean, standard deviation and inclusion of the codes, each (n_rows, n_components).

        The inclusion is one throughout: a Laplace distribution has no mass at zero.
        """
        codes, scales = self._centres_and_scales(X)
        return codes, np.sqrt(2).astype(X.dtype) * scales, np.ones_like(codes)

    def sample_posterior(self, X: NDArray, n_draws: int) -> NDArray:
        """Draw codes from the posterior of each row, (n_draws, n_rows, n_components)."""
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
        """Return the KL of each code's posterior from its prior, nats, (n_rows, n_components)."""
        codes, scales = (torch.from_numpy(part).double() for part in self._centres_and_scales(X))
        return to_numpy(Laplace.kl(codes, scales, self._model.prior_scale))

    def sample(self, n_samples: int, random_state: Any) -> NDArray:
        """Draw rows: codes from the prior, then the dictionary, then noise."""
        random_state = private_random_state(random_state)
        n_components, n_features = self.dictionary.shape
        codes = random_state.laplace(0, self._model.prior_scale, (n_samples, n_components))
        noise = random_state.normal(0, self.noise_variance**0.5, (n_samples, n_features))
        return (codes @ self.dictionary + noise).astype(self.dictionary.dtype, copy=False)

    def _codes(self, X: NDArray) -> Tensor:
        rows = self.coder.to_rows(X)
        dictionary = self.coder.to_rows(self.dictionary).to(rows.dtype)
        return self.coder.lasso(rows, dictionary).codes.cpu()

    def _centres_and_scales(self, X: NDArray) -> tuple[NDArray, NDArray]:
        codes = self._codes(X)
        scales = [
            posterior_scales(codes[rows].double(), self._atoms, self._model, _observed(X[rows]))
            for rows in row_slices(len(X), _CHUNK_ROWS)
        ]
        return to_numpy(codes, X.dtype), to_numpy(torch.cat(scales), X.dtype)


def check_alpha(alpha: float, size: float) -> None:
    """Check that ``alpha``, which carries the unit of X, is not out of proportion to it."""
    unit = size or 1.0
    # In float32 the limits would overflow.
    if alpha and not unit / _PROPORTION <= float(alpha) <= unit * _PROPORTION:
        raise ValueError(
            f"alpha={alpha!r} is out of proportion to X, whose size is {size:.3g}: use "
            f"an alpha between {unit / _PROPORTION:.3g} and {unit * _PROPORTION:.3g}, or 0 for "
            "no penalty."
        )


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
    floor = _NOISE_FLOOR * unit
    if alpha == 0:
        return max(statistics.residual_energy / statistics.n_features, floor)

    def pull(log_ratio: float) -> float:
        variance = unit * math.exp(log_ratio)
        better = statistics.noise_variance_update(LaplaceModel(alpha, variance))
        return math.log(better / variance)

    lowest = math.log(_NOISE_FLOOR)
    if pull(lowest) <= 0:
        return floor
    # At this end the pull is downwards for any lasso codes.
    highest = math.log(8 * (1 + alpha**2 / unit))
    return unit * math.exp(brentq(pull, lowest, highest, xtol=1e-12))
