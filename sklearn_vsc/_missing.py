"""Missing values at the door: NaN marks an entry that was not observed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Rows or columns that an error lists by their index, at most.
_MAX_LISTED = 5


def check_observed(X: NDArray, *, columns: bool) -> None:
    """Check that what is observed of X suffices; NaN means missing.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Floating-point rows, NaN where an entry is missing.
    columns : bool
        Whether every column must have an observed entry too. Rows to learn from need that;
        of rows to code none needs the others.

    Raises
    ------
    ValueError
        Where an entry is infinite, or nothing is observed of a row or of a column that must
        have something. The error gives the index.
    """
    # One number tells of the usual case, without an array of the size of X.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(X.sum()):
            return
    infinite = np.isinf(X)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise ValueError(
            f"Input X contains infinity: X[{row}, {column}] is {X[row, column]}. Only finite "
            "values count as observed; mark a missing one by NaN."
        )
    missing = np.isnan(X)
    _refuse_empty("row", missing.all(axis=1), "Drop it")
    if columns:
        _refuse_empty("column", missing.all(axis=0), "Drop it or give it a value in some row")


def _refuse_empty(kind: str, empty: NDArray, cure: str) -> None:
    """Raise where a row or column is marked as empty."""
    if not empty.any():
        return
    indices = np.flatnonzero(empty)
    listed = ", ".join(map(str, indices[:_MAX_LISTED]))
    more = f", ... ({len(indices)} in all)" if len(indices) > _MAX_LISTED else ""
    name = kind if len(indices) == 1 else f"{kind}s"
    raise ValueError(
        f"Input X has nothing observed in {name} {listed}{more}: all values there are NaN, which "
        f"means missing. {cure}."
    )
