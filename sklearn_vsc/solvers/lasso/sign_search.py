"""Exact finish of lasso codes, row by row and compiled: a search over supports and signs.

It takes the steps of `active_set_search`, whose batches suit a GPU and many rows. Here a step
costs microseconds, so that it pays to search early, after a few sweeps of coordinate descent:
these converge slowly where atoms are nearly collinear, as neighbouring wavelets are.

References
----------
Lee, Battle, Raina and Ng (2007), Efficient sparse coding algorithms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows
from .quadratic_fit import GramFit

# Sums may be reordered, so that they compile to vector instructions; NaN stays NaN.
_compiled: Any = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)
# Most steps from the codes found so far.
_FEW_STEPS = 8
# Ridge of a linear system, relative to its diagonal and to rounding.
_RIDGE = 100.0
# How much a correlation must exceed alpha, relative to the largest and to rounding.
_SLACK = 100.0


def sign_search(
    fit: GramFit, codes: Tensor, alpha: float, *, positive: bool, max_steps: int
) -> Tensor:
    """Search for the optimum of each row: from its codes, then from zero if that takes long.

    Near the optimum a few steps from the codes are enough. Where atoms are nearly collinear, a
    support that grows from nothing stays far smaller than the one that descent has filled.

    Parameters
    ----------
    fit : GramFit
        The quadratic term of the rows, float64.
    codes : Tensor of shape (n_rows, n_components)
        Codes found so far; left as they are.
    alpha : float
        Weight of the l1 norm.
    positive : bool
        Whether codes must be non-negative.
    max_steps : int
        Most linear systems solved from zero.

    Returns
    -------
    codes : Tensor of shape (n_rows, n_components)
        Candidates, to be certified: rounding may stop the search of a row early.
    """
    moved = codes.cpu().numpy().copy()
    gram, correlations = (part.cpu().contiguous().numpy() for part in (fit.gram, fit.correlations))
    atoms = _Atoms(gram, np.ones(len(gram), np.bool_), np.zeros((len(gram), 0)))
    rules = _Rules(float(alpha), positive, _FEW_STEPS, max_steps, float(np.finfo(float).eps))

    def work(rows: slice) -> None:
        _search(atoms, rules, correlations[rows], moved[rows])

    over_rows(work, len(moved))
    return torch.from_numpy(moved).to(codes.device)


def search_from_zero(
    X: Tensor, dictionary: Tensor, alpha: float, *, positive: bool, max_steps: int
) -> Tensor:
    """Search from zero, with the inner products of the atoms that come into use alone.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows, float64.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms, float64.
    alpha, positive, max_steps
        As in ``sign_search``.

    Returns
    -------
    codes : Tensor of shape (n_rows, n_components)
        Candidates, to be certified; zero where the search failed.
    """
    atoms = dictionary.cpu().contiguous().numpy()
    correlations = X.cpu().numpy() @ atoms.T
    codes, n_components = np.zeros_like(correlations), len(atoms)
    gram = np.empty((n_components, n_components))
    known = _Atoms(gram, np.zeros(n_components, np.bool_), atoms)
    rules = _Rules(float(alpha), positive, 0, max_steps, float(np.finfo(float).eps))
    _search(known, rules, correlations, codes)
    return torch.from_numpy(codes).to(X.device)


class _Rules(NamedTuple):
    """The penalty, when to stop, and the rounding of a number."""

    alpha: float
    positive: bool
    # Steps from the codes found so far, and from zero.
    few_steps: int
    max_steps: int
    eps: float


class _Atoms(NamedTuple):
    """Inner products of the atoms, which rows of them are known, and the atoms for the others."""

    gram: NDArray
    known: NDArray
    dictionary: NDArray


class _State(NamedTuple):
    """Scratch of one row.

    The gradient of the fit; of the atoms in use, in the order in which they entered, their
    indices, their signs and the Cholesky factor of their inner products; and the way to go.
    """

    gradient: NDArray
    support: NDArray
    signs: NDArray
    factor: NDArray
    direction: NDArray
    refinement: NDArray


@_compiled
def _search(atoms, rules, correlations, codes):  # type: ignore[no-untyped-def]
    n_components = len(atoms.gram)
    state = _State(
        np.zeros(n_components),
        np.zeros(n_components, np.int64),
        np.zeros(n_components),
        np.zeros((n_components, n_components)),
        np.zeros(n_components),
        np.zeros(n_components),
    )
    u = np.zeros(n_components)
    for i in range(len(codes)):
        u[:] = codes[i]
        found = _search_row(atoms, rules, rules.few_steps, correlations[i], u, state)
        if not found:
            u[:] = 0
            found = _search_row(atoms, rules, rules.max_steps, correlations[i], u, state)
        if found:
            codes[i] = u


@_compiled
def _search_row(atoms, rules, max_steps, correlations, u, state):  # type: ignore[no-untyped-def]
    """Search from a code, in place; return whether the optimum was found."""
    gram = atoms.gram
    largest = 0.0
    for value in correlations:
        largest = max(largest, abs(value))
    least = rules.alpha + _SLACK * rules.eps * largest
    size, n_factored = _list_support(u, state), 0
    stationary = size == 0
    for _ in range(max_steps):
        _update_gradient(gram, correlations, u, size, state)
        if stationary:
            atom = _most_violating(u, least, rules.positive, state)
            if atom < 0:
                return True
            _know(atom, atoms)
            state.support[size] = atom
            state.signs[size] = -1.0 if state.gradient[atom] > 0 else 1.0
            size += 1
        if not _factorise(gram, rules, n_factored, size, state):
            return False
        n_factored = size
        if not _solve(gram, rules, size, state):
            return False
        fraction = _best_fraction(gram, u, rules, size, state)
        if fraction == 0:
            return False
        _move(u, fraction, size, state)
        stationary = fraction == 1
        size, n_factored = _drop_zeros(u, size, state)
    return False


@_compiled
def _know(atom, atoms):  # type: ignore[no-untyped-def]
    """See to it that the inner products of an atom are there."""
    if atoms.known[atom]:
        return
    row, own = atoms.gram[atom], atoms.dictionary[atom]
    for k in range(len(row)):
        other, total = atoms.dictionary[k], 0.0
        for j in range(len(own)):
            total += own[j] * other[j]
        row[k] = total
    atoms.known[atom] = True


@_compiled
def _list_support(u, state):  # type: ignore[no-untyped-def]
    """List the atoms in use, and return their number."""
    size = 0
    for k in range(len(u)):
        if u[k] != 0:
            state.support[size] = k
            state.signs[size] = 1.0 if u[k] > 0 else -1.0
            size += 1
    return size


@_compiled
def _drop_zeros(u, size, state):  # type: ignore[no-untyped-def]
    """Take atoms out that are no longer in use.

    Returns
    -------
    size : int
        Number of the atoms that stay.
    n_factored : int
        Rows of the Cholesky factor that still hold.
    """
    kept, n_factored = 0, size
    for a in range(size):
        k = state.support[a]
        if u[k] == 0:
            n_factored = min(n_factored, kept)
            continue
        state.support[kept] = k
        state.signs[kept] = state.signs[a]
        kept += 1
    return kept, min(n_factored, kept)


@_compiled
def _update_gradient(gram, correlations, u, size, state):  # type: ignore[no-untyped-def]
    """Compute the gradient anew."""
    gradient = state.gradient
    for k in range(len(u)):
        gradient[k] = -correlations[k]
    for a in range(size):
        row, code = gram[state.support[a]], u[state.support[a]]
        for k in range(len(u)):
            gradient[k] += code * row[k]


@_compiled
def _most_violating(u, least, positive, state):  # type: ignore[no-untyped-def]
    """Return the atom that the optimality conditions call in most, or -1."""
    strongest, atom = least, -1
    for k in range(len(u)):
        pull = -state.gradient[k] if positive else abs(state.gradient[k])
        if pull > strongest and u[k] == 0:
            strongest, atom = pull, k
    return atom


@_compiled
def _factorise(gram, rules, start, size, state):  # type: ignore[no-untyped-def]
    """Compute rows of the Cholesky factor; return whether the matrix is positive definite."""
    support, factor = state.support, state.factor
    for a in range(start, size):
        row, own = gram[support[a]], factor[a]
        for b in range(a):
            value, other = row[support[b]], factor[b]
            for c in range(b):
                value -= own[c] * other[c]
            own[b] = value / other[b]
        # Duplicated atoms make the system singular: the ridge makes the solve a proximal
        # step, whose answer stays near its start, and the refinement takes its bias away.
        value = row[support[a]] * (1 + _RIDGE * rules.eps)
        for c in range(a):
            value -= own[c] * own[c]
        if not value > 0:
            return False
        own[a] = np.sqrt(value)
    return True


@_compiled
def _solve(gram, rules, size, state):  # type: ignore[no-untyped-def]
    """Solve for the way to the optimum with these signs; return whether there is one."""
    support, direction, refinement = state.support, state.direction, state.refinement
    for a in range(size):
        direction[a] = -state.gradient[support[a]] - rules.alpha * state.signs[a]
        refinement[a] = direction[a]
    _substitute(state.factor, direction, size)
    for a in range(size):
        row, left = gram[support[a]], refinement[a]
        for b in range(size):
            left -= row[support[b]] * direction[b]
        refinement[a] = left
    _substitute(state.factor, refinement, size)
    for a in range(size):
        direction[a] += refinement[a]
        if not np.isfinite(direction[a]):
            return False
    return True


@_compiled
def _substitute(factor, vector, size):  # type: ignore[no-untyped-def]
    """Solve with the Cholesky factor, in place."""
    for a in range(size):
        row, value = factor[a], vector[a]
        for b in range(a):
            value -= row[b] * vector[b]
        vector[a] = value / row[a]
    for a in range(size - 1, -1, -1):
        row = factor[a]
        vector[a] /= row[a]
        for b in range(a):
            vector[b] -= row[b] * vector[a]


@_compiled
def _best_fraction(gram, u, rules, size, state):  # type: ignore[no-untyped-def]
    """Return how far to go: the whole way, or to the code that crosses zero, if that is lower."""
    support, direction = state.support, state.direction
    slope, curvature, first = 0.0, 0.0, 1.0
    for a in range(size):
        code, step, row = u[support[a]], direction[a], gram[support[a]]
        # A code that has just entered is meant to move to its own side.
        if code == 0 and step * state.signs[a] < 0:
            return 0.0
        slope += state.gradient[support[a]] * step
        for b in range(size):
            curvature += step * row[support[b]] * direction[b]
        if code * step < 0:
            first = min(first, -code / step)
    if rules.positive or first == 1:
        return first
    best, lowest = 1.0, _value(1.0, u, slope, curvature, rules, size, state)
    for a in range(size):
        code, step = u[support[a]], direction[a]
        if code * step < 0 and -code / step < 1:
            value = _value(-code / step, u, slope, curvature, rules, size, state)
            if value < lowest:
                best, lowest = -code / step, value
    return best


@_compiled
def _value(t, u, slope, curvature, rules, size, state):  # type: ignore[no-untyped-def]
    """Return the change of the objective after a fraction of the way, up to a constant."""
    norm = 0.0
    for a in range(size):
        norm += abs(u[state.support[a]] + t * state.direction[a])
    return t * slope + 0.5 * t * t * curvature + rules.alpha * norm


@_compiled
def _move(u, fraction, size, state):  # type: ignore[no-untyped-def]
    for a in range(size):
        k, step = state.support[a], state.direction[a]
        crosses = u[k] * step < 0 and -u[k] / step == fraction
        u[k] = 0.0 if crosses else u[k] + fraction * step
        # A sign holds until its code crosses zero.
        if u[k] != 0:
            state.signs[a] = 1.0 if u[k] > 0 else -1.0
