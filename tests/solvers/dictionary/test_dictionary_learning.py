import itertools
import math

import numpy as np
import pytest
import torch

from sklearn_vsc.solvers.dictionary import full_batch as dictionary_learning
from sklearn_vsc.solvers.dictionary.accumulation import ObjectiveSums, objective_sums
from sklearn_vsc.solvers.dictionary.full_batch import FullBatchLearner, row_blocks
from sklearn_vsc.solvers.dictionary.online import OnlineLearner, OnlineStopping, forgetting
from sklearn_vsc.solvers.dictionary.sparse_codes import SparseCodes
from sklearn_vsc.solvers.dictionary.statistics import Statistics
from sklearn_vsc.solvers.dictionary.update import initial_dictionary
from sklearn_vsc.solvers.lasso.coders import block_coder
from sklearn_vsc.solvers.lasso.solve import solve_lasso

ALPHA = 0.3


code, code_by_fista = (block_coder(method, ALPHA, 1000, False) for method in ("cd", "fista"))


def rows(n_rows=150, n_features=12, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal((n_rows, n_features)))


def dense(learner):
    codes = learner.X.new_zeros(len(learner.X), len(learner.dictionary))
    for numbers, block in learner.codes:
        codes[numbers] = block
    return codes


def objective(X, codes, dictionary):
    return (0.5 * (X - codes @ dictionary).square().sum(1) + ALPHA * codes.abs().sum(1)).mean()


def full_batch(X, n_components=20, coder=code):
    generator = torch.Generator().manual_seed(0)
    dictionary = initial_dictionary(X, n_components, generator=generator)
    blocks = row_blocks(len(X), n_components, generator, X.device)
    codes = SparseCodes(blocks, n_components, X.dtype)
    return FullBatchLearner(X, codes, dictionary, ALPHA, coder, False, generator)


def online(X, n_components=20):
    generator = torch.Generator().manual_seed(0)
    dictionary = initial_dictionary(X, n_components, generator=generator)
    idle = torch.zeros(n_components, dtype=torch.int64)
    statistics = Statistics.zeros_like(dictionary)
    return OnlineLearner(dictionary, ALPHA, code, False, generator, statistics, idle)


@pytest.mark.parametrize("coder", [code, code_by_fista], ids=["cd", "fista"])
@pytest.mark.parametrize("block_size", [512, 40, 20])
def test_the_objective_falls_with_every_pass(monkeypatch, block_size, coder):
    monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", block_size)
    X = rows()
    learner = full_batch(X, coder=coder)
    losses = []
    for epoch in itertools.islice(learner.epochs(0.0, True), 40):
        loss = objective(X, dense(learner), epoch.dictionary).item()
        assert epoch.loss == pytest.approx(loss, rel=1e-12)
        losses.append(epoch.loss)
    assert np.all(np.diff(losses) <= 1e-12)
    assert losses[-1] < 0.95 * losses[0]


def test_statistics_follow_the_codes(monkeypatch):
    monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", 40)
    X = rows()
    learner = full_batch(X)
    for epoch in itertools.islice(learner.epochs(0.0, True), 5):
        codes = dense(learner)
        torch.testing.assert_close(epoch.statistics.code_gram, codes.T @ codes)
        torch.testing.assert_close(epoch.statistics.code_data, codes.T @ X)
        torch.testing.assert_close(epoch.statistics.n_users, (codes != 0).sum(0))
        kept = epoch.dictionary, epoch.dictionary.clone()
        assert torch.equal(*kept)
    assert learner.n_steps == 5 * 4


def test_a_pass_that_extrapolated_too_far_is_undone(monkeypatch):
    monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", 20)
    monkeypatch.setattr(dictionary_learning, "_FORESIGHT", 1e3)
    learner = full_batch(rows())
    epochs = list(itertools.islice(learner.epochs(0.0, True), 20))
    assert np.all(np.diff([epoch.loss for epoch in epochs]) <= 1e-12)
    # Eight steps per pass, and eight more for each pass that was undone.
    assert learner.n_steps > 20 * 8
    codes = dense(learner)
    torch.testing.assert_close(learner.statistics.code_gram, codes.T @ codes)


def test_foresight_learns_in_fewer_passes(monkeypatch):
    monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", 20)
    X = rows(600)

    def loss_after(n_passes):
        epochs = full_batch(X).epochs(0.0, True)
        return next(itertools.islice(epochs, n_passes, None)).loss

    ahead = loss_after(8)
    monkeypatch.setattr(dictionary_learning, "_FORESIGHT", 0.0)
    assert ahead < loss_after(12)


def test_a_pass_converges_at_a_stationary_point():
    X = rows()
    learner = full_batch(X)
    for epoch in learner.epochs(1e-8, True):
        if epoch.converged:
            break
    result = solve_lasso(X, epoch.dictionary, ALPHA)
    assert epoch.loss == pytest.approx(result.objective.mean().item(), rel=1e-4)
    # No single atom can be rotated to lower the objective by much.
    codes = dense(learner)
    target = codes.T @ X - (codes.T @ codes) @ epoch.dictionary
    target += (codes.T @ codes).diagonal()[:, None] * epoch.dictionary
    cosine = (torch.nn.functional.normalize(target) * epoch.dictionary).sum(1)
    assert cosine[learner.statistics.n_users > 0].min() > 1 - 1e-4


def test_dead_atoms_are_revived_without_raising_the_objective():
    X = rows()
    learner = full_batch(X)
    # Half of the atoms are copies that no row will use.
    learner.dictionary[10:] = learner.dictionary[0]
    losses, n_dead = [], []
    for epoch in itertools.islice(learner.epochs(0.0, True), 30):
        losses.append(epoch.loss)
        n_dead.append(int((learner.statistics.n_users == 0).sum()))
    assert np.all(np.diff(losses) <= 1e-12)
    assert n_dead[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_codes_return_what_was_stored(dtype):
    codes = rows(90).to(dtype).clamp_min(1)
    codes[codes == 1] = 0
    kept = SparseCodes.of(codes, list(torch.randperm(90).split(40)))
    before = kept.copy()
    for numbers, block in kept:
        assert block.dtype == dtype
        assert torch.equal(block, codes[numbers])
    kept[1] = torch.zeros(40, 12, dtype=dtype)
    assert not kept[1].any() and before[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_sums_match_matrix_products(dtype):
    X = rows().to(dtype)
    old, new = (
        torch.nn.functional.softshrink(rows(150, 37, seed), 1.0).to(dtype) for seed in (1, 2)
    )
    change = Statistics.change(X, old, new)
    torch.testing.assert_close(change.code_gram, new.T @ new - old.T @ old)
    torch.testing.assert_close(change.code_data, (new - old).T @ X)
    torch.testing.assert_close(change.n_users, (new != 0).sum(0) - (old != 0).sum(0))
    first = Statistics.change(X, None, new)
    torch.testing.assert_close(first.code_gram, new.T @ new)
    dictionary = rows(37, seed=3).to(dtype)
    sums = objective_sums(X, new, dictionary, ALPHA)
    assert sums.total == pytest.approx(150 * objective(X, new, dictionary).item(), rel=1e-5)
    residual = X - new @ dictionary
    assert sums.reconstruction == pytest.approx(0.5 * residual.square().sum().item(), rel=1e-5)
    assert sums.penalty == pytest.approx(ALPHA * new.abs().sum().item(), rel=1e-5)
    assert sums.n_nonzero == (new != 0).sum()
    assert sums.n_rows == 150
    assert sums.mean == sums.total / 150
    # Only the observed entries of an incomplete row count.
    X[:, ::3] = torch.nan
    incomplete = objective_sums(X, new, dictionary, ALPHA)
    left = residual.square()[:, [k for k in range(X.shape[1]) if k % 3]]
    assert incomplete.reconstruction == pytest.approx(0.5 * left.sum().item(), rel=1e-5)
    assert (incomplete.penalty, incomplete.n_nonzero) == (sums.penalty, sums.n_nonzero)


def test_sums_of_blocks_add_up():
    X, codes, dictionary = rows(), torch.nn.functional.softshrink(rows(150, 37, 1), 1.0), rows(37)
    parts = [objective_sums(X[i], codes[i], dictionary, ALPHA) for i in torch.arange(150).split(40)]
    whole = objective_sums(X, codes, dictionary, ALPHA)
    added = sum(parts, ObjectiveSums())
    assert vars(added) == pytest.approx(vars(whole), rel=1e-12)
    assert math.isnan(ObjectiveSums().mean)


def test_statistics_decay_fast_at_first_and_slowly_later():
    factors = [forgetting(step, 10) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 11)
    assert np.all(np.diff(factors) > 0)
    assert 0.9 < factors[100] < 1
    assert forgetting(0, 1) == pytest.approx(0.5) and forgetting(99, 1) == pytest.approx(100 / 101)


def test_online_steps_lower_the_objective():
    X = rows(600)
    learner = online(X)
    before = solve_lasso(X, learner.dictionary, ALPHA).objective.mean()
    stopping = OnlineStopping(0.0, None)
    steps = []
    epochs = learner.epochs(
        X, 50, shuffle=True, stopping=stopping, on_step=lambda *step: steps.append(step[0])
    )
    for epoch in itertools.islice(epochs, 10):
        assert not epoch.converged
    assert steps == list(range(120))
    after = solve_lasso(X, epoch.dictionary, ALPHA).objective.mean()
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
