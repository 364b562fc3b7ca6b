"""The model's bounds against exact values: one latent in closed form, and orthonormal atoms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import integrate, stats
from scipy.special import erfcx, log_ndtr
from torch import nn
from training_bounds import training_bound

from sklearn_vsc._models import bounds
from sklearn_vsc._models.latent_variable import Heads, LatentVariableModel
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.latents import Continuous, SpikeSlab, Thresholded, ThresholdedPosterior
from sklearn_vsc.likelihoods import BernoulliLikelihood, GaussianLikelihood
from sklearn_vsc.networks import LinearDecoder


class FixedHeads(nn.Module):
    """Stands in for a network: the same posterior for each row."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x):
        return self.heads.expand(len(x), -1, -1)


def _tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def _model(family, heads, weight, noise_variance):
    likelihood = GaussianLikelihood(noise_variance, learned=False)
    model = LatentVariableModel(nn.Identity(), heads, LinearDecoder(weight), likelihood, family)
    model.double()
    # The constructor rounds to float32, the type of new modules.
    likelihood.set_noise_variance(noise_variance)
    return model


def _standard_error(values):
    return values.std().item() / math.sqrt(len(values))


def _draws(posterior, n_draws, seed=0):
    return posterior.rsample(posterior.noise(n_draws, torch.Generator().manual_seed(seed)))


# --- one latent: thresholded Laplace prior with scale 0.6 and threshold 0.5; posterior with
#     location 0.3, scale 0.7, threshold 0.4; atom a, row x, noise with standard deviation 0.5

ATOM, ROW = (1.0, -0.5, 0.8), (0.9, -0.4, 0.3)
LOC, SCALE, THRESHOLD, PRIOR_SCALE, PRIOR_THRESHOLD, SIGMA = 0.3, 0.7, 0.4, 0.6, 0.5, 0.5
GAMMA_SHAPE = 3.0

LOG_P, LOG_LIKELIHOOD = -2.4956649804, -4.1733662340
KL, BASE_KL, ELBO = 0.0938394633, 0.1058615540, -4.2672056973
# Means and standard errors of independent Monte Carlo runs.
IWAE = {
    1: (-4.265, 0.002),
    2: (-2.7459, 0.0007),
    5: (-2.5442, 0.0003),
    20: (-2.5064, 0.0002),
    100: (-2.4977, 0.0002),
    1000: (-2.4955, 0.0002),
}


def _gamma_rate(threshold, scale):
    """Rate of the Gamma prior with the same inclusion as the fixed threshold."""
    return 1 / (scale * math.expm1(threshold / (scale * GAMMA_SHAPE)))


def _head_of(value, centre):
    """Inverse of the bounded exponential that turns a head into a positive parameter."""
    reach = 10.0 if value < centre else 3.0
    return reach * math.atanh(math.log(value / centre) / reach)


def _fixture_model(**options):
    """A Gamma threshold lets prior and posterior have thresholds of their own."""
    prior_rate = _gamma_rate(PRIOR_THRESHOLD, PRIOR_SCALE)
    family = Thresholded(
        prior_scale=PRIOR_SCALE,
        threshold=GAMMA_SHAPE / prior_rate,
        gamma_shape=GAMMA_SHAPE,
        **options,
    )
    heads = [
        LOC / PRIOR_SCALE,
        _head_of(SCALE, PRIOR_SCALE),
        0.0,
        _head_of(_gamma_rate(THRESHOLD, SCALE), prior_rate),
    ]
    heads = FixedHeads(_tensor(heads)[None, :, None])
    return _model(family, heads, _tensor([ATOM]), SIGMA**2)


def _row(n=1):
    return _tensor([ROW]).expand(n, -1)


@pytest.fixture(scope="module")
def log_weights():
    """Two million exact log weights of the fixture, and those with the KL in place of the ratio."""
    n_rows = 2000
    model, x = _fixture_model(), _row(n_rows)
    with torch.no_grad():
        posterior = model.posterior(x)
        draws = _draws(posterior, 1000)
        exact = model.log_weights(x, posterior, draws, exact_ratio=True)
        smoothed = model.log_weights(x, posterior, draws, exact_ratio=False)
    return exact, smoothed


def test_fixture_has_its_parameters():
    q = _fixture_model().posterior(_row())
    assert_allclose(q.loc, LOC, rtol=1e-14)
    assert_allclose(q.scale, SCALE, rtol=1e-14)
    assert_allclose(q.threshold, THRESHOLD, rtol=1e-13)
    assert_allclose(q.inclusion, math.exp(-THRESHOLD / SCALE), rtol=1e-13)
    assert_allclose(q.family.prior_inclusion, math.exp(-PRIOR_THRESHOLD / PRIOR_SCALE), rtol=1e-13)


def _laplace_gauss(y, scale, sigma):
    """Integral of Laplace(z; 0, scale) N(y; z, sigma^2)."""
    low, high = sigma / (scale * math.sqrt(2)), y / (sigma * math.sqrt(2))
    return np.exp(-(high**2)) / (4 * scale) * (erfcx(low - high) + erfcx(low + high))


def _tail_gauss(y, threshold, prior_scale, sigma):
    """Integral of N(|z| + threshold; 0, prior_scale^2) N(y; z, sigma^2)."""
    variance = 1 / (1 / prior_scale**2 + 1 / sigma**2)
    total = 0.0
    for side in (side * y for side in (-1, 1)):
        mean = variance * (side / sigma**2 - threshold / prior_scale**2)
        total += np.exp(
            stats.norm.logpdf(side, -threshold, math.hypot(prior_scale, sigma))
            + log_ndtr(mean / math.sqrt(variance))
        )
    return total


def test_fixture_log_evidence():
    atom, x = np.array(ATOM), np.array(ROW)
    norm = np.linalg.norm(atom)
    y, sigma = atom @ x / norm**2, SIGMA / norm
    activity = math.exp(-PRIOR_THRESHOLD / PRIOR_SCALE)
    mixture = (1 - activity) * stats.norm.pdf(y, 0, sigma) + activity * _laplace_gauss(
        y, PRIOR_SCALE, sigma
    )
    off = x - y * atom
    rest = stats.norm.logpdf(0, 0, SIGMA) * 2 - off @ off / (2 * SIGMA**2) - math.log(norm)
    assert_allclose(math.log(mixture) + rest, LOG_P, atol=1e-10)


def test_fixture_closed_forms():
    model, x = _fixture_model(), _row()
    q = model.posterior(x)
    assert_allclose(model.expected_log_likelihood(x, q).item(), LOG_LIKELIHOOD, atol=1e-10)
    assert_allclose(q.kl().item(), KL, atol=1e-10)
    published = _fixture_model(training_kl="base", threshold_kl_weight=0.0).posterior(x)
    assert_allclose(published.training_kl().item(), BASE_KL, atol=1e-10)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_fixture_exact_objective(kl_weight):
    def bound(model):
        return training_bound(
            model, _row(), Objective("exact"), torch.Generator(), kl_weight=kl_weight
        ).item()

    assert_allclose(bound(_fixture_model()), LOG_LIKELIHOOD - kl_weight * KL, atol=1e-9)
    published = _fixture_model(training_kl="base", threshold_kl_weight=0.0)
    assert_allclose(bound(published), LOG_LIKELIHOOD - kl_weight * BASE_KL, atol=1e-9)
    assert_allclose(LOG_LIKELIHOOD - KL, ELBO, atol=2e-10)
    assert LOG_LIKELIHOOD - BASE_KL < ELBO < LOG_P


def test_fixture_weights_are_unbiased(log_weights):
    exact, smoothed = log_weights
    ratio = (exact - LOG_P).exp().flatten()
    assert abs(ratio.mean() - 1) < 4 * _standard_error(ratio)
    for weights in (exact, smoothed):
        assert abs(weights.mean() - ELBO) < 4 * _standard_error(weights.flatten())
    # The KL in place of the ratio leaves less noise.
    assert smoothed.std() < exact.std()


def test_fixture_importance_weighted_bounds(log_weights):
    """The numbers of draws of the reference values, from one set of weights."""
    exact, _ = log_weights
    means = []
    for n_draws, (expected, error) in IWAE.items():
        bound = bounds.iwae(exact.T.reshape(-1, n_draws).T)
        means.append(bound.mean().item())
        own_error = _standard_error(bound)
        assert abs(means[-1] - expected) < 4 * math.hypot(own_error, error)
        assert means[-1] < LOG_P + 4 * own_error
    assert np.all(np.diff(means) > 0)
    assert LOG_P - means[-1] < 1e-3


def test_fixture_best_draw_and_softmax_weights_are_not_bounds(log_weights):
    """Both exceed the log evidence: they are objectives for training, never scores."""
    exact, smoothed = (weights.T.reshape(-1, 100).T for weights in log_weights)
    best, weighted = bounds.max_elbo(exact), (exact.softmax(0) * exact).sum(0)
    assert abs(best.mean() - -1.602) < 4 * math.hypot(_standard_error(best), 5e-4)
    assert abs(weighted.mean() - -2.2316) < 4 * math.hypot(_standard_error(weighted), 5e-4)
    # With the KL in place of the ratio, as in training, they exceed it further.
    for values in (best, weighted, bounds.max_elbo(smoothed)):
        assert values.mean() > LOG_P + 20 * _standard_error(values)


# --- gradients at the fixture


def _log_likelihood(z):
    return stats.norm.logpdf(np.array(ROW), z * np.array(ATOM), SIGMA).sum()


def _slope(z):
    atom = np.array(ATOM)
    return atom @ (np.array(ROW) - z * atom) / SIGMA**2


def _slab_mean(function):
    """Mean over the slab of the posterior, Laplace(LOC, SCALE)."""
    slab = stats.laplace(LOC, SCALE)
    parts = [(-np.inf, LOC), (LOC, np.inf)]
    return sum(
        integrate.quad(lambda z: slab.pdf(z) * function(z), a, b, epsrel=1e-12)[0] for a, b in parts
    )


def _exact_gradients():
    """Derivatives of E log p(x given z) with respect to location, scale and threshold.

    Besides the pathwise term, the scale and the threshold move mass between spike and slab.
    """
    activity = math.exp(-THRESHOLD / SCALE)
    gap = _slab_mean(_log_likelihood) - _log_likelihood(0.0)
    path = _slab_mean(lambda z: _slope(z) * (z - LOC) / SCALE)
    return (
        activity * _slab_mean(_slope),
        activity * THRESHOLD / SCALE**2 * gap + activity * path,
        -activity / SCALE * gap,
    )


def test_exact_gradients_of_the_expected_log_likelihood():
    model = _fixture_model()
    parameters = [
        _tensor([[p]]).requires_grad_()
        for p in (LOC, SCALE, GAMMA_SHAPE, _gamma_rate(THRESHOLD, SCALE))
    ]
    loc, scale, _, rate = parameters
    q = ThresholdedPosterior(model.family, *parameters)
    total = torch.autograd.grad(model.expected_log_likelihood(_row(), q), [loc, scale, rate])
    threshold = ThresholdedPosterior(model.family, *parameters).threshold
    of_scale, of_rate = torch.autograd.grad(threshold, [scale, rate])
    # The threshold is a function of scale and rate here: undo the chain rule.
    by_threshold = total[2] / of_rate
    found = (total[0].item(), (total[1] - by_threshold * of_scale).item(), by_threshold.item())
    assert_allclose(found, _exact_gradients(), rtol=1e-9)
    assert_allclose(found, (1.746, -7.100, 1.966), atol=6e-4)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [("straight_through", (4.084, -7.687)), ("subgradient", (1.747, -7.687))],
)
def test_gradients_through_draws(gradient, expected):
    """Straight-through is a biased heuristic; the subgradient is unbiased for the location."""
    n = 400_000
    family = Thresholded(prior_scale=PRIOR_SCALE, threshold=THRESHOLD, gradient=gradient)
    model = _model(family, None, _tensor([ATOM]), SIGMA**2)
    loc, scale = (torch.full((n, 1), p, dtype=torch.float64).requires_grad_() for p in (LOC, SCALE))
    q = ThresholdedPosterior(family, loc, scale)
    log_likelihood = model.log_likelihood(_row(n), _draws(q, 1).code).sum()
    by_loc, by_scale, _ = _exact_gradients()
    found = torch.autograd.grad(log_likelihood, (loc, scale))
    for of_rows, value in zip(found, expected, strict=True):
        assert abs(of_rows.mean() - value) < 4 * math.hypot(_standard_error(of_rows), 1e-3)
    z_loc, z_scale = (
        abs(of_rows.mean().item() - exact) / _standard_error(of_rows)
        for of_rows, exact in zip(found, (by_loc, by_scale), strict=True)
    )
    assert z_scale > 10  # both miss the mass that the scale moves
    assert (z_loc < 4) if gradient == "subgradient" else (z_loc > 10)


CLOSED = {
    "laplace": lambda: Thresholded("laplace", prior_scale=0.7, threshold=0.9),
    "laplace_gamma": lambda: Thresholded("laplace", prior_scale=0.7, gamma_shape=3.0),
    "laplace_gamma_base": lambda: Thresholded("laplace", gamma_shape=3.0, training_kl="base"),
    "gaussian": lambda: Thresholded("gaussian", prior_scale=0.7, threshold=0.9),
}


@pytest.mark.parametrize("make", CLOSED.values(), ids=CLOSED)
def test_exact_objective_gradient_against_finite_differences(make):
    """Checks posterior, dictionary, intercept and noise variance all at once."""
    family, generator = make(), torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, heads = normal(2, 4), 0.5 * normal(2, family.n_heads, 3)
    model = _model(family, FixedHeads(heads), normal(3, 4), 1.0)

    class Bound(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return training_bound(self.model, x, Objective("exact"), None, kl_weight=0.7)

    of_rows = Bound()

    def bound(heads, weight, bias, log_noise_variance):
        model.heads.heads = heads
        parameters = {
            "model.decoder.weight": weight,
            "model.decoder.bias": bias,
            "model.likelihood.log_noise_variance": log_noise_variance,
        }
        return torch.func.functional_call(of_rows, parameters, (x,))

    leaves = [heads, normal(3, 4), normal(4), _tensor(-0.7)]
    assert torch.autograd.gradcheck(bound, [leaf.requires_grad_() for leaf in leaves])


# --- several latents, orthonormal atoms


class ProjectionHeads(nn.Module):
    """Location heads from projections on the atoms; the other heads are constant."""

    def __init__(self, atoms, prior_scale, rest):
        super().__init__()
        self.atoms, self.prior_scale, self.rest = atoms, prior_scale, rest

    def forward(self, x):
        loc = x @ self.atoms.T / self.prior_scale
        return torch.stack([loc, *(torch.full_like(loc, head) for head in self.rest)], dim=1)


def _log_evidence_orthonormal(family, x, atoms, sigma):
    """Exact for any number of latents: one convolution for each atom, noise for the remainder."""
    projections = x @ atoms.T
    activity, scale = family.prior_inclusion, family.prior_scale
    if family.base == "laplace":
        slab = activity * _laplace_gauss(projections, scale, sigma)
    else:
        slab = _tail_gauss(projections, family.threshold, scale, sigma)
    on_atoms = np.log((1 - activity) * stats.norm.pdf(projections, 0, sigma) + slab).sum(1)
    n_left = x.shape[1] - len(atoms)
    left = (x**2).sum(1) - (projections**2).sum(1)
    return on_atoms - left / (2 * sigma**2) - n_left / 2 * math.log(2 * math.pi * sigma**2)


def test_convolutions_by_quadrature():
    for y in (-2.0, 0.0, 0.4, 3.0):
        gauss = stats.norm(y, 0.3)
        for found, base, threshold in [
            (_laplace_gauss(y, 0.7, 0.3), stats.laplace(scale=0.7), 0.0),
            (_tail_gauss(y, 0.9, 0.7, 0.3), stats.norm(scale=0.7), 0.9),
        ]:
            parts = sorted({-9.0, 0.0, y - 1, y, y + 1, 9.0})
            expected = sum(
                integrate.quad(
                    lambda z, base=base, t=threshold, g=gauss: base.pdf(abs(z) + t) * g.pdf(z), a, b
                )[0]
                for a, b in pairwise(parts)
            )
            assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("make", CLOSED.values(), ids=CLOSED)
def test_bounds_of_orthonormal_atoms(make):
    family, sigma, n_draws = make(), 0.6, 100_000
    rng = np.random.RandomState(0)
    atoms = np.linalg.qr(rng.normal(size=(4, 2)))[0].T
    code = np.array([[0.0, 0.0], [1.2, 0.0], [1.5, -1.0]])
    x = code @ atoms + sigma * rng.normal(size=(3, 4))
    log_p = _log_evidence_orthonormal(family, x, atoms, sigma)

    # Close to the true posterior but wider, so that the weights vary.
    rest = [0.8] if family.gamma_shape is None else [0.3, 0.0, 1.0]
    heads = ProjectionHeads(torch.from_numpy(atoms), family.prior_scale, rest)
    model = _model(family, heads, torch.from_numpy(atoms), sigma**2)
    x = torch.from_numpy(x)
    with torch.no_grad():
        posterior = model.posterior(x)
        draws = _draws(posterior, n_draws)
        weights = model.log_weights(x, posterior, draws, exact_ratio=True)
        elbo = (model.expected_log_likelihood(x, posterior) - posterior.kl().sum(-1)).numpy()
    for row in range(3):
        ratio = (weights[:, row] - log_p[row]).exp()
        assert abs(ratio.mean() - 1) < 4 * _standard_error(ratio)
        assert _standard_error(ratio) < 0.05
        assert abs(weights[:, row].mean() - elbo[row]) < 4 * _standard_error(weights[:, row])
        means = [elbo[row]]
        for size in (5, 50, 500):
            bound = bounds.iwae(weights[:, row].reshape(size, -1))
            means.append(bound.mean().item())
            assert means[-1] < log_p[row] + 4 * _standard_error(bound)
        assert np.all(np.diff(means) > 0)
        assert log_p[row] - means[-1] < 0.1 * (log_p[row] - means[0])


# --- the parts


THRESHOLDED = CLOSED | {
    "gaussian_gamma": lambda: Thresholded("gaussian", prior_scale=0.7, gamma_shape=3.0)
}
FAMILIES = THRESHOLDED | {
    "continuous": lambda: Continuous("laplace", "gaussian", prior_scale=0.7),
    "continuous_cauchy": lambda: Continuous("cauchy", "laplace", prior_scale=0.7),
    "spike_slab": lambda: SpikeSlab("laplace", density=0.4, gradient="straight_through"),
}


def _random_model(make, noise_variance=0.5, seed=0):
    """A model of three latents and four features, correlated atoms, an intercept; and two rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    family = make()
    model = _model(
        family, FixedHeads(0.5 * normal(1, family.n_heads, 3)), normal(3, 4), noise_variance
    )
    with torch.no_grad():
        model.decoder.bias.copy_(normal(4))
    return model, normal(2, 4)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_closed_expectations_against_draws(make):
    model, x = _random_model(make)
    n_draws = 100_000
    with torch.no_grad():
        posterior = model.posterior(x)
        code = _draws(posterior, n_draws).code
        squared_error = (x - model.decoder(code)).square().sum(-1)
        log_likelihood = model.log_likelihood(x, code)
        for drawn, closed in [
            (squared_error, model.expected_squared_error(x, posterior)),
            (log_likelihood, model.expected_log_likelihood(x, posterior)),
        ]:
            error = drawn.std(0) / math.sqrt(n_draws)
            assert ((drawn.mean(0) - closed).abs() < 4.5 * error).all()
            assert (error < 0.02 * closed.abs()).all()


def test_bounds_shift_with_the_unit_of_the_rows():
    """Another unit for rows, atoms and noise subtracts D log c, whatever the posterior."""
    c = 1e3
    model, x = _random_model(CLOSED["laplace_gamma"])
    posterior = model.posterior(x)
    before = model.expected_log_likelihood(x, posterior)
    with torch.no_grad():
        model.decoder.weight.mul_(c)
        model.decoder.bias.mul_(c)
    model.likelihood.set_noise_variance(0.5 * c**2)
    after = model.expected_log_likelihood(c * x, posterior)
    assert_allclose(after.detach(), before.detach() - 4 * math.log(c), rtol=1e-12)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("objective", ["elbo", "max_elbo", "iwae"])
@pytest.mark.parametrize(("kl_weight", "noise_scale"), [(1.0, 1.0), (0.2, 0.4)])
def test_training_bound_combines_its_parts(make, objective, kl_weight, noise_scale):
    model, x = _random_model(make)
    bound = training_bound(
        model,
        x,
        Objective(objective, n_draws=7),
        torch.Generator().manual_seed(3),
        kl_weight=kl_weight,
        noise_scale=noise_scale,
    )
    posterior = model.posterior(x)
    noise = posterior.noise(7, torch.Generator().manual_seed(3))
    draws = posterior.rsample(noise, noise_scale)
    error = (x - model.decoder(draws.code)).square().sum(-1)
    log_likelihood = -0.5 * error / 0.5 - 2 * math.log(2 * math.pi * 0.5)
    if objective == "iwae":
        weights = log_likelihood + kl_weight * posterior.log_ratio(draws).sum(-1)
        expected = (weights.exp().mean(0)).log()
    else:
        weights = log_likelihood - kl_weight * posterior.training_kl(draws).sum(-1)
        expected = weights.mean(0) if objective == "elbo" else weights.max(0).values
    assert bound.shape == (2,)
    assert_allclose(bound.detach(), expected.detach(), rtol=1e-10)


@pytest.mark.parametrize("make", [CLOSED["laplace"], CLOSED["laplace_gamma"], CLOSED["gaussian"]])
def test_drawn_objective_has_the_mean_of_the_exact_one(make):
    model, x = _random_model(make)
    rows, generator = x[:1].expand(20_000, -1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        exact = training_bound(model, x[:1], Objective("exact"), generator, kl_weight=1.0)
        drawn = training_bound(model, rows, Objective("elbo", 2), generator, kl_weight=1.0)
    assert abs(drawn.mean() - exact) < 4.5 * _standard_error(drawn)


@pytest.mark.parametrize("make", THRESHOLDED.values(), ids=THRESHOLDED)
def test_weights_use_the_kl_of_the_model_whatever_training_uses(make):
    """The published objective's KL is only for training: scores bound the thresholded model."""
    model, x = _random_model(make)
    posterior = model.posterior(x)
    draws = _draws(posterior, 3)
    kl = posterior.kl(draws).sum(-1)
    model.family.training_kl, model.family.threshold_kl_weight = "base", 0.1
    assert ((posterior.training_kl(draws).sum(-1) - kl).abs() > 1e-3).all()
    weights = model.log_weights(x, posterior, draws, exact_ratio=False)
    expected = model.log_likelihood(x, draws.code) - kl
    assert_allclose(weights.detach(), expected.detach(), rtol=1e-12)


def test_which_likelihoods_have_a_closed_form():
    family, linear = CLOSED["laplace"](), LinearDecoder(torch.ones(3, 4))
    gaussian, bernoulli = GaussianLikelihood(), BernoulliLikelihood()
    for decoder, likelihood, closed in [
        (linear, gaussian, True),
        (linear, bernoulli, False),
        (nn.Linear(3, 4), gaussian, False),
    ]:
        model = LatentVariableModel(nn.Identity(), nn.Identity(), decoder, likelihood, family)
        assert model.has_closed_likelihood is closed


def test_decode_gives_the_mean_of_the_rows():
    generator = torch.Generator().manual_seed(0)
    weight, code = torch.randn(3, 4, generator=generator), torch.randn(2, 3, generator=generator)
    for likelihood, expected in [
        (GaussianLikelihood(), code @ weight),
        (BernoulliLikelihood(), torch.sigmoid(code @ weight)),
    ]:
        model = LatentVariableModel(
            nn.Identity(), nn.Identity(), LinearDecoder(weight), likelihood, CLOSED["laplace"]()
        )
        assert_allclose(model.decode(code).detach(), expected, rtol=1e-6)


def test_bernoulli_weights_bound_the_probability_of_binary_rows():
    """The probabilities of all binary rows sum to one, and each ELBO is below its IWAE bound."""
    family = Thresholded("laplace", prior_scale=1.0, threshold=0.5)
    weight = _tensor([[1.5, -2.0, 0.5, 1.0]])
    heads = FixedHeads(_tensor([[[0.3], [0.1]]]))
    model = LatentVariableModel(
        nn.Identity(), heads, LinearDecoder(weight), BernoulliLikelihood(), family
    ).double()
    x = torch.cartesian_prod(*[_tensor([0.0, 1.0])] * 4)
    with torch.no_grad():
        posterior = model.posterior(x)
        draws = _draws(posterior, 50_000)
        weights = model.log_weights(x, posterior, draws, exact_ratio=True)
    probabilities = weights.exp()
    total = probabilities.mean(0).sum()
    error = (probabilities.var(0) / len(probabilities)).sum().sqrt()
    assert abs(total - 1) < 4 * error
    assert error < 0.02
    assert (bounds.elbo(weights) < bounds.iwae(weights)).all()


def test_heads_start_near_the_prior():
    """They draw their weights from the given generator."""
    state = torch.get_rng_state()
    heads = Heads(6, 2, 5, torch.Generator().manual_seed(0))
    again = Heads(6, 2, 5, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads.linear.weight, again.linear.weight)
    features = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
    assert heads(features).shape == (100, 2, 5)
    kl = Thresholded("laplace").posterior(heads(features)).kl()
    assert kl.mean() < 0.05
