"""Epochs as scikit-learn's callbacks see them: subtasks of a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback

from .._rows.compat import CallbackSupportMixin

# Name of the task of an epoch.
EPOCH = "epoch"


class FitTasks:
    """Tells scikit-learn's callbacks of a fit, and of each of its epochs.

    Parameters
    ----------
    estimator : CallbackSupportMixin
        Told about.
    X, y : array-like or Dataset
        As given to ``fit``.
    max_iter : int
        Largest number of epochs.
    """

    def __init__(self, estimator: CallbackSupportMixin, X: Any, y: Any, max_iter: int) -> None:
        self._about = {"estimator": estimator, "X": X, "y": y}
        self._fit = estimator._init_callback_context(max_subtasks=max_iter)
        self._fit.call_on_fit_task_begin(**self._about)

    def begin_epoch(self) -> None:
        """Tell that an epoch begins."""
        self._epoch = self._fit.subcontext(task_name=EPOCH)
        self._epoch.call_on_fit_task_begin(**self._about)

    def end_epoch(self, fitted: Callable[[], CallbackSupportMixin]) -> bool:
        """Tell that an epoch is done, and return whether a callback wants the fit to stop.

        Callbacks that ask for it see what ``fitted`` returns: the estimator as if the fit had
        ended here.
        """
        return self._epoch.call_on_fit_task_end(
            **self._about, reconstruction_attributes=lambda: vars(fitted())
        )

    def end(self) -> None:
        """Tell that the fit is done."""
        self._fit.call_on_fit_task_end(**self._about, reconstruction_attributes={})


class EpochTasks(Callback):
    """The same from inside a skorch net, whose callbacks find ``net.fitted_estimator()``.

    Parameters
    ----------
    tasks : FitTasks or None
        Told about each epoch.
    fitted : callable
        Of the net; makes the estimator as if training had ended with the epoch that is done.
    n_iter_before : int
        Epochs of the estimator before those of the net.
    """

    def __init__(
        self,
        tasks: FitTasks | None,
        fitted: Callable[[NeuralNet], CallbackSupportMixin],
        n_iter_before: int,
    ) -> None:
        self.tasks = tasks
        self.fitted = fitted
        self.n_iter_before = n_iter_before
        self.stopped_ = False

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Show the estimator to the callbacks of the net."""
        net.fitted_estimator = lambda: self.fitted(net)
        net.n_iter_before = self.n_iter_before

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Tell of it."""
        if self.tasks is not None:
            self.tasks.begin_epoch()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Tell of it, and stop if asked to."""
        if self.tasks is not None and self.tasks.end_epoch(net.fitted_estimator):
            self.stopped_ = True
            raise KeyboardInterrupt

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Leave no circle of references, which would keep the memory of a device."""
        del net.fitted_estimator
