"""Layers initialised from a private generator; torch's global generator is never used."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear_layer(
    n_in: int, n_out: int, generator: torch.Generator, *, gain: float = 1.0
) -> nn.Linear:
    """Return a linear layer with He-normal weights times ``gain`` and zero bias."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    he_normal(layer.weight, layer.bias, n_in, generator, gain=gain)
    return layer


@torch.no_grad()
def he_normal(
    weight: Tensor,
    bias: Tensor | None,
    fan_in: float,
    generator: torch.Generator,
    *,
    gain: float = 1.0,
) -> None:
    """Fill weights with He-normal draws times ``gain``, and the bias, if any, with zeros."""
    weight.normal_(0.0, gain * (2.0 / fan_in) ** 0.5, generator=generator)
    if bias is not None:
        bias.zero_()
