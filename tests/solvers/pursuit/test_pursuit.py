"""Orthogonal matching pursuit, and least squares on a support: optimal, greedy, row by row."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram

from sklearn_vsc.solvers.pursuit import matching
from sklearn_vsc.solvers.pursuit.matching import matching_pursuit
from sklearn_vsc.solvers.pursuit.support import keep_largest, least_squares_codes

each_sign = pytest.mark.parametrize("positive", [False, True])
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def problem(n_rows=40, n_components=30, n_features=20, seed=0, spread=10.0):
    """Rows that some atoms explain; the norms of the atoms differ by a factor ``spread``."""
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.uniform(0, np.log(spread), (n_components, 1)))
    dictionary = norms * rng.standard_normal((n_components, n_features))
    codes = rng.laplace(size=(n_rows, n_components)) * (rng.random((n_rows, n_components)) < 0.2)
    return codes @ dictionary + 0.3 * rng.standard_normal((n_rows, n_features)), dictionary


def with_missing(X, seed=1):
    X = X.copy()
    X[np.random.default_rng(seed).random(X.shape) < 0.2] = np.nan
    return X


def pursued(X, dictionary, **options):
    codes = matching_pursuit(torch.from_numpy(X), torch.from_numpy(dictionary), **options)
    return codes.numpy()


def refitted(X, dictionary, codes, **options):
    tensors = (torch.from_numpy(array) for array in (X, dictionary, codes))
    return least_squares_codes(*tensors, **options).numpy()


def reference(x, dictionary, most, residual, positive):
    """One row by the definition, each step by a solver of least squares."""
    seen = ~np.isnan(x)
    x, atoms = x[seen], dictionary[:, seen]
    codes = np.zeros(len(atoms))
    for _ in range(1000):
        left = x - codes @ atoms
        if np.count_nonzero(codes) >= most or left @ left <= residual * (x @ x):
            break
        pulls = atoms @ left
        support = np.flatnonzero(codes)
        pulls[support] = 0
        atom = np.argmax(pulls if positive else np.abs(pulls))
        if abs(pulls[atom]) < 1e-10:
            break
        support = np.append(support, atom)
        basis = atoms[support].T
        codes = np.zeros(len(atoms))
        codes[support] = nnls(basis, x)[0] if positive else np.linalg.lstsq(basis, x)[0]
    return codes


# ------------------------------------------------------------------------- the pursuit


@pytest.mark.parametrize("n_nonzero", [1, 2, 7, 20])
@pytest.mark.parametrize("seed", range(3))
def test_codes_are_those_of_scikit_learn(n_nonzero, seed):
    X, dictionary = problem(seed=seed)
    found = pursued(X, dictionary, n_nonzero=n_nonzero)
    for expected in (
        orthogonal_mp(dictionary.T, X.T, n_nonzero_coefs=n_nonzero),
        orthogonal_mp_gram(dictionary @ dictionary.T, dictionary @ X.T, n_nonzero_coefs=n_nonzero),
    ):
        assert_allclose(found, expected.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_the_residual_ends_it_as_in_scikit_learn(share):
    X, dictionary = problem()
    found = pursued(X, dictionary, residual=share)
    expected = [orthogonal_mp(dictionary.T, x, tol=share * (x @ x)) for x in X]
    assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    left = np.square(X - found @ dictionary).sum(1) / np.square(X).sum(1)
    assert (left <= share).all()
    assert len(np.unique(np.count_nonzero(found, axis=1))) > 1
    # Whatever the unit of the rows.
    assert_allclose(pursued(1e3 * X, dictionary, residual=share), 1e3 * found)
    assert_array_equal(pursued(X, dictionary, residual=1.0), 0 * found)


@each_sign
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("options", [{"n_nonzero": 4}, {"residual": 0.05}])
def test_each_step_is_greedy_and_optimal(positive, missing, options):
    X, dictionary = problem()
    X = with_missing(X) if missing else X
    found = pursued(X, dictionary, positive=positive, **options)
    most, residual = options.get("n_nonzero", len(dictionary)), options.get("residual", 0.0)
    expected = [reference(x, dictionary, most, residual, positive) for x in X]
    assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert not positive or (found >= 0).all()


@each_sign
@pytest.mark.parametrize("missing", [False, True])
@each_dtype
def test_codes_are_least_squares_on_their_support(positive, missing, dtype):
    X, dictionary = (part.astype(dtype) for part in problem(spread=1.0))
    X = with_missing(X) if missing else X
    codes = pursued(X, dictionary, n_nonzero=6, positive=positive)
    assert codes.dtype == dtype
    residual = np.nan_to_num(X - codes @ dictionary)
    pulls = residual @ dictionary.T
    scale = np.abs(np.nan_to_num(X) @ dictionary.T).max()
    assert np.abs(pulls[codes != 0]).max() < (1e-4 if dtype == np.float32 else 1e-12) * scale


def test_the_first_two_atoms_of_orthogonal_ones_are_the_best_pair():
    """Of orthogonal atoms, the greedy choice is the best of all supports."""
    rng = np.random.default_rng(0)
    dictionary = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    X = rng.standard_normal((20, 6))
    codes = pursued(X, dictionary, n_nonzero=2)
    for x, code in zip(X, codes, strict=True):
        errors = {
            pair: np.linalg.lstsq(dictionary[list(pair)].T, x)[1].sum()
            for pair in itertools.combinations(range(6), 2)
        }
        assert tuple(np.flatnonzero(code)) == min(errors, key=errors.get)


def test_without_a_number_a_tenth_of_the_observed_entries():
    X, dictionary = problem(n_features=50)
    X[0, :11] = np.nan
    assert np.count_nonzero(pursued(X, dictionary), axis=1).tolist() == [3] + [5] * 39
    X[1, 1:] = np.nan
    assert np.count_nonzero(pursued(X, dictionary)[1]) == 1


@each_sign
@pytest.mark.parametrize("missing", [False, True])
def test_without_the_inner_products_of_all_atoms(positive, missing, monkeypatch):
    X, dictionary = problem(n_components=200)
    X = with_missing(X) if missing else X
    expected = pursued(X, dictionary, n_nonzero=4, positive=positive)
    monkeypatch.setattr(matching, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(matching, "_computed", None)
    for rows in ([3], range(12)):
        found = pursued(X[rows], dictionary, n_nonzero=4, positive=positive)
        assert_allclose(found, expected[rows], atol=1e-10)
    if not missing:
        with pytest.raises(TypeError, match="NoneType"):
            pursued(X, dictionary, n_nonzero=4)


def test_few_products_are_kept_at_once(monkeypatch):
    """Products that were forgotten are computed again: non-negative codes come and go."""
    X, dictionary = problem(n_components=60, seed=3)
    expected = pursued(X, dictionary, n_nonzero=10, positive=True)
    monkeypatch.setattr(matching, "_few_rows", lambda *_: True)
    to_compute = matching._to_compute
    monkeypatch.setattr(matching, "_to_compute", lambda dictionary, _: to_compute(dictionary, 1))
    found = pursued(X, dictionary, n_nonzero=10, positive=True)
    assert_allclose(found, expected, atol=1e-10)


def test_products_that_are_given_are_used():
    X, dictionary = problem()
    gram, products = dictionary @ dictionary.T, X @ dictionary.T
    tensors = {"gram": torch.from_numpy(gram), "correlations": torch.from_numpy(products)}
    expected = pursued(X, dictionary, n_nonzero=3)
    assert_allclose(pursued(X, dictionary, n_nonzero=3, **tensors), expected, atol=1e-10)
    doubled = pursued(X, dictionary, n_nonzero=3, correlations=2 * tensors["correlations"])
    assert_allclose(doubled, 2 * expected, atol=1e-10)
    halved = pursued(X, dictionary, n_nonzero=3, gram=2 * tensors["gram"])
    assert_allclose(halved, expected / 2, atol=1e-10)


@each_sign
@each_dtype
def test_rows_that_few_atoms_explain_end_there(positive, dtype):
    _, dictionary = problem()
    X = np.vstack([3 * dictionary[4], dictionary[1] + 2 * dictionary[8], 0 * dictionary[0]])
    X, dictionary = X.astype(dtype), dictionary.astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = pursued(X, dictionary, n_nonzero=1, positive=positive)
        exact = pursued(X, dictionary, n_nonzero=12, positive=positive)
    assert codes[0, 4] == pytest.approx(3, rel=1e-6)
    assert np.count_nonzero(exact[0]) == 1 and not exact[2].any()
    assert_allclose(exact @ dictionary, X, atol=1e-4 if dtype == np.float32 else 1e-12)


@each_sign
@each_dtype
@pytest.mark.parametrize("missing", [False, True])
def test_duplicates_and_zero_atoms_stay_out(positive, dtype, missing):
    X, dictionary = problem(n_components=12)
    several = np.vstack([0 * dictionary[:1], dictionary, dictionary, 2 * dictionary[:3] / 2])
    X = (with_missing(X) if missing else X).astype(dtype)
    codes = pursued(X, several.astype(dtype), n_nonzero=12, positive=positive)
    plain = pursued(X, dictionary.astype(dtype), n_nonzero=12, positive=positive)
    # Of equal atoms the first is used.
    assert not codes[:, 0].any() and not codes[:, 13:].any()
    assert_allclose(codes[:, 1:13], plain, atol=1e-3 if dtype == np.float32 else 1e-8)


def test_more_codes_than_features():
    X, dictionary = problem()
    codes = pursued(X, dictionary, n_nonzero=25)
    assert np.count_nonzero(codes, axis=1).max() <= 20
    assert_allclose(codes @ dictionary, X, atol=1e-9)


@each_sign
def test_a_row_does_not_depend_on_other_rows(positive):
    X = with_missing(problem()[0])
    X[::2] = problem()[0][::2]
    dictionary = problem()[1]
    codes = pursued(X, dictionary, n_nonzero=5, positive=positive)
    for rows in ([3], [7, 2, 7], np.arange(40)[::-1]):
        found = pursued(X[rows], dictionary, n_nonzero=5, positive=positive)
        assert_allclose(found, codes[rows], atol=1e-10)
    assert pursued(X[:0], dictionary, n_nonzero=5).shape == (0, 30)


# ------------------------------------------------------------------------- given supports


@each_sign
@each_dtype
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("n_rows", [3, 60])
def test_refitted_codes_are_least_squares(positive, dtype, missing, n_rows):
    X, dictionary = (part.astype(dtype) for part in problem(n_rows=n_rows, spread=2.0))
    X = with_missing(X) if missing else X
    codes = np.random.default_rng(2).standard_normal((n_rows, 30)).astype(dtype)
    codes[np.random.default_rng(3).random(codes.shape) < 0.75] = 0
    kept = codes.copy()
    found = refitted(X, dictionary, codes, positive=positive)
    assert_array_equal(codes, kept)
    assert found.dtype == dtype and not found[codes == 0].any()
    for x, code, start in zip(X, found, codes, strict=True):
        seen, support = ~np.isnan(x), np.flatnonzero(start)
        basis = dictionary[np.ix_(support, seen)].T.astype(float)
        x = x[seen].astype(float)
        expected = nnls(basis, x)[0] if positive else np.linalg.lstsq(basis, x)[0]
        assert_allclose(code[support], expected, atol=1e-5 if dtype == np.float32 else 1e-10)


@each_sign
@pytest.mark.parametrize("n_rows", [3, 60])
def test_dependent_supports_are_fitted_as_well_as_any(positive, n_rows):
    """More atoms than features, and duplicates: the fit is the best, and codes are finite."""
    X, dictionary = problem(n_rows=n_rows)
    dictionary[5] = dictionary[6]
    dictionary[7] = 0
    found = refitted(X, dictionary, np.ones((n_rows, 30)), positive=positive)
    assert np.isfinite(found).all() and not (found[:, 5] * found[:, 6]).any()
    errors = np.square(X - found @ dictionary).sum(1)
    for x, error in zip(X, errors, strict=True):
        best = nnls(dictionary.T, x)[1] ** 2 if positive else 0.0
        assert error == pytest.approx(best, abs=1e-9)


def test_rows_without_codes_stay_so():
    X, dictionary = problem()
    assert not refitted(X, dictionary, np.zeros((40, 30))).any()


@each_dtype
def test_the_largest_codes_are_kept(dtype):
    codes = np.array(
        [[3, -1, 0, 2, -5], [1, -1, 1, 1, -1], [0, 0, 0, 4, 0], [0, 2, -2, 3, 2]], dtype
    )
    kept = codes.copy()
    found = keep_largest(torch.from_numpy(codes), 2).numpy()
    assert found.dtype == dtype
    expected = [[3, 0, 0, 0, -5], [1, -1, 0, 0, 0], [0, 0, 0, 4, 0], [0, 2, 0, 3, 0]]
    assert_array_equal(found, expected)
    assert_array_equal(codes, kept)
    assert_array_equal(keep_largest(torch.from_numpy(codes), 5).numpy(), codes)
