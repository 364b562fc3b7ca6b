"""Compiled best linear estimates of codes, given which of them are not zero."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .._rows import over_rows

_compiled = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
# Supports of more codes than this are solved by conjugate gradients.
_MOST_DIRECT = 200
_CG_STEPS = 60
_CG_TOL = 1e-12


def refit(
    products: NDArray, gram: NDArray, weight: NDArray, ridge: NDArray, support: NDArray
) -> NDArray:
    """Return the codes of each row that minimise its error plus a ridge penalty.

    For a normal slab it is their posterior mean given the support.

    Parameters
    ----------
    products : ndarray of shape (n_rows, n_components)
        Inner products of rows, less the intercept, and atoms, in the metric of the noise.
    gram : ndarray of shape (n_components, n_components)
        Inner products of the atoms.
    weight : ndarray of shape (n_rows,)
        Precision of the noise of each row.
    ridge : ndarray of shape (n_components,)
        Inverse mean square of a code that is not zero.
    support : bool ndarray of shape (n_rows, n_components)
        Which codes are not zero.

    Returns
    -------
    code : ndarray of shape (n_rows, n_components)
        In the dtype of the products.
    """
    code = np.zeros_like(products)
    most = int(support.sum(1).max(initial=0))
    if not most:
        return code
    gram = np.ascontiguousarray(gram, products.dtype)

    def work(rows: slice) -> None:
        _refit_rows(products[rows], gram, weight[rows], ridge, support[rows], most, code[rows])

    over_rows(work, len(products))
    return code


@_compiled
def _refit_rows(products, gram, weight, ridge, support, most, code):  # type: ignore[no-untyped-def]
    n_rows, n_components = products.shape
    members = np.empty(most, np.int64)
    system, right, found = np.empty((most, most)), np.empty(most), np.empty(most)
    for i in range(n_rows):
        n = 0
        for k in range(n_components):
            if support[i, k]:
                members[n] = k
                n += 1
        for r in range(n):
            k = members[r]
            right[r] = weight[i] * products[i, k]
            for c in range(n):
                system[r, c] = weight[i] * gram[k, members[c]]
            system[r, r] += ridge[k]
        if n <= _MOST_DIRECT:
            _solve_by_cholesky(system, right, found, n)
        else:
            _solve_by_gradients(system, right, found, n)
        for r in range(n):
            code[i, members[r]] = found[r]


@_compiled
def _solve_by_cholesky(system, right, found, n):  # type: ignore[no-untyped-def]
    """Solve a positive definite system; its lower triangle is overwritten."""
    for r in range(n):
        for c in range(r):
            total = system[r, c]
            for j in range(c):
                total -= system[r, j] * system[c, j]
            system[r, c] = total * system[c, c]
        total = system[r, r]
        for j in range(r):
            total -= system[r, j] * system[r, j]
        # The inverse of the diagonal, which is what the rest needs.
        system[r, r] = 1.0 / np.sqrt(max(total, 1e-300))
        total = right[r]
        for j in range(r):
            total -= system[r, j] * found[j]
        found[r] = total * system[r, r]
    for r in range(n - 1, -1, -1):
        found[r] *= system[r, r]
        for j in range(r):
            found[j] -= system[r, j] * found[r]


@_compiled
def _solve_by_gradients(system, right, found, n):  # type: ignore[no-untyped-def]
    """Solve a positive definite system by conjugate gradients, scaled by its diagonal."""
    residual, direction, moved = right[:n].copy(), np.empty(n), np.empty(n)
    slope, first = 0.0, 0.0
    for r in range(n):
        found[r] = 0.0
        direction[r] = residual[r] / system[r, r]
        slope += residual[r] * direction[r]
    first = slope
    for _ in range(_CG_STEPS):
        if slope <= _CG_TOL * first:
            break
        curvature = 0.0
        for r in range(n):
            total = 0.0
            for c in range(n):
                total += system[r, c] * direction[c]
            moved[r] = total
            curvature += total * direction[r]
        step = slope / curvature
        before, slope = slope, 0.0
        for r in range(n):
            found[r] += step * direction[r]
            residual[r] -= step * moved[r]
            slope += residual[r] * residual[r] / system[r, r]
        for r in range(n):
            direction[r] = residual[r] / system[r, r] + slope / before * direction[r]
