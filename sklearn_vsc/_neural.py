"""What the neural estimators share: building, training, coding, scoring, sampling."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ._array_api import learns_from_input
from ._arrays import (
    draw_seed,
    private_random_state,
    resolve_device,
    row_slices,
    seeded_generator,
    to_numpy,
    to_tensor,
)
from ._compat import Interval, StrOptions, fit_context
from ._construction import TRAINING_SWEEPS, ModelBuilder
from .likelihoods import GaussianLikelihood
from .model import LatentVariableModel
from .networks import LinearDecoder
from .solvers.least_squares import effective_dictionary
from .training import TrainingOptions, train

# Parameters that the model does not hang on, though some are objects that change.
NOT_BUILT_WITH = ("callbacks", "random_state")
# Rows, at most, that the first weights are made from.
_START_ROWS = 10_000


class NeuralSparseCoder(ModelBuilder):
    """Base of the estimators that train an inference network."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "objective": [StrOptions({"elbo", "max_elbo", "iwae"})],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "likelihood": [StrOptions({"gaussian", "bernoulli"})],
        "noise_variance": [StrOptions({"learned"}), Interval(Real, 0, None, closed="neither")],
        "encoder": [StrOptions({"auto", "mlp", "conv", "lista"}), nn.Module],
        "decoder": [StrOptions({"linear", "mlp", "conv"}), nn.Module],
        "image_shape": ["array-like", None],
        "output_activation": [StrOptions({"auto", "identity", "sigmoid", "tanh"})],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "n_unrolled": [Interval(Integral, 1, None, closed="left")],
        "transform_method": [StrOptions({"map", "mean", "max_elbo", "sample"})],
        "score_method": [StrOptions({"elbo", "iwae"})],
        "n_refine": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        "score_draws": [Interval(Integral, 1, None, closed="left")],
        "kl_warmup": [Interval(Real, 0, 1, closed="both")],
        "decoder_penalty": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, None],
        "sparse_output": ["boolean"],
        "device": [str],
    }

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train the model on the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            When a parameter or X does not fit the model, or when training diverges.
        """
        self._check_parameters()
        with _unchanged_on_error(self):
            goes_on = self.warm_start and hasattr(self, "module_")
            X = self._validate_rows(X, reset=not goes_on)
            self._check_likelihood(X)
            self._check_range(X)
            device = resolve_device(self.device)
            if not goes_on:
                self._initialize(X)
            X_train, X_valid = X, None
            if self.early_stopping:
                X_train, X_valid = self._split(X)
            self._train(X_train, X_valid, device, self.max_iter, schedule=True)
            self._settle_noise_variance(X, device)
            self._n_uses, self._n_rows_seen = np.zeros(self._n_components), 0
            self._record_usage(self._usage_with(self._finish(X, device)))
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train for one more pass over these rows.

        The first call fixes the number of features and the units of the model from its rows.
        The learning rate stays at ``learning_rate_init`` and warm-ups do not apply.
        ``component_usage_`` counts all rows seen, at their codes then; the ``components_`` of
        a decoder that is not linear rest on the rows of this call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator after this pass.
        """
        self._check_parameters()
        with _unchanged_on_error(self):
            first = not hasattr(self, "module_")
            X = self._validate_rows(X, reset=first)
            self._check_likelihood(X)
            self._check_range(X)
            device = resolve_device(self.device)
            if first:
                self._initialize(X)
            self._train(X, None, device, 1, schedule=False)
            self._record_usage(self._usage_with(self._finish(X, device)), warn=False)
        return self

    def _split(self, X: NDArray) -> tuple[NDArray, NDArray]:
        if len(X) < 2:
            raise ValueError(
                "early_stopping=True sets rows aside and needs at least 2; got n_samples=1."
            )
        train_rows, valid_rows = train_test_split(
            X, test_size=self.validation_fraction, random_state=draw_seed(self._random_state)
        )
        return train_rows, valid_rows

    def _initialize(self, X: NDArray) -> None:
        """Fix units and seeds, and build the model."""
        self._random_state = private_random_state(self.random_state)
        self._evaluation_seed = draw_seed(self._random_state)
        self._offset, self._unit = self._find_units(X)
        self._n_components = X.shape[1] if self.n_components is None else self.n_components
        generator = seeded_generator(draw_seed(self._random_state))
        self._optimizer_state: dict[str, dict[str, Tensor]] | None = None
        self.history_: list[dict[str, Any]] = []
        self._n_uses, self._n_rows_seen = np.zeros(self._n_components), 0
        # A sample is enough to start from; float32 is what networks are trained in.
        sample = X[:: math.ceil(len(X) / _START_ROWS)]
        rows = self._normalize(sample, torch.device("cpu")).float()
        self.module_ = self._build(rows, generator)
        # Parameters may be set anew later; the model is that of these.
        self._built_with = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in NOT_BUILT_WITH
        }

    def _find_units(self, X: NDArray) -> tuple[NDArray, float]:
        if self.likelihood == "bernoulli":
            return np.zeros(X.shape[1], dtype=X.dtype), 1.0
        offset = X.mean(axis=0, dtype=np.float64)
        energy = sum(np.sum((X[s] - offset) ** 2) for s in row_slices(len(X), 4096))
        unit, size = float(np.sqrt(energy / X.size)), float(np.abs(offset).max())
        if unit <= 10 * np.finfo(X.dtype).eps * size:
            # All rows are equal: what is left is rounding.
            unit = size or 1.0
        return offset.astype(X.dtype), unit

    def _train(
        self,
        X: NDArray,
        X_valid: NDArray | None,
        device: torch.device,
        max_iter: int,
        *,
        schedule: bool,
    ) -> None:
        batch_size = min(128, len(X)) if self.batch_size == "auto" else self.batch_size
        first, last = self._temperatures()
        n_refine = min(self._n_sweeps(self.module_), TRAINING_SWEEPS)
        options = TrainingOptions(
            objective=replace(self._make_objective(), n_refine=n_refine),
            temperature=(first if schedule else last, last),
            decoder_penalty=self.decoder_penalty,
            kl_warmup=self.kl_warmup if schedule else 0.0,
            noise_warmup=getattr(self, "noise_warmup", 0.0) if schedule else 0.0,
            max_iter=max_iter,
            batch_size=min(batch_size, len(X)),
            learning_rate=self.learning_rate_init,
            schedule=schedule,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            verbose=int(self.verbose),
            callbacks=tuple(self.callbacks or ()),
        )
        noise_seed, order_seed = draw_seed(self._random_state), draw_seed(self._random_state)
        # A copy: should training fail, the fitted model is still there.
        module = copy.deepcopy(self.module_).float()
        with self._own_modules_seeded(), _deterministic_convolutions():
            result = train(
                module,
                self._normalize(X, device).float(),
                None if X_valid is None else self._normalize(X_valid, device).float(),
                options,
                noise_generator=seeded_generator(noise_seed, device),
                order_generator=seeded_generator(order_seed),
                optimizer_state=self._optimizer_state,
            )
        self.module_ = module
        self._optimizer_state = result.optimizer_state
        n_before = len(self.history_)
        self.history_ = self.history_ + [
            record | {"epoch": n_before + record["epoch"]} for record in result.history
        ]
        self.n_iter_ = len(self.history_)
        self._to_final_dtype(X.dtype)

    def _own_modules_seeded(self) -> Any:
        """Seed what a user's own module draws (dropout), and put the global state back."""
        if not any(isinstance(part, nn.Module) for part in (self.encoder, self.decoder)):
            return nullcontext()
        return _forked_global_generator(draw_seed(self._random_state))

    def _settle_noise_variance(self, X: NDArray, device: torch.device) -> None:
        """Set a learned noise variance to the best one for the training rows.

        With refined posteriors only as far as their codes are then no denser than the prior.
        """
        likelihood = self.module_.likelihood
        if not isinstance(likelihood, GaussianLikelihood) or not likelihood.learned:
            return
        trained = float(likelihood.noise_variance.detach())
        best = self._best_noise_variance(X, device)
        likelihood.set_noise_variance(best)
        if self._n_sweeps(self.module_) and best < trained:
            sample = X[:: math.ceil(len(X) / _START_ROWS)]
            density = np.mean(self._evaluate(sample, device, self._map_codes) != 0)
            if density > self.module_.family.prior_inclusion:
                likelihood.set_noise_variance(trained)

    def _to_final_dtype(self, dtype: np.dtype) -> None:
        """Take the trained model out of training, in the precision of X."""
        self.module_.to(torch.float32 if dtype == np.float32 else torch.float64).eval()
        likelihood = self.module_.likelihood
        if isinstance(likelihood, GaussianLikelihood) and not likelihood.learned:
            # Training in float32 has rounded it.
            likelihood.set_noise_variance(self._fixed_noise_variance)

    def _finish(self, X: NDArray, device: torch.device) -> NDArray:
        """Set what is read off the trained model, and return the codes of its training rows."""
        self.noise_variance_ = self._noise_variance()
        decoder = self.module_.decoder
        codes = self._evaluate(X, device, self._map_codes)
        if isinstance(decoder, LinearDecoder):
            self.components_ = to_numpy(decoder.weight * self._unit, X.dtype)
            self.intercept_ = to_numpy(decoder.bias * self._unit, X.dtype) + self._offset
        else:
            dictionary = effective_dictionary(to_tensor(X, device), to_tensor(codes, device))
            self.components_ = to_numpy(dictionary, X.dtype)
            self.__dict__.pop("intercept_", None)
        return codes

    def _usage_with(self, codes: NDArray) -> NDArray:
        """Share of the rows seen, with those of these codes, that use each atom."""
        self._n_uses = self._n_uses + np.count_nonzero(codes, axis=0)
        self._n_rows_seen += len(codes)
        return self._n_uses / self._n_rows_seen

    def _dead_atoms_cure(self) -> str:
        return "Train longer or on more rows, or lower n_components."

    def _noise_variance(self) -> float:
        likelihood = self.module_.likelihood
        if isinstance(likelihood, GaussianLikelihood):
            return float(likelihood.noise_variance.detach()) * self._unit**2
        return float("nan")

    @property
    def _n_settling_draws(self) -> int:
        """Draws of each row that the noise variance is settled by."""
        return self.n_draws

    def _best_noise_variance(self, X: NDArray, device: torch.device) -> float:
        """Noise variance that maximises the ELBO of the training rows, all else held."""
        n_draws = self._n_settling_draws

        def squared_error(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            posterior = self._posterior_of(model, rows)
            if model.has_closed_likelihood:
                return model.expected_squared_error(rows, posterior)
            draws = self._draws(posterior, raw, n_draws)
            return (rows - model.decoder(draws.code)).square().sum(-1).mean(0)

        return float(np.mean(self._evaluate(X, device, squared_error, n_draws)) / X.shape[1])


@contextmanager
def _unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give an estimator back the attributes that it had, should something fail."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@contextmanager
def _forked_global_generator(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a while, and put their state back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    """Have cuDNN choose algorithms that give the same gradients each time."""
    cudnn = torch.backends.cudnn
    before, cudnn.deterministic = cudnn.deterministic, True
    try:
        yield
    finally:
        cudnn.deterministic = before
