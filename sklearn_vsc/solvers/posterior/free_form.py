"""Compiled coordinate ascent on the best mean-field posterior of a sparse linear model.

With the other codes held fixed, the factor of a code that maximises the ELBO has a closed form
under Gaussian noise: a spike at zero and a truncated normal on each side of it. It holds for every
slab whose log density is ``log_constant - rate |z| - precision z^2 / 2`` on both sides of zero, or
on the positive side alone. So a visit to a code sets its factor, and no visit lowers the ELBO of
the row. All that a factor depends on is the field of its code: the inner product of the atom with
the residual that the other codes leave, in the metric of the noise.

A row starts from no code at all: the code with the highest log-odds enters, again and again, until
none is more likely on than off. Then sweeps visit the codes whose field has moved, until the bound
of the row no longer rises. Rows are independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .._rows import over_rows

# Infinities are part of no formula here, but a NaN must stay one.
_compiled = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_ROOT_HALF = math.sqrt(0.5)
_ROOT_2PI = math.sqrt(2 * math.pi)
# Larger than any field, so that a code is visited in the next sweep.
_NEVER_SEEN = 1e30
# Keeps the formulas finite for atoms of norm zero.
_TINY = 1e-30
# Fields in standard deviations beyond which the other side of a slab has no mass.
_FAR = 6.0
# A code that is on is visited again, while others enter, once its field has moved by this many
# standard deviations: measured, less costs more time than it brings.
_ENTRY_TOL = 0.7
# Codes move ahead along their last step by at most this many times its length: measured, more
# ends at worse optima.
_MOST_AHEAD = 5.0
# Sweeps before the first move ahead, and between two of them.
_FIRST_AHEAD, _BETWEEN_AHEAD = 3, 2


@dataclass(frozen=True)
class CodePriors:
    """Priors of the codes: a spike at zero, and a slab.

    Attributes
    ----------
    logit : ndarray of shape (n_components,)
        Log-odds of a code that is not zero.
    log_constant : ndarray of shape (n_components,)
        Log density of the slab at zero.
    rate : ndarray of shape (n_components,)
        How fast the log density of the slab falls with ``|z|``.
    precision : ndarray of shape (n_components,)
        How fast it falls with ``z^2 / 2``.
    positive : bool
        Whether the slab lies on the positive side alone.
    """

    logit: NDArray
    log_constant: NDArray
    rate: NDArray
    precision: NDArray
    positive: bool = False


@dataclass(frozen=True)
class RowNoise:
    """Law of the scale of a row's noise: its precision is that of the model times a weight.

    Attributes
    ----------
    freedom : float
        Degrees of freedom of a Student t distribution; infinity: normal noise, all weights are 1.
    """

    freedom: float = math.inf


@dataclass(frozen=True)
class Factors:
    """Posterior factors of rows, and what bounds and learning need of them.

    Attributes
    ----------
    field : ndarray of shape (n_rows, n_components)
        What the factor of each code follows from, given the weight of the row.
    mean, second, inclusion, size : ndarray of shape (n_rows, n_components)
        Mean, mean square, probability of not being zero, and mean absolute value of each code.
    weight : ndarray of shape (n_rows,)
        Precision of the row's noise, relative to that of the model.
    error : ndarray of shape (n_rows,)
        Expected squared distance of row and reconstruction, in the metric of the noise.
    kl : ndarray of shape (n_rows,)
        KL divergence of the row's factors from their priors, in nats.
    """

    field: NDArray
    mean: NDArray
    second: NDArray
    inclusion: NDArray
    size: NDArray
    weight: NDArray
    error: NDArray
    kl: NDArray

    @classmethod
    def empty(cls, n_rows: int, n_components: int, dtype: np.dtype) -> Factors:
        """Return arrays to be filled."""
        codes = (np.empty((n_rows, n_components), dtype) for _ in range(5))
        return cls(*codes, *(np.empty(n_rows) for _ in range(3)))

    def put(self, rows: NDArray, part: Factors) -> None:
        """Fill in some rows."""
        for each in fields(self):
            getattr(self, each.name)[rows] = getattr(part, each.name)


def solve(
    products: NDArray,
    gram: NDArray,
    energy: NDArray,
    n_observed: NDArray,
    priors: CodePriors,
    noise: RowNoise = RowNoise(),
    *,
    start: NDArray | None = None,
    max_sweeps: int = 1000,
    tol: float = 0.05,
    bound_tol: float = 0.05,
) -> Factors:
    """Find the posterior factors of rows.

    Parameters
    ----------
    products : ndarray of shape (n_rows, n_components)
        Inner products of rows, less the intercept, and atoms, in the metric of the noise.
    gram : ndarray of shape (n_components, n_components)
        Inner products of the atoms.
    energy : ndarray of shape (n_rows,)
        Squared norms of the rows, less the intercept.
    n_observed : ndarray of shape (n_rows,)
        Number of observed entries of each row.
    priors : CodePriors
        Priors of the codes.
    noise : RowNoise
        Law of the scale of a row's noise.
    start : ndarray of shape (n_rows, n_components), default=None
        Fields to start from. None: codes enter one by one.
    max_sweeps : int, default=1000
        Most sweeps over the codes of a row.
    tol : float, default=0.05
        A code is visited again once its field has moved by this many standard deviations.
    bound_tol : float, default=0.05
        A row is done once a sweep raises its bound by less than this, in nats.

    Returns
    -------
    factors : Factors
        In the dtype of the products.
    """
    n_rows, n_components = products.shape
    found = Factors.empty(n_rows, n_components, products.dtype)
    if start is not None:
        found.field[:] = start
    gram = np.ascontiguousarray(gram, products.dtype)
    atoms = np.stack(
        [
            np.diag(gram).astype(float),
            priors.logit + priors.log_constant,
            np.logaddexp(0, priors.logit),
            priors.rate,
            priors.precision,
        ]
    )
    freedom = 0.0 if math.isinf(noise.freedom) else float(noise.freedom)
    stops = (float(tol), float(bound_tol), int(max_sweeps), start is not None)

    def work(rows: slice) -> None:
        outcome = (getattr(found, each.name)[rows] for each in fields(found))
        given = (products[rows], gram, energy[rows], n_observed[rows], atoms)
        _solve_rows(*given, bool(priors.positive), freedom, *stops, *outcome)

    over_rows(work, n_rows)
    return found


@_compiled
def _tail(t):  # type: ignore[no-untyped-def]
    """Return ``t^2 / 2 + log Phi(t)``, and the ratio of normal density and distribution at t."""
    if t > 6.0:
        return 0.5 * t * t, math.exp(-0.5 * t * t) / _ROOT_2PI
    if t > -4.0:
        below = 0.5 * math.erfc(-t * _ROOT_HALF)
        return 0.5 * t * t + math.log(below), math.exp(-0.5 * t * t) / (_ROOT_2PI * below)
    # Continued fraction of Mills' ratio.
    x = -t
    ratio = x
    for j in range(14, 0, -1):
        ratio = x + j / ratio
    return -math.log(ratio) - _HALF_LOG_2PI, ratio


@_compiled
def _side(h, spread, log_spread):  # type: ignore[no-untyped-def]
    """Log mass, mean and mean square of the part of a slab on the positive side."""
    t = h * spread
    log_mass, ratio = _tail(t)
    if t < -50.0:
        y = 1.0 / (t * t)
        mean = -spread / t * (1.0 - 2.0 * y)
        second = spread * spread * 2.0 * y * (1.0 - 5.0 * y)
    else:
        mean = spread * (t + ratio)
        second = spread * (spread + t * mean)
    return _HALF_LOG_2PI + log_spread + log_mass, mean, second


@_compiled
def _factor(field, logit, spread, log_spread, rate, positive):  # type: ignore[no-untyped-def]
    """Log-odds; mean, mean square and mean absolute value of a code that is not zero."""
    if rate == 0.0 and not positive:
        mean = field * spread * spread
        log_mass = _HALF_LOG_2PI + log_spread + 0.5 * field * mean
        return logit + log_mass, mean, spread * spread + mean * mean, abs(mean)
    if positive:
        log_up, mean_up, second_up = _side(field - rate, spread, log_spread)
        return logit + log_up, mean_up, second_up, mean_up
    if (abs(field) - rate) * spread > _FAR:
        # The other side has no mass.
        beyond = abs(field) - rate
        mean = beyond * spread * spread
        log_mass = _HALF_LOG_2PI + log_spread + 0.5 * beyond * mean
        return logit + log_mass, math.copysign(mean, field), spread * spread + mean * mean, mean
    log_up, mean_up, second_up = _side(field - rate, spread, log_spread)
    log_down, mean_down, second_down = _side(-field - rate, spread, log_spread)
    high = max(log_up, log_down)
    up, down = math.exp(log_up - high), math.exp(log_down - high)
    total = up + down
    up, down = up / total, down / total
    mean = up * mean_up - down * mean_down
    second = up * second_up + down * second_down
    return logit + high + math.log(total), mean, second, up * mean_up + down * mean_down


@_compiled
def _gate(logit):  # type: ignore[no-untyped-def]
    """Return the probability of these log-odds, and ``log(1 + exp(logit))``."""
    small = math.exp(-abs(logit))
    if logit > 0.0:
        return 1.0 / (1.0 + small), logit + math.log1p(small)
    return small / (1.0 + small), math.log1p(small)


# Rows of ``atoms``: squared norm, log-odds plus log density of the slab at zero, minus the log
# probability of a zero, rate and precision of the slab.


@_compiled
def _visit(  # type: ignore[no-untyped-def]
    k, w, atoms, gram, spread, log_spread, positive, residual, field, mean, second,
    inclusion, size, kl,
):  # fmt: skip
    """Set the factor of a code to its best, and update the residual."""
    alone = w * (residual[k] + mean[k] * atoms[0, k])
    logit, on_mean, on_second, on_size = _factor(
        alone, atoms[1, k], spread[k], log_spread[k], atoms[3, k], positive
    )
    on, log_total = _gate(logit)
    field[k], inclusion[k] = alone, on
    second[k], size[k] = on * on_second, on * on_size
    before = mean[k]
    mean[k] = on * on_mean
    kl[k] = alone * mean[k] - 0.5 * w * atoms[0, k] * second[k] + atoms[2, k] - log_total
    # Computed from stored values, so that the step is float32 for float32 arrays.
    step = mean[k] - before
    if step != 0:
        for j in range(len(residual)):
            residual[j] -= step * gram[k, j]


@_compiled
def _enter(  # type: ignore[no-untyped-def]
    w, atoms, gram, spread, log_spread, positive, residual, field, mean, second, inclusion,
    size, kl, score, offset, gain, rate, chosen,
):  # fmt: skip
    """Let codes enter, the one with the highest log-odds first, until none is above one half."""
    n_components = len(residual)
    number = residual.dtype.type
    weight, zero = number(w), number(0)
    for k in range(n_components):
        offset[k] = atoms[1, k] + log_spread[k] + _HALF_LOG_2PI
        gain[k] = 0.5 * spread[k] * spread[k]
    n_chosen = 0
    while n_chosen < n_components:
        # Log-odds as if all mass were on the side of the field.
        for k in range(n_components):
            h = weight * residual[k]
            h = max((h if positive else abs(h)) - rate[k], zero)
            score[k] = offset[k] + gain[k] * h * h
        for c in range(n_chosen):
            score[chosen[c]] = -1
        best = np.argmax(score)
        if score[best] <= 0:
            break
        chosen[n_chosen] = best
        n_chosen += 1
        _visit(
            best, w, atoms, gram, spread, log_spread, positive, residual, field, mean,
            second, inclusion, size, kl,
        )  # fmt: skip
        for c in range(n_chosen - 1):
            k = chosen[c]
            alone = w * (residual[k] + mean[k] * atoms[0, k])
            if abs(alone - field[k]) > _ENTRY_TOL * math.sqrt(w * atoms[0, k]):
                _visit(
                    k, w, atoms, gram, spread, log_spread, positive, residual, field, mean,
                    second, inclusion, size, kl,
                )  # fmt: skip


@_compiled
def _resume(  # type: ignore[no-untyped-def]
    w, atoms, gram, spread, log_spread, positive, residual, field, mean
):
    """Set the means of codes from their fields, and the residual that they leave."""
    for k in range(len(residual)):
        logit, on_mean, _, _ = _factor(
            field[k], atoms[1, k], spread[k], log_spread[k], atoms[3, k], positive
        )
        on, _ = _gate(logit)
        if on * abs(on_mean) * math.sqrt(w * atoms[0, k]) > 1e-3:
            mean[k] = on * on_mean
            for j in range(len(residual)):
                residual[j] -= mean[k] * gram[k, j]


@_compiled
def _move_ahead(  # type: ignore[no-untyped-def]
    factor, w, atoms, gram, close, residual, field, mean, inclusion, earlier, change
):
    """Move the codes that are on further along their last step."""
    for k in range(len(residual)):
        least = 0.3 * close[k] / (w * atoms[0, k] + _TINY)
        if inclusion[k] > 0.5 and factor * abs(change[k]) > least:
            mean[k] = mean[k] + factor * change[k]
            step = mean[k] - earlier[k]
            earlier[k] = mean[k]
            field[k] = _NEVER_SEEN
            for j in range(len(residual)):
                residual[j] -= step * gram[k, j]


@_compiled
def _solve_rows(  # type: ignore[no-untyped-def]
    products, gram, energy, n_observed, atoms, positive, freedom, tol, bound_tol,
    max_sweeps, warm, fields, means, seconds, inclusions, sizes, weights, errors, kls,
):  # fmt: skip
    n_rows, n_components = products.shape
    residual, kl = np.empty_like(products[0]), np.empty(n_components)
    spread, log_spread, close = np.empty((3, n_components))
    earlier, change = np.empty_like(residual), np.empty_like(residual)
    score, offset, gain = (
        np.empty_like(residual), np.empty_like(residual), np.empty_like(residual)
    )  # fmt: skip
    rate, chosen = atoms[3].astype(residual.dtype), np.empty(n_components, np.int64)
    for i in range(n_rows):
        field, mean, second = fields[i], means[i], seconds[i]
        inclusion, size = inclusions[i], sizes[i]
        residual[:], mean[:], earlier[:], change[:] = products[i], 0, 0, 0
        w, new_weight, settled, last = 1.0, True, freedom == 0.0, -_NEVER_SEEN
        until_ahead = _FIRST_AHEAD
        for sweep in range(max_sweeps):
            visit_all = new_weight
            if new_weight:
                for k in range(n_components):
                    spread[k] = 1.0 / math.sqrt(w * atoms[0, k] + atoms[4, k] + _TINY)
                    log_spread[k] = math.log(spread[k])
                    close[k] = tol * math.sqrt(w * atoms[0, k])
                new_weight = False
            if sweep == 0:
                if warm:
                    _resume(w, atoms, gram, spread, log_spread, positive, residual, field, mean)
                else:
                    _enter(
                        w, atoms, gram, spread, log_spread, positive, residual, field, mean,
                        second, inclusion, size, kl, score, offset, gain, rate, chosen,
                    )  # fmt: skip
            moved = False
            for k in range(n_components):
                if not visit_all:
                    alone = w * (residual[k] + mean[k] * atoms[0, k])
                    if abs(alone - field[k]) <= close[k]:
                        continue
                moved = True
                _visit(
                    k, w, atoms, gram, spread, log_spread, positive, residual, field, mean,
                    second, inclusion, size, kl,
                )  # fmt: skip
            error, divergence = energy[i], 0.0
            for k in range(n_components):
                error -= mean[k] * (products[i, k] + residual[k])
                error += (second[k] - mean[k] * mean[k]) * atoms[0, k]
                divergence += kl[k]
            error = max(error, 0.0)
            bound = -divergence - 0.5 * error
            if freedom > 0.0:
                misfit = math.log1p(error / freedom)
                bound = -divergence - 0.5 * (freedom + n_observed[i]) * misfit
            weights[i], errors[i], kls[i] = w, error, divergence
            rise = bound - last
            last = bound
            if sweep == max_sweeps - 1:
                break
            if not settled:
                best_weight = (freedom + n_observed[i]) / (freedom + error)
                settled = sweep > 0 and rise < 10 * bound_tol
                if abs(best_weight - w) > 1e-3 * w:
                    w, new_weight = best_weight, True
                    continue
            if not moved or rise < bound_tol:
                break
            # Codes that drift share one rate: move them ahead by what the drift still has to go.
            ahead, back = 0.0, _TINY
            for k in range(n_components):
                step = mean[k] - earlier[k]
                ahead += atoms[0, k] * step * change[k]
                back += atoms[0, k] * change[k] * change[k]
                earlier[k], change[k] = mean[k], step
            until_ahead -= 1
            pace = min(ahead / back, 0.99)
            if until_ahead <= 0 and pace > 0.2:
                until_ahead = _BETWEEN_AHEAD
                _move_ahead(
                    min(pace / (1.0 - pace), _MOST_AHEAD), w, atoms, gram, close, residual, field,
                    mean, inclusion, earlier, change,
                )  # fmt: skip
