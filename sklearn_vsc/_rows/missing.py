"""Missing values at the door: NaN marks an entry that was not observed."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from .arrays import row_slices, rows_at_once

# Rows or columns that an error lists by their index, at most.
_MAX_LISTED = 5


class ObservedRows:
    """What is observed of rows that are shown a chunk at a time.

    Attributes
    ----------
    n_rows : int
        Number of rows that were shown.
    n_features : int
        Length of a row.
    least, most : float
        Range of the observed entries.
    """

    def __init__(self, n_features: int) -> None:
        self.n_rows = 0
        self.n_features = n_features
        self.least, self.most = np.inf, -np.inf
        self._counts = np.zeros(n_features, dtype=np.int64)
        self._sums: NDArray | None = None
        self._empty: list[NDArray] = []

    def add(self, X: NDArray) -> None:
        """Take in a chunk of rows.

        Raises
        ------
        ValueError
            Where an entry is infinite. The error gives the index.
        """
        missing = np.isnan(X)
        has_holes = missing.any()
        least = float(np.fmin.reduce(X, axis=None) if has_holes else X.min())
        most = float(np.fmax.reduce(X, axis=None) if has_holes else X.max())
        if np.isinf(least) or np.isinf(most):
            self._refuse_infinite(X)
        # A chunk of which nothing is observed has NaN here, which changes neither.
        self.least, self.most = min(self.least, least), max(self.most, most)
        if has_holes:
            self._empty.append(self.n_rows + np.flatnonzero(missing.all(axis=1)))
            X = np.where(missing, 0, X)
        self._counts += len(X) - np.count_nonzero(missing, axis=0)
        self.n_rows += len(X)
        # As one more row: the sums round as those of all rows at once.
        rows = X if self._sums is None else np.concatenate([self._sums[None], X])
        with np.errstate(over="ignore"):
            self._sums = np.ascontiguousarray(rows).sum(axis=0, dtype=np.float64)

    def _refuse_infinite(self, X: NDArray) -> NoReturn:
        row, column = np.argwhere(np.isinf(X))[0]
        raise ValueError(
            f"Input X contains infinity: X[{self.n_rows + row}, {column}] is {X[row, column]}. "
            "Only finite values count as observed; mark a missing one by NaN."
        )

    def check(self, *, columns: bool) -> None:
        """Refuse rows, and columns if asked to, of which nothing is observed."""
        if self._empty:
            _refuse_empty("row", np.concatenate(self._empty), "Drop it")
        if columns:
            empty = np.flatnonzero(self._counts == 0)
            _refuse_empty("column", empty, "Drop it or give it a value in some row")

    @property
    def n_observed(self) -> int:
        """Number of observed entries."""
        return int(self._counts.sum())

    @property
    def has_holes(self) -> bool:
        """Whether any entry is missing."""
        return self.n_observed < self.n_rows * self.n_features

    @property
    def means(self) -> NDArray:
        """Mean of what is observed of each column, float64."""
        assert self._sums is not None
        return self._sums / self._counts


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
    observed = ObservedRows(X.shape[1])
    for rows in row_slices(len(X), rows_at_once(X.shape[1])):
        observed.add(X[rows])
    observed.check(columns=columns)


def _refuse_empty(kind: str, indices: NDArray, cure: str) -> None:
    """Raise where there are rows or columns that are empty."""
    if not len(indices):
        return
    listed = ", ".join(map(str, indices[:_MAX_LISTED]))
    more = f", ... ({len(indices)} in all)" if len(indices) > _MAX_LISTED else ""
    name = kind if len(indices) == 1 else f"{kind}s"
    raise ValueError(
        f"Input X has nothing observed in {name} {listed}{more}: all values there are NaN, which "
        f"means missing. {cure}."
    )
