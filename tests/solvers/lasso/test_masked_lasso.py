import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from sklearn_vsc.solvers.lasso.coders import block_coder
from sklearn_vsc.solvers.lasso.solve import solve_lasso
from sklearn_vsc.solvers.missing import fill_missing, natural_reach, observed_residual

every_method = pytest.mark.parametrize("method", ["cd", "fista"])


def problem(kind="independent", share=0.3, n_rows=40, n_components=30, n_features=20, seed=0):
    """Rows with missing entries, and a dictionary with atoms of unit norm."""
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features))
    if kind == "duplicated":
        dictionary[1::2] = dictionary[::2]
    if kind == "correlated":
        dictionary = 0.1 * dictionary + rng.standard_normal((1, n_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    X = rng.standard_normal((n_rows, n_features))
    X[rng.random(X.shape) < share] = np.nan
    X[np.isnan(X).all(1), 0] = 1.0
    return X, dictionary


def objective(X, codes, dictionary, alpha):
    residual = np.nan_to_num(X - codes @ dictionary)
    return 0.5 * (residual**2).sum(1) + alpha * np.abs(codes).sum(1)


def reference(X, dictionary, alpha, positive):
    """Lasso of scikit-learn, row by row, on the observed columns."""
    codes = []
    for row in X:
        seen = ~np.isnan(row)
        lasso = Lasso(
            alpha / seen.sum(), fit_intercept=False, tol=1e-12, max_iter=20_000, positive=positive
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            codes.append(lasso.fit(np.asfortranarray(dictionary[:, seen].T), row[seen]).coef_)
    return np.array(codes)


def solve(X, dictionary, alpha, **options):
    return solve_lasso(torch.as_tensor(X), torch.as_tensor(dictionary), alpha, **options)


@every_method
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["independent", "duplicated", "correlated"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_objective_matches_the_lasso_on_observed_columns(method, positive, kind, share):
    X, dictionary = problem(kind, share)
    best = objective(X, reference(X, dictionary, 0.2, positive), dictionary, 0.2)
    result = solve(X, dictionary, 0.2, method=method, positive=positive, tol=1e-10)
    codes = result.codes.numpy()
    assert result.converged.all()
    ours = objective(X, codes, dictionary, 0.2)
    np.testing.assert_allclose(ours, best, rtol=1e-6)
    np.testing.assert_allclose(result.objective, ours, rtol=1e-9)
    # The gap bounds the excess, up to the error of the reference itself.
    assert (ours - best <= result.gaps.numpy() + 1e-9).all()
    assert not positive or (codes >= 0).all()


@every_method
@pytest.mark.parametrize("positive", [False, True])
def test_optimality_conditions_hold_over_observed_entries(method, positive):
    X, dictionary = problem(seed=1)
    codes = solve(X, dictionary, 0.2, method=method, positive=positive, tol=1e-13).codes.numpy()
    pull = np.nan_to_num(X - codes @ dictionary) @ dictionary.T
    on = codes != 0
    assert on.any()
    np.testing.assert_allclose(pull[on], 0.2 * np.sign(codes[on]), atol=1e-6)
    assert ((pull if positive else np.abs(pull)) <= 0.2 + 1e-6).all()


@every_method
def test_complete_rows_are_coded_as_without_the_incomplete_ones(method):
    X, dictionary = problem(seed=2)
    complete = np.arange(0, len(X), 3)
    X[complete] = np.nan_to_num(X[complete])
    start = torch.zeros(len(X), len(dictionary), dtype=torch.float64)
    whole = solve(X, dictionary, 0.2, method=method, code_init=start)
    alone = solve(X[complete], dictionary, 0.2, method=method)
    assert torch.equal(whole.codes[complete], alone.codes)
    incomplete = np.setdiff1d(np.arange(len(X)), complete)
    for name in ("codes", "objective", "gaps"):
        part = getattr(solve(X[incomplete], dictionary, 0.2, method=method), name)
        assert torch.equal(getattr(whole, name)[incomplete], part)


@every_method
def test_code_depends_only_on_its_own_row(method):
    X, dictionary = problem(seed=3, n_rows=70)
    whole = solve(X, dictionary, 0.2, method=method).codes
    tolerance = {"cd": 0, "fista": 1e-12}[method]
    for row in (0, 33, 69):
        alone = solve(X[[row]], dictionary, 0.2, method=method).codes
        torch.testing.assert_close(whole[[row]], alone, rtol=0, atol=tolerance)


def test_atoms_may_have_any_norm_or_no_observed_entry():
    X, dictionary = problem(seed=4)
    dictionary *= np.geomspace(0.1, 10, len(dictionary))[:, None]
    # An atom whose only non-zero entry is missing in some rows, and an atom of zeros.
    dictionary[0], dictionary[1] = np.eye(dictionary.shape[1])[0], 0
    best = objective(X, reference(X, dictionary, 0.2, False), dictionary, 0.2)
    start = torch.ones(len(X), len(dictionary), dtype=torch.float64)
    for method in ("cd", "fista"):
        result = solve(X, dictionary, 0.2, method=method, tol=1e-10, code_init=start)
        np.testing.assert_allclose(result.objective, best, rtol=1e-6)
        assert method == "fista" or (result.codes[np.isnan(X[:, 0]), 0] == 0).all()


@every_method
def test_codes_are_never_worse_than_the_initial_ones_when_iterations_run_out(method):
    X, dictionary = problem("correlated", seed=5)
    start = torch.as_tensor(np.random.default_rng(0).standard_normal((len(X), len(dictionary))))
    options = {"method": method, "code_init": start, "finish": False}
    none = solve(X, dictionary, 0.01, max_iter=0, **options)
    assert torch.equal(none.codes, start)
    assert not none.converged.any()
    one = solve(X, dictionary, 0.01, max_iter=1, **options)
    assert one.n_iter >= 1
    assert (one.objective <= none.objective).all()


@every_method
def test_float32_is_accurate_up_to_rounding(method):
    X, dictionary = problem(seed=6)
    fine = solve(X, dictionary, 0.2, method=method).objective
    coarse = solve(X.astype(np.float32), dictionary.astype(np.float32), 0.2, method=method)
    assert coarse.codes.dtype == torch.float32
    assert coarse.converged.all()
    torch.testing.assert_close(coarse.objective.double(), fine, rtol=1e-4, atol=0)


@every_method
def test_vanishing_weight_interpolates_the_observed_entries(method):
    X, dictionary = problem(seed=7)
    with_more_atoms = np.vstack([dictionary, np.eye(X.shape[1])])
    codes = solve(X, with_more_atoms, 0.0, method=method).codes
    residual = observed_residual(torch.as_tensor(X), codes, torch.as_tensor(with_more_atoms))
    assert residual.abs().max() < 1e-4


@pytest.mark.parametrize("positive", [False, True])
def test_coder_brings_every_code_close_to_its_own_optimum(positive):
    X, dictionary = problem(seed=8)
    X[::4] = np.nan_to_num(X[::4])
    coder = block_coder("cd", 0.2, 1000, positive)
    rows, atoms = torch.as_tensor(X), torch.as_tensor(dictionary)
    start = coder(rows, atoms, None, 0.1)
    for codes, distance in ((start, 0.1), (coder(rows, atoms, start, 1e-3), 1e-3)):
        values = codes.numpy()
        energy = ~np.isnan(X) @ dictionary.T**2
        pull = np.nan_to_num(X - values @ dictionary) @ dictionary.T + energy * values
        optimum = np.maximum(pull - 0.2, 0)
        if not positive:
            optimum -= np.maximum(-pull - 0.2, 0)
        assert np.abs(optimum - energy * values).max() <= 1.001 * distance * 0.2


def test_number_of_threads_does_not_change_codes():
    X, dictionary = problem(seed=9, n_rows=64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = solve(X, dictionary, 0.2, method="cd", finish=False).codes
    finally:
        torch.set_num_threads(before)
    assert torch.equal(two, solve(X, dictionary, 0.2, method="cd", finish=False).codes)


def test_distance_to_filled_rows_is_a_tight_bound_on_the_observed_distance():
    X, dictionary = (torch.as_tensor(array) for array in problem(seed=10))
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(len(X), len(dictionary), generator=rng, dtype=X.dtype)
    filled = fill_missing(X, codes, dictionary)
    seen = ~X.isnan()
    assert torch.equal(filled[seen], X[seen])
    residual = observed_residual(X, codes, dictionary)
    torch.testing.assert_close(filled - codes @ dictionary, residual)
    other = dictionary + 0.1 * torch.randn(dictionary.shape, generator=rng, dtype=X.dtype)
    above = (filled - codes @ other).square().sum(1)
    assert (above >= observed_residual(X, codes, other).square().sum(1)).all()
    far = fill_missing(X, codes, dictionary, reach=1.7)
    torch.testing.assert_close(far - codes @ dictionary, 1.7 * residual)
    complete = X.nan_to_num()
    assert fill_missing(complete, codes, dictionary) is complete


def test_reach_makes_up_for_missing_entries():
    X = torch.ones(40, 6)
    assert natural_reach(X) == 1
    X[:20] = math.nan
    assert natural_reach(X) == 2
    # Columns with more observed entries count more: their steps are shortened less.
    X[:, :3] = 1
    assert 1 < natural_reach(X) < 4 / 3
