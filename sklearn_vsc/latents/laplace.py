"""The Laplace distribution as the base of a thresholded code.

For deviations s - loc of scale ``scale`` and a threshold, a base answers everything that a
thresholded family needs. Symbols follow Fallah & Rozell (2022): a draw s that is further than the
threshold from its location is kept and shrunk by the threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributions

# A threshold of zero keeps every draw; the clamp keeps log(1 - activity) finite there.
_TINY = 1e-30


class Laplace:
    """Laplace base distribution; ``scale`` is the scale b, and the variance is 2 b^2."""

    distribution = distributions.Laplace

    @staticmethod
    def variance(scale: Tensor) -> Tensor:
        """Variance of the distribution before thresholding."""
        return 2 * scale**2

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw standard Laplace noise."""
        uniform = torch.rand(
            (2, *shape), generator=generator, dtype=like.dtype, device=generator.device
        )
        # The difference of two standard exponentials; 1 - u avoids log(0), as u is in [0, 1).
        magnitude = torch.log1p(-uniform)
        return (magnitude[0] - magnitude[1]).to(like.device)

    @staticmethod
    def kl(loc: Tensor, scale: Tensor, prior_scale: float) -> Tensor:
        """KL(Laplace(loc, scale) || Laplace(0, prior_scale)) in nats."""
        distance = loc.abs()
        return (
            math.log(prior_scale)
            - scale.log()
            + distance / prior_scale
            + scale / prior_scale * torch.exp(-distance / scale)
            - 1
        )

    @staticmethod
    def log_activity(scale: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return log P(code is not zero) and log P(code is zero)."""
        ratio = (threshold / scale).clamp_min(_TINY)
        return -ratio, torch.log(-torch.expm1(-ratio))

    @staticmethod
    def log_slab(deviation: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
        """Log sub-density of a non-zero code at ``loc + deviation``; integrates to the activity."""
        return -(deviation.abs() + threshold) / scale - torch.log(2 * scale)

    @staticmethod
    def slab_deviation(noise: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
        """Deviation of a code that is not zero, from noise; it does not depend on the threshold."""
        return scale * noise

    @staticmethod
    def slab_moment(scale: Tensor, threshold: Tensor) -> Tensor:
        """E[(z - loc)^2; z is not zero]: the slab of a Laplace base is itself Laplace."""
        return torch.exp(-threshold / scale) * 2 * scale**2

    @classmethod
    def thresholded_kl(
        cls,
        loc: Tensor,
        scale: Tensor,
        threshold: Tensor,
        prior_scale: float,
        prior_threshold: Tensor,
    ) -> Tensor:
        """KL between thresholded distributions in nats: of the gates, and of the open slab."""
        log_on, log_off = cls.log_activity(scale, threshold)
        prior_on, prior_off = cls.log_activity(torch.full_like(scale, prior_scale), prior_threshold)
        gate = log_on.exp() * (log_on - prior_on) + log_off.exp() * (log_off - prior_off)
        return gate + log_on.exp() * cls.kl(loc, scale, prior_scale)
