"""Coders for dictionary learning: codes accurate enough for the next update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..missing import rows_with_missing
from .coordinate_descent import CoordinateDescent
from .quadratic_fit import GramFit, gram_pays
from .sign_search import sign_search
from .solve import solve_lasso
from .stopping import Stopping
from .working_sets import WorkingSetDescent

# Maps rows, dictionary, initial codes and a target distance (in units of alpha) to codes.
Coder = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]

# FISTA iterations for a row when a visit starts from its previous codes.
_VISIT_ITERATIONS = 50
# Sweeps of coordinate descent for a row before its support is searched.
_VISIT_SWEEPS = 25


def block_coder(method: str, alpha: float, max_iter: int, positive: bool) -> Coder:
    """Return a coder that uses a method of ``solve_lasso``; its codes are not certified."""

    def descend(X: Tensor, dictionary: Tensor, start: Tensor | None, distance: float) -> Tensor:
        if start is None:
            start = X.new_zeros(len(X), len(dictionary))
        # Distances are measured in units of alpha; without a penalty they need another unit.
        weight = alpha or torch.finfo(X.dtype).eps * float(X.nan_to_num().abs().amax())
        stopping = Stopping(weight, 0.0, positive)
        missing = rows_with_missing(X)
        if not missing.any() and gram_pays(len(X), dictionary):
            return _visit(X, dictionary, start, stopping, distance, max_iter)
        if missing.all() or not missing.any():
            sets = WorkingSetDescent.of(dictionary, stopping)
            return sets.descend(X, start, distance, max_iter)
        codes = torch.empty_like(start)
        for rows in (missing, ~missing):
            codes[rows] = descend(X[rows], dictionary, start[rows], distance)
        return codes

    def iterate(X: Tensor, dictionary: Tensor, start: Tensor | None, distance: float) -> Tensor:
        return solve_lasso(
            X,
            dictionary,
            alpha,
            method="fista",
            code_init=start,
            # About as large as the gap of codes at this distance.
            tol=0.1 * distance,
            max_iter=max_iter if start is None else min(max_iter, _VISIT_ITERATIONS),
            positive=positive,
            finish=False,
        ).codes

    return descend if method == "cd" else iterate


def _visit(
    X: Tensor,
    dictionary: Tensor,
    codes: Tensor,
    stopping: Stopping,
    distance: float,
    max_iter: int,
) -> Tensor:
    """Descend, and search supports for the rows on which that is slow.

    Atoms that are nearly collinear, as those of raw tables are, take coordinate descent thousands
    of sweeps, and the search a few linear systems.
    """
    gram, correlations = dictionary @ dictionary.T, X @ dictionary.T
    descent = CoordinateDescent.of(dictionary, stopping, gram)
    codes, done = descent.visit(correlations, codes, distance, min(max_iter, _VISIT_SWEEPS))
    slow = (~done).nonzero().squeeze(1).to(codes.device)
    if not len(slow) or max_iter <= _VISIT_SWEEPS:
        return codes
    fine = GramFit(gram.double(), correlations[slow].double(), X.new_zeros(len(slow)).double())
    found = sign_search(
        fine, codes[slow].double(), stopping.alpha, positive=stopping.positive, max_steps=len(gram)
    )

    def height(codes: Tensor) -> Tensor:
        # The objective, less a constant for each row.
        pull = fine.correlations + fine.gradient(codes)
        return stopping.alpha * codes.abs().sum(1) - 0.5 * (codes * pull).sum(1)

    better = height(found) < height(codes[slow].double())
    codes[slow[better]] = found[better].to(codes)
    return codes
