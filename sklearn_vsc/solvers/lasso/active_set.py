"""Exact finish of lasso codes: a batched active-set search over supports and signs.

Given the support and the signs, the lasso reduces to one linear system. The search solves it for
many rows at once, moves towards the solution for as long as the objective falls, and lets one
atom at a time enter a row's support, so that the objective of each row falls until the code
is optimal up to rounding.

References
----------
Lee, Battle, Raina and Ng (2007), Efficient sparse coding algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

# Maximum number of entries in one batch of padded systems.
_SYSTEM_NUMEL = {"cpu": 2**21, "other": 2**26}


class QuadraticFit(Protocol):
    """What the search needs from the smooth part of the problem, 0.5 ||x - u V||^2."""

    @property
    def scale(self) -> Tensor:
        """Largest correlation of each row with any atom."""

    def gradient(self, codes: Tensor) -> Tensor:
        """Return the gradient with respect to the codes."""

    def atom_gram(self, atoms: Tensor) -> Tensor:
        """Return the inner products of the atoms listed for each row."""

    def select(self, rows: Tensor) -> Self:
        """Return the same problem restricted to some of the rows."""


def active_set_search(
    fit: QuadraticFit, codes: Tensor, alpha: float, *, positive: bool, max_steps: int
) -> Tensor:
    """Move codes that are near the optimum to the optimum.

    Parameters
    ----------
    fit : QuadraticFit
        Quadratic term of the objective for these rows.
    codes : Tensor of shape (n_rows, n_components)
        Codes to start from.
    alpha : float
        Weight of the l1 norm.
    positive : bool
        Whether codes must be non-negative.
    max_steps : int
        Maximum number of linear systems solved for a row.

    Returns
    -------
    codes : Tensor of shape (n_rows, n_components)
        Candidates, which the caller must certify: rounding may stop the search for a row early.
    """
    result = codes.clone()
    rows = torch.arange(len(codes), device=codes.device)
    stationary = torch.zeros_like(rows, dtype=torch.bool)
    stuck = stationary
    for _ in range(max_steps):
        gradient = fit.gradient(codes)
        signs = codes.sign()
        entering, atom = _most_violating(gradient, codes, fit, alpha, positive)
        entering &= stationary
        signs[entering, atom[entering]] = -gradient[entering, atom[entering]].sign()
        going = (entering | ~stationary) & ~stuck
        left = going.nonzero().squeeze(1)
        if len(left) == 0:
            break
        if len(left) < len(rows):
            result[rows] = codes
            rows, fit = rows[left], fit.select(left)
            codes, gradient, signs = codes[left], gradient[left], signs[left]
        codes, stationary, stuck = _step(fit, codes, gradient, signs, alpha, positive)
    result[rows] = codes
    return result


def _most_violating(
    gradient: Tensor, codes: Tensor, fit: QuadraticFit, alpha: float, positive: bool
) -> tuple[Tensor, Tensor]:
    """For each row, find the atom that violates the optimality conditions most, if any does."""
    pull = -gradient if positive else gradient.abs()
    strongest, atom = pull.masked_fill(codes != 0, 0).max(dim=1)
    slack = 1e2 * torch.finfo(codes.dtype).eps * fit.scale
    return strongest > alpha + slack, atom


def _step(
    fit: QuadraticFit,
    codes: Tensor,
    gradient: Tensor,
    signs: Tensor,
    alpha: float,
    positive: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move each row towards the solution for its signs.

    Also return which rows reached it and which could not move.
    """
    moved = codes.clone()
    fraction = codes.new_ones(len(codes))
    for rows, size in _groups(signs):
        part = fit.select(rows)
        atoms = signs[rows].abs().topk(size, dim=1).indices
        system = _System(
            part.atom_gram(atoms),
            codes[rows].gather(1, atoms),
            gradient[rows].gather(1, atoms),
            signs[rows].gather(1, atoms),
            alpha,
        )
        listed, fraction[rows] = system.move(positive)
        moved[rows] = codes[rows].scatter(1, atoms, listed)
    return moved, fraction == 1, fraction == 0


@dataclass(frozen=True)
class _System:
    """The lasso of each row restricted to the atoms of its support, padded to a common size."""

    gram: Tensor
    codes: Tensor
    gradient: Tensor
    signs: Tensor
    alpha: float

    def move(self, positive: bool) -> tuple[Tensor, Tensor]:
        """Return the moved codes, and the fraction of the full step that each row took."""
        direction, curvature = self._newton_direction()
        # Where a coordinate would cross zero, as a fraction of the full step.
        crossing = -self.codes / torch.where(direction == 0, 1.0, direction)
        crosses = (crossing > 0) & (crossing < 1) & (direction != 0)
        crossing = torch.where(crosses, crossing, 1.0)
        if positive:
            fraction = crossing.amin(1, keepdim=True)
        else:
            fraction = self._best_fraction(direction, curvature, crossing)
        # A coordinate that has just entered may only move in the direction of its sign.
        wrong = (self.codes == 0) & (direction * self.signs < 0)
        fraction = fraction * ~wrong.any(1, keepdim=True)
        moved = self.codes + fraction * direction
        moved = moved.masked_fill(crosses & (crossing == fraction), 0)
        return moved, fraction.squeeze(1)

    def _newton_direction(self) -> tuple[Tensor, Tensor]:
        """Return the full step to the solution of each row's system, and the curvature along it."""
        on = self.signs != 0
        gram = self.gram * (on.unsqueeze(1) & on.unsqueeze(2))
        # Duplicated atoms make the system singular: the ridge turns the solve into a proximal
        # step, whose solution stays near the start, and the refinement below removes its bias.
        eps = torch.finfo(gram.dtype).eps
        ridge = 10 * eps * gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        factor, info = torch.linalg.cholesky_ex(
            gram + torch.diag_embed(torch.where(on, ridge, 1.0))
        )
        downhill = ((-self.gradient - self.alpha * self.signs) * on).unsqueeze(2)
        direction = torch.cholesky_solve(downhill, factor)
        direction = direction + torch.cholesky_solve(downhill - gram @ direction, factor)
        solved = (info == 0) & direction.isfinite().all(1).squeeze(1)
        direction = torch.where(solved[:, None, None], direction, 0.0)
        curvature = (direction * (gram @ direction)).sum(1)
        return direction.squeeze(2), curvature

    def _best_fraction(self, direction: Tensor, curvature: Tensor, crossing: Tensor) -> Tensor:
        """Return the crossing at which the objective is lowest, or the full step if it is lower."""
        crossing = torch.cat([crossing, torch.ones_like(crossing[:, :1])], dim=1)
        slope = (self.gradient * direction).sum(1, keepdim=True)
        at = self.codes.unsqueeze(1) + crossing.unsqueeze(2) * direction.unsqueeze(1)
        value = crossing * slope + 0.5 * crossing.square() * curvature
        value = value + self.alpha * at.abs().sum(2)
        # Coordinates that do not cross hold copies of the full step; ties go to the full step.
        lowest = value.amin(1, keepdim=True)
        return torch.where(value <= lowest, crossing, 0.0).amax(1, keepdim=True)


def _groups(signs: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield groups of rows with similar support size, and the largest size, in bounded memory."""
    sizes, order = (signs != 0).sum(1).sort()
    ascending = sizes.tolist()
    budget = _SYSTEM_NUMEL["cpu" if signs.device.type == "cpu" else "other"]
    stop = len(ascending)
    while stop > 0 and ascending[stop - 1] > 0:
        size = ascending[stop - 1]
        start = stop - 1
        # Systems are padded to the largest of their group, so sizes within one should be close.
        fewest = max(stop - max(budget // size**2, 1), 0)
        while start > fewest and ascending[start - 1] > 0.75 * size - 4:
            start -= 1
        yield order[start:stop], size
        stop = start
