"""Gradients of the importance-weighted bound, and objectives that agree on average."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from training_bounds import training_bound

from sklearn_vsc import SparseVAE
from sklearn_vsc._models.gate_gradients import NVILBaseline
from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc._models.objectives import SCORE_GRADIENTS, Objective
from sklearn_vsc.latents import Continuous, SpikeSlab
from sklearn_vsc.likelihoods import GaussianLikelihood
from sklearn_vsc.networks import LinearDecoder

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

PAIRS = [
    ("gaussian", "gaussian"),
    ("gaussian", "laplace"),
    ("laplace", "laplace"),
    ("laplace", "gaussian"),
    ("cauchy", "cauchy"),
    ("cauchy", "gaussian"),
    ("cauchy", "laplace"),
]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _normal(*shape, seed=0):
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def _z(sample, expected=0.0):
    """Deviation of the means over the first axis, in standard errors."""
    error = sample.mean(0) - expected
    return (error / (sample.std(0) / math.sqrt(len(sample)))).abs()


class RowHeads(nn.Module):
    """Heads of each row as leaf tensors: their gradients give a mean and a standard error."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.Parameter(heads)

    def forward(self, x):
        return self.heads


def _model(family, heads, decoder, noise_variance=0.5):
    likelihood = GaussianLikelihood(noise_variance, learned=False)
    model = LatentVariableModel(nn.Identity(), RowHeads(heads), decoder, likelihood, family)
    model.double()
    # The constructor rounds to float32, the type of new modules.
    likelihood.set_noise_variance(noise_variance)
    return model


IWAE = {
    "standard": Objective("iwae", 5),
    "dreg": Objective("iwae", 5, doubly_reparameterised=True),
}


def _gradients(model, x, objective, kl_weight=1.0, seed=0):
    """Values of the bounds, and their gradients with respect to heads and decoder."""
    bound = training_bound(model, x, objective, _generator(seed), kl_weight=kl_weight)
    parameters = [model.heads.heads, *model.decoder.parameters()]
    heads, *decoder = torch.autograd.grad(bound.sum(), parameters)
    return bound.detach(), heads, decoder


# --- doubly reparameterised gradients


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
@pytest.mark.parametrize("kl_weight", [1.0, 0.4])
def test_doubly_reparameterised_gradient_has_the_mean_of_the_standard_one(
    prior, posterior, kl_weight
):
    """Tests the encoder's gradient by z-test, the decoder's to rounding: there both are equal."""
    n_rows = 20_000
    # A bounded decoder, so that Cauchy draws have a likelihood with moments.
    decoder = nn.Sequential(LinearDecoder(_normal(2, 3, seed=1)), nn.Tanh())
    heads = _normal(1, 2, 2, seed=2).expand(n_rows, -1, -1) + 0.2 * _normal(n_rows, 2, 2)
    model = _model(Continuous(prior, posterior), heads, decoder)
    x = 0.5 * _normal(n_rows, 3, seed=3)
    bounds, by_heads, by_decoder = zip(
        *(_gradients(model, x, objective, kl_weight) for objective in IWAE.values()), strict=True
    )
    assert torch.equal(*bounds)
    for standard, doubled in zip(*by_decoder, strict=True):
        assert_allclose(doubled, standard, rtol=1e-12, atol=1e-12)
    standard, doubled = by_heads
    difference = doubled - standard
    assert (_z(difference) < 4).all()
    # The test has power: the mean stands out from the remaining noise.
    error = difference.std(0) / math.sqrt(n_rows)
    assert standard.mean(0).abs().max() > 10 * error.max()


def _conjugate(n_rows, loc_off=0.0, scale_off=1.0):
    """Orthogonal atoms and Gaussian codes, with the exact posterior or one near it."""
    noise_variance = 0.5
    weight = 1.3 * torch.linalg.qr(_normal(4, 2, seed=1))[0].T.contiguous()
    x = _normal(1, 2, seed=2) @ weight + 0.6 * _normal(1, 4, seed=3)
    precision = weight.square().sum(1) / noise_variance + 1
    loc = x @ weight.T / noise_variance / precision + loc_off
    scale = scale_off * precision.rsqrt()
    # The inverse of the map from heads to location and scale.
    heads = torch.stack([loc, (10 * torch.atanh(scale.log() / 10)).expand_as(loc)], dim=1)
    decoder = LinearDecoder(weight)
    model = _model(Continuous(), heads.repeat(n_rows, 1, 1), decoder, noise_variance)
    covariance = weight.T @ weight + noise_variance * torch.eye(4)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    return model, x.expand(n_rows, -1), evidence.item()


def test_exact_posterior_has_no_gradient_left():
    """Every weight is p(x): the doubly reparameterised gradient is zero at every draw."""
    model, x, evidence = _conjugate(500)
    bound, doubled, _ = _gradients(model, x, IWAE["dreg"])
    assert_allclose(bound, evidence, rtol=1e-12)
    assert doubled.abs().max() < 1e-12
    _, standard, _ = _gradients(model, x, IWAE["standard"])
    assert standard.std(0).min() > 0.05


@pytest.mark.parametrize("n_draws", [1, 2, 50])
def test_exact_posterior_makes_every_bound_the_evidence(n_draws):
    model, x, evidence = _conjugate(20)
    for bound in ("elbo", "iwae", "max_elbo", "exact"):
        value = training_bound(model, x, Objective(bound, n_draws), _generator(), kl_weight=1.0)
        if bound in ("iwae", "exact"):
            assert_allclose(value.detach(), evidence, rtol=1e-12)
    # With the KL in place of the log ratio, draws differ; their mean is the evidence.
    model, x, _ = _conjugate(5000)
    value = training_bound(model, x, Objective("elbo", n_draws), _generator(), kl_weight=1.0)
    assert _z(value.detach(), evidence) < 4


def _signal_to_noise(doubly, n_draws):
    model, x, _ = _conjugate(2000, loc_off=0.15, scale_off=1.25)
    objective = Objective("iwae", n_draws, doubly_reparameterised=doubly)
    _, heads, _ = _gradients(model, x, objective)
    return (heads.mean(0).abs() / heads.std(0)).mean().item()


def test_signal_of_the_doubly_reparameterised_gradient_does_not_fade():
    """The standard one's falls as the square root of the number of draws; this one's rises."""
    standard, doubled = (
        [_signal_to_noise(doubly, n_draws) for n_draws in (2, 16, 128)] for doubly in (False, True)
    )
    # Means over 2000 rows have an error of 0.022 standard deviations.
    assert standard[-1] < 0.4 * standard[0]
    assert doubled[0] > 2 * standard[0]
    assert doubled[1] > 1.5 * doubled[0] and doubled[2] > 1.5 * doubled[1]


def test_one_draw_doubly_reparameterised_sticks_to_the_landing():
    """With one draw the weight is one: only the pathwise gradient remains."""
    model, x, _ = _conjugate(50, 0.3, 1.5)
    objective = Objective("iwae", 1, doubly_reparameterised=True)
    _, found, _ = _gradients(model, x, objective, seed=4)
    posterior = model.posterior(x)
    draws = posterior.rsample(posterior.noise(1, _generator(4)))
    log_weights = model.log_likelihood(x, draws.code) + posterior.detached().log_ratio(draws).sum(
        -1
    )
    (expected,) = torch.autograd.grad(log_weights.sum(), model.heads.heads)
    assert_allclose(found, expected, rtol=1e-12)


def test_without_the_log_ratio_both_gradients_agree():
    model, x, _ = _conjugate(50, 0.3, 1.5)
    (_, standard, _), (_, doubled, _) = (
        _gradients(model, x, objective, kl_weight=0.0) for objective in IWAE.values()
    )
    assert_allclose(doubled, standard, rtol=1e-12)


def test_bounds_without_gradients():
    """As validation computes them."""
    model, x, _ = _conjugate(50, 0.3, 1.5)
    with torch.no_grad():
        values = [
            training_bound(model, x, objective, _generator(), kl_weight=1.0)
            for objective in IWAE.values()
        ]
    assert torch.equal(*values)


# --- objectives that agree on average


FAMILIES = {f"{prior}, {q}": Continuous(prior, q) for prior, q in PAIRS if prior != "cauchy"} | {
    f"spike, {slab} slab": SpikeSlab(slab, density=0.3, gradient="score")
    for slab in ("gaussian", "laplace")
}


def _linear_model(family, n_rows):
    heads = 0.5 * _normal(1, family.n_heads, 3, seed=1)
    model = _model(family, heads.repeat(n_rows, 1, 1), LinearDecoder(_normal(3, 4, seed=2)))
    with torch.no_grad():
        model.decoder.bias.copy_(_normal(4, seed=3))
    return model, _normal(1, 4, seed=4).expand(n_rows, -1)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("kl_weight", [1.0, 0.2])
def test_exact_objective_is_the_mean_of_the_drawn_one(family, kl_weight):
    model, x = _linear_model(family, 20_000)
    with torch.no_grad():
        exact = training_bound(model, x, Objective("exact"), _generator(), kl_weight=kl_weight)
        drawn = training_bound(model, x, Objective("elbo", 2), _generator(), kl_weight=kl_weight)
    assert exact.std() < 1e-12
    assert _z(drawn, exact[0]) < 4.5
    # The closed form contains each row's KL, with the given weight.
    posterior = model.posterior(x)
    expected = model.expected_log_likelihood(x, posterior) - kl_weight * posterior.kl().sum(-1)
    assert_allclose(exact, expected.detach(), rtol=1e-12)


@pytest.mark.parametrize("gates", SCORE_GRADIENTS)
@pytest.mark.parametrize("n_draws", [1, 3])
def test_surrogates_have_the_value_of_the_drawn_objective(gates, n_draws):
    family = SpikeSlab(density=0.3, gradient="score")
    model, x = _linear_model(family, 300)
    if gates == "nvil":
        model.gate_baseline = NVILBaseline(4, _generator()).double()
    surrogate = training_bound(
        model, x, Objective("elbo", n_draws, gates=gates), _generator(7), kl_weight=0.6
    )
    drawn = training_bound(model, x, Objective("elbo", n_draws), _generator(7), kl_weight=0.6)
    assert_allclose(surrogate.detach(), drawn.detach(), rtol=1e-12)


def test_relaxed_gates_are_hard_when_nothing_is_learned():
    model, x = _linear_model(SpikeSlab(density=0.3, gradient="gumbel_softmax"), 300)
    hard, _ = _linear_model(SpikeSlab(density=0.3, gradient="score"), 300)
    relaxed = training_bound(model, x, Objective("elbo"), _generator(), kl_weight=1.0).detach()
    with torch.no_grad():
        judged = training_bound(model, x, Objective("elbo"), _generator(), kl_weight=1.0)
        expected = training_bound(hard, x, Objective("elbo"), _generator(), kl_weight=1.0)
    assert torch.equal(judged, expected)
    assert not torch.allclose(relaxed, judged)


# --- schedules of an estimator's training

DATA = np.random.RandomState(0).normal(size=(200, 6))
SMALL = {"max_iter": 6, "hidden_layer_sizes": (8,), "random_state": 0, "batch_size": 50}


def _spy(monkeypatch, observe):
    """Record something about each training step."""
    recorded, bound = [], LatentVariableModel.training_step

    def spy(model, *args, **kwargs):
        recorded.append(observe(model, *args, **kwargs))
        return bound(model, *args, **kwargs)

    monkeypatch.setattr(LatentVariableModel, "training_step", spy)
    return recorded


@pytest.mark.parametrize("gradient", ["gumbel_softmax", "straight_through", "rebar"])
def test_temperature_goes_from_its_first_to_its_last_value(monkeypatch, gradient):
    seen = _spy(monkeypatch, lambda model, *_, **__: model.family.temperature)
    model = SparseVAE(3, prior="spike_slab", gradient=gradient, temperature=(2.0, 0.1), **SMALL)
    model.fit(DATA)
    # 4 steps per epoch, 24 in total: a geometric sequence.
    assert_allclose(seen, np.geomspace(2.0, 0.1, 24), rtol=1e-12)
    seen.clear()
    model.partial_fit(DATA)
    assert_allclose(seen, 0.1)


@pytest.mark.parametrize("temperature", [0.7, (0.7,), [0.7, 0.7]])
def test_constant_temperature(monkeypatch, temperature):
    seen = _spy(monkeypatch, lambda model, *_, **__: model.family.temperature)
    params = {"prior": "spike_slab", "gradient": "gumbel_softmax", "temperature": temperature}
    SparseVAE(3, **params, **SMALL).fit(DATA)
    assert_allclose(seen, 0.7, rtol=1e-14)


def test_validation_uses_the_last_temperature(monkeypatch):
    seen = _spy(monkeypatch, lambda model, *_, **__: (model.training, model.family.temperature))
    params = {"prior": "spike_slab", "gradient": "gumbel_softmax", "temperature": (2.0, 0.1)}
    SparseVAE(3, early_stopping=True, **params, **SMALL).fit(DATA)
    judged = [temperature for is_training, temperature in seen if not is_training]
    learned = [temperature for is_training, temperature in seen if is_training]
    assert judged
    assert_allclose(judged, 0.1)
    assert learned[0] == 2.0 and learned[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("prior", ["laplace", "spike_slab"])
def test_kl_warm_up_reaches_every_objective(monkeypatch, prior, objective):
    """Including the doubly reparameterised one."""
    seen = _spy(monkeypatch, lambda *_, **kwargs: kwargs["kl_weight"])
    params = {"prior": prior, "objective": objective, "n_draws": 3, "kl_weight": 0.5}
    warm = SparseVAE(3, kl_warmup=0.5, **params, **SMALL).fit(DATA)
    assert_allclose(seen, [0.5 * min(1.0, step / 12) for step in range(24)])
    cold = SparseVAE(3, **params, **SMALL).fit(DATA)
    assert not np.allclose(warm.posterior(DATA).mean, cold.posterior(DATA).mean)
