"""What follows from the training rows once a model is trained: noise, dictionary, use of atoms.

The posterior of a row is computed once, and a second time where the noise variance that it depends
on was moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._models.latent_variable import LatentVariableModel
from .._rows.arrays import NUMBERS_AT_ONCE, to_numpy, to_tensor
from .._rows.sources import ArrayRows, RowSource, start_sample_step
from ..latents import LatentPosterior
from ..likelihoods import squared_error
from ..networks import LinearDecoder
from ..solvers.least_squares import dictionary_of_moments, effective_dictionary
from .fitted_model import FittedModel


@dataclass
class RowSummary:
    """What a pass over rows finds.

    Attributes
    ----------
    n_uses : ndarray of shape (n_components,)
        Number of rows that use each atom, by the sparse point estimate.
    squared_error : float
        Mean over observed entries of the expected squared error; NaN where it was not asked for.
    sample_density : float
        Share of codes that are not zero, in the sample of rows that a model is started from.
    dictionary : ndarray of shape (n_components, n_features) or None
        Least-squares dictionary of the codes; None where the decoder is linear.
    n_rows : int
        Number of rows that were counted.
    """

    n_uses: NDArray
    squared_error: float
    sample_density: float
    dictionary: NDArray | None
    n_rows: int


def settle(fitted: FittedModel, rows: RowSource, n_draws: int) -> RowSummary:
    """Set a learned noise variance to its best value for these rows, and sum the rows up.

    With refined posteriors the noise variance falls only as far as codes are then no denser than
    the prior.

    Parameters
    ----------
    fitted : FittedModel
        The noise variance of its module is set in place.
    rows : RowSource
        Training rows in the units of X.
    n_draws : int
        Draws of each row, where the expected error has no closed form.
    """
    model = fitted.module
    likelihood = model.likelihood
    trained = likelihood.learned_noise_variance
    if trained is None:
        return summarise(fitted, rows)
    summary = summarise(fitted, rows, error_draws=n_draws)
    best = summary.squared_error
    likelihood.set_noise_variance(best)
    if not model.posterior_depends_on_noise(fitted.n_sweeps):
        return summary
    if likelihood.learned_noise_variance == trained:
        return summary
    moved = summarise(fitted, rows)
    too_dense = moved.sample_density > model.family.prior_inclusion
    if fitted.n_sweeps and best < trained and too_dense:
        likelihood.set_noise_variance(trained)
        return summary
    return moved


def summarise(fitted: FittedModel, rows: RowSource, error_draws: int = 0) -> RowSummary:
    """Sum up the codes of rows, and with ``error_draws`` their expected squared errors."""
    counts = _Counts(fitted, rows, error_draws)
    n_done = 0
    for raw, found in fitted.chunks(rows, counts.of_rows, max(1, error_draws)):
        counts.add(raw, found, n_done)
        n_done += len(raw)
    return counts.summary()


class _Counts:
    """Sums over rows of what a pass finds for each: error, codes, and use of atoms."""

    def __init__(self, fitted: FittedModel, rows: RowSource, error_draws: int) -> None:
        self.fitted, self.rows, self.error_draws = fitted, rows, error_draws
        n_components = fitted.module.n_components
        self.n_uses = np.zeros(n_components, dtype=np.int64)
        self.n_observed = 0
        self.step, self.n_sampled, self.n_used = start_sample_step(rows), 0, 0
        # Allocated once: many small arrays would fragment the heap.
        self.errors = np.empty(len(rows) if error_draws else 0, rows.dtype)
        linear = isinstance(fitted.module.decoder, LinearDecoder)
        self.moments = None if linear else _Moments(n_components, rows)

    def of_rows(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        """Return for each row its error, if it is needed, the use of atoms, and their codes."""
        posterior = self.fitted.infer(model, rows)
        codes, uses = model.by_atom(self.fitted.sparse_code(model, rows, posterior))
        found = [uses] if self.moments is None else [uses, codes]
        if self.error_draws:
            error = self._expected_error(model, rows, raw, posterior)
            found.insert(0, error.unsqueeze(1).to(uses))
        return torch.cat(found, dim=1)

    def _expected_error(
        self, model: LatentVariableModel, rows: Tensor, raw: NDArray, posterior: LatentPosterior
    ) -> Tensor:
        if model.has_closed_likelihood:
            return model.expected_squared_error(rows, posterior)
        draws = self.fitted.draws(posterior, raw, self.error_draws)
        return squared_error(rows, model.decoder(draws.code)).mean(0)

    def add(self, raw: NDArray, found: NDArray, first: int) -> None:
        """Take in a chunk of rows, of which the first has this index."""
        if self.error_draws:
            self.errors[first : first + len(raw)] = found[:, 0]
            self.n_observed += int(np.count_nonzero(~np.isnan(raw)))
            found = found[:, 1:]
        n_components = len(self.n_uses)
        uses = found[:, :n_components]
        self.n_uses += np.count_nonzero(uses, axis=0)
        sampled = uses[-first % self.step :: self.step]
        self.n_sampled, self.n_used = (
            self.n_sampled + sampled.size,
            self.n_used + int(np.count_nonzero(sampled)),
        )
        if self.moments is not None:
            self.moments.add(raw, found[:, n_components:], self.fitted.device)

    def summary(self) -> RowSummary:
        """Return what was found."""
        error = np.nan
        if self.error_draws:
            error = float(np.mean(self.errors) / (self.n_observed / len(self.rows)))
        dictionary = None
        if self.moments is not None:
            dictionary = self.moments.dictionary(self.fitted, self._codes)
        density = self.n_used / max(1, self.n_sampled)
        return RowSummary(self.n_uses, error, density, dictionary, len(self.rows))

    def _codes(self, rows: RowSource) -> Iterator[NDArray]:
        def codes(model: LatentVariableModel, normal: Tensor, _: NDArray) -> Tensor:
            posterior = self.fitted.infer(model, normal)
            return model.by_atom(self.fitted.sparse_code(model, normal, posterior))[0]

        return (found for _, found in self.fitted.chunks(rows, codes))


class _Moments:
    """Sums from which the least-squares dictionary of codes follows.

    With missing entries sums over rows do not suffice: the dictionary then rests on a sample of
    rows that fits into memory.
    """

    def __init__(self, n_components: int, rows: RowSource) -> None:
        self.rows = rows
        self.gram = np.zeros((n_components, n_components))
        self.data = np.zeros((n_components, rows.n_features))
        self.incomplete = False

    def add(self, raw: NDArray, codes: NDArray, device: torch.device) -> None:
        """Take in a chunk of rows and their codes."""
        self.incomplete = self.incomplete or bool(np.isnan(raw).any())
        if not self.incomplete:
            X, U = to_tensor(raw, device), to_tensor(codes, device)
            self.gram, self.data = self.gram + to_numpy(U.T @ U), self.data + to_numpy(U.T @ X)

    def dictionary(
        self, fitted: FittedModel, codes_of: Callable[[RowSource], Iterator[NDArray]]
    ) -> NDArray:
        """Return the dictionary that decodes the codes best."""
        device, dtype = fitted.device, self.rows.dtype
        if not self.incomplete:
            sums = (to_tensor(moment.astype(dtype), device) for moment in (self.gram, self.data))
            return to_numpy(dictionary_of_moments(*sums), dtype)
        most = max(1, NUMBERS_AT_ONCE // max(len(self.gram), self.rows.n_features))
        sample = ArrayRows(self.rows.sample(most))
        codes = np.concatenate(list(codes_of(sample)))
        X, U = to_tensor(sample.X, device), to_tensor(codes, device)
        return to_numpy(effective_dictionary(X, U), dtype)
