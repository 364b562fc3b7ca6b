"""The best mean-field factor of a code under Gaussian noise: a spike and two truncated normals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ._base import LatentPosterior
from ._draws import Draws, Noise, logistic_noise, open_uniform

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Standard deviations below which moments of a tail follow from their expansion.
_FAR_TAIL = -50.0


@dataclass(frozen=True)
class SlabLaws:
    """Priors of the codes: log-odds of a code that is not zero, and its slab.

    The log density of the slab is ``log_constant - rate |z| - precision z^2 / 2``, on both sides of
    zero or, with ``positive``, above it alone. Each is a tensor of shape (n_components,).
    """

    logit: Tensor
    log_constant: Tensor
    rate: Tensor
    precision: Tensor
    positive: bool = False


@dataclass(frozen=True)
class FreeFormPosterior(LatentPosterior):
    """Posterior of codes whose factors maximise the ELBO of their row.

    Attributes
    ----------
    laws : SlabLaws
        Priors of the codes.
    field : Tensor of shape (n_rows, n_components)
        Inner products of the atoms with the residual that the other codes leave, in the metric of
        the noise.
    curvature : Tensor of shape (n_rows, n_components)
        Squared norms of the atoms in that metric.
    contrast : Tensor of shape (n_rows, 1)
        Factor of the codes of a row.
    """

    laws: SlabLaws
    field: Tensor
    curvature: Tensor
    contrast: Tensor

    def row(self, index: int) -> FreeFormPosterior:
        """Return the posterior of one row, as a batch of one."""
        cut = slice(index, index + 1)
        return FreeFormPosterior(
            self.laws, self.field[cut], self.curvature[cut], self.contrast[cut]
        )

    @cached_property
    def _spread(self) -> Tensor:
        """Standard deviation of the normal distributions that are cut."""
        return (self.curvature + self.laws.precision).rsqrt()

    @cached_property
    def _sides(self) -> tuple[_Side, _Side]:
        """The parts above and below zero; with ``positive`` the latter has no mass."""
        rate = self.laws.rate
        return _Side(self.field - rate, self._spread), _Side(-self.field - rate, self._spread)

    @cached_property
    def _share_above(self) -> Tensor:
        """Probability that a code that is not zero is above it."""
        if self.laws.positive:
            return torch.ones_like(self.field)
        above, below = self._sides
        return torch.sigmoid(above.log_mass - below.log_mass)

    @cached_property
    def logit(self) -> Tensor:
        """Log-odds of a code that is not zero."""
        above, below = self._sides
        mass = above.log_mass
        if not self.laws.positive:
            mass = torch.logaddexp(mass, below.log_mass)
        return self.laws.logit + self.laws.log_constant + mass

    @property
    def inclusion(self) -> Tensor:
        """Probability that the code is not zero."""
        return torch.sigmoid(self.logit)

    def _of_slab(self, above: Tensor, below: Tensor) -> Tensor:
        share = self._share_above
        return share * above + (1 - share) * below

    @cached_property
    def _slab_mean(self) -> Tensor:
        above, below = self._sides
        return self._of_slab(above.mean, -below.mean)

    @cached_property
    def _slab_square(self) -> Tensor:
        above, below = self._sides
        return self._of_slab(above.square, below.square)

    @property
    def mean(self) -> Tensor:
        """Mean of the code."""
        return self.contrast * self.inclusion * self._slab_mean

    @property
    def variance(self) -> Tensor:
        """Variance of the code."""
        on = self.inclusion
        return self.contrast**2 * (on * self._slab_square - (on * self._slab_mean) ** 2)

    def mode(self) -> Tensor:
        """Sparse point estimate: the mean of the slab where the code is more likely not zero."""
        return self.contrast * torch.where(self.logit > 0, self._slab_mean, 0)

    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw uniform noise for the values, and logistic noise for the gates."""
        shape = (n_draws, *self.field.shape)
        return Noise(
            open_uniform(shape, generator).to(self.field),
            logistic_noise(shape, generator, self.field),
        )

    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Draw codes; each side of a slab by the inverse of its distribution function."""
        assert noise.gate is not None
        above, below = self._sides
        share = self._share_above
        uniform = noise.base.double()
        is_above = uniform < share
        # What is left of the number, given the side, is uniform again.
        up = uniform / share.double().clamp_min(1e-300)
        down = (uniform - share) / (1 - share).double().clamp_min(1e-300)
        size = torch.where(is_above, above.quantile(up), below.quantile(down))
        slab = torch.where(is_above, size, -size).to(self.field)
        active = self.logit + noise.gate > 0
        code = self.contrast * torch.where(active, slab, 0)
        return Draws(code, active)

    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL(q || p) in nats."""
        on = self.inclusion
        mean, square = on * self._slab_mean, on * self._slab_square
        none = logsigmoid(-self.laws.logit)
        return self.field * mean - 0.5 * self.curvature * square - none - softplus(self.logit)

    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x) at the draws, in nats."""
        off = logsigmoid(-self.laws.logit) - logsigmoid(-self.logit)
        code = draws.code / self.contrast
        return torch.where(draws.active, self._log_ratio_on(code), off)

    def gate_log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(S) - log q(S given x) of which codes are not zero, in nats."""
        on = logsigmoid(self.laws.logit) - logsigmoid(self.logit)
        off = logsigmoid(-self.laws.logit) - logsigmoid(-self.logit)
        return torch.where(draws.active, on, off)

    def _log_ratio_on(self, code: Tensor) -> Tensor:
        mass = self.logit - self.laws.logit - self.laws.log_constant
        prior = logsigmoid(self.laws.logit) + self.laws.log_constant
        posterior = logsigmoid(self.logit) - mass
        return prior - posterior - self.field * code + 0.5 * self.curvature * code**2


class _Side:
    """The part of a slab times the likelihood that lies above zero.

    Its log density is ``h z - z^2 / (2 spread^2)``, up to a constant.

    Parameters
    ----------
    h, spread : Tensor
        Slope at zero, and standard deviation of the normal distribution that is cut.
    """

    def __init__(self, h: Tensor, spread: Tensor) -> None:
        self.cut = h * spread
        self.spread = spread
        # log Phi(t) + t^2 / 2 from the scaled complementary error function, which does not overflow
        # where t is small, nor lose digits where it is large.
        t = self.cut
        low = torch.log(torch.special.erfcx(-t.clamp_max(0) * math.sqrt(0.5)) / 2)
        high = torch.special.log_ndtr(t.clamp_min(0)) + 0.5 * t.clamp_min(0) ** 2
        self.log_tail = torch.where(t < 0, low, high)

    @property
    def log_mass(self) -> Tensor:
        """Log of the integral of the density."""
        return _HALF_LOG_2PI + self.spread.log() + self.log_tail

    @cached_property
    def _beyond(self) -> Tensor:
        """Mean in units of the spread."""
        t = self.cut
        near = t + torch.exp(-_HALF_LOG_2PI - self.log_tail)
        far = t.clamp_max(_FAR_TAIL)
        return torch.where(t < _FAR_TAIL, -(1 - 2 / far**2) / far, near)

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.spread * self._beyond

    @property
    def square(self) -> Tensor:
        """Mean square."""
        t = self.cut
        far = t.clamp_max(_FAR_TAIL)
        near = 1 + t * self._beyond
        return self.spread**2 * torch.where(t < _FAR_TAIL, (2 - 10 / far**2) / far**2, near)

    def quantile(self, probability: Tensor) -> Tensor:
        """Return the value below which there is this share of the mass."""
        t = self.cut.double()
        # The upper tail keeps its digits where the cut is far out.
        log_upper = torch.special.log_ndtr(t) + torch.log1p(-probability.clamp(0, 1 - 1e-16))
        near = t - _ndtri_exp(log_upper)
        far = -torch.log1p(-probability.clamp(0, 1 - 1e-16)) / -t.clamp_max(-1)
        found = torch.where(t < -30, far, near)
        return self.spread.double() * found.clamp_min(0)


def _ndtri_exp(log_probability: Tensor) -> Tensor:
    """Return the normal quantile of a probability given as its logarithm."""
    near = torch.special.ndtri(log_probability.exp())
    # Asymptotic start and two Newton steps, where the probability is too small for a float.
    start = -torch.sqrt((-2 * log_probability).clamp_min(1e-12))
    for _ in range(4):
        log_ndtr = torch.special.log_ndtr(start)
        slope = torch.exp(-0.5 * start**2 - _HALF_LOG_2PI - log_ndtr)
        start = start - (log_ndtr - log_probability) / slope
    return torch.where(log_probability < -300, start, near)
