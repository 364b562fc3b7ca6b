"""The smooth part of the lasso in several forms, and certificates for codes.

References
----------
Fercoq, Gramfort and Salmon (2015), Mind the duality gap: safer rules for the Lasso.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

# The number of rows of a matrix product is padded to a multiple of this.
_PRODUCT_ROWS = 64
# Most atoms of which all pairs are multiplied on a CPU, number of multiplications in all pairs that
# is worth avoiding, and how many atoms per row that takes.
MOST_GRAM_ATOMS = 8192
_MANY_PRODUCTS, _ATOMS_PER_ROW = 2**24, 8
# Maximum number of entries in the atoms gathered at once for rows with missing entries.
_LISTED_NUMEL = 2**22


@dataclass(frozen=True)
class Certificate:
    """Objective, duality gap and gradient at given codes, one of each per row."""

    objective: Tensor
    gap: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class GramFit:
    """Quadratic fit computed from inner products alone: the cheaper form for few atoms."""

    gram: Tensor
    correlations: Tensor
    energy: Tensor

    @classmethod
    def from_rows(cls, X: Tensor, dictionary: Tensor, gram: Tensor) -> Self:
        """Compute what is needed from the rows."""
        return cls(gram, products_of_rows(X, dictionary), X.square().sum(1))

    def gradient(self, codes: Tensor) -> Tensor:
        return torch.addmm(self.correlations, codes, self.gram, beta=-1)

    def evaluate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        gradient = self.gradient(codes)
        residual_energy = self.energy - (codes * (self.correlations - gradient)).sum(1)
        return gradient, residual_energy.clamp_min(0)

    @property
    def scale(self) -> Tensor:
        return self.correlations.abs().amax(1)

    def atom_gram(self, atoms: Tensor) -> Tensor:
        return self.gram[atoms.unsqueeze(2), atoms.unsqueeze(1)]

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.gram, self.correlations[rows], self.energy[rows])


@dataclass(frozen=True)
class DataFit:
    """Quadratic fit computed from the rows themselves: the cheaper form for many atoms."""

    dictionary: Tensor
    X: Tensor
    energy: Tensor

    @classmethod
    def from_rows(cls, X: Tensor, dictionary: Tensor) -> Self:
        """Compute what is needed from the rows."""
        return cls(dictionary, X, X.square().sum(1))

    def gradient(self, codes: Tensor) -> Tensor:
        return self.evaluate(codes)[0]

    def evaluate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        excess = torch.addmm(self.X, codes, self.dictionary, beta=-1)
        return excess @ self.dictionary.T, excess.square().sum(1)

    @property
    def scale(self) -> Tensor:
        return (self.X @ self.dictionary.T).abs().amax(1)

    def atom_gram(self, atoms: Tensor) -> Tensor:
        listed = self.dictionary[atoms]
        return listed @ listed.mT

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.dictionary, self.X[rows], self.energy[rows])


@dataclass(frozen=True)
class MaskedFit:
    """Quadratic fit to the observed entries of the rows only."""

    dictionary: Tensor
    # Rows with zeros in place of missing entries.
    X: Tensor
    observed: Tensor
    energy: Tensor

    @classmethod
    def from_rows(cls, X: Tensor, dictionary: Tensor) -> Self:
        """Compute what is needed from the rows, in which missing entries are NaN."""
        missing = X.isnan()
        X = X.masked_fill(missing, 0)
        return cls(dictionary, X, ~missing, X.square().sum(1))

    def gradient(self, codes: Tensor) -> Tensor:
        return self.evaluate(codes)[0]

    def evaluate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        excess = torch.addmm(self.X, codes, self.dictionary, beta=-1).mul_(self.observed)
        return excess @ self.dictionary.T, excess.square().sum(1)

    @property
    def scale(self) -> Tensor:
        return (self.X @ self.dictionary.T).abs().amax(1)

    def atom_gram(self, atoms: Tensor) -> Tensor:
        # Each row gathers its own masked atoms, so the rows are processed in parts.
        size = max(_LISTED_NUMEL // max(atoms.shape[1] * self.X.shape[1], 1), 1)
        parts = zip(atoms.split(size), self.observed.unsqueeze(1).split(size), strict=True)
        listed = (self.dictionary[part] * seen for part, seen in parts)
        return torch.cat([each @ each.mT for each in listed])

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.dictionary, self.X[rows], self.observed[rows], self.energy[rows])


def products_of_rows(X: Tensor, dictionary: Tensor, multiple: int = _PRODUCT_ROWS) -> Tensor:
    """Return the inner products of rows and atoms, with the rows padded to a ``multiple``."""
    # Matrix products of few rows round differently from those of many, and the codes of a row
    # should not depend on the other rows of the batch.
    padding = -len(X) % multiple
    padded = torch.nn.functional.pad(X, (0, 0, 0, padding)) if padding else X
    return (padded @ dictionary.T)[: len(X)]


Fit = GramFit | DataFit | MaskedFit


@dataclass(frozen=True)
class Atoms:
    """A dictionary, and its inner products if the fit uses them."""

    dictionary: Tensor
    gram: Tensor | None
    # Whether the rows have missing entries.
    masked: bool = False
    # Whether only half of the inner products is computed.
    symmetric: bool = False

    @classmethod
    def of(cls, dictionary: Tensor, form: str, *, symmetric: bool = False) -> Self:
        """Choose the form of the fit; 'auto' picks the one that takes fewer operations.

        Form 'masked' is for rows with missing entries, which are NaN. ``symmetric`` takes half
        the time on a CPU, for one row most of it, and rounds differently.
        """
        if form == "masked":
            return cls(dictionary, None, masked=True)
        n_components, n_features = dictionary.shape
        use_gram = form == "gram" or (form == "auto" and n_components <= 2 * n_features)
        gram = _inner_products(dictionary, symmetric) if use_gram else None
        return cls(dictionary, gram, symmetric=symmetric)

    def fit(self, X: Tensor) -> Fit:
        if self.masked:
            return MaskedFit.from_rows(X, self.dictionary)
        if self.gram is None:
            return DataFit.from_rows(X, self.dictionary)
        return GramFit.from_rows(X, self.dictionary, self.gram)

    def double(self) -> Atoms:
        """Return the same atoms in float64."""
        return self._double

    @cached_property
    def _double(self) -> Atoms:
        dictionary = self.dictionary.double()
        gram = None if self.gram is None else _inner_products(dictionary, self.symmetric)
        return Atoms(dictionary, gram, self.masked, self.symmetric)


class AtomCache:
    """Keeps the inner products of the last atoms that it was asked for."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, str, bool, Atoms] | None = None

    def of(self, dictionary: Tensor, form: str, *, symmetric: bool) -> Atoms:
        """Do the same as `Atoms.of`; the atoms are compared, since their array may change."""
        if self._last is not None:
            known, *wanted, atoms = self._last
            same = known.dtype == dictionary.dtype and known.device == dictionary.device
            if wanted == [form, symmetric] and same and torch.equal(known, dictionary):
                return atoms
        atoms = Atoms.of(dictionary, form, symmetric=symmetric)
        if atoms.gram is not None:
            self._last = dictionary.clone(), form, symmetric, atoms
        return atoms


def gram_pays(n_rows: int, dictionary: Tensor) -> bool:
    """Return whether coordinate descent on so many rows should use all inner products."""
    n_components, n_features = dictionary.shape
    if n_components > MOST_GRAM_ATOMS:
        return False
    few = n_rows * _ATOMS_PER_ROW <= n_components
    return not few or n_components**2 * n_features < _MANY_PRODUCTS


def _inner_products(dictionary: Tensor, symmetric: bool) -> Tensor:
    """Return the inner products of all pairs of atoms."""
    if not symmetric or dictionary.device.type != "cpu":
        return dictionary @ dictionary.T
    # NumPy sees that both factors are the same array.
    array = dictionary.contiguous().numpy()
    return torch.from_numpy(array @ array.T)


def certify(fit: Fit, codes: Tensor, alpha: float, *, positive: bool) -> Certificate:
    """Return objective and duality gap; the dual point is the residual, optimally scaled."""
    gradient, residual_energy = fit.evaluate(codes)
    penalty = alpha * codes.abs().sum(1)
    inner = (codes * gradient).sum(1)
    tiny = torch.finfo(codes.dtype).tiny
    # The dual point is the best feasible multiple of the residual.
    steepest = (-gradient).amax(1) if positive else gradient.abs().amax(1)
    scale = torch.minimum(
        1 - inner / residual_energy.clamp_min(tiny), alpha / steepest.clamp_min(tiny)
    ).clamp_min(0)
    # Written so that no large terms cancel near the optimum.
    gap = 0.5 * (1 - scale).square() * residual_energy + penalty + scale * inner
    return Certificate(0.5 * residual_energy + penalty, gap.clamp_min(0), gradient)
