"""Thresholded codes: a draw from a base distribution is zero unless it exceeds a threshold.

A draw beyond the threshold is shrunk by it. The distribution of a thresholded code is a point
mass at zero plus a slab (Fallah & Rozell 2022, Proposition 3.1, for the Laplace base; the Gaussian
slab consists of two truncated normal tails). KL and importance weights belong to the thresholded
distributions, so that the bounds built on them bound log p(x) of the model whose prior is
thresholded, too.

With a *Laplace* base, a Gamma posterior of the threshold integrates out in closed form. The slab
does not depend on the threshold, and the activity (1 + 1 / (rate b))^-shape equals the activity of
one fixed threshold, b * shape * log(1 + 1 / (rate b)). So thresholds are never drawn. With a
Gaussian base the threshold remains a latent variable and is drawn with the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from torch import Tensor

from ._base import LatentFamily, LatentPosterior
from ._checks import check_choice, check_gradient, check_number
from ._draws import Draws, Noise, bounded_exp, gated_draws, logistic_noise
from .gamma import gamma_kl, gamma_log_prob, half_normal_rule, sample_gamma
from .gaussian import Gaussian
from .laplace import Laplace
from .spike_slab import SpikeSlab, SpikeSlabPosterior

BASES: dict[str, type[Laplace] | type[Gaussian]] = {"laplace": Laplace, "gaussian": Gaussian}
_GRADIENTS = ("gumbel_softmax", "straight_through", "subgradient")


class Thresholded(LatentFamily):
    """Prior and posterior of a thresholded code [1]_.

    Parameters
    ----------
    base : {'laplace', 'gaussian'}, default='laplace'
        Distribution before thresholding.
    prior_scale : float, default=1.0
        Scale b0 of the Laplace distribution, standard deviation of the Gaussian.
    threshold : float or None, default=None
        Threshold of prior and posterior, in the unit of the codes, or the mean of its Gamma prior.
        None: the threshold at which the prior has a share ``density`` of non-zero codes.
    density : float, default=0.1
        Prior probability that a code is not zero. Used where ``threshold`` is None.
    gamma_shape : float or None, default=None
        None: the threshold is fixed. Otherwise the shape of its Gamma prior; the threshold is then
        inferred for each row and code.
    gradient : {'gumbel_softmax', 'straight_through', 'subgradient'}, default='gumbel_softmax'
        How gradients pass the threshold in training. 'gumbel_softmax': a draw is a relaxed gate
        times a draw of the slab. 'straight_through', as published: location and scale receive the
        gradient of every code, zero or not, and the threshold that of non-zero codes alone.
        'subgradient': the gradient of the thresholded draw, which does not see the jump at the
        threshold.
    training_kl : {'thresholded', 'base'}, default='thresholded'
        Distributions whose KL divergence training uses. 'base': those before thresholding, as
        published; the right choice with 'straight_through' and 'subgradient', which otherwise let
        the location of a zero code drift away.
    threshold_kl_weight : float, default=1.0
        Weight in training of the KL divergence of the Gamma thresholds, where it is a separate
        term.

    Raises
    ------
    ValueError
        When an argument is not allowed.

    References
    ----------
    .. [1] Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned
       Thresholding. International Conference on Machine Learning.

    Examples
    --------
    >>> from sklearn_vsc import ThresholdedVSC
    >>> from sklearn_vsc.latents import Thresholded
    >>> ThresholdedVSC(prior=Thresholded(density=0.05, gamma_shape=3.0))
    ThresholdedVSC(prior=Thresholded(density=0.05, gamma_shape=3.0))
    """

    def __init__(
        self,
        base: str = "laplace",
        *,
        prior_scale: float = 1.0,
        threshold: float | None = None,
        density: float = 0.1,
        gamma_shape: float | None = None,
        gradient: str = "gumbel_softmax",
        training_kl: str = "thresholded",
        threshold_kl_weight: float = 1.0,
    ) -> None:
        check_choice("base", base, BASES)
        check_number("prior_scale", prior_scale)
        check_number("density", density, 0, 1)
        if threshold is not None:
            # The mean of a Gamma distribution is positive.
            check_number("threshold", threshold, or_low=gamma_shape is None)
        if gamma_shape is not None:
            check_number("gamma_shape", gamma_shape)
        check_choice("gradient", gradient, _GRADIENTS)
        check_choice("training_kl", training_kl, ("thresholded", "base"))
        check_number("threshold_kl_weight", threshold_kl_weight, or_low=True)
        self.base = base
        self.base_distribution = BASES[base]
        self.prior_scale = prior_scale
        self.gamma_shape = gamma_shape
        self.gradient = gradient
        self.training_kl = training_kl
        self.threshold_kl_weight = threshold_kl_weight
        self.density = density
        self._threshold = threshold

    @cached_property
    def threshold(self) -> float:
        """Threshold of prior and posterior, or the mean of its Gamma prior."""
        if self._threshold is not None:
            return self._threshold
        return self._threshold_of_density(self.density)

    def with_gradient(self, gradient: str) -> Self:
        """Return a copy whose draws pass gradients in a given way."""
        found = super().with_gradient(gradient)
        if gradient == "exact" and self.has_relaxed_gates:
            # No draw will need relaxed gates.
            found.gradient = "straight_through"
        elif gradient not in ("auto", "exact"):
            check_gradient(self, gradient, _GRADIENTS)
            found.gradient = gradient
        return found

    @property
    def n_heads(self) -> int:
        """Number of parameters per code: location and scale, and shape and rate of a Gamma."""
        return 2 if self.gamma_shape is None else 4

    @property
    def gate_heads(self) -> tuple[float, ...]:
        """A code is more likely non-zero where its threshold is low: where the rate is high."""
        if self.gamma_shape is None:
            return (0.0, 0.0)
        # A smaller shape lowers the threshold further, but costs much where the Gamma has a KL
        # term of its own.
        integrated = self.has_closed_kl and self.training_kl == "thresholded"
        return (0.0, 0.0, -0.5, 0.5) if integrated else (0.0, 0.0, 0.0, 1.0)

    @property
    def has_relaxed_gates(self) -> bool:
        """Whether gradients pass relaxed gates instead of the threshold."""
        return self.gradient == "gumbel_softmax"

    @property
    def has_closed_kl(self) -> bool:
        """Whether thresholds are fixed, or integrated out in closed form."""
        return self.gamma_shape is None or self.base_distribution is Laplace

    @property
    def has_free_gates(self) -> bool:
        """Whether thresholds integrate out, so that inclusions of a posterior are free."""
        free = self.gamma_shape is not None and self.has_closed_kl
        return free and self.training_kl != "base"

    @property
    def has_threshold(self) -> bool:
        """Whether any draw becomes zero: the threshold was not given as zero."""
        return self._threshold != 0

    def as_gated(self) -> SpikeSlab | None:
        """Return the prior with its Gamma threshold integrated out.

        Inclusion, location and scale of a posterior are then free. None without a closed form, or
        where training uses the KL of other distributions.
        """
        if not self.has_free_gates:
            return None
        gated = SpikeSlab("laplace", prior_scale=self.prior_scale, density=self.prior_inclusion)
        gated.temperature = self.temperature
        return gated

    def gamma_rate(self) -> float:
        """Return the rate of the Gamma prior, whose mean is the threshold."""
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
        """Return the threshold of the prior, or the fixed one equivalent to its Gamma prior."""
        threshold = torch.full_like(like, self.threshold)
        if self.gamma_shape is None or not self.has_closed_kl:
            return threshold
        shape = torch.full_like(like, self.gamma_shape)
        return _marginal_threshold(
            torch.full_like(like, self.prior_scale), shape, shape / threshold
        )

    def threshold_at(self, density: float | NDArray) -> float | NDArray:
        """Return the threshold, or the mean of its Gamma prior, at which codes are so dense.

        Raises
        ------
        NotImplementedError
            For a Gaussian base distribution with Gamma thresholds, where it has no closed form.
        """
        share = np.asarray(density)
        if self.base_distribution is Gaussian:
            if self.gamma_shape is not None:
                raise NotImplementedError("Gamma thresholds of a Gaussian base are drawn.")
            found = -self.prior_scale * ndtri(share / 2)
        elif self.gamma_shape is None:
            found = -self.prior_scale * np.log(share)
        else:
            # The activity (1 + mean / (shape b))^-shape, solved for the mean.
            found = self.gamma_shape * self.prior_scale * (share ** (-1 / self.gamma_shape) - 1)
        return found if found.ndim else float(found)

    def _threshold_of_density(self, density: float) -> float:
        """Return the threshold at which the activity of the prior equals ``density``."""

        def excess(threshold: float) -> float:
            self.threshold = threshold
            return float(self.prior().inclusion) - density

        low, high = 1e-8 * self.prior_scale, 1e3 * self.prior_scale
        # With a small shape of the Gamma it may exceed the range of floats.
        while excess(high) > 0:
            high *= 1e3
            if high > 1e15 * self.prior_scale:
                return high
        while excess(low) < 0:
            low *= 1e-3
        return float(brentq(excess, low, high, xtol=1e-12 * self.prior_scale, rtol=1e-12))


def _marginal_threshold(scale: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
    """Return the fixed threshold of the same activity as a Gamma threshold, Laplace base."""
    return scale * shape * torch.log1p(1 / (rate * scale))


@dataclass(frozen=True)
class ThresholdedPosterior(LatentPosterior):
    """Posterior of thresholded codes.

    Attributes
    ----------
    family : Thresholded
        The prior.
    loc, scale : Tensor of shape (n_rows, n_components)
        Location, and scale of the base distribution.
    shape, rate : Tensor of shape (n_rows, n_components) or None
        Parameters of the Gamma distribution of the threshold; None where it is fixed.
    """

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
        """Threshold of each code; with a Gamma: its equivalent (Laplace base) or its mean."""
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
        """Return the same distribution with its threshold integrated out."""
        family = self.family.as_gated()
        assert family is not None
        log_on, log_off = self.family.base_distribution.log_activity(self.scale, self.threshold)
        return SpikeSlabPosterior(family, self.loc, self.scale, log_on - log_off)

    @property
    def mean(self) -> Tensor:
        """Mean of the code; the slab is symmetric around the location."""
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

        Given a deviation t of the base, the probability that the threshold is below t is the
        distribution function of the Gamma, and E (t - threshold)^2 follows from its partial
        moments. The integral over t remains.
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

        With an inferred threshold: the location, where the code is more likely non-zero than
        zero. With a fixed threshold, inclusion depends on the scale alone and stays low (0.5 needs
        a scale above 1.4 thresholds). Then the threshold itself decides: the mean, where the
        location lies beyond the threshold.
        """
        if self.shape is None:
            return torch.where(self.loc.abs() > self.threshold, self.mean, 0)
        return torch.where(self.inclusion > 0.5, self.loc, 0)

    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw noise of the base and of gates, and thresholds where they are latent variables."""
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
        """Draw a gate and a slab, whose product is the code; autograd sees a relaxed gate."""
        base = self.family.base_distribution
        threshold = self.threshold if noise.threshold is None else noise.threshold
        log_on, log_off = base.log_activity(self.scale, threshold)
        slab = self.loc + noise_scale * base.slab_deviation(noise.base, self.scale, threshold)
        argument = log_on - log_off + gate_noise
        return gated_draws(
            argument, slab, "gumbel_softmax", self.family.temperature, noise.threshold
        )

    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL of the thresholded distributions in nats; jointly with thresholds that are drawn."""
        family = self.family
        if self.family.has_closed_kl:
            prior_threshold = family.prior_threshold(self.scale)
            return family.base_distribution.thresholded_kl(
                self.loc, self.scale, self.threshold, family.prior_scale, prior_threshold
            )
        return self._code_kl_at(draws) + self.threshold_kl()

    def _code_kl_at(self, draws: Draws | None) -> Tensor:
        """KL of the codes given drawn thresholds, which are the same in prior and posterior."""
        if draws is None or draws.threshold is None:
            raise ValueError("This KL has no closed form: draws of the threshold are needed.")
        return self.family.base_distribution.thresholded_kl(
            self.loc, self.scale, draws.threshold, self.family.prior_scale, draws.threshold
        )

    def threshold_kl(self) -> Tensor:
        """KL of the Gamma posterior of the threshold from its prior, in nats."""
        assert self.shape is not None and self.rate is not None
        assert self.family.gamma_shape is not None
        return gamma_kl(self.shape, self.rate, self.family.gamma_shape, self.family.gamma_rate())

    def training_kl(self, draws: Draws | None = None) -> Tensor:
        """KL of the training objective; the published one uses the base distributions."""
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
        """Return log p(z) - log q(z given x) in nats; jointly with thresholds that are drawn."""
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
