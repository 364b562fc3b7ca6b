"""Benefit and cost of coordinate-ascent sweeps, and the gain from collapsed bounds.

The data are whitened patches; held-out rows come from a region of the photographs that is not used
for training. The time to code a row is compared with scikit-learn's lasso coder on its own
dictionary, in the same run. Times are medians of repeats.

    python benchmarks/refinement.py [--rows 10000] [--epochs 10]
"""

import argparse
import time
import warnings

import numpy as np
from data import natural_patches
from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

from sklearn_vsc import SparseVAE, ThresholdedVSC


def seconds_of(function, repeats=5):
    """Return the median wall time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def describe(model, X_test):
    """Return the share of non-zero codes, the explained variance and microseconds per row."""
    code = model.transform(X_test)
    error = np.sum((X_test - model.inverse_transform(code)) ** 2)
    variance = 1 - error / np.sum((X_test - X_test.mean(0)) ** 2)
    micros = 1e6 * seconds_of(lambda: model.transform(X_test)) / len(X_test)
    return np.mean(code != 0), variance, micros


def refined(X, X_test, epochs, n_components):
    """Print the lines of the table: encoders, sweeps in training, sweeps at inference."""
    for encoder in ("mlp", "lista"):
        for in_training in (0, 5):
            model = ThresholdedVSC(
                n_components,
                encoder=encoder,
                n_refine=in_training,
                max_iter=epochs,
                random_state=0,
            ).fit(X)
            for n_sweeps in (0, 3, 10, 20, 100):
                model.set_params(n_refine=n_sweeps)
                density, variance, micros = describe(model, X_test)
                print(
                    f"| {encoder} | {in_training} | {n_sweeps} | {model.score(X_test):.1f} | "
                    f"{density:.1%} | {variance:.1%} | {micros:.0f} |",
                    flush=True,
                )


def collapsed(X, X_test, epochs, n_components):
    """Print the bounds for a Gaussian slab, which is integrated out given the supports."""
    model = SparseVAE(
        n_components, prior="spike_slab", decoder="linear", max_iter=epochs, random_state=0
    ).fit(X)
    print("\nSparseVAE(prior='spike_slab', decoder='linear'), nats per row:\n")
    print("| sweeps at inference | elbo | collapsed_elbo, 30 draws | iwae, 30 draws |")
    print("| ---: | ---: | ---: | ---: |")
    for n_sweeps in (0, 3, 10, 20, 100):
        model.set_params(n_refine=n_sweeps, score_draws=30)
        bounds = [
            model.set_params(score_method=method).score(X_test)
            for method in ("elbo", "collapsed_elbo", "iwae")
        ]
        print(f"| {n_sweeps} | {' | '.join(f'{bound:.1f}' for bound in bounds)} |", flush=True)


def main(n_rows, epochs, n_components=144):
    """Fit with and without sweeps, and score with different numbers of sweeps."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", message=".*atoms are used by no training row")
    X, X_test = natural_patches(n_rows, patch_size=12)
    exact = PCA(n_components - 1).fit(X).score(X_test)
    print(f"{n_rows} patches of {X.shape[1]} pixels, {n_components} atoms, {epochs} epochs")
    print(f"Exact log likelihood of probabilistic PCA, held out: {exact:.1f} nats per row\n")
    print(
        "| encoder | sweeps in training | sweeps at inference | score, nats | non-zero | explained "
        "| us per row |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    refined(X, X_test, epochs, n_components)
    lasso = MiniBatchDictionaryLearning(
        n_components,
        alpha=1.0,
        max_iter=epochs,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        random_state=0,
    ).fit(X.astype(np.float64))
    density, variance, micros = describe(lasso, X_test.astype(np.float64))
    print(f"| scikit-learn, lasso_cd | - | - | - | {density:.1%} | {variance:.1%} | {micros:.0f} |")
    collapsed(X, X_test, epochs, n_components)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000, help="training rows")
    parser.add_argument("--epochs", type=int, default=10, help="passes of each fit")
    options = parser.parse_args()
    main(options.rows, options.epochs)
