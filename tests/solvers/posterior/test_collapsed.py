"""With the slab integrated out, p(x given S) is a normal density and q(S) alone bounds log p(x)."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.distributions import MultivariateNormal

from sklearn_vsc._models import bounds
from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc.latents import SpikeSlab
from sklearn_vsc.likelihoods import BernoulliLikelihood, GaussianLikelihood
from sklearn_vsc.networks import LinearDecoder
from sklearn_vsc.solvers.posterior.collapsed import conditional_mean, log_evidence

NOISE, SCALE, DENSITY = 0.09, 1.3, 0.3
N_ROWS, N_COMPONENTS, N_FEATURES = 5, 7, 4

# All possible supports.
SUPPORTS = torch.tensor(list(itertools.product([False, True], repeat=N_COMPONENTS)))


def _normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _rows_and_atoms():
    return _normal(0, N_ROWS, N_FEATURES), _normal(1, N_COMPONENTS, N_FEATURES)


def _of_every_row(supports, n_rows):
    return supports[:, None].expand(-1, n_rows, -1)


def _enumerated(rows, atoms, noise=NOISE):
    """Log p(x given S) for every support and row, of shape (2^K, n_rows)."""
    return log_evidence(rows, atoms, noise, SCALE, _of_every_row(SUPPORTS, len(rows)))


def _log_prior():
    size = SUPPORTS.double().sum(1)
    return size * math.log(DENSITY) + (N_COMPONENTS - size) * math.log1p(-DENSITY)


def _exact(rows, atoms, noise=NOISE):
    """Log p(x) as a sum over all supports."""
    return torch.logsumexp(_enumerated(rows, atoms, noise) + _log_prior()[:, None], 0)


def _dense(rows, atoms, support):
    """Log p(x given S) computed from the full covariance."""
    w = SCALE * atoms[support]
    covariance = NOISE * torch.eye(rows.shape[1], dtype=torch.float64) + w.T @ w
    return MultivariateNormal(rows.new_zeros(rows.shape[1]), covariance).log_prob(rows)


# ------------------------------------------------------------------ one support


@pytest.mark.parametrize("on", [(), (2,), (0, 3), (1, 2, 4, 6), tuple(range(N_COMPONENTS))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evidence_is_the_normal_density_with_the_full_covariance(on, dtype):
    rows, atoms = _rows_and_atoms()
    rows, atoms = rows.to(dtype), atoms.to(dtype)
    support = torch.zeros(N_COMPONENTS, dtype=torch.bool)
    support[list(on)] = True
    found = log_evidence(rows, atoms, NOISE, SCALE, _of_every_row(support[None], N_ROWS))
    assert found.dtype == dtype and found.shape == (1, N_ROWS)
    expected = _dense(rows.double(), atoms.double(), support)
    assert_allclose(found[0], expected, rtol=1e-11 if dtype == torch.float64 else 1e-6)


def test_each_row_and_draw_has_its_own_support():
    rows, atoms = _rows_and_atoms()
    supports = _normal(2, 6, N_ROWS, N_COMPONENTS) > 0.3
    found = log_evidence(rows, atoms, NOISE, SCALE, supports)
    codes = conditional_mean(rows, atoms, NOISE, SCALE, supports)
    for j, i in itertools.product(range(6), range(N_ROWS)):
        on = supports[j, i]
        assert_allclose(found[j, i], _dense(rows[i : i + 1], atoms, on)[0], rtol=1e-11)
        w = atoms[on]
        ridge = w @ w.T + NOISE / SCALE**2 * torch.eye(len(w), dtype=torch.float64)
        assert_allclose(codes[j, i, on], torch.linalg.solve(ridge, w @ rows[i]), rtol=1e-9)
        assert not codes[j, i, ~on].any()


def test_two_equal_atoms_act_as_one_with_twice_the_variance_and_a_zero_atom_has_no_effect():
    rows, atoms = _rows_and_atoms()
    on = torch.ones(1, N_ROWS, 3, dtype=torch.bool)
    twice = log_evidence(rows, atoms[[0, 1, 0]], NOISE, SCALE, on)
    stretched = torch.stack([2**0.5 * atoms[0], atoms[1], 0 * atoms[0]])
    assert_allclose(twice, log_evidence(rows, stretched, NOISE, SCALE, on), rtol=1e-11)
    codes = conditional_mean(rows, atoms[[0, 1, 0]], NOISE, SCALE, on)[0]
    assert_allclose(codes[:, 0], codes[:, 2], rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-12, 1e-18])
def test_equal_atoms_with_almost_no_noise_stay_finite(noise):
    """The Gram matrix of the support is singular up to rounding here."""
    rows, atoms = _rows_and_atoms()
    on = torch.ones(1, N_ROWS, 4, dtype=torch.bool)
    assert torch.isfinite(log_evidence(rows, atoms[[0, 0, 0, 1]], noise, SCALE, on)).all()
    assert torch.isfinite(conditional_mean(rows, atoms[[0, 0, 0, 1]], noise, SCALE, on)).all()


def test_rows_may_be_split_among_threads():
    rows, atoms = _normal(3, 70, N_FEATURES), _rows_and_atoms()[1]
    supports = _normal(4, 3, 70, N_COMPONENTS) > 0
    n_threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(log_evidence(rows, atoms, NOISE, SCALE, supports))
    finally:
        torch.set_num_threads(n_threads)
    assert_allclose(found[0], found[1], rtol=1e-9)
    alone = log_evidence(rows[9:10], atoms, NOISE, SCALE, supports[:, 9:10])
    assert_allclose(alone[:, 0], found[0][:, 9], rtol=1e-9)


# ------------------------------------------------------------------ all supports


def test_supports_sum_to_the_evidence_for_orthonormal_atoms():
    """Each code then depends only on its own projection, and log p(x) is a sum over codes."""
    rows = _normal(5, N_ROWS, 9)
    atoms = torch.linalg.qr(_normal(6, 9, N_COMPONENTS)).Q.T
    projections = rows @ atoms.T

    def log_density(variance):
        return -0.5 * (projections**2 / variance + math.log(2 * math.pi * variance))

    off, on = log_density(NOISE), log_density(NOISE + SCALE**2)
    codes = torch.logaddexp(math.log1p(-DENSITY) + off, math.log(DENSITY) + on).sum(1)
    left = rows.square().sum(1) - projections.square().sum(1)
    n_left = 9 - N_COMPONENTS
    expected = codes - 0.5 * (left / NOISE + n_left * math.log(2 * math.pi * NOISE))
    assert_allclose(_exact(rows, atoms), expected, rtol=1e-11)


def test_evidence_is_a_density():
    """With one feature, the integral is a sum over a grid."""
    grid = torch.linspace(-25, 25, 2001, dtype=torch.float64)[:, None]
    density = _exact(grid, _normal(7, N_COMPONENTS, 1)).exp()
    assert density.sum() * 0.025 == pytest.approx(1, rel=1e-6)


# ------------------------------------------------------------------ bounds


@pytest.fixture
def model():
    family = SpikeSlab("gaussian", prior_scale=SCALE, density=DENSITY, gradient="score")
    decoder = LinearDecoder(_rows_and_atoms()[1])
    decoder.bias = nn.Parameter(_normal(8, N_FEATURES))
    likelihood = GaussianLikelihood(NOISE, learned=False).double()
    likelihood.set_noise_variance(NOISE)  # not rounded to float32
    return LatentVariableModel(nn.Identity(), nn.Identity(), decoder, likelihood, family)


def _problem(model, n_sweeps):
    """Rows, their posterior, and log p(x, S) and log q(S given x) for every support."""
    rows = _normal(9, N_ROWS, N_FEATURES)
    posterior = model.family.posterior(0.7 * _normal(10, N_ROWS, 3, N_COMPONENTS))
    if n_sweeps:
        posterior = model.refine(rows, posterior, n_sweeps)
    atoms, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    log_p = _enumerated(rows - bias, atoms) + _log_prior()[:, None]
    gates = torch.distributions.Bernoulli(logits=posterior.logit)
    log_q = gates.log_prob(_of_every_row(SUPPORTS, N_ROWS).double()).sum(-1)
    return rows, posterior, log_p, log_q


def _draws(posterior, n_draws):
    return posterior.rsample(posterior.noise(n_draws, torch.Generator().manual_seed(11)))


each_posterior = pytest.mark.parametrize("n_sweeps", [0, 30], ids=["any", "refined"])


@each_posterior
@torch.no_grad()
def test_collapsed_elbo_lies_between_elbo_and_evidence(model, n_sweeps):
    rows, posterior, log_p, log_q = _problem(model, n_sweeps)
    assert_allclose(torch.logsumexp(log_q, 0), np.zeros(N_ROWS), atol=1e-12)
    collapsed = (log_q.exp() * (log_p - log_q)).sum(0)
    elbo = model.expected_log_likelihood(rows, posterior) - posterior.kl().sum(-1)
    evidence = torch.logsumexp(log_p, 0)
    assert (elbo < collapsed).all() and (collapsed < evidence).all()

    # The mean-field loss is the average divergence of its slab from p(z given S, x).
    x, atoms = rows - model.decoder.bias, model.decoder.weight
    means = conditional_mean(x, atoms, NOISE, SCALE, _of_every_row(SUPPORTS, N_ROWS))
    lost = torch.zeros(N_ROWS, dtype=torch.float64)
    for support, mean, weight in zip(SUPPORTS, means, log_q.exp(), strict=True):
        w, variance = atoms[support], posterior.scale[:, support] ** 2
        precision = w @ w.T / NOISE + torch.eye(len(w), dtype=torch.float64) / SCALE**2
        step = posterior.loc[:, support] - mean[:, support]
        square = variance @ precision.diag() + ((step @ precision) * step).sum(1)
        log_det = variance.log().sum(1) + torch.logdet(precision)
        lost += weight * 0.5 * (square - len(w) - log_det)
    assert_allclose(collapsed - elbo, lost, rtol=1e-8)


@each_posterior
@torch.no_grad()
def test_log_weights_average_to_the_collapsed_elbo(model, n_sweeps):
    rows, posterior, log_p, log_q = _problem(model, n_sweeps)
    expected = (log_q.exp() * (log_p - log_q)).sum(0)
    weights = model.collapsed_log_weights(rows, posterior, _draws(posterior, 20_000))
    error = weights.std(0) / len(weights) ** 0.5
    assert ((bounds.elbo(weights) - expected).abs() < 4 * error).all()


@torch.no_grad()
def test_importance_weighted_bound_rises_to_the_evidence(model):
    """The gates are random: a refined mean field misses supports, so its bound rises slower."""
    rows, posterior, log_p, log_q = _problem(model, 0)
    evidence = torch.logsumexp(log_p, 0)
    draws = _draws(posterior, 2**15)
    weights = model.collapsed_log_weights(rows, posterior, draws)
    plain = model.log_weights(rows, posterior, draws, exact_ratio=True)
    before = (log_q.exp() * (log_p - log_q)).sum(0).mean()
    for n_draws in (4, 32, 256):
        # One bound for each group of draws.
        levels, plain_levels = (
            bounds.iwae(w.unflatten(0, (-1, n_draws)).transpose(0, 1)).mean(1)
            for w in (weights, plain)
        )
        assert before < levels.mean() < evidence.mean() + 4 * levels.std() / len(levels) ** 0.5
        before = levels.mean()
        # Weights with the slab integrated out vary less, which makes the bound tighter.
        assert levels.mean() > plain_levels.mean()
    assert_allclose(bounds.iwae(weights), evidence, atol=0.05)


@torch.no_grad()
def test_log_weights_match_the_enumeration(model):
    """Each draw gives log p(x, S) - log q(S given x), whatever the values of the codes."""
    rows, posterior, log_p, log_q = _problem(model, 0)
    draws = _draws(posterior, 50)
    index = draws.active.long() @ (2 ** torch.arange(N_COMPONENTS - 1, -1, -1))
    weights = model.collapsed_log_weights(rows, posterior, draws)
    assert_allclose(weights, (log_p - log_q).gather(0, index), rtol=1e-10)
    assert not (draws.code == 0).all()
    assert_array_equal(index[:, 0] == 0, ~draws.active[:, 0].any(-1))


@pytest.mark.parametrize(
    ("family", "decoder", "likelihood", "can"),
    [
        (SpikeSlab(), LinearDecoder(torch.ones(3, 4)), GaussianLikelihood(), True),
        (SpikeSlab("laplace"), LinearDecoder(torch.ones(3, 4)), GaussianLikelihood(), False),
        (SpikeSlab(), nn.Linear(3, 4), GaussianLikelihood(), False),
        (SpikeSlab(), LinearDecoder(torch.ones(3, 4)), BernoulliLikelihood(), False),
    ],
)
def test_which_models_collapse(family, decoder, likelihood, can):
    model = LatentVariableModel(nn.Identity(), nn.Identity(), decoder, likelihood, family)
    assert model.can_collapse is can
