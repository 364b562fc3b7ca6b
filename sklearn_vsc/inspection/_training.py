"""Training curves: the loss, its parts, and the sparsity of the codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._checks import check_fitted, import_pyplot
from ._layout import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Panels: entries of a record with their labels and the factor applied when drawing. Parts are
# drawn with the sign with which they enter the loss.
_LOSSES = {"loss": ("training", 1), "valid_loss": ("validation", 1)}
_PARTS = {
    "log_likelihood": ("$-$ log likelihood", -1),
    "kl": ("KL", 1),
    "reconstruction": ("reconstruction", 1),
    "penalty": ("penalty", 1),
}
_SPARSITY = {"density": ("density", 1)}
# Each epoch is marked with a point if there are no more than this.
_FEW_EPOCHS = 30


class TrainingDisplay:
    """Loss, parts of the loss and sparsity of the codes over the epochs of a fit.

    Create it with :meth:`from_estimator` or :meth:`from_history`.

    Parameters
    ----------
    history : iterable of dict
        A record for each epoch, as estimators store them in ``history_``. A panel is drawn for
        each group of entries that is present: ``loss`` and ``valid_loss``; the parts
        ``log_likelihood`` (drawn negated, as it enters the loss), ``kl``, ``reconstruction`` and
        ``penalty``; and ``density``, the share of non-zero codes.

    Attributes
    ----------
    history : list of dict
        The records as given.

    lines_ : dict of str to matplotlib Line2D
        The curve of each entry.

    axes_ : ndarray of matplotlib Axes
        Axes of the panels that were drawn, in the order loss, parts, density.

    figure_ : matplotlib Figure
        Figure that contains them.

    See Also
    --------
    CodeDisplay : The resulting codes.

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
            raise ValueError("history is empty: no epoch was completed.")
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
            One axes for each panel, or a single one from a grid of subplots, which the panels
            replace. None creates a new figure.

        line_kw : dict, default=None
            Additional keyword arguments for :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : TrainingDisplay
            This display.

        Raises
        ------
        ValueError
            If the number of axes in `ax` differs from the number of panels.
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
        """Return the unit of the loss, which is nats if the loss is a bound."""
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
            Fitted estimator with an attribute `history_`: any of this library.

        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        display : TrainingDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If the estimator has no `history_`.
        ValueError
            If no epoch was completed, or `ax` does not fit the panels.

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
        """Draw the records of a training run.

        Parameters
        ----------
        history : iterable of dict
            A record for each epoch, with `epoch`, `loss` and any of the other entries.

        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        display : TrainingDisplay
            The display, drawn.
        """
        return cls(history).plot(ax=ax, line_kw=line_kw)
