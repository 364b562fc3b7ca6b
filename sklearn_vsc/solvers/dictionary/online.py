"""Online dictionary learning: mini-batches, and statistics that decay.

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

from ..lasso.coders import Coder
from ..missing import fill_missing, natural_reach, observed_residual
from .accumulation import ObjectiveSums, objective_sums
from .full_batch import Epoch
from .renewal import idle_rows, renew_atoms
from .statistics import Statistics
from .update import update_dictionary

# Allowed distance of the codes of a mini-batch from their optimum, in units of alpha.
_ACCURACY = 1e-2
# An atom is renewed once this many rows per atom of the dictionary have gone by without using it.
_PATIENCE = 10


@dataclass
class OnlineLearner:
    """Mini-batch learning from statistics that decay (Mairal et al. 2009)."""

    dictionary: Tensor
    alpha: float
    coder: Coder
    positive_dict: bool
    generator: torch.Generator
    statistics: Statistics
    # Rows seen since each atom was last used.
    idle: Tensor
    n_steps: int = 0

    def step(self, X: Tensor) -> tuple[Tensor, ObjectiveSums]:
        """Code a mini-batch, then update the dictionary.

        Returns
        -------
        codes : Tensor of shape (n_rows, n_components)
            Codes of the rows under the dictionary before its update.
        objective : ObjectiveSums
            Objective of the rows at these codes, also before the update.
        """
        codes = self.coder(X, self.dictionary, None, _ACCURACY)
        objective = objective_sums(X, codes, self.dictionary, self.alpha)
        self.statistics.scale(forgetting(self.n_steps, len(X)))
        target = fill_missing(X, codes, self.dictionary, natural_reach(X))
        self.statistics.add(Statistics.change(target, None, codes))
        self.idle = idle_rows(self.idle, codes)
        self._renew(X, codes)
        self.dictionary = update_dictionary(
            self.dictionary,
            self.statistics.code_gram,
            self.statistics.code_data,
            positive=self.positive_dict,
        )
        self.n_steps += 1
        return codes, objective

    def epochs(
        self,
        X: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        stopping: OnlineStopping,
        on_step: Callable[[int, float, Tensor], None],
    ) -> Iterator[Epoch]:
        """Yield after each pass over the rows, or within one when the stopping rule is met.

        Parameters
        ----------
        X : Tensor of shape (n_rows, n_features)
            Rows to visit repeatedly.
        batch_size : int
            Number of rows in a mini-batch.
        shuffle : bool
            Whether each pass visits the rows in a new random order.
        stopping : OnlineStopping
            Rule that ends learning.
        on_step : callable
            Called after each step with its index, the cost of the mini-batch and the dictionary.

        Yields
        ------
        epoch : Epoch
        """
        order = torch.arange(len(X), device=X.device)
        done = False
        while True:
            start, objective = time.perf_counter(), ObjectiveSums()
            if shuffle:
                order = torch.randperm(len(X), generator=self.generator).to(X.device)
            for rows in order.split(batch_size):
                before = self.dictionary
                of_batch = self.step(X[rows])[1]
                objective += of_batch
                change = float(torch.linalg.matrix_norm(self.dictionary - before))
                done = stopping.update(of_batch.mean, change / len(before), len(rows), len(X))
                on_step(self.n_steps - 1, of_batch.mean, self.dictionary)
                if done:
                    break
            yield Epoch(
                self.dictionary,
                objective,
                self.statistics.copy(),
                self.n_steps,
                time.perf_counter() - start,
                converged=done,
            )

    def _renew(self, X: Tensor, codes: Tensor) -> None:
        dead = self.idle >= _PATIENCE * len(self.dictionary)
        if not dead.any():
            return
        self.statistics.clear(dead)
        self.idle = self.idle.masked_fill(dead, 0)
        self.dictionary = renew_atoms(
            self.dictionary,
            dead,
            observed_residual(X, codes, self.dictionary),
            positive=self.positive_dict,
            generator=self.generator,
        )


@dataclass
class OnlineStopping:
    """Stops when the dictionary hardly changes or the smoothed cost no longer improves.

    Attributes
    ----------
    tol : float
        Stop when the Frobenius norm of the dictionary's change in a step, divided by the number of
        atoms, is at most this; zero disables this rule.
    max_no_improvement : int or None
        Stop after this many consecutive steps without a new minimum of the smoothed cost; None
        disables this rule.
    """

    tol: float
    max_no_improvement: int | None
    _n_steps: int = 0
    _smoothed: float | None = None
    _lowest: float = math.inf
    _n_failed: int = 0

    def update(self, cost: float, change: float, batch_size: int, n_rows: int) -> bool:
        """Record one step; return whether to stop."""
        self._n_steps += 1
        # The first steps, from a random dictionary, are not representative.
        if self._n_steps <= min(100, n_rows / batch_size):
            return False
        weight = min(batch_size / (n_rows + 1), 1.0)
        smoothed = cost if self._smoothed is None else self._smoothed
        self._smoothed = smoothed + weight * (cost - smoothed)
        if self._smoothed < self._lowest:
            self._lowest, self._n_failed = self._smoothed, 0
        else:
            self._n_failed += 1
        still = self.tol > 0 and change <= self.tol
        limit = self.max_no_improvement
        return still or (limit is not None and self._n_failed >= limit)


def forgetting(n_steps: int, batch_size: int) -> float:
    """Return the factor on past statistics, small at first so that the start is soon forgotten."""
    if n_steps < batch_size - 1:
        theta = (n_steps + 1) * batch_size
    else:
        theta = batch_size**2 + n_steps + 1 - batch_size
    return (theta + 1 - batch_size) / (theta + 1)
