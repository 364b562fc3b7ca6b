"""The metric of noise with dense columns equals that of the full covariance."""

import numpy as np
import pytest
from linear_problems import covariance, random_model
from numpy.testing import assert_allclose

from sklearn_vsc.solvers.linear_model.noise_metric import NoiseMetric

SEEN = np.array([True, False, True, True, False, True])

each_model = pytest.mark.parametrize("n_dense", [0, 1, 4])
each_cut = pytest.mark.parametrize("observed", [None, SEEN, ~SEEN], ids=["all", "some", "others"])


def _cut(model, observed):
    """Covariance, atoms and dense columns of the observed features."""
    seen = slice(None) if observed is None else observed
    return covariance(model)[seen][:, seen], model.atoms[:, seen], model.dense[:, seen]


def _rows(n_features, n_rows=7):
    return np.random.default_rng(3).standard_normal((n_rows, n_features))


@each_model
@each_cut
def test_inner_products_are_those_of_the_inverse_covariance(n_dense, observed):
    model = random_model(n_dense=n_dense)
    full, atoms, _ = _cut(model, observed)
    metric, inverse = NoiseMetric(model, np.dtype(float), observed), np.linalg.inv(full)
    rows = _rows(metric.n_features)
    assert metric.n_features == len(full)
    assert_allclose(metric.weighted(rows), rows @ inverse, rtol=1e-10)
    assert_allclose(metric.products(rows), rows @ inverse @ atoms.T, rtol=1e-10)
    assert_allclose(metric.energy(rows), np.diag(rows @ inverse @ rows.T), rtol=1e-10)
    assert_allclose(metric.gram, atoms @ inverse @ atoms.T, rtol=1e-9)
    assert metric.log_det == pytest.approx(np.linalg.slogdet(full)[1], rel=1e-12)


@each_cut
def test_dense_codes_given_a_residual(observed):
    """Their mean and their precision, by the joint normal distribution."""
    model = random_model(n_dense=3)
    full, _, dense = _cut(model, observed)
    metric = NoiseMetric(model, np.dtype(float), observed)
    rows = _rows(metric.n_features)
    assert_allclose(rows @ metric.dense_weights, rows @ np.linalg.solve(full, dense.T), rtol=1e-10)
    conditional = np.eye(3) - dense @ np.linalg.solve(full, dense.T)
    assert_allclose(np.linalg.inv(metric.dense_precision), conditional, rtol=1e-9)


@each_model
def test_float32(n_dense):
    model = random_model(n_dense=n_dense)
    metric = NoiseMetric(model, np.dtype(np.float32))
    inverse = np.linalg.inv(covariance(model))
    rows = _rows(6).astype(np.float32)
    assert metric.gram.dtype == metric.products(rows).dtype == np.float32
    assert metric.energy(rows).dtype == np.float64
    assert_allclose(metric.products(rows), rows @ inverse @ model.atoms.T, rtol=1e-4, atol=1e-4)
    assert_allclose(metric.energy(rows), np.diag(rows @ inverse @ rows.T), rtol=1e-5)


def test_strong_columns_take_their_directions_out():
    """What lies along a column of huge variance has no energy left."""
    model = random_model(n_dense=2)
    model.dense = 1e5 * model.dense
    metric = NoiseMetric(model, np.dtype(float))
    along = 1e-3 * model.dense
    assert_allclose(metric.energy(along), 1e-6, rtol=1e-3)
    assert np.isfinite(metric.log_det)


def test_no_feature_is_observed():
    metric = NoiseMetric(random_model(n_dense=2), np.dtype(float), np.zeros(6, bool))
    rows = np.empty((4, 0))
    assert metric.n_features == metric.log_det == 0
    assert_allclose(metric.energy(rows), np.zeros(4))
    assert_allclose(metric.products(rows), np.zeros((4, 3)))
    assert_allclose(metric.gram, np.zeros((3, 3)))
