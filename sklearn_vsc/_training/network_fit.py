"""Training of a latent-variable model: a skorch net over batches of rows, held or streamed."""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import Dataset as TensorDataset
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .._models.latent_variable import LatentVariableModel
from .._models.objectives import Objective, training_bound
from .._rows.user_warnings import warn_user
from ..networks import LinearDecoder
from .interruption import HeldInterrupts
from .loss_parts import PARTS, PartSums, RecordParts
from .precision import networks_in
from .process_group import DataParallelNet, ProcessGroup

_log = logging.getLogger(__name__)

# The noise variance is one number among thousands: it may move faster than the weights.
_NOISE_RATE_FACTOR = 10.0
# What a sparse autoencoder learns of the noise and of the scales of its codes: as few numbers.
_SCALES = ("model.fit_likelihood.*", "model.log_spread", "model.decoder.log_unit")
_NOISE_SCALE_START = 0.1
# Refined posteriors make good gradients of the dictionary from the first step on; at the rate of
# the encoder it would be the last thing to be learned. (Without them atoms would die of it.)
_DICTIONARY_RATE_FACTOR = 10.0
# A loss that is so many times that of the first batch in the end has got out of hand.
_RISE = 10.0


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained; the fields carry the names of the estimators' parameters."""

    objective: Objective = field(default_factory=Objective)
    decoder_penalty: float = 0.0
    # Of relaxed gates, from the first step to the last.
    temperature: tuple[float, float] = (1.0, 1.0)
    noise_warmup: float = 0.0
    kl_warmup: float = 0.0
    max_iter: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: bool = True
    n_iter_no_change: int = 10
    tol: float = 1e-4
    verbose: int = 0
    precision: str = "float32"
    callbacks: Sequence[Any] = ()


@dataclass
class TrainingResult:
    """What a training run leaves behind, on the CPU."""

    history: list[dict[str, Any]]
    # What Adam keeps of each parameter of the model, by the parameter's name.
    optimizer_state: dict[str, dict[str, Tensor]] = field(repr=False)
    interrupted: bool = False


class TrainingObjective(nn.Module):
    """The loss of each row, with the state that warm-ups move during training."""

    def __init__(
        self, model: LatentVariableModel, options: TrainingOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.generator = generator
        self.progress = 1.0
        self.annealed = 1.0
        # Of a batch that processes share out, the mean over all of it.
        self.batch_mean: Callable[[Tensor], Tensor] = torch.mean
        self.parts = PartSums()

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each row (n,), nats."""
        options = self.options
        progress = self.progress if self.training else 1.0
        if self.model.family.has_relaxed_gates:
            first, last = options.temperature
            annealed = self.annealed if self.training else 1.0
            self.model.family.temperature = first * (last / first) ** annealed
        parts: dict[str, Tensor] = {}
        with networks_in(options.precision, self.model, x.device):
            bound = training_bound(
                self.model,
                x,
                options.objective,
                self.generator,
                kl_weight=options.objective.kl_weight * _ramp(progress, options.kl_warmup, 0.0),
                noise_scale=_ramp(progress, options.noise_warmup, _NOISE_SCALE_START),
                batch_mean=self.batch_mean,
                parts=parts if self.training else None,
            )
        if parts:
            self.parts.add(parts)
        loss = -bound
        if options.decoder_penalty:
            loss = loss + options.decoder_penalty * _squared_weights(self.model.decoder)
        return loss


def _ramp(progress: float, share: float, start: float) -> float:
    """Grow linearly from ``start`` to one over the first ``share`` of the steps."""
    return 1.0 if progress >= share else start + (1 - start) * progress / share


def _squared_weights(decoder: nn.Module) -> Tensor:
    """Squared Frobenius norm of the decoder's weights, biases left out."""
    if isinstance(decoder, LinearDecoder):
        return decoder.weight.square().sum()
    return sum(p.square().sum() for p in decoder.parameters() if p.ndim > 1)  # type: ignore


class _MeanLoss(nn.Module):
    """skorch's criterion: the module already returns the loss of each row."""

    def forward(self, loss: Tensor, _: Tensor) -> Tensor:
        return loss.mean()


class InMemoryBatches:
    """Batches cut from one tensor: a permutation and an index, no worker, no collation."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.X = dataset.X
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.X) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_rows = len(self.X)
        if self.generator is None:
            order = torch.arange(n_rows)
        else:
            order = torch.randperm(n_rows, generator=self.generator)
        for picked in order.to(self.X.device).split(self.batch_size):
            rows = self.X[picked]
            yield rows, rows[:, :0]


class StreamedRows(Dataset[Tensor], ABC):
    """Rows that are not held as one tensor: a batch is made when it is asked for.

    Attributes
    ----------
    shape : tuple of two ints
        Numbers of rows and of features.
    device : torch.device
        Of the batches.
    """

    shape: tuple[int, int]
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def batches(self, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Yield all rows, so many at a time; in a random order if there is a generator."""


class StreamedBatches:
    """The same from rows that are not in memory."""

    def __init__(
        self,
        dataset: StreamedRows,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.rows = dataset
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.rows.batches(self.batch_size, self.generator):
            yield rows, rows[:, :0]


class _WholeEpochs(Callback):
    """Keep the state of the last whole epoch, move the warm-ups, stop on a loss gone wrong."""

    def __init__(self, n_steps: int, interrupts: HeldInterrupts) -> None:
        self.n_steps = n_steps
        self.interrupts = interrupts
        self.kept_: tuple[int, dict[str, Any], dict[str, Any]] | None = None
        self.n_loaded_ = 0

    @property
    def n_epochs_(self) -> int:
        """Whole epochs, with those that were loaded."""
        return 0 if self.kept_ is None else self.kept_[0]

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.step_ = 0

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.kept_ is None:
            # Here, as other callbacks may have loaded a state and the epochs that led to it.
            self.n_loaded_ = len(net.history) - 1
            self._keep(net, self.n_loaded_)

    def on_batch_begin(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        if self.interrupts.came:
            # Python loses a KeyboardInterrupt that comes while it frees an object.
            raise KeyboardInterrupt
        if training:
            net.module_.progress = self.step_ / self.n_steps
            # A schedule with two ends: the last step is at its last value.
            net.module_.annealed = self.step_ / max(1, self.n_steps - 1)
            self.step_ += 1

    def on_batch_end(self, net: NeuralNet, loss: Any = None, **kwargs: Any) -> None:
        batch = net.history[-1]["batches"][-1]
        if not math.isfinite(batch.get("train_loss", batch.get("valid_loss"))):
            raise _diverged("loss is", net)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        # The last step of an epoch may go wrong without a loss that shows it.
        if not all(p.isfinite().all() for p in net.module_.parameters()):
            raise _diverged("weights are", net)
        self._keep(net, len(net.history))
        last = net.history[-1]
        _log.info("epoch %d: training loss %.6g nats a row", last["epoch"], last["train_loss"])

    def _keep(self, net: NeuralNet, n_epochs: int) -> None:
        state, optimizer_state = net.module_.state_dict(), net.optimizer_.state_dict()
        # All at once: an interruption comes before or after.
        self.kept_ = n_epochs, copy.deepcopy(state), copy.deepcopy(optimizer_state)

    def restore(self, net: NeuralNet) -> None:
        """Put the last whole epoch back."""
        if self.kept_ is not None:
            _, state, optimizer_state = self.kept_
            net.module_.load_state_dict(state)
            net.optimizer_.load_state_dict(optimizer_state)


def _diverged(what: str, net: NeuralNet) -> ValueError:
    epoch = len(net.history)
    cause = (
        "The steps are too long for these rows. Try a smaller 'learning_rate_init', a larger "
        "'batch_size', or look for features of very different size in X "
        "(sklearn.preprocessing.StandardScaler)."
    )
    if what == "loss is" and epoch == 1 and len(net.history[-1]["batches"]) == 1:
        cause = (
            "No step was taken yet. Look for rows of X far larger than those of the first fit, "
            "for an 'encoder' or 'decoder' of your own that gives values that are not finite, and "
            "for a 'noise_variance' out of proportion to X; then try a smaller "
            "'learning_rate_init'."
        )
    return ValueError(f"Training diverged: the {what} not finite at epoch {epoch}. {cause}")


class _ProgressBar(Callback):
    """One bar for all steps; skorch's own has one for each epoch, gone in a moment."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_ = tqdm(total=self.n_steps, unit="step")

    def on_batch_end(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        if training:
            self.bar_.update()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        last = net.history[-1]
        self.bar_.set_description(f"Epoch {last['epoch']} of {net.max_epochs}", refresh=False)
        self.bar_.set_postfix({k: last[k] for k in ("train_loss", "valid_loss") if k in last})

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.close()


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
        Rows that early stopping watches, held as X is.
    options : TrainingOptions
        How to train.
    noise_generator, order_generator : torch.Generator
        Of the posterior's draws (on the device of X), and of the order of rows (on the CPU).
    optimizer_state : dict or None
        Moments of an earlier run, to go on from.
    interrupts : HeldInterrupts or None
        What keeps Ctrl-C back while the last whole epoch is put in order.
    group : ProcessGroup or None
        Processes that share each batch; all are given the same rows and order.

    Returns
    -------
    result : TrainingResult
        Record of each epoch, the optimiser's state, and whether Ctrl-C came.

    Raises
    ------
    ValueError
        When the loss is not finite.
    """
    n_steps = max(1, options.max_iter * math.ceil(len(X) / options.batch_size))
    interrupts = HeldInterrupts() if interrupts is None else interrupts
    whole_epochs = _WholeEpochs(n_steps, interrupts)
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
        criterion=_MeanLoss,
        optimizer=torch.optim.Adam,
        lr=options.learning_rate,
        optimizer__param_groups=_rates(options),
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
    # skorch keeps an interruption to itself, but for one that comes before or after its epochs.
    done = interrupts.attempt(lambda: net.partial_fit(X))
    n_epochs = whole_epochs.n_epochs_
    if done is None or len(net.history) > n_epochs:
        whole_epochs.restore(net)
    missing = n_epochs - whole_epochs.n_loaded_ < options.max_iter and not _stopped_early(net)
    result = epochs_so_far(net, n_epochs)
    result.interrupted = missing or interrupts.came
    if options.schedule and X_valid is None and n_epochs > whole_epochs.n_loaded_:
        _warn_of_rise(net.history[whole_epochs.n_loaded_ : n_epochs], options, X.shape[1])
    # Gradients take as much memory as the weights.
    model.zero_grad()
    model.cpu()
    return result


def epochs_so_far(net: NeuralNet, n_epochs: int) -> TrainingResult:
    """Return what a training run would leave behind after so many epochs, the last included."""
    history = _records(net.history[:n_epochs])
    return TrainingResult(history, _moments(net))


def _warn_of_rise(history: Any, options: TrainingOptions, n_features: int) -> None:
    """Warn of a loss that got out of hand, though it stayed finite.

    Most batches of the last epoch do many times worse than the first did before any step. A
    model that ignores the rows loses a few nats a feature, and warm-ups add less than that.
    """
    first = history[0]["batches"][0]["train_loss"]
    last = median(batch["train_loss"] for batch in history[-1]["batches"])
    if last > _RISE * max(abs(first), n_features) * max(1.0, options.objective.kl_weight):
        warn_user(
            f"Training went astray: the loss rose from {first:.3g} nats a row at the start to "
            f"{last:.3g} in the last epoch. Try a smaller 'learning_rate_init' or a "
            "larger 'batch_size'."
        )


def _rates(options: TrainingOptions) -> list[tuple[str, dict[str, float]]]:
    """Learning rates of the parameters that have one of their own."""
    factors = dict.fromkeys(("model.likelihood.*", *_SCALES), _NOISE_RATE_FACTOR)
    if options.objective.bound == "exact" and options.objective.n_refine:
        factors["model.decoder.*"] = _DICTIONARY_RATE_FACTOR
    return [(name, {"lr": factor * options.learning_rate}) for name, factor in factors.items()]


def _stopped_early(net: NeuralNet) -> bool:
    """Whether an early-stopping callback, ours or the user's, ended the training."""
    return any(
        getattr(callback, "stopped_", False)
        or (isinstance(callback, EarlyStopping) and _has_run_out(callback))
        for _, callback in net.callbacks_
    )


def _has_run_out(stopping: EarlyStopping) -> bool:
    return getattr(stopping, "misses_", 0) >= stopping.patience


def _callbacks(
    options: TrainingOptions,
    whole_epochs: _WholeEpochs,
    stopping: EarlyStopping,
    n_steps: int,
    n_features: int,
) -> list[Any]:
    # The loss is a sum over features. Typical gradients are a few times this norm, so steps are
    # of one length, and a batch with an outlier cannot throw the weights far.
    clipping = GradientNormClipping(math.sqrt(n_features))
    callbacks: list[Any] = [
        ("whole_epochs", whole_epochs),
        ("clipping", clipping),
    ]
    if options.schedule:
        schedule = LRScheduler(LambdaLR, lr_lambda=_one_cycle(n_steps), step_every="batch")
        callbacks.append(("schedule", schedule))
    if options.verbose:
        callbacks.append(("progress", _ProgressBar(n_steps)))
    # Last: it ends the epoch by an interruption, which callbacks after it would not see.
    return [*callbacks, *options.callbacks, ("stopping", stopping)]


def _one_cycle(n_steps: int, warmup: float = 0.05) -> Any:
    """Learning rate over a run: a short linear rise, then a cosine to a thousandth."""

    def factor(step: int) -> float:
        progress = min(1.0, (step + 1) / n_steps)
        rise = min(1.0, progress / warmup)
        return rise * (1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


def _moments(net: NeuralNet) -> dict[str, dict[str, Tensor]]:
    """What the optimiser keeps of each parameter, on the CPU."""
    names = _parameter_names(net)
    return {
        names[parameter]: {key: value.cpu() for key, value in kept.items()}
        for parameter, kept in net.optimizer_.state.items()
    }


def _restore_moments(net: NeuralNet, moments: dict[str, dict[str, Tensor]]) -> None:
    """Give the optimiser the moments of an earlier run but not its last learning rate."""
    names, optimizer = _parameter_names(net), net.optimizer_
    # The optimiser counts parameters group by group, and groups may differ from run to run.
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    # torch would go on writing into the tensors that it is given.
    state = {i: copy.deepcopy(moments[name]) for i, name in enumerate(order) if name in moments}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameter_names(net: NeuralNet) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in net.module_.model.named_parameters()}


def _records(history: Any) -> list[dict[str, Any]]:
    """One record per whole epoch."""
    records = []
    for row in history:
        # Plain floats: what is recorded is printed and written as numbers.
        record = {"epoch": row["epoch"], "loss": float(row["train_loss"]), "duration": row["dur"]}
        if "valid_loss" in row:
            record["valid_loss"] = float(row["valid_loss"])
        # A history that was loaded may have none of them.
        record |= {name: row[name] for name in PARTS if name in row}
        records.append(record)
    return records
