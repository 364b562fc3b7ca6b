"""Inner products of the codes of many atoms, of which only the pairs that occur are stored.

Rows with few codes each fill a vanishing share of all pairs of tens of thousands of atoms. A
`SparseGram` takes the place of the dense tensor in `Statistics`: it has the same operations.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

_compiled: Any = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
# With more atoms than this the inner products of their codes are stored sparsely, on a CPU.
_MOST_DENSE_ATOMS = 8192
# Entries are dropped below this multiple of machine epsilon, relative to the diagonal, each time
# that their number has doubled; there are at least this many then.
_ROUNDING, _LEAST_ENTRIES = 8, 2**20


class SparseGram:
    """A symmetric matrix U' U, in the CSR format of SciPy.

    Parameters
    ----------
    matrix : csr_array of shape (n_components, n_components)
        All its entries, of both triangles.
    """

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self._n_kept = _LEAST_ENTRIES

    @classmethod
    def zeros(cls, n_components: int, dtype: torch.dtype) -> Self:
        """Return the inner products of no codes."""
        shape, real = (n_components, n_components), torch.empty(0, dtype=dtype).numpy().dtype
        return cls(sparse.csr_array(shape, dtype=real))

    @classmethod
    def from_entries(cls, entries: NDArray, n_components: int) -> Self:
        """Return the matrix with these ``entries``."""
        rows, columns = entries[:, 0].astype(np.int32), entries[:, 1].astype(np.int32)
        shape = n_components, n_components
        half = sparse.coo_array((entries[:, 2], (rows, columns)), shape=shape).tocsr()
        return cls((half + sparse.triu(half, 1).T).tocsr())

    @property
    def entries(self) -> NDArray:
        """Row, column and value of each entry of the upper triangle, as one array."""
        half = sparse.triu(self.matrix, format="coo")
        columns = [half.row.astype(half.dtype), half.col.astype(half.dtype), half.data]
        return np.stack(columns, axis=1)

    def clone(self) -> Self:
        """Return a copy that later changes do not affect."""
        # Arrays are replaced or scaled, so the values alone need copying.
        return type(self)(self.matrix.copy())

    def diagonal(self) -> Tensor:
        """Return the squared norms of the codes of each atom."""
        return torch.from_numpy(self.matrix.diagonal())

    def plus(self, other: Self, factor: float) -> Self:
        """Return the sum of this matrix and ``factor`` times another."""
        return type(self)(self.matrix + other.matrix * self.matrix.dtype.type(factor))

    def clear(self, unused: Tensor) -> None:
        """Drop the entries of some atoms."""
        kept = (~unused).numpy()
        rows = np.repeat(kept, np.diff(self.matrix.indptr))
        self._keep(rows & kept[self.matrix.indices])

    def __iadd__(self, other: Self) -> Self:
        self.matrix = self.matrix + other.matrix
        return self._pruned()

    def __isub__(self, other: Self) -> Self:
        self.matrix = self.matrix - other.matrix
        return self._pruned()

    def __imul__(self, factor: float) -> Self:
        self.matrix.data *= self.matrix.dtype.type(factor)
        return self

    def _pruned(self) -> Self:
        """Drop entries that are nothing but rounding, where there are many new ones."""
        if self.matrix.nnz > 2 * self._n_kept:
            norms = np.sqrt(np.maximum(self.matrix.diagonal(), 0))
            least = _ROUNDING * np.finfo(norms.dtype).eps * norms
            rows = np.repeat(least, np.diff(self.matrix.indptr))
            self._keep(np.abs(self.matrix.data) > rows * norms[self.matrix.indices])
            self._n_kept = max(self.matrix.nnz, _LEAST_ENTRIES)
        return self

    def _keep(self, kept: NDArray) -> None:
        if not kept.all():
            self.matrix.data[~kept] = 0
            self.matrix.eliminate_zeros()


CodeGram = Tensor | SparseGram


def stores_sparsely(n_components: int, device: torch.device) -> bool:
    """Return whether the inner products of the codes of so many atoms are stored sparsely."""
    return device.type == "cpu" and n_components > _MOST_DENSE_ATOMS


def sparse_moments(X: Tensor, old: Tensor | None, new: Tensor) -> tuple[SparseGram, Tensor, Tensor]:
    """Do the same as `change_of_moments`, without an array of all pairs of atoms."""
    after = sparse.csr_array(new.numpy())
    gram, change = after.T @ after, after
    n_users = np.bincount(after.indices, minlength=new.shape[1])
    if old is not None:
        before = sparse.csr_array(old.numpy())
        gram, change = gram - before.T @ before, after - before
        n_users -= np.bincount(before.indices, minlength=new.shape[1])
    data = torch.from_numpy(np.asarray(change.T @ X.numpy()))
    return SparseGram(gram.tocsr()), data, torch.from_numpy(n_users.astype(np.int64))


def update_by_pairs(
    dictionary: Tensor, gram: SparseGram, data: Tensor, *, positive: bool, n_sweeps: int
) -> Tensor:
    """Do the same as `update_dictionary`, from the pairs of atoms that occur together."""
    atoms, matrix = dictionary.clone(memory_format=torch.contiguous_format), gram.matrix
    weights = matrix.diagonal()
    if weights.any():
        # As in `update_dictionary`: values that are squared must stay in range.
        unit = weights.dtype.type(2.0 ** np.floor(np.log2(weights.max())))
        pairs = matrix.indptr, matrix.indices, matrix.data
        arrays = data.contiguous().numpy(), weights
        for _ in range(n_sweeps):
            _update(atoms.numpy(), *pairs, *arrays, 1 / unit, positive)
    return atoms


@_compiled
def _update(  # type: ignore[no-untyped-def]
    atoms, starts, columns, values, data, weights, scale, positive
):
    zero = atoms.dtype.type(0)
    target = np.empty_like(atoms[0])
    for k in range(len(atoms)):
        if weights[k] == 0:
            continue
        row = data[k]
        for j in range(len(target)):
            target[j] = row[j] * scale
        for place in range(starts[k], starts[k + 1]):
            other = columns[place]
            if other != k:
                value, atom = values[place] * scale, atoms[other]
                for j in range(len(target)):
                    target[j] -= value * atom[j]
        energy = zero
        for j in range(len(target)):
            if positive:
                target[j] = max(target[j], zero)
            energy += target[j] * target[j]
        # With a zero target every atom is equally good: keep the old one.
        if energy > 0:
            norm = np.sqrt(energy)
            for j in range(len(target)):
                atoms[k, j] = target[j] / norm
