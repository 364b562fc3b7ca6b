"""Many atoms, and sparse X: seconds, and megabytes over what the data and the model hold.

Each case runs in a process of its own, whose peak of resident memory during the call is compared
with that before it. ``--share`` scales the number of rows and documents.

    python benchmarks/large.py [--share 0.1] [row] [pass] [text]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse

from sklearn_vsc import FISTADictionaryLearner, SparseCoder


def sparse_rows(n_rows: int, n_components: int, n_features: int, n_codes: int) -> tuple[Any, Any]:
    """Rows of a few atoms each, with noise, and the atoms."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((n_components, n_features), dtype=np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = 0.05 * rng.standard_normal((n_rows, n_features), dtype=np.float32)
    for row in X:
        used = rng.integers(n_components, size=n_codes)
        row += rng.standard_normal(n_codes, dtype=np.float32) @ atoms[used]
    return X, atoms


def documents(n_rows: int, n_words: int, length: int = 150) -> sparse.csr_matrix:
    """Tf-idf of documents of Zipf's words, each from one of fifty topics and from all words."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, n_words + 1)
    frequency /= frequency.sum()
    topics = [rng.permutation(n_words) for _ in range(50)]
    indices, starts = [], [0]
    for _ in range(n_rows):
        words = rng.choice(n_words, length, p=frequency)
        topic = topics[rng.integers(50)]
        words[: length // 2] = topic[words[: length // 2]]
        indices.append(words)
        starts.append(starts[-1] + length)
    ones = np.ones(starts[-1], np.float32)
    counts = sparse.csr_matrix((ones, np.concatenate(indices), starts), (n_rows, n_words))
    counts.sum_duplicates()
    idf = np.log((1 + n_rows) / (1 + np.bincount(counts.indices, minlength=n_words))) + 1
    counts.data *= idf[counts.indices].astype(np.float32)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(1)))
    return counts.multiply(1 / norms).tocsr().astype(np.float32)


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of a call, and by how much it raised the peak of memory."""
    sizes, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            sizes.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "megabytes": max(sizes) - sizes[0]}


def _resident() -> float:
    """Return the resident memory of this process, in megabytes; Linux only."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def one_row(share: float) -> dict[str, float]:
    """`transform` of one row with 16,384 atoms."""
    X, atoms = sparse_rows(9, 16_384, 128, 8)
    learner = FISTADictionaryLearner(alpha=0.3, dict_init=atoms, max_iter=0).fit(X[1:])
    coder = SparseCoder(atoms, transform_algorithm="lasso_cd", transform_alpha=0.3)
    learner.transform(X[1:2])
    found = measured(lambda: learner.transform(X[:1]))
    coder.transform(X[1:2])
    of_coder = measured(lambda: coder.transform(X[:1]))
    return found | {f"coder_{name}": value for name, value in of_coder.items()}


def one_pass(share: float) -> dict[str, float]:
    """One pass of a fit of 32,768 atoms to 50,000 rows."""
    n_rows = int(50_000 * share)
    X, atoms = sparse_rows(n_rows, 32_768, 384, 20)
    FISTADictionaryLearner(20, alpha=0.35, max_iter=1, batch_size=512).fit(X[:600, :30])
    # Starting near the true atoms gives each row about twenty codes from the first pass on.
    first = atoms + 0.02 * np.random.default_rng(1).standard_normal(atoms.shape, dtype=np.float32)
    learner = FISTADictionaryLearner(
        32_768, alpha=0.8, max_iter=1, batch_size=512, dict_init=first, random_state=0
    )
    found = measured(lambda: learner.fit(X))
    codes = learner.history_[0]["density"] * 32_768
    return found | {"rows": n_rows, "codes_a_row": codes}


def text(share: float) -> dict[str, float]:
    """A fit of 128 atoms to 10,000 documents of 50,000 words."""
    X = documents(int(10_000 * share), 50_000)
    FISTADictionaryLearner(8, alpha=0.1, max_iter=1).fit(X[:64, :100].toarray() + 0.01)
    learner = FISTADictionaryLearner(128, alpha=0.1, max_iter=5, random_state=0)
    found = measured(lambda: learner.fit(X))
    found["passes"] = learner.n_iter_
    found["data_megabytes"] = (X.data.nbytes + X.indices.nbytes + X.indptr.nbytes) / 2**20
    found["codes_a_row"] = learner.history_[-1]["density"] * 128
    return found


CASES = {"row": one_row, "pass": one_pass, "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[], choices=[*CASES, []])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--here", action="store_true", help="run one case in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.here:
        print(json.dumps(CASES[options.cases[0]](options.share)))
        return
    for case in options.cases or CASES:
        command = [sys.executable, __file__, case, "--here", "--share", str(options.share)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures = json.loads(output.splitlines()[-1])
        print(f"{case}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
