"""torch tensors as input and output, with scikit-learn's array API dispatch.

SciPy needs the setting before it is imported, so these tests run in a separate process if
SCIPY_ARRAY_API is not set.
"""

import copy
import inspect
import os
import pickle
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks, get_tags

import sklearn_vsc
from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc._rows import compat
from sklearn_vsc._rows.array_api import Home, to_host

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

DIGITS = load_digits().data[:240]
X, ROWS = DIGITS[:200], DIGITS[200:]
NETWORK = {"max_iter": 3, "hidden_layer_sizes": (16,)}
ESTIMATORS = [
    FISTADictionaryLearner(8, alpha=5.0, max_iter=3, random_state=0),
    ThresholdedVSC(8, **NETWORK, random_state=0),
    SparseVAE(8, prior="spike_slab", decoder="linear", **NETWORK, random_state=0),
    SCVAE(8, **NETWORK, random_state=0),
]
each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def _obstacle():
    """Return why dispatch cannot be enabled here, or None."""
    try:
        with config_context(array_api_dispatch=True):
            return None
    except (ImportError, RuntimeError) as error:
        return str(error)


OBSTACLE = _obstacle()
dispatched = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


# If dispatch does not work despite the setting, as with an old SciPy, a process does not help.
@pytest.mark.skipif("SCIPY_ARRAY_API" in os.environ, reason="this process has the setting")
@pytest.mark.skipif(OBSTACLE is None, reason="dispatch works without the setting")
def test_these_tests_pass_in_a_process_with_the_setting():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command,
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def answers(model, rows):
    """All results of a fitted estimator for some rows, by name."""
    posterior = model.posterior(rows)
    codes = model.transform(rows)
    return {
        "transform": codes,
        "inverse_transform": model.inverse_transform(codes),
        "score_samples": model.score_samples(rows),
        "mean": posterior.mean,
        "std": posterior.std,
        "inclusion": posterior.inclusion,
        "sample_posterior": model.sample_posterior(rows, n_draws=2),
        "sample": model.sample(3),
        "components_": model.components_,
        "component_usage_": model.component_usage_,
    }


@dispatched
@each
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_extra_checks_pass(estimator):
    checks = estimator_checks._yield_array_api_checks(clone(estimator), only_numpy=False)
    passed = []
    for check in checks:
        # scikit-learn checks what torch was built for, not what is available.
        if "cuda" in str(check.keywords) and not torch.cuda.is_available():
            continue
        try:
            check(type(estimator).__name__, clone(estimator))
        except unittest.SkipTest:
            continue
        passed.append((check.func.__name__, check.keywords.get("array_namespace")))
    assert ("check_array_api_input", "torch") in passed
    assert ("check_array_api_input", "numpy") in passed


@dispatched
@each
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_scikit_learns_check_of_the_values_passes(estimator, device):
    estimator_checks.check_array_api_input_and_values(
        type(estimator).__name__, estimator, "torch", device, "float64"
    )


@dispatched
@each
@each_dtype
@each_device
def test_tensors_give_tensors_with_the_same_values_as_arrays(estimator, dtype, device):
    tensors = [torch.from_numpy(rows).to(device, dtype) for rows in (X, ROWS)]
    arrays = [rows.numpy(force=True) for rows in tensors]
    plain = clone(estimator).set_params(device=device).fit(arrays[0])
    expected = answers(plain, arrays[1])
    with config_context(array_api_dispatch=True):
        model = clone(estimator).set_params(device=device).fit(tensors[0])
        found = answers(model, tensors[1])
        score = model.score(tensors[1])
    assert type(score) is float and score == plain.score(arrays[1])
    for name, value in found.items():
        assert isinstance(value, torch.Tensor), name
        assert value.device.type == device, name
        assert not value.requires_grad
        assert_array_equal(value.numpy(force=True), expected[name], err_msg=name)
        assert value.dtype == dtype or name in ("score_samples", "component_usage_"), name


@dispatched
@each
def test_input_tensors_are_not_modified(estimator):
    rows = torch.from_numpy(X.copy())
    with config_context(array_api_dispatch=True):
        model = clone(estimator).fit(rows)
        answers(model, rows)
        model.partial_fit(rows)
    assert_array_equal(rows, X)


@dispatched
@each
def test_partial_fit_continues_from_tensors(estimator):
    plain = clone(estimator).fit(X).partial_fit(X)
    rows = torch.from_numpy(X)
    with config_context(array_api_dispatch=True):
        model = clone(estimator).fit(rows).partial_fit(rows)
        assert_array_equal(model.components_, plain.components_)
        # Rows that raise an error change nothing.
        before = dict(vars(model))
        with pytest.raises(ValueError, match="inf"):
            model.partial_fit(torch.full_like(rows, torch.inf))
        assert isinstance(model.components_, torch.Tensor)
        assert vars(model).keys() == before.keys()
        assert_array_equal(model.transform(rows), plain.transform(X))
    # Without dispatch, everything is NumPy again.
    model.partial_fit(rows)
    assert type(model.components_) is np.ndarray
    assert type(model.transform(rows)) is np.ndarray


@each
def test_without_dispatch_results_are_numpy_arrays(estimator):
    model = clone(estimator).fit(torch.from_numpy(X))
    plain = clone(estimator).fit(X)
    expected = answers(plain, ROWS)
    for name, value in answers(model, torch.from_numpy(ROWS)).items():
        assert type(value) is np.ndarray, name
        assert_array_equal(value, expected[name], err_msg=name)
    assert type(model.fit_transform(torch.from_numpy(X).float())) is np.ndarray
    assert model.components_.dtype == np.float32
    assert model.score(torch.from_numpy(ROWS)) == model.score(ROWS)


@each
def test_tensors_of_other_dtypes_become_floats(estimator):
    model = clone(estimator).fit(X)
    expected = model.transform(ROWS)
    for dtype in (torch.int64, torch.uint8):
        codes = model.transform(torch.from_numpy(ROWS).to(dtype))
        assert codes.dtype == np.float64
        assert_array_equal(codes, expected)
    narrow = model.transform(ROWS.astype(np.float32))
    for dtype in (torch.bfloat16, torch.float16):
        codes = model.transform(torch.from_numpy(ROWS).to(dtype))
        assert codes.dtype == np.float32
        assert_array_equal(codes, narrow)
    # Only the values of a tensor that requires gradients are used.
    assert_array_equal(model.transform(torch.from_numpy(ROWS).requires_grad_()), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_a_gpu_tensor_needs_dispatch(estimator):
    with pytest.raises(TypeError, match="array_api_dispatch"):
        clone(estimator).fit(torch.from_numpy(X).cuda())


def test_a_tensor_on_another_device_needs_dispatch():
    rows = torch.empty(3, 2, device="meta")
    with pytest.raises(TypeError, match=r"tensor on meta .*array_api_dispatch"):
        ESTIMATORS[0].fit(rows)


@dispatched
@each
def test_a_namespace_other_than_that_of_fit_is_an_error(estimator):
    if compat.check_same_namespace.__module__ == compat.__name__:
        pytest.skip("scikit-learn < 1.9 has no such check")
    with config_context(array_api_dispatch=True):
        model = clone(estimator).fit(torch.from_numpy(X))
        plain = clone(estimator).fit(X)
        for call in ("transform", "score_samples", "posterior", "sample_posterior"):
            with pytest.raises(ValueError, match="same namespace"):
                getattr(model, call)(ROWS)
            with pytest.raises(ValueError, match="same namespace"):
                getattr(plain, call)(torch.from_numpy(ROWS))
        with pytest.raises(ValueError, match="same namespace"):
            model.inverse_transform(plain.transform(ROWS))


@dispatched
@each
def test_scikit_learn_can_move_an_estimator(estimator):
    array_api = pytest.importorskip("sklearn.utils._array_api")
    if not hasattr(array_api, "move_estimator_to"):
        pytest.skip("scikit-learn < 1.9 cannot move estimators")
    plain = clone(estimator).fit(X)
    with config_context(array_api_dispatch=True):
        tensor = torch.from_numpy(ROWS)
        xp, _, device = compat.get_namespace_and_device(tensor)
        moved = array_api.move_estimator_to(plain, xp, device)
        assert_array_equal(moved.transform(tensor), plain.transform(ROWS))
        assert isinstance(moved.components_, torch.Tensor)
        assert type(plain.components_) is np.ndarray
        back = array_api.move_estimator_to(moved, np, "cpu")
    back.partial_fit(X)
    assert_array_equal(back.components_, plain.partial_fit(X).components_)


@dispatched
@each
@each_device
def test_copies_of_a_fit_on_tensors_work_anywhere(estimator, device, tmp_path):
    rows = torch.from_numpy(X).to(device)
    with config_context(array_api_dispatch=True):
        model = clone(estimator).fit(rows)
        assert model.components_.device.type == device
        expected = model.transform(rows).cpu()
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            # Copies are on the CPU, so that they open anywhere; rows may be on any device.
            assert other.components_.device.type == "cpu"
            assert_array_equal(other.transform(rows).cpu(), expected)
        assert clone(model).get_params() == estimator.get_params()
    model.save(tmp_path / "model")
    again = sklearn_vsc.load(tmp_path / "model")
    assert type(again.components_) is np.ndarray
    assert_array_equal(again.transform(X), expected)


@dispatched
def test_grids_of_codes_are_tensors_too():
    images = torch.from_numpy(X[:20]).reshape(-1, 1, 8, 8)
    model = SCVAE(4, image_shape=(1, 8, 8), encoder="conv", max_iter=1, random_state=0)
    with config_context(array_api_dispatch=True):
        grid = model.fit(images).transform_grid(images)
        assert isinstance(grid, torch.Tensor) and grid.shape == (20, 2, 2, 4)
        assert_array_equal(grid.reshape(20, -1), model.transform(images))
        assert model.inverse_transform(grid).shape == (20, 64)


@dispatched
def test_sparse_matrices_cannot_hold_tensors():
    model = clone(ESTIMATORS[0]).set_params(sparse_output=True)
    assert get_tags(model).array_api_support is False
    with config_context(array_api_dispatch=True):
        model.fit(torch.from_numpy(X))
        with pytest.raises(ValueError, match="sparse_output=False"):
            model.transform(torch.from_numpy(ROWS))


@dispatched
@pytest.mark.parametrize("estimator", ESTIMATORS[:2], ids=lambda e: type(e).__name__)
def test_grid_search_works_on_tensors(estimator):
    grid = {"n_components": [4, 8]}
    plain = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(X)
    with config_context(array_api_dispatch=True):
        search = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(torch.from_numpy(X))
    assert search.best_params_ == plain.best_params_
    expected = plain.cv_results_["mean_test_score"]
    assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-6)


@dispatched
def test_read_only_results_become_separate_tensors():
    with config_context(array_api_dispatch=True):
        home = Home.of(torch.zeros(1))
        array = np.arange(3.0)
        array.flags.writeable = False
        tensor = home.bring(array)
    tensor += 1
    assert_array_equal(array, [0, 1, 2])


def test_objects_that_are_not_arrays_are_not_changed():
    frame = [[1.0, 2.0]]
    assert to_host(frame) is frame
    assert to_host(X) is X
    assert Home.of(X) == Home.of(frame) == Home()


@each
def test_decorated_methods_keep_their_signature(estimator):
    """They accept positional and keyword arguments and request no metadata."""
    model = clone(estimator).fit(X=X, y=None)
    codes = model.transform(X=ROWS)
    assert_array_equal(codes, model.transform(ROWS))
    assert_array_equal(model.inverse_transform(Z=codes), model.inverse_transform(codes))
    assert_array_equal(model.sample_posterior(n_draws=2, X=ROWS), model.sample_posterior(ROWS, 2))
    assert list(inspect.signature(model.fit).parameters) == ["X", "y"]
    assert list(inspect.signature(model.score_samples).parameters) == ["X"]
    for call in (model.transform, model.fit, model.inverse_transform):
        with pytest.raises(TypeError, match="argument"):
            call()
    requests = model.get_metadata_routing()
    assert {request for request in str(requests).split() if "True" in request} == set()


@each
def test_tags_describe_the_estimator(estimator):
    tags = get_tags(estimator)
    assert tags.array_api_support is True
    assert tags.input_tags.sparse is isinstance(estimator, FISTADictionaryLearner)
    assert tags.input_tags.two_d_array is True
    assert tags.no_validation is False
    assert tags.target_tags.required is False
    assert tags.requires_fit is True
    assert set(tags.transformer_tags.preserves_dtype) == {"float32", "float64"}
