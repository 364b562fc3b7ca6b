"""Slabs: their densities, their moments, and the most likely density and scale."""

import math

import numpy as np
import pytest
from linear_problems import log_prior
from numpy.testing import assert_allclose
from scipy import integrate
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from sklearn_vsc.solvers.linear_model.parameters import MOST_DENSITY, Slab

each_slab = pytest.mark.parametrize("slab", ["laplace", "gaussian", "thresholded"])
each_sign = pytest.mark.parametrize("positive", [False, True], ids=["two-sided", "positive"])
each_density = pytest.mark.parametrize("density", [1e-6, 0.02, 0.4, 0.999])


def _integral(function, positive):
    low = 0 if positive else -40
    found = integrate.quad(function, low, 40, points=[0], limit=300, epsabs=1e-13, epsrel=1e-11)
    return found[0]


@each_slab
@each_sign
@each_density
def test_priors_are_densities_with_the_moments_they_claim(slab, positive, density):
    law, share = Slab(slab, 0.8, positive), np.array([density])
    priors = law.priors(share)
    assert priors.logit[0] == pytest.approx(math.log(density / (1 - density)))
    assert priors.positive == positive

    def at(z):
        quadratic = priors.rate[0] * abs(z) + 0.5 * priors.precision[0] * z**2
        return math.exp(priors.log_constant[0] - quadratic)

    for z in (1e-9, 0.3, 2.0):
        assert at(z) == pytest.approx(math.exp(log_prior(law, density, z).item()), rel=1e-9)
    assert _integral(at, positive) == pytest.approx(1, rel=1e-9)
    size = _integral(lambda z: at(z) * abs(z), positive)
    square = _integral(lambda z: at(z) * z**2, positive)
    assert law.mean_size(share)[0] == pytest.approx(size, rel=1e-8)
    assert law.mean_square(share)[0] == pytest.approx(square, rel=1e-8)


def test_a_threshold_leaves_the_share_it_is_for():
    density = np.array([1e-6, 0.1, 0.7])
    threshold = Slab("thresholded", 0.8).threshold(density)
    assert_allclose(2 * ndtr(-threshold / 0.8), density, rtol=1e-9)


@each_slab
def test_densities_of_zero_and_one_give_numbers(slab):
    law, density = Slab(slab), np.array([0.0, 1.0])
    values = [*vars(law.priors(density)).values(), law.mean_size(density), law.mean_square(density)]
    assert all(np.isfinite(v).all() for v in values)


def _expected_log_prior(law, density, n_codes, inclusion, size, square):
    """Expected log prior of codes, from their sums; two-sided slabs."""
    scale = law.scale
    found = (n_codes - inclusion) * np.log1p(-density) + inclusion * np.log(density)
    if law.name == "laplace":
        return found - inclusion * math.log(2 * scale) - size / scale
    threshold = law.threshold(np.asarray(density)) if law.name == "thresholded" else 0.0
    found -= 0.5 * (square + 2 * size * threshold + inclusion * threshold**2) / scale**2
    found -= inclusion * math.log(math.sqrt(2 * math.pi) * scale)
    return found - (inclusion * np.log(density) if law.name == "thresholded" else 0.0)


# Number of codes, of those not zero, and their sums of sizes and squares.
SUMS = [(1000.0, 120.0, 70.0, 90.0), (50.0, 49.5, 90.0, 200.0), (400.0, 1.5, 0.1, 0.02)]


@each_slab
@pytest.mark.parametrize("sums", SUMS)
def test_the_best_density_has_the_highest_likelihood(slab, sums):
    law = Slab(slab, 0.8)
    n_codes, inclusion, size, square = sums
    best = float(law.best_density(n_codes, np.asarray(inclusion), np.asarray(size)))
    at = [
        _expected_log_prior(law, density, n_codes, inclusion, size, square)
        for density in (best, best * 0.98, best * 1.02 if best < 0.98 else best * 0.99)
    ]
    assert at[0] > max(at[1:])
    if slab != "thresholded":
        assert best == pytest.approx(inclusion / n_codes)


def test_the_best_density_of_thresholded_draws_is_theirs():
    draws = np.abs(np.random.default_rng(0).standard_normal(200_000)) - 1.3
    on = np.maximum(draws, 0)
    found = Slab("thresholded").best_density(
        200_000.0, np.sum(draws > 0.0, keepdims=True), on.sum()
    )
    assert_allclose(found, 2 * ndtr(-1.3), rtol=0.01)


def test_the_best_density_where_all_or_none_are_zero():
    law = Slab("thresholded")
    density = law.best_density(10.0, np.array([0.0, 10.0]), np.array([0.0, 8.0]))
    assert density[0] < 1e-6 and density[1] > MOST_DENSITY


@each_slab
@pytest.mark.parametrize("sums", SUMS)
def test_growth_is_the_most_likely_scale(slab, sums):
    law, density = Slab(slab, 0.8), np.array([0.1])
    _, inclusion, size, square = sums
    growth = law.growth(density, *(np.array([v]) for v in (inclusion, size, square)))[0]
    prior = [1.0, law.mean_size(density)[0], law.mean_square(density)[0]]
    n, size, square = np.add((inclusion, size, square), prior)

    def loss(factor):
        # The threshold grows with the scale.
        grown = Slab(slab, 0.8 * factor)
        return -_expected_log_prior(grown, 0.1, n, n, size, square)

    found = minimize_scalar(loss, bounds=(0.01, 20), options={"xatol": 1e-9}, method="bounded")
    assert growth == pytest.approx(found.x, rel=1e-5)


@each_slab
@each_sign
def test_codes_as_the_prior_has_them_do_not_grow(slab, positive):
    law, density = Slab(slab, 0.8, positive), np.array([0.01, 0.3])
    n = np.array([1e-9, 1000.0])
    growth = law.growth(density, n, n * law.mean_size(density), n * law.mean_square(density))
    assert_allclose(growth, 1, rtol=1e-9)
