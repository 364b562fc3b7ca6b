"""Compiled loops of `free_form`: the factor of a code, a visit to it, and the sweeps over a row.

All loops of a row work on the same arrays, which are passed as two tuples:

- ``prior``: the atoms, one column for each code, whose rows are squared norm, log-odds plus log
  density of the slab at zero, minus the log probability of a zero, rate and precision of the slab;
  the spread of the normal distributions that are cut, and its logarithm; whether codes are
  positive.
- ``state``: the residual (what the codes leave of the products); field, mean, mean square,
  inclusion and mean absolute value of each code; its KL divergence.
"""

import math

import numpy as np
from numba import njit

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
# Cuts below which a tail follows from a continued fraction, and its number of terms: the moments
# are exact to about 1e-9.
_TAIL, _N_TERMS = -4.0, 12
# A code that is on is visited again, while others enter, once its field has moved by this many
# standard deviations: measured, less costs more time than it brings.
_ENTRY_TOL = 0.7
# Codes move ahead along their last step by at most this many times its length: measured, more
# ends at worse optima.
_MOST_AHEAD = 5.0
# Sweeps before the first move ahead, and between two of them.
_FIRST_AHEAD, _BETWEEN_AHEAD = 3, 2


@_compiled
def _cut_normal(t):  # type: ignore[no-untyped-def]
    """Describe what lies above zero of a normal distribution with mean t and variance 1.

    Returns log mass plus ``t^2 / 2``, mean, and mean square.
    """
    if t > 6.0:
        mean = t + math.exp(-0.5 * t * t) / _ROOT_2PI
        return 0.5 * t * t, mean, 1.0 + t * mean
    if t > _TAIL:
        below = 0.5 * math.erfc(-t * _ROOT_HALF)
        mean = t + math.exp(-0.5 * t * t) / (_ROOT_2PI * below)
        return 0.5 * t * t + math.log(below), mean, 1.0 + t * mean
    # The continued fraction of Mills' ratio; its steps give the moments without a difference.
    x = -t
    rest = 0.5 * (x + math.sqrt(x * x + 4.0 * (_N_TERMS + 1)))
    for j in range(_N_TERMS, 2, -1):
        rest = x + j / rest
    last = x + 2.0 / rest
    return -math.log(x + 1.0 / last) - _HALF_LOG_2PI, 1.0 / last, 2.0 / (last * rest)


@_compiled
def _side(h, spread, log_spread):  # type: ignore[no-untyped-def]
    """Log mass, mean and mean square of the part of a slab on the positive side."""
    log_mass, mean, square = _cut_normal(h * spread)
    return _HALF_LOG_2PI + log_spread + log_mass, spread * mean, spread * spread * square


@_compiled
def _factor(field, logit, spread, log_spread, rate, positive):  # type: ignore[no-untyped-def]
    """Log-odds; mean, mean square and mean absolute value of a code that is not zero."""
    if rate == 0.0 and not positive:
        mean = field * spread * spread
        log_mass = _HALF_LOG_2PI + log_spread + 0.5 * field * mean
        # Half normal on each side.
        t = abs(field) * spread
        size = mean * math.erf(t * _ROOT_HALF)
        size = abs(size) + 2.0 * spread * math.exp(-0.5 * t * t) / _ROOT_2PI
        return logit + log_mass, mean, spread * spread + mean * mean, size
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


@_compiled
def _visit(k, w, gram, prior, state):  # type: ignore[no-untyped-def]
    """Set the factor of a code to its best, and update the residual."""
    atoms, spread, log_spread, positive = prior
    residual, field, mean, second, inclusion, size, kl = state
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
def _enter(w, gram, prior, state, score, offset, gain, rate, chosen):  # type: ignore[no-untyped-def]
    """Let codes enter, the one with the highest log-odds first, until none is above one half."""
    atoms, spread, log_spread, positive = prior
    residual, field, mean = state[0], state[1], state[2]
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
        _visit(best, w, gram, prior, state)
        for c in range(n_chosen - 1):
            k = chosen[c]
            alone = w * (residual[k] + mean[k] * atoms[0, k])
            if abs(alone - field[k]) > _ENTRY_TOL * math.sqrt(w * atoms[0, k]):
                _visit(k, w, gram, prior, state)


@_compiled
def _resume(w, gram, prior, state):  # type: ignore[no-untyped-def]
    """Set the means of codes from their fields, and the residual that they leave."""
    atoms, spread, log_spread, positive = prior
    residual, field, mean = state[0], state[1], state[2]
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
def _move_ahead(factor, w, gram, atoms, state, close, earlier, change):  # type: ignore[no-untyped-def]
    """Move the codes that are on further along their last step."""
    residual, field, mean, inclusion = state[0], state[1], state[2], state[4]
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
def _copy(into, state):  # type: ignore[no-untyped-def]
    """Copy a state."""
    # Written out, as the arrays of the tuple differ in type.
    into[0][:], into[1][:], into[2][:], into[3][:] = state[0], state[1], state[2], state[3]
    into[4][:], into[5][:], into[6][:] = state[4], state[5], state[6]


@_compiled
def solve_rows(  # type: ignore[no-untyped-def]
    products, gram, energy, n_observed, atoms, positive, freedom, tol, bound_tol,
    max_sweeps, warm, fields, means, seconds, inclusions, sizes, weights, errors, kls,
):  # fmt: skip
    """Find the factors of each row.

    The arguments are those of `free_form.solve`, with ``atoms`` as described above, a freedom of
    zero for normal noise, and ``warm``: whether to start from ``fields``. The last eight arrays are
    filled in; ``weights`` are those to start from.
    """
    n_rows, n_components = products.shape
    residual, kl = np.empty_like(products[0]), np.empty(n_components)
    spread, log_spread, close = np.empty((3, n_components))
    earlier, change = np.empty_like(residual), np.empty_like(residual)
    score, offset, gain = (
        np.empty_like(residual), np.empty_like(residual), np.empty_like(residual)
    )  # fmt: skip
    rate, chosen = atoms[3].astype(residual.dtype), np.empty(n_components, np.int64)
    prior = (atoms, spread, log_spread, positive)
    # The state before codes moved ahead.
    kept = (
        np.empty_like(residual), np.empty_like(residual), np.empty_like(residual),
        np.empty_like(residual), np.empty_like(residual), np.empty_like(residual),
        np.empty_like(kl),
    )  # fmt: skip
    for i in range(n_rows):
        field, mean, second = fields[i], means[i], seconds[i]
        state = (residual, field, mean, second, inclusions[i], sizes[i], kl)
        residual[:], mean[:], earlier[:], change[:] = products[i], 0, 0, 0
        w, new_weight, last = weights[i], True, -_NEVER_SEEN
        until_ahead, is_ahead = _FIRST_AHEAD, False
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
                    _resume(w, gram, prior, state)
                else:
                    _enter(w, gram, prior, state, score, offset, gain, rate, chosen)
            moved = False
            for k in range(n_components):
                if not visit_all:
                    alone = w * (residual[k] + mean[k] * atoms[0, k])
                    if abs(alone - field[k]) <= close[k]:
                        continue
                moved = True
                _visit(k, w, gram, prior, state)
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
            if is_ahead and not bound >= last:
                # It did not pay off: back to where the codes were.
                _copy(state, kept)
                earlier[:], is_ahead = mean, False
                continue
            is_ahead = False
            weights[i], errors[i], kls[i] = w, error, divergence
            rise = bound - last
            last = bound
            if sweep == max_sweeps - 1:
                break
            if freedom > 0.0:
                best_weight = (freedom + n_observed[i]) / (freedom + error)
                # What it brings in nats, to second order.
                nats = 0.25 * (freedom + n_observed[i]) * (best_weight / w - 1.0) ** 2
                if nats > 0.1 * bound_tol:
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
                until_ahead, is_ahead = _BETWEEN_AHEAD, True
                _copy(kept, state)
                _move_ahead(
                    min(pace / (1.0 - pace), _MOST_AHEAD), w, gram, atoms, state, close, earlier,
                    change,
                )  # fmt: skip
