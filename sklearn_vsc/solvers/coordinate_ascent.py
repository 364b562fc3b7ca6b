"""Compiled coordinate ascent on the mean-field posterior of a spike and slab, linear decoder.

One sweep visits the codes of a row in turn. With the others held, the best law of a code has a
closed form for a Gaussian slab (Titsias and Lazaro-Gredilla 2011) and one for each of its two
parameters in turn for a Laplace slab, so that no visit lowers the ELBO of its row. Rows are
independent of each other. numba is a dependency because 256 visits a sweep are out of reach of
small tensor operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from ._rows import over_rows

# Below these log-odds a code is as good as surely zero: 3e-7.
_SURELY_ZERO = -15.0
# Newton steps for each parameter of a Laplace slab at a visit; the next visit goes on from there.
_NEWTON_STEPS = 3


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
    tol: float = 1e-5,
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
        A row is done when no posterior mean moves by more, in units of the slab's scale.

    Returns
    -------
    loc, scale, logit : Tensor of shape (n_rows, n_components)
        New tensors, on the device of the correlations.
    """
    device, dtype = correlations.device, correlations.dtype
    q, g = (_array(t) for t in (correlations, gram))
    loc, scale, logit = (_array(t).copy() for t in start)
    norms = np.ascontiguousarray(np.diag(g))
    numbers = [q.dtype.type(v) for v in (noise_variance, prior.scale, prior.logit, tol)]
    kernel: Any = _sweep_gaussian if prior.slab == "gaussian" else _sweep_laplace

    def work(rows: slice) -> None:
        kernel(q[rows], g, norms, *numbers, n_sweeps, loc[rows], scale[rows], logit[rows])

    over_rows(work, len(q))
    found = [torch.from_numpy(a).to(device=device, dtype=dtype) for a in (loc, scale, logit)]
    return found[0], found[1], found[2]


def _array(tensor: Tensor) -> NDArray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


@njit(cache=True, nogil=True, fastmath=True)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    if x < _SURELY_ZERO:
        return 0.0 * x
    return 1 / (1 + math.exp(-x))


@njit(cache=True, nogil=True, fastmath=True)
def _residual_correlations(q, gram, mean, residual):  # type: ignore[no-untyped-def]
    """Correlations of the atoms with what the current means leave of the row."""
    residual[:] = q
    for k in range(len(q)):
        if mean[k] != 0:
            for j in range(len(q)):
                residual[j] -= mean[k] * gram[k, j]


@njit(cache=True, nogil=True, fastmath=True)
def _move(k, new, mean, residual, gram):  # type: ignore[no-untyped-def]
    """Set one mean and bring the residual correlations up to date; return the step."""
    step = new - mean[k]
    if step != 0:
        for j in range(len(mean)):
            residual[j] -= step * gram[k, j]
        mean[k] = new
    return abs(step)


@njit(cache=True, nogil=True, fastmath=True)
def _sweep_gaussian(  # type: ignore[no-untyped-def]
    q, gram, norms, noise, prior_scale, prior_logit, tol, n_sweeps, loc, scale, logit
):
    n_rows, n_components = q.shape
    residual, mean = np.empty_like(q[0]), np.empty_like(q[0])
    variance, odds = np.empty_like(q[0]), np.empty_like(q[0])
    for k in range(n_components):
        variance[k] = 1 / (norms[k] / noise + 1 / prior_scale**2)
        odds[k] = prior_logit + 0.5 * math.log(variance[k] / prior_scale**2)
    for i in range(n_rows):
        for k in range(n_components):
            mean[k] = _sigmoid(logit[i, k]) * loc[i, k]
        _residual_correlations(q[i], gram, mean, residual)
        for _ in range(n_sweeps):
            largest = 0.0 * noise
            for k in range(n_components):
                alone = residual[k] + mean[k] * norms[k]
                loc[i, k] = variance[k] * alone / noise
                scale[i, k] = math.sqrt(variance[k])
                logit[i, k] = odds[k] + loc[i, k] ** 2 / (2 * variance[k])
                new = _sigmoid(logit[i, k]) * loc[i, k]
                largest = max(largest, _move(k, new, mean, residual, gram))
            if largest <= tol * prior_scale:
                break


@njit(cache=True, nogil=True, fastmath=True)
def _best_loc(loc, scale, alone, norm, noise, prior_scale):  # type: ignore[no-untyped-def]
    """Location >= 0 of a Laplace slab with its scale held; ``alone`` >= 0.

    The slope of the ELBO falls in the location and is convex, so Newton's steps land to the
    left of its root and never pass it again.
    """
    left = max(0.0 * alone, (alone - noise / prior_scale) / norm)
    for _ in range(_NEWTON_STEPS):
        decay = math.exp(-loc / scale)
        slope = (alone - norm * loc) / noise - (1 - decay) / prior_scale
        loc = max(left, loc + slope / (norm / noise + decay / (prior_scale * scale)))
    return loc


@njit(cache=True, nogil=True, fastmath=True)
def _best_scale(loc, norm, noise, prior_scale):  # type: ignore[no-untyped-def]
    """Scale of a Laplace slab with its location >= 0 held.

    The root of 1 / b - 2 norm b / noise - exp(-loc / b) (1 + loc / b) / prior_scale lies between
    its values for loc = 0 and for loc -> infinity; bisected Newton in b.
    """
    curvature = 2 * norm / noise
    high = 1 / math.sqrt(curvature)
    low = 2 / (1 / prior_scale + math.sqrt(1 / prior_scale**2 + 4 * curvature))
    b = high
    for _ in range(2 * _NEWTON_STEPS):
        ratio = loc / b
        decay = math.exp(-ratio) / prior_scale
        value = 1 - curvature * b**2 - decay * (b + loc)
        if value > 0:
            low = b
        else:
            high = b
        slope = -2 * curvature * b - decay * (1 + ratio + ratio**2)
        b -= value / slope
        if not low <= b <= high:
            b = 0.5 * (low + high)
    return b


@njit(cache=True, nogil=True, fastmath=True)
def _laplace_gain(loc, scale, alone, norm, noise, prior_scale):  # type: ignore[no-untyped-def]
    """ELBO of an open gate less that of a closed one, prior log-odds aside; loc, alone >= 0."""
    fit = (alone * loc - 0.5 * norm * (loc**2 + 2 * scale**2)) / noise
    kl = (
        math.log(prior_scale / scale)
        + loc / prior_scale
        + scale / prior_scale * math.exp(-loc / scale)
        - 1
    )
    return fit - kl


@njit(cache=True, nogil=True, fastmath=True)
def _sweep_laplace(  # type: ignore[no-untyped-def]
    q, gram, norms, noise, prior_scale, prior_logit, tol, n_sweeps, loc, scale, logit
):
    n_rows, n_components = q.shape
    residual, mean = np.empty_like(q[0]), np.empty_like(q[0])
    idle_scale, idle_logit = np.empty_like(q[0]), np.empty_like(q[0])
    zero = 0.0 * noise
    for k in range(n_components):
        idle_scale[k] = _best_scale(zero, norms[k], noise, prior_scale)
        idle_logit[k] = prior_logit + _laplace_gain(
            zero, idle_scale[k], zero, norms[k], noise, prior_scale
        )
    for i in range(n_rows):
        for k in range(n_components):
            mean[k] = _sigmoid(logit[i, k]) * loc[i, k]
        _residual_correlations(q[i], gram, mean, residual)
        for _ in range(n_sweeps):
            largest = zero
            for k in range(n_components):
                alone = residual[k] + mean[k] * norms[k]
                size = abs(alone)
                # No location can gain more than an unpenalised fit does.
                if prior_logit + 0.5 * size**2 / (norms[k] * noise) < _SURELY_ZERO:
                    loc[i, k], scale[i, k], logit[i, k] = zero, idle_scale[k], idle_logit[k]
                else:
                    # A location of the wrong sign is worse than none.
                    u = abs(loc[i, k]) if loc[i, k] * alone > 0 else zero
                    b = scale[i, k]
                    gain = _laplace_gain(u, b, size, norms[k], noise, prior_scale)
                    new_u, new_b = u, b
                    for _ in range(2):
                        new_u = _best_loc(new_u, new_b, size, norms[k], noise, prior_scale)
                        new_b = _best_scale(new_u, norms[k], noise, prior_scale)
                    new_gain = _laplace_gain(new_u, new_b, size, norms[k], noise, prior_scale)
                    if new_gain > gain:
                        u, b, gain = new_u, new_b, new_gain
                    loc[i, k] = math.copysign(u, alone)
                    scale[i, k] = b
                    logit[i, k] = prior_logit + gain
                new = _sigmoid(logit[i, k]) * loc[i, k]
                largest = max(largest, _move(k, new, mean, residual, gram))
            if largest <= tol * prior_scale:
                break
