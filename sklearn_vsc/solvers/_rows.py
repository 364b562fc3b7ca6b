"""Rows shared out among threads, for compiled loops that let go of the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

# Fewer rows than this are not worth a thread.
_LEAST_ROWS = 16


def over_rows(work: Callable[[slice], None], n_rows: int) -> None:
    """Call ``work`` with slices that cover the rows, in as many threads as torch uses."""
    n_threads = min(torch.get_num_threads(), max(1, n_rows // _LEAST_ROWS))
    parts = [slice(p[0], p[-1] + 1) for p in np.array_split(np.arange(n_rows), n_threads)]
    if n_threads == 1:
        work(parts[0])
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, parts))
