import itertools

import numpy as np
import pytest
import torch

from sklearn_vsc.solvers import dictionary_learning
from sklearn_vsc.solvers.dictionary_learning import (
    FullBatchLearner,
    Statistics,
    mean_objective,
)
from sklearn_vsc.solvers.dictionary_update import initial_dictionary
from sklearn_vsc.solvers.lasso import fista
from sklearn_vsc.solvers.online_learning import OnlineLearner, OnlineStopping, forgetting

ALPHA = 0.3


def code(X, dictionary, start, gap):
    return fista(X, dictionary, ALPHA, code_init=start, tol=gap, finish=False).codes


def rows(n_rows=150, n_features=12, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal((n_rows, n_features)))


def full_batch(X, n_components=20):
    generator = torch.Generator().manual_seed(0)
    dictionary = initial_dictionary(X, n_components, generator=generator)
    codes = X.new_zeros(len(X), n_components)
    return FullBatchLearner(X, codes, dictionary, ALPHA, code, False, generator)


def online(X, n_components=20):
    generator = torch.Generator().manual_seed(0)
    dictionary = initial_dictionary(X, n_components, generator=generator)
    idle = torch.zeros(n_components, dtype=torch.int64)
    statistics = Statistics.zeros_like(dictionary)
    return OnlineLearner(dictionary, ALPHA, code, False, generator, statistics, idle)


@pytest.mark.parametrize("block_size", [512, 40, 7])
def test_the_objective_falls_pass_by_pass(monkeypatch, block_size):
    monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", block_size)
    X = rows()
    learner = full_batch(X)
    losses = []
    for epoch in itertools.islice(learner.epochs(0.0, True), 40):
        loss = mean_objective(X, learner.codes, epoch.dictionary, ALPHA)
        assert epoch.loss == pytest.approx(loss, rel=1e-12)
        losses.append(epoch.loss)
    assert np.all(np.diff(losses) <= 1e-12)
    assert losses[-1] < 0.95 * losses[0]


def test_statistics_follow_the_codes(monkeypatch):
    monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", 40)
    X = rows()
    learner = full_batch(X)
    for epoch in itertools.islice(learner.epochs(0.0, True), 5):
        codes = learner.codes
        torch.testing.assert_close(epoch.statistics.code_gram, codes.T @ codes)
        torch.testing.assert_close(epoch.statistics.code_data, codes.T @ X)
        torch.testing.assert_close(learner.n_users, (codes != 0).sum(0))
        kept = epoch.dictionary, epoch.dictionary.clone()
        assert torch.equal(*kept)
    assert learner.n_steps == 5 * 4


def test_a_pass_converges_at_a_stationary_point():
    X = rows()
    learner = full_batch(X)
    for epoch in learner.epochs(1e-8, True):
        if epoch.converged:
            break
    result = fista(X, epoch.dictionary, ALPHA)
    assert epoch.loss == pytest.approx(result.objective.mean().item(), rel=1e-4)
    # No atom alone can be turned to lower the objective by much.
    codes = learner.codes
    target = codes.T @ X - (codes.T @ codes) @ epoch.dictionary
    target += (codes.T @ codes).diagonal()[:, None] * epoch.dictionary
    cosine = (torch.nn.functional.normalize(target) * epoch.dictionary).sum(1)
    assert cosine[learner.n_users > 0].min() > 1 - 1e-4


def test_dead_atoms_come_back_without_cost():
    X = rows()
    learner = full_batch(X)
    # Half of the atoms are copies that nothing will use.
    learner.dictionary[10:] = learner.dictionary[0]
    losses, n_dead = [], []
    for epoch in itertools.islice(learner.epochs(0.0, True), 30):
        losses.append(epoch.loss)
        n_dead.append(int((learner.n_users == 0).sum()))
    assert np.all(np.diff(losses) <= 1e-12)
    assert n_dead[-1] == 0


def test_first_forgetting_steps_weigh_little_and_later_ones_all():
    factors = [forgetting(step, 10) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 11)
    assert np.all(np.diff(factors) > 0)
    assert 0.9 < factors[100] < 1
    assert forgetting(0, 1) == pytest.approx(0.5) and forgetting(99, 1) == pytest.approx(100 / 101)


def test_online_steps_learn():
    X = rows(600)
    learner = online(X)
    before = fista(X, learner.dictionary, ALPHA).objective.mean()
    stopping = OnlineStopping(0.0, None)
    steps = []
    epochs = learner.epochs(
        X, 50, shuffle=True, stopping=stopping, on_step=lambda *step: steps.append(step[0])
    )
    for epoch in itertools.islice(epochs, 10):
        assert not epoch.converged
    assert steps == list(range(120))
    after = fista(X, epoch.dictionary, ALPHA).objective.mean()
    assert after < 0.95 * before


def test_online_renews_atoms_that_stay_idle():
    X = rows(600)
    learner = online(X)
    learner.dictionary = learner.dictionary.clone()
    learner.dictionary[10:] = learner.dictionary[0]
    for _ in range(20):
        codes, _ = learner.step(X)
    assert ((codes != 0).sum(0) > 0).all()


def test_online_stopping_rules():
    still = OnlineStopping(tol=1e-3, max_no_improvement=None)
    assert [still.update(1.0, 1e-4, 10, 20) for _ in range(3)] == [False, False, True]
    never = OnlineStopping(tol=0.0, max_no_improvement=None)
    assert not any(never.update(1.0, 0.0, 10, 20) for _ in range(50))
    stalled = OnlineStopping(tol=0.0, max_no_improvement=3)
    answers = [stalled.update(1.0 + step, 1.0, 10, 20) for step in range(6)]
    assert answers == [False] * 5 + [True]
    improving = OnlineStopping(tol=0.0, max_no_improvement=3)
    assert not any(improving.update(1.0 / (1 + step), 1.0, 10, 20) for step in range(50))
