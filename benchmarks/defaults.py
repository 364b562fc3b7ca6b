"""Evidence for the default parameters of ThresholdedVSC: alternatives on three data sets.

Each line changes one parameter of the default, or that parameter and the gradient. Scores are for
held-out rows. Digits are in raw units (0 to 16), Fashion-MNIST in [0, 1]; except for the constant
-D log(unit), the score does not depend on the unit. For comparison, the exact log likelihood of
probabilistic PCA is given, with the same number of components, a half or a quarter of it.

    python benchmarks/defaults.py [--data digits patches fashion] [--only default ...] [--rows 5000]
"""

import argparse
import time
import warnings

import numpy as np
from data import digits, fashion_mnist, natural_patches
from sklearn.decomposition import PCA

from sklearn_vsc import ThresholdedVSC

# A straight-through gradient may raise its own loss while it learns, which must not stop it.
STRAIGHT_THROUGH = {"gradient": "straight_through", "n_iter_no_change": 1000}
# Settings for which the ELBO has no closed form, or which ask for samples.
SAMPLED = {
    "n_draws=5": {"n_draws": 5},
    "n_draws=5, objective='iwae'": {"n_draws": 5, "objective": "iwae"},
    "decoder='mlp'": {"decoder": "mlp"},
    "prior='gaussian'": {"prior": "gaussian"},
}
VARIANTS = {
    "default": {},
    "encoder='mlp'": {"encoder": "mlp"},
    "n_refine=0": {"n_refine": 0},
    "encoder='mlp', n_refine=0": {"encoder": "mlp", "n_refine": 0},
    "learning_rate_init=3e-3": {"learning_rate_init": 3e-3},
    "learning_rate_init=1e-2": {"learning_rate_init": 1e-2},
    "max_iter=10": {"max_iter": 10},
    "max_iter=100": {"max_iter": 100},
    "density=0.05": {"density": 0.05},
    "density=0.2": {"density": 0.2},
    "fixed threshold, exact": {"threshold_prior": None},
    "fixed threshold, straight-through": {"threshold_prior": None} | STRAIGHT_THROUGH,
}
VARIANTS |= SAMPLED
VARIANTS |= {
    f"{name}, straight-through": changed | STRAIGHT_THROUGH for name, changed in SAMPLED.items()
}


# Number of atoms, training rows and held-out rows, given how many rows were asked for.
DATA = {
    "digits": lambda _: (64, *(X.astype(np.float32) for X in digits(test_size=500))),
    "patches": lambda n: (256, *natural_patches(n, patch_size=16, standardised=True)),
    "fashion": lambda n: (256, *fashion_mnist(n)),
}


def measure(model, X, X_test):
    """Fit, and return the table cells that describe the codes of held-out rows."""
    start = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - start
    code = model.transform(X_test)
    squares = np.mean((X_test - model.inverse_transform(code)) ** 2)
    start = time.perf_counter()
    model.transform(X_test)
    micros = 1e6 * (time.perf_counter() - start) / len(X_test)
    return (
        f"{model.score(X_test):.1f} | {np.mean(code != 0):.1%} | "
        f"{1 - squares / X_test.var(0).mean():.3f} | {squares:.2g} | {model.n_dead_} | "
        f"{seconds:.0f} | {micros:.0f}"
    )


def exact_likelihood(X, X_test, n_components):
    """Return the mean log likelihood of held-out rows under probabilistic PCA."""
    try:
        # Single precision would lose the smallest variances.
        return PCA(n_components).fit(X.astype(np.float64)).score(X_test.astype(np.float64))
    except np.linalg.LinAlgError:
        return -np.inf


def main(names, only, n_rows):
    """Print one table for each data set."""
    warnings.simplefilter("ignore", UserWarning)
    for name in names:
        n_components, X, X_test = DATA[name](n_rows)
        size = min(n_components, X.shape[1] - 1)
        # Some pixels of the digits are constant: not every size leaves noise variance.
        exact = max(exact_likelihood(X, X_test, size // part) for part in (1, 2, 4))
        print(f"\n{name}: {X.shape[0]} rows of {X.shape[1]} features, {n_components} atoms; exact")
        print(f"log likelihood of probabilistic PCA, held out: {exact:.1f} nats per row\n")
        print(
            "| ThresholdedVSC | score, nats | non-zero | explained | squared error | dead atoms | "
            "fit, s | us per row |"
        )
        print("| --- " + "| ---: " * 7 + "|")
        for variant in only or VARIANTS:
            model = ThresholdedVSC(n_components, random_state=0, **VARIANTS[variant])
            print(f"| {variant} | {measure(model, X, X_test)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="lines to print")
    parser.add_argument("--rows", type=int, default=5_000, help="training rows (digits: all)")
    options = parser.parse_args()
    main(options.data, options.only, options.rows)
