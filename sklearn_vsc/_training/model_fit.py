"""One fit of a latent-variable model, from rows to what the estimator keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from .._inference.fitted_model import FittedModel, InferenceOptions
from .._inference.settling import RowSummary
from .._models.description import ModelDescription, Start
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
from .fit_state import FitState, RunParameters
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts
from .process_group import ProcessGroup

# In a stream, new rows move the units of networks as if there were so many of each. So the weight
# of the first rows falls with this power of the number of steps.
_EAGERNESS = 5
# Once a step moves them by no more than this share, what a linear decoder adds stays in units of X.
_SETTLED = 0.1


class WayToTrain(Protocol):
    """A way to train a model, such as gradient steps on its networks."""

    # Whether the units of the model follow a stream of rows; if not, its parameters do.
    moves_units: ClassVar[bool]

    def train(
        self,
        state: FitState,
        rows: RowSource,
        aside: RowSource | None,
        tasks: FitTasks | None,
        interrupts: HeldInterrupts | None,
        look: Callable[[FitState, RowSource, torch.device], Any],
    ) -> bool:
        """Train the model of a state in place; return whether Ctrl-C came.

        Without tasks it is one pass over the rows. ``look`` takes a state, rows and a device, and
        returns the estimator as if the fit had ended there, for callbacks.
        """

    def settle(self, fitted: FittedModel, rows: RowSource, n_draws: int) -> RowSummary:
        """Set what follows from training rows once the model is trained, and sum the rows up."""

    def sum_up(self, fitted: FittedModel, rows: RowSource) -> RowSummary:
        """Sum rows up after one more pass over them."""


class ModelFit:
    """A fit, or one more pass, of a model that a description describes.

    Parameters
    ----------
    description : ModelDescription
        The model and its objective.
    run : RunParameters
        How to train.
    way : WayToTrain
        What trains the model.
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
        way: WayToTrain,
        device: torch.device,
        group: ProcessGroup | None,
        inference: InferenceOptions,
        show: Callable[[FitState], Any],
    ) -> None:
        self.description = description
        self.run = run
        self.way = way
        self.device = device
        self.group = group
        self.inference = inference
        self.show = show

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
        interrupted = self.way.train(state, trained_on, aside, tasks, interrupts, self._look)
        if not interrupted:
            trained = copy.deepcopy(state.module)
            interrupts.attempt(lambda: self._read_off(state, rows))
            if not interrupts.came:
                return False
            state.module = trained
        self._read_off(state, _few(rows))
        return interrupted

    def one_pass(self, state: FitState, rows: RowSource, observed: ObservedRows) -> None:
        """Train for one pass over some rows, without schedules.

        Units of networks follow the rows, the first ones forgotten soonest: whether the first rows
        were quiet, loud or few does not matter in the end.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C.
        """
        if self.way.moves_units and state.n_rows_seen < min(state.module.n_components, len(rows)):
            # So few rows say nothing of most components.
            anew = self.new_state(rows, observed)
            state.module, state.units, state.optimizer_state = anew.module, anew.units, None
        has_units = self.description.likelihood.has_units
        if has_units and self.way.moves_units and state.n_rows_seen:
            new = _EAGERNESS * len(rows)
            share = new / (state.n_rows_seen + new)
            units = state.units.following(rows, observed, share)
            state.move_units(units, keeps_intercept=share < _SETTLED)
        if self.way.train(state, rows, None, None, None, self._look):
            raise KeyboardInterrupt
        summary = self.way.sum_up(state.fitted(self.device, self.inference), rows)
        self._take_summary(state, summary, rows)

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

    def _look(self, state: FitState, rows: RowSource, device: torch.device) -> Any:
        """Settle a state by a few rows, and return the estimator that it makes."""
        self._read_off(state, _few(rows), device)
        return self.show(state)

    def _read_off(
        self, state: FitState, rows: RowSource, device: torch.device | None = None
    ) -> None:
        """Settle the model by these rows, and keep what follows from them."""
        fitted = state.fitted(device or self.device, self.inference)
        model = state.module
        if model.scales:
            generator = seeded_generator(draw_seed(state.random_state), fitted.device)
            model.to(fitted.device)
            sample = state.units.to_model(start_sample(rows), fitted.device)
            model.settle_scales(sample.to(next(model.parameters()).dtype), generator)
            model.cpu()
        summary = self.way.settle(fitted, rows, self.description.settling_draws)
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
        state.n_rows_seen += summary.n_rows


def _few(rows: RowSource) -> RowSource:
    """Return every n-th row, where a pass over all of them would take too long."""
    return ArrayRows(rows.sample(FEW_ROWS))
