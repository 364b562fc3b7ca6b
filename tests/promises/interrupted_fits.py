"""Script that presses Ctrl-C at random moments during fits and checks the outcome.

    python tests/promises/interrupted_fits.py CLASS FITS PRESSES SEED

Prints how often each outcome occurred among the interrupted fits.
"""

import collections
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np

import sklearn_vsc

N_ITER = {"FISTADictionaryLearner": {"max_iter": 12, "tol": 0}}
X = np.random.default_rng(0).standard_normal((300, 12)) @ np.triu(np.ones((12, 12)))


class Presses(threading.Thread):
    """Sends SIGINT to this process at given moments, then sets an event."""

    def __init__(self, moments):
        super().__init__(daemon=True)
        self.moments, self.over = moments, threading.Event()

    def run(self):
        for wait in np.diff([0.0, *sorted(self.moments)]):
            time.sleep(wait)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        self.over.set()


def interrupted(model, moments):
    """Fit with Ctrl-C; return whether it raised, and whether it warned of an interruption."""
    presses, raised = Presses(moments), False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            presses.start()
            model.fit(X)
        except KeyboardInterrupt:
            raised = True
        while True:
            try:
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
                break
            except KeyboardInterrupt:
                raised = True
        presses.over.wait()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert handler is signal.default_int_handler, "the handler was not restored"
    return raised, any("interrupted" in str(w.message) for w in caught)


def check(model, max_iter, raised, told):
    """Return a name for the outcome, which must be one of the documented ones."""
    if not hasattr(model, "components_"):
        left = set(vars(model)) - set(model.get_params())
        assert raised and not left, f"not fitted, but has attributes {left}"
        return "not fitted"
    n_iter = model.n_iter_
    assert len(model.history_) == n_iter
    assert [record["epoch"] for record in model.history_] == list(range(1, n_iter + 1))
    assert told or raised or n_iter == max_iter
    assert np.isfinite(model.transform(X)).all() and np.isfinite(model.score(X))
    model.partial_fit(X)
    assert len(model.history_) == model.n_iter_ == n_iter + 1
    return f"{n_iter} epochs" + " and a warning" * told


def main(name, n_fits, n_presses, seed):
    params = {"random_state": 0, **N_ITER.get(name, {"max_iter": 5})}
    make = getattr(sklearn_vsc, name)
    make(12, **params).fit(X)
    start = time.perf_counter()
    make(12, **params).fit(X)
    span = time.perf_counter() - start
    rng, seen = random.Random(seed), collections.Counter()
    while seen.total() < n_fits:
        model = make(12, **params)
        raised, told = interrupted(model, [rng.uniform(0, span) for _ in range(n_presses)])
        outcome = check(model, params["max_iter"], raised, told)
        if told or outcome == "not fitted":
            seen[outcome] += 1
        else:
            # Ctrl-C came too late.
            span *= 0.8
    print(dict(sorted(seen.items())))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*atoms are used by no training row")
    # Background jobs of a shell, and their children, ignore SIGINT by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1], *map(int, sys.argv[2:]))
