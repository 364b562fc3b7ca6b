"""A latent-variable model: encoder, latent family, decoder and likelihood, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .._rows.arrays import to_numpy
from ..latents import Draws, LatentFamily, LatentPosterior
from ..latents.free_form import FreeFormPosterior
from ..likelihoods import GaussianLikelihood, Likelihood, squared_error
from ..networks import BoundedDecoder, LinearDecoder, TiedEncoder
from ..networks._init import linear_layer
from ..solvers.linear_model.parameters import Slab, SparseLinear
from ..solvers.linear_model.row_posteriors import Stops
from ..solvers.missing import observed
from ..solvers.posterior.collapsed import conditional_mean, log_evidence
from ..solvers.posterior.coordinate_ascent import SlabPrior, refine, refine_observed
from .gate_gradients import NVILBaseline
from .inferred_posterior import REFINE_TOL, inferred
from .objectives import Objective, TrainingStep, training_step

# Smallest weight of the KL in coordinate ascent, for a weight that warms up from zero: without a
# KL the best posterior is a point.
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


@dataclass(frozen=True)
class LinearGaussian:
    """The decoder and likelihood of a linear model with Gaussian noise, for its closed forms."""

    decoder: LinearDecoder
    likelihood: GaussianLikelihood

    @classmethod
    def of(cls, decoder: nn.Module, likelihood: Likelihood) -> Self | None:
        """Return the linear Gaussian model of these two parts; None where they are not one."""
        if isinstance(decoder, LinearDecoder) and isinstance(likelihood, GaussianLikelihood):
            return cls(decoder, likelihood)
        return None

    def encode(self, encoder: TiedEncoder, x: Tensor) -> Tensor:
        """Return the features of an encoder that codes with the atoms of the decoder."""
        # The noise variance learns from the likelihood alone.
        noise_variance = self.likelihood.noise_variance.detach()
        rows = x - self.decoder.bias
        return encoder(rows, self.decoder.weight, noise_variance, observed(x))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return rows less the intercept, atoms and noise variance, detached from any graph."""
        noise_variance = float(self.likelihood.noise_variance.detach())
        return x - self.decoder.bias.detach(), self.decoder.weight.detach(), noise_variance


class LatentVariableModel(nn.Module):
    """p(x given z) p(z) with an amortised posterior q(z given x).

    Rows come in and go out in the units of the model; a fitted estimator converts them. NaN
    marks a missing entry: bounds and posteriors are those of the observed entries.

    Parameters
    ----------
    encoder, heads, decoder : nn.Module
        Map rows to features, features to posterior parameters, codes to outputs.
    likelihood : Likelihood
        Distribution of rows given outputs.
    family : LatentFamily
        Prior and posterior of the codes.
    gate_baseline : NVILBaseline or None
        Trained along with the model where its gates learn by NVIL.

    Attributes
    ----------
    default_sweeps : int
        Most sweeps of coordinate ascent that find posteriors, where the user does not say how many.
    refine_tol : float
        Rise of the bound of a row below which its sweeps end, in nats.
    n_components : int
        Number of atoms.
    numbers_per_row : int
        Size of the widest layer for one row, by which memory is bounded.
    """

    # Names of the parameters, beside those of the likelihood, that are single numbers or one
    # number for each atom.
    scales: tuple[str, ...] = ()

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
        self.default_sweeps = 0
        self.refine_tol = REFINE_TOL
        self.n_components = 1
        self.numbers_per_row = 1

    @property
    def n_codes(self) -> int:
        """Number of codes of a row."""
        return self.n_components

    @property
    def networks(self) -> list[nn.Module]:
        """Networks, none inside another; output activations are left out."""
        return [self.encoder, self.heads, without_activation(self.decoder)]

    # --- posteriors and codes

    def posterior(self, x: Tensor) -> LatentPosterior:
        """Posterior of each row."""
        return self.family.posterior(self.heads(self._features(x)))

    def _features(self, x: Tensor) -> Tensor:
        """Input of the heads; an encoder that is tied to the decoder codes with its atoms."""
        if isinstance(self.encoder, TiedEncoder):
            return self.linear_gaussian.encode(self.encoder, x)
        return self.encoder(self.likelihood.encoder_input(x))

    @property
    def linear_gaussian(self) -> LinearGaussian:
        """The parts that closed forms use.

        Raises
        ------
        TypeError
            Where the decoder is not linear, or the noise is not Gaussian.
        """
        found = LinearGaussian.of(self.decoder, self.likelihood)
        if found is None:
            raise TypeError(
                "This needs a linear decoder and Gaussian noise; got "
                f"{type(self.decoder).__name__} and {type(self.likelihood).__name__}."
            )
        return found

    @property
    def is_linear_gaussian(self) -> bool:
        """Whether the decoder is linear and the noise Gaussian."""
        return LinearGaussian.of(self.decoder, self.likelihood) is not None

    @property
    def can_refine(self) -> bool:
        """Whether coordinate ascent applies: a linear decoder, Gaussian noise and free gates."""
        return self.is_linear_gaussian and self.family.as_gated() is not None

    def posterior_depends_on_noise(self, n_refine: int) -> bool:
        """Whether the noise variance enters the posterior of a row."""
        return n_refine > 0 or isinstance(self.encoder, TiedEncoder)

    def refine(
        self, x: Tensor, posterior: LatentPosterior, n_sweeps: int, kl_weight: float = 1.0
    ) -> LatentPosterior:
        """Raise the ELBO of each row by sweeps of coordinate ascent; no gradient passes."""
        start = posterior.as_gated()
        family, parameters = start.family, (start.loc, start.scale, start.logit)
        prior = SlabPrior(family.slab_name, family.prior_scale, family.prior_logit)
        rows, atoms, noise_variance = self.linear_gaussian.parts(x)
        # A weight of the KL acts like a factor of the noise variance.
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
        return family.gated_posterior(*found)

    def infer(self, x: Tensor, n_refine: int, kl_weight: float = 1.0) -> LatentPosterior:
        """Posterior of each row: that of the encoder or, where sweeps apply, the best one.

        Sweeps start from no code at all, and not from the encoder's posterior: measured, they end
        at a better bound, and sooner.
        """
        if not n_refine:
            return self.posterior(x)
        rows, atoms, noise_variance = self.linear_gaussian.parts(x)
        # A weight of the KL acts like a factor of the noise variance.
        noise_variance = max(kl_weight, _LEAST_KL_WEIGHT) * noise_variance
        gated = self.family.as_gated()
        assert gated is not None
        model = SparseLinear.plain(
            to_numpy(atoms),
            noise_variance,
            Slab(gated.slab_name, gated.prior_scale),
            1 / (1 + math.exp(-gated.prior_logit)),
        )
        return inferred(model, rows, Stops(max_sweeps=n_refine, bound_tol=self.refine_tol))

    def sparse_code(self, x: Tensor, posterior: LatentPosterior, *, refined: bool) -> Tensor:
        """Sparse point estimate of each row, given its posterior from `infer`.

        For the encoder's posterior this is its mode; for a refined one the support that it
        prefers, with the best linear estimate of the coefficients given that support, which for a
        Gaussian slab is their posterior mean.
        """
        if not refined:
            return posterior.mode()
        gated = self.family.as_gated()
        assert gated is not None
        support = posterior.inclusion > 0.5
        linear = self.linear_gaussian.parts(x)
        scale = gated.slab_scale
        return conditional_mean(*linear, scale, support[None], observed(x))[0]

    def by_atom(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code of each atom, (n, K), and 1 where a row uses the atom, else 0."""
        return code, (code != 0).to(code)

    def share_of_active(self, posterior: LatentPosterior) -> Tensor:
        """Share of the codes of each row, (n,), that are more likely non-zero than zero."""
        return (posterior.inclusion > 0.5).float().mean(-1)

    # --- likelihood and bounds

    def decode(self, code: Tensor) -> Tensor:
        """Mean of p(x given z)."""
        return self.likelihood.mean(self.decoder(code))

    def log_likelihood(self, x: Tensor, code: Tensor) -> Tensor:
        """Log p(x given z) for codes (n_draws, n, K): shape (n_draws, n), nats."""
        return self.likelihood.log_prob(x, self.decoder(code))

    @property
    def has_closed_likelihood(self) -> bool:
        """Whether E log p(x given z) under q is known in closed form."""
        return isinstance(self.decoder, LinearDecoder) and self.likelihood.has_closed_expectation

    def expected_log_likelihood(self, x: Tensor, posterior: LatentPosterior) -> Tensor:
        """E log p(x given z) under q in closed form, (n,), nats."""
        return self.likelihood.expected_log_prob(x, *self.output_moments(x, posterior))

    def expected_squared_error(self, x: Tensor, posterior: LatentPosterior) -> Tensor:
        """E ||x - output||^2 under q in closed form, (n,), for a linear decoder."""
        output, variance = self.output_moments(x, posterior)
        return squared_error(x, output) + variance

    def output_moments(self, x: Tensor, posterior: LatentPosterior) -> tuple[Tensor, Tensor]:
        """Mean of a linear decoder's output (n, D), and its variance summed over features (n,).

        The codes are independent under q, so that their variances add; only observed features
        count.
        """
        if not isinstance(self.decoder, LinearDecoder):
            raise TypeError(f"{type(self.decoder).__name__} is not a linear decoder.")
        output = self.decoder(posterior.mean)
        return output, self.decoder.output_variance(posterior.variance, observed(x))

    @property
    def has_closed_bound(self) -> bool:
        """Whether the bound that a posterior gives needs no draws."""
        return self.has_closed_likelihood and self.family.has_closed_kl

    def closed_bound(self, x: Tensor, posterior: LatentPosterior) -> Tensor:
        """Lower bound on log p(x) that a posterior gives, (n,), nats."""
        return self.expected_log_likelihood(x, posterior) - posterior.kl().sum(-1)

    def sample(self, n_samples: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw rows: codes from the prior, decoded, with observation noise."""
        codes = self.family.sample_prior((n_samples, self.n_codes), generator, dtype)
        return self.likelihood.sample(self.decoder(codes), generator)

    def log_weights(
        self, x: Tensor, posterior: LatentPosterior, draws: Draws, *, exact_ratio: bool
    ) -> Tensor:
        """Log weights of draws, (n_draws, n), nats, for scoring.

        With ``exact_ratio`` they are log p(x, z) - log q(z given x), as IWAE needs them; otherwise
        the KL replaces the log ratio of each draw: it has the same mean and less noise.
        """
        log_likelihood = self.log_likelihood(x, draws.code)
        if exact_ratio:
            return log_likelihood + posterior.log_ratio(draws).sum(-1)
        return log_likelihood - posterior.kl(draws).sum(-1)

    @property
    def can_collapse(self) -> bool:
        """Whether slabs integrate out given the gates: `can_refine`, and the slab is Gaussian."""
        family = self.family.as_gated()
        return self.is_linear_gaussian and family is not None and family.slab_name == "gaussian"

    def collapsed_log_weights(self, x: Tensor, posterior: LatentPosterior, draws: Draws) -> Tensor:
        """Log p(x, S) - log q(S given x) of drawn supports S, (n_draws, n), nats, for scoring.

        S says which codes are not zero; their values are integrated out. No gradient passes.
        """
        gates = posterior if isinstance(posterior, FreeFormPosterior) else posterior.as_gated()
        gated = self.family.as_gated()
        assert gated is not None
        scale = gated.slab_scale
        evidence = log_evidence(*self.linear_gaussian.parts(x), scale, draws.active, observed(x))
        return evidence + gates.gate_log_ratio(draws).sum(-1)

    # --- training

    def training_step(
        self,
        x: Tensor,
        objective: Objective,
        generator: torch.Generator,
        *,
        kl_weight: float,
        noise_scale: float = 1.0,
        batch_mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> TrainingStep:
        """Return the objective of each row, to be maximised, and its parts.

        Parameters are those of `training_step` in ``objectives``.
        """
        return training_step(
            self,
            x,
            objective,
            generator,
            kl_weight=kl_weight,
            noise_scale=noise_scale,
            batch_mean=batch_mean,
        )

    def settle_scales(self, rows: Tensor, generator: torch.Generator) -> None:
        """Let `scales` maximise the bound of these rows, all else fixed."""


def without_activation(decoder: nn.Module) -> nn.Module:
    """Return the network in front of an output activation."""
    return decoder.decoder if isinstance(decoder, BoundedDecoder) else decoder
