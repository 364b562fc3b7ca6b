"""Missing values in FISTADictionaryLearner: NaN in X."""

import math
import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import Lasso
from sklearn.utils import get_tags

from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc._rows.missing import check_observed
from sklearn_vsc.solvers.dictionary import full_batch as dictionary_learning

DIGITS = load_digits().data[:600] / 16
THEIRS = ["lasso_lars", "lars", "omp", "threshold"]


def with_missing(X, share=0.3, seed=0):
    """X with a share of its entries missing; at least one of each row and column remains."""
    rng = np.random.default_rng(seed)
    missing = rng.random(X.shape) < share
    missing[np.arange(len(X)), rng.integers(X.shape[1], size=len(X))] = False
    return np.where(missing, np.nan, X)


def sparse_data(n_rows=1500, n_components=24, n_features=20, seed=0):
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = rng.laplace(size=(n_rows, n_components)) * (rng.random((n_rows, n_components)) < 0.1)
    return codes @ dictionary + 0.01 * rng.standard_normal((n_rows, n_features)), dictionary


def learner(**params):
    params = {"n_components": 40, "alpha": 0.2, "max_iter": 8, "random_state": 0} | params
    return FISTADictionaryLearner(**params)


def on_columns(model, columns):
    """The model restricted to some of the columns."""
    part = learner(**model.get_params())
    part.__dict__ |= model.__dict__
    part.components_ = model.components_[:, columns]
    part.n_features_in_ = len(columns)
    return part


@pytest.fixture(scope="module", name="X")
def incomplete_digits():
    return with_missing(DIGITS)


@pytest.fixture(scope="module")
def fitted(X):
    return learner().fit(X)


# ------------------------------------------------------------------------------------ codes


def test_codes_are_those_of_lasso_on_observed_columns(fitted, X):
    codes = fitted.transform(X[:20])
    for row, code in zip(X[:20], codes, strict=True):
        seen = ~np.isnan(row)
        atoms = fitted.components_[:, seen]
        lasso = Lasso(0.2 / seen.sum(), fit_intercept=False, tol=1e-10, max_iter=10_000)
        best = lasso.fit(atoms.T, row[seen]).coef_
        ours, theirs = (
            0.5 * ((row[seen] - u @ atoms) ** 2).sum() + 0.2 * np.abs(u).sum() for u in (code, best)
        )
        assert ours <= theirs * (1 + 1e-6)


@pytest.mark.parametrize("algorithm", THEIRS)
def test_coders_of_scikit_learn_see_observed_columns(fitted, X, algorithm):
    rows = np.vstack([X[:12], X[:2], DIGITS[:2]])
    n_nonzero = 4 if algorithm in ("lars", "omp") else None
    model = on_columns(fitted, np.arange(64)).set_params(
        transform_algorithm=algorithm, transform_n_nonzero_coefs=n_nonzero
    )
    codes = model.transform(rows)
    for row, code in zip(rows, codes, strict=True):
        seen = ~np.isnan(row)
        expected = sparse_encode(
            row[None, seen],
            fitted.components_[:, seen],
            algorithm=algorithm,
            alpha=0.2,
            n_nonzero_coefs=n_nonzero,
        )[0]
        np.testing.assert_allclose(code, expected, atol=1e-10)


@pytest.mark.parametrize("algorithm", ["lasso_cd", "fista", "lasso_lars"])
def test_code_does_not_depend_on_other_rows(fitted, X, algorithm):
    model = on_columns(fitted, np.arange(64)).set_params(transform_algorithm=algorithm)
    rows = np.vstack([X[:30], DIGITS[:5]])
    whole = model.transform(rows)
    for row in (0, 7, 31):
        np.testing.assert_allclose(model.transform(rows[[row]])[0], whole[row], atol=1e-10)
    np.testing.assert_array_equal(whole[30:], model.transform(DIGITS[:5]))


def test_the_bits_of_nan_do_not_matter(fitted, X):
    other = X.copy()
    missing = np.isnan(X)
    # NaN of another sign and payload.
    other.view(np.uint64)[missing] = 0xFFF8_0000_0000_1234
    assert np.isnan(other[missing]).all()
    np.testing.assert_array_equal(fitted.transform(X), fitted.transform(other))
    np.testing.assert_array_equal(fitted.score_samples(X), fitted.score_samples(other))
    np.testing.assert_array_equal(
        fitted.sample_posterior(X[:5], 3), fitted.sample_posterior(other[:5], 3)
    )
    again = learner().fit(other)
    np.testing.assert_array_equal(again.components_, fitted.components_)
    assert again.noise_variance_ == fitted.noise_variance_


def test_features_may_be_reordered(fitted, X):
    order = np.random.default_rng(0).permutation(64)
    moved = on_columns(fitted, order)
    np.testing.assert_allclose(moved.transform(X[:, order]), fitted.transform(X), atol=1e-3)
    np.testing.assert_allclose(moved.score_samples(X[:, order]), fitted.score_samples(X), rtol=1e-5)


def test_split_sign_and_positive_codes(X):
    model = learner(split_sign=True, max_iter=2).fit(X)
    codes = model.transform(X[:9])
    assert (codes >= 0).all()
    assert np.isfinite(model.inverse_transform(codes)).all()
    positive = learner(positive_code=True, positive_dict=True, max_iter=2).fit(X)
    assert (positive.transform(X) >= 0).all()
    assert (positive.components_ >= 0).all()


def test_imputation_is_better_than_column_means(fitted, X):
    missing = np.isnan(X)
    filled = fitted.inverse_transform(fitted.transform(X))
    means = np.broadcast_to(np.nanmean(X, axis=0), X.shape)
    error, of_means = (((guess - DIGITS)[missing] ** 2).mean() for guess in (filled, means))
    assert error < 0.5 * of_means
    # Rows that the fit has not seen.
    new = load_digits().data[600:900] / 16
    hidden = with_missing(new, seed=1)
    missing = np.isnan(hidden)
    filled = fitted.inverse_transform(fitted.transform(hidden))
    means = np.broadcast_to(np.nanmean(X, axis=0), new.shape)
    assert ((filled - new)[missing] ** 2).mean() < 0.5 * ((means - new)[missing] ** 2).mean()


# ----------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("params", [{}, {"batch_size": 30, "max_iter": 50, "tol": 0}])
def test_a_known_dictionary_is_recovered(params):
    X, dictionary = sparse_data()
    params = {"max_iter": 60, "max_no_improvement": None} | params
    model = learner(n_components=24, alpha=0.05, **params).fit(with_missing(X))
    cosine = np.abs(model.components_ @ dictionary.T)
    matched = cosine[linear_sum_assignment(-cosine)]
    assert matched.mean() > 0.93
    assert "batch_size" in params or (matched > 0.98).mean() > 0.85
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1)


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("fit_algorithm", ["cd", "fista"])
def test_objective_over_observed_entries_never_rises(share, fit_algorithm):
    X = with_missing(DIGITS, share, seed=2)
    X[::5] = DIGITS[::5]
    # One column is mostly observed, one mostly missing.
    X[:, 20], X[5:, 21] = DIGITS[:, 20], np.nan
    steps = {"cd": 25, "fista": 4}[fit_algorithm]
    model = learner(max_iter=steps, tol=0, fit_algorithm=fit_algorithm).fit(X)
    assert len(model.error_) == steps
    assert (np.diff(model.error_) <= 1e-9 * model.error_[:-1]).all()
    codes = model.transform(X)
    residual = np.nan_to_num(X - codes @ model.components_)
    objective = 0.5 * (residual**2).sum() + 0.2 * np.abs(codes).sum()
    # The codes of the last pass are half a pass old.
    assert 0.98 * model.error_[-1] < objective < model.error_[-1]


def test_steps_that_are_too_long_are_undone(X, monkeypatch):
    monkeypatch.setattr(dictionary_learning, "natural_reach", lambda X: 8.0)
    far = learner(max_iter=20, tol=0).fit(X)
    assert (np.diff(far.error_) <= 1e-9 * far.error_[:-1]).all()
    monkeypatch.undo()
    assert far.error_[-1] < 1.02 * learner(max_iter=20, tol=0).fit(X).error_[-1]


def test_learning_ends_below_alternating_imputation(X):
    """Alternating imputation descends surely but slowly, and ends no lower."""
    model = learner(max_iter=30).fit(X)
    missing = np.isnan(X)
    filled = np.where(missing, np.nanmean(X, axis=0), X)
    slow = learner(max_iter=1, dict_init=None).fit(filled)
    for _ in range(30):
        codes = slow.transform(filled)
        filled = np.where(missing, codes @ slow.components_, X)
        slow = learner(max_iter=1, dict_init=slow.components_, code_init=codes).fit(filled)
    codes = slow.transform(X)
    residual = np.nan_to_num(X - codes @ slow.components_)
    assert model.error_[-1] < 0.5 * (residual**2).sum() + 0.2 * np.abs(codes).sum()


def test_one_missing_entry_changes_little(monkeypatch):
    # Where entries are missing, the dictionary does not move on along its last change.
    monkeypatch.setattr(dictionary_learning, "_MOMENTUM", 0.0)
    monkeypatch.setattr(dictionary_learning, "_MOST_MOMENTUM", 0.0)
    complete = learner(max_iter=3).fit(DIGITS)
    barely = DIGITS.copy()
    barely[0, 0] = np.nan
    near = learner(max_iter=3, dict_init=complete.components_).fit(barely)
    far = learner(max_iter=3, dict_init=complete.components_).fit(DIGITS)
    # Column 0 is zero throughout: its missing entry changes almost nothing.
    np.testing.assert_allclose(near.error_, far.error_, rtol=1e-4)
    assert near.noise_variance_ == pytest.approx(far.noise_variance_, rel=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_partial_fit_continues(share):
    X = with_missing(DIGITS, share) if share else DIGITS
    model = learner()
    costs = []
    for _ in range(4):
        for start in range(0, 600, 100):
            model.partial_fit(X[start : start + 100])
            costs.append(model.error_[-1])
    assert np.mean(costs[-6:]) < 0.92 * np.mean(costs[:6])
    assert np.isfinite(model.score(X))
    assert model.component_usage_.max() <= 1


def test_partial_fit_may_miss_a_column_later_on(X):
    model = learner().partial_fit(X[:100])
    batch = X[100:200].copy()
    batch[:, 5] = np.nan
    assert np.isfinite(model.partial_fit(batch).components_).all()


@pytest.mark.parametrize("fit_algorithm", ["lars", "fista"])
def test_other_coders_learn_too(fit_algorithm):
    X = with_missing(DIGITS[:80])
    model = learner(n_components=8, max_iter=2, alpha=1.0, fit_algorithm=fit_algorithm).fit(X)
    assert np.isfinite(model.components_).all()
    assert model.error_[-1] < model.error_[0]


def test_dead_atoms_are_replaced_using_observed_entries(X):
    unused = np.eye(40, 64)
    unused[:, 0], unused[:, 1:] = 1, 0
    model = learner(dict_init=unused, max_iter=6).fit(X)
    assert np.isfinite(model.components_).all()
    assert model.n_dead_ < 8


def test_float32_is_kept(X):
    single = learner().fit(X.astype(np.float32))
    assert single.components_.dtype == np.float32
    codes = single.transform(X.astype(np.float32))
    assert codes.dtype == np.float32
    double = learner().fit(X)
    assert single.error_[-1] == pytest.approx(double.error_[-1], rel=0.02)
    assert single.score(X.astype(np.float32)) == pytest.approx(double.score(X), rel=0.05)


# -------------------------------------------------------------------------------------- score


def test_score_is_that_of_the_model_on_observed_columns(fitted, X):
    rows = np.vstack([X[:25], DIGITS[:3]])
    scores, posterior = fitted.score_samples(rows), fitted.posterior(rows)
    for row, score, mean, std in zip(rows, scores, posterior.mean, posterior.std, strict=True):
        seen = np.flatnonzero(~np.isnan(row))
        part = on_columns(fitted, seen)
        assert part.score_samples(row[None, seen])[0] == pytest.approx(score, rel=1e-4)
        alone = part.posterior(row[None, seen])
        np.testing.assert_allclose(alone.mean[0], mean, atol=1e-3)
        np.testing.assert_allclose(alone.std[0], std, rtol=1e-3, atol=1e-6)


def test_score_is_below_the_evidence_of_one_atom_by_quadrature():
    rng = np.random.default_rng(0)
    atom = np.array([[0.6, -0.3, 0.5, 0.2]])
    atom /= np.linalg.norm(atom)
    X = with_missing(rng.laplace(size=(200, 1)) @ atom + 0.1 * rng.standard_normal((200, 4)), 0.4)
    model = learner(n_components=1, alpha=0.05, dict_init=atom, max_iter=5).fit(X)
    b, s2 = model.prior_scale_, model.noise_variance_
    for row, score in zip(X[:25], model.score_samples(X[:25]), strict=True):
        seen = ~np.isnan(row)
        v, x = model.components_[0, seen], row[seen]
        centre, width = (x @ v) / (v @ v), math.sqrt(s2 / (v @ v))

        def log_joint(z, x=x, v=v):
            fit = -((x - z * v) ** 2).sum() / (2 * s2) - len(x) / 2 * math.log(2 * math.pi * s2)
            return fit - abs(z) / b - math.log(2 * b)

        top = log_joint(centre)
        ends = centre - 12 * width, centre + 12 * width
        points = [0.0] if ends[0] < 0 < ends[1] else None
        mass = quad(lambda z, t=top: math.exp(log_joint(z) - t), *ends, points=points)[0]
        exact = top + math.log(mass)
        assert exact - 1.5 < score <= exact + 1e-8


def test_noise_variance_is_where_the_mean_score_is_highest(fitted, X):
    best = fitted.score(X)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = on_columns(fitted, np.arange(64))
        other.noise_variance_ = factor * fitted.noise_variance_
        assert other.score(X) < best


def test_noise_and_usage_count_observed_entries():
    X, _ = sparse_data()
    complete = learner(n_components=24, alpha=0.05, max_iter=30).fit(X)
    incomplete = learner(n_components=24, alpha=0.05, max_iter=30, dict_init=complete.components_)
    incomplete.fit(with_missing(X))
    assert incomplete.noise_variance_ == pytest.approx(complete.noise_variance_, rel=0.3)
    codes = incomplete.transform(with_missing(X))
    np.testing.assert_allclose(incomplete.component_usage_, (codes != 0).mean(0), atol=0.01)


def test_draws_of_a_row_do_not_depend_on_other_rows(fitted, X):
    draws = fitted.sample_posterior(X[:6], n_draws=4)
    np.testing.assert_allclose(fitted.sample_posterior(X[3:6], n_draws=2), draws[:2, 3:], atol=1e-9)
    # The draws have the moments of the posterior.
    many = fitted.sample_posterior(X[:1], n_draws=4000)[:, 0]
    posterior = fitted.posterior(X[:1])
    np.testing.assert_allclose(many.mean(0), posterior.mean[0], atol=0.2 * posterior.std.max())
    np.testing.assert_allclose(many.std(0), posterior.std[0], rtol=0.2)


def test_atom_that_is_not_observed_keeps_its_prior():
    atoms = np.vstack([np.eye(4)[0], np.ones(4) / 2])
    model = learner(n_components=2, alpha=0.1, dict_init=atoms, max_iter=0)
    rng = np.random.default_rng(0)
    model.fit(rng.laplace(size=(50, 2)) @ atoms + 0.1 * rng.standard_normal((50, 4)))
    row = np.array([[np.nan, 1.0, 1.1, 0.9]])
    posterior = model.posterior(row)
    assert posterior.mean[0, 0] == 0
    assert posterior.std[0, 0] == pytest.approx(math.sqrt(2) * model.prior_scale_)
    assert posterior.std[0, 1] < posterior.std[0, 0]


# ------------------------------------------------------------------------------------- errors


def test_tag_says_that_missing_values_are_allowed():
    assert get_tags(learner()).input_tags.allow_nan


def test_rows_with_nothing_observed_are_named(fitted, X):
    bad = X.copy()
    bad[[4, 17]] = np.nan
    calls = ("fit", "partial_fit", "transform", "score", "score_samples", "posterior")
    for call in (*calls, "sample_posterior"):
        model = learner() if "fit" in call else fitted
        with pytest.raises(ValueError, match="no observed entries in rows 4, 17:"):
            getattr(model, call)(bad)


def test_columns_with_nothing_observed_are_named_in_fit_alone(fitted, X):
    bad = X.copy()
    bad[:, 7] = np.nan
    for call in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match="no observed entries in column 7:"):
            getattr(learner(), call)(bad)
    # A single row with a missing entry has a column with nothing observed.
    assert np.isfinite(fitted.transform(bad)).all()
    assert np.isfinite(fitted.score(bad[:1]))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_named(fitted, X, value):
    bad = X.copy()
    bad[3, 5] = value
    for call in ("fit", "partial_fit", "transform", "score", "posterior"):
        model = learner() if "fit" in call else fitted
        with pytest.raises(ValueError, match=r"infinity: X\[3, 5\] is -?inf"):
            getattr(model, call)(bad)


def test_sums_that_overflow_are_not_infinite_values():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_observed(np.full((3, 2), np.finfo(np.float64).max), columns=True)
        with pytest.raises(ValueError, match=r"X\[0, 0\] is inf"):
            check_observed(np.array([[np.inf, -np.inf]]), columns=False)
        with pytest.raises(ValueError, match=r"rows 0, 1, 2, 3, 4, \.\.\. \(7 in all\)"):
            check_observed(np.full((7, 2), np.nan), columns=True)
