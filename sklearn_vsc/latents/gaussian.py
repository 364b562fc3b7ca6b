"""The Gaussian distribution as the base of a thresholded code; ``laplace`` lists its answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributions

_LOG_2PI = math.log(2 * math.pi)
_TINY = 1e-30
_NEWTON_STEPS = 4


def _upper_tail(x: Tensor) -> Tensor:
    return torch.special.ndtr(-x)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x**2 - 0.5 * _LOG_2PI)


class Gaussian:
    """Gaussian base distribution; ``scale`` is the standard deviation."""

    distribution = distributions.Normal

    @staticmethod
    def variance(scale: Tensor) -> Tensor:
        """Variance of the distribution before thresholding."""
        return scale**2

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw standard normal noise."""
        noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
        return noise.to(like.device)

    @staticmethod
    def kl(loc: Tensor, scale: Tensor, prior_scale: float) -> Tensor:
        """KL(N(loc, scale^2) || N(0, prior_scale^2)) in nats."""
        return (
            math.log(prior_scale) - scale.log() + (scale**2 + loc**2) / (2 * prior_scale**2) - 0.5
        )

    @staticmethod
    def log_activity(scale: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return log P(code is not zero) and log P(code is zero)."""
        ratio = (threshold / scale).clamp_min(_TINY) / math.sqrt(2)
        # log_ndtr would not do: its gradient overflows in the far tail.
        log_on = torch.log(torch.special.erfcx(ratio)) - ratio**2
        return log_on, torch.log(torch.erf(ratio))

    @staticmethod
    def log_slab(deviation: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
        """Log sub-density of a non-zero code at ``loc + deviation``; integrates to the activity."""
        standard = (deviation.abs() + threshold) / scale
        return -0.5 * standard**2 - scale.log() - 0.5 * _LOG_2PI

    @classmethod
    def slab_deviation(cls, noise: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
        """Deviation of a code that is not zero, from noise of the distribution before thresholding.

        The deviation exceeds the same share of the tail beyond the threshold as the noise exceeds
        of the whole distribution. Newton's method solves this equation in its logarithm; its last
        step has the gradient of the solution.
        """
        ratio = threshold / scale
        log_share = cls.log_activity(torch.ones_like(noise), noise.abs())[0]
        whole = torch.special.erfcx(ratio / math.sqrt(2))
        excess = noise**2 / ((ratio**2 + noise**2).sqrt() + ratio).clamp_min(_TINY)
        for _ in range(_NEWTON_STEPS):
            excess = excess.detach()
            tail = torch.special.erfcx((ratio + excess) / math.sqrt(2))
            log_left = (tail / whole).log() - excess * (ratio + 0.5 * excess)
            slope = math.sqrt(2 / math.pi) / tail.detach()
            excess = excess + (log_left - log_share) / slope
        return noise.sign() * scale * excess.clamp_min(0)

    @staticmethod
    def slab_moment(scale: Tensor, threshold: Tensor) -> Tensor:
        """E[(z - loc)^2; z is not zero]: two tails of a normal distribution, shifted to zero."""
        ratio = threshold / scale
        return scale**2 * ((1 + ratio**2) * 2 * _upper_tail(ratio) - 2 * ratio * _density(ratio))

    @classmethod
    def thresholded_kl(
        cls,
        loc: Tensor,
        scale: Tensor,
        threshold: Tensor,
        prior_scale: float,
        prior_threshold: Tensor,
    ) -> Tensor:
        """KL between thresholded distributions, in nats.

        The slab consists of two normal tails joined at the location, so that E[(|z| + t0)^2]
        splits at zero into three pieces: beyond the location, below zero, and in between.
        """
        loc = loc.abs()
        near, far = threshold / scale, (threshold + loc) / scale
        q_near, q_far = _upper_tail(near), _upper_tail(far)
        d_near, d_far = _density(near), _density(far)
        i_near, i_far = near * d_near + q_near, far * d_far + q_far
        above = loc - threshold + prior_threshold
        below = loc + threshold - prior_threshold
        between = loc + threshold + prior_threshold
        variance = scale**2
        second = (
            (above**2 * q_near + 2 * above * scale * d_near + variance * i_near)
            + (variance * i_far - 2 * below * scale * d_far + below**2 * q_far)
            + (
                between**2 * (q_near - q_far)
                - 2 * between * scale * (d_near - d_far)
                + variance * (i_near - i_far)
            )
        )
        log_on, log_off = cls.log_activity(scale, threshold)
        _, prior_off = cls.log_activity(torch.full_like(scale, prior_scale), prior_threshold)
        activity = log_on.exp()
        return (
            log_off.exp() * (log_off - prior_off)
            + activity * (math.log(prior_scale) - scale.log())
            - 0.5 * (2 * near * d_near + activity)
            + second / (2 * prior_scale**2)
        )
