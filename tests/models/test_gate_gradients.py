"""Gradient estimators for binary gates, compared with closed-form gradients."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import integrate, special, stats
from torch import nn
from training_bounds import training_bound

from sklearn_vsc._models.gate_gradients import NVILBaseline, muprop, nvil, rebar, reinforce
from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc._models.objectives import SCORE_GRADIENTS, Objective
from sklearn_vsc.latents import Noise, SpikeSlab, SpikeSlabPosterior
from sklearn_vsc.likelihoods import GaussianLikelihood
from sklearn_vsc.networks import LinearDecoder

RELAXED = ["gumbel_softmax", "straight_through"]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _normal(*shape, seed=0):
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def _z(sample, expected=0.0):
    """Deviation of the means over the first axis, in standard errors."""
    error = sample.mean(0) - expected
    return (error / (sample.std(0) / math.sqrt(len(sample)))).abs()


# --- one model for each row: gradients of single draws, whose mean and error are known


class RowHeads(nn.Module):
    """Heads of each row, as leaf tensors."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.Parameter(heads)

    def forward(self, x):
        return self.heads


class RowDecoder(LinearDecoder):
    """A dictionary for each row, as leaf tensors."""

    def forward(self, code):
        return torch.einsum("...nk,nkd->...nd", code, self.weight) + self.bias

    def output_variance(self, code_variance, mask=None):
        return (code_variance * self.weight.square().sum(-1)).sum(-1)


N_COMPONENTS, N_FEATURES, N_ROWS = 3, 5, 50_000


def _row_model(family, n_rows=N_ROWS, baseline=None):
    """Heads scattered around one setting, so that rows differ, and one dictionary."""
    heads = 0.7 * _normal(1, 3, N_COMPONENTS, seed=1) + 0.3 * _normal(n_rows, 3, N_COMPONENTS)
    decoder = RowDecoder(_normal(N_COMPONENTS, N_FEATURES, seed=2).expand(n_rows, -1, -1).clone())
    decoder.bias = nn.Parameter(torch.zeros(N_FEATURES))
    model = LatentVariableModel(
        nn.Identity(), RowHeads(heads), decoder, GaussianLikelihood(0.5), family, baseline
    )
    return model.double()


def _rows(n_rows=N_ROWS):
    return _normal(1, N_FEATURES, seed=3) + 0.5 * _normal(n_rows, N_FEATURES, seed=4)


def _row_gradients(model, objective, x, kl_weight=1.0, seed=0):
    """Gradients of each row's bound with respect to its heads and its dictionary."""
    bound = training_bound(model, x, objective, _generator(seed), kl_weight=kl_weight)
    leaves = [model.heads.heads, model.decoder.weight]
    return torch.autograd.grad(bound.sum(), leaves)


def _differences(gradient, n_draws, *, temperature=0.5, baseline=None, slab="gaussian", **options):
    """Estimates minus the closed-form gradient of each row: location, scale, log-odds, atoms."""
    score = gradient in SCORE_GRADIENTS
    family = SpikeSlab(slab, density=0.3, gradient="score" if score else gradient)
    family.temperature = temperature
    model, x = _row_model(family, baseline=baseline), _rows()
    objective = Objective("elbo", n_draws, gates=gradient if score else None)
    estimate = _row_gradients(model, objective, x, **options)
    exact = _row_gradients(model, Objective("exact"), x, **options)
    heads, atoms = (e - t for e, t in zip(estimate, exact, strict=True))
    # The gradient under test is not zero, and not lost in noise.
    for name, of_rows in zip(("heads", "atoms"), exact, strict=True):
        size = of_rows.mean(0).square().mean().sqrt()
        error = {"heads": heads, "atoms": atoms}[name].std(0).max() / math.sqrt(N_ROWS)
        assert error < 0.15 * size, name
    return {"loc": heads[:, 0], "scale": heads[:, 1], "logit": heads[:, 2], "atoms": atoms}


def _trained_baseline(n_steps=150):
    """NVIL's baseline after training on signals of the same model."""
    family = SpikeSlab(density=0.3, gradient="score")
    baseline = NVILBaseline(N_FEATURES, _generator(5))
    model, x = _row_model(family, 2000, baseline), _rows(2000)
    optimizer = torch.optim.Adam(baseline.parameters(), lr=3e-3)
    for step in range(n_steps):
        optimizer.zero_grad()
        objective = Objective("elbo", 1, gates="nvil")
        loss = -training_bound(model, x, objective, _generator(step), kl_weight=1.0).mean()
        loss.backward()
        optimizer.step()
    baseline.zero_grad()
    return baseline


@pytest.fixture(scope="module")
def trained_baseline():
    return _trained_baseline()


def _assert_unbiased(differences):
    """Each of 24 coordinates is within four standard errors of zero: one in 16 000 is not."""
    for name, of_rows in differences.items():
        z = _z(of_rows)
        assert (z < 4).all(), f"{name}: {z.max():.1f} standard errors"


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("gradient", ["reinforce", "muprop", "rebar"])
def test_score_function_estimators_are_unbiased(gradient, n_draws):
    _assert_unbiased(_differences(gradient, n_draws))


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("trained", [False, True])
def test_nvil_is_unbiased_before_and_after_its_baseline_has_learned(
    trained, n_draws, trained_baseline
):
    fresh = NVILBaseline(N_FEATURES, _generator(5))
    baseline = (trained_baseline if trained else fresh).double()
    assert (baseline_output(baseline, _rows(100)).std() > 0.05) == trained
    _assert_unbiased(_differences("nvil", n_draws, baseline=baseline))


@pytest.mark.parametrize("gradient", ["reinforce", "muprop", "rebar"])
def test_estimators_are_unbiased_with_a_laplace_slab_and_a_kl_weight(gradient):
    _assert_unbiased(_differences(gradient, 2, slab="laplace", kl_weight=0.3))


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_rebar_is_unbiased_at_any_temperature(temperature):
    _assert_unbiased(_differences("rebar", 1, temperature=temperature))


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("gradient", RELAXED)
def test_relaxed_gates_are_biased(gradient, n_draws):
    """More draws do not help: the mean itself is off."""
    differences = _differences(gradient, n_draws)
    assert _z(differences["logit"]).min() > 10
    # Straight-through draws are hard: gradients that do not pass the gate are unbiased.
    path = torch.cat([differences["loc"], differences["scale"]], dim=1)
    if gradient == "straight_through":
        assert _z(path).max() < 4 and _z(differences["atoms"]).max() < 4
    else:
        assert _z(path).max() > 10 and _z(differences["atoms"]).max() > 10


def test_harder_relaxed_gates_have_smaller_biases():
    warm, cold = (
        _differences("gumbel_softmax", 1, temperature=t)["atoms"].mean(0).abs().mean()
        for t in (1.0, 0.2)
    )
    assert cold < 0.5 * warm


# --- one gate of probability 0.3, f(g) = (g - 0.45)^2: the gradient with respect to the log-odds
#     is 0.3 * 0.7 * (f(1) - f(0)) = 0.021, and relaxed gates get even its sign wrong

TOY_N, TOY_EXACT, TOY_TEMPERATURE = 400_000, 0.0210, 0.5


def _toy():
    logit = torch.full((TOY_N, 1), math.log(0.3 / 0.7), dtype=torch.float64).requires_grad_()
    uniform = torch.rand((2, 1, TOY_N, 1), generator=_generator(), dtype=torch.float64)
    return logit, torch.logit(uniform[0]), uniform[1]


def _toy_function(gates):
    return (gates - 0.45).square().sum(-1)


@pytest.mark.parametrize("name", ["reinforce", "muprop", "rebar 1", "rebar 0.5"])
def test_toy_is_unbiased(name):
    logit, noise, conditional = _toy()
    argument = logit + noise
    if name.startswith("rebar"):
        weight = float(name.split()[1])
        value = rebar(_toy_function, logit, argument, conditional, TOY_TEMPERATURE, weight)
    else:
        value = {"reinforce": reinforce, "muprop": muprop}[name](_toy_function, logit, argument)
    (gradient,) = torch.autograd.grad(value.sum(), logit)
    assert _z(gradient, TOY_EXACT).item() < 4
    assert gradient.std() / math.sqrt(TOY_N) < 0.02 * TOY_EXACT


def _toy_mean_of_relaxed_gates(gradient):
    """E f'(gate) ds/dl, by quadrature over the logistic noise."""
    logit = math.log(0.3 / 0.7)

    def integrand(noise):
        relaxed = special.expit((logit + noise) / TOY_TEMPERATURE)
        gate = relaxed if gradient == "gumbel_softmax" else float(relaxed > 0.5)
        slope = relaxed * (1 - relaxed) / TOY_TEMPERATURE
        return stats.logistic.pdf(noise) * 2 * (gate - 0.45) * slope

    return sum(integrate.quad(integrand, *part)[0] for part in [(-40, -logit), (-logit, 40)])


@pytest.mark.parametrize("gradient", RELAXED)
def test_toy_is_biased_with_relaxed_gates(gradient):
    logit, noise, _ = _toy()
    family = SpikeSlab(gradient=gradient)
    family.temperature = TOY_TEMPERATURE
    # With a slab of one the code is the gate.
    one = torch.ones(TOY_N, 1, dtype=torch.float64)
    draws = SpikeSlabPosterior(family, one, one, logit).rsample(Noise(0 * noise, noise))
    (found,) = torch.autograd.grad(_toy_function(draws.code).sum(), logit)
    expected = _toy_mean_of_relaxed_gates(gradient)
    assert expected == pytest.approx(
        {"gumbel_softmax": -0.0077, "straight_through": -0.0218}[gradient], abs=1e-4
    )
    assert _z(found, expected).item() < 4
    assert _z(found, TOY_EXACT).item() > 20


# --- several gates and any function: the mean is a sum over all gate values

LOGITS = (-1.5, 0.4, 2.0)


def _bumpy(gates):
    """Not a polynomial of low order; also defined between zero and one."""
    weight = torch.tensor([[1.0, -2.0], [0.7, 1.5], [-1.2, 0.4]], dtype=torch.float64)
    hidden = gates @ weight
    return torch.exp(-(hidden[..., 0] - 0.3).square()) + 2 * torch.sin(2 * hidden[..., 1])


def _enumerated_gradient():
    logit = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    gates = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    on = torch.sigmoid(logit)
    probabilities = torch.where(gates > 0, on, 1 - on).prod(-1)
    assert probabilities.sum().item() == pytest.approx(1)
    return torch.autograd.grad((probabilities * _bumpy(gates)).sum(), logit)[0]


def _inputs(n_rows, n_draws=1, seed=0):
    logit = torch.tensor(LOGITS, dtype=torch.float64).repeat(n_rows, 1).requires_grad_()
    uniform = torch.rand((2, n_draws, n_rows, 3), generator=_generator(seed), dtype=torch.float64)
    return logit, logit + torch.logit(uniform[0]), uniform[1]


def _estimate(name, inputs, function=_bumpy, temperature=0.5, weight=1.0):
    logit, argument, conditional = inputs
    if name == "reinforce":
        return reinforce(function, logit, argument)
    if name == "muprop":
        return muprop(function, logit, argument)
    if name == "rebar":
        return rebar(function, logit, argument, conditional, temperature, weight)
    baseline = NVILBaseline(4, _generator()).double()
    x = _normal(len(logit), 4)
    return nvil(function, logit, argument, baseline, x)


@pytest.mark.parametrize("name", SCORE_GRADIENTS)
@pytest.mark.parametrize("n_draws", [1, 4])
def test_gradient_is_the_enumerated_one(name, n_draws):
    inputs = _inputs(100_000, n_draws)
    (found,) = torch.autograd.grad(_estimate(name, inputs).mean(0).sum(), inputs[0])
    exact = _enumerated_gradient()
    assert (_z(found, exact) < 4).all()
    assert (found.std(0) / math.sqrt(len(found)) < 0.1 * exact.abs().max()).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0])
def test_rebar_is_unbiased_at_any_temperature_and_weight(temperature, weight):
    inputs = _inputs(60_000)
    value = _estimate("rebar", inputs, temperature=temperature, weight=weight)
    (found,) = torch.autograd.grad(value.sum(), inputs[0])
    assert (_z(found, _enumerated_gradient()) < 4).all()


def test_rebar_without_its_control_variate_is_reinforce():
    inputs = _inputs(500)
    estimates = [_estimate("rebar", inputs, weight=0.0), _estimate("reinforce", inputs)]
    first, second = (torch.autograd.grad(e.sum(), inputs[0])[0] for e in estimates)
    assert_allclose(first, second, rtol=1e-12, atol=1e-14)


def test_rebar_redraws_the_noise_behind_the_gate():
    """Given the gate, both arguments have the same distribution and lead to the same gate."""
    seen = []

    def function(gates):
        seen.append(gates.detach().clone())
        return _bumpy(gates)

    inputs = _inputs(100_000)
    _estimate("rebar", inputs, function, temperature=0.5)
    hard, relaxed, again = seen
    assert torch.equal(hard, (relaxed > 0.5).double())
    assert torch.equal(hard, (again > 0.5).double())
    for gate in (0.0, 1.0):
        for k in range(3):
            at = hard[0, :, k] == gate
            one, two = relaxed[0, at, k], again[0, at, k]
            error = math.sqrt((one.var() + two.var()) / at.sum())
            assert abs(one.mean() - two.mean()) < 4 * error
            # An independent draw, not the same one again.
            assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(at.sum())


@pytest.mark.parametrize("name", SCORE_GRADIENTS)
@pytest.mark.parametrize("n_draws", [1, 3])
def test_value_is_f_at_the_drawn_gates(name, n_draws):
    inputs = _inputs(200, n_draws)
    value = _estimate(name, inputs)
    gates = (inputs[1] > 0).double()
    assert value.shape == (n_draws, 200)
    assert_allclose(value.detach(), _bumpy(gates), rtol=1e-12)


@pytest.mark.parametrize("name", SCORE_GRADIENTS)
def test_other_parameters_of_f_get_their_gradient_at_the_drawn_gates(name):
    inputs = _inputs(200, 2)
    parameter = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def function(gates):
        return torch.exp((gates * parameter).sum(-1))

    (found,) = torch.autograd.grad(_estimate(name, inputs, function).sum(), parameter)
    gates = (inputs[1] > 0).double()
    (expected,) = torch.autograd.grad(function(gates).sum(), parameter)
    assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", SCORE_GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_saturated_gates(name, dtype):
    logit = torch.tensor([[-100.0, 100.0, 0.0], [-17.0, 17.0, 1e-3]], dtype=dtype).requires_grad_()
    uniform = torch.rand((2, 5, 2, 3), generator=_generator()).clamp(1e-7, 1 - 1e-7).to(dtype)
    argument = logit + torch.logit(uniform[0])

    def function(gates):
        return gates.square().sum(-1)

    if name == "nvil":
        baseline = NVILBaseline(4, _generator()).to(dtype)
        value = nvil(function, logit, argument, baseline, torch.ones(2, 4, dtype=dtype))
    else:
        value = _estimate(name, (logit, argument, uniform[1]), function, temperature=0.1)
    (gradient,) = torch.autograd.grad(value.sum(), logit)
    assert value.isfinite().all() and gradient.isfinite().all()


# --- what the baselines are for


def _variance(name, n_draws, function, n_rows=20_000):
    inputs = _inputs(n_rows, n_draws)
    value = _estimate(name, inputs, function).mean(0)
    (found,) = torch.autograd.grad(value.sum(), inputs[0])
    return found.var(0)


def test_leave_one_out_baseline_removes_a_constant():
    """Far from zero, f times the score is mostly noise, which the other draws predict."""

    def shifted(gates):
        return 10 + _bumpy(gates)

    alone, together = _variance("reinforce", 1, shifted), _variance("reinforce", 4, shifted)
    # Four independent draws would have a quarter of the variance.
    assert (together < 0.2 * alone / 4).all()


def test_leave_one_out_estimate_ignores_a_constant():
    inputs = _inputs(100, 3)
    found = [
        torch.autograd.grad(_estimate("reinforce", inputs, f).sum(), inputs[0])[0]
        for f in (_bumpy, lambda gates: 1e6 + _bumpy(gates))
    ]
    assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_draws", [1, 3])
def test_muprop_of_a_linear_function_has_no_variance(n_draws):
    """The Taylor baseline is then exact, even if the function differs from draw to draw."""
    slope = _normal(n_draws, 50, 3)

    def linear(gates):
        return (slope * gates).sum(-1) + 5

    inputs = _inputs(50, n_draws)
    (found,) = torch.autograd.grad(_estimate("muprop", inputs, linear).sum(), inputs[0])
    on = torch.sigmoid(inputs[0].detach())
    assert_allclose(found, slope.sum(0) * on * (1 - on), rtol=1e-10, atol=1e-13)


def test_rebar_has_less_noise_than_reinforce_where_gates_matter_much():
    def shifted(gates):
        return 3 * gates.sum(-1) - gates.sum(-1).square()

    rebar_, reinforce_ = (_variance(name, 1, shifted).sum() for name in ("rebar", "reinforce"))
    assert rebar_ < 0.5 * reinforce_


# --- NVIL's baseline


def test_regression_leaves_the_models_gradient_alone():
    """The estimate uses the signal minus a number; the baseline learns from its own error."""
    logit, argument, _ = _inputs(300, 2)
    baseline, x = NVILBaseline(4, _generator()).double(), _normal(300, 4)
    with torch.no_grad():
        baseline.output.weight.normal_(generator=_generator(1))
        baseline.centre.fill_(0.7)
        baseline.size.fill_(2.5)
    before = {name: value.clone() for name, value in baseline.state_dict().items()}
    value = nvil(_bumpy, logit, argument, baseline, x)
    parameters = list(baseline.parameters())
    found, *of_baseline = torch.autograd.grad(value.sum(), [logit, *parameters])

    gates = (argument > 0).double()
    on = torch.sigmoid(logit.detach())
    hidden = torch.tanh(x @ before["hidden.weight"].T + before["hidden.bias"])
    predicted = (hidden @ before["output.weight"].T + before["output.bias"])[:, 0]
    left = _bumpy(gates) - 0.7 - math.sqrt(2.5) * predicted
    assert_allclose(found, (left[..., None] * (gates - on)).sum(0), rtol=1e-9, atol=1e-12)

    # The objective includes minus half the squared error, in units of the signal's size.
    square = 0.5 * ((_bumpy(gates) - 0.7) / math.sqrt(2.5) - baseline_output(baseline, x)).square()
    expected = torch.autograd.grad(-square.sum(), parameters)
    for one, other in zip(of_baseline, expected, strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def baseline_output(baseline, x):
    return baseline.output(torch.tanh(baseline.hidden(x))).squeeze(-1)


def test_baseline_learns_the_signal_of_the_rows():
    """On rows that it has not seen, it removes most of the signal's variance."""
    baseline = NVILBaseline(4, _generator())
    optimizer = torch.optim.Adam(baseline.parameters(), lr=1e-2)

    def rows_and_signal(seed):
        x = _normal(500, 4, seed=seed).float()
        return x, -50 + 20 * torch.sin(x[:, 0]) + 3 * _normal(2, 500, seed=seed + 1000).float()

    for step in range(200):
        x, signal = rows_and_signal(step)
        _, regression = baseline(signal, x)
        optimizer.zero_grad()
        regression.mean().backward()
        optimizer.step()
    x, signal = rows_and_signal(999)
    left, _ = baseline.eval()(signal, x)
    assert left.mean().abs() < 2
    assert left.var() < 0.2 * signal.var()


def test_baseline_updates_running_statistics_only_in_training():
    baseline, x = NVILBaseline(4, _generator()).double(), _normal(100, 4)
    signal = 5 + 2 * _normal(3, 100, seed=1)
    left, _ = baseline(signal, x)
    # The first batch uses the statistics from before it, which remove nothing.
    assert_allclose(left, signal)
    assert baseline.centre == pytest.approx(signal.mean().item())
    kept = baseline.centre.clone(), baseline.size.clone()
    baseline.eval()(signal + 100, x)
    assert (baseline.centre, baseline.size) == kept
    baseline.train()
    for step in range(100):
        batch = 5 + 2 * _normal(3, 100, seed=step)
        baseline(batch, x)
    assert baseline.centre == pytest.approx(5, abs=0.2)
    assert baseline.size == pytest.approx(4, rel=0.1)


def test_baseline_uses_only_its_own_generator():
    state = torch.get_rng_state()
    first, second = NVILBaseline(4, _generator()), NVILBaseline(4, _generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.hidden.weight, second.hidden.weight)
    assert baseline_output(first, torch.ones(3, 4)).abs().max() == 0
