"""A trained model with its units and its seed: codes, posteriors, bounds and samples of rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._models import bounds
from .._models.latent_variable import LatentVariableModel
from .._models.units import Units
from .._rows.arrays import (
    NUMBERS_AT_ONCE,
    draw_blocks,
    row_generators,
    row_slices,
    rows_at_once,
    to_numpy,
    to_tensor,
)
from .._rows.sources import ArrayRows, RowSource
from .._rows.sparse_output import dense_rows
from ..latents import Draws, LatentPosterior, Noise

# A function of (model, rows in its units, the same rows in units of X); rows come first in what it
# returns.
OfRows = Callable[[LatentVariableModel, Tensor, NDArray], Tensor]


@dataclass(frozen=True)
class InferenceOptions:
    """How a fitted model is asked; the fields carry the names of the estimators' parameters.

    Attributes
    ----------
    obstacle_to_collapsing : str or None
        Parameter that keeps slabs from being integrated out, for the message.
    """

    n_refine: int | str = 0
    kl_weight: float = 1.0
    n_draws: int = 1
    transform_method: str = "map"
    score_method: str = "elbo"
    score_draws: int = 64
    obstacle_to_collapsing: str | None = None


@dataclass(frozen=True)
class FittedModel:
    """A trained model, and all that its answers depend on.

    Attributes
    ----------
    module : LatentVariableModel
        The trained model, on the CPU.
    units : Units
        Units that its rows are in.
    seed : int
        Seed of the draws that answers are based on.
    device : torch.device
        Device to compute on.
    options : InferenceOptions
        How the model is asked.
    """

    module: LatentVariableModel
    units: Units
    seed: int
    device: torch.device
    options: InferenceOptions

    # --- rows through the model

    def chunks(
        self, rows: RowSource, of_rows: OfRows, n_draws: int = 1
    ) -> Iterator[tuple[NDArray, NDArray]]:
        """Apply a function to rows in chunks of bounded memory.

        Parameters
        ----------
        rows : RowSource
            Rows in units of X.
        of_rows : callable
            Function of (model, rows in its units, the same rows in units of X).
        n_draws : int
            Draws that the function makes for each row, which take memory.

        Yields
        ------
        raw, found : ndarray
            A chunk of rows, and the result for them.
        """
        # Between calls the model is on the CPU, where it can be pickled and opened anywhere.
        on_cpu = self.device.type == "cpu"
        model = self.module if on_cpu else copy.deepcopy(self.module).to(self.device)

        def of_chunk(raw: NDArray) -> NDArray:
            # Not around the loop: a suspended generator would leave gradients off for its caller.
            # Overflow in the dtype of X is found in the result.
            with torch.no_grad(), np.errstate(over="ignore"):
                normal = self.units.to_model(raw, self.device).to(self._dtype)
                return to_numpy(of_rows(model, normal, raw), rows.dtype)

        n_done = 0
        for raw in rows.batches(rows_at_once(n_draws * model.numbers_per_row)):
            found = _complete_rows_apart(of_chunk, raw)
            self._check_result(found, raw, n_done)
            yield raw, found
            n_done += len(raw)

    def _of(self, X: NDArray, of_rows: OfRows, n_draws: int = 1) -> NDArray:
        return np.concatenate([found for _, found in self.chunks(ArrayRows(X), of_rows, n_draws)])

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def _check_result(self, found: NDArray, raw: NDArray, first: int) -> None:
        """Refuse what is not finite, except the variance of a distribution that has none."""
        allowed = np.isfinite(found)
        if self.module.family.has_infinite_variance:
            allowed |= np.isposinf(found)
        if allowed.all():
            return
        row = np.flatnonzero(~allowed.reshape(len(raw), -1).all(axis=1))[0]
        raise ValueError(
            f"The result for X[{first + row}] is not finite: the row, with values up to "
            f"{np.nanmax(np.abs(raw[row])):.3g}, lies too far from those of the fit, whose spread "
            f"is {self.units.scale:.3g}, or an 'encoder' or 'decoder' of your own gave values that "
            "are not finite."
        )

    # --- posteriors and draws

    @property
    def n_sweeps(self) -> int:
        """Sweeps of coordinate ascent, or an error where this model has none."""
        n_refine = self.options.n_refine
        if n_refine == "auto":
            return self.module.default_sweeps
        if n_refine and not self.module.can_refine:
            raise ValueError(
                f"n_refine={n_refine} needs a linear decoder, a Gaussian likelihood and codes "
                "that are zero with a probability of their own (a spike and slab, or a Laplace "
                "base with threshold_prior='gamma' and kl='auto'); use n_refine='auto' or 0."
            )
        return int(n_refine)

    def infer(self, model: LatentVariableModel, rows: Tensor) -> LatentPosterior:
        """Posterior of each row, the best one for the weight of the KL in training."""
        return model.infer(rows, self.n_sweeps, self.options.kl_weight)

    def sparse_code(
        self, model: LatentVariableModel, rows: Tensor, posterior: LatentPosterior
    ) -> Tensor:
        """Sparse point estimate of each row, from its posterior."""
        return model.sparse_code(rows, posterior, refined=self.n_sweeps > 0)

    def draws(self, posterior: LatentPosterior, X: NDArray, n_draws: int) -> Draws:
        """Seeded draws that depend on the content of each row, not on the rows beside it."""
        generators = row_generators(X, self.seed)
        noise = [_prefix_noise(posterior.row(i), n_draws, g) for i, g in enumerate(generators)]
        return posterior.rsample(Noise.concatenate(noise))

    # --- answers

    def codes(self, X: NDArray) -> Iterator[NDArray]:
        """Yield the codes of rows in chunks, by the rule that ``transform_method`` names."""
        rule: OfRows = {
            "map": lambda model, rows, _: self.sparse_code(model, rows, self.infer(model, rows)),
            "mean": lambda model, rows, _: self.infer(model, rows).mean,
            "sample": lambda model, rows, raw: self._drawn(model, rows, raw, 1)[:, 0],
            "max_elbo": self._best_codes,
        }[self.options.transform_method]
        n_draws = self.options.n_draws if self.options.transform_method == "max_elbo" else 1
        return (codes for _, codes in self.chunks(ArrayRows(X), rule, n_draws))

    def _drawn(
        self, model: LatentVariableModel, rows: Tensor, raw: NDArray, n_draws: int
    ) -> Tensor:
        """Draws of the code, (n, n_draws, n_codes)."""
        return self.draws(self.infer(model, rows), raw, n_draws).code.transpose(0, 1)

    def _best_codes(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        """The draw with the highest ELBO of ``n_draws`` seeded ones."""
        posterior = self.infer(model, rows)
        draws = self.draws(posterior, raw, self.options.n_draws)
        best = model.log_weights(rows, posterior, draws, exact_ratio=False).argmax(0)
        return draws.code[best, torch.arange(len(rows), device=best.device)]

    def moments(self, X: NDArray) -> NDArray:
        """Mean, standard deviation and inclusion of each code, (n, 3, n_codes)."""

        def moments(model: LatentVariableModel, rows: Tensor, _: NDArray) -> Tensor:
            q = self.infer(model, rows)
            return torch.stack([q.mean, q.variance.clamp_min(0).sqrt(), q.inclusion], dim=1)

        return self._of(X, moments)

    def posterior_draws(self, X: NDArray, n_draws: int) -> NDArray:
        """Draws of the code of each row, (n_draws, n, n_codes)."""

        def drawn(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            return self._drawn(model, rows, raw, n_draws)

        return np.ascontiguousarray(self._of(X, drawn, n_draws).swapaxes(0, 1))

    def log_bounds(self, X: NDArray) -> NDArray:
        """Lower bounds on log p(x), (n,), nats, in the units of X."""
        bound = self._of(X, self._row_bounds, self.options.score_draws)
        if self.module.likelihood.has_units:
            bound = self.units.log_density(bound, X)
        return bound.astype(X.dtype, copy=False)

    def _row_bounds(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        method = self.options.score_method
        if method == "collapsed_elbo" and not model.can_collapse:
            refuse_to_collapse(self.options.obstacle_to_collapsing or "the model as fitted")
        posterior = model.infer(rows, self.n_sweeps)
        if method == "elbo" and model.has_closed_bound:
            return model.closed_bound(rows, posterior)
        draws = self.draws(posterior, raw, self.options.score_draws)
        if method == "elbo":
            return bounds.elbo(model.log_weights(rows, posterior, draws, exact_ratio=False))
        if not model.can_collapse:
            return bounds.iwae(model.log_weights(rows, posterior, draws, exact_ratio=True))
        log_weights = model.collapsed_log_weights(rows, posterior, draws)
        return bounds.iwae(log_weights) if method == "iwae" else bounds.elbo(log_weights)

    def code_divergence(self, X: NDArray) -> NDArray:
        """KL of each code's posterior from its prior, nats, (n, n_codes).

        For the posterior that the score uses; estimated by its draws where the KL has no closed
        form.
        """

        def divergence(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            posterior = model.infer(rows, self.n_sweeps)
            if model.family.has_closed_kl:
                return posterior.kl()
            return posterior.kl(self.draws(posterior, raw, self.options.score_draws)).mean(0)

        return self._of(X, divergence, self.options.score_draws)

    def decode(self, Z: NDArray) -> NDArray:
        """Return the mean of p(x given z) for codes, in the units of X."""
        with torch.no_grad(), np.errstate(over="ignore"):
            parts = []
            size = max(1, NUMBERS_AT_ONCE // self.module.numbers_per_row)
            for chunk in row_slices(Z.shape[0], size):
                codes = to_tensor(dense_rows(Z, chunk), torch.device("cpu"), self._dtype)
                rows = self.units.to_data(self.module.decode(codes))
                parts.append(to_numpy(rows, Z.dtype))
        found = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise ValueError(
                f"Z, with values up to {abs(Z).max():.3g}, decodes to values that are not "
                f"finite in {Z.dtype}: give smaller codes, or Z in float64."
            )
        return found

    def sample(self, n_samples: int, generator: torch.Generator, dtype: np.dtype) -> NDArray:
        """Draw new rows: codes from the prior, decoded, with observation noise."""
        model = self.module
        with torch.no_grad():
            rows = model.sample(n_samples, generator, self._dtype)
            return to_numpy(self.units.to_data(rows), dtype)


def refuse_to_collapse(obstacle: str) -> None:
    """Raise the error of a score that integrates slabs out where that is not possible."""
    raise ValueError(
        f"score_method='collapsed_elbo' does not go with {obstacle}: it integrates a Gaussian "
        "slab out, and needs prior='spike_slab' with slab='gaussian', decoder='linear', "
        "likelihood='gaussian' and no output activation. Use score_method='elbo' or 'iwae'."
    )


def _complete_rows_apart(of_rows: Callable[[NDArray], NDArray], X: NDArray) -> NDArray:
    """Apply a function to rows, separately to those with missing entries.

    These take longer and round differently: a complete row must not depend on the rows beside it.
    """
    incomplete = np.isnan(X).any(axis=1)
    if incomplete.all() or not incomplete.any():
        return of_rows(X)
    of_incomplete, of_complete = of_rows(X[incomplete]), of_rows(X[~incomplete])
    found = np.empty((len(X), *of_incomplete.shape[1:]), dtype=of_incomplete.dtype)
    found[incomplete], found[~incomplete] = of_incomplete, of_complete
    return found


def _prefix_noise(posterior: LatentPosterior, n_draws: int, generator: torch.Generator) -> Noise:
    """Noise whose first draws are those of a shorter call."""
    blocks = [posterior.noise(size, generator) for size in draw_blocks(n_draws)]
    return Noise.concatenate(blocks, dim=0).first(n_draws)
