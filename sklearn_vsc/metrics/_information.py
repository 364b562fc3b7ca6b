"""How much codes depend on each other."""

from __future__ import annotations

import math
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.special import digamma, ndtri, rel_entr
from scipy.stats import entropy

from .._rows.arrays import private_random_state
from .._rows.user_warnings import warn_user
from ._checks import check_table

# Limits of the published bins, and the largest absolute value that counts as zero.
_REACH = 2.0
_ZERO = 1e-50
# Above this share of log2 n, the joint entropy only reflects the number of rows.
_SATURATED = 0.9


def multi_information(
    codes: ArrayLike,
    *,
    method: str = "copula",
    bins: int | ArrayLike = 20,
    random_state: int | np.random.RandomState | None = 0,
) -> float:
    """Multi-information of codes, ``sum_k H(z_k) - H(z)``, in bits.

    Also called total correlation. It is zero for independent codes, and in general the number of
    extra bits per row that coding each code separately would cost.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, n_components)
        Codes; exact zeros count as off. Constant codes contribute nothing.

    method : {'copula', 'plug_in'}, default='copula'
        'copula': a lower bound that can be estimated without bias from any number of rows above
        `n_components` (see Notes). 'plug_in': entropies of counts in `bins`, as published [1]_;
        use it to compare with published numbers, or for a few codes and many rows. Otherwise no
        two rows fall into the same cell, H(z) is log2 n_samples whatever the codes are, and the
        result is the sum of the marginal entropies minus log2 n_samples, which grows with the
        number of codes even if they are independent.

    bins : int or array-like, default=20
        For 'plug_in': the number of equally spaced edges from -2 to 2, or the edges themselves,
        in units of the code. Two additional edges at -1e-50 and 1e-50 give zero its own cell. The
        published numbers of bins are 20 for patches and 30 for images.

    random_state : int, RandomState instance or None, default=0
        For 'copula': determines how ties are broken and how the rows are split into halves.

    Returns
    -------
    information : float
        Multi-information in bits. The result of 'copula' scatters around zero for independent
        codes and may be negative; it is infinite if codes that are never zero depend on each other
        exactly.

    Raises
    ------
    ValueError
        If there are not more rows than non-constant codes, for 'copula'.

    Warns
    -----
    UserWarning
        If, for 'plug_in', the joint entropy only reflects the number of rows.

    Notes
    -----
    'copula' adds up three parts. In the limit of many rows, each is a lower bound on what the
    earlier parts leave:

    1. Supports (which codes are zero): the best tree of pairs of supports [2]_, where the tree and
       its information are computed from different halves of the rows.
    2. Values, given the supports: ``-1/2 log2 det R`` for the correlations R of their normal
       scores, the multi-information of a Gaussian copula. No other distribution with these
       correlations and marginals has less.
    3. Magnitudes: the same quantity for the absolute values of the scores after these correlations
       have been removed. Uncorrelated codes are often large together.

    The marginal distributions do not matter, up to a monotone map of the values. From each part,
    the average excess for independent codes with the same number of rows is subtracted; for a
    Gaussian copula the estimate is then unbiased for any R. The sum is exact for Gaussian codes
    under any monotone map of each code, and for supports with a tree-structured dependence. It
    misses part of the dependence among three or more codes, and most of the dependence between
    values of sparse codes that are rarely on together.

    References
    ----------
    .. [1] Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned
       Thresholding. International Conference on Machine Learning.
    .. [2] Chow, C. and Liu, C. (1968). Approximating discrete probability distributions with
       dependence trees. IEEE Transactions on Information Theory.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_vsc.metrics import multi_information
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.laplace(size=(4000, 30)) * (rng.random((4000, 30)) < 0.2)
    >>> bool(abs(multi_information(codes)) < 0.1)
    True
    >>> codes[:, 1] = rng.laplace(size=4000) * (codes[:, 0] != 0)  # on together with the first
    >>> bool(abs(multi_information(codes) - 0.72) < 0.1)  # entropy of a coin with probability 0.2
    True
    """
    if method not in ("copula", "plug_in"):
        raise ValueError(f"method must be 'copula' or 'plug_in', got {method!r}.")
    codes = check_table(codes, "codes", ensure_min_samples=2)
    codes = codes[:, np.ptp(codes, axis=0) > 0]
    if codes.shape[1] < 2:
        return 0.0
    if method == "plug_in":
        return _plug_in(codes, _edges(bins))
    n_rows, n_codes = codes.shape
    if n_rows <= n_codes:
        raise ValueError(
            f"method='copula' needs more rows than codes that are not constant; got {n_rows} rows "
            f"and {n_codes} codes. Pass more rows or fewer columns."
        )
    return _lower_bound(codes, private_random_state(random_state)) / math.log(2)


# ---------------------------------------------------------------------- published plug-in


def _edges(bins: int | ArrayLike) -> NDArray:
    """Return the edges of the cells, including the edges around zero."""
    if isinstance(bins, Integral) and not isinstance(bins, bool) and bins > 0:
        edges = np.linspace(-_REACH, _REACH, bins)
    else:
        edges = np.asarray(bins)
    if edges.ndim != 1 or edges.dtype.kind not in "iuf" or not np.isfinite(edges).all():
        raise ValueError(
            f"bins must be a whole number of at least 1, or an array of finite edges; got {bins!r}."
        )
    return np.union1d(edges, (-_ZERO, _ZERO))


def _plug_in(codes: NDArray, edges: NDArray) -> float:
    """Return the sum of the marginal entropies minus the joint entropy of cell counts, in bits."""
    n_rows, n_cells = len(codes), len(edges) + 1
    cells = np.ascontiguousarray(np.digitize(codes, edges), dtype=np.min_scalar_type(n_cells))
    # The bytes of a row form one symbol.
    rows = cells.view(np.dtype((np.void, cells.dtype.itemsize * cells.shape[1])))
    joint = float(entropy(np.unique(rows, return_counts=True)[1], base=2))
    marginal = sum(
        float(entropy(np.bincount(column, minlength=n_cells), base=2)) for column in cells.T
    )
    most = math.log2(n_rows)
    if joint > _SATURATED * most:
        warn_user(
            f"The joint entropy of {n_rows} rows in {codes.shape[1]} columns is {joint:.2f} bits, "
            f"close to its maximum of log2 {n_rows} = {most:.2f}: nearly every row has its own "
            f"cell. The result, the sum of the marginal entropies, {marginal:.1f} bits, minus the "
            "joint entropy, says nothing about how the codes depend on each other. Use "
            "method='copula'."
        )
    return marginal - joint


# ------------------------------------------------------------------------------- lower bound


def _lower_bound(codes: NDArray, rng: np.random.RandomState) -> float:
    """Return the sum of the three parts, in nats."""
    active = codes != 0
    scores = _normal_scores(codes, active, rng)
    values, whitened = _copula(scores)
    if math.isinf(values):
        return values
    everywhere = np.ones_like(active)
    magnitudes, _ = _copula(_normal_scores(np.abs(whitened), everywhere, rng))
    return _support_tree(active, rng) + values + magnitudes


def _normal_scores(values: NDArray, groups: NDArray, rng: np.random.RandomState) -> NDArray:
    """Replace values by standard normal scores of the same rank, within each group of a column.

    Ties are broken at random: replacing a code by a noisy version of which it is a function does
    not change the multi-information.
    """
    n_rows = len(values)
    # Sort along contiguous rows of the transpose.
    keys = rng.uniform(size=values.T.shape), values.T, groups.T
    order = np.lexsort(tuple(np.ascontiguousarray(key) for key in keys), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(n_rows)[None], axis=1)
    n_first = n_rows - np.count_nonzero(groups, axis=0)
    ranks = ranks.T - np.where(groups, n_first, 0)
    sizes = np.where(groups, n_rows - n_first, n_first)
    return ndtri((ranks + 1) / (sizes + 1))


def _copula(scores: NDArray) -> tuple[float, NDArray]:
    """Return the multi-information from the correlations of the scores, and decorrelated scores."""
    n_rows, n_codes = scores.shape
    scores = scores - scores.mean(axis=0)
    spread = scores.std(axis=0)
    scores = scores / np.where(spread > 0, spread, 1)
    scales, directions = np.linalg.eigh(scores.T @ scores / n_rows)
    if scales[0] <= n_codes * np.finfo(np.float64).eps:
        return math.inf, scores
    # The expected log-determinant of a Wishart matrix minus the log-determinant of its mean.
    shortfall = digamma((n_rows - np.arange(1, n_codes + 1)) / 2) - digamma((n_rows - 1) / 2)
    information = -0.5 * float(np.log(scales).sum() - shortfall.sum())
    return information, scores @ (directions / np.sqrt(scales)) @ directions.T


def _support_tree(active: NDArray, rng: np.random.RandomState) -> float:
    """Return the multi-information of the supports along the best tree of pairs, in nats."""
    active = active[:, active.any(axis=0) & ~active.all(axis=0)]
    n_rows, n_codes = active.shape
    if n_codes < 2:
        return 0.0
    order = rng.permutation(n_rows)
    halves = [active[order[: n_rows // 2]], active[order[n_rows // 2 :]]]
    found = [_pair_information(half) for half in halves]
    # What pairs of independent supports contribute by chance.
    chance = sum((n_codes - 1) / (2 * len(half)) for half in halves)
    total = sum(other[_best_tree(one)].sum() for one, other in (found, reversed(found)))
    return 0.5 * float(total - chance)


def _best_tree(information: NDArray) -> tuple[NDArray, NDArray]:
    """Return the pairs of the spanning tree with the most information."""
    # Costs must be positive, since zeros would not count as edges.
    costs = np.triu(information.max() + 1 - information, 1)
    return minimum_spanning_tree(costs).nonzero()


def _pair_information(active: NDArray) -> NDArray:
    """Return the mutual information of each pair of supports, in nats."""
    n_rows = len(active)
    # Counts are integers, which float32 represents exactly.
    on = active.astype(np.float32)
    both = (on.T @ on).astype(np.float64)
    first = np.diagonal(both)[:, None]
    second = first.T
    cells = (
        (both, first * second),
        (first - both, first * (n_rows - second)),
        (second - both, (n_rows - first) * second),
        (n_rows - first - second + both, (n_rows - first) * (n_rows - second)),
    )
    return sum(rel_entr(cell / n_rows, expected / n_rows**2) for cell, expected in cells)
