"""Sparse codes of photographs, compared with scikit-learn's dictionary learning.

Learns 256 atoms from 20,000 whitened patches of photographs with three estimators and codes
held-out patches from another part of the photographs. Prints a table and plots the dictionaries.
Takes about two minutes on two cores.

    python examples/quickstart.py [--output dictionaries.png]
"""

import argparse
import sys
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

from sklearn_vsc import FISTADictionaryLearner, ThresholdedVSC
from sklearn_vsc.datasets import load_natural_patches
from sklearn_vsc.inspection import DictionaryDisplay

N_COMPONENTS = 256
ALPHA = 1.2


def estimators():
    """Return the estimators by name; the two lasso learners have the same penalty."""
    return {
        "scikit-learn MiniBatch": MiniBatchDictionaryLearning(
            N_COMPONENTS,
            alpha=ALPHA,
            max_iter=10,
            fit_algorithm="cd",
            transform_algorithm="lasso_cd",
            random_state=0,
        ),
        "FISTADictionaryLearner": FISTADictionaryLearner(
            N_COMPONENTS, alpha=ALPHA, max_iter=10, random_state=0
        ),
        "ThresholdedVSC": ThresholdedVSC(
            N_COMPONENTS,
            prior="laplace",
            max_iter=10,  # the default is 50, which gains a little more
            random_state=0,
            verbose=sys.stderr.isatty(),
        ),
    }


def explained_variance(X, X_hat):
    """Return the share of the variance of X that a reconstruction explains."""
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - X.mean(axis=0)) ** 2)


def main(output):
    """Fit the models, print the table and plot the dictionaries."""
    X = load_natural_patches(20_000, subset="train", random_state=0)
    X_test = load_natural_patches(4_000, subset="test", random_state=0)
    print(f"{len(X)} patches of {X.shape[1]} pixels for training, {len(X_test)} held out\n")

    print("estimator               non-zero   explained     score   fit")
    print("                           codes    variance      nats     s")
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.4))
    for ax, (name, model) in zip(axes, estimators().items(), strict=True):
        start = time.perf_counter()
        with warnings.catch_warnings():
            # scikit-learn's coordinate descent does not reach its tolerance in float32.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X)
            seconds = time.perf_counter() - start
            code = model.transform(X_test)
        variance = explained_variance(X_test, model.inverse_transform(code))
        score = f"{model.score(X_test):9.1f}" if hasattr(model, "score") else "        -"
        density = np.mean(code != 0)
        print(f"{name:23} {density:8.1%} {variance:10.1%}  {score} {seconds:6.1f}", flush=True)
        DictionaryDisplay.from_estimator(model, ax=ax)
        ax.set_title(name)
    figure.tight_layout()
    figure.savefig(output, dpi=100)
    print(f"\nSaved a plot of the dictionaries as {output}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="dictionaries.png", help="file to save the plot in")
    main(parser.parse_args().output)
