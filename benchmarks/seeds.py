"""Robustness of ThresholdedVSC over many seeds: counts of non-finite and collapsed fits.

A fit counts as collapsed if its codes explain less than a twentieth of the variance.

    python benchmarks/seeds.py [--seeds 20] [--rows 3000] [--epochs 10]
"""

import argparse
import warnings

import numpy as np
from sklearn.datasets import load_digits

from sklearn_vsc import ThresholdedVSC
from sklearn_vsc.datasets import fetch_fashion_mnist, load_natural_patches

DATA = {
    "digits": lambda n: load_digits().data[:n].astype(np.float32),
    "patches": lambda n: load_natural_patches(n, patch_size=12, random_state=0),
    "fashion": lambda n: fetch_fashion_mnist(subset="test").data[:n],
}
SETTINGS = {
    "default": {},
    "encoder='mlp', n_refine=0": {"encoder": "mlp", "n_refine": 0},
    "learning_rate_init=1e-2": {"learning_rate_init": 1e-2},
}


def main(n_seeds, n_rows, epochs, names):
    """Print the spread over seeds, and the number of failed fits."""
    warnings.simplefilter("ignore", UserWarning)
    print("| data | setting | fits | not finite | collapsed | explained | score, nats |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        X = DATA[name](n_rows)
        for setting, parameters in SETTINGS.items():
            gains, scores = [], []
            for seed in range(n_seeds):
                model = ThresholdedVSC(100, max_iter=epochs, random_state=seed, **parameters)
                code = model.fit_transform(X)
                error = np.sum((X - model.inverse_transform(code)) ** 2)
                gains.append(1 - error / np.sum((X - X.mean(0)) ** 2))
                scores.append(model.score(X))
            failed = ~np.isfinite(gains) | ~np.isfinite(scores)
            print(
                f"| {name} | {setting} | {n_seeds} | {failed.sum()} | "
                f"{np.sum(np.array(gains) < 0.05)} | {np.min(gains):.3f} to {np.max(gains):.3f} | "
                f"{np.min(scores):.1f} to {np.max(scores):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    options = parser.parse_args()
    main(options.seeds, options.rows, options.epochs, options.data)
