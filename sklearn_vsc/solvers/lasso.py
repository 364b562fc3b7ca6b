"""Batched lasso coding by accelerated proximal gradient, stopped by a duality gap.

Each row x of X has its own problem, min over u of 0.5 ||x - u V||^2 + alpha ||u||_1 for a
dictionary V whose rows are the atoms. All rows of a block advance together; momentum,
restarts and stopping are decided for each row alone, so that a code does not depend on the
rows beside it.

References
----------
Beck and Teboulle (2009), A fast iterative shrinkage-thresholding algorithm.
O'Donoghue and Candes (2015), Adaptive restart for accelerated gradient schemes.
Fercoq, Gramfort and Salmon (2015), Mind the duality gap: safer rules for the Lasso.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from .active_set import active_set_search

# Iterations between two looks at the duality gap, each of which waits for the device.
_CHECK_EVERY = 10
# Numbers in a block of codes: what stays in a CPU's cache, what keeps a GPU busy.
_BLOCK_NUMEL = {"cpu": 2**18, "other": 2**24}
# Squarings of the Gram matrix in the bound on its largest eigenvalue.
_SQUARINGS = 6
# Iterations before the first trial of the exact finish on rows that have not converged.
_STAGE = 100
# Most linear systems solved for a row in one trial of the exact finish.
_FINISH_STEPS = 100


@dataclass(frozen=True)
class LassoResult:
    """Codes of a batch of rows and the certificate of each.

    Attributes
    ----------
    codes : Tensor of shape (n_rows, n_components)
        Lasso codes.
    objective : Tensor of shape (n_rows,)
        0.5 ||x - u V||^2 + alpha ||u||_1 of each row.
    gaps : Tensor of shape (n_rows,)
        Duality gap of each row: an upper bound on objective minus optimum.
    converged : Tensor of shape (n_rows,), bool
        Whether the gap of the row is within the tolerance.
    n_iter : int
        Largest number of iterations spent on a row.
    """

    codes: Tensor
    objective: Tensor
    gaps: Tensor
    converged: Tensor
    n_iter: int


@dataclass(frozen=True)
class Certificate:
    """Objective, duality gap and gradient at given codes, row by row."""

    objective: Tensor
    gap: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class GramFit:
    """Quadratic fit from inner products alone: the cheaper form for few atoms."""

    gram: Tensor
    correlations: Tensor
    energy: Tensor

    @classmethod
    def from_rows(cls, X: Tensor, dictionary: Tensor, gram: Tensor) -> Self:
        """Gather what is needed of the rows."""
        return cls(gram, X @ dictionary.T, X.square().sum(1))

    def gradient(self, codes: Tensor) -> Tensor:
        return torch.addmm(self.correlations, codes, self.gram, beta=-1)

    def evaluate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        gradient = self.gradient(codes)
        residual_energy = self.energy - (codes * (self.correlations - gradient)).sum(1)
        return gradient, residual_energy.clamp_min(0)

    @property
    def scale(self) -> Tensor:
        return self.correlations.abs().amax(1)

    def atom_gram(self, atoms: Tensor) -> Tensor:
        return self.gram[atoms.unsqueeze(2), atoms.unsqueeze(1)]

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.gram, self.correlations[rows], self.energy[rows])


@dataclass(frozen=True)
class DataFit:
    """Quadratic fit from the rows themselves: the cheaper form for many atoms."""

    dictionary: Tensor
    X: Tensor
    energy: Tensor

    @classmethod
    def from_rows(cls, X: Tensor, dictionary: Tensor) -> Self:
        """Gather what is needed of the rows."""
        return cls(dictionary, X, X.square().sum(1))

    def gradient(self, codes: Tensor) -> Tensor:
        return self.evaluate(codes)[0]

    def evaluate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        excess = torch.addmm(self.X, codes, self.dictionary, beta=-1)
        return excess @ self.dictionary.T, excess.square().sum(1)

    @property
    def scale(self) -> Tensor:
        return (self.X @ self.dictionary.T).abs().amax(1)

    def atom_gram(self, atoms: Tensor) -> Tensor:
        listed = self.dictionary[atoms]
        return listed @ listed.mT

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.dictionary, self.X[rows], self.energy[rows])


Fit = GramFit | DataFit


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the relative duality gap that a solve in ``dtype`` aims at."""
    return 1e-6 if dtype == torch.float64 else 1e-4


def lipschitz_bound(dictionary: Tensor) -> Tensor:
    """Return an upper bound, tight to a few per cent, on the squared spectral norm.

    The Frobenius norm of a power of the Gram matrix bounds that power's largest eigenvalue;
    repeated squaring takes no factorisation and no wait for the device.
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


def certify(fit: Fit, codes: Tensor, alpha: float, *, positive: bool) -> Certificate:
    """Return objective and duality gap; the dual point is the residual, optimally scaled."""
    gradient, residual_energy = fit.evaluate(codes)
    penalty = alpha * codes.abs().sum(1)
    inner = (codes * gradient).sum(1)
    tiny = torch.finfo(codes.dtype).tiny
    # Dual points are multiples of the residual: the best one, within the feasible ones.
    steepest = (-gradient).amax(1) if positive else gradient.abs().amax(1)
    scale = torch.minimum(
        1 - inner / residual_energy.clamp_min(tiny), alpha / steepest.clamp_min(tiny)
    ).clamp_min(0)
    # Written so that nothing large cancels near the optimum.
    gap = 0.5 * (1 - scale).square() * residual_energy + penalty + scale * inner
    return Certificate(0.5 * residual_energy + penalty, gap.clamp_min(0), gradient)


def fista(
    X: Tensor,
    dictionary: Tensor,
    alpha: float,
    *,
    code_init: Tensor | None = None,
    tol: float | None = None,
    max_iter: int = 1000,
    positive: bool = False,
    finish: bool = True,
    form: str = "auto",
) -> LassoResult:
    """Solve the lasso of every row of X.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows to code.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    alpha : float
        Weight of the l1 norm. Zero asks for the limit of a vanishing weight.
    code_init : Tensor of shape (n_rows, n_components), optional
        Codes to start from; zero by default. A row is never left worse than its start.
    tol : float, optional
        A row has converged when its duality gap is at most ``tol`` times its objective;
        1e-6 in float64 and 1e-4 in float32 by default. What rounding forbids is not asked.
    max_iter : int, default=1000
        Most iterations a row gets.
    positive : bool, default=False
        Whether codes must be non-negative.
    finish : bool, default=True
        Whether to solve the linear system of the support at the end, which takes the code
        to the optimum up to rounding wherever the support was found.
    form : {'auto', 'gram', 'data'}, default='auto'
        Whether gradients come from inner products of atoms or from residuals; by default
        what takes fewer operations.

    Returns
    -------
    result : LassoResult
    """
    if alpha == 0:
        return _vanishing_penalty(
            X,
            dictionary,
            code_init=code_init,
            tol=tol,
            max_iter=max_iter,
            positive=positive,
            finish=finish,
            form=form,
        )
    if tol is None:
        tol = default_tolerance(X.dtype)
    atoms = fine_atoms = _Atoms.of(dictionary, form)
    if finish and X.device.type != "mps":
        # The last step is worth its precision; MPS has none to offer.
        fine_atoms = atoms if X.dtype == torch.float64 else _Atoms.of(dictionary.double(), form)
    bound = lipschitz_bound(dictionary)
    # A dictionary of zeros has nothing to step on.
    step = float(torch.where(bound > 0, 1 / bound, torch.ones_like(bound)))
    solver = _Fista(alpha, step, tol, max_iter, positive, finish)
    results = []
    for rows in _blocks(X.shape[0], len(dictionary), X.device):
        block = X[rows]
        start = block.new_zeros(block.shape[0], len(dictionary))
        if code_init is not None:
            start = code_init[rows].clamp_min(0) if positive else code_init[rows]
        fit = atoms.fit(block)
        fine = fit if fine_atoms is atoms else fine_atoms.fit(block.double())
        results.append(solver.solve(fit, fine, start))
    return _join(results)


@dataclass(frozen=True)
class _Atoms:
    """A dictionary, and its inner products where they make the cheaper form."""

    dictionary: Tensor
    gram: Tensor | None

    @classmethod
    def of(cls, dictionary: Tensor, form: str) -> Self:
        """Choose the form of the gradient that takes fewer operations, unless told."""
        n_components, n_features = dictionary.shape
        use_gram = form == "gram" or (form == "auto" and n_components <= 2 * n_features)
        return cls(dictionary, dictionary @ dictionary.T if use_gram else None)

    def fit(self, X: Tensor) -> Fit:
        if self.gram is None:
            return DataFit.from_rows(X, self.dictionary)
        return GramFit.from_rows(X, self.dictionary, self.gram)


@dataclass(frozen=True)
class _Fista:
    """Settings of a solve, and the solve of one block of rows."""

    alpha: float
    step: float
    tol: float
    max_iter: int
    positive: bool
    finish: bool

    def solve(self, fit: Fit, fine: Fit, codes: Tensor) -> LassoResult:
        """Solve a block of rows; ``fine`` is the same fit in the precision of the finish."""
        if not self.finish:
            return self._iterate(fit, codes, self.max_iter)
        # The exact finish may solve at once what the iteration only creeps up to, so that it
        # is tried now and then on the way.
        stage = min(self.max_iter, _STAGE)
        result = self._finish(fit, fine, self._iterate(fit, codes, stage))
        while result.n_iter < self.max_iter:
            left = (~result.converged).nonzero().squeeze(1)
            if len(left) == 0:
                break
            stage = min(2 * stage, self.max_iter - result.n_iter)
            part = fit.select(left)
            more = self._iterate(part, result.codes[left], stage)
            more = self._finish(part, fine.select(left), more)
            result = _overwrite(result, left, more)
        return result

    def _iterate(self, fit: Fit, codes: Tensor, max_iter: int) -> LassoResult:
        """Advance the rows until each has converged; those that have leave the batch."""
        start = self._certify(fit, codes)
        best = _Best(codes.clone(), start.objective, start.gap, self._within(fit, start))
        rows = (~best.converged).nonzero().squeeze(1)
        part, state = fit.select(rows), _Momentum.at(codes[rows])
        n_iter = 0
        while n_iter < max_iter and len(rows):
            n_steps = min(_CHECK_EVERY, max_iter - n_iter)
            state = self._advance(part, state, n_steps)
            n_iter += n_steps
            now = self._certify(part, state.codes)
            done = self._within(part, now)
            best.record(rows, state.codes, now, done)
            left = (~done).nonzero().squeeze(1)
            if len(left) < len(rows):
                rows, part, state = rows[left], part.select(left), state.select(left)
        return best.result(n_iter)

    def _advance(self, fit: Fit, state: _Momentum, n_steps: int) -> _Momentum:
        """Take accelerated proximal gradient steps; nothing here waits for the device."""
        codes, point, weight = state.codes, state.point, state.weight
        for _ in range(n_steps):
            moved = torch.add(point, fit.gradient(point), alpha=-self.step)
            if self.positive:
                new = moved.sub_(self.alpha * self.step).clamp_min_(0)
            else:
                new = softshrink(moved, self.alpha * self.step)
            change = new - codes
            # Restart where momentum points uphill.
            uphill = point.sub_(new).mul_(change).sum(1, keepdim=True) > 0
            weight = torch.where(uphill, 1.0, weight)
            new_weight = 0.5 + (0.25 + weight.square()).sqrt()
            point = torch.addcmul(new, change, (weight - 1) / new_weight)
            codes, weight = new, new_weight
        return _Momentum(codes, point, weight)

    def _finish(self, fit: Fit, fine: Fit, result: LassoResult) -> LassoResult:
        """Replace codes by what the active-set search makes of them, where that is better."""
        dtype = result.codes.dtype
        codes = result.codes.to(fine.energy.dtype)
        polished = active_set_search(
            fine, codes, self.alpha, positive=self.positive, max_steps=_FINISH_STEPS
        )
        now = self._certify(fine, polished)
        better = now.gap < self._certify(fine, codes).gap
        now = Certificate(now.objective.to(dtype), now.gap.to(dtype), now.gradient)
        best = _Best(result.codes, result.objective, result.gaps, result.converged)
        best.replace(better, polished.to(dtype), now, self._within(fit, now))
        return best.result(result.n_iter)

    def _certify(self, fit: Fit, codes: Tensor) -> Certificate:
        return certify(fit, codes, self.alpha, positive=self.positive)

    def _within(self, fit: Fit, now: Certificate) -> Tensor:
        # No gap can be resolved below the rounding of its own terms.
        rounding = 4 * torch.finfo(fit.energy.dtype).eps * fit.energy
        return now.gap <= torch.maximum(self.tol * now.objective, rounding)


@dataclass(frozen=True)
class _Momentum:
    """Where the accelerated iteration of each row stands."""

    codes: Tensor
    point: Tensor
    weight: Tensor

    @classmethod
    def at(cls, codes: Tensor) -> Self:
        """Start without momentum."""
        return cls(codes, codes.clone(), codes.new_ones(len(codes), 1))

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.codes[rows], self.point[rows], self.weight[rows])


@dataclass
class _Best:
    """The best codes seen of each row of a block."""

    codes: Tensor
    objective: Tensor
    gaps: Tensor
    converged: Tensor

    def replace(self, better: Tensor, codes: Tensor, now: Certificate, done: Tensor) -> None:
        """Take over the rows marked as better."""
        self.codes = torch.where(better.unsqueeze(1), codes, self.codes)
        self.objective = torch.where(better, now.objective, self.objective)
        self.gaps = torch.where(better, now.gap, self.gaps)
        self.converged = torch.where(better, done, self.converged)

    def record(self, rows: Tensor, codes: Tensor, now: Certificate, done: Tensor) -> None:
        """Take over, of the rows listed, those that are no worse than before."""
        # Where both are optimal up to rounding, the smaller gap decides.
        better = done | (now.objective <= self.objective[rows])
        part = _Best(self.codes[rows], self.objective[rows], self.gaps[rows], self.converged[rows])
        part.replace(better, codes, now, done)
        self.codes[rows], self.objective[rows] = part.codes, part.objective
        self.gaps[rows], self.converged[rows] = part.gaps, part.converged

    def result(self, n_iter: int) -> LassoResult:
        return LassoResult(self.codes, self.objective, self.gaps, self.converged, n_iter)


def _overwrite(whole: LassoResult, rows: Tensor, part: LassoResult) -> LassoResult:
    """Put the results of some rows into those of all."""
    for name in ("codes", "objective", "gaps", "converged"):
        getattr(whole, name)[rows] = getattr(part, name)
    return replace(whole, n_iter=whole.n_iter + part.n_iter)


def _join(results: list[LassoResult]) -> LassoResult:
    """Stack the results of the blocks."""
    if len(results) == 1:
        return results[0]
    return LassoResult(
        codes=torch.cat([result.codes for result in results]),
        objective=torch.cat([result.objective for result in results]),
        gaps=torch.cat([result.gaps for result in results]),
        converged=torch.cat([result.converged for result in results]),
        n_iter=max(result.n_iter for result in results),
    )


def _blocks(n_rows: int, n_components: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of rows whose codes have a bounded number of entries."""
    numel = _BLOCK_NUMEL["cpu" if device.type == "cpu" else "other"]
    size = max(numel // n_components, 32)
    for start in range(0, max(n_rows, 1), size):
        yield slice(start, start + size)


def _vanishing_penalty(X: Tensor, dictionary: Tensor, **options: Any) -> LassoResult:
    """Solve with a penalty too small to matter, in units of each row's own correlations."""
    unit = (X @ dictionary.T).abs().amax(1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    if options["code_init"] is not None:
        options["code_init"] = options["code_init"] / unit
    weight = torch.finfo(X.dtype).eps ** 0.625
    result = fista(X / unit, dictionary, weight, **options)
    energy = unit.squeeze(1).square()
    return LassoResult(
        result.codes * unit,
        result.objective * energy,
        result.gaps * energy,
        result.converged,
        result.n_iter,
    )
