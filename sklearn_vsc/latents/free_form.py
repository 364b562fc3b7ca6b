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
_ROOT_HALF, _ROOT_2_OVER_PI = math.sqrt(0.5), math.sqrt(2 / math.pi)
# Keeps the formulas finite for atoms of norm zero.
_TINY = 1e-30
# Cuts below which moments of a tail follow from a continued fraction, and its number of terms.
_TAIL, _N_TERMS = -4.0, 12


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
        return (self.curvature + self.laws.precision + _TINY).rsqrt()

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
            # Not rounded to float32, where numbers near one would become one.
            open_uniform(shape, generator).to(self.field.device),
            logistic_noise(shape, generator, self.field),
        )

    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Draw codes; each side of a slab by the inverse of its distribution function."""
        assert noise.gate is not None
        above, below = self._sides
        share = self._share_above
        uniform, share = noise.base, share.to(noise.base)
        is_above = uniform < share
        # What is left of the number, given the side, is uniform again.
        up = uniform / share.clamp_min(_TINY)
        down = (uniform - share) / (1 - share).clamp_min(_TINY)
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
        self.spread = spread
        # Mean of the normal distribution, in units of its spread.
        self.cut = h * spread

    @cached_property
    def log_mass(self) -> Tensor:
        """Log of the integral of the density."""
        t = self.cut
        # Without overflow where t is small, and without loss of digits where it is large.
        low = torch.log(self._scaled_share / 2)
        high = torch.special.log_ndtr(t.clamp_min(0)) + 0.5 * t.clamp_min(0) ** 2
        return _HALF_LOG_2PI + self.spread.log() + torch.where(t < 0, low, high)

    @cached_property
    def _scaled_share(self) -> Tensor:
        """Twice the share above zero times ``exp(t^2 / 2)``, where t is negative."""
        return torch.special.erfcx(-self.cut.clamp_max(0) * _ROOT_HALF)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square, in units of the spread."""
        t = self.cut
        density = torch.exp(-0.5 * t.clamp_min(0) ** 2 - _HALF_LOG_2PI)
        high = density / torch.special.ndtr(t.clamp_min(0))
        near = t + torch.where(t < 0, _ROOT_2_OVER_PI / self._scaled_share, high)
        # The continued fraction of Mills' ratio; its steps give the moments without a difference.
        x = -t.clamp_max(_TAIL)
        rest = 0.5 * (x + (x**2 + 4 * (_N_TERMS + 1)).sqrt())
        for j in range(_N_TERMS, 2, -1):
            rest = x + j / rest
        last = x + 2 / rest
        in_tail = t < _TAIL
        mean = torch.where(in_tail, 1 / last, near)
        return mean, torch.where(in_tail, 2 / last / rest, 1 + t * near)

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.spread * self._moments[0]

    @property
    def square(self) -> Tensor:
        """Mean square."""
        return self.spread**2 * self._moments[1]

    def quantile(self, probability: Tensor) -> Tensor:
        """Return the value below which there is this share of the mass, in its dtype."""
        t = self.cut.to(probability)
        probability = probability.clamp_max(1 - torch.finfo(probability.dtype).eps / 2)
        near = t - torch.special.ndtri(torch.special.ndtr(t.clamp_min(_TAIL)) * (1 - probability))
        far = _tail_quantile(-t.clamp_max(_TAIL), -torch.log1p(-probability))
        found = torch.where(t < _TAIL, far, near)
        return self.spread.to(found) * found.clamp_min(0)


def _tail_quantile(x: Tensor, hazard: Tensor) -> Tensor:
    """Return by how much a standard normal number beyond x exceeds it.

    Parameters
    ----------
    x : Tensor
        Where the tail starts, far above zero.
    hazard : Tensor
        Minus the log of the share of the tail that lies above the result.
    """

    def log_ratio(y: Tensor) -> Tensor:
        """Log of Mills' ratio, up to a constant."""
        return torch.special.erfcx(y * _ROOT_HALF).log()

    # Newton steps, from the value that a constant ratio would give.
    found = 2 * hazard / (x + (x**2 + 2 * hazard).sqrt())
    for _ in range(3):
        y = x + found
        excess = found * (x + 0.5 * found) + log_ratio(x) - log_ratio(y) - hazard
        found = found - excess * torch.special.erfcx(y * _ROOT_HALF) / _ROOT_2_OVER_PI
    return found
