"""Random bad input gives either a well-formed result or a helpful error.

By default a sample of cases for each class is run, and 500 for each class in the slow test; they
are the same each time. ``make fuzz`` draws new ones; FUZZ_CASES sets their number for each class.
"""

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from fuzzed_input import FITTING, SMALL, cases, is_allowed
from hypothesis import HealthCheck, event, given, settings
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from sklearn_vsc import FISTADictionaryLearner

# scikit-learn's own checks may refer to X in these words.
SKLEARN_SAYS = re.compile(
    r"[Ii]nput|array|[Dd]ata\b|convert|feature names|container|argument must be|could not be"
)
# Warnings attributed to these libraries are meant for the code that calls them, which is ours.
OF_OTHERS = re.compile(r"[/\\](torch|skorch|numpy|numba|scipy)[/\\]")
EACH = pytest.mark.parametrize("estimator_class", SMALL, ids=lambda c: c.__name__)


def snapshot(estimator):
    """Return the attributes of an estimator, with copies of mutable values."""

    def kept(value):
        if isinstance(value, np.ndarray):
            return value.copy()
        if isinstance(value, torch.nn.Module):
            return {name: tensor.numpy().copy() for name, tensor in value.state_dict().items()}
        if isinstance(value, np.random.RandomState):
            return value.get_state()[1:3]
        return list(value) if isinstance(value, list) else None

    return {name: (value, kept(value)) for name, value in vars(estimator).items()}


def assert_unchanged(before, estimator):
    after = snapshot(estimator)
    assert before.keys() == after.keys()
    for name, (value, kept) in before.items():
        assert value is after[name][0], f"{name} was replaced"
        np.testing.assert_equal(after[name][1], kept, err_msg=f"{name} was written to")


def asked(estimator, call):
    """Return the result of a call, after checking its warnings and what it must not modify."""
    generators = torch.get_rng_state(), np.random.get_state()[1:3]
    X = call.data.X if call.data else None
    given_X = X.copy() if isinstance(X, np.ndarray) and X.dtype.kind in "fiub" else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return getattr(estimator, call.method)(*call.arguments)
        finally:
            assert torch.equal(generators[0], torch.get_rng_state())
            np.testing.assert_equal(np.random.get_state()[1:3], generators[1])
            if given_X is not None:
                np.testing.assert_array_equal(X, given_X, "X was written to")
            for warning in caught:
                assert issubclass(warning.category, UserWarning), str(warning)
                assert not OF_OTHERS.search(warning.filename), str(warning)


def assert_teaches(error, estimator, call, changed, fitted, learned_oddly):
    """Check that the error has a type that users expect and names the culprit."""
    message = str(error)
    if isinstance(error, NotFittedError):
        assert not fitted and call.method not in FITTING
        return
    if call.method == "save" and isinstance(error, OSError):
        return
    assert type(error) in (ValueError, TypeError, InvalidParameterError), repr(error)
    sound = call.data is None or (call.data.sound and not learned_oddly)
    rows_are_right = sound and (call.data is None or fits(estimator, call, fitted))
    arguments = call.names[1:] if call.data and rows_are_right else call.names
    suspects = [*changed, *arguments]
    assert suspects, f"nothing was wrong, but: {message}"
    if not rows_are_right and SKLEARN_SAYS.search(message):
        return
    assert names_one_of(suspects, message), f"none of {suspects} in: {message}"
    # If exactly one parameter is invalid by itself, the message must name it.
    wrong = [n for n, v in changed.items() if not is_allowed(type(estimator), n, v)]
    if len(wrong) == 1 and rows_are_right and call.method in FITTING:
        assert names_one_of(wrong, message), f"{wrong[0]} is not in: {message}"


def names_one_of(names, message):
    return any(re.search(rf"\b{name}\b", message) for name in names)


def fits(estimator, call, fitted):
    """Whether rows or codes have the number of columns that the fitted estimator expects."""
    if not fitted or call.method in ("fit", "fit_transform"):
        return True
    codes = call.method == "inverse_transform"
    wanted = estimator._n_features_out if codes else estimator.n_features_in_
    return call.data.shape[1] == wanted


def assert_sound(found, estimator, call):
    """Check that the result is finite and has the right shape and dtype."""
    if call.method in ("fit", "partial_fit"):
        assert found is estimator
        return assert_fitted_soundly(estimator)
    if call.method in ("save", "set_params"):
        return None
    cauchy = "cauchy" in (getattr(estimator, "prior", None), "")
    arrays = {call.method: found}
    if call.method == "posterior":
        arrays = dict(vars(found))
        assert ((arrays["inclusion"] >= 0) & (arrays["inclusion"] <= 1)).all()
        if cauchy:
            del arrays["std"]
    for name, array in arrays.items():
        values = array.data if sparse.issparse(array) else array
        assert np.isfinite(values).all(), f"{name} is not finite: {array}"
        if call.method != "score":
            assert array.shape == shape_of(estimator, call), f"{name} {array.shape}"
    if call.data and call.data.sound and call.method != "score":
        exact = call.data.container not in ("list", "polars")
        wanted = np.float32 if exact and call.data.dtype == np.float32 else np.float64
        if isinstance(estimator, FISTADictionaryLearner) and call.method == "score_samples":
            wanted = np.float64
        assert all(array.dtype == wanted for array in arrays.values()), wanted
    return None


def shape_of(estimator, call):
    n_features = estimator.n_features_in_
    if call.method == "sample":
        return (call.arguments[0], n_features)
    rows = call.arguments[0]
    n_rows = rows.shape[0] if sparse.issparse(rows) else len(rows)
    if call.method == "score_samples":
        return (n_rows,)
    if call.method == "inverse_transform":
        return (n_rows, n_features)
    codes = (n_rows, estimator._n_features_out)
    if call.method == "sample_posterior":
        # Draws are not affected by `split_sign`.
        return (call.arguments[1], n_rows, len(estimator.components_))
    return codes if call.method != "posterior" else (n_rows, len(estimator.components_))


def assert_fitted_soundly(estimator):
    assert np.isfinite(estimator.components_).all()
    assert estimator.components_.shape[1] == estimator.n_features_in_
    if getattr(estimator, "likelihood", "gaussian") == "gaussian":
        assert np.all(estimator.noise_variance_ > 0) and np.all(
            np.isfinite(estimator.noise_variance_)
        )
    assert all(np.isfinite(record["loss"]) for record in estimator.history_)


def check(case):
    """Check that every call gives a valid result, or an error that changes nothing."""
    estimator, changed, learned_oddly = case.make(), dict(case.changed), False
    for call in [case.fit, *case.calls]:
        if call.method == "set_params":
            name, value = call.arguments
            estimator.set_params(**{name: value})
            changed[name] = value
            continue
        fitted = hasattr(estimator, "components_")
        before = snapshot(estimator)
        try:
            found = asked(estimator, call)
        except AssertionError:
            raise
        except Exception as error:
            event(f"{call.method}: {type(error).__name__}")
            assert_teaches(error, estimator, call, changed, fitted, learned_oddly)
            assert_unchanged(before, estimator)
        else:
            event(f"{call.method}: answered")
            assert_sound(found, estimator, call)
            if call.method in FITTING:
                # The scale of later rows may then be too different.
                learned_oddly |= not call.data.sound


def fuzz(estimator_class, n_cases, **options):
    """Check this many cases; a failure is shrunk to a small one and printed."""
    options |= {"max_examples": n_cases, "deadline": None, "database": None}

    @settings(suppress_health_check=[HealthCheck.too_slow], **options)
    @given(cases(estimator_class))
    def check_each(case):
        check(case)

    check_each()


@pytest.fixture(autouse=True)
def fixed_cases_stay_the_same(monkeypatch, request):
    """Newer hypothesis also draws constants found in modules, so that edits would change cases."""
    providers = sys.modules.get("hypothesis.internal.conjecture.providers")
    if hasattr(providers, "_get_local_constants") and not request.config.getoption("--fuzz-cases"):
        nothing = providers.Constants()
        monkeypatch.setattr(providers, "_get_local_constants", lambda: nothing)


@EACH
def test_a_sample_of_input_gives_a_result_or_a_clear_error(estimator_class, tmp_path, monkeypatch):
    # Models are saved under relative paths.
    monkeypatch.chdir(tmp_path)
    fuzz(estimator_class, 25, derandomize=True)


@pytest.mark.slow
@EACH
def test_input_gives_a_result_or_a_clear_error(estimator_class, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    n_cases = request.config.getoption("--fuzz-cases")
    fuzz(estimator_class, n_cases or 500, derandomize=n_cases is None)
