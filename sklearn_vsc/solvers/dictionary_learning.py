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
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .dictionary_update import renew_atoms, update_dictionary

# Rows coded between two updates of the dictionary.
BLOCK_SIZE = 512
# Relative duality gap that the codes of a pass aim at: first, and in the end.
_LOOSE, _TIGHT = 1e-2, 1e-5
_TIGHTENING = 0.7
# Passes between two fresh accumulations of the statistics, against rounding drift.
_REFRESH_EVERY = 16

# Maps rows, dictionary, codes to start from and a relative gap to codes.
Coder = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]


@dataclass
class Statistics:
    """Sums over rows that the update of the dictionary depends on."""

    code_gram: Tensor
    code_data: Tensor

    @classmethod
    def zeros_like(cls, dictionary: Tensor) -> Statistics:
        """Start from no rows."""
        n_components = len(dictionary)
        return cls(dictionary.new_zeros(n_components, n_components), torch.zeros_like(dictionary))

    def copy(self) -> Statistics:
        """Return a copy that later rows leave alone."""
        return Statistics(self.code_gram.clone(), self.code_data.clone())

    def add(self, codes: Tensor, X: Tensor, weight: float = 1.0) -> None:
        """Add the share of some rows, or with weight -1 take it away."""
        self.code_gram.addmm_(codes.T, codes, alpha=weight)
        self.code_data.addmm_(codes.T, X, alpha=weight)

    def scale(self, factor: float) -> None:
        """Let what was added before count less."""
        self.code_gram *= factor
        self.code_data *= factor

    def clear(self, unused: Tensor) -> None:
        """Forget atoms that no row uses, and with them what rounding left there."""
        keep = (~unused).to(self.code_gram.dtype)
        self.code_gram *= keep.unsqueeze(0) * keep.unsqueeze(1)
        self.code_data *= keep.unsqueeze(1)


@dataclass(frozen=True)
class Epoch:
    """Where learning stands after an epoch.

    Attributes
    ----------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    loss : float
        Mean over the rows of 0.5 ||x - u V||^2 + alpha ||u||_1.
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
    loss: float
    statistics: Statistics
    n_steps: int
    duration: float
    converged: bool


def mean_objective(X: Tensor, codes: Tensor, dictionary: Tensor, alpha: float) -> float:
    """Return the mean over the rows of 0.5 ||x - u V||^2 + alpha ||u||_1."""
    total = 0.0
    for start in range(0, len(X), BLOCK_SIZE):
        rows = slice(start, start + BLOCK_SIZE)
        residual = torch.addmm(X[rows], codes[rows], dictionary, alpha=-1)
        by_row = 0.5 * residual.square().sum(1) + alpha * codes[rows].abs().sum(1)
        total += float(by_row.cpu().double().sum())
    return total / len(X)


@dataclass
class FullBatchLearner:
    """Block coordinate descent on codes and dictionary over all rows.

    Rows are visited in blocks. The codes of a block start from those of its last visit, and
    its old share of the statistics makes room for the new one, so that each update of the
    dictionary lowers the objective at the codes that all rows hold at that time.
    """

    X: Tensor
    codes: Tensor
    dictionary: Tensor
    alpha: float
    coder: Coder
    positive_dict: bool
    generator: torch.Generator
    n_steps: int = 0

    def epochs(self, tol: float, shuffle: bool) -> Iterator[Epoch]:
        """Yield after each pass over the rows, without end.

        A pass has converged when the codes aim at their tightest gap and the objective fell
        by less than ``tol`` of its value.
        """
        gap, last, passes = _LOOSE, math.inf, 0
        while True:
            start = time.perf_counter()
            if passes % _REFRESH_EVERY == 0:
                self._refresh()
            self._pass(gap, shuffle)
            loss = mean_objective(self.X, self.codes, self.dictionary, self.alpha)
            decrease = (last - loss) / loss if loss > 0 else 0.0
            yield Epoch(
                self.dictionary,
                loss,
                self.statistics.copy(),
                self.n_steps,
                time.perf_counter() - start,
                converged=gap <= _TIGHT and decrease < tol,
            )
            gap, last, passes = max(_TIGHT, _TIGHTENING * gap), loss, passes + 1
            self._renew()

    def _refresh(self) -> None:
        self.statistics = Statistics.zeros_like(self.dictionary)
        self.n_users = torch.zeros(
            len(self.dictionary), dtype=torch.int64, device=self.dictionary.device
        )
        for start in range(0, len(self.X), BLOCK_SIZE):
            codes = self.codes[start : start + BLOCK_SIZE]
            self.statistics.add(codes, self.X[start : start + BLOCK_SIZE])
            self.n_users += (codes != 0).sum(0)

    def _pass(self, gap: float, shuffle: bool) -> None:
        n_rows = len(self.X)
        if shuffle and n_rows > BLOCK_SIZE:
            order = torch.randperm(n_rows, generator=self.generator).to(self.X.device)
        else:
            order = torch.arange(n_rows, device=self.X.device)
        for rows in order.split(BLOCK_SIZE):
            block, old = self.X[rows], self.codes[rows]
            new = self.coder(block, self.dictionary, old, gap)
            self.codes[rows] = new
            self.statistics.add(old, block, -1.0)
            self.statistics.add(new, block)
            self.n_users += (new != 0).sum(0) - (old != 0).sum(0)
            self.statistics.clear(self.n_users == 0)
            self.dictionary = update_dictionary(
                self.dictionary,
                self.statistics.code_gram,
                self.statistics.code_data,
                positive=self.positive_dict,
            )
            self.n_steps += 1

    def _renew(self) -> None:
        dead = self.n_users == 0
        if not dead.any():
            return
        n_candidates = min(len(self.X), max(BLOCK_SIZE, 2 * int(dead.sum())))
        rows = torch.randperm(len(self.X), generator=self.generator)[:n_candidates]
        rows = rows.to(self.X.device)
        residual = torch.addmm(self.X[rows], self.codes[rows], self.dictionary, alpha=-1)
        self.dictionary = renew_atoms(
            self.dictionary,
            dead,
            residual,
            positive=self.positive_dict,
            generator=self.generator,
        )
