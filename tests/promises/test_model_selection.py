import json
import os
import subprocess
import sys

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

DIGITS = load_digits()
X, y = DIGITS.data[:300], DIGITS.target[:300]
TRAINING = {"hidden_layer_sizes": (64,), "learning_rate_init": 5e-3, "random_state": 0}

ESTIMATORS = {
    "FISTADictionaryLearner": FISTADictionaryLearner(8, alpha=5.0, max_iter=5, random_state=0),
    "ThresholdedVSC": ThresholdedVSC(8, max_iter=10, **TRAINING),
}
each = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.mark.slow
def test_grid_search_of_a_classifier_on_codes():
    coder = ThresholdedVSC(
        32, max_iter=40, transform_method="mean", threshold_prior="gamma", **TRAINING
    )
    pipeline = Pipeline(
        [
            ("scale", StandardScaler()),
            ("code", coder),
            ("classify", LogisticRegression(max_iter=1000)),
        ]
    )
    grid = {
        "code__threshold": [0.5, 2.0],
        "code__n_draws": [1, 3],
        "code__prior": ["laplace", "gaussian"],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    results = search.cv_results_
    assert len(results["params"]) == 8
    assert np.isfinite(results["mean_test_score"]).all()
    # Observed: 0.86; chance gives 0.1.
    assert search.best_score_ > 0.75
    assert search.best_params_["code__prior"] == "laplace"
    best = search.best_estimator_.named_steps["code"]
    assert best.threshold_ == search.best_params_["code__threshold"]
    assert search.predict(X).shape == (300,)
    # Each of the three parameters has an effect: the scores differ.
    for name in grid:
        of_values = [results["mean_test_score"][results[f"param_{name}"] == v] for v in grid[name]]
        assert not np.array_equal(*of_values), name


@pytest.mark.parametrize(
    ("estimator", "grid", "best"),
    [
        (
            ThresholdedVSC(12, max_iter=40, **TRAINING),
            {"density": [0.1, 1e-6], "gradient": ["exact", "subgradient"]},
            {"density": 0.1, "gradient": "exact"},
        ),
        (
            ThresholdedVSC(max_iter=40, gradient="exact", kl="thresholded", **TRAINING),
            {"n_components": [1, 12]},
            {"n_components": 12},
        ),
        (
            ThresholdedVSC(12, max_iter=40, **TRAINING),
            {"kl": ["thresholded", "base"], "kl_weight": [1.0, 100.0]},
            {"kl": "thresholded", "kl_weight": 1.0},
        ),
        (
            FISTADictionaryLearner(12, max_iter=10, random_state=0),
            {"alpha": [1e-3, 5.0, 500.0]},
            {"alpha": 5.0},
        ),
    ],
    ids=["density", "n_components", "kl", "alpha"],
)
def test_grid_search_using_only_the_score_of_the_model(estimator, grid, best):
    search = GridSearchCV(estimator, grid, cv=KFold(2), error_score="raise").fit(X)
    assert search.best_params_ == best
    means = search.cv_results_["mean_test_score"]
    assert np.isfinite(means).all()
    assert search.best_score_ == means.max() > means.min() + 1
    assert search.score(X) == search.best_estimator_.score(X)
    assert search.transform(X).shape == (300, 12)


@each
def test_cross_validation_equals_fit_and_score_by_hand(estimator):
    scores = cross_val_score(estimator, X, cv=KFold(3))
    expected = [clone(estimator).fit(X[train]).score(X[test]) for train, test in KFold(3).split(X)]
    assert_array_equal(scores, expected)


@each
def test_threads_share_nothing(estimator):
    alone = cross_val_score(estimator, X, cv=KFold(4))
    with joblib.parallel_backend("threading"):
        together = cross_val_score(estimator, X, cv=KFold(4), n_jobs=4)
    assert_array_equal(together, alone)


SCRIPT = """
import json, sys, warnings

import joblib, torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC


def scores(estimator, X, y=None):
    return {"score": estimator.score(X), "threads": torch.get_num_threads()}


X = load_digits().data[:200]
warnings.simplefilter("ignore")
found = {"cores": joblib.cpu_count(), "threads": torch.get_num_threads()}
for estimator, grid in (
    (ThresholdedVSC(8, max_iter=5, random_state=0), {"density": [0.1, 0.2]}),
    (FISTADictionaryLearner(8, max_iter=3, random_state=0), {"alpha": [3.0, 5.0]}),
):
    for n_jobs in (1, 2):
        search = GridSearchCV(
            estimator, grid, scoring=scores, refit=False, cv=KFold(2), n_jobs=n_jobs
        ).fit(X)
        results = search.cv_results_
        found[f"{type(estimator).__name__}{n_jobs}"] = {
            "score": results["mean_test_score"].tolist(),
            "threads": [*results["split0_test_threads"], *results["split1_test_threads"]],
        }
json.dump(found, sys.stdout, default=int)
"""


@pytest.mark.slow
def test_two_jobs_share_the_cores():
    # In a separate process: limits on threads, which tests may run with, would hide the effect.
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in limits}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    share = max(1, found["cores"] // 2)
    for name in ESTIMATORS:
        one, two = found[f"{name}1"], found[f"{name}2"]
        assert set(one["threads"]) == {found["threads"]}
        assert set(two["threads"]) == {share}
        # Sums by more threads differ by rounding.
        assert_allclose(two["score"], one["score"], rtol=1e-3)
