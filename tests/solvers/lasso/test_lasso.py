import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from sklearn_vsc.solvers.lasso.fista import lipschitz_bound
from sklearn_vsc.solvers.lasso.solve import default_tolerance, solve_lasso

RELATIVE = 1e-6
# For tests of the optimum itself, since coordinate descent stops at the given tolerance.
TIGHT = 1e-13

every_method = pytest.mark.parametrize("method", ["cd", "fista"])


def unit_rows(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def objective(X, codes, dictionary, alpha):
    return 0.5 * ((X - codes @ dictionary) ** 2).sum(1) + alpha * np.abs(codes).sum(1)


def reference(X, dictionary, alpha, positive=False):
    """Coordinate descent of scikit-learn, far more accurate than by default."""
    lasso = Lasso(
        alpha / X.shape[1], fit_intercept=False, tol=1e-12, max_iter=20_000, positive=positive
    )
    with warnings.catch_warnings():
        # With near duplicates it may run out of iterations, but is accurate enough by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.vstack([lasso.fit(dictionary.T, row).coef_ for row in X])


def solve(method, X, dictionary, alpha, **options):
    tensors = torch.as_tensor(X), torch.as_tensor(dictionary)
    return solve_lasso(*tensors, alpha, method=method, **options)


def independent(rng, n_components, n_features):
    return rng.standard_normal((n_components, n_features))


def duplicated(rng, n_components, n_features):
    return np.repeat(rng.standard_normal((n_components // 2, n_features)), 2, axis=0)


def nearly_duplicated(rng, n_components, n_features):
    dictionary = np.repeat(rng.standard_normal((n_components // 3, n_features)), 3, axis=0)
    return dictionary + 1e-3 * rng.standard_normal(dictionary.shape)


def correlated(rng, n_components, n_features):
    few = rng.standard_normal((4, n_features))
    noise = 0.02 * rng.standard_normal((n_components, n_features))
    return rng.standard_normal((n_components, 4)) @ few + noise


def opposite(rng, n_components, n_features):
    half = rng.standard_normal((n_components // 2, n_features))
    return np.vstack([half, -half])


DICTIONARIES = [independent, duplicated, nearly_duplicated, correlated, opposite]


@every_method
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shape", [(12, 30), (48, 16)], ids=["undercomplete", "overcomplete"])
@pytest.mark.parametrize("make", DICTIONARIES)
def test_reaches_the_optimum_found_by_scikit_learn(method, make, shape, positive):
    rng = np.random.default_rng(0)
    dictionary = unit_rows(make(rng, *shape))
    X = rng.standard_normal((30, shape[1])) + rng.standard_normal((30, shape[0])) @ dictionary
    for alpha in (0.05, 0.7):
        best = objective(X, reference(X, dictionary, alpha, positive), dictionary, alpha)
        result = solve(method, X, dictionary, alpha, positive=positive)
        ours = objective(X, result.codes.numpy(), dictionary, alpha)
        assert result.converged.all()
        assert np.all(ours <= best * (1 + RELATIVE))
        np.testing.assert_allclose(result.objective.numpy(), ours, rtol=1e-10)
        if positive:
            assert (result.codes >= 0).all()


@every_method
@pytest.mark.parametrize("make", DICTIONARIES)
def test_without_the_exact_finish_the_gap_still_bounds_the_excess(method, make):
    rng = np.random.default_rng(1)
    dictionary = unit_rows(make(rng, 24, 16))
    X = rng.standard_normal((40, 16))
    best = objective(X, reference(X, dictionary, 0.2), dictionary, 0.2)
    for max_iter in (1, 10, 100):
        result = solve(method, X, dictionary, 0.2, max_iter=max_iter, finish=False)
        excess = objective(X, result.codes.numpy(), dictionary, 0.2) - best
        assert np.all(result.gaps.numpy() >= excess - 1e-10)
    assert np.all(result.gaps.numpy()[result.converged] <= 1e-6 * result.objective.max().item())


@every_method
@pytest.mark.parametrize("positive", [False, True])
def test_optimality_conditions_hold(method, positive):
    rng = np.random.default_rng(2)
    dictionary = rng.standard_normal((40, 20))
    X, alpha = rng.standard_normal((25, 20)), 0.5
    codes = solve(method, X, dictionary, alpha, positive=positive, tol=TIGHT).codes.numpy()
    correlation = (X - codes @ dictionary) @ dictionary.T
    on = codes != 0
    np.testing.assert_allclose(correlation[on], alpha * np.sign(codes[on]), atol=1e-9)
    off = correlation[~on] if positive else np.abs(correlation[~on])
    assert off.max() <= alpha + 1e-9
    assert 0 < on.mean() < 0.9


@every_method
def test_code_is_zero_from_alpha_max_upwards(method):
    rng = np.random.default_rng(3)
    dictionary, x = unit_rows(rng.standard_normal((30, 12))), rng.standard_normal((1, 12))
    alpha_max = np.abs(x @ dictionary.T).max()
    for factor in (1, 1.0001, 10):
        assert not solve(method, x, dictionary, factor * alpha_max).codes.any()
    assert np.count_nonzero(solve(method, x, dictionary, 0.999 * alpha_max).codes) == 1


@every_method
def test_orthonormal_dictionary_gives_soft_thresholding(method):
    rng = np.random.default_rng(4)
    dictionary = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    X = rng.standard_normal((20, 10))
    correlation = X @ dictionary.T
    expected = np.sign(correlation) * np.maximum(np.abs(correlation) - 0.3, 0)
    np.testing.assert_allclose(
        solve(method, X, dictionary, 0.3).codes.numpy(), expected, atol=1e-12
    )


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_and_zero_atoms(method, dtype):
    rng = np.random.default_rng(5)
    dictionary = torch.tensor(rng.standard_normal((8, 6)), dtype=dtype)
    dictionary[3] = 0
    X = torch.tensor(rng.standard_normal((5, 6)), dtype=dtype)
    X[2] = 0
    result = solve(method, X, dictionary, 0.1)
    assert result.converged.all()
    assert not result.codes[2].any() and not result.codes[:, 3].any()
    assert result.gaps[2] == 0
    nothing = solve(method, X, torch.zeros_like(dictionary), 0.1)
    assert nothing.converged.all() and not nothing.codes.any()


@pytest.mark.parametrize("shape", [(12, 30), (48, 16)])
@pytest.mark.parametrize("finish", [False, True])
def test_forms_agree(shape, finish):
    rng = np.random.default_rng(6)
    dictionary, X = rng.standard_normal(shape), rng.standard_normal((20, shape[1]))
    options = {"finish": finish, "tol": 1e-9, "max_iter": 10_000}
    gram, data = (
        solve("fista", X, dictionary, 0.4, form=form, **options) for form in ("gram", "data")
    )
    np.testing.assert_allclose(gram.codes, data.codes, atol=1e-7)
    np.testing.assert_allclose(gram.objective, data.objective, rtol=1e-9)
    assert gram.converged.all() and data.converged.all()


@every_method
def test_initial_codes_do_not_change_the_optimum_and_are_never_made_worse(method):
    rng = np.random.default_rng(7)
    dictionary, X = unit_rows(rng.standard_normal((40, 20))), rng.standard_normal((30, 20))
    cold = solve(method, X, dictionary, 0.2, tol=TIGHT)
    start = torch.tensor(rng.standard_normal((30, 40)))
    warm = solve(method, X, dictionary, 0.2, tol=TIGHT, code_init=start)
    np.testing.assert_allclose(warm.codes, cold.codes, atol=1e-9)
    again = solve(method, X, dictionary, 0.2, code_init=cold.codes)
    assert again.n_iter == 0
    for max_iter in (0, 1, 3):
        few = solve(method, X, dictionary, 0.2, code_init=warm.codes, max_iter=max_iter, tol=1e-16)
        before = objective(X, warm.codes.numpy(), dictionary, 0.2)
        assert np.all(objective(X, few.codes.numpy(), dictionary, 0.2) <= before * (1 + 1e-14))


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_depend_on_their_neighbours(method, dtype):
    rng = np.random.default_rng(8)
    dictionary = torch.tensor(unit_rows(rng.standard_normal((60, 30))), dtype=dtype)
    # The scales of the rows differ widely, and with them the difficulty.
    X = torch.tensor(rng.standard_normal((50, 30)) * 10 ** rng.uniform(-2, 2, (50, 1)), dtype=dtype)
    together = solve(method, X, dictionary, 0.3).codes
    alone = torch.cat([solve(method, row[None], dictionary, 0.3).codes for row in X])
    scale = X.norm(dim=1, keepdim=True)
    atol = 1e-9 if dtype == torch.float64 else 1e-6
    assert ((together - alone).abs() <= atol * scale).all()


@every_method
def test_results_of_blocks_are_concatenated(method, monkeypatch):
    rng = np.random.default_rng(9)
    dictionary, X = rng.standard_normal((20, 10)), rng.standard_normal((100, 10))
    whole = solve(method, X, dictionary, 0.3)
    monkeypatch.setitem(solve_lasso.__globals__["_BLOCK_NUMEL"], "cpu", 1)
    parts = solve(method, X, dictionary, 0.3)
    np.testing.assert_allclose(parts.codes, whole.codes, atol=1e-12)
    assert parts.converged.shape == parts.gaps.shape == parts.objective.shape == (100,)


@every_method
def test_float32_stops_at_rounding_error(method):
    rng = np.random.default_rng(10)
    dictionary = torch.tensor(unit_rows(rng.standard_normal((60, 30)))).float()
    X = torch.tensor(rng.standard_normal((50, 30))).float()
    for tol in (None, 1e-12):
        result = solve(method, X, dictionary, 0.05, tol=tol)
        assert result.converged.all()
        exact = solve(method, X.double(), dictionary.double(), 0.05).objective
        np.testing.assert_allclose(result.objective, exact, rtol=1e-5)


@every_method
@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_of_the_rows_does_not_matter(method, dtype, scale):
    rng = np.random.default_rng(11)
    dictionary = torch.tensor(unit_rows(rng.standard_normal((40, 20))), dtype=dtype)
    X = torch.tensor(rng.standard_normal((30, 20)), dtype=dtype)
    tol = TIGHT if dtype == torch.float64 else 1e-6
    codes = solve(method, X, dictionary, 0.2, tol=tol).codes
    scaled = solve(method, scale * X, dictionary, scale * 0.2, tol=tol).codes / scale
    np.testing.assert_allclose(scaled, codes, atol=1e-4 if dtype == torch.float32 else 1e-9)


@every_method
def test_rows_that_ran_out_of_iterations_are_not_converged(method):
    rng = np.random.default_rng(12)
    dictionary, X = correlated(rng, 60, 30), rng.standard_normal((20, 30))
    result = solve(method, X, dictionary, 1e-3, max_iter=2, finish=False)
    assert not result.converged.all()
    # A pass of coordinate descent makes several moves and may exceed the limit by a few.
    assert 2 <= result.n_iter <= 3


@every_method
@pytest.mark.parametrize("positive", [False, True])
def test_vanishing_penalty_is_least_squares(method, positive):
    rng = np.random.default_rng(13)
    dictionary, X = rng.standard_normal((8, 20)), rng.standard_normal((10, 20))
    result = solve(method, X, dictionary, 0.0, positive=positive)
    codes = result.codes.numpy()
    if positive:
        from scipy.optimize import nnls

        expected = np.vstack([nnls(dictionary.T, row)[0] for row in X])
    else:
        expected = np.linalg.lstsq(dictionary.T, X.T, rcond=None)[0].T
    np.testing.assert_allclose(codes, expected, atol=1e-7)
    assert result.converged.all()


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (30, 30), (1, 7)])
def test_lipschitz_bound_is_tight_from_above(shape):
    dictionary = np.random.default_rng(14).standard_normal(shape)
    exact = np.linalg.norm(dictionary, 2) ** 2
    for scale in (1e-6, 1, 1e6):
        bound = lipschitz_bound(torch.tensor(scale * dictionary)).item()
        assert exact * scale**2 * (1 - 1e-12) <= bound <= 1.06 * exact * scale**2


def test_defaults_follow_the_dtype():
    assert default_tolerance(torch.float64) < default_tolerance(torch.float32)


@every_method
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_components=st.integers(1, 20),
    n_features=st.integers(1, 12),
    log_alpha=st.floats(-3, 1),
    copies=st.integers(1, 3),
    positive=st.booleans(),
)
def test_every_problem_is_solved(
    method, seed, n_components, n_features, log_alpha, copies, positive
):
    rng = np.random.default_rng(seed)
    dictionary = np.tile(rng.standard_normal((n_components, n_features)), (copies, 1))
    X = rng.standard_normal((4, n_features))
    alpha = 10**log_alpha * np.abs(X @ dictionary.T).max()
    result = solve(method, X, dictionary, alpha, positive=positive)
    codes = result.codes.numpy()
    assert result.converged.all()
    # The gap by its definition: any feasible dual point gives a lower bound on the optimum.
    residual = X - codes @ dictionary
    pull = residual @ dictionary.T
    steepest = (pull if positive else np.abs(pull)).max(1)
    best = (X * residual).sum(1) / np.maximum((residual**2).sum(1), 1e-300)
    scale = np.clip(best, 0, alpha / np.maximum(steepest, 1e-300))[:, None]
    dual = 0.5 * (X**2).sum(1) - 0.5 * ((X - scale * residual) ** 2).sum(1)
    primal = objective(X, codes, dictionary, alpha)
    assert np.all(primal - dual <= 1.01e-6 * primal + 1e-12)
