"""Limits on threads, so that the workers of a thread pool share the cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.dummy import DummyProcess

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def fair_share_of_cores() -> Iterator[None]:
    """Limit this worker of a thread pool to its share of the threads, as loky does.

    Unlike its process backends, joblib's threading backend sets no limit, so each worker would
    start as many threads as there are cores. Its workers are those of ``multiprocessing``'s
    thread pools. Our own compiled loops also follow torch's number of threads in this thread.
    Threads that are not such workers are not limited.
    """
    if not isinstance(threading.current_thread(), DummyProcess):
        yield
        return
    n_workers = sum(isinstance(thread, DummyProcess) for thread in threading.enumerate())
    # torch sets OpenMP's number of threads when first used in a thread, which would undo the
    # limit, so torch is used here first.
    share = max(1, torch.get_num_threads() // max(1, n_workers))
    with ThreadpoolController().limit(limits=share, user_api="openmp"):
        yield
