"""No step away from the parameters that `maximise` returns raises the expected log likelihood."""

import math
from dataclasses import replace

import numpy as np
import pytest
from linear_problems import CONVERGED, covariance, draw_rows, learned, random_model
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc._models.sparse_linear import draw_codes
from sklearn_vsc.solvers.linear_model import maximisation
from sklearn_vsc.solvers.linear_model.learner import Learner
from sklearn_vsc.solvers.linear_model.maximisation import maximise
from sklearn_vsc.solvers.linear_model.row_posteriors import infer
from sklearn_vsc.solvers.linear_model.sums import sums_of_rows

N_ROWS, N_FEATURES = 100, 6

each_slab = pytest.mark.parametrize("slab", ["laplace", "gaussian", "thresholded"])
each_scale = pytest.mark.parametrize("row_scale", [None, "noise", "contrast"])


@pytest.fixture
def no_shrinkage(monkeypatch):
    """Maximum likelihood alone: no rows that are made up, nor any that fitting atoms uses up."""
    monkeypatch.setattr(maximisation, "_LEAST_FREE", 1.0)
    monkeypatch.setattr(maximisation, "_SHARED_ROWS", 0.0)
    monkeypatch.setattr(maximisation, "_ATOM_ROWS", 0.0)
    monkeypatch.setattr(maximisation, "_RIDGE", 0.0)


class _Step:
    """A model, whole rows with their posteriors, and the model that follows."""

    def __init__(
        self, slab="laplace", *, n_dense=0, row_scale=None, noise="per_feature", weighted=False,
        pressure=1.0,
    ):  # fmt: skip
        rng = np.random.default_rng(7)
        truth = random_model(4, N_FEATURES, n_dense, slab)
        contrast = np.exp(0.5 * rng.standard_normal(N_ROWS)) if row_scale == "contrast" else None
        freedom = 4.0 if row_scale == "noise" else math.inf
        self.rows = draw_rows(replace(truth, freedom=freedom), N_ROWS, contrast=contrast)
        # Some way off, so that every parameter has somewhere to go.
        self.model = replace(
            random_model(4, N_FEATURES, n_dense, slab, seed=5),
            atoms=truth.atoms + 0.4 * rng.standard_normal(truth.atoms.shape),
            freedom=freedom,
        )
        self.found = infer(self.model, self.rows, CONVERGED, contrast=contrast)
        self.counts = rng.integers(0, 4, N_ROWS).astype(float) if weighted else np.ones(N_ROWS)
        given = self.counts if weighted else None
        self.sums = sums_of_rows(self.model, self.rows, self.found, given)
        self.learned = learned(N_FEATURES, noise)
        self.next = maximise(self.model, self.sums, self.learned, pressure)
        # In units in which the codes are what they were.
        factors = self.sums.inclusion, self.sums.size, self.sums.square
        growth = self.model.slab.growth(self.next.density, *factors)
        self.fitted = replace(self.next, atoms=self.next.atoms / growth[:, None])

    def expected_fit(self, model):
        """Sum over rows of E log p(x given codes and weight), from the posteriors alone."""
        full, factors = covariance(model), self.found.factors
        inverse, log_det = np.linalg.inv(full), np.linalg.slogdet(full)[1]
        rows = (self.rows - model.intercept) / self.found.contrast[:, None]
        residual = rows - factors.mean @ model.atoms
        error = np.einsum("nd,de,ne->n", residual, inverse, residual)
        variance = factors.second - factors.mean**2
        error += variance @ np.diag(model.atoms @ inverse @ model.atoms.T)
        return -0.5 * float(self.counts @ (log_det + factors.weight * error))

    def expected_prior(self, model):
        """Sum over rows of E log p(which codes are not zero)."""
        on = self.counts @ self.found.factors.inclusion
        off = self.counts.sum() - on
        return float(on @ np.log(model.density) + off @ np.log1p(-model.density))


def _steps_off(model, names, *, seed=0):
    """Models some small way off in these parameters, in random directions and back."""
    rng = np.random.default_rng(seed)
    for name in names:
        for size in (1e-3, 1e-2):
            for _ in range(4):
                value = getattr(model, name)
                direction = rng.standard_normal(value.shape)
                for sign in (-1, 1):
                    if name in ("noise", "density"):
                        moved = value * np.exp(sign * size * direction)
                    else:
                        moved = value + sign * size * direction
                    yield replace(model, **{name: moved})


@each_slab
@each_scale
@pytest.mark.parametrize("weighted", [False, True])
def test_atoms_intercept_and_noise_of_each_feature_are_best(
    no_shrinkage, slab, row_scale, weighted
):
    step = _Step(slab, row_scale=row_scale, weighted=weighted)
    best = step.expected_fit(step.fitted)
    assert best > step.expected_fit(step.model) + 1
    for other in _steps_off(step.fitted, ["atoms", "intercept", "noise"]):
        assert step.expected_fit(other) < best


@each_scale
def test_shared_noise_is_best(no_shrinkage, row_scale):
    step = _Step(noise="shared", row_scale=row_scale)
    best = step.expected_fit(step.fitted)
    assert_array_equal(step.fitted.noise, step.fitted.noise[0])
    for factor in (0.97, 0.999, 1.001, 1.03):
        assert step.expected_fit(replace(step.fitted, noise=factor * step.fitted.noise)) < best
    for other in _steps_off(step.fitted, ["atoms", "intercept"]):
        assert step.expected_fit(other) < best


def test_fixed_noise_stays(no_shrinkage):
    for n_dense in (0, 2):
        step = _Step(noise="fixed", n_dense=n_dense, pressure=3.0)
        assert_array_equal(step.next.noise, step.model.noise)
        assert (step.next.dense != step.model.dense).all()
        best = step.expected_fit(step.fitted)
        for other in _steps_off(step.fitted, ["atoms", "intercept"]):
            assert step.expected_fit(other) < best


@each_scale
@pytest.mark.parametrize("noise", ["per_feature", "shared", "fixed"])
def test_dense_columns_and_noise_improve_until_they_are_best(no_shrinkage, noise, row_scale):
    step = _Step(n_dense=2, noise=noise, row_scale=row_scale)
    # The regression does not depend on the covariance of the noise.
    best = step.expected_fit(step.fitted)
    for other in _steps_off(step.fitted, ["atoms", "intercept"]):
        assert step.expected_fit(other) < best
    before = -math.inf
    model = replace(step.model, atoms=step.fitted.atoms, intercept=step.fitted.intercept)
    for i in range(200):
        after = step.expected_fit(model)
        assert after >= before - 1e-9 * abs(after)
        before = after
        moved = maximise(replace(step.model, noise=model.noise, dense=model.dense), step.sums,
                         step.learned)  # fmt: skip
        model = replace(model, noise=moved.noise, dense=moved.dense)
        if i == 0:
            assert step.expected_fit(model) > before + 0.1
    if noise == "shared":
        assert_array_equal(model.noise, model.noise[0])
        names = ["dense"]
    else:
        names = ["dense"] if noise == "fixed" else ["dense", "noise"]
    best = step.expected_fit(model)
    for other in _steps_off(model, names):
        # A direction may rotate the columns, which changes nothing.
        assert step.expected_fit(other) < best + 1e-4


@pytest.mark.parametrize("slab", ["laplace", "gaussian"])
@pytest.mark.parametrize("weighted", [False, True])
def test_densities_are_best(no_shrinkage, slab, weighted):
    """That of a thresholded slab, whose sizes depend on it, is tested with the slabs."""
    step = _Step(slab, weighted=weighted)
    best = step.expected_prior(step.next)
    for other in _steps_off(step.next, ["density"]):
        assert step.expected_prior(other) < best
    shared = maximise(step.model, step.sums, learned(N_FEATURES, density="shared"))
    assert_allclose(shared.density, np.mean(step.next.density), rtol=1e-12)
    for density in ("fixed", "target"):
        kept = maximise(step.model, step.sums, learned(N_FEATURES, density=density))
        assert_array_equal(kept.density, step.model.density)


def test_small_tables_share_their_noise_and_atoms_without_rows_stay():
    model = random_model(4, N_FEATURES)
    few = draw_rows(model, 3)
    few[:, 0] = few[0, 0]
    sums = sums_of_rows(model, few, infer(model, few, CONVERGED))
    found = maximise(model, sums, learned(N_FEATURES))
    # At most all the variance in one feature: (3 * 6 + 5) / 5.
    assert found.noise.max() < 4.7 * found.noise.min()
    # No code of the last atom is ever on.
    unused = replace(model, density=np.array([0.3, 0.3, 0.3, 0.0]))
    rows = draw_rows(unused, 100)
    sums = sums_of_rows(unused, rows, infer(unused, rows, CONVERGED))
    found = maximise(unused, sums, learned(N_FEATURES))
    assert all(np.isfinite(v).all() for v in (found.atoms, found.noise, found.density))
    assert 0 < found.density[3] < 0.02


def test_noise_is_raised_by_pressure_and_stays_above_its_floor():
    plain, pressed = _Step(), _Step(pressure=3.0)
    assert_allclose(pressed.next.noise, 3 * plain.next.noise, rtol=1e-12)
    assert_allclose(pressed.next.atoms, plain.next.atoms)
    for n_dense in (0, 2):
        step = _Step(n_dense=n_dense)
        floors = replace(step.learned, floor=np.full(N_FEATURES, 0.7))
        assert maximise(step.model, step.sums, floors).noise.min() >= 0.7


# ------------------------------------------------------------------ all steps together


def _bounds_of_passes(model, rows, what, n_passes, has_contrast=False):
    """Mean bound of each pass over all rows, whose posteriors are solved in each."""
    learner, memory, bounds = Learner(model, what, has_contrast=has_contrast), None, []
    for _ in range(n_passes):
        step = learner.step(rows, memory, all_rows=True)
        memory = step.memory
        bounds.append(step.bound.mean())
    return np.array(bounds), learner.model


@pytest.fixture
def solved_posteriors(monkeypatch):
    for name in ("_FIRST_VISIT", "_LATER_VISIT"):
        monkeypatch.setattr(f"sklearn_vsc.solvers.linear_model.learner.{name}", CONVERGED)


@each_slab
@each_scale
@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("n_dense", [0, 2])
def test_no_pass_lowers_the_mean_bound(
    no_shrinkage, solved_posteriors, slab, row_scale, missing, n_dense
):
    truth = random_model(4, 9, n_dense, slab)
    rng = np.random.default_rng(2)
    contrast = np.exp(0.6 * rng.standard_normal(N_ROWS)) if row_scale == "contrast" else None
    start = replace(
        random_model(4, 9, n_dense, slab, seed=5),
        atoms=truth.atoms + 0.3 * rng.standard_normal(truth.atoms.shape),
        freedom=9.0 if row_scale == "noise" else math.inf,
    )
    drawn = replace(truth, freedom=4.0 if row_scale == "noise" else math.inf)
    rows = draw_rows(drawn, N_ROWS, missing=missing, contrast=contrast)
    bounds, _ = _bounds_of_passes(start, rows, learned(9), 8, row_scale == "contrast")
    assert np.diff(bounds).min() > -1e-6
    assert bounds[-1] > bounds[0] + 0.5


@pytest.mark.parametrize("noise", ["shared", "fixed"])
@pytest.mark.parametrize("density", ["shared", "fixed"])
def test_no_pass_lowers_the_mean_bound_whatever_is_learned(
    no_shrinkage, solved_posteriors, noise, density
):
    truth = random_model(4, 9, 2)
    start = replace(random_model(4, 9, 2, seed=5), atoms=truth.atoms[::-1] + 0.2)
    rows = draw_rows(replace(truth, freedom=4.0), N_ROWS, missing=0.1)
    for freedom in (math.inf, 9.0):
        what = learned(9, noise, density)
        bounds, model = _bounds_of_passes(replace(start, freedom=freedom), rows, what, 10)
        assert np.diff(bounds).min() > -1e-6
        if noise == "fixed":
            assert_array_equal(model.noise, start.noise)


def test_noise_is_unbiased_where_atoms_fit_few_rows(monkeypatch):
    # Known codes: the regression on them uses up one row for each atom.
    monkeypatch.setattr(maximisation, "_SHARED_ROWS", 0.0)
    rng = np.random.default_rng(0)
    n_rows, n_atoms, n_features, noise = 40, 15, 400, 0.7
    truth = replace(
        random_model(n_atoms, n_features, 0, "gaussian"), noise=np.full(n_features, noise)
    )
    codes = rng.standard_normal((n_rows, n_atoms))
    codes -= codes.mean(0)
    rows = codes @ truth.atoms + math.sqrt(noise) * rng.standard_normal((n_rows, n_features))
    found = infer(truth, rows, CONVERGED)
    known = replace(
        found.factors, mean=codes, second=codes**2, inclusion=np.ones_like(codes),
        size=np.abs(codes),
    )  # fmt: skip
    sums = sums_of_rows(truth, rows, replace(found, factors=known))
    estimate = maximise(truth, sums, learned(n_features)).noise.mean()
    # The intercept is left out: it uses up one row of the forty.
    expected = noise * (n_rows - n_atoms - 1) / (n_rows - n_atoms)
    error = noise * math.sqrt(2 / (n_features * (n_rows - n_atoms)))
    assert abs(estimate - expected) < 4 * error


def test_atoms_of_zero_change_nothing():
    model, rng = random_model(5, N_FEATURES, 0, "laplace"), np.random.default_rng(3)
    rows = draw_rows(model, 30)
    atoms, density = np.zeros((9, N_FEATURES)), rng.uniform(0.05, 0.4, 9)
    places = np.array([1, 2, 4, 7, 8])
    atoms[places], density[places] = model.atoms, model.density
    larger = replace(model, atoms=atoms, density=density)
    alone, beside = infer(model, rows, CONVERGED), infer(larger, rows, CONVERGED)
    assert_allclose(beside.bound, alone.bound, rtol=1e-12)
    absent = np.setdiff1d(np.arange(9), places)
    for name in ("mean", "second", "inclusion", "size"):
        values = getattr(beside.factors, name)
        assert_array_equal(values[:, places], getattr(alone.factors, name))
    # Rows say nothing of the others, which follow their priors.
    slab, share = model.slab, density[absent]
    assert_allclose(beside.factors.inclusion[:, absent], np.tile(share, (30, 1)))
    expected = np.tile(share * slab.mean_square(share), (30, 1))
    assert_allclose(beside.factors.second[:, absent], expected)
    assert not beside.factors.mean[:, absent].any()
    # And learning goes the same way.
    next_alone = maximise(model, sums_of_rows(model, rows, alone), learned(N_FEATURES))
    next_beside = maximise(larger, sums_of_rows(larger, rows, beside), learned(N_FEATURES))
    assert_allclose(next_beside.atoms[places], next_alone.atoms, rtol=1e-9)
    assert not next_beside.atoms[absent].any()
    assert_allclose(next_beside.noise, next_alone.noise, rtol=1e-9)
    assert_allclose(next_beside.density[places], next_alone.density, rtol=1e-9)
    assert_array_equal(next_beside.density[absent], share)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("slab", ["laplace", "gaussian", "thresholded"])
def test_moments_are_those_of_drawn_rows(slab, positive):
    model = random_model(5, N_FEATURES, 2, slab)
    model = replace(
        model, slab=replace(model.slab, positive=positive), intercept=np.arange(N_FEATURES) / 3
    )
    rng = np.random.default_rng(2)
    codes, shape = draw_codes(model, 200_000, rng), (200_000, N_FEATURES)
    rows = model.intercept + codes @ model.atoms + rng.normal(size=(len(codes), 2)) @ model.dense
    rows += rng.normal(size=shape) * np.sqrt(model.noise)
    mean, variance = model.moments
    error = np.sqrt(variance / len(rows))
    assert (np.abs(rows.mean(0) - mean) < 5 * error).all()
    assert_allclose(rows.var(0), variance, rtol=0.03)
