"""What the neural estimators share: building, training, coding, scoring, sampling."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split
from skorch import NeuralNet
from torch import Tensor, nn

from ._arrays import (
    draw_seed,
    few_rows,
    private_random_state,
    resolve_device,
    row_slices,
    seeded_generator,
    to_numpy,
    to_tensor,
)
from ._compat import Interval, StrOptions, fit_context
from ._construction import TRAINING_SWEEPS, ModelBuilder
from ._fit_tasks import EpochTasks, FitTasks
from ._interruption import HeldInterrupts, unchanged_on_error
from .likelihoods import GaussianLikelihood, squared_error
from .model import LatentVariableModel
from .networks import LinearDecoder
from .solvers.least_squares import effective_dictionary
from .training import TrainingOptions, TrainingResult, epochs_so_far, train

# Networks are trained in float32, in units of the model: of a number beyond these its square, or
# that of its inverse, would soon be none.
SCALE = Interval(Real, 1e-6, 1e6, closed="both")
WEIGHT = Interval(Real, 0, 1e6, closed="both")
DENSITY = Interval(Real, 1e-6, 1 - 1e-6, closed="both")
# Parameters that the model does not hang on, though some are objects that change.
NOT_BUILT_WITH = ("callbacks", "random_state")
# Rows, at most, that the first weights are made from.
_START_ROWS = 10_000


class NeuralSparseCoder(ModelBuilder):
    """Base of the estimators that train an inference network."""

    _random_state: np.random.RandomState

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "objective": [StrOptions({"elbo", "max_elbo", "iwae"})],
        "kl_weight": [WEIGHT],
        "likelihood": [StrOptions({"gaussian", "bernoulli"})],
        "noise_variance": [StrOptions({"learned"}), Interval(Real, 0, np.inf, closed="neither")],
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
        "decoder_penalty": [WEIGHT],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, 1e30, closed="right")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callbacks": [list, tuple, None],
        "device": [str],
    }

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train the model on the rows of X.

        Of rows with missing entries the likelihood counts those that are observed. Encoders read
        the mean of the column in place of a missing entry; if the rows that a model is built from
        have any, an MLP or convolutional encoder also reads where they are.

        Ctrl-C ends the training: the estimator is then that of the last whole epoch, of which
        a warning tells, or has its first weights where no epoch was finished. What is read off
        the trained model rests on at most 4096 rows then.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows; NaN is a missing entry.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            When a parameter or X does not fit the model, when X holds infinite values or a row or
            column of which nothing is observed, or when training diverges.
        """
        self._check_parameters()
        tasks = FitTasks(self, X, y, self.max_iter)
        # Ctrl-C ends the fit before it has a model, and after that the training alone.
        with HeldInterrupts() as interrupts:
            with unchanged_on_error(self):
                goes_on = self.warm_start and hasattr(self, "module_")
                X, device = self._begin(X, reset=not goes_on)
                X_train, X_valid = X, None
                if self.early_stopping:
                    X_train, X_valid = self._split(X)
                n_before = len(self.history_)
                interrupted = self._train(
                    X_train, X_valid, device, self.max_iter, tasks=tasks, interrupts=interrupts
                )
                self._conclude(X, device, interrupts, short=interrupted)
            interrupts.attempt(tasks.end)
        if interrupted or interrupts.came:
            # At the very end: where warnings are errors, nothing is lost by it.
            warnings.warn(
                "Training was interrupted: the model is that of the last whole epoch, "
                f"{self.n_iter_ - n_before} of {self.max_iter}.",
                UserWarning,
                stacklevel=3,
            )
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train for one more pass over these rows.

        The first call fixes the number of features, the units of the model and whether its
        encoder reads where entries are missing, from its rows.
        The learning rate stays at ``learning_rate_init`` and warm-ups do not apply.
        ``component_usage_`` counts all rows seen, at their codes then; the ``components_`` of
        a decoder that is not linear rest on the rows of this call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows; NaN is a missing entry.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator after this pass.

        Raises
        ------
        ValueError
            When a parameter or X does not fit the model, or when training diverges.
        KeyboardInterrupt
            On Ctrl-C, so that a loop around the call ends too. The estimator is then, as
            after any error, what it was before the call.
        """
        self._check_parameters()
        with unchanged_on_error(self):
            X, device = self._begin(X, reset=not hasattr(self, "module_"))
            if self._train(X, None, device, 1):
                raise KeyboardInterrupt
            self._record_usage(self._usage_with(self._finish(X, device)), warn=False)
        return self

    def _check_parameters(self) -> None:
        # scikit-learn takes those of a fitted estimator for checked, in `partial_fit`.
        self._validate_params()
        super()._check_parameters()
        for callback in self.callbacks or ():
            named = isinstance(callback, tuple) and len(callback) == 2
            if not hasattr(callback[1] if named else callback, "on_train_begin"):
                raise TypeError(
                    "The 'callbacks' parameter must hold skorch callbacks, or pairs of a name and "
                    f"such a callback; got {callback!r}."
                )

    def _begin(self, X: ArrayLike, *, reset: bool) -> tuple[NDArray, torch.device]:
        """Check rows and device, and build the model unless there is one to go on with."""
        X = self._validate_rows(X, reset=reset)
        self._check_likelihood(X)
        self._check_range(X)
        device = resolve_device(self.device)
        if reset:
            self._initialize(X)
        else:
            # A copy: should this fail, the next call draws as if it had not been.
            self._random_state = copy.deepcopy(self._random_state)
        return X, device

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
        self._reads_mask, mean = _count_observed(X) < X.size, _column_means(X)
        self._offset, self._unit = self._find_units(X, mean)
        self._fill = (mean - self._offset) / self._unit
        self._n_components = int(self.n_components or X.shape[1])
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

    def _find_units(self, X: NDArray, mean: NDArray) -> tuple[NDArray, float]:
        if self.likelihood == "bernoulli":
            return np.zeros(X.shape[1], dtype=X.dtype), 1.0
        energy = sum(np.nansum((X[s] - mean) ** 2) for s in row_slices(len(X), 4096))
        unit, size = float(np.sqrt(energy / _count_observed(X))), float(np.abs(mean).max())
        if unit <= 10 * np.finfo(X.dtype).eps * size:
            # All rows are equal: what is left is rounding.
            unit = size or 1.0
        return mean.astype(X.dtype), unit

    def _train(
        self,
        X: NDArray,
        X_valid: NDArray | None,
        device: torch.device,
        max_iter: int,
        *,
        tasks: FitTasks | None = None,
        interrupts: HeldInterrupts | None = None,
    ) -> bool:
        """Train for some epochs; return whether Ctrl-C came. Without tasks it is one pass."""
        schedule = tasks is not None
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
            batch_size=int(min(batch_size, len(X))),
            learning_rate=self.learning_rate_init,
            schedule=schedule,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            verbose=int(self.verbose),
            callbacks=(*(self.callbacks or ()), self._epoch_tasks(tasks, X)),
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
                interrupts=interrupts,
            )
        self._take_over(module, result, X.dtype)
        return result.interrupted

    def _take_over(
        self, module: LatentVariableModel, result: TrainingResult, dtype: np.dtype
    ) -> None:
        """Make a trained model that of the estimator."""
        self.module_ = module
        self._optimizer_state = result.optimizer_state
        n_before = len(self.history_)
        self.history_ = self.history_ + [
            record | {"epoch": n_before + record["epoch"]} for record in result.history
        ]
        self.n_iter_ = len(self.history_)
        self._to_final_dtype(dtype)

    def _epoch_tasks(self, tasks: FitTasks | None, X: NDArray) -> EpochTasks:
        """Return what shows callbacks the estimator as if training had ended with an epoch."""

        def fitted(net: NeuralNet) -> NeuralSparseCoder:
            estimator = copy.copy(self)
            # Looking on must not change what the fit draws.
            estimator._random_state = copy.deepcopy(self._random_state)
            module = copy.deepcopy(net.module_.model).cpu()
            # A copy: the optimiser goes on writing into its own.
            result = copy.deepcopy(epochs_so_far(net, len(net.history)))
            estimator._take_over(module, result, X.dtype)
            estimator._read_off(few_rows(X), net.device, warn=False)
            return estimator

        return EpochTasks(tasks, fitted, len(self.history_))

    def _conclude(
        self, X: NDArray, device: torch.device, interrupts: HeldInterrupts, *, short: bool
    ) -> None:
        """Settle the model, and set what is read off it; Ctrl-C shortens that."""
        if not short:
            trained = copy.deepcopy(self.module_)
            interrupts.attempt(lambda: self._read_off(X, device))
            if not interrupts.came:
                return
            self.module_ = trained
        self._read_off(few_rows(X), device, warn=False)

    def _read_off(self, X: NDArray, device: torch.device, *, warn: bool = True) -> None:
        """Set what rests on these rows: noise variance, components, use of the atoms."""
        self._settle_noise_variance(X, device)
        self._n_uses, self._n_rows_seen = np.zeros(self._n_components), 0
        self._record_usage(self._usage_with(self._finish(X, device)), warn=warn)

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

    def _best_noise_variance(self, X: NDArray, device: torch.device) -> float:
        """Noise variance that maximises the ELBO of the training rows, all else held."""
        n_draws = self._n_settling_draws

        def expected_error(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            posterior = self._posterior_of(model, rows)
            if model.has_closed_likelihood:
                return model.expected_squared_error(rows, posterior)
            draws = self._draws(posterior, raw, n_draws)
            return squared_error(rows, model.decoder(draws.code)).mean(0)

        errors = self._evaluate(X, device, expected_error, n_draws)
        return float(np.mean(errors) / (_count_observed(X) / len(X)))


def _count_observed(X: NDArray) -> int:
    """Count entries that are not missing."""
    return sum(int(np.count_nonzero(~np.isnan(X[s]))) for s in row_slices(len(X), 4096))


def _column_means(X: NDArray) -> NDArray:
    """Mean of what is observed of each column, float64."""
    where = True if _count_observed(X) == X.size else ~np.isnan(X)
    return X.mean(axis=0, dtype=np.float64, where=where)


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
