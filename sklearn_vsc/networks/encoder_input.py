"""What an encoder reads of rows that are not observed in full."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..solvers.missing import observed


class EncoderInput(nn.Module):
    """Fill what is missing (NaN) of rows, and tell the network behind where that was.

    Parameters
    ----------
    fill : Tensor of shape (n_features,)
        What stands for a missing entry.
    reads_mask : bool
        Whether as many further inputs, one where an entry is missing and else zero, follow.
    """

    fill: Tensor

    def __init__(self, fill: Tensor, *, reads_mask: bool) -> None:
        super().__init__()
        self.register_buffer("fill", fill)
        self.reads_mask = reads_mask

    def forward(self, x: Tensor) -> Tensor:
        """Return the filled rows, and the mask after them."""
        mask = observed(x)
        filled = x if mask is None else torch.where(mask, x, self.fill)
        if not self.reads_mask:
            return filled
        missing = torch.zeros_like(x) if mask is None else (~mask).to(x)
        return torch.cat([filled, missing], dim=-1)
