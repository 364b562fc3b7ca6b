"""Split rows among threads, for compiled loops that release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

# Fewer rows than this are not worth a thread.
_LEAST_ROWS = 16


def over_rows(work: Callable[[slice], None], n_rows: int, least_rows: int = _LEAST_ROWS) -> None:
    """Call ``work`` on slices that cover all rows, in at most torch's number of threads."""
    n_threads = min(torch.get_num_threads(), max(1, n_rows // least_rows))
    bounds = np.linspace(0, n_rows, n_threads + 1).astype(int)
    parts = [slice(*pair) for pair in pairwise(bounds)]
    if n_threads == 1:
        work(parts[0])
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, parts))
