"""The contract of a latent family. A new family is one more line in FAMILIES."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from mixed_measure import assert_mean, integral, log_evidence, posterior_integrals
from numpy.testing import assert_allclose
from scipy import special, stats
from torch import nn

from sklearn_vsc._models import bounds
from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc.latents import Continuous, Draws, LatentFamily, Noise, SpikeSlab, Thresholded
from sklearn_vsc.likelihoods import GaussianLikelihood
from sklearn_vsc.networks import LinearDecoder

# --- priors by SciPy: the log sub-density of codes that are not zero


def thresholded(base, threshold):
    """A deviation beyond the threshold, shrunk by it."""
    return lambda z: base.logpdf(abs(z) + threshold)


def gated(slab, density):
    """The slab, or zero."""
    return lambda z: slab.logpdf(z) + math.log(density)


def gamma_thresholded(base, shape, mean, n_nodes=200):
    """The same with a Gamma threshold integrated out."""
    gamma = stats.gamma(shape, scale=mean / shape)
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    last = gamma.isf(1e-18)
    thresholds = 0.5 * last * (nodes + 1)
    weights = 0.5 * last * weights * gamma.pdf(thresholds)
    return lambda z: special.logsumexp(base.logpdf(abs(z) + thresholds), b=weights)


# --- the families


def _random_heads(family, n_rows, n_components, generator):
    shape = (n_rows, family.n_heads, n_components)
    return 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A family, its prior away from zero, and random heads that are not too extreme.

    ``is_own_posterior`` says that heads at zero give the prior, and ``has_moments`` that the
    posterior has a mean and a variance.
    """

    make: Callable[[], LatentFamily]
    log_slab: Callable[[float], float]
    heads: Callable = _random_heads
    is_own_posterior: bool = True
    has_moments: bool = True

    def slab(self, z):
        return math.exp(self.log_slab(z))


def continuous(prior, posterior, distribution):
    """One pair of prior and posterior, both without an atom at zero."""
    return Case(
        lambda: Continuous(prior, posterior, prior_scale=distribution.kwds["scale"]),
        distribution.logpdf,
        is_own_posterior=prior == posterior,
        has_moments=posterior != "cauchy",
    )


_LAPLACE, _GAUSSIAN = stats.laplace(scale=0.7), stats.norm(scale=1.3)
_CAUCHY = stats.cauchy(scale=0.9)


def threshold_case(base, threshold, gamma_shape=None, **options):
    """A thresholded base, whose threshold is fixed or has a Gamma distribution of that mean."""
    scipy_base = {"laplace": _LAPLACE, "gaussian": _GAUSSIAN}[base]
    options = {"gradient": "straight_through"} | options
    options |= {"prior_scale": scipy_base.kwds["scale"], "gamma_shape": gamma_shape}
    return Case(
        lambda: Thresholded(base, threshold=threshold, **options),
        thresholded(scipy_base, threshold)
        if gamma_shape is None
        else gamma_thresholded(scipy_base, gamma_shape, threshold),
    )


FAMILIES = {
    "thresholded_laplace": threshold_case("laplace", 0.9),
    "thresholded_laplace_gamma": threshold_case("laplace", 0.9, 3.0),
    "thresholded_laplace_subgradient": threshold_case("laplace", 0.2, gradient="subgradient"),
    "thresholded_gaussian": threshold_case("gaussian", 1.1),
    "thresholded_gaussian_gamma": threshold_case("gaussian", 1.1, 3.2),
    "thresholded_laplace_gates": threshold_case("laplace", 0.9, gradient="gumbel_softmax"),
    "thresholded_gaussian_gates": threshold_case("gaussian", 1.1, gradient="gumbel_softmax"),
    "thresholded_gaussian_gamma_gates": threshold_case(
        "gaussian", 1.1, 3.2, gradient="gumbel_softmax"
    ),
    "gaussian": continuous("gaussian", "gaussian", _GAUSSIAN),
    "gaussian_prior_laplace_posterior": continuous("gaussian", "laplace", _GAUSSIAN),
    "laplace": continuous("laplace", "laplace", _LAPLACE),
    "laplace_prior_gaussian_posterior": continuous("laplace", "gaussian", _LAPLACE),
    "cauchy": continuous("cauchy", "cauchy", _CAUCHY),
    "cauchy_prior_gaussian_posterior": continuous("cauchy", "gaussian", _CAUCHY),
    "cauchy_prior_laplace_posterior": continuous("cauchy", "laplace", _CAUCHY),
    "spike_slab_gaussian": Case(
        lambda: SpikeSlab("gaussian", prior_scale=1.3, density=0.3, gradient="straight_through"),
        gated(_GAUSSIAN, 0.3),
    ),
    "spike_slab_laplace": Case(
        lambda: SpikeSlab("laplace", prior_scale=0.7, density=0.6, gradient="score"),
        gated(_LAPLACE, 0.6),
    ),
}


@pytest.fixture(params=FAMILIES, scope="module")
def case(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def family(case):
    return case.make()


@pytest.fixture(scope="module")
def heads(case, family):
    return case.heads(family, 3, 2, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def q(family, heads):
    return family.posterior(heads)


@torch.no_grad()
def _draws(posterior, n_draws, seed=0):
    return posterior.rsample(posterior.noise(n_draws, torch.Generator().manual_seed(seed)))


def _prior_as_posterior(family, n_rows, n_components):
    heads = torch.zeros(n_rows, family.n_heads, n_components, dtype=torch.float64)
    return family.posterior(heads)


def _prior_draws(family, shape, n_draws, seed=0):
    """Draws of the prior; thresholds, where they are part of the latent, along with the code."""
    if _more_than_the_code_is_latent(family):
        return _draws(_prior_as_posterior(family, *shape), n_draws, seed)
    generator = torch.Generator().manual_seed(seed)
    code = family.sample_prior((n_draws, *shape), generator, torch.float64)
    return Draws(code, code != 0)


def _more_than_the_code_is_latent(family):
    return _draws(_prior_as_posterior(family, 1, 1), 1).threshold is not None


def _needs_the_code_alone(family):
    if _more_than_the_code_is_latent(family):
        pytest.skip("More than the code is latent: its distribution is not one-dimensional.")


def _needs_prior_among_posteriors(case):
    if not case.is_own_posterior:
        pytest.skip("The prior is not one of the posteriors of this family.")


# --- shapes and types


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types(case, family, dtype):
    n_rows, n_components, n_draws = 4, 3, 5
    heads = case.heads(family, n_rows, n_components, torch.Generator().manual_seed(2))
    q = family.posterior(heads.to(dtype))
    draws = _draws(q, n_draws)
    per_code = [q.mean, q.inclusion, q.mode()]
    per_draw = [draws.code, q.log_ratio(draws)]
    if family.has_closed_kl:
        per_code += [q.kl(), q.training_kl()]
    else:
        per_draw += [q.kl(draws), q.training_kl(draws)]
    for values in [*per_code, q.variance]:
        assert values.shape == (n_rows, n_components)
        assert values.dtype == dtype
    for values in per_draw:
        assert values.shape == (n_draws, n_rows, n_components)
    assert draws.active.shape == draws.code.shape
    assert draws.active.dtype == torch.bool
    for values in per_code + per_draw:
        assert values.dtype == dtype
        assert values.isfinite().all()
    assert (q.variance.isfinite() == case.has_moments).all()


def test_float32_agrees_with_float64(family, heads):
    single, double = family.posterior(heads.float()), family.posterior(heads)
    for name in ("mean", "variance", "inclusion"):
        assert_allclose(getattr(single, name), getattr(double, name), rtol=2e-5, atol=1e-6)
    draws = _draws(double, 50)
    rounded = type(draws)(
        draws.code.float(),
        draws.active,
        None if draws.threshold is None else draws.threshold.float(),
    )
    assert_allclose(single.log_ratio(rounded), double.log_ratio(draws), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inactive_codes_are_exactly_zero(case, family, dtype):
    heads = case.heads(family, 20, 10, torch.Generator().manual_seed(3)).to(dtype)
    draws = _draws(family.posterior(heads), 50)
    assert (draws.code[~draws.active] == 0).all()
    assert (draws.code[draws.active] != 0).all()
    if family.prior_inclusion < 1:
        assert 0 < draws.active.double().mean() < 1


# --- the prior


def test_heads_at_zero_give_the_prior(case, family):
    _needs_prior_among_posteriors(case)
    prior = _prior_as_posterior(family, 2, 3)
    assert_allclose(prior.inclusion, family.prior_inclusion, rtol=1e-12)
    assert_allclose(prior.variance, family.prior_variance, rtol=1e-12)
    assert_allclose(prior.mean, 0, atol=1e-14)
    assert (prior.mode() == 0).all()
    draws = _draws(prior, 100)
    assert_allclose(prior.kl(draws), 0, atol=1e-12)
    assert_allclose(prior.log_ratio(draws), 0, atol=1e-12)


def test_prior_is_the_documented_one(case, family):
    points = (0.0,)
    inclusion = integral(case.slab, points)
    assert_allclose(family.prior_inclusion, inclusion, rtol=1e-8)
    if math.isfinite(family.prior_variance):
        variance = integral(lambda z: z**2 * case.slab(z), points)
        assert_allclose(family.prior_variance, variance, rtol=1e-8)
    else:
        # Tails that fall no faster than 1 / z^2.
        assert 1e8 * case.slab(1e4) == pytest.approx(1e12 * case.slab(1e6), rel=1e-3)


def test_prior_draws(family, case):
    n = 100_000
    codes = family.sample_prior((n // 4, 4), torch.Generator().manual_seed(4), torch.float64)
    assert codes.shape == (n // 4, 4)
    assert codes.dtype == torch.float64
    codes = codes.flatten().numpy()
    assert_mean(codes != 0, family.prior_inclusion)
    assert_mean(np.sign(codes), 0.0)
    if math.isfinite(family.prior_variance):
        assert_mean(codes, 0.0)
        assert_mean(codes**2, family.prior_variance)
    # Features near zero and far out, which moments do not show.
    assert_mean(
        np.where(codes == 0, 0, np.exp(-np.abs(codes))),
        integral(lambda z: math.exp(-abs(z)) * case.slab(z), (0.0,)),
    )
    assert_mean(np.abs(codes) > 2, 2 * integral(case.slab, (), 2.0))


def test_prior_draws_depend_on_the_generator_alone(family):
    def draw(seed):
        return family.sample_prior((7, 2), torch.Generator().manual_seed(seed), torch.float32)

    state = torch.get_rng_state()
    first, other = draw(0), draw(1)
    torch.manual_seed(99)
    assert torch.equal(draw(0), first)
    torch.set_rng_state(state)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32


# --- the posterior, by quadrature


def test_posterior_by_quadrature(case, family, q):
    """``log_ratio``, inclusion, mean, variance and KL belong to one distribution."""
    _needs_the_code_alone(family)

    def functions(z, log_ratio):
        one = np.ones_like(log_ratio)
        moments = [z * one, z**2 * one] if case.has_moments else []
        return np.stack([one, -log_ratio, *moments])

    integrals, mass_at_zero = posterior_integrals(family, q, case.log_slab, functions)
    total, kl, *moments = integrals
    # For a Gamma threshold the reference prior is itself a quadrature.
    assert_allclose(total, 1, rtol=1e-9)
    assert_allclose(1 - mass_at_zero, q.inclusion, rtol=1e-9)
    if case.has_moments:
        first, second = moments
        assert_allclose(first, q.mean, rtol=1e-9)
        assert_allclose(second - first**2, q.variance, rtol=1e-9)
    else:
        # The median takes the place of the mean.
        below, _ = posterior_integrals(
            family, q, case.log_slab, lambda z, _: (z < q.mean.numpy())[None].astype(float)
        )
        assert_allclose(below[0], 0.5, rtol=1e-6)
    if family.has_closed_kl:
        assert_allclose(kl, q.kl(), rtol=1e-9)
    else:
        assert_mean(q.kl(_draws(q, 200_000)), kl)


# --- the posterior, by draws


def test_draws_have_the_stated_moments(case, q):
    draws = _draws(q, 50_000)
    code = draws.code.numpy()
    assert_mean(draws.active, q.inclusion)
    if case.has_moments:
        assert_mean(code, q.mean)
        assert_mean((code - q.mean.numpy()) ** 2, q.variance)
    else:
        assert_mean(code < q.mean.numpy(), np.full(q.mean.shape, 0.5))


def test_mean_log_ratio_is_minus_the_kl(family, q):
    draws = _draws(q, 50_000, seed=1)
    paired = q.log_ratio(draws) + q.kl(draws)
    if family.has_closed_kl or _more_than_the_code_is_latent(family):
        assert paired.std() > 1e-3
        assert_mean(paired, np.zeros(paired.shape[1:]))
    else:
        # The KL of a draw is its log ratio itself.
        assert torch.equal(q.kl(draws), -q.log_ratio(draws))


TEST_FUNCTIONS = {
    "one": lambda draws: torch.ones_like(draws.code),
    "active": lambda draws: draws.active.double(),
    "wave": lambda draws: torch.sin(2 * draws.code + 0.5),
    "near": lambda draws: (draws.code.abs() < 0.5).double(),
}


@pytest.mark.parametrize("function", TEST_FUNCTIONS.values(), ids=TEST_FUNCTIONS)
def test_log_ratio_belongs_to_the_distributions_drawn_from(family, q, function):
    """With w = p/q, E_q[f w / (1 + w)] = E_p[f / (1 + w)]: bounded, so it holds for any family.

    A wrong constant in ``log_ratio``, or draws from another distribution, make the sides differ.
    """
    n = 50_000
    from_q = _draws(q, n, seed=2)
    from_p = _prior_draws(family, q.mean.shape, n, seed=3)
    left = function(from_q) * torch.sigmoid(q.log_ratio(from_q))
    right = function(from_p) * torch.sigmoid(-q.log_ratio(from_p))
    assert_mean(left - right, np.zeros(q.mean.shape))


@torch.no_grad()
def test_row_is_the_posterior_of_that_row_alone(family, heads, q):
    for i in range(len(heads)):
        row, alone = q.row(i), family.posterior(heads[i : i + 1])
        for posterior in (row, alone):
            assert_allclose(posterior.mean[0], q.mean[i], rtol=1e-14)
            assert_allclose(posterior.inclusion[0], q.inclusion[i], rtol=1e-14)
        noise = row.noise(5, torch.Generator().manual_seed(i))
        assert torch.equal(row.rsample(noise).code, alone.rsample(noise).code)


@torch.no_grad()
def test_noise_of_single_rows_joins_into_a_batch(q):
    n_rows = len(q.mean)
    parts = [q.row(i).noise(6, torch.Generator().manual_seed(i)) for i in range(n_rows)]
    joined = q.rsample(Noise.concatenate(parts))
    for i, part in enumerate(parts):
        alone = q.row(i).rsample(part)
        assert torch.equal(joined.code[:, i], alone.code[:, 0])
        assert torch.equal(joined.active[:, i], alone.active[:, 0])


@torch.no_grad()
def test_noise_joins_along_draws_too(q):
    parts = [q.noise(n, torch.Generator().manual_seed(n)) for n in (2, 5)]
    joined = q.rsample(Noise.concatenate(parts, dim=0))
    assert torch.equal(joined.code[:2], q.rsample(parts[0]).code)
    assert torch.equal(joined.code[2:], q.rsample(parts[1]).code)
    first = q.rsample(Noise.concatenate(parts, dim=0).first(3))
    assert torch.equal(first.code, joined.code[:3])


def test_noise_leaves_the_global_generator_alone(q):
    state = torch.get_rng_state()
    first = _draws(q, 3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(_draws(q, 3, seed=5).code, first.code)
    assert not torch.equal(_draws(q, 3, seed=6).code, first.code)


# --- KL


def test_kl_is_positive_unless_equal(case, family):
    heads = case.heads(family, 200, 3, torch.Generator().manual_seed(7))
    q = family.posterior(heads)
    if family.has_closed_kl or _more_than_the_code_is_latent(family):
        # With drawn thresholds, the KL of the codes given the threshold is positive in each draw.
        assert (q.kl(_draws(q, 1)) > 0).all()
    else:
        assert (q.kl(_draws(q, 3000)).mean(0) > 0).all()


@pytest.mark.parametrize("step", [-0.2, 0.2])
def test_every_head_moves_the_posterior(case, family, step):
    """Away from the prior, where heads at zero give the prior."""
    heads = step * torch.eye(family.n_heads, dtype=torch.float64)[..., None]
    q, centre = family.posterior(heads), family.posterior(torch.zeros_like(heads))
    moved = q.kl(_draws(q, 100)) - centre.kl(_draws(centre, 100))
    # A KL by draws is noisy.
    signed = case.is_own_posterior and family.has_closed_kl
    assert ((moved if signed else moved.abs()).reshape(-1, family.n_heads) > 1e-5).all()


# --- gradients


def _everything_differentiable(q, n_draws=4):
    draws = q.rsample(q.noise(n_draws, torch.Generator().manual_seed(0)))
    return (
        draws.code.sum()
        + q.kl(draws).sum()
        + q.training_kl(draws).sum()
        + (q.log_ratio(draws).sum())
    )


def test_gradients_reach_every_head(heads, family):
    heads = heads.clone().requires_grad_()
    _everything_differentiable(family.posterior(heads)).backward()
    assert heads.grad.isfinite().all()
    assert (heads.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3.0, 50.0, 1e4])
def test_gradients_are_finite_at_extreme_heads(case, family, dtype, size):
    """Every corner: tiny scales, and inclusions of zero and one."""
    corners = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * family.n_heads)
    heads = corners[..., None].to(dtype).requires_grad_()
    q = family.posterior(heads)
    objective = _everything_differentiable(q)
    assert objective.isfinite()
    objective.backward()
    assert heads.grad.isfinite().all()
    for values in (q.mean, q.inclusion, q.mode()):
        assert values.isfinite().all()
    assert (q.variance.isfinite() == case.has_moments).all()
    assert (q.variance >= -1e-12).all()  # a variance of zero may be rounded down
    assert ((q.inclusion >= 0) & (q.inclusion <= 1)).all()


def test_kl_gradient_against_finite_differences(family, heads):
    noise = family.posterior(heads).noise(1, torch.Generator().manual_seed(8))

    def kl(heads):
        q = family.posterior(heads)
        # Where there is no closed form, the KL of these draws: their noise stays the same.
        return q.kl(q.rsample(noise))

    assert torch.autograd.gradcheck(kl, heads.clone().requires_grad_())


def test_gradient_of_draws_against_finite_differences(family, heads):
    if not family.is_continuous:
        pytest.skip("Draws jump.")
    noise = family.posterior(heads).noise(2, torch.Generator().manual_seed(8))

    def codes_and_ratios(heads):
        q = family.posterior(heads)
        draws = q.rsample(noise)
        return draws.code, q.log_ratio(draws)

    assert torch.autograd.gradcheck(codes_and_ratios, heads.clone().requires_grad_())


# --- bounds on log p(x), one latent


class _FixedHeads(nn.Module):
    """A stand-in for a network: the same posterior for each row."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x):
        return self.heads.expand(len(x), -1, -1)


ATOM = torch.tensor([[1.0, -0.5, 0.8]], dtype=torch.float64)
NOISE_VARIANCE = 0.3


@pytest.mark.parametrize("x", [(0.9, -0.4, 0.3), (2.5, -1.5, 2.0), (0.0, 0.1, -0.1)])
def test_bounds_stay_below_the_evidence_and_rise_to_it(case, family, x):
    x = torch.tensor([x], dtype=torch.float64)
    heads = torch.zeros(1, family.n_heads, 1, dtype=torch.float64)
    heads[:, 0], heads[:, 1] = 0.5, 0.1
    heads[:, 2:] = 0.2
    likelihood = GaussianLikelihood(NOISE_VARIANCE, learned=False)
    model = LatentVariableModel(
        nn.Identity(), _FixedHeads(heads), LinearDecoder(ATOM), likelihood, family
    ).double()
    likelihood.set_noise_variance(NOISE_VARIANCE)

    log_p = log_evidence(
        case.log_slab, family.prior_inclusion, x[0].numpy(), ATOM[0].numpy(), NOISE_VARIANCE
    )
    n_rows = 4000
    rows = x.expand(n_rows, -1)
    with torch.no_grad():
        posterior = model.posterior(rows)
        draws = _draws(posterior, 100, seed=9)
        weights = model.log_weights(rows, posterior, draws, exact_ratio=True)
        smoothed = model.log_weights(rows, posterior, draws, exact_ratio=False)

    # Importance weights are unbiased only with every constant in place.
    assert_mean((weights - log_p).exp().flatten(), 1.0)

    # The ELBO from exact weights, with the KL in place of the ratio, and in closed form.
    assert_mean((weights - smoothed).flatten(), 0.0)
    elbo = bounds.elbo(weights).numpy()
    if family.has_closed_kl:
        q = model.posterior(x)
        closed = (model.expected_log_likelihood(x, q) - q.kl().sum(-1)).item()
        assert closed < log_p
        if case.has_moments:
            assert_mean(elbo, closed)
        else:
            assert closed == -math.inf

    # Without moments, the best of a few draws does not have a variance either.
    sizes = (1, 2, 5, 20, 100) if case.has_moments else (8, 30, 100)
    levels = [bounds.iwae(weights[:n]).numpy() for n in sizes]
    levels = [elbo, *levels] if case.has_moments else levels
    for lower, higher in pairwise(levels):
        gain = higher - lower
        assert gain.mean() > -4 * gain.std() / math.sqrt(n_rows)
    for bound in levels:
        assert bound.mean() < log_p + 4 * bound.std() / math.sqrt(n_rows)
    # The bound is not so loose that it would pass trivially.
    assert log_p - levels[-1].mean() < 0.2 * (log_p - levels[0].mean())
    assert log_p - levels[0].mean() > 0.02


# --- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_posterior_on_the_gpu(family, heads, q):
    on_gpu = family.posterior(heads.cuda())
    # Noise may come from a generator of either device.
    noise = on_gpu.noise(50, torch.Generator().manual_seed(0))
    assert noise.base.is_cuda
    draws, same = on_gpu.rsample(noise), _draws(q, 50)
    assert_allclose(draws.code.cpu(), same.code, rtol=1e-9, atol=1e-12)
    assert_allclose(on_gpu.log_ratio(draws).cpu(), q.log_ratio(same), rtol=1e-9, atol=1e-9)
    for name in ("mean", "variance", "inclusion"):
        assert_allclose(getattr(on_gpu, name).cpu(), getattr(q, name), rtol=1e-9)
    native = on_gpu.rsample(on_gpu.noise(20_000, torch.Generator("cuda").manual_seed(0)))
    assert_mean(native.active.cpu(), q.inclusion)
