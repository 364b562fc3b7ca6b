"""Warnings point at the line of the user's code that called the library."""

import ast
import concurrent.futures
import contextlib
import functools
import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback

import sklearn_vsc
from sklearn_vsc import (
    SCVAE,
    FISTADictionaryLearner,
    SparseCoder,
    SparseVAE,
    ThresholdedVSC,
    sparse_encode,
)
from sklearn_vsc._base.coder import BaseSparseCoder
from sklearn_vsc._rows.user_warnings import warn_user
from sklearn_vsc.metrics import multi_information
from sklearn_vsc.solvers.lasso import solve as lasso

PACKAGE = Path(sklearn_vsc.__file__).parent
DIGITS = load_digits().data[:300] / 16
QUICK = {"max_iter": 2, "batch_size": 100, "random_state": 0}
NEURAL = [ThresholdedVSC, SparseVAE, SCVAE]


def user_code(function, *args, **kwargs):
    """Code as a user writes it: the one line that calls the library is marked."""
    return function(*args, **kwargs)  # the user's line


def line_of(function):
    """The number of the marked line in the source of a function."""
    lines, first = inspect.getsourcelines(function)
    [line] = [n for n, text in enumerate(lines, first) if text.endswith("# the user's line\n")]
    return line


def warned(work, message, category=UserWarning):
    """Do some work; return the warnings with this message, which must be of this category."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    found = [warning for warning in caught if re.search(message, str(warning.message))]
    assert found, [str(warning.message) for warning in caught]
    assert {warning.category for warning in found} == {category}
    return found


def assert_points_at_the_user(function, *args, message, category=UserWarning):
    """Call the library as a user does; it must warn once, at the user's line."""
    [warning] = warned(lambda: user_code(function, *args), message, category)
    assert warning.filename == __file__
    assert warning.lineno == line_of(user_code)


def assert_points_into(function, work, message="told"):
    """Do some work; its warnings must point at the marked line of a function."""
    found = warned(work, message)
    assert {(w.filename, w.lineno) for w in found} == {(__file__, line_of(function))}


# ------------------------------------------------------------------------------- the helper


def library_code(source, module="made_up.py"):
    """Functions that appear to belong to the package, by the path of their file."""
    names = {"warn_user": warn_user, "contextlib": contextlib, "functools": functools}
    exec(compile(source, str(PACKAGE / module), "exec"), names)
    return names


NESTED = library_code(
    """
def outer(depth):
    return outer(depth - 1) if depth else warn_user("told")

@contextlib.contextmanager
def manager():
    warn_user("told")
    yield

@functools.cache
def cached():
    return [warn_user("told") for _ in range(1)]

@functools.singledispatch
def dispatched(x):
    warn_user("told")

def calls_back(function):
    return function()

class Generator:
    def __iter__(self):
        warn_user("told")
        yield 1
"""
)


@pytest.mark.parametrize("depth", [0, 1, 7])
def test_frames_of_the_package_are_skipped_at_any_depth(depth):
    assert_points_into(user_code, lambda: user_code(NESTED["outer"], depth))


def test_category_is_passed_on():
    warn = library_code("def f(): warn_user('told', DeprecationWarning)")["f"]
    assert_points_at_the_user(warn, message="told", category=DeprecationWarning)


def test_decorators_of_the_standard_library_are_skipped():
    assert_points_into(user_code, lambda: user_code(NESTED["cached"].__wrapped__))
    assert_points_into(user_code, lambda: user_code(NESTED["cached"]))
    assert_points_into(user_code, lambda: user_code(NESTED["dispatched"], 1))


def test_context_managers_of_the_package_point_at_the_with_statement():
    def enter():
        with NESTED["manager"]():  # the user's line
            pass

    assert_points_into(enter, enter)


def test_generators_of_the_package_point_at_the_loop():
    def loop():
        for _ in NESTED["Generator"]():  # the user's line
            pass

    assert_points_into(loop, loop)


def test_the_innermost_line_of_the_user_is_reported():
    """A user's function that the library calls back is closer than the user's first call."""

    def called_back():
        NESTED["outer"](2)  # the user's line

    assert_points_into(called_back, lambda: NESTED["calls_back"](called_back))


def test_a_folder_whose_name_only_starts_like_the_package_is_user_code():
    other = str(PACKAGE) + "_of_mine/script.py"
    names = {"warn_user": NESTED["outer"]}
    exec(compile("def f():\n    warn_user(1)\n", other, "exec"), names)
    [warning] = warned(names["f"], "told")
    assert (warning.filename, warning.lineno) == (other, 2)


def test_user_code_in_a_thread():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert_points_into(
            user_code, lambda: pool.submit(user_code, NESTED["outer"], 3).result(timeout=60)
        )


def test_a_thread_without_user_code_still_warns():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        [warning] = warned(lambda: pool.submit(NESTED["outer"], 3).result(timeout=60), "told")
    assert not Path(warning.filename).is_relative_to(PACKAGE)


CODER_METHODS = """
def fit(self, X, y=None):
    warn_user("told")
    self.components_ = X[:2]
    return self

def transform(self, X):
    warn_user("told")
    return X[:, :2]
"""


class WarningCoder(BaseSparseCoder):
    """A minimal estimator that appears to belong to the package and always warns."""

    _parameter_constraints = {}

    def __init__(self, sparse_output=False):
        self.sparse_output = sparse_output

    fit, transform = (library_code(CODER_METHODS)[name] for name in ("fit", "transform"))

    def score_samples(self, X):
        return np.zeros(len(X))


def test_methods_of_the_base_class_and_sklearns_wrappers_are_skipped():
    model = WarningCoder()
    for method in (model.fit, model.transform, model.fit_transform):
        assert_points_into(user_code, lambda method=method: user_code(method, DIGITS))


def test_pipelines_are_skipped():
    model = Pipeline([("first", WarningCoder()), ("last", WarningCoder())])
    for method in (model.fit, model.transform, model.fit_transform):
        assert_points_into(user_code, lambda method=method: user_code(method, DIGITS))


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_searches_are_skipped(n_jobs):
    search = GridSearchCV(WarningCoder(), {"sparse_output": [False]}, n_jobs=n_jobs, cv=2)
    assert_points_into(user_code, lambda: user_code(search.fit, DIGITS))


def test_a_user_defined_subclass_is_user_code():
    class Mine(WarningCoder):
        def fit(self, X, y=None):
            return super().fit(X)  # the user's line

    assert_points_into(Mine.fit, lambda: Mine().fit(DIGITS))
    assert_points_into(Mine.fit, lambda: Pipeline([("mine", Mine())]).fit(DIGITS))


def test_only_the_helper_warns():
    """``warnings.warn`` elsewhere would need to count frames."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "user_warnings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("warnings.warn", "warn"), path


# --------------------------------------------------------------------------------- dead atoms

MANY_DEAD = [
    FISTADictionaryLearner(16, alpha=1e3, max_iter=2, random_state=0),
    ThresholdedVSC(40, encoder="mlp", n_refine=0, **QUICK),
    SparseVAE(40, prior="spike_slab", density=0.01, encoder="mlp", **QUICK),
    SCVAE(
        16,
        alpha=50.0,
        hidden_layer_sizes=(32,),
        learning_rate_init=0.02,
        **(QUICK | {"max_iter": 20}),
    ),
]


@pytest.mark.parametrize("model", MANY_DEAD, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_dead_atoms(model, method):
    assert_points_at_the_user(
        getattr(model, method), DIGITS, message="atoms are used by no training row"
    )


def test_dead_atoms_in_a_pipeline():
    model = Pipeline([("coder", MANY_DEAD[0])])
    assert_points_at_the_user(model.fit, DIGITS, message="atoms are used by no training row")


# -------------------------------------------------------------------------- lasso not converged


@pytest.mark.parametrize("method", ["transform", "fit_transform"])
def test_lasso_that_did_not_converge(method, monkeypatch):
    model = FISTADictionaryLearner(16, alpha=0.1, max_iter=2, random_state=0).fit(DIGITS)
    monkeypatch.setattr(lasso, "_FINISH_STEPS", 0)
    model.set_params(transform_max_iter=1, transform_tol=1e-12)
    assert_points_at_the_user(
        getattr(model, method), DIGITS, message="relative duality gap", category=ConvergenceWarning
    )


@pytest.mark.parametrize("call", ["transform", "fit_transform", "sparse_encode"])
def test_lasso_with_a_given_dictionary_that_did_not_converge(call, monkeypatch):
    monkeypatch.setattr(lasso, "_FINISH_STEPS", 0)
    dictionary = np.random.default_rng(0).normal(size=(16, 64))
    coder = SparseCoder(
        dictionary, transform_algorithm="fista", transform_alpha=1e-3, transform_max_iter=0
    )
    encode = functools.partial(
        sparse_encode, dictionary=dictionary, algorithm="fista", alpha=1e-3, max_iter=0
    )
    assert_points_at_the_user(
        encode if call == "sparse_encode" else getattr(coder, call),
        DIGITS,
        message="relative duality gap",
        category=ConvergenceWarning,
    )


# ------------------------------------------------------------------------------ training options


@pytest.mark.parametrize("method", ["fit", "fit_transform", "partial_fit"])
@pytest.mark.parametrize(
    "model",
    [
        ThresholdedVSC(8, gradient="exact", n_draws=4, **QUICK),
        SparseVAE(
            8,
            prior="spike_slab",
            decoder="linear",
            gradient="exact",
            objective="max_elbo",
            **QUICK,
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_options_that_the_exact_gradient_ignores(model, method):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "atoms are used by no")
        assert_points_at_the_user(
            getattr(model, method), DIGITS, message="gradient='exact' trains the closed-form ELBO"
        )


@pytest.mark.parametrize("method", ["fit", "fit_transform", "partial_fit"])
@pytest.mark.parametrize("cls", [ThresholdedVSC, SparseVAE])
def test_rows_that_the_decoder_cannot_reach(cls, method):
    model = cls(8, output_activation="sigmoid", **QUICK)
    assert_points_at_the_user(
        getattr(model, method), 16 * DIGITS, message="output_activation='sigmoid' decodes"
    )


@pytest.mark.parametrize("cls", [SparseVAE, ThresholdedVSC])
def test_training_that_diverges(cls):
    model = cls(8, **(QUICK | {"max_iter": 15}), noise_variance=1.0, learning_rate_init=10.0)
    if cls is ThresholdedVSC:
        model.set_params(gradient="subgradient", encoder="mlp", n_refine=0)
    assert_points_at_the_user(model.fit, 16 * DIGITS, message="loss rose from")


# ------------------------------------------------------------------------------------ interruption


class Interrupt(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def interrupt(call):
    raise KeyboardInterrupt


INTERRUPTED = [
    FISTADictionaryLearner(8, max_iter=4, callback=interrupt, batch_size=50, random_state=0),
    *(cls(8, **QUICK, callbacks=[Interrupt()]) for cls in NEURAL),
]


@pytest.mark.parametrize("model", INTERRUPTED, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_interrupted_fits(model, method):
    assert_points_at_the_user(getattr(model, method), DIGITS, message="interrupted")


# ------------------------------------------------------------------------------------------ saving


@pytest.mark.parametrize("cls", [FISTADictionaryLearner, *NEURAL])
def test_callbacks_that_save_leaves_out(cls, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "atoms are used by no")
        model = cls(8, max_iter=1, random_state=0).fit(DIGITS)
    model.set_params(
        **{"callback": print} if cls is FISTADictionaryLearner else {"callbacks": [Interrupt()]}
    )
    assert_points_at_the_user(model.save, tmp_path / "model", message="hold code and are not saved")


def test_scikit_learns_callbacks_that_save_leaves_out(tmp_path):
    callback = pytest.importorskip("sklearn.callback", reason="needs scikit-learn 1.9")
    model = FISTADictionaryLearner(8, max_iter=1, random_state=0).fit(DIGITS)
    model.set_callbacks(callback.ProgressBar())
    assert_points_at_the_user(model.save, tmp_path / "model", message="hold code and are not saved")


# ----------------------------------------------------------------------------------------- metrics


def test_saturated_multi_information():
    codes = np.random.default_rng(10).normal(size=(1000, 64))
    plug_in = functools.partial(multi_information, method="plug_in")
    assert_points_at_the_user(plug_in, codes, message="joint entropy of 1000 rows")
