"""Imputation of missing values, compared with scikit-learn's imputers.

There are two data sets with held-out rows: scikit-learn's digits, and patches of photographs (not
whitened), whose held-out rows come from the other halves of the photographs. A share of all entries
is hidden at random, also in the held-out rows, and imputed. Our estimators are fitted to incomplete
rows and impute by `inverse_transform(transform(X))`; scikit-learn's imputers use their own methods.
X is centred by the means of its observed columns and scaled as a whole to unit variance.
`IterativeImputer` is limited to the range of all observed values; otherwise it diverges on held-out
digits.

The error is the root mean squared error of hidden entries divided by that of column means, so a
value of 1 is no better than column means. Figures are medians over seeds, which determine both the
hidden entries and each fit. Parameters without a default that suits any X (`alpha` of the lasso,
the number of neighbours of `KNNImputer`) are chosen for each share: a tenth of the observed entries
is hidden as well, and the value that imputes these best is used. The times do not include this
choice. They are CPU seconds on one thread, to fit and to impute the held-out rows. Takes about
eight minutes on one core for each seed.

    python benchmarks/missing.py [--data digits] [--shares 0.1 0.3 0.6] [--seeds 3] [--rows 1500]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from data import digits, natural_patches
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC

CHOICES = {
    "FISTADictionaryLearner": ("alpha", (0.05, 0.1, 0.2, 0.4, 0.8)),
    "KNNImputer": ("n_neighbors", (5, 10, 20, 40)),
}


def models(n_components, n_epochs):
    """Return the estimators by name."""
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


def impute(model, X):
    """Return the values that a fitted model gives for every entry of X."""
    if isinstance(model, KNNImputer | IterativeImputer):
        return model.transform(X)
    return model.inverse_transform(model.transform(X))


def error(imputed, X, hidden):
    """Return the RMS error of the hidden entries of centred X, relative to imputing zeros."""
    return np.sqrt(np.mean((imputed - X)[hidden] ** 2) / np.mean(X[hidden] ** 2))


def prepared(model, X, seed):
    """Return a copy of a model with this seed and the range of X, where it has such parameters."""
    model = clone(model)
    given = {"random_state": seed, "min_value": np.nanmin(X), "max_value": np.nanmax(X)}
    return model.set_params(**{key: given[key] for key in given.keys() & model.get_params()})


def choose(model, X, seed):
    """Return the model with its best parameter value, and a description of the choice.

    The value is chosen by hiding more entries and imputing them. Models without a parameter in
    `CHOICES` are returned unchanged.
    """
    parameter, values = CHOICES.get(type(model).__name__, (None, ()))
    if parameter is None:
        return model, ""
    observed = ~np.isnan(X)
    validation = observed & (np.random.default_rng((seed, 1)).random(X.shape) < 0.1)
    rest = np.where(validation, np.float32(np.nan), X)
    kept = ~np.isnan(rest).all(axis=1)
    errors = {}
    for value in values:
        model.set_params(**{parameter: value}).fit(rest[kept])
        errors[value] = error(impute(model, rest[kept]), X[kept], validation[kept])
    best = min(errors, key=errors.get)
    return model.set_params(**{parameter: best}), f"{parameter}={best:g}"


def hide(X, X_test, share, seed):
    """Return centred, scaled rows and their mask of hidden entries; the same for held-out rows."""
    rng = np.random.default_rng(seed)
    hidden, hidden_test = (rng.random(rows.shape) < share for rows in (X, X_test))
    observed = np.where(hidden, np.nan, X)
    mean = np.nanmean(observed, axis=0)
    scale = np.nanstd(observed - mean)
    return tuple(
        (((rows - mean) / scale).astype(np.float32), mask)
        for rows, mask in ((X, hidden), (X_test, hidden_test))
    )


def measure(model, train, test, seed):
    """Fit one model; return its errors on training and held-out rows, its times and the choice."""
    (X, hidden), (X_test, hidden_test) = train, test
    X_missing, X_test_missing = (
        np.where(mask, np.float32(np.nan), rows) for rows, mask in (train, test)
    )
    model, chosen = choose(prepared(model, X_missing, seed), X_missing, seed)
    start = time.process_time()
    model.fit(X_missing)
    after_fit = time.process_time()
    imputed_test = impute(model, X_test_missing)
    after_imputation = time.process_time()
    errors = error(impute(model, X_missing), X, hidden), error(imputed_test, X_test, hidden_test)
    return (*errors, after_fit - start, after_imputation - after_fit), chosen


def compare(X, X_test, shares, n_seeds, listed):
    """Print one table."""
    print("| missing | model | training rows | held-out rows | fit, s | impute, s |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for share in shares:
        for name, model in listed.items():
            figures, choices = zip(
                *(measure(model, *hide(X, X_test, share, seed), seed) for seed in range(n_seeds)),
                strict=True,
            )
            train, test, fit, imputation = np.median(figures, axis=0)
            chosen = f", {' or '.join(sorted(set(choices)))}" if choices[0] else ""
            print(
                f"| {share:.0%} | {name}{chosen} | {train:.3f} | {test:.3f} | {fit:.1f} | "
                f"{imputation:.2f} |",
                flush=True,
            )


def compare_penalties(X, X_test, shares, n_components):
    """Print the error at hidden entries of held-out rows, and the score of the observed ones."""
    penalties = CHOICES["FISTADictionaryLearner"][1]
    print("\nFISTADictionaryLearner by `alpha`: error on held-out rows, and their score in nats:\n")
    print(f"| missing | {' | '.join(map(str, penalties))} |")
    print(f"| ---: |{' ---: |' * len(penalties)}")
    for share in shares:
        (X_share, hidden), (X_test_share, hidden_test) = hide(X, X_test, share, seed=0)
        X_missing = np.where(hidden, np.float32(np.nan), X_share)
        X_test_missing = np.where(hidden_test, np.float32(np.nan), X_test_share)
        cells = []
        for alpha in penalties:
            model = FISTADictionaryLearner(
                n_components, alpha=alpha, max_iter=50, random_state=0
            ).fit(X_missing)
            test_error = error(impute(model, X_test_missing), X_test_share, hidden_test)
            cells.append(f"{test_error:.3f} ({model.score(X_test_missing):.1f})")
        print(f"| {share:.0%} | {' | '.join(cells)} |", flush=True)


def held_out_digits(n_rows):
    """Return training rows and held-out rows of the digits; a quarter is held out."""
    X, X_test = digits()
    return X[:n_rows], X_test


def raw_patches(n_rows):
    """Return 12 by 12 patches, not whitened."""
    return natural_patches(n_rows, 500, patch_size=12, whitening=None)


def main(which, shares, n_seeds, n_rows, n_components, n_epochs):
    """Print the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*atoms")  # some are unused, which is expected
    warnings.filterwarnings("ignore", category=ConvergenceWarning)  # five rounds are deliberate
    for name, load in {"digits": held_out_digits, "patches": raw_patches}.items():
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
