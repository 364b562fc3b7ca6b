"""The compiled pursuit of one row: least squares on a support that grows by one atom at a time.

It computes with inner products alone. Of each atom that enters, it keeps the part that is
orthogonal to the atoms before it, as inner products of this part with all atoms: so an atom that
enters costs one pass over the parts before it, and no linear system is solved until the end. The
parts are at the same time the rows of a Cholesky factor.

With non-negative codes, atoms whose codes become zero leave the support again, as in the method
of Lawson and Hanson for non-negative least squares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._kernels import compiled, dot

# Multiples of machine epsilon. An atom is in the span of the support where the rest of its squared
# norm is below the first; a residual is explained where its correlation with an atom is below the
# second, and two correlations are equal where they differ by less than the third, both in units of
# the norms of row and atom.
_SPANNED, _EXPLAINED, _EQUAL = 20, 4, 16
# Most steps of a pursuit of non-negative codes, in multiples of the number of atoms.
_MOST_STEPS = 10


class Rules(NamedTuple):
    """When a pursuit ends: at a number of codes, or at a residual.

    ``share`` is the residual as a share of the energy of the row; negative for none.
    """

    share: Any
    positive: bool
    eps: Any


class Atoms(NamedTuple):
    """Inner products of the atoms, computed when they are needed.

    ``slots`` says which row of ``gram`` has the inner products of an atom, -1 where none has;
    ``known`` is the number of rows in use. ``longest`` is the largest norm of an atom.
    """

    dictionary: NDArray
    norms: NDArray
    longest: Any
    gram: NDArray
    slots: NDArray
    known: NDArray


class _State(NamedTuple):
    """Scratch of one row.

    ``pulls`` are the correlations of the residual with all atoms, ``free`` is one for atoms that
    may enter and zero for others, ``sizes`` are the absolute correlations of the former in float64,
    and ``bits`` is the same memory as integers. Of the atoms in use, in the order in which they
    entered: their indices; of their orthogonal parts, the inner products with all atoms and the
    energies; the coordinates of the row along these parts; and the codes. ``atom`` holds the
    observed entries of an atom.
    """

    pulls: NDArray
    free: NDArray
    sizes: NDArray
    bits: NDArray
    support: NDArray
    parts: NDArray
    energies: NDArray
    coordinates: NDArray
    codes: NDArray
    trial: NDArray
    atom: NDArray


@compiled
def pursue_rows(  # type: ignore[no-untyped-def]
    atoms, rules, masks, largest, X, correlations, most, codes
):
    """Code rows into ``codes``, which are zero.

    With several ``masks``, each row has its own observed entries.
    """
    n_components, n_features = atoms.dictionary.shape
    state = _new_state(n_components, n_features, largest, codes)
    for i in range(len(codes)):
        observed = masks[min(i, len(masks) - 1)]
        if len(masks) > 1:
            _forget(atoms)
        energy = dot(X[i], X[i])
        size = _pursue_row(
            atoms, rules, correlations[i], energy, observed, n_components, most[i], state
        )
        for a in range(size):
            codes[i, state.support[a]] = state.codes[a]


@compiled
def refit_rows(dictionary, gram, rules, largest, X, observed, codes):  # type: ignore[no-untyped-def]
    """Put the least-squares codes of each row in place of its codes."""
    n_features = dictionary.shape[1]
    x, wide = np.zeros(n_features), np.zeros(1)
    state = _new_state(largest, 0, largest, wide)
    atoms = Atoms(
        np.zeros((largest, n_features)),
        np.zeros(largest),
        0.0,
        np.zeros((largest, largest)),
        np.arange(largest),
        np.zeros(1, np.int64),
    )
    listed, correlations = np.zeros(largest, np.int64), np.zeros(largest)
    for i in range(len(codes)):
        row, size = codes[i], 0
        for k in range(len(row)):
            if row[k] != 0:
                listed[size] = k
                row[k] = 0
                size += 1
        for j in range(n_features):
            x[j] = X[i, j]
        _list_atoms(dictionary, gram, observed[i], listed, size, atoms)
        for a in range(size):
            correlations[a] = dot(atoms.dictionary[a], x)
        found = _pursue_row(atoms, rules, correlations, dot(x, x), observed[i], size, size, state)
        for a in range(found):
            row[listed[state.support[a]]] = state.codes[a]


@compiled
def _list_atoms(dictionary, gram, observed, listed, size, atoms):  # type: ignore[no-untyped-def]
    """Copy the atoms of a row, and their inner products over its observed entries."""
    for a in range(size):
        own, full = atoms.dictionary[a], dictionary[listed[a]]
        for j in range(len(full)):
            own[j] = full[j] if observed[j] else 0.0
    for a in range(size):
        own = atoms.gram[a]
        for b in range(a + 1):
            if len(gram):
                own[b] = gram[listed[a], listed[b]]
            else:
                own[b] = dot(atoms.dictionary[a], atoms.dictionary[b])
            atoms.gram[b, a] = own[b]
        atoms.norms[a] = np.sqrt(own[a])


@compiled
def _new_state(n_atoms, n_features, most, like):  # type: ignore[no-untyped-def]
    """Return scratch for rows with at most this many codes, of the type of ``like``."""
    # One more than there are atoms, for the largest.
    sizes = np.zeros(n_atoms + 1)
    return _State(
        np.zeros(n_atoms, like.dtype),
        np.zeros(n_atoms, like.dtype),
        sizes,
        sizes.view(np.int64),
        np.zeros(most, np.int64),
        # Memory that is not touched is not used.
        np.empty((most, n_atoms), like.dtype),
        np.zeros(most, like.dtype),
        np.zeros(most, like.dtype),
        np.zeros(most, like.dtype),
        np.zeros(most, like.dtype),
        np.zeros(n_features, like.dtype),
    )


@compiled
def _pursue_row(  # type: ignore[no-untyped-def]
    atoms, rules, correlations, energy, observed, n_atoms, most, state
):
    """Find the codes of one row.

    Parameters
    ----------
    correlations : ndarray of shape (n_atoms,)
        Inner products of the row and the atoms.
    energy : float
        Squared norm of the row.
    observed : ndarray of shape (n_features,), bool
        The entries of atoms that count.
    n_atoms, most : int
        Number of atoms, and the largest number of codes.

    Returns
    -------
    size : int
        Number of codes; ``state`` has the codes and the atoms that they belong to.
    """
    size, left = _restart(rules, correlations, n_atoms, state), energy
    unit = rules.eps * np.sqrt(energy)
    for _ in range(_MOST_STEPS * n_atoms):
        if size >= most or left <= rules.share * energy:
            break
        atom = _strongest(atoms, unit, n_atoms, state)
        if atom < 0:
            break
        if not _enter(atom, atoms, rules, observed, n_atoms, size, state):
            continue
        left = max(left - _explained(size, state), 0 * left)
        state.codes[size] = 0
        size += 1
        if rules.positive:
            size, left = _leave(
                atoms, rules, correlations, energy, left, observed, n_atoms, size, state
            )
    if not rules.positive:
        _substitute(size, state)
        for a in range(size):
            state.codes[a] = state.trial[a]
    return size


@compiled
def _restart(rules, correlations, n_atoms, state):  # type: ignore[no-untyped-def]
    """Begin with no atom."""
    for k in range(n_atoms):
        state.pulls[k] = correlations[k]
        state.free[k] = 1
    _subtract(state.pulls, 0, correlations, rules.positive, n_atoms, state)
    return 0


@compiled
def _subtract(pulls, weight, part, positive, n_atoms, state):  # type: ignore[no-untyped-def]
    """Subtract a part of the row from the residual, and note the sizes of its correlations."""
    free, sizes, weight = state.free, state.sizes, pulls.dtype.type(weight)
    if positive:
        for k in range(n_atoms):
            pulls[k] -= weight * part[k]
            sizes[k] = max(pulls[k], 0) * free[k]
    else:
        for k in range(n_atoms):
            pulls[k] -= weight * part[k]
            sizes[k] = abs(pulls[k]) * free[k]


@compiled
def _explained(a, state):  # type: ignore[no-untyped-def]
    """Return the energy of the row along the part of an atom."""
    return state.coordinates[a] * state.coordinates[a] * state.energies[a]


@compiled
def _strongest(atoms, unit, n_atoms, state):  # type: ignore[no-untyped-def]
    """Return the atom whose correlation with the residual is largest, or -1 if none is above zero.

    Of several whose correlations differ by rounding alone, the first.
    """
    sizes, bits = state.sizes, state.bits
    # Numbers that are not negative have the order of their bits, and a maximum of integers
    # compiles to vector instructions.
    largest = bits[0]
    for k in range(n_atoms):
        largest = max(largest, bits[k])
    bits[-1] = largest
    top = sizes[-1]
    # Where norms differ widely, correlations with short atoms may be small.
    least = top - min(_EQUAL * unit * atoms.longest, top / 1024)
    first = _first(sizes, least, n_atoms)
    return first if sizes[first] > _EXPLAINED * unit * atoms.norms[first] else -1


@compiled
def _first(sizes, least, n_atoms):  # type: ignore[no-untyped-def]
    """Return the index of the first number that is at least so large."""
    for start in range(0, n_atoms, 64):
        stop, n_large = min(start + 64, n_atoms), 0
        for k in range(start, stop):
            n_large += sizes[k] >= least
        if n_large > 0:
            for k in range(start, stop):
                if sizes[k] >= least:
                    return k
    return 0


@compiled
def _enter(atom, atoms, rules, observed, n_atoms, size, state):  # type: ignore[no-untyped-def]
    """Add an atom to the support; return whether it is outside the span of the others."""
    row, own = _products(atom, atoms, observed, n_atoms, state), state.parts[size]
    _orthogonalise(atom, row, own, n_atoms, size, state)
    state.free[atom] = 0
    state.sizes[atom] = 0
    if not own[atom] > _SPANNED * rules.eps * row[atom]:
        return False
    coordinate = state.pulls[atom] / own[atom]
    _subtract(state.pulls, coordinate, own, rules.positive, n_atoms, state)
    state.support[size], state.coordinates[size] = atom, coordinate
    state.energies[size] = own[atom]
    return True


@compiled
def _orthogonalise(atom, row, own, n_atoms, size, state):  # type: ignore[no-untyped-def]
    """Write the inner products of an atom's part that is orthogonal to the support."""
    parts, energies, first = state.parts, state.energies, size % 4
    for k in range(n_atoms):
        own[k] = row[k]
    for b in range(first):
        part, weight = parts[b], parts[b, atom] / energies[b]
        for k in range(n_atoms):
            own[k] -= weight * part[k]
    # Four at a time, so that `own` is read and written a quarter as often.
    for b in range(first, size, 4):
        part0, part1, part2, part3 = parts[b], parts[b + 1], parts[b + 2], parts[b + 3]
        weight0, weight1 = part0[atom] / energies[b], part1[atom] / energies[b + 1]
        weight2, weight3 = part2[atom] / energies[b + 2], part3[atom] / energies[b + 3]
        for k in range(n_atoms):
            own[k] -= (
                weight0 * part0[k] + weight1 * part1[k] + weight2 * part2[k] + weight3 * part3[k]
            )


@compiled
def _products(atom, atoms, observed, n_atoms, state):  # type: ignore[no-untyped-def]
    """Return the inner products of an atom with all atoms, over the observed entries."""
    slot = atoms.slots[atom]
    if slot >= 0:
        return atoms.gram[slot]
    if atoms.known[0] == len(atoms.gram):
        _forget(atoms)
    slot = atoms.known[0]
    row, own, full = atoms.gram[slot], state.atom, atoms.dictionary[atom]
    zero = full.dtype.type(0)
    for j in range(len(full)):
        own[j] = full[j] if observed[j] else zero
    for k in range(n_atoms):
        row[k] = dot(atoms.dictionary[k], own)
    atoms.slots[atom] = slot
    atoms.known[0] = slot + 1
    return row


@compiled
def _forget(atoms):  # type: ignore[no-untyped-def]
    """Forget all inner products."""
    for k in range(len(atoms.slots)):
        atoms.slots[k] = -1
    atoms.known[0] = 0


@compiled
def _substitute(size, state):  # type: ignore[no-untyped-def]
    """Solve for the least-squares codes, from the last atom back to the first."""
    parts, support, trial = state.parts, state.support, state.trial
    for a in range(size):
        trial[a] = state.coordinates[a]
    for a in range(size - 1, -1, -1):
        part, value = parts[a], 0 * trial[a]
        for b in range(a + 1, size):
            value += part[support[b]] * trial[b]
        trial[a] -= value / state.energies[a]


@compiled
def _leave(  # type: ignore[no-untyped-def]
    atoms, rules, correlations, energy, left, observed, n_atoms, size, state
):
    """Take atoms out until the least-squares codes are positive; return number and residual."""
    codes, trial, support = state.codes, state.trial, state.support
    while True:
        _substitute(size, state)
        fraction = codes.dtype.type(1)
        for a in range(size):
            if trial[a] <= 0:
                fraction = min(fraction, codes[a] / (codes[a] - trial[a]))
        if fraction == 1:
            for a in range(size):
                codes[a] = trial[a]
            return size, left
        kept = 0
        for a in range(size):
            crosses = trial[a] <= 0 and codes[a] / (codes[a] - trial[a]) <= fraction
            code = codes[a] + fraction * (trial[a] - codes[a])
            if not crosses and code > 0:
                codes[kept], support[kept] = code, support[a]
                kept += 1
        n_kept, size, left = kept, _restart(rules, correlations, n_atoms, state), energy
        for a in range(n_kept):
            if _enter(support[a], atoms, rules, observed, n_atoms, size, state):
                codes[size] = codes[a]
                left = max(left - _explained(size, state), 0 * left)
                size += 1
