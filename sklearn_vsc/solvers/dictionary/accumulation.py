"""Sums over rows that dictionary learning needs, compiled for codes that are mostly zero.

On a CPU their cost is proportional to the number of non-zero codes; on other devices they are
matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._kernels import compiled, find_used
from ..missing import fill_missing
from .sparse_gram import CodeGram, sparse_moments, stores_sparsely


@dataclass(frozen=True)
class ObjectiveSums:
    """Sums over rows of the objective and of its parts.

    Attributes
    ----------
    total : float
        0.5 ||x - u V||^2 + alpha ||u||_1.
    reconstruction : float
        0.5 ||x - u V||^2.
    penalty : float
        alpha ||u||_1.
    n_nonzero : int
        Number of non-zero codes.
    n_rows : int
        Number of rows in the sums.
    """

    total: float = 0.0
    reconstruction: float = 0.0
    penalty: float = 0.0
    n_nonzero: int = 0
    n_rows: int = 0

    def __add__(self, other: ObjectiveSums) -> ObjectiveSums:
        return ObjectiveSums(
            self.total + other.total,
            self.reconstruction + other.reconstruction,
            self.penalty + other.penalty,
            self.n_nonzero + other.n_nonzero,
            self.n_rows + other.n_rows,
        )

    @property
    def mean(self) -> float:
        """Mean objective per row."""
        return self.total / self.n_rows if self.n_rows else math.nan


def change_of_moments(
    X: Tensor, old: Tensor | None, new: Tensor
) -> tuple[CodeGram, Tensor, Tensor]:
    """Return how much new codes for some rows change the sums over all rows.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        The rows.
    old, new : Tensor of shape (n_rows, n_components)
        Codes of the rows in the current sums (None if the rows are not in them), and new codes.

    Returns
    -------
    code_gram : Tensor or SparseGram of shape (n_components, n_components)
        Change of U' U.
    code_data : Tensor of shape (n_components, n_features)
        Change of U' X.
    n_users : Tensor of shape (n_components,)
        Change of the number of rows that use each atom.
    """
    n_components = new.shape[1]
    if stores_sparsely(n_components, X.device):
        return sparse_moments(X, old, new)
    old = torch.zeros_like(new) if old is None else old
    if X.device.type != "cpu":
        gram = torch.addmm(old.T @ old, new.T, new, beta=-1)
        return gram, (new - old).T @ X, (new != 0).sum(0) - (old != 0).sum(0)
    gram = X.new_zeros(n_components, n_components)
    data = X.new_zeros(n_components, X.shape[1])
    n_users = torch.zeros(n_components, dtype=torch.int64)
    _change_of_moments(*map(_array, (X, old, new, gram, data, n_users)))
    # Only the upper triangle was summed.
    return gram.add_(gram.triu(1).T), data, n_users


def objective_sums(X: Tensor, codes: Tensor, dictionary: Tensor, alpha: float) -> ObjectiveSums:
    """Return the objective and its parts, summed over the rows, without the missing entries."""
    X = fill_missing(X, codes, dictionary)
    if X.device.type == "cpu":
        arrays = map(_array, (X, codes, dictionary))
        total, fit, size, n_used = _objective_sums(*arrays, float(alpha))
        return ObjectiveSums(total, fit, size, n_used, len(X))
    residual = torch.addmm(X, codes, dictionary, alpha=-1)
    reconstruction, penalty = 0.5 * residual.square().sum(1), alpha * codes.abs().sum(1)
    n_nonzero = (codes != 0).sum(1).to(penalty)
    by_row = torch.stack([reconstruction + penalty, reconstruction, penalty, n_nonzero])
    # MPS has no float64.
    total, fit, size, n_used = by_row.cpu().double().sum(1).tolist()
    return ObjectiveSums(total, fit, size, int(n_used), len(X))


def _array(tensor: Tensor) -> NDArray:
    return tensor.contiguous().numpy()


@compiled
def _add_half_gram(codes, used, sign, gram):  # type: ignore[no-untyped-def]
    n_used = find_used(codes, used)
    for a in range(n_used):
        weight = sign * codes[used[a]]
        row = gram[used[a]]
        for b in range(a, n_used):
            row[used[b]] += weight * codes[used[b]]


@compiled
def _change_of_moments(X, old, new, gram, data, n_users):  # type: ignore[no-untyped-def]
    used = np.empty(new.shape[1] + 4, np.int64)
    one = X.dtype.type(1)
    change = np.empty_like(new[0])
    for i in range(len(X)):
        _add_half_gram(old[i], used, -one, gram)
        _add_half_gram(new[i], used, one, gram)
        for k in range(new.shape[1]):
            change[k] = new[i, k] - old[i, k]
            n_users[k] += int(new[i, k] != 0) - int(old[i, k] != 0)
        for a in range(find_used(change, used)):
            weight, row, x = change[used[a]], data[used[a]], X[i]
            for j in range(len(x)):
                row[j] += weight * x[j]


@compiled
def _subtract_atoms(residual, codes, dictionary, used, n_used):  # type: ignore[no-untyped-def]
    # Four atoms at a time: a quarter of the loads and stores of the residual.
    for a in range(0, n_used, 4):
        k0, k1, k2, k3 = used[a], used[a + 1], used[a + 2], used[a + 3]
        zero = codes.dtype.type(0)
        u0, u1 = codes[k0], codes[k1] if a + 1 < n_used else zero
        u2, u3 = codes[k2] if a + 2 < n_used else zero, codes[k3] if a + 3 < n_used else zero
        v0, v1, v2, v3 = dictionary[k0], dictionary[k1], dictionary[k2], dictionary[k3]
        for j in range(len(residual)):
            residual[j] -= u0 * v0[j] + u1 * v1[j] + u2 * v2[j] + u3 * v3[j]


@compiled
def _objective_sums(X, codes, dictionary, alpha):  # type: ignore[no-untyped-def]
    used = np.empty(codes.shape[1] + 4, np.int64)
    residual = np.empty_like(X[0])
    total, reconstruction, size, n_nonzero = 0.0, 0.0, 0.0, 0
    for i in range(len(X)):
        n_used = find_used(codes[i], used)
        residual[:] = X[i]
        _subtract_atoms(residual, codes[i], dictionary, used, n_used)
        energy = 0.0
        for j in range(len(residual)):
            energy += residual[j] * residual[j]
        penalty = 0.0
        for a in range(n_used):
            penalty += abs(codes[i, used[a]])
        total += energy / 2 + alpha * penalty
        reconstruction += energy / 2
        size += penalty
        n_nonzero += n_used
    return total, reconstruction, alpha * size, n_nonzero
