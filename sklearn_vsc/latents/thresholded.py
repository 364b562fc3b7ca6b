"""Thresholded codes: a base draw is kept, shrunken, only beyond a threshold.

The law of a thresholded code is a point mass at zero plus a slab (Fallah & Rozell 2022,
Proposition 3.1, for the Laplace base; the Gaussian slab is a pair of truncated normal tails).
KL and importance weights here are those of the thresholded laws, so that the bounds built on
them are bounds on log p(x) of the model whose prior is thresholded as well.

A Gamma posterior over the threshold of a *Laplace* base integrates out in closed form: the
slab does not depend on the threshold, and the activity (1 + 1 / (rate b))^-shape is that of
one fixed threshold, b * shape * log(1 + 1 / (rate b)). So it needs no draws of thresholds at
all. Under a Gaussian base the threshold stays in the latent and is drawn with the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from ._base import (
    Draws,
    LatentFamily,
    LatentPosterior,
    Noise,
    bounded_exp,
    gated_draws,
    logistic_noise,
)
from .gamma import gamma_kl, gamma_log_prob, half_normal_rule, sample_gamma
from .gaussian import Gaussian
from .laplace import Laplace
from .spike_slab import SpikeSlab, SpikeSlabPosterior

BASES: dict[str, type[Laplace] | type[Gaussian]] = {"laplace": Laplace, "gaussian": Gaussian}


class Thresholded(LatentFamily):
    """Prior and posterior of a thresholded code.

    Parameters
    ----------
    base : {'laplace', 'gaussian'}
        Law before thresholding.
    prior_scale : float
        Scale b0 of the Laplace, standard deviation of the Gaussian.
    threshold : float or None
        Threshold of prior and posterior, or the mean of its Gamma prior; None: chosen so that
        ``density`` of the codes are non-zero under the prior.
    density : float
        Expected share of non-zero codes under the prior where ``threshold`` is None.
    gamma_shape : float or None
        None: the threshold is fixed. Else the shape of its Gamma prior; the threshold is then
        inferred per row and code.
    gradient : {'gumbel_softmax', 'straight_through', 'subgradient'}
        How gradients pass the threshold. With 'gumbel_softmax' a draw in training is a relaxed
        gate times a draw of the slab. Straight-through hands the gradient of every code, zero or
        not, to location and scale, and to the threshold through active codes alone.
    training_kl : {'thresholded', 'base'}
        Laws whose KL the training objective holds: 'base' is the published objective.
    threshold_kl_weight : float
        Weight of the KL of the Gamma thresholds in the training objective.
    """

    def __init__(
        self,
        base: str = "laplace",
        *,
        prior_scale: float = 1.0,
        threshold: float | None = None,
        density: float = 0.1,
        gamma_shape: float | None = None,
        gradient: str = "straight_through",
        training_kl: str = "thresholded",
        threshold_kl_weight: float = 1.0,
    ) -> None:
        self.base = base
        self.base_distribution = BASES[base]
        self.prior_scale = prior_scale
        self.gamma_shape = gamma_shape
        self.gradient = gradient
        self.training_kl = training_kl
        self.threshold_kl_weight = threshold_kl_weight
        self.density = density
        self._given_threshold = threshold

    @cached_property
    def threshold(self) -> float:
        """Threshold of prior and posterior, or the mean of its Gamma prior."""
        if self._given_threshold is not None:
            return self._given_threshold
        return self._threshold_of_density(self.density)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("base", "prior_scale", "density", "gamma_shape", "gradient", "training_kl")
        found = {name: getattr(self, name) for name in (*names, "threshold_kl_weight")}
        return found | {"threshold": self._given_threshold}

    @property
    def n_heads(self) -> int:
        """Number of parameters per code: location and scale, and the Gamma's two."""
        return 2 if self.gamma_shape is None else 4

    @property
    def gate_heads(self) -> tuple[float, ...]:
        """A code is on where its threshold is low: where its Gamma has a high rate."""
        if self.gamma_shape is None:
            return (0.0, 0.0)
        # A small shape goes further, but is dear where the Gamma has a KL of its own.
        integrated = self.has_closed_kl and self.training_kl == "thresholded"
        return (0.0, 0.0, -0.5, 0.5) if integrated else (0.0, 0.0, 0.0, 1.0)

    @property
    def has_relaxed_gates(self) -> bool:
        """Whether gradients pass gates, and not the threshold."""
        return self.gradient == "gumbel_softmax"

    @property
    def has_closed_kl(self) -> bool:
        """Whether thresholds are fixed, or integrated out in closed form."""
        return self.gamma_shape is None or self.base_distribution is Laplace

    def as_gated(self) -> SpikeSlab | None:
        """With a Gamma threshold integrated out: inclusion, location and scale are then free.

        Not where training holds another KL than that of this law.
        """
        free = self.gamma_shape is not None and self.has_closed_kl
        if not free or self.training_kl == "base":
            return None
        return SpikeSlab("laplace", prior_scale=self.prior_scale, density=self.prior_inclusion)

    def gamma_rate(self) -> float:
        """Rate of the Gamma prior, whose mean is the threshold."""
        assert self.gamma_shape is not None
        return self.gamma_shape / self.threshold

    def posterior(self, heads: Tensor) -> ThresholdedPosterior:
        """Read the posterior from heads of shape (n_rows, n_heads, n_components)."""
        loc = self.prior_scale * heads[:, 0]
        scale = bounded_exp(heads[:, 1], self.prior_scale)
        if self.gamma_shape is None:
            return ThresholdedPosterior(self, loc, scale)
        shape = bounded_exp(heads[:, 2], self.gamma_shape)
        rate = bounded_exp(heads[:, 3], self.gamma_rate())
        return ThresholdedPosterior(self, loc, scale, shape, rate)

    def prior(self, dtype: torch.dtype = torch.float64) -> ThresholdedPosterior:
        """Return the prior in the form of a posterior of one row and one code."""
        return self.posterior(torch.zeros(1, self.n_heads, 1, dtype=dtype))

    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Draw codes of the given shape from the prior."""
        n_codes = torch.Size(shape).numel()
        prior = self.prior(dtype)
        with torch.no_grad():
            return prior.rsample(prior.noise(n_codes, generator)).code.reshape(shape)

    @cached_property
    def prior_inclusion(self) -> float:
        """Probability under the prior that a code is not zero."""
        return float(self.prior().inclusion)

    @cached_property
    def prior_variance(self) -> float:
        """Variance of a code under the prior."""
        return float(self.prior().variance)

    def prior_threshold(self, like: Tensor) -> Tensor:
        """Threshold of the prior, or the one that stands for its Gamma (Laplace base)."""
        threshold = torch.full_like(like, self.threshold)
        if self.gamma_shape is None or not self.has_closed_kl:
            return threshold
        shape = torch.full_like(like, self.gamma_shape)
        return _marginal_threshold(
            torch.full_like(like, self.prior_scale), shape, shape / threshold
        )

    def _threshold_of_density(self, density: float) -> float:
        """Threshold at which the prior's activity equals ``density``."""

        def excess(threshold: float) -> float:
            self.threshold = threshold
            return float(self.prior().inclusion) - density

        low, high = 1e-8 * self.prior_scale, 1e3 * self.prior_scale
        # Under a small shape of the Gamma it lies beyond what any number can hold.
        while excess(high) > 0:
            high *= 1e3
            if high > 1e15 * self.prior_scale:
                return high
        while excess(low) < 0:
            low *= 1e-3
        return float(brentq(excess, low, high, xtol=1e-12 * self.prior_scale, rtol=1e-12))


def _marginal_threshold(scale: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
    """Fixed threshold with the activity of a Gamma threshold, Laplace base."""
    return scale * shape * torch.log1p(1 / (rate * scale))


@dataclass(frozen=True)
class ThresholdedPosterior(LatentPosterior):
    """Posterior of thresholded codes: location, base scale, and Gamma shape and rate if any."""

    family: Thresholded
    loc: Tensor
    scale: Tensor
    shape: Tensor | None = None
    rate: Tensor | None = None

    def row(self, index: int) -> ThresholdedPosterior:
        """Return the posterior of one row, as a batch of one."""
        cut = slice(index, index + 1)
        optional = [p if p is None else p[cut] for p in (self.shape, self.rate)]
        return ThresholdedPosterior(self.family, self.loc[cut], self.scale[cut], *optional)

    @cached_property
    def threshold(self) -> Tensor:
        """Threshold of each code; with a Gamma and a Laplace base, the one that stands for it."""
        if self.shape is None or self.rate is None:
            return torch.full_like(self.scale, self.family.threshold)
        if self.family.has_closed_kl:
            return _marginal_threshold(self.scale, self.shape, self.rate)
        return self.shape / self.rate

    @cached_property
    def inclusion(self) -> Tensor:
        """Probability that the code is not zero."""
        if not self.family.has_closed_kl:
            return self._gamma_gaussian_moments()[0]
        return self.family.base_distribution.log_activity(self.scale, self.threshold)[0].exp()

    def as_gated(self) -> SpikeSlabPosterior:
        """Return the same law with its threshold integrated out."""
        family = self.family.as_gated()
        assert family is not None
        log_on, log_off = self.family.base_distribution.log_activity(self.scale, self.threshold)
        return SpikeSlabPosterior(family, self.loc, self.scale, log_on - log_off)

    @property
    def mean(self) -> Tensor:
        """Mean of the code: the slab is symmetric around the location."""
        return self.inclusion * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of the code."""
        if not self.family.has_closed_kl:
            second = self._gamma_gaussian_moments()[1]
        else:
            second = self.family.base_distribution.slab_moment(self.scale, self.threshold)
        inclusion = self.inclusion
        return second + inclusion * (1 - inclusion) * self.loc**2

    def _gamma_gaussian_moments(self) -> tuple[Tensor, Tensor]:
        """Activity and E[(z - loc)^2; z not zero] of a Gaussian base under a Gamma threshold.

        Given the base deviation t, the threshold lies below it with the Gamma's distribution
        function, and (t - threshold)^2 has the Gamma's partial moments: one integral is left.
        """
        assert self.shape is not None and self.rate is not None
        shape, rate = self.shape.detach(), self.rate.detach()
        inclusion, second = torch.zeros_like(shape), torch.zeros_like(shape)
        for node, weight in zip(*half_normal_rule(shape), strict=True):
            deviation = node * self.scale.detach()
            reach = rate * deviation
            below = torch.special.gammainc(shape, reach)
            first = shape / rate * torch.special.gammainc(shape + 1, reach)
            square = shape * (shape + 1) / rate**2 * torch.special.gammainc(shape + 2, reach)
            inclusion += weight * below
            second += weight * (deviation**2 * below - 2 * deviation * first + square)
        return inclusion.clamp(0, 1), second.clamp_min(0)

    def mode(self) -> Tensor:
        """Sparse point estimate.

        With an inferred threshold: the location where the code is more likely non-zero than
        zero. A fixed threshold ties inclusion to the scale alone and keeps it low (0.5 needs
        a scale above 1.4 thresholds), so there the threshold itself decides: the mean where
        the location lies beyond the threshold.
        """
        if self.shape is None:
            return torch.where(self.loc.abs() > self.threshold, self.mean, 0)
        return torch.where(self.inclusion > 0.5, self.loc, 0)

    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw base noise, that of gates, and thresholds where they belong to the latent."""
        shape = (n_draws, *self.loc.shape)
        base = self.family.base_distribution.noise(shape, generator, self.loc)
        gated = self.family.has_relaxed_gates
        gate = logistic_noise(shape, generator, self.loc) if gated else None
        if self.family.has_closed_kl:
            return Noise(base, gate)
        assert self.shape is not None and self.rate is not None
        threshold = sample_gamma(self.shape.expand(shape), self.rate.expand(shape), generator)
        return Noise(base, gate, threshold)

    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Threshold the deviation around the location; ``noise_scale`` warms the noise up."""
        if noise.gate is not None:
            return self._gated_draws(noise, noise.gate, noise_scale)
        deviation = noise_scale * self.scale * noise.base
        threshold = self.threshold if noise.threshold is None else noise.threshold
        active = deviation.abs() > threshold
        shrink = torch.where(active, deviation.sign() * threshold, 0)
        kept = torch.where(active, self.loc + deviation, 0) - shrink
        if self.family.gradient == "straight_through":
            through = self.loc + deviation - shrink
            # The bracket is exactly zero: an inactive code stays exactly zero.
            kept = kept.detach() + (through - through.detach())
        return Draws(kept, active, noise.threshold)

    def _gated_draws(self, noise: Noise, gate_noise: Tensor, noise_scale: float) -> Draws:
        """Draw a gate and a slab, whose product has the law; gates relaxed under gradients."""
        base = self.family.base_distribution
        threshold = self.threshold if noise.threshold is None else noise.threshold
        log_on, log_off = base.log_activity(self.scale, threshold)
        slab = self.loc + noise_scale * base.slab_deviation(noise.base, self.scale, threshold)
        argument = log_on - log_off + gate_noise
        return gated_draws(
            argument, slab, "gumbel_softmax", self.family.temperature, noise.threshold
        )

    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL of the thresholded laws, nats; of codes and thresholds where those are drawn."""
        family = self.family
        if self.family.has_closed_kl:
            prior_threshold = family.prior_threshold(self.scale)
            return family.base_distribution.thresholded_kl(
                self.loc, self.scale, self.threshold, family.prior_scale, prior_threshold
            )
        return self._code_kl_at(draws) + self.threshold_kl()

    def _code_kl_at(self, draws: Draws | None) -> Tensor:
        """KL of the codes given drawn thresholds, which prior and posterior share."""
        if draws is None or draws.threshold is None:
            raise ValueError("This KL has no closed form: draws of the threshold are needed.")
        return self.family.base_distribution.thresholded_kl(
            self.loc, self.scale, draws.threshold, self.family.prior_scale, draws.threshold
        )

    def threshold_kl(self) -> Tensor:
        """KL of the Gamma posterior of the threshold from its prior, nats."""
        assert self.shape is not None and self.rate is not None
        assert self.family.gamma_shape is not None
        return gamma_kl(self.shape, self.rate, self.family.gamma_shape, self.family.gamma_rate())

    def training_kl(self, draws: Draws | None = None) -> Tensor:
        """KL of the training objective; the published one is that of the base laws."""
        family = self.family
        if family.training_kl == "base":
            kl = family.base_distribution.kl(self.loc, self.scale, family.prior_scale)
        elif not self.family.has_closed_kl:
            kl = self._code_kl_at(draws)
        else:
            return self.kl()
        if self.shape is None:
            return kl
        return kl + family.threshold_kl_weight * self.threshold_kl()

    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x), mixed measure; with thresholds where drawn."""
        family, base = self.family, self.family.base_distribution
        if draws.threshold is None:
            threshold, prior_threshold = self.threshold, family.prior_threshold(self.scale)
        else:
            threshold = prior_threshold = draws.threshold
        prior_scale = torch.full_like(self.scale, family.prior_scale)
        off = (
            base.log_activity(prior_scale, prior_threshold)[1]
            - base.log_activity(self.scale, threshold)[1]
        )
        on = base.log_slab(draws.code_if_on, prior_scale, prior_threshold) - base.log_slab(
            draws.code_if_on - self.loc, self.scale, threshold
        )
        ratio = draws.where_on(on, off)
        if draws.threshold is None:
            return ratio
        assert self.shape is not None and self.rate is not None
        assert family.gamma_shape is not None
        return (
            ratio
            + gamma_log_prob(draws.threshold, family.gamma_shape, family.gamma_rate())
            - gamma_log_prob(draws.threshold, self.shape, self.rate)
        )
