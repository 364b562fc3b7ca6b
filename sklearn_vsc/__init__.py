"""Sparse coding, classical and variational, as scikit-learn estimators on torch."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._show_versions import show_versions
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
    "show_versions",
    "sparse_encode",
]

_PUBLIC_MODULES = (
    "callbacks",
    "datasets",
    "inspection",
    "latents",
    "likelihoods",
    "metrics",
    "networks",
    "solvers",
)

if _TYPE_CHECKING:
    from . import callbacks as callbacks
    from . import datasets as datasets
    from . import inspection as inspection
    from . import latents as latents
    from . import likelihoods as likelihoods
    from . import metrics as metrics
    from . import networks as networks
    from . import solvers as solvers
else:
    # Type checkers would take any attribute for one that this function provides.

    def __getattr__(name: str) -> _Any:
        """Import a public module when it is first used (PEP 562)."""
        if name in _PUBLIC_MODULES:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what users need; modules behind the estimators are importable but not listed."""
    return sorted([*__all__, *_PUBLIC_MODULES])
