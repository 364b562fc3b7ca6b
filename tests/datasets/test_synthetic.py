import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc.datasets import make_bars, make_sparse_coded

# --- make_sparse_coded


def test_sparse_coded_is_linear_with_unit_atoms():
    X, dictionary, codes = make_sparse_coded(200, 30, 12, random_state=0)
    assert (X.shape, dictionary.shape, codes.shape) == ((200, 12), (30, 12), (200, 30))
    assert_allclose(np.linalg.norm(dictionary, axis=1), 1.0)
    assert_array_equal(X, codes @ dictionary)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 1.0])
def test_sparse_coded_density_is_bernoulli(density):
    _, _, codes = make_sparse_coded(5000, 20, 5, density=density, random_state=0)
    active = codes != 0
    n = active.size
    assert abs(active.mean() - density) <= 4 * np.sqrt(density * (1 - density) / n)
    # Independence: the number of active codes has the variance of a binomial distribution.
    assert_allclose(active.sum(axis=1).var(), 20 * density * (1 - density), rtol=0.1)


@pytest.mark.parametrize(
    ("distribution", "absolute", "square"),
    [("laplace", 1, 2), ("gaussian", np.sqrt(2 / np.pi), 1), ("uniform", 1 / 2, 1 / 3)],
)
@pytest.mark.parametrize("positive", [False, True])
def test_codes_follow_the_chosen_distribution(distribution, absolute, square, positive):
    _, _, codes = make_sparse_coded(
        20_000,
        density=0.2,
        code_distribution=distribution,
        code_scale=3.0,
        positive_code=positive,
        random_state=0,
    )
    values = codes[codes != 0]
    assert_allclose(np.abs(values).mean(), 3 * absolute, rtol=0.02)
    assert_allclose((values**2).mean(), 9 * square, rtol=0.04)
    assert_allclose((values > 0).mean(), 1.0 if positive else 0.5, atol=0.01)


def test_sparse_coded_noise_is_a_standard_deviation():
    X, dictionary, codes = make_sparse_coded(5000, noise=0.7, random_state=0)
    residual = X - codes @ dictionary
    assert_allclose(residual.std(), 0.7, rtol=0.02)
    clean, same_dictionary, same_codes = make_sparse_coded(5000, random_state=0)
    assert_array_equal(dictionary, same_dictionary)
    assert_array_equal(codes, same_codes)
    assert_array_equal(clean, codes @ dictionary)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "'n_samples' parameter must be a whole number of at least 1; got 0"),
        ({"n_components": -1}, "'n_components' parameter must be"),
        ({"n_features": 3.0}, "'n_features' parameter must be"),
        ({"density": 1.1}, r"'density' parameter must be a finite number from 0 to 1; got 1\.1"),
        ({"density": np.nan}, "'density' parameter must be"),
        ({"density": None}, "'density' parameter must be"),
        ({"code_distribution": "cauchy"}, "'code_distribution' parameter must be one of 'laplace'"),
        ({"code_scale": 0}, "'code_scale' parameter must be a finite number above 0"),
        ({"code_scale": np.inf}, "'code_scale' parameter must be"),
        ({"noise": -0.1}, "'noise' parameter must be"),
    ],
)
def test_sparse_coded_bad_parameters_raise_an_error(params, message):
    with pytest.raises(ValueError, match=message):
        make_sparse_coded(**params)


# --- make_bars


def test_bars_are_all_rows_and_columns():
    _, components, _ = make_bars(1, size=5)
    images = components.reshape(10, 5, 5)
    for k in range(5):
        for bar in (images[k], images[5 + k].T):
            assert_array_equal(bar[k], 1)
            assert bar.sum() == 5


def test_bars_are_combined_as_asked():
    X, components, codes = make_bars(300, size=4, random_state=0)
    assert (X.shape, components.shape, codes.shape) == ((300, 16), (8, 16), (300, 8))
    drawn = np.where(codes[:, :, None] > 0, components, 0).max(axis=1)
    assert_array_equal(X, drawn)
    total, _, same_codes = make_bars(300, size=4, combine="sum", random_state=0)
    assert_array_equal(codes, same_codes)
    assert_array_equal(total, codes @ components)
    assert total.max() == 2


@pytest.mark.parametrize(("density", "expected"), [(None, 1 / 8), (0.3, 0.3)])
def test_bars_appear_with_the_given_density(density, expected):
    _, _, codes = make_bars(3000, density=density, random_state=0)
    assert set(np.unique(codes)) == {0.0, 1.0}
    assert abs(codes.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / codes.size)


def test_bars_noise_is_a_standard_deviation():
    clean, _, _ = make_bars(2000, random_state=0)
    noisy, _, _ = make_bars(2000, noise=0.2, random_state=0)
    assert_allclose((noisy - clean).std(), 0.2, rtol=0.02)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": None}, "'n_samples' parameter must be"),
        ({"size": 0}, "'size' parameter must be"),
        ({"density": -1}, "'density' parameter must be"),
        ({"combine": "max"}, "'combine' parameter must be one of 'or', 'sum'; got 'max'"),
        ({"noise": "low"}, "'noise' parameter must be"),
    ],
)
def test_bars_bad_parameters_raise_an_error(params, message):
    with pytest.raises(ValueError, match=message):
        make_bars(**params)
