"""Coordinate ascent never lowers the ELBO of a row and ends at a stationary point."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_vsc.latents import SpikeSlab, SpikeSlabPosterior, Thresholded
from sklearn_vsc.likelihoods import GaussianLikelihood
from sklearn_vsc.solvers.posterior.coordinate_ascent import SlabPrior, refine

NOISE = 0.09


def _problem(slab, dtype=torch.float64, n_rows=60, n_components=30, n_features=15):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    atoms = normal(n_components, n_features)
    # Sweeps with two tolerances may end at different optima, which some data show.
    mask = torch.rand(n_rows, n_components, generator=torch.Generator().manual_seed(1)) < 0.1
    codes = normal(n_rows, n_components) * mask
    rows = codes @ atoms + NOISE**0.5 * normal(n_rows, n_features)
    family = SpikeSlab(slab, prior_scale=1.3, density=0.1)
    return rows, atoms, family, family.posterior(normal(n_rows, 3, n_components))


def _refine(rows, atoms, family, q, n_sweeps, tol=0.0):
    prior = SlabPrior(family.slab_name, family.prior_scale, family.prior_logit)
    start = (q.loc, q.scale, q.logit)
    found = refine(rows @ atoms.T, atoms @ atoms.T, NOISE, prior, start, n_sweeps, tol)
    return SpikeSlabPosterior(family, *found)


def _likelihood(dtype):
    likelihood = GaussianLikelihood(NOISE, learned=False).to(dtype)
    likelihood.set_noise_variance(NOISE)  # not rounded to float32
    return likelihood


def _elbo(rows, atoms, q):
    likelihood = _likelihood(rows.dtype)
    error = (rows - q.mean @ atoms).square().sum(1) + q.variance @ atoms.square().sum(1)
    return (likelihood.log_prob_of_error(error, rows.shape[1]) - q.kl().sum(1)).detach()


@pytest.mark.parametrize("slab", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sweep_raises_the_elbo_of_every_row(slab, dtype):
    rows, atoms, family, q = _problem(slab, dtype)
    before = _elbo(rows, atoms, q)
    rounding = 300 * torch.finfo(dtype).eps
    for _ in range(12):
        q = _refine(rows, atoms, family, q, 1)
        after = _elbo(rows, atoms, q)
        assert (after >= before - rounding * (1 + before.abs())).all()
        before = after


@pytest.mark.parametrize("slab", ["gaussian", "laplace"])
def test_sweeps_end_at_a_stationary_point(slab):
    rows, atoms, family, q = _problem(slab, n_rows=5)
    q = _refine(rows, atoms, family, q, 20_000)
    parameters = [p.clone().requires_grad_() for p in (q.loc, q.scale, q.logit)]
    free = SpikeSlabPosterior(family, *parameters)
    likelihood = _likelihood(torch.float64)
    error = (rows - free.mean @ atoms).square().sum(1)
    error = error + free.variance @ atoms.square().sum(1)
    bound = likelihood.log_prob_of_error(error, rows.shape[1]) - free.kl().sum(1)
    gradients = torch.autograd.grad(bound.sum(), parameters)
    # Gradients with respect to location, scale and log-odds.
    for gradient in gradients:
        assert gradient.abs().max() < 1e-5


def test_the_posterior_of_a_single_atom_is_exact():
    """With one code and a Gaussian slab, the ELBO equals the log evidence."""
    generator = torch.Generator().manual_seed(1)
    atom = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    rows = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    family = SpikeSlab("gaussian", prior_scale=1.3, density=0.3)
    q = _refine(rows, atom, family, family.posterior(torch.zeros(50, 3, 1).double()), 1)
    identity = NOISE * torch.eye(4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    off = torch.distributions.MultivariateNormal(zero, identity).log_prob(rows)
    spread = identity + 1.3**2 * atom.T @ atom
    on = torch.distributions.MultivariateNormal(zero, spread).log_prob(rows)
    evidence = torch.logaddexp(np.log(0.7) + off, np.log(0.3) + on)
    assert_allclose(_elbo(rows, atom, q), evidence, rtol=1e-10)


def test_a_row_does_not_depend_on_the_other_rows():
    rows, atoms, family, q = _problem("laplace")
    together = _refine(rows, atoms, family, q, 7)
    for i in (0, 17, 59):
        alone = _refine(rows[i : i + 1], atoms, family, q.row(i), 7)
        # Matrix products round differently for one row and for sixty, and the sweeps pass it on.
        assert_allclose(alone.mean[0], together.mean[i], rtol=1e-6, atol=1e-8)


def test_a_gamma_threshold_is_equivalent_to_a_spike_and_slab():
    family = Thresholded("laplace", prior_scale=0.8, density=0.2, gamma_shape=3.0)
    heads = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(2)).double()
    q = family.posterior(heads)
    same = q.as_gated()
    assert_allclose(same.inclusion, q.inclusion, rtol=1e-10)
    assert_allclose(same.mean, q.mean, rtol=1e-10)
    assert_allclose(same.variance, q.variance, rtol=1e-10)
    assert_allclose(same.kl(), q.kl(), rtol=1e-9)


def test_a_coarse_tolerance_costs_little():
    for slab in ("gaussian", "laplace"):
        rows, atoms, family, q = _problem(slab)
        exact = _elbo(rows, atoms, _refine(rows, atoms, family, q, 10, tol=0.0))
        coarse = _elbo(rows, atoms, _refine(rows, atoms, family, q, 10, tol=0.05))
        assert (exact - coarse).mean() < 0.05
