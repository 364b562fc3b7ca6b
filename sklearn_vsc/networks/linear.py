"""The linear decoder: a dictionary of atoms and an intercept."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearDecoder(nn.Module):
    """Decode a code z as ``z @ weight + bias``.

    Parameters
    ----------
    weight : Tensor of shape (n_components, n_features)
        Initial atoms.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[1]))

    def forward(self, code: Tensor) -> Tensor:
        """Return the decoded rows."""
        return code @ self.weight + self.bias

    def output_variance(self, code_variance: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the variance of the output summed over features, for independent codes (n, K).

        With a bool ``mask`` (n, D), the sum is over the features selected by it for each row.
        """
        squares = self.weight.square()
        if mask is None:
            return code_variance @ squares.sum(1)
        return torch.where(mask, code_variance @ squares, 0).sum(-1)


def atoms_from_rows(
    rows: Tensor, n_components: int, norm: float, generator: torch.Generator
) -> Tensor:
    """Return atoms of equal norm in the directions of random rows.

    Rows let a dictionary start where the data are. If there are fewer rows than atoms, the
    remaining atoms get random directions.
    """
    picked = torch.randperm(len(rows), generator=generator)[:n_components]
    atoms = rows[picked.to(rows.device)]
    missing = n_components - len(atoms)
    # Noise makes atoms from equal or zero rows differ.
    noise = torch.randn((n_components, rows.shape[1]), generator=generator, dtype=rows.dtype)
    noise = noise.to(rows.device)
    atoms = torch.cat([atoms, noise[:missing]]) + 1e-3 * noise
    return norm * atoms / atoms.norm(dim=1, keepdim=True)
