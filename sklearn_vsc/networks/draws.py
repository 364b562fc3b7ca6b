"""Apply a decoder of rows to several draws of codes."""

from __future__ import annotations

from torch import Tensor, nn


class DrawsDecoder(nn.Module):
    """Decode codes with any leading axes, using a module that maps (n, K) to (n, D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, code: Tensor) -> Tensor:
        """Return outputs (..., n, D) of codes (..., n, K)."""
        return self.network(code.flatten(0, -2)).unflatten(0, code.shape[:-1])
