"""Thresholded codes: calibration, Gamma thresholds, and how gradients pass the threshold."""

import math

import numpy as np
import pytest
import torch
from mixed_measure import assert_mean, integral
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from sklearn_vsc.latents import Noise, Thresholded, ThresholdedPosterior
from sklearn_vsc.latents.gamma import gamma_kl
from sklearn_vsc.latents.gaussian import Gaussian

BASES = ["laplace", "gaussian"]
GAMMA_SHAPES = [None, 3.0]


@pytest.fixture(params=BASES)
def base(request):
    return request.param


@pytest.fixture(params=GAMMA_SHAPES, ids=["fixed", "gamma"])
def gamma_shape(request):
    return request.param


def _posterior(family, *parameters):
    """Posterior of one row from numbers or lists: location, scale, Gamma shape and rate."""
    return ThresholdedPosterior(
        family, *(torch.tensor(p, dtype=torch.float64).reshape(1, -1) for p in parameters)
    )


# --- activity of the prior


@pytest.mark.parametrize(
    ("base", "prior_scale", "threshold", "fixed", "gamma"),
    [
        ("laplace", 0.1, 0.25, 0.0821, 0.1623),
        ("laplace", 0.1, 0.23, 0.1003, 0.1814),
        ("laplace", 0.1, 0.16, 0.2019, 0.2774),
        ("gaussian", math.sqrt(0.1), 0.52, 0.1001, 0.2137),
        ("gaussian", math.sqrt(0.1), 0.405, 0.2003, 0.2956),
    ],
)
def test_activity_at_published_thresholds(base, prior_scale, threshold, fixed, gamma):
    """A Gamma prior of the same mean keeps the mean threshold, but not the sparsity."""
    family = Thresholded(base, prior_scale=prior_scale, threshold=threshold)
    assert_allclose(family.prior_inclusion, fixed, atol=5e-5)
    family = Thresholded(base, prior_scale=prior_scale, threshold=threshold, gamma_shape=3.0)
    assert_allclose(family.prior_inclusion, gamma, atol=5e-5)


@pytest.mark.parametrize("density", [1e-4, 0.05, 0.1, 0.5, 0.99, 1 - 1e-9])
def test_threshold_from_density(base, gamma_shape, density):
    family = Thresholded(base, prior_scale=0.3, density=density, gamma_shape=gamma_shape)
    assert family.threshold > 0
    assert_allclose(family.prior_inclusion, density, rtol=1e-9)
    # Thresholds have the unit of the code.
    wide = Thresholded(base, prior_scale=300.0, density=density, gamma_shape=gamma_shape)
    assert_allclose(wide.threshold, 1e3 * family.threshold, rtol=1e-3 if density > 0.999 else 1e-9)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.6])
def test_threshold_from_density_in_closed_form(density):
    laplace = Thresholded("laplace", prior_scale=0.3, density=density)
    assert_allclose(laplace.threshold, -0.3 * math.log(density), rtol=1e-10)
    gaussian = Thresholded("gaussian", prior_scale=0.3, density=density)
    assert_allclose(gaussian.threshold, 0.3 * stats.norm.isf(density / 2), rtol=1e-10)
    # Solve (1 + 1 / (rate b))^-shape = density with rate = shape / threshold.
    gamma = Thresholded("laplace", prior_scale=0.3, density=density, gamma_shape=3.0)
    assert_allclose(gamma.threshold, 0.3 * 3 * math.expm1(-math.log(density) / 3), rtol=1e-10)


def test_threshold_at_a_small_gamma_shape():
    """The activity then falls so slowly that a threshold of 1e9 scales is needed."""
    family = Thresholded("laplace", density=0.1, gamma_shape=0.1)
    assert_allclose(family.threshold, 0.1 * (10**10 - 1), rtol=1e-6)


# --- limits of the threshold


def test_threshold_of_zero_recovers_the_base(base):
    family = Thresholded(base, threshold=0.0, gradient="straight_through")
    q = _posterior(family, [0.3, -2.0], [0.5, 1.5])
    noise = q.noise(1000, torch.Generator().manual_seed(0))
    draws = q.rsample(noise)
    assert draws.active.all()
    assert_allclose(draws.code, q.loc + q.scale * noise.base, rtol=1e-15)
    assert_allclose(q.inclusion, 1, rtol=1e-15)
    assert_allclose(q.mean, q.loc, rtol=1e-15)
    assert_allclose(q.variance, q.scale**2 * (2 if base == "laplace" else 1), rtol=1e-12)
    loc, scale = q.loc, q.scale
    assert_allclose(q.kl(), q.family.base_distribution.kl(loc, scale, 1.0), rtol=1e-12)


def test_large_threshold_leaves_only_zeros(base):
    q = _posterior(
        Thresholded(base, threshold=1e3, gradient="straight_through"), [0.3, -2.0], [0.5, 1.5]
    )
    draws = q.rsample(q.noise(1000, torch.Generator().manual_seed(0)))
    assert not draws.active.any()
    assert (draws.code == 0).all()
    for values in (q.inclusion, q.mean, q.variance, q.mode(), q.kl()):
        assert_allclose(values, 0, atol=1e-100)


def test_inclusion_falls_with_the_threshold_and_rises_with_the_scale(base, gamma_shape):
    def inclusion(threshold, scale):
        family = Thresholded(base, threshold=threshold, gamma_shape=gamma_shape)
        gamma = () if gamma_shape is None else ([gamma_shape], [gamma_shape / threshold])
        return _posterior(family, [0.7], [scale], *gamma).inclusion.item()

    falling = [inclusion(t, 1.0) for t in np.linspace(0.1, 6, 30)]
    rising = [inclusion(1.0, s) for s in np.linspace(0.1, 6, 30)]
    assert np.all(np.diff(falling) < 0)
    assert np.all(np.diff(rising) > 0)


@pytest.mark.parametrize("noise_scale", [0.0, 0.1, 0.5])
def test_noise_scale_warms_up_the_deviation_alone(base, noise_scale):
    family = Thresholded(base, threshold=0.6, gradient="straight_through")
    q = _posterior(family, [0.3, -2.0], [0.5, 1.5])
    noise = q.noise(1000, torch.Generator().manual_seed(0))
    deviation = noise_scale * q.scale * noise.base
    expected = torch.where(
        deviation.abs() > 0.6, q.loc + deviation - deviation.sign() * 0.6, torch.zeros(())
    )
    assert_allclose(q.rsample(noise, noise_scale).code, expected, rtol=1e-12)


# --- Gamma thresholds


@pytest.mark.parametrize(("scale", "shape", "rate"), [(0.7, 3.0, 4.0), (0.2, 0.8, 0.5), (2, 9, 30)])
def test_gamma_threshold_of_a_laplace_base_integrates_out(scale, shape, rate):
    """Draws, each with its own threshold, are distributed as with one fixed threshold."""
    loc, n = 0.4, 200_000
    rng = np.random.RandomState(0)
    threshold = rng.gamma(shape, 1 / rate, n)
    deviation = rng.laplace(0, scale, n)
    active = np.abs(deviation) > threshold
    code = np.where(active, loc + np.sign(deviation) * (np.abs(deviation) - threshold), 0)

    family = Thresholded("laplace", gamma_shape=3.0, gradient="straight_through")
    q = _posterior(family, [loc], [scale], [shape], [rate])
    assert_allclose(q.inclusion, (1 + 1 / (rate * scale)) ** -shape, rtol=1e-12)
    assert_allclose(q.inclusion, math.exp(-q.threshold.item() / scale), rtol=1e-12)
    assert_mean(active, q.inclusion.item())
    assert_mean(code, q.mean.item())
    assert_mean((code - q.mean.item()) ** 2, q.variance.item())
    # The slab does not depend on the threshold: it is Laplace at any threshold.
    assert stats.kstest(code[active], stats.laplace(loc, scale).cdf).pvalue > 1e-4
    high = active & (threshold > np.median(threshold[active]))
    assert stats.kstest(code[high], stats.laplace(loc, scale).cdf).pvalue > 1e-4
    # The sampler uses that fixed threshold.
    draws = q.rsample(q.noise(n, torch.Generator().manual_seed(0)))
    assert draws.threshold is None
    assert stats.ks_2samp(draws.code[draws.active].numpy(), code[active]).pvalue > 1e-4
    assert_mean(draws.active.flatten(), q.inclusion.item())


@pytest.mark.parametrize(
    ("scale", "shape", "rate"), [(1.0, 3.0, 2.0), (0.5, 2.0, 3.0), (2.0, 8.0, 6.0), (1.0, 1.5, 1.0)]
)
def test_moments_under_a_gamma_threshold_of_a_gaussian_base(scale, shape, rate):
    loc = 0.4
    q = _posterior(Thresholded("gaussian", gamma_shape=3.0), [loc], [scale], [shape], [rate])
    gamma = stats.gamma(shape, scale=1 / rate)
    cuts, last = gamma.ppf([1e-3, 0.1, 0.5, 0.9, 0.999]), gamma.isf(1e-20)

    def tails(t):
        a = t / scale
        sf, pdf = stats.norm.sf(a), stats.norm.pdf(a)
        return 2 * sf, scale**2 * ((1 + a**2) * 2 * sf - 2 * a * pdf)

    inclusion = integral(lambda t: gamma.pdf(t) * tails(t)[0], cuts, 0.0, last)
    second = integral(lambda t: gamma.pdf(t) * tails(t)[1], cuts, 0.0, last)
    assert_allclose(q.inclusion, inclusion, rtol=1e-6)
    assert_allclose(q.mean, inclusion * loc, rtol=1e-6)
    assert_allclose(q.variance, second + inclusion * (1 - inclusion) * loc**2, rtol=1e-6)


def test_moments_under_extreme_gamma_thresholds():
    """Steps and singularities that a fixed rule cannot resolve cause small errors only."""
    family = Thresholded("gaussian", gamma_shape=3.0)
    for scale, shape, rate in [(1.0, 60.0, 30.0), (4.0, 0.2, 1.0), (15.0, 3.4, 9.0), (1, 60, 120)]:
        q = _posterior(family, [0.4], [scale], [shape], [rate])
        gamma = stats.gamma(shape, scale=1 / rate)
        cuts, last = gamma.ppf([1e-3, 0.1, 0.5, 0.9, 0.999]), gamma.isf(1e-20)
        expected = integral(
            lambda t, g=gamma, s=scale: g.pdf(t) * 2 * stats.norm.sf(t / s), cuts, 0.0, last
        )
        assert_allclose(q.inclusion, expected, atol=2e-3)


def test_kl_of_codes_and_thresholds_that_are_drawn():
    """The joint KL is the KL of the thresholds plus the mean KL of the codes given them."""
    options = {"prior_scale": 0.8, "threshold": 0.9, "gradient": "straight_through"}
    family = Thresholded("gaussian", gamma_shape=3.0, **options)
    loc, scale, shape, rate = 0.5, 0.6, 4.0, 6.0
    q = _posterior(family, [loc], [scale], [shape], [rate])
    gamma = stats.gamma(shape, scale=1 / rate)

    def given_threshold(t):
        threshold = torch.full((1, 1), t, dtype=torch.float64)
        kl = family.base_distribution.thresholded_kl(q.loc, q.scale, threshold, 0.8, threshold)
        return gamma.pdf(t) * kl.item()

    codes = integral(given_threshold, gamma.ppf([1e-3, 0.1, 0.5, 0.9]), 0.0, gamma.isf(1e-20))
    thresholds = gamma_kl(q.shape, q.rate, 3.0, 3.0 / 0.9).item()
    assert_allclose(q.threshold_kl(), thresholds, rtol=1e-14)
    draws = q.rsample(q.noise(200_000, torch.Generator().manual_seed(0)))
    assert stats.kstest(draws.threshold.flatten(), gamma.cdf).pvalue > 1e-4
    assert_mean(q.kl(draws).flatten(), codes + thresholds)
    assert_mean(-q.log_ratio(draws).flatten(), codes + thresholds)
    # Without the density of the thresholds the mean would be the KL of the codes alone.
    assert thresholds > 0.05
    with pytest.raises(ValueError, match="draws of the threshold"):
        q.kl()


# --- the training objective's KL


def test_training_kl_of_the_base_is_never_smaller(base, gamma_shape):
    """So the published objective is a bound, with Gamma thresholds, too."""
    family = Thresholded(base, prior_scale=0.8, gamma_shape=gamma_shape, training_kl="base")
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(500, family.n_heads, 4, generator=generator, dtype=torch.float64)
    q = family.posterior(heads)
    draws = q.rsample(q.noise(20, generator))
    gap = q.training_kl(draws) - q.kl(draws)
    assert (gap >= -1e-12).all()
    assert gap.mean() > 0.05


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_training_kl_weights_the_kl_of_the_thresholds(base, weight):
    heads = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    published = Thresholded(
        base, gamma_shape=3.0, training_kl="base", threshold_kl_weight=weight
    ).posterior(heads)
    expected = published.family.base_distribution.kl(published.loc, published.scale, 1.0)
    expected = expected + weight * published.threshold_kl()
    assert_allclose(published.training_kl(), expected, rtol=1e-14)

    exact = Thresholded(base, gamma_shape=3.0, threshold_kl_weight=weight).posterior(heads)
    draws = exact.rsample(exact.noise(1, torch.Generator().manual_seed(1)))
    expected = exact.kl(draws)
    if base == "gaussian":
        expected = expected - (1 - weight) * exact.threshold_kl()
    assert_allclose(exact.training_kl(draws), expected, rtol=1e-12, atol=1e-13)


# --- the point estimate


def test_mode_under_a_fixed_threshold(base):
    q = _posterior(Thresholded(base, threshold=0.6), [0.59, 0.61, -0.59, -0.61, 3.0], [1.0] * 5)
    assert_array_equal(q.mode() == 0, [[True, False, True, False, False]])
    assert_array_equal(q.mode()[q.mode() != 0], q.mean[q.mode() != 0])


def test_mode_under_a_gamma_threshold(base):
    """The location, however small, where the code is more likely non-zero than zero."""
    family = Thresholded(base, threshold=1.0, gamma_shape=3.0)
    q = _posterior(family, [0.01, 5.0], [1.0, 1.0], [3.0, 3.0], [30.0, 1.0])
    assert q.inclusion[0, 0] > 0.5 > q.inclusion[0, 1]
    assert_allclose(q.mode(), [[0.01, 0.0]])


# --- how gradients pass the threshold


def _codes_and_gradients(base, gradient, noise_scale=1.0):
    """Codes of one draw and their diagonal gradients for location, log scale, threshold.

    With a Gaussian base the drawn thresholds are taken as given, so that they can be leaves.
    """
    family = Thresholded(base, threshold=0.5, gamma_shape=3.0, gradient=gradient)
    generator = torch.Generator().manual_seed(0)
    n = 400
    loc, log_scale = torch.randn(2, 1, n, generator=generator, dtype=torch.float64)
    shape, rate = torch.full((2, 1, n), 3.0, dtype=torch.float64)
    threshold = 0.7 * torch.rand(1, 1, n, generator=generator, dtype=torch.float64)
    leaves = [loc, log_scale, threshold, rate]
    for leaf in leaves:
        leaf.requires_grad_()
    q = ThresholdedPosterior(family, loc, log_scale.exp(), shape, rate)
    noise = q.noise(1, generator)
    noise = Noise(noise.base, noise.gate, None if base == "laplace" else threshold)
    draws = q.rsample(noise, noise_scale)
    gradients = torch.autograd.grad(draws.code.sum(), leaves, allow_unused=True)
    deviation = noise_scale * log_scale.exp() * noise.base
    assert 50 < draws.active.sum() < 350
    return q, draws, deviation.detach().reshape(1, n), gradients


@pytest.mark.parametrize("noise_scale", [0.7, 1.0])
def test_straight_through_gradients(noise_scale):
    """Location and scale as if nothing were thresholded, the threshold by active codes alone.

    The published code mistakenly counts the gradient of the location twice for active codes.
    """
    _, draws, deviation, gradients = _codes_and_gradients(
        "gaussian", "straight_through", noise_scale
    )
    active = draws.active[0]
    assert_allclose(gradients[0], 1.0)
    assert_allclose(gradients[1], deviation, rtol=1e-12)
    assert_allclose(gradients[2][0], torch.where(active, -deviation.sign(), 0.0))


@pytest.mark.parametrize("noise_scale", [0.7, 1.0])
def test_subgradients(noise_scale):
    """The derivative of the draw itself, zero where the draw is zero."""
    _, draws, deviation, gradients = _codes_and_gradients("gaussian", "subgradient", noise_scale)
    active = draws.active[0]
    assert_allclose(gradients[0], active.double())
    assert_allclose(gradients[1], torch.where(active, deviation, 0.0), rtol=1e-12)
    assert_allclose(gradients[2][0], torch.where(active, -deviation.sign(), 0.0))


@pytest.mark.parametrize("gradient", ["straight_through", "subgradient"])
def test_gradients_through_the_fixed_threshold_equivalent_to_a_gamma(gradient):
    """A Laplace base's threshold is a function of scale, shape and rate."""
    q, draws, deviation, gradients = _codes_and_gradients("laplace", gradient)
    active = draws.active[0]
    scale, rate = q.scale.detach(), q.rate.detach()
    share = 1 / (1 + rate * scale)
    by_rate = -3.0 * scale * share / rate
    by_log_scale = 3.0 * scale * (torch.log1p(1 / (rate * scale)) - share)
    sign = torch.where(active, deviation.sign(), 0.0)
    raw = deviation if gradient == "straight_through" else torch.where(active, deviation, 0.0)
    assert_allclose(gradients[0], 1.0 if gradient == "straight_through" else active.double())
    assert_allclose(gradients[1], raw - sign * by_log_scale, rtol=1e-10, atol=1e-13)
    assert_allclose(gradients[3], -sign * by_rate, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_does_not_change_the_draws(base, gamma_shape, dtype):
    heads = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes = []
    for gradient in ("straight_through", "subgradient"):
        family = Thresholded(base, gamma_shape=gamma_shape, gradient=gradient)
        q = family.posterior(heads[:, : family.n_heads])
        codes.append(q.rsample(q.noise(20, torch.Generator().manual_seed(1))).code)
    assert torch.equal(*codes)


# --- relaxed gates


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-9), (torch.float32, 3e-4)])
def test_slab_of_a_gaussian_base_has_the_tail_of_its_noise(dtype, accuracy):
    """P(further out, given on) equals the noise's, from thresholds of zero to far tails."""
    ratio = torch.tensor([0, 1e-8, 1e-3, 0.1, 0.5, 1, 2, 5, 10, 30], dtype=dtype)
    noise = torch.tensor([0, 1e-8, 1e-4, 0.01, 0.3, 1, 2, 4, 6, 8], dtype=dtype)
    noise, ratio = torch.meshgrid(noise, ratio, indexing="ij")
    scale = torch.full_like(ratio, 0.3)
    found = Gaussian.slab_deviation(noise, scale, scale * ratio)
    assert (found >= 0).all() and found.dtype == dtype
    assert_allclose(found, -Gaussian.slab_deviation(-noise, scale, scale * ratio))
    reached = stats.norm.logsf(found.double() / 0.3 + ratio.double())
    expected = stats.norm.logsf(noise.double()) + math.log(2) + stats.norm.logsf(ratio.double())
    assert_allclose(reached, expected, rtol=accuracy, atol=accuracy)


def test_gradients_of_the_slab_of_a_gaussian_base():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, generator=generator, dtype=torch.float64)
    scale = torch.rand(60, generator=generator, dtype=torch.float64) + 0.2
    threshold = 3 * torch.rand(60, generator=generator, dtype=torch.float64)
    leaves = scale.requires_grad_(), threshold.requires_grad_()
    assert torch.autograd.gradcheck(lambda *at: Gaussian.slab_deviation(noise, *at), leaves)


def test_relaxed_gates_of_a_laplace_base_are_those_of_its_spike_and_slab():
    family = Thresholded("laplace", gamma_shape=3.0, gradient="gumbel_softmax")
    family.temperature = 0.7
    heads = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    q = family.posterior(heads)
    gates = q.as_gated()
    assert gates.family.temperature == 0.7
    noise = q.noise(50, torch.Generator().manual_seed(1))
    found, expected = q.rsample(noise), gates.rsample(noise)
    assert_allclose(found.code, expected.code, rtol=1e-12)
    assert torch.equal(found.active, expected.active)


def test_relaxed_gates_are_relaxed_in_training_alone(base, gamma_shape):
    family = Thresholded(base, gamma_shape=gamma_shape, gradient="gumbel_softmax")
    heads = torch.randn(5, family.n_heads, 3, generator=torch.Generator().manual_seed(0)).double()
    q = family.posterior(heads)
    noise = q.noise(200, torch.Generator().manual_seed(1))
    relaxed = q.rsample(noise)
    with torch.no_grad():
        hard = q.rsample(noise)
    assert torch.equal(hard.active, relaxed.active)
    assert torch.equal(hard.code != 0, hard.active)
    assert (relaxed.code != 0).double().mean() > hard.active.double().mean() + 0.2
    distances = []
    for family.temperature in (1.0, 0.3, 0.1, 0.01):
        distances.append((q.rsample(noise).code - hard.code).abs().mean().item())
    assert np.all(np.diff(distances) < 0) and distances[-1] < 0.02


def test_gradients_of_relaxed_gates(base, gamma_shape):
    """A relaxed draw is a smooth function of the heads."""
    family = Thresholded(base, gamma_shape=gamma_shape, gradient="gumbel_softmax")
    generator = torch.Generator().manual_seed(0)
    heads = 0.5 * torch.randn(3, family.n_heads, 4, generator=generator, dtype=torch.float64)
    noise = family.posterior(heads).noise(2, generator)

    def codes(heads):
        return family.posterior(heads).rsample(noise).code

    assert torch.autograd.gradcheck(codes, heads.requires_grad_())
