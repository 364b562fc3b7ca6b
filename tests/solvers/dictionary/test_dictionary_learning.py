import itertools
import math

import numpy as np
import pytest
import torch

from sklearn_vsc.solvers.dictionary import full_batch as dictionary_learning
from sklearn_vsc.solvers.dictionary.accumulation import ObjectiveSums, objective_sums
from sklearn_vsc.solvers.dictionary.full_batch import FullBatchLearner, row_blocks
from sklearn_vsc.solvers.dictionary.online import OnlineLearner, forgetting
from sklearn_vsc.solvers.dictionary.sparse_codes import SparseCodes
from sklearn_vsc.solvers.dictionary.statistics import Statistics
from sklearn_vsc.solvers.dictionary.stopping import MiniBatchStopping
from sklearn_vsc.solvers.dictionary.update import different_rows, initial_dictionary
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
    size = dictionary_learning.block_size(n_components, X.shape[1])
    blocks = row_blocks(len(X), size, generator, X.device)
    codes = SparseCodes(blocks, n_components, X.dtype)
    return FullBatchLearner(X, codes, dictionary, ALPHA, coder, False, generator)


def online(X, n_components=20, n_placed=None):
    generator = torch.Generator().manual_seed(0)
    dictionary = initial_dictionary(X, n_components, generator=generator)
    n_placed = n_components if n_placed is None else n_placed
    idle = torch.zeros(n_components, dtype=torch.int64)
    statistics = Statistics.zeros_like(dictionary)
    known = X[:0]
    return OnlineLearner(
        dictionary, ALPHA, code, False, generator, statistics, idle, n_placed, known
    )


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


def test_statistics_of_a_stream_cover_a_fixed_share_of_its_rows():
    """However the rows come, their weights are n ** 5 - (n - m) ** 5, to a common factor."""
    for chunks in ([10] * 30, [1] * 40, [100, 1, 7, 50]):
        weights, n_rows = np.zeros(0), 0
        for size in chunks:
            weights = np.append(forgetting(n_rows, size) * weights, size)
            n_rows += size
        ends = np.cumsum(chunks)
        expected = np.array(chunks) * (ends / n_rows) ** 5
        np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_online_steps_lower_the_objective():
    X = rows(600)
    learner = online(X)
    before = solve_lasso(X, learner.dictionary, ALPHA).objective.mean()
    for _ in range(3):
        for part in X.split(50):
            codes, sums = learner.step(part)
            assert sums.n_rows == len(codes) == 50
    after = solve_lasso(X, learner.dictionary, ALPHA).objective.mean()
    assert after < 0.95 * before


def test_with_forget_a_step_keeps_that_share_of_the_statistics():
    X = rows(100)
    learner = online(X)
    learner.forget = 0.25
    learner.step(X[:50])
    before = learner.statistics.copy()
    codes, _ = learner.step(X[50:])
    expected = 0.25 * before.code_gram + codes.T @ codes
    torch.testing.assert_close(learner.statistics.code_gram, expected)


def test_atoms_wait_for_different_rows():
    X = rows(30)
    learner = online(X, n_placed=0)
    for part in (X[:1], X[:1], X[:8], torch.zeros(2, 12, dtype=X.dtype), 2 * X[:8], X[8:30]):
        codes, _ = learner.step(part)
        learner.known = torch.cat([learner.known, part])
        n_placed = learner.n_placed
        assert not codes[:, n_placed:].any()
        if len(part) == 8:
            # The second row is new, the first is known, and multiples of rows are no new ones.
            assert n_placed == 8
    assert learner.n_placed == 20
    assert torch.linalg.matrix_rank(learner.dictionary) == 12


def test_different_rows_differ_in_direction():
    X = rows(6)
    table = torch.cat([X, 3 * X, X[:0], torch.zeros(3, 12, dtype=X.dtype), X])
    generator = torch.Generator().manual_seed(0)
    units = X / X.norm(dim=1, keepdim=True)
    for n_rows, n_found in ((4, 4), (6, 6), (9, 6)):
        found = different_rows(table, n_rows, table[:0], generator=generator)
        assert found.shape == (n_found, 12)
        nearest = (found @ units.T).round(decimals=9).argmax(1)
        assert len(set(nearest.tolist())) == n_found
        torch.testing.assert_close(found, units[nearest])
    others = different_rows(table, 9, units[:4], generator=generator)
    assert sorted((others @ units.T).argmax(1).tolist()) == [4, 5]


def test_online_renews_atoms_that_stay_idle():
    X = rows(600)
    learner = online(X)
    learner.dictionary = learner.dictionary.clone()
    learner.dictionary[10:] = learner.dictionary[0]
    for _ in range(20):
        codes, _ = learner.step(X)
    assert ((codes != 0).sum(0) > 0).all()


def test_mini_batch_stopping_rules():
    still = MiniBatchStopping(tol=1e-3, max_no_improvement=None)
    assert [still.update(step % 2, 1.0, 1e-4, 2) for step in range(3)] == [False, False, True]
    never = MiniBatchStopping(tol=0.0, max_no_improvement=None)
    assert not any(never.update(step % 2, 1.0, 0.0, 2) for step in range(50))
    # Mini-batches that differ are compared with themselves.
    costs = [5.0, 1.0, 4.9, 0.9, 4.8, 0.8, 4.8, 0.8, 4.9, 0.8]
    stalled = MiniBatchStopping(tol=0.0, max_no_improvement=3)
    answers = [stalled.update(step % 2, cost, 1.0, 2) for step, cost in enumerate(costs)]
    assert answers == [False] * 8 + [True, True]


def test_mini_batches_reach_the_objective_of_full_batches(monkeypatch):
    X = rows(600)

    def loss_after(n_passes, block_size):
        monkeypatch.setattr(dictionary_learning, "BLOCK_SIZE", block_size)
        return next(itertools.islice(full_batch(X).epochs(0.0, True), n_passes - 1, None)).loss

    assert loss_after(30, 50) < 1.01 * loss_after(30, 600)


def test_momentum_learns_in_fewer_passes(monkeypatch):
    # With one block nothing else is extrapolated.
    X = rows(400)

    def loss_after(n_passes):
        return next(itertools.islice(full_batch(X).epochs(0.0, True), n_passes, None)).loss

    ahead = loss_after(15)
    monkeypatch.setattr(dictionary_learning, "_MOMENTUM", 0.0)
    monkeypatch.setattr(dictionary_learning, "_MOST_MOMENTUM", 0.0)
    assert ahead < loss_after(20)


def test_by_default_learning_ends_near_the_limit():
    losses = [epoch.loss for epoch in itertools.islice(full_batch(rows()).epochs(0.0, True), 300)]
    epochs = full_batch(rows()).epochs(None, True)
    for epoch in epochs:
        if epoch.converged:
            break
    # Rows of noise, without a dictionary to find, are learned slowest.
    assert epoch.loss < 1.02 * losses[-1]
    assert epoch.n_steps < 100
