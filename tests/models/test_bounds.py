import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from sklearn_vsc._models.bounds import OBJECTIVES, elbo, iwae, max_elbo


@pytest.fixture
def log_weights():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64) - 5


def test_values_against_the_definitions(log_weights):
    assert_allclose(elbo(log_weights), log_weights.numpy().mean(0), rtol=1e-14)
    assert_allclose(max_elbo(log_weights), log_weights.numpy().max(0), rtol=1e-14)
    assert_allclose(iwae(log_weights), log_weights.exp().mean(0).log(), rtol=1e-13)
    for objective in OBJECTIVES.values():
        assert objective(log_weights).shape == (4,)


def test_bounds_of_one_draw_are_its_weight(log_weights):
    for objective in OBJECTIVES.values():
        assert_allclose(objective(log_weights[:1]), log_weights[0], rtol=1e-14)


def test_equal_weights_give_that_weight():
    """With an exact posterior every bound is the log evidence."""
    for objective in OBJECTIVES.values():
        assert_allclose(objective(torch.full((7, 2), -3.25)), -3.25, rtol=1e-6)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_nothing_underflows_or_overflows(log_weights, shift):
    for objective in OBJECTIVES.values():
        moved = objective(log_weights + shift)
        assert moved.isfinite().all()
        assert_allclose(moved - shift, objective(log_weights), atol=1e-10)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8))
def test_order_of_the_bounds(values):
    log_weights = torch.tensor(values, dtype=torch.float64)[:, None]
    lower, middle, upper = (f(log_weights).item() for f in (elbo, iwae, max_elbo))
    assert lower <= middle + 1e-9
    assert middle <= upper + 1e-9
    assert middle >= upper - math.log(len(values)) - 1e-9


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=6))
def test_more_draws_tighten_the_importance_weighted_bound(values):
    """The mean over subsets never exceeds the bound of all draws (Burda et al. 2016, Theorem 1)."""
    log_weights = torch.tensor(values, dtype=torch.float64)[:, None]
    n = len(values)
    means = [
        torch.stack([iwae(log_weights[list(s)]) for s in combinations(range(n), size)]).mean()
        for size in range(1, n + 1)
    ]
    assert_allclose(means[0], elbo(log_weights).item(), rtol=1e-12, atol=1e-12)
    assert all(b >= a - 1e-9 for a, b in pairwise(means))


def test_gradients_are_the_shares_of_the_draws(log_weights):
    """Equal shares, the best draw alone, and normalised weights."""
    n_draws, n_rows = log_weights.shape
    log_weights.requires_grad_()
    best = torch.zeros_like(log_weights)
    best[log_weights.argmax(0), torch.arange(n_rows)] = 1
    expected = {
        "elbo": torch.full_like(log_weights, 1 / n_draws),
        "max_elbo": best,
        "iwae": log_weights.detach().softmax(0),
    }
    for name, shares in expected.items():
        (gradient,) = torch.autograd.grad(OBJECTIVES[name](log_weights).sum(), log_weights)
        assert_allclose(gradient, shares, rtol=1e-12)


def test_softmax_weighted_mean_is_not_a_bound(log_weights):
    """It exceeds the importance-weighted bound by KL(shares || uniform), up to log J."""
    shares = log_weights.softmax(0)
    weighted = (shares * log_weights).sum(0)
    excess = (shares * (shares * len(log_weights)).log()).sum(0)
    assert_allclose(weighted, iwae(log_weights) + excess, rtol=1e-12)
    assert (excess > 0).all()
