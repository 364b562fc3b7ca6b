"""Sparse coding with a given dictionary: scikit-learn's codes, without its restrictions."""

import copy
import inspect
import math
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn import decomposition
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import sklearn_vsc
from sklearn_vsc import FISTADictionaryLearner, SparseCoder, sparse_encode
from sklearn_vsc._inference import row_coder
from sklearn_vsc.metrics import posterior_collapse
from sklearn_vsc.solvers.lasso import solve
from sklearn_vsc.solvers.lasso.solve import solve_lasso

THEIRS = ("omp", "lars", "lasso_lars", "threshold")
LASSO = ("auto", "fista", "lasso_cd")
ALGORITHMS = THEIRS + LASSO
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# scikit-learn's coders have their own warnings about dependent atoms.
pytestmark = pytest.mark.filterwarnings("ignore:.*dependence in the dictionary.*:RuntimeWarning")


def problem(n_rows=30, n_components=24, n_features=16, seed=0):
    """Rows that a few atoms explain, and atoms whose norms differ by a factor of ten."""
    rng = np.random.default_rng(seed)
    norms = rng.uniform(0.3, 3, (n_components, 1))
    dictionary = norms * rng.standard_normal((n_components, n_features))
    codes = rng.laplace(size=(n_rows, n_components)) * (
        rng.random((n_rows, n_components)) < 3 / n_components
    )
    return codes @ dictionary + 0.1 * rng.standard_normal((n_rows, n_features)), dictionary


X, DICTIONARY = problem()


def with_missing(X, seed=1):
    X = X.copy()
    X[np.random.default_rng(seed).random(X.shape) < 0.2] = np.nan
    X[0] = X[0, 0] = 1.0
    return X


def objective(X, codes, dictionary, alpha):
    return 0.5 * np.nansum((X - codes @ dictionary) ** 2, axis=1) + alpha * np.abs(codes).sum(1)


def ricker_wavelets(n_samples, n_components, widths):
    """Wavelets at evenly spaced positions; neighbours are nearly collinear."""
    x = np.arange(n_samples)
    parts = []
    for width in widths:
        centres = np.linspace(0, n_samples - 1, n_components // len(widths))[:, None]
        z = (x - centres) ** 2 / width**2
        parts.append((1 - z) * np.exp(-z / 2))
    atoms = np.concatenate(parts)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


# -------------------------------------------------------------------- scikit-learn's codes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.1, 2.0])
@pytest.mark.parametrize("algorithm", ["lasso_lars", "lasso_cd", "threshold"])
def test_codes_for_a_penalty_match_scikit_learn(algorithm, alpha, positive, seed):
    # Fewer atoms than features: then scikit-learn's descent converges too.
    X, dictionary = problem(n_components=12, seed=seed)
    params = {
        "transform_algorithm": algorithm,
        "transform_alpha": alpha,
        "positive_code": positive,
        "split_sign": seed == 1,
        "transform_max_iter": 10_000,
    }
    ours = SparseCoder(dictionary, transform_tol=1e-13, **params).transform(X)
    theirs = decomposition.SparseCoder(dictionary, **params).transform(X)
    assert np.count_nonzero(theirs) > 20
    assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    encoded = sparse_encode(
        X, dictionary, algorithm=algorithm, alpha=alpha, positive=positive, max_iter=10_000
    )
    if seed != 1:
        # Up to the default tolerance of the duality gap.
        assert_allclose(encoded, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_nonzero", [None, 1, 4])
@pytest.mark.parametrize("algorithm", ["omp", "lars"])
def test_codes_for_a_number_of_nonzeros_match_scikit_learn(algorithm, n_nonzero, seed):
    X, dictionary = problem(seed=seed)
    params = {
        "transform_algorithm": algorithm,
        "transform_n_nonzero_coefs": n_nonzero,
        "split_sign": seed == 1,
    }
    ours = SparseCoder(dictionary, **params).transform(X)
    theirs = decomposition.SparseCoder(dictionary, **params).transform(X)
    assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    assert np.count_nonzero(ours, axis=1).max() == (n_nonzero or 1)
    encoded = sparse_encode(X, dictionary, algorithm=algorithm, n_nonzero_coefs=n_nonzero)
    split = decomposition.sparse_encode(
        X, dictionary, algorithm=algorithm, n_nonzero_coefs=n_nonzero
    )
    assert_allclose(encoded, split, rtol=1e-10, atol=1e-10)


def test_parameters_and_defaults_match_scikit_learn():
    for ours, theirs in (
        (SparseCoder, decomposition.SparseCoder),
        (sparse_encode, decomposition.sparse_encode),
    ):
        known = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            assert known[name].default == parameter.default, name
            assert known[name].kind == parameter.kind, name
    extra = set(inspect.signature(SparseCoder).parameters) - set(
        inspect.signature(decomposition.SparseCoder).parameters
    )
    assert extra == {"refit", "transform_tol", "sparse_output", "device"}
    assert set(inspect.signature(SparseCoder).parameters) == set(SparseCoder._parameter_constraints)


def test_least_angle_regression_cannot_be_positive():
    coder = SparseCoder(DICTIONARY, transform_algorithm="lars", positive_code=True)
    with pytest.raises(ValueError, match="Positive constraint not supported"):
        coder.transform(X)
    with pytest.raises(ValueError, match="Positive constraint not supported"):
        sparse_encode(X, DICTIONARY, algorithm="lars", positive=True)


@pytest.mark.parametrize("algorithm", THEIRS)
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_precomputed_products_are_used(algorithm, n_jobs):
    gram, cov = DICTIONARY @ DICTIONARY.T, DICTIONARY @ X.T
    params = {"algorithm": algorithm, "alpha": 0.3, "n_nonzero_coefs": 3, "n_jobs": n_jobs}
    expected = decomposition.sparse_encode(X, DICTIONARY, **params)
    kept = cov.copy()
    found = sparse_encode(X, DICTIONARY, gram=gram, cov=cov, **params)
    assert_allclose(found, expected, atol=1e-10)
    assert_array_equal(cov, kept)
    # Wrong products give different codes, which shows that they are not recomputed.
    other = sparse_encode(X, DICTIONARY, gram=gram, cov=2 * cov, copy_cov=False, **params)
    assert np.abs(other - expected).max() > 0.1


@pytest.mark.parametrize("algorithm", LASSO)
def test_initial_codes(algorithm):
    """Of two identical atoms, the one that the initial code uses stays in use."""
    twice = np.vstack([DICTIONARY[:1], DICTIONARY[:1]])
    row = 3 * DICTIONARY[:1]
    solved = sparse_encode(row, twice, algorithm=algorithm, alpha=0.1).sum()
    assert 2.5 < solved < 3
    for start in ([[solved, 0]], [[0, solved]]):
        codes = sparse_encode(row, twice, algorithm=algorithm, alpha=0.1, init=start)
        assert_allclose(codes, start, atol=1e-3)
        assert_array_equal(codes != 0, np.array(start) != 0)


# ------------------------------------------------------------------------- the lasso itself


def assert_optimal(X, codes, dictionary, alpha, rtol=1e-7, positive=False):
    """Check the Karush-Kuhn-Tucker conditions, for atoms of any norm."""
    correlation = np.where(np.isnan(X), 0, X - codes @ dictionary) @ dictionary.T
    scale = rtol * np.abs(np.nan_to_num(X) @ dictionary.T).max()
    assert (correlation if positive else np.abs(correlation)).max() <= alpha + scale
    on = codes != 0
    assert on.any()
    assert_allclose(correlation[on], alpha * np.sign(codes[on]), atol=scale)


@pytest.mark.parametrize("algorithm", LASSO)
@pytest.mark.parametrize("missing", [False, True])
def test_lasso_is_solved_for_atoms_of_any_norm(algorithm, missing):
    rows = with_missing(X) if missing else X
    coder = SparseCoder(
        DICTIONARY, transform_algorithm=algorithm, transform_alpha=0.5, transform_tol=1e-12
    )
    assert_optimal(rows, coder.transform(rows), DICTIONARY, 0.5, rtol=1e-6)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("widths", [(30,), (3, 10, 30, 100)])
@each_dtype
def test_lasso_of_nearly_collinear_atoms(widths, positive, dtype):
    """scikit-learn's descent stops before the optimum; ours reaches it."""
    dictionary = ricker_wavelets(256, 84, widths)
    signal = np.where(np.arange(256) < 64, 3.0, -1.0)[None] * [[1.0], [0.3], [-2.0]]
    alpha = 0.1
    coder = SparseCoder(
        dictionary,
        transform_algorithm="lasso_cd",
        transform_alpha=alpha,
        positive_code=positive,
    )
    codes = coder.transform(signal.astype(dtype))
    assert codes.dtype == dtype
    found = objective(signal, codes.astype(float), dictionary, alpha)
    best = solve_lasso(
        torch.from_numpy(signal),
        torch.from_numpy(dictionary),
        alpha,
        positive=positive,
        tol=1e-12,
        max_iter=10_000,
    )
    assert best.converged.all()
    rtol = 1e-9 if dtype == np.float64 else 1e-5
    assert_allclose(found, best.objective.numpy(), rtol=rtol)
    assert np.all(codes >= 0) or not positive
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = decomposition.sparse_encode(
            signal, dictionary, algorithm="lasso_cd", alpha=alpha, positive=positive
        )
    assert np.all(found <= objective(signal, theirs, dictionary, alpha) * (1 + rtol))


def test_duplicated_and_zero_atoms():
    dictionary = np.vstack([DICTIONARY, DICTIONARY[:6], -DICTIONARY[:3], np.zeros((2, 16))])
    coder = SparseCoder(dictionary, transform_algorithm="lasso_cd", transform_alpha=0.5)
    codes = coder.transform(X)
    assert not codes[:, -2:].any()
    plain = SparseCoder(DICTIONARY, transform_algorithm="lasso_cd", transform_alpha=0.5)
    assert_allclose(
        objective(X, codes, dictionary, 0.5),
        objective(X, plain.transform(X), DICTIONARY, 0.5),
        rtol=1e-5,
    )


def test_without_a_penalty_the_fit_is_least_squares():
    dictionary = DICTIONARY[:10]
    coder = SparseCoder(
        dictionary, transform_algorithm="lasso_cd", transform_alpha=0, transform_tol=1e-9
    )
    expected = np.linalg.lstsq(dictionary.T, X.T, rcond=None)[0].T
    assert_allclose(coder.transform(X), expected, atol=1e-4)


@pytest.mark.parametrize("algorithm", LASSO)
def test_a_large_penalty_gives_zero_codes(algorithm):
    alpha = np.abs(X @ DICTIONARY.T).max()
    assert not sparse_encode(X, DICTIONARY, algorithm=algorithm, alpha=alpha * 1.0001).any()
    assert sparse_encode(X, DICTIONARY, algorithm=algorithm, alpha=alpha * 0.99).any()


def test_codes_that_did_not_converge_warn():
    coder = SparseCoder(
        DICTIONARY, transform_algorithm="fista", transform_alpha=1e-3, transform_max_iter=0
    )
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(ConvergenceWarning, match="Raise transform_max_iter or transform_t") as found:
        coder.transform(X)
    assert (found[0].filename, found[0].lineno) == (__file__, line)


# ------------------------------------------------------------------------- few rows, many atoms


def test_least_angle_regression_without_a_gram_matrix(monkeypatch):
    """A few rows get the same codes as many rows, with fewer inner products."""
    rows, dictionary = problem(n_components=200, n_features=30)
    params = {"algorithm": "lars", "n_nonzero_coefs": 2}
    expected = decomposition.sparse_encode(rows[:1], dictionary, **params)
    monkeypatch.setattr(row_coder, "_MANY_PRODUCTS", 0)

    def refuse(*args, **kwargs):
        raise AssertionError("a Gram matrix was computed")

    monkeypatch.setattr(row_coder, "sparse_encode", refuse)
    found = sparse_encode(rows[:1], dictionary, **params)
    assert_allclose(found, expected, atol=1e-10)
    assert found.dtype == np.float64 and np.count_nonzero(found)
    with pytest.raises(AssertionError, match="Gram"):
        sparse_encode(rows, dictionary, **params)
    narrow = sparse_encode(rows[:1].astype(np.float32), dictionary.astype(np.float32), **params)
    assert narrow.dtype == np.float32
    assert_allclose(narrow, expected, atol=1e-3)


@pytest.mark.parametrize("positive", [False, True])
@each_dtype
def test_least_angle_regression_of_one_row(positive, dtype, monkeypatch):
    rows, dictionary = (part.astype(dtype) for part in problem(n_components=60))
    params = {"alpha": 0.5, "positive": positive}
    expected = decomposition.sparse_encode(rows[:1], dictionary, **params)
    monkeypatch.setattr(row_coder, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(row_coder, "sparse_encode", None)
    found = sparse_encode(rows[:1], dictionary, **params)
    assert found.dtype == dtype and np.count_nonzero(found)
    assert_allclose(found, expected, atol=1e-10 if dtype == np.float64 else 1e-4)


@pytest.mark.parametrize("positive", [False, True])
@each_dtype
def test_lasso_without_a_gram_matrix(positive, dtype, monkeypatch):
    """A few rows get the same exact codes as many rows."""
    rows, dictionary = problem(n_components=300, n_features=30)
    coder = SparseCoder(
        dictionary, transform_algorithm="lasso_cd", transform_alpha=2.0, positive_code=positive
    )
    rows = rows.astype(dtype)
    expected = coder.transform(rows)
    monkeypatch.setattr(solve, "_MANY_PRODUCTS", 0)
    calls, search = [], solve.search_from_zero

    def counted(X, *args, **kwargs):
        calls.append(len(X))
        return search(X, *args, **kwargs)

    monkeypatch.setattr(solve, "search_from_zero", counted)
    found = coder.transform(rows[:9])
    assert calls == [9] and found.dtype == dtype
    assert_allclose(found, expected[:9], atol=1e-9 if dtype == np.float64 else 1e-4)
    rtol = 1e-9 if dtype == np.float64 else 1e-5
    assert_optimal(rows[:9], found, dictionary, 2.0, rtol, positive)
    coder.transform(rows)
    assert calls == [9]
    # Rows whose search does not finish are left to coordinate descent.
    monkeypatch.setattr(solve, "search_from_zero", lambda X, V, *_, **__: X @ V.T)
    assert_allclose(coder.transform(rows[:9]), found, atol=1e-9 if dtype == np.float64 else 1e-4)


@each_algorithm
@each_dtype
def test_a_row_does_not_depend_on_other_rows(algorithm, dtype):
    rows = with_missing(X).astype(dtype)
    coder = SparseCoder(DICTIONARY, transform_algorithm=algorithm, transform_alpha=0.5)
    codes = coder.transform(rows)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    for pick in ([3], [7, 2, 7], np.arange(30)[::-1]):
        assert_allclose(coder.transform(rows[pick]), codes[pick], atol=tolerance)


# ------------------------------------------------------------------------- missing entries


@each_algorithm
def test_missing_entries_are_ignored(algorithm):
    """A row with missing entries has the code of its observed features alone."""
    rows = with_missing(X)
    n_nonzero = 2 if algorithm in ("omp", "lars") else None
    params = {"alpha": 0.5, "n_nonzero_coefs": n_nonzero, "algorithm": algorithm}
    codes = sparse_encode(rows, DICTIONARY, **params)
    assert np.isfinite(codes).all()
    for i in (0, 4, 9, 20):
        seen = ~np.isnan(rows[i])
        expected = sparse_encode(rows[i : i + 1, seen], DICTIONARY[:, seen], **params)
        assert_allclose(codes[i], expected[0], atol=1e-2 if algorithm in LASSO else 1e-10)
    coder = SparseCoder(
        DICTIONARY,
        transform_algorithm=algorithm,
        transform_alpha=0.5,
        transform_n_nonzero_coefs=n_nonzero,
    )
    assert_array_equal(coder.transform(rows), codes)
    filled = coder.inverse_transform(codes)
    assert np.isfinite(filled).all()


def test_missing_entries_with_precomputed_products():
    """Complete rows use the products, which do not hold for the others."""
    rows = with_missing(X)
    gram, cov = DICTIONARY @ DICTIONARY.T, DICTIONARY @ rows.T
    whole = ~np.isnan(rows).any(1)
    assert 1 <= whole.sum() < len(rows)
    for algorithm in ("omp", "threshold"):
        found = sparse_encode(rows, DICTIONARY, gram=gram, cov=cov, algorithm=algorithm)
        assert_allclose(found, sparse_encode(rows, DICTIONARY, algorithm=algorithm), atol=1e-10)


@each_algorithm
def test_rows_that_cannot_be_coded(algorithm):
    coder = SparseCoder(DICTIONARY, transform_algorithm=algorithm)
    for bad, message in ((np.inf, r"X\[2, 3\] is inf"), (np.nan, "no observed entries in row 2")):
        rows = X.copy()
        rows[2, 3 if np.isinf(bad) else slice(None)] = bad
        for call in (coder.transform, coder.fit):
            with pytest.raises(ValueError, match=message):
                call(rows)
        with pytest.raises(ValueError, match=message):
            sparse_encode(rows, DICTIONARY, algorithm=algorithm)


# ------------------------------------------------------------------------- an estimator


@each_algorithm
@each_dtype
def test_stateless(algorithm, dtype):
    coder = SparseCoder(DICTIONARY, transform_algorithm=algorithm, transform_alpha=0.5)
    codes = coder.transform(X.astype(dtype))
    assert codes.dtype == dtype and codes.shape == (30, 24)
    assert coder.n_components_ == 24 and not hasattr(coder, "n_features_in_")
    before = set(vars(coder))
    assert coder.fit(X.astype(dtype)) is coder
    assert set(vars(coder)) - before == {"n_features_in_"}
    assert coder.n_features_in_ == 16
    assert_array_equal(coder.transform(X.astype(dtype)), codes)
    assert_array_equal(coder.fit_transform(X.astype(dtype)), codes)
    rows = coder.inverse_transform(codes)
    assert rows.dtype == dtype
    assert_allclose(rows, codes @ DICTIONARY, rtol=1e-3, atol=1e-3)


def test_the_dictionary_is_kept_as_given():
    given = DICTIONARY.copy()
    given.flags.writeable = False
    coder = SparseCoder(given).fit(X)
    coder.transform(X)
    assert coder.components_ is given and coder.dictionary is given
    assert_array_equal(given, DICTIONARY)
    whole = SparseCoder([[1, 2, 0], [0, 1, -1]])
    assert whole.components_.dtype == np.float64
    assert whole.transform(np.ones((2, 3))).shape == (2, 2)
    assert SparseCoder(np.float32(given)).components_.dtype == np.float32
    # It can be replaced at any time.
    assert coder.set_params(dictionary=given[:5]).transform(X).shape == (30, 5)


@pytest.mark.parametrize("bad", [[[1, np.nan]], [[np.inf, 1]], [1, 2], np.zeros((0, 3)), "text"])
def test_bad_dictionaries_are_refused(bad):
    for call in (SparseCoder(bad).transform, SparseCoder(bad).fit, lambda X: sparse_encode(X, bad)):
        with pytest.raises(ValueError, match=r"dictionary|Expected 2D array|Found array with 0"):
            call(np.ones((2, 2)))


def test_lengths_must_agree():
    message = "Dictionary and X have different numbers of features"
    for call in (
        SparseCoder(DICTIONARY).fit,
        SparseCoder(DICTIONARY).transform,
        lambda X: sparse_encode(X, DICTIONARY),
    ):
        with pytest.raises(ValueError, match=message):
            call(X[:, 1:])
    with pytest.raises(ValueError, match="15 features, but SparseCoder is expecting 16"):
        SparseCoder(DICTIONARY).fit(X).transform(X[:, 1:])
    with pytest.raises(ValueError, match="Z has 3 columns"):
        SparseCoder(DICTIONARY).inverse_transform(np.zeros((2, 3)))
    for name, shape in (("gram", (3, 3)), ("cov", (24, 3)), ("init", (30, 3))):
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            sparse_encode(X, DICTIONARY, **{name: np.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transform_algorithm", "lasso"),
        ("transform_n_nonzero_coefs", 0),
        ("transform_alpha", -1),
        ("split_sign", "yes"),
        ("transform_max_iter", -1),
        ("transform_tol", 0),
        ("sparse_output", "yes"),
        ("device", "nowhere"),
    ],
)
def test_bad_parameters_are_named(name, value):
    coder = SparseCoder(DICTIONARY, transform_algorithm="lasso_cd").set_params(**{name: value})
    for call in (coder.transform, coder.fit):
        with pytest.raises(ValueError, match=f"'{name}' parameter"):
            call(X)


def test_sign_split():
    coder = SparseCoder(DICTIONARY, transform_n_nonzero_coefs=3)
    codes = coder.transform(X)
    split = clone(coder).set_params(split_sign=True)
    both = split.transform(X)
    assert both.shape == (30, 48) and (both >= 0).all()
    assert_array_equal(both[:, :24] - both[:, 24:], codes)
    assert_allclose(split.inverse_transform(both), coder.inverse_transform(codes))
    assert len(split.get_feature_names_out()) == 48


def test_sparse_output():
    coder = SparseCoder(DICTIONARY, transform_n_nonzero_coefs=2, sparse_output=True)
    codes = coder.transform(X)
    assert sparse.issparse(codes) and codes.format == "csr" and codes.nnz == 60
    dense = clone(coder).set_params(sparse_output=False).transform(X)
    assert_array_equal(codes.toarray(), dense)
    assert_allclose(coder.inverse_transform(codes), dense @ DICTIONARY)


def test_names_and_frames():
    coder = SparseCoder(DICTIONARY[:3])
    names = [f"sparsecoder{k}" for k in range(3)]
    assert list(coder.get_feature_names_out()) == names
    frame = pd.DataFrame(X, columns=[f"x{j}" for j in range(16)])
    codes = coder.set_output(transform="pandas").fit(frame).transform(frame)
    assert list(codes.columns) == names
    assert list(coder.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        coder.transform(frame[frame.columns[::-1]])


def test_copies_give_the_same_codes(tmp_path):
    coder = SparseCoder(DICTIONARY, transform_algorithm="lasso_cd", transform_alpha=0.3)
    codes = coder.transform(X)
    joblib.dump(coder, tmp_path / "coder.joblib")
    coder.save(tmp_path / "coder")
    fitted = copy.deepcopy(coder).fit(pd.DataFrame(X, columns=list("abcdefghijklmnop")))
    fitted.save(tmp_path / "fitted")
    again = sklearn_vsc.load(tmp_path / "fitted")
    assert_array_equal(again.feature_names_in_, fitted.feature_names_in_)
    for other in (
        clone(coder),
        copy.deepcopy(coder),
        pickle.loads(pickle.dumps(coder)),
        joblib.load(tmp_path / "coder.joblib"),
        sklearn_vsc.load(tmp_path / "coder"),
    ):
        assert other.dictionary is not coder.dictionary
        assert_array_equal(other.transform(X), codes)


def test_a_dictionary_alone_is_not_a_model():
    coder = SparseCoder(DICTIONARY).fit(X)
    for name in ("score", "score_samples", "posterior", "sample_posterior", "sample"):
        assert not hasattr(coder, name)
        assert hasattr(FISTADictionaryLearner(), name)
    assert not hasattr(coder, "noise_variance_")
    with pytest.raises(TypeError, match="posterior_collapse needs"):
        posterior_collapse(coder, X)
    # A noise variance, estimated from rows, makes it a model: the same codes, and a score.
    learner = FISTADictionaryLearner(dict_init=DICTIONARY, alpha=0.5, max_iter=0).fit(X)
    assert_allclose(
        learner.transform(X),
        SparseCoder(DICTIONARY, transform_algorithm="auto", transform_alpha=0.5).transform(X),
        atol=5e-3,
    )
    assert math.isfinite(learner.score(X))
    with pytest.raises(NotFittedError):
        FISTADictionaryLearner(dict_init=DICTIONARY, max_iter=0).transform(X)


def test_in_a_pipeline():
    model = make_pipeline(StandardScaler(), SparseCoder(DICTIONARY, transform_n_nonzero_coefs=2))
    codes = model.fit_transform(X)
    assert_array_equal(codes, model.transform(X))
    assert codes.shape == (30, 24)


# ------------------------------------------------------------------------- tensors


@pytest.fixture
def dispatched(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    from sklearn import config_context

    try:
        with config_context(array_api_dispatch=True):
            yield
    except RuntimeError as error:
        pytest.skip(str(error))


@each_algorithm
@pytest.mark.parametrize("given", [np.asarray, torch.asarray])
def test_tensors_in_and_out(algorithm, given, dispatched):
    rows, dictionary = torch.from_numpy(X), given(DICTIONARY)
    coder = SparseCoder(dictionary, transform_algorithm=algorithm, transform_alpha=0.5)
    expected = SparseCoder(
        DICTIONARY, transform_algorithm=algorithm, transform_alpha=0.5
    ).transform(X)
    for codes in (
        coder.transform(rows),
        coder.fit(rows).transform(rows),
        sparse_encode(rows, dictionary, algorithm=algorithm, alpha=0.5),
    ):
        assert isinstance(codes, torch.Tensor) and codes.dtype == torch.float64
        assert_array_equal(codes.numpy(), expected)
    back = coder.inverse_transform(codes)
    assert isinstance(back, torch.Tensor)
    assert_allclose(back.numpy(), expected @ DICTIONARY)
    assert isinstance(coder.components_, np.ndarray)
    assert isinstance(coder.transform(X), np.ndarray)


def test_without_dispatch_numpy_comes_out():
    codes = SparseCoder(torch.from_numpy(DICTIONARY)).transform(torch.from_numpy(X))
    assert_array_equal(codes, SparseCoder(DICTIONARY).transform(X))
    assert isinstance(codes, np.ndarray)
    assert isinstance(sparse_encode(torch.from_numpy(X), DICTIONARY), np.ndarray)


# ------------------------------------------------------------------------- scikit-learn's checks

# Dictionaries that match the number of features in each of scikit-learn's checks.
_instances = pytest.importorskip("sklearn.utils._test_common.instance_generator")
_CHECKED = _instances.PER_ESTIMATOR_CHECK_PARAMS[decomposition.SparseCoder]
_USUAL = _instances.INIT_PARAMS[decomposition.SparseCoder]


def for_check(estimator, check):
    """Return the estimator with the dictionary that scikit-learn gives its own in this check."""
    name = getattr(check, "func", check).__name__
    return clone(estimator).set_params(**_CHECKED.get(name, _USUAL))


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([SparseCoder(**_USUAL)])
def test_scikit_learns_checks(estimator, check):
    """scikit-learn's own class passes all of them with these dictionaries, and so does ours."""
    check(for_check(estimator, check))
