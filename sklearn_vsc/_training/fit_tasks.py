"""Epochs as subtasks of a fit, for scikit-learn's callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Name of the task that an epoch is.
EPOCH = "epoch"


class FitTasks:
    """Reports a fit, and each of its epochs, to scikit-learn's callbacks.

    Parameters
    ----------
    estimator : estimator instance
        The one in its fit.
    X, y : array-like or Dataset
        Data as given to ``fit``.
    max_iter : int
        Maximum number of epochs.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, max_iter: int) -> None:
        self._about = {"estimator": estimator, "X": X, "y": y}
        self._fit = estimator._init_callback_context(max_subtasks=max_iter)
        self._fit.call_on_fit_task_begin(**self._about)

    def begin_epoch(self) -> None:
        """Report that an epoch begins."""
        self._epoch = self._fit.subcontext(task_name=EPOCH)
        self._epoch.call_on_fit_task_begin(**self._about)

    def end_epoch(self, fitted: Callable[[], Any]) -> bool:
        """Report that an epoch ended, and return whether a callback wants the fit to stop.

        Callbacks that request it receive the result of ``fitted``: the estimator as if the fit had
        ended here.
        """
        return self._epoch.call_on_fit_task_end(
            **self._about, reconstruction_attributes=lambda: vars(fitted())
        )

    def end(self) -> None:
        """Report that the fit ended."""
        self._fit.call_on_fit_task_end(**self._about, reconstruction_attributes={})
