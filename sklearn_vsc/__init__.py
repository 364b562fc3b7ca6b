"""Sparse coding, classical and variational, as scikit-learn estimators on torch."""

from ._version import __version__
from .dictionary import FISTADictionaryLearner
from .loading import load
from .scvae import SCVAE
from .sparse_coder import SparseCoder, sparse_encode
from .sparse_vae import SparseVAE
from .thresholded import ThresholdedVSC

__all__ = [
    "SCVAE",
    "FISTADictionaryLearner",
    "SparseCoder",
    "SparseVAE",
    "ThresholdedVSC",
    "__version__",
    "load",
    "sparse_encode",
]
