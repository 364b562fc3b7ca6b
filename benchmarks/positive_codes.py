"""The score of non-negative codes: what each sweep gains, and the two models side by side.

One dictionary is learned with ``positive_code``. Held-out rows are scored under the model with
exponential codes: with the posteriors that belong to the lasso codes, and after 1, 3, 10 and all
sweeps of coordinate ascent. The model with Laplace codes, of the same dictionary, is scored around
the same non-negative codes and around its own codes of both signs; each score has its own noise
variance, estimated from the training rows. Scores are in nats per row, times in microseconds of the
CPU per row.

    OMP_NUM_THREADS=1 python benchmarks/positive_codes.py
"""

import math
import time

import numpy as np
import torch
from data import digits, natural_patches

from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc._inference.laplace_model import SignedLassoModel, best_noise_variance
from sklearn_vsc.solvers.posterior import exponential_bound
from sklearn_vsc.solvers.posterior.exponential_bound import ExponentialModel

SWEEPS = (1, 3, 10, exponential_bound._MAX_SWEEPS)
SETTINGS = (
    ("digits", 32, 0.1),
    ("digits", 96, 0.3),
    ("patches, 8x8", 64, 0.5),
    ("patches, 8x8", 128, 0.5),
    ("patches, 16x16", 256, 1.0),
)


def rows(name):
    """Training and test rows, float64."""
    if name == "digits":
        train, test = digits(dequantised=True)
    else:
        train, test = natural_patches(4000, 500, patch_size=int(name.rpartition("x")[2]))
    return train.astype(np.float64), test.astype(np.float64)


def timed(function, *args):
    """Microseconds of the CPU per row of the first argument, and the result."""
    start = time.process_time()
    result = function(*args)
    return (time.process_time() - start) / len(args[0]) * 1e6, result


def score_at_codes(model, X):
    """Mean bound of the posteriors that are best if the other codes are at their lasso values."""
    X, V = torch.from_numpy(X), torch.from_numpy(model.components_)
    codes = torch.from_numpy(model.transform(X.numpy()))
    generative = ExponentialModel(model.alpha, model.noise_variance_)
    precisions = V.square().sum(1)[None] / model.noise_variance_
    slopes = (X - codes @ V) @ V.T / model.noise_variance_ + precisions * codes - generative.rate
    factors = exponential_bound._with_moments(slopes, precisions, generative.rate)
    return exponential_bound.lower_bounds(X, factors, V, generative).mean().item()


def laplace_score(model, train, test):
    """Mean bound of Laplace posteriors around the non-negative codes."""
    blocks = [(torch.from_numpy(train), torch.from_numpy(model.transform(train)))]
    noise = best_noise_variance(blocks, torch.from_numpy(model.components_), model.alpha)
    coder = model._row_coder("auto", model.alpha)
    return SignedLassoModel(model.components_, coder, noise, 0).bounds(test).mean()


def main():
    """Print a line for each setting."""
    names = ("at code", *(f"{n} sweeps" for n in SWEEPS[:-1]), "all", "Laplace", "signed")
    names = (*names, "code", "score")
    print(f"{'rows, atoms, alpha':>26s}" + "".join(f"{name:>11s}" for name in names))
    for name, n_components, alpha in SETTINGS:
        train, test = rows(name)
        params = {"alpha": alpha, "random_state": 0}
        model = FISTADictionaryLearner(n_components, positive_code=True, max_iter=10, **params)
        model.fit(train)
        scores = [score_at_codes(model, test)]
        for exponential_bound._MAX_SWEEPS in SWEEPS:
            seconds, score = timed(model.score, test)
            scores.append(score)
        coding = timed(model.transform, test)[0]
        signed = FISTADictionaryLearner(dict_init=model.components_, max_iter=0, **params)
        scores += laplace_score(model, train, test), signed.fit(train).score(test)
        setting = f"{name}, {n_components}, {alpha}"
        numbers = "".join(f"{x:11.2f}" for x in scores)
        print(f"{setting:>26s}{numbers}{coding:11.0f}{seconds:11.0f}")
        assert all(map(math.isfinite, scores))


if __name__ == "__main__":
    main()
