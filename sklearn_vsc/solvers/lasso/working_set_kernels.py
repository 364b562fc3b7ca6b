"""Compiled loops of `working_sets`: rounds over rows, and descent within the set of one row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._kernels import compiled, dot, find_used

# Atoms for which there is room in a working set at first; it grows as needed.
_ROOM = 64
# Maximum number of atoms that enter the working set at a time, and the smallest violation for which
# an atom enters, relative to the largest violation.
_ENTERING, _LEAST_PULL = 16, 0.1
# Maximum number of candidates of a row in a round, and looks at them.
_CANDIDATES, _LOOKS = 512, 50
# Accuracy of a round: distances after it relative to those before it.
_DEPTH = 0.02
# Maximum number of sweeps over the working set between two looks at the candidates.
_SWEEPS = 100
# Number of bins in which violations are counted.
_BINS = 128


class Rules(NamedTuple):
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
    # Whether the correlations of each row are computed apart.
    alone: bool


class _Set(NamedTuple):
    """Working set of one row.

    Which atoms are in it, their observed entries, their inner products, and the gradient and the
    values of their codes.
    """

    listed: NDArray
    atoms: NDArray
    gram: NDArray
    gradient: NDArray
    codes: NDArray


class _Candidates(NamedTuple):
    """Candidates of one row: which atoms, their correlations, and whether they are in the set."""

    listed: NDArray
    correlations: NDArray
    inside: NDArray
    # All atoms that violate the conditions, and how many of them do by how much.
    violating: NDArray
    counts: NDArray


@compiled
def visit_rows(  # type: ignore[no-untyped-def]
    dictionary,
    X,
    observed,
    listed,
    correlations,
    stopped,
    rules,
    residual,
    codes,
    objective,
    gaps,
    done,
    spent,
):
    """Take one round: certify the codes of the listed rows, or improve them."""
    held = _new_set(_ROOM, dictionary)
    candidates = _Candidates(
        np.zeros(_CANDIDATES, np.int64),
        np.zeros(_CANDIDATES, dictionary.dtype),
        np.zeros(_CANDIDATES, np.bool_),
        np.zeros(len(dictionary) + 1, np.int64),
        np.zeros(_BINS, np.int64),
    )
    masked = observed.size > 0
    used = np.empty(len(dictionary) + 4, np.int64)
    for n in range(len(listed)):
        i = listed[n]
        x, r, u, pulls = X[i], residual[i], codes[i], correlations[n]
        seen = observed[i] if masked else observed[:0].reshape(-1)
        energy = dot(x, x)
        floor = rules.noise * rules.longest * np.sqrt(energy)
        size = np.int64(0)
        # Listed first: a loop that may replace the working set is slow.
        for a in range(find_used(u, used)):
            k = used[a]
            held = _with_room(size, held)
            size = _enter(k, u[k], pulls[k], dictionary, seen, size, held)
        while True:
            pull = _largest_pull(rules, pulls)
            top = max(_distance_inside(rules, size, held), pull - rules.alpha)
            stop = top <= max(rules.goal, floor) or spent[i] >= rules.max_moves
            target = _DEPTH * top
            if rules.tol < 0:
                target = max(target, rules.goal / 2)
            else:
                value, gap = _certificate(rules, dot(r, r), pull, size, held)
                # The gap cannot be resolved below the rounding error of its own terms.
                enough = max(rules.tol * value, rules.noise * energy)
                objective[i], gaps[i], done[i] = value, gap, gap <= enough
                stop = stop or gap <= enough
            if stop:
                stopped[n] = True
                break
            n_candidates = _collect(rules, pulls, pull, size, held, candidates)
            state = x, seen, r, rules, max(target, floor / 4)
            held, size, n_moves = _improve(dictionary, *state, n_candidates, candidates, size, held)
            spent[i] += len(u) + n_moves
            if not rules.alone:
                break
            for k in range(len(u)):
                pulls[k] = dot(dictionary[k], r)
        for a in range(size):
            u[held.listed[a]] = held.codes[a]


@compiled
def _improve(  # type: ignore[no-untyped-def]
    dictionary, x, seen, r, rules, target, n_candidates, candidates, size, held
):
    """Descend on the working set and the candidates; update the residual."""
    n_moves = 0
    for _ in range(_LOOKS):
        size, held = _enter_violating(dictionary, seen, rules, n_candidates, candidates, size, held)
        n_moves += _sweep(rules, target, size, held)
        _residual(x, seen, size, held, r)
        for a in range(size):
            held.gradient[a] = dot(held.atoms[a], r)
        top = _distance_inside(rules, size, held)
        for c in range(n_candidates):
            if not candidates.inside[c]:
                value = dot(dictionary[candidates.listed[c]], r)
                candidates.correlations[c] = value
                top = max(top, (value if rules.positive else abs(value)) - rules.alpha)
        if top <= 2 * target:
            break
    return held, size, n_moves


@compiled
def _new_set(room, dictionary):  # type: ignore[no-untyped-def]
    return _Set(
        np.zeros(room, np.int64),
        np.zeros((room, dictionary.shape[1]), dictionary.dtype),
        np.zeros((room, room), dictionary.dtype),
        np.zeros(room, dictionary.dtype),
        np.zeros(room, dictionary.dtype),
    )


@compiled
def _with_room(size, held):  # type: ignore[no-untyped-def]
    """Return the working set, or a larger copy where it is full."""
    if size < len(held.listed):
        return held
    larger = _new_set(2 * size, held.atoms)
    for a in range(size):
        larger.listed[a] = held.listed[a]
        larger.gradient[a], larger.codes[a] = held.gradient[a], held.codes[a]
        for j in range(held.atoms.shape[1]):
            larger.atoms[a, j] = held.atoms[a, j]
        for b in range(size):
            larger.gram[a, b] = held.gram[a, b]
    return larger


@compiled
def _enter(k, code, gradient, dictionary, seen, size, held):  # type: ignore[no-untyped-def]
    """Add an atom to the working set; return the new size."""
    atom, full = held.atoms[size], dictionary[k]
    zero = full.dtype.type(0)
    if len(seen):
        for j in range(len(atom)):
            atom[j] = full[j] if seen[j] else zero
    else:
        for j in range(len(atom)):
            atom[j] = full[j]
    for b in range(size + 1):
        product = dot(held.atoms[b], atom)
        held.gram[size, b] = product
        held.gram[b, size] = product
    held.listed[size] = k
    held.gradient[size] = gradient
    # A code whose atom has no observed energy would only add to the penalty.
    held.codes[size] = code if held.gram[size, size] > 0 else zero
    return size + 1


@compiled
def residuals_of_rows(dictionary, X, observed, codes, residual):  # type: ignore[no-untyped-def]
    """Compute the residuals of all rows at their codes."""
    used = np.empty(len(dictionary) + 4, np.int64)
    for i in range(len(X)):
        r = residual[i]
        for j in range(len(r)):
            r[j] = X[i, j]
        for a in range(find_used(codes[i], used)):
            code, atom = codes[i, used[a]], dictionary[used[a]]
            for j in range(len(r)):
                r[j] -= code * atom[j]
        if observed.size:
            for j in range(len(r)):
                r[j] = r[j] if observed[i, j] else r[j] * 0


@compiled
def _residual(x, seen, size, held, r):  # type: ignore[no-untyped-def]
    """Compute the residual of a row at the codes of its working set."""
    # Loops instead of slices, which take numba seconds to compile.
    for j in range(len(x)):
        r[j] = x[j]
    for a in range(size):
        code, atom = held.codes[a], held.atoms[a]
        if code != 0:
            for j in range(len(r)):
                r[j] -= code * atom[j]


@compiled
def _optimum(gradient, code, weight, rules):  # type: ignore[no-untyped-def]
    """Return the best value of a code with the others held fixed."""
    zero = gradient * 0
    pull = gradient + weight * code
    if pull > rules.alpha:
        return (pull - rules.alpha) / weight
    if pull < -rules.alpha and not rules.positive:
        return (pull + rules.alpha) / weight
    return zero


@compiled
def _distance_inside(rules, size, held):  # type: ignore[no-untyped-def]
    """Return the largest distance of a code in the set from its optimum, in gradient units."""
    top = held.gradient.dtype.type(0)
    for a in range(size):
        weight = held.gram[a, a]
        if weight > 0:
            code = held.codes[a]
            step = _optimum(held.gradient[a], code, weight, rules) - code
            top = max(top, weight * abs(step))
    return top


@compiled
def _largest_pull(rules, correlations):  # type: ignore[no-untyped-def]
    """Return the largest absolute correlation; for positive codes, the largest positive one."""
    low, high = correlations.dtype.type(0), correlations.dtype.type(0)
    for value in correlations:
        high = value if value > high else high
        low = value if value < low else low
    return high if rules.positive or high > -low else -low


@compiled
def _certificate(rules, residual_energy, pull, size, held):  # type: ignore[no-untyped-def]
    """Return objective and duality gap as ``quadratic_fit.certify`` does."""
    real = held.codes.dtype.type
    norm, inner = real(0), real(0)
    for a in range(size):
        norm += abs(held.codes[a])
        inner -= held.codes[a] * held.gradient[a]
    tiny = real(np.finfo(held.codes.dtype).tiny)
    one = real(1)
    scale = min(
        one - inner / max(residual_energy, tiny),
        rules.alpha / max(pull, tiny),
    )
    scale = max(scale, real(0))
    gap = (one - scale) ** 2 * residual_energy / 2 + rules.alpha * norm + scale * inner
    return residual_energy / 2 + rules.alpha * norm, max(gap, real(0))


@compiled
def _collect(rules, correlations, pull, size, held, candidates):  # type: ignore[no-untyped-def]
    """List the atoms outside the set that violate the conditions most; return their number."""
    width = (pull - rules.alpha) / _BINS
    if not width > 0:
        return 0
    # Those in the working set do not count.
    for a in range(size):
        correlations[held.listed[a]] = 0
    violating, n_violating = candidates.violating, 0
    least = -rules.alpha
    if rules.positive:
        least = correlations.dtype.type(np.finfo(correlations.dtype).min)
    for k in range(len(correlations)):
        # Written without a branch, which the CPU could not predict.
        value = correlations[k]
        violating[n_violating] = k
        n_violating += (value > rules.alpha) | (value < least)
    lowest = 0
    if n_violating > len(candidates.listed):
        lowest = _lowest_bin(rules, correlations, width, n_violating, candidates)
    n_found = 0
    for c in range(n_violating):
        k = violating[c]
        value = correlations[k]
        if _bin(value, width, rules) >= lowest:
            candidates.listed[n_found] = k
            candidates.correlations[n_found] = value
            candidates.inside[n_found] = False
            n_found += 1
            if n_found == len(candidates.listed):
                break
    return n_found


@compiled
def _bin(value, width, rules):  # type: ignore[no-untyped-def]
    over = (value if rules.positive else abs(value)) - rules.alpha
    return min(int(over / width), _BINS - 1) if over > 0 else -1


@compiled
def _lowest_bin(rules, correlations, width, n_violating, candidates):  # type: ignore[no-untyped-def]
    """Return the bin from which on there is room for all violations, or the last one."""
    counts = candidates.counts
    counts[:] = 0
    for c in range(n_violating):
        counts[_bin(correlations[candidates.violating[c]], width, rules)] += 1
    lowest, total = _BINS, 0
    while lowest > 0 and total + counts[lowest - 1] <= len(candidates.listed):
        lowest -= 1
        total += counts[lowest]
    return min(lowest, _BINS - 1)


@compiled
def _enter_violating(  # type: ignore[no-untyped-def]
    dictionary, seen, rules, n_candidates, candidates, size, held
):
    """Add the candidates that violate the optimality conditions most."""
    pull = rules.alpha
    for c in range(n_candidates):
        value = candidates.correlations[c]
        if not candidates.inside[c]:
            pull = max(pull, value if rules.positive else abs(value))
    least = rules.alpha + _LEAST_PULL * (pull - rules.alpha)
    for _ in range(_ENTERING):
        best, at = least, -1
        for c in range(n_candidates):
            value = candidates.correlations[c]
            strength = value if rules.positive else abs(value)
            if strength > best and not candidates.inside[c]:
                best, at = strength, c
        if at < 0:
            break
        held = _with_room(size, held)
        k, value = candidates.listed[at], candidates.correlations[at]
        size = _enter(k, value * 0, value, dictionary, seen, size, held)
        candidates.inside[at] = True
    return size, held


@compiled
def _sweep(rules, target, size, held):  # type: ignore[no-untyped-def]
    """Move the codes of the working set in turn until all moves are small; return their number."""
    codes, gradient = held.codes, held.gradient
    n_moves = 0
    for _ in range(_SWEEPS):
        top = gradient.dtype.type(0)
        for a in range(size):
            row = held.gram[a]
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
