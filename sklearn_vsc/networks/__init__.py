"""Encoders and decoders, torch only."""

from .bounded import RANGES, BoundedDecoder, before_activation
from .conv import ConvDecoder, ConvEncoder
from .linear import LinearDecoder, atoms_from_rows
from .mlp import mlp, mlp_decoder
from .unrolled import AtomHeads, TiedEncoder, UnrolledCoder

__all__ = [
    "RANGES",
    "AtomHeads",
    "BoundedDecoder",
    "ConvDecoder",
    "ConvEncoder",
    "LinearDecoder",
    "TiedEncoder",
    "UnrolledCoder",
    "atoms_from_rows",
    "before_activation",
    "mlp",
    "mlp_decoder",
]
