"""When the lasso of a row counts as solved, and the record of its best codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .quadratic_fit import Certificate, Fit, certify


@dataclass(frozen=True)
class LassoResult:
    """Codes of a batch of rows, each with its certificate.

    Attributes
    ----------
    codes : Tensor of shape (n_rows, n_components)
        Lasso codes.
    objective : Tensor of shape (n_rows,)
        0.5 ||x - u V||^2 + alpha ||u||_1 of each row.
    gaps : Tensor of shape (n_rows,)
        Duality gap of each row: an upper bound on objective minus optimum.
    converged : Tensor of shape (n_rows,), bool
        Whether the gap of the row is within the tolerance.
    n_iter : int
        Largest number of iterations spent on a row.
    """

    codes: Tensor
    objective: Tensor
    gaps: Tensor
    converged: Tensor
    n_iter: int


@dataclass(frozen=True)
class Stopping:
    """The penalty of a lasso, and the relative duality gap at which a row has converged."""

    alpha: float
    tol: float
    positive: bool

    def certify(self, fit: Fit, codes: Tensor) -> Certificate:
        return certify(fit, codes, self.alpha, positive=self.positive)

    def within(self, fit: Fit, now: Certificate) -> Tensor:
        # The gap cannot be resolved below the rounding error of its own terms.
        rounding = 4 * torch.finfo(fit.energy.dtype).eps * fit.energy
        return now.gap <= torch.maximum(self.tol * now.objective, rounding)


@dataclass
class BestCodes:
    """The best codes found so far for each row of a block."""

    codes: Tensor
    objective: Tensor
    gaps: Tensor
    converged: Tensor

    @classmethod
    def at(cls, codes: Tensor, fit: Fit, stopping: Stopping) -> Self:
        """Start from given codes."""
        now = stopping.certify(fit, codes)
        return cls(codes, now.objective, now.gap, stopping.within(fit, now))

    def replace(self, better: Tensor, codes: Tensor, now: Certificate, done: Tensor) -> None:
        """Replace the rows marked as better."""
        self.codes = torch.where(better.unsqueeze(1), codes, self.codes)
        self.objective = torch.where(better, now.objective, self.objective)
        self.gaps = torch.where(better, now.gap, self.gaps)
        self.converged = torch.where(better, done, self.converged)

    def record(self, rows: Tensor, codes: Tensor, now: Certificate, done: Tensor) -> None:
        """Accept the new codes of the listed rows where they are no worse."""
        # Where both are optimal up to rounding, the smaller gap decides.
        better = done | (now.objective <= self.objective[rows])
        part = BestCodes(
            self.codes[rows], self.objective[rows], self.gaps[rows], self.converged[rows]
        )
        part.replace(better, codes, now, done)
        self.codes[rows], self.objective[rows] = part.codes, part.objective
        self.gaps[rows], self.converged[rows] = part.gaps, part.converged

    def select(self, rows: Tensor) -> Self:
        return type(self)(
            self.codes[rows], self.objective[rows], self.gaps[rows], self.converged[rows]
        )

    def result(self, n_iter: int) -> LassoResult:
        return LassoResult(self.codes, self.objective, self.gaps, self.converged, n_iter)


def blank_answers(n_rows: int, real: Any) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return what compiled descents fill in: objective, gap, whether done, and number of moves."""
    return (
        np.zeros(n_rows, real),
        np.zeros(n_rows, real),
        np.zeros(n_rows, np.bool_),
        np.zeros(n_rows, np.int64),
    )
