"""Input of an encoder for rows with missing entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..solvers.missing import observed


class EncoderInput(nn.Module):
    """Fill in missing entries (NaN) of rows, and tell the network which entries were missing.

    Parameters
    ----------
    fill : Tensor of shape (n_features,)
        Value for a missing entry of each feature.
    reads_mask : bool
        Whether to append ``n_features`` further inputs, which are one for missing entries and zero
        otherwise.
    """

    fill: Tensor

    def __init__(self, fill: Tensor, *, reads_mask: bool) -> None:
        super().__init__()
        self.register_buffer("fill", fill)
        self.reads_mask = reads_mask

    def forward(self, x: Tensor) -> Tensor:
        """Return the filled rows, followed by the mask if the network reads it."""
        mask = observed(x)
        filled = x if mask is None else torch.where(mask, x, self.fill)
        if not self.reads_mask:
            return filled
        missing = torch.zeros_like(x) if mask is None else (~mask).to(x)
        return torch.cat([filled, missing], dim=-1)
