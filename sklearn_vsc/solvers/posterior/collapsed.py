"""Compiled evidence of supports: a spike and slab with its Gaussian slab integrated out.

Given its support S, a row x is normal with covariance s2 I + s0^2 W_S' W_S, for noise of variance
s2 and a slab of variance s0^2. With c = s2 / s0^2 and M = W_S W_S' + c I, the matrix determinant
lemma and Woodbury's identity need only the Cholesky factor of M, which has the size of the support:

    log det = D log s2 + log det(M / c)
    quadratic form = (x' x - (W_S x)' M^-1 W_S x) / s2

Everything is computed in float64, since the two terms of the quadratic form may nearly cancel. For
a partly observed row, x and W hold only the observed features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows

_LOG_2PI = math.log(2 * math.pi)
# Only reordering of sums is allowed, which lets them be vectorised: NaN stays NaN.
_compiled = njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})


def log_evidence(
    rows: Tensor,
    atoms: Tensor,
    noise_variance: float,
    slab_scale: float,
    supports: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    """Return log p(x given S) for each row and each of its supports, with the codes integrated out.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_features)
        Rows, minus the intercept.
    atoms : Tensor of shape (n_components, n_features)
        The dictionary.
    noise_variance : float
        Variance of the Gaussian likelihood.
    slab_scale : float
        Standard deviation of a code that is on.
    supports : bool Tensor of shape (n_draws, n_rows, n_components)
        Which codes are on.
    observed : bool Tensor of shape (n_rows, n_features) or None
        Mask of the observed entries; None if all are observed.

    Returns
    -------
    log_evidence : Tensor of shape (n_draws, n_rows)
        In nats, including all constants; with the dtype and device of the rows.
    """
    if observed is not None:
        return torch.cat(
            [
                log_evidence(x, w, noise_variance, slab_scale, on)
                for x, w, on, _ in _restricted(rows, atoms, supports, observed)
            ],
            dim=1,
        )
    q, gram, on, ridge = _prepare(rows, atoms, noise_variance, slab_scale, supports)
    explained, log_det = np.empty(on.shape[:2]), np.empty(on.shape[:2])
    over_rows(lambda s: _evidence(q, gram, on, ridge, s.start, s.stop, explained, log_det), len(q))
    squares = rows.detach().cpu().double().square().sum(1).numpy()
    log_density = -0.5 * (
        rows.shape[1] * (_LOG_2PI + math.log(noise_variance))
        + log_det
        + (squares - explained) / noise_variance
    )
    return torch.from_numpy(log_density).to(rows)


def conditional_mean(
    rows: Tensor,
    atoms: Tensor,
    noise_variance: float,
    slab_scale: float,
    supports: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    """Return the mean of p(z given x, S): ridge regression of each row on each support's atoms.

    The parameters are the same as for `log_evidence`.

    Returns
    -------
    codes : Tensor of shape (n_draws, n_rows, n_components)
        Exactly zero off the support; with the dtype and device of the rows.
    """
    if observed is not None:
        means = rows.new_zeros(supports.shape)
        for i, (x, w, on, used) in enumerate(_restricted(rows, atoms, supports, observed)):
            means[:, i, used] = conditional_mean(x, w, noise_variance, slab_scale, on)[:, 0]
        return means
    q, gram, on, ridge = _prepare(rows, atoms, noise_variance, slab_scale, supports)
    codes = np.zeros(on.shape)
    over_rows(lambda s: _means(q, gram, on, ridge, s.start, s.stop, codes), len(q))
    return torch.from_numpy(codes).to(rows)


def _restricted(
    rows: Tensor, atoms: Tensor, supports: Tensor, observed: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield each row by itself, with its observed features and the atoms in any of its supports."""
    for i, seen in enumerate(observed):
        used = supports[:, i].any(0)
        yield rows[i : i + 1, seen], atoms[used][:, seen], supports[:, i : i + 1, used], used


def _prepare(
    rows: Tensor, atoms: Tensor, noise_variance: float, slab_scale: float, supports: Tensor
) -> tuple[NDArray, NDArray, NDArray, float]:
    """Return correlations, Gram matrix and supports as arrays, and the ridge."""
    x, w = (t.detach().cpu().double() for t in (rows, atoms))
    q, gram, on = (
        np.ascontiguousarray(t.numpy()) for t in (x @ w.T, w @ w.T, supports.detach().cpu())
    )
    return q, gram, on, noise_variance / slab_scale**2


@_compiled
def _largest(on, start, stop):  # type: ignore[no-untyped-def]
    """Return the size of the largest support of these rows."""
    most = 0
    for j in range(on.shape[0]):
        for i in range(start, stop):
            most = max(most, on[j, i].sum())
    return most


@_compiled
def _factor(q, gram, on, ridge, support, factor, half):  # type: ignore[no-untyped-def]
    """Write the Cholesky factor L of gram_SS + ridge I, and half = L^-1 q_S; return the size."""
    size = 0
    for k in range(len(on)):
        if on[k]:
            support[size] = k
            size += 1
    for a in range(size):
        row, k = factor[a], support[a]
        for b in range(a):
            other, total = factor[b], gram[k, support[b]]
            for t in range(b):
                total -= row[t] * other[t]
            row[b] = total / other[b]
        pivot, remainder = gram[k, k] + ridge, q[k]
        for t in range(a):
            pivot -= row[t] ** 2
            remainder -= row[t] * half[t]
        # No pivot of M is below the ridge, but with equal atoms rounding may make one negative.
        row[a] = math.sqrt(max(ridge, pivot))
        half[a] = remainder / row[a]
    return size


@_compiled
def _evidence(q, gram, on, ridge, start, stop, explained, log_det):  # type: ignore[no-untyped-def]
    most = _largest(on, start, stop)
    support, factor, half = np.empty(most, np.int64), np.empty((most, most)), np.empty(most)
    for i in range(start, stop):
        for j in range(on.shape[0]):
            size = _factor(q[i], gram, on[j, i], ridge, support, factor, half)
            square, logs = 0.0, 0.0
            for a in range(size):
                square += half[a] ** 2
                logs += math.log(factor[a, a] ** 2 / ridge)
            explained[j, i], log_det[j, i] = square, logs


@_compiled
def _means(q, gram, on, ridge, start, stop, codes):  # type: ignore[no-untyped-def]
    most = _largest(on, start, stop)
    support, factor, half = np.empty(most, np.int64), np.empty((most, most)), np.empty(most)
    for i in range(start, stop):
        for j in range(on.shape[0]):
            size = _factor(q[i], gram, on[j, i], ridge, support, factor, half)
            for a in range(size - 1, -1, -1):
                half[a] /= factor[a, a]
                codes[j, i, support[a]] = half[a]
                for t in range(a):
                    half[t] -= half[a] * factor[a, t]
