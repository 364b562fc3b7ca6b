"""Training of the networks of a model: a skorch net over batches of rows, held or streamed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, GradientNormClipping, LRScheduler
from skorch.dataset import Dataset as TensorDataset
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from .._models.latent_variable import LatentVariableModel
from .._rows.sources import RowSource
from .batches import InMemoryBatches, StreamedBatches, StreamedRows
from .epoch_callbacks import EpochTasks, ProgressBar, WholeEpochs, warn_of_rise
from .fit_state import FitState
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts
from .loss import MeanLoss, TrainingObjective
from .loss_parts import PARTS, RecordParts
from .options import TrainingOptions, TrainingResult
from .process_group import DataParallelNet, ProcessGroup

# The noise variance is one number among thousands: it may move faster than the weights.
_NOISE_RATE_FACTOR = 10.0
# Refined posteriors make good gradients of the dictionary from the first step on; at the rate of
# the encoder the dictionary would be the last to be learned. (Without refinement, a high rate
# makes atoms die.)
_DICTIONARY_RATE_FACTOR = 10.0


def train(
    model: LatentVariableModel,
    X: Tensor | StreamedRows,
    X_valid: Tensor | StreamedRows | None,
    options: TrainingOptions,
    *,
    noise_generator: torch.Generator,
    order_generator: torch.Generator,
    optimizer_state: dict[str, dict[str, Tensor]] | None = None,
    interrupts: HeldInterrupts | None = None,
    group: ProcessGroup | None = None,
) -> TrainingResult:
    """Train a model in place on the device of X; an interruption keeps the last whole epoch.

    Parameters
    ----------
    model : LatentVariableModel
        Trained in place.
    X : Tensor of shape (n_samples, n_features) or StreamedRows
        Rows in the units of the model.
    X_valid : Tensor, StreamedRows or None
        Rows that early stopping watches, of the same kind as X.
    options : TrainingOptions
        How to train.
    noise_generator, order_generator : torch.Generator
        Decide the posterior's draws (on the device of X) and the order of rows (on the CPU).
    optimizer_state : dict or None
        Adam's moments from an earlier run, to continue it.
    interrupts : HeldInterrupts or None
        Defers Ctrl-C while the last whole epoch is restored.
    group : ProcessGroup or None
        Processes that share each batch; all get the same rows in the same order.

    Returns
    -------
    result : TrainingResult
        Record of each epoch, state of the optimiser, and whether Ctrl-C came.

    Raises
    ------
    ValueError
        When the loss is not finite.
    """
    n_steps = max(1, options.max_iter * math.ceil(len(X) / options.batch_size))
    interrupts = HeldInterrupts() if interrupts is None else interrupts
    whole_epochs = WholeEpochs(n_steps, interrupts)
    stopping = EarlyStopping(
        monitor="valid_loss" if X_valid is not None else "train_loss",
        patience=options.n_iter_no_change,
        threshold=options.tol,
        threshold_mode="abs",
        load_best=X_valid is not None,
        sink=lambda _: None,
    )
    batches = InMemoryBatches if isinstance(X, Tensor) else StreamedBatches
    aside = TensorDataset(X_valid) if isinstance(X_valid, Tensor) else X_valid
    net_class = NeuralNet if group is None else partial(DataParallelNet, group=group)
    net = net_class(
        TrainingObjective(model, options, noise_generator),
        criterion=MeanLoss,
        optimizer=torch.optim.Adam,
        lr=options.learning_rate,
        optimizer__param_groups=_rates(model, options),
        max_epochs=options.max_iter,
        batch_size=options.batch_size,
        iterator_train=batches,
        iterator_train__generator=order_generator,
        iterator_valid=batches,
        train_split=None if aside is None else predefined_split(aside),
        callbacks=[
            ("parts", RecordParts(None if group is None else group.sum)),
            *_callbacks(options, whole_epochs, stopping, n_steps, X.shape[1]),
        ],
        callbacks__print_log=None,
        device=X.device,
        verbose=0,
    )
    net.initialize()
    if optimizer_state is not None:
        _restore_moments(net, optimizer_state)
    result = whole_epochs_of(net, X, whole_epochs, interrupts)
    n_epochs = whole_epochs.n_epochs_
    if options.schedule and X_valid is None and n_epochs > whole_epochs.n_loaded_:
        warn_of_rise(net.history[whole_epochs.n_loaded_ : n_epochs], options, X.shape[1])
    # Gradients take as much memory as the weights.
    model.zero_grad()
    model.cpu()
    return result


def whole_epochs_of(
    net: NeuralNet, X: Any, whole_epochs: WholeEpochs, interrupts: HeldInterrupts
) -> TrainingResult:
    """Run a net for its epochs; after an interruption it is that of the last whole epoch."""
    # skorch catches an interruption, except before and after its epochs.
    done = interrupts.attempt(lambda: net.partial_fit(X))
    n_epochs = whole_epochs.n_epochs_
    if done is None or len(net.history) > n_epochs:
        whole_epochs.restore(net)
    missing = n_epochs - whole_epochs.n_loaded_ < net.max_epochs and not _stopped_early(net)
    result = epochs_so_far(net, n_epochs)
    result.interrupted = missing or interrupts.came
    return result


def epoch_tasks(
    state: FitState,
    tasks: FitTasks | None,
    rows: RowSource,
    look: Callable[[FitState, RowSource, torch.device], Any],
) -> EpochTasks:
    """Return the callback that shows the estimator as if training had ended with an epoch."""

    def fitted(net: NeuralNet) -> Any:
        # A copy: what callbacks look at must not change what the fit draws.
        seen = replace(state, random_state=copy.deepcopy(state.random_state))
        module = copy.deepcopy(net.module_.model).cpu()
        # A copy: the optimiser goes on writing into its own.
        result = copy.deepcopy(epochs_so_far(net, len(net.history)))
        seen.take(module, result, rows.dtype)
        return look(seen, rows, torch.device(net.device))

    return EpochTasks(tasks, fitted, len(state.history))


def epochs_so_far(net: NeuralNet, n_epochs: int) -> TrainingResult:
    """Return what a training run would return after ``n_epochs`` epochs."""
    history = _records(net.history[:n_epochs])
    return TrainingResult(history, _moments(net))


def _rates(
    model: LatentVariableModel, options: TrainingOptions
) -> list[tuple[str, dict[str, float]]]:
    """Learning rates of the parameters that have one of their own."""
    names = ("model.likelihood.*", *(f"model.{name}" for name in model.scales))
    factors = dict.fromkeys(names, _NOISE_RATE_FACTOR)
    if options.objective.bound == "exact" and options.objective.n_refine:
        factors["model.decoder.*"] = _DICTIONARY_RATE_FACTOR
    return [(name, {"lr": factor * options.learning_rate}) for name, factor in factors.items()]


def _stopped_early(net: NeuralNet) -> bool:
    """Return whether an early-stopping callback, ours or the user's, ended the training."""
    return any(
        getattr(callback, "stopped_", False)
        or (isinstance(callback, EarlyStopping) and _has_run_out(callback))
        for _, callback in net.callbacks_
    )


def _has_run_out(stopping: EarlyStopping) -> bool:
    return getattr(stopping, "misses_", 0) >= stopping.patience


def _callbacks(
    options: TrainingOptions,
    whole_epochs: WholeEpochs,
    stopping: EarlyStopping,
    n_steps: int,
    n_features: int,
) -> list[Any]:
    # The loss is a sum over features. Typical gradients are a few times this norm, so all steps
    # have the same length, and a batch with an outlier cannot move the weights far.
    clipping = GradientNormClipping(math.sqrt(n_features))
    callbacks: list[Any] = [
        ("whole_epochs", whole_epochs),
        ("clipping", clipping),
    ]
    if options.schedule:
        schedule = LRScheduler(LambdaLR, lr_lambda=_one_cycle(n_steps), step_every="batch")
        callbacks.append(("schedule", schedule))
    if options.verbose:
        callbacks.append(("progress", ProgressBar(n_steps)))
    # Last: it ends the epoch by an interruption, so that callbacks after it would not be called.
    return [*callbacks, *options.callbacks, ("stopping", stopping)]


def _one_cycle(n_steps: int, warmup: float = 0.05) -> Any:
    """Learning rate over a run: a short linear rise, then a cosine to a thousandth."""

    def factor(step: int) -> float:
        progress = min(1.0, (step + 1) / n_steps)
        rise = min(1.0, progress / warmup)
        return rise * (1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


def _moments(net: NeuralNet) -> dict[str, dict[str, Tensor]]:
    """Moments that the optimiser keeps for each parameter, on the CPU."""
    names = _parameter_names(net)
    return {
        names[parameter]: {key: value.cpu() for key, value in kept.items()}
        for parameter, kept in net.optimizer_.state.items()
    }


def _restore_moments(net: NeuralNet, moments: dict[str, dict[str, Tensor]]) -> None:
    """Give the optimiser the moments of an earlier run, but not its last learning rate."""
    names, optimizer = _parameter_names(net), net.optimizer_
    # The optimiser counts parameters group by group, and groups may differ from run to run.
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    # A copy: torch writes into the tensors that it is given.
    state = {i: copy.deepcopy(moments[name]) for i, name in enumerate(order) if name in moments}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameter_names(net: NeuralNet) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in net.module_.model.named_parameters()}


def _records(history: Any) -> list[dict[str, Any]]:
    """One record per whole epoch."""
    records = []
    for row in history:
        # Plain floats: records are printed and written as numbers.
        record = {"epoch": row["epoch"], "loss": float(row["train_loss"]), "duration": row["dur"]}
        if "valid_loss" in row:
            record["valid_loss"] = float(row["valid_loss"])
        # A history that was loaded may have no parts.
        record |= {name: row[name] for name in PARTS if name in row}
        records.append(record)
    return records
