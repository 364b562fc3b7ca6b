"""Parameters of the sparse linear model, as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, log_ndtr, ndtr, ndtri

from ..posterior.free_form import CodePriors

# Probabilities of a code that is not zero stay this far from 0 and 1.
LEAST_DENSITY, MOST_DENSITY = 1e-6, 1 - 1e-6
# Beyond the threshold, in standard deviations, of the least density.
_MOST_THRESHOLD = 5.0


@dataclass(frozen=True)
class Slab:
    """Distribution of a code that is not zero.

    Attributes
    ----------
    name : {'laplace', 'gaussian', 'thresholded'}
        'thresholded': what is left of a normal draw beyond a threshold, less the threshold.
    scale : float
        Scale of the Laplace distribution, standard deviation of the normal ones.
    positive : bool
        Whether codes are never negative.
    """

    name: str = "laplace"
    scale: float = 1.0
    positive: bool = False

    def threshold(self, density: NDArray) -> NDArray:
        """Return the threshold of a 'thresholded' slab at which so many draws are not zero."""
        return -self.scale * ndtri(np.clip(density, LEAST_DENSITY, MOST_DENSITY) / 2)

    def priors(self, density: NDArray) -> CodePriors:
        """Return the priors of codes that are not zero with these probabilities, (K,)."""
        density = np.clip(density, LEAST_DENSITY, MOST_DENSITY)
        logit = np.log(density) - np.log1p(-density)
        rate, precision = np.zeros_like(logit), np.zeros_like(logit)
        if self.name == "laplace":
            rate += 1 / self.scale
            constant = np.full_like(logit, -math.log(2 * self.scale))
        else:
            precision += 1 / self.scale**2
            constant = np.full_like(logit, -0.5 * math.log(2 * math.pi) - math.log(self.scale))
        if self.name == "thresholded":
            # The same on both sides, so the mass of the slab is twice that of one tail.
            threshold = self.threshold(density)
            rate = threshold / self.scale**2
            tails = math.log(2) + log_ndtr(-threshold / self.scale)
            constant -= 0.5 * (threshold / self.scale) ** 2 + tails
        if self.positive:
            constant += math.log(2)
        return CodePriors(logit, constant, rate, precision, self.positive)

    def mean_size(self, density: NDArray) -> NDArray:
        """Return the mean absolute value of a code that is not zero."""
        if self.name == "laplace":
            return np.full_like(density, self.scale)
        if self.name == "gaussian":
            return np.full_like(density, self.scale * math.sqrt(2 / math.pi))
        ratio = self.threshold(density) / self.scale
        hazard = np.exp(-0.5 * ratio**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(-ratio))
        return self.scale * (hazard - ratio)

    def mean_square(self, density: NDArray) -> NDArray:
        """Return the mean square of a code that is not zero."""
        if self.name == "laplace":
            return np.full_like(density, 2 * self.scale**2)
        if self.name == "gaussian":
            return np.full_like(density, self.scale**2)
        ratio = self.threshold(density) / self.scale
        return self.scale**2 - self.scale * ratio * self.mean_size(density)

    def best_density(self, n_codes: NDArray, inclusion: NDArray, size: NDArray) -> NDArray:
        """Return the most likely density.

        Parameters
        ----------
        n_codes, inclusion, size : ndarray
            Number of codes, expected number of those that are not zero, and their expected sum of
            absolute values.
        """
        if self.name != "thresholded":
            return inclusion / n_codes
        # The threshold decides on the sizes too: those of draws are larger by it. The slope of the
        # log likelihood in the threshold falls from infinity; its root is found by halving.
        lowest, highest = np.zeros_like(inclusion), np.full_like(inclusion, _MOST_THRESHOLD)
        n_zeros = np.maximum(n_codes - inclusion, 0)
        for _ in range(50):
            middle = 0.5 * (lowest + highest)
            peak = np.exp(-0.5 * middle**2) * math.sqrt(2 / math.pi)
            slope = n_zeros * peak / erf(middle * math.sqrt(0.5))
            rises = slope > inclusion * middle + size / self.scale
            lowest, highest = np.where(rises, middle, lowest), np.where(rises, highest, middle)
        return 2 * ndtr(-highest)

    def growth(
        self, density: NDArray, inclusion: NDArray, size: NDArray, square: NDArray
    ) -> NDArray:
        """Return the most likely scale of codes that are not zero, as a multiple of their own.

        Parameters
        ----------
        density : ndarray of shape (n_components,)
            Prior probabilities of codes that are not zero.
        inclusion, size, square : ndarray of shape (n_components,)
            Expected number of codes that are not zero, and their expected sums of absolute values
            and of squares. The prior counts as one code more.
        """
        n = inclusion + 1
        size = (size + self.mean_size(density)) / self.scale
        if self.name == "laplace":
            return size / n
        square = (square + self.mean_square(density)) / self.scale**2
        pull = np.zeros_like(size)
        if self.name == "thresholded":
            pull = self.threshold(density) / self.scale * size
        # The positive root of n s^2 - pull s - square.
        return (pull + np.sqrt(pull**2 + 4 * n * square)) / (2 * n)


@dataclass
class Contrasts:
    """Distribution of the contrast of a row, the factor of all that it adds to the intercept.

    Attributes
    ----------
    levels : ndarray of shape (n_levels,)
        The values that it takes, evenly spaced on a log scale.
    shares : ndarray of shape (n_levels,)
        Their probabilities.
    """

    levels: NDArray
    shares: NDArray


@dataclass
class SparseLinear:
    """x = intercept + contrast * (code @ atoms + y @ dense + e), all parts independent.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        The dictionary.
    intercept : ndarray of shape (n_features,)
        Mean of a row whose codes are zero.
    noise : ndarray of shape (n_features,)
        Variance of the noise e of each feature.
    dense : ndarray of shape (n_dense, n_features)
        Columns whose codes y are standard normal.
    density : ndarray of shape (n_components,)
        Prior probability of each code that it is not zero.
    slab : Slab
        Distribution of codes that are not zero.
    freedom : float
        Degrees of freedom of rows whose noise, dense columns included, follows a multivariate
        Student t distribution; infinity: normal noise.
    contrasts : Contrasts or None
        None: the contrast of every row is one.
    """

    atoms: NDArray
    intercept: NDArray
    noise: NDArray
    dense: NDArray
    density: NDArray
    slab: Slab
    freedom: float = math.inf
    contrasts: Contrasts | None = None

    @classmethod
    def plain(cls, atoms: NDArray, noise: float, slab: Slab, density: float) -> SparseLinear:
        """Return a model of rows less their intercept, with one noise variance and one density."""
        n_components, n_features = atoms.shape
        return cls(
            atoms.astype(float),
            np.zeros(n_features),
            np.full(n_features, noise),
            np.zeros((0, n_features)),
            np.full(n_components, density),
            slab,
        )

    @property
    def present(self) -> NDArray:
        """Numbers of the atoms that are not zero; the codes of the others keep their priors."""
        found = np.flatnonzero(self.atoms.any(axis=1))
        return found if len(found) else np.arange(min(1, len(self.atoms)))

    def only(self, numbers: NDArray) -> SparseLinear:
        """Return the model with these atoms alone."""
        return replace(self, atoms=self.atoms[numbers], density=self.density[numbers])

    @property
    def moments(self) -> tuple[NDArray, NDArray]:
        """Mean and variance of each feature, where rows have no scales of their own."""
        density, slab = self.density, self.slab
        mean = density * slab.mean_size(density) if slab.positive else np.zeros_like(density)
        variance = density * slab.mean_square(density) - mean**2
        spread = self.noise + variance @ self.atoms**2 + (self.dense**2).sum(0)
        return self.intercept + mean @ self.atoms, spread

    @property
    def priors(self) -> CodePriors:
        """Priors of the codes."""
        return self.slab.priors(self.density)
