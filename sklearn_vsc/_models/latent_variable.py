"""A latent-variable model: encoder, latent family, decoder and likelihood, and its bounds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..latents import Draws, LatentFamily, LatentPosterior, SpikeSlabPosterior
from ..likelihoods import GaussianLikelihood, Likelihood, squared_error
from ..networks import LinearDecoder, TiedEncoder
from ..networks._init import linear_layer
from ..solvers.missing import n_observed, observed
from ..solvers.posterior.collapsed import conditional_mean, log_evidence
from ..solvers.posterior.coordinate_ascent import SlabPrior, refine, refine_observed
from .gate_gradients import NVILBaseline

# A KL term that warms up from nothing: with none at all the best posterior is a point.
_LEAST_KL_WEIGHT = 1e-3


class Heads(nn.Module):
    """Map the encoder's features to the posterior's parameters (n, n_heads, n_components)."""

    def __init__(
        self, n_in: int, n_heads: int, n_components: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        # Small weights: the posterior starts near the prior, where every bound is finite.
        self.linear = linear_layer(n_in, n_heads * n_components, generator, gain=0.1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the heads of each row."""
        return self.linear(features).unflatten(-1, (self.n_heads, -1))


class LatentVariableModel(nn.Module):
    """p(x given z) p(z) with an amortised posterior q(z given x).

    Rows come in and go out in the units of the model; estimators normalise at the door. NaN
    marks what is missing of a row: bounds and posteriors are those of its observed entries.

    Parameters
    ----------
    encoder, heads, decoder : nn.Module
        Rows to features, features to posterior parameters, codes to outputs.
    likelihood : Likelihood
        Density of rows given outputs.
    family : LatentFamily
        Prior and posterior of the codes.
    gate_baseline : NVILBaseline or None
        Trained along with the model where its gates learn by NVIL.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        family: LatentFamily,
        gate_baseline: NVILBaseline | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.decoder = decoder
        self.likelihood = likelihood
        self.family = family
        self.gate_baseline = gate_baseline

    def posterior(self, x: Tensor) -> LatentPosterior:
        """Posterior of each row."""
        return self.family.posterior(self.heads(self._features(x)))

    def _features(self, x: Tensor) -> Tensor:
        """What the heads read; an encoder that is tied to the decoder codes with its atoms."""
        if not isinstance(self.encoder, TiedEncoder):
            return self.encoder(x)
        assert isinstance(self.decoder, LinearDecoder)
        assert isinstance(self.likelihood, GaussianLikelihood)
        # The noise variance learns from the likelihood alone.
        noise_variance = self.likelihood.noise_variance.detach()
        rows = x - self.decoder.bias
        return self.encoder(rows, self.decoder.weight, noise_variance, observed(x))

    @property
    def can_refine(self) -> bool:
        """Whether coordinate ascent applies: a linear decoder, Gaussian noise and free gates."""
        return self.has_closed_likelihood and self.family.as_spike_slab() is not None

    def refine(
        self, x: Tensor, posterior: LatentPosterior, n_sweeps: int, kl_weight: float = 1.0
    ) -> LatentPosterior:
        """Raise the ELBO of each row by sweeps of coordinate ascent; no gradient passes."""
        start = posterior.as_spike_slab()
        family, parameters = start.family, (start.loc, start.scale, start.logit)
        prior = SlabPrior(family.slab_name, family.prior_scale, family.prior_logit)
        rows, atoms, noise_variance = self._linear_model(x)
        # The weight of the KL has the place of a factor of the noise variance.
        noise_variance = max(kl_weight, _LEAST_KL_WEIGHT) * noise_variance
        mask = observed(x)
        with torch.no_grad():
            if mask is None:
                products = rows @ atoms.T, atoms @ atoms.T
                found = refine(*products, noise_variance, prior, parameters, n_sweeps)
            else:
                found = refine_observed(
                    rows, atoms, mask, noise_variance, prior, parameters, n_sweeps
                )
        return SpikeSlabPosterior(family, *found)

    def _linear_model(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Rows less the intercept, atoms and noise variance, outside any graph."""
        assert isinstance(self.decoder, LinearDecoder)
        assert isinstance(self.likelihood, GaussianLikelihood)
        noise_variance = float(self.likelihood.noise_variance.detach())
        return x - self.decoder.bias.detach(), self.decoder.weight.detach(), noise_variance

    def infer(self, x: Tensor, n_refine: int, kl_weight: float = 1.0) -> LatentPosterior:
        """Posterior of each row: the encoder's, refined."""
        posterior = self.posterior(x)
        return self.refine(x, posterior, n_refine, kl_weight) if n_refine else posterior

    def sparse_code(self, x: Tensor, n_refine: int, kl_weight: float = 1.0) -> Tensor:
        """Sparse point estimate of each row.

        That of the encoder's posterior; of a refined one the support that it prefers, with the
        best linear estimate of the coefficients given that support, which for a Gaussian slab
        is their posterior mean.
        """
        posterior = self.infer(x, n_refine, kl_weight)
        if not n_refine:
            return posterior.mode()
        family, support = posterior.as_spike_slab().family, posterior.inclusion > 0.5
        linear = self._linear_model(x)
        return conditional_mean(*linear, family.slab_scale, support[None], observed(x))[0]

    def share_of_active(self, posterior: LatentPosterior) -> Tensor:
        """Share of the codes of each row, (n,), that are more likely non-zero than zero."""
        return (posterior.inclusion > 0.5).float().mean(-1)

    def decode(self, code: Tensor) -> Tensor:
        """Mean of p(x given z)."""
        return self.likelihood.mean(self.decoder(code))

    def log_likelihood(self, x: Tensor, code: Tensor) -> Tensor:
        """Log p(x given z) for codes (n_draws, n, K): shape (n_draws, n), nats."""
        return self.likelihood.log_prob(x, self.decoder(code))

    @property
    def has_closed_likelihood(self) -> bool:
        """Whether E log p(x given z) under q is known in closed form."""
        return isinstance(self.decoder, LinearDecoder) and isinstance(
            self.likelihood, GaussianLikelihood
        )

    def expected_squared_error(self, x: Tensor, posterior: LatentPosterior) -> Tensor:
        """E ||x - output||^2 under q in closed form, (n,): for independent codes variances add."""
        assert isinstance(self.decoder, LinearDecoder)
        bias = squared_error(x, self.decoder(posterior.mean))
        return bias + self.decoder.output_variance(posterior.variance, observed(x))

    def expected_log_likelihood(self, x: Tensor, posterior: LatentPosterior) -> Tensor:
        """E log p(x given z) under q in closed form, (n,), nats."""
        assert isinstance(self.likelihood, GaussianLikelihood)
        error = self.expected_squared_error(x, posterior)
        return self.likelihood.log_prob_of_error(error, n_observed(x))

    def log_weights(
        self, x: Tensor, posterior: LatentPosterior, draws: Draws, *, exact_ratio: bool
    ) -> Tensor:
        """Log weights of draws, (n_draws, n), nats, for scoring.

        With ``exact_ratio`` they are log p(x, z) - log q(z given x), as IWAE needs them; else
        the KL stands in for the log ratio of each draw, which has the same mean and less noise.
        """
        log_likelihood = self.log_likelihood(x, draws.code)
        if exact_ratio:
            return log_likelihood + posterior.log_ratio(draws).sum(-1)
        return log_likelihood - posterior.kl(draws).sum(-1)

    @property
    def can_collapse(self) -> bool:
        """Whether slabs integrate out given the gates: `can_refine`, and the slab is Gaussian."""
        family = self.family.as_spike_slab()
        return self.has_closed_likelihood and family is not None and family.slab_name == "gaussian"

    def collapsed_log_weights(self, x: Tensor, posterior: LatentPosterior, draws: Draws) -> Tensor:
        """Log p(x, S) - log q(S given x) of drawn supports S, (n_draws, n), nats, for scoring.

        S says which codes are not zero; their values are integrated out. No gradient passes.
        """
        gates = posterior.as_spike_slab()
        scale = gates.family.slab_scale
        evidence = log_evidence(*self._linear_model(x), scale, draws.active, observed(x))
        return evidence + gates.gate_log_ratio(draws).sum(-1)
