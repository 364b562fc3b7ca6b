"""Rows of a sparse matrix, which are made dense one block at a time.

Entries that are not stored are zeros; stored entries that are NaN are missing.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class SparseRows:
    """Rows of a CSR matrix in place of a dense tensor.

    An index tensor gives dense rows, as that of a tensor does, and a slice gives sparse rows.

    Parameters
    ----------
    matrix : csr_matrix or csr_array of shape (n_rows, n_features)
        The rows; float32 or float64.
    device : torch.device
        Device of the dense rows.
    """

    def __init__(self, matrix: Any, device: torch.device) -> None:
        self.matrix = matrix
        self.device = device
        self.shape = torch.Size(matrix.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the dense rows; MPS has no float64."""
        single = self.matrix.dtype == np.float32 or self.device.type == "mps"
        return torch.float32 if single else torch.float64

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return type(self)(self.matrix[rows], self.device)
        return type(self)(self.matrix[rows.cpu().numpy()], self.device).dense()

    def dense(self) -> Tensor:
        """Return all rows as a tensor."""
        return torch.from_numpy(self.matrix.toarray()).to(self.device, self.dtype)

    def amax(self, axis: int) -> Tensor:
        """Return the largest value of each row (1) or column (0); NaN where one is missing."""
        return self._to_tensor(self.matrix.max(axis=axis).toarray())

    def amin(self, axis: int) -> Tensor:
        """Return the smallest value of each row (1) or column (0); NaN where one is missing."""
        return self._to_tensor(self.matrix.min(axis=axis).toarray())

    def n_observed(self) -> Tensor:
        """Return the number of observed entries of each column."""
        missing = self.matrix.indices[np.isnan(self.matrix.data)]
        counts = len(self) - np.bincount(missing, minlength=self.shape[1])
        return torch.from_numpy(counts).to(self.device)

    def mean_filled(self) -> Self:
        """Return the rows with missing entries filled with the mean of their column."""
        filled = type(self)(self.matrix.copy(), self.device)
        data = filled.matrix.data
        missing = np.isnan(data)
        data[missing] = 0
        counts = self.n_observed().cpu().numpy()
        means = np.asarray(filled.matrix.sum(axis=0)).reshape(-1) / np.maximum(counts, 1)
        data[missing] = means[filled.matrix.indices[missing]]
        return filled

    def _to_tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values.reshape(-1)).to(self.device, self.dtype)


def dense(X: Tensor | SparseRows) -> Tensor:
    """Return rows as a tensor."""
    return X.dense() if isinstance(X, SparseRows) else X
