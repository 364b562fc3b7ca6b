"""Training by gradient steps on the networks of a model: one way to fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._inference.fitted_model import FittedModel, InferenceOptions
from .._inference.settling import RowSummary, settle, summarise
from .._models.description import ModelDescription
from .._rows.arrays import draw_seed, seeded_generator
from .._rows.sources import RowSource
from .batches import training_rows
from .fit_state import FitState, RunParameters
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts
from .loss import TrainingObjective
from .network_fit import epoch_tasks, train
from .options import TrainingOptions
from .process_group import ProcessGroup

# Sweeps of coordinate ascent in a training step, at most: measured, more cost more time than they
# bring.
_TRAINING_SWEEPS = 5

Look = Callable[[FitState, RowSource, torch.device], Any]


@dataclass(frozen=True)
class NetworkTraining:
    """Training of the networks of a model.

    Attributes
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
    """

    moves_units: ClassVar[bool] = True

    description: ModelDescription
    run: RunParameters
    device: torch.device
    group: ProcessGroup | None
    inference: InferenceOptions

    def train(
        self,
        state: FitState,
        rows: RowSource,
        aside: RowSource | None,
        tasks: FitTasks | None,
        interrupts: HeldInterrupts | None,
        look: Look,
    ) -> bool:
        """Train for ``max_iter`` epochs, or without tasks for one pass.

        Parameters
        ----------
        state : FitState
            Changed in place.
        rows : RowSource
            Training rows in the units of X.
        aside : RowSource or None
            Rows that early stopping watches.
        tasks : FitTasks or None
            Receives the epochs.
        interrupts : HeldInterrupts or None
            Defers Ctrl-C between epochs.
        look : callable
            Takes a state that is not settled, rows and a device; returns the estimator as if the
            fit had ended there.

        Returns
        -------
        interrupted : bool
            Whether Ctrl-C came.
        """
        group = self.group
        options = replace(
            self.options(state, len(rows), schedule=tasks is not None),
            max_iter=self.run.max_iter if tasks is not None else 1,
            # One progress bar for all processes.
            verbose=int(self.run.verbose) if group is None or group.index == 0 else 0,
            callbacks=(*(self.run.callbacks or ()), epoch_tasks(state, tasks, rows, look)),
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
        state.take(module, result, rows.dtype)
        return result.interrupted

    def settle(self, fitted: FittedModel, rows: RowSource, n_draws: int) -> RowSummary:
        """Set a learned noise variance to its best value for these rows, and sum the rows up."""
        return settle(fitted, rows, n_draws)

    def sum_up(self, fitted: FittedModel, rows: RowSource) -> RowSummary:
        """Sum rows up after one more pass over them."""
        return summarise(fitted, rows)

    def options(self, state: FitState, n_rows: int, *, schedule: bool) -> TrainingOptions:
        """Return how to train on ``n_rows`` rows; without a schedule, as at the end of a fit."""
        description, run = self.description, self.run
        batch_size = min(128, n_rows) if run.batch_size == "auto" else int(run.batch_size)
        first, last = description.temperatures
        n_refine = min(state.fitted(self.device, self.inference).n_sweeps, _TRAINING_SWEEPS)
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

    def _own_modules_seeded(self, state: FitState) -> AbstractContextManager[None]:
        """Seed what a user's own module draws (dropout), and restore the global state."""
        if not self.description.networks.has_own_modules:
            return nullcontext()
        seed = draw_seed(state.random_state)
        return forked_global_generator(seed if self.group is None else self.group.seed(seed))

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
        options = self.options(state, size, schedule=False)
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
