"""Spike and slab: gates, hard and relaxed, and the distribution of the gated code."""

import math

import numpy as np
import pytest
import torch
from mixed_measure import assert_mean
from numpy.testing import assert_allclose
from scipy import special, stats

from sklearn_vsc.latents import Noise, SpikeSlab, SpikeSlabPosterior

GRADIENTS = ["gumbel_softmax", "straight_through", "score"]


def _posterior(family, loc, scale, inclusion):
    parameters = [torch.tensor(v, dtype=torch.float64) for v in (loc, scale, inclusion)]
    loc, scale, inclusion = (p.expand(1, -1) for p in parameters)
    return SpikeSlabPosterior(family, loc, scale, torch.logit(inclusion))


def _noise(q, n_draws, seed=0):
    return q.noise(n_draws, torch.Generator().manual_seed(seed))


# --- the gate


def test_gate_opens_as_often_as_its_probability():
    """A gate with a log probability in place of its log-odds would not."""
    inclusion = [1e-4, 0.01, 0.1, 0.5, 0.9, 0.999]
    q = _posterior(SpikeSlab(), [0.0] * 6, [1.0] * 6, inclusion)
    active = q.rsample(_noise(q, 400_000)).active[:, 0]
    assert_mean(active, inclusion)


def test_gate_noise_is_logistic():
    q = _posterior(SpikeSlab(), [0.0], [1.0], [0.5])
    noise = _noise(q, 100_000)
    assert stats.kstest(noise.gate.flatten(), stats.logistic.cdf).pvalue > 1e-4
    # It is independent of the noise of the slab.
    correlation = np.corrcoef(noise.gate.flatten(), noise.base.flatten())[0, 1]
    assert abs(correlation) < 5 / 100_000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_noise_is_finite_whatever_the_uniform_number(monkeypatch, dtype):
    heads = torch.zeros(1, 3, 4, dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape).double())
    noise = SpikeSlab().posterior(heads).noise(2, torch.Generator())
    assert noise.gate.dtype == dtype
    assert noise.gate.isfinite().all() and (noise.gate < -30).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_relaxed_gates(temperature):
    """Gates are relaxed in training alone, and exceed a half where the hard gate is open."""
    family = SpikeSlab(gradient="gumbel_softmax")
    family.temperature = temperature
    q = _posterior(family, [1.0], [1.0], [0.3])
    # With a slab of ones the code is the gate.
    noise = _noise(q, 50_000)
    noise = Noise(torch.zeros_like(noise.base), noise.gate)
    relaxed = q.rsample(noise)
    expected = special.expit((special.logit(0.3) + noise.gate.numpy()) / temperature)
    assert_allclose(relaxed.code, expected, rtol=1e-12)
    assert torch.equal(relaxed.active, relaxed.code > 0.5)
    assert_mean(relaxed.active.flatten(), 0.3)
    with torch.no_grad():
        hard = q.rsample(noise)
    assert torch.equal(hard.code, relaxed.active.double())
    assert torch.equal(hard.active, relaxed.active)


def test_relaxed_gates_harden_as_they_cool():
    family = SpikeSlab(gradient="gumbel_softmax")
    q = _posterior(family, [1.0], [1e-9], [0.3])
    noise, distances = _noise(q, 20_000), []
    for family.temperature in (1.0, 0.3, 0.1, 0.01):
        draws = q.rsample(noise)
        distances.append((draws.code - draws.active.double()).abs().mean().item())
    assert np.all(np.diff(distances) < 0) and distances[-1] < 0.01


# --- gradients of draws


def _gradients(gradient, n=2000):
    """Codes of one draw, and their gradients for location, log scale and log-odds."""
    family = SpikeSlab(gradient=gradient)
    family.temperature = 0.6
    generator = torch.Generator().manual_seed(0)
    leaves = torch.randn(3, 1, n, generator=generator, dtype=torch.float64)
    loc, log_scale, logit = leaves = [leaf.requires_grad_() for leaf in leaves]
    q = SpikeSlabPosterior(family, loc, log_scale.exp(), logit)
    noise = q.noise(1, generator)
    draws = q.rsample(noise)
    found = torch.autograd.grad(draws.code.sum(), leaves, allow_unused=True)
    with torch.no_grad():
        slab = loc + log_scale.exp() * noise.base[0]
        relaxed = torch.sigmoid((logit + noise.gate[0]) / 0.6)
        deviation = slab - loc
    return draws, found, slab, relaxed, deviation


def test_gradients_of_relaxed_gates():
    draws, (by_loc, by_log_scale, by_logit), slab, relaxed, deviation = _gradients("gumbel_softmax")
    assert_allclose(draws.code[0].detach(), relaxed * slab, rtol=1e-12)
    assert_allclose(by_loc, relaxed, rtol=1e-12)
    assert_allclose(by_log_scale, relaxed * deviation, rtol=1e-9)
    assert_allclose(by_logit, slab * relaxed * (1 - relaxed) / 0.6, rtol=1e-9)


def test_straight_through_gates_are_hard_with_the_relaxed_gradient():
    draws, (by_loc, by_log_scale, by_logit), slab, relaxed, deviation = _gradients(
        "straight_through"
    )
    active = draws.active[0].double()
    assert 0.3 < active.mean() < 0.7
    assert torch.equal(draws.code[0].detach(), active * slab)
    assert_allclose(by_loc, active)
    assert_allclose(by_log_scale, active * deviation, rtol=1e-9)
    assert_allclose(by_logit, slab * relaxed * (1 - relaxed) / 0.6, rtol=1e-9)


def test_gates_of_score_estimators_pass_no_gradient():
    draws, (by_loc, by_log_scale, by_logit), _, _, deviation = _gradients("score")
    active = draws.active[0].double()
    assert_allclose(by_loc, active)
    assert_allclose(by_log_scale, active * deviation, rtol=1e-9)
    assert by_logit is None


def test_gradient_changes_draws_in_training_alone():
    heads = torch.randn(30, 3, 5, generator=torch.Generator().manual_seed(0))
    codes = []
    with torch.no_grad():
        for gradient in GRADIENTS:
            q = SpikeSlab(gradient=gradient).posterior(heads)
            codes.append(q.rsample(_noise(q, 20)).code)
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_noise_scale_warms_up_the_slab_alone(noise_scale):
    q = _posterior(SpikeSlab(gradient="score"), [0.7, -2.0], [0.4, 3.0], [0.5, 0.5])
    noise = _noise(q, 100)
    draws = q.rsample(noise, noise_scale)
    slab = q.loc + noise_scale * q.scale * noise.base
    assert_allclose(draws.code, torch.where(draws.active, slab, 0), rtol=1e-14)
    assert torch.equal(draws.active, q.rsample(noise).active)


# --- the distribution of a code


def test_kl_is_the_sum_of_gate_and_open_slab():
    family = SpikeSlab("gaussian", prior_scale=1.5, density=0.2)
    q = _posterior(family, [0.4, -1.0], [0.3, 2.0], [0.7, 0.01])
    loc, scale, on = np.array([0.4, -1.0]), np.array([0.3, 2.0]), np.array([0.7, 0.01])
    slab = np.log(1.5 / scale) + (scale**2 + loc**2) / (2 * 1.5**2) - 0.5
    gate = special.rel_entr(on, 0.2) + special.rel_entr(1 - on, 0.8)
    assert_allclose(q.kl()[0], gate + on * slab, rtol=1e-12)

    family = SpikeSlab("laplace", prior_scale=1.5, density=0.2)
    q = _posterior(family, [0.4, -1.0], [0.3, 2.0], [0.7, 0.01])
    distance = np.abs(loc)
    slab = np.log(1.5 / scale) + distance / 1.5 + scale / 1.5 * np.exp(-distance / scale) - 1
    assert_allclose(q.kl()[0], gate + on * slab, rtol=1e-12)


def test_log_ratio_of_zeros_and_of_the_slab():
    family = SpikeSlab("gaussian", prior_scale=1.5, density=0.2, gradient="score")
    q = _posterior(family, [0.4], [0.3], [0.7])
    draws = q.rsample(_noise(q, 200))
    ratio, code = q.log_ratio(draws).flatten(), draws.code.flatten().numpy()
    slab = stats.norm(0, 1.5).logpdf(code) - stats.norm(0.4, 0.3).logpdf(code)
    expected = np.where(code == 0, math.log(0.8 / 0.3), math.log(0.2 / 0.7) + slab)
    assert_allclose(ratio, expected, rtol=1e-11)


def test_mode_is_the_location_where_the_gate_is_more_likely_open():
    q = _posterior(SpikeSlab(), [0.4, -3.0, 0.01, 5.0], [1.0] * 4, [0.49, 0.51, 0.99, 0.5])
    assert_allclose(q.mode(), [[0.0, -3.0, 0.01, 0.0]])


def test_density_is_the_inclusion_of_heads_at_zero():
    for density in (1e-12, 0.01, 0.5, 0.99, 1 - 1e-9):
        family = SpikeSlab(density=density)
        q = family.posterior(torch.zeros(1, 3, 1, dtype=torch.float64))
        assert_allclose(q.inclusion, density, rtol=1e-12)
        assert_allclose(1 - q.inclusion, 1 - density, rtol=1e-6)


@pytest.mark.parametrize("slab", ["gaussian", "laplace"])
@pytest.mark.parametrize("density", [1e-6, 0.5, 1 - 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_gates_keep_finite_values_and_gradients(slab, density, dtype):
    heads = torch.zeros(2, 3, 1, dtype=dtype)
    heads[:, 2] = torch.tensor([[-1e6], [1e6]])
    heads.requires_grad_()
    q = SpikeSlab(slab, density=density).posterior(heads)
    assert q.inclusion[0] < 1e-2 < 0.99 < q.inclusion[1]
    for value in (q.kl(), q.log_ratio(q.rsample(_noise(q, 20)))):
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), heads, retain_graph=True)
        assert gradient.isfinite().all()
    assert (q.kl() > 1e-6).all()


@pytest.mark.parametrize("gradient", ["gumbel_softmax", "straight_through"])
@pytest.mark.parametrize("logit", [-1.5, 0.5])
def test_log_ratio_of_relaxed_gates_has_the_slope_of_the_kl(gradient, logit):
    """At a low temperature the log ratio has the slope of the KL, as importance weights need."""
    family = SpikeSlab(gradient=gradient, density=0.1)
    family.temperature = 0.1
    q = _posterior(family, [0.4], [0.8], [0.3])
    leaf = torch.tensor([[logit]], dtype=torch.float64, requires_grad=True)
    q = SpikeSlabPosterior(family, q.loc, q.scale, leaf)
    ratio = q.log_ratio(q.rsample(_noise(q, 200_000)))
    (found,) = torch.autograd.grad(ratio.mean(), leaf)
    (expected,) = torch.autograd.grad(-q.kl().sum(), leaf)
    assert found.item() == pytest.approx(expected.item(), abs=0.04)
    assert abs(expected.item()) > 0.1
