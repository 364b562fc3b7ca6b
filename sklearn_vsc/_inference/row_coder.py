"""Codes of rows under a dictionary, by each of the named algorithms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lars, lars_path_gram
from torch import Tensor

from .._rows.arrays import resolve_device, to_numpy, to_tensor
from .._rows.user_warnings import warn_user
from ..solvers.lasso.quadratic_fit import AtomCache
from ..solvers.lasso.solve import default_tolerance, fastest_method, solve_lasso
from ..solvers.lasso.stopping import LassoResult
from ..solvers.pursuit.matching import matching_pursuit
from ..solvers.pursuit.support import keep_largest, least_squares_codes

# Algorithms by name. scikit-learn uses some of our names too, for its own coders.
OURS = frozenset({"auto", "fista", "lasso_cd"})
ALGORITHMS = OURS | {"lasso_lars", "lars", "omp", "threshold"}
# Algorithms whose number of codes follows from ``alpha``.
BY_PENALTY = OURS | {"lasso_lars", "threshold"}
# Below this number of multiplications, the inner products of all atoms are not worth avoiding.
_MANY_PRODUCTS = 2**24
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Precomputed:
    """Arrays that a caller has computed beforehand, or None.

    Attributes
    ----------
    gram : ndarray of shape (n_components, n_components)
        Inner products of the atoms.
    cov : ndarray of shape (n_components, n_rows)
        Inner products of atoms and rows.
    init : ndarray of shape (n_rows, n_components)
        Initial codes of a lasso.
    copy_cov : bool
        Whether ``cov`` must not be changed.
    """

    gram: NDArray | None = None
    cov: NDArray | None = None
    init: NDArray | None = None
    copy_cov: bool = True

    def of_rows(self, rows: NDArray | slice, complete: bool) -> Precomputed:
        """Return the arrays for some of the rows, which may have missing entries."""
        return Precomputed(
            gram=self.gram if complete else None,
            cov=self.cov[:, rows] if complete and self.cov is not None else None,
            init=None if self.init is None else self.init[rows],
        )


@dataclass(frozen=True)
class RowCoder:
    """How rows are coded; the names and meanings of its fields are `SparseCoder`'s.

    Attributes
    ----------
    algorithm : {'auto', 'fista', 'lasso_cd', 'lasso_lars', 'lars', 'omp', 'threshold'}
        The first three solve the lasso here, and 'omp' is ours too; 'lasso_lars' and 'lars' are
        scikit-learn's.
    n_nonzero_coefs : int or None
        Number of codes that 'omp' and 'lars' aim at.
    n_kept : int or None
        Number of codes that the other algorithms keep, the largest.
    refit : bool
        Whether the codes of these are least-squares values on their support.
    descent : {'cd', 'search'}
        Method of ``solve_lasso`` on a CPU.
    advice : str
        What a user can do when codes do not converge.
    cache : AtomCache
        Keeps the inner products of the atoms from one call to the next.
    """

    algorithm: str
    alpha: float
    device: str
    n_nonzero_coefs: int | None = None
    max_iter: int = 1000
    tol: float | None = None
    positive: bool = False
    n_jobs: int | None = None
    descent: str = "cd"
    verbose: int = 0
    n_kept: int | None = None
    refit: bool = False
    advice: str = "Raise transform_max_iter or transform_tol."
    cache: AtomCache = field(default_factory=AtomCache, repr=False, compare=False)

    def codes(self, X: NDArray, dictionary: NDArray, known: Precomputed | None = None) -> NDArray:
        """Return the codes of rows; warn about rows that did not converge.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Rows to code; NaN is a missing entry.
        dictionary : ndarray of shape (n_components, n_features)
            Atoms, of any norm.
        known : Precomputed, optional
            Arrays that need not be computed again.

        Returns
        -------
        codes : ndarray of shape (n_rows, n_components)
            Of the type of X.
        """
        known = known or Precomputed()
        if self.algorithm == "omp":
            return self._pursued(X, dictionary, known)
        if self.algorithm in OURS:
            codes = self._solved(X, dictionary, known)
        else:
            codes = self._by_scikit_learn(X, dictionary.astype(X.dtype, copy=False), known)
        if self.algorithm in BY_PENALTY and (self.refit or self.n_kept is not None):
            return self._selected(X, dictionary, codes)
        return codes

    def _solved(self, X: NDArray, dictionary: NDArray, known: Precomputed) -> NDArray:
        """Return lasso codes; warn about rows that did not converge."""
        start = None if known.init is None else self.to_rows(known.init.astype(X.dtype))
        rows = self.to_rows(X)
        result = self.lasso(rows, self.to_rows(dictionary).to(rows.dtype), start)
        self._warn_unconverged(result)
        return to_numpy(result.codes, X.dtype)

    def _pursued(self, X: NDArray, dictionary: NDArray, known: Precomputed) -> NDArray:
        """Return codes by orthogonal matching pursuit, which runs on the CPU."""
        rows = to_tensor(X, _CPU, borrow=True)
        gram, cov = (
            None if part is None else to_tensor(part, _CPU, borrow=True).to(rows.dtype)
            for part in (known.gram, None if known.cov is None else known.cov.T)
        )
        codes = matching_pursuit(
            rows,
            to_tensor(dictionary, _CPU, borrow=True).to(rows.dtype),
            n_nonzero=self.n_nonzero_coefs,
            residual=self.tol,
            positive=self.positive,
            gram=gram,
            correlations=cov,
        )
        return to_numpy(codes, X.dtype)

    def _selected(self, X: NDArray, dictionary: NDArray, codes: NDArray) -> NDArray:
        """Keep the largest codes and refit what is kept, as far as that was asked for."""
        selected = to_tensor(codes, _CPU, borrow=True)
        if self.n_kept is not None:
            selected = keep_largest(selected, self.n_kept)
        if self.refit:
            rows, atoms = (to_tensor(part, _CPU, borrow=True) for part in (X, dictionary))
            selected = least_squares_codes(rows, atoms, selected, positive=self.positive)
        return to_numpy(selected, X.dtype)

    def lasso(self, rows: Tensor, dictionary: Tensor, start: Tensor | None = None) -> LassoResult:
        """Solve the lasso of rows, all on the coder's device; ``start`` has codes for them."""
        return solve_lasso(
            rows,
            dictionary,
            # Beyond the inner product of any residual and atom, all values are equivalent.
            min(float(self.alpha), torch.finfo(rows.dtype).max),
            method=self.method,
            code_init=start,
            tol=self.tolerance(rows.dtype),
            max_iter=self.max_iter,
            positive=self.positive,
            cache=self.cache,
        )

    @property
    def method(self) -> str:
        """Method of ``solve_lasso`` for the algorithm."""
        if self.algorithm == "fista":
            return "fista"
        if self.algorithm == "auto" and fastest_method(resolve_device(self.device)) == "fista":
            return "fista"
        return self.descent

    def tolerance(self, dtype: torch.dtype) -> float:
        """Relative duality gap at which the code of a row has converged."""
        return default_tolerance(dtype) if self.tol is None else self.tol

    def to_rows(self, X: NDArray) -> Tensor:
        """Bring rows, atoms or codes to the device."""
        # Nothing here writes to rows, so a read-only memmap need not fit into memory.
        return to_tensor(X, resolve_device(self.device), borrow=True)

    def _warn_unconverged(self, result: LassoResult) -> None:
        n_left = int((~result.converged).sum())
        if n_left:
            warn_user(
                f"The lasso codes of {n_left} of {len(result.converged)} rows did not reach a "
                f"relative duality gap of {self.tolerance(result.codes.dtype):.1e} in "
                f"{self.max_iter} iterations. {self.advice}",
                ConvergenceWarning,
            )

    def _by_scikit_learn(self, X: NDArray, dictionary: NDArray, known: Precomputed) -> NDArray:
        """Code rows by scikit-learn, incomplete ones by their observed entries."""
        if not np.isnan(X).any():
            return self._complete(X, dictionary, known).astype(X.dtype, copy=False)
        codes = np.empty((len(X), len(dictionary)), X.dtype)
        patterns, pattern = np.unique(~np.isnan(X), axis=0, return_inverse=True)
        for number, observed in enumerate(patterns):
            rows = pattern.reshape(-1) == number
            codes[rows] = self._complete(
                X[np.ix_(rows, observed)],
                dictionary[:, observed],
                known.of_rows(rows, bool(observed.all())),
            )
        return codes

    def _complete(self, X: NDArray, dictionary: NDArray, known: Precomputed) -> NDArray:
        """Code rows without missing entries."""
        if self.algorithm == "threshold":
            products = np.dot(dictionary, X.T) if known.cov is None else known.cov
            codes = (np.sign(products) * np.maximum(np.abs(products) - self.alpha, 0)).T
            return np.clip(codes, 0, None) if self.positive else codes
        given = known.gram is not None or known.cov is not None
        if not given and self._few_rows(X, dictionary):
            return self._for_few_rows(X, dictionary)
        return sparse_encode(
            X,
            dictionary,
            gram=known.gram,
            cov=known.cov,
            copy_cov=known.copy_cov,
            algorithm=self.algorithm,
            n_nonzero_coefs=self.n_nonzero_coefs,
            alpha=self.alpha,
            max_iter=self.max_iter,
            n_jobs=self.n_jobs,
            check_input=False,
            verbose=self.verbose,
            positive=self.positive,
        )

    def _n_nonzero(self, X: NDArray, dictionary: NDArray) -> int:
        """Number of non-zero codes that 'lars' aims at."""
        if self.n_nonzero_coefs is None:
            return int(min(max(X.shape[1] / 10, 1), len(dictionary)))
        return self.n_nonzero_coefs

    def _few_rows(self, X: NDArray, dictionary: NDArray) -> bool:
        """Whether computations shared by all rows take most of the time, and can be avoided."""
        n_components, n_features = dictionary.shape
        if n_components**2 * n_features < _MANY_PRODUCTS:
            return False
        if self.algorithm == "lasso_lars":
            return len(X) == 1
        # The inner products are symmetric, and a step takes two passes.
        few = 4 * self._n_nonzero(X, dictionary) * len(X) <= n_components
        return few and not self.positive

    def _for_few_rows(self, X: NDArray, dictionary: NDArray) -> NDArray:
        """Do the same as `sparse_encode` by the functions that it calls."""
        shape = len(X), len(dictionary)
        with np.errstate(all="ignore"):
            if self.algorithm == "lars":
                model = Lars(
                    n_nonzero_coefs=self._n_nonzero(X, dictionary),
                    fit_intercept=False,
                    fit_path=False,
                    precompute=False,
                    verbose=self.verbose,
                )
                return model.fit(dictionary.T, X.T).coef_.reshape(shape)
            # A lasso takes too many steps to do without the inner products of all atoms.
            _, _, codes = lars_path_gram(
                dictionary @ X[0],
                dictionary @ dictionary.T,
                n_samples=X.shape[1],
                alpha_min=float(self.alpha) / X.shape[1],
                method="lasso",
                max_iter=self.max_iter,
                copy_Gram=False,
                positive=self.positive,
                return_path=False,
                verbose=max(0, self.verbose - 1),
            )
            return codes.reshape(shape)


def check_features(X: Any, dictionary: NDArray) -> None:
    """Check that rows and atoms have the same number of features."""
    if X.shape[1] != dictionary.shape[1]:
        raise ValueError(
            "Dictionary and X have different numbers of features: dictionary.shape: "
            f"{dictionary.shape}, X.shape: {X.shape}."
        )


def check_n_nonzero(
    algorithm: str, given: int | None, n_components: int, *, name: str, other: str
) -> None:
    """Check that 'omp' is not asked for more codes than there are atoms.

    The message says ``name`` for the number of codes, and ``other`` for what has the atoms.
    """
    if algorithm == "omp" and given is not None and given > n_components:
        raise ValueError(
            f"{name}={given} asks for more codes than there are atoms: {other} has "
            f"{n_components}. Ask for at most as many codes as atoms."
        )
