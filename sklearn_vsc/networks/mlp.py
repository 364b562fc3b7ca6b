"""Multilayer perceptrons: bodies of encoders, and decoders that mirror them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ._init import linear_layer


def mlp(n_in: int, hidden_layer_sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Return linear layers with a ReLU after each; the last size is the number of outputs."""
    layers: list[nn.Module] = []
    for size in hidden_layer_sizes:
        layers += [linear_layer(n_in, size, generator), nn.ReLU()]
        n_in = size
    return nn.Sequential(*layers)


def mlp_decoder(
    n_components: int, hidden_layer_sizes: Sequence[int], n_out: int, generator: torch.Generator
) -> nn.Sequential:
    """Return a decoder whose hidden layers mirror those of an encoder."""
    body = mlp(n_components, hidden_layer_sizes[::-1], generator)
    width = hidden_layer_sizes[0] if hidden_layer_sizes else n_components
    body.append(linear_layer(width, n_out, generator, gain=0.5**0.5))
    return body
