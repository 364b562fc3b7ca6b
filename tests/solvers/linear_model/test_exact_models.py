"""Without sparse atoms the model is factor analysis, and the bound is its likelihood."""

import math
from dataclasses import replace

import numpy as np
import pytest
from linear_problems import CONVERGED, covariance, draw_rows, learned, random_model
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.decomposition import PCA, FactorAnalysis

from sklearn_vsc.solvers.linear_model import maximisation
from sklearn_vsc.solvers.linear_model.learner import Learner
from sklearn_vsc.solvers.linear_model.parameters import Slab, SparseLinear
from sklearn_vsc.solvers.linear_model.row_posteriors import infer

N_FEATURES, N_DENSE = 7, 2

each_slab = pytest.mark.parametrize("slab", ["laplace", "gaussian", "thresholded"])


@pytest.fixture
def rows():
    return draw_rows(random_model(1, N_FEATURES, 3), 400)


def _without_atoms(intercept, noise, dense, slab="laplace", *, density=0.2):
    """A model whose only atom has norm zero."""
    atoms = np.zeros((1, len(intercept)))
    noise = np.broadcast_to(noise, intercept.shape).copy()
    return SparseLinear(atoms, intercept, noise, dense, np.array([density]), Slab(slab))


@each_slab
def test_bound_is_the_likelihood_of_factor_analysis(rows, slab):
    analysis = FactorAnalysis(N_DENSE, svd_method="lapack").fit(rows)
    model = _without_atoms(analysis.mean_, analysis.noise_variance_, analysis.components_, slab)
    expected = analysis.score_samples(rows)
    assert_allclose(infer(model, rows, CONVERGED).bound, expected, rtol=1e-9)
    single = infer(model, rows.astype(np.float32), CONVERGED).bound
    assert_allclose(single, expected, rtol=1e-4, atol=1e-3)


@each_slab
def test_bound_is_the_likelihood_of_probabilistic_pca(rows, slab):
    pca = PCA(N_DENSE).fit(rows)
    stretch = np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    dense = stretch[:, None] * pca.components_
    model = _without_atoms(pca.mean_, pca.noise_variance_, dense, slab)
    assert_allclose(infer(model, rows, CONVERGED).bound, pca.score_samples(rows), rtol=1e-9)


def test_atoms_that_are_hardly_ever_used_change_little(rows):
    analysis = FactorAnalysis(N_DENSE, svd_method="lapack").fit(rows)
    model = replace(
        _without_atoms(analysis.mean_, analysis.noise_variance_, analysis.components_),
        atoms=np.random.default_rng(0).standard_normal((5, N_FEATURES)),
        density=np.zeros(5),
    )
    # Each is used with the least probability there is.
    gain = infer(model, rows, CONVERGED).bound - analysis.score_samples(rows)
    assert gain.min() > -1e-5 and np.median(gain) < 1e-3


@pytest.mark.parametrize("freedom", [1.5, 8.0])
def test_student_t_rows_without_atoms_have_the_multivariate_density(rows, freedom):
    dense = random_model(1, N_FEATURES, N_DENSE).dense
    model = _without_atoms(rows.mean(0), np.linspace(0.1, 0.8, N_FEATURES), dense)
    model = replace(model, freedom=freedom)
    law = stats.multivariate_t(model.intercept, covariance(model), df=freedom)
    found = infer(model, rows, CONVERGED)
    assert_allclose(found.bound, law.logpdf(rows), rtol=1e-9)


def test_missing_entries_are_integrated_out(rows):
    dense = random_model(1, N_FEATURES, N_DENSE).dense
    model = _without_atoms(rows.mean(0), np.linspace(0.1, 0.8, N_FEATURES), dense)
    gone = np.random.default_rng(0).random(rows.shape) < 0.3
    found = infer(model, np.where(gone, np.nan, rows)[:30], CONVERGED)
    for i in range(30):
        seen = ~gone[i]
        full = covariance(model)[np.ix_(seen, seen)]
        law = stats.multivariate_normal(model.intercept[seen], full)
        assert found.bound[i] == pytest.approx(law.logpdf(rows[i, seen]), rel=1e-9)


# ------------------------------------------------------------------ learning


def _learned_bound(rows, noise, n_passes=400, freedom=math.inf):
    start = _without_atoms(np.zeros(N_FEATURES), 1.0, random_model(1, N_FEATURES, N_DENSE).dense)
    learner = Learner(replace(start, freedom=freedom), learned(N_FEATURES, noise, "fixed"))
    for _ in range(n_passes):
        step = learner.step(rows, all_rows=True)
    return step.bound.mean(), learner.model


@pytest.fixture
def no_shrinkage(monkeypatch):
    monkeypatch.setattr(maximisation, "_SHARED_ROWS", 0.0)


def test_learning_ends_at_factor_analysis(rows, no_shrinkage):
    found, model = _learned_bound(rows, "per_feature")
    analysis = FactorAnalysis(N_DENSE, tol=1e-4, max_iter=5000, svd_method="lapack").fit(rows)
    assert found == pytest.approx(analysis.score(rows), abs=1e-3)
    assert_allclose(covariance(model), analysis.get_covariance(), atol=0.02)
    assert_allclose(model.intercept, rows.mean(0), atol=1e-6)
    assert np.abs(model.atoms).max() < 1e-6


def test_learning_ends_at_probabilistic_pca(rows, no_shrinkage):
    found, model = _learned_bound(rows, "shared")
    # PCA divides by n - 1.
    pca = PCA(N_DENSE).fit(rows)
    assert found == pytest.approx(pca.score(rows), abs=1e-3)
    assert_allclose(covariance(model), pca.get_covariance() * 399 / 400, atol=1e-4)


def test_learning_ends_at_the_best_student_t(no_shrinkage):
    truth = _without_atoms(np.ones(N_FEATURES), 0.3, random_model(1, N_FEATURES, N_DENSE).dense)
    rows = draw_rows(replace(truth, freedom=3.0), 2000)
    found, model = _learned_bound(rows, "per_feature", 100, freedom=20.0)
    assert model.freedom == pytest.approx(3, rel=0.15)
    assert_allclose(covariance(model), covariance(truth), atol=0.12)
    law = stats.multivariate_t(truth.intercept, covariance(truth), df=3.0)
    assert found > law.logpdf(rows).mean()
