"""The Cauchy law: tails so heavy that a code has neither mean nor variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributions

from ._base import open_uniform


class Cauchy:
    """Cauchy law; ``scale`` is its half-width at half height."""

    distribution = distributions.Cauchy

    @staticmethod
    def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw standard Cauchy noise."""
        return torch.tan(math.pi * (open_uniform(shape, generator) - 0.5)).to(like)

    @staticmethod
    def variance(scale: Tensor) -> Tensor:
        """Variance: infinite."""
        return torch.full_like(scale, math.inf)
