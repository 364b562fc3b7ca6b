"""Lasso codes of many rows, stopped by a duality gap.

Each row x of X has its own problem, min over u of 0.5 ||x - u V||^2 + alpha ||u||_1 for a
dictionary V whose rows are the atoms. NaN entries of x are missing, and the sum of squares
leaves them out. One of two iterative methods solves the problem, and an exact search over supports
finishes the rows on which the iteration converges slowly. A code does not depend on the other
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..missing import rows_with_missing
from .active_set import active_set_search
from .coordinate_descent import CoordinateDescent
from .fista import Fista
from .quadratic_fit import MOST_GRAM_ATOMS, AtomCache, Atoms, Certificate, DataFit, Fit, gram_pays
from .sign_search import search_from_zero, sign_search
from .stopping import BestCodes, LassoResult, Stopping
from .working_sets import WorkingSetDescent

# Entries in a block of codes: few enough for a CPU's cache, or enough to keep a GPU busy.
_BLOCK_NUMEL = {"cpu": 2**18, "other": 2**24}
# Rows in a block, at least, where a CPU multiplies residuals by all atoms, and entries at most.
_PRODUCT_ROWS, _PRODUCT_NUMEL = 256, 2**23
# Iterations before the exact finish is first tried on rows that have not converged.
_STAGE = 100
# The same where the search is compiled, and so cheap.
_SHORT_STAGE = 25
# Multiplications in the inner products of all atoms that are worth avoiding, and steps that a
# search is assumed to need for a row.
_MANY_PRODUCTS, _SEARCH_STEPS = 2**24, 32
# Maximum number of linear systems solved for a row each time the exact finish is tried.
_FINISH_STEPS = 100


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the default relative duality gap for solving in ``dtype``."""
    return 1e-6 if dtype == torch.float64 else 1e-5


def fastest_method(device: torch.device) -> str:
    """Return the method that solves the lasso fastest on a device."""
    return "cd" if device.type == "cpu" else "fista"


def solve_lasso(
    X: Tensor,
    dictionary: Tensor,
    alpha: float,
    *,
    method: str = "auto",
    code_init: Tensor | None = None,
    tol: float | None = None,
    max_iter: int = 1000,
    positive: bool = False,
    finish: bool = True,
    form: str = "auto",
    cache: AtomCache | None = None,
) -> LassoResult:
    """Solve the lasso of every row of X.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows to code; missing entries are NaN.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    alpha : float
        Weight of the l1 norm. Zero gives the limit of a vanishing weight.
    method : {'auto', 'cd', 'fista', 'search'}, default='auto'
        Compiled coordinate descent ('cd'), which runs on the CPU, or batched FISTA; 'auto' takes
        the former for rows on a CPU and the latter for others. 'search' is coordinate descent that
        hands over early to a compiled search over supports: for few rows, and for atoms that are
        nearly collinear. Its codes are exact up to rounding wherever the search ends.
    code_init : Tensor of shape (n_rows, n_components), optional
        Initial codes; zero by default. The objective of a row never ends above its initial value.
    tol : float, optional
        A row has converged when its duality gap is at most ``tol`` times its objective;
        1e-6 in float64 and 1e-5 in float32 by default. A gap within rounding error always counts
        as converged.
    max_iter : int, default=1000
        Maximum number of iterations for a row. One iteration of coordinate descent is
        ``n_components`` moves.
    positive : bool, default=False
        Whether codes must be non-negative.
    finish : bool, default=True
        Whether to solve linear systems on the support for rows that are slow to converge, which
        gives the optimum up to rounding once the support has been found.
    form : {'auto', 'gram', 'data'}, default='auto'
        Whether gradients are computed from the inner products of all atoms or from residuals;
        'auto' takes the faster one, and residuals where the inner products would take too much
        memory. For rows with missing entries, always residuals.
    cache : AtomCache, optional
        Keeps the inner products of the atoms for the next call.

    Returns
    -------
    result : LassoResult
    """
    missing = rows_with_missing(X)
    if missing.any() and not missing.all():

        def solve(rows: Tensor) -> LassoResult:
            return solve_lasso(
                X[rows],
                dictionary,
                alpha,
                method=method,
                code_init=None if code_init is None else code_init[rows],
                tol=tol,
                max_iter=max_iter,
                positive=positive,
                finish=finish,
                form=form,
                cache=cache,
            )

        return _put_together(missing, solve(missing), solve(~missing))
    if missing.any():
        form = "masked"
    if method == "auto":
        method = fastest_method(X.device)
    exact = method == "search" and form != "masked"
    if method == "search":
        method = "cd"
    if method == "cd" and form == "auto":
        form = "gram" if gram_pays(len(X), dictionary) else "data"
    # The compiled search needs one Gram matrix for all rows.
    early = exact and form == "gram"
    if alpha == 0:
        X, unit = _in_own_units(X, dictionary)
        alpha = torch.finfo(X.dtype).eps ** 0.625
        code_init = None if code_init is None else code_init / unit
    else:
        unit = None
    if code_init is None:
        code_init = X.new_zeros(()).expand(len(X), len(dictionary))
    elif positive:
        code_init = code_init.clamp_min(0)
    stopping = Stopping(alpha, default_tolerance(X.dtype) if tol is None else tol, positive)
    if exact and len(X) * _SEARCH_STEPS <= len(dictionary) <= MOST_GRAM_ATOMS:
        result = _lone_rows(X, dictionary, code_init, stopping)
        if result is not None:
            return result if unit is None else _in_units(result, unit)
    atoms = (cache or AtomCache()).of(dictionary, form, symmetric=early)
    iterate = _iteration(method, atoms, stopping)
    search, stage = (sign_search, _SHORT_STAGE) if early else (active_set_search, _STAGE)
    solver = _Solver(iterate, stopping, search, stage, polish=exact)
    result = _join(
        [
            solver.solve(X[rows], atoms, code_init[rows], max_iter, finish)
            for rows in _blocks(len(X), len(dictionary), X.device, gram=atoms.gram is not None)
        ]
    )
    return result if unit is None else _in_units(result, unit)


def _iteration(
    method: str, atoms: Atoms, stopping: Stopping
) -> Callable[[Any, Tensor, int], LassoResult]:
    """Return the iteration of a method, prepared for the atoms."""
    if method != "cd":
        return Fista.of(atoms.dictionary, stopping).iterate
    if atoms.gram is None:
        return WorkingSetDescent.of(atoms.dictionary, stopping).iterate
    return CoordinateDescent.of(atoms.dictionary, stopping, atoms.gram).iterate


def _lone_rows(
    X: Tensor, dictionary: Tensor, codes: Tensor, stopping: Stopping
) -> LassoResult | None:
    """Solve few rows without the inner products of all atoms, or not at all."""
    n_components, n_features = dictionary.shape
    if n_components**2 * n_features < _MANY_PRODUCTS or bool(codes.any()):
        return None
    if X.device.type == "mps":
        return None
    rows, atoms = X.double(), dictionary.double()
    found = search_from_zero(
        rows, atoms, stopping.alpha, positive=stopping.positive, max_steps=_FINISH_STEPS
    )
    fit = DataFit.from_rows(rows, atoms)
    now = stopping.certify(fit, found)
    done = stopping.within(fit, now)
    if not done.all():
        return None
    dtype = X.dtype
    return LassoResult(found.to(dtype), now.objective.to(dtype), now.gap.to(dtype), done, 0)


@dataclass(frozen=True)
class _Solver:
    """An iterative method followed by the exact finish."""

    # The fit passed to it has the form that this method needs.
    iterate: Callable[[Any, Tensor, int], LassoResult]
    stopping: Stopping
    search: Callable[..., Tensor]
    # Iterations before the first search.
    first_stage: int
    # Whether that search is for all rows: then codes depend on nothing but rows and atoms.
    polish: bool = False

    def solve(
        self, X: Tensor, atoms: Atoms, codes: Tensor, max_iter: int, finish: bool
    ) -> LassoResult:
        """Solve a block of rows."""
        fit = atoms.fit(X)
        if not finish:
            return self.iterate(fit, codes, max_iter)
        # The exact finish may solve at once what takes the iteration very long, so it is tried
        # from time to time along the way.
        stage = min(max_iter, self.first_stage)
        result = self.iterate(fit, codes, stage)
        if self.polish:
            result = self._finish(X, fit, atoms, result, torch.arange(len(X), device=X.device))
        while True:
            left = (~result.converged).nonzero().squeeze(1)
            if len(left) == 0:
                return result
            result = self._finish(X, fit, atoms, result, left)
            left = left[~result.converged[left]]
            if len(left) == 0 or result.n_iter >= max_iter:
                return result
            stage = min(2 * stage, max_iter - result.n_iter)
            more = self.iterate(fit.select(left), result.codes[left], stage)
            # Rows stopped by rounding take no iterations; counting one makes the loop end.
            result = _overwrite(result, left, replace(more, n_iter=max(more.n_iter, 1)))

    def _finish(
        self, X: Tensor, fit: Fit, atoms: Atoms, result: LassoResult, rows: Tensor
    ) -> LassoResult:
        """Replace codes by the result of the search where that is better."""
        dtype, part = X.dtype, fit.select(rows)
        # The last step is worth doing in float64, which MPS does not support.
        coarse = dtype == torch.float64 or X.device.type == "mps"
        fine = part if coarse else atoms.double().fit(X[rows].double())
        codes = result.codes[rows].to(fine.energy.dtype)
        polished = self.search(
            fine,
            codes,
            self.stopping.alpha,
            positive=self.stopping.positive,
            max_steps=_FINISH_STEPS,
        )
        now = self.stopping.certify(fine, polished)
        better = now.gap < self.stopping.certify(fine, codes).gap
        now = Certificate(now.objective.to(dtype), now.gap.to(dtype), now.gradient)
        best = BestCodes(
            result.codes[rows], result.objective[rows], result.gaps[rows], result.converged[rows]
        )
        best.replace(better, polished.to(dtype), now, self.stopping.within(part, now))
        return _overwrite(result, rows, best.result(0))


def _overwrite(whole: LassoResult, rows: Tensor, part: LassoResult) -> LassoResult:
    """Overwrite the results of some rows within the results of all rows."""
    for name in ("codes", "objective", "gaps", "converged"):
        getattr(whole, name)[rows] = getattr(part, name)
    return replace(whole, n_iter=whole.n_iter + part.n_iter)


def _put_together(mask: Tensor, on: LassoResult, off: LassoResult) -> LassoResult:
    """Merge the results of the rows in the mask and of the other rows, in the original order."""
    together = {}
    for name in ("codes", "objective", "gaps", "converged"):
        one, other = getattr(on, name), getattr(off, name)
        values = one.new_empty(len(mask), *one.shape[1:])
        values[mask], values[~mask] = one, other
        together[name] = values
    return LassoResult(**together, n_iter=max(on.n_iter, off.n_iter))


def _join(results: list[LassoResult]) -> LassoResult:
    """Concatenate the results of the blocks."""
    if len(results) == 1:
        return results[0]
    return LassoResult(
        codes=torch.cat([result.codes for result in results]),
        objective=torch.cat([result.objective for result in results]),
        gaps=torch.cat([result.gaps for result in results]),
        converged=torch.cat([result.converged for result in results]),
        n_iter=max(result.n_iter for result in results),
    )


def _blocks(n_rows: int, n_components: int, device: torch.device, *, gram: bool) -> Iterator[slice]:
    """Yield slices of rows such that the codes of each have a bounded number of entries."""
    numel = _BLOCK_NUMEL["cpu" if device.type == "cpu" else "other"]
    if not gram:
        numel = max(numel, min(_PRODUCT_ROWS * n_components, _PRODUCT_NUMEL))
    size = max(numel // n_components // 64, 1) * 64
    for start in range(0, max(n_rows, 1), size):
        yield slice(start, start + size)


def _in_own_units(X: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row to a largest correlation of one, so that one tiny weight suits all rows."""
    unit = (X.masked_fill(X.isnan(), 0) @ dictionary.T).abs().amax(1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    return X / unit, unit


def _in_units(result: LassoResult, unit: Tensor) -> LassoResult:
    energy = unit.squeeze(1).square()
    return replace(
        result,
        codes=result.codes * unit,
        objective=result.objective * energy,
        gaps=result.gaps * energy,
    )
