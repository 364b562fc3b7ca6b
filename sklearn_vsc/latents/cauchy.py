"""The Cauchy distribution, whose tails are so heavy that it has neither mean nor variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributions

from ._draws import open_uniform


class Cauchy:
    """Cauchy distribution; ``scale`` is its half-width at half maximum."""

    distribution = distributions.Cauchy

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw standard Cauchy noise."""
        return torch.tan(math.pi * (open_uniform(shape, generator) - 0.5)).to(like)

    @staticmethod
    def variance(scale: Tensor) -> Tensor:
        """Variance: infinite."""
        return torch.full_like(scale, math.inf)
