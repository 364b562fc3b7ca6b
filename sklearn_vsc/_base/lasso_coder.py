"""Codes of rows under a dictionary that is given or learned."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse

from .._inference.row_coder import (
    ALGORITHMS,
    BY_PENALTY,
    OURS,
    RowCoder,
    check_features,
    check_n_nonzero,
)
from .._rows.array_api import follows_input
from .._rows.arrays import row_slices, rows_at_once
from .._rows.compat import Interval, StrOptions
from .._rows.missing import check_observed
from .._rows.sparse_output import dense_rows, join_codes
from ..solvers.lasso.quadratic_fit import AtomCache
from .coder import BaseSparseCoder, check_size

# Minimum number of codes that `transform` holds at once where its output is sparse.
_CODES_AT_ONCE = 2**24
# Inner products of the atoms of each estimator. They are apart from its attributes, so that they
# are neither pickled nor copied, and `transform` leaves the estimator as it is.
_CACHES: WeakKeyDictionary[LassoCoder, AtomCache] = WeakKeyDictionary()


class LassoCoder(BaseSparseCoder):
    """Base of the estimators that solve a problem of sparse coding for each row.

    A subclass has ``components_``, and an ``alpha`` where its fit has one.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "transform_algorithm": [StrOptions(set(ALGORITHMS))],
        "transform_n_nonzero_coefs": [Interval(Integral, 1, None, closed="left"), None],
        "transform_alpha": [Interval(Real, 0, np.inf, closed="left"), None],
        "refit": ["boolean"],
        "split_sign": ["boolean"],
        "n_jobs": [Integral, None],
        "positive_code": ["boolean"],
        "transform_max_iter": [Interval(Integral, 0, None, closed="left")],
        "transform_tol": [Interval(Real, 0, 1, closed="right"), None],
        "sparse_output": ["boolean"],
        "device": [str],
    }
    # Method of `solve_lasso` on a CPU.
    _descent: ClassVar[str] = "cd"
    _takes_sparse = True
    # Parameter that says how many atoms there are, for messages.
    _atoms_parameter: ClassVar[str] = "n_components"

    transform_algorithm: str
    transform_n_nonzero_coefs: int | None
    transform_alpha: float | None
    refit: bool
    split_sign: bool
    n_jobs: int | None
    positive_code: bool
    transform_max_iter: int
    transform_tol: float | None
    device: str

    @follows_input
    def transform(self, X: ArrayLike) -> NDArray:
        """Return the sparse codes of the rows of X by ``transform_algorithm``.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Rows to code. NaN is a missing entry: a row is coded from its observed entries. Entries
            that a sparse matrix does not store are zeros.

        Returns
        -------
        codes : ndarray or CSR matrix of shape (n_samples, n_components)
            Codes, or (n_samples, 2 n_components) with ``split_sign``: positive parts, then
            the absolute values of the negative parts. Sparse with ``sparse_output=True``.

        Raises
        ------
        ValueError
            Where X does not match the dictionary, a value is infinite, or a row has no observed
            entries.
        """
        X = self._validate_rows(X, reset=False)
        dictionary = self._atoms(X.dtype)
        check_features(X, dictionary)
        alpha = self.transform_alpha
        if alpha is None:
            alpha = self._weight
        coder, n_components = self._row_coder(self.transform_algorithm, alpha), len(dictionary)
        n_nonzero = self.transform_n_nonzero_coefs
        check_n_nonzero(
            self.transform_algorithm,
            n_nonzero,
            n_components,
            name="transform_n_nonzero_coefs",
            other=self._atoms_parameter,
        )
        if self.transform_algorithm in BY_PENALTY:
            coder = replace(coder, n_kept=n_nonzero, refit=self.refit)
        size = max(_CODES_AT_ONCE // n_components, 1)
        if self.transform_algorithm not in OURS:
            # The inner products of all atoms are computed for each chunk.
            size = max(size, n_components)
        if issparse(X):
            size = min(size, rows_at_once(X.shape[1]))
        chunks = row_slices(X.shape[0], size)
        codes = (coder.codes(dense_rows(X, rows), dictionary) for rows in chunks)
        if self.split_sign:
            codes = (np.hstack([np.maximum(part, 0), np.maximum(-part, 0)]) for part in codes)
        return join_codes(codes, sparse_output=self.sparse_output)

    @follows_input
    def inverse_transform(self, Z: ArrayLike) -> NDArray:
        """Reconstruct rows from their codes.

        Parameters
        ----------
        Z : array-like or sparse matrix of shape (n_samples, n_components)
            Codes as ``transform`` gives them; with ``split_sign``, of twice the columns.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            The product of codes and dictionary, without missing entries.
        """
        Z = self._validate_codes(Z)
        if self.split_sign:
            n_components = Z.shape[1] // 2
            Z = Z[:, :n_components] - Z[:, n_components:]
        return Z @ self._atoms(Z.dtype)

    @property
    def _weight(self) -> float:
        """Weight of the l1 norm where ``transform_alpha`` gives none."""
        return 1.0

    def _atoms(self, dtype: np.dtype) -> NDArray:
        """Return the dictionary, of the type of the rows or codes at hand."""
        return self.components_.astype(dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_) * (2 if self.split_sign else 1)

    def _validate_rows(self, X: Any, *, reset: bool) -> NDArray:
        """Check rows on their way in; up to 32 bits they become float32, all else float64."""
        return self._rows_and_size(X, reset=reset)[0]

    def _rows_and_size(self, X: Any, *, reset: bool) -> tuple[NDArray, float]:
        """Check rows on their way in; return them and their largest absolute value."""
        X = self._validate_table(X, reset=reset)
        check_observed(X, columns=reset)
        limit = 1e15 if X.dtype == np.float32 else 1e100
        # Rows to code may be small: then their codes are zero.
        return X, check_size(X, 1 / limit if reset else 0.0, limit)

    def _row_coder(self, algorithm: str, alpha: float) -> RowCoder:
        """Return the coder of an algorithm, with the parameters of the estimator."""
        return RowCoder(
            algorithm,
            alpha,
            self.device,
            n_nonzero_coefs=self.transform_n_nonzero_coefs,
            max_iter=self.transform_max_iter,
            tol=self.transform_tol,
            positive=self.positive_code,
            n_jobs=self.n_jobs,
            descent=self._descent,
            cache=_CACHES.setdefault(self, AtomCache()),
        )
