"""The range of penalties that is worth trying."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..solvers.lasso.penalty import largest_alpha
from ._checks import check_table


def alpha_max(
    X: ArrayLike, dictionary: ArrayLike | None = None, *, positive: bool = False
) -> float:
    """Smallest ``alpha`` at which all lasso codes of X are zero.

    With a dictionary it is the largest inner product of a row and an atom. Without one it is the
    largest norm of a row: at that ``alpha`` and above, the codes are zero under every dictionary of
    unit-norm atoms, and a fit has nothing to learn.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows; NaN is a missing entry, which does not count.
    dictionary : array-like of shape (n_components, n_features), default=None
        Atoms, of any norm.
    positive : bool, default=False
        Whether codes are non-negative. Without a dictionary it makes no difference.

    Returns
    -------
    alpha : float
        Values worth trying lie below, mostly between a thousandth and a half of it.

    Examples
    --------
    >>> from sklearn_vsc.metrics import alpha_max
    >>> alpha_max([[3.0, 4.0], [0.0, 1.0]])
    5.0
    >>> alpha_max([[3.0, 4.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], positive=True)
    3.0
    """
    X = check_table(X, "X", ensure_all_finite="allow-nan")
    if dictionary is None:
        return float(np.linalg.norm(np.nan_to_num(X), axis=1).max())
    atoms = check_table(dictionary, "dictionary")
    if atoms.shape[1] != X.shape[1]:
        raise ValueError(
            f"dictionary must have as many columns as X, {X.shape[1]}, but has {atoms.shape[1]}."
        )
    return largest_alpha(torch.from_numpy(X), torch.from_numpy(atoms), positive=positive)
