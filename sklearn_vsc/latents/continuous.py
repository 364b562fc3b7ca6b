"""Codes without an atom at zero: prior and posterior each Gaussian, Laplace or Cauchy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, distributions

from ._base import LatentFamily, LatentPosterior
from ._checks import check_choice, check_number
from ._draws import Draws, Noise, bounded_exp
from .cauchy import Cauchy
from .gaussian import Gaussian
from .laplace import Laplace

_NAMED: dict[str, type[Gaussian] | type[Laplace] | type[Cauchy]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "cauchy": Cauchy,
}
# (posterior, prior) whose KL is infinite: the posterior has the heavier tails.
_INFINITE_KL = {("cauchy", "gaussian"), ("cauchy", "laplace")}


class Continuous(LatentFamily):
    """Prior and posterior of a code that is never exactly zero.

    Parameters
    ----------
    prior, posterior : {'gaussian', 'laplace', 'cauchy'}, default='gaussian'
        Distributions of the code.
    prior_scale : float, default=1.0
        Standard deviation of a Gaussian prior, scale of a Laplace or Cauchy prior.

    Raises
    ------
    ValueError
        When an argument is not allowed, or when the posterior has heavier tails than the prior,
        so that the KL divergence is infinite.

    Examples
    --------
    >>> from sklearn_vsc import SparseVAE
    >>> from sklearn_vsc.latents import Continuous
    >>> SparseVAE(prior=Continuous("laplace", "laplace"))
    SparseVAE(prior=Continuous(prior='laplace', posterior='laplace'))
    """

    def __init__(
        self, prior: str = "gaussian", posterior: str = "gaussian", *, prior_scale: float = 1.0
    ) -> None:
        check_choice("prior", prior, _NAMED)
        check_choice("posterior", posterior, _NAMED)
        check_number("prior_scale", prior_scale)
        if (posterior, prior) in _INFINITE_KL:
            raise ValueError(
                f"A Cauchy posterior has an infinite KL from a {prior} prior; use "
                "prior='cauchy', or a posterior with lighter tails."
            )
        self._prior, self._posterior = prior, posterior
        self.prior_distribution, self.posterior_distribution = _NAMED[prior], _NAMED[posterior]
        self.prior_scale = prior_scale

    @property
    def n_heads(self) -> int:
        """Number of parameters per code: location and scale."""
        return 2

    @property
    def is_continuous(self) -> bool:
        """Whether draws are differentiable functions of the posterior's parameters."""
        return True

    @property
    def has_closed_kl(self) -> bool:
        """Whether the KL has a closed form: except for a Cauchy prior with another posterior."""
        return self.prior_distribution is not Cauchy or self.posterior_distribution is Cauchy

    @property
    def has_infinite_variance(self) -> bool:
        """Whether the posterior is a Cauchy distribution."""
        return self.posterior_distribution is Cauchy

    def posterior(self, heads: Tensor) -> ContinuousPosterior:
        """Read the posterior from heads of shape (n_rows, n_heads, n_components)."""
        loc = self.prior_scale * heads[:, 0]
        return ContinuousPosterior(self, loc, bounded_exp(heads[:, 1], self.prior_scale))

    def prior(self, like: Tensor) -> distributions.Distribution:
        """Return the prior of a code."""
        scale = like.new_tensor(self.prior_scale)
        return self.prior_distribution.distribution(
            torch.zeros_like(scale), scale, validate_args=False
        )

    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Draw codes of the given shape from the prior."""
        noise = self.prior_distribution.noise(shape, generator, torch.empty(0, dtype=dtype))
        return self.prior_scale * noise

    @cached_property
    def prior_inclusion(self) -> float:
        """Probability under the prior that a code is not zero: one."""
        return 1.0

    @cached_property
    def prior_variance(self) -> float:
        """Variance of a code under the prior."""
        scale = torch.tensor(self.prior_scale, dtype=torch.float64)
        return float(self.prior_distribution.variance(scale))


@dataclass(frozen=True)
class ContinuousPosterior(LatentPosterior):
    """Posterior of codes without an atom at zero.

    Attributes
    ----------
    family : Continuous
        The prior.
    loc, scale : Tensor of shape (n_rows, n_components)
        Location and scale of each code.
    """

    family: Continuous
    loc: Tensor
    scale: Tensor

    def row(self, index: int) -> ContinuousPosterior:
        """Return the posterior of one row, as a batch of one."""
        cut = slice(index, index + 1)
        return ContinuousPosterior(self.family, self.loc[cut], self.scale[cut])

    @property
    def mean(self) -> Tensor:
        """Mean of the code; for a Cauchy distribution, which has none, the location."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of the code; infinite for a Cauchy distribution."""
        return self.family.posterior_distribution.variance(self.scale)

    @property
    def inclusion(self) -> Tensor:
        """Probability that the code is not zero: one."""
        return torch.ones_like(self.loc)

    def mode(self) -> Tensor:
        """Point estimate: the location, where the density is highest. Never exactly zero."""
        return self.loc

    @property
    def _distribution(self) -> distributions.Distribution:
        named = self.family.posterior_distribution
        return named.distribution(self.loc, self.scale, validate_args=False)

    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw standard noise of the posterior's distribution."""
        shape = (n_draws, *self.loc.shape)
        return Noise(self.family.posterior_distribution.noise(shape, generator, self.loc))

    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Scale the noise and add the location."""
        code = self.loc + noise_scale * self.scale * noise.base
        return Draws(code, torch.ones_like(code, dtype=torch.bool))

    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL(q || p) in nats: in closed form, or log q - log p at the draws."""
        if self.family.has_closed_kl:
            return distributions.kl_divergence(self._distribution, self.family.prior(self.loc))
        if draws is None:
            raise ValueError("This KL has no closed form: draws of the code are needed.")
        return -self.log_ratio(draws)

    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x) at the draws, in nats."""
        prior = self.family.prior(self.loc)
        return prior.log_prob(draws.code) - self._distribution.log_prob(draws.code)
