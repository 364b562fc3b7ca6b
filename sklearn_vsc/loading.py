"""Reading saved estimators: the names in files, and the classes they stand for."""

from __future__ import annotations

import os
from typing import Any

from ._base.coder import BaseSparseCoder
from ._persistence import state
from .dictionary import FISTADictionaryLearner
from .scvae import SCVAE
from .sparse_coder import SparseCoder
from .sparse_vae import SparseVAE
from .thresholded import ThresholdedVSC

# No other name in a file stands for anything.
_CLASSES = {
    known.__name__: known
    for known in (FISTADictionaryLearner, SparseCoder, ThresholdedVSC, SparseVAE, SCVAE)
}


def load(path: str | os.PathLike[str], **objects: Any) -> BaseSparseCoder:
    """Read a fitted estimator that its ``save`` has written.

    Nothing in the files is executed. Their checksum finds damage and careless changes; it is not a
    signature, and does not say who wrote them. Files of version 0.1 are read too.

    Parameters
    ----------
    path : str or path-like
        The folder.
    **objects : torch.nn.Module, LatentFamily or Likelihood
        ``encoder``, ``decoder``, ``prior`` and ``likelihood``, where the estimator was fitted
        with an object of a class of your own: a module of the same architecture, or the same
        prior or likelihood. It is left as it is; the trained weights come from the file.

    Returns
    -------
    estimator : FISTADictionaryLearner, SparseCoder, ThresholdedVSC, SparseVAE or SCVAE
        It answers, and continues to learn, as the estimator that was saved.

    Raises
    ------
    ValueError
        Where the folder does not hold a model, or holds one that is damaged, of a newer format, or
        of another architecture than the objects given.
    TypeError
        Where an object is missing, or is given for a parameter that was plain data.
    OSError
        Where a file is missing or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import sklearn_vsc
    >>> from sklearn_vsc.datasets import make_sparse_coded
    >>> X = make_sparse_coded(n_samples=100, random_state=0)[0]
    >>> model = sklearn_vsc.SparseVAE(n_components=5, max_iter=2, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder) / "vae")
    ...     again = sklearn_vsc.load(Path(folder) / "vae")
    >>> again.score(X) == model.score(X)
    True
    """
    return state.load(path, _CLASSES, objects)
