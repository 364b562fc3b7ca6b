"""What a fitted model answers: codes, posteriors, scores and samples."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ._base.coder import BaseSparseCoder, Posterior
from ._models import bounds
from ._models.latent_variable import LatentVariableModel
from ._rows.array_api import follows_fit, follows_input
from ._rows.arrays import (
    NUMBERS_AT_ONCE,
    draw_blocks,
    draw_seed,
    private_random_state,
    resolve_device,
    row_generators,
    row_slices,
    rows_at_once,
    seeded_generator,
    to_numpy,
    to_tensor,
)
from ._rows.numbers import check_count
from ._rows.sources import ArrayRows, RowSource
from ._rows.sparse_output import dense_rows, join_codes
from ._training.process_group import accelerate_state
from .latents import Draws, LatentPosterior, Noise
from .latents.cauchy import Cauchy


class AmortisedCoder(BaseSparseCoder):
    """Codes, scores and samples by a trained latent-variable model; NaN in X is missing.

    The model lives in units of its own: X less ``_offset`` (its column means), over ``_unit``,
    one number for all of X. That is done once at the door and undone there, so the unit of X
    changes neither the training nor the codes.
    """

    module_: LatentVariableModel
    likelihood: str
    device: str
    precision: str
    random_state: int | np.random.RandomState | None
    n_draws: int
    n_refine: int | str
    kl_weight: float
    transform_method: str
    score_method: str
    score_draws: int
    _offset: NDArray
    _unit: float
    _n_components: int
    _evaluation_seed: int

    def _normalize(self, X: NDArray, device: torch.device) -> Tensor:
        """Rows in the units of the model."""
        return (to_tensor(X, device) - self._offset_on(X.dtype, device)) / self._unit

    def _denormalize(self, rows: Tensor) -> Tensor:
        """Rows in the units of X."""
        return rows * self._unit + torch.from_numpy(self._offset).to(rows)

    def _offset_on(self, dtype: np.dtype, device: torch.device) -> Tensor:
        return to_tensor(self._offset.astype(dtype, copy=False), device)

    def _evaluate(
        self,
        X: NDArray,
        device: torch.device,
        of_rows: Callable[[LatentVariableModel, Tensor, NDArray], Tensor],
        n_draws: int = 1,
    ) -> NDArray:
        """Apply a function of (model, normalised rows, raw rows) in chunks of bounded memory."""
        found = self._evaluated_chunks(ArrayRows(X), device, of_rows, n_draws)
        return np.concatenate([chunk for _, chunk in found])

    def _evaluated_chunks(
        self,
        rows: RowSource,
        device: torch.device,
        of_rows: Callable[[LatentVariableModel, Tensor, NDArray], Tensor],
        n_draws: int = 1,
    ) -> Iterator[tuple[NDArray, NDArray]]:
        """Do so chunk by chunk: yield raw rows and what was found for them."""
        # At rest the model is on the CPU, where it pickles and opens anywhere.
        model = self.module_ if device.type == "cpu" else copy.deepcopy(self.module_).to(device)
        dtype = next(model.parameters()).dtype

        def of_chunk(raw: NDArray) -> NDArray:
            # Here: a generator that waits would leave gradients off for its caller. What overflows
            # in the dtype of X is found in the result.
            with torch.no_grad(), np.errstate(over="ignore"):
                found = of_rows(model, self._normalize(raw, device).to(dtype), raw)
                return to_numpy(found, rows.dtype)

        n_done = 0
        for raw in rows.batches(rows_at_once(n_draws * self._numbers_per_row)):
            found = _complete_rows_apart(of_chunk, raw)
            self._check_result(found, raw, n_done)
            yield raw, found
            n_done += len(raw)

    def _check_result(self, found: NDArray, raw: NDArray, first: int) -> None:
        """Refuse what is not finite, but for the variance of a law that has none."""
        lawful = np.isfinite(found) | (np.isposinf(found) if self._has_infinite_variance else False)
        if lawful.all():
            return
        row = np.flatnonzero(~lawful.reshape(len(raw), -1).all(axis=1))[0]
        raise ValueError(
            f"The result for X[{first + row}] is not finite: the row, with values up to "
            f"{np.nanmax(np.abs(raw[row])):.3g}, lies too far from those of the fit, whose spread "
            f"is {self._unit:.3g}, or an 'encoder' or 'decoder' of your own gave values that are "
            "not finite."
        )

    @property
    def _has_infinite_variance(self) -> bool:
        """Whether codes follow a law without a variance."""
        return getattr(self.module_.family, "posterior_law", None) is Cauchy

    @property
    def _numbers_per_row(self) -> int:
        """Numbers that the widest layer makes of a row."""
        return max(self._n_components, self.n_features_in_)

    def _draws(self, posterior: LatentPosterior, X: NDArray, n_draws: int) -> Draws:
        """Seeded draws that belong to each row's content, whatever rows are beside it."""
        generators = row_generators(X, self._evaluation_seed)
        noise = [_prefix_noise(posterior.row(i), n_draws, g) for i, g in enumerate(generators)]
        return posterior.rsample(Noise.concatenate(noise))

    @abstractmethod
    def _n_sweeps(self, model: LatentVariableModel) -> int:
        """Sweeps of coordinate ascent that refine the posterior of each row."""

    def _posterior_of(self, model: LatentVariableModel, rows: Tensor) -> LatentPosterior:
        """Posterior of each row, the best one for the weight of the KL in training."""
        return model.infer(rows, self._n_sweeps(model), self.kl_weight)

    def _obstacle_to_collapsing(self) -> str | None:
        """Name what keeps the slabs from being integrated out, if any."""
        return type(self).__name__

    def _refuse_to_collapse(self, obstacle: str) -> NoReturn:
        raise ValueError(
            f"score_method='collapsed_elbo' does not go with {obstacle}: it integrates a Gaussian "
            "slab out, and needs prior='spike_slab' with slab='gaussian', decoder='linear', "
            "likelihood='gaussian' and no output activation. Use score_method='elbo' or 'iwae'."
        )

    def _evaluated(self, X: ArrayLike) -> tuple[NDArray, torch.device]:
        X = self._validate_rows(X, reset=False)
        self._check_likelihood(X)
        return X, self._device()

    def _device(self) -> torch.device:
        """Return the device that the parameter names, or that accelerate gave this process."""
        if self.device == "accelerate":
            return accelerate_state().device
        return resolve_device(self.device)

    def _check_likelihood(self, X: NDArray) -> None:
        if self.likelihood == "bernoulli":
            self._check_bounds(np.nanmin(X), np.nanmax(X))

    def _check_bounds(self, least: float, most: float) -> None:
        """Check the range of rows."""
        if self.likelihood == "bernoulli" and (least < 0 or most > 1):
            raise ValueError(
                "likelihood='bernoulli' needs X in [0, 1]; got values from "
                f"{least:.3g} to {most:.3g}. Rescale X or use likelihood='gaussian'."
            )

    @follows_input
    def transform(self, X: ArrayLike) -> NDArray:
        """Return the code of each row, by the rule that ``transform_method`` names.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.

        Returns
        -------
        code : ndarray or CSR matrix of shape (n_samples, n_components)
            The code of a row does not depend on the rows beside it. Sparse with
            ``sparse_output=True``.
        """
        return join_codes(self._codes(X), sparse_output=self.sparse_output)

    def _codes(self, X: ArrayLike) -> Iterator[NDArray]:
        """Return the codes that ``transform`` joins, in chunks."""
        X, device = self._evaluated(X)
        rule = {
            "map": self._map_codes,
            "mean": lambda model, rows, _: self._posterior_of(model, rows).mean,
            "sample": lambda model, rows, raw: self._drawn(model, rows, raw, 1)[:, 0],
            "max_elbo": self._best_codes,
        }[self.transform_method]
        n_draws = self.n_draws if self.transform_method == "max_elbo" else 1
        found = self._evaluated_chunks(ArrayRows(X), device, rule, n_draws)
        return (codes for _, codes in found)

    def _map_codes(self, model: LatentVariableModel, rows: Tensor, _: NDArray) -> Tensor:
        return model.sparse_code(rows, self._n_sweeps(model), self.kl_weight)

    def _drawn(
        self, model: LatentVariableModel, rows: Tensor, raw: NDArray, n_draws: int
    ) -> Tensor:
        """Draws of the code, rows first."""
        return self._draws(self._posterior_of(model, rows), raw, n_draws).code.transpose(0, 1)

    def _best_codes(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        """Of ``n_draws`` seeded draws the one with the highest ELBO."""
        posterior = self._posterior_of(model, rows)
        draws = self._draws(posterior, raw, self.n_draws)
        weights = model.log_weights(rows, posterior, draws, exact_ratio=False)
        best = weights.argmax(0)
        return draws.code[best, torch.arange(len(rows), device=best.device)]

    @follows_input
    def inverse_transform(self, Z: ArrayLike) -> NDArray:
        """Decode codes: the mean of p(x given z).

        Parameters
        ----------
        Z : array-like or sparse matrix of shape (n_samples, n_components)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Reconstruction, in the units of the training X; that of a row with missing entries
            fills them.
        """
        Z = self._validate_codes(Z)

        def decode(model: LatentVariableModel, codes: Tensor) -> Tensor:
            return self._denormalize(model.decode(codes))

        return self._evaluate_codes(Z, decode)

    def _evaluate_codes(
        self, Z: NDArray, of_codes: Callable[[LatentVariableModel, Tensor], Tensor]
    ) -> NDArray:
        dtype = next(self.module_.parameters()).dtype
        with torch.no_grad(), np.errstate(over="ignore"):
            parts = []
            for chunk in row_slices(Z.shape[0], max(1, NUMBERS_AT_ONCE // self._numbers_per_row)):
                codes = to_tensor(dense_rows(Z, chunk), torch.device("cpu"), dtype)
                parts.append(to_numpy(of_codes(self.module_, codes), Z.dtype))
        found = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise ValueError(
                f"Z, with values up to {abs(Z).max():.3g}, decodes to values that are not "
                f"finite in {Z.dtype}: give smaller codes, or Z in float64."
            )
        return found

    @follows_input
    def posterior(self, X: ArrayLike) -> Posterior:
        """Return mean, standard deviation and inclusion probability of each code.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.

        Returns
        -------
        posterior : Posterior
            With arrays ``mean``, ``std`` and ``inclusion`` of shape (n_samples, n_components).
        """
        X, device = self._evaluated(X)

        def moments(model: LatentVariableModel, rows: Tensor, _: NDArray) -> Tensor:
            q = self._posterior_of(model, rows)
            return torch.stack([q.mean, q.variance.clamp_min(0).sqrt(), q.inclusion], dim=1)

        found = self._evaluate(X, device, moments)
        return Posterior(mean=found[:, 0], std=found[:, 1], inclusion=found[:, 2])

    @follows_input
    def sample_posterior(self, X: ArrayLike, n_draws: int = 1) -> NDArray:
        """Draw codes from q(z given x).

        Draws are seeded by the fit and by each row's content: the same call gives the same
        draws, and the first draws of a longer call are those of a shorter one.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.
        n_draws : int, default=1
            Number of draws of each row.

        Returns
        -------
        draws : ndarray of shape (n_draws, n_samples, n_components)
            Codes, with exact zeros where the family has them.
        """
        n_draws = check_count(n_draws, "n_draws")
        X, device = self._evaluated(X)

        def drawn(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            return self._drawn(model, rows, raw, n_draws)

        return np.ascontiguousarray(self._evaluate(X, device, drawn, n_draws).swapaxes(0, 1))

    @follows_input
    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return a lower bound on log p(x) of each row, of what is observed of it, in nats.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score; NaN is a missing entry.

        Returns
        -------
        bound : ndarray of shape (n_samples,)
            The ELBO with KL weight one, in closed form where family, decoder and likelihood
            allow it, else its unbiased estimate from ``score_draws`` seeded draws; with
            ``score_method='iwae'`` the importance-weighted bound of that many draws.
            'collapsed_elbo', and 'iwae' where the model allows it, draw which codes are not
            zero and integrate their values out.
        """
        X, device = self._evaluated(X)
        bound = self._evaluate(X, device, self._row_bounds, self.score_draws)
        if self.likelihood == "gaussian":
            # Density of x from that of x / unit.
            bound = bound - np.count_nonzero(~np.isnan(X), axis=1) * np.log(self._unit)
        return bound.astype(X.dtype, copy=False)

    def _row_bounds(self, model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
        if self.score_method == "collapsed_elbo" and not model.can_collapse:
            self._refuse_to_collapse(self._obstacle_to_collapsing() or "the model as fitted")
        posterior = model.infer(rows, self._n_sweeps(model))
        closed = model.has_closed_likelihood and model.family.has_closed_kl
        if self.score_method == "elbo" and closed:
            return model.expected_log_likelihood(rows, posterior) - posterior.kl().sum(-1)
        draws = self._draws(posterior, raw, self.score_draws)
        if self.score_method == "elbo":
            return bounds.elbo(model.log_weights(rows, posterior, draws, exact_ratio=False))
        if not model.can_collapse:
            return bounds.iwae(model.log_weights(rows, posterior, draws, exact_ratio=True))
        log_weights = model.collapsed_log_weights(rows, posterior, draws)
        return bounds.iwae(log_weights) if self.score_method == "iwae" else bounds.elbo(log_weights)

    def _code_divergence(self, X: ArrayLike) -> NDArray:
        """KL of each code's posterior from its prior, nats, (n_samples, n_features_out).

        Of the posterior that the score uses; by its draws where there is no closed form.
        """
        X, device = self._evaluated(X)

        def divergence(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            posterior = model.infer(rows, self._n_sweeps(model))
            if model.family.has_closed_kl:
                return posterior.kl()
            return posterior.kl(self._draws(posterior, raw, self.score_draws)).mean(0)

        return self._evaluate(X, device, divergence, self.score_draws)

    @follows_fit
    def sample(self, n_samples: int = 1) -> NDArray:
        """Draw new rows: codes from the prior, decoded, with observation noise.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            New rows, in the units of the training X.
        """
        self._check_usable()
        n_samples = check_count(n_samples, "n_samples")
        generator = seeded_generator(draw_seed(private_random_state(self.random_state)))
        model, dtype = self.module_, next(self.module_.parameters()).dtype
        with torch.no_grad():
            shape = (n_samples, self._n_features_out)
            codes = model.family.sample_prior(shape, generator, dtype)
            rows = model.likelihood.sample(model.decoder(codes), generator)
            return to_numpy(self._denormalize(rows), self.components_.dtype)


def _complete_rows_apart(of_rows: Callable[[NDArray], NDArray], X: NDArray) -> NDArray:
    """Apply a function to rows, those with holes by themselves.

    They take longer, and round otherwise: what is beside a complete row must not show in it.
    """
    has_holes = np.isnan(X).any(axis=1)
    if has_holes.all() or not has_holes.any():
        return of_rows(X)
    holed, complete = of_rows(X[has_holes]), of_rows(X[~has_holes])
    found = np.empty((len(X), *holed.shape[1:]), dtype=holed.dtype)
    found[has_holes], found[~has_holes] = holed, complete
    return found


def _prefix_noise(posterior: LatentPosterior, n_draws: int, generator: torch.Generator) -> Noise:
    """Noise of which a shorter call gives the first draws."""
    blocks = [posterior.noise(size, generator) for size in draw_blocks(n_draws)]
    return Noise.concatenate(blocks, dim=0).first(n_draws)
