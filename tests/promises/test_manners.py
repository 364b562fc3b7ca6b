"""Side effects of the package: threads, GPU memory, files and printed output."""

import ast
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext
from multiprocessing.pool import ThreadPool
from pathlib import Path

import joblib
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits

import sklearn_vsc
from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc._rows.threads import fair_share_of_cores

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

PACKAGE = Path(sklearn_vsc.__file__).parent
X = load_digits().data[:100]
NETWORK = {"max_iter": 2, "hidden_layer_sizes": (16,)}
ESTIMATORS = [
    FISTADictionaryLearner(8, alpha=5.0, max_iter=2, random_state=0),
    ThresholdedVSC(8, **NETWORK, random_state=0),
    SparseVAE(8, prior="spike_slab", decoder="linear", **NETWORK, random_state=0),
    SCVAE(8, **NETWORK, random_state=0),
]
each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


def run(script, **environment):
    # torch passes the folder of its compiler on to child processes. MKL's own number of threads,
    # if set, overrides OpenMP's.
    left_out = ("TORCHINDUCTOR_CACHE_DIR", "MKL_NUM_THREADS")
    inherited = {k: v for k, v in os.environ.items() if k not in left_out}
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=inherited | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment,
        cwd=environment.get("HOME"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------------------- threads

# OpenMP starts threads that Python does not see, and keeps them.
THREADS = """
import json, os, threading

import joblib, torch
from sklearn.datasets import load_digits

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.solvers import _rows


class Pool(_rows.ThreadPoolExecutor):
    n_made = 0

    def __init__(self, *args):
        type(self).n_made += 1
        super().__init__(*args)


def native():
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def work(estimator):
    return [native() for call in (estimator.fit, estimator.score) if call(X) is not None]


_rows.ThreadPoolExecutor = Pool
X = load_digits().data[:600]
network = {"max_iter": 1, "hidden_layer_sizes": (512,), "batch_size": 600}
estimators = [
    FISTADictionaryLearner(64, max_iter=2),
    ThresholdedVSC(64, **network),
    SparseVAE(64, prior="spike_slab", decoder="linear", **network),
    SCVAE(64, **network),
]
work(estimators[1])
found = {"alone": native(), "pools alone": Pool.n_made, "limit": torch.get_num_threads()}
Pool.n_made = 0
with joblib.parallel_config("threading"):
    counts = joblib.Parallel(n_jobs=2)(joblib.delayed(work)(e) for e in estimators)
found |= {"together": max(map(max, counts)), "pools together": Pool.n_made}
found["limit after"] = torch.get_num_threads()
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_two_workers_of_a_thread_pool_do_not_start_more_threads():
    # Waiting threads should leave the cores to other tests.
    found = json.loads(run(THREADS, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE"))
    # By itself a fit has two threads, so the test can fail.
    assert found["limit"] == found["limit after"] == 2
    assert found["pools alone"] > 0
    assert found["pools together"] == 0
    # Each worker has one of the two cores, so OpenMP has not started any threads for it.
    assert found["together"] <= found["alone"]


@pytest.mark.parametrize(("n_cores", "n_workers", "share"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_workers_share_the_threads_of_torch(monkeypatch, n_cores, n_workers, share):
    """As with joblib's processes, the number of threads is divided among the workers."""
    limits, all_there = [], threading.Barrier(n_workers, timeout=30)

    class Recorder:
        def limit(self, **limit):
            limits.append(limit)
            return nullcontext()

    def work(_):
        all_there.wait()
        with fair_share_of_cores():
            all_there.wait()

    monkeypatch.setattr(torch, "get_num_threads", lambda: n_cores)
    monkeypatch.setattr("sklearn_vsc._rows.threads.ThreadpoolController", Recorder)
    with ThreadPool(n_workers) as pool:
        pool.map(work, range(n_workers), chunksize=1)
    assert limits == [{"limits": share, "user_api": "openmp"}] * n_workers
    # Outside a pool no limit is set.
    with fair_share_of_cores():
        assert len(limits) == n_workers


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_two_workers_give_the_same_scores_as_one(backend):
    def scores(parallel):
        return parallel(joblib.delayed(_score)(estimator) for estimator in ESTIMATORS)

    with joblib.parallel_config(backend):
        assert scores(joblib.Parallel(n_jobs=2)) == pytest.approx([_score(e) for e in ESTIMATORS])


def _score(estimator):
    with warnings.catch_warnings():
        # Other processes do not have the warning filters of this one.
        warnings.simplefilter("ignore")
        return clone(estimator).fit(X).score(X)


# ------------------------------------------------------------------------- memory of a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_memory_of_the_gpu_is_released(estimator):
    def use():
        model = clone(estimator).set_params(device="cuda")
        model.fit(X).partial_fit(X)
        model.transform(X), model.score(X), model.posterior(X), model.sample_posterior(X)
        return model

    use()  # cuBLAS and cuDNN allocate memory once and keep it.
    gc.collect()
    before = torch.cuda.memory_allocated()
    model = use()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert {tensor.device.type for tensor in tensors_of(model)} <= {"cpu"}


@each
def test_tensors_kept_after_a_fit_are_on_the_cpu(estimator):
    model = clone(estimator).fit(X)
    found = list(tensors_of(model))
    assert {tensor.device.type for tensor in found} <= {"cpu"}
    # The estimators with a module have tensors, so the test can fail.
    assert bool(found) == hasattr(model, "module_")
    # No gradients, which take as much memory as the weights.
    assert all(tensor.grad is None for tensor in found if tensor.is_leaf)


def tensors_of(estimator):
    """Yield the tensors of the model and of the optimiser."""
    if hasattr(estimator, "module_"):
        yield from estimator.module_.parameters()
        yield from estimator.module_.buffers()
    for moments in (getattr(estimator, "_optimizer_state", None) or {}).values():
        yield from moments.values()


# ------------------------------------------------------------------------------------ files

# Audit hooks see everything that opens a file for writing or changes a folder.
WATCH = """
import json, os, sys

written = []


def watch(event, args):
    if event == "open":
        path, mode, flags = args
        if isinstance(mode, str) and set(mode) & set("wax+"):
            written.append(str(path))
        elif isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate"):
        written.append(str(args[0]))


sys.addaudithook(watch)
"""
WORK = """
from sklearn.datasets import load_digits

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

X = load_digits().data[:100]
network = {"max_iter": 2, "hidden_layer_sizes": (16,), "random_state": 0}
for model in (
    FISTADictionaryLearner(8, max_iter=2, random_state=0),
    FISTADictionaryLearner(8, max_iter=2, batch_size=50, random_state=0),
    ThresholdedVSC(8, **network),
    SparseVAE(8, prior="spike_slab", decoder="linear", **network),
    SCVAE(8, **network),
):
    model.fit(X).partial_fit(X)
    codes = model.transform(X)
    model.inverse_transform(codes), model.score(X), model.posterior(X)
    model.sample_posterior(X), model.sample()
"""
REPORT = "print(json.dumps(written))"


def test_no_file_is_written(tmp_path):
    (tmp_path / "tmp").mkdir()
    home = str(tmp_path)
    environment = {"HOME": home, "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "USERPROFILE", "LOCALAPPDATA"):
        environment[name] = home
    written = [Path(path) for path in json.loads(run(WATCH + WORK + REPORT, **environment))]
    # torch makes an empty folder for its compiler when an optimiser is created.
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    by_torch = [path for path in left if path.name.startswith("torchinductor")]
    assert [path for path in left if path not in (Path("tmp"), *by_torch)] == []
    # The standard library writes and removes a file to test whether it can.
    elsewhere = [path for path in written if tmp_path / "tmp" not in path.parents]
    # Numba stores compiled code next to Python's.
    assert [path for path in elsewhere if not in_cache(path)] == []


def in_cache(path):
    cache = os.environ.get("NUMBA_CACHE_DIR")
    in_tree = PACKAGE in path.parents and "__pycache__" in path.parts
    return in_tree or (cache is not None and Path(cache) in (path, *path.parents))


def test_written_files_are_detected(tmp_path):
    """Without this, a hook that sees nothing would pass every test."""
    script = WATCH + "open('mine', 'w').close(); os.mkdir('folder')\n" + REPORT
    assert json.loads(run(script, HOME=str(tmp_path))) == ["mine", "folder"]
    assert (tmp_path / "mine").exists()


# -------------------------------------------------------------------------- what is printed


@each
def test_nothing_is_printed(estimator, capfd):
    model = clone(estimator).fit(X).partial_fit(X)
    codes = model.fit_transform(X)
    model.inverse_transform(codes), model.score(X), model.posterior(X)
    model.sample_posterior(X), model.sample()
    assert capfd.readouterr() == ("", "")


@each
def test_verbose_shows_progress_on_standard_error(estimator, capfd):
    clone(estimator).set_params(verbose=1).fit(X)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%|" in err


@each
def test_epochs_are_logged(estimator, caplog):
    clone(estimator).fit(X)
    assert caplog.records == []
    with caplog.at_level(logging.INFO, logger="sklearn_vsc"):
        model = clone(estimator).fit(X)
    assert len(caplog.records) == model.n_iter_ == 2
    for record, epoch in zip(caplog.records, model.history_, strict=True):
        assert record.name.startswith("sklearn_vsc.")
        assert record.levelno == logging.INFO
        assert f"epoch {epoch['epoch']}: " in record.message
        assert f"{epoch['loss']:.6g}" in record.message


def test_no_module_prints_or_sets_up_logging():
    calls = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                calls.setdefault(ast.unparse(node.func), set()).add(path.name)
    assert "logging.getLogger" in calls
    # A function that is there to print.
    assert calls.pop("print") == {"_show_versions.py"}
    for name in ("print", "pprint", "sys.stdout.write", "sys.stderr.write", "logging.basicConfig"):
        assert name not in calls, calls[name]
    # The root logger is the application's.
    assert not [name for name in calls if name in ("logging.info", "logging.warning")]
