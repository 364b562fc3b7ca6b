"""Comparison of every prior in the library on the same data, with scores in nats.

There are two data sets with held-out rows, and 64 codes for both: whitened 8 by 8 patches of
photographs, and scikit-learn's digits, 64 pixels in [0, 1]. All neural models train for the same
number of epochs, with the same networks and their default parameters. FISTADictionaryLearner makes
ten passes over the rows. Its penalty has no default that suits any X, and is chosen by its score on
a fifth of the training rows; the fit time does not include this. Times are CPU seconds on one
thread.

The likelihood is always Gaussian with a learned variance, so all scores are log densities of the
same rows and can be compared. They can also be compared with scikit-learn's PCA, a Gaussian model
whose score is exact, not a bound; its number of components is chosen like the penalty. Takes about
twelve minutes on one core.

    python benchmarks/priors.py [--rows 30000] [--epochs 12] [--digits-epochs 150] [--data patches]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from data import digits, natural_patches
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

from sklearn_vsc import FISTADictionaryLearner, SparseVAE, ThresholdedVSC

# One network for all models; some models also with their default, refined posteriors.
PLAIN = {"encoder": "mlp", "n_refine": 0}
REFINED = (
    "ThresholdedVSC laplace, Gamma threshold",
    "SparseVAE spike_slab, Gaussian slab",
    "SparseVAE spike_slab, Laplace slab",
)
DENSITIES = (0.05, 0.1, 0.2, 0.4, 0.8)


def linear_models():
    """Yield models with a dictionary as decoder: name, class, parameters."""
    for base in ("laplace", "gaussian"):
        for threshold, label in ((None, "fixed threshold"), ("gamma", "Gamma threshold")):
            yield (
                f"ThresholdedVSC {base}, {label}",
                ThresholdedVSC,
                {"prior": base, "threshold_prior": threshold},
            )
    yield "SparseVAE gaussian", SparseVAE, {"prior": "gaussian"}
    yield "SparseVAE laplace", SparseVAE, {"prior": "laplace"}
    yield (
        "SparseVAE laplace, Laplace posterior",
        SparseVAE,
        {"prior": "laplace", "posterior_family": "laplace"},
    )
    yield (
        "SparseVAE cauchy, Gaussian posterior",
        SparseVAE,
        {"prior": "cauchy", "posterior_family": "gaussian"},
    )
    yield "SparseVAE spike_slab, Gaussian slab", SparseVAE, {"prior": "spike_slab"}
    yield (
        "SparseVAE spike_slab, Laplace slab",
        SparseVAE,
        {"prior": "spike_slab", "slab": "laplace"},
    )


def bounded_models():
    """Yield models whose MLP decoder ends in a sigmoid, for X in [0, 1]."""
    for prior in ("gaussian", "laplace", "cauchy"):
        yield f"SparseVAE {prior}", SparseVAE, {"prior": prior, "output_activation": "sigmoid"}


def models(kind):
    """Yield pairs of name and estimator for one kind of decoder."""
    listed = bounded_models() if kind == "MLP, sigmoid" else linear_models()
    for name, cls, parameters in listed:
        model = cls(decoder="linear" if kind == "linear" else "mlp", **parameters)
        yield name, clone(model).set_params(**PLAIN)
        if kind == "linear" and name in REFINED:
            yield f"{name}, refined", model


def with_budget(model, n_components, n_epochs):
    """Set the size and the epochs of a model, without early stopping."""
    return model.set_params(
        n_components=n_components, max_iter=n_epochs, n_iter_no_change=n_epochs, random_state=0
    )


def choose(X, make, values):
    """Return the value with the best score on validation rows, and its model."""
    rows, validation = train_test_split(X, test_size=0.2, random_state=0)
    scores = {value: make(value).fit(rows).score(validation) for value in values}
    best = max(scores, key=scores.get)
    return best, make(best)


def explained_variance(X, X_hat):
    """Return the share of the variance of X that a reconstruction explains."""
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - X.mean(axis=0)) ** 2)


def print_row(decoder, name, model, X, X_test):
    """Fit a model, measure it on held-out rows, and print a line."""
    start = time.process_time()
    model.fit(X)
    spent = time.process_time() - start
    code = model.transform(X_test)
    explained = explained_variance(X_test, model.inverse_transform(code))
    elbo, iwae = model.score(X_test), "-"  # PCA: the exact log likelihood
    if "score_method" in model.get_params():
        model.set_params(score_method="iwae", score_draws=100)
        iwae = f"{model.score(X_test):.1f}"
    print(
        f"| {decoder} | {name} | {elbo:.1f} | {iwae} | {np.mean(code != 0):.1%} | "
        f"{explained:.1%} | {spent:.1f} |",
        flush=True,
    )


def compare(X, X_test, n_components, n_epochs, alphas, kinds):
    """Print one table."""
    print("| decoder | model | ELBO | IWAE-100 | non-zero codes | explained variance | fit, s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    n_axes, pca = choose(X, PCA, range(10, X.shape[1], 5))
    print_row("linear", f"PCA of scikit-learn, {n_axes} components", pca, X, X_test)

    def lasso(alpha):
        return FISTADictionaryLearner(n_components, alpha=alpha, max_iter=10, random_state=0)

    alpha, fista = choose(X, lasso, alphas)
    print_row("linear", f"FISTADictionaryLearner, alpha={alpha:g}", fista, X, X_test)
    for kind in kinds:
        for name, model in models(kind):
            print_row(kind, name, with_budget(model, n_components, n_epochs), X, X_test)


def compare_densities(X, X_test, n_components, n_epochs):
    """Print results by `density`, for priors with a point mass at zero."""
    print("\nELBO, and share of non-zero codes, by `density`, linear decoder:\n")
    print(f"| model | {' | '.join(str(density) for density in DENSITIES)} |")
    print(f"| --- |{' ---: |' * len(DENSITIES)}")
    listed = {
        f"SparseVAE spike_slab, {slab.capitalize()} slab": SparseVAE(
            prior="spike_slab", slab=slab, decoder="linear"
        )
        for slab in ("gaussian", "laplace")
    }
    listed["ThresholdedVSC laplace, Gamma threshold"] = ThresholdedVSC()
    for name, model in listed.items():
        with_budget(model, n_components, n_epochs)
        cells = []
        for density in DENSITIES:
            model.set_params(density=density).fit(X)
            used = np.mean(model.transform(X_test) != 0)
            cells.append(f"{model.score(X_test):.1f} ({used:.0%})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(n_rows, n_epochs, n_digits_epochs, which):
    """Print the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*atoms")  # some are unused, which is expected
    runs = {
        "patches": (
            lambda n: natural_patches(n, patch_size=8),
            64,
            n_epochs,
            (0.03, 0.06, 0.12, 0.25),
            ("linear", "MLP"),
        ),
        "digits": (
            lambda n: digits(n, dequantised=True),
            64,
            n_digits_epochs,
            (0.01, 0.02, 0.05, 0.1, 0.2),
            ("linear", "MLP", "MLP, sigmoid"),
        ),
    }
    for name, (load, n_components, n_passes, alphas, kinds) in runs.items():
        if which not in (name, "all"):
            continue
        X, X_test = load(n_rows)
        print(
            f"\n{name.capitalize()}: {len(X)} rows of {X.shape[1]} features, {len(X_test)} held "
            f"out, {n_components} codes, {n_passes} epochs\n"
        )
        compare(X, X_test, n_components, n_passes, alphas, kinds)
        compare_densities(X, X_test, n_components, n_passes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=30_000, help="training rows, at most")
    parser.add_argument("--epochs", type=int, default=12, help="epochs on patches")
    parser.add_argument("--digits-epochs", type=int, default=150, help="epochs on digits")
    parser.add_argument("--data", choices=("all", "patches", "digits"), default="all")
    given = parser.parse_args()
    main(given.rows, given.epochs, given.digits_epochs, given.data)
