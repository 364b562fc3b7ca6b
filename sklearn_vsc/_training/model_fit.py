"""One fit of a latent-variable model, from rows to what the estimator keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from skorch import NeuralNet
from torch import Tensor

from .._inference.fitted_model import FittedModel, InferenceOptions
from .._inference.settling import RowSummary, settle, summarise
from .._models.description import ModelDescription, Start
from .._models.latent_variable import LatentVariableModel
from .._models.units import Units
from .._rows.arrays import (
    FEW_ROWS,
    draw_seed,
    private_random_state,
    seeded_generator,
    to_numpy,
)
from .._rows.missing import ObservedRows
from .._rows.sources import ArrayRows, RowSource, start_sample
from ..networks import LinearDecoder
from .batches import training_rows
from .epoch_callbacks import EpochTasks
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts
from .loss import TrainingObjective
from .network_fit import epochs_so_far, train
from .options import TrainingOptions, TrainingResult
from .process_group import ProcessGroup

# Sweeps of coordinate ascent in a training step, at most: measured, more cost more time than they
# bring.
_TRAINING_SWEEPS = 5


@dataclass(frozen=True)
class RunParameters:
    """Parameters of an estimator that say how to train, by the names that users know."""

    max_iter: int
    batch_size: int | str
    learning_rate_init: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    random_state: int | np.random.RandomState | None
    verbose: bool | int
    callbacks: Sequence[Any] | None
    precision: str


@dataclass
class FitState:
    """What a fit leaves behind: the estimator shows it, and the next call goes on from it.

    Attributes
    ----------
    module : LatentVariableModel
        The model, on the CPU.
    units : Units
        Units of its rows.
    evaluation_seed : int
        Seed of the draws that answers are based on.
    random_state : RandomState
        Decides whatever is drawn next.
    optimizer_state : dict or None
        Adam's moments of each parameter.
    history : list of dict
        A record of each epoch.
    n_uses : ndarray of shape (n_components,)
        Rows seen that use each atom.
    n_rows_seen : int
        Rows seen.
    noise_variance : float
        In squared units of X; NaN where there is none.
    components : ndarray of shape (n_components, n_features)
        The dictionary; empty before training.
    intercept : ndarray of shape (n_features,) or None
        What a linear decoder adds.
    """

    module: LatentVariableModel
    units: Units
    evaluation_seed: int
    random_state: np.random.RandomState
    optimizer_state: dict[str, dict[str, Tensor]] | None
    history: list[dict[str, Any]]
    n_uses: NDArray
    n_rows_seen: int
    noise_variance: float = np.nan
    components: NDArray = field(default_factory=lambda: np.empty((0, 0)))
    intercept: NDArray | None = None

    @property
    def usage(self) -> NDArray:
        """Share of the rows seen that use each atom."""
        return self.n_uses / self.n_rows_seen


class ModelFit:
    """A fit, or one more pass, of a model that a description describes.

    Parameters
    ----------
    description : ModelDescription
        The model and its objective.
    run : RunParameters
        How to train.
    device : torch.device
        Device of the training.
    group : ProcessGroup or None
        Processes that share the training.
    inference : InferenceOptions
        How the fitted model is asked.
    show : callable
        Takes a `FitState`; returns the estimator as if training had ended there, for callbacks.
    """

    def __init__(
        self,
        description: ModelDescription,
        run: RunParameters,
        device: torch.device,
        group: ProcessGroup | None,
        inference: InferenceOptions,
        show: Callable[[FitState], Any],
    ) -> None:
        self.description = description
        self.run = run
        self.device = device
        self.group = group
        self.inference = inference
        self.show = show

    # --- the steps of a fit

    def new_state(self, rows: RowSource, observed: ObservedRows) -> FitState:
        """Fix units and seeds, and build the model."""
        random_state = private_random_state(self.run.random_state)
        if self.group is not None:
            random_state = self.group.from_first(random_state)
        evaluation_seed = draw_seed(random_state)
        has_units = self.description.likelihood.has_units
        units = Units.of_rows(rows, observed, has_units=has_units)
        generator = seeded_generator(draw_seed(random_state))
        # A sample is enough to start from; networks are trained in float32.
        sample = units.to_model(start_sample(rows), torch.device("cpu")).float()
        module = self.description.build(Start(sample, units), generator)
        n_components = module.n_components
        return FitState(
            module, units, evaluation_seed, random_state, None, [], np.zeros(n_components), 0
        )

    def fit(
        self, state: FitState, rows: RowSource, tasks: FitTasks, interrupts: HeldInterrupts
    ) -> bool:
        """Train for ``max_iter`` epochs and settle the model; return whether Ctrl-C came.

        Parameters
        ----------
        state : FitState
            Changed in place.
        rows : RowSource
            Training rows in the units of X.
        tasks : FitTasks
            Receives the epochs.
        interrupts : HeldInterrupts
            Defers Ctrl-C between epochs.
        """
        trained_on, aside = rows, None
        if self.run.early_stopping:
            trained_on, aside = self._split(state, rows)
        interrupted = self._train(state, trained_on, aside, tasks, interrupts)
        if not interrupted:
            trained = copy.deepcopy(state.module)
            interrupts.attempt(lambda: self._read_off(state, rows))
            if not interrupts.came:
                return False
            state.module = trained
        self._read_off(state, _few(rows))
        return interrupted

    def one_pass(self, state: FitState, rows: RowSource) -> None:
        """Train for one pass over some rows, without schedules.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C.
        """
        if self._train(state, rows, None, None, None):
            raise KeyboardInterrupt
        self._take_summary(state, summarise(self._fitted(state), rows), rows)

    # --- training

    def _split(self, state: FitState, rows: RowSource) -> tuple[RowSource, RowSource]:
        if len(rows) < 2:
            raise ValueError(
                "early_stopping=True sets rows aside and needs at least 2; got n_samples=1."
            )
        numbers = train_test_split(
            np.arange(len(rows)),
            test_size=self.run.validation_fraction,
            random_state=draw_seed(state.random_state),
        )
        return rows.subset(numbers[0]), rows.subset(numbers[1])

    def _train(
        self,
        state: FitState,
        rows: RowSource,
        aside: RowSource | None,
        tasks: FitTasks | None,
        interrupts: HeldInterrupts | None,
    ) -> bool:
        """Train for some epochs; return whether Ctrl-C came. Without tasks it is one pass."""
        group = self.group
        options = replace(
            self.training_options(state, len(rows), schedule=tasks is not None),
            max_iter=self.run.max_iter if tasks is not None else 1,
            # One progress bar for all processes.
            verbose=int(self.run.verbose) if group is None or group.index == 0 else 0,
            callbacks=(*(self.run.callbacks or ()), self._epoch_tasks(state, tasks, rows)),
        )
        noise_seed, order_seed = draw_seed(state.random_state), draw_seed(state.random_state)
        if group is not None:
            noise_seed = group.seed(noise_seed)
        # A copy: should training fail, the fitted model is still there.
        module = copy.deepcopy(state.module).float()
        with self._own_modules_seeded(state), deterministic_convolutions():
            result = train(
                module,
                self._rows_in_units(state, rows),
                None if aside is None else self._rows_in_units(state, aside),
                options,
                noise_generator=seeded_generator(noise_seed, self.device),
                order_generator=seeded_generator(order_seed),
                optimizer_state=state.optimizer_state,
                interrupts=interrupts,
                group=group,
            )
        if group is not None and result.interrupted:
            # Each process was interrupted at another step.
            raise KeyboardInterrupt
        _take_training(state, module, result, rows.dtype)
        return result.interrupted

    def training_options(self, state: FitState, n_rows: int, *, schedule: bool) -> TrainingOptions:
        """Return how to train on ``n_rows`` rows; without a schedule, as at the end of a fit."""
        description, run = self.description, self.run
        batch_size = min(128, n_rows) if run.batch_size == "auto" else int(run.batch_size)
        first, last = description.temperatures
        n_refine = min(self._fitted(state).n_sweeps, _TRAINING_SWEEPS)
        return TrainingOptions(
            objective=replace(description.objective, n_refine=n_refine),
            temperature=(first if schedule else last, last),
            decoder_penalty=description.decoder_penalty,
            kl_warmup=description.kl_warmup if schedule else 0.0,
            noise_warmup=description.noise_warmup if schedule else 0.0,
            batch_size=int(min(batch_size, n_rows)),
            learning_rate=run.learning_rate_init,
            schedule=schedule,
            n_iter_no_change=run.n_iter_no_change,
            tol=run.tol,
            precision=run.precision,
        )

    def _rows_in_units(self, state: FitState, rows: RowSource) -> Any:
        units, device = state.units, self.device
        return training_rows(rows, device, lambda X: units.to_model(X, device).float())

    def _epoch_tasks(self, state: FitState, tasks: FitTasks | None, rows: RowSource) -> EpochTasks:
        """Return the callback that shows the estimator as if training had ended with an epoch."""

        def fitted(net: NeuralNet) -> Any:
            # A copy: what callbacks look at must not change what the fit draws.
            seen = replace(state, random_state=copy.deepcopy(state.random_state))
            module = copy.deepcopy(net.module_.model).cpu()
            # A copy: the optimiser goes on writing into its own.
            result = copy.deepcopy(epochs_so_far(net, len(net.history)))
            _take_training(seen, module, result, rows.dtype)
            self._read_off(seen, _few(rows), device=net.device)
            return self.show(seen)

        return EpochTasks(tasks, fitted, len(state.history))

    def _own_modules_seeded(self, state: FitState) -> AbstractContextManager[None]:
        """Seed what a user's own module draws (dropout), and restore the global state."""
        if not self.description.networks.has_own_modules:
            return nullcontext()
        seed = draw_seed(state.random_state)
        return forked_global_generator(seed if self.group is None else self.group.seed(seed))

    # --- after training

    def _fitted(self, state: FitState, device: Any = None) -> FittedModel:
        device = self.device if device is None else torch.device(device)
        return FittedModel(state.module, state.units, state.evaluation_seed, device, self.inference)

    def _read_off(self, state: FitState, rows: RowSource, device: Any = None) -> None:
        """Settle the model by these rows, and keep what follows from them."""
        fitted = self._fitted(state, device)
        model = state.module
        if model.scales:
            generator = seeded_generator(draw_seed(state.random_state), fitted.device)
            model.to(fitted.device)
            sample = state.units.to_model(start_sample(rows), fitted.device)
            model.settle_scales(sample.to(next(model.parameters()).dtype), generator)
            model.cpu()
        summary = settle(fitted, rows, self.description.settling_draws)
        state.n_uses, state.n_rows_seen = np.zeros(model.n_components), 0
        self._take_summary(state, summary, rows)

    def _take_summary(self, state: FitState, summary: RowSummary, rows: RowSource) -> None:
        """Keep what a pass over rows has found."""
        units, decoder = state.units, state.module.decoder
        state.noise_variance = state.module.likelihood.noise_variance_in(units.scale)
        state.intercept = None
        if summary.dictionary is not None:
            state.components = summary.dictionary
        if isinstance(decoder, LinearDecoder):
            state.components = to_numpy(decoder.weight * units.scale, rows.dtype)
            state.intercept = to_numpy(decoder.bias * units.scale, rows.dtype) + units.offset
        state.n_uses = state.n_uses + summary.n_uses
        state.n_rows_seen += len(rows)

    # --- gradients, for those who measure them

    def gradients(
        self,
        state: FitState,
        X: NDArray,
        *,
        batch_size: int,
        n_passes: int,
        n_draws: int | None,
        random_state: np.random.RandomState,
    ) -> Iterator[Iterator[dict[str, Tensor]]]:
        """Yield, for each whole batch of X, the gradient in each parameter, pass by pass.

        It is the gradient of the training loss at the end of a fit, in a copy of the model; each
        pass starts from the fitted model. Fewer rows than a batch are one batch.
        """
        size = min(batch_size, len(X))
        options = self.training_options(state, size, schedule=False)
        if n_draws is not None:
            options = replace(options, objective=replace(options.objective, n_draws=n_draws))
        module = copy.deepcopy(state.module).float().to(self.device)
        generator = seeded_generator(draw_seed(random_state), self.device)
        objective = TrainingObjective(module, options, generator)
        kept = copy.deepcopy(objective.state_dict())
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

        def gradients(rows: Tensor) -> dict[str, Tensor]:
            # Some networks change their buffers in training.
            objective.load_state_dict(kept)
            with (
                torch.enable_grad(),
                forked_global_generator(draw_seed(random_state)),
                deterministic_convolutions(),
            ):
                loss = objective(rows).mean()
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            return {
                name: torch.zeros_like(parameter) if gradient is None else gradient
                for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
            }

        for first in range(0, len(X) - size + 1, size):
            rows = state.units.to_model(X[first : first + size], self.device).float()
            yield (gradients(rows) for _ in range(n_passes))


def _take_training(
    state: FitState, module: LatentVariableModel, result: TrainingResult, dtype: np.dtype
) -> None:
    """Make a trained model the one of the state, in the precision of X."""
    n_before = len(state.history)
    state.history = state.history + [
        record | {"epoch": n_before + record["epoch"]} for record in result.history
    ]
    state.optimizer_state = result.optimizer_state
    state.module = module
    module.to(torch.float32 if dtype == np.float32 else torch.float64).eval()
    module.likelihood.restore_fixed()


def _few(rows: RowSource) -> RowSource:
    """Return every n-th row, where a pass over all of them would take too long."""
    return ArrayRows(rows.sample(FEW_ROWS))


@contextmanager
def forked_global_generator(seed: int) -> Iterator[None]:
    """Seed torch's global generators in this context, and restore their state after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Have cuDNN choose algorithms that give the same gradients each time."""
    cudnn = torch.backends.cudnn
    before, cudnn.deterministic = cudnn.deterministic, True
    try:
        yield
    finally:
        cudnn.deterministic = before
