"""Compiled coordinate descent on the lasso of rows with missing entries.

What is missing differs from row to row, and with it the inner products of the atoms. So each
row keeps a working set of atoms, and the inner products of these over what is observed of the
row. Rounds of descent within the set, which are cheap, take turns with a look at all atoms,
which lets those enter that the optimality conditions call for.
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

# Most atoms that enter the working set in a round, and how far from fitting the least of them
# is, relative to the first.
_ENTERING, _LEAST_PULL = 16, 0.1
# How far a round takes the working set: distances relative to those before it.
_DEPTH = 0.02
# Most sweeps over the working set in a round.
_SWEEPS = 100
# Distances below so many roundings of a row's largest possible correlation are noise.
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

        An iteration is as many moves as there are atoms, or a look at all of them.
        """
        moved = codes.cpu().clone(memory_format=torch.contiguous_format)
        answers = self._run(fit.X, fit.observed, moved, 0.0, self.stopping.tol, max_iter)
        objective, gaps, done = (torch.from_numpy(a).to(codes.device) for a in answers[:3])
        n_iter = math.ceil(int(answers[3].max(initial=0)) / len(self.dictionary))
        return LassoResult(moved.to(codes.device), objective, gaps, done, n_iter)

    def descend(self, X: Tensor, codes: Tensor, distance: float, max_iter: int) -> Tensor:
        """Descend until each code is near its own optimum with the others held.

        Near is ``distance`` times alpha, over the observed energy of the code's atom. Nothing
        is certified: for codes that will be visited again.
        """
        moved = codes.cpu().clone(memory_format=torch.contiguous_format)
        holes = X.isnan()
        self._run(X.masked_fill(holes, 0), ~holes, moved, distance, -1.0, max_iter)
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
        """Descend in place, the rows shared out to torch's number of threads.

        Returns
        -------
        objective, gaps, done, spent : ndarray of shape (n_rows,)
            Certificates, where ``tol`` asks for them, and the number of moves.
        """
        # Compiled with ``fastmath``, the loop could not tell a NaN.
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

    No code is farther than ``goal`` from its own optimum, in units of the gradient, and with a
    ``tol`` of zero or more the duality gap is at most ``tol`` times the objective.
    """

    alpha: Any
    positive: bool
    goal: Any
    tol: Any
    # Rounding of a number, with a margin, relative to its terms.
    noise: Any
    # Largest norm of an atom.
    longest: Any
    max_moves: int


class _State(NamedTuple):
    """Scratch of one row.

    The residual, the correlations of all atoms with it, and of the working set: which atoms
    they are, what is observed of them, their inner products and the gradient of their codes.
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
            # No gap can be resolved below the rounding of its own terms.
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
    """Take an atom into the working set; return the new size."""
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
    # An atom of which nothing is observed does nothing but cost.
    state.codes[size] = code if state.gram[size, size] > 0 else zero
    return size + 1


@_compiled
def _look(dictionary, x, size, state):  # type: ignore[no-untyped-def]
    """Compute the residual and its correlations anew; return the residual's energy."""
    residual = state.residual
    # Not by slices, which take numba seconds to compile.
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
    """Return the best value of a code with the others held."""
    zero = gradient * 0
    pull = gradient + weight * code
    if pull > rules.alpha:
        return (pull - rules.alpha) / weight
    if pull < -rules.alpha and not rules.positive:
        return (pull + rules.alpha) / weight
    return zero


@_compiled
def _distance_inside(rules, size, state):  # type: ignore[no-untyped-def]
    """Return how far the working set is from its own optima, in units of the gradient."""
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
    """Return the largest correlation, of positive codes the largest positive one."""
    top = state.correlations.dtype.type(0)
    for value in state.correlations:
        size = value if rules.positive else abs(value)
        top = size if size > top else top
    return top


@_compiled
def _certificate(rules, residual_energy, pull, size, state):  # type: ignore[no-untyped-def]
    """Return objective and duality gap, as ``quadratic_fit.certify`` does."""
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
    """Take in the atoms outside that the optimality conditions call for most."""
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
    """Move the codes of the working set in turn until no move is far; count the moves."""
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
