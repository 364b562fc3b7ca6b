"""Time to learn a dictionary, compared with scikit-learn and SPAMS: held-out objective over time.

All learners get the same rows, penalty and number of atoms. Their dictionaries are recorded during
training, with the clock stopped, and the same solver computes the lasso objective of held-out rows
for each. The table gives the seconds, CPU and wall, until this objective is within 5%, 2% and 1% of
the best value that any learner reached. Learners are stopped at `--seconds`. With two threads, CPU
time is the sum over both.

    python benchmarks/learning.py [--seconds 120] [--curve curve.png]
    python benchmarks/learning.py --data fashion-mnist --alpha 0.213
    python benchmarks/learning.py --components 1024
"""

import argparse
import contextlib
import time
import warnings

import numpy as np
import torch
from data import fashion_mnist, natural_patches
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from sklearn_vsc import FISTADictionaryLearner

try:
    import spams
except ImportError:
    spams = None

WITHIN = (0.05, 0.02, 0.01)
SPAMS = "SPAMS trainDL"


class Recorder:
    """Record dictionaries at times that grow by a tenth, and stop when the time is up."""

    def __init__(self, seconds):
        self.seconds, self.next = seconds, 0.0
        self.records = []
        self.spent = np.zeros(2)
        self.start = self.now()

    @staticmethod
    def now():
        return np.array([time.process_time(), time.perf_counter()])

    def __call__(self, state):
        entered = self.now()
        cpu, wall = entered - self.start - self.spent
        if cpu >= self.next:
            self.records.append((cpu, wall, np.array(state["dictionary"], dtype=np.float64)))
            self.next = 1.1 * cpu
        self.spent += self.now() - entered
        if cpu > self.seconds:
            raise KeyboardInterrupt


def record(learner, X, seconds):
    """Return (CPU seconds, wall seconds, dictionary) recorded during the fit."""
    recorder = Recorder(seconds)
    learner.set_params(callback=recorder)
    with contextlib.suppress(KeyboardInterrupt):
        learner.fit(X)
    return recorder.records


def record_spams(X, n_components, alpha, seconds, n_threads):
    """Return the same for SPAMS, which has no callback: one run for each length in wall time."""
    data, records, length = np.asfortranarray(X.T.astype(np.float64)), [], 1
    while not records or records[-1][0] < seconds / 2:
        start = Recorder.now()
        D = spams.trainDL(
            data,
            K=n_components,
            lambda1=alpha,
            mode=2,
            iter=-length,
            batchsize=512,
            numThreads=n_threads,
            verbose=False,
        )
        records.append((*(Recorder.now() - start), D.T))
        length *= 2
    return records


def held_out(records, X, alpha):
    """Return the objective of held-out rows for each record."""
    losses = []
    for *_, dictionary in records:
        norms = np.linalg.norm(dictionary, axis=1, keepdims=True)
        atoms = (dictionary / np.where(norms > 0, norms, 1)).astype(X.dtype)
        coder = FISTADictionaryLearner(
            dict_init=atoms, alpha=alpha, max_iter=0, transform_tol=1e-4, device="cpu"
        ).fit(X[:2])
        codes = coder.transform(X)
        by_row = 0.5 * ((X - codes @ coder.components_) ** 2).sum(1) + alpha * np.abs(codes).sum(1)
        losses.append(by_row.mean(dtype=np.float64))
    return np.array(losses)


def load(name, n_rows, n_held_out):
    """Return training rows and held-out rows."""
    if name == "fashion-mnist":
        return fashion_mnist(n_rows, n_held_out)
    return natural_patches(n_rows, n_held_out)


def report(runs, losses):
    """Print the table."""
    best = min(loss.min() for loss in losses.values())
    print(f"Best held-out objective per row: {best:.3f}\n")
    columns = [f"{kind}, {share:.0%}" for share in WITHIN for kind in ("CPU", "wall")]
    print("| learner | " + " | ".join(columns) + " | lowest | over the best |")
    print("| --- |" + " ---: |" * (len(columns) + 2))
    for name, records in runs.items():
        cells = []
        for share in WITHIN:
            reached = np.flatnonzero(losses[name] <= (1 + share) * best)
            for clock in (0, 1):
                end = records[-1][clock]
                cells.append(f"{records[reached[0]][clock]:.2f}" if len(reached) else f">{end:.0f}")
        lowest = losses[name].min()
        print(f"| {name} | " + " | ".join(cells) + f" | {lowest:.3f} | {lowest / best - 1:.2%} |")


def draw(path, runs, losses):
    """Save a plot of the curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, records in runs.items():
        axes.plot([cpu for cpu, *_ in records], losses[name], marker=".", label=name)
    axes.set(xscale="log", xlabel="CPU seconds", ylabel="Held-out objective per row")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(options):
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(options.threads)
    X, X_test = load(options.data, options.rows, 4000)
    n_components, alpha, seconds = options.components, options.alpha, options.seconds
    print(f"{options.data}: {len(X)} rows, {n_components} atoms, alpha={alpha}, ", end="")
    print(f"{options.threads} threads\n")
    common = {"alpha": alpha, "random_state": 0, "max_iter": 10_000, "tol": 0}
    ours = common | {"device": "cpu"}
    learners = {
        "FISTADictionaryLearner": FISTADictionaryLearner(n_components, **ours),
        "FISTADictionaryLearner, batch_size=256": FISTADictionaryLearner(
            n_components, batch_size=256, max_no_improvement=None, **ours
        ),
        "MiniBatchDictionaryLearning": MiniBatchDictionaryLearning(
            n_components, fit_algorithm="cd", batch_size=256, max_no_improvement=None, **common
        ),
        "DictionaryLearning": DictionaryLearning(n_components, fit_algorithm="cd", **common),
    }
    chosen = options.learners or [*learners, SPAMS]
    runs = {}
    with threadpool_limits(options.threads, "blas"):
        FISTADictionaryLearner(n_components, alpha=alpha, max_iter=2).fit(X[:600])  # compiles
        for name, learner in learners.items():
            if name in chosen:
                runs[name] = record(learner, X, seconds)
        if spams is not None and SPAMS in chosen:
            runs[SPAMS] = record_spams(X, n_components, alpha, seconds, options.threads)
        losses = {name: held_out(records, X_test, alpha) for name, records in runs.items()}
    report(runs, losses)
    if options.curve:
        draw(options.curve, runs, losses)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("patches", "fashion-mnist"), default="patches")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--components", type=int, default=256, help="atoms")
    parser.add_argument("--alpha", type=float, default=0.918, help="penalty")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of each learner")
    parser.add_argument("--threads", type=int, default=1, help="threads of every learner")
    parser.add_argument("--learners", nargs="+", help="names of the table's rows; by default, all")
    parser.add_argument("--curve", help="where to save the learning curves, as PNG")
    main(parser.parse_args())
