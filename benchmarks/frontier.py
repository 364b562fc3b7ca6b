"""Comparison of sparse coders: non-zero codes against explained variance on held-out rows.

There is one curve for each coder. Lasso, lasso with coefficients refitted by least squares, and
orthogonal matching pursuit use scikit-learn's dictionary and ours, and vary the penalty or the
number of atoms. ThresholdedVSC and SparseVAE vary the density of the prior. Scores are bounds on
log p(x), in nats per row, where the coder has one.

    python benchmarks/frontier.py [--data patches fashion] [--plot frontier.png] [--rows 20000]
        [--epochs 20]
"""

import argparse
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from data import fashion_mnist, natural_patches
from sklearn.decomposition import PCA, MiniBatchDictionaryLearning, sparse_encode

from sklearn_vsc import FISTADictionaryLearner, SparseVAE, ThresholdedVSC

N_COMPONENTS = 256
DENSITIES = (0.02, 0.05, 0.1, 0.2)
N_NONZERO = (5, 13, 26, 51)


DATA = {
    "patches": lambda n: natural_patches(n, patch_size=16, standardised=True, dtype=np.float64),
    "fashion": lambda n: [X.astype(np.float64) for X in fashion_mnist(n)],
}


def least_squares_refit(X, code, dictionary):
    """Return the least-squares coefficients on each row's support."""
    refitted = np.zeros_like(code)
    for row, z, new in zip(X, code, refitted, strict=True):
        active = z != 0
        if active.any():
            new[active] = np.linalg.lstsq(dictionary[active].T, row, rcond=None)[0]
    return refitted


def explained(X, reconstruction):
    """Return the share of the variance of held-out rows that is explained."""
    return 1 - np.sum((X - reconstruction) ** 2) / np.sum((X - X.mean(0)) ** 2)


def penalties(X):
    """Return lasso penalties that span the densities of interest."""
    return np.sqrt(np.mean(np.sum((X - X.mean(0)) ** 2, axis=1))) * np.array(
        [0.03, 0.055, 0.08, 0.12]
    )


def of_dictionaries(X, X_test):
    """Yield (curve, density, explained, score, fit seconds) for the classical coders."""
    mean = X.mean(0)
    centred, test = X - mean, X_test - mean
    for alpha in penalties(X):
        peers = {
            "scikit-learn": MiniBatchDictionaryLearning(
                N_COMPONENTS,
                alpha=alpha,
                batch_size=256,
                max_iter=10,
                fit_algorithm="cd",
                random_state=0,
            ),
            "FISTADictionaryLearner": FISTADictionaryLearner(
                N_COMPONENTS, alpha=alpha, batch_size=256, max_iter=10, random_state=0
            ),
        }
        for name, learner in peers.items():
            start = time.perf_counter()
            atoms = learner.fit(centred).components_
            seconds = time.perf_counter() - start
            code = sparse_encode(test, atoms, algorithm="lasso_cd", alpha=alpha, max_iter=5000)
            score = learner.score(test) if name != "scikit-learn" else np.nan
            density = np.mean(code != 0)
            yield f"{name}, lasso", density, explained(test, code @ atoms), score, seconds
            code = least_squares_refit(test, code, atoms)
            yield f"{name}, lasso refitted", density, explained(test, code @ atoms), np.nan, seconds
            if alpha == penalties(X)[1]:
                for count in N_NONZERO:
                    code = sparse_encode(test, atoms, algorithm="omp", n_nonzero_coefs=count)
                    share = np.mean(code != 0)
                    yield f"{name}, OMP", share, explained(test, code @ atoms), np.nan, seconds


def of_neural(X, X_test, epochs):
    """Yield the same for the variational coders."""
    for density in DENSITIES:
        models = (
            ThresholdedVSC(N_COMPONENTS, density=density, max_iter=epochs, random_state=0),
            SparseVAE(
                N_COMPONENTS,
                prior="spike_slab",
                decoder="linear",
                density=density,
                max_iter=epochs,
                random_state=0,
            ),
        )
        for model in models:
            start = time.perf_counter()
            model.fit(X.astype(np.float32))
            seconds = time.perf_counter() - start
            rows = X_test.astype(np.float32)
            code = model.transform(rows)
            gain = explained(rows, model.inverse_transform(code))
            yield type(model).__name__, np.mean(code != 0), gain, model.score(rows), seconds


def draw(points, title, axis):
    """Plot one curve for each coder."""
    for name in dict.fromkeys(p[0] for p in points):
        curve = np.array(sorted(p[1:3] for p in points if p[0] == name))
        ours = name in ("ThresholdedVSC", "SparseVAE")
        axis.plot(*curve.T, marker="o", lw=2 if ours else 1, ls="-" if ours else "--", label=name)
    axis.set(xlabel="share of non-zero codes", ylabel="explained variance", title=title)
    axis.grid(alpha=0.3)


def main(names, n_rows, epochs, plot):
    """Print a table for each data set, and plot the curves."""
    warnings.simplefilter("ignore")
    figure, axes = plt.subplots(1, len(names), figsize=(6.5 * len(names), 5), squeeze=False)
    for name, axis in zip(names, axes[0], strict=True):
        X, X_test = DATA[name](n_rows)
        exact = PCA(min(N_COMPONENTS, X.shape[1] - 1)).fit(X).score(X_test)
        print(f"\n{name}: {X.shape[0]} rows of {X.shape[1]} features, {N_COMPONENTS} atoms; exact")
        print(f"log likelihood of probabilistic PCA, held out: {exact:.1f} nats per row\n")
        print("| coder | non-zero | explained | score, nats | fit, s |")
        print("| --- | ---: | ---: | ---: | ---: |")
        points = []
        for point in (*of_neural(X, X_test, epochs), *of_dictionaries(X, X_test)):
            points.append(point)
            coder, density, gain, score, seconds = point
            shown = "-" if np.isnan(score) else f"{score:.1f}"
            print(f"| {coder} | {density:.1%} | {gain:.3f} | {shown} | {seconds:.0f} |", flush=True)
        draw(points, name, axis)
    axes[0, 0].legend(fontsize="small")
    if plot:
        figure.savefig(plot, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the variational coders")
    parser.add_argument("--plot", help="file to save the plot in")
    options = parser.parse_args()
    main(options.data, options.rows, options.epochs, options.plot)
