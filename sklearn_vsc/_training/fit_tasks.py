"""Epochs as subtasks of a fit, for scikit-learn's callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback

from .._base.coder import BaseSparseCoder

# Task name of an epoch.
EPOCH = "epoch"


class FitTasks:
    """Notifies scikit-learn's callbacks of a fit and each of its epochs.

    Parameters
    ----------
    estimator : BaseSparseCoder
        The estimator being fitted.
    X, y : array-like or Dataset
        Data as given to ``fit``.
    max_iter : int
        Maximum number of epochs.
    """

    def __init__(self, estimator: BaseSparseCoder, X: Any, y: Any, max_iter: int) -> None:
        self._about = {"estimator": estimator, "X": X, "y": y}
        self._fit = estimator._init_callback_context(max_subtasks=max_iter)
        self._fit.call_on_fit_task_begin(**self._about)

    def begin_epoch(self) -> None:
        """Notify callbacks that an epoch begins."""
        self._epoch = self._fit.subcontext(task_name=EPOCH)
        self._epoch.call_on_fit_task_begin(**self._about)

    def end_epoch(self, fitted: Callable[[], BaseSparseCoder]) -> bool:
        """Notify callbacks that an epoch has ended; return whether one of them stops the fit.

        Callbacks that request it receive the result of ``fitted``: the estimator as if the fit had
        ended here.
        """
        return self._epoch.call_on_fit_task_end(
            **self._about, reconstruction_attributes=lambda: vars(fitted())
        )

    def end(self) -> None:
        """Notify callbacks that the fit has ended."""
        self._fit.call_on_fit_task_end(**self._about, reconstruction_attributes={})


class EpochTasks(Callback):
    """Does the same from within a skorch net, whose callbacks get ``net.fitted_estimator()``.

    Parameters
    ----------
    tasks : FitTasks or None
        Notified of each epoch.
    fitted : callable
        Called with the net; returns the estimator as if training had ended after this epoch.
    n_iter_before : int
        Number of epochs of the estimator before this net's.
    """

    def __init__(
        self,
        tasks: FitTasks | None,
        fitted: Callable[[NeuralNet], BaseSparseCoder],
        n_iter_before: int,
    ) -> None:
        self.tasks = tasks
        self.fitted = fitted
        self.n_iter_before = n_iter_before
        self.stopped_ = False

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Make the estimator available to the callbacks of the net."""
        net.fitted_estimator = lambda: self.fitted(net)
        net.n_iter_before = self.n_iter_before

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Notify callbacks that an epoch begins."""
        if self.tasks is not None:
            self.tasks.begin_epoch()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Notify callbacks that an epoch has ended, and stop if one of them asks to."""
        if self.tasks is not None and self.tasks.end_epoch(net.fitted_estimator):
            self.stopped_ = True
            raise KeyboardInterrupt

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Break reference cycles, which would keep device memory allocated."""
        del net.fitted_estimator
