"""Time and peak memory of a fit against the numbers of rows and atoms, with rows in a memmap.

Every measurement runs in a separate process. It maps the rows read-only, reads all of them, and
fits a few hundred of them, which compiles the code. It then measures the CPU and wall seconds of a
fit with a fixed number of passes, and the growth of the peak resident memory. The memory of the
mapped rows is therefore not counted, but a copy of them would be.

The last table compares with scikit-learn and SPAMS, with the rows read into memory first. SPAMS
gets them as float64, which it needs to reach the objective of the others, and as float32, which it
uses without a copy.

    python benchmarks/scaling.py [--rows 10000 100000 1000000] [--components 64 256 1024 4096]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ALPHA, N_ACTIVE, NOISE = 0.5, 8, 0.1
OURS = {"full batch": None, "mini-batch": 512}


def write_rows(path, n_rows, n_features, n_atoms):
    """Write sums of a few random atoms plus noise, chunk by chunk."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(n_atoms, n_features)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_features))
    for start in range(0, n_rows, 10_000):
        chunk = X[start : start + 10_000]
        chunk[:] = NOISE * rng.normal(size=chunk.shape)
        for _ in range(N_ACTIVE):
            size = rng.laplace(size=(len(chunk), 1)).astype(np.float32)
            chunk += size * atoms[rng.integers(n_atoms, size=len(chunk))]
    X.flush()


def fit_of(learner, n_components, n_passes, n_threads):
    """Return a function that fits a learner to rows."""
    common = {"alpha": ALPHA, "max_iter": n_passes, "tol": 0, "random_state": 0}
    if learner in OURS:
        from sklearn_vsc import FISTADictionaryLearner

        return FISTADictionaryLearner(
            n_components,
            batch_size=OURS[learner],
            max_no_improvement=None,
            device="cpu",
            **common,
        ).fit
    if learner.startswith("SPAMS"):
        import spams

        dtype = np.float64 if "float64" in learner else np.float32
        return lambda X: spams.trainDL(
            np.asfortranarray(X.T, dtype),
            K=n_components,
            lambda1=ALPHA,
            mode=2,
            iter=n_passes * len(X) // 512,
            batchsize=512,
            numThreads=n_threads,
            verbose=False,
        )
    from sklearn import decomposition

    if learner == "MiniBatchDictionaryLearning":
        common |= {"batch_size": 512, "max_no_improvement": None}
    return getattr(decomposition, learner)(n_components, fit_algorithm="cd", **common).fit


def peak():
    """Return the peak resident memory so far, in MB; Linux counts in kB, macOS in bytes."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(task):
    """Fit in this process; print time and memory."""
    # Imported here: modules imported by the parent process would count towards this one's peak.
    import torch
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    torch.set_num_threads(task["threads"])
    X = np.load(task["path"], mmap_mode="r" if task["mapped"] else None)
    X.sum()
    with threadpool_limits(task["threads"]):
        fit_of(task["learner"], 16, 2, task["threads"])(X[:600])
        fit = fit_of(task["learner"], task["components"], task["passes"], task["threads"])
        before, cpu, wall = peak(), time.process_time(), time.perf_counter()
        fit(X)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"cpu": cpu, "wall": wall, "memory": peak() - before}))


def measured(options, **task):
    """Measure in a separate process."""
    task = {"threads": options.threads, "passes": options.passes, "mapped": True} | task
    command = [sys.executable, __file__, "--measure", json.dumps(task)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def table(header, rows):
    """Print a table, each row as soon as it is available."""
    print("| " + " | ".join(header) + " |")
    print("| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    print()


def cells(result):
    return f"{result['cpu']:.1f}", f"{result['wall']:.1f}", f"{result['memory']:.0f}"


def by_rows(options, folder):
    for n_rows in options.rows:
        path = folder / "rows.npy"
        write_rows(path, n_rows, options.features, 128)
        for learner in OURS:
            result = measured(options, learner=learner, path=str(path), components=128)
            megabytes = path.stat().st_size / 2**20
            yield f"{n_rows:,}", f"{megabytes:.0f}", learner, *cells(result)
        path.unlink()


def by_components(options, path):
    for n_components in options.components:
        for learner in OURS:
            result = measured(options, learner=learner, path=path, components=n_components)
            square = 4 * n_components**2 / 2**20
            yield f"{n_components:,}", f"{square:.1f}", learner, *cells(result)


def by_learner(options, path):
    learners = [*OURS, "MiniBatchDictionaryLearning", "DictionaryLearning"]
    try:
        import spams  # noqa: F401

        learners += ["SPAMS trainDL, float64", "SPAMS trainDL, float32"]
    except ImportError:
        pass
    for learner in learners:
        result = measured(options, learner=learner, path=path, components=256, mapped=False)
        yield learner, *cells(result)


def main(options):
    costs = ("CPU, s", "wall, s", "memory, MB")
    print(f"{options.passes} passes, {options.threads} threads, float32\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"Rows of {options.features} features, 128 atoms:\n")
        table(("rows", "rows, MB", "fit", *costs), by_rows(options, folder))
        path = folder / "rows.npy"
        write_rows(path, 20_000, 256, 256)
        print("Atoms, 20,000 rows of 256 features (20 MB):\n")
        table(("atoms", "Gram, MB", "fit", *costs), by_components(options, str(path)))
        print("Learners, 20,000 rows of 256 features (20 MB), 256 atoms:\n")
        table(("learner", *costs), by_learner(options, str(path)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--components", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--features", type=int, default=64, help="features in the table over rows")
    parser.add_argument("--passes", type=int, default=2, help="passes over the rows in each fit")
    parser.add_argument("--threads", type=int, default=1, help="threads of every learner")
    parser.add_argument("--folder", help="folder for the rows; default: temporary folder")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    else:
        main(arguments)
