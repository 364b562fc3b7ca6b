"""Threads: workers of a pool share the cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.dummy import DummyProcess

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def fair_share_of_cores() -> Iterator[None]:
    """Leave the other workers of a thread pool their share of the threads, as loky does.

    joblib's threading backend, unlike its processes, sets no limit, so that each worker would
    start as many threads as there are cores. Its workers are those of ``multiprocessing``'s
    pools. What torch uses in this thread is the measure of our own compiled loops too. Other
    threads are left alone.
    """
    if not isinstance(threading.current_thread(), DummyProcess):
        yield
        return
    n_workers = sum(isinstance(thread, DummyProcess) for thread in threading.enumerate())
    # torch asks OpenMP for threads when it is first used in a thread, and would undo the limit.
    share = max(1, torch.get_num_threads() // max(1, n_workers))
    with ThreadpoolController().limit(limits=share, user_api="openmp"):
        yield
