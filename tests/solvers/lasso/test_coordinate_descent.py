import numpy as np
import pytest
import torch

from sklearn_vsc.solvers.lasso.coordinate_descent import CoordinateDescent
from sklearn_vsc.solvers.lasso.quadratic_fit import GramFit
from sklearn_vsc.solvers.lasso.solve import solve_lasso
from sklearn_vsc.solvers.lasso.stopping import Stopping

DTYPES = [torch.float32, torch.float64]


def problem(n_components=37, n_features=20, n_rows=60, dtype=torch.float64, norm=1.0, seed=0):
    rng = np.random.default_rng(seed)
    dictionary = torch.tensor(rng.standard_normal((n_components, n_features)))
    dictionary *= norm / dictionary.norm(dim=1, keepdim=True)
    return torch.tensor(rng.standard_normal((n_rows, n_features))).to(dtype), dictionary.to(dtype)


def solver(dictionary, alpha=0.3, tol=1e-6, positive=False):
    return CoordinateDescent.of(dictionary, Stopping(alpha, tol, positive))


def distances(X, dictionary, codes, alpha, positive=False):
    """Distance of each code from its optimum with the others held fixed, for unit-norm atoms."""
    pull = codes + (X - codes @ dictionary) @ dictionary.T
    best = (pull - alpha).clamp_min(0) if positive else torch.nn.functional.softshrink(pull, alpha)
    return (codes - best).abs()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("n_components", [1, 15, 16, 17, 64])
@pytest.mark.parametrize("distance", [0.3, 0.003])
def test_descends_until_every_code_is_near_its_optimum(dtype, positive, n_components, distance):
    X, dictionary = problem(n_components, dtype=dtype)
    codes = torch.zeros(len(X), n_components, dtype=dtype)
    found = solver(dictionary, positive=positive).descend(X, dictionary, codes, distance, 1000)
    assert distances(X, dictionary, found, 0.3, positive).max() <= 0.3 * distance + 1e-5
    assert found.dtype == dtype and found.any() and not codes.any()
    if positive:
        assert (found >= 0).all()


@pytest.mark.parametrize("norms", ["large", "small", "mixed", "almost one"])
def test_atoms_of_any_norm(norms):
    X, dictionary = problem()
    factor = {
        "large": torch.full((37, 1), 50.0),
        "small": torch.full((37, 1), 0.02),
        "mixed": torch.logspace(-1, 1, 37).unsqueeze(1),
        "almost one": 1 + 5e-5 * torch.linspace(-1, 1, 37).unsqueeze(1),
    }[norms].double()
    scaled = factor * dictionary
    alpha = 0.3 * factor.mean().item()
    found = solver(scaled, alpha, tol=1e-12)
    result = found.iterate(
        GramFit.from_rows(X, scaled, scaled @ scaled.T), X.new_zeros(60, 37), 10_000
    )
    assert result.converged.all() and result.codes.any()
    peer = solve_lasso(X, scaled, alpha, method="fista", tol=1e-12)
    torch.testing.assert_close(result.objective, peer.objective, rtol=1e-9, atol=0)
    exact = 0.5 * (X - result.codes @ scaled).square().sum(1) + alpha * result.codes.abs().sum(1)
    torch.testing.assert_close(result.objective, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_split_among_threads(dtype):
    X, dictionary = problem(n_rows=101, dtype=dtype)
    start, before = torch.zeros(101, 37, dtype=dtype), torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            found.append(solver(dictionary).descend(X, dictionary, start, 1e-3, 1000))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=5e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_descent_ends_on_rows_that_are_not_finite(bad, dtype):
    X, dictionary = problem(dtype=dtype)
    X[3] = bad
    start = torch.zeros(60, 37, dtype=dtype)
    found = solver(dictionary).descend(X, dictionary, start, 1e-3, 1000)
    others = torch.arange(60) != 3
    assert distances(X[others], dictionary, found[others], 0.3).max() <= 1e-3


def test_the_objective_falls_with_every_move():
    X, dictionary = problem(64, 16)
    found, last = solver(dictionary), np.inf
    for max_iter in range(6):
        codes = found.descend(X, dictionary, X.new_zeros(60, 64), 1e-12, max_iter)
        now = 0.5 * (X - codes @ dictionary).square().sum(1) + 0.3 * codes.abs().sum(1)
        assert (now <= last + 1e-12).all()
        last = now
    assert not torch.equal(codes, X.new_zeros(60, 64))


def test_zero_rows_give_zero_codes():
    X, dictionary = problem()
    assert solver(dictionary).descend(X[:0], dictionary, X.new_zeros(0, 37), 0.1, 9).shape == (
        0,
        37,
    )
