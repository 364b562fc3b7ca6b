"""How a training went: the loss, what it is made of, and how sparse the codes were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._checks import check_fitted, import_pyplot
from ._layout import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Panels: entries of a record with their labels and the factor they are drawn with. The parts are
# drawn as what they add to the loss.
_LOSSES = {"loss": ("training", 1), "valid_loss": ("validation", 1)}
_PARTS = {
    "log_likelihood": ("$-$ log likelihood", -1),
    "kl": ("KL", 1),
    "reconstruction": ("reconstruction", 1),
    "penalty": ("penalty", 1),
}
_SPARSITY = {"density": ("density", 1)}
# Up to so many epochs each has a mark.
_FEW_EPOCHS = 30


class TrainingDisplay:
    """Loss, parts of the loss and sparsity of the codes over the epochs of a fit.

    Make it with :meth:`from_estimator` or :meth:`from_history`.

    Parameters
    ----------
    history : iterable of dict
        A record for each epoch, as estimators keep them in ``history_``. A panel is drawn for
        what is in them: ``loss`` and ``valid_loss``; their parts ``log_likelihood`` (as what it
        takes off the loss), ``kl``, ``reconstruction`` and ``penalty``; ``density``, the share
        of codes that are not zero.

    Attributes
    ----------
    history : list of dict
        As given.

    lines_ : dict of str to matplotlib Line2D
        The curve of each entry.

    axes_ : ndarray of matplotlib Axes
        Axes of the panels: loss, parts, density, as far as they are there.

    figure_ : matplotlib Figure
        Figure that holds them.

    See Also
    --------
    CodeDisplay : The codes that came of it.

    Examples
    --------
    >>> from sklearn_vsc.inspection import TrainingDisplay
    >>> history = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]
    >>> display = TrainingDisplay.from_history(history)
    >>> list(display.lines_)
    ['loss']
    """

    def __init__(self, history: Iterable[Mapping[str, Any]]) -> None:
        self.history = [dict(record) for record in history]
        if not self.history:
            raise ValueError("history is empty: not one epoch was finished.")
        for record in self.history:
            if not {"epoch", "loss"} <= set(record):
                raise ValueError(
                    "Each record of a history needs 'epoch' and 'loss'; one has only "
                    f"{sorted(record)}."
                )

    def plot(
        self, *, ax: Axes | npt.ArrayLike | None = None, line_kw: dict[str, Any] | None = None
    ) -> TrainingDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of them, default=None
            One axes for each panel, or one of a grid of subplots that panels take the place of.
            None: a new figure.

        line_kw : dict, default=None
            More keywords for :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : TrainingDisplay
            This display.

        Raises
        ------
        ValueError
            When `ax` has another number of axes than there are panels.
        """
        plt = import_pyplot(self)
        unit = self._unit()
        wanted = [
            (_LOSSES, f"loss{unit}"),
            (_PARTS, f"parts of the loss{unit}"),
            (_SPARSITY, "share of non-zero codes"),
        ]
        drawn = [(entries, label) for entries, label in wanted if self._has(entries)]
        self.axes_ = panels(plt, len(drawn), ax)
        self.figure_ = self.axes_[0].figure
        self.lines_: dict[str, Any] = {}
        for axes, (entries, label) in zip(self.axes_, drawn, strict=True):
            self._draw(axes, entries, line_kw or {})
            axes.set(xlabel="epoch", ylabel=label)
            axes.grid(alpha=0.3)
            axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
            if len(axes.get_lines()) > 1:
                axes.legend(frameon=False)
            if entries is _SPARSITY:
                axes.set_ylim(0, 1.1 * float(np.max(self.lines_["density"].get_ydata())) or 1)
        return self

    def _draw(
        self, axes: Axes, entries: dict[str, tuple[str, int]], line_kw: dict[str, Any]
    ) -> None:
        for name, (label, sign) in entries.items():
            points = [(r["epoch"], sign * r[name]) for r in self.history if name in r]
            if points:
                options = {"label": label, "marker": "." if len(points) <= _FEW_EPOCHS else ""}
                (self.lines_[name],) = axes.plot(*np.array(points).T, **(options | line_kw))

    def _has(self, entries: Iterable[str]) -> bool:
        return any(name in record for record in self.history for name in entries)

    def _unit(self) -> str:
        """Unit of the loss: nats where it is a bound."""
        return ", nats per row" if self._has(["log_likelihood"]) else " per row"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Axes | npt.ArrayLike | None = None,
        line_kw: dict[str, Any] | None = None,
    ) -> TrainingDisplay:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with an attribute `history_`: any of this library.

        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        display : TrainingDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            When the estimator keeps no `history_`.
        ValueError
            When no epoch was finished, or `ax` does not fit.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_vsc import ThresholdedVSC
        >>> from sklearn_vsc.inspection import TrainingDisplay
        >>> X = load_digits().data[:200]
        >>> model = ThresholdedVSC(16, max_iter=3, random_state=0).fit(X)
        >>> display = TrainingDisplay.from_estimator(model)
        >>> list(display.lines_)
        ['loss', 'log_likelihood', 'kl', 'density']
        """
        check_fitted(
            estimator, "history_", "draw any other records with TrainingDisplay.from_history"
        )
        return cls.from_history(estimator.history_, ax=ax, line_kw=line_kw)

    @classmethod
    def from_history(
        cls,
        history: Iterable[Mapping[str, Any]],
        *,
        ax: Axes | npt.ArrayLike | None = None,
        line_kw: dict[str, Any] | None = None,
    ) -> TrainingDisplay:
        """Draw records of a training.

        Parameters
        ----------
        history : iterable of dict
            A record for each epoch, with `epoch`, `loss` and what else there is.

        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        display : TrainingDisplay
            The display, drawn.
        """
        return cls(history).plot(ax=ax, line_kw=line_kw)
