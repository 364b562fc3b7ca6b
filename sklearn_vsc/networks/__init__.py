"""Encoders and decoders as torch modules."""

from .bounded import RANGES, BoundedDecoder, before_activation
from .conv import ConvDecoder, ConvEncoder
from .dictionary_decoder import DictionaryDecoder, standardize_outputs
from .draws import DrawsDecoder
from .encoder_input import EncoderInput
from .linear import LinearDecoder, atoms_from_rows
from .mlp import mlp, mlp_decoder
from .residual import N_CHANNELS, grid_shape, residual_decoder, residual_encoder
from .unrolled import AtomHeads, TiedEncoder, UnrolledCoder, unit_atoms

__all__ = [
    "N_CHANNELS",
    "RANGES",
    "AtomHeads",
    "BoundedDecoder",
    "ConvDecoder",
    "ConvEncoder",
    "DictionaryDecoder",
    "DrawsDecoder",
    "EncoderInput",
    "LinearDecoder",
    "TiedEncoder",
    "UnrolledCoder",
    "atoms_from_rows",
    "before_activation",
    "grid_shape",
    "mlp",
    "mlp_decoder",
    "residual_decoder",
    "residual_encoder",
    "standardize_outputs",
    "unit_atoms",
]
