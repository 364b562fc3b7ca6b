"""Statistics of many atoms, from the pairs that occur together, against dense ones."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_vsc import FISTADictionaryLearner, load
from sklearn_vsc.solvers.dictionary import sparse_gram
from sklearn_vsc.solvers.dictionary.sparse_gram import SparseGram
from sklearn_vsc.solvers.dictionary.statistics import Statistics
from sklearn_vsc.solvers.dictionary.update import update_dictionary

N_COMPONENTS, N_FEATURES = 40, 12


@pytest.fixture
def few_dense(monkeypatch):
    """Store the inner products of the codes of more than ten atoms sparsely."""
    monkeypatch.setattr(sparse_gram, "_MOST_DENSE_ATOMS", 10)


def coded_rows(seed, n_rows=60, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    X = torch.from_numpy(rng.standard_normal((n_rows, N_FEATURES))).to(dtype)
    codes = rng.standard_normal((n_rows, N_COMPONENTS)) * (rng.random((n_rows, N_COMPONENTS)) < 0.1)
    codes[:, 7] = 0
    return X, torch.from_numpy(codes).to(dtype)


def matrix(gram):
    return gram.matrix.toarray() if isinstance(gram, SparseGram) else gram.numpy()


def both(monkeypatch, compute):
    """Return what is computed from sparse and from dense statistics."""
    results = []
    for most in (10, 1000):
        monkeypatch.setattr(sparse_gram, "_MOST_DENSE_ATOMS", most)
        results.append(compute())
    return results


def history():
    """Return statistics that every operation has changed."""
    X, codes = coded_rows(0)
    later, other = coded_rows(1)[1], coded_rows(2)[1]
    sums = Statistics.zeros_like(torch.zeros(N_COMPONENTS, N_FEATURES, dtype=X.dtype))
    sums.add(Statistics.change(X, None, codes))
    copy = sums.copy()
    sums.add(Statistics.change(X, codes, later))
    sums.scale(0.5)
    sums.subtract(Statistics.change(X[:20], None, other[:20]))
    unused = torch.zeros(N_COMPONENTS, dtype=torch.bool)
    unused[[3, 11]] = True
    sums.clear(unused)
    return copy, sums, sums.ahead(copy, 0.3)


def test_statistics_equal_dense_ones(monkeypatch):
    for few, all_pairs in zip(*both(monkeypatch, history), strict=True):
        assert isinstance(few.code_gram, SparseGram)
        assert_allclose(matrix(few.code_gram), matrix(all_pairs.code_gram), atol=1e-12)
        assert_allclose(few.code_data, all_pairs.code_data, atol=1e-12)
        assert torch.equal(few.n_users, all_pairs.n_users)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("unit", [1.0, 1e-60])
def test_updates_equal_dense_ones(monkeypatch, positive, unit):
    X, codes = coded_rows(3)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(N_COMPONENTS, N_FEATURES, dtype=torch.float64, generator=generator)
    start = start.abs() if positive else start
    start /= torch.linalg.vector_norm(start, dim=1, keepdim=True)

    def updated():
        sums = Statistics.change(unit * X, None, unit * codes)
        return update_dictionary(
            start, sums.code_gram, sums.code_data, positive=positive, n_sweeps=2
        )

    few, all_pairs = both(monkeypatch, updated)
    assert_allclose(few, all_pairs, atol=1e-10)
    assert not torch.equal(few, start)
    assert torch.equal(few[7], start[7])


def test_entries_are_kept(few_dense):
    X, codes = coded_rows(4, dtype=torch.float32)
    gram = Statistics.change(X, None, codes).code_gram
    again = SparseGram.from_entries(gram.entries, N_COMPONENTS)
    assert gram.entries.dtype == np.float32
    assert (matrix(again) == matrix(gram)).all()


def test_rounding_is_dropped(few_dense, monkeypatch):
    monkeypatch.setattr(sparse_gram, "_LEAST_ENTRIES", 8)
    X, codes = coded_rows(5)
    later = coded_rows(6)[1]
    sums = Statistics.change(X, None, codes)
    sums.code_gram._n_kept = 8
    sums.add(Statistics.change(X, codes, later))
    wanted = Statistics.change(X, None, later).code_gram
    assert sums.code_gram.matrix.nnz <= np.count_nonzero(matrix(wanted))
    assert_allclose(matrix(sums.code_gram), matrix(wanted), atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_fits_equal_dense_ones(monkeypatch, batch_size):
    X = np.random.default_rng(0).standard_normal((200, 8))

    def fitted():
        learner = FISTADictionaryLearner(
            20, alpha=0.5, max_iter=4, batch_size=batch_size, random_state=0
        )
        return learner.fit(X).partial_fit(X[:60])

    few, all_pairs = both(monkeypatch, fitted)
    assert few._seen.code_gram.shape[1] == 3
    assert_allclose(few.components_, all_pairs.components_, atol=1e-6)
    assert_allclose(few.error_, all_pairs.error_, rtol=1e-6)


def test_a_saved_learner_goes_on(few_dense, tmp_path):
    X = np.random.default_rng(1).standard_normal((120, 8))
    learner = FISTADictionaryLearner(20, alpha=0.5, max_iter=2, random_state=0).fit(X)
    learner.save(tmp_path / "model")
    again = load(tmp_path / "model").partial_fit(X[:50])
    assert_allclose(again.components_, learner.partial_fit(X[:50]).components_, atol=1e-12)


def test_a_file_with_impossible_entries_is_refused(few_dense, tmp_path):
    X = np.random.default_rng(1).standard_normal((60, 8))
    learner = FISTADictionaryLearner(20, alpha=0.5, max_iter=1, random_state=0).fit(X)
    learner._seen.code_gram[0, 0] = 20
    learner.save(tmp_path / "model")
    with pytest.raises(ValueError, match="code_gram"):
        load(tmp_path / "model")
