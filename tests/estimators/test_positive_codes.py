"""FISTADictionaryLearner(positive_code=True): the model of its score has non-negative codes."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from scipy.stats import kstest, truncnorm

import sklearn_vsc
from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc._inference import exponential_model

DEAD = "ignore:.*atoms are used by no training row:UserWarning"


def rows_of_positive_codes(n_rows=400, n_components=16, n_features=12, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = rng.exponential(0.3, size=(n_rows, n_components))
    return codes @ dictionary + noise * rng.standard_normal((n_rows, n_features)), dictionary


def learner(**params):
    params = {"n_components": 16, "alpha": 0.1, "max_iter": 20, "random_state": 0} | params
    return FISTADictionaryLearner(positive_code=True, **params)


def with_missing(X, share=0.3):
    missing = np.random.default_rng(1).random(X.shape) < share
    missing[:, 0] = missing[0] = False
    return np.where(missing, np.nan, X)


@pytest.fixture(scope="module", name="X")
def rows():
    return rows_of_positive_codes()[0]


@pytest.fixture(scope="module")
def fitted(X):
    return learner().fit(X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("incomplete", [False, True])
def test_draws_are_not_negative_and_have_the_moments_of_the_posterior(fitted, X, dtype, incomplete):
    rows = (with_missing(X) if incomplete else X)[:5].astype(dtype)
    posterior = fitted.posterior(rows)
    draws = fitted.sample_posterior(rows, n_draws=40_000)
    assert draws.shape == (40_000, 5, 16)
    assert {draws.dtype, posterior.mean.dtype, posterior.std.dtype} == {np.dtype(dtype)}
    assert (draws >= 0).all() and (posterior.mean > 0).all()
    np.testing.assert_array_equal(posterior.inclusion, 1)
    draws = draws.astype(np.float64)
    error = 5 * posterior.std / math.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - posterior.mean), error)
    np.testing.assert_allclose(draws.std(0), posterior.std, rtol=0.05)
    # A longer call begins with the draws of a shorter one.
    np.testing.assert_array_equal(fitted.sample_posterior(rows, 3), draws[:3].astype(dtype))


def test_posterior_of_orthonormal_atoms_is_exact():
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    X = rng.exponential(size=(100, 4)) @ atoms + 0.2 * rng.standard_normal((100, 4))
    model = learner(n_components=4, dict_init=atoms, max_iter=0).fit(X)
    posterior, s = model.posterior(X), math.sqrt(model.noise_variance_)
    # The normal distribution is centred on the lasso code where that is not zero.
    centre = X @ atoms.T - model.alpha
    np.testing.assert_allclose(np.maximum(centre, 0), model.transform(X), atol=1e-6)
    exact = truncnorm(-centre / s, np.inf, loc=centre, scale=s)
    np.testing.assert_allclose(posterior.mean, exact.mean(), rtol=1e-3)
    np.testing.assert_allclose(posterior.std, exact.std(), rtol=1e-3)


def test_new_rows_have_exponential_codes():
    atoms = np.eye(4)
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(300, 4)) + 0.1 * rng.standard_normal((300, 4))
    model = learner(n_components=4, dict_init=atoms, max_iter=0, alpha=0.05).fit(X)
    b, s = model.prior_scale_, math.sqrt(model.noise_variance_)
    new = model.sample(20_000)

    def distribution(x):
        # An exponential variable plus a normal one.
        tail = np.exp(s**2 / (2 * b**2) - x / b + log_ndtr(x / s - s / b))
        return np.exp(log_ndtr(x / s)) - tail

    assert all(kstest(column, distribution).pvalue > 1e-3 for column in new.T)
    assert np.abs(np.corrcoef(new.T) - np.eye(4)).max() < 0.03
    np.testing.assert_array_equal(model.sample(3), model.sample(3))


def test_rows_of_one_atom_have_their_exact_evidence():
    atom = np.array([[0.6, -0.3, 0.5, 0.2]])
    atom /= np.linalg.norm(atom)
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(200, 1)) @ atom + 0.1 * rng.standard_normal((200, 4))
    X = with_missing(X, 0.4)
    model = learner(n_components=1, alpha=0.05, dict_init=atom, max_iter=5).fit(X)
    rate, s2 = 1 / model.prior_scale_, model.noise_variance_
    for row, score in zip(X[:25], model.score_samples(X[:25]), strict=True):
        seen = ~np.isnan(row)
        v, x = model.components_[0, seen], row[seen]
        a, h = v @ v / s2, x @ v / s2 - rate
        log_z = 0.5 * math.log(2 * math.pi / a) + h**2 / (2 * a) + log_ndtr(h / math.sqrt(a))
        constant = -len(x) / 2 * math.log(2 * math.pi * s2) - x @ x / (2 * s2)
        assert score == pytest.approx(constant + math.log(rate) + log_z, rel=1e-10, abs=1e-10)


def test_score_is_below_the_evidence_by_importance_sampling(fitted, X):
    """The mean importance weight is p(x): its log must not be below the bound."""
    rows = X[:5]
    draws = fitted.sample_posterior(rows, n_draws=20_000)
    b, s2 = fitted.prior_scale_, fitted.noise_variance_
    posterior = fitted.posterior(rows)
    # The parameters of the truncated normal distributions, from those of the model.
    V, means = fitted.components_, posterior.mean
    a = (V**2).sum(1) / s2
    h = ((rows - means @ V) @ V.T) / s2 + a * means - 1 / b
    log_z = 0.5 * np.log(2 * math.pi / a) + h**2 / (2 * a) + log_ndtr(h / np.sqrt(a))
    residual = rows - draws @ V
    log_weight = -6 * math.log(2 * math.pi * s2) - (residual**2).sum(2) / (2 * s2)
    log_weight += (-draws / b - math.log(b)).sum(2)
    log_weight -= (h * draws - 0.5 * a * draws**2 - log_z).sum(2)
    bound = fitted.score_samples(rows)
    error = log_weight.std(0) / math.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(log_weight.mean(0) - bound), 5 * error + 1e-3)
    peak = log_weight.max(0)
    assert np.all(peak + np.log(np.exp(log_weight - peak).mean(0)) > bound)


@pytest.mark.parametrize("alpha", [0.03, 0.3])
@pytest.mark.parametrize("incomplete", [False, True])
def test_noise_variance_maximises_the_mean_bound_of_training_rows(X, alpha, incomplete):
    X = with_missing(X) if incomplete else X
    model = learner(alpha=alpha).fit(X)
    best, best_score = model.noise_variance_, model.score(X)
    for factor in (0.01, 0.5, 0.99, 1.01, 2, 100):
        model.noise_variance_ = factor * best
        assert model.score(X) < best_score


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_of_the_data_does_not_matter(X, fitted, scale, dtype):
    X = X.astype(dtype)
    options = {"dict_init": fitted.components_, "max_iter": 0}
    one = learner(**options).fit(X)
    other = learner(alpha=scale * 0.1, **options).fit((scale * X).astype(dtype))
    assert other.noise_variance_ == pytest.approx(scale**2 * one.noise_variance_, rel=1e-3)
    shift = -X.shape[1] * math.log(scale)
    close = 1e-5 if dtype == np.float64 else 1e-3
    assert other.score((scale * X).astype(dtype)) == pytest.approx(one.score(X) + shift, abs=close)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("incomplete", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(fitted, X, dtype, incomplete):
    rows = (with_missing(X) if incomplete else X)[:60].astype(dtype)
    atol = 1e-9 if dtype == np.float64 else 1e-5
    for method in ("score_samples", "sample_posterior", "_code_divergence"):
        whole = getattr(fitted, method)(rows)
        part = getattr(fitted, method)(rows[7:12])
        whole = whole[:, 7:12] if method == "sample_posterior" else whole[7:12]
        np.testing.assert_allclose(part, whole, atol=atol, rtol=1e-5)


def test_atom_that_is_not_observed_keeps_its_prior():
    atoms = np.vstack([np.eye(4)[0], np.ones(4) / 2])
    model = learner(n_components=2, dict_init=atoms, max_iter=0)
    rng = np.random.default_rng(0)
    model.fit(rng.exponential(size=(50, 2)) @ atoms + 0.1 * rng.standard_normal((50, 4)))
    row = np.array([[np.nan, 1.0, 1.1, 0.9]])
    posterior = model.posterior(row)
    assert posterior.mean[0, 0] == pytest.approx(model.prior_scale_)
    assert posterior.std[0, 0] == pytest.approx(model.prior_scale_)
    assert posterior.std[0, 1] < posterior.std[0, 0]
    divergence = model._code_divergence(row)
    assert divergence[0, 0] == pytest.approx(0, abs=1e-12) and divergence[0, 1] > 0.1


def test_rows_of_positive_codes_have_a_higher_score_than_with_both_signs():
    X, dictionary = rows_of_positive_codes(800)
    options = {"n_components": 16, "alpha": 0.03, "max_iter": 0, "dict_init": dictionary}
    positive, signed = (
        FISTADictionaryLearner(positive_code=kind, **options).fit(X[:400]).score(X[400:])
        for kind in (True, False)
    )
    assert positive > signed + 1


def test_saved_models_give_the_same_answers(fitted, X, tmp_path):
    fitted.save(tmp_path / "model")
    again = sklearn_vsc.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    np.testing.assert_array_equal(
        again.sample_posterior(X[:2], 3), fitted.sample_posterior(X[:2], 3)
    )


@pytest.mark.filterwarnings(DEAD)
def test_online_steps_estimate_the_noise_variance_of_the_model(X, fitted):
    options = {"dict_init": fitted.components_, "max_iter": 0}
    model = learner(**options).fit(X)
    before = model.noise_variance_
    for start in range(0, 400, 100):
        model.partial_fit(X[start : start + 100])
    assert model.noise_variance_ == pytest.approx(before, rel=0.1)
    assert model.score(X) > fitted.score(X) - 0.5


def test_noise_variance_from_an_earlier_estimate_or_without(X, fitted):
    codes = torch.from_numpy(fitted.transform(X))
    blocks = [(torch.from_numpy(X), codes)]

    def found(alpha=0.1, **start):
        V = torch.from_numpy(fitted.components_)
        return exponential_model.best_noise_variance(blocks, V, alpha, **start)

    # 64 rows suffice where there is an earlier estimate.
    assert found(start=30.0) == pytest.approx(found(start=1e-6), rel=1e-3)
    assert found(start=1.0) == pytest.approx(found(), rel=0.2)
    residual = X - codes.numpy() @ fitted.components_
    assert found(alpha=0) == pytest.approx(np.mean(residual**2))
    zeros = [(torch.zeros(5, 12).double(), torch.zeros(5, 16).double())]
    V = torch.from_numpy(fitted.components_)
    floor = exponential_model.best_noise_variance(zeros, V, 0.1)
    assert floor == pytest.approx(1e-12 * 0.1**2)


@pytest.mark.filterwarnings(DEAD)
def test_without_alpha_there_are_codes_and_no_score(X):
    model = learner(alpha=0, max_iter=2).fit(X)
    assert (model.transform(X) >= 0).all()
    with pytest.raises(ValueError, match="alpha=0 leaves the codes without a prior"):
        model.score(X)
