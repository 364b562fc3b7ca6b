"""Gamma distributions of the threshold, against SciPy."""

import math

import numpy as np
import pytest
import torch
from mixed_measure import assert_mean, integral
from numpy.testing import assert_allclose
from scipy import stats

from sklearn_vsc.latents.gamma import gamma_kl, gamma_log_prob, half_normal_rule, sample_gamma

SETTINGS = [
    (3.0, 2.0, 3.0, 2.0),
    (1.2, 0.5, 3.0, 6.0),
    (40.0, 9.0, 3.0, 1.5),
    (2.5, 30.0, 0.7, 1.0),
]


def _tensors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize(("shape", "rate", "prior_shape", "prior_rate"), SETTINGS)
def test_kl_by_quadrature(shape, rate, prior_shape, prior_rate):
    q, p = stats.gamma(shape, scale=1 / rate), stats.gamma(prior_shape, scale=1 / prior_rate)
    cuts = q.ppf([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999])
    # Beyond this quantile SciPy's densities underflow, and the rest is negligible.
    expected = integral(
        lambda t: q.pdf(t) * (q.logpdf(t) - p.logpdf(t)), cuts, low=0.0, high=q.isf(1e-25)
    )
    kl = gamma_kl(*_tensors(shape, rate), prior_shape, prior_rate)
    assert_allclose(kl, expected, rtol=1e-9, atol=1e-12)


def test_kl_is_positive_unless_equal():
    prior_shape, prior_rate = 3.0, 1.5
    shape, rate = torch.cartesian_prod(*[torch.logspace(-3, 3, 31, dtype=torch.float64)] * 2).T
    assert (gamma_kl(shape, rate, prior_shape, prior_rate) > 0).all()
    equal = gamma_kl(*_tensors(prior_shape, prior_rate), prior_shape, prior_rate)
    assert_allclose(equal, 0, atol=1e-14)


def test_kl_does_not_depend_on_the_unit():
    kl = gamma_kl(*_tensors(2.0, 5.0), 3.0, 1.5)
    assert_allclose(gamma_kl(*_tensors(2.0, 5.0e3), 3.0, 1.5e3), kl, rtol=1e-13)


@pytest.mark.parametrize(("shape", "rate"), [(3.0, 2.0), (0.4, 9.0), (1.0, 1.0), (60.0, 0.1)])
def test_log_prob(shape, rate):
    values = np.geomspace(1e-6, 1e2, 20)
    found = gamma_log_prob(torch.from_numpy(values), *_tensors(shape, rate))
    assert_allclose(found, stats.gamma.logpdf(values, shape, scale=1 / rate), rtol=1e-11)
    # Plain numbers are not rounded to float32.
    from_numbers = gamma_log_prob(torch.from_numpy(values), shape, rate)
    assert_allclose(from_numbers, found, rtol=1e-13)


@pytest.mark.parametrize(("shape", "rate"), [(3.0, 2.0), (0.4, 9.0), (60.0, 0.1)])
def test_draws(shape, rate):
    parameters = [p.expand(100_000) for p in _tensors(shape, rate)]
    draws = sample_gamma(*parameters, torch.Generator().manual_seed(0))
    assert stats.kstest(draws, stats.gamma(shape, scale=1 / rate).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("shape", "rate"), [(3.0, 2.0), (0.5, 4.0)])
def test_gradients_of_draws_are_unbiased(shape, rate):
    """E t = a / r and E t^2 = a (a + 1) / r^2, and their derivatives."""
    a, r = (p.expand(100_000).clone().requires_grad_() for p in _tensors(shape, rate))
    draws = sample_gamma(a, r, torch.Generator().manual_seed(1))
    first = torch.autograd.grad(draws.sum(), [a, r], retain_graph=True)
    second = torch.autograd.grad(draws.square().sum(), [a, r])
    assert_mean(first[0], 1 / rate)
    assert_mean(first[1], -shape / rate**2)
    assert_mean(second[0], (2 * shape + 1) / rate**2)
    assert_mean(second[1], -2 * shape * (shape + 1) / rate**3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_underflowing_draws_keep_finite_densities_and_gradients(dtype):
    shape = torch.full((1000,), 1e-3, dtype=dtype, requires_grad=True)
    rate = torch.full((1000,), 1e3, dtype=dtype, requires_grad=True)
    draws = sample_gamma(shape, rate, torch.Generator().manual_seed(2))
    assert (draws > 0).all()
    density = gamma_log_prob(draws, 3.0, 3.0) - gamma_log_prob(draws, shape, rate)
    assert density.isfinite().all()
    for gradient in torch.autograd.grad(density.sum(), [shape, rate]):
        assert gradient.isfinite().all()


def test_half_normal_rule():
    nodes, weights = half_normal_rule(torch.zeros((), dtype=torch.float64))
    assert_allclose(weights.sum(), 1, rtol=1e-13)
    assert_allclose(weights @ nodes, math.sqrt(2 / math.pi), rtol=1e-13)
    assert_allclose(weights @ nodes**4, 3, rtol=1e-12)
    assert_allclose(weights @ torch.cos(2 * nodes), math.exp(-2), rtol=1e-12)
