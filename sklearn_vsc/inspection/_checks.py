"""Checks shared by the displays."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

from sklearn.utils.validation import check_is_fitted


def check_fitted(estimator: Any, attribute: str, alternative: str) -> None:
    """Raise an error unless the estimator is fitted and has the attribute to be drawn."""
    check_is_fitted(estimator)
    if not hasattr(estimator, attribute):
        raise TypeError(
            f"{type(estimator).__name__} has no {attribute} to draw. For a pipeline or a search, "
            f"pass the fitted step itself, such as pipeline[-1]; {alternative}."
        )


def check_image_shape(
    image_shape: tuple[int, ...] | None, n_features: int, what: str
) -> tuple[int, ...]:
    """Return the shape of an image; a square if none is given."""
    if image_shape is None:
        side = math.isqrt(n_features)
        if side * side != n_features:
            raise ValueError(
                f"The {what} have {n_features} features, which do not form a square; "
                "pass image_shape=(height, width) or (channels, height, width)."
            )
        return side, side
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    sound = len(shape) in (2, 3) and all(isinstance(n, Integral) and n >= 1 for n in shape)
    if not sound or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ValueError(
            "image_shape must be (height, width), or (channels, height, width) with 1 or 3 "
            f"channels, got {image_shape!r}."
        )
    if math.prod(shape) != n_features:
        raise ValueError(
            f"image_shape={image_shape!r} multiplies to {math.prod(shape)}, but the {what} have "
            f"{n_features} features."
        )
    return shape


def import_pyplot(display: Any) -> Any:
    """Return matplotlib's pyplot, or raise an error that says how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{type(display).__name__} needs matplotlib; install it with: "
            'pip install "sklearn-vsc[plot]"'
        ) from error
    return plt
