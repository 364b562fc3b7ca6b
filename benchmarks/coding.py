"""Time to code a row by the lasso, compared with scikit-learn and SPAMS at equal objective.

Every coder runs with a series of accuracies on held-out rows. The table gives the time at which the
mean relative excess of the objective over the optimum, in float64, reaches 1e-3 and 1e-6, by
logarithmic interpolation between two accuracies. The times include products of rows and atoms.

A second table has orthogonal matching pursuit, ours and scikit-learn's, in CPU microseconds per
row, with the share of rows that have the same support in both; and what refit and the choice of
the largest codes add to a lasso.

    python benchmarks/coding.py [--rows 4000] [--repeats 3] [--threads 1] [--data patches]
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
import torch
from data import fashion_mnist, natural_patches
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from sklearn_vsc import FISTADictionaryLearner, SparseCoder

try:
    import spams
except ImportError:
    spams = None

TARGETS = (1e-3, 1e-6)
# Data, number of atoms, penalty used to learn them, share of non-zero codes.
SETTINGS = (
    ("patches", 256, 1.0, 0.10),
    ("patches", 256, 1.0, 0.03),
    ("patches", 1024, 1.0, 0.03),
    ("fashion-mnist", 256, 0.213, 0.10),
)


def load(data, n_rows):
    """Return training rows and rows to code."""
    if data == "fashion-mnist":
        return fashion_mnist(20_000, n_rows)
    return natural_patches(20_000, n_rows)


def seconds_of(function, repeats):
    """Return the median CPU time and wall time of a call, and its result."""
    answer, times = function(), []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return *np.median(times, axis=0), answer


def objective(X, codes, dictionary, alpha):
    X, codes, dictionary = (array.astype(np.float64) for array in (X, codes, dictionary))
    return 0.5 * ((X - codes @ dictionary) ** 2).sum(1) + alpha * np.abs(codes).sum(1)


def alpha_for(model, X, density):
    """Return the penalty at which the codes have a given share of non-zeros."""
    low, high = 1e-3, float(np.abs(X @ model.components_.T).max())
    for _ in range(20):
        model.set_params(transform_alpha=(low * high) ** 0.5)
        if np.mean(model.transform(X) != 0) > density:
            low = model.transform_alpha
        else:
            high = model.transform_alpha
    return model.transform_alpha


def ours(model, X, algorithm):
    for tol in 10.0 ** np.arange(-0.5, -6.1, -0.5):
        model.set_params(transform_algorithm=algorithm, transform_tol=tol)
        yield lambda: model.transform(X)


def of_scikit_learn(X, dictionary, alpha):
    X, dictionary = X.astype(np.float64), dictionary.astype(np.float64)
    for max_iter in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128):
        yield lambda n=max_iter: sparse_encode(
            X, dictionary, algorithm="lasso_cd", alpha=alpha, max_iter=n
        )


def of_spams_lars(X, dictionary, alpha, n_threads):
    columns = np.asfortranarray(X.T.astype(np.float64)), np.asfortranarray(dictionary.T, np.float64)
    for dtype in (np.float32, np.float64):
        data, atoms = (np.asfortranarray(array, dtype) for array in columns)
        yield lambda d=data, a=atoms: spams.lasso(
            d, D=a, lambda1=alpha, mode=2, numThreads=n_threads
        ).T.toarray()


def of_spams_cd(X, dictionary, alpha, n_threads):
    from scipy.sparse import csc_matrix

    data, atoms = (np.asfortranarray(array.T, np.float64) for array in (X, dictionary))
    start = csc_matrix((len(dictionary), len(X)), dtype=np.float64)
    for tol in 10.0 ** np.arange(-1, -8.1, -1):
        yield lambda t=tol: spams.cd(
            data, atoms, start, lambda1=alpha, mode=2, itermax=1000, tol=t, numThreads=n_threads
        ).T.toarray()


def climb(ladder, excess_of, n_rows, repeats):
    """Return microseconds per row, CPU and wall, at each target; NaN where it is not reached."""
    rungs = []
    for rung in ladder:
        cpu, wall, codes = seconds_of(rung, repeats)
        rungs.append((excess_of(codes), 1e6 * cpu / n_rows, 1e6 * wall / n_rows))
        if rungs[-1][0] < TARGETS[-1]:
            break
    excess, *times = np.array(rungs).T
    order = np.argsort(excess)
    log_excess = np.log(np.maximum(excess[order], 1e-15))
    answers = []
    for target in TARGETS:
        for measured in times:
            value = np.exp(np.interp(np.log(target), log_excess, np.log(measured[order])))
            answers.append(value if excess.min() <= target else np.nan)
    return answers


def compare(name, model, density, X_train, X, options):
    """Learn the atoms of one setting, then print its lines of the table."""
    model.set_params(max_iter=10, random_state=0, device="cpu", transform_tol=1e-2).fit(X_train)
    alpha, dictionary = alpha_for(model, X[:500], density), model.components_
    exact = FISTADictionaryLearner(
        dict_init=dictionary.astype(np.float64),
        alpha=alpha,
        max_iter=0,
        transform_tol=1e-11,
        device="cpu",
    ).fit(X[:2].astype(np.float64))
    best = objective(X, exact.transform(X.astype(np.float64)), dictionary, alpha)

    def excess_of(codes):
        return float(np.mean(objective(X, codes, dictionary, alpha) / best - 1))

    ladders = {
        "coordinate descent": ours(model, X, "lasso_cd"),
        "FISTA": ours(model, X, "fista"),
        "scikit-learn lasso_cd": of_scikit_learn(X, dictionary, alpha),
    }
    if spams is not None:
        ladders["SPAMS lasso (LARS)"] = of_spams_lars(X, dictionary, alpha, options.threads)
        ladders["SPAMS cd"] = of_spams_cd(X, dictionary, alpha, options.threads)
    for coder, ladder in ladders.items():
        times = climb(ladder, excess_of, len(X), options.repeats)
        print(f"| {name} | {coder} | " + " | ".join(f"{t:.1f}" for t in times) + " |", flush=True)


def in_turn(calls, repeats):
    """Return the median CPU microseconds of calls that run in turn, and their results."""
    answers, times = [call() for call in calls], []
    for _ in range(repeats):
        times.append([])
        for call in calls:
            start = time.process_time()
            call()
            times[-1].append(time.process_time() - start)
    return 1e6 * np.median(times, axis=0), answers


def compare_pursuit(name, model, X, repeats):
    """Print the lines of orthogonal matching pursuit for the atoms of one setting."""
    print("| setting | pursuit | ours | scikit-learn | ratio | same supports |")
    for dtype in (np.float32, np.float64):
        rows, atoms = X.astype(dtype), model.components_.astype(dtype)
        for n_nonzero in (5, 25):
            ours = SparseCoder(atoms, transform_n_nonzero_coefs=n_nonzero, device="cpu")
            calls = [
                partial(ours.transform, rows),
                partial(sparse_encode, rows, atoms, algorithm="omp", n_nonzero_coefs=n_nonzero),
            ]
            times, (found, expected) = in_turn(calls, repeats)
            same = np.mean(((found != 0) == (expected != 0)).all(1))
            label = f"omp, {n_nonzero} codes, {np.dtype(dtype).name}"
            cells = f"{times[0] / len(X):.1f} | {times[1] / len(X):.1f} | {times[1] / times[0]:.0f}"
            print(f"| {name} | {label} | {cells} | {same:.2%} |", flush=True)


def compare_selection(name, model, X, repeats):
    """Print what refit and the largest codes add to the lasso, as in the setting."""
    extras = ({}, {"transform_n_nonzero_coefs": 10}, {"refit": True})
    coders = [
        SparseCoder(
            model.components_,
            transform_algorithm="auto",
            transform_alpha=model.transform_alpha,
            device="cpu",
            **extra,
        )
        for extra in extras
    ]
    times, _ = in_turn([partial(coder.transform, X) for coder in coders], repeats)
    lasso, top, refit = times / len(X)
    print(
        f"| {name} | lasso {lasso:.1f}, top 10 {top:.1f}, refit {refit:.1f} | | | | |", flush=True
    )


def main(options):
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", message=".*atoms are used by no training row")
    torch.set_num_threads(options.threads)
    print(f"{options.rows} held-out rows, patches of 16 x 16 pixels or Fashion-MNIST, ", end="")
    print(f"{options.threads} threads,")
    print(f"medians of {options.repeats} repeats; microseconds per row\n")
    print("| setting | coder | CPU, 1e-3 | wall, 1e-3 | CPU, 1e-6 | wall, 1e-6 |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with threadpool_limits(options.threads, "blas"):
        for data, n_components, alpha, density in SETTINGS:
            if data in options.data:
                model = FISTADictionaryLearner(n_components, alpha=alpha)
                name = f"{data}, K={n_components}, {density:.0%}"
                rows = load(data, options.rows)
                if "lasso" in options.tables:
                    compare(name, model, density, *rows, options)
                else:
                    model.set_params(max_iter=10, random_state=0, device="cpu", transform_tol=1e-2)
                    model.fit(rows[0])
                    alpha_for(model, rows[1][:500], density)
                if "pursuit" in options.tables:
                    compare_pursuit(name, model, rows[1], options.repeats)
                    compare_selection(name, model, rows[1], options.repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4000, help="rows that are coded")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each timing")
    names = ("patches", "fashion-mnist")
    parser.add_argument("--data", choices=names, nargs="+", default=names)
    tables = ("lasso", "pursuit")
    parser.add_argument("--tables", choices=tables, nargs="+", default=tables)
    parser.add_argument("--threads", type=int, default=1, help="threads of every coder")
    main(parser.parse_args())
