"""Checks of what the metrics are given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_array, check_is_fitted

from .._rows.array_api import to_host


def check_table(array: ArrayLike, name: str, **options: Any) -> NDArray:
    """Two axes in float64, from arrays of any kind and from the CSR that `transform` may return."""
    if issparse(array):
        array = array.toarray()  # type: ignore[union-attr]
    return check_array(to_host(array), dtype=np.float64, input_name=name, **options)


def check_estimator(estimator: Any, method: str, needs: str) -> None:
    """Refuse what is not fitted, or lacks the method that a metric asks."""
    check_is_fitted(estimator)
    if not hasattr(estimator, method):
        raise TypeError(
            f"{needs}; got {type(estimator).__name__}. Of a pipeline or a search pass the fitted "
            "step itself, such as pipeline[-1], with the rows that it gets."
        )


def check_same_rows(one: NDArray, other: NDArray, names: tuple[str, str]) -> None:
    """Refuse tables of different length."""
    if len(one) != len(other):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of rows; got {len(one)} and "
            f"{len(other)}."
        )
