"""Compiled coordinate ascent on the mean-field posterior of a spike and slab, linear decoder.

One sweep visits the codes of a row in turn. With the others held, the best law of a code has a
closed form for a Gaussian slab (Titsias and Lazaro-Gredilla 2011); for a Laplace slab the ELBO is
jointly concave in location and scale, and a visit takes a Newton step that is halved until it
helps. So no visit lowers the ELBO of its row. Rows are independent of each other. numba is a
dependency because 256 visits a sweep are out of reach of small tensor operations.

What the codes leave of a row is held as the correlations of all atoms with it, which a visit brings
up to date by the Gram matrix. A row that is observed in part has a Gram matrix of its own, which
costs more than the visits: there the residual itself is held, and a visit costs an inner product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows

# A noise variance of zero divides to infinity, as in torch, and training says that it diverged.
_compiled = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
# Below these log-odds a code is as good as surely zero: 3e-7.
_SURELY_ZERO = -15.0
# A Newton step is halved at most so often; then the code waits for the next sweep.
_HALVINGS = 6
# What no correlation comes near: every code is visited in the first sweep.
_NEVER_SEEN = 1e30
# Keeps the bounds of atoms of norm zero finite.
_TINY = 1e-30


@dataclass(frozen=True)
class SlabPrior:
    """Prior of the codes: log-odds of an open gate, and the law and scale of the slab."""

    slab: str
    scale: float
    logit: float


def refine(
    correlations: Tensor,
    gram: Tensor,
    noise_variance: float,
    prior: SlabPrior,
    start: tuple[Tensor, Tensor, Tensor],
    n_sweeps: int,
    tol: float = 0.05,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raise the ELBO of each row by sweeps of coordinate ascent.

    Parameters
    ----------
    correlations : Tensor of shape (n_rows, n_components)
        Inner products of rows (less the intercept) and atoms.
    gram : Tensor of shape (n_components, n_components)
        Inner products of the atoms.
    noise_variance : float
        Variance of the Gaussian likelihood.
    prior : SlabPrior
        Prior of the codes.
    start : tuple of three Tensors of shape (n_rows, n_components)
        Location and scale of the slab, and log-odds of the gate, that the sweeps start from.
    n_sweeps : int
        Number of sweeps, at most.
    tol : float
        A code is visited again only when what the others leave of the row has moved along its
        atom by more, in standard deviations of the noise; a row is done when none has. What
        that leaves on the table is of the order of ``tol ** 2`` nats a code.

    Returns
    -------
    loc, scale, logit : Tensor of shape (n_rows, n_components)
        New tensors, on the device of the correlations.
    """
    device, dtype = correlations.device, correlations.dtype
    q, g = (_array(t) for t in (correlations, gram))
    loc, scale, logit = (_array(t).copy() for t in start)
    norms = np.ascontiguousarray(np.diag(g))
    sweep = _sweeps(prior, noise_variance, tol, n_sweeps, q.dtype)

    def work(rows: slice) -> None:
        sweep(q[rows], g, norms, None, loc[rows], scale[rows], logit[rows])

    over_rows(work, len(q))
    found = [torch.from_numpy(a).to(device=device, dtype=dtype) for a in (loc, scale, logit)]
    return found[0], found[1], found[2]


def refine_observed(
    rows: Tensor,
    atoms: Tensor,
    observed: Tensor,
    noise_variance: float,
    prior: SlabPrior,
    start: tuple[Tensor, Tensor, Tensor],
    n_sweeps: int,
    tol: float = 0.05,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `refine`, of rows that are observed in part: each by its observed features alone.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_features)
        Rows less the intercept.
    atoms : Tensor of shape (n_components, n_features)
        The dictionary.
    observed : bool Tensor of shape (n_rows, n_features)
        Entries of the rows that count.
    noise_variance, prior, start, n_sweeps, tol
        As in `refine`.

    Returns
    -------
    loc, scale, logit : Tensor of shape (n_rows, n_components)
        New tensors, on the device of the rows.
    """
    device, dtype = rows.device, rows.dtype
    loc, scale, logit = (_array(t).copy() for t in start)
    whole = observed.all(1)
    if whole.any():
        held = start[0][whole], start[1][whole], start[2][whole]
        products = rows[whole] @ atoms.T, atoms @ atoms.T
        found = refine(*products, noise_variance, prior, held, n_sweeps, tol)
        for state, part in zip((loc, scale, logit), found, strict=True):
            state[_array(whole)] = _array(part)
    x, w, on = (_array(t) for t in (rows, atoms, observed))
    sweep = _sweeps(prior, noise_variance, tol, n_sweeps, x.dtype)
    holed = np.flatnonzero(~_array(whole))

    def work(part: slice) -> None:
        for i in holed[part]:
            row, seen = slice(i, i + 1), np.compress(on[i], w, axis=1)
            norms = np.square(seen).sum(1)
            sweep(x[row, on[i]], seen, norms, True, loc[row], scale[row], logit[row])

    over_rows(work, len(holed))
    tensors = [torch.from_numpy(a).to(device=device, dtype=dtype) for a in (loc, scale, logit)]
    return tensors[0], tensors[1], tensors[2]


def _sweeps(
    prior: SlabPrior, noise_variance: float, tol: float, n_sweeps: int, dtype: np.dtype
) -> Callable[..., None]:
    """Return the sweeps of this slab, as a function of what differs between rows."""
    kernel: Any = _sweep_gaussian if prior.slab == "gaussian" else _sweep_laplace
    numbers = [dtype.type(v) for v in (noise_variance, prior.scale, prior.logit, tol)]
    return partial(kernel, *numbers, n_sweeps)


def _array(tensor: Tensor) -> NDArray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


@_compiled
def _sigmoid(logit, one):  # type: ignore[no-untyped-def]
    if logit < _SURELY_ZERO:
        return one - one
    return one / (one + math.exp(-logit))


# A row ``x``, ``atoms`` and the residual are held as their inner products with all atoms, and then
# ``values`` is None, or as the values that they have. None is a type, for which numba compiles all
# of this anew: a branch in the innermost loop would cost a fifth of the time.


@_compiled
def _begin(x, atoms, loc, logit, mean, residual, seen, one):  # type: ignore[no-untyped-def]
    """Means of a row's codes, and what those leave of it."""
    residual[:] = x
    seen[:] = _NEVER_SEEN
    for k in range(len(loc)):
        mean[k] = _sigmoid(logit[k], one) * loc[k]
        if mean[k] != 0:
            for j in range(len(x)):
                residual[j] -= mean[k] * atoms[k, j]


@_compiled
def _correlation(k, residual, atoms, values):  # type: ignore[no-untyped-def]
    """Inner product of an atom and the residual."""
    if values is None:
        return residual[k]
    total = residual[0] * atoms[k, 0]
    for j in range(1, len(residual)):
        total += residual[j] * atoms[k, j]
    return total


@_compiled
def _move(k, new, mean, residual, atoms):  # type: ignore[no-untyped-def]
    """Set one mean and bring the residual up to date."""
    before = mean[k]
    mean[k] = new
    # Between stored values, a step of float32 arrays is float32.
    step = mean[k] - before
    if step != 0:
        for j in range(len(residual)):
            residual[j] -= step * atoms[k, j]


@_compiled
def _sweep_gaussian(  # type: ignore[no-untyped-def]
    noise, prior_scale, prior_logit, tol, n_sweeps, x, atoms, norms, values, loc, scale, logit
):
    n_rows, n_components = loc.shape
    residual, mean, seen = np.empty_like(x[0]), np.empty_like(norms), np.empty_like(norms)
    # As in the sweeps of a Laplace slab: numbers of the rows' own type.
    one = x.dtype.type(1)
    half, sharpness = one / (one + one), one / noise
    variance, odds, deviation = np.empty_like(norms), np.empty_like(norms), np.empty_like(norms)
    gain = np.empty_like(norms)
    close = tol * np.sqrt(noise * norms)
    for k in range(n_components):
        variance[k] = 1 / (norms[k] / noise + 1 / prior_scale**2)
        odds[k] = prior_logit + 0.5 * math.log(variance[k] / prior_scale**2)
        deviation[k], gain[k] = math.sqrt(variance[k]), variance[k] * sharpness
    for i in range(n_rows):
        _begin(x[i], atoms, loc[i], logit[i], mean, residual, seen, one)
        for _ in range(n_sweeps):
            done = True
            for k in range(n_components):
                alone = _correlation(k, residual, atoms, values) + mean[k] * norms[k]
                if abs(alone - seen[k]) <= close[k]:
                    continue
                done = False
                seen[k] = alone
                u = gain[k] * alone
                loc[i, k], scale[i, k] = u, deviation[k]
                logit[i, k] = odds[k] + half * u * alone * sharpness
                _move(k, _sigmoid(logit[i, k], one) * u, mean, residual, atoms)
            if done:
                break


@_compiled
def _constant(u, b, decay, precision, rate, one):  # type: ignore[no-untyped-def]
    """ELBO of an open gate less that of a closed one, but for the prior's log-odds and the fit.

    Location u >= 0, scale b, ``decay`` exp(-u / b), ``precision`` of the likelihood along the
    atom, ``rate`` of the prior. What is left out, the fit, is linear in u.
    """
    half = one / (one + one)
    fit = -half * precision * u * u - precision * b * b
    return fit + math.log(b * rate) - rate * (u + b * decay) + one


@_compiled
def _newton_step(u, b, decay, pull, precision, rate, one):  # type: ignore[no-untyped-def]
    """Newton's step in (u, b) for pull * u + _constant(u, b), jointly concave, and its slope."""
    inverse = one / b
    ratio = u * inverse
    double = precision + precision
    slope_u = pull - precision * u - rate * (one - decay)
    slope_b = inverse - double * b - rate * decay * (one + ratio)
    bend = rate * decay * inverse
    uu = precision + bend
    ub = -bend * ratio
    bb = double + inverse * inverse + bend * ratio * ratio
    scale = one / (uu * bb - ub * ub)
    du = (bb * slope_u - ub * slope_b) * scale
    db = (uu * slope_b - ub * slope_u) * scale
    return du, db, du * slope_u + db * slope_b


@_compiled
def _sweep_laplace(  # type: ignore[no-untyped-def]
    noise, s, prior_logit, tol, n_sweeps, x, atoms, norms, values, loc, scale, logit
):
    n_rows, n_components = loc.shape
    # Numbers of the rows' own type: a literal would turn all of it to float64, at half the speed.
    one = x.dtype.type(1)
    zero, half, rate, sharpness = one - one, one / (one + one), one / s, one / noise
    least = x.dtype.type(0.01) * tol * tol
    residual, mean, seen = np.empty_like(x[0]), np.empty_like(norms), np.empty_like(norms)
    constant, decay = np.empty_like(norms), np.empty_like(norms)
    precision, close = norms / noise, tol * np.sqrt(noise * norms)
    # The best scale lies between that of a code at zero and that of one far from it.
    low, high, reach = np.empty_like(norms), np.empty_like(norms), np.empty_like(norms)
    for k in range(n_components):
        low[k] = 2 / (1 / s + math.sqrt(1 / s**2 + 8 * precision[k]))
        high[k] = 1 / math.sqrt(2 * precision[k] + _TINY)
        reach[k] = 1 / (precision[k] + _TINY)
    for i in range(n_rows):
        _begin(x[i], atoms, loc[i], logit[i], mean, residual, seen, one)
        for k in range(n_components):
            b = min(max(scale[i, k], low[k]), high[k])
            scale[i, k], decay[k] = b, math.exp(-abs(loc[i, k]) / b)
            constant[k] = _constant(abs(loc[i, k]), b, decay[k], precision[k], rate, one)
        for _ in range(n_sweeps):
            done = True
            for k in range(n_components):
                alone = _correlation(k, residual, atoms, values) + mean[k] * norms[k]
                if abs(alone - seen[k]) <= close[k]:
                    continue
                done = False
                u, b, pull = abs(loc[i, k]), scale[i, k], abs(alone) * sharpness
                if loc[i, k] * alone < zero:
                    # A location of the wrong sign is worse than none.
                    u, decay[k] = zero, one
                    constant[k] = _constant(u, b, one, precision[k], rate, one)
                du, db, promise = _newton_step(u, b, decay[k], pull, precision[k], rate, one)
                if promise < tol:
                    # What is left after this step is of the order of its square.
                    seen[k] = alone
                gain = pull * u + constant[k]
                right = pull * reach[k]
                for _ in range(_HALVINGS if promise > least else 0):
                    new_u = min(max(u + du, zero), right)
                    new_b = min(max(b + db, low[k]), high[k])
                    new_decay = math.exp(-new_u / new_b)
                    new_constant = _constant(new_u, new_b, new_decay, precision[k], rate, one)
                    new_gain = pull * new_u + new_constant
                    if new_gain >= gain:
                        u, b, gain = new_u, new_b, new_gain
                        decay[k], constant[k] = new_decay, new_constant
                        break
                    du, db = half * du, half * db
                loc[i, k], scale[i, k] = math.copysign(u, alone), b
                logit[i, k] = prior_logit + gain
                _move(k, _sigmoid(logit[i, k], one) * loc[i, k], mean, residual, atoms)
            if done:
                break
