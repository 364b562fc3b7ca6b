"""Compiled coordinate descent on the lasso of rows with missing entries.

The missing entries differ from row to row, and so do the inner products of the atoms. So each
row keeps a working set of atoms, with their inner products over the observed entries of the row.
Cheap rounds of descent within the set alternate with a pass over all atoms, which adds those that
violate the optimality conditions to the set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows
from .quadratic_fit import MaskedFit
from .stopping import LassoResult, Stopping

# Maximum number of atoms that enter the working set in a round, and the smallest violation for
# which an atom enters, relative to the largest violation.
_ENTERING, _LEAST_PULL = 16, 0.1
# Accuracy of a round on the working set: distances after it relative to those before it.
_DEPTH = 0.02
# Maximum number of sweeps over the working set in a round.
_SWEEPS = 100
# Distances below this multiple of machine epsilon times a row's largest possible correlation
# are noise.
_NOISE = 4

_compiled: Any = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@dataclass(frozen=True)
class MaskedDescent:
    """Coordinate descent over the atoms of one dictionary, on the observed entries of rows."""

    dictionary: NDArray
    stopping: Stopping

    @classmethod
    def of(cls, dictionary: Tensor, stopping: Stopping) -> Self:
        """Prepare what all rows share."""
        return cls(dictionary.cpu().contiguous().numpy(), stopping)

    def iterate(self, fit: MaskedFit, codes: Tensor, max_iter: int) -> LassoResult:
        """Descend until each row has converged.

        One iteration is ``n_components`` moves, or one pass over all atoms.
        """
        moved = codes.cpu().clone(memory_format=torch.contiguous_format)
        answers = self._run(fit.X, fit.observed, moved, 0.0, self.stopping.tol, max_iter)
        objective, gaps, done = (torch.from_numpy(a).to(codes.device) for a in answers[:3])
        n_iter = math.ceil(int(answers[3].max(initial=0)) / len(self.dictionary))
        return LassoResult(moved.to(codes.device), objective, gaps, done, n_iter)

    def descend(self, X: Tensor, codes: Tensor, distance: float, max_iter: int) -> Tensor:
        """Descend until each code is near its own optimum with the others held fixed.

        Near means within ``distance`` times alpha, divided by the observed energy of the code's
        atom. The result is not certified: use this for codes that will be visited again.
        """
        moved = codes.cpu().clone(memory_format=torch.contiguous_format)
        missing = X.isnan()
        self._run(X.masked_fill(missing, 0), ~missing, moved, distance, -1.0, max_iter)
        return moved.to(codes.device)

    def _run(
        self,
        X: Tensor,
        observed: Tensor,
        codes: Tensor,
        distance: float,
        tol: float,
        max_iter: int,
    ) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Descend in place, with the rows split among torch's number of threads.

        Returns
        -------
        objective, gaps, done, spent : ndarray of shape (n_rows,)
            Certificates, if ``tol`` is not negative, and the number of moves.
        """
        # A mask is needed: compiled with ``fastmath``, the loop cannot recognise NaN.
        rows, seen = X.cpu().contiguous().numpy(), observed.cpu().contiguous().numpy()
        real, n_rows = rows.dtype.type, len(rows)
        longest = np.linalg.norm(self.dictionary, axis=1).max(initial=0)
        rules = _Rules(
            real(self.stopping.alpha),
            self.stopping.positive,
            real(distance * self.stopping.alpha),
            real(tol),
            real(_NOISE * np.finfo(real).eps),
            real(longest),
            max_iter * len(self.dictionary),
        )
        moved = codes.numpy()
        answers = (
            np.zeros(n_rows, real),
            np.zeros(n_rows, real),
            np.zeros(n_rows, np.bool_),
            np.zeros(n_rows, np.int64),
        )

        def work(part: slice) -> None:
            _descend(self.dictionary, rules, *(a[part] for a in (rows, seen, moved, *answers)))

        over_rows(work, n_rows)
        return answers


class _Rules(NamedTuple):
    """The penalty, and when to stop.

    A row is done when no code is farther than ``goal`` from its own optimum, in units of the
    gradient, and, if ``tol`` is not negative, the duality gap is at most ``tol`` times the
    objective.
    """

    alpha: Any
    positive: bool
    goal: Any
    tol: Any
    # Rounding error of a sum relative to its terms, with a margin.
    noise: Any
    # Largest norm of an atom.
    longest: Any
    max_moves: int


class _State(NamedTuple):
    """Scratch memory for one row.

    It holds the residual and its correlations with all atoms; for the working set, it also holds
    which atoms are in it, their observed entries, their inner products, and the gradient of their
    codes.
    """

    residual: NDArray
    correlations: NDArray
    inside: NDArray
    listed: NDArray
    atoms: NDArray
    gram: NDArray
    gradient: NDArray
    codes: NDArray


@_compiled
def _descend(  # type: ignore[no-untyped-def]
    dictionary, rules, X, observed, codes, objective, gaps, done, spent
):
    n_components, n_features = dictionary.shape
    state = _State(
        np.zeros(n_features, X.dtype),
        np.zeros(n_components, X.dtype),
        np.zeros(n_components, np.bool_),
        np.zeros(n_components, np.int64),
        np.zeros((n_components, n_features), X.dtype),
        np.zeros((n_components, n_components), X.dtype),
        np.zeros(n_components, X.dtype),
        np.zeros(n_components, X.dtype),
    )
    for i in range(len(X)):
        row = _solve_row(dictionary, rules, state, X[i], observed[i], codes[i])
        objective[i], gaps[i], done[i], spent[i] = row


@_compiled
def _solve_row(dictionary, rules, state, x, observed, u):  # type: ignore[no-untyped-def]
    energy = _dot(x, x)
    floor = rules.noise * rules.longest * np.sqrt(energy)
    size = np.int64(0)
    for k in range(len(u)):
        state.inside[k] = False
    for k in range(len(u)):
        if u[k] != 0:
            size = _enter(k, size, u[k], dictionary, observed, state)
    n_moves = 0
    while True:
        residual_energy = _look(dictionary, x, size, state)
        off = _distance_inside(rules, size, state)
        pull = _largest_pull(rules, state)
        top = max(off, pull - rules.alpha)
        stop = top <= max(rules.goal, floor) or n_moves >= rules.max_moves
        target = _DEPTH * top
        if rules.tol < 0:
            if stop:
                break
            target = max(target, rules.goal / 2)
        else:
            objective, gap = _certificate(rules, residual_energy, pull, size, state)
            # The gap cannot be resolved below the rounding error of its own terms.
            enough = max(rules.tol * objective, rules.noise * energy)
            if stop or gap <= enough:
                _write(size, state, u)
                return objective, gap, gap <= enough, n_moves
        if pull > rules.alpha:
            size = _enter_violating(dictionary, observed, rules, pull, size, state)
        n_moves += len(u) + _sweep(rules, max(target, floor / 4), size, state)
    _write(size, state, u)
    return energy, energy, top <= max(rules.goal, floor), n_moves


@_compiled
def _write(size, state, u):  # type: ignore[no-untyped-def]
    for a in range(size):
        u[state.listed[a]] = state.codes[a]


@_compiled
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@_compiled
def _enter(k, size, code, dictionary, observed, state):  # type: ignore[no-untyped-def]
    """Add an atom to the working set; return the new size."""
    atom, full = state.atoms[size], dictionary[k]
    zero = full.dtype.type(0)
    for j in range(len(atom)):
        atom[j] = full[j] if observed[j] else zero
    for b in range(size + 1):
        product = _dot(state.atoms[b], atom)
        state.gram[size, b] = product
        state.gram[b, size] = product
    state.listed[size] = k
    state.inside[k] = True
    state.gradient[size] = state.correlations[k]
    # A code whose atom has no observed energy would only add to the penalty.
    state.codes[size] = code if state.gram[size, size] > 0 else zero
    return size + 1


@_compiled
def _look(dictionary, x, size, state):  # type: ignore[no-untyped-def]
    """Recompute the residual and its correlations; return the residual's energy."""
    residual = state.residual
    # Loops instead of slices, which take numba seconds to compile.
    for j in range(len(x)):
        residual[j] = x[j]
    for a in range(size):
        code, atom = state.codes[a], state.atoms[a]
        if code != 0:
            for j in range(len(residual)):
                residual[j] -= code * atom[j]
    for k in range(len(dictionary)):
        state.correlations[k] = _dot(dictionary[k], residual)
    for a in range(size):
        state.gradient[a] = state.correlations[state.listed[a]]
    return _dot(residual, residual)


@_compiled
def _optimum(gradient, code, weight, rules):  # type: ignore[no-untyped-def]
    """Return the best value of a code with the others held fixed."""
    zero = gradient * 0
    pull = gradient + weight * code
    if pull > rules.alpha:
        return (pull - rules.alpha) / weight
    if pull < -rules.alpha and not rules.positive:
        return (pull + rules.alpha) / weight
    return zero


@_compiled
def _distance_inside(rules, size, state):  # type: ignore[no-untyped-def]
    """Return the largest distance of a code in the set from its optimum, in gradient units."""
    top = state.gradient.dtype.type(0)
    for a in range(size):
        weight = state.gram[a, a]
        if weight > 0:
            code = state.codes[a]
            step = _optimum(state.gradient[a], code, weight, rules) - code
            top = max(top, weight * abs(step))
    return top


@_compiled
def _largest_pull(rules, state):  # type: ignore[no-untyped-def]
    """Return the largest absolute correlation; for positive codes, the largest positive one."""
    top = state.correlations.dtype.type(0)
    for value in state.correlations:
        size = value if rules.positive else abs(value)
        top = size if size > top else top
    return top


@_compiled
def _certificate(rules, residual_energy, pull, size, state):  # type: ignore[no-untyped-def]
    """Return objective and duality gap as ``quadratic_fit.certify`` does."""
    real = state.codes.dtype.type
    norm, inner = real(0), real(0)
    for a in range(size):
        norm += abs(state.codes[a])
        inner -= state.codes[a] * state.gradient[a]
    tiny = real(np.finfo(state.codes.dtype).tiny)
    one = real(1)
    scale = min(
        one - inner / max(residual_energy, tiny),
        rules.alpha / max(pull, tiny),
    )
    scale = max(scale, real(0))
    gap = (one - scale) ** 2 * residual_energy / 2 + rules.alpha * norm + scale * inner
    return residual_energy / 2 + rules.alpha * norm, max(gap, real(0))


@_compiled
def _enter_violating(  # type: ignore[no-untyped-def]
    dictionary, observed, rules, pull, size, state
):
    """Add the atoms outside the set that violate the optimality conditions most."""
    least = rules.alpha + _LEAST_PULL * (pull - rules.alpha)
    for _ in range(_ENTERING):
        best, at = least, -1
        for k in range(len(dictionary)):
            value = state.correlations[k]
            strength = value if rules.positive else abs(value)
            if strength > best and not state.inside[k]:
                best, at = strength, k
        if at < 0:
            break
        size = _enter(at, size, state.codes.dtype.type(0), dictionary, observed, state)
    return size


@_compiled
def _sweep(rules, target, size, state):  # type: ignore[no-untyped-def]
    """Move the codes of the working set in turn until all moves are small; return their number."""
    codes, gradient = state.codes, state.gradient
    n_moves = 0
    for _ in range(_SWEEPS):
        top = gradient.dtype.type(0)
        for a in range(size):
            row = state.gram[a]
            weight = row[a]
            if weight > 0:
                step = _optimum(gradient[a], codes[a], weight, rules) - codes[a]
                if step != 0:
                    top = max(top, weight * abs(step))
                    n_moves += 1
                    codes[a] += step
                    for b in range(size):
                        gradient[b] -= step * row[b]
        if top <= target:
            break
    return n_moves
