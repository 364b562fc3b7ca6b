"""Encoders and decoders, torch only."""

from .linear import LinearDecoder, atoms_from_rows
from .mlp import mlp, mlp_decoder

__all__ = ["LinearDecoder", "atoms_from_rows", "mlp", "mlp_decoder"]
