"""The generative model that stands behind a lasso, as methods of an estimator."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from torch import Tensor

from ._base.coder import BaseSparseCoder, Posterior
from ._rows.array_api import follows_fit, follows_input
from ._rows.arrays import draw_blocks, private_random_state, row_generators, row_slices, to_numpy
from ._rows.numbers import check_count
from .latents.laplace import Laplace
from .solvers.lasso.stopping import LassoResult
from .solvers.missing import observed_residual
from .solvers.posterior.laplace_bound import (
    CodeStatistics,
    LaplaceModel,
    atom_energies,
    lower_bounds,
    posterior_scales,
)

# Rows whose bound is computed at once, in float64.
_CHUNK_ROWS = 4096
# Least noise variance, over the mean square of X: no fit is credited with less.
_NOISE_FLOOR = 1e-12
# Alpha, over the size of X, is no more than this, and no less than its inverse.
_PROPORTION = 1e50


class LaplaceModelCoder(BaseSparseCoder):
    """Base of estimators whose code is the mode of a Laplace prior and Gaussian noise.

    A subclass sets ``components_`` and ``noise_variance_`` and solves the lasso.
    """

    alpha: float
    random_state: Any
    noise_variance_: float
    # Seed of the posterior's draws, drawn in fit.
    _draw_seed: int

    @abstractmethod
    def _solve_lasso(self, X: NDArray, alpha: float) -> LassoResult:
        """Return the lasso codes of the rows of X."""

    @follows_input
    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return a lower bound on log p(x) of each row, in nats.

        The bound is taken at the lasso code for ``alpha``, whatever ``transform_algorithm``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score. NaN means missing: the bound is on log p of what is observed.

        Returns
        -------
        bounds : ndarray of shape (n_samples,)
            Float64, constants of the densities included.

        Raises
        ------
        ValueError
            Where nothing is observed of a row, or ``alpha`` is zero: the model then has no
            proper prior.
        """
        X = self._validate_rows(X, reset=False)
        model = self._model()
        dictionary = torch.from_numpy(self.components_).double()
        bounds = []
        for rows in row_slices(len(X), _CHUNK_ROWS):
            codes = self._solve_lasso(X[rows], self.alpha).codes.cpu().double()
            block = torch.from_numpy(X[rows].astype(np.float64))
            energy = observed_residual(block, codes, dictionary).square().sum(1)
            bounds.append(lower_bounds(codes, energy, dictionary, model, _observed(X[rows])))
        return to_numpy(torch.cat(bounds))

    @follows_input
    def posterior(self, X: ArrayLike) -> Posterior:
        """Return the moments of the Laplace posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN means missing.

        Returns
        -------
        posterior : Posterior
            ``mean`` is the lasso code for ``alpha``; ``inclusion`` is one throughout, since
            a Laplace law has no mass at zero.

        Raises
        ------
        ValueError
            Where nothing is observed of a row, or ``alpha`` is zero: the model then has no
            proper prior.
        """
        X = self._validate_rows(X, reset=False)
        codes, scales = self._laplace_posterior(X)
        return Posterior(codes, np.sqrt(2).astype(X.dtype) * scales, np.ones_like(codes))

    @follows_input
    def sample_posterior(self, X: ArrayLike, n_draws: int = 1) -> NDArray:
        """Draw codes from the Laplace posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN means missing.
        n_draws : int, default=1
            Draws for each row. They depend on the row and the fit alone, and the first
            draws of a longer call are those of a shorter one.

        Returns
        -------
        draws : ndarray of shape (n_draws, n_samples, n_components)
            Codes; none is exactly zero.

        Raises
        ------
        ValueError
            Where ``n_draws`` is not positive, or ``alpha`` is zero.
        """
        n_draws = check_count(n_draws, "n_draws")
        X = self._validate_rows(X, reset=False)
        codes, scales = self._laplace_posterior(X)
        draws = np.empty((n_draws, *codes.shape), dtype=X.dtype)
        for row, generator in enumerate(row_generators(X, self._draw_seed)):
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

    def _code_divergence(self, X: ArrayLike) -> NDArray:
        """KL of each code's posterior from its prior, nats, (n_samples, n_components)."""
        X = self._validate_rows(X, reset=False)
        codes, scales = (torch.from_numpy(part).double() for part in self._laplace_posterior(X))
        return to_numpy(Laplace.kl(codes, scales, self._model().prior_scale))

    @follows_fit
    def sample(self, n_samples: int = 1) -> NDArray:
        """Draw new rows from the score's model: prior, dictionary, observation noise.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows. With an integer ``random_state`` each call draws the same ones.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            New rows.

        Raises
        ------
        ValueError
            Where ``n_samples`` is not positive, or ``alpha`` is zero.
        """
        self._check_usable()
        n_samples = check_count(n_samples, "n_samples")
        model = self._model()
        random_state = private_random_state(self.random_state)
        n_components, n_features = self.components_.shape
        codes = random_state.laplace(0, model.prior_scale, (n_samples, n_components))
        noise = random_state.normal(0, model.noise_variance**0.5, (n_samples, n_features))
        return (codes @ self.components_ + noise).astype(self.components_.dtype, copy=False)

    @property
    def prior_scale_(self) -> float:
        """Scale of the Laplace prior of the score's model."""
        return self.noise_variance_ / self.alpha if self.alpha else math.inf

    def _fit_noise(self, blocks: Iterable[tuple[Tensor, Tensor]], dictionary: Tensor) -> float:
        """Return the noise variance under which the mean bound of rows is highest.

        They come as blocks of rows and their codes, of which little is kept.
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
        return _best_noise_variance(statistics, float(self.alpha), power)

    def _model(self) -> LaplaceModel:
        if self.alpha == 0:
            raise ValueError(
                "alpha=0 leaves the codes without a prior, and so without a likelihood: use a "
                "positive alpha for scores, posteriors and samples."
            )
        self._check_alpha(math.sqrt(self.noise_variance_))
        return LaplaceModel(float(self.alpha), self.noise_variance_)

    def _check_alpha(self, size: float) -> None:
        """Check that ``alpha``, which carries the unit of X, is not out of proportion to it."""
        unit = size or 1.0
        # A float: of float32 the bounds would overflow.
        if self.alpha and not unit / _PROPORTION <= float(self.alpha) <= unit * _PROPORTION:
            raise ValueError(
                f"alpha={self.alpha!r} is out of proportion to X, whose size is {size:.3g}: use "
                f"an alpha between {unit / _PROPORTION:.3g} and {unit * _PROPORTION:.3g}, or 0 for "
                "no penalty."
            )

    def _laplace_posterior(self, X: NDArray) -> tuple[NDArray, NDArray]:
        """Return centres and scales of the posterior of each row."""
        model = self._model()
        codes = self._solve_lasso(X, self.alpha).codes.cpu()
        dictionary = torch.from_numpy(self.components_).double()
        scales = [
            posterior_scales(codes[rows].double(), dictionary, model, _observed(X[rows]))
            for rows in row_slices(len(X), _CHUNK_ROWS)
        ]
        return to_numpy(codes, X.dtype), to_numpy(torch.cat(scales), X.dtype)


def _observed(X: NDArray) -> Tensor | None:
    """Return which entries of X are not missing, None where all are there."""
    holes = np.isnan(X)
    return torch.from_numpy(~holes) if holes.any() else None


def _best_noise_variance(statistics: CodeStatistics, alpha: float, power: float) -> float:
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
    # At this end the pull is downwards, whatever the codes of a lasso.
    highest = math.log(8 * (1 + alpha**2 / unit))
    return unit * math.exp(brentq(pull, lowest, highest, xtol=1e-12))
