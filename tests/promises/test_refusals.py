"""Cases found by `test_fuzz.py` that once failed with an unclear error, or without one."""

import re

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

NETWORK = {"n_components": 3, "hidden_layer_sizes": (4,), "max_iter": 2, "random_state": 0}
ESTIMATORS = [
    FISTADictionaryLearner(3, alpha=0.1, max_iter=2, random_state=0),
    ThresholdedVSC(**NETWORK),
    SparseVAE(**NETWORK),
    SCVAE(**NETWORK),
]
DEAD = "ignore:.*atoms are used by no training row:UserWarning"
pytestmark = pytest.mark.filterwarnings(DEAD)
X = np.random.default_rng(0).uniform(size=(12, 4))

each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


@each
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_rows_whose_squares_underflow_or_overflow_are_an_error(estimator, size):
    learner = clone(estimator)
    with pytest.raises(ValueError, match=r"X has values of at most .* scale X"):
        learner.fit(size * X)
    assert vars(learner).keys() == vars(estimator).keys()


@each
@pytest.mark.parametrize("size", [2.0**-300, 2.0**300])  # powers of two, so products are exact
def test_rows_of_a_scale_far_from_one_are_learned(estimator, size):
    learner, scale = clone(estimator), 1 / size
    if isinstance(learner, FISTADictionaryLearner):
        # Its atoms have unit norm, and alpha has the unit of X.
        learner, scale = learner.set_params(alpha=0.1 * size), 1
    learner.fit(size * X)
    assert np.isfinite(learner.components_).all()
    assert np.all(learner.noise_variance_ > 0)
    assert np.isfinite(learner.noise_variance_).all()
    usual = clone(estimator).fit(X)
    np.testing.assert_allclose(learner.components_ * scale, usual.components_, atol=1e-4)
    # Draws depend on the bytes of a row, and so on its scale; only their mean stays the same.
    bound = learner.score(size * X) + X.shape[1] * np.log(size)
    assert abs(bound - usual.score(X)) < 1


@pytest.mark.parametrize("size", [2.0**-45, 2.0**45])
def test_a_dictionary_does_not_depend_on_the_unit_of_float32_rows(size):
    rows = X.astype(np.float32)
    usual = FISTADictionaryLearner(3, alpha=0.1, max_iter=2, random_state=0).fit(rows)
    learner = clone(usual).set_params(alpha=0.1 * size).fit(np.float32(size) * rows)
    np.testing.assert_allclose(learner.components_, usual.components_, atol=1e-5)


@each
def test_scoring_rows_of_a_very_different_scale_than_in_fit_is_an_error(estimator):
    learner = clone(estimator).fit(X)
    with pytest.raises(ValueError, match=r"\bX\b"):
        learner.score_samples(1e300 * X)


@pytest.mark.parametrize("estimator", ESTIMATORS[1:], ids=lambda e: type(e).__name__)
def test_codes_that_decode_to_infinity_are_an_error(estimator):
    learner = clone(estimator).fit(1e50 * X)
    assert np.isfinite(learner.inverse_transform(np.ones((1, 3)))).all()
    with pytest.raises(ValueError, match=r"Z, .* not finite in float32"):
        learner.inverse_transform(np.ones((1, 3), dtype=np.float32))


def test_a_dictionary_of_few_observed_rows_is_finite():
    # One feature is observed in only one of three rows: conjugate gradients once diverged here.
    rows = np.random.default_rng(9).uniform(size=(3, 3))
    rows[0, 1:], rows[2, 2] = np.nan, np.nan
    learner = SparseVAE(**NETWORK).fit(rows)
    assert np.isfinite(learner.components_).all()
    assert np.abs(learner.components_).max() < 1e6


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alpha_out_of_proportion_is_an_error(alpha, dtype):
    with pytest.raises(ValueError, match=re.escape(f"alpha={alpha!r} is out of proportion to X")):
        FISTADictionaryLearner(3, alpha=alpha).fit(X.astype(dtype))


def test_a_huge_alpha_in_transform_gives_zero_codes():
    learner = clone(ESTIMATORS[0]).set_params(transform_alpha=10**30).fit(X)
    assert not learner.transform(X).any()
    learner.set_params(transform_alpha=1e300)
    assert not learner.transform(X.astype(np.float32)).any()


@pytest.mark.parametrize(
    "estimator_class, name, value",
    [
        (ThresholdedVSC, "prior_scale", 1e300),
        (ThresholdedVSC, "prior_scale", 1e-300),
        (ThresholdedVSC, "threshold_shape", 0.01),
        (ThresholdedVSC, "threshold_shape", 1e300),
        (ThresholdedVSC, "threshold_shape", 10**30),
        (ThresholdedVSC, "threshold", 1e-180),
        (ThresholdedVSC, "threshold", 1e300),
        (ThresholdedVSC, "density", 5e-324),
        (SparseVAE, "prior_scale", 1e-30),
        (SparseVAE, "noise_variance", 1e-300),
        (SparseVAE, "noise_variance", np.inf),
        (SparseVAE, "learning_rate_init", 1e300),
        (SparseVAE, "kl_weight", np.inf),
        (SCVAE, "latent_weight", np.inf),
        (SparseVAE, "temperature", (1.0, 1e-300)),
        (SCVAE, "alpha", 1e-300),
        (SCVAE, "alpha", 10**30),
        (SCVAE, "noise_variance", 1e300),
        (SCVAE, "callbacks", [int]),
        (SCVAE, "callbacks", [("name", object())]),
    ],
)
def test_error_names_a_value_that_prevents_training(estimator_class, name, value):
    learner = estimator_class(**NETWORK | {name: value})
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        learner.fit(X)


def test_error_names_density_and_shape_that_imply_a_huge_threshold():
    learner = ThresholdedVSC(**NETWORK, density=1e-3, threshold_shape=0.1)
    with pytest.raises(ValueError, match=r"density=0.001 with threshold_shape=0.1 makes"):
        learner.fit(X)


def test_a_far_too_large_learning_rate_is_an_error():
    with pytest.raises(ValueError, match="learning_rate_init"):
        SparseVAE(**NETWORK, learning_rate_init=71.0).partial_fit(X)


@each
def test_true_counts_as_one_component(estimator):
    assert clone(estimator).set_params(n_components=True).fit(X).transform(X).shape == (12, 1)


@each
@pytest.mark.parametrize("method", ["transform", "score", "posterior", "inverse_transform"])
def test_error_names_a_parameter_set_to_a_bad_value_after_fit(estimator, method):
    learner = clone(estimator).fit(X)
    name = "transform_algorithm" if hasattr(learner, "transform_algorithm") else "transform_method"
    learner.set_params(**{name: "best"})
    with pytest.raises(ValueError, match=rf"The '{name}' parameter"):
        getattr(learner, method)(np.zeros((1, 3)) if method == "inverse_transform" else X)


@each
@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True])
def test_error_names_a_wrong_count(estimator, count):
    learner = clone(estimator).fit(X)
    with pytest.raises(ValueError, match="The 'n_draws' parameter must be a whole number"):
        learner.sample_posterior(X, count)
    with pytest.raises(ValueError, match="The 'n_samples' parameter must be a whole number"):
        learner.sample(count)


@pytest.mark.parametrize("path", [None, 3, ["model"], b"model", "a\0b"])
def test_error_names_an_invalid_path(path):
    learner = clone(ESTIMATORS[0]).fit(X)
    with pytest.raises(TypeError, match="path must be a string or path-like"):
        learner.save(path)
