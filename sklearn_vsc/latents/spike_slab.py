"""Spike and slab: a gate decides whether a code is zero or a draw from the slab."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, distributions
from torch.nn.functional import logsigmoid

from ._base import GatedPosterior, LatentFamily
from ._checks import check_choice, check_gradient, check_number
from ._draws import Draws, Noise, bounded_exp, gated_draws, logistic_noise
from .gaussian import Gaussian
from .laplace import Laplace

SLABS: dict[str, type[Gaussian] | type[Laplace]] = {"gaussian": Gaussian, "laplace": Laplace}
# Log-odds move at most this far from the prior's, so that saturated gates stay finite.
_LOGIT_RANGE = 20.0
_GRADIENTS = ("gumbel_softmax", "straight_through", "score")


class SpikeSlab(LatentFamily):
    """Prior and posterior of a gated code z = g v [1]_.

    Parameters
    ----------
    slab : {'gaussian', 'laplace'}, default='gaussian'
        Distribution of a code that is not zero.
    prior_scale : float, default=1.0
        Standard deviation of a Gaussian slab, or scale of a Laplace slab, under the prior.
    density : float, default=0.1
        Prior probability that a gate is open.
    gradient : {'gumbel_softmax', 'straight_through', 'score'}, default='gumbel_softmax'
        How gates pass gradients in training: relaxed gates, hard gates with the gradient of
        relaxed ones, or hard gates whose gradient is left to a score-function estimator.

    Raises
    ------
    ValueError
        When an argument is not allowed.

    References
    ----------
    .. [1] Tonolini, F., Jensen, B. S. and Murray-Smith, R. (2020). Variational Sparse Coding.
       Uncertainty in Artificial Intelligence.

    Examples
    --------
    >>> from sklearn_vsc import SparseVAE
    >>> from sklearn_vsc.latents import SpikeSlab
    >>> SparseVAE(prior=SpikeSlab("laplace", density=0.05))
    SparseVAE(prior=SpikeSlab(slab='laplace', density=0.05))
    """

    def __init__(
        self,
        slab: str = "gaussian",
        *,
        prior_scale: float = 1.0,
        density: float = 0.1,
        gradient: str = "gumbel_softmax",
    ) -> None:
        check_choice("slab", slab, SLABS)
        check_number("prior_scale", prior_scale)
        check_number("density", density, 0, 1)
        check_choice("gradient", gradient, _GRADIENTS)
        self.slab = slab
        self._slab_distribution = SLABS[slab]
        self.prior_scale = prior_scale
        self.density = density
        self.gradient = gradient

    def with_gradient(self, gradient: str) -> Self:
        """Return a copy whose gates pass gradients in a given way."""
        found = super().with_gradient(gradient)
        if gradient not in ("auto", "exact"):
            check_gradient(self, gradient, _GRADIENTS)
            found.gradient = gradient
        return found

    @property
    def n_heads(self) -> int:
        """Number of parameters per code: location, scale and log-odds."""
        return 3

    @property
    def gate_heads(self) -> tuple[float, ...]:
        """The log-odds are a head."""
        return (0.0, 0.0, 1.0)

    @property
    def has_relaxed_gates(self) -> bool:
        """Whether gates are relaxed: in draws, or in a score function's control variate."""
        return True

    @property
    def prior_logit(self) -> float:
        """Prior log-odds of an open gate."""
        return math.log(self.density) - math.log1p(-self.density)

    def posterior(self, heads: Tensor) -> SpikeSlabPosterior:
        """Read the posterior from heads of shape (n_rows, n_heads, n_components)."""
        shift = _LOGIT_RANGE * torch.tanh(heads[:, 2] / _LOGIT_RANGE)
        return SpikeSlabPosterior(
            self,
            self.prior_scale * heads[:, 0],
            bounded_exp(heads[:, 1], self.prior_scale),
            self.prior_logit + shift,
        )

    def as_gated(self) -> SpikeSlab:
        """Return the family itself."""
        return self

    def gated_posterior(self, loc: Tensor, scale: Tensor, logit: Tensor) -> SpikeSlabPosterior:
        """Return the posterior with these parameters, each (n_rows, n_components)."""
        return SpikeSlabPosterior(self, loc, scale, logit)

    @property
    def slab_name(self) -> str:
        """Distribution of a code that is not zero: 'gaussian' or 'laplace'."""
        return self.slab

    @cached_property
    def slab_scale(self) -> float:
        """Standard deviation under the prior of a code that is not zero."""
        scale = torch.tensor(self.prior_scale, dtype=torch.float64)
        return float(self._slab_distribution.variance(scale)) ** 0.5

    def slab_prior(self, like: Tensor) -> distributions.Distribution:
        """Prior of a code that is not zero."""
        scale = like.new_tensor(self.prior_scale)
        return self._slab_distribution.distribution(
            torch.zeros_like(scale), scale, validate_args=False
        )

    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Draw codes of the given shape from the prior."""
        like = torch.empty(0, dtype=dtype)
        slab = self.prior_scale * self._slab_distribution.noise(shape, generator, like)
        on = torch.rand(shape, generator=generator, dtype=dtype) < self.density
        return torch.where(on, slab, 0)

    @cached_property
    def prior_inclusion(self) -> float:
        """Probability under the prior that a code is not zero."""
        return self.density

    @cached_property
    def prior_variance(self) -> float:
        """Variance of a code under the prior."""
        return self.density * self.slab_scale**2


@dataclass(frozen=True)
class SpikeSlabPosterior(GatedPosterior):
    """Posterior of gated codes.

    Attributes
    ----------
    family : SpikeSlab
        The prior.
    loc, scale : Tensor of shape (n_rows, n_components)
        Location and scale of the slab.
    logit : Tensor of shape (n_rows, n_components)
        Log-odds of an open gate.
    """

    family: SpikeSlab
    loc: Tensor
    scale: Tensor
    logit: Tensor

    def row(self, index: int) -> SpikeSlabPosterior:
        """Return the posterior of one row, as a batch of one."""
        cut = slice(index, index + 1)
        return SpikeSlabPosterior(self.family, self.loc[cut], self.scale[cut], self.logit[cut])

    def as_gated(self) -> SpikeSlabPosterior:
        """Return the posterior itself."""
        return self

    @property
    def inclusion(self) -> Tensor:
        """Probability that the code is not zero."""
        return torch.sigmoid(self.logit)

    @property
    def mean(self) -> Tensor:
        """Mean of the code."""
        return self.inclusion * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of the code."""
        on = self.inclusion
        return (
            on * self.family._slab_distribution.variance(self.scale) + on * (1 - on) * self.loc**2
        )

    def mode(self) -> Tensor:
        """Sparse point estimate: the location of the slab where the gate is more likely open."""
        return torch.where(self.logit > 0, self.loc, 0)

    @property
    def _slab(self) -> distributions.Distribution:
        return self.family._slab_distribution.distribution(
            self.loc, self.scale, validate_args=False
        )

    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw noise for the slab, and logistic noise for the gates."""
        shape = (n_draws, *self.loc.shape)
        slab = self.family._slab_distribution.noise(shape, generator, self.loc)
        return Noise(slab, logistic_noise(shape, generator, self.loc))

    def slab_draws(self, noise: Noise, noise_scale: float = 1.0) -> Tensor:
        """Return draws of the codes as if every gate were open."""
        return self.loc + noise_scale * self.scale * noise.base

    def gate_argument(self, noise: Noise) -> Tensor:
        """Return log-odds plus logistic noise; a gate is open where they are positive."""
        assert noise.gate is not None
        return self.logit + noise.gate

    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Draw gated codes; gradients pass the gate as the family's ``gradient`` says."""
        slab = self.slab_draws(noise, noise_scale)
        family = self.family
        return gated_draws(self.gate_argument(noise), slab, family.gradient, family.temperature)

    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL(q || p) in nats: the KL of the gate, plus the KL of the slab where it is open."""
        on, family = self.inclusion, self.family
        prior_on = torch.full_like(self.logit, family.prior_logit)
        gate = on * (logsigmoid(self.logit) - logsigmoid(prior_on)) + (1 - on) * (
            logsigmoid(-self.logit) - logsigmoid(-prior_on)
        )
        slab = distributions.kl_divergence(self._slab, family.slab_prior(self.loc))
        return gate + on * slab

    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x) at the draws, in nats."""
        code = draws.code_if_on
        slab = self.family.slab_prior(self.loc).log_prob(code) - self._slab.log_prob(code)
        return self.gate_log_ratio(draws) + draws.where_on(slab, torch.zeros_like(slab))

    def gate_log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(S) - log q(S given x) of the gates alone, in nats."""
        prior_on = torch.full_like(self.logit, self.family.prior_logit)
        off = logsigmoid(-prior_on) - logsigmoid(-self.logit)
        on = logsigmoid(prior_on) - logsigmoid(self.logit)
        return draws.where_on(on, off)
