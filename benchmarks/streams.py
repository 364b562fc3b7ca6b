"""Dictionary learning from streams and raw tables: objectives, and CPU time of a step and of a fit.

python benchmarks/streams.py
"""

import time
import warnings

import numpy as np
import torch
from data import natural_patches
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning
from threadpoolctl import threadpool_limits

from sklearn_vsc import FISTADictionaryLearner
from sklearn_vsc.datasets import make_sparse_coded


def objective(model, X):
    """Mean lasso objective of rows."""
    alpha, atoms = model.alpha, model.components_
    coder = FISTADictionaryLearner(dict_init=atoms, alpha=alpha, max_iter=0).fit(X[:10])
    codes = coder.transform(X)
    return np.mean(0.5 * ((X - codes @ atoms) ** 2).sum(1) + alpha * np.abs(codes).sum(1))


def timed(call, *args):
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call(*args)
    return time.process_time() - start


def stream():
    """Patches that come in chunks of 100 rows, each seen once."""
    X, X_test = natural_patches(20_000, 4_000)
    options = {"alpha": 0.918, "random_state": 0}
    whole = FISTADictionaryLearner(256, max_iter=40, **options).fit(X)
    mini = FISTADictionaryLearner(256, max_iter=40, batch_size=512, **options).fit(X)
    online = FISTADictionaryLearner(256, **options)
    for start in range(0, len(X), 100):
        online.partial_fit(X[start : start + 100])
    best = objective(whole, X_test)
    print(
        f"full batch {best:.3f}, mini-batches {objective(mini, X_test) / best - 1:+.1%}, ", end=""
    )
    print(f"stream {objective(online, X_test) / best - 1:+.1%}")


def drift():
    """100 chunks of 100 rows of one dictionary, then 100 of another."""
    one, other = (make_sparse_coded(12_000, 40, 30, noise=0.05, random_state=s)[0] for s in (0, 1))
    fresh = FISTADictionaryLearner(40, alpha=0.1, random_state=0).fit(other[:10_000])
    print(f"drift: a fresh fit has {objective(fresh, other[10_000:]):.3f}; ", end="")
    for forget in (None, 0.9, 0.7, 0.5, 0.3):
        model = FISTADictionaryLearner(40, alpha=0.1, random_state=0, forget=forget)
        for rows in (one, other):
            for start in range(0, 10_000, 100):
                model.partial_fit(rows[start : start + 100])
        print(f"forget={forget}: {objective(model, other[10_000:]):.3f}  ", end="")
    print()


def steps():
    """Median time of one call of `partial_fit`, after warm-up."""
    for n_rows, n_features, n_components in ((1, 20, 30), (10, 64, 64), (256, 256, 256)):
        n_steps = 300 if n_rows == 1 else 16
        X, _, _ = make_sparse_coded(n_rows * n_steps, n_components, n_features, random_state=0)
        options = {"alpha": 0.5, "random_state": 0}
        times = {}
        for learner in (
            FISTADictionaryLearner(n_components, **options),
            MiniBatchDictionaryLearning(n_components, fit_algorithm="cd", **options),
        ):
            spent = [timed(learner.partial_fit, part) for part in np.split(X, n_steps)]
            times[type(learner).__name__] = 1e3 * np.median(spent[n_steps // 2 :])
        print((n_rows, n_features, n_components), times, "ms")


def tables():
    """CPU seconds of fits with the default parameters."""
    rng = np.random.RandomState(0)
    rates = rng.gamma(0.3, 1, (160, 12)) @ rng.gamma(0.2, 1, (12, 5000))
    genes = rng.poisson(20 * rates / rates.mean()).astype(float)
    sets = {
        "wine": (load_wine().data, None),
        "breast cancer": (load_breast_cancer().data, None),
        "digits": (load_digits().data, None),
        "genes": (genes, 64),
    }
    for name, (X, n_components) in sets.items():
        ours = FISTADictionaryLearner(n_components, random_state=0)
        mini = MiniBatchDictionaryLearning(n_components, fit_algorithm="cd", random_state=0)
        full = DictionaryLearning(n_components, fit_algorithm="cd", max_iter=20, random_state=0)
        print(f"{name}: ours {timed(ours.fit, X):.2f} s, ", end="")
        print(f"MiniBatchDictionaryLearning(cd) {timed(mini.fit, X):.2f} s, ", end="")
        print(f"DictionaryLearning(cd), 20 passes, {timed(full.fit, X):.2f} s", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with threadpool_limits(1, "blas"):
        FISTADictionaryLearner(4, max_iter=2).fit(np.eye(8)).partial_fit(np.eye(8))  # compiles
        steps()
        tables()
        drift()
        stream()
