"""Rows with missing entries: their posteriors, and what learning sums up of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from linear_problems import CONVERGED, covariance, draw_rows, learned, random_model
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc.solvers.linear_model.maximisation import maximise
from sklearn_vsc.solvers.linear_model.parameters import Contrasts
from sklearn_vsc.solvers.linear_model.row_posteriors import infer, same_observed
from sklearn_vsc.solvers.linear_model.sums import sums_of_rows

N_ROWS = 40

each_dense = pytest.mark.parametrize("n_dense", [0, 2])
each_freedom = pytest.mark.parametrize("freedom", [math.inf, 4.0])


def _rows(model, seed=1, missing=0.35):
    rows = draw_rows(model, N_ROWS, seed=seed, missing=missing)
    rows[0] = draw_rows(model, 1, seed=9)[0]
    rows[1:3, 2] = np.nan
    return rows


def _restricted(model, seen):
    """The model of the observed features alone."""
    return replace(
        model,
        atoms=model.atoms[:, seen],
        intercept=model.intercept[seen],
        noise=model.noise[seen],
        dense=model.dense[:, seen],
    )


# ------------------------------------------------------------------ posteriors


@each_dense
@each_freedom
@pytest.mark.parametrize("contrast", [None, "known", "summed"])
def test_a_row_has_the_posterior_of_the_model_of_its_observed_features(n_dense, freedom, contrast):
    model = random_model(n_dense=n_dense, freedom=freedom)
    if contrast == "summed":
        levels = np.exp(np.linspace(-1, 1, 12))
        model = replace(model, contrasts=Contrasts(levels, np.full(12, 1 / 12)))
    rows = _rows(model)
    known = np.linspace(0.5, 2, N_ROWS) if contrast == "known" else None
    found = infer(model, rows, CONVERGED, contrast=known)
    for i, row in enumerate(rows):
        seen = ~np.isnan(row)
        given = None if known is None else known[i : i + 1]
        alone = infer(_restricted(model, seen), row[None, seen], CONVERGED, contrast=given)
        assert found.bound[i] == pytest.approx(alone.bound[0], rel=1e-8)
        assert found.contrast[i] == alone.contrast[0]
        for name, values in vars(alone.factors).items():
            assert_allclose(getattr(found.factors, name)[i], values[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("has_contrast", [False, True])
def test_a_row_with_nothing_observed_has_the_prior(has_contrast):
    model = random_model(n_dense=1)
    if has_contrast:
        model = replace(model, contrasts=Contrasts(np.array([0.5, 1.0]), np.array([0.4, 0.6])))
    found = infer(model, np.full((2, 6), np.nan), CONVERGED)
    assert_allclose(found.factors.inclusion, [model.density] * 2, rtol=1e-8)
    assert_allclose(found.bound, 0, atol=1e-9)
    assert_allclose(found.factors.kl, 0, atol=1e-9)


def test_rows_are_grouped_by_what_is_observed():
    rows = _rows(random_model())
    rows[7] = np.nan
    groups = list(same_observed(rows))
    numbers = np.concatenate([group for group, _ in groups])
    assert_array_equal(np.sort(numbers), np.arange(N_ROWS))
    for group, observed in groups:
        seen = ~np.isnan(rows[group])
        assert_array_equal(
            seen, np.broadcast_to(True if observed is None else observed, seen.shape)
        )
    kinds = {row.tobytes() for row in np.isnan(rows)}
    assert len(groups) == len(kinds)
    assert [observed for _, observed in same_observed(rows[:1])] == [None]


# ------------------------------------------------------------------ sums


def _completed(model, row, mean, variance, weight, contrast):
    """Moments of a row over its contrast, and of its codes, by conditional normals.

    Returns E[z' y], E[y' y] for y = row / contrast, where the missing entries given the codes and
    the observed entries are normal.
    """
    full, seen = covariance(model), ~np.isnan(row)
    gap = ~seen
    n_features = len(row)
    # y = offset + z slope + noise, with noise in the missing entries alone.
    slope, offset = np.zeros((len(mean), n_features)), model.intercept / contrast
    spread = np.zeros((n_features, n_features))
    offset = np.where(seen, row / contrast, offset)
    if gap.any():
        passed = np.zeros((0, gap.sum()))
        if seen.any():
            passed = np.linalg.solve(full[np.ix_(seen, seen)], full[np.ix_(seen, gap)])
        residual = (row[seen] - model.intercept[seen]) / contrast
        slope[:, gap] = model.atoms[:, gap] - model.atoms[:, seen] @ passed
        offset[gap] += residual @ passed
        cut = full[np.ix_(gap, gap)] - full[np.ix_(gap, seen)] @ passed
        spread[np.ix_(gap, gap)] = cut / weight
    second = np.outer(mean, mean) + np.diag(variance)
    cross = np.outer(mean, offset) + second @ slope
    square = np.outer(offset, offset) + slope.T @ second @ slope + spread
    both = np.outer(offset, mean @ slope)
    return cross, square + both + both.T, offset + mean @ slope


@each_dense
@each_freedom
@pytest.mark.parametrize("has_contrast", [False, True])
def test_sums_are_expectations_over_missing_entries(n_dense, freedom, has_contrast):
    model = random_model(n_dense=n_dense, freedom=freedom)
    rows = _rows(model)
    rows[5] = np.nan
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 3, N_ROWS).astype(float)
    contrast = np.exp(rng.standard_normal(N_ROWS)) if has_contrast else None
    found = infer(model, rows, CONVERGED, contrast=contrast)
    sums = sums_of_rows(model, rows, found, counts)
    factors, n_components = found.factors, len(model.atoms)
    data, squares = np.zeros((n_components + 1, 6)), np.zeros((6, 6))
    design, variances = np.zeros((n_components + 1,) * 2), np.zeros(n_components)
    for i, row in enumerate(rows):
        variance = factors.second[i] - factors.mean[i] ** 2
        given = (factors.mean[i], variance, factors.weight[i], found.contrast[i])
        cross, square, mean = _completed(model, row, *given)
        times = counts[i] * factors.weight[i]
        data[:-1] += times * cross
        data[-1] += times * mean / found.contrast[i]
        squares += times * square
        line = np.append(factors.mean[i], 1 / found.contrast[i])
        design += times * np.outer(line, line)
        variances += times * variance
    assert_allclose(sums.data, data, rtol=1e-9, atol=1e-9)
    assert_allclose(sums.squares, np.diag(squares), rtol=1e-9)
    assert_allclose(sums.design, design, rtol=1e-9, atol=1e-12)
    assert_allclose(sums.variance, variances, rtol=1e-9)
    if n_dense:
        assert_allclose(sums.products, squares, rtol=1e-9, atol=1e-9)
    else:
        assert sums.products.shape == (0, 0)
    assert_allclose(sums.n_rows, counts.sum())
    for name, values in (
        ("inclusion", factors.inclusion),
        ("size", factors.size),
        ("square", factors.second),
        ("active", factors.inclusion > 0.5),
    ):
        assert_allclose(getattr(sums, name), counts @ values, rtol=1e-12)


def test_sums_of_parts_add():
    model = random_model(n_dense=1)
    rows = _rows(model)

    def summed(part):
        return sums_of_rows(model, part, infer(model, part, CONVERGED))

    whole, mixed = summed(rows), summed(rows[:11]).mixed(summed(rows[11:]), 1.0, 1.0)
    for name, values in vars(whole).items():
        assert_allclose(getattr(mixed, name), values, rtol=1e-9, atol=1e-9)
    half = whole.mixed(whole, 0.25, 0.5)
    assert_allclose(half.data, 0.75 * whole.data)


def test_float32_rows():
    model = random_model(n_dense=2)
    rows = _rows(model)
    found = [
        sums_of_rows(model, part, infer(model, part, CONVERGED))
        for part in (rows, rows.astype(np.float32))
    ]
    for name, values in vars(found[0]).items():
        single = getattr(found[1], name)
        assert single.dtype == np.float64
        assert_allclose(single, values, rtol=1e-3, atol=1e-3 * np.abs(values).max())


@each_dense
def test_a_feature_that_is_never_observed_stays(n_dense):
    """All that is known of it is the model."""
    model = random_model(n_dense=n_dense)
    rows = _rows(model, missing=0.1)
    rows[:, 4] = np.nan
    found = maximise(
        model, sums_of_rows(model, rows, infer(model, rows, CONVERGED)), learned(6, "fixed")
    )
    growth = np.linalg.norm(found.atoms, axis=1) / np.linalg.norm(model.atoms, axis=1)
    assert np.isfinite(growth).all()
    if not n_dense:
        # Up to what the scale of the codes takes along.
        whole = maximise(
            replace(model, atoms=np.delete(model.atoms, 4, 1), noise=np.delete(model.noise, 4),
                    intercept=np.delete(model.intercept, 4), dense=np.delete(model.dense, 4, 1)),
            sums_of_rows(
                _restricted(model, np.arange(6) != 4), np.delete(rows, 4, 1),
                infer(_restricted(model, np.arange(6) != 4), np.delete(rows, 4, 1), CONVERGED),
            ),
            learned(5, "fixed"),
        )  # fmt: skip
        assert_allclose(np.delete(found.atoms, 4, 1), whole.atoms, rtol=1e-6)
        factor = found.atoms[:, 4] / model.atoms[:, 4]
        expected = model.slab.growth(
            found.density,
            *(
                getattr(sums_of_rows(model, rows, infer(model, rows, CONVERGED)), name)
                for name in ("inclusion", "size", "square")
            ),
        )
        assert_allclose(factor, expected, rtol=1e-4)
        assert found.intercept[4] == pytest.approx(model.intercept[4], rel=1e-6)
