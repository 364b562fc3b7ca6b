"""ThresholdedVSC and SparseVAE with ``solver='em'``: the sparse linear model without a network."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning

import sklearn_vsc
from sklearn_vsc import SparseVAE, ThresholdedVSC
from sklearn_vsc._models.sparse_linear import SparseLinearModel
from sklearn_vsc.datasets import make_sparse_coded

DEAD = "ignore:.*atoms are used by no training row:UserWarning"
pytestmark = pytest.mark.filterwarnings(DEAD)

DIGITS = load_digits().data[:300]
MODELS = {
    "thresholded": ThresholdedVSC(12, max_iter=8, random_state=0),
    "fixed threshold": ThresholdedVSC(12, threshold_prior=None, max_iter=8, random_state=0),
    "gaussian threshold": ThresholdedVSC(
        12, prior="gaussian", threshold_prior=None, max_iter=8, random_state=0
    ),
    "spike and slab": SparseVAE(
        12, prior="spike_slab", decoder="linear", max_iter=8, random_state=0
    ),
    "laplace slab": SparseVAE(
        12, prior="spike_slab", slab="laplace", decoder="linear", max_iter=8, random_state=0
    ),
}
STRUCTURES = {
    "plain": {},
    "shared noise": {"noise_variance": "learned", "density": "learned"},
    "dense": {"n_dense": 3},
    "row noise": {"row_scale": "noise"},
    "contrast": {"row_scale": "row"},
    "positive": {"positive_code": True},
    "all": {"n_dense": 2, "row_scale": "noise", "positive_code": True},
}
each = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
each_structure = pytest.mark.parametrize("params", STRUCTURES.values(), ids=STRUCTURES.keys())


# ------------------------------------------------------------------------ choice of the solver


@each
def test_linear_models_learn_without_a_network(model):
    fit = clone(model).fit(DIGITS)
    assert isinstance(fit.module_, SparseLinearModel)
    again = clone(model).set_params(solver="em").fit(DIGITS)
    assert_array_equal(again.transform(DIGITS), fit.transform(DIGITS))


@pytest.mark.parametrize(
    "params",
    [
        {"encoder": "mlp"},
        {"gradient": "exact"},
        {"kl_weight": 0.5},
        {"decoder": "mlp"},
        {"prior": "gaussian", "threshold_prior": "gamma"},
        {"n_refine": 0},
        {"solver": "gradient"},
    ],
    ids=str,
)
def test_networks_learn_where_they_are_asked_for(params):
    model = ThresholdedVSC(4, max_iter=1, random_state=0, **params).fit(DIGITS)
    assert not isinstance(model.module_, SparseLinearModel)
    assert np.ndim(model.density_) == 0 and model.density_ == pytest.approx(0.1)
    assert model.dense_components_.shape == (0, 64)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"solver": "em", "decoder": "mlp"}, "solver='em' needs .* decoder='mlp'"),
        ({"solver": "em", "encoder": "lista"}, "encoder='lista'"),
        (
            {"solver": "em", "prior": "gaussian", "threshold_prior": "gamma"},
            "threshold_prior='gamma'",
        ),
        ({"solver": "gradient", "n_dense": 2}, "n_dense=2 needs closed-form updates"),
        ({"decoder": "mlp", "row_scale": "row"}, "row_scale='row' needs .* decoder='mlp'"),
        ({"decoder": "mlp", "positive_code": True}, "positive_code=True needs"),
        ({"solver": "gradient", "density": "learned"}, "density='learned' needs"),
        ({"solver": "gradient", "noise_variance": "per_feature"}, "'per_feature' needs"),
        ({"noise_variance": [1.0, 2.0]}, "'noise_variance' .* 64 features"),
        ({"noise_variance": [0.0] * 64}, "'noise_variance' .* positive"),
    ],
    ids=str,
)
def test_parameters_that_do_not_go_together_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        ThresholdedVSC(4, **params).fit(DIGITS)


# ---------------------------------------------------------------------------------- the model


def evidence_of_supports(model, X):
    """Log p(x) of a spike and slab with a Gaussian slab, summed over all supports."""
    density = np.broadcast_to(model.density_, len(model.components_))
    dense = model.dense_components_
    noise = np.broadcast_to(model.noise_variance_, X.shape[1])
    terms = []
    for gates in itertools.product([0, 1], repeat=len(density)):
        loading = np.array(gates)[:, None] * model.components_
        covariance = loading.T @ loading + dense.T @ dense + np.diag(noise)
        log_prior = stats.bernoulli(density).logpmf(gates).sum()
        log_density = [
            stats.multivariate_normal(
                model.intercept_[seen], covariance[np.ix_(seen, seen)]
            ).logpdf(x[seen])
            for x, seen in ((x, ~np.isnan(x)) for x in X)
        ]
        terms.append(np.array(log_density) + log_prior)
    return special.logsumexp(terms, axis=0)


@pytest.mark.parametrize("n_dense", [0, 2])
@pytest.mark.parametrize("hidden", [0.0, 0.2])
def test_score_is_a_bound_on_the_sum_over_supports(n_dense, hidden):
    X = make_sparse_coded(
        400, 4, 7, density=0.4, noise=0.3, code_distribution="gaussian", random_state=0
    )[0] * np.geomspace(0.3, 3, 7)
    X[np.random.default_rng(0).uniform(size=X.shape) < hidden] = np.nan
    X[np.isnan(X).all(1), 0] = 0
    model = SparseVAE(
        4, prior="spike_slab", decoder="linear", n_dense=n_dense, max_iter=15, random_state=0
    ).fit(X)
    evidence, bound = evidence_of_supports(model, X[:60]), model.score_samples(X[:60])
    assert (bound <= evidence + 1e-9).all()
    assert (evidence - bound).mean() < 1
    draws = model.set_params(score_method="iwae", score_draws=500).score_samples(X[:60])
    assert bound.mean() < draws.mean() + 1e-6
    error = (draws - evidence).std() / 60**0.5
    assert abs((draws - evidence).mean()) < 0.05 + 4 * error


@pytest.mark.parametrize("params", [{}, {"n_dense": 2}, {"positive_code": True}], ids=str)
def test_samples_have_the_moments_of_the_model(params):
    model = ThresholdedVSC(12, max_iter=8, random_state=0, **params).fit(DIGITS)
    X = model.sample(100_000)
    density = model.density_
    mean = density * (1.0 if model.positive_code else 0.0)
    variance = 2 * density - mean**2
    W, dense = model.components_, model.dense_components_
    expected = (W.T * variance) @ W + dense.T @ dense + np.diag(model.noise_variance_)
    spread = np.sqrt(np.diag(expected))
    assert_allclose((X.mean(0) - model.intercept_ - mean @ W) / spread, 0, atol=0.03)
    covariance = np.cov(X.T)
    centred = (X - X.mean(0)) ** 2
    # Rare codes have heavy tails: where they do, five standard errors of the mean product count.
    error = np.sqrt((centred.T @ centred / len(X) - covariance**2) / len(X))
    assert (
        np.abs(covariance - expected) < np.maximum(0.05 * np.outer(spread, spread), 5 * error)
    ).all()


@each
@each_structure
def test_every_structure_learns_saves_and_takes_missing_entries(model, params, tmp_path):
    model = clone(model).set_params(**params)
    rng = np.random.default_rng(0)
    X = DIGITS + rng.uniform(size=DIGITS.shape)
    X[rng.uniform(size=X.shape) < 0.05] = np.nan
    fit = model.fit(X)
    codes, score = fit.transform(X), fit.score_samples(X)
    assert np.isfinite(codes).all() and np.isfinite(score).all()
    short = clone(model).set_params(max_iter=1).fit(X)
    assert score.mean() > short.score(X)
    fit.save(tmp_path / "model")
    loaded = sklearn_vsc.load(tmp_path / "model")
    assert_array_equal(loaded.transform(X), codes)
    assert_array_equal(loaded.score_samples(X), score)
    assert_array_equal(loaded.partial_fit(X).components_, fit.partial_fit(X).components_)
    alone = np.concatenate([loaded.transform(row[None]) for row in X[:5]])
    assert_allclose(alone, loaded.transform(X)[:5], rtol=1e-6, atol=1e-8)
    if fit.positive_code:
        assert (codes >= 0).all() and (fit.sample_posterior(X[:20], 5) >= 0).all()
        assert (fit.posterior(X[:20]).mean >= 0).all()


@pytest.mark.parametrize("params", [{}, {"n_dense": 3}, {"row_scale": "row"}], ids=str)
def test_each_feature_may_have_a_unit_of_its_own(params):
    X = make_sparse_coded(500, 6, 9, density=0.3, noise=0.2, random_state=0)[0]
    units = np.geomspace(0.01, 50, 9)
    models = [ThresholdedVSC(6, random_state=0, **params).fit(rows) for rows in (X, X * units)]
    codes = [m.transform(rows) for m, rows in zip(models, (X, X * units), strict=True)]
    assert_allclose(codes[1], codes[0], atol=1e-3)
    shift = models[1].score(X * units) + np.log(units).sum() - models[0].score(X)
    assert abs(shift) < 1e-3
    assert_allclose(models[1].components_, models[0].components_ * units, rtol=1e-2, atol=1e-3)


def test_scales_of_rows_describe_rows_of_different_size():
    rng = np.random.default_rng(0)
    X = make_sparse_coded(800, 8, 16, density=0.2, noise=0.2, random_state=0)[0]
    X *= np.exp(rng.normal(size=(800, 1)))
    plain, noise, row = (
        ThresholdedVSC(8, row_scale=scale, random_state=0).fit(X[:600]).score(X[600:])
        for scale in (None, "noise", "row")
    )
    assert noise > plain + 1 and row > plain + 1


def test_dense_columns_describe_what_all_rows_share():
    rng = np.random.default_rng(0)
    X = make_sparse_coded(600, 8, 20, density=0.15, noise=0.2, random_state=0)[0]
    X += rng.normal(size=(600, 3)) @ rng.normal(size=(3, 20))
    plain, dense = (ThresholdedVSC(8, n_dense=n, random_state=0).fit(X[:400]) for n in (0, 3))
    assert dense.dense_components_.shape == (3, 20)
    assert dense.score(X[400:]) > plain.score(X[400:]) + 2


# ------------------------------------------------------------------------------ noise, density


def test_an_array_of_noise_variances_is_kept():
    noise = np.linspace(0.5, 3, 64)
    model = ThresholdedVSC(12, noise_variance=noise, max_iter=5, random_state=0).fit(DIGITS)
    assert_allclose(model.noise_variance_, noise, rtol=1e-6)
    assert model.score(DIGITS) < 0
    single = ThresholdedVSC(12, noise_variance=2.5, random_state=0).fit(DIGITS)
    # Nothing but the bound decides when it ends.
    assert single.n_iter_ < 50
    assert single.noise_variance_ == pytest.approx(2.5, rel=1e-12)


def test_a_constant_column_does_not_send_the_score_to_infinity():
    X = np.column_stack([DIGITS, np.full(len(DIGITS), 3.0)])
    with_constant = ThresholdedVSC(12, max_iter=8, random_state=0).fit(X)
    # Digits are whole numbers, known to a resolution of one.
    assert with_constant.noise_variance_[-1] == pytest.approx(1 / 12, rel=1e-5)
    assert (with_constant.noise_variance_ >= 1 / 12 * (1 - 1e-5)).all()


@pytest.mark.parametrize("density", [0.02, 0.05])
def test_a_number_as_density_keeps_codes_from_being_denser(density):
    X = make_sparse_coded(1000, 20, 30, density=0.2, noise=0.1, random_state=0)[0]
    model = ThresholdedVSC(20, density=density, random_state=0).fit(X)
    assert np.mean(model.transform(X) != 0) < 1.2 * density
    assert model.density_ == density


def test_learned_densities_are_shares_of_the_codes():
    X = make_sparse_coded(2000, 10, 20, density=0.15, noise=0.05, random_state=0)[0]
    one = ThresholdedVSC(10, density="learned", random_state=0).fit(X)
    each_code = ThresholdedVSC(10, density="per_component", random_state=0).fit(X)
    assert np.ndim(one.density_) == np.ndim(one.threshold_) == 0
    assert each_code.density_.shape == each_code.threshold_.shape == (10,)
    assert one.density_ == pytest.approx(np.mean(one.posterior(X).inclusion), rel=0.1)
    usage = each_code.posterior(X).inclusion.mean(0)
    assert_allclose(each_code.density_, usage, atol=0.05)


@pytest.mark.filterwarnings("default")
def test_warnings_say_what_kept_a_fit_from_what_was_asked():
    with pytest.warns(ConvergenceWarning, match="max_iter=2 passes.* fewer than 3 do not tell"):
        ThresholdedVSC(12, max_iter=2, random_state=0).fit(DIGITS)
    with pytest.warns(ConvergenceWarning, match="max_iter=3 passes.*'tol' above"):
        ThresholdedVSC(12, max_iter=3, random_state=0).fit(DIGITS)
    with pytest.warns(UserWarning, match="% of the training codes are not zero, where the prior"):
        ThresholdedVSC(12, density=0.6, max_iter=30, random_state=0).fit(DIGITS)


# ------------------------------------------------------------------------------------ streams


def test_a_stream_learns_nearly_what_a_fit_learns():
    X = make_sparse_coded(4000, 10, 20, density=0.15, noise=0.1, random_state=0)[0]
    whole = ThresholdedVSC(10, random_state=0).fit(X[:3000])
    stream = ThresholdedVSC(10, random_state=0)
    for _ in range(8):
        for first in range(0, 3000, 500):
            stream.partial_fit(X[first : first + 500])
    empty = -10 * (1 + np.log(2 * np.pi * X.var(0).mean()))
    assert stream.score(X[3000:]) > empty + 0.7 * (whole.score(X[3000:]) - empty)


def test_atoms_join_a_stream_once_rows_can_tell_them_apart():
    X = make_sparse_coded(1000, 16, 12, density=0.15, noise=0.1, random_state=0)[0]
    model, n_present = ThresholdedVSC(16, random_state=0), []
    for first in range(0, 400, 20):
        model.partial_fit(X[first : first + 20])
        n_present.append(np.count_nonzero(model.components_.any(1)))
    # Eight rows for each, of those that the sums remember.
    assert n_present[0] == 2
    assert all(later >= earlier for earlier, later in itertools.pairwise(n_present))
    assert n_present[-1] == 16


def test_more_atoms_than_rows_can_tell_apart_cost_nothing():
    X = load_iris().data
    X = (X - X.mean(0)) / X.std(0)
    few = ThresholdedVSC(15, random_state=0).fit(X[::2])
    many = ThresholdedVSC(300, random_state=0).fit(X[::2])
    assert many.score(X[1::2]) > few.score(X[1::2]) - 0.3
    codes = many.transform(X[1::2])
    assert 0.3 < np.count_nonzero(codes, axis=1).mean() < 3
    assert np.count_nonzero(many.components_.any(1)) == 75 // 8
    # A declared density holds for every atom.
    with pytest.warns(UserWarning, match="of the training codes are not zero"):
        declared = ThresholdedVSC(40, density=0.1, random_state=0).fit(X[::2])
    assert declared.components_.any(1).all()


def test_mini_batches_and_early_stopping():
    model = ThresholdedVSC(12, batch_size=50, early_stopping=True, max_iter=15, random_state=0)
    fit = model.fit(DIGITS)
    assert all("valid_loss" in record for record in fit.history_)
    full = ThresholdedVSC(12, max_iter=15, random_state=0).fit(DIGITS)
    assert fit.score(DIGITS) > full.score(DIGITS) - 15


def test_history_parts_add_up():
    model = ThresholdedVSC(12, max_iter=4, random_state=0).fit(DIGITS)
    for record in model.history_:
        assert record["loss"] == pytest.approx(record["kl"] - record["log_likelihood"])
        assert 0 < record["density"] < 1
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]


def test_gradients_of_a_model_without_a_gradient_are_refused():
    model = ThresholdedVSC(12, max_iter=2, random_state=0).fit(DIGITS)
    with pytest.raises(ValueError, match="solver='gradient'"):
        sklearn_vsc.metrics.gradient_snr(model, DIGITS)
