"""Sparse coding, classical and variational, as scikit-learn estimators on torch."""

from ._persistence.state import load
from .dictionary import FISTADictionaryLearner
from .scvae import SCVAE
from .sparse_coder import SparseCoder, sparse_encode
from .sparse_vae import SparseVAE
from .thresholded import ThresholdedVSC

__version__ = "0.1.0"

__all__ = [
    "SCVAE",
    "FISTADictionaryLearner",
    "SparseCoder",
    "SparseVAE",
    "ThresholdedVSC",
    "load",
    "sparse_encode",
]
