"""The Cauchy law: tails so heavy that a code has neither mean nor variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributions


class Cauchy:
    """Cauchy law; ``scale`` is its half-width at half height."""

    distribution = distributions.Cauchy

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw standard Cauchy noise."""
        uniform = torch.rand(
            shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return torch.tan(math.pi * (uniform - 0.5)).to(like)

    @staticmethod
    def variance(scale: Tensor) -> Tensor:
        """Variance: infinite."""
        return torch.full_like(scale, math.inf)
