"""Decoder of a sparse autoencoder: from codes to latent vectors by atoms, then to rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .unrolled import unit_atoms


class DictionaryDecoder(nn.Module):
    """Combine atoms into latent vectors, one for each position, and decode them together.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, latent_size)
        Initial atoms; only their direction matters.
    network : nn.Module
        Maps (n, n_positions * latent_size), position by position, to (n, n_features).
    n_positions : int
        Number of latent vectors per row.
    unit : float
        Initial amplitude for a code of one. The prior of the codes is fixed, so the scale is
        learned here.
    """

    def __init__(
        self, atoms: Tensor, network: nn.Module, n_positions: int = 1, unit: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(atoms)
        self.network = network
        self.n_positions = n_positions
        self.log_unit = nn.Parameter(atoms.new_tensor(unit).log())

    def forward(self, code: Tensor) -> Tensor:
        """Return outputs (..., n, n_features) of codes (..., n, n_positions * K)."""
        latents = self.latents(self.log_unit.exp() * code.unflatten(-1, (self.n_positions, -1)))
        output = self.network(latents.flatten(0, -3).flatten(1))
        return output.unflatten(0, code.shape[:-1])

    def latents(self, amplitudes: Tensor) -> Tensor:
        """Return latent vectors (..., L) of amplitudes (..., K)."""
        return amplitudes @ unit_atoms(self.weight)


def standardize_outputs(layer: nn.Linear | nn.Conv2d, outputs: Tensor, size: float) -> None:
    """Shift and scale a last layer so that ``outputs`` (m, n_out) get mean 0 and this RMS size."""
    with torch.no_grad():
        centre = outputs.mean(0)
        spread = (outputs - centre).square().mean().sqrt()
        # If all rows are equal, the spread of the outputs is only rounding error.
        factor = torch.where(spread > 1e-4 * centre.norm(), size / spread, 1)
        layer.weight *= factor
        assert layer.bias is not None
        layer.bias.copy_(factor * (layer.bias - centre))
