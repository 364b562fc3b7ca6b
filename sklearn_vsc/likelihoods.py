"""Observation models p(x given z): log densities in nats, normalising constants included.

NaN marks a missing entry of a row. Features are independent given the code, so a missing entry is
integrated out by leaving its term out of the sum.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .solvers.missing import n_observed, observed

_LOG_2PI = math.log(2 * math.pi)
# A variance below this share of the data's variance is rounding error, not noise.
_MIN_NOISE_VARIANCE = 1e-6
# A fixed noise variance, relative to the variance of X, is no less than this, and no more than its
# inverse.
_LEAST_FIXED_VARIANCE = 1e-10
# Means at the ends of a likelihood's range have infinite outputs: they are moved inside.
_LEAST_PROBABILITY = 0.01


def squared_error(x: Tensor, output: Tensor) -> Tensor:
    """Squared distance (..., n) of rows (n, D) and outputs (..., n, D), where observed."""
    mask = observed(x)
    error = x - output
    return (error if mask is None else torch.where(mask, error, 0)).square().sum(-1)


class Likelihood(nn.Module, ABC):
    """Distribution of rows given the decoder's output.

    A subclass answers `log_prob`, `mean` and `sample`; the other methods have defaults. An
    estimator copies the likelihood that it is given, and trains the parameters of the copy.

    Attributes
    ----------
    has_units : bool
        Whether rows may be shifted and divided by a unit before they are modelled. The density
        of a row is then that of the scaled row, divided by the unit once per observed entry.
    link : str or None
        Activation that the likelihood itself applies to the decoder's output, such as 'sigmoid';
        None: the output is in the units of the rows.
    """

    has_units = False
    link: str | None = None

    # --- what the likelihood is for

    def check_range(self, least: float, most: float) -> None:
        """Refuse rows with values that the likelihood does not allow.

        Parameters
        ----------
        least, most : float
            Range of the observed entries.

        Raises
        ------
        ValueError
            Where the range is not allowed.
        """

    def check_rows(self, X: NDArray, first_row: int = 0) -> None:
        """Refuse single entries that the likelihood does not allow.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Rows, NaN where an entry is missing.
        first_row : int
            Index of the first of these rows among all rows, for the message.

        Raises
        ------
        ValueError
            Where an entry is not allowed; the message names the first one.
        """

    # --- before and after training

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data, which ``save`` writes.

        Only likelihoods of this package need it: other classes are given to ``load`` again.
        """
        return {}

    def in_units(self, unit: float) -> Self:
        """Return a copy for rows that are divided by ``unit``."""
        return copy.deepcopy(self)

    def start(self, rows: Tensor) -> None:
        """Set the parameters from a sample of the training rows (n, n_features).

        Called once on the copy that is trained, before training; NaN marks a missing entry.
        """

    def restore_fixed(self) -> None:
        """Set parameters that are not learned again, after a change of precision rounded them."""

    @property
    def learned_noise_variance(self) -> float | None:
        """A learned noise variance whose best value is the mean squared error; None: there is none.

        After training, the estimator sets it to that value by `set_noise_variance`.
        """
        return None

    def set_noise_variance(self, value: float) -> None:
        """Set the noise variance, in squared units of the model."""
        raise NotImplementedError(f"{type(self).__name__} has no noise variance.")

    def noise_variance_in(self, unit: float) -> float:
        """Return the noise variance of rows in units of X; NaN where there is none.

        Raises
        ------
        ValueError
            Where training has made it infinite or NaN.
        """
        return math.nan

    # --- what networks read and write

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return rows as an encoder reads them, such as their logarithm; NaN stays NaN."""
        return x

    def output_of(self, mean: Tensor) -> Tensor:
        """Return the decoder's output at which rows have this mean, away from infinity."""
        return mean

    # --- the distribution

    @abstractmethod
    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log density of rows (n, D) given outputs (..., n, D), summed over observed entries."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Mean of the rows given the decoder's output."""

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw rows given the decoder's output."""

    @property
    def has_closed_expectation(self) -> bool:
        """Whether `expected_log_prob` is known."""
        return False

    def expected_log_prob(self, x: Tensor, output: Tensor, output_variance: Tensor) -> Tensor:
        """Expected log density of rows (n, D) under independent codes and a linear decoder.

        Parameters
        ----------
        x : Tensor of shape (n, D)
            Rows.
        output : Tensor of shape (n, D)
            Mean of the decoder's output.
        output_variance : Tensor of shape (n,)
            Variance of the decoder's output, summed over the observed entries of each row.

        Returns
        -------
        log_prob : Tensor of shape (n,)
            Nats.
        """
        raise NotImplementedError(f"{type(self).__name__} has no expectation in closed form.")


class GaussianLikelihood(Likelihood):
    """Independent normal noise with the same variance for every feature.

    Parameters
    ----------
    noise_variance : float or None
        The variance in squared units of the rows, or the value that a learned one starts from;
        None: it starts from the variance of the training rows.
    learned : bool
        Whether the variance is a trained parameter.
    """

    has_units = True

    def __init__(self, noise_variance: float | None = None, *, learned: bool = True) -> None:
        super().__init__()
        if noise_variance is None and not learned:
            raise ValueError("A noise variance that is not learned must be given as a number.")
        if noise_variance is not None and not 0 < noise_variance < math.inf:
            raise ValueError(f"noise_variance must be positive and finite; got {noise_variance!r}.")
        self._given = noise_variance
        self.learned = learned
        value = torch.tensor(math.log(1.0 if noise_variance is None else noise_variance))
        self.log_noise_variance = nn.Parameter(value, requires_grad=learned)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"noise_variance": self._given, "learned": self.learned}

    @property
    def noise_variance(self) -> Tensor:
        """The variance; a learned one is at least the floor that keeps log densities finite."""
        log_variance = self.log_noise_variance
        if self.learned:
            log_variance = log_variance.clamp_min(math.log(_MIN_NOISE_VARIANCE))
        return log_variance.exp()

    def set_noise_variance(self, value: float) -> None:
        """Set the variance, in squared units of the model."""
        if self.learned:
            value = max(value, _MIN_NOISE_VARIANCE)
        with torch.no_grad():
            self.log_noise_variance.fill_(math.log(value))

    def in_units(self, unit: float) -> Self:
        """Return a copy for rows that are divided by ``unit``."""
        if self._given is None:
            return copy.deepcopy(self)
        relative = self._given / unit**2
        if not _LEAST_FIXED_VARIANCE <= relative <= 1 / _LEAST_FIXED_VARIANCE:
            raise ValueError(
                f"noise_variance={self._given!r} is out of proportion to X, whose variance "
                f"is {unit**2:.3g}: use {_LEAST_FIXED_VARIANCE:g} to "
                f"{1 / _LEAST_FIXED_VARIANCE:g} times as much, or noise_variance='learned'."
            )
        return type(self)(relative, learned=self.learned)

    def restore_fixed(self) -> None:
        """Set a variance that is not learned again, after a change of precision rounded it."""
        if not self.learned and self._given is not None:
            self.set_noise_variance(self._given)

    @property
    def learned_noise_variance(self) -> float | None:
        """The variance, where it is learned."""
        return float(self.noise_variance.detach()) if self.learned else None

    def noise_variance_in(self, unit: float) -> float:
        """Return the noise variance of rows in units of X."""
        variance = float(self.noise_variance.detach()) * unit**2
        if not math.isfinite(variance):
            raise ValueError(
                "Training diverged: the learned noise variance is not finite. Try a smaller "
                "'learning_rate_init'."
            )
        return variance

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log density of rows (n, D) given outputs (..., n, D), summed over observed entries."""
        return self.log_prob_of_error(squared_error(x, output), n_observed(x))

    def log_prob_of_error(self, error: Tensor, n_features: Tensor | int) -> Tensor:
        """Log density of rows at this squared distance from their means, or its expectation."""
        variance = self.noise_variance
        return -0.5 * (error / variance + n_features * (_LOG_2PI + variance.log()))

    @property
    def has_closed_expectation(self) -> bool:
        """Whether `expected_log_prob` is known: it is, since variances add to the error."""
        return True

    def expected_log_prob(self, x: Tensor, output: Tensor, output_variance: Tensor) -> Tensor:
        """Expected log density of rows under independent codes and a linear decoder, nats."""
        return self.log_prob_of_error(squared_error(x, output) + output_variance, n_observed(x))

    def mean(self, output: Tensor) -> Tensor:
        """Mean of the rows: the output itself."""
        return output

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise to the output."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        return output + self.noise_variance.sqrt() * noise.to(output.device)


class BernoulliLikelihood(Likelihood):
    """Independent binary features; the decoder's output is their log-odds.

    For rows of zeros and ones this is their probability. For grey values in [0, 1] it is the
    cross-entropy, which is not a normalised density.
    """

    link = "sigmoid"

    def check_range(self, least: float, most: float) -> None:
        """Refuse values outside [0, 1]."""
        if least < 0 or most > 1:
            raise ValueError(
                "likelihood='bernoulli' needs X in [0, 1]; got values from "
                f"{least:.3g} to {most:.3g}. Rescale X or use likelihood='gaussian'."
            )

    def output_of(self, mean: Tensor) -> Tensor:
        """Return the log-odds of a mean, which is kept away from 0 and 1."""
        return torch.logit(mean.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log probability of rows (n, D) given log-odds (..., n, D), over observed entries."""
        mask = observed(x)
        loss = nn.functional.binary_cross_entropy_with_logits
        if mask is None:
            return -loss(output, x.expand_as(output), reduction="none").sum(-1)
        # The target enters the gradient of the loss: fill a missing one before.
        target = torch.where(mask, x, 0).expand_as(output)
        return -torch.where(mask, loss(output, target, reduction="none"), 0).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """Probability of a one."""
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw zeros and ones."""
        uniform = torch.rand(output.shape, generator=generator, dtype=output.dtype)
        return (uniform.to(output.device) < self.mean(output)).to(output.dtype)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
}
