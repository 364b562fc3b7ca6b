"""Validation of the arguments of the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_array, check_is_fitted

from .._rows.array_api import to_host


def check_table(array: ArrayLike, name: str, **options: Any) -> NDArray:
    """Return a 2D float64 array from any array library or from sparse codes of `transform`."""
    if issparse(array):
        array = array.toarray()  # type: ignore[union-attr]
    return check_array(to_host(array), dtype=np.float64, input_name=name, **options)


def check_estimator(estimator: Any, method: str, needs: str) -> None:
    """Raise an error if the estimator is not fitted or lacks the method that a metric needs."""
    check_is_fitted(estimator)
    if not hasattr(estimator, method):
        raise TypeError(
            f"{needs}; got {type(estimator).__name__}. For a pipeline or a search, pass the fitted "
            "step itself, such as pipeline[-1], and the rows that reach that step."
        )


def check_same_rows(one: NDArray, other: NDArray, names: tuple[str, str]) -> None:
    """Raise an error if two tables have different numbers of rows."""
    if len(one) != len(other):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of rows; got {len(one)} and "
            f"{len(other)}."
        )
