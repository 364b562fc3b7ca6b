"""The inverse covariance of noise with dense columns, without a matrix of features by features."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .parameters import SparseLinear


class NoiseMetric:
    """Inner products in the metric of the noise, over the observed features of a row.

    The covariance is ``diag(noise) + dense' dense``; its inverse follows from the Woodbury
    identity.

    Parameters
    ----------
    model : SparseLinear
        The model.
    dtype : numpy.dtype
        Of inner products.
    observed : bool ndarray of shape (n_features,), default=None
        The features that are observed; None: all of them.
    """

    def __init__(
        self, model: SparseLinear, dtype: np.dtype, observed: NDArray | None = None
    ) -> None:
        self.dtype = dtype
        self.observed = observed
        self.intercept = self._cut(model.intercept)
        self.noise = self._cut(model.noise)
        self.dense = self._cut(model.dense)
        self.atoms = self._cut(model.atoms)
        self.has_dense = len(self.dense) > 0
        self._scaled_dense = self.dense / self.noise
        # Precision of the dense codes of a row, given the row and its sparse codes.
        self.dense_precision = self._scaled_dense @ self.dense.T + np.eye(len(self.dense))

    def _cut(self, values: NDArray) -> NDArray:
        return values if self.observed is None else values[..., self.observed]

    @property
    def n_features(self) -> int:
        """Number of observed features."""
        return len(self.noise)

    @cached_property
    def log_det(self) -> float:
        """Log determinant of the covariance."""
        found = float(np.log(self.noise).sum())
        return found + float(np.linalg.slogdet(self.dense_precision)[1])

    def weighted(self, rows: NDArray) -> NDArray:
        """Return rows times the inverse covariance."""
        found = rows / self.noise.astype(rows.dtype)
        if self.has_dense:
            found = found - (rows @ self.dense_weights.astype(rows.dtype)) @ (
                self._scaled_dense.astype(rows.dtype)
            )
        return found

    @cached_property
    def dense_weights(self) -> NDArray:
        """Return what a residual is multiplied by to give the mean of its dense codes, (D, r)."""
        return np.linalg.solve(self.dense_precision, self._scaled_dense).T

    @cached_property
    def _weighted_atoms(self) -> NDArray:
        return self.weighted(self.atoms)

    @cached_property
    def gram(self) -> NDArray:
        """Inner products of atoms."""
        return (self._weighted_atoms @ self.atoms.T).astype(self.dtype)

    @cached_property
    def squares(self) -> NDArray:
        """Squared norms of atoms: the diagonal of ``gram``."""
        return np.einsum("kd,kd->k", self._weighted_atoms, self.atoms).astype(self.dtype)

    def products(self, residual: NDArray) -> NDArray:
        """Inner products of rows less the intercept, and atoms."""
        return residual @ self._weighted_atoms.astype(residual.dtype).T

    def energy(self, residual: NDArray) -> NDArray:
        """Squared norms of rows less the intercept, float64."""
        inverse = (1 / self.noise).astype(residual.dtype)
        found = np.einsum("nd,nd,d->n", residual, residual, inverse, dtype=float)
        if self.has_dense:
            scores = residual @ self._scaled_dense.astype(residual.dtype).T
            codes = residual @ self.dense_weights.astype(residual.dtype)
            found = found - np.einsum("nr,nr->n", scores, codes, dtype=float)
        return np.maximum(found, 0)
