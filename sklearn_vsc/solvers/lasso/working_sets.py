"""Compiled coordinate descent on the lasso with a working set of atoms for each row.

It computes only the inner products of the atoms that a row comes to use, so that no array grows
with the square of the number of atoms: for many atoms, for few rows, and for rows with missing
entries, whose inner products differ from row to row. A round takes one matrix product, of the
residuals of a block of rows and all atoms. It certifies the codes and gives each row the atoms that
violate the optimality conditions most, its candidates. Descent within the working set alternates
with looks at the candidates until none of them violates the conditions; then the next round begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows
from .quadratic_fit import DataFit, MaskedFit, products_of_rows
from .stopping import LassoResult, Stopping, blank_answers
from .working_set_kernels import Rules, residuals_of_rows, visit_rows

# Most inner products of residuals and atoms in memory, for more than a few rows.
_PRODUCT_NUMEL = 2**23
# The number of rows of such a product is a multiple of this; these products only choose atoms, and
# one row should not pay for many.
_PADDED_ROWS = 16
# Distances below this multiple of machine epsilon times a row's largest possible correlation
# are noise.
_NOISE = 4
# Atoms of at most so many numbers stay in a CPU's cache: then each row is solved in one go.
_FEW_NUMBERS = 2**17


@dataclass(frozen=True)
class WorkingSetDescent:
    """Coordinate descent over the atoms of one dictionary."""

    dictionary: Tensor
    # Largest norm of an atom.
    longest: float
    stopping: Stopping

    @classmethod
    def of(cls, dictionary: Tensor, stopping: Stopping) -> Self:
        """Prepare what all rows share."""
        dictionary = dictionary.cpu().contiguous()
        norms = torch.linalg.vector_norm(dictionary, dim=1)
        return cls(dictionary, float(norms.max()) if len(norms) else 0.0, stopping)

    def iterate(self, fit: DataFit | MaskedFit, codes: Tensor, max_iter: int) -> LassoResult:
        """Descend until each row has converged.

        One iteration is ``n_components`` moves, or one round.
        """
        moved = codes.cpu().clone(memory_format=torch.contiguous_format)
        observed = fit.observed if isinstance(fit, MaskedFit) else None
        answers = self._run(fit.X, observed, moved, 0.0, self.stopping.tol, max_iter)
        objective, gaps, done = (torch.from_numpy(a).to(codes.device) for a in answers[:3])
        n_iter = math.ceil(int(answers[3].max(initial=0)) / max(len(self.dictionary), 1))
        return LassoResult(moved.to(codes.device), objective, gaps, done, n_iter)

    def descend(self, X: Tensor, codes: Tensor, distance: float, max_iter: int) -> Tensor:
        """Descend until each code is near its own optimum with the others held fixed.

        Near means within ``distance`` times alpha, divided by the observed energy of the code's
        atom. The result is not certified: use this for codes that will be visited again.
        """
        moved = codes.cpu().clone(memory_format=torch.contiguous_format)
        missing = X.isnan()
        masked = bool(missing.any())
        rows, observed = (X.masked_fill(missing, 0), ~missing) if masked else (X, None)
        self._run(rows, observed, moved, distance, -1.0, max_iter)
        return moved.to(codes.device)

    @property
    def _rows_at_once(self) -> int:
        return max(_PRODUCT_NUMEL // max(len(self.dictionary), 1), 64)

    def _run(
        self,
        X: Tensor,
        observed: Tensor | None,
        codes: Tensor,
        distance: float,
        tol: float,
        max_iter: int,
    ) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Descend in place, with the rows split among torch's number of threads.

        Returns
        -------
        objective, gaps, done, spent : ndarray of shape (n_rows,)
            Certificates, if ``tol`` is not negative, and the number of moves.
        """
        rows, atoms, moved = X.cpu().contiguous().numpy(), self.dictionary.numpy(), codes.numpy()
        # A mask is needed: compiled with ``fastmath``, the loop cannot recognise NaN.
        seen = (
            np.empty((0, 0), np.bool_) if observed is None else observed.cpu().contiguous().numpy()
        )
        real, n_rows = rows.dtype.type, len(rows)
        rules = Rules(
            real(self.stopping.alpha),
            self.stopping.positive,
            real(distance * self.stopping.alpha),
            real(tol),
            real(_NOISE * np.finfo(real).eps),
            real(self.longest),
            max_iter * len(atoms),
            atoms.size <= _FEW_NUMBERS,
        )
        answers = blank_answers(n_rows, real)
        residual = np.empty_like(rows)
        residuals_of_rows(atoms, rows, seen, moved, residual)
        for block in np.split(np.arange(n_rows), range(0, n_rows, self._rows_at_once))[1:]:
            left = block
            while len(left):
                rest = torch.from_numpy(residual[left])
                pulls = products_of_rows(rest, self.dictionary, _PADDED_ROWS).numpy()
                stopped = np.zeros(len(left), np.bool_)
                listed = left, pulls, stopped

                def visit(part: slice, listed: tuple[NDArray, ...] = listed) -> None:
                    parts = (array[part] for array in listed)
                    visit_rows(atoms, rows, seen, *parts, rules, residual, moved, *answers)

                over_rows(visit, len(left))
                left = left[~stopped]
        return answers
