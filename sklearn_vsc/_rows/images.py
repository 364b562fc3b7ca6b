"""Images given as flat rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np


def check_image_shape(
    image_shape: Sequence[int] | None, n_features: int | None, needed_by: str
) -> tuple[int, int, int]:
    """Return (channels, height, width) as a tuple, or raise an error that says what is expected.

    Parameters
    ----------
    image_shape : tuple of three ints
        As the user gave it.
    n_features : int or None
        Length of a row, if known.
    needed_by : str
        What needs the shape, for the error message.
    """
    wanted = f"The 'image_shape' parameter must be (channels, height, width) for {needed_by}"
    sides: tuple[Any, ...] = ()
    if isinstance(image_shape, (tuple, list, np.ndarray)) and getattr(image_shape, "ndim", 1) == 1:
        sides = tuple(image_shape)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in sides)
    if len(sides) != 3 or not whole:
        raise ValueError(f"{wanted}, three whole numbers of at least 1; got {image_shape!r}.")
    channels, height, width = map(int, sides)
    size = math.prod((channels, height, width))
    if n_features not in (None, size):
        raise ValueError(
            f"The 'image_shape' parameter must multiply to the {n_features} features of X; "
            f"got {image_shape!r}, which multiplies to {size}."
        )
    return channels, height, width


def flat_images(X: Any, image_shape: Sequence[int] | None) -> Any:
    """Return images with axes of their own, (n, channels, height, width), as flat rows.

    Anything else is returned as it is.
    """
    if getattr(X, "ndim", None) != 4:
        return X
    shape = check_image_shape(image_shape, None, "rows that are images")
    X = np.asarray(X)
    if X.shape[1:] != shape:
        raise ValueError(
            f"X holds images of shape {X.shape[1:]}, but image_shape={shape!r} "
            "(channels, height, width)."
        )
    return X.reshape(len(X), -1)
