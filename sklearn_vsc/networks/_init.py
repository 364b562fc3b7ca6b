"""Layers initialised by a private generator: torch's global one is never drawn from."""

from __future__ import annotations

import torch
from torch import nn


def linear_layer(
    n_in: int, n_out: int, generator: torch.Generator, *, gain: float = 1.0
) -> nn.Linear:
    """Return a linear layer with He-normal weights times ``gain`` and zero bias."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    with torch.no_grad():
        layer.weight.normal_(0.0, gain * (2.0 / n_in) ** 0.5, generator=generator)
        layer.bias.zero_()
    return layer
