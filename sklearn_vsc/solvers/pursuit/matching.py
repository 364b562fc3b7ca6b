"""Orthogonal matching pursuit of many rows, and least squares on supports that are given.

References
----------
Pati, Rezaiifar and Krishnaprasad (1993), Orthogonal matching pursuit.
Rubinstein, Zibulevsky and Elad (2008), Efficient implementation of the K-SVD algorithm using batch
orthogonal matching pursuit.
Lawson and Hanson (1974), Solving least squares problems.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._rows import over_rows
from ..lasso.quadratic_fit import products_of_rows
from .kernel import Atoms, Rules, pursue_rows

# Below this number of multiplications, the inner products of all atoms are not worth avoiding.
_MANY_PRODUCTS = 2**24


def matching_pursuit(
    X: Tensor,
    dictionary: Tensor,
    *,
    n_nonzero: int | None = None,
    residual: float | None = None,
    positive: bool = False,
    gram: Tensor | None = None,
    correlations: Tensor | None = None,
) -> Tensor:
    """Code each row by orthogonal matching pursuit.

    From no atom, the atom whose inner product with the residual is largest in absolute value joins
    the support, and all codes of the support take their least-squares values, again and again. It
    ends early where the residual is zero up to rounding. Long atoms are preferred, as by
    scikit-learn.

    Parameters
    ----------
    X : Tensor of shape (n_rows, n_features)
        Rows to code; missing entries are NaN, and are left out of all sums.
    dictionary : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    n_nonzero : int, optional
        Number of codes of a row.
    residual : float, optional
        End when the squared norm of the residual is at most this share of the squared norm of the
        row. By default, without ``n_nonzero``, a row gets a tenth as many codes as it has observed
        entries.
    positive : bool, default=False
        Whether codes must be non-negative: then the inner product counts with its sign, the codes
        are those of non-negative least squares, and an atom may leave the support again.
    gram : Tensor of shape (n_components, n_components), optional
        Inner products of the atoms. By default, those of the atoms that come into use are computed
        where that is less work.
    correlations : Tensor of shape (n_rows, n_components), optional
        Inner products of rows and atoms.

    Returns
    -------
    codes : Tensor of shape (n_rows, n_components)
    """
    rule, missing = (n_nonzero, residual, positive), X.isnan()
    if not missing.any():
        return _pursue(X, dictionary, None, rule, gram, correlations)
    codes, incomplete = X.new_zeros(len(X), len(dictionary)), missing.any(1)
    if not incomplete.all():
        known = None if correlations is None else correlations[~incomplete]
        codes[~incomplete] = _pursue(X[~incomplete], dictionary, None, rule, gram, known)
    missing = missing[incomplete]
    rows = X[incomplete].masked_fill(missing, 0)
    codes[incomplete] = _pursue(rows, dictionary, ~missing, rule, None, None)
    return codes


def _pursue(
    X: Tensor,
    dictionary: Tensor,
    observed: Tensor | None,
    rule: tuple[int | None, float | None, bool],
    gram: Tensor | None,
    correlations: Tensor | None,
) -> Tensor:
    """Code rows that are all complete, or all with missing entries, which are zero in X."""
    (n_nonzero, residual, positive), n_rows = rule, len(X)
    rows, atoms = _on_host(X), _on_host(dictionary)
    seen = np.ones((1, rows.shape[1]), bool) if observed is None else _on_host(observed)
    most = _most(n_nonzero, residual, np.broadcast_to(seen.sum(1), n_rows), len(atoms))
    largest = int(most.max(initial=0))
    few = observed is None and gram is None and _few_rows(n_rows, largest, atoms.shape)
    lazy = few or observed is not None
    if correlations is None:
        # Products of padded rows take longer, and round the same for few rows and for many.
        correlations = X @ dictionary.T if few else products_of_rows(X, dictionary)
    products = _on_host(correlations)
    if not lazy:
        known = _on_host(dictionary @ dictionary.T if gram is None else gram)
    codes, real = np.zeros_like(products), products.dtype.type
    share = -1 if residual is None or n_nonzero is not None else residual
    rules = Rules(real(share), positive, real(np.finfo(real).eps))

    def work(part: slice) -> None:
        at_once = largest * (1 if observed is not None else part.stop - part.start)
        own = _to_compute(atoms, at_once) if lazy else _computed(atoms, known)
        masks = seen if observed is None else seen[part]
        pursue_rows(own, rules, masks, largest, *(a[part] for a in (rows, products, most, codes)))

    over_rows(work, n_rows)
    return torch.from_numpy(codes).to(X.device)


def _on_host(tensor: Tensor) -> NDArray:
    return tensor.cpu().contiguous().numpy()


def _most(
    n_nonzero: int | None, residual: float | None, n_observed: NDArray, n_components: int
) -> NDArray:
    """Return the largest number of codes of each row."""
    if n_nonzero is not None:
        most = np.full(len(n_observed), n_nonzero)
    elif residual is None:
        most = np.maximum(n_observed // 10, 1)
    else:
        most = n_observed
    # There are no more independent atoms than entries.
    return np.minimum(np.minimum(most, n_observed), n_components)


def _few_rows(n_rows: int, n_nonzero: int, shape: tuple[int, ...]) -> bool:
    """Whether the inner products of all atoms are more work than those that rows come to use."""
    n_components, n_features = shape
    if n_components**2 * n_features < _MANY_PRODUCTS:
        return False
    return 4 * n_nonzero * n_rows <= n_components


def _computed(dictionary: NDArray, gram: NDArray) -> Atoms:
    """Return atoms whose inner products are all known."""
    norms = np.sqrt(np.maximum(gram.diagonal(), 0))
    slots, known = np.arange(len(gram)), np.array([len(gram)])
    return Atoms(dictionary, norms, norms.max(initial=0), gram, slots, known)


def _to_compute(dictionary: NDArray, at_once: int) -> Atoms:
    """Return atoms with room for the inner products of some of them."""
    n_components = len(dictionary)
    norms = np.linalg.norm(dictionary, axis=1)
    gram = np.empty((min(at_once, n_components), n_components), dictionary.dtype)
    slots, known = np.full(n_components, -1), np.zeros(1, np.int64)
    return Atoms(dictionary, norms, norms.max(initial=0), gram, slots, known)
