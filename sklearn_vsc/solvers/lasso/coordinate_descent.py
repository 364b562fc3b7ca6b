"""Compiled coordinate descent on the lasso of many rows with one Gram matrix.

The gradient of the fit is kept up to date for each row. A pass over a row applies the pending
moves and at the same time looks for the next ones: in each SIMD lane, the coordinate that is
farthest from its own optimum. Candidates at least half as far off as the farthest then move one
after another, each taking the moves before it into account, so that the objective always falls.

A plain numba loop is several times slower for this pass, since LLVM does not vectorise the
search by itself; so this pass alone is written with LLVM's vector types, which compile to
whatever vector instructions the CPU has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows
from .quadratic_fit import Fit, GramFit
from .stopping import LassoResult, Stopping, blank_answers

# Lanes of a vector: coordinates k, k + 16, k + 32, ... share a lane, which yields one candidate.
_LANES = 16
# Maximum number of moves that one pass applies.
_MOVES = 8
# Minimum number of rows per thread.
_THREAD_ROWS = 16
# Distances below this multiple of machine epsilon times a row's largest correlation are noise.
_NOISE = 4

_compiled: Any = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
_FAST = ("fast",)


@dataclass(frozen=True)
class CoordinateDescent:
    """Coordinate descent over the atoms of one dictionary, scaled to unit norm."""

    gram: NDArray
    # Norms of the atoms; None where all are one.
    norms: Tensor | None
    # The code is zero while the correlation lies between these.
    upper: NDArray
    lower: NDArray
    n_components: int
    stopping: Stopping

    @classmethod
    def of(cls, dictionary: Tensor, stopping: Stopping, gram: Tensor | None = None) -> Self:
        """Prepare what all rows share; ``gram`` holds the atoms' inner products, if known."""
        gram = (dictionary @ dictionary.T if gram is None else gram).cpu()
        n_components, lowest = len(gram), torch.finfo(gram.dtype).min
        norms = torch.linalg.vector_norm(dictionary.cpu(), dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        # The fixed point does not depend on the norms, so norms close to one may be taken as one.
        unit = bool(((norms - 1).abs() < 1e-4).all())
        if not unit:
            gram = gram / norms.unsqueeze(1) / norms
        padding = -n_components % _LANES
        if padding:
            gram = torch.nn.functional.pad(gram, (0, padding, 0, padding))
        upper = torch.full((n_components + padding,), float(stopping.alpha), dtype=gram.dtype)
        if not unit:
            upper[:n_components] /= norms
        lower = torch.full_like(upper, lowest) if stopping.positive else -upper
        return cls(
            gram.contiguous().numpy(),
            None if unit else norms,
            upper.numpy(),
            lower.numpy(),
            n_components,
            stopping,
        )

    def iterate(self, fit: Fit, codes: Tensor, max_iter: int) -> LassoResult:
        """Move until each row has converged; one iteration is ``n_components`` moves."""
        assert isinstance(fit, GramFit)
        moved, energy = self._scaled_up(codes), fit.energy.cpu().numpy()
        tol = self.stopping.tol
        correlations = self._scaled_down(fit.correlations)
        answers = self._run(correlations, energy, moved, 4 * tol, tol, max_iter)
        objective, gaps, done = (torch.from_numpy(a).to(codes.device) for a in answers[:3])
        n_iter = math.ceil(int(answers[3].max(initial=0)) / self.n_components)
        return LassoResult(self._scaled_back(moved, codes.device), objective, gaps, done, n_iter)

    def descend(
        self, X: Tensor, dictionary: Tensor, codes: Tensor, distance: float, max_iter: int
    ) -> Tensor:
        """Move until each code is near its own optimum with the others held fixed.

        Near means within ``distance`` times alpha, in units of unit-norm atoms. The result is not
        certified: use this for codes that will be visited again.
        """
        return self.visit(X @ dictionary.T, codes, distance, max_iter)[0]

    def visit(
        self, correlations: Tensor, codes: Tensor, distance: float, max_iter: int
    ) -> tuple[Tensor, Tensor]:
        """Do the same, given the inner products of rows and atoms; say which rows are done."""
        moved, scaled = self._scaled_up(codes), self._scaled_down(correlations)
        energy = np.zeros(len(scaled), scaled.dtype)
        done = self._run(scaled, energy, moved, distance, -1.0, max_iter)[2]
        return self._scaled_back(moved, codes.device), torch.from_numpy(done)

    def _scaled_up(self, codes: Tensor) -> NDArray:
        """Return a padded copy of codes, in units of unit-norm atoms."""
        codes = codes.cpu().clone() if self.norms is None else codes.cpu() * self.norms
        return self._padded(codes)

    def _scaled_down(self, correlations: Tensor) -> NDArray:
        """Return the correlations with the atoms scaled to unit norm, padded."""
        scaled = correlations.cpu() if self.norms is None else correlations.cpu() / self.norms
        return self._padded(scaled)

    def _padded(self, columns: Tensor) -> NDArray:
        padding = len(self.gram) - self.n_components
        if padding:
            columns = torch.nn.functional.pad(columns, (0, padding))
        return columns.contiguous().numpy()

    def _scaled_back(self, moved: NDArray, device: torch.device) -> Tensor:
        codes = torch.from_numpy(moved)[:, : self.n_components]
        return (codes.contiguous() if self.norms is None else codes / self.norms).to(device)

    def _run(
        self,
        correlations: NDArray,
        energy: NDArray,
        codes: NDArray,
        distance: float,
        tol: float,
        max_iter: int,
    ) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Move the codes in place, with the rows split among torch's number of threads.

        Returns
        -------
        objective, gaps, done, spent : ndarray of shape (n_rows,)
            Certificates, if ``tol`` is not negative, and the number of moves.
        """
        real, n_rows = correlations.dtype.type, len(correlations)
        goal, noise = distance * float(self.upper.min()), _NOISE * np.finfo(real).eps
        rules = _Rules(real(goal), real(tol), real(noise), max_iter * self.n_components)
        atoms = _Atoms(self.gram, self.upper, self.lower)
        answers = blank_answers(n_rows, real)

        def work(rows: slice) -> None:
            _descend(atoms, rules, *(a[rows] for a in (correlations, energy, codes, *answers)))

        over_rows(work, n_rows, _THREAD_ROWS)
        return answers


class _Atoms(NamedTuple):
    """What all rows share: inner products, and the thresholds that keep a code at zero."""

    gram: NDArray
    upper: NDArray
    lower: NDArray


class _Rules(NamedTuple):
    """When to stop.

    A row is done when no code is farther than ``goal`` from its own optimum and, if ``tol`` is not
    negative, the duality gap is at most ``tol`` times the objective.
    """

    goal: Any
    tol: Any
    # Rounding error of a sum relative to its terms, with a margin.
    noise: Any
    max_moves: int


class _State(NamedTuple):
    """Scratch memory for one row: gradient, pending moves and the candidate of each lane."""

    gradient: NDArray
    atoms: NDArray
    steps: NDArray
    largest: NDArray
    where: NDArray


@_compiled
def _descend(  # type: ignore[no-untyped-def]
    atoms, rules, correlations, energy, codes, objective, gaps, done, spent
):
    real = codes.dtype.type
    size = codes.shape[1]
    # ``atoms`` has one more entry than there are lanes, since the search may write one too many.
    state = _State(
        np.zeros(size, codes.dtype),
        np.zeros(_LANES + 1, np.int64),
        np.zeros(_MOVES, codes.dtype),
        np.zeros(_LANES, codes.dtype),
        np.zeros(_LANES, np.int32),
    )
    for i in range(len(codes)):
        row = _solve_row(atoms, rules, state, correlations[i], real(energy[i]), codes[i])
        objective[i], gaps[i], done[i], spent[i] = row


@_compiled
def _solve_row(atoms, rules, state, correlations, energy, u):  # type: ignore[no-untyped-def]
    floor = rules.noise * _start(correlations, u, atoms, state)
    target = max(rules.goal, floor)
    n_moves, fresh = 0, True
    while True:
        _next(u, atoms, state)
        top = _largest(state.largest)
        stop = top <= floor or n_moves >= rules.max_moves
        if top <= target or stop:
            if rules.tol < 0:
                return energy, energy, top <= target, n_moves
            objective, gap = _certificate(correlations, state.gradient, u, atoms, energy)
            # The gap cannot be resolved below the rounding error of its own terms.
            enough = max(rules.tol * objective, rules.noise * energy)
            stop = stop or gap <= enough
            if stop and fresh:
                return objective, gap, gap <= enough, n_moves
            if stop:
                # The gradient has accumulated rounding errors: certify from a fresh one.
                _start(correlations, u, atoms, state)
                n_moves, fresh = n_moves + 1, True
                continue
            # The gap shrinks in proportion to the distances.
            target = top * min(0.9, max(0.5, enough / gap))
        n_moves, fresh = n_moves + _choose(u, top, atoms, state), False


@_compiled
def _next(u, atoms, state):  # type: ignore[no-untyped-def]
    """Update the gradient and look for candidates."""
    _pass(
        state.gradient,
        u,
        atoms.upper,
        atoms.lower,
        atoms.gram,
        state.atoms,
        state.steps,
        state.largest,
        state.where,
    )


@_compiled
def _soft(value, lower, upper):  # type: ignore[no-untyped-def]
    clipped = value if value < upper else upper
    return value - (clipped if clipped > lower else lower)


@_compiled
def _largest(values):  # type: ignore[no-untyped-def]
    top = values[0]
    for value in values:
        top = value if value > top else top
    return top


@_compiled
def _start(correlations, u, atoms, state):  # type: ignore[no-untyped-def]
    """Set the gradient, leaving the last moves pending; return the largest correlation."""
    q, steps = state.gradient, state.steps
    zero = q.dtype.type(0)
    scale = zero
    for k in range(len(u)):
        q[k] = correlations[k]
        size = abs(q[k])
        scale = size if size > scale else scale
    m = 0
    for block in range(0, len(u), _LANES):
        total = zero
        for k in range(block, block + _LANES):
            total += abs(u[k])
        if total == 0:
            continue
        for k in range(block, block + _LANES):
            if u[k] != 0:
                if m == _MOVES:
                    _next(u, atoms, state)
                    m = 0
                state.atoms[m], steps[m] = k, u[k]
                m += 1
    steps[m:] = 0
    return scale


@_compiled
def _choose(u, top, atoms, state):  # type: ignore[no-untyped-def]
    """Move the codes, leaving the moves pending for the gradient; return the number of moves."""
    movers, steps = state.atoms, state.steps
    found = 0
    for lane in range(_LANES):
        # Written without a branch, which the CPU could not predict.
        movers[found] = state.where[lane]
        found += state.largest[lane] >= top / 2
    found = min(found, _MOVES)
    for a in range(found):
        k = movers[a]
        pull = state.gradient[k] + u[k]
        for b in range(a):
            pull -= steps[b] * atoms.gram[movers[b], k]
        new = _soft(pull, atoms.lower[k], atoms.upper[k])
        steps[a] = new - u[k]
        u[k] = new
    steps[found:] = 0
    # With non-finite input no move is found; counting one makes the loop end all the same.
    return max(found, 1)


@_compiled
def _certificate(correlations, q, u, atoms, energy):  # type: ignore[no-untyped-def]
    """Return objective and duality gap; the dual point is the residual, optimally scaled."""
    upper, lower, zero = atoms.upper, atoms.lower, u.dtype.type(0)
    inner, explained, penalty, steepest = zero, zero, zero, zero
    for k in range(len(u)):
        inner += u[k] * q[k]
        explained += u[k] * correlations[k]
        penalty += upper[k] * abs(u[k])
    for k in range(len(u)):
        # For non-negative codes ``lower`` is the lowest float, so negative correlations vanish.
        pull = q[k] / (upper[k] if q[k] > 0 else lower[k])
        steepest = pull if pull > steepest else steepest
    residual = max(energy - explained - inner, zero)
    scale = 1 + inner / residual if residual > 0 else 1 + zero
    if steepest > 0:
        scale = min(scale, 1 / steepest)
    scale = max(scale, zero)
    # Written so that no large terms cancel near the optimum.
    gap = (1 - scale) ** 2 * residual / 2 + penalty - scale * inner
    return residual / 2 + penalty, max(gap, zero)


def _typed_pass(  # type: ignore[no-untyped-def]
    typing_context, q, u, upper, lower, gram, atoms, steps, largest, where
):
    """Subtract the pending steps from the gradient q; in each lane find the code farthest off.

    For each lane, ``largest`` receives that code's distance from its own optimum and ``where`` its
    coordinate.
    """
    signature = types.void(q, u, upper, lower, gram, atoms, steps, largest, where)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, args, strict=True)
        ]
        size = builder.extract_value(arrays[0].shape, 0)
        writer = _PassBuilder(builder, context.get_value_type(q.dtype))
        writer.build(size, *(array.data for array in arrays))
        return context.get_dummy_value()

    return signature, generate


_pass: Any = intrinsic(_typed_pass)


class _PassBuilder:
    """Writes the pass with LLVM's vector instructions."""

    def __init__(self, builder: Any, real: Any) -> None:
        self.builder = builder
        self.reals = ir.VectorType(real, _LANES)
        self.indices = ir.VectorType(ir.IntType(32), _LANES)
        self.align = 4 if isinstance(real, ir.FloatType) else 8

    def build(  # type: ignore[no-untyped-def]
        self, size, q, u, upper, lower, gram, atoms, steps, largest, where
    ) -> None:
        b, i64 = self.builder, ir.IntType(64)
        start = ir.Constant(i64, 0)
        rows, moves = [], []
        for move in range(_MOVES):
            place = ir.Constant(i64, move)
            atom = b.load(b.gep(atoms, [place]))
            rows.append(b.gep(gram, [b.mul(atom, size)]))
            moves.append(self.splat(b.load(b.gep(steps, [place])), self.reals))
        best = cgutils.alloca_once_value(b, ir.Constant(self.reals, [0.0] * _LANES))
        best_at = cgutils.alloca_once_value(b, ir.Constant(self.indices, [0] * _LANES))
        with cgutils.for_range_slice(b, start, size, ir.Constant(i64, _LANES), i64) as (k, _):
            gradient = self.load(q, k)
            for row, move in zip(rows, moves, strict=True):
                gradient = b.fsub(gradient, b.fmul(move, self.load(row, k), _FAST), _FAST)
            self.store(gradient, q, k)
            pull = b.fadd(gradient, self.load(u, k), _FAST)
            clipped = self.pick("<", pull, self.load(upper, k))
            clipped = self.pick(">", clipped, self.load(lower, k))
            # shrink(q + u) - u equals q minus the amount that the shrinkage removes.
            step = b.fsub(gradient, clipped, _FAST)
            distance = self.pick(">", step, b.fneg(step))
            farther = b.fcmp_ordered(">", distance, b.load(best), _FAST)
            b.store(b.select(farther, distance, b.load(best)), best)
            here = self.splat(b.trunc(k, ir.IntType(32)), self.indices)
            b.store(b.select(farther, here, b.load(best_at)), best_at)
        lanes = ir.Constant(self.indices, list(range(_LANES)))
        self.store(b.load(best), largest, start)
        self.store(b.add(b.load(best_at), lanes), where, start)

    def pick(self, comparison, one, other):  # type: ignore[no-untyped-def]
        """Return the smaller ("<") or larger (">") of two vectors, lane by lane."""
        return self.builder.select(
            self.builder.fcmp_ordered(comparison, one, other, _FAST), one, other
        )

    def splat(self, number, kind):  # type: ignore[no-untyped-def]
        """Return a vector with one number in every lane."""
        undefined, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        vector = self.builder.insert_element(undefined, number, first)
        return self.builder.shuffle_vector(
            vector, undefined, ir.Constant(self.indices, [0] * _LANES)
        )

    def load(self, array, index):  # type: ignore[no-untyped-def]
        vector = self.builder.load(self._at(array, index, self.reals))
        vector.align = self.align
        return vector

    def store(self, vector, array, index) -> None:  # type: ignore[no-untyped-def]
        self.builder.store(vector, self._at(array, index, vector.type)).align = 4

    def _at(self, array, index, kind):  # type: ignore[no-untyped-def]
        place = self.builder.gep(array, [index])
        return self.builder.bitcast(place, kind.as_pointer())
