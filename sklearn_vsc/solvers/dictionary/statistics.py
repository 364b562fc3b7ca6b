"""Sums over rows from which a dictionary is updated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .accumulation import change_of_moments
from .sparse_gram import CodeGram, SparseGram, stores_sparsely


@dataclass
class Statistics:
    """Sums over rows from which the dictionary is updated.

    Attributes
    ----------
    code_gram : Tensor or SparseGram of shape (n_components, n_components)
        U' U; of many atoms only the pairs that occur together.
    code_data : Tensor of shape (n_components, n_features)
        U' X.
    n_users : Tensor of shape (n_components,)
        Number of rows that use each atom.
    """

    code_gram: CodeGram
    code_data: Tensor
    n_users: Tensor

    @classmethod
    def zeros_like(cls, dictionary: Tensor) -> Self:
        """Return the sums over zero rows."""
        n_components = len(dictionary)
        many = stores_sparsely(n_components, dictionary.device)
        return cls(
            SparseGram.zeros(n_components, dictionary.dtype)
            if many
            else dictionary.new_zeros(n_components, n_components),
            torch.zeros_like(dictionary),
            torch.zeros(n_components, dtype=torch.int64, device=dictionary.device),
        )

    @classmethod
    def change(cls, X: Tensor, old: Tensor | None, new: Tensor) -> Self:
        """Return the change when rows get new codes; ``old`` is None for rows not yet counted."""
        return cls(*change_of_moments(X, old, new))

    def copy(self) -> Self:
        """Return a copy that later changes do not affect."""
        return type(self)(self.code_gram.clone(), self.code_data.clone(), self.n_users.clone())

    def add(self, other: Self) -> None:
        """Add other sums, in place."""
        gram: Any = self.code_gram
        gram += other.code_gram
        self.code_data += other.code_data
        self.n_users += other.n_users

    def subtract(self, other: Self) -> None:
        """Subtract other sums, in place."""
        gram: Any = self.code_gram
        gram -= other.code_gram
        self.code_data -= other.code_data
        self.n_users -= other.n_users

    def scale(self, factor: float) -> None:
        """Reduce the weight in the update of what was added so far."""
        gram: Any = self.code_gram
        gram *= factor
        self.code_data *= factor

    def ahead(self, change: Self, factor: float) -> Self:
        """Return the sums plus ``factor`` times a change, cleared for atoms that are not in use."""
        sums = type(self)(
            _plus(self.code_gram, change.code_gram, factor),
            torch.add(self.code_data, change.code_data, alpha=factor),
            self.n_users,
        )
        sums.clear(self.n_users == 0)
        return sums

    def clear(self, unused: Tensor) -> None:
        """Clear the sums of atoms that no row uses, including remnants of rounding."""
        if unused.any():
            if isinstance(self.code_gram, SparseGram):
                self.code_gram.clear(unused)
            else:
                self.code_gram[unused] = 0
                self.code_gram[:, unused] = 0
            self.code_data[unused] = 0


def _plus(gram: CodeGram, change: Any, factor: float) -> CodeGram:
    if isinstance(gram, SparseGram):
        return gram.plus(change, factor)
    return torch.add(gram, change, alpha=factor)
