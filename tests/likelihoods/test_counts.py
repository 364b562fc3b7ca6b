"""Count likelihoods against SciPy, exact arithmetic, draws and quadrature."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, special, stats
from torch import nn

from sklearn_vsc._models import bounds
from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc.latents import Continuous, SpikeSlab
from sklearn_vsc.likelihoods import NegativeBinomialLikelihood, PoissonLikelihood
from sklearn_vsc.networks import LinearDecoder

BOTH = pytest.mark.parametrize("cls", [PoissonLikelihood, NegativeBinomialLikelihood])
COUNTS = [0, 1, 2, 3, 7, 11, 12, 13, 40, 1000, 100_000]
LOG_RATES = np.linspace(-8, 12, 21)
DISPERSIONS = [1e-3, 0.1, 1.0, 7.5, 300.0]


def _tensor(values, dtype=torch.float64):
    return torch.tensor(np.asarray(values), dtype=dtype)


def _dispersed(r, dtype=torch.float64, **arguments):
    """Negative binomial likelihood with this inverse dispersion of each feature."""
    likelihood = NegativeBinomialLikelihood(**arguments)
    likelihood.start(torch.ones(2, np.size(r), dtype=torch.float64))
    reach = math.log(1e6)
    raw = reach * np.arctanh(np.log(np.ravel(r)) / reach)
    likelihood.raw_inverse_dispersion.data = _tensor(raw)
    assert_allclose(likelihood.inverse_dispersion.detach(), np.ravel(r), rtol=1e-8)
    return likelihood.to(dtype)


def _started(cls, rows, **arguments):
    likelihood = cls(**arguments)
    likelihood.start(rows)
    return likelihood.to(rows.dtype)


# --- the distribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisson_log_probability_has_every_constant(dtype):
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (1e-12, 1e-12)
    x = _tensor(COUNTS, dtype)[:, None]
    for log_rate in LOG_RATES.astype(np.float32):
        found = PoissonLikelihood().log_prob(x, torch.full_like(x, float(log_rate)))
        expected = stats.poisson.logpmf(COUNTS, math.exp(log_rate))
        assert found.shape == (len(COUNTS),)
        assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", DISPERSIONS)
def test_negative_binomial_log_probability_has_every_constant(r, dtype):
    """Large counts too, where the terms of the textbook formula cancel in float32."""
    rtol, atol = (1e-4, 1e-4) if dtype == torch.float32 else (1e-8, 1e-8)
    likelihood, x = _dispersed(r, dtype), _tensor(COUNTS, dtype)[:, None]
    for log_rate in LOG_RATES.astype(np.float32):
        found = likelihood.log_prob(x, torch.full_like(x, float(log_rate)))
        expected = stats.nbinom.logpmf(COUNTS, r, r / (r + math.exp(log_rate)))
        assert_allclose(found.detach(), expected, rtol=rtol, atol=atol)


def test_features_are_summed_over_each_draw():
    x = _tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 2.0]])
    output = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 2, 3)
    r = np.array([0.5, 2.0, 9.0])
    expected = stats.nbinom.logpmf(x, r, r / (r + output.exp().numpy())).sum(-1)
    assert_allclose(_dispersed(r).log_prob(x, output).detach(), expected, rtol=1e-9)


@pytest.mark.parametrize("r", [None, 0.3, 4.0])
def test_probabilities_of_all_counts_sum_to_one(r):
    likelihood = PoissonLikelihood() if r is None else _dispersed(r)
    x = torch.arange(3000, dtype=torch.float64)[:, None]
    for log_rate in (-2.0, 0.5, 3.0):
        log_probs = likelihood.log_prob(x, torch.full_like(x, log_rate)).detach()
        assert_allclose(log_probs.exp().sum(), 1, rtol=1e-9)


def test_a_large_inverse_dispersion_approaches_poisson():
    x = _tensor(COUNTS[:-2])[:, None]
    output = torch.full_like(x, 2.0)
    poisson = PoissonLikelihood().log_prob(x, output)
    distances = [
        (_dispersed(r).log_prob(x, output).detach() - poisson).abs().max().item()
        for r in (1e2, 1e3, 1e4, 1e5)
    ]
    # The leading term is (x - mu)^2 / (2 r).
    assert all(9 < far / near < 11 for far, near in pairwise(distances[1:]))
    assert distances[-1] < 0.01


@pytest.mark.parametrize("exposure", [None, 2.5])
@pytest.mark.parametrize("r", [None, 0.4, 6.0])
def test_draws_have_the_mean_and_variance_that_are_stated(r, exposure):
    n, output = 100_000, _tensor([-1.0, 0.5, 3.0])
    likelihood = (
        PoissonLikelihood(exposure) if r is None else _dispersed([r] * 3, exposure=exposure)
    )
    mean = likelihood.mean(output).detach()
    assert_allclose(mean, (exposure or 1) * output.exp(), rtol=1e-12)
    variance = mean if r is None else mean + mean**2 / r
    with torch.no_grad():
        draws = likelihood.sample(output.expand(n, 3), torch.Generator().manual_seed(0))
    assert draws.dtype == torch.float64
    assert_array_equal(draws, draws.round())
    z = (draws.mean(0) - mean) / (variance / n).sqrt()
    assert (z.abs() < 4.5).all()
    squares = (draws - mean).square()
    z = (squares.mean(0) - variance) / (squares.std(0) / math.sqrt(n))
    assert (z.abs() < 4.5).all()


@BOTH
def test_draws_leave_the_global_generator_alone(cls):
    likelihood, state = _started(cls, torch.ones(2, 4)), torch.get_rng_state()
    with torch.no_grad():
        first, again = (
            likelihood.sample(torch.zeros(5, 4), torch.Generator().manual_seed(0)) for _ in range(2)
        )
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


# --- gradients and extreme outputs


@pytest.mark.parametrize("r", [None, 1e-2, 3.0, 1e4])
def test_gradients_against_finite_differences(r):
    likelihood = PoissonLikelihood() if r is None else _dispersed([r] * 6)
    x = _tensor([[0.0, 1.0, 4.0, 12.0, 90.0, 0.0]])
    output = _tensor([[-3.0, 0.2, 1.0, 2.8, 4.4, 2.0]]).requires_grad_()
    inputs = (output, *likelihood.parameters())
    assert torch.autograd.gradcheck(
        lambda output, *_: likelihood.log_prob(x, output), inputs, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("r", [None, 1e-4, 1.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_at_extreme_log_rates(r, dtype):
    likelihood = PoissonLikelihood() if r is None else _dispersed(r, dtype)
    counts = _tensor([0, 1, 50, 1e5, 1e9], dtype)[:, None]
    for size in (0.0, 15.0, 25.0, 90.0, 300.0, 1e4, 1e8):
        for log_rate in (-size, size):
            output = torch.full_like(counts, log_rate, requires_grad=True)
            log_prob = likelihood.log_prob(counts, output)
            assert log_prob.isfinite().all()
            assert (log_prob <= 0).all()
            log_prob.sum().backward()
            assert output.grad.isfinite().all()
            assert all(p.grad.isfinite().all() for p in likelihood.parameters())
            assert likelihood.mean(output.detach()).isfinite().all()
            if log_rate > 22:
                # A rate that is too large still falls.
                assert (output.grad < 0).all()


def test_probabilities_stay_normalised_where_the_mean_is_limited():
    """Above exp(20) the mean grows linearly: the slope is continuous, and no mass is lost."""
    output = _tensor([20 - 1e-6, 20 + 1e-6, 21.0])
    mean = PoissonLikelihood().mean(output)
    assert_allclose(mean / math.exp(20), [1 - 1e-6, 1 + 1e-6, 2.0], rtol=1e-9)
    expected = stats.poisson.logpmf(9e8, mean[2])
    found = PoissonLikelihood().log_prob(_tensor([[9e8]]), output[2:])
    assert_allclose(found, expected, rtol=1e-6)


# --- exposure and missing entries


@BOTH
def test_a_missing_entry_leaves_its_term_out(cls):
    x = _tensor([[1.0, 4.0, 0.0, 2.0], [3.0, 0.0, 5.0, 1.0]])
    likelihood = _started(cls, x)
    output = _tensor([[0.1, 0.5, -0.2, 1.0], [1.0, -1.0, 2.0, 0.0]]).requires_grad_()
    entries = likelihood._log_probs(x, output).detach()
    holes = torch.zeros_like(x, dtype=torch.bool)
    holes[0, 1] = holes[1, 2] = holes[1, 3] = True
    found = likelihood.log_prob(x.masked_fill(holes, math.nan), output)
    assert_allclose(found.detach(), torch.where(holes, 0, entries).sum(-1), rtol=1e-12)
    found.sum().backward()
    assert output.grad.isfinite().all()
    assert (output.grad[holes] == 0).all()


@BOTH
def test_a_common_exposure_multiplies_all_rates(cls):
    x = _tensor([[2.0, 0.0, 7.0]])
    output = _tensor([[0.3, -1.0, 1.5]])
    plain, exposed = _started(cls, x), _started(cls, x, exposure=4.0)
    if cls is NegativeBinomialLikelihood:
        exposed.raw_inverse_dispersion.data = plain.raw_inverse_dispersion.data
    expected = plain.log_prob(x, output + math.log(4)).detach()
    assert_allclose(exposed.log_prob(x, output).detach(), expected, rtol=1e-12)
    mean = _tensor([3.0, 20.0])
    assert_allclose(exposed.mean(exposed.output_of(mean)), mean, rtol=1e-12)


@BOTH
def test_size_factors_are_row_sums_over_their_expectation(cls):
    rows = _tensor([[4.0, 0.0, 2.0], [8.0, 2.0, 6.0], [0.0, 1.0, 1.0]])
    likelihood = _started(cls, rows, exposure="row_sums")
    means = rows.mean(0)
    expected = rows.sum(1, keepdim=True) / means.sum()
    assert_allclose(likelihood.size_factors(rows), expected, rtol=1e-12)
    # Over observed entries, and an empty row has half a count.
    holed = _tensor([[4.0, math.nan, 2.0], [0.0, 0.0, math.nan]])
    expected = [[6 / (means[0] + means[2])], [0.5 / (means[0] + means[1])]]
    assert_allclose(likelihood.size_factors(holed), expected, rtol=1e-12)
    output = _tensor([[0.5, 1.0, -0.5]])
    shifted = output + likelihood.size_factors(rows).log()
    plain = _started(cls, rows)
    if cls is NegativeBinomialLikelihood:
        plain.raw_inverse_dispersion.data = likelihood.raw_inverse_dispersion.data
    assert_allclose(
        likelihood.log_prob(rows, output).detach(), plain.log_prob(rows, shifted).detach()
    )


@BOTH
def test_learned_exposure_is_a_power_of_the_size_factor(cls):
    rows = _tensor([[4.0, 0.0, 2.0], [8.0, 2.0, 6.0], [0.0, 1.0, 1.0]])
    given, learned = (_started(cls, rows, exposure=e) for e in ("row_sums", "learned"))
    output = torch.zeros(1, 3, dtype=torch.float64)
    assert_allclose(learned.log_prob(rows, output).detach(), given.log_prob(rows, output).detach())
    with torch.no_grad():
        learned.exponent.fill_(0.5)
    factors = learned.size_factors(rows)
    assert_allclose(factors.detach(), given.size_factors(rows).sqrt(), rtol=1e-12)
    learned.log_prob(rows, output).sum().backward()
    assert learned.exponent.grad != 0


@pytest.mark.parametrize("exposure", [0, -1.0, math.inf, math.nan, "sums"])
def test_exposures_that_are_refused(exposure):
    with pytest.raises(ValueError, match=r"exposure must be None, a positive number, 'row_sums'"):
        PoissonLikelihood(exposure)


# --- the start


def test_first_dispersions_come_from_the_moments():
    rng = np.random.default_rng(0)
    r, mean = np.array([0.5, 3.0, 20.0]), np.array([4.0, 2.0, 30.0])
    rates = mean * rng.gamma(r, 1 / r, (40_000, 3))
    rows = _tensor(rng.poisson(rates))
    found = _started(NegativeBinomialLikelihood, rows).inverse_dispersion
    assert_allclose(found.detach(), r, rtol=0.1)
    exposed = _started(NegativeBinomialLikelihood, rows, exposure=10.0).inverse_dispersion
    assert_allclose(exposed.detach(), found.detach(), rtol=1e-6)
    # Size factors explain a part of the variance.
    size = np.exp(rng.normal(0, 0.8, (40_000, 1)))
    shares = np.tile(mean, 20) * rng.gamma(4.0, 1 / 4.0, (40_000, 60))
    sized = _tensor(rng.poisson(size * shares))
    plain, relative = (
        _started(NegativeBinomialLikelihood, sized, exposure=e).inverse_dispersion.detach()
        for e in (None, "row_sums")
    )
    assert (plain < 1.5).all()
    assert_allclose(relative, 4, rtol=0.2)


def test_first_dispersions_where_there_is_nothing_to_estimate():
    """Constant, empty and unobserved columns, and rows of no meaning, as `load` has them."""
    column = torch.tensor([[0.0, 3.0, math.nan, -1.5, 1e5], [0.0, 3.0, math.nan, 0.2, 0.0]])
    for rows in (column, column[:1]):
        for exposure in (None, 3.0, "row_sums", "learned"):
            likelihood = _started(NegativeBinomialLikelihood, rows, exposure=exposure)
            assert likelihood.inverse_dispersion.isfinite().all()
            assert (likelihood.inverse_dispersion > 0).all()
            assert all(value.shape in ((), (5,)) for value in likelihood.state_dict().values())


# --- what is refused


@BOTH
@pytest.mark.parametrize("value", [-1.0, 0.5, 1e5 + 0.25])
@pytest.mark.parametrize("first_row", [0, 4096])
def test_the_first_cell_that_is_not_a_count_is_named(cls, value, first_row):
    X = np.array([[0.0, np.nan, 2.0], [1.0, 3.0, np.nan], [5.0, 0.0, 1.0]])
    cls().check_rows(X)
    X[1, 1], X[2, 0] = value, -7.0
    with pytest.raises(ValueError) as error:
        cls().check_rows(X, first_row)
    assert f"likelihood={cls.name!r} needs counts" in str(error.value)
    assert f"X[{first_row + 1}, 1] is {value}" in str(error.value)
    assert "likelihood='gaussian'" in str(error.value)


@BOTH
def test_what_encoders_read(cls):
    x = _tensor([[0.0, math.nan, 3.0], [1.0, 99999.0, math.nan]])
    read = _started(cls, x).encoder_input(x)
    assert_array_equal(read.isnan(), x.isnan())
    assert read.nan_to_num().abs().max() < 20


# --- one latent: bounds against quadrature

ATOM, BIAS, ROW = [0.8, -0.5, 1.2], [0.3, 1.0, -0.4], [3.0, 1.0, 5.0]
DENSITY = 0.3


class _FixedHeads(nn.Module):
    """Stands for a network: the same posterior for each row."""

    def __init__(self, heads):
        super().__init__()
        self.register_buffer("heads", _tensor(heads)[None, :, None])

    def forward(self, x):
        return self.heads.expand(len(x), -1, -1)


def _log_evidence(family, r):
    """Log p of ROW, by SciPy alone."""

    def likelihood(z):
        mean = np.exp(np.array(ATOM) * z + BIAS)
        if r is None:
            return np.exp(stats.poisson.logpmf(ROW, mean).sum())
        return np.exp(stats.nbinom.logpmf(ROW, r, r / (r + mean)).sum())

    slab = stats.laplace if family == "laplace" else stats.norm
    grid = integrate.quad(lambda z: slab.pdf(z) * likelihood(z), -15, 15, points=[0, 1, 2])[0]
    if family == "laplace":
        return math.log(grid)
    return math.log((1 - DENSITY) * likelihood(0.0) + DENSITY * grid)


@pytest.mark.parametrize("r", [None, 1.5])
@pytest.mark.parametrize("family", ["laplace", "spike_slab"])
def test_bounds_against_quadrature_over_one_code(family, r):
    if family == "laplace":
        latents, heads = Continuous("laplace", "laplace"), [0.8, -0.7]
    else:
        latents, heads = SpikeSlab("gaussian", density=DENSITY), [0.9, -0.6, 1.0]
    likelihood = PoissonLikelihood() if r is None else _dispersed([r] * 3)
    decoder = LinearDecoder(_tensor([ATOM]))
    decoder.bias.data = _tensor(BIAS)
    model = LatentVariableModel(nn.Identity(), _FixedHeads(heads), decoder, likelihood, latents)
    x, expected = _tensor([ROW]), _log_evidence(family, r)
    with torch.no_grad():
        posterior = model.posterior(x)
        noise = posterior.noise(200_000, torch.Generator().manual_seed(0))
        draws = posterior.rsample(noise)
        log_weights = model.log_weights(x, posterior, draws, exact_ratio=True)[:, 0]
        smooth = model.log_weights(x, posterior, draws, exact_ratio=False)[:, 0]
    # Importance weights have p(x) as their mean.
    weights = (log_weights - expected).exp()
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / math.sqrt(len(weights))
    assert weights.std() / math.sqrt(len(weights)) < 0.02
    # The ELBO lies below, and importance-weighted bounds rise from it towards log p(x).
    found = [bounds.elbo(smooth).item()]
    for n_draws in (1, 4, 40, 400):
        blocks = log_weights[: len(log_weights) // n_draws * n_draws].reshape(-1, n_draws)
        found.append(bounds.iwae(blocks.T).mean().item())
    error = 4.5 * log_weights.std().item() / math.sqrt(len(log_weights))
    assert abs(found[0] - found[1]) < 2 * error
    assert found[0] < expected - 0.05
    assert found[1] < found[2] < found[3] < found[4] < expected + error
    assert expected - found[-1] < 0.05


def test_the_evidence_of_a_code_that_is_a_gamma_variate():
    """A Poisson mixture over a gamma rate is the negative binomial: the two agree."""
    r, mean, x = 2.5, 4.0, np.arange(12)
    rates, weights = special.roots_genlaguerre(80, r - 1)
    mixture = [
        np.sum(weights / special.gamma(r) * stats.poisson.pmf(k, mean * rates / r)) for k in x
    ]
    column = _tensor(x)[:, None]
    found = _dispersed(r).log_prob(column, torch.full_like(column, math.log(mean)))
    assert_allclose(found.detach(), np.log(mixture), rtol=1e-9)
