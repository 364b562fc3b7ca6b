"""Steps of learning from batches: what is remembered, counted, and kept within bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from linear_problems import CONVERGED, draw_rows, learned, random_model
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc.solvers.linear_model import learner as learner_module
from sklearn_vsc.solvers.linear_model.learner import Learner, Memory
from sklearn_vsc.solvers.linear_model.row_posteriors import infer

N_FEATURES = 8


def _truth(**options):
    return random_model(4, N_FEATURES, **options)


def _start(truth, **changes):
    moved = truth.atoms + 0.3 * np.random.default_rng(3).standard_normal(truth.atoms.shape)
    return replace(truth, atoms=moved, noise=np.full(N_FEATURES, 0.5), **changes)


def test_sums_remember_as_many_rows_as_they_should(monkeypatch):
    monkeypatch.setattr(learner_module, "_LEAST_MEMORY", 200)
    truth = _truth()
    rows = draw_rows(truth, 50)
    learner = Learner(_start(truth), learned(N_FEATURES))
    assert learner.memory_rows == 200
    held = []
    for _ in range(40):
        learner.step(rows)
        held.append(float(learner.sums.n_rows))
    assert np.all(np.diff(held) > -1e-9)
    # The first steps are forgotten faster than a plain mean over all steps would.
    assert held[:3] == pytest.approx([50, 50, 50 / 3 + 50])
    assert held[-1] == pytest.approx(200, rel=0.01)
    learner.step(draw_rows(truth, 300))
    assert learner.sums.n_rows == 300
    learner.step(rows, all_rows=True)
    assert learner.sums.n_rows == 50


def test_a_learner_goes_on_from_its_parts():
    truth = _truth(n_dense=1)
    rows = draw_rows(truth, 120)
    whole = Learner(_start(truth), learned(N_FEATURES))
    for batch in np.split(rows, 4):
        whole.step(batch)
    parts = Learner(_start(truth), learned(N_FEATURES))
    for batch in np.split(rows, 4):
        parts.step(batch)
        parts = Learner(parts.model, parts.learned, parts.sums, parts.n_steps, parts.pressure)
    assert_array_equal(parts.model.atoms, whole.model.atoms)
    assert_array_equal(parts.model.noise, whole.model.noise)


@pytest.mark.parametrize("freedom", [math.inf, 5.0])
@pytest.mark.parametrize("has_contrast", [False, True])
def test_sample_weights_count_like_repeated_rows(freedom, has_contrast):
    truth = _truth(freedom=freedom)
    rows = draw_rows(truth, 80, missing=0.1)
    counts = np.random.default_rng(0).integers(0, 4, 80)
    models = []
    for part, weight in ((rows, counts.astype(float)), (np.repeat(rows, counts, axis=0), None)):
        learner = Learner(_start(truth), learned(N_FEATURES), has_contrast=has_contrast)
        for _ in range(3):
            learner.step(part, sample_weight=weight, all_rows=True)
        models.append(learner.model)
    assert models[0].freedom == pytest.approx(models[1].freedom, rel=1e-3)
    for name in ("atoms", "intercept", "noise", "density"):
        found, expected = (getattr(model, name) for model in models)
        assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("freedom", [math.inf, 2.0])
def test_memory_is_where_the_posteriors_ended(freedom):
    truth = _truth(freedom=freedom)
    rows = draw_rows(truth, 100)
    rows[:10] = truth.intercept + 6 * (rows[:10] - truth.intercept)
    learner = Learner(_start(truth), learned(N_FEATURES))
    memory = None
    for _ in range(60):
        step = learner.step(rows, memory, all_rows=True)
        memory = step.memory
    assert memory.fields.shape == (100, 4)
    begun = infer(learner.model, rows, CONVERGED, memory.fields, weight=memory.weight)
    fresh = infer(learner.model, rows, CONVERGED)
    assert_allclose(begun.bound.mean(), fresh.bound.mean(), atol=0.05)
    assert_allclose(step.bound.mean(), begun.bound.mean(), atol=0.05)
    # A memory without weights serves too.
    learner.step(rows, Memory(memory.fields, memory.contrast), all_rows=True)


@pytest.mark.parametrize("freedom", [math.inf, 5.0])
@pytest.mark.parametrize("n_dense", [0, 1])
def test_pressure_makes_codes_as_sparse_as_asked_for(freedom, n_dense):
    truth = random_model(6, 20, n_dense, freedom=freedom, density=0.4)
    rows = draw_rows(truth, 400)
    what = learned(20, density="target", target=0.1)
    start = replace(truth, density=np.full(6, 0.1))
    learner, memory, shares = Learner(start, what), None, []
    for _ in range(60):
        step = learner.step(rows, memory, all_rows=True)
        memory = step.memory
        shares.append(step.active.mean())
    assert learner.pressure > 1
    assert np.mean(shares[-5:]) == pytest.approx(0.1, rel=0.3)
    assert shares[0] > 0.2
    assert np.isfinite(learner.model.noise).all()
    assert_array_equal(learner.model.density, 0.1)


def test_no_pressure_where_codes_are_sparse_enough():
    truth = random_model(6, 20, density=0.05)
    learner = Learner(truth, learned(20, density="target", target=0.3))
    for _ in range(5):
        learner.step(draw_rows(truth, 200), all_rows=True)
        assert learner.pressure == 1


def test_rows_that_equal_the_intercept_do_not_spoil_contrasts():
    truth = replace(_truth(), intercept=np.zeros(N_FEATURES))
    contrast = np.exp(0.7 * np.random.default_rng(1).standard_normal(300))
    rows = draw_rows(truth, 300, contrast=contrast)
    rows[::10] = 0
    rows[5] = np.nan
    learner = Learner(_start(truth), learned(N_FEATURES), has_contrast=True)
    memory = None
    for _ in range(20):
        step = learner.step(rows, memory, all_rows=True)
        memory = step.memory
    model = learner.model
    for values in (model.atoms, model.noise, model.intercept, memory.contrast, step.bound):
        assert np.isfinite(values).all()
    assert np.abs(model.intercept).max() < 1e-3
    kept = np.delete(np.arange(300), [5, *range(0, 300, 10)])
    ratio = np.log(memory.contrast[kept] / contrast[kept])
    assert ratio.std() < 0.4


def test_huge_and_tiny_units_give_the_same_model():
    truth = _truth(n_dense=1)
    rows = draw_rows(truth, 200)
    found = []
    for unit in (1.0, 1e6, 1e-6):
        what = replace(
            learned(N_FEATURES),
            scale=np.full(N_FEATURES, unit),
            floor=np.full(N_FEATURES, 1e-8 * unit**2),
        )
        start = _start(truth)
        start = replace(
            start, atoms=unit * start.atoms, intercept=unit * start.intercept,
            noise=unit**2 * start.noise, dense=unit * start.dense,
        )  # fmt: skip
        learner = Learner(start, what)
        for _ in range(4):
            learner.step(unit * rows, all_rows=True)
        found.append(learner.model)
    for model, unit in zip(found[1:], (1e6, 1e-6), strict=True):
        assert_allclose(model.atoms, unit * found[0].atoms, rtol=1e-5)
        assert_allclose(model.noise, unit**2 * found[0].noise, rtol=1e-5)
        assert_allclose(model.density, found[0].density, rtol=1e-5)
