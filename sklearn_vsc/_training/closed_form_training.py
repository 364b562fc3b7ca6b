"""Learning a sparse linear model by closed forms, batch by batch: another way to fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.utils.data import Dataset

from .._inference.fitted_model import FittedModel, InferenceOptions
from .._inference.settling import RowSummary, summarise
from .._models.latent_variable import LatentVariableModel
from .._models.sparse_linear import SparseLinearModel
from .._models.units import Units
from .._rows.arrays import draw_seed, seeded_generator
from .._rows.sources import ArrayRows, RowSource
from .._rows.user_warnings import warn_user
from ..solvers.linear_model.learner import Cooling, Learner, Memory, Step
from ..solvers.linear_model.maximisation import contrast_levels
from .epoch_callbacks import ProgressBar, WholeEpochs
from .fit_state import FitState, RunParameters
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts
from .loss import MeanLoss
from .loss_parts import PartSums, RecordParts
from .network_fit import epoch_tasks, whole_epochs_of

# Numbers in the fields of all rows, at most, that are kept from one pass to the next.
_MOST_REMEMBERED, _MOST_REMEMBERED_OF_STREAMS = 2**28, 2**25
# Share of the rows that the sums remember which a batch has.
_BATCHES_REMEMBERED = 5
# The least noise starts at this share of the variance and falls by this factor. It falls to a last
# value over a share of the passes at the latest.
_FIRST_NOISE, _COOLING_RATE = 0.5, 0.8
_COOLED_TO, _COOLING_SHARE = 1e-3, 0.5
# Passes before the bound may end the training.
_LEAST_PASSES = 3
# A share of active codes this far from what was asked for is worth a warning.
_DENSITY_TOL = 0.2

Look = Callable[[FitState, RowSource, torch.device], Any]


def _cooling(max_iter: int) -> Cooling:
    """Return how the least noise falls: as measured, or faster where there are few passes."""
    rate = _COOLED_TO ** (1 / max(1.0, _COOLING_SHARE * max_iter))
    return Cooling(_FIRST_NOISE, min(_COOLING_RATE, rate))


@dataclass(frozen=True)
class ClosedFormTraining:
    """Training of a sparse linear model by closed forms.

    Attributes
    ----------
    run : RunParameters
        How to train.
    inference : InferenceOptions
        How the fitted model is asked.
    """

    # The sums over earlier rows are in the units of the model.
    moves_units: ClassVar[bool] = False

    run: RunParameters
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
        """Train for at most ``max_iter`` passes, or without tasks for one pass.

        Parameters
        ----------
        state : FitState
            Changed in place.
        rows : RowSource
            Training rows in the units of X.
        aside : RowSource or None
            Rows that early stopping watches.
        tasks : FitTasks or None
            Receives the passes.
        interrupts : HeldInterrupts or None
            Defers Ctrl-C between passes.
        look : callable
            Takes a state, rows and a device; returns the estimator as if the fit had ended there.

        Returns
        -------
        interrupted : bool
            Whether Ctrl-C came.
        """
        interrupts = HeldInterrupts() if interrupts is None else interrupts
        order = seeded_generator(draw_seed(state.random_state))
        module = cast(SparseLinearModel, copy.deepcopy(state.module))
        module.to(torch.float32 if rows.dtype == np.float32 else torch.float64)
        # Where rows have a scale of their noise, it would undo what keeps the noise up.
        cools = tasks is not None and not state.history and module.row_scale != "noise"
        module.cooling = _cooling(self.run.max_iter) if cools else None
        net = self._net(state, module, rows, aside, tasks, interrupts, look, order)
        whole = dict(net.callbacks_)["whole_epochs"]
        data = _NumberedRows(rows, state.units)
        result = whole_epochs_of(net, data, whole, interrupts)
        module.cooling = None
        state.take(cast(LatentVariableModel, module), result, rows.dtype)
        if tasks is not None and not result.interrupted:
            self._warn(module, dict(net.callbacks_).get("bound"), state.history)
        return result.interrupted

    def _net(
        self,
        state: FitState,
        module: SparseLinearModel,
        rows: RowSource,
        aside: RowSource | None,
        tasks: FitTasks | None,
        interrupts: HeldInterrupts,
        look: Look,
        order: torch.Generator,
    ) -> NeuralNet:
        """Return the net whose steps are closed forms."""
        run, n_rows = self.run, len(rows)
        batch_size = self._batch_size(module, n_rows)
        max_iter = run.max_iter if tasks is not None else 1
        n_steps = max_iter * math.ceil(n_rows / batch_size)
        held = isinstance(rows, ArrayRows) and rows.in_memory
        most = _MOST_REMEMBERED if held else _MOST_REMEMBERED_OF_STREAMS
        remembered = n_rows if max_iter > 1 and n_rows * module.n_components <= most else 0
        passes = _Passes(module, remembered, n_rows, starts_over=tasks is not None)
        callbacks: list[Any] = [
            ("parts", RecordParts()),
            ("whole_epochs", WholeEpochs(n_steps, interrupts)),
            ("ends", _EndOfPass()),
        ]
        if run.verbose:
            callbacks.append(("progress", ProgressBar(n_steps)))
        callbacks += [*(run.callbacks or ()), epoch_tasks(state, tasks, rows, look)]
        if aside is not None:
            callbacks.append(("stopping", self._early_stopping()))
        elif tasks is not None:
            callbacks.append(("bound", BoundStopping(float(run.tol))))
        split = None if aside is None else predefined_split(_NumberedRows(aside, state.units))
        net = _ClosedFormNet(
            passes,
            criterion=MeanLoss,
            optimizer=torch.optim.SGD,
            lr=1.0,
            max_epochs=max_iter,
            batch_size=batch_size,
            iterator_train=_NumberedBatches,
            iterator_train__generator=order if batch_size < n_rows else None,
            iterator_valid=_NumberedBatches,
            train_split=split,
            callbacks=callbacks,
            callbacks__print_log=None,
            device="cpu",
            verbose=0,
        )
        net.initialize()
        return net

    def _batch_size(self, module: SparseLinearModel, n_rows: int) -> int:
        if self.run.batch_size != "auto":
            return int(min(self.run.batch_size, n_rows))
        remembered = module.learner().memory_rows
        return n_rows if n_rows <= remembered else max(1, remembered // _BATCHES_REMEMBERED)

    def _early_stopping(self) -> EarlyStopping:
        return EarlyStopping(
            monitor="valid_loss",
            patience=self.run.n_iter_no_change,
            threshold=0.0,
            threshold_mode="abs",
            load_best=True,
            sink=lambda _: None,
        )

    def settle(self, fitted: FittedModel, rows: RowSource, n_draws: int) -> RowSummary:
        """Sum the training rows up; nothing is left to settle."""
        return summarise(fitted, rows)

    def sum_up(self, fitted: FittedModel, rows: RowSource) -> RowSummary:
        """Sum rows up after one more pass over them."""
        return summarise(fitted, rows)

    def _warn(self, model: SparseLinearModel, stopping: Any, history: list[Any]) -> None:
        """Say what kept the fit from what was asked for."""
        if stopping is not None and not stopping.stopped_:
            few = self.run.max_iter < _LEAST_PASSES
            rise = f", by {stopping.last_rise_:.2g} of all that it has risen in the last one"
            warn_user(
                f"The bound still rose after max_iter={self.run.max_iter} passes"
                + (
                    f", and fewer than {_LEAST_PASSES} do not tell where it ends: use a larger "
                    "'max_iter'."
                    if few
                    else f"{rise}: use a larger 'max_iter', or a 'tol' above {self.run.tol:g}."
                ),
                ConvergenceWarning,
            )
        learned = model.learned
        if learned.density not in ("target", "fixed") or not history:
            return
        share = history[-1]["density"]
        if abs(share / learned.target - 1) <= _DENSITY_TOL:
            return
        if share < learned.target:
            cause = (
                "more codes would describe the rows no better. Use a smaller 'noise_variance' or "
                "density='learned'"
            )
        elif learned.noise == "fixed":
            cause = "'noise_variance' is too small for fewer. Use a larger one, or learn it"
        else:
            cause = "training ended before the noise was large enough. Use a larger 'max_iter'"
        warn_user(
            f"{share:.1%} of the training codes are not zero, where the prior has "
            f"{learned.target:.1%}: {cause}."
        )


class _Passes(nn.Module):
    """The model in training, with where the posteriors of its rows ended.

    Parameters
    ----------
    model : SparseLinearModel
        Changed in place.
    n_remembered : int
        Number of rows whose posteriors are kept; zero: each visit starts anew.
    n_rows : int
        Number of training rows.
    starts_over : bool
        Whether nothing but these rows counts, as in a fit.
    """

    def __init__(
        self, model: SparseLinearModel, n_remembered: int, n_rows: int, *, starts_over: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.parts = PartSums()
        self.progress = self.annealed = 1.0
        self.n_remembered, self.n_rows = n_remembered, n_rows
        self.starts_over = starts_over
        self._memory: Memory | None = None
        self._seen = np.zeros(n_remembered, dtype=bool)
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget what was counted in the last pass."""
        self.n_seen = 0
        self._contrasts: list[NDArray] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each row (n,), nats."""
        return -self.model.infer(x, 0).bound

    def learn(self, x: Tensor, numbers: NDArray) -> Tensor:
        """Move the parameters; return the loss of each row before that."""
        rows = x.numpy()
        learner: Learner = self.model.learner()
        memory = self._remembered(numbers)
        all_rows = self.starts_over and len(rows) == self.n_rows
        step = learner.step(rows, memory, all_rows=all_rows)
        self.model.take(learner)
        self._remember(numbers, step, rows.dtype)
        self.n_seen += len(rows)
        self._contrasts.append(step.memory.contrast)
        values = {"log_likelihood": step.bound + step.kl, "kl": step.kl, "density": step.active}
        self.parts.add({name: torch.from_numpy(value) for name, value in values.items()})
        return torch.from_numpy(-step.bound)

    def _remembered(self, numbers: NDArray) -> Memory | None:
        if self._memory is None or not self._seen[numbers].all():
            return None
        return self._memory.rows(numbers)

    def _remember(self, numbers: NDArray, step: Step, dtype: np.dtype) -> None:
        if not self.n_remembered:
            return
        if self._memory is None:
            self._memory = Memory.empty(self.n_remembered, self.model.n_components, dtype)
        self._memory.put(numbers, step.memory)
        self._seen[numbers] = True

    def end_pass(self) -> None:
        """Write down what the pass has counted."""
        model = self.model
        if model.row_scale == "row":
            contrasts = contrast_levels(np.concatenate(self._contrasts))
            model.levels.copy_(torch.from_numpy(contrasts.levels))
            model.shares.copy_(torch.from_numpy(contrasts.shares))


class _ClosedFormNet(NeuralNet):
    """A net whose training step is that of `_Passes`, without a gradient."""

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        rows, numbers = batch
        with torch.no_grad():
            loss = self.module_.learn(rows, numbers.numpy())
        return {"loss": loss.mean(), "y_pred": loss}


class _NumberedRows(Dataset[Tensor]):
    """Rows in the units of a model, read batch by batch, with their numbers."""

    def __init__(self, rows: RowSource, units: Units) -> None:
        self.rows, self.units = rows, units

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all rows, in a random order if there is a generator and rows have numbers."""
        order = None
        if generator is not None and self.rows.has_numbers:
            order = torch.randperm(len(self), generator=generator)
        first = 0
        for batch in self.rows.batches(size, order):
            numbers = torch.arange(first, first + len(batch))
            first += len(batch)
            # Sums over rows round alike in every memory layout.
            found = self.units.to_model(batch, torch.device("cpu")).contiguous()
            yield found, numbers if order is None else order[numbers]


class _NumberedBatches:
    """What skorch iterates over."""

    def __init__(
        self, dataset: _NumberedRows, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.dataset, self.batch_size, self.generator = dataset, batch_size, generator

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.dataset.batches(self.batch_size, self.generator)


class _EndOfPass(Callback):
    """Tells the model where passes begin and end; before `WholeEpochs` keeps its state."""

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        net.module_.begin_pass()

    def on_batch_end(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        if training and net.module_.n_seen >= net.module_.n_rows:
            net.module_.end_pass()


class BoundStopping(Callback):
    """Ends training once a pass raises the bound by less than a share of its whole rise.

    Parameters
    ----------
    tol : float
        That share.
    """

    def __init__(self, tol: float) -> None:
        self.tol = tol
        self.stopped_ = False
        self.last_rise_ = math.inf

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        losses = [row["train_loss"] for row in net.history]
        if len(losses) < _LEAST_PASSES:
            return
        rise = losses[-2] - losses[-1]
        whole = max(losses[0] - losses[-1], 1e-12)
        self.last_rise_ = rise / whole
        if self.last_rise_ < self.tol and not net.module_.model.is_settling:
            self.stopped_ = True
            raise KeyboardInterrupt
