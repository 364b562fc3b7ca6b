"""The units of a model: X less its column means, divided by one number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._rows.arrays import to_tensor
from .._rows.missing import ObservedRows
from .._rows.sources import RowSource


@dataclass(frozen=True)
class Units:
    """What a fit subtracts from X and divides it by, so that its unit does not matter.

    Rows are converted once on their way in and once on their way out.

    Attributes
    ----------
    offset : ndarray of shape (n_features,)
        Column means, or zeros where the likelihood has no units.
    scale : float
        The number that X less its offset is divided by.
    fill : ndarray of shape (n_features,)
        What networks read in place of a missing entry, in the units of the model.
    reads_mask : bool
        Whether encoders also read where entries are missing.
    """

    offset: NDArray
    scale: float
    fill: NDArray
    reads_mask: bool

    @classmethod
    def of_rows(cls, rows: RowSource, observed: ObservedRows, *, has_units: bool) -> Self:
        """Find the units of training rows."""
        offset, scale = np.zeros(rows.n_features, dtype=rows.dtype), 1.0
        if has_units:
            offset, scale = _mean_and_spread(rows, observed)
        fill = (observed.means - offset) / scale
        return cls(offset, scale, fill, observed.has_holes)

    def following(self, rows: RowSource, observed: ObservedRows, share: float) -> Self:
        """Return units that have moved towards those of further rows, by this share."""
        with np.errstate(invalid="ignore"):
            means = np.nan_to_num(observed.means, nan=0.0)
        # A column that these rows do not observe stays.
        means = np.where(observed.counts > 0, means, self.offset)
        shift = means - self.offset
        offset = self.offset + share * shift
        energy = sum(np.nansum((chunk - means) ** 2) for chunk in rows.chunks())
        # The mean square of all rows around the new offset.
        square = (1 - share) * self.scale**2 + share * energy / observed.n_observed
        square += (1 - share) * share * np.mean(shift**2)
        offset = offset.astype(self.offset.dtype)
        return replace(self, offset=offset, scale=float(np.sqrt(square)))

    def to_model(self, X: NDArray, device: torch.device) -> Tensor:
        """Return rows in the units of the model."""
        offset = to_tensor(self.offset.astype(X.dtype, copy=False), device)
        return (to_tensor(X, device) - offset) / self.scale

    def to_data(self, rows: Tensor) -> Tensor:
        """Return rows in the units of X."""
        return rows * self.scale + torch.from_numpy(self.offset).to(rows)

    def log_density(self, log_density: NDArray, X: NDArray) -> NDArray:
        """Convert log densities of rows in model units to log densities of the rows of X."""
        return log_density - np.count_nonzero(~np.isnan(X), axis=1) * np.log(self.scale)

    def filled(self, rows: Tensor) -> Tensor:
        """Return rows in model units with every missing entry filled, to start networks from."""
        return torch.where(rows.isnan(), torch.from_numpy(self.fill).to(rows), rows)


def _mean_and_spread(rows: RowSource, observed: ObservedRows) -> tuple[NDArray, float]:
    """Return column means, and the root mean square of what they leave."""
    mean = observed.means
    energy = sum(np.nansum((chunk - mean) ** 2) for chunk in rows.chunks())
    unit, size = float(np.sqrt(energy / observed.n_observed)), float(np.abs(mean).max())
    if unit <= 10 * np.finfo(rows.dtype).eps * size:
        # All rows are equal, and what is left is rounding error.
        unit = size or 1.0
    return mean.astype(rows.dtype), unit
