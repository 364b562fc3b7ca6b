"""Accelerated proximal gradient on a batch of lasso problems.

All rows advance together; momentum, restarts and stopping are decided separately for each row.

References
----------
Beck and Teboulle (2009), A fast iterative shrinkage-thresholding algorithm.
O'Donoghue and Candes (2015), Adaptive restart for accelerated gradient schemes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from .quadratic_fit import Fit
from .stopping import BestCodes, LassoResult, Stopping

# Iterations between two checks of the duality gap, each of which synchronises with the device.
_CHECK_EVERY = 10
# Squarings of the Gram matrix in the bound on its largest eigenvalue.
_SQUARINGS = 6


def lipschitz_bound(dictionary: Tensor) -> Tensor:
    """Return an upper bound on the squared spectral norm, tight to a few per cent.

    The Frobenius norm of a power of the Gram matrix bounds that power's largest eigenvalue;
    repeated squaring needs neither a factorisation nor a synchronisation with the device.
    """
    tall = dictionary.shape[0] > dictionary.shape[1]
    power = dictionary.T @ dictionary if tall else dictionary @ dictionary.T
    log_norm = torch.zeros((), dtype=dictionary.dtype, device=dictionary.device)
    for _ in range(_SQUARINGS):
        norm = torch.linalg.matrix_norm(power)
        log_norm = 2 * (log_norm + norm.log())
        power = power / norm
        power = power @ power
    log_norm = log_norm + torch.linalg.matrix_norm(power).log()
    return (log_norm / 2**_SQUARINGS).exp()


@dataclass(frozen=True)
class Fista:
    """Accelerated proximal gradient with a fixed step."""

    step: float
    stopping: Stopping

    @classmethod
    def of(cls, dictionary: Tensor, stopping: Stopping) -> Self:
        """Choose the step for a dictionary."""
        bound = lipschitz_bound(dictionary)
        # With an all-zero dictionary any step will do.
        return cls(float(torch.where(bound > 0, 1 / bound, torch.ones_like(bound))), stopping)

    def iterate(self, fit: Fit, codes: Tensor, max_iter: int) -> LassoResult:
        """Advance the rows until each has converged; converged rows leave the batch."""
        best = BestCodes.at(codes.clone(), fit, self.stopping)
        rows = (~best.converged).nonzero().squeeze(1)
        part, state = fit.select(rows), _Momentum.at(codes[rows])
        n_iter = 0
        while n_iter < max_iter and len(rows):
            n_steps = min(_CHECK_EVERY, max_iter - n_iter)
            state = self._advance(part, state, n_steps)
            n_iter += n_steps
            now = self.stopping.certify(part, state.codes)
            done = self.stopping.within(part, now)
            best.record(rows, state.codes, now, done)
            left = (~done).nonzero().squeeze(1)
            if len(left) < len(rows):
                rows, part, state = rows[left], part.select(left), state.select(left)
        return best.result(n_iter)

    def _advance(self, fit: Fit, state: _Momentum, n_steps: int) -> _Momentum:
        """Take accelerated proximal gradient steps, without synchronising with the device."""
        alpha = self.stopping.alpha
        codes, point, weight = state.codes, state.point, state.weight
        for _ in range(n_steps):
            moved = torch.add(point, fit.gradient(point), alpha=-self.step)
            if self.stopping.positive:
                new = moved.sub_(alpha * self.step).clamp_min_(0)
            else:
                new = softshrink(moved, alpha * self.step)
            change = new - codes
            # Restart rows whose momentum points uphill.
            uphill = point.sub_(new).mul_(change).sum(1, keepdim=True) > 0
            weight = torch.where(uphill, 1.0, weight)
            new_weight = 0.5 + (0.25 + weight.square()).sqrt()
            point = torch.addcmul(new, change, (weight - 1) / new_weight)
            codes, weight = new, new_weight
        return _Momentum(codes, point, weight)


@dataclass(frozen=True)
class _Momentum:
    """State of the accelerated iteration for each row."""

    codes: Tensor
    point: Tensor
    weight: Tensor

    @classmethod
    def at(cls, codes: Tensor) -> Self:
        """Start without momentum."""
        return cls(codes, codes.clone(), codes.new_ones(len(codes), 1))

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.codes[rows], self.point[rows], self.weight[rows])
