"""One step of learning: posteriors of a batch of rows, and the parameters that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .maximisation import WhatIsLearned, best_freedom, maximise
from .parameters import SparseLinear
from .row_posteriors import RowPosteriors, Stops, best_contrast, infer, residuals, row_contrast
from .sums import RowSums, sums_of_rows

# Rows that the sums remember for each atom. Measured: fewer make the dictionary restless, more keep
# it from leaving the noise of the first passes behind.
ROWS_PER_ATOM = 20
# And at least so many: fewer rows are one batch.
_LEAST_MEMORY = 4096
# Where densities are learned, an atom takes part once there are so many rows for it. Measured on
# small tables with many atoms: fewer rows make atoms that describe no other row, or let the first
# codes share each row among all atoms, so that none is ever active.
_ROWS_FOR_AN_ATOM = 8
# Density that learning one starts from.
FIRST_DENSITY = 0.1
# In learning, sweeps end early: the next pass goes on from where they ended.
_FIRST_VISIT = Stops(max_sweeps=4, tol=0.2, bound_tol=1.0)
_LATER_VISIT = Stops(max_sweeps=10, tol=0.1, bound_tol=0.3)
# The first steps forget this many times the share of a plain mean over all steps. Measured: with 1
# a first chunk a hundred times too loud costs 50 nats after 80 chunks, with 2 none; 3 forgets more
# than it has to.
_YOUTH = 2.0
# Rows whose mean square is so many times what the model expects are louder than it; quieter, where
# it is less than one over this number. Fewer rows than this do not tell.
_LOUD, _ROWS_THAT_TELL = 4.0, 8
# How fast the noise rises where more codes are active than asked for.
_PRESSURE_STEP = 0.5
_MOST_PRESSURE = 1e4
# Codes denser than asked for by this factor do not end a training.
_TOO_DENSE = 1.1
# With a larger share of the features at their floor, the scale of the noise stays.
_MOST_AT_FLOOR = 0.1


@dataclass(frozen=True)
class Memory:
    """Where the posteriors of rows ended at their last visit.

    Attributes
    ----------
    fields : ndarray of shape (n_rows, n_components)
        Fields of their codes.
    contrast : ndarray of shape (n_rows,)
        Their contrasts.
    weight : ndarray of shape (n_rows,) or None
        Weights of their noise; None: one.
    """

    fields: NDArray
    contrast: NDArray
    weight: NDArray | None = None

    @classmethod
    def empty(cls, n_rows: int, n_components: int, dtype: np.dtype) -> Memory:
        """Return arrays to be filled."""
        return cls(np.empty((n_rows, n_components), dtype), np.empty(n_rows), np.empty(n_rows))

    def rows(self, numbers: NDArray) -> Memory:
        """Return that of some rows."""
        weight = None if self.weight is None else self.weight[numbers]
        return Memory(self.fields[numbers], self.contrast[numbers], weight)

    def put(self, numbers: NDArray, part: Memory) -> None:
        """Fill in some rows."""
        self.fields[numbers], self.contrast[numbers] = part.fields, part.contrast
        if self.weight is not None:
            self.weight[numbers] = 1.0 if part.weight is None else part.weight


@dataclass(frozen=True)
class Cooling:
    """A least noise that falls from step to step.

    Once the noise is small, the dictionary hardly moves. So it may not fall faster than this:
    measured, dictionaries of known tables are then found where they were not.

    Attributes
    ----------
    least : float
        Least noise variance, as a share of the variance of the feature.
    rate : float
        Factor by which it falls each time that the sums have seen all that they remember.
    """

    least: float
    rate: float

    def step(
        self, model: SparseLinear, learned: WhatIsLearned, share: float
    ) -> tuple[SparseLinear, Cooling]:
        """Return a model with no less noise, and the next state."""
        if not self.least or learned.noise == "fixed":
            return model, self
        noise = np.maximum(model.noise, self.least * learned.scale**2)
        return replace(model, noise=noise), replace(self, least=self.least * self.rate**share)

    def holds(self, model: SparseLinear, learned: WhatIsLearned) -> bool:
        """Return whether it keeps the noise of most features up."""
        if learned.noise == "fixed":
            return False
        last = self.least / self.rate
        return bool(self.least and np.median(model.noise / learned.scale**2) <= 1.01 * last)


@dataclass(frozen=True)
class Step:
    """What a step found for each of its rows, in nats, before the parameters moved."""

    bound: NDArray
    kl: NDArray
    active: NDArray
    memory: Memory


class Learner:
    """Learns a sparse linear model from batches of rows.

    Parameters
    ----------
    model : SparseLinear
        The model to start from.
    learned : WhatIsLearned
        Which parameters are learned.
    sums : RowSums, default=None
        Sums over earlier rows.
    n_steps : int, default=0
        Number of earlier steps.
    pressure : float, default=1.0
        Factor of the noise variance that keeps codes from being denser than asked for.
    has_contrast : bool, default=False
        Whether each row has a contrast of its own.
    cooling : Cooling, default=None
        How a least noise falls; None: there is none.
    """

    def __init__(
        self,
        model: SparseLinear,
        learned: WhatIsLearned,
        sums: RowSums | None = None,
        n_steps: int = 0,
        pressure: float = 1.0,
        has_contrast: bool = False,
        cooling: Cooling | None = None,
    ) -> None:
        self.model = model
        self.learned = learned
        self.sums = sums
        self.n_steps = n_steps
        self.pressure = pressure
        self.has_contrast = has_contrast
        self.cooling = cooling or Cooling(0.0, 1.0)

    @property
    def memory_rows(self) -> int:
        """Number of rows that the sums remember."""
        return max(_LEAST_MEMORY, ROWS_PER_ATOM * len(self.model.atoms))

    @property
    def is_settling(self) -> bool:
        """Whether the noise is kept up: while it cools, or until codes are sparse enough."""
        if self.cooling.holds(self.model, self.learned):
            return True
        if self.learned.density != "target" or self.sums is None:
            return False
        share = float(self.sums.active.mean() / self.sums.n_rows)
        return share > _TOO_DENSE * self.learned.target and self.pressure < _MOST_PRESSURE

    def step(
        self,
        X: NDArray,
        memory: Memory | None = None,
        sample_weight: NDArray | None = None,
        *,
        all_rows: bool = False,
    ) -> Step:
        """Find the posteriors of these rows, and move the parameters.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Rows; NaN is a missing entry.
        memory : Memory, default=None
            Where the posteriors of these rows ended at their last visit.
        sample_weight : ndarray of shape (n_rows,), default=None
            How often each row counts.
        all_rows : bool, default=False
            Whether these are all rows that there are, so that nothing of earlier steps is kept.
        """
        model = self.model
        start = None if memory is None else memory.fields
        contrast = None
        if self.has_contrast:
            contrast = self._first_contrast(X) if memory is None else memory.contrast
        stops = _FIRST_VISIT if memory is None else _LATER_VISIT
        weight = None if memory is None else memory.weight
        near = self._moved_to(X) if memory is None else model
        found = infer(near, X, stops, start, contrast, weight)
        if not math.isinf(model.freedom):
            model, found = self._with_best_freedom(X, found, sample_weight)
        if self.has_contrast:
            found = _with_best_contrast(model, X, found)
        sums = sums_of_rows(model, X, found, sample_weight)
        self.n_steps += 1
        if self.sums is None or all_rows:
            self.sums = sums
        else:
            # A step forgets as many rows as it brings, once there are enough of them; the first
            # steps forget more.
            n_new, n_old = float(sums.n_rows), float(self.sums.n_rows)
            young = min(_YOUTH / self.n_steps, n_new / n_old)
            share = max(n_new / self.memory_rows, young)
            keep = 1 - min(share, 1.0)
            self.sums = self.sums.mixed(sums, keep, 1.0)
        self._update_pressure()
        self.model = maximise(model, self.sums, self.learned, self.pressure)
        share = 1.0 if all_rows else min(1.0, float(sums.n_rows) / self.memory_rows)
        self.model, self.cooling = self.cooling.step(self.model, self.learned, share)
        self._add_atoms(X, found)
        active = found.factors.inclusion > 0.5
        held = Memory(found.factors.field, found.contrast, found.factors.weight)
        return Step(found.bound, found.factors.kl, active.mean(1), held)

    def _add_atoms(self, X: NDArray, found: RowPosteriors) -> None:
        """Make atoms that are zero from badly described rows, once there are rows enough."""
        model, sums = self.model, self.sums
        assert sums is not None
        absent = np.flatnonzero(~model.atoms.any(axis=1))
        n_present = len(model.atoms) - len(absent)
        n_new = atoms_for(float(sums.n_rows), len(model.atoms)) - n_present
        if n_new <= 0 or not self.learned.learns_density:
            return
        # Evenly spaced among the half that is described worse: the very worst may be outliers.
        worse = np.argsort(-found.factors.error, kind="stable")[: max(1, len(X) // 2)]
        rows = worse[:: max(1, len(worse) // n_new)][:n_new]
        rest = (X[rows] - model.intercept) / found.contrast[rows, None]
        rest = np.nan_to_num(rest - found.factors.mean[rows] @ model.atoms)
        new = absent[: len(rows)]
        density = model.density.copy()
        density[new] = FIRST_DENSITY
        atoms = model.atoms.copy()
        atoms[new] = rest / model.slab.mean_size(density[new])[:, None]
        self.model = replace(model, atoms=atoms, density=density)

    def _moved_to(self, X: NDArray) -> SparseLinear:
        """Return the model, moved and scaled where these rows are far from those before.

        If it took them for what it knows, all of its codes would be on, or none.
        """
        model, observed = self.model, ~np.isnan(X)
        fixed = self.learned.noise == "fixed" or self.has_contrast
        if self.sums is None or fixed or len(X) < _ROWS_THAT_TELL:
            return model
        mean, variance = model.moments
        counts = np.maximum(np.count_nonzero(observed, axis=0), 1)
        residual = np.where(observed, X - mean, 0)
        shift = residual.sum(0) / counts
        spread = np.mean(np.where(observed, (residual - shift) ** 2, 0).sum(0) / counts / variance)
        if np.mean(shift**2 / variance) < max(1.0, spread):
            spread, shift = np.mean((residual**2).sum(0) / counts / variance), np.zeros_like(shift)
        if 1 / _LOUD < spread < _LOUD:
            spread = 1.0
        root = math.sqrt(spread)
        return replace(
            model,
            atoms=root * model.atoms,
            intercept=model.intercept + shift,
            dense=root * model.dense,
            noise=np.maximum(spread * model.noise, self.learned.floor),
        )

    def _first_contrast(self, X: NDArray) -> NDArray:
        contrast = np.empty(len(X))
        for rows, metric, residual in residuals(self.model, X):
            contrast[rows] = row_contrast(metric, residual)
        return contrast

    def _update_pressure(self) -> None:
        """Raise the noise while more codes are active than asked for, and lower it again."""
        if self.learned.density != "target":
            return
        assert self.sums is not None
        share = float(self.sums.active.mean() / self.sums.n_rows)
        excess = math.log(max(share, 1e-6) / self.learned.target)
        moved = self.pressure * math.exp(_PRESSURE_STEP * float(np.clip(excess, -1, 1)))
        self.pressure = float(np.clip(moved, 1.0, _MOST_PRESSURE))

    def _with_best_freedom(
        self, X: NDArray, found: RowPosteriors, sample_weight: NDArray | None
    ) -> tuple[SparseLinear, RowPosteriors]:
        """Return the model with the best degrees of freedom, and the weights of rows under it.

        The scale of all noise moves along, dense columns included, so that the weights have a mean
        of one. What they say of each feature is left to the sums.
        """
        model, factors = self.model, found.factors
        n_observed = np.count_nonzero(~np.isnan(X), axis=1)
        freedom, scale = best_freedom(
            factors.error,
            n_observed,
            model.freedom,
            sample_weight,
            fixed_scale=self.learned.noise == "fixed",
        )
        # Where noise is at its floor it cannot follow a scale below one.
        at_floor = float(np.mean(model.noise <= 1.01 * self.learned.floor))
        scale = scale ** (1 - at_floor) if scale < 1 else scale
        scale = 1.0 if at_floor > _MOST_AT_FLOOR else scale
        error = factors.error / scale
        weight = (freedom + n_observed) / (freedom + error)
        factors = replace(factors, error=error, weight=weight)
        noise, dense = scale * model.noise, math.sqrt(scale) * model.dense
        model = replace(model, noise=noise, dense=dense, freedom=freedom)
        return model, replace(found, factors=factors)


def _with_best_contrast(model: SparseLinear, X: NDArray, found: RowPosteriors) -> RowPosteriors:
    contrast = np.empty(len(X))
    for rows, metric, residual in residuals(model, X):
        contrast[rows] = best_contrast(metric, residual, found.rows(rows))
    return replace(found, contrast=contrast)


def atoms_for(n_rows: float, n_components: int) -> int:
    """Return how many of the atoms so many rows can tell apart."""
    return max(1, min(n_components, int(n_rows // _ROWS_FOR_AN_ATOM)))
