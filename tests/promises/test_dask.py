"""dask workers with GridSearchCV, and dask arrays."""

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

X = make_sparse_coded(n_samples=120, n_components=12, noise=0.1, random_state=0)[0]
BLOCKS = (50, 30, 40)
ESTIMATORS = [
    FISTADictionaryLearner(8, alpha=0.1, max_iter=3, random_state=0),
    ThresholdedVSC(8, max_iter=3, random_state=0),
    SparseVAE(8, max_iter=3, random_state=0),
    SCVAE(8, max_iter=3, hidden_layer_sizes=(16,), random_state=0),
]
SEARCHES = [
    (FISTADictionaryLearner(8, max_iter=3, random_state=0), {"alpha": [0.03, 0.3]}),
    (ThresholdedVSC(8, max_iter=3, random_state=0), {"density": [0.05, 0.2]}),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row")


def _name(value):
    return type(value).__name__


@pytest.fixture(scope="module")
def client():
    """A client with two workers, each a process with one thread."""
    with pytest.MonkeyPatch.context() as patch:
        # As in a user's shell, these are not set; dask sets them for its workers.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.delenv(name, raising=False)
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            # It must not become the default client of other tests.
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "grid"), SEARCHES, ids=_name)
def test_search_gives_the_same_result_as_a_serial_one(client, estimator, grid):
    serial = GridSearchCV(estimator, grid, cv=2).fit(X)
    search = GridSearchCV(clone(estimator), grid, cv=2)
    with parallel_config(backend="dask", client=client):
        search.fit(X)
    assert search.best_params_ == serial.best_params_
    np.testing.assert_allclose(
        search.cv_results_["split0_test_score"],
        serial.cv_results_["split0_test_score"],
        rtol=1e-4,
    )
    assert len(set(search.cv_results_["mean_test_score"])) == 2
    codes = serial.transform(X)
    np.testing.assert_allclose(search.transform(X), codes, atol=1e-3 * np.abs(codes).max())


def _who_fits(seed):
    """Fit in a worker; return its process id, and the number of threads for torch and coders."""
    import os

    import torch

    ThresholdedVSC(4, max_iter=1, random_state=seed).fit(X)
    return os.getpid(), torch.get_num_threads()


@pytest.mark.slow
def test_workers_have_one_thread_each(client):
    workers = list(client.scheduler_info()["workers"])
    futures = [client.submit(_who_fits, i, workers=[w]) for i, w in enumerate(workers)]
    pids, threads = zip(*client.gather(futures), strict=True)
    assert len(set(pids)) == 2
    assert threads == (1, 1)


def _rows():
    return da.from_array(X, chunks=(BLOCKS, X.shape[1]))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_name)
def test_fit_computes_the_whole_array(estimator):
    model, plain = clone(estimator).fit(_rows()), clone(estimator).fit(X)
    np.testing.assert_array_equal(model.components_, plain.components_)
    np.testing.assert_array_equal(model.transform(_rows()), plain.transform(X))
    assert model.score(_rows()) == plain.score(X)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_name)
def test_partial_fit_computes_only_its_block(estimator):
    """Blocks are computed one at a time, without the rest of the array."""
    computed = []

    def note(block, block_info=None):
        computed.append(block_info[0]["chunk-location"][0])
        return block

    rows = _rows().rechunk((BLOCKS, (X.shape[1] - 4, 4)))
    noted = rows.map_blocks(note, dtype=X.dtype, meta=np.empty((0, 0)))
    model, plain, start = clone(estimator), clone(estimator), 0
    for i, size in enumerate(BLOCKS):
        computed.clear()
        # Computed in this process, so that it is recorded.
        with dask.config.set(scheduler="synchronous"):
            model.partial_fit(noted.blocks[i])
        assert set(computed) == {i}
        plain.partial_fit(X[start : start + size])
        start += size
    np.testing.assert_array_equal(model.components_, plain.components_)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_name)
def test_codes_are_computed_block_by_block(estimator):
    model = clone(estimator).fit(X)
    codes = _rows().map_blocks(
        model.transform, dtype=X.dtype, chunks=(BLOCKS, (8,)), meta=np.empty((0, 0))
    )
    assert codes.shape == (len(X), 8)
    expected = model.transform(X)
    np.testing.assert_allclose(codes.compute(), expected, atol=1e-9 * np.abs(expected).max())


def test_bad_rows_in_a_block_are_an_error():
    with pytest.raises(ValueError, match="infinity"):
        SparseVAE(3).partial_fit(da.full((8, 4), np.inf, chunks=4))
