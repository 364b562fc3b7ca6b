"""Callbacks for a fit: score monitoring and checkpoints."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from skorch import NeuralNet
from skorch.callbacks import Callback

from ._base.coder import BaseSparseCoder
from ._rows.compat import ScoringMonitor
from ._rows.numbers import check_count
from ._training.fit_tasks import EPOCH

__all__ = ["EstimatorCheckpoint", "ScoreMonitor"]

# Attributes for callbacks that an estimator has during and after a fit; not part of its state.
_CALLBACK_STATE = (
    "_skl_callbacks",
    "_skl_callbacks_to_teardown",
    "_callback_fit_ctx",
    "_parent_callback_ctx",
)


class EstimatorCheckpoint(Callback):
    """Save the estimator into a folder every few epochs of a fit.

    The estimator is saved with its ``save`` method, as if the fit had been interrupted after that
    epoch: the folder always contains a complete model, the latest one. Load it with
    :func:`sklearn_vsc.load`; a neural estimator continues from there with ``warm_start=True``.

    Pass it to the ``callbacks`` parameter of a neural estimator, or to ``set_callbacks`` of any
    estimator, which needs scikit-learn 1.9.

    Parameters
    ----------
    path : str or path-like
        The folder; its parent must exist. Fits that run at the same time need separate folders.

    every : int, default=1
        Number of epochs between checkpoints, counted as in ``n_iter_``. A checkpoint takes about
        as long as coding a sample of at most 4096 rows; with ``set_callbacks`` every epoch takes
        this long.

    Raises
    ------
    ValueError
        If ``every`` is not a whole number of at least 1.

    Examples
    --------
    >>> from sklearn_vsc import SparseVAE
    >>> from sklearn_vsc.callbacks import EstimatorCheckpoint
    >>> checkpoint = EstimatorCheckpoint("vae", every=5)
    >>> model = SparseVAE(n_components=16, callbacks=[checkpoint])
    """

    path: str | os.PathLike[str]
    every: int

    def __init__(self, path: str | os.PathLike[str], *, every: int = 1) -> None:
        self.path = path
        self.every = check_count(every, "every")

    def _save(self, estimator: BaseSparseCoder) -> None:
        estimator = copy.copy(estimator)
        for name in _CALLBACK_STATE:
            estimator.__dict__.pop(name, None)
        for name in ("callback", "callbacks"):
            if hasattr(estimator, name):
                setattr(estimator, name, None)
        estimator.save(self.path)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Save if a checkpoint is due; called by skorch.

        Parameters
        ----------
        net : NeuralNet
            The net in training.
        **kwargs : dict
            Not used.
        """
        if (net.n_iter_before + len(net.history)) % self.every == 0:
            self._save(net.fitted_estimator())

    def setup(self, estimator: BaseSparseCoder, context: Any) -> None:
        """Do nothing; called by scikit-learn before a fit.

        Parameters
        ----------
        estimator : estimator instance
            Not used.
        context : CallbackContext
            Not used.
        """

    def teardown(self, estimator: BaseSparseCoder, context: Any) -> None:
        """Do nothing; called by scikit-learn after a fit.

        Parameters
        ----------
        estimator : estimator instance
            Not used.
        context : CallbackContext
            Not used.
        """

    def on_fit_task_begin(self, estimator: BaseSparseCoder, context: Any) -> None:
        """Do nothing; called by scikit-learn before a fit and each of its epochs.

        Parameters
        ----------
        estimator : estimator instance
            Not used.
        context : CallbackContext
            Not used.
        """

    def on_fit_task_end(
        self,
        estimator: BaseSparseCoder,
        context: Any,
        *,
        fitted_estimator: Any = None,
    ) -> None:
        """Save if a checkpoint is due; called by scikit-learn after a fit and each of its epochs.

        Parameters
        ----------
        estimator : estimator instance
            The estimator being fitted.
        context : CallbackContext
            Context of the fit or of an epoch.
        fitted_estimator : estimator instance or None, default=None
            The estimator as if the fit had ended here.
        """
        if context.task_name == EPOCH and fitted_estimator.n_iter_ % self.every == 0:
            self._save(fitted_estimator)


class ScoreMonitor(ScoringMonitor):
    """Record ``score(X)``, in nats, after each epoch of a fit.

    scikit-learn's :class:`~sklearn.callback.ScoringMonitor` records nothing in a fit without
    ``y``; this one does. It needs scikit-learn 1.9. Pass it to ``set_callbacks``.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), default=None
        Rows to score. None takes the rows of ``fit``.

    Raises
    ------
    TypeError
        If scikit-learn is older than 1.9.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_vsc import FISTADictionaryLearner
    >>> from sklearn_vsc.callbacks import ScoreMonitor
    >>> X = load_digits().data[:200]
    >>> monitor = ScoreMonitor()
    >>> learner = FISTADictionaryLearner(10, max_iter=3, tol=0, random_state=0)
    >>> learner = learner.set_callbacks(monitor).fit(X)
    >>> scores = [row["score"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    >>> len(scores)
    3
    """

    def __init__(self, X: ArrayLike | None = None) -> None:
        super().__init__(scoring=_score)
        self.X = X

    def on_fit_task_end(
        self,
        estimator: BaseSparseCoder,
        context: Any,
        *,
        X: ArrayLike | None = None,
        fitted_estimator: BaseSparseCoder | None = None,
    ) -> None:
        """Record the score; called by scikit-learn after a fit and each of its epochs.

        Parameters
        ----------
        estimator : estimator instance
            The estimator being fitted.
        context : CallbackContext
            Context of the fit or of an epoch.
        X : array-like of shape (n_samples, n_features), default=None
            Rows of the fit.
        fitted_estimator : estimator instance or None, default=None
            The estimator as if the fit had ended here.
        """
        rows = X if self.X is None else self.X
        # Dummy targets, which are never read; without targets nothing would be recorded.
        targets = None if rows is None else np.zeros(np.shape(rows)[0])
        super().on_fit_task_end(
            estimator, context, X=rows, y=targets, fitted_estimator=fitted_estimator
        )


def _score(estimator: Any, X: ArrayLike, y: Any = None) -> dict[str, float]:
    """Return what scikit-learn's monitor should record."""
    return {"score": estimator.score(X)}
