"""A generative model whose posterior mode is the lasso code."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._rows.arrays import private_random_state, rows_at_once
from .row_coder import RowCoder

# Lowest noise variance, relative to the mean square of X.
NOISE_FLOOR = 1e-12
# Alpha, relative to the size of X, is at most this, and at least its inverse.
_PROPORTION = 1e50


@dataclass(frozen=True)
class LassoModel(ABC):
    """A dictionary and a noise variance: x given z ~ N(z V, s2 I).

    A subclass adds a prior of the codes whose negative log density is ``alpha / s2`` times their
    l1 norm, so that the lasso code is the posterior mode, and an approximation of the posterior.

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

    @abstractmethod
    def bounds(self, X: NDArray) -> NDArray:
        """Return a lower bound on log p(x) of each row, in nats, (n_rows,), float64."""

    @abstractmethod
    def posterior(self, X: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Return mean, standard deviation and inclusion of the codes, each (n_rows, n_components).

        The inclusion is one throughout: these posteriors have no mass at zero.
        """

    @abstractmethod
    def sample_posterior(self, X: NDArray, n_draws: int) -> NDArray:
        """Draw codes from the posterior of each row, (n_draws, n_rows, n_components)."""

    @abstractmethod
    def code_divergence(self, X: NDArray) -> NDArray:
        """Return the KL of each code's posterior from its prior, nats, (n_rows, n_components)."""

    @abstractmethod
    def _prior_codes(self, random_state: np.random.RandomState, shape: tuple[int, int]) -> NDArray:
        """Draw codes from the prior."""

    def sample(self, n_samples: int, random_state: Any) -> NDArray:
        """Draw rows: codes from the prior, then the dictionary, then noise."""
        random_state = private_random_state(random_state)
        n_components, n_features = self.dictionary.shape
        codes = self._prior_codes(random_state, (n_samples, n_components))
        noise = random_state.normal(0, self.noise_variance**0.5, (n_samples, n_features))
        return (codes @ self.dictionary + noise).astype(self.dictionary.dtype, copy=False)

    def _rows_at_once(self, n_most: int) -> int:
        """Return how many rows to process at once, ``n_most`` except with many atoms."""
        return min(n_most, rows_at_once(max(self.dictionary.shape)))

    @cached_property
    def _atoms(self) -> Tensor:
        return torch.from_numpy(self.dictionary).double()

    def _codes(self, X: NDArray) -> Tensor:
        rows = self.coder.to_rows(X)
        dictionary = self.coder.to_rows(self.dictionary).to(rows.dtype)
        return self.coder.lasso(rows, dictionary).codes.cpu()


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
