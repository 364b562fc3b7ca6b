"""The Laplace and Gaussian distributions as bases of a thresholded code, against SciPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_measure import assert_mean, integral
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import erfcx

from sklearn_vsc.latents.gaussian import Gaussian
from sklearn_vsc.latents.laplace import Laplace

BASES = {"laplace": (Laplace, stats.laplace), "gaussian": (Gaussian, stats.norm)}

# Location, scale, threshold, prior scale, prior threshold: narrow, wide, near, far, and with a
# threshold larger or smaller than the prior's.
SETTINGS = [
    (0.3, 0.7, 0.4, 0.6, 0.5),
    (-0.3, 0.7, 0.4, 0.6, 0.5),
    (0.0, 0.6, 0.5, 0.6, 0.5),
    (1.5, 0.2, 0.5, 1.0, 0.5),
    (2.0, 1.5, 0.1, 1.0, 1.2),
    (0.1, 1.0, 2.5, 0.7, 0.2),
    (-4.0, 0.5, 0.6, 1.0, 2.0),
    (0.7, 3.0, 1e-3, 2.0, 1e-2),
]


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param][0]


@pytest.fixture
def reference(base):
    return dict(BASES.values())[base]


def _tensors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def _log_pdf(reference, loc, scale):
    if reference is stats.norm:
        return reference(loc, scale).logpdf
    # Far out SciPy takes the logarithm of a density that has underflowed.
    return lambda z: -abs(z - loc) / scale - math.log(2 * scale)


def _thresholded(reference, loc, scale, threshold):
    """Mass at zero, and log sub-density elsewhere, of a thresholded code."""
    base = reference(scale=scale)
    mass = base.cdf(threshold) - base.cdf(-threshold)
    log_base = _log_pdf(reference, 0.0, scale)

    def log_density(z):
        return log_base(abs(z - loc) + threshold)

    return mass, log_density


def _peaks(loc, scale):
    return (0.0, loc - 5 * scale, loc, loc + 5 * scale)


# --- Kullback-Leibler divergences


@pytest.mark.parametrize(("loc", "scale", "_t", "prior_scale", "_t0"), SETTINGS)
def test_base_kl_by_quadrature(base, reference, loc, scale, _t, prior_scale, _t0):
    log_q, log_p = _log_pdf(reference, loc, scale), _log_pdf(reference, 0.0, prior_scale)
    expected = integral(lambda z: math.exp(log_q(z)) * (log_q(z) - log_p(z)), _peaks(loc, scale))
    assert_allclose(base.kl(*_tensors(loc, scale), prior_scale), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("loc", "scale", "threshold", "prior_scale", "prior_threshold"), SETTINGS)
def test_thresholded_kl_by_quadrature(
    base, reference, loc, scale, threshold, prior_scale, prior_threshold
):
    mass, log_q = _thresholded(reference, loc, scale, threshold)
    prior_mass, log_p = _thresholded(reference, 0.0, prior_scale, prior_threshold)
    slab = integral(lambda z: math.exp(log_q(z)) * (log_q(z) - log_p(z)), _peaks(loc, scale))
    expected = mass * math.log(mass / prior_mass) + slab
    loc, scale, threshold, prior_threshold = _tensors(loc, scale, threshold, prior_threshold)
    kl = base.thresholded_kl(loc, scale, threshold, prior_scale, prior_threshold)
    assert_allclose(kl, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("prior_scale", [0.1, 1.0, 30.0])
def test_kl_of_equal_distributions_is_zero(base, prior_scale):
    loc, scale = _tensors(0.0, prior_scale)
    assert_allclose(base.kl(loc, scale, prior_scale), 0, atol=1e-14)
    for ratio in (1e-3, 1.0, 5.0):
        threshold = ratio * scale
        kl = base.thresholded_kl(loc, scale, threshold, prior_scale, threshold)
        assert_allclose(kl, 0, atol=1e-14)


PAIRS = st.tuples(
    st.floats(-20, 20),  # location
    st.floats(-6, 3),  # log scale
    st.floats(0, 20),  # threshold
    st.floats(0, 20),  # the prior's threshold
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(PAIRS)
def test_kl_is_not_negative_and_thresholding_lowers_it(pair):
    """At equal thresholds, the thresholded KL never exceeds the KL of the base distributions.

    So the published objective, with the KL of the base distributions, is a looser bound for the
    same model (Fallah & Rozell 2022).
    """
    loc, log_scale, threshold, prior_threshold = _tensors(*pair)
    scale = log_scale.exp()
    for base in (Laplace, Gaussian):
        of_base = base.kl(loc, scale, 1.0)
        equal = base.thresholded_kl(loc, scale, threshold, 1.0, threshold)
        unequal = base.thresholded_kl(loc, scale, threshold, 1.0, prior_threshold)
        rounding = 1e-12 * (1 + of_base)
        assert -rounding <= equal <= of_base + rounding
        assert unequal >= -1e-12 * (1 + unequal)


def test_thresholding_lowers_the_kl_strictly(base):
    """So the inequality above is not always an equality."""
    loc, scale, threshold = _tensors(1.0, 0.5, 0.6)
    equal = base.thresholded_kl(loc, scale, threshold, 1.0, threshold)
    assert equal < 0.7 * base.kl(loc, scale, 1.0)


def test_threshold_of_zero_gives_the_base_kl(base):
    loc, scale, zero = _tensors(1.3, 0.4, 0.0)
    kl = base.thresholded_kl(loc, scale, zero, 0.9, zero)
    assert_allclose(kl, base.kl(loc, scale, 0.9), rtol=1e-12)


# --- spike and slab


@pytest.mark.parametrize("ratio", [1e-8, 1e-3, 0.3, 1.0, 3.0, 8.0, 30.0])
def test_log_activity(base, reference, ratio):
    scale, threshold = _tensors(0.6, 0.6 * ratio)
    log_on, log_off = base.log_activity(scale, threshold)
    assert_allclose(log_on, math.log(2) + reference.logsf(ratio), rtol=1e-12, atol=1e-15)
    # 1 - 2 sf without the cancellation near zero: 2 pdf(0) ratio to first order.
    on = 2 * reference.sf(ratio)
    expected = math.log1p(-on) if ratio > 0.1 else math.log(2 * reference.pdf(0) * ratio)
    tolerance = 1e-12 if ratio > 0.1 else ratio
    assert_allclose(log_off, expected, rtol=tolerance, atol=1e-15)
    assert_allclose(log_on.exp() + log_off.exp(), 1, rtol=1e-14)


def test_activity_falls_with_the_threshold_and_rises_with_the_scale(base):
    grid = torch.linspace(0.01, 8, 60, dtype=torch.float64)
    log_on, log_off = base.log_activity(torch.ones(()), grid)
    assert (log_on.diff() < 0).all()
    assert (log_off.diff() > 0).all()
    log_on, log_off = base.log_activity(grid, torch.ones(()))
    assert (log_on.diff() > 0).all()
    assert (log_off.diff() < 0).all()


@pytest.mark.parametrize(("scale", "threshold"), [(0.6, 0.5), (0.2, 0.9), (3.0, 0.01)])
def test_slab_by_quadrature(base, reference, scale, threshold):
    _, log_density = _thresholded(reference, 0.0, scale, threshold)
    deviations = np.linspace(-4, 4, 9) * scale
    found = base.log_slab(*_tensors(deviations, scale, threshold))
    assert_allclose(found, [log_density(z) for z in deviations], rtol=1e-13)

    def slab(z):
        return math.exp(float(base.log_slab(*_tensors(z, scale, threshold))))

    cuts = _peaks(0.0, scale)
    activity = base.log_activity(*_tensors(scale, threshold))[0].exp()
    assert_allclose(integral(slab, cuts), activity, rtol=1e-10)
    second = base.slab_moment(*_tensors(scale, threshold))
    assert_allclose(integral(lambda z: z**2 * slab(z), cuts), second, rtol=1e-9)


def _thresholded_draws(base, scale, threshold, n=200_000):
    """Deviations of active codes, by the definition of the threshold."""
    noise = base.noise((n,), torch.Generator().manual_seed(0), torch.zeros((), dtype=torch.float64))
    deviation = scale * noise.numpy()
    kept = deviation[np.abs(deviation) > threshold]
    return np.sign(kept) * (np.abs(kept) - threshold)


def test_laplace_slab_is_laplace():
    """The exponential is memoryless: the part beyond a threshold is Laplace again."""
    slab = _thresholded_draws(Laplace, 0.7, 0.9)
    assert stats.kstest(slab, stats.laplace(scale=0.7).cdf).pvalue > 1e-4
    assert stats.kstest(slab, stats.laplace(scale=0.77).cdf).pvalue < 1e-6


def test_gaussian_slab_is_a_pair_of_tails():
    scale, threshold = 0.7, 0.9
    slab = _thresholded_draws(Gaussian, scale, threshold)
    base = stats.norm(scale=scale)

    def cdf(z):
        tail = base.sf(np.abs(z) + threshold) / (2 * base.sf(threshold))
        return np.where(z < 0, tail, 1 - tail)

    assert stats.kstest(slab, cdf).pvalue > 1e-4
    assert stats.kstest(slab, stats.norm(scale=slab.std()).cdf).pvalue < 1e-30


# --- noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_standard_distribution(base, reference, dtype):
    noise = base.noise((300, 500), torch.Generator().manual_seed(1), torch.zeros((), dtype=dtype))
    assert noise.dtype == dtype
    assert noise.isfinite().all()
    sample = noise.flatten().double().numpy()
    assert stats.kstest(sample, reference.cdf).pvalue > 1e-4
    assert_mean(sample**2, reference.var())
    # The tail, to which a Kolmogorov-Smirnov test is insensitive.
    assert_mean(np.abs(sample) > reference.isf(5e-4), 1e-3)


# --- far out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.0, 1e-12, 1e-6, 50.0, 1e3, 1e5, 1e9])
def test_values_and_gradients_are_finite_far_out(base, dtype, ratio):
    """In float32, torch's log of the normal tail has no finite gradient at a ratio of 1e5."""
    loc, scale = torch.tensor(0.5, dtype=dtype), torch.tensor(1e-3, dtype=dtype)
    parameters = [loc, scale, ratio * scale]
    for parameter in parameters:
        parameter.requires_grad_()
    loc, scale, threshold = parameters
    values = [
        *base.log_activity(scale, threshold),
        base.log_slab(loc, scale, threshold),
        base.slab_moment(scale, threshold),
        base.thresholded_kl(loc, scale, threshold, 1.0, threshold),
    ]
    for value in values:
        assert value.isfinite()
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        assert all(g is None or g.isfinite() for g in gradients)


@pytest.mark.parametrize(
    ("ratio", "dtype", "rtol"),
    [(5.0, torch.float64, 1e-11), (300.0, torch.float64, 1e-8), (3e4, torch.float32, 1e-5)],
)
def test_gradient_of_the_activity_in_the_tail(base, ratio, dtype, rtol):
    """d log P(active) / d threshold is minus the hazard rate, at any depth, in float32 too."""
    threshold = torch.tensor(ratio, dtype=dtype, requires_grad=True)
    base.log_activity(torch.ones((), dtype=dtype), threshold)[0].backward()
    hazard = 1.0 if base is Laplace else math.sqrt(2 / math.pi) / erfcx(ratio / math.sqrt(2))
    assert_allclose(-threshold.grad, hazard, rtol=rtol)


@pytest.mark.parametrize(("loc", "scale", "threshold", "prior_scale", "prior_threshold"), SETTINGS)
def test_kl_gradient_against_finite_differences(
    base, loc, scale, threshold, prior_scale, prior_threshold
):
    parameters = _tensors(loc, scale, threshold, prior_threshold)
    for parameter in parameters:
        parameter.requires_grad_()

    def kl(loc, scale, threshold, prior_threshold):
        return base.thresholded_kl(loc, scale, threshold, prior_scale, prior_threshold)

    # At a location of zero only the second derivative of the Laplace KL has a kink.
    assert torch.autograd.gradcheck(kl, parameters, atol=2e-6)
