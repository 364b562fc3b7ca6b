"""Compiled pieces that several solvers share.

Compiled code is cached per file: after a change here, delete the caches of the files that use it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

compiled: Any = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@compiled
def dot(a, b):  # type: ignore[no-untyped-def]
    """Return an inner product."""
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@compiled
def find_used(codes, used):  # type: ignore[no-untyped-def]
    """List the indices of the non-zero codes, followed by four zeros; return their number."""
    n_used = 0
    for k in range(len(codes)):
        # Written without a branch, which the CPU could not predict.
        used[n_used] = k
        n_used += codes[k] != 0
    used[n_used : n_used + 4] = 0
    return n_used
