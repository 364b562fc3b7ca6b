"""Pursuit, refit and the largest codes, as parameters of the estimators."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.optimize import nnls
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import orthogonal_mp

import sklearn_vsc
from sklearn_vsc import FISTADictionaryLearner, SparseCoder, sparse_encode

RNG = np.random.default_rng(0)
DICTIONARY = RNG.standard_normal((24, 16)) * RNG.uniform(0.5, 2, (24, 1))
X = RNG.laplace(size=(30, 24)) * (RNG.random((30, 24)) < 0.2) @ DICTIONARY
X += 0.2 * RNG.standard_normal(X.shape)
HOLES = np.where(RNG.random(X.shape) < 0.15, np.nan, X)
BY_PENALTY = ("auto", "fista", "lasso_cd", "lasso_lars", "threshold")
each_algorithm = pytest.mark.parametrize("algorithm", BY_PENALTY)
each_sign = pytest.mark.parametrize("positive", [False, True])


def coders(algorithm, **params):
    """A coder, and a learner that keeps the same dictionary."""
    params |= {"transform_algorithm": algorithm, "transform_alpha": 0.5}
    yield SparseCoder(DICTIONARY, **params)
    yield FISTADictionaryLearner(dict_init=DICTIONARY, max_iter=0, **params).fit(X)


@each_algorithm
@each_sign
@pytest.mark.parametrize("rows", [X, HOLES], ids=["complete", "missing"])
def test_refit_is_least_squares_on_the_support(algorithm, positive, rows):
    for coder in coders(algorithm, positive_code=positive):
        codes = coder.transform(rows)
        found = coder.set_params(refit=True).transform(rows)
        for x, code, shrunk in zip(rows, found, codes, strict=True):
            seen, support = ~np.isnan(x), np.flatnonzero(shrunk)
            basis = DICTIONARY[np.ix_(support, seen)].T
            fit = code[support] @ basis.T
            assert not np.delete(code, support).any()
            if positive:
                best = nnls(basis, x[seen])[0]
                assert (code >= 0).all()
            else:
                best = np.linalg.lstsq(basis, x[seen])[0]
            assert_allclose(fit, basis @ best, atol=1e-7)


@each_algorithm
@each_sign
def test_the_largest_codes_are_kept_then_refitted(algorithm, positive):
    for coder in coders(algorithm, positive_code=positive):
        codes = coder.transform(X)
        kept = coder.set_params(transform_n_nonzero_coefs=3).transform(X)
        assert np.count_nonzero(kept, axis=1).max() == 3
        for code, few in zip(codes, kept, strict=True):
            largest = np.argsort(-np.abs(code), kind="stable")[:3]
            expected = np.zeros(24)
            expected[largest] = code[largest]
            assert_array_equal(few, expected)
        refitted = coder.set_params(refit=True).transform(X)
        assert not refitted[kept == 0].any()
        error, before = (np.square(X - z @ DICTIONARY).sum(1) for z in (refitted, kept))
        assert (error <= before + 1e-9).all() and error.sum() < 0.99 * before.sum()
        # More codes than there are: all stay.
        coder.set_params(transform_n_nonzero_coefs=100, refit=False)
        assert_array_equal(coder.transform(X), codes)


def test_pursuit_ends_at_a_number_or_at_a_residual():
    for coder in coders("omp", transform_n_nonzero_coefs=4, transform_tol=0.5):
        expected = orthogonal_mp(DICTIONARY.T, X.T, n_nonzero_coefs=4).T
        assert_allclose(coder.transform(X), expected, atol=1e-9)
        coder.set_params(transform_n_nonzero_coefs=None)
        expected = [orthogonal_mp(DICTIONARY.T, x, tol=0.5 * (x @ x)) for x in X]
        assert_allclose(coder.transform(X), expected, atol=1e-9)
        # A tenth of 16 features.
        coder.set_params(transform_tol=None)
        assert (np.count_nonzero(coder.transform(X), axis=1) == 1).all()


def test_pursuit_of_positive_codes():
    codes = sparse_encode(X, DICTIONARY, algorithm="omp", n_nonzero_coefs=4, positive=True)
    for coder in coders("omp", transform_n_nonzero_coefs=4, positive_code=True):
        assert_allclose(coder.transform(X), codes, atol=1e-9)
    assert (codes >= 0).all() and np.count_nonzero(codes, axis=1).max() == 4
    for x, code in zip(X, codes, strict=True):
        support = np.flatnonzero(code)
        assert_allclose(code[support], nnls(DICTIONARY[support].T, x)[0], atol=1e-9)


def test_more_codes_than_atoms_are_refused():
    message = "{}=25 asks for more codes than there are atoms: {} has 24"
    names = ("dictionary", "n_components")
    for coder, name in zip(coders("omp", transform_n_nonzero_coefs=25), names, strict=True):
        with pytest.raises(ValueError, match=message.format("transform_n_nonzero_coefs", name)):
            coder.transform(X)
    with pytest.raises(ValueError, match=message.format("n_nonzero_coefs", "dictionary")):
        sparse_encode(X, DICTIONARY, algorithm="omp", n_nonzero_coefs=25)


@pytest.mark.parametrize("params", [{"refit": True}, {"transform_n_nonzero_coefs": 2}])
def test_the_score_is_of_the_lasso(params):
    for positive in (False, True):
        fit = {"n_components": 8, "alpha": 0.5, "max_iter": 3, "random_state": 0}
        plain = FISTADictionaryLearner(**fit, positive_code=positive).fit(X)
        other = clone(plain).set_params(**params).fit(X)
        assert_array_equal(other.components_, plain.components_)
        assert_array_equal(other.score_samples(X), plain.score_samples(X))
        assert_array_equal(other.posterior(X).mean, plain.posterior(X).mean)
        assert other.noise_variance_ == plain.noise_variance_
        assert np.abs(other.transform(X) - plain.transform(X)).max() > 0.01


def test_fits_by_least_angle_regression_keep_all_codes():
    fit = {"n_components": 8, "alpha": 0.5, "max_iter": 2, "random_state": 0}
    plain = FISTADictionaryLearner(**fit, fit_algorithm="lars").fit(X)
    other = clone(plain).set_params(refit=True, transform_n_nonzero_coefs=1).fit(X)
    assert_array_equal(other.components_, plain.components_)


def test_types_and_containers(monkeypatch):
    for algorithm in ("omp", "lasso_cd"):
        params = {"transform_n_nonzero_coefs": 3, "refit": True}
        for coder in coders(algorithm, **params):
            codes = coder.transform(X)
            narrow = coder.transform(X.astype(np.float32))
            assert narrow.dtype == np.float32
            assert_allclose(narrow, codes, atol=1e-3)
            assert_allclose(coder.transform(X[3:4]), codes[3:4], atol=1e-9)
            compact = clone(coder).set_params(sparse_output=True)
            found = compact.fit(X).transform(X)
            assert sparse.issparse(found)
            assert_allclose(found.toarray(), codes, atol=1e-9)
            split = clone(coder).set_params(split_sign=True).fit(X).transform(X)
            assert_allclose(split[:, :24] - split[:, 24:], codes, atol=1e-9)
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    coder = SparseCoder(DICTIONARY, transform_algorithm="lasso_cd", **params)
    expected = coder.transform(X)
    try:
        with config_context(array_api_dispatch=True):
            found = coder.transform(torch.from_numpy(X))
    except RuntimeError as error:
        pytest.skip(str(error))
    assert isinstance(found, torch.Tensor)
    assert_allclose(found.numpy(), expected, atol=1e-9)


def test_saved_and_loaded(tmp_path):
    for number, coder in enumerate(coders("auto", refit=True)):
        coder.save(tmp_path / str(number))
        again = sklearn_vsc.load(tmp_path / str(number))
        assert again.refit is True
        assert_array_equal(again.transform(X), coder.transform(X))
