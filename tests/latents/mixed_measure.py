"""References by quadrature: integrals against a point mass at zero plus a density."""

import math
from itertools import pairwise

import numpy as np
import torch
from scipy import integrate, stats

from sklearn_vsc.latents import Draws

# Tighter than closed forms are tested for, looser than quadrature can reach.
_RTOL = 1e-11


def integral(density, points=(), low=-np.inf, high=np.inf):
    """Integral of a scalar function, split at the points where it has a kink or a peak."""
    cuts = [low, *sorted({p for p in points if low < p < high}), high]
    return math.fsum(
        integrate.quad(density, a, b, epsabs=1e-14, epsrel=_RTOL, limit=200)[0]
        for a, b in pairwise(cuts)
    )


def posterior_integrals(family, q, log_slab, functions):
    """Integrals of functions of z under each distribution of a posterior.

    The posterior's sub-density away from zero and its mass at zero follow from the prior's and
    from ``log_ratio``, so that the distribution integrated is the one that importance weights use.

    Parameters
    ----------
    family : LatentFamily
    q : LatentPosterior
    log_slab : callable
        Log sub-density of non-zero codes under the prior, by SciPy.
    functions : callable
        ``functions(z, log_ratio)`` gives values of shape (n_functions, n_rows, n_components)
        for one number z.

    Returns
    -------
    integrals : ndarray of shape (n_functions, n_rows, n_components)
    mass_at_zero : ndarray of shape (n_rows, n_components)
    """
    shape = q.mean.shape

    def log_ratio(z, active):
        code = torch.full((1, *shape), z, dtype=torch.float64)
        draws = Draws(code, torch.full_like(code, active, dtype=torch.bool))
        return q.log_ratio(draws)[0].numpy()

    def at(z):
        ratio = log_ratio(z, True)
        density = np.exp(log_slab(z) - ratio)
        # Far out, where the density of the posterior underflows, the log ratio may be infinite.
        return np.where(density > 0, density * functions(z, np.nan_to_num(ratio)), 0)

    with torch.no_grad():
        draws = q.rsample(q.noise(4000, torch.Generator().manual_seed(0))).code
        # Quantiles tell the adaptive rule where to look; the densities have their kinks at zero
        # and at the location.
        quantiles = draws.quantile(torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64), dim=0)
        locations = getattr(q, "loc", quantiles)
        slabs, _ = integrate.quad_vec(
            at,
            -np.inf,
            np.inf,
            epsabs=1e-13,
            epsrel=_RTOL,
            norm="max",
            limit=2000,
            points=sorted({0.0, *quantiles.flatten().tolist(), *locations.flatten().tolist()}),
        )
        ratio = log_ratio(0.0, False)
        mass = (1 - family.prior_inclusion) * np.exp(-ratio)
    return slabs + mass * functions(0.0, ratio), mass


def log_evidence(log_slab, prior_inclusion, x, atom, noise_variance):
    """Log p(x) of x = z * atom + noise for one latent z, by quadrature."""
    direction = float(x @ atom / (atom @ atom))
    width = math.sqrt(noise_variance / (atom @ atom))

    def likelihood(z):
        return math.exp(stats.norm.logpdf(x, z * atom, math.sqrt(noise_variance)).sum())

    points = (0.0, direction - 6 * width, direction, direction + 6 * width)
    slab = integral(lambda z: math.exp(log_slab(z)) * likelihood(z), points)
    return math.log((1 - prior_inclusion) * likelihood(0.0) + slab)


def assert_mean(sample, expected, *, sigmas=4.5, axis=0):
    """Assert by z-test that draws along the first axis have the expected mean."""
    sample, expected = np.asarray(sample, dtype=np.float64), np.asarray(expected)
    error = sample.mean(axis) - expected
    scale = sample.std(axis, ddof=1) / math.sqrt(sample.shape[axis])
    z = np.abs(error) / np.maximum(scale, 1e-300)
    exact = np.isclose(error, 0, rtol=0, atol=1e-12 * (1 + np.abs(expected)))
    assert np.all((z < sigmas) | exact), f"{z.max():.1f} standard errors off by {error}"
