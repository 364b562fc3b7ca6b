"""Compiled coordinate ascent on the best mean-field posterior of a sparse linear model.

With the other codes held fixed, the factor of a code that maximises the ELBO has a closed form
under Gaussian noise: a spike at zero and a truncated normal on each side of it. It holds for every
slab whose log density is ``log_constant - rate |z| - precision z^2 / 2`` on both sides of zero, or
on the positive side alone. So a visit to a code sets its factor, and no visit lowers the ELBO of
the row. All that a factor depends on is the field of its code: the inner product of the atom with
the residual that the other codes leave, in the metric of the noise.

A row starts from no code at all: the code with the highest log-odds enters, again and again, until
none is more likely on than off. Then sweeps visit the codes whose field has moved, until the bound
of the row no longer rises. Between sweeps, codes that drift move ahead along their last step, and
back again where that lowers the bound. Rows are independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .._rows import over_rows
from .free_form_kernels import solve_rows

# Sweeps over the codes of a row, at most, where nothing else is said: its bound ends them.
MOST_SWEEPS = 1000


@dataclass(frozen=True)
class CodePriors:
    """Priors of the codes: a spike at zero, and a slab.

    Attributes
    ----------
    logit : ndarray of shape (n_components,)
        Log-odds of a code that is not zero.
    log_constant : ndarray of shape (n_components,)
        Log density of the slab at zero.
    rate : ndarray of shape (n_components,)
        How fast the log density of the slab falls with ``|z|``.
    precision : ndarray of shape (n_components,)
        How fast it falls with ``z^2 / 2``.
    positive : bool
        Whether the slab lies on the positive side alone.
    """

    logit: NDArray
    log_constant: NDArray
    rate: NDArray
    precision: NDArray
    positive: bool = False


@dataclass(frozen=True)
class RowNoise:
    """Law of the scale of a row's noise: its precision is that of the model times a weight.

    Attributes
    ----------
    freedom : float
        Degrees of freedom of a Student t distribution; infinity: normal noise, all weights are 1.
    """

    freedom: float = math.inf


@dataclass(frozen=True)
class Factors:
    """Posterior factors of rows, and what bounds and learning need of them.

    Attributes
    ----------
    field : ndarray of shape (n_rows, n_components)
        What the factor of each code follows from, given the weight of the row.
    mean, second, inclusion, size : ndarray of shape (n_rows, n_components)
        Mean, mean square, probability of not being zero, and mean absolute value of each code.
    weight : ndarray of shape (n_rows,)
        Precision of the row's noise, relative to that of the model.
    error : ndarray of shape (n_rows,)
        Expected squared distance of row and reconstruction, in the metric of the noise.
    kl : ndarray of shape (n_rows,)
        KL divergence of the row's factors from their priors, in nats.
    """

    field: NDArray
    mean: NDArray
    second: NDArray
    inclusion: NDArray
    size: NDArray
    weight: NDArray
    error: NDArray
    kl: NDArray

    @classmethod
    def empty(cls, n_rows: int, n_components: int, dtype: np.dtype) -> Factors:
        """Return arrays to be filled."""
        codes = (np.empty((n_rows, n_components), dtype) for _ in range(5))
        return cls(*codes, *(np.empty(n_rows) for _ in range(3)))

    def put(self, rows: NDArray, part: Factors) -> None:
        """Fill in some rows."""
        for each in fields(self):
            getattr(self, each.name)[rows] = getattr(part, each.name)


def solve(
    products: NDArray,
    gram: NDArray,
    energy: NDArray,
    n_observed: NDArray,
    priors: CodePriors,
    noise: RowNoise = RowNoise(),
    *,
    start: NDArray | None = None,
    start_weight: NDArray | None = None,
    max_sweeps: int = MOST_SWEEPS,
    tol: float = 0.05,
    bound_tol: float = 0.05,
) -> Factors:
    """Find the posterior factors of rows.

    Parameters
    ----------
    products : ndarray of shape (n_rows, n_components)
        Inner products of rows, less the intercept, and atoms, in the metric of the noise.
    gram : ndarray of shape (n_components, n_components)
        Inner products of the atoms.
    energy : ndarray of shape (n_rows,)
        Squared norms of the rows, less the intercept.
    n_observed : ndarray of shape (n_rows,)
        Number of observed entries of each row.
    priors : CodePriors
        Priors of the codes.
    noise : RowNoise
        Law of the scale of a row's noise.
    start : ndarray of shape (n_rows, n_components), default=None
        Fields to start from. None: codes enter one by one.
    start_weight : ndarray of shape (n_rows,), default=None
        Weights of the rows to start from, for Student t noise. None: one.
    max_sweeps : int, default=MOST_SWEEPS
        Most sweeps over the codes of a row.
    tol : float, default=0.05
        A code is visited again once its field has moved by this many standard deviations.
    bound_tol : float, default=0.05
        A row is done once a sweep raises its bound by less than this, in nats.

    Returns
    -------
    factors : Factors
        In the dtype of the products.
    """
    n_rows, n_components = products.shape
    found = Factors.empty(n_rows, n_components, products.dtype)
    if start is not None:
        found.field[:] = start
    found.weight[:] = 1 if start_weight is None or math.isinf(noise.freedom) else start_weight
    gram = np.ascontiguousarray(gram, products.dtype)
    atoms = np.stack(
        [
            np.diag(gram).astype(float),
            priors.logit + priors.log_constant,
            np.logaddexp(0, priors.logit),
            priors.rate,
            priors.precision,
        ]
    )
    freedom = 0.0 if math.isinf(noise.freedom) else float(noise.freedom)
    stops = (float(tol), float(bound_tol), int(max_sweeps), start is not None)

    def work(rows: slice) -> None:
        outcome = (getattr(found, each.name)[rows] for each in fields(found))
        given = (products[rows], gram, energy[rows], n_observed[rows], atoms)
        solve_rows(*given, bool(priors.positive), freedom, *stops, *outcome)

    over_rows(work, n_rows)
    return found
