"""Rows with a scale of their own: of all they add to the intercept, or of their noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
from linear_problems import CONVERGED, covariance, draw_rows, log_prior, random_model
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from sklearn_vsc.solvers.linear_model.maximisation import best_freedom, contrast_levels
from sklearn_vsc.solvers.linear_model.noise_metric import NoiseMetric
from sklearn_vsc.solvers.linear_model.parameters import Contrasts
from sklearn_vsc.solvers.linear_model.row_posteriors import (
    best_contrast,
    expected_log_prob,
    infer,
    row_contrast,
)

each_freedom = pytest.mark.parametrize("freedom", [math.inf, 4.0])


def _noise_law(model):
    zero, full = np.zeros(len(model.noise)), covariance(model)
    if math.isinf(model.freedom):
        return stats.multivariate_normal(zero, full)
    return stats.multivariate_t(zero, full, df=model.freedom)


def _evidence(model, row):
    """Log p(x) of one code, summed over contrasts, by quadrature."""
    law, density, terms = _noise_law(model), model.density[0], []
    for level, share in zip(model.contrasts.levels, model.contrasts.shares, strict=True):
        scaled = (row - model.intercept) / level

        def joint(z, scaled=scaled):
            prior = math.exp(float(log_prior(model.slab, density, z)))
            return prior * law.pdf(scaled - z * model.atoms[0])

        on = integrate.quad(joint, -30, 30, points=[0], limit=400, epsabs=1e-14, epsrel=1e-9)[0]
        inside = math.log((1 - density) * law.pdf(scaled) + density * on)
        terms.append(math.log(share) + inside - len(row) * math.log(level))
    return float(logsumexp(terms))


# ------------------------------------------------------------------ contrasts


@pytest.mark.parametrize("slab", ["laplace", "gaussian", "thresholded"])
@pytest.mark.parametrize("n_levels", [1, 5, 16])
def test_bound_over_contrasts_is_below_the_evidence(slab, n_levels):
    rng = np.random.default_rng(3)
    shares = rng.random(n_levels) + 0.2
    contrasts = Contrasts(np.exp(np.linspace(-1.6, 1.6, n_levels + 2)[1:-1]), shares / shares.sum())
    model = replace(random_model(1, 4, 1, slab), contrasts=contrasts)
    rows = draw_rows(model, 5, contrast=np.array([0.3, 0.7, 1.0, 1.5, 6.0]))
    found = infer(model, rows, CONVERGED)
    gap = np.array([_evidence(model, row) for row in rows]) - found.bound
    assert (gap > -1e-7).all()
    # With few levels all enter, and the posterior of one code is exact at each.
    assert gap.max() < (1e-7 if n_levels <= 7 else 0.02)
    assert np.isin(found.contrast, contrasts.levels).all()


def test_student_t_rows_with_contrasts():
    contrasts = Contrasts(np.exp([-0.5, 0.0, 0.5]), np.array([0.3, 0.4, 0.3]))
    model = replace(random_model(1, 4, 1, freedom=4.0), contrasts=contrasts)
    rows = draw_rows(model, 5, contrast=np.array([0.5, 0.7, 1.0, 1.5, 2.0]))
    gap = np.array([_evidence(model, row) for row in rows]) - infer(model, rows, CONVERGED).bound
    assert gap.min() > -1e-7 and gap.max() < 0.6


def test_levels_without_a_share_are_left_out():
    contrasts = Contrasts(np.exp([-0.5, 0.0, 0.5]), np.array([0.0, 1.0, 0.0]))
    model = random_model(2, 5)
    rows = draw_rows(model, 6)
    found = infer(replace(model, contrasts=contrasts), rows, CONVERGED)
    assert_array_equal(found.contrast, 1)
    assert_allclose(found.bound, infer(model, rows, CONVERGED).bound, rtol=1e-7)


@each_freedom
def test_a_known_contrast_is_that_of_the_scaled_row(freedom):
    model = random_model(3, 6, 1, freedom=freedom)
    contrast = np.linspace(0.2, 3, 8)
    rows = draw_rows(model, 8, contrast=contrast)
    found = infer(model, rows, CONVERGED, contrast=contrast)
    scaled = model.intercept + (rows - model.intercept) / contrast[:, None]
    plain = infer(model, scaled, CONVERGED)
    assert_allclose(found.bound, plain.bound - 6 * np.log(contrast), rtol=1e-9)
    assert_allclose(found.factors.mean, plain.factors.mean, rtol=1e-9)
    assert_array_equal(found.contrast, contrast)


@each_freedom
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_best_contrast_is_stationary(freedom, missing):
    model = random_model(3, 6, 1, freedom=freedom)
    contrast = np.linspace(0.2, 3, 8)
    rows = draw_rows(model, 8, contrast=contrast, missing=missing)
    found = infer(model, rows, CONVERGED, contrast=contrast)
    full = covariance(model)
    for i, row in enumerate(rows):
        seen = ~np.isnan(row)
        metric = NoiseMetric(model, np.dtype(float), seen)
        residual = (row - model.intercept)[seen]
        best = best_contrast(metric, residual[None], found.rows(np.array([i])))[0]
        inverse = np.linalg.inv(full[np.ix_(seen, seen)])
        fitted = found.factors.mean[i] @ model.atoms[:, seen]
        weight, n_seen = found.factors.weight[i], seen.sum()

        def loss(log_contrast, left=residual, fitted=fitted, inverse=inverse, w=weight, n=n_seen):
            error = left * math.exp(-log_contrast) - fitted
            return n * log_contrast + 0.5 * w * error @ inverse @ error

        options = {"bounds": (-6, 4), "method": "bounded", "options": {"xatol": 1e-10}}
        assert best == pytest.approx(math.exp(minimize_scalar(loss, **options).x), rel=1e-5)


def test_first_contrast_is_the_size_of_the_row():
    model = random_model(3, 6, 1)
    metric = NoiseMetric(model, np.dtype(float))
    residual = draw_rows(model, 4000) - model.intercept
    found = row_contrast(metric, residual)
    assert_allclose(row_contrast(metric, 7 * residual), 7 * found)
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(6), covariance(model), 4000)
    bare = NoiseMetric(replace(model, atoms=np.zeros((3, 6))), np.dtype(float))
    assert np.mean(row_contrast(bare, noise) ** 2) == pytest.approx(1, rel=0.05)


def test_a_row_that_equals_the_intercept_has_a_contrast_above_zero():
    model = random_model(3, 6)
    metric, zero = NoiseMetric(model, np.dtype(float)), np.zeros((1, 6))
    assert row_contrast(metric, zero)[0] > 1e-4
    found = infer(model, model.intercept[None], CONVERGED)
    assert best_contrast(metric, zero, found)[0] > 1e-4
    none = NoiseMetric(model, np.dtype(float), np.zeros(6, bool))
    assert_array_equal(row_contrast(none, np.empty((2, 0))), 1)


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_contrast_levels_are_a_distribution_over_all_rows(spread):
    contrast = np.exp(1.5 + spread * np.random.default_rng(0).standard_normal(3000))
    found = contrast_levels(contrast)
    assert found.shares.sum() == pytest.approx(1, rel=1e-12)
    assert (found.shares > 0).all()
    steps = np.diff(np.log(found.levels))
    assert_allclose(steps, steps[0], rtol=1e-9)
    assert found.levels[0] <= np.quantile(contrast, 0.001) * 1.001
    assert found.levels[-1] >= np.quantile(contrast, 0.999) * 0.999
    # Where rows are, there is the mass.
    mean = found.shares @ np.log(found.levels)
    assert mean == pytest.approx(np.log(contrast).mean(), abs=0.06 + 0.02 * spread)
    assert contrast_levels(contrast[:1]).shares.sum() == pytest.approx(1)


# ------------------------------------------------------------------ Student t rows


@pytest.mark.parametrize("freedom", [0.8, 3.0, 40.0])
def test_the_scale_of_a_row_is_integrated_out(freedom):
    """For a certain error the bound is the integral over the scale."""
    error, log_det, n = np.array([0.1, 4.0, 60.0]), -1.3, 5
    found = expected_log_prob(error, log_det, n, freedom)
    scale = stats.gamma(freedom / 2, scale=2 / freedom)
    for e, bound in zip(error, found, strict=True):

        def joint(log_u, e=e):
            u = math.exp(log_u)
            normal = 0.5 * n * (log_u - math.log(2 * math.pi)) - 0.5 * (log_det + u * e)
            return scale.pdf(u) * u * math.exp(normal)

        integral = integrate.quad(joint, -40, 8, points=[-6, -2, 0, 2], limit=400)[0]
        assert bound == pytest.approx(math.log(integral), rel=1e-6)
    normal = expected_log_prob(error, log_det, n, math.inf)
    assert_allclose(expected_log_prob(error, log_det, n, 1e9), normal, rtol=1e-6)


def _errors(freedom, n_features, scale, seed=0):
    """Squared distances of Student t rows, in the metric of noise of the wrong scale."""
    rng = np.random.default_rng(seed)
    found = scale * rng.chisquare(n_features)
    if math.isinf(freedom):
        return found
    return found * freedom / rng.chisquare(freedom, len(n_features))


@pytest.mark.parametrize("freedom", [3.0, 5.0, 30.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_best_freedom_recovers_freedom_and_scale(freedom, scale):
    n_features = np.random.default_rng(1).integers(10, 40, 20_000)
    error = _errors(freedom, n_features, scale)
    for start in (2.0, 50.0):
        found, found_scale = best_freedom(error, n_features, start)
        assert found == pytest.approx(freedom, rel=0.1)
        assert found_scale == pytest.approx(scale, rel=0.03)
    # Then the weights of rows have a mean of one.
    weight = (found + n_features) / (found + error / found_scale)
    assert weight.mean() == pytest.approx(1, rel=1e-3)


def test_best_freedom_of_normal_noise_is_large_and_within_bounds():
    n_features = np.full(5000, 20)
    freedom, scale = best_freedom(_errors(math.inf, n_features, 2.0), n_features, 5.0)
    assert 100 < freedom <= 1e4 * (1 + 1e-9)
    assert scale == pytest.approx(2, rel=0.03)
    heavy = np.exp(40 * np.random.default_rng(0).standard_normal(500))
    freedom, scale = best_freedom(heavy, n_features[:500], 5.0)
    assert freedom == pytest.approx(2.0) and math.isfinite(scale)
    assert all(map(math.isfinite, best_freedom(np.zeros(5), n_features[:5], 5.0)))


def test_best_freedom_with_a_fixed_scale():
    n_features = np.full(20_000, 20)
    freedom, scale = best_freedom(_errors(5.0, n_features, 1.0), n_features, 20.0, fixed_scale=True)
    assert scale == 1 and freedom == pytest.approx(5, rel=0.1)


def test_rows_count_as_often_as_their_sample_weight():
    n_features = np.full(400, 15)
    error = _errors(4.0, n_features, 1.0)
    counts = np.random.default_rng(2).integers(0, 4, 400)
    weighted = best_freedom(error, n_features, 8.0, counts.astype(float))
    repeated = best_freedom(np.repeat(error, counts), np.repeat(n_features, counts), 8.0)
    assert_allclose(weighted, repeated, rtol=1e-3)
