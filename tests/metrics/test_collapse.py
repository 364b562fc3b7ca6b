import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.integrate import quad
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.metrics import feature_collapse, posterior_collapse

TRAINED = {"hidden_layer_sizes": 8, "learning_rate_init": 0.02, "max_iter": 40, "random_state": 0}
SETTINGS = {"n_components": 6, "max_iter": 5, "random_state": 0}
SMALL = SETTINGS | {"hidden_layer_sizes": 8}
LINEAR = SMALL | {"decoder": "linear"}
CLOSED = [
    ThresholdedVSC(**SMALL),
    ThresholdedVSC(gradient="straight_through", threshold_prior=None, **SMALL),
    ThresholdedVSC(prior="gaussian", threshold_prior=None, **SMALL),
    SparseVAE(prior="laplace", **LINEAR),
    SparseVAE(prior="spike_slab", **LINEAR),
    FISTADictionaryLearner(alpha=0.2, **SETTINGS),
]
DRAWN = [
    ThresholdedVSC(prior="gaussian", threshold_prior="gamma", score_draws=8, **SMALL),
    SparseVAE(prior="cauchy", posterior_family="gaussian", score_draws=8, **SMALL),
    SparseVAE(prior="spike_slab", score_draws=8, **SMALL),
    SCVAE(score_draws=8, **SMALL),
]


def name(model):
    return f"{type(model).__name__}-{getattr(model, 'prior', '')}"


@pytest.fixture(scope="module", name="X")
def rows():
    X, _, _ = make_sparse_coded(150, 6, 8, density=0.3, noise=0.1, random_state=0)
    X[::5, 2] = np.nan
    return X


def log_normal(X, mean, extra, variance):
    """Expected log density of the observed entries if the mean has variance ``extra``."""
    terms = -0.5 * (np.log(2 * math.pi * variance) + ((X - mean) ** 2 + extra) / variance)
    return np.nansum(terms, axis=-1)


@pytest.mark.parametrize("model", CLOSED, ids=name)
def test_divergences_are_what_the_score_subtracts(fitted, model, X):
    """The score is the expected log-likelihood, here from moments, minus the divergences."""
    model = fitted(model, X)
    found = model._code_divergence(X)
    assert found.shape == (len(X), 6)
    assert found.min() > -1e-9
    q, A = model.posterior(X), model.components_
    mean = q.mean @ A + getattr(model, "intercept_", 0.0)
    fit = log_normal(X, mean, q.std**2 @ A**2, model.noise_variance_)
    assert_allclose(fit - found.sum(1), model.score_samples(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", DRAWN, ids=name)
def test_divergences_estimated_from_draws_match_the_score_too(fitted, model, X):
    model = fitted(model, X)
    found = model._code_divergence(X)
    draws = model.sample_posterior(X, 8)
    fit = [log_normal(X, model.inverse_transform(z), 0, model.noise_variance_) for z in draws]
    expected = np.mean(fit, axis=0) - found.sum(1)
    assert_allclose(expected, model.score_samples(X), rtol=1e-5, atol=1e-5)


def test_divergence_of_a_laplace_posterior_by_quadrature(fitted, X):
    model = fitted(FISTADictionaryLearner(alpha=0.2, **SETTINGS), X)
    q, b = model.posterior(X), model.prior_scale_
    found = model._code_divergence(X)
    for row, k in ((0, 0), (1, 3), (7, 5)):
        loc, scale = q.mean[row, k], q.std[row, k] / math.sqrt(2)

        def integrand(z, loc=loc, scale=scale):
            log_q = -abs(z - loc) / scale - math.log(2 * scale)
            return math.exp(log_q) * (log_q + abs(z) / b + math.log(2 * b))

        ends = loc - 40 * scale, loc + 40 * scale
        expected, _ = quad(integrand, *ends, points=sorted({0.0, loc}), limit=200)
        assert found[row, k] == pytest.approx(expected, rel=1e-6)


def test_the_posterior_is_the_one_used_by_the_score(fitted, X):
    """The KL weight changes what ``posterior`` returns but not this; refinement changes this."""
    model = fitted(ThresholdedVSC(kl_weight=3.0, **SMALL), X)
    found, moments = model._code_divergence(X), model.posterior(X).mean
    model.set_params(kl_weight=1.0)
    assert (model.posterior(X).mean != moments).any()
    assert_allclose(model._code_divergence(X), found)
    model.set_params(n_refine=0)
    assert np.abs(model._code_divergence(X) - found).max() > 1e-3


def test_collapse_counts_codes(fitted, X):
    model = fitted(SparseVAE(**SMALL), X)
    found = model._code_divergence(X)
    assert 0 < np.quantile(found, 0.4) < np.quantile(found, 0.6)
    for tol, share in ((np.quantile(found, 0.4), 0.4), (found.max(), 1.0), (0.0, 0.0), (0.0, 0.1)):
        expected = np.mean([np.mean(column <= tol) >= share for column in found.T])
        assert posterior_collapse(model, X, kl_tol=float(tol), share=share) == expected
    before = torch.get_rng_state()
    assert posterior_collapse(model, X[:40]) == posterior_collapse(model, torch.from_numpy(X[:40]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_kl_weight_collapses_posteriors(fitted, X):
    heavy = fitted(SparseVAE(6, prior="gaussian", kl_weight=1e3, **TRAINED), X)
    light = fitted(SparseVAE(6, prior="gaussian", kl_weight=0.01, **TRAINED), X)
    assert posterior_collapse(heavy, X) == 1
    assert posterior_collapse(light, X) == 0


def test_a_gaussian_posterior_never_equals_a_laplace_prior(fitted, X):
    heavy = fitted(SparseVAE(6, prior="laplace", kl_weight=1e3, **TRAINED), X)
    # Attained at the best scale, which is sqrt(pi / 2) times the prior scale.
    least = 0.5 + math.log(2 / math.pi)
    assert heavy._code_divergence(X).min() > least - 1e-6
    assert posterior_collapse(heavy, X) == 0
    assert posterior_collapse(heavy, X, kl_tol=least + 0.01) == 1


def test_collapse_without_a_posterior_is_an_error(fitted, X):
    with pytest.raises(NotFittedError):
        posterior_collapse(SparseVAE(), X)
    full = X[~np.isnan(X).any(1)]
    with pytest.raises(TypeError, match="needs a fitted estimator of sklearn_vsc; got PCA"):
        posterior_collapse(PCA(2).fit(full), full)
    with pytest.raises(TypeError, match=r"got Pipeline\. .* pipeline\[-1\]"):
        posterior_collapse(make_pipeline(PCA(2)).fit(full), full)
    model = fitted(SparseVAE(**SMALL), X)
    with pytest.raises(ValueError, match=r"'kl_tol' parameter must be a finite number .* got -1"):
        posterior_collapse(model, X, kl_tol=-1)
    with pytest.raises(
        ValueError, match="'share' parameter must be a finite number from 0 to 1; got 95"
    ):
        posterior_collapse(model, X, share=95)
    model = fitted(FISTADictionaryLearner(6, alpha=0, max_iter=2, random_state=0), full)
    with pytest.raises(ValueError, match="alpha=0 leaves the codes without a prior"):
        posterior_collapse(model, full)


def test_feature_collapse_by_hand():
    codes = np.zeros((20, 4))
    codes[:, 1] = 5
    codes[0, 2] = -5
    codes[:2, 3] = -5
    assert feature_collapse(codes) == 0.5
    assert feature_collapse(codes, share=1.0) == 0.25
    assert feature_collapse(codes, share=0.9) == 0.75
    assert feature_collapse(codes, tol=5) == 1
    assert feature_collapse(codes + 0.01) == 0.5
    with pytest.raises(ValueError, match="codes contains NaN"):
        feature_collapse(codes * np.nan)
    with pytest.raises(ValueError, match="'tol' parameter must be a finite number of at least 0"):
        feature_collapse(codes, tol=-1)
