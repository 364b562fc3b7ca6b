"""Gamma laws of the threshold: draws, KL, and expectations over them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Half-normal nodes for expectations over a Gamma threshold under a Gaussian base: the
# integrand falls like a normal density, which has no mass left at 9 standard deviations.
_N_NODES = 48
_LAST_NODE = 9.0
# Least draw of a Gamma law, over the least normal number of its type.
_LEAST_DRAW = 1e6


def sample_gamma(shape: Tensor, rate: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Gamma variates; gradients reach shape and rate by implicit reparameterisation."""
    # The CPU sampler refuses a generator of another device, and the other way round.
    standard = torch._standard_gamma(shape.to(generator.device), generator=generator)
    draws = standard.to(shape.device) / rate
    # Under a small shape draws underflow; above this, log densities have finite gradients.
    return draws.clamp_min(_LEAST_DRAW * torch.finfo(draws.dtype).tiny)


def gamma_kl(shape: Tensor, rate: Tensor, prior_shape: float, prior_rate: float) -> Tensor:
    """KL(Gamma(shape, rate) || Gamma(prior_shape, prior_rate)), nats."""
    prior = torch.tensor(prior_shape, dtype=shape.dtype, device=shape.device)
    return (
        (shape - prior) * torch.digamma(shape)
        - torch.lgamma(shape)
        + torch.lgamma(prior)
        + prior * (rate / prior_rate).log()
        + shape * (prior_rate - rate) / rate
    )


def gamma_log_prob(value: Tensor, shape: Tensor | float, rate: Tensor | float) -> Tensor:
    """Log density of Gamma(shape, rate), nats."""
    shape, rate = (
        torch.as_tensor(p, dtype=value.dtype, device=value.device) for p in (shape, rate)
    )
    return (
        torch.xlogy(shape, rate)
        - torch.lgamma(shape)
        + torch.xlogy(shape - 1, value)
        - rate * value
    )


def half_normal_rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights with sum(w f(t)) = E f(|e|), e standard normal."""
    nodes, weights = np.polynomial.legendre.leggauss(_N_NODES)
    nodes = 0.5 * _LAST_NODE * (nodes + 1)
    weights = _LAST_NODE * weights * np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
    return torch.from_numpy(nodes).to(like), torch.from_numpy(weights).to(like)
