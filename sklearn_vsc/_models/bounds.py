"""Bounds on log p(x) as pure functions of log weights of shape (n_draws, n_rows)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def elbo(log_weights: Tensor) -> Tensor:
    """Mean of the log weights over draws: the evidence lower bound of each row, nats."""
    return log_weights.mean(0)


def max_elbo(log_weights: Tensor) -> Tensor:
    """Log weight of the best draw of each row.

    An objective for training (Fallah & Rozell 2022, section 3.3): the best of many draws
    exceeds log p(x), so it bounds nothing and is never a score.
    """
    return log_weights.amax(0)


def iwae(log_weights: Tensor) -> Tensor:
    """Log of the mean weight (Burda et al. 2016, equation 8): rises to log p(x) with draws."""
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "elbo": elbo,
    "max_elbo": max_elbo,
    "iwae": iwae,
}
