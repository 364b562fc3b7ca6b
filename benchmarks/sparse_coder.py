"""Coding one signal with wavelets, beside scikit-learn's SparseCoder.

The signal, a step of 1024 samples, and the two dictionaries are those of scikit-learn's example on
sparse coding: 341 Ricker wavelets of one width, and 340 of five widths. Both classes get the same
parameters and run in turn. Times are medians over runs after a warm-up, in milliseconds of the
CPU; a ratio below 1 means that ours takes less time. For the algorithms that solve the lasso, the
last column has the excess of scikit-learn's objective over ours: its coordinate descent stops at
its largest number of iterations.

    OMP_NUM_THREADS=1 python benchmarks/sparse_coder.py [--runs 31] [--rows 1]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn import decomposition

from sklearn_vsc import SparseCoder

N_SAMPLES, ALPHA = 1024, 2.0
SETTINGS = (
    ("omp", 3),
    ("omp", 15),
    ("lars", 15),
    ("lasso_lars", None),
    ("lasso_cd", None),
    ("threshold", None),
)


def wavelets(width, n_atoms):
    """Ricker wavelets of one width at evenly spaced places."""
    x, centres = np.arange(N_SAMPLES), np.linspace(0, N_SAMPLES - 1, n_atoms)[:, None]
    z = (x - centres) ** 2 / width**2
    atoms = (1 - z) * np.exp(-z / 2)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def dictionaries():
    """Names and dictionaries."""
    n_atoms = N_SAMPLES // 3
    yield "one width", wavelets(100, n_atoms)
    yield (
        "five widths",
        np.concatenate([wavelets(w, n_atoms // 5) for w in (10, 50, 100, 500, 1000)]),
    )


def steps(n_rows):
    """Rows that step down at a quarter of their length."""
    step = np.where(np.arange(N_SAMPLES) < N_SAMPLES / 4, 3.0, -1.0)
    return np.linspace(1, 2, n_rows)[:, None] * step


def medians(coders, X, n_runs):
    """Median seconds in which each coder codes X, run in turn."""
    times = []
    for _ in range(n_runs + 3):
        times.append([])
        for coder in coders:
            start = time.process_time()
            coder.transform(X)
            times[-1].append(time.process_time() - start)
    # The first compile, and fill caches.
    return np.median(times[3:], axis=0)


def objective(X, codes, dictionary):
    residual = X - codes @ dictionary
    return 0.5 * np.sum(residual**2) + ALPHA * np.abs(codes).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--rows", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    X = steps(options.rows)
    print(f"torch threads: {torch.get_num_threads()}, rows: {options.rows}")
    print(f"{'dictionary':12} {'algorithm':14} {'theirs':>8} {'ours':>8} {'ratio':>6} excess")
    for name, dictionary in dictionaries():
        for algorithm, n_nonzero in SETTINGS:
            params = {
                "transform_algorithm": algorithm,
                "transform_alpha": ALPHA,
                "transform_n_nonzero_coefs": n_nonzero,
            }
            theirs = decomposition.SparseCoder(dictionary, **params)
            ours = SparseCoder(dictionary, device="cpu", **params)
            pair = medians([theirs, ours], X, options.runs)
            values = [objective(X, coder.transform(X), dictionary) for coder in (theirs, ours)]
            excess = f"{values[0] / values[1] - 1:.1e}" if "lasso" in algorithm else ""
            label = algorithm if n_nonzero is None else f"{algorithm}, {n_nonzero}"
            milliseconds = "{:8.2f} {:8.2f}".format(*(1e3 * pair))
            print(f"{name:12} {label:14} {milliseconds} {pair[1] / pair[0]:6.2f} {excess}")


if __name__ == "__main__":
    main()
