"""What codes tell about labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._checks import check_same_rows, check_table


def attribute_correlation(codes: ArrayLike, attributes: ArrayLike) -> NDArray:
    """Point-biserial correlation of each code with each attribute.

    ``(m1 - m0) / s * sqrt(n1 n0) / n``, where m1 and m0 are the means of a code over the rows with
    and without the attribute, n1 and n0 their numbers, and s the standard deviation of the code
    (dividing by n). It equals Pearson's correlation with the label 0 or 1.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, n_components)
        Codes.

    attributes : array-like of shape (n_samples, n_attributes) or (n_samples,)
        Whether each row has each attribute: True and False, 1 and 0, or 1 and -1. Turn class
        labels into such columns with :func:`sklearn.preprocessing.label_binarize`.

    Returns
    -------
    correlation : ndarray of shape (n_attributes, n_components)
        Between -1 and 1; positive where codes are larger with the attribute than without. Zero
        for a constant code, and for an attribute that all rows or no rows have.

    Raises
    ------
    ValueError
        If an attribute has other values, or the numbers of rows differ.

    Examples
    --------
    >>> from sklearn_vsc.metrics import attribute_correlation
    >>> attribute_correlation([[0.0, 5.0], [0.0, 4.0], [2.0, 5.0]], [0, 0, 1]).round(2)
    array([[1. , 0.5]])
    """
    codes = check_table(codes, "codes")
    labels = _check_attributes(attributes)
    check_same_rows(codes, labels, ("codes", "attributes"))
    codes, labels = _standardized(codes), _standardized(labels)
    return np.clip(labels.T @ codes / len(codes), -1.0, 1.0)


def _check_attributes(attributes: ArrayLike) -> NDArray:
    """Return the attributes as columns of zeros and ones."""
    attributes = np.asarray(attributes)
    labels = check_table(attributes[:, None] if attributes.ndim == 1 else attributes, "attributes")
    found = np.unique(labels)
    if np.isin(found, (0, 1)).all() or np.isin(found, (-1, 1)).all():
        return np.maximum(labels, 0)
    shown = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
    raise ValueError(
        f"attributes must be True and False, 1 and 0, or 1 and -1; got values {shown}. Turn class "
        "labels into columns of zeros and ones with sklearn.preprocessing.label_binarize."
    )


def _standardized(columns: NDArray) -> NDArray:
    """Return columns scaled to zero mean and unit variance; constant columns become zero."""
    # Squares of tiny values would underflow, and the mean of equal values need not be exact.
    size = np.abs(columns).max(axis=0)
    columns = columns / np.where(size > 0, size, 1)
    columns = columns - columns.mean(axis=0)
    spread = columns.std(axis=0)
    columns[:, np.ptp(columns, axis=0) == 0] = 0
    return columns / np.where(spread > 0, spread, 1)
