"""Sparse matrices: codes in output and input, and rows in input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .arrays import row_slices, rows_at_once
from .compat import align_api_if_sparse


def join_codes(chunks: Iterable[NDArray], *, sparse_output: bool) -> Any:
    """Stack codes that are computed chunk by chunk.

    Parameters
    ----------
    chunks : iterable of ndarray of shape (any, n_codes)
        Dense codes; with sparse output, at most one chunk is in memory at a time.
    sparse_output : bool
        Whether to return a CSR matrix.

    Returns
    -------
    codes : ndarray or CSR matrix of shape (n_samples, n_codes)
        A sparse result follows scikit-learn's setting ``sparse_interface``, by default a
        ``csr_matrix``.
    """
    if sparse_output:
        kept = [sparse.csr_matrix(chunk) for chunk in chunks]
        return align_api_if_sparse(sparse.vstack(kept, format="csr"))
    parts = list(chunks)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def dense_rows(Z: Any, rows: slice) -> NDArray:
    """Return some rows as a dense array."""
    return Z[rows].toarray() if sparse.issparse(Z) else Z[rows]


def dense_blocks(X: Any) -> Iterator[NDArray]:
    """Yield the rows of a sparse matrix as dense arrays, and an array as it is."""
    if not sparse.issparse(X):
        yield X
        return
    for rows in row_slices(X.shape[0], rows_at_once(X.shape[1])):
        yield X[rows].toarray()
