"""Training of a latent-variable model: a skorch net over batches that stay in memory."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from .latents import SpikeSlab
from .model import LatentVariableModel
from .networks import LinearDecoder
from .objectives import Objective, training_bound

_log = logging.getLogger(__name__)

# The noise variance is one number among thousands: it may move faster than the weights.
_NOISE_RATE_FACTOR = 10.0
# What a sparse autoencoder learns of the noise and of the scales of its codes: as few numbers.
_SCALES = ("model.fit_likelihood.*", "model.log_spread", "model.decoder.log_unit")
_NOISE_SCALE_START = 0.1
# Refined posteriors make good gradients of the dictionary from the first step on; at the rate of
# the encoder it would be the last thing to be learned. (Without them atoms would die of it.)
_DICTIONARY_RATE_FACTOR = 10.0


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
    callbacks: Sequence[Any] = ()


@dataclass
class TrainingResult:
    """What a training run leaves behind, on the CPU."""

    history: list[dict[str, Any]]
    # What Adam keeps of each parameter of the model, by the parameter's name.
    optimizer_state: dict[str, dict[str, Tensor]] = field(repr=False)


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

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each row (n,), nats."""
        options = self.options
        progress = self.progress if self.training else 1.0
        if isinstance(self.model.family, SpikeSlab):
            first, last = options.temperature
            annealed = self.annealed if self.training else 1.0
            self.model.family.temperature = first * (last / first) ** annealed
        bound = training_bound(
            self.model,
            x,
            options.objective,
            self.generator,
            kl_weight=options.objective.kl_weight * _ramp(progress, options.kl_warmup, 0.0),
            noise_scale=_ramp(progress, options.noise_warmup, _NOISE_SCALE_START),
        )
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


class _WholeEpochs(Callback):
    """Keep the state of the last whole epoch, move the warm-ups, stop on a loss gone wrong."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.step_ = 0
        self.n_epochs_ = 0
        self._keep(net)

    def on_batch_begin(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
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
        self.n_epochs_ += 1
        self._keep(net)
        last = net.history[-1]
        _log.info("epoch %d: training loss %.6g nats a row", last["epoch"], last["train_loss"])

    def _keep(self, net: NeuralNet) -> None:
        self.state_ = copy.deepcopy(net.module_.state_dict())
        self.optimizer_state_ = copy.deepcopy(net.optimizer_.state_dict())

    def restore(self, net: NeuralNet) -> None:
        """Put the last whole epoch back."""
        net.module_.load_state_dict(self.state_)
        net.optimizer_.load_state_dict(self.optimizer_state_)


def _diverged(what: str, net: NeuralNet) -> ValueError:
    return ValueError(
        f"Training diverged: the {what} not finite at epoch {len(net.history)}. "
        "Try a smaller 'learning_rate_init', a larger 'batch_size', or look for "
        "features of very different size in X (sklearn.preprocessing.StandardScaler)."
    )


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
    X: Tensor,
    X_valid: Tensor | None,
    options: TrainingOptions,
    *,
    noise_generator: torch.Generator,
    order_generator: torch.Generator,
    optimizer_state: dict[str, dict[str, Tensor]] | None = None,
) -> TrainingResult:
    """Train a model in place on the device of X; an interruption keeps the last whole epoch.

    Parameters
    ----------
    model : LatentVariableModel
        Trained in place.
    X : Tensor of shape (n_samples, n_features)
        Rows in the units of the model.
    X_valid : Tensor or None
        Rows that early stopping watches.
    options : TrainingOptions
        How to train.
    noise_generator, order_generator : torch.Generator
        Of the posterior's draws (on the device of X), and of the order of rows (on the CPU).
    optimizer_state : dict or None
        Moments of an earlier run, to go on from.

    Returns
    -------
    result : TrainingResult
        Record of each epoch, and the optimiser's state.

    Raises
    ------
    ValueError
        When the loss is not finite.
    """
    n_steps = max(1, options.max_iter * math.ceil(len(X) / options.batch_size))
    whole_epochs = _WholeEpochs(n_steps)
    stopping = EarlyStopping(
        monitor="valid_loss" if X_valid is not None else "train_loss",
        patience=options.n_iter_no_change,
        threshold=options.tol,
        threshold_mode="abs",
        load_best=X_valid is not None,
        sink=lambda _: None,
    )
    net = NeuralNet(
        TrainingObjective(model, options, noise_generator),
        criterion=_MeanLoss,
        optimizer=torch.optim.Adam,
        lr=options.learning_rate,
        optimizer__param_groups=_rates(options),
        max_epochs=options.max_iter,
        batch_size=options.batch_size,
        iterator_train=InMemoryBatches,
        iterator_train__generator=order_generator,
        iterator_valid=InMemoryBatches,
        train_split=None if X_valid is None else predefined_split(Dataset(X_valid)),
        callbacks=_callbacks(options, whole_epochs, stopping, n_steps, X.shape[1]),
        callbacks__print_log=None,
        device=X.device,
        verbose=0,
    )
    net.initialize()
    if optimizer_state is not None:
        _restore_moments(net, optimizer_state)
    net.partial_fit(X)
    if len(net.history) > whole_epochs.n_epochs_:
        whole_epochs.restore(net)
    if whole_epochs.n_epochs_ < options.max_iter and not _stopped_early(net):
        warnings.warn(
            f"Training was interrupted: the model is that of the last whole epoch, "
            f"{whole_epochs.n_epochs_} of {options.max_iter}.",
            UserWarning,
            stacklevel=2,
        )
    # Gradients take as much memory as the weights.
    model.zero_grad()
    model.cpu()
    history = _records(net.history[: whole_epochs.n_epochs_])
    return TrainingResult(history, _moments(net))


def _rates(options: TrainingOptions) -> list[tuple[str, dict[str, float]]]:
    """Learning rates of the parameters that have one of their own."""
    factors = dict.fromkeys(("model.likelihood.*", *_SCALES), _NOISE_RATE_FACTOR)
    if options.objective.n_refine:
        factors["model.decoder.*"] = _DICTIONARY_RATE_FACTOR
    return [(name, {"lr": factor * options.learning_rate}) for name, factor in factors.items()]


def _stopped_early(net: NeuralNet) -> bool:
    """Whether an early-stopping callback, ours or the user's, ended the training."""
    return any(
        isinstance(callback, EarlyStopping) and callback.misses_ >= callback.patience
        for _, callback in net.callbacks_
    )


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
        records.append(record)
    return records
