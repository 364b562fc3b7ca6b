"""When learning from mini-batches stops, by the rules of scikit-learn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class MiniBatchStopping:
    """Stops when the dictionary hardly changes or the cost no longer improves.

    The cost is the sum of the mini-batches' latest mean objectives. Mini-batches that are
    visited again are compared with themselves in this way, so that differences between them are
    not taken for progress.

    Attributes
    ----------
    tol : float
        Stop when the Frobenius norm of the dictionary's change in a step, divided by the number of
        atoms, is at most this; zero disables this rule.
    max_no_improvement : int or None
        Stop after this many consecutive steps without a new minimum of the cost; None disables
        this rule.
    """

    tol: float
    max_no_improvement: int | None
    _costs: dict[int, float] = field(default_factory=dict)
    _total: float = 0.0
    _lowest: float = math.inf
    _n_failed: int = 0

    def update(self, block: int, cost: float, change: float, n_blocks: int) -> bool:
        """Record one step with the cost of a mini-batch; return whether to stop."""
        first = len(self._costs) < n_blocks
        self._total += cost - self._costs.get(block, 0.0)
        self._costs[block] = cost
        # In the first pass, from a random dictionary, rows are coded for the first time.
        if first:
            return False
        if self._total < self._lowest:
            self._lowest, self._n_failed = self._total, 0
        else:
            self._n_failed += 1
        still = self.tol > 0 and change <= self.tol
        limit = self.max_no_improvement
        return still or (limit is not None and self._n_failed >= limit)
