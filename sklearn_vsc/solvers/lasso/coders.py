"""Coders of dictionary learning: codes that are good enough for the next update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..missing import rows_with_holes
from .coordinate_descent import CoordinateDescent
from .masked_descent import MaskedDescent
from .solve import solve_lasso
from .stopping import Stopping

# Maps rows, dictionary, codes to start from and a distance, in units of alpha, to codes.
Coder = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]

# Iterations of FISTA that a row gets in a visit that starts from its last codes.
_VISIT_ITERATIONS = 50


def block_coder(method: str, alpha: float, max_iter: int, positive: bool) -> Coder:
    """Return the coder of a method of ``solve_lasso``, which certifies nothing."""

    def descend(X: Tensor, dictionary: Tensor, start: Tensor | None, distance: float) -> Tensor:
        if start is None:
            start = X.new_zeros(len(X), len(dictionary))
        # Without a penalty there is no unit for distances.
        weight = alpha or torch.finfo(X.dtype).eps * float(X.nan_to_num().abs().amax())
        stopping = Stopping(weight, 0.0, positive)
        holes = rows_with_holes(X)
        if not holes.any():
            descent = CoordinateDescent.of(dictionary, stopping)
            return descent.descend(X, dictionary, start, distance, max_iter)
        if holes.all():
            return MaskedDescent.of(dictionary, stopping).descend(X, start, distance, max_iter)
        codes = torch.empty_like(start)
        for rows in (holes, ~holes):
            codes[rows] = descend(X[rows], dictionary, start[rows], distance)
        return codes

    def iterate(X: Tensor, dictionary: Tensor, start: Tensor | None, distance: float) -> Tensor:
        return solve_lasso(
            X,
            dictionary,
            alpha,
            method="fista",
            code_init=start,
            # Of the order of the gap that codes at this distance leave.
            tol=0.1 * distance,
            max_iter=max_iter if start is None else min(max_iter, _VISIT_ITERATIONS),
            positive=positive,
            finish=False,
        ).codes

    return descend if method == "cd" else iterate
