"""What the neural estimators share: building, training, coding, scoring, sampling."""

from __future__ import annotations

import copy
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
from torch.utils.data import Dataset, IterableDataset

from ._construction import TRAINING_SWEEPS
from ._models.latent_variable import LatentVariableModel
from ._read_off import TrainedModelReader, start_sample
from ._rows.array_api import learns_from_input
from ._rows.arrays import (
    FEW_ROWS,
    draw_seed,
    private_random_state,
    seeded_generator,
)
from ._rows.compat import Interval, StrOptions, fit_context
from ._rows.missing import ObservedRows
from ._rows.sources import ArrayRows, NormalizedRows, RowSource, dataset_rows
from ._training.fit_tasks import EpochTasks, FitTasks
from ._training.interruption import HeldInterrupts, unchanged_on_error
from ._training.network_fit import (
    StreamedRows,
    TrainingObjective,
    TrainingOptions,
    TrainingResult,
    epochs_so_far,
    train,
)
from ._training.precision import check_precision
from ._training.process_group import ProcessGroup

# Networks are trained in float32, in units of the model: of a number beyond these its square, or
# that of its inverse, would soon be none.
SCALE = Interval(Real, 1e-6, 1e6, closed="both")
WEIGHT = Interval(Real, 0, 1e6, closed="both")
DENSITY = Interval(Real, 1e-6, 1 - 1e-6, closed="both")
# Parameters that the model does not hang on, though some are objects that change.
NOT_BUILT_WITH = ("callbacks", "random_state")


class NeuralSparseCoder(TrainedModelReader):
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
        "sparse_output": ["boolean"],
        "device": [str],
        "precision": [StrOptions({"float32", "bf16"})],
    }

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def fit(self, X: ArrayLike | Dataset, y: Any = None) -> Self:
        """Train the model on the rows of X.

        Of rows with missing entries the likelihood counts those that are observed. Encoders read
        the mean of the column in place of a missing entry; if the rows that a model is built from
        have any, an MLP or convolutional encoder also reads where they are.

        Ctrl-C ends the training: the estimator is then that of the last whole epoch, of which
        a warning tells, or has its first weights where no epoch was finished. What is read off
        the trained model rests on at most 4096 rows then.

        Rows of a memory-mapped array or of a dataset are read batch by batch and not kept.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or torch.utils.data.Dataset
            Training rows; NaN is a missing entry. Items of a dataset are rows, or tuples that
            begin with one; images, where there is an ``image_shape``, are laid flat. An
            ``IterableDataset`` may give batches of rows too. It must end, give the same rows
            each time it is iterated, and keeps its order.
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
        TypeError
            When items of a dataset are no rows of numbers, or it has no length and no end.
        """
        self._check_parameters()
        if self.early_stopping and isinstance(X, IterableDataset):
            raise ValueError(
                "early_stopping=True sets rows aside by their numbers, which those of an "
                "IterableDataset do not have: give a map-style Dataset, with __getitem__ and "
                "__len__, or use early_stopping=False."
            )
        tasks = FitTasks(self, X, y, self.max_iter)
        # Ctrl-C ends the fit before it has a model, and after that the training alone.
        with HeldInterrupts() as interrupts:
            with unchanged_on_error(self):
                goes_on = self.warm_start and hasattr(self, "module_")
                rows, device = self._begin(X, reset=not goes_on)
                trained_on, aside = rows, None
                if self.early_stopping:
                    trained_on, aside = self._split(rows)
                n_before = len(self.history_)
                interrupted = self._train(
                    trained_on, aside, device, self.max_iter, tasks=tasks, interrupts=interrupts
                )
                self._conclude(rows, device, interrupts, short=interrupted)
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
    @learns_from_input
    def partial_fit(self, X: ArrayLike | Dataset, y: Any = None) -> Self:
        """Train for one more pass over these rows.

        The first call fixes the number of features, the units of the model and whether its
        encoder reads where entries are missing, from its rows.
        The learning rate stays at ``learning_rate_init`` and warm-ups do not apply.
        ``component_usage_`` counts all rows seen, at their codes then; the ``components_`` of
        a decoder that is not linear rest on the rows of this call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or torch.utils.data.Dataset
            Training rows, as ``fit`` takes them; NaN is a missing entry.
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
            rows, device = self._begin(X, reset=not hasattr(self, "module_"))
            if self._train(rows, None, device, 1):
                raise KeyboardInterrupt
            self._record_usage(self._usage_with(self._finish(rows, device), rows), warn=False)
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

    def _begin(self, X: ArrayLike | Dataset, *, reset: bool) -> tuple[RowSource, torch.device]:
        """Check rows and device, and build the model unless there is one to go on with."""
        rows, observed = self._rows_of(X, reset=reset)
        self._check_range(observed.least, observed.most)
        device = self._device()
        check_precision(self.precision, device)
        group = ProcessGroup.of_device(self.device)
        if group is not None:
            n_iter = 0 if reset else self.n_iter_
            group.check_same(rows.chunks(), self._shared_parameters() | {"n_iter_": n_iter})
        if reset:
            self._initialize(rows, observed, group)
        else:
            # A copy: should this fail, the next call draws as if it had not been.
            self._random_state = copy.deepcopy(self._random_state)
        return rows, device

    def _shared_parameters(self) -> dict[str, Any]:
        """Return what processes that train one model must have alike; modules are not compared."""
        return {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in (*NOT_BUILT_WITH, "verbose") and not isinstance(value, nn.Module)
        }

    def _rows_of(self, X: ArrayLike | Dataset, *, reset: bool) -> tuple[RowSource, ObservedRows]:
        """Check rows, in one pass, and sum up what is observed."""
        rows: RowSource
        if isinstance(X, Dataset):
            rows = dataset_rows(X, getattr(self, "image_shape", None))
        else:
            rows = ArrayRows(self._validate_table(X, reset=reset))
        observed = ObservedRows(rows.n_features)
        for chunk in rows.chunks():
            if isinstance(X, Dataset):
                self._validate_table(chunk, reset=reset and not observed.n_rows)
            observed.add(chunk)
        observed.check(columns=reset)
        # Of all entries these two are the largest in size.
        self._check_size(np.array([observed.least, observed.most], rows.dtype), reset=reset)
        return rows, observed

    def _split(self, rows: RowSource) -> tuple[RowSource, RowSource]:
        if len(rows) < 2:
            raise ValueError(
                "early_stopping=True sets rows aside and needs at least 2; got n_samples=1."
            )
        numbers = train_test_split(
            np.arange(len(rows)),
            test_size=self.validation_fraction,
            random_state=draw_seed(self._random_state),
        )
        return rows.subset(numbers[0]), rows.subset(numbers[1])

    def _initialize(
        self, rows: RowSource, observed: ObservedRows, group: ProcessGroup | None
    ) -> None:
        """Fix units and seeds, and build the model."""
        self._random_state = private_random_state(self.random_state)
        if group is not None:
            self._random_state = group.from_first(self._random_state)
        self._evaluation_seed = draw_seed(self._random_state)
        self._reads_mask, mean = observed.has_holes, observed.means
        self._offset, self._unit = self._find_units(rows, observed)
        self._fill = (mean - self._offset) / self._unit
        self._n_components = int(self.n_components or rows.n_features)
        generator = seeded_generator(draw_seed(self._random_state))
        self._optimizer_state: dict[str, dict[str, Tensor]] | None = None
        self.history_: list[dict[str, Any]] = []
        self._n_uses, self._n_rows_seen = np.zeros(self._n_components), 0
        # A sample is enough to start from; float32 is what networks are trained in.
        sample = self._normalize(start_sample(rows), torch.device("cpu")).float()
        self.module_ = self._build(sample, generator)
        # Parameters may be set anew later; the model is that of these.
        self._built_with = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in NOT_BUILT_WITH
        }

    def _find_units(self, rows: RowSource, observed: ObservedRows) -> tuple[NDArray, float]:
        if self.likelihood == "bernoulli":
            return np.zeros(rows.n_features, dtype=rows.dtype), 1.0
        mean = observed.means
        energy = sum(np.nansum((chunk - mean) ** 2) for chunk in rows.chunks())
        unit, size = float(np.sqrt(energy / observed.n_observed)), float(np.abs(mean).max())
        if unit <= 10 * np.finfo(rows.dtype).eps * size:
            # All rows are equal: what is left is rounding.
            unit = size or 1.0
        return mean.astype(rows.dtype), unit

    def _train(
        self,
        rows: RowSource,
        aside: RowSource | None,
        device: torch.device,
        max_iter: int,
        *,
        tasks: FitTasks | None = None,
        interrupts: HeldInterrupts | None = None,
    ) -> bool:
        """Train for some epochs; return whether Ctrl-C came. Without tasks it is one pass."""
        group = ProcessGroup.of_device(self.device)
        options = replace(
            self._training_options(len(rows), schedule=tasks is not None),
            max_iter=max_iter,
            # One bar for all processes.
            verbose=int(self.verbose) if group is None or group.index == 0 else 0,
            callbacks=(*(self.callbacks or ()), self._epoch_tasks(tasks, rows)),
        )
        noise_seed, order_seed = draw_seed(self._random_state), draw_seed(self._random_state)
        if group is not None:
            noise_seed = group.seed(noise_seed)
        # A copy: should training fail, the fitted model is still there.
        module = copy.deepcopy(self.module_).float()
        with self._own_modules_seeded(group), _deterministic_convolutions():
            result = train(
                module,
                self._training_rows(rows, device),
                None if aside is None else self._training_rows(aside, device),
                options,
                noise_generator=seeded_generator(noise_seed, device),
                order_generator=seeded_generator(order_seed),
                optimizer_state=self._optimizer_state,
                interrupts=interrupts,
                group=group,
            )
        if group is not None and result.interrupted:
            # It came to each process at another step.
            raise KeyboardInterrupt
        self._take_over(module, result, rows.dtype)
        return result.interrupted

    def _training_options(self, n_rows: int, *, schedule: bool) -> TrainingOptions:
        """What parameters say of training on so many rows; without a schedule, of its end."""
        batch_size = min(128, n_rows) if self.batch_size == "auto" else self.batch_size
        first, last = self._temperatures()
        n_refine = min(self._n_sweeps(self.module_), TRAINING_SWEEPS)
        return TrainingOptions(
            objective=replace(self._make_objective(), n_refine=n_refine),
            temperature=(first if schedule else last, last),
            decoder_penalty=self.decoder_penalty,
            kl_warmup=self.kl_warmup if schedule else 0.0,
            noise_warmup=getattr(self, "noise_warmup", 0.0) if schedule else 0.0,
            batch_size=int(min(batch_size, n_rows)),
            learning_rate=self.learning_rate_init,
            schedule=schedule,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            precision=self.precision,
        )

    def _training_gradients(
        self,
        X: ArrayLike,
        *,
        batch_size: int,
        n_passes: int,
        n_draws: int | None,
        random_state: np.random.RandomState,
    ) -> Iterator[Iterator[dict[str, Tensor]]]:
        """Yield for each whole batch of X, pass by pass, the gradient in each parameter.

        It is that of the training loss, at its end, in a copy of the model that each pass finds as
        the fit left it. Fewer rows than a batch are one.
        """
        X, device = self._evaluated(X)
        size = min(batch_size, len(X))
        options = self._training_options(size, schedule=False)
        if n_draws is not None:
            options = replace(options, objective=replace(options.objective, n_draws=n_draws))
        module = copy.deepcopy(self.module_).float().to(device)
        generator = seeded_generator(draw_seed(random_state), device)
        objective = TrainingObjective(module, options, generator)
        state = copy.deepcopy(objective.state_dict())
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

        def gradients(rows: Tensor) -> dict[str, Tensor]:
            # Some networks keep what they see in training.
            objective.load_state_dict(state)
            with (
                torch.enable_grad(),
                _forked_global_generator(draw_seed(random_state)),
                _deterministic_convolutions(),
            ):
                loss = objective(rows).mean()
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            return {
                name: torch.zeros_like(parameter) if gradient is None else gradient
                for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
            }

        for first in range(0, len(X) - size + 1, size):
            rows = self._normalize(X[first : first + size], device).float()
            yield (gradients(rows) for _ in range(n_passes))

    def _training_rows(self, rows: RowSource, device: torch.device) -> Tensor | StreamedRows:
        """Rows as training takes them: those in memory all at once."""

        def normalize(X: NDArray) -> Tensor:
            return self._normalize(X, device).float()

        if isinstance(rows, ArrayRows) and rows.in_memory:
            return normalize(rows.X)
        return NormalizedRows(rows, device, normalize)

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

    def _epoch_tasks(self, tasks: FitTasks | None, rows: RowSource) -> EpochTasks:
        """Return what shows callbacks the estimator as if training had ended with an epoch."""

        def fitted(net: NeuralNet) -> NeuralSparseCoder:
            estimator = copy.copy(self)
            # Looking on must not change what the fit draws.
            estimator._random_state = copy.deepcopy(self._random_state)
            module = copy.deepcopy(net.module_.model).cpu()
            # A copy: the optimiser goes on writing into its own.
            result = copy.deepcopy(epochs_so_far(net, len(net.history)))
            estimator._take_over(module, result, rows.dtype)
            estimator._read_off(_few(rows), net.device, warn=False)
            return estimator

        return EpochTasks(tasks, fitted, len(self.history_))

    def _conclude(
        self, rows: RowSource, device: torch.device, interrupts: HeldInterrupts, *, short: bool
    ) -> None:
        """Settle the model, and set what is read off it; Ctrl-C shortens that."""
        if not short:
            trained = copy.deepcopy(self.module_)
            interrupts.attempt(lambda: self._read_off(rows, device))
            if not interrupts.came:
                return
            self.module_ = trained
        self._read_off(_few(rows), device, warn=False)

    def _own_modules_seeded(self, group: ProcessGroup | None) -> Any:
        """Seed what a user's own module draws (dropout), and put the global state back."""
        if not any(isinstance(part, nn.Module) for part in (self.encoder, self.decoder)):
            return nullcontext()
        seed = draw_seed(self._random_state)
        return _forked_global_generator(seed if group is None else group.seed(seed))


def _few(rows: RowSource) -> RowSource:
    """Return every so many rows, where there are more than can be looked at in a moment."""
    return ArrayRows(rows.sample(FEW_ROWS))


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
