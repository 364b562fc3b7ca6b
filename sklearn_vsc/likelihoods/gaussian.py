"""Normal noise, with one variance or one for each feature."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..solvers.missing import n_observed
from ._base import Likelihood, squared_error

_LOG_2PI = math.log(2 * math.pi)
# A variance below this share of the data's variance is rounding error, not noise.
_MIN_NOISE_VARIANCE = 1e-6
# A fixed noise variance, relative to the variance of X, is no less than this, and no more than its
# inverse.
_LEAST_FIXED_VARIANCE = 1e-10


class GaussianLikelihood(Likelihood):
    """Independent normal noise, with the same variance for every feature unless a model says so.

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
        if self.learned and not log_variance.ndim:
            log_variance = log_variance.clamp_min(math.log(_MIN_NOISE_VARIANCE))
        return log_variance.exp()

    @torch.no_grad()
    def put_noise_variance(self, values: Tensor) -> None:
        """Set variances of shape (n_features,), in squared units of the model, one each."""
        variance = self.log_noise_variance
        if variance.shape == values.shape:
            variance.copy_(values.log())
        else:
            self.log_noise_variance = nn.Parameter(
                values.log().to(variance), requires_grad=variance.requires_grad
            )

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
        if not self.learned and self._given is not None and not self.log_noise_variance.ndim:
            self.set_noise_variance(self._given)

    @property
    def learned_noise_variance(self) -> float | None:
        """The variance, where it is learned."""
        if not self.learned or self.log_noise_variance.ndim:
            return None
        return float(self.noise_variance.detach())

    def noise_variance_in(self, unit: float) -> float | NDArray:
        """Return the noise variance, or that of each feature, of rows in units of X."""
        variances = self.noise_variance.detach().double().cpu().numpy() * unit**2
        if variances.ndim:
            return variances
        variance = float(variances)
        if not math.isfinite(variance):
            raise ValueError(
                "Training diverged: the learned noise variance is not finite. Try a smaller "
                "'learning_rate_init'."
            )
        return variance

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log density of rows (n, D) given outputs (..., n, D), summed over observed entries."""
        if self.log_noise_variance.ndim:
            deviation = self.noise_variance.sqrt()
            error = squared_error(x / deviation, output / deviation)
            log_scale = torch.where(x.isnan(), 0, deviation.log()).sum(-1)
            return -0.5 * (error + n_observed(x) * _LOG_2PI) - log_scale
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
