"""Observation models p(x given z): log densities in nats with every constant in.

NaN in a row marks an entry that is not observed. Features are independent given the code, so
such an entry integrates out by leaving its term away.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .solvers.missing import n_observed, observed

_LOG_2PI = math.log(2 * math.pi)
# A variance below this share of the data's power is rounding, not a model.
_MIN_NOISE_VARIANCE = 1e-6


def squared_error(x: Tensor, output: Tensor) -> Tensor:
    """Squared distance (..., n) of rows (n, D) and outputs (..., n, D), where observed."""
    mask = observed(x)
    error = x - output
    return (error if mask is None else torch.where(mask, error, 0)).square().sum(-1)


class Likelihood(nn.Module, ABC):
    """Density of rows given the decoder's output."""

    @abstractmethod
    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log density of rows (n, D) given outputs (..., n, D), summed over observed entries."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Mean of the rows given the decoder's output."""

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw rows given the decoder's output."""


class GaussianLikelihood(Likelihood):
    """Independent normal noise of one variance on every feature.

    Parameters
    ----------
    noise_variance : float
        The variance, or where it starts when it is learned.
    learned : bool
        Whether the variance is a trained parameter.
    """

    def __init__(self, noise_variance: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        self.learned = learned
        value = torch.tensor(math.log(noise_variance))
        self.log_noise_variance = nn.Parameter(value, requires_grad=learned)

    @property
    def noise_variance(self) -> Tensor:
        """The variance, never below the floor that keeps log densities finite if learned."""
        log_variance = self.log_noise_variance
        if self.learned:
            log_variance = log_variance.clamp_min(math.log(_MIN_NOISE_VARIANCE))
        return log_variance.exp()

    def set_noise_variance(self, value: float) -> None:
        """Set the variance of a fitted model."""
        if self.learned:
            value = max(value, _MIN_NOISE_VARIANCE)
        with torch.no_grad():
            self.log_noise_variance.fill_(math.log(value))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log density of rows (n, D) given outputs (..., n, D), summed over observed entries."""
        return self.log_prob_of_error(squared_error(x, output), n_observed(x))

    def log_prob_of_error(self, error: Tensor, n_features: Tensor | int) -> Tensor:
        """Log density of rows at this squared distance from their means, or its expectation."""
        variance = self.noise_variance
        return -0.5 * (error / variance + n_features * (_LOG_2PI + variance.log()))

    def mean(self, output: Tensor) -> Tensor:
        """Mean of the rows: the output itself."""
        return output

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise to the output."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        return output + self.noise_variance.sqrt() * noise.to(output.device)


class BernoulliLikelihood(Likelihood):
    """Independent coin flips; the decoder's output is the log-odds.

    For binary rows this is their probability. For grey rows in [0, 1] it is the cross-entropy,
    which is not a normalised density.
    """

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log probability of rows (n, D) given log-odds (..., n, D), over observed entries."""
        mask = observed(x)
        loss = nn.functional.binary_cross_entropy_with_logits
        if mask is None:
            return -loss(output, x.expand_as(output), reduction="none").sum(-1)
        # The gradient of the loss holds its target: a missing one is filled before.
        target = torch.where(mask, x, 0).expand_as(output)
        return -torch.where(mask, loss(output, target, reduction="none"), 0).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """Probability of a one."""
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Flip the coins."""
        uniform = torch.rand(output.shape, generator=generator, dtype=output.dtype)
        return (uniform.to(output.device) < self.mean(output)).to(output.dtype)
