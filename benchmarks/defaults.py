"""ThresholdedVSC with its defaults beside other factor models, on tables of many kinds.

Each line is one model, fitted to the training rows and measured on held-out rows: the score in nats
per row, the share of codes that are not zero, the share of the variance that the codes explain, CPU
seconds of the fit, and the number of atoms that no training row uses. PCA and FactorAnalysis have
the size whose held-out score is highest; their seconds are those of that size. Integers are
dequantised: uniform noise of one step is added, without which a density has no upper limit.
MiniBatchDictionaryLearning and NMF have scikit-learn's defaults and as many components as
ThresholdedVSC; NMF needs rows without negative entries.

"version 0.1" is ThresholdedVSC(solver="gradient"), which learns as version 0.1 did. It and
MiniBatchDictionaryLearning are left out where a fit takes more than about a minute; --all runs them
everywhere. --variants prints ThresholdedVSC with one parameter changed at a time instead.

    python benchmarks/defaults.py [--only iris digits ...] [--all] [--variants] [--rows 5000]
"""

import argparse
import time
import warnings

import numpy as np
from data import digits, fashion_mnist, natural_patches
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.decomposition import NMF, PCA, FactorAnalysis, MiniBatchDictionaryLearning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_vsc import ThresholdedVSC

# Where a fit takes more than about a minute.
SLOW = ("patches 8x8", "patches 16x16", "fashion", "counts")
SLOW_GRADIENT = ("digits", "digits, 5% missing", *SLOW)
# Number of atoms where it is not that of the features.
N_COMPONENTS = {"fashion": 256, "counts": 16}


def small_table(load, *, standardised=False):
    """Return training and held-out rows of one of scikit-learn's tables."""
    X = load(scaled=False).data if load is load_diabetes else load().data
    X, X_test = train_test_split(X, test_size=0.3, random_state=0)
    if standardised:
        scaler = StandardScaler().fit(X)
        return scaler.transform(X), scaler.transform(X_test)
    return X, X_test


def dequantised_fashion(n_rows):
    """Return images of Fashion-MNIST in [0, 1], each pixel spread over its grey level."""
    rng = np.random.default_rng(0)
    return [
        ((255 * X + rng.random(X.shape)) / 256).astype(np.float32) for X in fashion_mnist(n_rows)
    ]


def counts(n_rows=160, n_features=5_000, n_programmes=8):
    """Return a dequantised table of counts: a few programmes, and negative binomial noise."""
    rng = np.random.default_rng(0)
    programmes = rng.gamma(0.3, size=(n_programmes, n_features))
    usage = rng.gamma(1.0, size=(n_rows, n_programmes)) * (rng.random((n_rows, n_programmes)) < 0.3)
    rate = (0.1 + usage @ programmes) * rng.lognormal(0, 0.3, (n_rows, 1))
    table = rng.poisson(rate * rng.gamma(4.0, 1 / 4.0, rate.shape)) + rng.random(rate.shape)
    return train_test_split(table, test_size=0.25, random_state=0)


def digits_with_missing():
    """Return dequantised digits of which 5% of the entries are missing."""
    rng = np.random.default_rng(1)
    return [
        np.where(rng.random(X.shape) < 0.05, np.nan, X).astype(np.float32)
        for X in digits(dequantised=True)
    ]


def rows_of_iris(numbers):
    """Return these rows of iris, twice: there are none to hold out."""
    X = load_iris().data[numbers]
    return X, X


# Training rows and held-out rows, given how many rows were asked for.
TABLES = {
    "iris": lambda _: small_table(load_iris),
    "iris, standardised": lambda _: small_table(load_iris, standardised=True),
    "wine": lambda _: small_table(load_wine),
    "wine, standardised": lambda _: small_table(load_wine, standardised=True),
    "breast cancer": lambda _: small_table(load_breast_cancer),
    "breast cancer, standardised": lambda _: small_table(load_breast_cancer, standardised=True),
    "diabetes": lambda _: small_table(load_diabetes),
    "diabetes, standardised": lambda _: small_table(load_diabetes, standardised=True),
    "digits": lambda _: digits(dequantised=True),
    "digits, 5% missing": lambda _: digits_with_missing(),
    "patches 8x8": lambda n: natural_patches(n, patch_size=8, standardised=True),
    "patches 16x16": lambda n: natural_patches(n, patch_size=16, standardised=True),
    "fashion": dequantised_fashion,
    "counts": lambda _: counts(),
    "one row repeated": lambda _: rows_of_iris([0] * 50),
    "two rows": lambda _: rows_of_iris([0, 100]),
}


# Parameters that --variants changes.
VARIANTS = {
    "default": {},
    "tol=1e-3": {"tol": 1e-3},
    "density='learned'": {"density": "learned"},
    "density=0.05": {"density": 0.05},
    "density=0.1": {"density": 0.1},
    "noise_variance='learned'": {"noise_variance": "learned"},
    "n_dense=8": {"n_dense": 8},
    "n_dense=32": {"n_dense": 32},
    "row_scale='noise'": {"row_scale": "noise"},
    "row_scale='row'": {"row_scale": "row"},
    "positive_code=True": {"positive_code": True},
}


def fitted(model, X):
    """Fit a model, and return it with the CPU seconds that this took."""
    start = time.process_time()
    model.fit(X)
    return model, time.process_time() - start


def best_size(make, X, X_test):
    """Return the model of the size with the highest held-out score, and its CPU seconds."""
    found = None
    most = min(len(X), X.shape[1]) - 1
    for size in sorted({min(2**power, most) for power in range(9)}):
        try:
            model, seconds = fitted(make(size), X)
            score = model.score(X_test)
        except (ValueError, np.linalg.LinAlgError):
            # Constant features: not every size leaves noise variance.
            continue
        if np.isfinite(score) and (found is None or score > found[1]):
            found = model, score, seconds
    return None if found is None else (found[0], found[2])


def explained(X, X_test, model):
    """Return the share of the variance of observed held-out entries that the codes explain."""
    code = model.transform(X_test)
    if hasattr(model, "inverse_transform"):
        error = X_test - model.inverse_transform(code)
    else:
        error = X_test - code @ model.components_ - getattr(model, "mean_", 0)
    total = np.nanmean((X_test - np.nanmean(X, axis=0)) ** 2)
    # All rows may be the same, up to rounding.
    return 1 - np.nanmean(error**2) / total if total > 1e-12 * np.nanmean(X**2) else np.nan


def line(name, X, X_test, model, seconds):
    """Print what there is to say about a fitted model."""
    if not isinstance(model, ThresholdedVSC):
        X, X_test = X.astype(float), X_test.astype(float)
    code = model.transform(X_test)
    # NMF has no score.
    score = f"{model.score(X_test):.1f}" if hasattr(model, "score") else "-"
    share = explained(X, X_test, model)
    unused = np.count_nonzero(~(model.transform(X) != 0).any(axis=0))
    print(
        f"| {name} | {score} | {np.mean(code != 0):.1%} | "
        f"{'-' if np.isnan(share) else format(share, '.3f')} | {seconds:.2f} | {unused} |",
        flush=True,
    )


def candidates(name, X, X_test, *, everything):
    """Yield models with a name and the CPU seconds of their fits."""
    size = N_COMPONENTS.get(name)
    n_components = X.shape[1] if size is None else size
    yield "ThresholdedVSC()", *fitted(ThresholdedVSC(size, random_state=0), X)
    if everything or name not in SLOW_GRADIENT:
        old = ThresholdedVSC(size, solver="gradient", random_state=0)
        yield "version 0.1", *fitted(old, X)
    if np.isnan(X).any() or np.ptp(X, axis=0).max() == 0:
        return
    # In single precision the smallest variances would be lost.
    X, X_test = X.astype(float), X_test.astype(float)
    for factors, make in {
        "PCA": PCA,
        "FactorAnalysis": lambda size: FactorAnalysis(size, random_state=0),
    }.items():
        found = best_size(make, X, X_test)
        if found is not None:
            yield f"{factors}, {found[0].components_.shape[0]}", *found
    if X.min() >= 0 and X_test.min() >= 0:
        yield "NMF", *fitted(NMF(n_components, random_state=0), X)
    if everything or name not in SLOW:
        lasso = MiniBatchDictionaryLearning(n_components, random_state=0)
        yield "MiniBatchDictionaryLearning", *fitted(lasso, X)


def variants(name, X):
    """Yield ThresholdedVSC with one parameter changed at a time."""
    for label, changed in VARIANTS.items():
        model = ThresholdedVSC(N_COMPONENTS.get(name), random_state=0, **changed)
        yield label, *fitted(model, X)


def main(names, *, everything, with_variants, n_rows):
    """Print one table for each data set."""
    warnings.simplefilter("ignore")
    # The first fit compiles.
    ThresholdedVSC(4, max_iter=3, random_state=0).fit(load_iris().data)
    for name in names:
        try:
            X, X_test = TABLES[name](n_rows)
        except OSError as error:
            print(f"\n{name}: skipped, {error}")
            continue
        size = N_COMPONENTS.get(name, X.shape[1])
        print(f"\n{name}: {X.shape[0]} rows of {X.shape[1]} features, {size} atoms\n")
        print("| model | score, nats | non-zero | explained | fit, CPU s | unused |")
        print("| --- " + "| ---: " * 5 + "|")
        models = candidates(name, X, X_test, everything=everything)
        for label, model, seconds in variants(name, X) if with_variants else models:
            line(label, X, X_test, model, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--all", action="store_true", help="run slow models everywhere, too")
    parser.add_argument("--variants", action="store_true", help="change one parameter at a time")
    parser.add_argument("--rows", type=int, default=5_000, help="training rows of images")
    options = parser.parse_args()
    main(
        options.only,
        everything=options.all,
        with_variants=options.variants,
        n_rows=options.rows,
    )
