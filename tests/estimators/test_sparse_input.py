"""Sparse X in the lasso classes: the same results as with dense X, without a dense copy."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone

from sklearn_vsc import FISTADictionaryLearner, SparseCoder, sparse_encode
from sklearn_vsc._rows import arrays
from sklearn_vsc.solvers.dictionary import full_batch

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

LEARNER = FISTADictionaryLearner(12, alpha=0.1, max_iter=4, random_state=0)
LEARNERS = {
    "full": LEARNER,
    "batches": clone(LEARNER).set_params(batch_size=40),
    "positive": clone(LEARNER).set_params(positive_code=True, positive_dict=True),
    "fista": clone(LEARNER).set_params(fit_algorithm="fista"),
}
each = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS.keys())
with_missing = pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])


def rows(missing=False, kind=sparse.csr_matrix, dtype=np.float64):
    X = sparse.random(150, 20, density=0.3, random_state=0, format="csr", dtype=dtype)
    if missing:
        X.data[np.random.default_rng(0).random(X.nnz) < 0.15] = np.nan
    return kind(X)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make a few rows dense at a time."""
    monkeypatch.setattr(arrays, "NUMBERS_AT_ONCE", 300)
    monkeypatch.setattr(full_batch, "_BLOCK_NUMBERS", 700)


@each
@with_missing
def test_fits_and_answers_equal_those_of_dense_rows(learner, missing, small_blocks):
    X = rows(missing)
    found, wanted = clone(learner).fit(X), clone(learner).fit(X.toarray())
    assert_allclose(found.components_, wanted.components_, atol=1e-9)
    assert_allclose(found.error_, wanted.error_, rtol=1e-9)
    assert_allclose(found.noise_variance_, wanted.noise_variance_, rtol=1e-9)
    assert_allclose(found.component_usage_, wanted.component_usage_)
    dense = X.toarray()
    assert_allclose(found.transform(X), found.transform(dense), atol=1e-9)
    assert_allclose(found.score_samples(X), found.score_samples(dense), rtol=1e-9)
    assert_allclose(found.score(X), found.score(dense), rtol=1e-9)
    posterior, of_dense = found.posterior(X), found.posterior(dense)
    assert_allclose(posterior.mean, of_dense.mean, atol=1e-9)
    assert_allclose(posterior.std, of_dense.std, rtol=1e-6)
    assert_allclose(
        found.sample_posterior(X[:9], 2), found.sample_posterior(dense[:9], 2), atol=1e-7
    )


@with_missing
def test_steps_equal_those_of_dense_rows(missing):
    X = rows(missing)
    found, wanted = clone(LEARNER), clone(LEARNER)
    for part in (slice(0, 80), slice(80, None)):
        found.partial_fit(X[part])
        wanted.partial_fit(X[part].toarray())
    assert_array_equal(found.components_, wanted.components_)


@pytest.mark.parametrize(
    "kind",
    [
        sparse.csr_array,
        sparse.csc_matrix,
        sparse.coo_array,
        lambda X: pd.DataFrame.sparse.from_spmatrix(X),
    ],
    ids=["csr_array", "csc_matrix", "coo_array", "pandas"],
)
def test_other_formats(kind):
    X, dense = rows(kind=kind), rows().toarray()
    learner = clone(LEARNER).fit(X)
    wanted = clone(LEARNER).fit(dense)
    assert_allclose(learner.components_, wanted.components_, atol=1e-9)
    codes = learner.transform(X)
    codes = codes.to_numpy() if hasattr(codes, "to_numpy") else codes
    assert_allclose(codes, wanted.transform(dense), atol=1e-9)


def test_duplicate_entries_are_summed_and_left_alone():
    X = sparse.csr_matrix(([1.0, 2.0, 5.0], [0, 0, 1], [0, 2, 3]), shape=(2, 3))
    dictionary = np.eye(3)
    codes = SparseCoder(dictionary, transform_algorithm="threshold", transform_alpha=1).transform(X)
    assert_array_equal(codes, [[2, 0, 0], [0, 4, 0]])
    assert X.nnz == 3


@pytest.mark.parametrize("algorithm", ["lasso_cd", "fista", "omp", "threshold"])
@with_missing
def test_given_dictionaries(algorithm, missing, small_blocks):
    X = rows(missing)
    dictionary = np.random.default_rng(0).standard_normal((30, 20))
    coder = SparseCoder(dictionary, transform_algorithm=algorithm, transform_alpha=0.2)
    assert_allclose(coder.fit(X).transform(X), coder.transform(X.toarray()), atol=1e-9)
    found = sparse_encode(X, dictionary, algorithm=algorithm, alpha=0.2)
    wanted = sparse_encode(X.toarray(), dictionary, algorithm=algorithm, alpha=0.2)
    assert_allclose(found, wanted, atol=1e-9)


def test_sparse_output_of_sparse_input():
    X = rows()
    learner = clone(LEARNER).set_params(sparse_output=True).fit(X)
    codes = learner.transform(X)
    assert sparse.issparse(codes)
    assert_allclose(codes.toarray(), clone(LEARNER).fit(X).transform(X))
    assert learner.inverse_transform(codes).shape == X.shape


def test_empty_rows_are_zeros():
    X = rows().tolil()
    X[3] = 0
    X = X.tocsr()
    assert not clone(LEARNER).fit(X).transform(X)[3].any()


@pytest.mark.parametrize("bad", ["infinite", "row", "column"])
def test_bad_rows(bad):
    X = rows().toarray()
    if bad == "infinite":
        X[2, 3] = np.inf
    elif bad == "row":
        X[2] = np.nan
    else:
        X[:, 3] = np.nan
    message = {"infinite": r"X\[2, 3\] is inf", "row": "in row 2", "column": "in column 3"}[bad]
    with pytest.raises(ValueError, match=message):
        clone(LEARNER).fit(sparse.csr_matrix(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_kept(dtype):
    X = rows(dtype=dtype)
    learner = clone(LEARNER).fit(X)
    assert learner.components_.dtype == dtype
    assert learner.transform(X).dtype == dtype


def test_numbers_of_16_bits_become_float32():
    X = rows(dtype=np.float32).toarray().astype(np.float16)
    found, wanted = clone(LEARNER).fit(X), clone(LEARNER).fit(X.astype(np.float32))
    assert found.components_.dtype == np.float32
    assert_array_equal(found.components_, wanted.components_)
    assert found.transform(X).dtype == np.float32
    tensor = torch.from_numpy(X.astype(np.float32)).bfloat16()
    assert clone(LEARNER).fit(tensor).components_.dtype == np.float32


@pytest.mark.slow
def test_a_fit_makes_no_dense_copy():
    code = """
import resource, numpy as np
from scipy import sparse
from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc._rows import arrays
from sklearn_vsc._training import dictionary_fit
from sklearn_vsc.solvers.dictionary import full_batch
full_batch._BLOCK_NUMBERS = dictionary_fit._NUMBERS_AT_ONCE = arrays.NUMBERS_AT_ONCE = 2**20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
n_rows, n_features, rng = 4000, 20_000, np.random.default_rng(0)
places = np.repeat(np.arange(n_rows), 10), np.arange(10 * n_rows) % n_features
X = sparse.csr_matrix((rng.random(10 * n_rows, np.float32), places), shape=(n_rows, n_features))
learner = FISTADictionaryLearner(16, alpha=1.0, max_iter=1, tol=0, random_state=0)
learner.fit(X[:60, :60].toarray() + 0.1).score(X[:60, :60].toarray())
before = peak()
learner.fit(X).score(X)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # A dense copy would take 305 MB, and its mask another 76.
    assert float(run.stdout.splitlines()[-1]) < 200
