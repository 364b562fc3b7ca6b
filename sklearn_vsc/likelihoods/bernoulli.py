"""Binary features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..solvers.missing import observed
from ._base import Likelihood

# Means at the ends of a likelihood's range have infinite outputs: they are moved inside.
_LEAST_PROBABILITY = 0.01


class BernoulliLikelihood(Likelihood):
    """Independent binary features; the decoder's output is their log-odds.

    For rows of zeros and ones this is their probability. For grey values in [0, 1] it is the
    cross-entropy, which is not a normalised density.
    """

    link = "sigmoid"

    def check_range(self, least: float, most: float) -> None:
        """Refuse values outside [0, 1]."""
        if least < 0 or most > 1:
            raise ValueError(
                "likelihood='bernoulli' needs X in [0, 1]; got values from "
                f"{least:.3g} to {most:.3g}. Rescale X or use likelihood='gaussian'."
            )

    def output_of(self, mean: Tensor) -> Tensor:
        """Return the log-odds of a mean, which is kept away from 0 and 1."""
        return torch.logit(mean.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Log probability of rows (n, D) given log-odds (..., n, D), over observed entries."""
        mask = observed(x)
        loss = nn.functional.binary_cross_entropy_with_logits
        if mask is None:
            return -loss(output, x.expand_as(output), reduction="none").sum(-1)
        # The target enters the gradient of the loss: fill a missing one before.
        target = torch.where(mask, x, 0).expand_as(output)
        return -torch.where(mask, loss(output, target, reduction="none"), 0).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """Probability of a one."""
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw zeros and ones."""
        uniform = torch.rand(output.shape, generator=generator, dtype=output.dtype)
        return (uniform.to(output.device) < self.mean(output)).to(output.dtype)
