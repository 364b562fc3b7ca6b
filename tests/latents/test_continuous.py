"""Gaussian, Laplace and Cauchy codes: what the contract test of families does not cover."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_measure import assert_mean, integral
from numpy.testing import assert_allclose
from scipy import stats

from sklearn_vsc.latents import Continuous, ContinuousPosterior
from sklearn_vsc.latents.cauchy import Cauchy

SCIPY = {"gaussian": stats.norm, "laplace": stats.laplace, "cauchy": stats.cauchy}
CLOSED = [
    ("gaussian", "gaussian"),
    ("gaussian", "laplace"),
    ("laplace", "laplace"),
    ("laplace", "gaussian"),
    ("cauchy", "cauchy"),
]
BY_DRAWS = [("cauchy", "gaussian"), ("cauchy", "laplace")]

# Location, scale, scale of the prior: equal, near, narrow, wide, far, far and narrow.
PARAMETERS = [
    (0.0, 0.6, 0.6),
    (0.3, 0.7, 0.6),
    (-0.3, 0.01, 1.0),
    (0.2, 4.0, 0.5),
    (-4.0, 0.5, 0.6),
    (6.0, 1e-3, 2.0),
]


def _posterior(prior, posterior, loc, scale, prior_scale=1.0):
    loc, scale = (torch.tensor(v, dtype=torch.float64).reshape(1, -1) for v in (loc, scale))
    return ContinuousPosterior(Continuous(prior, posterior, prior_scale=prior_scale), loc, scale)


def _log_pdf(name, loc, scale):
    if name == "laplace":
        # Far out SciPy takes the logarithm of a density that has underflowed.
        return lambda z: -abs(z - loc) / scale - math.log(2 * scale)
    return SCIPY[name](loc, scale).logpdf


def _kl_by_quadrature(prior, posterior, loc, scale, prior_scale):
    log_q, log_p = _log_pdf(posterior, loc, scale), _log_pdf(prior, 0.0, prior_scale)
    peaks = (0.0, loc - 5 * scale, loc, loc + 5 * scale, loc - 1e3 * scale, loc + 1e3 * scale)
    return integral(lambda z: math.exp(log_q(z)) * (log_q(z) - log_p(z)), peaks)


# --- Kullback-Leibler divergences


@pytest.mark.parametrize(("prior", "posterior"), CLOSED)
@pytest.mark.parametrize(("loc", "scale", "prior_scale"), PARAMETERS)
def test_closed_kl_by_quadrature(prior, posterior, loc, scale, prior_scale):
    q = _posterior(prior, posterior, [loc], [scale], prior_scale)
    expected = _kl_by_quadrature(prior, posterior, loc, scale, prior_scale)
    assert q.family.has_closed_kl
    assert_allclose(q.kl().item(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("prior", "posterior"), BY_DRAWS)
@pytest.mark.parametrize(("loc", "scale", "prior_scale"), PARAMETERS)
def test_kl_by_draws_has_that_mean(prior, posterior, loc, scale, prior_scale):
    q = _posterior(prior, posterior, [loc], [scale], prior_scale)
    expected = _kl_by_quadrature(prior, posterior, loc, scale, prior_scale)
    assert not q.family.has_closed_kl
    draws = q.rsample(q.noise(100_000, torch.Generator().manual_seed(0)))
    assert_mean(q.kl(draws).flatten(), expected)
    with pytest.raises(ValueError, match="draws of the code are needed"):
        q.kl()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.floats(-50, 50), st.floats(-8, 4), st.sampled_from(CLOSED))
def test_kl_is_not_negative(loc, log_scale, pair):
    kl = _posterior(*pair, [loc], [math.exp(log_scale)], prior_scale=1.3).kl().item()
    assert kl >= -1e-13 * (1 + loc**2)
    if pair[0] != pair[1]:
        # A posterior of another distribution never equals the prior.
        assert kl > 0.02


@pytest.mark.parametrize("name", SCIPY)
def test_kl_is_zero_for_equal_distributions_alone(name):
    kl = _posterior(name, name, [0.0, 1e-3, 0.0], [0.7, 0.7, 0.7007], prior_scale=0.7).kl()[0]
    assert_allclose(kl[0], 0, atol=1e-15)
    assert (kl[1:] > 1e-8).all()


def test_cauchy_kl_is_symmetric():
    here = _posterior("cauchy", "cauchy", [2.0], [0.3], prior_scale=1.7).kl()
    there = _posterior("cauchy", "cauchy", [2.0], [1.7], prior_scale=0.3).kl()
    assert_allclose(here, there, rtol=1e-14)


@pytest.mark.parametrize("prior", ["gaussian", "laplace"])
def test_pairs_of_infinite_kl_are_refused(prior):
    with pytest.raises(ValueError, match=f"infinite KL from a {prior} prior; use prior='cauchy'"):
        Continuous(prior, "cauchy")


@pytest.mark.parametrize(("prior", "posterior"), CLOSED + BY_DRAWS)
def test_prior_scale_is_a_unit(prior, posterior):
    """The same heads give the same codes in units of the scale of the prior, and the same KL."""
    heads = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (
        Continuous(prior, posterior, prior_scale=s).posterior(heads) for s in (0.3, 300.0)
    )
    noise = one.noise(7, torch.Generator().manual_seed(1))
    draws, same = one.rsample(noise), other.rsample(noise)
    assert_allclose(same.code, 1e3 * draws.code, rtol=1e-12)
    assert_allclose(other.kl(same), one.kl(draws), rtol=1e-9, atol=1e-12)
    assert_allclose(other.log_ratio(same), one.log_ratio(draws), rtol=1e-9, atol=1e-9)
    assert other.family.prior_variance == pytest.approx(1e6 * one.family.prior_variance)


# --- the distribution of a draw


@pytest.mark.parametrize("posterior", SCIPY)
def test_draws_have_their_distribution(posterior):
    q = _posterior("cauchy", posterior, [0.7], [0.4])
    draws = q.rsample(q.noise(100_000, torch.Generator().manual_seed(0))).code.flatten()
    assert stats.kstest(draws, SCIPY[posterior](0.7, 0.4).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cauchy_noise_has_cauchy_tails(dtype):
    noise = Cauchy.noise(
        (1_000_000,), torch.Generator().manual_seed(0), torch.zeros((), dtype=dtype)
    )
    assert noise.dtype == dtype
    assert noise.isfinite().all()
    assert stats.kstest(noise.double()[::10], stats.cauchy.cdf).pvalue > 1e-4
    for reach in (10.0, 1e3, 1e4):
        assert_mean((noise.abs() > reach).double(), 2 * stats.cauchy.sf(reach))


def test_no_draw_is_infinite(monkeypatch):
    """Not even where a uniform number is exactly zero, as one in 2^53 is."""
    shapes = []

    def zeros(shape, *, generator, dtype, device):
        shapes.append(shape)
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch, "rand", zeros)
    for dtype in (torch.float32, torch.float64):
        noise = Cauchy.noise((3,), torch.Generator(), torch.zeros((), dtype=dtype))
        assert (noise < -1e6).all() and noise.isfinite().all() and noise.square().isfinite().all()
    assert shapes == [(3,), (3,)]


@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_noise_scale_warms_up_the_noise_alone(noise_scale):
    q = _posterior("laplace", "gaussian", [0.7, -2.0], [0.4, 3.0])
    noise = q.noise(5, torch.Generator().manual_seed(0))
    expected = q.loc + noise_scale * q.scale * noise.base
    assert_allclose(q.rsample(noise, noise_scale).code, expected, rtol=1e-14)


def test_one_draw_of_the_cauchy_log_ratio_is_bounded():
    """Far out it tends to the log ratio of the scales, so that its mean over draws is stable."""
    q = _posterior("cauchy", "cauchy", [0.5], [0.2], prior_scale=1.5)
    far = torch.tensor([-1e12, 1e12], dtype=torch.float64).reshape(2, 1, 1)
    draws = q.rsample(q.noise(2, torch.Generator().manual_seed(0)))
    ratio = q.log_ratio(type(draws)(far, draws.active))
    assert_allclose(ratio.flatten(), math.log(1.5 / 0.2), rtol=1e-9)


# --- in place of moments


def test_cauchy_posterior_has_a_median_but_no_variance():
    q = _posterior("cauchy", "cauchy", [0.7, -2.0], [0.4, 3.0])
    assert torch.equal(q.mean, q.loc) and torch.equal(q.mode(), q.loc)
    assert (q.variance == math.inf).all()
    assert q.family.prior_variance == math.inf


@pytest.mark.parametrize(("prior", "posterior"), CLOSED + BY_DRAWS)
def test_codes_are_never_zero(prior, posterior):
    family = Continuous(prior, posterior)
    assert family.is_continuous and family.prior_inclusion == 1
    q = family.posterior(torch.zeros(20, 2, 30))
    assert (q.inclusion == 1).all()
    assert (q.rsample(q.noise(100, torch.Generator().manual_seed(0))).code != 0).all()


def test_detached_posterior_is_the_same_without_gradients():
    heads = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    q = Continuous("laplace", "gaussian").posterior(heads)
    draws = q.rsample(q.noise(5, torch.Generator().manual_seed(1)))
    detached = q.detached()
    assert not detached.loc.requires_grad and not detached.scale.requires_grad
    assert torch.equal(detached.log_ratio(draws), q.log_ratio(draws))
