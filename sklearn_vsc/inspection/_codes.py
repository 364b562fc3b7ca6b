"""What codes look like: how large they are, which atoms they use, how sure they are."""

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
    """Sizes of the codes, use of the atoms, and how sure a posterior is of its zeros.

    Make it with :meth:`from_estimator` or :meth:`from_codes`.

    Parameters
    ----------
    codes : {array-like, sparse matrix} of shape (n_samples, n_components)
        Codes of some rows.

    inclusion : array-like of shape (n_samples, n_components), default=None
        Posterior probability that each code is not zero. None: no panel for it.

    Attributes
    ----------
    values : ndarray of shape (n_nonzero,)
        The codes that are not zero.

    usage : ndarray of shape (n_components,)
        Share of the rows that use each atom: whose code is not zero.

    inclusion : ndarray of shape (n_samples, n_components) or None
        As given.

    axes_ : ndarray of matplotlib Axes
        Axes of the panels: sizes, use, and inclusion where it is there.

    figure_ : matplotlib Figure
        Figure that holds them.

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
                raise ValueError("inclusion must hold probabilities, from 0 to 1.")

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
            One axes for each panel, or one of a grid of subplots that panels take the place of.
            None: a new figure.

        n_bins : int, default=50
            Bins of the histograms, whose counts are on a logarithmic scale.

        hist_kw : dict, default=None
            More keywords for :meth:`matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : CodeDisplay
            This display.

        Raises
        ------
        ValueError
            When `ax` has another number of axes than there are panels, or `n_bins` is no
            positive number.
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
                xlabel="probability of not being zero",
                ylabel="number of codes",
                title=f"Inclusion: mean {self.inclusion.mean():.2g}",
            )
        return self

    def _draw_values(self, axes: Axes, options: dict[str, Any]) -> None:
        axes.set(xlabel="code", ylabel="number of codes")
        axes.set_title(f"Not zero: {self.usage.mean():.1%} of all")
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
            ylabel="share of rows that use it",
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
        """Draw the codes that a fitted estimator gives some rows.

        Parameters
        ----------
        estimator : estimator instance
            Fitted, with a method `transform`: any of this library, or of
            :mod:`sklearn.decomposition`. Of one with a method `posterior`, whose laws have an
            atom at zero, inclusion probabilities are drawn too.

        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN means missing, where the estimator takes it.

        ax, n_bins, hist_kw
            As in :meth:`plot`.

        Returns
        -------
        display : CodeDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            When the estimator has no `transform`.
        ValueError
            When X does not fit the estimator, or `ax` the panels.

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
            # Of a law with a density no code is ever zero, which needs no picture.
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
        """Draw codes at hand.

        Parameters
        ----------
        codes : {array-like, sparse matrix} of shape (n_samples, n_components)
            Codes of some rows.

        inclusion : array-like of shape (n_samples, n_components), default=None
            Posterior probability that each code is not zero.

        ax, n_bins, hist_kw
            As in :meth:`plot`.

        Returns
        -------
        display : CodeDisplay
            The display, drawn.
        """
        return cls(codes, inclusion=inclusion).plot(ax=ax, n_bins=n_bins, hist_kw=hist_kw)
