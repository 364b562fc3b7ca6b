"""Count likelihoods in the three neural estimators."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch.utils.data import TensorDataset

import sklearn_vsc
from sklearn_vsc import SCVAE, SparseVAE, ThresholdedVSC
from sklearn_vsc.likelihoods import NegativeBinomialLikelihood, PoissonLikelihood

MODELS = {
    "vsc": lambda **p: ThresholdedVSC(**p),
    "vsc_mlp": lambda **p: ThresholdedVSC(decoder="mlp", **p),
    "vae": lambda **p: SparseVAE(**p),
    "vae_spike": lambda **p: SparseVAE(prior="spike_slab", decoder="linear", **p),
    "scvae": lambda **p: SCVAE(**p),
}
KINDS = {"poisson": PoissonLikelihood, "negative_binomial": NegativeBinomialLikelihood}
# Short fits leave atoms unused.
pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row")

ALL = pytest.mark.parametrize("model", MODELS)
BOTH = pytest.mark.parametrize("kind", KINDS)


def _counts(n_samples=400, n_features=12, n_parts=3, seed=0, size=0.0):
    """Negative binomial counts whose log rates are sparse sums of parts."""
    rng = np.random.default_rng(seed)
    parts = np.kron(np.eye(n_parts), np.ones(n_features // n_parts))
    codes = rng.exponential(1.0, (n_samples, n_parts)) * (rng.random((n_samples, n_parts)) < 0.4)
    log_rates = 0.5 + codes.clip(max=2.5) @ parts + size * rng.normal(size=(n_samples, 1))
    return rng.poisson(np.exp(log_rates) * rng.gamma(8.0, 1 / 8.0, log_rates.shape)).astype(float)


def _fitted(model, X, **parameters):
    given = {"n_components": 4, "max_iter": 3, "random_state": 0, "score_draws": 8}
    given |= {"hidden_layer_sizes": (16,)} | parameters
    return MODELS[model](**given).fit(X)


@ALL
@BOTH
def test_a_fit_beats_the_model_without_codes(model, kind):
    X, X_new = _counts(400), _counts(300, seed=1)
    fitted = _fitted(model, X, likelihood=kind, max_iter=25, batch_size=32, learning_rate_init=1e-2)
    likelihood = fitted.module_.likelihood
    plain = KINDS[kind]()
    plain.start(torch.from_numpy(X))
    with torch.no_grad():
        rows = torch.from_numpy(X_new)
        without = plain.log_prob(rows, plain.output_of(torch.from_numpy(X).mean(0))).mean()
    assert fitted.score(X_new) > float(without) + 1
    assert np.isnan(fitted.noise_variance_)
    assert type(likelihood) is KINDS[kind]
    assert all(value.isfinite().all() for value in likelihood.state_dict().values())


@BOTH
def test_default_settings_choose_an_mlp_encoder_and_relaxed_gates(kind):
    model = ThresholdedVSC(3, likelihood=kind, max_iter=2, random_state=0).fit(_counts())
    assert not model._description.trains_exactly
    assert model.module_.family.gradient == "gumbel_softmax"
    first = model.module_.encoder[1][0]
    assert isinstance(first, torch.nn.Linear)
    codes = model.transform(_counts())
    assert (codes == 0).any()
    with pytest.raises(ValueError, match="gradient='exact' needs an ELBO in closed form"):
        ThresholdedVSC(likelihood=kind, gradient="exact").fit(_counts())


@BOTH
def test_zero_codes_start_at_the_column_means(kind):
    X = _counts()
    for cls in (ThresholdedVSC, SCVAE):
        model = cls(3, likelihood=kind, max_iter=1, learning_rate_init=1e-9, random_state=0)
        if cls is SCVAE:
            model.set_params(hidden_layer_sizes=())
        decoded = model.fit(X).inverse_transform(np.zeros((1, 3)))
        assert_allclose(decoded[0], X.mean(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "kind", "exposure"),
    [
        ("vsc", "poisson", "row_sums"),
        ("vae", "negative_binomial", "learned"),
        ("vae_spike", "negative_binomial", "row_sums"),
        ("scvae", "negative_binomial", "learned"),
        ("scvae", "poisson", 2.0),
    ],
)
def test_saved_copied_and_continued_alike(model, kind, exposure, tmp_path):
    X = _counts(size=0.5).astype(np.float32)
    X[::3, 1] = np.nan
    X[5] = 0
    given = KINDS[kind](exposure=exposure)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    fitted = _fitted(model, X, likelihood=given)
    # The estimator trains a copy.
    assert fitted.likelihood is given
    assert given.state_dict().keys() == before.keys()
    fitted.save(tmp_path / "model")
    again = sklearn_vsc.load(tmp_path / "model")
    assert type(again.likelihood) is KINDS[kind]
    assert again.likelihood.exposure == exposure
    assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    assert_array_equal(again.transform(X), fitted.transform(X))
    for each in (fitted, again):
        each.partial_fit(X)
    assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    assert clone(fitted).likelihood.exposure == exposure
    assert_array_equal(
        _fitted(model, X, likelihood=clone(fitted).likelihood).components_.shape,
        fitted.components_.shape,
    )


@pytest.mark.parametrize("model", ["vsc", "vae", "scvae"])
@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_missing_entries_and_precisions(model, kind, dtype):
    X = _counts().astype(dtype)
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    X = X[~np.isnan(X).all(axis=1)]
    fitted = _fitted(model, X, likelihood=kind)
    for found in (fitted.score_samples(X), fitted.transform(X), fitted.sample(5)):
        assert found.dtype == dtype
        assert np.isfinite(found).all()
    draws = fitted.sample(50)
    assert_array_equal(draws, draws.round())
    assert (draws >= 0).all()
    filled = fitted.inverse_transform(fitted.transform(X))
    assert np.isfinite(filled).all()
    assert (filled > 0).all()


def test_scores_of_rows_add_up_whatever_the_batch():
    """A row's score does not depend on the rows beside it, size factors included."""
    X = _counts(60, size=0.7)
    likelihood = NegativeBinomialLikelihood(exposure="learned")
    fitted = _fitted("vae", X, likelihood=likelihood)
    alone = np.concatenate([fitted.score_samples(row[None]) for row in X[:5]])
    assert_allclose(alone, fitted.score_samples(X)[:5], rtol=1e-10)


def test_size_factors_carry_the_length_of_a_row():
    """Rows twice as large have twice the size factor, and about the same codes."""
    X = _counts(size=0.5)
    fitted = _fitted("vae", X, likelihood=PoissonLikelihood(exposure="row_sums"), max_iter=10)
    likelihood = fitted.module_.likelihood
    once, twice = (likelihood.size_factors(torch.from_numpy(k * X[:5])) for k in (1, 2))
    assert_allclose(twice, 2 * once)
    read = likelihood.encoder_input(torch.from_numpy(X[:5]))
    assert_allclose(likelihood.encoder_input(torch.from_numpy(2 * X[:5])), read, rtol=1e-10)


def test_a_grid_of_likelihoods():
    X = _counts(120)
    choices = ["poisson", "negative_binomial", PoissonLikelihood(exposure="row_sums")]
    estimator = SparseVAE(3, max_iter=2, random_state=0, hidden_layer_sizes=(8,), score_draws=4)
    search = GridSearchCV(estimator, {"likelihood": choices}, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["likelihood"] in choices


@BOTH
def test_cells_that_are_not_counts_are_refused_with_their_index(kind):
    X = _counts(300)
    model = SparseVAE(2, likelihood=kind, max_iter=1, random_state=0, hidden_layer_sizes=(8,))
    fitted = clone(model).fit(X)
    X[250, 3], X[260, 1] = 0.5, -1
    message = rf"likelihood='{kind}' needs counts.* X\[250, 3\] is 0.5"
    for refused in (
        lambda: model.fit(X),
        lambda: fitted.partial_fit(X),
        lambda: fitted.transform(X),
        lambda: fitted.score(X),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_the_index_counts_over_chunks(monkeypatch):
    monkeypatch.setattr("sklearn_vsc._rows.sources.rows_at_once", lambda *_: 64)
    X = _counts(300)
    X[250, 3] = 0.5
    rows = TensorDataset(torch.from_numpy(X))
    for given in (X, rows):
        with pytest.raises(ValueError, match=r"X\[250, 3\] is 0.5"):
            SparseVAE(2, likelihood="poisson", max_iter=1, batch_size=64).fit(given)


@pytest.mark.parametrize("model", ["vsc", "vsc_mlp", "vae", "scvae"])
@BOTH
def test_wide_counts_and_counts_of_all_sizes_train_without_nan(model, kind):
    rng = np.random.default_rng(0)
    X = rng.poisson(np.exp(rng.normal(-1, 1.5, 1000)), (2000, 1000)).astype(np.float32)
    X[:20] *= rng.integers(1, 1000, (20, 1))
    X[20:40, :5] = 1e5
    X[40] = 0
    fitted = _fitted(model, X, likelihood=kind, max_iter=2, score_draws=2, batch_size=256)
    assert np.isfinite(fitted.score_samples(X[:200])).all()
    assert np.isfinite(fitted.components_).all()
    assert all(np.isfinite(record["loss"]) for record in fitted.history_)
