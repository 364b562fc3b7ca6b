"""Working sets of atoms: the optimum of the lasso without the inner products of all atoms."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import Lasso

from sklearn_vsc import FISTADictionaryLearner, SparseCoder
from sklearn_vsc._base import lasso_coder
from sklearn_vsc.solvers.lasso import quadratic_fit, solve, working_set_kernels, working_sets
from sklearn_vsc.solvers.lasso.quadratic_fit import AtomCache, Atoms, DataFit, gram_pays
from sklearn_vsc.solvers.lasso.solve import solve_lasso
from sklearn_vsc.solvers.lasso.stopping import Stopping
from sklearn_vsc.solvers.lasso.working_sets import WorkingSetDescent


def problem(n_rows=30, n_components=400, n_features=60, seed=0, dtype=torch.float64):
    """Rows of a few atoms each, and atoms of several norms."""
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features)) / n_features**0.5
    dictionary *= rng.uniform(0.7, 1.5, (n_components, 1))
    codes = rng.standard_normal((n_rows, n_components))
    codes *= rng.random(codes.shape) < 4 / n_components
    X = codes @ dictionary + 0.05 * rng.standard_normal((n_rows, n_features))
    return torch.from_numpy(X).to(dtype), torch.from_numpy(dictionary).to(dtype)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_codes_are_those_of_scikit_learn(alpha, positive):
    X, V = problem(8)
    codes = solve_lasso(X, V, alpha, form="data", tol=1e-12, positive=positive).codes.numpy()
    model = Lasso(
        alpha / V.shape[1], fit_intercept=False, positive=positive, tol=1e-14, max_iter=100_000
    )
    assert np.count_nonzero(codes)
    for x, code in zip(X.numpy(), codes, strict=True):
        assert_allclose(code, model.fit(V.T.numpy(), x).coef_, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("alone", [True, False])
def test_codes_satisfy_the_optimality_conditions(dtype, alone, monkeypatch):
    monkeypatch.setattr(working_sets, "_FEW_NUMBERS", 2**30 if alone else 0)
    X, V = problem(dtype=dtype)
    alpha = 0.2
    stopping = Stopping(alpha, 1e-9 if dtype == torch.float64 else 1e-5, False)
    zero = torch.zeros(len(X), len(V), dtype=dtype)
    result = WorkingSetDescent.of(V, stopping).iterate(DataFit.from_rows(X, V), zero, 1000)
    assert result.converged.all()
    assert not zero.any()
    pull = (X - result.codes @ V) @ V.T
    on = result.codes != 0
    atol = 1e-3 if dtype == torch.float64 else 2e-2
    assert pull.abs().max() <= alpha + atol
    assert_allclose(pull[on], alpha * result.codes[on].sign(), atol=atol)
    objective = 0.5 * (X - result.codes @ V).square().sum(1) + alpha * result.codes.abs().sum(1)
    assert_allclose(result.objective, objective, rtol=1e-5)


def test_codes_equal_those_of_all_inner_products():
    X, V = problem()
    pairs = solve_lasso(X, V, 0.2, method="cd", form="gram", tol=1e-12)
    sets = solve_lasso(X, V, 0.2, method="cd", form="data", tol=1e-12)
    assert pairs.converged.all()
    assert sets.converged.all()
    assert_allclose(sets.codes, pairs.codes, atol=1e-7)


def test_the_working_set_grows():
    X, V = problem(4, 100, 400)
    X = 3 * torch.randn(4, 400, dtype=X.dtype, generator=torch.Generator().manual_seed(0))
    result = solve_lasso(X, V, 0.1, form="data", tol=1e-6)
    assert result.converged.all()
    assert (result.codes != 0).sum(1).min() > working_set_kernels._ROOM


@pytest.mark.parametrize("masked", [False, True])
def test_a_row_does_not_depend_on_the_others(masked, monkeypatch):
    monkeypatch.setattr(working_sets, "_FEW_NUMBERS", 0)
    monkeypatch.setattr(working_sets, "_PRODUCT_NUMEL", 2**12)
    X, V = problem(150, dtype=torch.float32)
    if masked:
        X[torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = np.nan
    codes = solve_lasso(X, V, 0.2, form="data").codes
    for rows in (slice(3, 4), slice(40, 90)):
        assert torch.equal(solve_lasso(X[rows], V, 0.2, form="data").codes, codes[rows])


def test_it_goes_on_from_given_codes():
    X, V = problem()
    stopping = Stopping(0.2, 0.0, False)
    sets = WorkingSetDescent.of(V, stopping)
    wanted = solve_lasso(X, V, 0.2, tol=1e-12).codes
    rough = sets.descend(X, torch.zeros_like(wanted), 0.3, 1000)
    fine = sets.descend(X, rough, 1e-8, 1000)
    assert (rough - wanted).abs().max() > 1e-3
    assert_allclose(fine, wanted, atol=1e-6)


def test_atoms_of_norm_zero_have_no_code():
    X, V = problem()
    V[5] = 0
    start = torch.zeros(len(X), len(V), dtype=X.dtype)
    start[:, 5] = 1
    codes = (
        WorkingSetDescent.of(V, Stopping(0.2, 1e-8, False))
        .iterate(DataFit.from_rows(X, V), start, 100)
        .codes
    )
    assert not codes[:, 5].any()


def test_the_choice():
    few, many = torch.zeros(100, 8), torch.zeros(quadratic_fit.MOST_GRAM_ATOMS + 1, 8)
    some = torch.zeros(4096, 64)
    assert gram_pays(1, few)
    assert not gram_pays(10**6, many)
    assert not gram_pays(1, some)
    assert gram_pays(4096, some)


# --- many atoms in estimators


def without_pairs(monkeypatch):
    """Let no call use the inner products of more than ten atoms."""
    for module in (quadratic_fit, solve):
        monkeypatch.setattr(module, "MOST_GRAM_ATOMS", 10)


def test_estimators_code_the_same_without_pairs(monkeypatch):
    X, V = (part.numpy() for part in problem())
    learner = FISTADictionaryLearner(alpha=0.2, dict_init=V, max_iter=0, transform_tol=1e-10)
    coder = SparseCoder(V, transform_algorithm="lasso_cd", transform_alpha=0.2)
    learner.fit(X)
    wanted, score = learner.transform(X), learner.score(X)
    of_coder = coder.transform(X)
    without_pairs(monkeypatch)
    assert_allclose(learner.transform(X), wanted, atol=1e-6)
    assert_allclose(learner.score(X), score, rtol=1e-6)
    assert_allclose(coder.transform(X), of_coder, atol=1e-6)


def test_a_fit_without_pairs_reaches_the_same_objective(monkeypatch):
    X = problem(200, n_features=12)[0].numpy()
    learner = FISTADictionaryLearner(30, alpha=0.5, max_iter=5, random_state=0)
    wanted = learner.fit(X).error_
    without_pairs(monkeypatch)
    assert_allclose(learner.fit(X).error_, wanted, rtol=1e-2)


# --- inner products are kept


def test_inner_products_are_computed_once(monkeypatch):
    X, V = (part.numpy() for part in problem())
    calls = []
    original = Atoms.of.__func__

    def counted(cls, *args, **kwargs):
        calls.append(1)
        return original(cls, *args, **kwargs)

    learner = FISTADictionaryLearner(alpha=0.2, dict_init=V, max_iter=0).fit(X)
    monkeypatch.setattr(Atoms, "of", classmethod(counted))
    before = dict(vars(learner))
    wanted = learner.transform(X)
    assert not calls
    assert vars(learner) == before
    learner.components_ = 2 * learner.components_
    doubled = learner.transform(X)
    assert len(calls) == 1
    learner.components_ /= 2
    assert_allclose(learner.transform(X), wanted, atol=1e-6)
    assert len(calls) == 2
    assert np.abs(doubled - wanted).max() > 1e-3


def test_inner_products_go_with_their_estimator():
    X, V = (part.numpy() for part in problem())
    learner = FISTADictionaryLearner(alpha=0.2, dict_init=V, max_iter=0).fit(X)
    assert learner in lasso_coder._CACHES
    before = len(lasso_coder._CACHES)
    del learner
    assert len(lasso_coder._CACHES) < before


def test_other_atoms_and_types_are_told_apart():
    V = problem()[1]
    cache = AtomCache()
    atoms = cache.of(V, "gram", symmetric=False)
    assert cache.of(V.clone(), "gram", symmetric=False) is atoms
    assert cache.of(V.float(), "gram", symmetric=False).gram.dtype == torch.float32
    changed = V.clone()
    changed[0, 0] += 1
    assert_allclose(cache.of(changed, "gram", symmetric=False).gram, changed @ changed.T)
    V[0, 0] += 2
    assert_allclose(cache.of(V, "gram", symmetric=False).gram, V @ V.T)
