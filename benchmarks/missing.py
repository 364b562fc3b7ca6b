"""Filling missing values, beside scikit-learn's imputers.

Two data sets, each with rows held out: scikit-learn's digits, and patches of photographs, not
whitened, of which the held-out ones are from other halves of the photographs. A share of all
entries is hidden at random, of the held-out rows too, and filled: by our estimators with
`inverse_transform(transform(X))`, fitted to rows with holes, by scikit-learn's imputers in their
own way. X is centred by the means of its observed columns and scaled as a whole to unit variance.
`IterativeImputer` is held between the lowest and the highest value of all that are observed:
without, it runs away on held-out digits.

The error is the root mean squared one of hidden entries, over that of column means: 1 is no better
than those. Figures are medians over seeds, which decide both what is hidden and each fit.
Parameters that have no default for any X (`alpha` of the lasso, the neighbours of `KNNImputer`)
are chosen for each share: a tenth of the observed entries is hidden too, and the value taken that
fills these best. This is no part of the times, which are CPU seconds of one thread, to fit and to
fill the held-out rows. Takes about eight minutes of one core for each seed.

    python benchmarks/missing.py [--data digits] [--shares 0.1 0.3 0.6] [--seeds 3] [--rows 1500]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.model_selection import train_test_split

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import load_natural_patches

CHOICES = {
    "FISTADictionaryLearner": ("alpha", (0.05, 0.1, 0.2, 0.4, 0.8)),
    "KNNImputer": ("n_neighbors", (5, 10, 20, 40)),
}


def models(n_components, n_epochs):
    """Names and estimators."""
    size = {"n_components": n_components}
    neural = size | {"max_iter": n_epochs, "n_iter_no_change": n_epochs}
    return {
        "`KNNImputer`": KNNImputer(),
        "`IterativeImputer(max_iter=5)`": IterativeImputer(max_iter=5),
        "`FISTADictionaryLearner`": FISTADictionaryLearner(**size, max_iter=50),
        "`ThresholdedVSC`": ThresholdedVSC(**neural),
        "`SparseVAE(prior='gaussian', decoder='linear')`": SparseVAE(
            prior="gaussian", decoder="linear", **neural
        ),
        "`SparseVAE(prior='spike_slab', decoder='linear')`": SparseVAE(
            prior="spike_slab", decoder="linear", **neural
        ),
        "`SparseVAE(prior='gaussian')`": SparseVAE(prior="gaussian", **neural),
        "`SCVAE`": SCVAE(**neural),
    }


def fill(model, X):
    """What a fitted model has for every entry of X."""
    if isinstance(model, KNNImputer | IterativeImputer):
        return model.transform(X)
    return model.inverse_transform(model.transform(X))


def error(filled, X, hidden):
    """Root mean squared error of the hidden entries of centred X, over that of zeros."""
    return np.sqrt(np.mean((filled - X)[hidden] ** 2) / np.mean(X[hidden] ** 2))


def prepared(model, X, seed):
    """Return a copy of a model with this seed, where it has one, and with the limits of X."""
    model = clone(model)
    given = {"random_state": seed, "min_value": np.nanmin(X), "max_value": np.nanmax(X)}
    return model.set_params(**{key: given[key] for key in given.keys() & model.get_params()})


def choose(model, X, seed):
    """Return the model with the parameter that best fills more entries, hidden here, and its name.

    Parameters that are not to be chosen stay at what they are.
    """
    parameter, values = CHOICES.get(type(model).__name__, (None, ()))
    if parameter is None:
        return model, ""
    observed = ~np.isnan(X)
    aside = observed & (np.random.default_rng((seed, 1)).random(X.shape) < 0.1)
    rest = np.where(aside, np.float32(np.nan), X)
    kept = ~np.isnan(rest).all(axis=1)
    errors = {}
    for value in values:
        model.set_params(**{parameter: value}).fit(rest[kept])
        errors[value] = error(fill(model, rest[kept]), X[kept], aside[kept])
    best = min(errors, key=errors.get)
    return model.set_params(**{parameter: best}), f"{parameter}={best:g}"


def hide(X, X_test, share, seed):
    """Return centred and scaled rows, where they are hidden, and the same for rows held out."""
    rng = np.random.default_rng(seed)
    hidden, hidden_test = (rng.random(rows.shape) < share for rows in (X, X_test))
    observed = np.where(hidden, np.nan, X)
    mean = np.nanmean(observed, axis=0)
    scale = np.nanstd(observed - mean)
    return tuple(
        (((rows - mean) / scale).astype(np.float32), there)
        for rows, there in ((X, hidden), (X_test, hidden_test))
    )


def measure(model, train, test, seed):
    """Fit one model; its errors on rows learned from and held out, its times, what was chosen."""
    (X, hidden), (X_test, hidden_test) = train, test
    holes, holes_test = (np.where(there, np.float32(np.nan), rows) for rows, there in (train, test))
    model, chosen = choose(prepared(model, holes, seed), holes, seed)
    start = time.process_time()
    model.fit(holes)
    fitted = time.process_time()
    filled_test = fill(model, holes_test)
    filled = time.process_time()
    errors = error(fill(model, holes), X, hidden), error(filled_test, X_test, hidden_test)
    return (*errors, fitted - start, filled - fitted), chosen


def compare(X, X_test, shares, n_seeds, listed):
    """Print one table."""
    print("| missing | model | rows learned from | rows held out | fit, s | fill, s |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for share in shares:
        for name, model in listed.items():
            figures, choices = zip(
                *(measure(model, *hide(X, X_test, share, seed), seed) for seed in range(n_seeds)),
                strict=True,
            )
            train, test, fit, filling = np.median(figures, axis=0)
            chosen = f", {' or '.join(sorted(set(choices)))}" if choices[0] else ""
            print(
                f"| {share:.0%} | {name}{chosen} | {train:.3f} | {test:.3f} | {fit:.1f} | "
                f"{filling:.2f} |",
                flush=True,
            )


def compare_penalties(X, X_test, shares, n_components):
    """Print error of the hidden entries of held-out rows, and score of the others, by penalty."""
    penalties = CHOICES["FISTADictionaryLearner"][1]
    print("\nFISTADictionaryLearner by `alpha`: error on rows held out, and their score in nats:\n")
    print(f"| missing | {' | '.join(map(str, penalties))} |")
    print(f"| ---: |{' ---: |' * len(penalties)}")
    for share in shares:
        (X_share, hidden), (X_test_share, hidden_test) = hide(X, X_test, share, seed=0)
        holes = np.where(hidden, np.float32(np.nan), X_share)
        holes_test = np.where(hidden_test, np.float32(np.nan), X_test_share)
        cells = []
        for alpha in penalties:
            model = FISTADictionaryLearner(
                n_components, alpha=alpha, max_iter=50, random_state=0
            ).fit(holes)
            found = error(fill(model, holes_test), X_test_share, hidden_test)
            cells.append(f"{found:.3f} ({model.score(holes_test):.1f})")
        print(f"| {share:.0%} | {' | '.join(cells)} |", flush=True)


def digits(n_rows):
    """Digits, a quarter held out."""
    X, X_test = train_test_split(load_digits().data, test_size=0.25, random_state=0)
    return X[:n_rows], X_test


def patches(n_rows):
    """12 by 12 patches of the left halves of photographs, and of the right halves."""
    settings = {"patch_size": 12, "whitening": None, "random_state": 0}
    X = load_natural_patches(n_rows, subset="train", **settings)
    return X, load_natural_patches(500, subset="test", **settings)


def main(which, shares, n_seeds, n_rows, n_components, n_epochs):
    """Print the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*atoms")  # that some are not in use is no news
    warnings.filterwarnings("ignore", category=ConvergenceWarning)  # five rounds are a choice
    for name, load in {"digits": digits, "patches": patches}.items():
        if which not in (name, "all"):
            continue
        X, X_test = load(n_rows)
        print(
            f"\n{name.capitalize()}: {len(X)} rows of {X.shape[1]} features, {len(X_test)} held "
            f"out, {n_components} codes, {n_epochs} epochs\n"
        )
        compare(X, X_test, shares, n_seeds, models(n_components, n_epochs))
        compare_penalties(X, X_test, shares, n_components)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("all", "digits", "patches"), default="all")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    parser.add_argument("--seeds", type=int, default=3, help="fits of each model")
    parser.add_argument("--rows", type=int, default=1_500, help="training rows, at most")
    parser.add_argument("--components", type=int, default=64, help="codes of each model")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of the neural estimators")
    given = parser.parse_args()
    main(given.data, given.shares, given.seeds, given.rows, given.components, given.epochs)
