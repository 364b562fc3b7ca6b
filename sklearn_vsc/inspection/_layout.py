"""Layout of figures: the tiles of a mosaic, and panels side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Width and height of a panel in inches.
PANEL = (3.6, 3.0)


def tile(tiles: npt.NDArray[Any], n_columns: int, gap: float) -> npt.NDArray[Any]:
    """Arrange (n, height, width, ...) tiles on a grid, row by row, one pixel apart and around."""
    n_tiles, height, width, *channels = tiles.shape
    n_rows = math.ceil(n_tiles / n_columns)
    shape = (n_rows * (height + 1) + 1, n_columns * (width + 1) + 1, *channels)
    mosaic = np.full(shape, gap, dtype=tiles.dtype)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, n_columns)
        top, left = 1 + row * (height + 1), 1 + column * (width + 1)
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def panels(plt: Any, n_panels: int, ax: Axes | npt.ArrayLike | None) -> npt.NDArray[Any]:
    """Return axes for panels side by side.

    Uses the given axes, splits a single given one into panels, or creates a new figure.
    """
    if ax is None:
        width, height = PANEL
        size = width * n_panels, height
        _, axes = plt.subplots(1, n_panels, figsize=size, layout="constrained", squeeze=False)
        return axes[0]
    axes = np.array(ax, dtype=object).ravel()
    if len(axes) == n_panels:
        return axes
    if len(axes) != 1:
        raise ValueError(
            f"ax must be a single axes, or {n_panels}, one for each panel; got {len(axes)}."
        )
    (whole,) = axes
    grid = divide(whole, 1, n_panels)
    cells = [whole.figure.add_subplot(grid[0, column]) for column in range(n_panels)]
    return np.array(cells, dtype=object)


def divide(ax: Axes, n_rows: int, n_columns: int) -> Any:
    """Hide the axes and return a grid in their place."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "ax must belong to a grid of subplots, since several axes are drawn in its place."
        )
    ax.set_axis_off()
    # A layout engine makes room for labels by itself.
    engine = ax.figure.get_layout_engine()
    room = {"wspace": 0.4, "hspace": 0.5} if engine is None else {}
    return place.subgridspec(n_rows, n_columns, **room)
