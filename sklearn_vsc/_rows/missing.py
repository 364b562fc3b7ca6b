"""Checks of input with missing values: NaN marks an entry that was not observed."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from .arrays import row_slices, rows_at_once
from .sparse_output import dense_rows

# Maximum number of row or column indices listed in an error message.
_MAX_LISTED = 5


class ObservedRows:
    """Statistics of the observed entries of rows that are added chunk by chunk.

    Attributes
    ----------
    n_rows : int
        Number of rows added so far.
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
        """Add a chunk of rows.

        Raises
        ------
        ValueError
            If an entry is infinite. The error gives its index.
        """
        missing = np.isnan(X)
        incomplete = missing.any()
        least = float(np.fmin.reduce(X, axis=None) if incomplete else X.min())
        most = float(np.fmax.reduce(X, axis=None) if incomplete else X.max())
        if np.isinf(least) or np.isinf(most):
            self._refuse_infinite(X)
        # A chunk without observed entries gives NaN here, which changes neither.
        self.least, self.most = min(self.least, least), max(self.most, most)
        if incomplete:
            self._empty.append(self.n_rows + np.flatnonzero(missing.all(axis=1)))
            X = np.where(missing, 0, X)
        self._counts += len(X) - np.count_nonzero(missing, axis=0)
        self.n_rows += len(X)
        # The sums so far are added as one more row, so that they round as for all rows at once.
        rows = X if self._sums is None else np.concatenate([self._sums[None], X])
        with np.errstate(over="ignore"):
            self._sums = np.ascontiguousarray(rows).sum(axis=0, dtype=np.float64)

    def _refuse_infinite(self, X: NDArray) -> NoReturn:
        row, column = np.argwhere(np.isinf(X))[0]
        raise ValueError(
            f"Input X contains infinity: X[{self.n_rows + row}, {column}] is {X[row, column]}. "
            "Observed values must be finite; mark missing entries as NaN."
        )

    def check(self, *, columns: bool) -> None:
        """Raise an error for rows, and optionally columns, without any observed entry."""
        if self._empty:
            _refuse_empty("row", np.concatenate(self._empty), "Drop it")
        if columns:
            empty = np.flatnonzero(self._counts == 0)
            _refuse_empty("column", empty, "Drop it or give it a value in some row")

    @property
    def counts(self) -> NDArray:
        """Number of observed entries of each column."""
        return self._counts

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
        """Mean of the observed entries of each column, in float64."""
        assert self._sums is not None
        return self._sums / self._counts


def check_observed(X: NDArray, *, columns: bool) -> None:
    """Check that X has enough observed entries; NaN means missing.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
        Floating-point rows; missing entries are NaN, and entries that are not stored are zero.
    columns : bool
        Whether every column must have an observed entry too. This is needed for rows to learn
        from; rows to code are independent of each other.

    Raises
    ------
    ValueError
        If an entry is infinite, or if a row, or a column with ``columns=True``, has no observed
        entry. The error gives the index.
    """
    # In the usual case a single sum is enough, without a temporary array of the size of X.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(X.sum()):
            return
    observed = ObservedRows(X.shape[1])
    for rows in row_slices(X.shape[0], rows_at_once(X.shape[1])):
        observed.add(dense_rows(X, rows))
    observed.check(columns=columns)


def _refuse_empty(kind: str, indices: NDArray, cure: str) -> None:
    """Raise an error if any rows or columns are empty."""
    if not len(indices):
        return
    listed = ", ".join(map(str, indices[:_MAX_LISTED]))
    more = f", ... ({len(indices)} in all)" if len(indices) > _MAX_LISTED else ""
    name = kind if len(indices) == 1 else f"{kind}s"
    raise ValueError(
        f"Input X has no observed entries in {name} {listed}{more}: all values there are NaN, "
        f"which means missing. {cure}."
    )
