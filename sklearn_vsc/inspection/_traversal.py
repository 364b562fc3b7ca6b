"""What single codes represent: rows decoded while one code at a time is varied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils.validation import check_array

from .._rows.array_api import to_host
from .._rows.numbers import check_count
from ._checks import check_fitted, check_image_shape, import_pyplot
from ._layout import divide, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

_N_VALUES = 9
# Range of the codes, in prior standard deviations of a non-zero code.
_REACH = 3.0
# Share of the codes of the given rows that the values cover.
_COVERED = 0.99
# Width of a tile of a mosaic, and width and height of the axes for a component's curves, in inches.
_TILE, _CURVES = 0.7, (3.0, 2.2)
_CURVES_IN_A_ROW = 4


class LatentTraversalDisplay:
    """Latent traversal: rows decoded while one code is varied and the others are held fixed.

    Create it with :meth:`from_estimator`. Images are drawn as a mosaic with a row for each
    component and a column for each value; other data are drawn as curves.

    Parameters
    ----------
    decoded : array-like of shape (n_shown, n_values, n_features)
        The decoded rows.

    components : array-like of shape (n_shown,)
        Index of the component that each traversal varies.

    values : array-like of shape (n_values,)
        The values that its code takes.

    image_shape : tuple of int, default=None
        Shape of a row: (height, width), or (channels, height, width) with 1 channel, or 3 for
        colour. None means a square, if the number of features allows it.

    kind : {'auto', 'image', 'line'}, default='auto'
        How to draw. 'auto' draws images if `image_shape` is given or the number of features
        allows a square, and curves otherwise.

    Attributes
    ----------
    decoded, components, values
        The parameters as arrays.

    image_shape : tuple of int or None
        Shape of an image; None if curves are drawn.

    mosaic_ : ndarray of shape (height, width) or (height, width, 3)
        The image that was drawn, unless curves were; NaN marks the gaps in a mosaic without
        colour.

    axes_ : ndarray of matplotlib Axes
        The axes of the mosaic, or of the curves of each component.

    figure_ : matplotlib Figure
        Figure that contains them.

    See Also
    --------
    DictionaryDisplay : For linear decoders, whose atoms show the same information.
    """

    def __init__(
        self,
        decoded: npt.ArrayLike,
        *,
        components: npt.ArrayLike,
        values: npt.ArrayLike,
        image_shape: tuple[int, ...] | None = None,
        kind: str = "auto",
    ) -> None:
        if kind not in ("auto", "image", "line"):
            raise ValueError(f"kind must be 'auto', 'image' or 'line', got {kind!r}.")
        self.decoded = np.asarray(to_host(decoded))
        self.components, self.values = np.asarray(components), np.asarray(values)
        wanted = (*self.components.shape, *self.values.shape)
        if self.decoded.ndim != 3 or self.decoded.shape[:2] != wanted:
            raise ValueError(
                f"decoded has shape {self.decoded.shape}; for these components and values it must "
                f"have shape {wanted} followed by the number of features."
            )
        n_features = self.decoded.shape[2]
        square = math.isqrt(n_features) ** 2 == n_features
        self.image_shape: tuple[int, ...] | None = None
        if kind == "image" or (kind == "auto" and (image_shape is not None or square)):
            self.image_shape = check_image_shape(image_shape, n_features, "decoded rows")

    def plot(
        self,
        *,
        ax: Axes | None = None,
        cmap: str | Colormap | None = None,
        im_kw: dict[str, Any] | None = None,
        line_kw: dict[str, Any] | None = None,
    ) -> LatentTraversalDisplay:
        """Draw the traversals.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw the mosaic on; for curves, one from a grid of subplots, which the axes of
            the curves replace. None creates a new figure.

        cmap : str or matplotlib Colormap, default=None
            Colormap for images without colour, 'gray' by default, or for the values of the
            curves, 'coolwarm' by default.

        im_kw : dict, default=None
            Additional keyword arguments for :meth:`matplotlib.axes.Axes.imshow`.

        line_kw : dict, default=None
            Additional keyword arguments for :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LatentTraversalDisplay
            This display.
        """
        plt = import_pyplot(self)
        if self.image_shape is None:
            self._plot_curves(plt, ax, cmap or "coolwarm", line_kw or {})
        else:
            self._plot_images(plt, ax, self.image_shape, cmap or "gray", im_kw or {})
        return self

    def _plot_images(
        self,
        plt: Any,
        ax: Axes | None,
        image_shape: tuple[int, ...],
        cmap: str | Colormap,
        im_kw: dict[str, Any],
    ) -> None:
        *channels, height, width = image_shape
        n_rows, n_columns = self.decoded.shape[:2]
        low, high = float(self.decoded.min()), float(self.decoded.max())
        if channels == [3]:
            images = np.moveaxis(self.decoded.reshape(-1, 3, height, width), 1, -1)
            if low < 0 or high > 1:
                images = (images - low) / ((high - low) or 1.0)
            self.mosaic_ = tile(images, n_columns, 1.0)
        else:
            images = self.decoded.reshape(-1, height, width)
            self.mosaic_ = tile(images, n_columns, np.nan)
        if ax is None:
            tall = _TILE * max(1.0, height / width)
            size = _TILE * n_columns + 1.0, tall * n_rows + 0.9
            _, ax = plt.subplots(figsize=size, layout="constrained")
        options = {"cmap": cmap, "vmin": low, "vmax": high, "interpolation": "nearest"}
        ax.imshow(self.mosaic_, **(options | im_kw))
        ax.set(xlabel="code", ylabel="component")
        ax.set_xticks((width + 1) * np.arange(n_columns) + (width + 1) / 2)
        ax.set_xticklabels([f"{value:.2g}" for value in self.values])
        ax.set_yticks((height + 1) * np.arange(n_rows) + (height + 1) / 2)
        ax.set_yticklabels([str(component) for component in self.components])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        self.axes_ = np.array([ax], dtype=object)
        self.figure_ = ax.figure

    def _plot_curves(
        self, plt: Any, ax: Axes | None, cmap: str | Colormap, line_kw: dict[str, Any]
    ) -> None:
        n_shown = len(self.components)
        widest = _CURVES_IN_A_ROW if ax is None else math.ceil(math.sqrt(n_shown))
        n_rows = math.ceil(n_shown / widest)
        n_columns = math.ceil(n_shown / n_rows)
        if ax is None:
            size = _CURVES[0] * n_columns + 1.0, _CURVES[1] * n_rows + 0.4
            self.figure_ = plt.figure(figsize=size, layout="constrained")
            grid = self.figure_.add_gridspec(n_rows, n_columns)
        else:
            self.figure_ = ax.figure
            grid = divide(ax, n_rows, n_columns)
        norm = plt.Normalize(self.values.min(), self.values.max())
        colours = plt.cm.ScalarMappable(norm, cmap)
        self.axes_ = np.empty(n_shown, dtype=object)
        for index, component in enumerate(self.components):
            first = self.axes_[0]
            axes = self.figure_.add_subplot(
                grid[divmod(index, n_columns)], sharex=first, sharey=first
            )
            for value, row in zip(self.values, self.decoded[index], strict=True):
                axes.plot(row, **({"color": colours.to_rgba(value), "linewidth": 1} | line_kw))
            axes.set_title(f"component {component}", fontsize="medium")
            axes.label_outer()
            self.axes_[index] = axes
            if index + n_columns >= n_shown:
                axes.set_xlabel("feature")
                axes.tick_params(labelbottom=True)
        self.figure_.colorbar(colours, ax=list(self.axes_), label="code")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: npt.ArrayLike | None = None,
        *,
        components: npt.ArrayLike | None = None,
        n_components: int = 8,
        values: npt.ArrayLike | None = None,
        image_shape: tuple[int, ...] | None = None,
        kind: str = "auto",
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> LatentTraversalDisplay:
        """Decode and draw traversals of a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted estimator with `transform` and `inverse_transform`: any of this library, or any
            of :mod:`sklearn.decomposition` that has both.

        X : array-like of shape (n_samples, n_features) or (n_features,), default=None
            The other components are held at the code of this row, or of the first row; missing
            entries are NaN, if the estimator supports them. If X has several rows, their codes
            also determine which components to show and over what range. None holds the other
            components at zero, the mean of the prior.

        components : array-like of int, default=None
            Indices of the components to vary. None takes those whose codes vary most over X, if it
            has several rows; otherwise those that most training rows use (`component_usage_`),
            with ties broken in favour of those that change the decoded row most.

        n_components : int, default=8
            Maximum number of components to select if `components` is None.

        values : array-like of shape (n_values,), default=None
            Values that a code takes. None takes nine values, symmetric around zero, which cover
            99% of the non-zero codes of these components over X, if it has several rows;
            otherwise three prior standard deviations of a non-zero code.

        image_shape : tuple of int, default=None
            Shape of a row. None takes the estimator's own `image_shape`, if it has one, and
            otherwise a square, if the number of features allows it.

        kind : {'auto', 'image', 'line'}, default='auto'
            How to draw. 'auto' draws images if there is a shape for them, and curves otherwise.

        ax : matplotlib Axes, default=None
            As in :meth:`plot`.

        **plot_params : dict
            `cmap`, `im_kw`, `line_kw`: as in :meth:`plot`.

        Returns
        -------
        display : LatentTraversalDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If the estimator cannot decode.
        ValueError
            If X, a component or `image_shape` does not fit, or the range of the codes is unknown.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_vsc import SparseVAE
        >>> from sklearn_vsc.inspection import LatentTraversalDisplay
        >>> X = load_digits().data[:200]
        >>> model = SparseVAE(6, max_iter=3, random_state=0).fit(X)
        >>> display = LatentTraversalDisplay.from_estimator(model, X[0])
        >>> display.decoded.shape
        (6, 9, 64)
        """
        check_fitted(
            estimator, "inverse_transform", "draw other rows with LatentTraversalDisplay(...)"
        )
        codes = _codes(estimator, X)
        if components is None:
            check_count(n_components, "n_components")
            chosen = _order(estimator, codes)[:n_components]
        else:
            chosen = _check_components(components, codes.shape[1])
        if values is None:
            reach = _reach(estimator, codes[:, chosen])
            values = np.linspace(-reach, reach, _N_VALUES)
        run = check_array(np.atleast_2d(np.asarray(values)), dtype=np.float64, input_name="values")[
            0
        ]
        if image_shape is None:
            own = getattr(estimator, "image_shape", None)
            image_shape = None if own is None else tuple(own)
        decoded = _traverse(estimator, codes[0], chosen, run)
        display = cls(decoded, components=chosen, values=run, image_shape=image_shape, kind=kind)
        return display.plot(ax=ax, **plot_params)


def _codes(estimator: Any, X: npt.ArrayLike | None) -> npt.NDArray[Any]:
    """Return the codes of X, or zeros without X."""
    if X is None:
        return np.zeros((1, len(estimator.get_feature_names_out())))
    X = to_host(X)
    codes = estimator.transform(np.reshape(X, (1, -1)) if np.ndim(X) == 1 else X)
    codes = codes.toarray() if issparse(codes) else np.asarray(to_host(codes))
    return codes.astype(np.float64, copy=False)


def _order(estimator: Any, codes: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the component indices, most relevant first."""
    n_components = codes.shape[1]
    if len(codes) > 1:
        return np.argsort(-codes.var(axis=0), kind="stable")
    usage = np.asarray(to_host(getattr(estimator, "component_usage_", np.zeros(n_components))))
    if len(usage) != n_components:
        usage = np.zeros(n_components)
    everyone = np.arange(n_components)
    moved = _traverse(estimator, codes[0], everyone, np.array([-1.0, 1.0]))
    change = np.linalg.norm(moved[:, 1] - moved[:, 0], axis=1)
    return np.lexsort((-change, -usage))


def _reach(estimator: Any, codes: npt.NDArray[Any]) -> float:
    """Return the largest absolute value that codes take in a traversal."""
    if len(codes) > 1 and codes.any():
        return float(np.quantile(np.abs(codes[codes != 0]), _COVERED))
    family = getattr(getattr(estimator, "module_", None), "family", None)
    if family is None:
        scale = math.sqrt(2) * getattr(estimator, "prior_scale_", math.inf)
    else:
        scale = math.sqrt(family.prior_variance / family.prior_inclusion)
        # A Cauchy distribution has no variance.
        scale = scale if math.isfinite(scale) else family.prior_scale
    if not math.isfinite(scale):
        raise ValueError(
            f"Cannot determine a range for the codes of this {type(estimator).__name__}: pass "
            "values, or an X with several rows whose codes are not all zero."
        )
    return _REACH * scale


def _traverse(
    estimator: Any,
    code: npt.NDArray[Any],
    components: npt.NDArray[np.intp],
    values: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Return the decoded rows, of shape (n_components, n_values, n_features)."""
    n_shown, n_values = len(components), len(values)
    codes = np.tile(code, (n_shown, n_values, 1))
    codes[np.arange(n_shown), :, components] = values
    rows = np.asarray(to_host(estimator.inverse_transform(codes.reshape(n_shown * n_values, -1))))
    return rows.reshape(n_shown, n_values, -1)


def _check_components(components: npt.ArrayLike, n_components: int) -> npt.NDArray[np.intp]:
    chosen = np.atleast_1d(np.asarray(components))
    sound = chosen.ndim == 1 and chosen.size and chosen.dtype.kind in "iu"
    if not sound or chosen.min() < 0 or chosen.max() >= n_components:
        raise ValueError(
            f"components must be whole numbers from 0 to {n_components - 1}, got {components!r}."
        )
    return chosen.astype(np.intp)
