"""The atoms of a dictionary as a mosaic of small images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_array

from .._rows.array_api import to_host
from .._rows.numbers import check_count
from ._checks import check_fitted, check_image_shape, import_pyplot
from ._layout import tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


class DictionaryDisplay:
    """The atoms of a dictionary as a mosaic of small images.

    Create it with :meth:`from_estimator` or :meth:`from_components`, which select, order
    and draw the atoms. The constructor takes the atoms in their final order and leaves the
    drawing to :meth:`plot`.

    Parameters
    ----------
    components : array-like of shape (n_shown, n_features)
        The atoms, in the order in which they are drawn: row by row from the top left.

    image_shape : tuple of int, default=None
        Shape of an atom: (height, width), or (channels, height, width) with 1 channel, or
        3 for colour. None means a square.

    indices : array-like of shape (n_shown,), default=None
        Row index of each atom in the full dictionary. None means that `components` is the full
        dictionary.

    Attributes
    ----------
    components, image_shape, indices
        The parameters as arrays and a tuple, with defaults filled in.

    mosaic_ : ndarray of shape (height, width) or (height, width, 3)
        The image that was drawn. NaN marks the gaps in a mosaic without colour.

    im_ : matplotlib AxesImage
        The drawn mosaic.

    ax_ : matplotlib Axes
        Axes with the mosaic.

    figure_ : matplotlib Figure
        Figure that contains the axes.

    Examples
    --------
    >>> from sklearn_vsc.datasets import make_bars
    >>> from sklearn_vsc.inspection import DictionaryDisplay
    >>> X, components, codes = make_bars(size=4, random_state=0)
    >>> display = DictionaryDisplay.from_components(components)
    >>> display.mosaic_.shape
    (16, 16)
    """

    def __init__(
        self,
        components: npt.ArrayLike,
        *,
        image_shape: tuple[int, ...] | None = None,
        indices: npt.ArrayLike | None = None,
    ) -> None:
        self.components = _check_components(components)
        self.image_shape = check_image_shape(image_shape, self.components.shape[1], "atoms")
        n_shown = len(self.components)
        self.indices = np.arange(n_shown) if indices is None else np.asarray(indices)
        if self.indices.shape != (n_shown,):
            raise ValueError(
                f"indices has shape {self.indices.shape}; it must give one row for each of the "
                f"{n_shown} atoms."
            )

    def plot(
        self,
        *,
        ax: Axes | None = None,
        cmap: str | Colormap = "gray",
        scale: str = "each",
        n_columns: int | None = None,
        im_kw: dict[str, Any] | None = None,
    ) -> DictionaryDisplay:
        """Draw the mosaic.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None creates new axes in a new figure.

        cmap : str or matplotlib Colormap, default='gray'
            Colormap for atoms without colour, centred on zero. A diverging colormap, such as
            `'RdBu_r'`, shows the signs.

        scale : {'each', 'common'}, default='each'
            Whether the ends of the colormap are plus and minus the largest absolute value of
            each atom ('each') or of all atoms shown ('common'). Atoms in colour are scaled in the
            same way, around a middle grey.

        n_columns : int, default=None
            Number of atoms in a row of the mosaic. None makes the mosaic as square as possible.

        im_kw : dict, default=None
            Additional keyword arguments for :meth:`matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : DictionaryDisplay
            This display.
        """
        if scale not in ("each", "common"):
            raise ValueError(f"scale must be 'each' or 'common', got {scale!r}.")
        if n_columns is not None:
            check_count(n_columns, "n_columns")
        plt = import_pyplot(self)

        peaks = np.abs(self.components).max(axis=1, keepdims=True)
        if scale == "each":
            atoms, limit = self.components / np.where(peaks > 0, peaks, 1.0), 1.0
        else:
            atoms, limit = self.components, float(peaks.max()) or 1.0
        *channels, height, width = self.image_shape
        n_shown = len(atoms)
        tiles: npt.NDArray[Any]
        if channels == [3]:
            colours = 0.5 + 0.5 * atoms / limit
            tiles = np.moveaxis(colours.reshape(n_shown, 3, height, width), 1, -1)
            gap = 1.0
        else:
            tiles, gap = atoms.reshape(n_shown, height, width), np.nan
        self.mosaic_ = tile(tiles, n_columns or _n_columns(n_shown, height, width), gap)

        colormap = plt.get_cmap(cmap)
        # White gaps would be invisible with a colormap that is white at zero.
        is_light = float(np.mean(colormap(0.5)[:3])) > 0.75
        options: dict[str, Any] = {
            "cmap": colormap.with_extremes(bad="black" if is_light else "white"),
            "vmin": -limit,
            "vmax": limit,
            "aspect": "equal",
            "interpolation": "nearest",
        }
        if ax is None:
            _, ax = plt.subplots()
        self.im_ = ax.imshow(self.mosaic_, **(options | (im_kw or {})))
        ax.set_axis_off()
        self.ax_ = ax
        self.figure_ = ax.figure
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        image_shape: tuple[int, ...] | None = None,
        n_components: int | None = None,
        order: str | None = "use",
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> DictionaryDisplay:
        """Draw the dictionary of a fitted estimator.

        Parameters
        ----------
        estimator : estimator instance
            Fitted estimator with an attribute `components_` of shape (n_components, n_features):
            any of this library or of :mod:`sklearn.decomposition`.

        image_shape : tuple of int, default=None
            Shape of an atom: (height, width), or (channels, height, width) with 1 channel,
            or 3 for colour. None means a square.

        n_components : int, default=None
            Maximum number of atoms to show, taken from the start of the order. None shows all.

        order : {'use', 'norm', None}, default='use'
            `'use'` puts the atoms used by the largest share of the training rows first
            (`component_usage_`); if the estimator does not have this attribute, `'norm'` is used
            instead. `'norm'` puts the atoms with the largest norm first. None keeps their order.

        ax : matplotlib Axes, default=None
            Axes to draw on. None creates new axes in a new figure.

        **plot_params : dict
            `cmap`, `scale`, `n_columns`, `im_kw`: as in :meth:`plot`.

        Returns
        -------
        display : DictionaryDisplay
            The display, drawn.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.decomposition import NMF
        >>> from sklearn_vsc.inspection import DictionaryDisplay
        >>> X, _ = load_digits(return_X_y=True)
        >>> nmf = NMF(9, init="nndsvda", tol=1e-2, random_state=0).fit(X)
        >>> display = DictionaryDisplay.from_estimator(nmf, image_shape=(8, 8))
        >>> display.components.shape
        (9, 64)
        """
        check_fitted(
            estimator,
            "components_",
            "draw any other array with DictionaryDisplay.from_components",
        )
        return cls.from_components(
            estimator.components_,
            usage=getattr(estimator, "component_usage_", None),
            image_shape=image_shape,
            n_components=n_components,
            order=order,
            ax=ax,
            **plot_params,
        )

    @classmethod
    def from_components(
        cls,
        components: npt.ArrayLike,
        *,
        usage: npt.ArrayLike | None = None,
        image_shape: tuple[int, ...] | None = None,
        n_components: int | None = None,
        order: str | None = "use",
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> DictionaryDisplay:
        """Draw a dictionary given as an array.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features)
            The atoms.

        usage : array-like of shape (n_components,), default=None
            How much each atom is used. Without it, `order='use'` falls back to `'norm'`.

        image_shape, n_components, order
            As in :meth:`from_estimator`.

        ax : matplotlib Axes, default=None
            Axes to draw on. None creates new axes in a new figure.

        **plot_params : dict
            `cmap`, `scale`, `n_columns`, `im_kw`: as in :meth:`plot`.

        Returns
        -------
        display : DictionaryDisplay
            The display, drawn.
        """
        atoms = _check_components(components)
        indices = _order(atoms, usage, order)
        if n_components is not None:
            check_count(n_components, "n_components")
            indices = indices[:n_components]
        display = cls(atoms[indices], image_shape=image_shape, indices=indices)
        return display.plot(ax=ax, **plot_params)


def _order(
    atoms: npt.NDArray[Any], usage: npt.ArrayLike | None, order: str | None
) -> npt.NDArray[np.intp]:
    """Return the row indices of `atoms` in the order in which to draw them."""
    if order not in ("use", "norm", None):
        raise ValueError(f"order must be 'use', 'norm' or None, got {order!r}.")
    if order is None:
        return np.arange(len(atoms))
    if order == "use" and usage is not None:
        key = np.asarray(usage, dtype=np.float64)
        if key.shape != (len(atoms),):
            raise ValueError(
                f"usage has shape {key.shape}; it must give one number for each of the "
                f"{len(atoms)} atoms."
            )
    else:
        # Rounded, so that atoms of unit norm keep their order.
        norms = np.linalg.norm(atoms, axis=1)
        key = np.round(norms / (norms.max() or 1.0), 5)
    return np.argsort(-key, kind="stable")


def _n_columns(n_tiles: int, height: int, width: int) -> int:
    """Return the number of columns for the most square mosaic in pixels; the larger one on ties."""

    def badness(n_columns: int) -> tuple[float, int]:
        n_rows = math.ceil(n_tiles / n_columns)
        elongation = math.log(n_columns * (width + 1)) - math.log(n_rows * (height + 1))
        return round(abs(elongation), 9), -n_columns

    return min(range(1, n_tiles + 1), key=badness)


def _check_components(components: npt.ArrayLike) -> npt.NDArray[Any]:
    return check_array(to_host(components), dtype=[np.float64, np.float32], input_name="components")
