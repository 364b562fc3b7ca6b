"""Rows that are not held in memory: partial_fit, memory-mapped arrays, torch datasets."""

import copy
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc._rows import sources
from sklearn_vsc._rows.arrays import rows_at_once
from sklearn_vsc._rows.missing import ObservedRows
from sklearn_vsc._rows.sources import ArrayRows, dataset_rows
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.solvers.least_squares import effective_dictionary

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

SMALL = {"n_components": 6, "max_iter": 2, "hidden_layer_sizes": (12,), "random_state": 0}
NEURAL = {
    "thresholded": ThresholdedVSC(batch_size=128, **SMALL),
    "laplace": SparseVAE(**SMALL),
    "scvae": SCVAE(**SMALL),
}
ONLINE = FISTADictionaryLearner(6, alpha=0.1, batch_size=50, max_iter=2, random_state=0)
ALL = NEURAL | {"fista": ONLINE}
each_neural = pytest.mark.parametrize("estimator", NEURAL.values(), ids=NEURAL.keys())
each = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL.keys())

X = make_sparse_coded(n_samples=300, n_components=6, n_features=9, random_state=0)[0] + 2.0
INCOMPLETE = np.where(np.random.RandomState(0).uniform(size=X.shape) < 0.2, np.nan, X)
INCOMPLETE[:, 4] = X[:, 4]


class Rows(Dataset):
    """A map-style dataset that records which rows were requested."""

    def __init__(self, X, form=lambda row: row):
        self.X = X
        self.form = form
        self.requested = []

    def __len__(self):
        return len(self.X)

    def __getitem__(self, number):
        self.requested.append(number)
        return self.form(self.X[number])


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items
        self.n_passes = 0

    def __iter__(self):
        self.n_passes += 1
        return iter(self.items)


def mapped(tmp_path, X, mode="r"):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode=mode)


def assert_same_fit(found, wanted):
    """Check that all results of two fits are the same to the last bit."""
    for name in ("components_", "component_usage_", "noise_variance_", "n_iter_"):
        assert_array_equal(getattr(found, name), getattr(wanted, name))
    records = [
        [{k: v for k, v in record.items() if k != "duration"} for record in model.history_]
        for model in (found, wanted)
    ]
    assert records[0] == records[1]
    if hasattr(wanted, "module_"):
        states = found.module_.state_dict(), wanted.module_.state_dict()
        for name, value in states[1].items():
            assert_array_equal(states[0][name], value)
    assert_array_equal(found.score_samples(X), wanted.score_samples(X))


# --- memory-mapped arrays


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fit_on_a_memory_map_equals_the_fit_on_the_array(estimator, dtype, tmp_path):
    rows = X.astype(dtype)
    model = clone(estimator).fit(mapped(tmp_path, rows, "r" if dtype == np.float32 else "c"))
    assert_same_fit(model, clone(estimator).fit(rows))
    assert model.components_.dtype == dtype


@each
def test_fit_on_a_memory_map_with_missing_entries(estimator, tmp_path):
    model = clone(estimator).fit(mapped(tmp_path, INCOMPLETE))
    assert_same_fit(model, clone(estimator).fit(INCOMPLETE))


@each_neural
def test_early_stopping_on_a_memory_map(estimator, tmp_path):
    estimator = clone(estimator).set_params(early_stopping=True, validation_fraction=0.2)
    model = clone(estimator).fit(mapped(tmp_path, X))
    assert_same_fit(model, clone(estimator).fit(X))
    assert "valid_loss" in model.history_[0]


@each
def test_partial_fit_on_chunks_of_a_memory_map(estimator, tmp_path):
    rows = mapped(tmp_path, X[:250])
    learned = clone(estimator).partial_fit(rows[:50])

    def quality():
        if not isinstance(estimator, FISTADictionaryLearner):
            return learned.score(X[250:])
        # What this class minimises.
        codes = learned.transform(X[250:])
        residual = X[250:] - learned.inverse_transform(codes)
        return -0.5 * np.sum(residual**2) - estimator.alpha * np.abs(codes).sum()

    first = quality()
    for _ in range(12):
        for start in range(0, 250, 50):
            learned.partial_fit(rows[start : start + 50])
    assert learned.n_iter_ == 61
    assert quality() > first


@each_neural
@pytest.mark.parametrize("incomplete", [False, True])
def test_memory_of_a_fit_does_not_grow_with_the_rows(estimator, incomplete, tmp_path, monkeypatch):
    """Counts NumPy's share: rows, missing entries, means, codes. Limits on chunks are low here."""
    monkeypatch.setattr("sklearn_vsc._rows.arrays._ROWS_AT_ONCE", 256)
    for module in ("_rows.arrays", "_inference.settling"):
        monkeypatch.setattr(f"sklearn_vsc.{module}.NUMBERS_AT_ONCE", 2**15)
    monkeypatch.setattr("sklearn_vsc._rows.sources._START_NUMBERS", 2**15)
    n_rows = 4_000
    rows = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float32, (n_rows, 256))
    rows[:] = np.random.RandomState(0).standard_normal((1, 256))
    rows[:, 3] = np.arange(n_rows) / n_rows
    if incomplete:
        rows[::2, 5] = np.nan
    model = clone(estimator).set_params(max_iter=1, batch_size=250, encoder="mlp")
    model.fit(rows[:500])
    tracemalloc.start()
    model.fit(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * rows.nbytes


def test_a_memory_map_is_recognised_and_not_copied(tmp_path):
    rows = mapped(tmp_path, X)
    for view in (rows, rows[10:], np.asarray(rows), rows[::2].T.T):
        assert not ArrayRows(view).in_memory
    assert ArrayRows(X).in_memory
    assert ArrayRows(rows[[3, 1]]).in_memory
    checked = ThresholdedVSC()._validate_rows(rows, reset=True)
    assert np.shares_memory(checked, rows)
    subset = ArrayRows(rows).subset(np.array([5, 2, 9]))
    assert_array_equal(np.concatenate(list(subset.batches(2))), X[[5, 2, 9]])
    picked = subset.batches(2, torch.tensor([2, 0]))
    assert_array_equal(np.concatenate(list(picked)), X[[9, 5]])
    assert_array_equal(subset.sample(2), X[[5, 9]])


# --- sums over chunks


@pytest.mark.parametrize("incomplete", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_over_chunks_round_like_those_of_the_array(incomplete, dtype):
    rng = np.random.RandomState(0)
    rows = (rng.standard_normal((1000, 5)) + 3).astype(dtype)
    if incomplete:
        rows[rng.uniform(size=rows.shape) < 0.3] = np.nan
        rows[:, 0] = 1
    observed = ObservedRows(5)
    for start in range(0, 1000, 64):
        observed.add(rows[start : start + 64])
    there = ~np.isnan(rows)
    assert_array_equal(observed.means, rows.mean(axis=0, dtype=np.float64, where=there))
    assert observed.n_observed == there.sum()
    assert observed.has_holes == incomplete
    assert (observed.least, observed.most) == (np.nanmin(rows), np.nanmax(rows))
    observed.check(columns=True)


def test_errors_in_a_later_chunk_have_the_right_index():
    observed = ObservedRows(3)
    observed.add(np.ones((10, 3)))
    with pytest.raises(ValueError, match=r"infinity: X\[11, 2\] is -inf"):
        observed.add(np.array([[np.nan, 1, 1], [1, 1, -np.inf]]))
    observed = ObservedRows(2)
    for _ in range(2):
        observed.add(np.array([[np.nan, 1.0], [np.nan, np.nan]]))
    with pytest.raises(ValueError, match="no observed entries in rows 1, 3:"):
        observed.check(columns=True)
    observed = ObservedRows(2)
    observed.add(np.array([[np.nan, 1.0]]))
    observed.check(columns=False)
    with pytest.raises(ValueError, match="no observed entries in column 0:"):
        observed.check(columns=True)


def test_rows_at_once_are_bounded_by_rows_and_by_numbers():
    assert rows_at_once(1) == rows_at_once(4096) == 4096
    assert rows_at_once(2**20) == 16
    assert rows_at_once(2**30) == 1


@pytest.mark.parametrize("estimator", [SparseVAE(**SMALL), SCVAE(**SMALL)])
@pytest.mark.parametrize("incomplete", [False, True])
def test_components_are_the_least_squares_dictionary_of_all_chunks(
    estimator, incomplete, monkeypatch
):
    monkeypatch.setattr("sklearn_vsc._rows.arrays._ROWS_AT_ONCE", 64)
    rows = INCOMPLETE if incomplete else X
    model = clone(estimator).fit(rows)
    codes = model.transform(rows)
    wanted = effective_dictionary(torch.from_numpy(rows), torch.from_numpy(codes))
    assert_allclose(model.components_, wanted.numpy(), rtol=1e-6, atol=1e-8)
    assert_allclose(model.component_usage_, (codes != 0).mean(axis=0), rtol=1e-12)


def test_dictionary_of_incomplete_rows_uses_the_rows_that_fit_into_memory(monkeypatch):
    monkeypatch.setattr("sklearn_vsc._inference.settling.NUMBERS_AT_ONCE", 9 * 100)
    model = SparseVAE(**SMALL).fit(INCOMPLETE)
    codes = model.transform(INCOMPLETE[::3])
    wanted = effective_dictionary(torch.from_numpy(INCOMPLETE[::3]), torch.from_numpy(codes))
    assert_allclose(model.components_, wanted.numpy(), rtol=1e-8, atol=1e-10)


# --- datasets


@each_neural
@pytest.mark.parametrize(
    "rows", [X, INCOMPLETE, X.astype(np.float32)], ids=["64", "incomplete", "32"]
)
def test_fit_on_a_dataset_equals_the_fit_on_the_array(estimator, rows):
    model = clone(estimator).fit(TensorDataset(torch.from_numpy(rows)))
    assert_same_fit(model, clone(estimator).fit(rows))
    assert model.n_features_in_ == 9
    assert model.transform(rows).dtype == rows.dtype


@each_neural
def test_early_stopping_and_warm_start_on_a_dataset(estimator):
    estimator = clone(estimator).set_params(early_stopping=True, warm_start=True)
    models = [clone(estimator).fit(rows).fit(rows) for rows in (Rows(X), X)]
    assert_same_fit(*models)
    assert models[0].n_iter_ == 4


@each_neural
def test_partial_fit_on_a_dataset_equals_that_on_the_array(estimator):
    models = [clone(estimator) for _ in range(3)]
    for part in (X[:120], X[120:]):
        for model, rows in zip(models, (Rows(part), part, Stream(part)), strict=True):
            model.partial_fit(rows)
    assert_same_fit(models[0], models[1])
    assert models[2].n_iter_ == 2
    assert models[2]._n_rows_seen == len(X)


@pytest.mark.parametrize(
    "form",
    [
        torch.from_numpy,
        lambda row: (row, 3),
        lambda row: [torch.from_numpy(row), "label"],
        lambda row: row.astype(np.float64),
        lambda row: torch.from_numpy(row).requires_grad_(),
    ],
)
def test_forms_of_an_item(form):
    rows = dataset_rows(Rows(X, form), None)
    assert_array_equal(np.concatenate(list(rows.chunks())), X)


def test_dtypes_are_converted_like_those_of_arrays():
    for kind, wanted in (
        (np.float32, np.float32),
        (np.float16, np.float32),
        (np.uint8, np.float64),
    ):
        rows = dataset_rows(Rows(X.astype(kind)), None)
        assert rows.dtype == wanted
        assert_array_equal(rows.sample(len(X)), X.astype(kind))
    half = torch.from_numpy(X).bfloat16()
    assert_array_equal(dataset_rows(TensorDataset(half), None).sample(300), half.float())


def test_images_are_flattened():
    images = np.random.RandomState(0).uniform(size=(24, 1, 8, 8)).astype(np.float32)
    model = SCVAE(4, image_shape=(1, 8, 8), max_iter=1, random_state=0)
    wanted = clone(model).fit(images)
    for rows in (
        Rows(images),
        Rows(images.reshape(24, -1)),
        Rows(images, lambda image: (image, 0)),
    ):
        found = clone(model).fit(rows)
        assert_array_equal(found.components_, wanted.components_)
        assert_array_equal(found.transform(images), wanted.transform(images))
    for items in (images, np.split(images, 6), np.split(images.reshape(24, -1), 6)):
        rows = dataset_rows(Stream(items), (1, 8, 8))
        assert_array_equal(rows.sample(24), images.reshape(24, -1))
    with pytest.raises(ValueError, match=r"image_shape.*multiply to the 9 features"):
        clone(model).fit(Rows(X))


@each_neural
def test_an_iterable_keeps_its_order(estimator):
    """Rows one at a time, or in batches of any size, give the same fit."""
    streams = [Stream(X), Stream([X[:1], X[1:130], X[130:130], X[130:]]), Stream([X])]
    models = [clone(estimator).fit(stream) for stream in streams]
    assert_same_fit(models[1], models[0])
    assert_same_fit(models[2], models[0])
    assert models[0].n_iter_ == 2
    assert not np.array_equal(models[0].components_, clone(estimator).fit(X).components_)
    # A look at the first item, then checks, unit, sample, two epochs and fitted attributes.
    assert streams[0].n_passes in (7, 8)
    rows = dataset_rows(streams[1], None)
    assert [len(batch) for batch in rows.batches(128)] == [128, 128, 44]
    assert_array_equal(rows.sample(40), X[::8])
    n_passes = streams[1].n_passes
    assert_array_equal(rows.sample(10), X[::32])
    assert streams[1].n_passes == n_passes
    assert_array_equal(rows.sample(1000), X)


def test_an_iterable_in_one_batch_is_the_array():
    """Without draws and with one batch, order has no effect: the fits see the same rows."""
    model = ThresholdedVSC(**SMALL | {"batch_size": 300, "max_iter": 1})
    found, wanted = clone(model).fit(Stream(INCOMPLETE)), clone(model).fit(INCOMPLETE)
    assert_allclose(found.components_, wanted.components_, rtol=1e-3, atol=1e-4)
    assert_allclose(found.noise_variance_, wanted.noise_variance_, rtol=1e-3)
    assert_array_equal(found.component_usage_, wanted.component_usage_)


def test_global_generators_are_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1]
    SparseVAE(**SMALL).fit(Rows(X))
    SparseVAE(**SMALL).fit(Stream(X))
    assert_array_equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])


def test_every_epoch_reads_each_row_once():
    rows = Rows(X)
    model = SparseVAE(**SMALL | {"max_iter": 1})
    counts = []
    for n_epochs in (1, 3):
        rows.requested.clear()
        clone(model).set_params(max_iter=n_epochs).fit(rows)
        counts.append(np.bincount(rows.requested))
    assert_array_equal(counts[1] - counts[0], 2)


# --- what is refused


@pytest.mark.parametrize(
    "rows, error, match",
    [
        (Rows(X[:0]), ValueError, "is empty: at least one row"),
        (Stream([]), ValueError, "is empty: at least one row"),
        (Stream([X[:0]]), ValueError, "is empty: at least one row"),
        (Rows(["text"] * 3), TypeError, "Item 0 .* row of real numbers.*got str"),
        (Rows([{"row": X[0]}]), TypeError, "Item 0 .*got dict"),
        (Rows([X[0], X[1] + 1j]), TypeError, "Item 1 .*got ndarray of complex128"),
        (Rows([1.0, 2.0]), TypeError, "Item 0 .*got float"),
        (Rows([X[0], X[1][:5]]), ValueError, "Item 1 .* 5 values .* before it have 9"),
        (Stream([X[:4], X[4:, :5]]), ValueError, "Item 1 .* 5 values .* before it have 9"),
        (Rows(X.reshape(-1, 3, 3)), ValueError, r"Item 0 .* shape \(3, 3\).*one axis.*image_shape"),
        (Stream(X.reshape(2, -1, 3, 3)), ValueError, r"shape \(150, 3, 3\).*or a batch of rows"),
        (Stream(iter(X)), ValueError, "yielded 299 rows when first read, and 0"),
    ],
)
def test_datasets_that_are_refused(rows, error, match):
    model = SparseVAE(**SMALL)
    with pytest.raises(error, match=match):
        model.fit(rows)
    assert not hasattr(model, "module_")


def test_a_dataset_without_length_is_refused():
    class Endless(Dataset):
        def __getitem__(self, number):
            return X[0]

    with pytest.raises(TypeError, match="Endless, has no length"):
        SparseVAE(**SMALL).fit(Endless())


def test_entries_are_checked_like_those_of_arrays(monkeypatch):
    monkeypatch.setattr("sklearn_vsc._rows.arrays._ROWS_AT_ONCE", 64)
    for wrong, place, match in (
        (np.inf, (200, 3), r"X\[200, 3\] is inf"),
        (np.nan, (200,), "no observed entries in row 200:"),
        (np.nan, (slice(None), 2), "no observed entries in column 2:"),
    ):
        rows = X.copy()
        rows[place] = wrong
        for given in (rows, Rows(rows), Stream(rows)):
            with pytest.raises(ValueError, match=match):
                SparseVAE(**SMALL).fit(given)
    for given in (X, Rows(X)):
        with pytest.raises(ValueError, match=r"needs X in \[0, 1\]"):
            SparseVAE(likelihood="bernoulli", **SMALL).fit(given)


def test_later_rows_must_have_the_same_number_of_features():
    model = SparseVAE(**SMALL).fit(X)
    with pytest.raises(ValueError, match="X has 5 features, but SparseVAE is expecting 9"):
        model.partial_fit(Rows(X[:, :5]))
    assert model.n_iter_ == 2


def test_early_stopping_needs_rows_with_indices():
    stream = Stream(X)
    with pytest.raises(ValueError, match=r"early_stopping=True .* map-style Dataset"):
        SparseVAE(early_stopping=True, **SMALL).fit(stream)
    assert stream.n_passes == 0
    with pytest.raises(ValueError, match=r"early_stopping=True .* at least 2"):
        SparseVAE(early_stopping=True, **SMALL).fit(Rows(X[:1]))


def loader(X):
    return DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=37)


@each
@pytest.mark.parametrize("kind", [Rows, Stream, loader])
def test_other_methods_take_datasets(estimator, kind):
    model = clone(estimator).fit(X)
    assert_array_equal(model.transform(kind(X)), model.transform(X))
    assert_array_equal(model.posterior(kind(X)).mean, model.posterior(X).mean)
    assert_allclose(model.score(kind(X)), model.score(X), rtol=1e-12)


@each
def test_fit_transform_takes_a_dataset(estimator):
    assert_array_equal(clone(estimator).fit_transform(Rows(X)), clone(estimator).fit_transform(X))


@each
@pytest.mark.parametrize("kind", [Rows, Stream, loader, np.asarray, csr_matrix, pd.DataFrame])
def test_codes_come_batch_by_batch(estimator, kind, monkeypatch):
    monkeypatch.setattr(sources, "rows_at_once", lambda n_numbers: 64)
    if kind is csr_matrix and estimator is not ONLINE:
        pytest.skip("Sparse rows are for the lasso.")
    model = clone(estimator).fit(kind(X) if kind is pd.DataFrame else X)
    batches = list(model.transform_batches(kind(X)))
    assert [len(batch) for batch in batches[:2]] == ([37, 37] if kind is loader else [64, 64])
    assert_allclose(np.concatenate(batches), model.transform(kind(X)), atol=1e-10)


def test_batches_need_a_fit():
    with pytest.raises(NotFittedError):
        clone(ONLINE).transform_batches(X)


@each
def test_a_fit_to_a_loader_equals_that_to_its_rows(estimator):
    state = torch.get_rng_state()
    found = clone(estimator).fit(loader(X))
    assert torch.equal(torch.get_rng_state(), state)
    wanted = clone(estimator).fit(Stream(X) if estimator is not ONLINE else X)
    assert_array_equal(found.components_, wanted.components_)


def test_each_batch_of_a_loader_is_a_step():
    found, wanted = clone(ONLINE).partial_fit(loader(X)), clone(ONLINE)
    for start in range(0, len(X), 37):
        wanted.partial_fit(X[start : start + 37])
    assert found.n_iter_ == 9
    assert_allclose(found.components_, wanted.components_, atol=1e-10)


@pytest.mark.parametrize("rows", [X, INCOMPLETE.astype(np.float32)], ids=["64", "incomplete 32"])
@pytest.mark.parametrize("kind", [Rows, Stream, lambda X: TensorDataset(torch.from_numpy(X))])
def test_a_dictionary_from_a_dataset_equals_that_from_the_array(kind, rows):
    learner = FISTADictionaryLearner(5, alpha=0.3, max_iter=3, random_state=0)
    found, wanted = clone(learner).fit(kind(rows)), clone(learner).fit(rows)
    for _ in range(2):
        assert_array_equal(found.components_, wanted.components_)
        assert found.noise_variance_ == wanted.noise_variance_
        assert_array_equal(found.transform(rows), wanted.transform(rows))
        found.partial_fit(kind(rows[:40]))
        wanted.partial_fit(rows[:40])


def test_an_error_in_the_dataset_is_raised_and_changes_nothing():
    def fail(row):
        raise OSError("the disk is gone")

    model = SparseVAE(**SMALL).fit(X)
    before = copy.deepcopy(model)
    with pytest.raises(OSError, match="the disk is gone"):
        model.partial_fit(Rows(X, fail))
    assert_same_fit(model, before)


# --- several gigabytes: python -m pytest -m big

BIG = """
import sys, threading, time, warnings
import numpy as np
import sklearn_vsc

warnings.simplefilter("ignore")
GIB = 2**30


def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


def peak_of(work):
    peak, done = anonymous(), threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak, anonymous())


path, n_features, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
X = np.memmap(path, np.float32, "r").reshape(-1, n_features)
common = {"n_components": 4, "max_iter": 1, "batch_size": 2**11, "random_state": 0}
narrow = {"hidden_layer_sizes": (8,), **common}
model = {
    "ThresholdedVSC": lambda: sklearn_vsc.ThresholdedVSC(encoder="mlp", n_refine=0, **narrow),
    "SparseVAE": lambda: sklearn_vsc.SparseVAE(decoder="linear", **narrow),
    "SCVAE": lambda: sklearn_vsc.SCVAE(noise_variance=1.0, **narrow),
    "FISTADictionaryLearner": lambda: sklearn_vsc.FISTADictionaryLearner(
        alpha=0.1, max_no_improvement=None, tol=0, **common
    ),
}[kind]()
# This fit does the imports, compiles the loops and creates torch's pools beforehand.
type(model)(**model.get_params()).fit(np.array(X[:3000]))
before, start = anonymous(), time.perf_counter()
rise = peak_of(lambda: model.fit(X)) - before
print(kind, len(X), f"rows {X.nbytes / GIB:.1f} GiB", f"{time.perf_counter() - start:.0f} s", rise)
assert model.n_iter_ == 1 and np.isfinite(model.components_).all()
"""


# Also slow, so that no selection of quick tests includes it.
@pytest.mark.slow
@pytest.mark.big
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs sparse files")
@pytest.mark.parametrize("kind", ["ThresholdedVSC", "SparseVAE", "SCVAE", "FISTADictionaryLearner"])
def test_fit_of_several_gigabytes_in_little_memory(kind, tmp_path):
    """A file of zeros takes no space on the disk; only a few of its rows are not zero."""
    n_features, n_bytes = 2048, 4 * 2**30
    path = tmp_path / "X.dat"
    with open(path, "wb") as file:
        file.truncate(n_bytes)
    rows = np.memmap(path, np.float32, "r+").reshape(-1, n_features)
    rows[:: len(rows) // 5000] = np.random.RandomState(0).standard_normal((1, n_features))
    rows.flush()
    del rows
    command = [sys.executable, "-c", BIG, str(path), str(n_features), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert int(done.stdout.split()[-1]) < 600 * 2**20


# --------------------------------------------------------------- first chunks unlike the others


@pytest.fixture(scope="module")
def stream_rows():
    rows = make_sparse_coded(2600, 12, 8, density=0.2, noise=0.1, random_state=0)[0]
    return rows / rows.std() + 1.0


def _after_stream(estimator, first, rows):
    model = clone(estimator).partial_fit(first)
    for start in range(50, 2100, 50):
        model.partial_fit(rows[start : start + 50])
    return model.score(rows[2100:])


@pytest.mark.parametrize(
    "estimator",
    [
        ThresholdedVSC(8, random_state=0),
        ThresholdedVSC(8, solver="gradient", random_state=0),
        SparseVAE(8, random_state=0),
        SCVAE(8, random_state=0),
    ],
    ids=["em", "gradient", "laplace", "scvae"],
)
def test_first_chunk_of_a_stream_is_forgotten(estimator, stream_rows):
    first = stream_rows[:50]
    even = _after_stream(estimator, first, stream_rows)
    for chunk in (0.01 * first, 100 * first, first[:1], np.zeros_like(first)):
        assert _after_stream(estimator, chunk, stream_rows) > even - 1.2


@pytest.mark.parametrize(
    "estimator",
    [SparseVAE(6, random_state=0), SparseVAE(6, noise_variance=0.3, random_state=0)],
    ids=["learned", "fixed"],
)
def test_units_follow_a_stream(estimator, stream_rows):
    model = clone(estimator)
    for start in range(0, 2000, 50):
        chunk = stream_rows[start : start + 50].copy()
        chunk[:, 3] = np.nan if start % 100 else chunk[:, 3]
        model.partial_fit(chunk)
    unit = np.sqrt(np.mean((stream_rows - stream_rows.mean(0)) ** 2))
    assert model._units.scale == pytest.approx(unit, rel=0.1)
    assert_allclose(model._units.offset, stream_rows.mean(0), atol=0.3)
    if estimator.noise_variance == 0.3:
        assert model.noise_variance_ == pytest.approx(0.3)


def test_intercept_stays_when_units_move(stream_rows):
    model = SparseVAE(6, decoder="linear", max_iter=5, random_state=0).fit(stream_rows[:2000])
    model.set_params(learning_rate_init=1e-30)
    before = model.intercept_
    model.partial_fit(stream_rows[2000:2010] + 3.0)
    assert_allclose(model.intercept_, before, atol=1e-4)
