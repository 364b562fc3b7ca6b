"""Decoders with bounded output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
# Values that each activation can reach.
RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
_INVERSES = {"sigmoid": torch.logit, "tanh": torch.atanh}


class BoundedDecoder(nn.Module):
    """A decoder followed by an activation in the units of X.

    Parameters
    ----------
    decoder : nn.Module
        Maps codes to the input of the activation.
    activation : {'sigmoid', 'tanh'}
        Activation that bounds the output.
    offset : Tensor of shape (n_features,)
        The value that the model subtracts from X.
    unit : float
        The number that the model divides X by.
    """

    offset: Tensor

    def __init__(self, decoder: nn.Module, activation: str, offset: Tensor, unit: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.activation = activation
        self.register_buffer("offset", offset)
        self.unit = unit

    def forward(self, code: Tensor) -> Tensor:
        """Return the decoded rows, in the units of the model."""
        return (ACTIVATIONS[self.activation](self.decoder(code)) - self.offset) / self.unit


def before_activation(value: Tensor, activation: str) -> Tensor:
    """Return the input that the activation maps to ``value``, clamped away from its limits."""
    low, high = RANGES[activation]
    margin = 0.01 * (high - low)
    return _INVERSES[activation](value.clamp(low + margin, high - margin))
