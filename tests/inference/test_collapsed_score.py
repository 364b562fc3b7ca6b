"""Collapsed scores through the estimators: `score_method='collapsed_elbo'` and 'iwae'."""

import copy
import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special, stats
from sklearn.utils._param_validation import InvalidParameterError

from sklearn_vsc import SparseVAE, ThresholdedVSC
from sklearn_vsc._rows import arrays as _arrays
from sklearn_vsc.datasets import make_sparse_coded

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

N_CODES, DENSITY, SCALE = 6, 0.3, 1.5
X = make_sparse_coded(
    400, N_CODES, 5, density=DENSITY, noise=0.2, code_distribution="gaussian", random_state=0
)[0]
ROWS = X[:60]
TINY = {"n_components": 4, "max_iter": 1, "hidden_layer_sizes": (8,), "random_state": 0}


@pytest.fixture(scope="module", params=[0, 5], ids=["encoded", "refined"])
def fitted(request):
    return SparseVAE(
        N_CODES,
        prior="spike_slab",
        density=DENSITY,
        prior_scale=SCALE,
        decoder="linear",
        hidden_layer_sizes=(32,),
        n_refine=request.param,
        max_iter=30,
        learning_rate_init=1e-2,
        random_state=0,
    ).fit(X + 3)


def scores(model, method, n_draws=64, rows=ROWS):
    changed = copy.deepcopy(model).set_params(score_method=method, score_draws=n_draws)
    return changed.score_samples(rows + 3)


def log_joint(model, gates):
    """Log p(x, S) of the rows for one support, from the model's public interface."""
    loading = SCALE * gates[:, None] * model.components_
    covariance = loading.T @ loading + model.noise_variance_ * np.eye(5)
    density = stats.multivariate_normal(model.intercept_, covariance).logpdf(ROWS + 3)
    return density + stats.bernoulli(DENSITY).logpmf(gates).sum()


def test_bounds_are_in_order_below_the_evidence(fitted):
    supports = np.array(list(itertools.product([0, 1], repeat=N_CODES)))
    evidence = special.logsumexp([log_joint(fitted, gates) for gates in supports], axis=0)
    elbo, collapsed, iwae = (
        scores(fitted, method, 500) for method in ("elbo", "collapsed_elbo", "iwae")
    )
    assert (elbo <= evidence + 1e-9).all()
    assert elbo.mean() < collapsed.mean() < evidence.mean()
    # With the same draws: the mean of the log weights, and the log of the mean weight.
    assert (collapsed <= iwae + 1e-9).all() and collapsed.mean() < iwae.mean()
    error = (iwae - evidence).std() / len(iwae) ** 0.5
    assert iwae.mean() < evidence.mean() + 4 * error
    assert_allclose(scores(fitted, "iwae", 3000).mean(), evidence.mean(), atol=0.1)


def test_scores_use_the_first_draws_of_the_posterior(fitted):
    """In the units of X, whatever the units of the model."""
    on = fitted.posterior(ROWS + 3).inclusion
    supports = fitted.sample_posterior(ROWS + 3, 8) != 0
    log_q = stats.bernoulli(on).logpmf(supports).sum(-1)
    log_p = np.empty(log_q.shape)
    for j, i in itertools.product(*map(range, log_p.shape)):
        log_p[j, i] = log_joint(fitted, supports[j, i].astype(int))[i]
    weights = log_p - log_q
    for n_draws in (1, 3, 8):
        expected = weights[:n_draws].mean(0)
        assert_allclose(scores(fitted, "collapsed_elbo", n_draws), expected, rtol=1e-6)
        expected = special.logsumexp(weights[:n_draws], axis=0) - np.log(n_draws)
        assert_allclose(scores(fitted, "iwae", n_draws), expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["collapsed_elbo", "iwae"])
def test_a_score_does_not_depend_on_other_rows(fitted, method, monkeypatch):
    together = scores(fitted, method)
    assert_allclose(scores(fitted, method, rows=ROWS[::-1]), together[::-1], rtol=1e-6)
    assert_allclose(scores(fitted, method, rows=ROWS[7:9]), together[7:9], rtol=1e-6)
    # Nor does it depend on how many rows are held in memory at once.
    monkeypatch.setattr(_arrays, "NUMBERS_AT_ONCE", 64 * N_CODES * 13)
    assert_allclose(scores(fitted, method), together, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_method_may_be_set_before_fit(dtype):
    model = SparseVAE(
        prior="spike_slab", decoder="linear", score_method="collapsed_elbo", n_refine=2, **TINY
    )
    found = model.fit(X.astype(dtype)).score_samples(ROWS.astype(dtype))
    assert found.dtype == dtype and np.isfinite(found).all()
    assert model.score(X) > model.set_params(score_method="elbo").score(X)


# ------------------------------------------------------------------------- where it is refused

LINEAR = {"prior": "spike_slab", "decoder": "linear"}
OBSTACLES = {
    "prior='laplace'": {"prior": "laplace", "decoder": "linear"},
    "slab='laplace'": LINEAR | {"slab": "laplace"},
    "decoder='mlp'": LINEAR | {"decoder": "mlp"},
    "likelihood='bernoulli'": LINEAR | {"likelihood": "bernoulli"},
    "output_activation='tanh'": LINEAR | {"output_activation": "tanh"},
}
REFUSED = "score_method='collapsed_elbo' does not go with {}: .*prior='spike_slab' with slab="


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_models_that_do_not_collapse_are_refused_by_name(obstacle):
    rows = (X - X.min()) / (X.max() - X.min())
    model = SparseVAE(score_method="collapsed_elbo", **OBSTACLES[obstacle], **TINY)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=REFUSED.format(obstacle)):
            call(rows)
    assert not hasattr(model, "module_")
    # The same at score, if the method is set later.
    model.set_params(score_method="iwae").fit(rows).set_params(score_method="collapsed_elbo")
    with pytest.raises(ValueError, match=REFUSED.format(obstacle)):
        model.score(rows)


def test_the_model_as_fitted_decides():
    model = SparseVAE(prior="spike_slab", decoder="mlp", **TINY).fit(X)
    model.set_params(score_method="collapsed_elbo", decoder="linear")
    with pytest.raises(ValueError, match=REFUSED.format("the model as fitted")):
        model.score(X)


def test_thresholded_codes_have_no_gaussian_slab():
    model = ThresholdedVSC(score_method="collapsed_elbo", **TINY)
    with pytest.raises(InvalidParameterError, match="'score_method' parameter"):
        model.fit(X)
    model.set_params(score_method="iwae").fit(X).set_params(score_method="collapsed_elbo")
    with pytest.raises(InvalidParameterError, match="'score_method' parameter"):
        model.score(X)
