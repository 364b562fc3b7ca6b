import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from sklearn_vsc.likelihoods import BernoulliLikelihood, GaussianLikelihood


def _normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _gaussian(noise_variance, learned=False):
    likelihood = GaussianLikelihood(noise_variance, learned=learned).double()
    likelihood.set_noise_variance(noise_variance)
    return likelihood


# --- Gaussian


@pytest.mark.parametrize("noise_variance", [1e-4, 0.25, 1.0, 40.0])
def test_gaussian_log_density_has_every_constant(noise_variance):
    x, output = _normal(4, 6), _normal(3, 4, 6, seed=1)
    expected = stats.norm.logpdf(x, output, math.sqrt(noise_variance)).sum(-1)
    found = _gaussian(noise_variance).log_prob(x, output)
    assert found.shape == (3, 4)
    assert_allclose(found, expected, rtol=1e-12)


def test_gaussian_log_density_is_normalised():
    likelihood = _gaussian(0.3)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    density = likelihood.log_prob(grid, torch.full((1,), 0.7, dtype=torch.float64)).exp()
    assert_allclose(torch.trapezoid(density, grid[:, 0]), 1, rtol=1e-12)


def test_gaussian_expectation_of_the_log_density():
    """It depends only on the expected squared error."""
    likelihood, x = _gaussian(0.3), _normal(1, 5)
    mean, deviation = _normal(1, 5, seed=1), 0.4
    outputs = mean + deviation * _normal(200_000, 1, 5, seed=2)
    squared_error = (x - mean).square().sum(-1) + 5 * deviation**2
    log_probs = likelihood.log_prob(x, outputs)
    error = log_probs.mean() - likelihood.log_prob_of_error(squared_error, 5)
    assert abs(error) < 4.5 * log_probs.std() / math.sqrt(len(log_probs))
    assert_allclose(
        likelihood.log_prob_of_error((x - mean).square().sum(-1), 5), likelihood.log_prob(x, mean)
    )


def test_gaussian_log_density_shifts_with_the_unit():
    """Another unit subtracts D log c, if the noise has that unit too."""
    x, output, c = _normal(4, 6), _normal(4, 6, seed=1), 1e3
    moved = _gaussian(0.3 * c**2).log_prob(c * x, c * output)
    assert_allclose(moved, _gaussian(0.3).log_prob(x, output) - 6 * math.log(c), rtol=1e-12)


def test_gaussian_best_variance_is_the_mean_squared_error():
    x, output = _normal(50, 4), _normal(50, 4, seed=1)
    best = (x - output).square().mean().item()
    likelihood = _gaussian(best, learned=True)
    likelihood.log_prob(x, output).mean().backward()
    assert_allclose(likelihood.log_noise_variance.grad, 0, atol=1e-12)
    for other in (0.9 * best, 1.1 * best):
        log_prob = _gaussian(other).log_prob(x, output).mean()
        assert log_prob < likelihood.log_prob(x, output).mean()


def test_only_a_learned_variance_is_trained_and_has_a_floor():
    assert GaussianLikelihood(0.5).log_noise_variance.requires_grad
    assert not GaussianLikelihood(0.5, learned=False).log_noise_variance.requires_grad
    learned, fixed = _gaussian(1.0, learned=True), _gaussian(1e-9)
    assert_allclose(fixed.noise_variance, 1e-9, rtol=1e-12)
    learned.set_noise_variance(0.0)
    assert 0 < learned.noise_variance < 1e-3
    with torch.no_grad():
        learned.log_noise_variance.fill_(-1e4)
    assert 0 < learned.noise_variance < 1e-3
    assert learned.log_prob(_normal(1, 3), _normal(1, 3, seed=1)).isfinite().all()


def test_gaussian_draws():
    likelihood, output = _gaussian(0.3), _normal(2, 3)
    assert torch.equal(likelihood.mean(output), output)
    generator = torch.Generator().manual_seed(3)
    draws = likelihood.sample(output.expand(50_000, 2, 3), generator) - output
    assert draws.dtype == torch.float64
    pvalue = stats.kstest(draws.flatten(), stats.norm(scale=math.sqrt(0.3)).cdf).pvalue
    assert pvalue > 1e-4


# --- Bernoulli


def test_bernoulli_log_probability():
    log_odds = _normal(3, 4, 6, seed=1)
    x = (_normal(4, 6) > 0).double()
    expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-log_odds.numpy()))).sum(-1)
    found = BernoulliLikelihood().log_prob(x, log_odds)
    assert found.shape == (3, 4)
    assert_allclose(found, expected, rtol=1e-12)


def test_bernoulli_probabilities_sum_to_one():
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    log_probs = BernoulliLikelihood().log_prob(x, _normal(4).expand_as(x))
    assert_allclose(log_probs.exp().sum(), 1, rtol=1e-13)


def test_bernoulli_log_probability_of_fractional_rows_is_the_cross_entropy():
    x, log_odds = torch.sigmoid(_normal(4, 6)), _normal(4, 6, seed=1)
    p = torch.sigmoid(log_odds)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    assert_allclose(BernoulliLikelihood().log_prob(x, log_odds), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_is_finite_at_extreme_odds(dtype):
    log_odds = torch.tensor([[-1e3, 1e3, 1e3]], dtype=dtype, requires_grad=True)
    log_prob = BernoulliLikelihood().log_prob(
        torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype), log_odds
    )
    assert_allclose(log_prob.detach(), -1e3)
    log_prob.sum().backward()
    assert_allclose(log_odds.grad, [[0.0, 0.0, -1.0]], atol=1e-30)


def test_bernoulli_draws():
    likelihood, log_odds = BernoulliLikelihood(), _normal(5)
    p = likelihood.mean(log_odds).numpy()
    assert_allclose(p, 1 / (1 + np.exp(-log_odds.numpy())))
    n = 50_000
    draws = likelihood.sample(log_odds.expand(n, 5), torch.Generator().manual_seed(3)).numpy()
    assert_array_equal(np.unique(draws), [0.0, 1.0])
    z = (draws.mean(0) - p) / np.sqrt(p * (1 - p) / n)
    assert np.all(np.abs(z) < 4.5)


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(0.5), BernoulliLikelihood()])
def test_draws_leave_the_global_generator_alone(likelihood):
    state = torch.get_rng_state()
    first, again = (
        likelihood.sample(torch.zeros(3, 2), torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
