"""Sparse codes equal the dense codes exactly, without holding these in memory."""

import copy

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

import sklearn_vsc
from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc._base import lasso_coder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

DIGITS = load_digits()
X, ROWS = DIGITS.data[:150], DIGITS.data[150:250]
NETWORK = {"max_iter": 10, "hidden_layer_sizes": (32,), "learning_rate_init": 5e-3}

ESTIMATORS = {
    "fista": FISTADictionaryLearner(12, alpha=5.0, max_iter=5, random_state=0),
    "split": FISTADictionaryLearner(12, alpha=5.0, max_iter=5, split_sign=True, random_state=0),
    "omp": FISTADictionaryLearner(12, max_iter=5, transform_algorithm="omp", random_state=0),
    "thresholded": ThresholdedVSC(12, **NETWORK, random_state=0),
    "spike_slab": SparseVAE(12, prior="spike_slab", decoder="linear", **NETWORK, random_state=0),
    "scvae": SCVAE(12, **NETWORK, random_state=0),
    "grid": SCVAE(
        6, image_shape=(1, 8, 8), encoder="conv", max_iter=1, score_draws=2, random_state=0
    ),
}
each = pytest.mark.parametrize("name", ESTIMATORS)
_FITS: dict = {}


def fitted(name):
    if name not in _FITS:
        _FITS[name] = clone(ESTIMATORS[name]).fit(X)
    return copy.deepcopy(_FITS[name])


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_codes_equal_the_dense_codes(name, dtype):
    model, rows = fitted(name), ROWS.astype(dtype)
    dense = model.transform(rows)
    codes = model.set_params(sparse_output=True).transform(rows)
    assert sparse.issparse(codes) and codes.format == "csr"
    assert isinstance(codes, sparse.csr_matrix)
    assert codes.dtype == dtype and codes.shape == dense.shape
    assert_array_equal(codes.toarray(), dense)
    # Zeros are not stored.
    assert codes.nnz == np.count_nonzero(dense)
    assert 0 < codes.nnz < dense.size
    assert codes.has_sorted_indices


@each
def test_inverse_transform_accepts_sparse_codes(name):
    model = fitted(name)
    dense = model.transform(ROWS)
    expected = model.inverse_transform(dense)
    for make in (sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.coo_matrix):
        found = model.inverse_transform(make(dense))
        assert type(found) is np.ndarray and found.dtype == expected.dtype
        assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="columns"):
        model.inverse_transform(sparse.csr_matrix(dense[:, :-1]))
    with pytest.raises(ValueError, match="NaN"):
        model.inverse_transform(sparse.csr_matrix(np.full_like(dense, np.nan)))


@each
def test_fit_transform_follows_the_parameter(name):
    model = clone(ESTIMATORS[name]).set_params(sparse_output=True, max_iter=1)
    codes = model.fit_transform(X)
    assert sparse.issparse(codes)
    assert_array_equal(codes.toarray(), model.transform(X).toarray())
    assert model.get_params()["sparse_output"] is True
    assert get_tags(model).array_api_support is False
    with pytest.raises(ValueError, match="'sparse_output' parameter"):
        clone(model).set_params(sparse_output="yes").fit(X)


@each
def test_sparse_codes_are_computed_chunk_by_chunk(name, monkeypatch):
    """No chunk contains all rows, and only one chunk is dense at a time."""
    model = fitted(name)
    dense = model.transform(ROWS)
    monkeypatch.setattr("sklearn_vsc._rows.arrays.NUMBERS_AT_ONCE", 24 * model._n_features_out)
    monkeypatch.setattr(lasso_coder, "_CODES_AT_ONCE", 24 * 12)
    sizes, make = [], sparse.csr_matrix

    def counted(chunk):
        sizes.append(len(chunk))
        return make(chunk)

    monkeypatch.setattr("sklearn_vsc._rows.sparse_output.sparse.csr_matrix", counted)
    codes = model.set_params(sparse_output=True).transform(ROWS)
    assert len(sizes) >= 4 and sum(sizes) == len(ROWS)
    assert_allclose(codes.toarray(), dense, rtol=1e-6, atol=1e-7)
    rows = model.set_params(sparse_output=False).inverse_transform(codes)
    assert_allclose(rows, model.inverse_transform(dense), rtol=1e-6, atol=1e-6)


@each
def test_frames_cannot_hold_sparse_codes(name):
    model = fitted(name).set_params(sparse_output=True)
    for frame in ("pandas", "polars"):
        model.set_output(transform=frame)
        with pytest.raises(ValueError, match="sparse"):
            model.transform(ROWS)
    model.set_output(transform="default")
    assert sparse.issparse(model.transform(ROWS))


@each
def test_scores_and_posteriors_stay_dense(name):
    model = fitted(name)
    expected = model.score_samples(ROWS), model.posterior(ROWS).mean, model.sample_posterior(ROWS)
    model.set_params(sparse_output=True)
    found = model.score_samples(ROWS), model.posterior(ROWS).mean, model.sample_posterior(ROWS)
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is np.ndarray
        assert_array_equal(ours, theirs)


@each
def test_sparse_output_survives_saving_and_loading(name, tmp_path):
    model = fitted(name).set_params(sparse_output=True)
    model.save(tmp_path / "model")
    again = sklearn_vsc.load(tmp_path / "model")
    assert again.sparse_output is True
    assert_array_equal(again.transform(ROWS).toarray(), model.transform(ROWS).toarray())


def test_grids_of_codes_stay_dense():
    model = fitted("grid")
    grid = model.transform_grid(ROWS)
    assert_array_equal(grid.reshape(len(ROWS), -1), model.transform(ROWS))
    assert type(model.set_params(sparse_output=True).transform_grid(ROWS)) is np.ndarray
    assert_array_equal(model.transform_grid(ROWS), grid)
    model.set_output(transform="pandas")
    assert type(model.transform_grid(ROWS)) is np.ndarray


@pytest.mark.parametrize("name", ["fista", "thresholded"])
def test_a_classifier_accepts_sparse_codes(name):
    labels = DIGITS.target[:150]
    accuracies = []
    for is_sparse in (False, True):
        coder = clone(ESTIMATORS[name]).set_params(sparse_output=is_sparse)
        pipeline = make_pipeline(coder, LogisticRegression(max_iter=2000)).fit(X, labels)
        accuracies.append(pipeline.score(ROWS, DIGITS.target[150:250]))
    # Chance is one in ten; solvers for sparse rows sum in another order.
    assert min(accuracies) > 0.3
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)


@pytest.mark.skipif("sparse_interface" not in sklearn.get_config(), reason="scikit-learn < 1.9")
def test_the_setting_for_sparse_arrays_is_followed():
    model = fitted("fista").set_params(sparse_output=True)
    with sklearn.config_context(sparse_interface="sparray"):
        codes = model.transform(ROWS)
    assert isinstance(codes, sparse.csr_array)
    assert_array_equal(codes.toarray(), model.transform(ROWS).toarray())
