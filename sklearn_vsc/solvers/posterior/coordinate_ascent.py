"""Compiled coordinate ascent on the spike-and-slab mean-field posterior of a linear decoder.

One sweep visits the codes of a row in turn. With the others held fixed, the best posterior of a
code has a closed form for a Gaussian slab (Titsias and Lazaro-Gredilla 2011); for a Laplace slab
the ELBO is jointly concave in location and scale, and a visit takes a Newton step that is halved
until it helps. So no visit lowers the ELBO of its row. Rows are independent of each other. The
sweeps are compiled because 256 visits per sweep would be too slow as small tensor operations.

The residual of a row is stored as its inner products with all atoms, which a visit updates by way
of the Gram matrix. A partly observed row has its own Gram matrix, which costs more to compute than
the visits themselves: for such rows the residual itself is stored, and each visit costs one inner
product.
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

# Division by a noise variance of zero gives infinity, as in torch; training then reports that it
# diverged.
_compiled = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
# Below these log-odds the probability that a code is on, at most 3e-7, is taken as zero.
_SURELY_ZERO = -15.0
# Number of step sizes tried, each half the last; if none helps, the code waits for the next sweep.
_HALVINGS = 6
# Larger than any correlation, so that every code is visited in the first sweep.
_NEVER_SEEN = 1e30
# Keeps the bounds finite for atoms of norm zero.
_TINY = 1e-30


@dataclass(frozen=True)
class SlabPrior:
    """Prior of the codes: family and scale of the slab, and log-odds of an open gate."""

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
        Inner products of the rows (minus the intercept) and the atoms.
    gram : Tensor of shape (n_components, n_components)
        Inner products of the atoms.
    noise_variance : float
        Variance of the Gaussian likelihood.
    prior : SlabPrior
        Prior of the codes.
    start : tuple of three Tensors of shape (n_rows, n_components)
        Initial location and scale of the slab, and initial log-odds of the gate.
    n_sweeps : int
        Maximum number of sweeps.
    tol : float
        A code is visited again only once the residual without it has moved along its atom by more
        than this many standard deviations of the noise; a row is done when no code qualifies. The
        resulting loss in the ELBO is of the order of ``tol ** 2`` nats per code.

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
    """Do the same as `refine` for partly observed rows, using only their observed features.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_features)
        Rows, minus the intercept.
    atoms : Tensor of shape (n_components, n_features)
        The dictionary.
    observed : bool Tensor of shape (n_rows, n_features)
        Mask of the observed entries.
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
    incomplete = np.flatnonzero(~_array(whole))

    def work(part: slice) -> None:
        for i in incomplete[part]:
            row, seen = slice(i, i + 1), np.compress(on[i], w, axis=1)
            norms = np.square(seen).sum(1)
            sweep(x[row, on[i]], seen, norms, True, loc[row], scale[row], logit[row])

    over_rows(work, len(incomplete))
    tensors = [torch.from_numpy(a).to(device=device, dtype=dtype) for a in (loc, scale, logit)]
    return tensors[0], tensors[1], tensors[2]


def _sweeps(
    prior: SlabPrior, noise_variance: float, tol: float, n_sweeps: int, dtype: np.dtype
) -> Callable[..., None]:
    """Return the sweeps for this slab, as a function of the arguments that differ between rows."""
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


# A row ``x``, the ``atoms`` and the residual are given either as their inner products with all
# atoms, in which case ``values`` is None, or as plain values. Since None has its own type, numba
# compiles a separate version for each case: a branch in the innermost loop would cost a fifth of
# the time.


@_compiled
def _begin(x, atoms, loc, logit, mean, residual, seen, one):  # type: ignore[no-untyped-def]
    """Compute the means of a row's codes and the residual that they leave."""
    residual[:] = x
    seen[:] = _NEVER_SEEN
    for k in range(len(loc)):
        mean[k] = _sigmoid(logit[k], one) * loc[k]
        if mean[k] != 0:
            for j in range(len(x)):
                residual[j] -= mean[k] * atoms[k, j]


@_compiled
def _correlation(k, residual, atoms, values):  # type: ignore[no-untyped-def]
    """Return the inner product of an atom and the residual."""
    if values is None:
        return residual[k]
    total = residual[0] * atoms[k, 0]
    for j in range(1, len(residual)):
        total += residual[j] * atoms[k, j]
    return total


@_compiled
def _move(k, new, mean, residual, atoms):  # type: ignore[no-untyped-def]
    """Set one mean and update the residual."""
    before = mean[k]
    mean[k] = new
    # Computed from stored values, so that the step is float32 for float32 arrays.
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
    # Constants have the dtype of the rows; see the sweeps of the Laplace slab.
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
    """ELBO of an open gate minus a closed one, except for the prior's log-odds and the linear fit.

    The arguments are the location u >= 0, the scale b, ``decay`` exp(-u / b), the ``precision`` of
    the likelihood along the atom, and the ``rate`` of the prior. The term left out, from the fit,
    is linear in u.
    """
    half = one / (one + one)
    fit = -half * precision * u * u - precision * b * b
    return fit + math.log(b * rate) - rate * (u + b * decay) + one


@_compiled
def _newton_step(u, b, decay, pull, precision, rate, one):  # type: ignore[no-untyped-def]
    """Newton step in (u, b) for the concave pull * u + _constant(u, b), and the slope along it."""
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
    # Constants have the dtype of the rows: literals would make it all float64, at half the speed.
    one = x.dtype.type(1)
    zero, half, rate, sharpness = one - one, one / (one + one), one / s, one / noise
    least = x.dtype.type(0.01) * tol * tol
    residual, mean, seen = np.empty_like(x[0]), np.empty_like(norms), np.empty_like(norms)
    constant, decay = np.empty_like(norms), np.empty_like(norms)
    precision, close = norms / noise, tol * np.sqrt(noise * norms)
    # The best scale lies between its values for a code at zero and for a code far from zero.
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
                    # A location of the wrong sign is worse than zero.
                    u, decay[k] = zero, one
                    constant[k] = _constant(u, b, one, precision[k], rate, one)
                du, db, promise = _newton_step(u, b, decay[k], pull, precision[k], rate, one)
                if promise < tol:
                    # The gain that remains after this step is of the order of its square.
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
