"""Dictionary learning over rows that are visited again, by block coordinate descent.

The objective is the exact one of all rows, in full batches as in mini-batches; a mini-batch is a
small block.

The loop yields after every epoch, so that its caller decides when to stop and what to keep.
A dictionary that has been yielded is never modified again.

References
----------
Mairal, Bach, Ponce and Sapiro (2009), Online dictionary learning for sparse coding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lasso.coders import Coder
from ..missing import fill_missing, natural_reach, observed_residual, rows_with_missing
from ..sparse_rows import SparseRows
from .accumulation import ObjectiveSums, objective_sums
from .renewal import renew_atoms
from .sparse_codes import SparseCodes
from .statistics import Statistics
from .update import normalise_atoms, update_dictionary

# Minimum number of rows coded between two updates of the dictionary.
BLOCK_SIZE = 512
# Number of codes in a larger block, and of entries in its rows, at most.
_BLOCK_CODES, _BLOCK_NUMBERS = 2**25, 2**24
# Allowed distance of the codes from their optimum, in units of alpha: in the first pass, and the
# largest value allowed in the last passes, by default and for a ``tol`` that was given.
_LOOSE, _CLOSE, _TIGHT = 0.1, 3e-2, 3e-3
_TIGHTENING = 0.7
# Decay of the trend from block to block, and the share of a pass that it looks back at least: over
# fewer blocks the trend would be noise.
_MEMORY, _LOOK_BACK = 0.9, 0.25
# Initial amount of extrapolation; values far above one diverge.
_FORESIGHT = 1.0
# Share of the change of the dictionary in the last pass that it moves on before the next: at first,
# at most, and the factor by which it grows with every pass that lowers the objective.
_MOMENTUM, _MOST_MOMENTUM, _SPEED_UP = 0.5, 0.95, 1.1
# By default, learning ends once the later half of the passes, of which there are at least so many,
# has gained less than this share, or a pass next to nothing.
_ENOUGH, _LEAST_PASSES, _NOTHING = 3e-3, 8, 1e-6
# Passes between two recomputations of the statistics, which limit the drift from rounding.
_REFRESH_EVERY = 16


@dataclass(frozen=True)
class Epoch:
    """State of learning after an epoch.

    Attributes
    ----------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    objective : ObjectiveSums
        0.5 ||x - u V||^2 + alpha ||u||_1 and its parts, summed over the rows.
    statistics : Statistics
        Copy of the statistics that the dictionary was updated from.
    n_steps : int
        Number of updates of the dictionary so far.
    duration : float
        Duration of the epoch in seconds.
    converged : bool
        Whether the stopping rule is met.
    """

    dictionary: Tensor
    objective: ObjectiveSums
    statistics: Statistics
    n_steps: int
    duration: float
    converged: bool

    @property
    def loss(self) -> float:
        """Mean objective per row."""
        return self.objective.mean

    @property
    def parts(self) -> dict[str, float]:
        """Parts of the objective, as means over the rows, and the share of non-zero codes."""
        sums, n_rows = self.objective, max(1, self.objective.n_rows)
        return {
            "reconstruction": sums.reconstruction / n_rows,
            "penalty": sums.penalty / n_rows,
            "density": sums.n_nonzero / (n_rows * len(self.dictionary)),
        }


# Called after a step with its number, its block, the mean objective of the rows of the block, and
# the dictionaries before and after; returns whether to stop.
OnStep = Callable[[int, int, float, Tensor, Tensor], bool]


@dataclass
class FullBatchLearner:
    """Block coordinate descent on codes and dictionary over all rows.

    Rows are visited in blocks. The codes of a block start from their values at its last visit, and
    the block's new contribution to the statistics replaces its old one, so that each update of the
    dictionary lowers the objective at the current codes of all rows.

    Where X has missing entries, which are NaN, the statistics are computed from completed rows:
    missing entries hold their reconstruction from the codes and the dictionary at the last visit.
    """

    X: Tensor | SparseRows
    codes: SparseCodes
    dictionary: Tensor
    alpha: float
    coder: Coder
    positive_dict: bool
    generator: torch.Generator
    n_steps: int = 0
    statistics: Statistics = field(init=False)
    # Exponentially weighted sum of the recent changes of the statistics.
    _trend: Statistics = field(init=False)
    # The rows with missing entries filled in; None if no entry is missing.
    _filled: Tensor | None = field(init=False)
    # Factor on the observed residuals in filled rows; see ``fill_missing``.
    _reach: float = field(init=False, default=1.0)
    # The dictionary before the last pass; None where there was none, or atoms have been renewed.
    _previous: Tensor | None = field(init=False, default=None)
    _on_step: OnStep | None = field(init=False, default=None)
    # Whether ``_on_step`` has ended the fit.
    _ended: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._filled = None
        if rows_with_missing(self.X).any():
            # Dense for sparse rows too: filling moves observed entries as well.
            self._filled = self.dictionary.new_empty(self.X.shape)

    def epochs(
        self, tol: float | None, shuffle: bool, on_step: OnStep | None = None
    ) -> Iterator[Epoch]:
        """Yield after each pass over the rows, indefinitely.

        A pass has converged when the codes have reached their final accuracy and the objective
        fell by less than ``tol`` relative to its value, or when ``on_step`` has ended it, which it
        can from the second pass on. With ``tol=None`` the later half of the passes counts: what
        they gained is about what is left to gain.
        """
        self._on_step = on_step
        accuracy, last, foresight, momentum, passes = _LOOSE, math.inf, 0.0, 0.0, 0
        self._trend = Statistics.zeros_like(self.dictionary)
        if self._filled is not None:
            self._reach = natural_reach(self.X)
        # The excess of the objective is about a tenth of the squared distances.
        tight = _CLOSE
        if tol is not None:
            tight = min(_TIGHT, max(tol, torch.finfo(self.X.dtype).eps) ** 0.5)
        losses: list[float] = []
        while True:
            start = time.perf_counter()
            if passes % _REFRESH_EVERY == 0:
                self._refresh()
            before = self.codes.copy(), self.dictionary, self.statistics.copy()
            self._leap(momentum)
            objective = self._pass(accuracy, shuffle, foresight)
            ahead = bool(foresight or momentum)
            overshot = objective.mean > last and (ahead or self._filled is not None)
            if overshot and not self._ended:
                # The extrapolation overshot: go back and repeat the pass without it.
                self.codes, self.dictionary, self.statistics = before
                self._trend, foresight = Statistics.zeros_like(self.dictionary), foresight / 2
                momentum, self._previous = momentum / 2, None
                objective = self._careful_pass(accuracy, shuffle)
            loss = objective.mean
            losses.append(loss)
            done = accuracy <= tight and passes > 0
            if tol is None:
                later = losses[len(losses) // 2 - 1 :]
                enough = len(losses) >= _LEAST_PASSES and _fall(later) < _ENOUGH
                still = enough or (done and _fall([last, loss]) < _NOTHING)
            else:
                still = done and _fall([last, loss]) < tol
            yield Epoch(
                self.dictionary,
                objective,
                self.statistics.copy(),
                self.n_steps,
                time.perf_counter() - start,
                converged=self._ended or still,
            )
            # Not in the first pass, where codes change because they had no values yet.
            foresight = foresight if passes else _FORESIGHT
            momentum = min(_MOST_MOMENTUM, max(_MOMENTUM, momentum * _SPEED_UP))
            if self._filled is not None:
                momentum = 0.0
            accuracy, last, passes = max(tight, _TIGHTENING * accuracy), loss, passes + 1
            self._renew()

    def _leap(self, momentum: float) -> None:
        """Move the dictionary on along its change in the last pass."""
        before, self._previous = self._previous, self.dictionary
        if momentum and before is not None:
            atoms = torch.lerp(before, self.dictionary, 1 + momentum)
            self.dictionary = normalise_atoms(
                atoms, positive=self.positive_dict, generator=self.generator
            )

    def _refresh(self) -> None:
        self.statistics = Statistics.zeros_like(self.dictionary)
        for rows, codes in self.codes:
            X = self.X[rows]
            if self._filled is not None:
                X = self._filled[rows] = fill_missing(X, codes, self.dictionary)
            self.statistics.add(Statistics.change(X, None, codes))

    def _careful_pass(self, accuracy: float, shuffle: bool) -> ObjectiveSums:
        """Visit every block once, in a way that cannot raise the objective."""
        if self._filled is None:
            return self._pass(accuracy, shuffle, 0.0)
        # The statistics give a tight upper bound on the objective only if missing entries hold
        # their reconstruction from the current codes.
        self._refresh()
        reach, self._reach = self._reach, 1.0
        objective = self._pass(accuracy, shuffle, 0.0)
        self._reach = (1 + reach) / 2
        return objective

    def _change(self, rows: Tensor, old: Tensor, new: Tensor) -> Statistics:
        """Fill the rows for their new codes; return the resulting change of the statistics."""
        X = self.X[rows]
        if self._filled is None:
            return Statistics.change(X, old, new)
        before = Statistics.change(self._filled[rows], None, old)
        self._filled[rows] = X = fill_missing(X, new, self.dictionary, self._reach)
        change = Statistics.change(X, None, new)
        change.subtract(before)
        return change

    def _pass(self, accuracy: float, shuffle: bool, foresight: float) -> ObjectiveSums:
        """Visit every block once; return the objective.

        Codes are half a pass old, on average. With ``foresight``, the sums are extrapolated along
        the recent trend by this share of that age.
        """
        n_blocks = len(self.codes.blocks)
        order = torch.randperm(n_blocks, generator=self.generator) if shuffle else range(n_blocks)
        memory = max(_MEMORY, 1 - 1 / (_LOOK_BACK * n_blocks))
        reach = foresight * (n_blocks - 1) / 2 * (1 - memory)
        for block in map(int, order):
            rows, old = self.codes.blocks[block], self.codes[block]
            new = self.coder(self.X[rows], self.dictionary, old, accuracy)
            self.codes[block] = new
            change = self._change(rows, old, new)
            self.statistics.add(change)
            self.statistics.clear(self.statistics.n_users == 0)
            sums = self.statistics
            if reach:
                self._trend.scale(memory)
                self._trend.add(change)
                sums = sums.ahead(self._trend, reach)
            before = self.dictionary
            self.dictionary = update_dictionary(
                before, sums.code_gram, sums.code_data, positive=self.positive_dict
            )
            self.n_steps += 1
            if self._on_step is not None:
                cost = objective_sums(self.X[rows], new, before, self.alpha).mean
                self._ended = self._on_step(self.n_steps - 1, block, cost, before, self.dictionary)
                if self._ended:
                    break
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
        if self._previous is not None:
            self._previous = self._previous.clone()
            self._previous[dead] = self.dictionary[dead]


def _fall(losses: list[float]) -> float:
    """Return by how much the objective fell, relative to its last value."""
    return (losses[0] - losses[-1]) / losses[-1] if losses[-1] > 0 else 0.0


def row_blocks(
    n_rows: int, size: int, generator: torch.Generator | None, device: torch.device
) -> list[Tensor]:
    """Return the row indices of each block, in random order if a generator is given."""
    if generator is None:
        order = torch.arange(n_rows)
    else:
        order = torch.randperm(n_rows, generator=generator)
    return list(order.to(device).split(size))


def block_size(n_components: int, n_features: int) -> int:
    """Return the number of rows in a block of a full-batch fit."""
    # The cost of updating a large dictionary should be spread over more rows, but their codes must
    # fit into memory, and the rows too, where those of a sparse matrix are made dense.
    size = min(max(BLOCK_SIZE, n_components), max(BLOCK_SIZE, _BLOCK_CODES // n_components))
    return max(1, min(size, _BLOCK_NUMBERS // n_features))
