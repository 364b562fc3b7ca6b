"""Gamma distributions of the threshold: draws, KL divergence and expectations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Nodes of a half-normal rule for expectations over a Gamma threshold with a Gaussian base. The
# integrand falls like a normal density, which is negligible beyond 9 standard deviations.
_N_NODES = 48
_LAST_NODE = 9.0
# Smallest draw of a Gamma distribution, in units of the smallest normal number of its dtype.
_LEAST_DRAW = 1e6


def sample_gamma(shape: Tensor, rate: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Gamma variates; gradients reach shape and rate by implicit reparameterisation."""
    # The sampler of a device refuses a generator of another device.
    standard = torch._standard_gamma(shape.to(generator.device), generator=generator)
    draws = standard.to(shape.device) / rate
    # With a small shape draws underflow; above this limit log densities have finite gradients.
    return draws.clamp_min(_LEAST_DRAW * torch.finfo(draws.dtype).tiny)


def gamma_kl(shape: Tensor, rate: Tensor, prior_shape: float, prior_rate: float) -> Tensor:
    """KL(Gamma(shape, rate) || Gamma(prior_shape, prior_rate)) in nats."""
    prior = torch.tensor(prior_shape, dtype=shape.dtype, device=shape.device)
    return (
        (shape - prior) * torch.digamma(shape)
        - torch.lgamma(shape)
        + torch.lgamma(prior)
        + prior * (rate / prior_rate).log()
        + shape * (prior_rate - rate) / rate
    )


def gamma_log_prob(value: Tensor, shape: Tensor | float, rate: Tensor | float) -> Tensor:
    """Log density of Gamma(shape, rate) in nats."""
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
    """Nodes t and weights w with sum(w f(t)) = E f(|e|) for a standard normal e."""
    nodes, weights = np.polynomial.legendre.leggauss(_N_NODES)
    nodes = 0.5 * _LAST_NODE * (nodes + 1)
    weights = _LAST_NODE * weights * np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
    return torch.from_numpy(nodes).to(like), torch.from_numpy(weights).to(like)
