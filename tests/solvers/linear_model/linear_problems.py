"""Random sparse linear models, rows drawn from them, and naive formulas for both."""

import math

import numpy as np

from sklearn_vsc.solvers.linear_model.maximisation import WhatIsLearned
from sklearn_vsc.solvers.linear_model.parameters import Slab, SparseLinear
from sklearn_vsc.solvers.linear_model.row_posteriors import Stops

# Sweeps until nothing moves any more.
CONVERGED = Stops(max_sweeps=5000, tol=1e-8, bound_tol=1e-10)


def random_model(
    n_components=3, n_features=6, n_dense=0, slab="laplace", *, seed=0, positive=False,
    freedom=math.inf, density=0.3,
):  # fmt: skip
    """Return a model with noise of all sizes."""
    rng = np.random.default_rng(seed)
    return SparseLinear(
        atoms=rng.standard_normal((n_components, n_features)),
        intercept=rng.standard_normal(n_features),
        noise=0.05 + 0.3 * rng.random(n_features),
        dense=0.6 * rng.standard_normal((n_dense, n_features)),
        density=density * (0.5 + rng.random(n_components)),
        slab=Slab(slab, 0.8, positive),
        freedom=freedom,
    )


def draw_rows(model, n_rows, *, seed=1, missing=0.0, contrast=None):
    """Draw rows; each entry is missing with the same probability."""
    rng = np.random.default_rng(seed)
    n_components, n_features = model.atoms.shape
    codes = rng.laplace(size=(n_rows, n_components), scale=model.slab.scale)
    codes = np.abs(codes) if model.slab.positive else codes
    codes *= rng.random(codes.shape) < model.density
    noise = rng.standard_normal((n_rows, n_features)) * np.sqrt(model.noise)
    noise += rng.standard_normal((n_rows, len(model.dense))) @ model.dense
    if not math.isinf(model.freedom):
        noise /= np.sqrt(rng.chisquare(model.freedom, (n_rows, 1)) / model.freedom)
    rows = codes @ model.atoms + noise
    if contrast is not None:
        rows *= contrast[:, None]
    rows += model.intercept
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows


def covariance(model):
    """Covariance of noise and dense columns."""
    return np.diag(model.noise) + model.dense.T @ model.dense


def learned(n_features, noise="per_feature", density="per_component", target=0.1):
    """Return what is learned, with floors far below everything."""
    return WhatIsLearned(noise, density, target, np.ones(n_features), np.full(n_features, 1e-8))


def log_prior(slab, density, z):
    """Log density of codes that are not zero, by the definition of each slab."""
    z, scale = np.abs(z), slab.scale
    if slab.name == "laplace":
        found = -z / scale - math.log(2 * scale)
    else:
        threshold = slab.threshold(np.asarray(density)) if slab.name == "thresholded" else 0.0
        found = -0.5 * ((z + threshold) / scale) ** 2 - math.log(math.sqrt(2 * math.pi) * scale)
        if slab.name == "thresholded":
            found = found - np.log(density)
    return found + math.log(2) if slab.positive else found
