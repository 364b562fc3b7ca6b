"""What is read off a trained model: noise variance, components, use of the atoms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._construction import ModelBuilder
from ._models.latent_variable import LatentVariableModel
from ._rows.arrays import NUMBERS_AT_ONCE, to_numpy, to_tensor
from ._rows.sources import ArrayRows, RowSource
from .likelihoods import GaussianLikelihood, squared_error
from .networks import LinearDecoder
from .solvers.least_squares import dictionary_of_moments, effective_dictionary

# Rows, at most, that the first weights are made from, and numbers in them.
_START_ROWS = 10_000
_START_NUMBERS = 2**26


class TrainedModelReader(ModelBuilder):
    """Base that settles a trained model and sets the attributes that rest on training rows."""

    _fixed_noise_variance: float
    _n_uses: NDArray
    _n_rows_seen: int

    def _read_off(self, rows: RowSource, device: torch.device, *, warn: bool = True) -> None:
        """Set what rests on these rows: noise variance, components, use of the atoms."""
        self._settle_noise_variance(rows, device)
        self._n_uses, self._n_rows_seen = np.zeros(self._n_components), 0
        self._record_usage(self._usage_with(self._finish(rows, device), rows), warn=warn)

    def _settle_noise_variance(self, rows: RowSource, device: torch.device) -> None:
        """Set a learned noise variance to the best one for the training rows.

        With refined posteriors only as far as their codes are then no denser than the prior.
        """
        likelihood = self.module_.likelihood
        if not isinstance(likelihood, GaussianLikelihood) or not likelihood.learned:
            return
        trained = float(likelihood.noise_variance.detach())
        best = self._best_noise_variance(rows, device)
        likelihood.set_noise_variance(best)
        if self._n_sweeps(self.module_) and best < trained:
            codes = self._evaluate(start_sample(rows), device, self._map_codes)
            density = np.mean(codes != 0)
            if density > self.module_.family.prior_inclusion:
                likelihood.set_noise_variance(trained)

    def _to_final_dtype(self, dtype: np.dtype) -> None:
        """Take the trained model out of training, in the precision of X."""
        self.module_.to(torch.float32 if dtype == np.float32 else torch.float64).eval()
        likelihood = self.module_.likelihood
        if isinstance(likelihood, GaussianLikelihood) and not likelihood.learned:
            # Training in float32 has rounded it.
            likelihood.set_noise_variance(self._fixed_noise_variance)

    def _finish(self, rows: RowSource, device: torch.device) -> NDArray:
        """Set what is read off the trained model, and return how many rows use each atom."""
        self.noise_variance_ = self._noise_variance()
        decoder = self.module_.decoder
        if isinstance(decoder, LinearDecoder):
            self.components_ = to_numpy(decoder.weight * self._unit, rows.dtype)
            self.intercept_ = to_numpy(decoder.bias * self._unit, rows.dtype) + self._offset
            codes = self._training_codes(rows, device)
            return sum(np.count_nonzero(uses, axis=0) for _, _, uses in codes)
        self.__dict__.pop("intercept_", None)
        return self._find_dictionary(rows, device)

    def _training_codes(
        self, rows: RowSource, device: torch.device
    ) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """Yield rows, their codes, and where these are not zero, a chunk at a time."""
        for raw, codes in self._evaluated_chunks(rows, device, self._map_codes):
            yield raw, codes, codes != 0

    def _find_dictionary(self, rows: RowSource, device: torch.device) -> NDArray:
        """Set the dictionary that decodes the codes best; return how many rows use each atom.

        With holes, where sums over rows do not suffice, it rests on as many rows as fit into
        memory whatever their number.
        """
        n_components = self._n_components
        n_uses, holes = np.zeros(n_components, dtype=np.int64), False
        gram, data = (
            np.zeros((n_components, n_components)),
            np.zeros((n_components, rows.n_features)),
        )
        for raw, codes, uses in self._training_codes(rows, device):
            n_uses += np.count_nonzero(uses, axis=0)
            holes = holes or bool(np.isnan(raw).any())
            if not holes:
                X, U = to_tensor(raw, device), to_tensor(codes, device)
                gram, data = gram + to_numpy(U.T @ U), data + to_numpy(U.T @ X)
        if holes:
            most = max(1, NUMBERS_AT_ONCE // max(n_components, rows.n_features))
            sample = ArrayRows(rows.sample(most))
            codes = np.concatenate([c for _, c, _ in self._training_codes(sample, device)])
            dictionary = effective_dictionary(to_tensor(sample.X, device), to_tensor(codes, device))
        else:
            sums = (to_tensor(moment.astype(rows.dtype), device) for moment in (gram, data))
            dictionary = dictionary_of_moments(*sums)
        self.components_ = to_numpy(dictionary, rows.dtype)
        return n_uses

    def _usage_with(self, n_uses: NDArray, rows: RowSource) -> NDArray:
        """Share of the rows seen, with these, that use each atom."""
        self._n_uses = self._n_uses + n_uses
        self._n_rows_seen += len(rows)
        return self._n_uses / self._n_rows_seen

    def _dead_atoms_cure(self) -> str:
        return "Train longer or on more rows, or lower n_components."

    def _noise_variance(self) -> float:
        likelihood = self.module_.likelihood
        if isinstance(likelihood, GaussianLikelihood):
            variance = float(likelihood.noise_variance.detach()) * self._unit**2
            if not math.isfinite(variance):
                raise ValueError(
                    "Training diverged: the learned noise variance is not finite. Try a smaller "
                    "'learning_rate_init'."
                )
            return variance
        return float("nan")

    @property
    def _n_settling_draws(self) -> int:
        """Draws of each row that the noise variance is settled by."""
        return self.n_draws

    def _best_noise_variance(self, rows: RowSource, device: torch.device) -> float:
        """Noise variance that maximises the ELBO of the training rows, all else held."""
        n_draws = self._n_settling_draws

        def expected_error(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            posterior = self._posterior_of(model, rows)
            if model.has_closed_likelihood:
                return model.expected_squared_error(rows, posterior)
            draws = self._draws(posterior, raw, n_draws)
            return squared_error(rows, model.decoder(draws.code)).mean(0)

        # In one piece: many small ones would tear the free memory between them apart.
        errors, n_done, n_observed = np.empty(len(rows), rows.dtype), 0, 0
        for raw, found in self._evaluated_chunks(rows, device, expected_error, n_draws):
            errors[n_done : n_done + len(raw)] = found
            n_done += len(raw)
            n_observed += int(np.count_nonzero(~np.isnan(raw)))
        return float(np.mean(errors) / (n_observed / len(rows)))


def start_sample(rows: RowSource) -> NDArray:
    """Return every so many rows, enough to start and to settle a model from."""
    return rows.sample(min(_START_ROWS, max(1, _START_NUMBERS // rows.n_features)))
