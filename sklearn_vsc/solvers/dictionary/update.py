"""Dictionary updates from accumulated statistics of codes and rows.

References
----------
Mairal, Bach, Ponce and Sapiro (2009), Online dictionary learning for sparse coding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ..missing import mean_filled
from ..sparse_rows import SparseRows
from .sparse_gram import CodeGram, SparseGram, update_by_pairs

_compiled: Any = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
# Number of atoms whose targets are computed in one matrix product.
_PANEL = 32
# Projections by which unit vectors are told apart, and one over the distance that counts.
_N_PROJECTIONS, _RESOLUTION = 4, 1e4


def update_dictionary(
    dictionary: Tensor,
    code_gram: CodeGram,
    code_data: Tensor,
    *,
    positive: bool = False,
    n_sweeps: int = 1,
) -> Tensor:
    """Lower 0.5 tr(V' A V) - tr(V' B) by block coordinate descent over unit-norm atoms.

    Each atom in turn is set to its exact minimiser on the unit sphere with the others held fixed.

    Parameters
    ----------
    dictionary : Tensor of shape (n_components, n_features)
        Initial unit-norm atoms V; not modified.
    code_gram : Tensor or SparseGram of shape (n_components, n_components)
        A = U' U, summed over the rows. Atoms with a zero on the diagonal are left unchanged.
    code_data : Tensor of shape (n_components, n_features)
        B = U' X, summed over the rows.
    positive : bool, default=False
        Whether atoms must be non-negative.
    n_sweeps : int, default=1
        Number of times that every atom is updated.

    Returns
    -------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    """
    if isinstance(code_gram, SparseGram):
        return update_by_pairs(
            dictionary, code_gram, code_data, positive=positive, n_sweeps=n_sweeps
        )
    dictionary = dictionary.clone()
    weights = code_gram.diagonal()
    used = weights.nonzero().squeeze(1)
    if len(used):
        # Both scale as the square of X and are squared once more in a norm, so they are divided
        # by a common factor; dividing by a power of two loses no digits.
        unit = weights.amax().log2().floor().exp2()
        code_gram, code_data = code_gram / unit, code_data / unit
    update = _update_compiled if dictionary.device.type == "cpu" else _update_panel
    for _ in range(n_sweeps):
        for panel in used.split(_PANEL):
            # One matrix product for the whole panel; its atoms' effect on each other is added
            # below.
            gram = code_gram[panel]
            targets = torch.addmm(code_data[panel], gram, dictionary, alpha=-1)
            dictionary[panel] = update(dictionary[panel], targets, gram[:, panel], positive)
    return dictionary


def _update_panel(atoms: Tensor, residual: Tensor, gram: Tensor, positive: bool) -> Tensor:
    """Update some atoms, given the residual of their targets under the whole dictionary."""
    weights = gram.diagonal()
    for atom in range(len(atoms)):
        old = atoms[atom].clone()
        target = torch.addcmul(residual[atom], weights[atom], old)
        if positive:
            target.clamp_min_(0)
        norm = torch.linalg.vector_norm(target)
        # With a zero target every atom is equally good: keep the old one.
        atoms[atom] = torch.where(norm > 0, target / norm, old)
        residual.addr_(gram[:, atom], atoms[atom] - old, alpha=-1)
    return atoms


def _update_compiled(atoms: Tensor, residual: Tensor, gram: Tensor, positive: bool) -> Tensor:
    arrays = [tensor.contiguous().numpy() for tensor in (atoms, residual, gram)]
    _update_rows(*arrays, positive)
    return torch.from_numpy(arrays[0])


@_compiled
def _update_rows(atoms, residual, gram, positive):  # type: ignore[no-untyped-def]
    """Do the same as ``_update_panel``, in place."""
    zero = atoms.dtype.type(0)
    change = np.empty_like(atoms[0])
    for a in range(len(atoms)):
        atom, target = atoms[a], residual[a]
        energy = zero
        for j in range(len(atom)):
            target[j] += gram[a, a] * atom[j]
            if positive:
                target[j] = max(target[j], zero)
            energy += target[j] * target[j]
        # With a zero target every atom is equally good: keep the old one.
        if energy == 0:
            continue
        norm = np.sqrt(energy)
        for j in range(len(atom)):
            new = target[j] / norm
            change[j] = new - atom[j]
            atom[j] = new
        for b in range(a + 1, len(atoms)):
            for j in range(len(atom)):
                residual[b, j] -= gram[b, a] * change[j]


def normalise_atoms(atoms: Tensor, *, positive: bool = False, generator: torch.Generator) -> Tensor:
    """Scale atoms to unit norm; atoms of norm zero become random directions.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Arbitrary vectors.
    positive : bool, default=False
        Whether atoms must be non-negative; negative parts are set to zero.
    generator : torch.Generator
        Source of the random directions, on the CPU.

    Returns
    -------
    atoms : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    """
    if positive:
        atoms = atoms.clamp_min(0)
    # In two steps, so that squares of tiny or huge entries neither underflow nor overflow.
    peak = atoms.abs().amax(1, keepdim=True)
    flat = peak.squeeze(1) == 0
    if flat.any():
        fill = torch.randn(int(flat.sum()), atoms.shape[1], generator=generator)
        atoms, peak = atoms.clone(), peak.clone()
        atoms[flat] = (fill.abs() if positive else fill).to(atoms)
        peak[flat] = 1
    atoms = atoms / peak
    return atoms / torch.linalg.vector_norm(atoms, dim=1, keepdim=True)


def initial_dictionary(
    X: Tensor | SparseRows,
    n_components: int,
    *,
    positive: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Choose distinct random rows as atoms, plus random directions if there are too few rows.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows to draw from; zero rows are skipped. Missing entries, which are NaN, are filled with
        the mean of the observed entries of their column.
    n_components : int
        Number of atoms.
    positive : bool, default=False
        Whether atoms must be non-negative.
    generator : torch.Generator
        Source of randomness, on the CPU.

    Returns
    -------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    """
    atoms = torch.zeros(n_components, X.shape[1], dtype=X.dtype, device=X.device)
    rows = different_rows(X, n_components, atoms[:0], positive=positive, generator=generator)
    atoms[: len(rows)] = rows
    return normalise_atoms(atoms, positive=positive, generator=generator)


def different_rows(
    X: Tensor | SparseRows,
    n_rows: int,
    atoms: Tensor,
    *,
    positive: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Draw rows that differ in direction from each other and from given atoms.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Rows to draw from; zero rows are skipped. Missing entries, which are NaN, are filled with
        the mean of the observed entries of their column.
    n_rows : int
        Number of rows wanted.
    atoms : Tensor of shape (n_atoms, n_features)
        Unit-norm atoms that the rows must differ from.
    positive : bool, default=False
        Whether negative parts of the rows are set to zero.
    generator : torch.Generator
        Source of randomness, on the CPU.

    Returns
    -------
    rows : Tensor of shape (n_found, n_features)
        Rows scaled to unit norm, ``n_rows`` of them or, if there are not as many, fewer.
    """
    # Row maxima and minima need no temporary array of the size of X.
    highest = X.amax(1)
    if highest.isnan().any():
        X = mean_filled(X)
        highest = X.amax(1)
    energetic = highest > 0
    if not positive:
        energetic |= X.amin(1) < 0
    energetic = energetic.nonzero().squeeze(1)
    order = energetic[torch.randperm(len(energetic), generator=generator).to(X.device)]
    # Unit vectors are told apart by a few random projections, rounded: inner products of all pairs
    # would take far more time and memory.
    plane = torch.randn(X.shape[1], _N_PROJECTIONS, generator=generator).to(atoms)
    seen = set(_keys(atoms, plane))
    found: list[Tensor] = []
    n_wanted = n_rows
    # In most tables nearly all rows differ, so the first part is nearly always enough.
    while len(order) and n_wanted:
        drawn, order = order[:n_wanted], order[n_wanted:]
        rows = normalise_atoms(X[drawn], positive=positive, generator=generator)
        kept = []
        for row, key in enumerate(_keys(rows, plane)):
            if key not in seen:
                seen.add(key)
                kept.append(row)
        found.append(rows[kept])
        n_wanted -= len(kept)
    return torch.cat(found) if found else atoms[:0]


def _keys(rows: Tensor, plane: Tensor) -> list[tuple[int, ...]]:
    """Return what unit vectors have in common only if they are the same up to rounding."""
    places = (rows @ plane).mul_(_RESOLUTION).round_().long()
    return list(map(tuple, places.tolist()))
