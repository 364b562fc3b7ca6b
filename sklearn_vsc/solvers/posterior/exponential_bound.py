"""Lower bound on log p(x) with non-negative codes.

The model is z_k ~ Exponential(mean b), x given z ~ N(z V, s2 I), with alpha = s2 / b, so that the
non-negative lasso code at alpha is its posterior mode. The posterior is approximated by a product
of one distribution for each code. With the others held fixed, the best of all distributions of
code k is a normal distribution truncated to z >= 0, with density

    exp(h z - a z^2 / 2) / Z(h),    a = ||v_k||^2 / s2,
    h = v_k'(x - sum over j != k of m_j v_j) / s2 - 1 / b,

where m_j are the means of the other codes. A sweep gives each code its best ``slope`` h in turn,
so that no visit lowers the bound; the first sweep starts from the lasso code. As a function of the
means the bound is concave. It has no local maxima, and the result does not depend on the start.
Where entries of x are missing, the likelihood covers only the observed entries, and all inner
products sum over them alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri_exp
from torch import Tensor

from .._rows import over_rows
from ..missing import observed_residual
from .laplace_bound import atom_energies

_compiled: Any = njit(cache=True, nogil=True, error_model="numpy")
# Vector instructions need sums that may be reordered; infinity must stay valid elsewhere.
_compiled_sum: Any = njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
# Most rows take 10 to 40 sweeps; with nearly collinear atoms some are cut off, at a valid bound.
_MAX_SWEEPS = 300
# Where h / sqrt(a) is below minus ``_FAR``, the usual formulas of the moments cancel. A continued
# fraction with ``_TERMS`` terms has a relative error below 1e-12 there, and half as many are enough
# from twice as far.
_FAR = 5.0
_TERMS = 24
# Where h / sqrt(a) is below this, draws are exponential: both formulas are then exact to 1e-6.
_EXPONENTIAL = -1e3


@dataclass(frozen=True)
class ExponentialModel:
    """The generative model whose posterior mode is the non-negative lasso code at ``alpha``.

    Attributes
    ----------
    alpha : float
        Weight of the l1 norm; positive.
    noise_variance : float
        Variance s2 of the observation noise.
    """

    alpha: float
    noise_variance: float

    @property
    def rate(self) -> float:
        """Rate 1 / b of the exponential prior of each code."""
        return self.alpha / self.noise_variance


@dataclass(frozen=True)
class Factors:
    """Posteriors of the codes of rows: normal distributions truncated to z >= 0.

    Attributes
    ----------
    slopes : Tensor of shape (n_rows, n_components)
        h, the slope of the log density at zero.
    precisions : Tensor of shape (n_rows or 1, n_components)
        a, minus the second derivative of the log density.
    means, variances : Tensor of shape (n_rows, n_components)
        Moments.
    costs : Tensor of shape (n_rows, n_components)
        What each code takes off the bound: its divergence, and the expected error that comes from
        its variance.
    """

    slopes: Tensor
    precisions: Tensor
    means: Tensor
    variances: Tensor
    costs: Tensor

    @property
    def divergences(self) -> Tensor:
        """Kullback-Leibler divergence of each posterior from the prior, in nats."""
        return self.costs - 0.5 * self.precisions * self.variances

    def draw(self, row: int, exponentials: NDArray) -> NDArray:
        """Turn standard exponential draws, (n_draws, n_components), into codes of a row."""
        h = self.slopes[row].numpy()
        root = self.precisions[row % len(self.precisions)].sqrt().numpy()
        near = h > _EXPONENTIAL * root
        # The survival function of a code is Phi(t - z sqrt(a)) / Phi(t), with t = h / sqrt(a), and
        # a standard exponential variable is minus the log of a uniform one.
        t = np.where(near, h, 0) / np.where(near, root, 1)
        codes = (t - ndtri_exp(log_ndtr(t) - exponentials)) / np.where(near, root, 1)
        # Rounding can make the smallest draws negative.
        return np.where(near, np.maximum(codes, 0), exponentials / np.where(near, 1, -h))


def best_factors(
    X: Tensor,
    start: Tensor,
    dictionary: Tensor,
    model: ExponentialModel,
    tol: float = 1e-4,
) -> Factors:
    """Return the posteriors that maximise the bound of each row.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features), float64
        Rows; NaN is a missing entry.
    start : Tensor of shape (n_rows, n_components), float64
        Non-negative means to start from, such as the lasso codes.
    dictionary : Tensor of shape (n_components, n_features), float64
        Atoms, of any norm.
    model : ExponentialModel
        Generative model.
    tol : float, default=1e-4
        A code is visited again once the best slope has moved by more than this, in units of
        sqrt(a). The loss in the bound is of the order of ``tol ** 2`` nats per code.

    Returns
    -------
    factors : Factors
    """
    rows, atoms, means = X.numpy(), dictionary.contiguous().numpy(), start.numpy().copy()
    slopes = np.empty_like(means)
    constants = _MAX_SWEEPS, tol, model.noise_variance, model.rate
    missing = np.isnan(rows).any(1)
    complete, incomplete = np.flatnonzero(~missing), np.flatnonzero(missing)
    norms = atom_energies(dictionary).numpy()
    # A visit adds up as many numbers as there are atoms, or twice as many as there are features.
    products = len(atoms) <= 4 * rows.shape[1]
    if products:
        data, gram = torch.from_numpy(rows[complete]) @ dictionary.T, dictionary @ dictionary.T
        whole = data.numpy(), gram.numpy(), norms, None
    else:
        whole = rows[complete], atoms, norms, True

    def settle(part: slice) -> None:
        chosen = complete[part]
        found = means[chosen], slopes[chosen]
        _settle(*constants, whole[0][part], *whole[1:], *found)
        means[chosen], slopes[chosen] = found

    def settle_incomplete(part: slice) -> None:
        for i in incomplete[part]:
            row, seen = slice(i, i + 1), ~np.isnan(rows[i])
            x, there = (np.compress(seen, part, axis=1) for part in (rows[row], atoms))
            problem = x, there, np.square(there).sum(1), True
            _settle(*constants, *problem, means[row], slopes[row])

    over_rows(settle, len(complete))
    over_rows(settle_incomplete, len(incomplete))
    observed = torch.from_numpy(~np.isnan(rows)) if len(incomplete) else None
    energies = atom_energies(dictionary, observed).reshape(-1, len(atoms))
    return _with_moments(torch.from_numpy(slopes), energies / model.noise_variance, model.rate)


def _with_moments(slopes: Tensor, precisions: Tensor, rate: float) -> Factors:
    """Return the factors of given parameters."""
    moments = tuple(torch.empty_like(slopes) for _ in range(3))
    arrays = [tensor.numpy() for tensor in moments]
    _moments(slopes.numpy(), precisions.sqrt().numpy(), rate, *arrays)
    return Factors(slopes, precisions, *moments)


def lower_bounds(
    X: Tensor, factors: Factors, dictionary: Tensor, model: ExponentialModel
) -> Tensor:
    """Return the lower bound on log p(x) of each row, in nats.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features), float64
        Rows; NaN is a missing entry.
    factors : Factors
        Posteriors of their codes; the bound is valid for any.
    dictionary : Tensor of shape (n_components, n_features), float64
        Atoms.
    model : ExponentialModel
        Generative model.

    Returns
    -------
    bounds : Tensor of shape (n_rows,)
    """
    s2 = model.noise_variance
    energy = observed_residual(X, factors.means, dictionary).square().sum(1)
    normaliser = 0.5 * math.log(2 * math.pi * s2) * (~X.isnan()).sum(1).to(X)
    return -normaliser - energy / (2 * s2) - factors.costs.sum(1)


def noise_variance_update(
    X: Tensor, factors: Factors, dictionary: Tensor, model: ExponentialModel
) -> float:
    """Return the noise variance that maximises the mean bound of rows with these posteriors.

    The prior scale b = s2 / alpha changes with it. With the best posteriors for the current noise
    variance, a fixed point maximises the bound.
    """
    energy = observed_residual(X, factors.means, dictionary).square().sum()
    spread = model.noise_variance * (factors.precisions * factors.variances).sum()
    n_observed, n_codes = int((~X.isnan()).sum()), factors.means.numel()
    expected = 0.5 * float(energy + spread) + model.alpha * float(factors.means.sum())
    return expected / (0.5 * n_observed + n_codes)


# --- compiled loops


@_compiled
def _settle(  # type: ignore[no-untyped-def]
    n_sweeps, tol, noise, rate, x, atoms, norms, values, mean, slope
):
    """Sweep over the codes of each row until no slope moves.

    A row ``x``, the ``atoms`` and the residual are given either as their inner products with all
    atoms, in which case ``values`` is None, or as plain values.
    """
    residual, seen = np.empty(x.shape[1]), np.empty_like(norms)
    root = np.sqrt(norms / noise)
    close = tol * noise * root
    for i in range(len(x)):
        residual[:] = x[i]
        seen[:] = np.inf
        for k in range(len(norms)):
            if mean[i, k] != 0:
                _add(residual, -mean[i, k], atoms[k])
        for _ in range(n_sweeps):
            done = True
            for k in range(len(norms)):
                alone = residual[k] if values is None else _product(residual, atoms[k])
                alone += mean[i, k] * norms[k]
                if abs(alone - seen[k]) <= close[k]:
                    continue
                done = False
                seen[k] = alone
                slope[i, k] = alone / noise - rate
                step = _mean(slope[i, k], root[k]) - mean[i, k]
                mean[i, k] += step
                _add(residual, -step, atoms[k])
            if done:
                break


@_compiled_sum
def _product(a, b):  # type: ignore[no-untyped-def]
    total = a[0] * b[0]
    for j in range(1, len(a)):
        total += a[j] * b[j]
    return total


@_compiled_sum
def _add(total, factor, a):  # type: ignore[no-untyped-def]
    for j in range(len(total)):
        total[j] += factor * a[j]


@_compiled
def _tail(ratio):  # type: ignore[no-untyped-def]
    """Return w_1 and w_2 of the continued fraction w_n = 1 / (1 + (n + 1) ratio w_{n + 1})."""
    above, below = 1.0, 1.0
    # As a fraction of two numbers, each term costs no division.
    for n in range(_TERMS if ratio * _FAR**2 > 0.25 else _TERMS // 2, 2, -1):
        above, below = below, below + n * ratio * above
    return below / (below + 2 * ratio * above), above / below


@_compiled
def _hazard(t):  # type: ignore[no-untyped-def]
    """Return phi(t) / Phi(t)."""
    return math.sqrt(2 / math.pi) * math.exp(-0.5 * t * t) / math.erfc(-t * math.sqrt(0.5))


@_compiled
def _mean(slope, root):  # type: ignore[no-untyped-def]
    """Return the mean of a factor; ``root`` is the square root of its precision."""
    if slope < -_FAR * root:
        # Also where the precision is zero, and the factor exponential.
        return _tail((root / slope) ** 2)[0] / -slope
    t = slope / root
    return (t + _hazard(t)) / root


@_compiled
def _moments(slope, root, rate, mean, variance, cost):  # type: ignore[no-untyped-def]
    for i in range(slope.shape[0]):
        for k in range(slope.shape[1]):
            h, r = slope[i, k], root[i % len(root), k]
            if h < -_FAR * r:
                first, second = _tail((r / h) ** 2)
                m = first / -h
                variance[i, k] = m * (2 * second - first) / -h
                cost[i, k] = (rate + h) * m - 0.5 * (r * m) ** 2 + math.log((r * r * m - h) / rate)
            else:
                t = h / r
                hazard = _hazard(t)
                m = (t + hazard) / r
                variance[i, k] = (1 - hazard * (t + hazard)) / (r * r)
                # The log of Z, without t^2 / 2, which cancels.
                log_z = math.log(math.sqrt(math.pi / 2) * math.erfc(-t * math.sqrt(0.5)) / r)
                cost[i, k] = rate * m - 0.5 * hazard * hazard - math.log(rate) - log_z
            mean[i, k] = m
