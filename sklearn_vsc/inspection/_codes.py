"""What codes look like: their values, the use of the atoms, and inclusion probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils.validation import check_array

from .._rows.array_api import to_host
from .._rows.numbers import check_count
from ._checks import check_fitted, import_pyplot
from ._layout import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CodeDisplay:
    """Histogram of the codes, use of the atoms, and posterior inclusion probabilities.

    Create it with :meth:`from_estimator` or :meth:`from_codes`.

    Parameters
    ----------
    codes : {array-like, sparse matrix} of shape (n_samples, n_components)
        Codes of some rows.

    inclusion : array-like of shape (n_samples, n_components), default=None
        Posterior probability that each code is non-zero. If None, its panel is left out.

    Attributes
    ----------
    values : ndarray of shape (n_nonzero,)
        The non-zero codes.

    usage : ndarray of shape (n_components,)
        Share of the rows that use each atom, that is, whose code for it is non-zero.

    inclusion : ndarray of shape (n_samples, n_components) or None
        Inclusion probabilities as given.

    axes_ : ndarray of matplotlib Axes
        Axes of the panels: values, use, and, if given, inclusion.

    figure_ : matplotlib Figure
        Figure that contains them.

    See Also
    --------
    DictionaryDisplay : The atoms themselves.

    Examples
    --------
    >>> from sklearn_vsc.inspection import CodeDisplay
    >>> display = CodeDisplay.from_codes([[0.0, 1.5], [-2.0, 0.5]])
    >>> display.usage
    array([0.5, 1. ])
    """

    def __init__(self, codes: Any, *, inclusion: npt.ArrayLike | None = None) -> None:
        codes = check_array(
            to_host(codes),
            accept_sparse="csc",
            dtype=[np.float64, np.float32],
            input_name="codes",
        )
        if issparse(codes):
            values = codes.data[codes.data != 0]
            n_users = np.diff((codes != 0).tocsc().indptr)
        else:
            values, n_users = codes[codes != 0], (codes != 0).sum(0)
        self.values = values
        self.usage = n_users / codes.shape[0]
        self.inclusion = None
        if inclusion is not None:
            self.inclusion = check_array(to_host(inclusion), input_name="inclusion")
            if self.inclusion.min() < 0 or self.inclusion.max() > 1:
                raise ValueError("inclusion must contain probabilities between 0 and 1.")

    def plot(
        self,
        *,
        ax: Axes | npt.ArrayLike | None = None,
        n_bins: int = 50,
        hist_kw: dict[str, Any] | None = None,
    ) -> CodeDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of them, default=None
            One axes for each panel, or a single one from a grid of subplots, which the panels
            replace. None creates a new figure.

        n_bins : int, default=50
            Number of bins of the histograms, whose counts are on a logarithmic scale.

        hist_kw : dict, default=None
            Additional keyword arguments for :meth:`matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : CodeDisplay
            This display.

        Raises
        ------
        ValueError
            If the number of axes in `ax` differs from the number of panels, or `n_bins` is not a
            positive whole number.
        """
        check_count(n_bins, "n_bins")
        plt = import_pyplot(self)
        self.axes_ = panels(plt, 2 if self.inclusion is None else 3, ax)
        self.figure_ = self.axes_[0].figure
        options = {"bins": n_bins, "log": True} | (hist_kw or {})
        self._draw_values(self.axes_[0], options)
        self._draw_usage(self.axes_[1])
        if self.inclusion is not None:
            axes = self.axes_[2]
            axes.hist(self.inclusion.ravel(), **({"range": (0, 1)} | options))
            axes.set(
                xlabel="probability of being non-zero",
                ylabel="number of codes",
                title=f"Inclusion: mean {self.inclusion.mean():.2g}",
            )
        return self

    def _draw_values(self, axes: Axes, options: dict[str, Any]) -> None:
        axes.set(xlabel="code", ylabel="number of codes")
        axes.set_title(f"Non-zero: {self.usage.mean():.1%} of all")
        if len(self.values):
            axes.hist(self.values, **options)
        else:
            axes.text(0.5, 0.5, "all codes are zero", transform=axes.transAxes, ha="center")

    def _draw_usage(self, axes: Axes) -> None:
        n_components = len(self.usage)
        n_dead = int(np.count_nonzero(self.usage == 0))
        axes.stairs(np.sort(self.usage)[::-1], np.arange(n_components + 1) + 0.5, fill=True)
        axes.set(
            xlabel="atom, most used first",
            ylabel="share of rows using it",
            title=f"Atoms: {n_dead} of {n_components} unused",
            xlim=(0.5, n_components + 0.5),
            ylim=(0, None if self.usage.any() else 1),
        )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: npt.ArrayLike,
        *,
        ax: Axes | npt.ArrayLike | None = None,
        n_bins: int = 50,
        hist_kw: dict[str, Any] | None = None,
    ) -> CodeDisplay:
        """Draw the codes of some rows under a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted estimator with a method `transform`: any of this library or of
            :mod:`sklearn.decomposition`. If it has a method `posterior` whose distributions put
            mass on zero, inclusion probabilities are drawn too.

        X : array-like of shape (n_samples, n_features)
            Rows to code; missing entries are NaN, if the estimator supports them.

        ax, n_bins, hist_kw
            As in :meth:`plot`.

        Returns
        -------
        display : CodeDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If the estimator has no `transform`.
        ValueError
            If X does not fit the estimator, or `ax` does not fit the panels.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_vsc import ThresholdedVSC
        >>> from sklearn_vsc.inspection import CodeDisplay
        >>> X = load_digits().data[:200]
        >>> model = ThresholdedVSC(16, max_iter=3, random_state=0).fit(X)
        >>> display = CodeDisplay.from_estimator(model, X)
        >>> display.usage.shape, display.inclusion.shape
        ((16,), (200, 16))
        """
        check_fitted(estimator, "transform", "draw any other codes with CodeDisplay.from_codes")
        inclusion = None
        # Without a proper prior there is no posterior.
        if hasattr(estimator, "posterior") and getattr(estimator, "alpha", None) != 0:
            inclusion = to_host(estimator.posterior(X).inclusion)
            # Under a continuous distribution no code is ever zero; there is nothing to draw.
            inclusion = None if np.all(inclusion == 1) else inclusion
        display = cls(estimator.transform(X), inclusion=inclusion)
        return display.plot(ax=ax, n_bins=n_bins, hist_kw=hist_kw)

    @classmethod
    def from_codes(
        cls,
        codes: Any,
        *,
        inclusion: npt.ArrayLike | None = None,
        ax: Axes | npt.ArrayLike | None = None,
        n_bins: int = 50,
        hist_kw: dict[str, Any] | None = None,
    ) -> CodeDisplay:
        """Draw given codes.

        Parameters
        ----------
        codes : {array-like, sparse matrix} of shape (n_samples, n_components)
            Codes of some rows.

        inclusion : array-like of shape (n_samples, n_components), default=None
            Posterior probability that each code is non-zero.

        ax, n_bins, hist_kw
            As in :meth:`plot`.

        Returns
        -------
        display : CodeDisplay
            The display, drawn.
        """
        return cls(codes, inclusion=inclusion).plot(ax=ax, n_bins=n_bins, hist_kw=hist_kw)
