"""skorch callbacks of a training run: whole epochs, divergence, progress, and the user's view."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from statistics import median
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback
from tqdm.auto import tqdm

from .._rows.user_warnings import warn_user
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts
from .options import TrainingOptions

_log = logging.getLogger(__name__)

# A loss that grows by this factor over a training has diverged, though it is finite.
_RISE = 10.0


class WholeEpochs(Callback):
    """Keep the state of the last whole epoch, advance the warm-ups, stop when training diverges."""

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
            # Only now: other callbacks may have loaded a state and the epochs that led to it.
            self.n_loaded_ = len(net.history) - 1
            self._keep(net, self.n_loaded_)

    def on_batch_begin(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        if self.interrupts.came:
            # Python loses a KeyboardInterrupt that is raised while it frees an object.
            raise KeyboardInterrupt
        if training:
            net.module_.progress = self.step_ / self.n_steps
            # The last step has the last value of the schedule.
            net.module_.annealed = self.step_ / max(1, self.n_steps - 1)
            self.step_ += 1

    def on_batch_end(self, net: NeuralNet, loss: Any = None, **kwargs: Any) -> None:
        batch = net.history[-1]["batches"][-1]
        if not math.isfinite(batch.get("train_loss", batch.get("valid_loss"))):
            raise _diverged("loss is", net)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        # The last step of an epoch may diverge without a loss that shows it.
        if not all(p.isfinite().all() for p in net.module_.parameters()):
            raise _diverged("weights are", net)
        self._keep(net, len(net.history))
        last = net.history[-1]
        _log.info("epoch %d: training loss %.6g nats a row", last["epoch"], last["train_loss"])

    def _keep(self, net: NeuralNet, n_epochs: int) -> None:
        state, optimizer_state = net.module_.state_dict(), net.optimizer_.state_dict()
        # One assignment: an interruption comes before or after it.
        self.kept_ = n_epochs, copy.deepcopy(state), copy.deepcopy(optimizer_state)

    def restore(self, net: NeuralNet) -> None:
        """Restore the last whole epoch."""
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


class ProgressBar(Callback):
    """One bar for all steps; skorch has one for each epoch, which is too short to read."""

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


def warn_of_rise(history: Any, options: TrainingOptions, n_features: int) -> None:
    """Warn about a loss that grew by a large factor, though it stayed finite.

    Most batches of the last epoch are then many times worse than the first batch before any step.
    A model that ignores the rows loses a few nats a feature, and warm-ups add less than that.
    """
    first = history[0]["batches"][0]["train_loss"]
    last = median(batch["train_loss"] for batch in history[-1]["batches"])
    if last > _RISE * max(abs(first), n_features) * max(1.0, options.objective.kl_weight):
        warn_user(
            f"Training diverged: the loss rose from {first:.3g} nats a row at the start to "
            f"{last:.3g} in the last epoch. Try a smaller 'learning_rate_init' or a "
            "larger 'batch_size'."
        )


class EpochTasks(Callback):
    """Reports the epochs of a skorch net to `FitTasks`.

    Callbacks of the net find ``net.fitted_estimator()``.

    Parameters
    ----------
    tasks : FitTasks or None
        Receives the epochs.
    fitted : callable
        Takes the net; returns the estimator as if training had ended with the last epoch.
    n_iter_before : int
        Epochs of the estimator before this training.
    """

    def __init__(
        self,
        tasks: FitTasks | None,
        fitted: Callable[[NeuralNet], Any],
        n_iter_before: int,
    ) -> None:
        self.tasks = tasks
        self.fitted = fitted
        self.n_iter_before = n_iter_before
        self.stopped_ = False

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Give the callbacks of the net access to the estimator."""
        net.fitted_estimator = lambda: self.fitted(net)
        net.n_iter_before = self.n_iter_before

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Report that an epoch begins."""
        if self.tasks is not None:
            self.tasks.begin_epoch()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Report that an epoch ended, and stop training if asked to."""
        if self.tasks is not None and self.tasks.end_epoch(net.fitted_estimator):
            self.stopped_ = True
            raise KeyboardInterrupt

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Break the circle of references, which would keep the memory of a device."""
        del net.fitted_estimator
