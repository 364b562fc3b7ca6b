import copy
import inspect
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import (
    DictionaryLearning,
    MiniBatchDictionaryLearning,
    sparse_encode,
)
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import sklearn_vsc
from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc.metrics import alpha_max
from sklearn_vsc.solvers.lasso import solve as lasso

DEAD = "ignore:.*atoms are used by no training row:UserWarning"
OURS_AND_THEIRS = ["auto", "fista", "lasso_lars", "lasso_cd", "lars", "omp", "threshold"]


def sparse_data(n_rows=600, n_components=16, n_features=12, density=0.12, noise=0.01, seed=0):
    """Rows from a known sparse dictionary at a high signal-to-noise ratio."""
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = rng.laplace(size=(n_rows, n_components)) * (
        rng.random((n_rows, n_components)) < density
    )
    X = codes @ dictionary + noise * rng.standard_normal((n_rows, n_features))
    return X, dictionary


def match(learned, true):
    """Mean absolute cosine of the best assignment of atoms."""
    cosine = np.abs(learned @ true.T)
    return cosine[linear_sum_assignment(-cosine)].mean()


def learner(**params):
    params = {"n_components": 16, "alpha": 0.1, "max_iter": 30, "random_state": 0} | params
    return FISTADictionaryLearner(**params)


@pytest.fixture(scope="module")
def data():
    return sparse_data()[0]


@pytest.fixture(scope="module")
def fitted(data):
    return learner().fit(data)


# ----------------------------------------------------------------- scikit-learn's checks


@pytest.mark.filterwarnings(DEAD)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API.*:UserWarning")
@parametrize_with_checks(
    [
        FISTADictionaryLearner(),
        FISTADictionaryLearner(batch_size=5),
        FISTADictionaryLearner(positive_code=True, positive_dict=True, split_sign=True),
        FISTADictionaryLearner(fit_algorithm="cd", transform_algorithm="lasso_cd"),
        FISTADictionaryLearner(transform_algorithm="threshold"),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
def test_check_estimator_passes():
    results = check_estimator(FISTADictionaryLearner())
    assert {result["status"] for result in results} <= {"passed", "skipped"}


def test_has_every_parameter_of_both_scikit_learn_classes():
    ours = inspect.signature(FISTADictionaryLearner).parameters
    for peer in (DictionaryLearning, MiniBatchDictionaryLearning):
        assert set(inspect.signature(peer).parameters) <= set(ours)
    assert set(ours) == set(FISTADictionaryLearner._parameter_constraints)


# ------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("batch_size", [None, 25])
def test_recovers_a_known_dictionary(batch_size):
    X, true = sparse_data(n_rows=2000)
    model = learner(batch_size=batch_size, max_iter=40, max_no_improvement=None).fit(X)
    assert match(model.components_, true) > 0.95
    assert 0.5 * 0.12 < np.mean(model.transform(X) != 0) < 3 * 0.12


@pytest.mark.parametrize("params", [{}, {"positive_code": True}, {"positive_dict": True}])
@pytest.mark.parametrize("n_rows", [300, 1200])
def test_error_is_the_objective_and_never_rises(params, n_rows):
    X = sparse_data(n_rows)[0]
    model = learner(**params).fit(X)
    assert len(model.error_) == model.n_iter_
    assert np.all(np.diff(model.error_) <= 1e-9 * model.error_[0])
    codes = model.transform(X)
    residual = X - codes @ model.components_
    exact = 0.5 * (residual**2).sum() + 0.1 * np.abs(codes).sum()
    assert exact <= model.error_[-1] * (1 + 1e-6)
    assert exact == pytest.approx(model.error_[-1], rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, rtol=1e-12)


def test_positivity():
    X = np.abs(sparse_data()[0])
    model = learner(positive_code=True, positive_dict=True).fit(X)
    assert (model.components_ >= 0).all()
    codes = model.transform(X)
    assert (codes >= 0).all() and codes.any()


@pytest.mark.parametrize(("n_components", "alpha"), [(64, 1.0), (32, 10.0)])
def test_objective_is_as_low_as_scikit_learns(n_components, alpha):
    X = load_digits().data[:300]
    common = {"alpha": alpha, "max_iter": 60, "random_state": 0}
    ours = FISTADictionaryLearner(n_components, **common).fit(X)
    theirs = DictionaryLearning(
        n_components, fit_algorithm="cd", transform_max_iter=5000, **common
    ).fit(X)
    assert ours.error_[-1] <= 1.005 * theirs.error_[-1]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("fit_algorithm", ["auto", "fista", "cd", "lars"])
def test_fit_algorithms_agree(fit_algorithm, data):
    # All start from the same dictionary and alternate over the same subproblems.
    model = learner(fit_algorithm=fit_algorithm, max_iter=10).fit(data)
    reference = learner(fit_algorithm="lars", max_iter=10).fit(data)
    assert model.error_[-1] == pytest.approx(reference.error_[-1], rel=0.02)


def test_tolerance_stops_the_full_batch(data):
    loose = learner(tol=1e-2, max_iter=500).fit(data)
    tight = learner(tol=1e-6, max_iter=500).fit(data)
    assert loose.n_iter_ < tight.n_iter_ < 500
    decrease = -np.diff(tight.error_) / tight.error_[1:]
    assert decrease[-1] < 1e-6


def test_mini_batch_counts_steps_and_stops(data):
    model = learner(batch_size=60, max_iter=3, tol=0, max_no_improvement=None).fit(data)
    assert (model.n_steps_, model.n_iter_) == (30, 3)
    assert learner(batch_size=60, tol=1e3).fit(data).n_steps_ == 11
    stalled = learner(batch_size=60, max_iter=300, tol=0, max_no_improvement=2).fit(data)
    assert stalled.n_iter_ < 300
    assert stalled.n_iter_ == math.ceil(stalled.n_steps_ / 10) == len(stalled.history_)
    whole = learner(batch_size=10_000, max_iter=2, max_no_improvement=None).fit(data)
    assert whole.n_steps_ == 2


def test_partial_fit_does_a_mini_batch_step(data):
    batches = np.array_split(data, 6)
    model = learner()
    for batch in itertools.chain(batches, batches, batches):
        model.partial_fit(batch)
    assert model.n_steps_ == model.n_iter_ == len(model.history_) == len(model.error_) == 18
    first = learner().partial_fit(batches[0])
    assert model.score(data) > first.score(data)
    assert model.transform(data).shape == (len(data), 16)
    assert model.component_usage_.shape == (16,)


def test_noise_variance_waits_until_it_is_asked_for(data, tmp_path):
    with pytest.raises(AttributeError):
        learner().noise_variance_  # noqa: B018
    model = learner().fit(data)
    assert "noise_variance_" in vars(model)
    for start in range(0, 600, 100):
        model.partial_fit(data[start : start + 100])
    assert "noise_variance_" not in vars(model)
    twin = pickle.loads(pickle.dumps(model))
    model.save(tmp_path / "model")
    again = sklearn_vsc.load(tmp_path / "model")
    noise = model.noise_variance_
    assert noise == twin.noise_variance_ == again.noise_variance_
    # It suits the rows that were seen: no other scores higher.
    scores = []
    for factor in (0.8, 1, 1.25):
        model.noise_variance_ = noise * factor
        scores.append(model.score(data))
    assert np.argmax(scores) == 1


def test_a_stream_of_few_rows_at_a_time_learns_as_well(data):
    chunks = {size: learner(alpha=0.2) for size in (1, 5, 100)}
    for size, model in chunks.items():
        for start in range(0, 600, size):
            model.partial_fit(data[start : start + size])
    losses = [mean_objective(model, data) for model in chunks.values()]
    assert max(losses) < 1.1 * min(losses)


def test_atoms_come_from_later_rows(data):
    model = learner().partial_fit(data[:3])
    assert model.component_usage_[3:].sum() == 0
    assert not np.isin(model.transform(data[:3])[:, :3], 0).all()
    model.partial_fit(data[:3])
    assert model._seen.n_placed == 3
    model.partial_fit(data[3:100])
    assert model._seen.n_placed == 16


def test_forget_follows_rows_that_change(data):
    other = data[:, ::-1] @ np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    losses = []
    for forget in (None, 0.5):
        model = learner(forget=forget)
        for rows in (data, other):
            for _ in range(2):
                for start in range(0, 600, 50):
                    model.partial_fit(rows[start : start + 50])
        losses.append(mean_objective(model, other))
    assert losses[1] < losses[0]


def mean_objective(model, X):
    codes = model.transform(X)
    fit = 0.5 * ((X - codes @ model.components_) ** 2).sum(1)
    return np.mean(fit + model.alpha * np.abs(codes).sum(1))


@pytest.mark.parametrize("params", [{}, {"batch_size": 100}])
def test_max_iter_that_ends_a_fit_is_warned_of(data, params):
    with pytest.warns(ConvergenceWarning, match=r"max_iter=2 passes.*raise max_iter or tol"):
        learner(max_iter=2, **params).fit(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settled in ({"max_iter": 0}, {"max_iter": 2, "tol": 0}, {"max_iter": 500}):
            learner(**params | settled).fit(data)


def test_default_tol_ends_near_the_strict_one(data):
    quick, strict = (learner(tol=tol, max_iter=1000).fit(data) for tol in ("auto", 1e-8))
    assert quick.error_[-1] < 1.01 * strict.error_[-1]
    assert quick.n_iter_ <= strict.n_iter_


def test_signs_of_atoms_are_fixed(data):
    for model in (learner().fit(data), learner().partial_fit(data), learner().fit(data)):
        model.partial_fit(data[:50])
        largest = np.abs(model.components_).argmax(1)
        assert (model.components_[np.arange(16), largest] > 0).all()
    # The statistics follow, so that a further step starts from the same model.
    assert mean_objective(model.partial_fit(data), data) < 1.05 * mean_objective(
        learner().fit(data), data
    )


def test_lists_as_initial_values(fitted, data):
    codes = fitted.transform(data)
    options = {"max_iter": 2}
    arrays = learner(dict_init=fitted.components_, code_init=codes, **options).fit(data)
    lists = learner(dict_init=fitted.components_.tolist(), code_init=codes.tolist(), **options)
    np.testing.assert_array_equal(lists.fit(data).components_, arrays.components_)
    assert (
        FISTADictionaryLearner(dict_init=[[1.0, 0], [0, 2]], max_iter=0).fit([[1, 2]]).n_iter_ == 0
    )


def test_the_best_of_several_starts_is_kept(data):
    options = {"max_iter": 4, "tol": 0}
    several = learner(n_init=4, **options).fit(data)
    assert several.n_iter_ == 4
    assert several.error_[-1] < learner(**options).fit(data).error_[-1]


@pytest.mark.parametrize("params", [{}, {"positive_code": True}, {"batch_size": 100}])
def test_alpha_is_found_for_a_density(data, params):
    model = learner(density=0.2, max_iter=60, **params).fit(data)
    assert (model.transform(data) != 0).mean() == pytest.approx(0.2, rel=0.02)
    assert model.prior_scale_ == pytest.approx(model.noise_variance_ / model.alpha_)
    # The dictionary is as good as the one that this alpha learns.
    plain = learner(alpha=model.alpha_, max_iter=60, **params).fit(data)
    assert plain.alpha_ == model.alpha_
    model.alpha = model.alpha_
    # It may be better, where the fits end in different local minima.
    assert mean_objective(model, data) < 1.03 * mean_objective(plain, data)
    # A further step learns with the alpha that was found, and the unit of X does not matter.
    assert model.partial_fit(data[:50]).alpha_ == plain.alpha_
    scaled = learner(density=0.2, max_iter=60, **params).fit(1e-3 * data)
    assert scaled.alpha_ == pytest.approx(1e-3 * plain.alpha_, rel=0.05)
    with pytest.raises(ValueError, match=r"density=0.2.*Call fit first"):
        learner(density=0.2).partial_fit(data)


def test_alpha_max(data):
    X, dictionary = data.copy(), learner(max_iter=0).fit(data).components_
    X[::3, 0] = np.nan
    for positive in (False, True):
        alpha = alpha_max(X, dictionary, positive=positive)
        options = {"dict_init": dictionary, "max_iter": 0, "positive_code": positive}
        for factor in (1.001, 0.999):
            model = FISTADictionaryLearner(alpha=factor * alpha, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert model.fit(X).transform(X).any() == (factor < 1)
    assert alpha_max(X) >= alpha_max(X, dictionary)
    row = X[[np.nanargmax(np.nansum(X**2, 1))]]
    assert alpha_max(row) == pytest.approx(alpha_max(row, np.nan_to_num(row) / alpha_max(row)))
    with pytest.raises(ValueError, match="dictionary must have as many columns as X, 12"):
        alpha_max(X, np.ones((3, 4)))


def test_warm_start_continues(data):
    model = learner(warm_start=True, max_iter=5, tol=0).fit(data)
    first = model.error_
    second = model.fit(data).error_
    assert second[-1] < first[-1] and second[0] < first[1]
    assert model.n_iter_ == 5
    # With another number of atoms there is nothing to continue.
    assert model.set_params(n_components=9).fit(data).components_.shape == (9, 12)


@pytest.mark.parametrize("batch_size", [None, 100])
def test_partial_fit_continues_from_fit(data, batch_size):
    model = learner(batch_size=batch_size).fit(data)
    before = model.score(data)
    n_steps = model.n_steps_
    pickle.loads(pickle.dumps(model)).partial_fit(data[:100])
    model.partial_fit(data[:100].astype(np.float32))
    assert model.n_steps_ == n_steps + 1
    assert model.components_.dtype == np.float64
    assert model.score(data) > before - 0.5


def test_usage_and_dead_atoms(fitted, data):
    usage = (fitted.transform(data) != 0).mean(0)
    np.testing.assert_allclose(fitted.component_usage_, usage, atol=2 / len(data))
    assert fitted.n_dead_ == np.count_nonzero(usage == 0)
    with pytest.warns(UserWarning, match="Lower alpha or n_components"):
        model = learner(alpha=1e3).fit(data)
    assert model.n_dead_ == 16
    assert not model.transform(data).any()


def test_start_from_given_dictionary_and_codes(fitted, data):
    codes = fitted.transform(data)
    # Atoms of any norm, with codes to match.
    start = learner(dict_init=2 * fitted.components_, code_init=codes / 2, max_iter=1).fit(data)
    exact = 0.5 * ((data - codes @ fitted.components_) ** 2).sum() + 0.1 * np.abs(codes).sum()
    assert start.error_[0] <= exact * (1 + 1e-12)
    named = FISTADictionaryLearner(dict_init=fitted.components_, max_iter=1).fit(data)
    assert named.components_.shape == fitted.components_.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_without_iterations_a_given_dictionary_is_kept(fitted, data, dtype, batch_size):
    """Atoms of any norm and sign are kept to the last bit, and unused ones cause no warning."""
    given = np.vstack([fitted.components_ * np.geomspace(0.1, 10, 16)[:, None], np.zeros((9, 12))])
    given = given.astype(dtype)
    model = FISTADictionaryLearner(
        dict_init=given, alpha=0.1, max_iter=0, positive_dict=True, batch_size=batch_size
    )
    model.fit(data.astype(dtype))
    np.testing.assert_array_equal(model.components_, given)
    assert model.components_.dtype == dtype and not np.shares_memory(model.components_, given)
    assert model.n_dead_ >= 9 > 0.2 * 25
    # The result is a full model of the rows: dictionary, noise variance and prior.
    assert 0 < model.noise_variance_ < data.var()
    assert np.isfinite(model.score(data.astype(dtype)))
    codes = model.transform(data[:20].astype(dtype))
    correlation = (data[:20] - codes @ given) @ given.T
    assert np.abs(correlation).max() < 0.1 + 0.02
    # Learning then continues from it, with atoms of unit norm.
    model.set_params(positive_dict=False).partial_fit(data.astype(dtype))
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, rtol=1e-5)


def test_callbacks(data):
    full, mini = [], []
    learner(max_iter=11, tol=0, callback=full.append).fit(data)
    assert [call["ii"] for call in full] == [0, 5, 10]
    assert len(full[1]["errors"]) == 6 and full[0]["dictionary"].shape == (16, 12)
    learner(batch_size=100, max_iter=2, callback=mini.append).fit(data)
    assert [call["i"] for call in mini] == list(range(12))
    assert {"batch_cost", "dictionary"} <= set(mini[0])


def test_verbose_shows_a_progress_bar(data, capsys):
    model = learner(max_iter=3, verbose=True).fit(data)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "100%|" in shown.err and "3/3" in shown.err
    assert f"objective={model.history_[-1]['loss']:.6g}" in shown.err


def test_more_atoms_than_rows_and_constant_rows():
    X = np.zeros((6, 4))
    X[1] = 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = FISTADictionaryLearner(9, random_state=0, max_iter=5).fit(X)
        nothing = FISTADictionaryLearner(3, random_state=0, max_iter=5).fit(np.zeros((6, 4)))
    assert np.isfinite(model.score_samples(X)).all()
    assert not model.transform(X)[0].any()
    assert nothing.noise_variance_ > 0 and np.isfinite(nothing.score(np.zeros((2, 4))))


def test_perfect_reconstruction_keeps_some_noise():
    X = sparse_data(noise=0)[0]
    model = learner(alpha=1e-7, max_iter=3, n_components=40).fit(X)
    assert model.noise_variance_ >= 1e-12 * np.mean(X**2) * (1 - 1e-9)
    assert np.isfinite(model.score(X))


# --------------------------------------------------------------------------------- coding


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("algorithm", ["auto", "fista", "lasso_cd"])
def test_transform_reaches_the_optimum_of_lasso_cd(fitted, data, positive, algorithm):
    model = copy.deepcopy(fitted).set_params(
        positive_code=positive, transform_alpha=0.3, transform_algorithm=algorithm
    )
    ours = model.transform(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = sparse_encode(
            data,
            fitted.components_,
            algorithm="lasso_cd",
            alpha=0.3,
            positive=positive,
            max_iter=50_000,
        )

    def value(codes):
        residual = data - codes @ fitted.components_
        return 0.5 * (residual**2).sum(1) + 0.3 * np.abs(codes).sum(1)

    assert np.all(value(ours) <= value(theirs) * (1 + 1e-6))


@pytest.mark.filterwarnings("ignore:.*ended prematurely.*:RuntimeWarning")
@pytest.mark.parametrize("algorithm", OURS_AND_THEIRS)
@pytest.mark.parametrize("split_sign", [False, True])
def test_every_algorithm_codes_and_decodes(fitted, data, algorithm, split_sign):
    model = copy.deepcopy(fitted)
    model.set_params(transform_algorithm=algorithm, split_sign=split_sign)
    codes = model.transform(data)
    assert codes.shape == (len(data), 32 if split_sign else 16)
    assert len(model.get_feature_names_out()) == codes.shape[1]
    plain = copy.deepcopy(model).set_params(split_sign=False).transform(data)
    np.testing.assert_allclose(model.inverse_transform(codes), plain @ model.components_)
    if split_sign:
        assert (codes >= 0).all()
    if algorithm in ("auto", "fista", "lasso_lars", "lasso_cd"):
        np.testing.assert_allclose(plain, fitted.transform(data), atol=1e-2)
    # The score uses the lasso code, whatever transform does.
    np.testing.assert_array_equal(model.score_samples(data), fitted.score_samples(data))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("params", [{}, {"batch_size": 100}, {"split_sign": True}])
def test_fit_transform_is_fit_then_transform(data, dtype, params):
    X = data.astype(dtype)
    codes = learner(**params).fit_transform(X)
    model = learner(**params).fit(X)
    np.testing.assert_array_equal(codes, model.transform(X))
    assert codes.dtype == model.components_.dtype == dtype
    assert model.inverse_transform(codes).dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_does_not_depend_on_its_neighbours(data, dtype):
    X = data[:60].astype(dtype)
    model = learner().fit(X)
    atol = 1e-9 if dtype == np.float64 else 1e-5
    for method in ("transform", "score_samples", "sample_posterior"):
        whole = getattr(model, method)(X)
        subset = getattr(model, method)(X[7:12])
        whole = whole[:, 7:12] if method == "sample_posterior" else whole[7:12]
        np.testing.assert_allclose(subset, whole, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["auto", "fista", "lasso_cd"])
def test_warns_if_codes_did_not_converge(fitted, data, monkeypatch, algorithm):
    monkeypatch.setattr(lasso, "_FINISH_STEPS", 0)
    model = copy.deepcopy(fitted)
    model.set_params(transform_max_iter=3, transform_algorithm=algorithm)
    with pytest.warns(ConvergenceWarning, match=r"transform_max_iter or.*transform_tol"):
        model.transform(data)
    model.set_params(transform_tol=1.0).transform(data)


# --------------------------------------------------------------- the model and its bound


def test_the_best_score_is_at_an_interior_alpha():
    X = sparse_data(n_rows=500, noise=0.1)[0]
    grid = [0.003, 0.03, 0.1, 0.3, 3.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        search = GridSearchCV(learner(max_iter=20), {"alpha": grid}, cv=3).fit(X)
    assert search.best_params_["alpha"] in grid[1:-1]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("alpha", [0.03, 0.3])
def test_noise_variance_maximises_the_mean_bound_of_training_rows(data, alpha):
    model = learner(alpha=alpha).fit(data)
    best, best_score = model.noise_variance_, model.score(data)
    for factor in (0.01, 0.5, 0.99, 1.01, 2, 100):
        model.noise_variance_ = factor * best
        assert model.score(data) < best_score
    assert model.prior_scale_ == pytest.approx(model.noise_variance_ / alpha)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_of_the_data_does_not_matter(scale, dtype):
    X = sparse_data()[0].astype(dtype)

    def explained(X, alpha):
        model = learner(alpha=alpha).fit(X)
        error = X - model.inverse_transform(model.transform(X))
        return 1 - np.mean(error**2) / np.mean(X**2), model

    share, model = explained(X, 0.1)
    scaled_share, scaled = explained((scale * X).astype(dtype), scale * 0.1)
    assert scaled_share == pytest.approx(share, abs=1e-3)
    # With the same dictionary the score shifts exactly.
    options = {"dict_init": model.components_, "max_iter": 0}
    one = learner(**options).fit(X).score(X)
    other = learner(alpha=scale * 0.1, **options).fit((scale * X).astype(dtype))
    shift = -X.shape[1] * math.log(scale)
    exact = 1e-8 if dtype == np.float64 else 1e-3
    assert other.score((scale * X).astype(dtype)) == pytest.approx(one + shift, abs=exact)
    assert scaled.score((scale * X).astype(dtype)) == pytest.approx(
        model.score(X) + shift, abs=0.05
    )


def test_score_is_the_mean_of_float64_bounds(fitted, data):
    bounds = fitted.score_samples(data.astype(np.float32))
    assert bounds.dtype == np.float64 and bounds.shape == (len(data),)
    assert fitted.score(data) == pytest.approx(fitted.score_samples(data).mean())


def test_score_is_below_the_evidence_by_importance_sampling(fitted, data):
    """The mean importance weight is p(x): its log must not be below the bound."""
    X = data[:5]
    draws = fitted.sample_posterior(X, n_draws=20_000)
    posterior = fitted.posterior(X)
    scale = posterior.std / math.sqrt(2)
    b, s2 = fitted.prior_scale_, fitted.noise_variance_
    residual = X - draws @ fitted.components_
    log_weight = -0.5 * X.shape[1] * math.log(2 * math.pi * s2) - (residual**2).sum(2) / (2 * s2)
    log_weight += (-np.abs(draws) / b - math.log(2 * b)).sum(2)
    log_weight += (np.abs(draws - posterior.mean) / scale + np.log(2 * scale)).sum(2)
    bound = fitted.score_samples(X)
    error = log_weight.std(0) / math.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(log_weight.mean(0) - bound), 5 * error)
    peak = log_weight.max(0)
    assert np.all(peak + np.log(np.exp(log_weight - peak).mean(0)) > bound)


def test_posterior_moments_match_its_draws(fitted, data):
    X = data[:4]
    posterior = fitted.posterior(X)
    draws = fitted.sample_posterior(X, n_draws=40_000)
    assert draws.shape == (40_000, 4, 16)
    np.testing.assert_array_equal(posterior.mean, fitted.transform(X))
    np.testing.assert_array_equal(posterior.inclusion, 1)
    error = 5 * posterior.std / math.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - posterior.mean), error)
    np.testing.assert_allclose(draws.std(0), posterior.std, rtol=0.05)
    # The mean absolute deviation distinguishes a Laplace distribution from others.
    deviation = np.abs(draws - posterior.mean).mean(0)
    np.testing.assert_allclose(deviation, posterior.std / math.sqrt(2), rtol=0.05)
    np.testing.assert_array_equal(draws[:3], fitted.sample_posterior(X, n_draws=40_000)[:3])


def test_samples_have_the_moments_of_the_model(fitted):
    X = fitted.sample(100_000)
    b, s2, V = fitted.prior_scale_, fitted.noise_variance_, fitted.components_
    expected = 2 * b**2 * V.T @ V + s2 * np.eye(V.shape[1])
    np.testing.assert_allclose(np.cov(X.T), expected, atol=0.05 * expected.max())
    assert fitted.sample().shape == (1, 12)
    np.testing.assert_array_equal(fitted.sample(3), fitted.sample(3))


# ---------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("params", [{}, {"batch_size": 100}])
def test_same_seed_gives_same_arrays_and_global_generators_are_untouched(data, params):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = (learner(**params).fit(data) for _ in range(2))
    np.testing.assert_array_equal(first.components_, second.components_)
    np.testing.assert_array_equal(
        first.sample_posterior(data[:3]), second.sample_posterior(data[:3])
    )
    first.sample(2)
    first.partial_fit(data[:50])
    second.partial_fit(data[:50])
    np.testing.assert_array_equal(first.components_, second.components_)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_another_seed_gives_another_start(data):
    first, second = (learner(random_state=seed, max_iter=0).fit(data) for seed in (0, 1))
    assert not np.allclose(first.components_, second.components_)


# ----------------------------------------------------------------- bad input, interruption


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": -1.0}, "'alpha'"),
        ({"n_components": 0}, "'n_components'"),
        ({"batch_size": 0}, "'batch_size'"),
        ({"fit_algorithm": "omp"}, "'fit_algorithm'"),
        ({"transform_algorithm": "newton"}, "'transform_algorithm'"),
        ({"transform_tol": 0.0}, "'transform_tol'"),
        ({"device": "abacus"}, "'device'"),
        ({"dict_init": np.ones((16, 3))}, r"dict_init must have shape \(16, 12\)"),
        ({"dict_init": np.ones((2, 12))}, r"dict_init must have shape \(16, 12\)"),
        ({"dict_init": np.full((16, 12), np.nan)}, "dict_init"),
        ({"code_init": np.ones((3, 16))}, r"code_init must have shape \(600, 16\)"),
    ],
)
def test_bad_parameters_are_named(data, params, message):
    with pytest.raises(ValueError, match=message):
        learner(**params).fit(data)


def test_bad_input_is_refused(fitted, data):
    X = data.copy()
    X[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"infinity: X\[3, 2\]"):
        learner().fit(X)
    with pytest.raises(ValueError, match="20 columns"):
        fitted.inverse_transform(np.ones((2, 20)))
    with pytest.raises(ValueError, match="n_draws"):
        fitted.sample_posterior(data[:2], n_draws=0)
    with pytest.raises(ValueError, match="n_samples"):
        fitted.sample(0)
    for method in ("transform", "score_samples", "posterior", "sample_posterior"):
        with pytest.raises(NotFittedError):
            getattr(learner(), method)(data)
    with pytest.raises(NotFittedError):
        learner().sample()


def test_zero_alpha_codes_but_has_no_score(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = learner(alpha=0, n_components=8, max_iter=5).fit(data)
        assert model.transform(data).all()
    assert model.prior_scale_ == math.inf
    with pytest.raises(ValueError, match="alpha"):
        model.score(data)


def test_non_finite_objective_is_an_error_and_an_earlier_fit_survives(fitted, data):
    model = copy.deepcopy(fitted)
    huge = (data * 1e25).astype(np.float32)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"values of at most .*scale X"):
        model.fit(huge)
    np.testing.assert_array_equal(model.components_, fitted.components_)
    np.testing.assert_array_equal(model.score_samples(data), fitted.score_samples(data))


@pytest.mark.parametrize("batch_size", [None, 100])
def test_non_finite_objective_of_a_first_fit_leaves_no_fit(data, batch_size):
    model = learner(batch_size=batch_size)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"values of at most .*scale X"):
        model.fit((data * 1e25).astype(np.float32))
    assert set(vars(model)) == set(model.get_params())


def test_non_finite_objective_of_a_partial_fit_changes_nothing(data):
    model = learner().partial_fit(data.astype(np.float32))
    before = copy.deepcopy(model)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"epoch 2.*Scale X down"):
        model.partial_fit(data * 1e25)
    assert model.history_ == before.history_ and model.n_iter_ == 1
    np.testing.assert_array_equal(
        model.partial_fit(data).components_, before.partial_fit(data).components_
    )


@pytest.mark.parametrize("batch_size", [None, 100])
def test_interrupted_fit_keeps_the_last_full_epoch(data, batch_size):
    def interrupt(call):
        if call.get("ii") == 5 or call.get("i") == 20:
            raise KeyboardInterrupt

    options = {"batch_size": batch_size, "tol": 0, "max_no_improvement": None}
    model = learner(callback=interrupt, **options)
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(data)
    n_done = 6 if batch_size is None else 3
    assert model.n_iter_ == len(model.history_) == len(model.error_) == n_done
    same = learner(max_iter=n_done, **options).fit(data)
    np.testing.assert_array_equal(model.components_, same.components_)
    assert model.n_steps_ == same.n_steps_
    np.testing.assert_allclose(model.score(data), same.score(data), rtol=1e-2)
    model.partial_fit(data[:100])


def test_interrupted_before_the_first_epoch(data):
    def interrupt(call):
        raise KeyboardInterrupt

    model = learner(batch_size=50, callback=interrupt)
    with pytest.warns(UserWarning, match="first dictionary"):
        model.fit(data)
    assert model.n_iter_ == model.n_steps_ == 0 and model.history_ == []
    assert model.transform(data).any() and np.isfinite(model.score(data))


def test_history_records_each_epoch(fitted, data):
    assert [record["epoch"] for record in fitted.history_] == list(range(1, fitted.n_iter_ + 1))
    losses = np.array([record["loss"] for record in fitted.history_])
    np.testing.assert_allclose(losses * len(data), fitted.error_)
    assert all(record["duration"] >= 0 for record in fitted.history_)


def test_input_and_parameters_are_left_alone(data):
    X, start = data.copy(), np.random.default_rng(0).standard_normal((16, 12))
    codes = np.ones((len(X), 16))
    kept = X.copy(), start.copy(), codes.copy()
    model = learner(dict_init=start, code_init=codes, max_iter=3).fit(X)
    model.partial_fit(X)
    model.transform(X)
    for now, before in zip((X, start, codes), kept, strict=True):
        np.testing.assert_array_equal(now, before)
    clone(model)


def test_pickle_keeps_everything(fitted, data):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.score_samples(data), fitted.score_samples(data))
    np.testing.assert_array_equal(
        again.sample_posterior(data[:2]), fitted.sample_posterior(data[:2])
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(data):
    cpu, gpu = (learner(device=device, transform_tol=1e-13).fit(data) for device in ("cpu", "cuda"))
    assert gpu.error_[-1] == pytest.approx(cpu.error_[-1], rel=1e-2)
    on_cpu = copy.deepcopy(gpu).set_params(device="cpu")
    np.testing.assert_allclose(gpu.transform(data), on_cpu.transform(data), atol=1e-8)
