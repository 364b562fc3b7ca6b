"""What every estimator promises. Add a new one by a line in ``ESTIMATORS``."""

import copy
import inspect
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils._param_validation import InvalidParameterError

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

N_COMPONENTS = 12
NETWORK = {"max_iter": 40, "hidden_layer_sizes": (32,), "learning_rate_init": 5e-3}

ESTIMATORS = [
    FISTADictionaryLearner(N_COMPONENTS, alpha=5.0, max_iter=10, random_state=0),
    ThresholdedVSC(N_COMPONENTS, **NETWORK, random_state=0),
    SparseVAE(N_COMPONENTS, prior="spike_slab", decoder="linear", **NETWORK, random_state=0),
    SCVAE(N_COMPONENTS, **NETWORK, random_state=0),
]

# Parameters that carry the unit of X.
IN_UNITS_OF_X = {FISTADictionaryLearner: ("alpha",)}

DEAD = "ignore:.*atoms are used by no training row:UserWarning"
UNSOLVED = "ignore::sklearn.exceptions.ConvergenceWarning"
pytestmark = [pytest.mark.filterwarnings(DEAD), pytest.mark.filterwarnings(UNSOLVED)]

DIGITS = load_digits().data[:240]
ROWS = DIGITS[200:]


def name_of(estimator):
    """The class, and the parameters that differ from those in ESTIMATORS."""
    name = type(estimator).__name__
    (listed,) = (e for e in ESTIMATORS if type(e) is type(estimator))
    usual = listed.get_params()
    changed = {k: v for k, v in estimator.get_params().items() if v is not usual[k]}
    return "-".join([name, *(f"{key}={value}" for key, value in changed.items())])


def variants():
    """Each estimator with each way to code and to score."""
    for estimator in ESTIMATORS:
        params = estimator.get_params()
        yield estimator
        for method in ("mean", "max_elbo", "sample") if "transform_method" in params else ():
            yield clone(estimator).set_params(transform_method=method, n_draws=3)
        if "score_method" in params:
            yield clone(estimator).set_params(score_method="iwae", score_draws=5)
        if "transform_algorithm" in params:
            yield clone(estimator).set_params(transform_algorithm="omp", split_sign=True)
        if "encoder" in params and "latent_size" not in params:
            yield clone(estimator).set_params(encoder="lista", n_unrolled=4)
        if "posterior_family" in params:
            yield clone(estimator).set_params(prior="laplace", decoder="mlp")


each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
each_variant = pytest.mark.parametrize("estimator", list(variants()), ids=name_of)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

_FITS: dict = {}


def fitted(estimator, dtype=np.float64):
    """A fit of the first 200 digits, made once and returned as a copy."""
    key = (name_of(estimator), dtype)
    if key not in _FITS:
        _FITS[key] = clone(estimator).fit(DIGITS[:200].astype(dtype))
    return copy.deepcopy(_FITS[key])


def answers(model, X):
    """All results of a fitted estimator for rows, by name."""
    posterior = model.posterior(X)
    codes = model.transform(X)
    return {
        "transform": codes,
        "inverse_transform": model.inverse_transform(codes),
        "score_samples": model.score_samples(X),
        "mean": posterior.mean,
        "std": posterior.std,
        "inclusion": posterior.inclusion,
        "sample_posterior": model.sample_posterior(X, n_draws=2),
    }


def assert_same_answers(model, other, X, other_X=None, **tolerance):
    ours, theirs = answers(model, X), answers(other, X if other_X is None else other_X)
    for key, value in ours.items():
        assert_allclose(theirs[key], value, err_msg=key, **(tolerance or {"rtol": 0}))


def explained(model, X):
    residual = X - model.inverse_transform(model.transform(X))
    return 1 - np.sum(residual**2) / np.sum((X - X.mean(0)) ** 2)


# ------------------------------------------------------------------------ shapes and types


@each_variant
@each_dtype
def test_shapes_and_dtypes(estimator, dtype):
    model = fitted(estimator, dtype)
    X = ROWS.astype(dtype)
    n_codes = len(model.get_feature_names_out())
    shapes = {
        "transform": (40, n_codes),
        "inverse_transform": (40, 64),
        "score_samples": (40,),
        "mean": (40, N_COMPONENTS),
        "std": (40, N_COMPONENTS),
        "inclusion": (40, N_COMPONENTS),
        "sample_posterior": (2, 40, N_COMPONENTS),
    }
    for key, value in answers(model, X).items():
        assert type(value) is np.ndarray, key
        assert value.shape == shapes[key], key
        assert np.isfinite(value).all(), key
        if key != "score_samples":
            assert value.dtype == dtype, key
    assert model.components_.shape == (N_COMPONENTS, 64)
    assert model.components_.dtype == dtype
    rows = model.sample(7)
    assert rows.shape == (7, 64) and rows.dtype == dtype and np.isfinite(rows).all()
    assert isinstance(model.score(X), float)


@each
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, ">f8"])
def test_other_types_become_float64(estimator, dtype):
    X = DIGITS > 7 if dtype == np.bool_ else DIGITS
    estimator = clone(estimator).set_params(max_iter=2)
    model, plain = clone(estimator).fit(X.astype(dtype)), clone(estimator).fit(X.astype(float))
    assert_same_answers(plain, model, X.astype(float), X.astype(dtype))
    assert model.transform(X.astype(dtype)).dtype == np.float64
    assert model.components_.dtype == np.float64


@each
def test_float16_becomes_float32(estimator):
    estimator, X = clone(estimator).set_params(max_iter=2), DIGITS.astype(np.float16)
    wide = X.astype(np.float32)
    model, plain = clone(estimator).fit(X), clone(estimator).fit(wide)
    assert_same_answers(plain, model, wide, X)
    assert model.transform(X).dtype == model.components_.dtype == np.float32


@each
def test_dtype_of_results_follows_the_rows_and_not_the_fit(estimator):
    narrow, wide = fitted(estimator, np.float32), fitted(estimator, np.float64)
    assert narrow.transform(ROWS).dtype == np.float64
    codes = wide.transform(ROWS.astype(np.float32))
    assert codes.dtype == np.float32
    assert_allclose(codes, wide.transform(ROWS), rtol=1e-3, atol=1e-3)


@each
def test_fitted_attributes(estimator):
    model = fitted(estimator)
    assert model.n_features_in_ == 64
    assert type(model.noise_variance_) in (float, np.ndarray)
    assert np.shape(model.noise_variance_) in ((), (model.n_features_in_,))
    assert np.all(model.noise_variance_ > 0)
    assert type(model.n_iter_) is int and model.n_iter_ == len(model.history_) > 0
    assert type(model.n_dead_) is int
    assert model.component_usage_.shape == (N_COMPONENTS,)
    assert model.n_dead_ == np.sum(model.component_usage_ == 0)
    usage = np.mean(model.transform(DIGITS[:200]) != 0, axis=0)
    assert_allclose(model.component_usage_, usage)
    assert model.component_usage_.max() > 0


@each
def test_history_is_a_plain_record_of_each_epoch(estimator):
    history = fitted(estimator).history_
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))
    for record in history:
        assert {"epoch", "loss", "duration"} <= set(record)
        assert type(record["loss"]) is float and np.isfinite(record["loss"])
        assert type(record["duration"]) is float and record["duration"] >= 0
        parts = [part for part in ("log_likelihood", "reconstruction") if part in record]
        assert len(parts) == 1
        assert all(type(value) is float for name, value in record.items() if name != "epoch")
    assert history[-1]["loss"] < history[0]["loss"]


@each
def test_fit_learns_something(estimator):
    assert explained(fitted(estimator), ROWS) > 0.3
    codes = fitted(estimator).transform(ROWS)
    assert 0.02 < np.mean(codes != 0) < 0.9


@each
def test_tags_keep_both_types(estimator):
    assert set(get_tags(estimator).transformer_tags.preserves_dtype) == {"float32", "float64"}


@each
def test_docstring_lists_every_parameter_and_fitted_attribute(estimator):
    text = inspect.getdoc(type(estimator))
    parameters, _, rest = text.partition("\nAttributes\n")
    attributes, _, _ = rest.partition("\nSee Also\n")
    for parameter in estimator.get_params():
        assert f"\n{parameter} : " in parameters, parameter
    model = fitted(estimator).set_params(max_iter=1).fit(pd.DataFrame(ROWS).add_prefix("pixel"))
    for attribute in vars(model):
        if attribute.endswith("_") and not attribute.startswith("_"):
            assert f"\n{attribute} : " in attributes, attribute


# ----------------------------------------------------------------- scikit-learn's conventions


@each
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_frames_in_and_out(estimator, frame):
    table = frame({f"pixel{i}": column for i, column in enumerate(DIGITS[:200].T)})
    if frame is pd.DataFrame:
        table.index += 5
    model = clone(estimator).set_params(max_iter=2).fit(table)
    plain = clone(estimator).set_params(max_iter=2).fit(DIGITS[:200])
    assert_array_equal(model.feature_names_in_, table.columns)
    # A frame stores each column separately: sums in another order differ by rounding.
    assert_allclose(model.components_, plain.components_, rtol=1e-3, atol=1e-5)
    array_codes = model.transform(table)
    assert type(array_codes) is np.ndarray

    model.set_output(transform=frame.__module__.split(".")[0])
    codes = model.transform(table)
    assert isinstance(codes, frame)
    assert list(codes.columns) == list(model.get_feature_names_out())
    assert codes.columns[0] == f"{type(model).__name__.lower()}0"
    assert_array_equal(codes, array_codes)
    if frame is pd.DataFrame:
        assert_array_equal(codes.index, table.index)
    assert_array_equal(model.inverse_transform(codes), model.inverse_transform(array_codes))
    assert isinstance(model.fit_transform(table), frame)


@each
def test_clone_and_parameters(estimator):
    params = estimator.get_params()
    twin = type(estimator)().set_params(**params)
    assert twin.get_params() == params
    before = copy.deepcopy(params)
    model = fitted(estimator)
    assert model.get_params() == before
    unfitted = clone(model)
    assert not [name for name in vars(unfitted) if name.endswith("_")]
    with pytest.raises(ValueError, match="Invalid parameter 'sparsity'"):
        model.set_params(sparsity=1)


@each_variant
def test_copies_give_the_same_results(estimator, tmp_path):
    model = fitted(estimator)
    joblib.dump(model, tmp_path / "model.joblib")
    for other in (
        pickle.loads(pickle.dumps(model)),
        joblib.load(tmp_path / "model.joblib"),
        copy.deepcopy(model),
    ):
        assert_same_answers(model, other, ROWS)
        assert_array_equal(other.sample(3), model.sample(3))
        assert other.history_ == model.history_


@each_variant
@each_dtype
def test_fit_transform_is_fit_then_transform(estimator, dtype):
    X = DIGITS[:200].astype(dtype)
    codes = clone(estimator).fit_transform(X)
    assert_allclose(codes, fitted(estimator, dtype).transform(X), rtol=1e-5, atol=1e-6)


@each
def test_y_is_ignored(estimator):
    model = clone(estimator).fit(DIGITS[:200], np.arange(200))
    assert_same_answers(model, fitted(estimator), ROWS)
    assert model.score(ROWS, np.arange(40)) == model.score(ROWS)


@each
def test_nothing_works_before_fit(estimator):
    model = clone(estimator)
    calls = ["transform", "inverse_transform", "score_samples", "score", "posterior"]
    for call in [*calls, "sample_posterior"]:
        with pytest.raises(NotFittedError):
            getattr(model, call)(ROWS)
    with pytest.raises(NotFittedError):
        model.sample()
    with pytest.raises(NotFittedError):
        model.get_feature_names_out()


@each
def test_input_is_left_alone(estimator):
    X = DIGITS.copy()
    model = clone(estimator).fit(X)
    answers(model, X)
    model.partial_fit(X)
    assert_array_equal(X, DIGITS)


# ------------------------------------------------------------------------- rows and draws


@each_variant
@each_dtype
def test_a_row_does_not_depend_on_other_rows(estimator, dtype):
    model = fitted(estimator, dtype)
    X = ROWS.astype(dtype)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == np.float32 else {"atol": 1e-6}
    whole = answers(model, X)
    order = np.random.RandomState(0).permutation(len(X))
    for pick in (order, order[:7], [3], np.repeat(order[:2], 30)):
        for key, part in answers(model, X[pick]).items():
            expected = whole[key][:, pick] if key == "sample_posterior" else whole[key][pick]
            assert_allclose(part, expected, err_msg=key, **tolerance)


@each_variant
def test_repeated_calls_give_the_same_results(estimator):
    model = fitted(estimator)
    assert_same_answers(model, model, ROWS)
    assert_array_equal(model.sample(5), model.sample(5))


@each_variant
@each_dtype
def test_score_is_the_mean_of_score_samples(estimator, dtype):
    model = fitted(estimator, dtype)
    X = ROWS.astype(dtype)
    assert model.score(X) == pytest.approx(np.mean(model.score_samples(X), dtype=float), rel=1e-12)


@each
def test_posterior_matches_its_draws(estimator):
    model, n_draws = fitted(estimator), 3000
    posterior = model.posterior(ROWS[:8])
    draws = model.sample_posterior(ROWS[:8], n_draws=n_draws)
    assert (posterior.std >= 0).all()
    assert (posterior.inclusion >= 0).all() and (posterior.inclusion <= 1).all()
    # 96 codes: five standard errors are exceeded by chance once in 20 000 runs.
    error = draws.mean(0) - posterior.mean
    assert (np.abs(error) <= 5 * posterior.std / n_draws**0.5 + 1e-9).all()
    p = posterior.inclusion
    frequency = np.mean(draws != 0, axis=0)
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / n_draws) + 5 / n_draws).all()
    common = p > 0.05
    square = (draws - posterior.mean) ** 2
    error = (square.mean(0) - posterior.std**2)[common]
    assert common.any()
    assert (np.abs(error) <= 6 * square.std(0)[common] / n_draws**0.5).all()


@each
def test_draws_of_a_longer_call_begin_with_those_of_a_shorter_one(estimator):
    model = fitted(estimator)
    draws = model.sample_posterior(ROWS, n_draws=11)
    for n_draws in (1, 2, 5):
        assert_array_equal(model.sample_posterior(ROWS, n_draws=n_draws), draws[:n_draws])


@each
def test_neither_rows_nor_draws_share_their_noise(estimator):
    model = fitted(estimator)
    posterior = model.posterior(ROWS[:6])
    noise = (model.sample_posterior(ROWS[:6], n_draws=300) - posterior.mean) / posterior.std
    of_rows = np.corrcoef(noise.swapaxes(0, 1).reshape(6, -1))
    of_draws = np.corrcoef(noise.reshape(300, -1)[:60])
    assert np.abs(of_rows[np.triu_indices(6, 1)]).max() < 0.3
    assert np.abs(of_draws[np.triu_indices(60, 1)]).mean() < 0.3


@each
@pytest.mark.parametrize("call", ["sample", "sample_posterior"])
@pytest.mark.parametrize("number", [0, -1, 1.5, "3", None])
def test_numbers_of_draws_are_checked(estimator, call, number):
    model = fitted(estimator)
    rows = () if call == "sample" else (ROWS,)
    with pytest.raises((TypeError, ValueError), match=r"n_samples|n_draws"):
        getattr(model, call)(*rows, number)


@each
def test_inverse_transform_checks_codes(estimator):
    model = fitted(estimator)
    codes = model.transform(ROWS)
    assert_array_equal(
        model.inverse_transform(model.transform(ROWS[:1])).shape, (1, model.n_features_in_)
    )
    with pytest.raises(ValueError, match=f"Z has {N_COMPONENTS - 1} columns"):
        model.inverse_transform(codes[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        model.inverse_transform(np.full_like(codes, np.nan))
    with pytest.raises(ValueError, match="2D"):
        model.inverse_transform(codes[0])


# ----------------------------------------------------------------------------- randomness


@each
@pytest.mark.parametrize("random_state", [0, None])
def test_global_generators_are_untouched(estimator, random_state):
    before = np.random.get_state(), torch.get_rng_state()
    model = clone(estimator).set_params(random_state=random_state, max_iter=2).fit(ROWS)
    model.partial_fit(ROWS)
    answers(model, ROWS)
    model.sample(3)
    for old, new in zip(before[0], np.random.get_state(), strict=True):
        assert_array_equal(old, new)
    assert torch.equal(before[1], torch.get_rng_state())


@each
@each_dtype
def test_results_depend_only_on_random_state(estimator, dtype):
    X = DIGITS[:200].astype(dtype)
    model = fitted(estimator, dtype)
    np.random.seed(1)
    torch.rand(1)
    again = clone(estimator).fit(X)
    assert_same_answers(model, again, X)
    assert_array_equal(again.components_, model.components_)
    assert_array_equal(again.sample(4), model.sample(4))
    from_instance = clone(estimator).set_params(random_state=np.random.RandomState(0)).fit(X)
    assert_array_equal(from_instance.components_, model.components_)
    other = clone(estimator).set_params(random_state=1).fit(X)
    assert not np.allclose(other.components_, model.components_)
    assert not np.allclose(other.sample_posterior(X), model.sample_posterior(X))


@each
def test_without_random_state_each_fit_differs(estimator):
    estimator = clone(estimator).set_params(random_state=None, max_iter=2)
    model, other = clone(estimator).fit(ROWS), clone(estimator).fit(ROWS)
    assert not np.allclose(model.components_, other.components_)
    assert not np.allclose(model.sample(2), model.sample(2))
    assert_array_equal(model.sample_posterior(ROWS), model.sample_posterior(ROWS))


# ----------------------------------------------------------------------- unusual valid input


def read_only(X, _):
    X = X.copy()
    X.flags.writeable = False
    return X


def memory_map(X, path):
    np.save(path / "X.npy", X)
    return np.load(path / "X.npy", mmap_mode="r")


LAYOUTS = {
    "read_only": read_only,
    "memory_map": memory_map,
    "fortran": lambda X, _: np.asfortranarray(X),
    "every_other": lambda X, _: np.repeat(np.repeat(X, 2, 0), 2, 1)[::2, ::2],
    "reversed": lambda X, _: X[::-1, ::-1].copy()[::-1, ::-1],
    "list": lambda X, _: X.tolist(),
}


@each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(estimator, layout, tmp_path):
    X = LAYOUTS[layout](DIGITS[:200], tmp_path)
    model = fitted(estimator)
    # Sums in another order differ by rounding.
    assert_same_answers(model, model, DIGITS[:200], X, rtol=1e-9, atol=1e-9)
    short = clone(estimator).set_params(max_iter=2)
    plain, other = clone(short).fit(DIGITS[:200]), clone(short).fit(X)
    assert_allclose(other.components_, plain.components_, rtol=1e-3, atol=1e-5)


SHAPES = {
    "one_row": (ROWS[:1], {}),
    "two_rows": (ROWS[:2], {}),
    "one_feature": (ROWS[:, 20:21], {"n_components": 2}),
    "one_component": (ROWS, {"n_components": 1}),
    "more_components_than_features": (ROWS[:, 20:25], {"n_components": 9}),
    "more_components_than_rows": (ROWS[:3], {"n_components": 9}),
    "as_many_components_as_features": (ROWS[:, 20:28], {"n_components": None}),
    "constant_columns": (np.where(np.arange(64) % 2, ROWS, 3.1), {}),
    "constant": (np.full((9, 5), 0.1), {}),
    "zero": (np.zeros((9, 5)), {}),
    "equal_rows": (np.repeat(ROWS[:1], 9, axis=0), {}),
}


@each
@pytest.mark.parametrize("shape", SHAPES)
@each_dtype
def test_odd_shapes(estimator, shape, dtype):
    X, params = SHAPES[shape]
    X = X.astype(dtype)
    model = clone(estimator).set_params(max_iter=2, **params).fit(X)
    n_components = model.n_components or X.shape[1]
    assert model.components_.shape == (n_components, X.shape[1])
    for key, value in answers(model, X).items():
        assert np.isfinite(value).all(), key
    assert np.isfinite(model.sample(3)).all()
    # The noise variance has a floor, so the density is bounded.
    assert np.all(model.noise_variance_ > 0) and np.isfinite(model.score(X))
    size = np.abs(X).max() or 1.0
    assert np.abs(model.inverse_transform(model.transform(X))).max() < 10 * size


@each
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10, 1e-3, 1e3])
@each_dtype
def test_unit_of_the_data_does_not_matter(estimator, scale, dtype):
    X = DIGITS[:200].astype(dtype)
    in_units = {
        name: scale * estimator.get_params()[name]
        for name in IN_UNITS_OF_X.get(type(estimator), ())
    }
    model = fitted(estimator, dtype)
    scaled = clone(estimator).set_params(**in_units).fit((X * scale).astype(dtype))
    # A power of two changes no digit; otherwise training amplifies rounding errors.
    exact = np.log2(scale) % 1 == 0 and dtype == np.float64
    assert explained(scaled, X * scale) == pytest.approx(explained(model, X), abs=0.01)
    shift = X.shape[1] * np.log(scale)
    assert scaled.score(X * scale) + shift == pytest.approx(model.score(X), abs=0.3)
    assert scaled.noise_variance_ == pytest.approx(scale**2 * model.noise_variance_, rel=0.02)
    codes, scaled_codes = model.transform(X), scaled.transform((X * scale).astype(dtype))
    if in_units:
        # Atoms have unit norm, and codes the unit of X.
        assert_allclose(scaled.components_, model.components_, rtol=0.05, atol=0.05)
        scaled_codes = scaled_codes / scale
    elif exact:
        assert_allclose(scaled.components_, scale * model.components_, rtol=1e-6)
    if exact:
        assert_allclose(scaled_codes, codes, rtol=1e-5, atol=1e-5)
    assert np.corrcoef(scaled_codes.ravel(), codes.ravel())[0, 1] > 0.99


# ------------------------------------------------------------------------ further training


@each
def test_partial_fit_continues(estimator):
    model = clone(estimator)
    for number in range(1, 4):
        assert model.partial_fit(DIGITS[:100]) is model
        assert model.n_iter_ == len(model.history_) == number
        assert model.history_[-1]["epoch"] == number
    first = model.components_.copy()
    model.partial_fit(ROWS)
    assert not np.array_equal(first, model.components_)
    assert model.components_.shape == (N_COMPONENTS, 64)
    with pytest.raises(ValueError, match="X has 63 features"):
        model.partial_fit(ROWS[:, 1:])
    assert model.n_iter_ == 4
    # A single row teaches little, and nothing is lost.
    score = model.score(DIGITS)
    model.partial_fit(ROWS[:1])
    assert model.score(DIGITS) == pytest.approx(score, abs=2)
    assert model.component_usage_.shape == (N_COMPONENTS,)


@each
def test_partial_fit_repeats_with_the_same_random_state(estimator):
    models = [clone(estimator), clone(estimator)]
    for model in models:
        for start in range(0, 200, 50):
            model.partial_fit(DIGITS[start : start + 50])
    assert_same_answers(*models, ROWS)


@each
def test_partial_fit_after_pickling_is_the_same(estimator):
    model = fitted(estimator)
    other = pickle.loads(pickle.dumps(model))
    assert_same_answers(model.partial_fit(ROWS), other.partial_fit(ROWS), ROWS)


@each
def test_fit_forgets_an_earlier_fit(estimator):
    model = fitted(estimator)
    model.fit(ROWS[:, :30])
    assert model.n_features_in_ == 30
    assert_same_answers(model, clone(estimator).fit(ROWS[:, :30]), ROWS[:, :30])


# ------------------------------------------------------------------------------- bad input

BAD_ROWS = {
    "infinite": (np.where(DIGITS == 0, np.inf, DIGITS), "infinity"),
    "nothing_observed": (np.where(np.arange(len(DIGITS))[:, None] == 3, np.nan, DIGITS), "NaN"),
    "one_dimension": (DIGITS[0], "2D"),
    "three_dimensions": (DIGITS.reshape(-1, 8, 8), "3"),
    "no_rows": (DIGITS[:0], "0 sample"),
    "no_features": (DIGITS[:, :0], "0 feature"),
    "words": (np.full((4, 64), "a"), "could not convert|dtype"),
}


@each
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_bad_rows_are_refused_and_nothing_is_lost(estimator, bad):
    X, message = BAD_ROWS[bad]
    for call in ("fit", "fit_transform", "partial_fit"):
        with pytest.raises((TypeError, ValueError), match=message):
            getattr(clone(estimator), call)(X)
    model = fitted(estimator)
    before = answers(model, ROWS)
    calls = ("transform", "score_samples", "score", "posterior", "sample_posterior")
    for call in (*calls, "fit", "partial_fit"):
        with pytest.raises((TypeError, ValueError), match=message):
            getattr(model, call)(X)
    for key, value in answers(model, ROWS).items():
        assert_array_equal(value, before[key])
    assert model.n_iter_ == len(model.history_)


@each
def test_wrong_number_of_features(estimator):
    model = fitted(estimator)
    calls = ("transform", "score_samples", "score", "posterior", "sample_posterior", "partial_fit")
    for call in calls:
        with pytest.raises(ValueError, match=r"X has 10 features, but .* is expecting 64"):
            getattr(model, call)(DIGITS[:, :10])


BAD_PARAMETERS = [
    ("n_components", 0),
    ("n_components", 2.5),
    ("n_components", "all"),
    ("max_iter", -1),
    ("max_iter", "long"),
    ("tol", -1.0),
    ("batch_size", 0),
    ("random_state", "seed"),
    ("random_state", -1),
    ("verbose", "loud"),
    ("device", 0),
    ("device", None),
]


@each
@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS)
def test_bad_parameters_are_named(estimator, name, value):
    model = clone(estimator).set_params(**{name: value})
    for call in ("fit", "partial_fit", "fit_transform"):
        with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter"):
            getattr(model, call)(ROWS)


@each
@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta", "", "cuda:x"])
def test_absent_devices_are_named(estimator, device):
    with pytest.raises(ValueError, match="device"):
        clone(estimator).set_params(device=device).fit(ROWS)
    model = fitted(estimator).set_params(device=device)
    with pytest.raises(ValueError, match="device"):
        model.score(ROWS)


@each
def test_cpu_is_a_device(estimator):
    model = clone(estimator).set_params(device="cpu").fit(DIGITS[:200])
    assert explained(model, ROWS) == pytest.approx(explained(fitted(estimator), ROWS), abs=0.05)
