"""Dictionary learning over all rows, by block coordinate descent on the exact objective.

The loop yields after every epoch, so that who runs it decides when to stop and what to keep.
A dictionary that was yielded is never written to again.

References
----------
Mairal, Bach, Ponce and Sapiro (2009), Online dictionary learning for sparse coding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lasso.coders import Coder
from ..missing import fill_holes, natural_reach, observed_residual, rows_with_holes
from .accumulation import ObjectiveSums, objective_sums
from .sparse_codes import SparseCodes
from .statistics import Statistics
from .update import renew_atoms, update_dictionary

# Rows coded between two updates of the dictionary, at least.
BLOCK_SIZE = 512
# Distance of the codes of a pass from their optimum, in units of alpha: at first, and at most
# in the end.
_LOOSE, _TIGHT = 0.1, 3e-3
_TIGHTENING = 0.7
# Share of the blocks' change that the next block takes over into the trend.
_MEMORY = 0.9
# How far ahead to look at first; much above one diverges.
_FORESIGHT = 1.0
# Passes between two fresh accumulations of the statistics, against rounding drift.
_REFRESH_EVERY = 16


@dataclass(frozen=True)
class Epoch:
    """Where learning stands after an epoch.

    Attributes
    ----------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    objective : ObjectiveSums
        0.5 ||x - u V||^2 + alpha ||u||_1 and its parts, summed over the rows.
    statistics : Statistics
        Copy of what the dictionary was updated from.
    n_steps : int
        Updates of the dictionary so far.
    duration : float
        Seconds that the epoch took.
    converged : bool
        Whether the stopping rule holds.
    """

    dictionary: Tensor
    objective: ObjectiveSums
    statistics: Statistics
    n_steps: int
    duration: float
    converged: bool

    @property
    def loss(self) -> float:
        """Mean objective of a row."""
        return self.objective.mean

    @property
    def parts(self) -> dict[str, float]:
        """Means over the rows of the parts of the objective, and the share of non-zero codes."""
        sums, n_rows = self.objective, max(1, self.objective.n_rows)
        return {
            "reconstruction": sums.reconstruction / n_rows,
            "penalty": sums.penalty / n_rows,
            "density": sums.n_nonzero / (n_rows * len(self.dictionary)),
        }


@dataclass
class FullBatchLearner:
    """Block coordinate descent on codes and dictionary over all rows.

    Rows are visited in blocks. The codes of a block start from those of its last visit, and
    its old share of the statistics makes room for the new one, so that each update of the
    dictionary lowers the objective at the codes that all rows hold at that time.

    Where X has holes, which are NaN, the statistics are those of rows whose holes hold what
    codes and dictionary made of them at the last visit.
    """

    X: Tensor
    codes: SparseCodes
    dictionary: Tensor
    alpha: float
    coder: Coder
    positive_dict: bool
    generator: torch.Generator
    n_steps: int = 0
    statistics: Statistics = field(init=False)
    # Sum of the latest changes of the statistics, the older ones counting less.
    _trend: Statistics = field(init=False)
    # The rows with their holes filled; None where there are none.
    _filled: Tensor | None = field(init=False)
    # Factor on observed residuals in filled rows, see ``fill_holes``.
    _reach: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        self._filled = torch.empty_like(self.X) if rows_with_holes(self.X).any() else None

    def epochs(self, tol: float, shuffle: bool) -> Iterator[Epoch]:
        """Yield after each pass over the rows, without end.

        A pass has converged when the codes are as accurate as they get and the objective
        fell by less than ``tol`` of its value.
        """
        accuracy, last, foresight, passes = _LOOSE, math.inf, 0.0, 0
        self._trend = Statistics.zeros_like(self.dictionary)
        if self._filled is not None:
            self._reach = natural_reach(self.X)
        # The excess of the objective is of the order of a tenth of the distances' square.
        tight = min(_TIGHT, max(tol, torch.finfo(self.X.dtype).eps) ** 0.5)
        while True:
            start = time.perf_counter()
            if passes % _REFRESH_EVERY == 0:
                self._refresh()
            before = self.codes.copy(), self.dictionary, self.statistics.copy()
            objective = self._pass(accuracy, shuffle, foresight)
            if objective.mean > last and (foresight or self._filled is not None):
                # What ran ahead went astray.
                self.codes, self.dictionary, self.statistics = before
                self._trend, foresight = Statistics.zeros_like(self.dictionary), foresight / 2
                objective = self._careful_pass(accuracy, shuffle)
            loss = objective.mean
            decrease = (last - loss) / loss if loss > 0 else 0.0
            yield Epoch(
                self.dictionary,
                objective,
                self.statistics.copy(),
                self.n_steps,
                time.perf_counter() - start,
                converged=accuracy <= tight and decrease < tol,
            )
            # In the first pass codes change because they had no values yet.
            foresight = foresight if passes else _FORESIGHT
            accuracy, last, passes = max(tight, _TIGHTENING * accuracy), loss, passes + 1
            self._renew()

    def _refresh(self) -> None:
        self.statistics = Statistics.zeros_like(self.dictionary)
        for rows, codes in self.codes:
            X = self.X[rows]
            if self._filled is not None:
                X = self._filled[rows] = fill_holes(X, codes, self.dictionary)
            self.statistics.add(Statistics.change(X, None, codes))

    def _careful_pass(self, accuracy: float, shuffle: bool) -> ObjectiveSums:
        """Visit every block once, such that the objective cannot rise."""
        if self._filled is None:
            return self._pass(accuracy, shuffle, 0.0)
        # Only where holes hold what the codes stand for now do the statistics bound the
        # objective tightly from above.
        self._refresh()
        reach, self._reach = self._reach, 1.0
        objective = self._pass(accuracy, shuffle, 0.0)
        self._reach = (1 + reach) / 2
        return objective

    def _change(self, rows: Tensor, old: Tensor, new: Tensor) -> Statistics:
        """Return the change of the statistics when rows get new codes; fill their holes."""
        X = self.X[rows]
        if self._filled is None:
            return Statistics.change(X, old, new)
        before = Statistics.change(self._filled[rows], None, old)
        self._filled[rows] = X = fill_holes(X, new, self.dictionary, self._reach)
        change = Statistics.change(X, None, new)
        change.subtract(before)
        return change

    def _pass(self, accuracy: float, shuffle: bool, foresight: float) -> ObjectiveSums:
        """Visit every block once; return the objective.

        Codes are half a pass old, on average. With ``foresight`` the sums run ahead to where
        those of the blocks that were visited last are going, by this share of that age.
        """
        n_blocks = len(self.codes.blocks)
        order = torch.randperm(n_blocks, generator=self.generator) if shuffle else range(n_blocks)
        reach = foresight * (n_blocks - 1) / 2 * (1 - _MEMORY)
        for block in map(int, order):
            rows, old = self.codes.blocks[block], self.codes[block]
            new = self.coder(self.X[rows], self.dictionary, old, accuracy)
            self.codes[block] = new
            change = self._change(rows, old, new)
            self.statistics.add(change)
            self.statistics.clear(self.statistics.n_users == 0)
            sums = self.statistics
            if reach:
                self._trend.scale(_MEMORY)
                self._trend.add(change)
                sums = sums.ahead(self._trend, reach)
            self.dictionary = update_dictionary(
                self.dictionary, sums.code_gram, sums.code_data, positive=self.positive_dict
            )
            self.n_steps += 1
        by_block = (
            objective_sums(self.X[rows], codes, self.dictionary, self.alpha)
            for rows, codes in self.codes
        )
        return sum(by_block, ObjectiveSums())

    def _renew(self) -> None:
        dead = self.statistics.n_users == 0
        if not dead.any():
            return
        residual, n_candidates = [], 0
        for block in torch.randperm(len(self.codes.blocks), generator=self.generator).tolist():
            if n_candidates >= 2 * int(dead.sum()):
                break
            rows = self.codes.blocks[block]
            n_candidates += len(rows)
            residual.append(observed_residual(self.X[rows], self.codes[block], self.dictionary))
        self.dictionary = renew_atoms(
            self.dictionary,
            dead,
            torch.cat(residual),
            positive=self.positive_dict,
            generator=self.generator,
        )


def row_blocks(
    n_rows: int, n_components: int, generator: torch.Generator | None, device: torch.device
) -> list[Tensor]:
    """Return the numbers of the rows of each block, at random with a generator."""
    if generator is None:
        order = torch.arange(n_rows)
    else:
        order = torch.randperm(n_rows, generator=generator)
    # The update of a large dictionary wants to be spread over more rows.
    return list(order.to(device).split(max(BLOCK_SIZE, n_components)))
