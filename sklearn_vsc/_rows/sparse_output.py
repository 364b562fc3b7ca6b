"""Codes as sparse matrices, on their way to the caller and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .compat import align_api_if_sparse


def join_codes(chunks: Iterable[NDArray], *, sparse_output: bool) -> Any:
    """Stack codes that are made chunk by chunk.

    Parameters
    ----------
    chunks : iterable of ndarray of shape (any, n_codes)
        At most one is held at a time where the output is sparse.
    sparse_output : bool
        Whether to return a CSR matrix.

    Returns
    -------
    codes : ndarray or CSR matrix of shape (n_samples, n_codes)
        Sparse as scikit-learn's setting ``sparse_interface`` says, a ``csr_matrix`` by default.
    """
    if sparse_output:
        kept = [sparse.csr_matrix(chunk) for chunk in chunks]
        return align_api_if_sparse(sparse.vstack(kept, format="csr"))
    parts = list(chunks)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def dense_rows(Z: Any, rows: slice) -> NDArray:
    """Return some rows of codes, zeros included."""
    return Z[rows].toarray() if sparse.issparse(Z) else Z[rows]
