"""Sparse codes with a given dictionary: an estimator and a function."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_array

from ._base.lasso_coder import LassoCoder
from ._inference.row_coder import (
    ALGORITHMS,
    Precomputed,
    RowCoder,
    check_features,
    check_n_nonzero,
)
from ._rows.array_api import Home, at_the_door, learns_from_input, to_host
from ._rows.arrays import resolve_device, row_slices, rows_at_once
from ._rows.compat import Interval, StrOptions, fit_context, validate_params
from ._rows.missing import check_observed
from ._rows.threads import fair_share_of_cores

_FLOATS = [np.float64, np.float32]
# Our method on a CPU. Neighbouring atoms of a designed dictionary, such as wavelets, are nearly
# collinear, and there may be a single row to code.
_DESCENT = "search"


class SparseCoder(LassoCoder):
    r"""Sparse codes with a given dictionary.

    Each row of X is coded by a few atoms of the dictionary, X ~ codes @ dictionary. The class has
    every parameter of :class:`sklearn.decomposition.SparseCoder`, with the same meaning. It is
    stateless: ``transform`` needs no ``fit``, which only checks the data.

    Atoms are used unchanged, with any norms. The lasso, 0.5 \|x - u V\|^2 + alpha \|u\|_1
    for a row x, codes u and the dictionary V, has the same penalty for all of them: an atom that
    is twice as long costs half as much. 'omp' and 'lars' prefer long atoms likewise.

    NaN in X marks a missing entry: a row is coded from its observed entries, and
    ``inverse_transform(transform(X))`` imputes the missing ones.

    The parameters come in this order:

    * **Most used**: ``dictionary``, ``transform_algorithm``, ``transform_n_nonzero_coefs``,
      ``transform_alpha``.
    * **Model**: ``split_sign``, ``positive_code``.
    * **Inference**: ``transform_max_iter``, ``refit``, ``transform_tol``.
    * **Running**: ``n_jobs``, ``sparse_output``, ``device``.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, n_features)
        The atoms, of any norm. They are neither scaled nor changed.

    transform_algorithm : str, default='omp'
        How rows are coded. 'lasso_cd' solves the lasso by compiled coordinate descent, finished by
        an exact search over supports; 'fista' by batched FISTA; 'auto' by the faster of these two,
        which is the first on a CPU and 'fista' on other devices. 'omp' is compiled orthogonal
        matching pursuit. 'lasso_lars' and 'lars' are scikit-learn's least angle regression
        (:func:`sklearn.decomposition.sparse_encode`). 'threshold' shrinks the inner products of row
        and atoms towards zero by ``transform_alpha``.

    transform_n_nonzero_coefs : int, default=None
        Number of non-zero codes of a row. 'lars' and 'omp' aim at it; None is a tenth of the number
        of observed features, or the number that ``transform_tol`` asks of 'omp'. The other
        algorithms keep so many of their codes, the largest in absolute value; None keeps all.

    transform_alpha : float, default=None
        Weight of the l1 norm of the codes, in units of X times units of an atom, or the threshold
        of 'threshold'. 'lars' and 'omp' do not use it. None: 1.

    split_sign : bool, default=False
        Whether ``transform`` returns the positive and negative parts of the codes side by side, as
        2 ``n_components`` non-negative columns.

    n_jobs : int, default=None
        Number of jobs of scikit-learn's coders. Our coders use torch's threads.

    positive_code : bool, default=False
        Whether codes must be non-negative. 'lars' cannot do that.

    transform_max_iter : int, default=1000
        Maximum number of iterations of a lasso solve. One iteration of coordinate descent moves as
        many codes as there are atoms.

    refit : bool, default=False
        Whether the codes are least-squares values on their support, that is, on the atoms whose
        codes the lasso or 'threshold' has kept: this undoes the shrinkage of the penalty. With
        ``positive_code`` they are the best non-negative ones. 'omp' and 'lars' do not use it.

    transform_tol : float, default=None
        The lasso code of a row is done when its duality gap is at most ``transform_tol`` times its
        objective, for 'auto', 'fista' and 'lasso_cd'. None: 1e-6 in float64, 1e-5 in float32.
        'omp' without a number of codes ends when the squared norm of the residual is at most
        ``transform_tol`` times the squared norm of the row.

    sparse_output : bool, default=False
        Whether ``transform`` returns a SciPy CSR matrix instead of an array.

    device : str, default='auto'
        Where to compute: 'auto' (CUDA if there is one, else MPS, else CPU) or the name of a torch
        device. Results come back as NumPy arrays or, with scikit-learn's ``array_api_dispatch``, as
        arrays of the same namespace and device as X.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary, as a floating-point array. It is there before ``fit``, and is the given
        object itself where that is such an array.

    n_components_ : int
        Number of atoms.

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X has names that are all strings.

    See Also
    --------
    sparse_encode : The same as a function.
    FISTADictionaryLearner : Learns the dictionary too.
    sklearn.decomposition.SparseCoder : The class with the same parameters.

    Notes
    -----
    There is no ``score`` and no ``posterior``: a dictionary without a noise variance is not a
    model of the rows. ``FISTADictionaryLearner(dict_init=dictionary, max_iter=0)`` keeps the
    dictionary, estimates the noise variance from rows, and has both.

    Codes of our lasso agree with scikit-learn's to the tolerances of both. Where ``max_iter`` of
    scikit-learn's 'lasso_cd' is not enough, as is common where atoms are nearly collinear, ours
    have the lower objective. 'lars' and 'omp' avoid the Gram matrix of all atoms where there are
    few rows and many atoms. 'omp' gives scikit-learn's codes without its warnings: it ends where
    the residual is zero up to rounding. Its non-negative codes are those of non-negative least
    squares on a support to which the atom with the largest correlation is added.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_vsc import SparseCoder
    >>> dictionary = np.array([[0, 1, 0], [-1, -1, 2], [1, 1, 1], [0, 1, 1], [0, 2, 1]])
    >>> X = np.array([[-1.0, -1.0, -1.0], [0.0, 0.0, 3.0]])
    >>> coder = SparseCoder(dictionary, transform_algorithm="lasso_lars", transform_alpha=1e-10)
    >>> coder.transform(X)
    array([[ 0.,  0., -1.,  0.,  0.],
           [ 0.,  1.,  1.,  0.,  0.]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "dictionary": ["array-like"],
        **LassoCoder._parameter_constraints,
    }
    # The dictionary is a parameter.
    _kept: ClassVar[dict[str, Any]] = {
        "n_features_in_?": "D",
        "feature_names_in_?": ("D",),
        "_sklearn_output_config?": dict,
    }
    _descent: ClassVar[str] = _DESCENT
    _atoms_parameter: ClassVar[str] = "dictionary"

    def __init__(
        self,
        dictionary: ArrayLike,
        *,
        transform_algorithm: str = "omp",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        n_jobs: int | None = None,
        positive_code: bool = False,
        transform_max_iter: int = 1000,
        refit: bool = False,
        transform_tol: float | None = None,
        sparse_output: bool = False,
        device: str = "auto",
    ):
        self.dictionary = dictionary
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_alpha = transform_alpha
        self.split_sign = split_sign
        self.n_jobs = n_jobs
        self.positive_code = positive_code
        self.transform_max_iter = transform_max_iter
        self.refit = refit
        self.transform_tol = transform_tol
        self.sparse_output = sparse_output
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Check X and the parameters; nothing is learned.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; NaN means missing.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator.

        Raises
        ------
        ValueError
            Where X does not match the dictionary, a value is infinite, or a row or a column has no
            observed entries.
        """
        X = self._validate_rows(X, reset=True)
        check_features(X, self.components_)
        resolve_device(self.device)
        return self

    @property
    def components_(self) -> NDArray:  # type: ignore[override]
        """The dictionary, as a floating-point array."""
        return check_array(to_host(self.dictionary), dtype=_FLOATS, input_name="dictionary")

    @property
    def n_components_(self) -> int:
        """Number of atoms."""
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        # Tensors are accepted, but scikit-learn's tag promises that `fit` moves all arrays to the
        # namespace of X, and the dictionary stays where it is.
        tags.array_api_support = False
        return tags


@validate_params(
    {
        "X": ["array-like", "sparse matrix"],
        "dictionary": ["array-like"],
        "gram": ["array-like", None],
        "cov": ["array-like", None],
        "algorithm": [StrOptions(set(ALGORITHMS))],
        "n_nonzero_coefs": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, np.inf, closed="left"), None],
        "copy_cov": ["boolean"],
        "init": ["array-like", None],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_jobs": [Integral, None],
        "check_input": ["boolean"],
        "verbose": ["verbose"],
        "positive": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def sparse_encode(
    X: ArrayLike,
    dictionary: ArrayLike,
    *,
    gram: ArrayLike | None = None,
    cov: ArrayLike | None = None,
    algorithm: str = "lasso_lars",
    n_nonzero_coefs: int | None = None,
    alpha: float | None = None,
    copy_cov: bool = True,
    init: ArrayLike | None = None,
    max_iter: int = 1000,
    n_jobs: int | None = None,
    check_input: bool = True,
    verbose: int = 0,
    positive: bool = False,
) -> NDArray:
    """Return sparse codes of rows with a given dictionary.

    It has the parameters of :func:`sklearn.decomposition.sparse_encode`, with the same meaning,
    and codes rows as :class:`SparseCoder` does. In addition, NaN in X marks a missing entry, and
    the algorithm may be 'auto' or 'fista'.

    Parameters
    ----------
    X : array-like or sparse matrix of shape (n_samples, n_features)
        Rows to code. NaN is a missing entry: a row is coded from its observed entries.

    dictionary : array-like of shape (n_components, n_features)
        The atoms, of any norm.

    gram : array-like of shape (n_components, n_components), default=None
        Inner products of the atoms, where they are known. 'omp', 'lars' and 'lasso_lars' use them
        for rows without missing entries.

    cov : array-like of shape (n_components, n_samples), default=None
        Inner products of atoms and rows, where they are known. 'threshold', 'omp', 'lars' and
        'lasso_lars' use them for rows without missing entries.

    algorithm : str, default='lasso_lars'
        One of 'auto', 'fista', 'lasso_cd', 'lasso_lars', 'lars', 'omp' and 'threshold', which
        :class:`SparseCoder` describes.

    n_nonzero_coefs : int, default=None
        Number of non-zero codes that 'lars' and 'omp' aim at; the other algorithms do not use it.
        None: a tenth of the number of observed features.

    alpha : float, default=None
        Weight of the l1 norm of the codes, or the threshold of 'threshold'. None: 1.

    copy_cov : bool, default=True
        Whether ``cov`` must not be changed.

    init : array-like of shape (n_samples, n_components), default=None
        Codes that 'auto', 'fista' and 'lasso_cd' start from.

    max_iter : int, default=1000
        Maximum number of iterations of a lasso solve.

    n_jobs : int, default=None
        Number of jobs of scikit-learn's coders. Our coders use torch's threads.

    check_input : bool, default=True
        Whether to check X and the dictionary; without a check they must be floating-point arrays.

    verbose : int, default=0
        How much scikit-learn's coders print.

    positive : bool, default=False
        Whether codes must be non-negative. 'lars' cannot do that.

    Returns
    -------
    codes : ndarray of shape (n_samples, n_components)
        The codes, of the type of X; with scikit-learn's ``array_api_dispatch``, in its namespace
        and on its device.

    Raises
    ------
    ValueError
        Where rows and atoms differ in length, a value is infinite, a row has no observed entry,
        'omp' is asked for more codes than atoms, or ``gram``, ``cov`` or ``init`` has the wrong
        shape.

    See Also
    --------
    SparseCoder : The same as an estimator.
    sklearn.decomposition.sparse_encode : The function with the same parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_vsc import sparse_encode
    >>> dictionary = np.array([[0, 1, 0], [-1, -1, 2], [1, 1, 1], [0, 1, 1], [0, 2, 1]])
    >>> sparse_encode(np.array([[-1.0, np.nan, -1.0]]), dictionary, alpha=1e-10)
    array([[ 0.,  0., -1.,  0.,  0.]])
    """
    home = Home.of(X)
    rows, atoms = at_the_door(X), to_host(dictionary)
    if check_input:
        atoms = check_array(atoms, dtype=_FLOATS, input_name="dictionary")
        rows = check_array(
            rows, accept_sparse="csr", dtype=_FLOATS, ensure_all_finite=False, input_name="X"
        )
        check_observed(rows, columns=False)
    check_features(rows, atoms)
    n_rows, n_components = rows.shape[0], len(atoms)
    names = {"name": "n_nonzero_coefs", "other": "dictionary"}
    check_n_nonzero(algorithm, n_nonzero_coefs, n_components, **names)
    known = Precomputed(
        gram=_precomputed("gram", gram, (n_components, n_components), rows.dtype),
        cov=_precomputed("cov", cov, (n_components, n_rows), rows.dtype),
        init=_precomputed("init", init, (n_rows, n_components), rows.dtype),
        copy_cov=copy_cov,
    )
    coder = RowCoder(
        algorithm,
        1.0 if alpha is None else alpha,
        _device_of(X),
        n_nonzero_coefs=n_nonzero_coefs,
        max_iter=max_iter,
        positive=positive,
        n_jobs=n_jobs,
        descent=_DESCENT,
        verbose=verbose,
        advice="Raise max_iter.",
    )
    with fair_share_of_cores():
        return home.bring(_coded(coder, rows, atoms, known))


def _coded(coder: RowCoder, X: Any, dictionary: NDArray, known: Precomputed) -> NDArray:
    """Return the codes of rows; those of a sparse matrix are made dense block by block."""
    if not issparse(X):
        return coder.codes(X, dictionary, known)
    slices = row_slices(X.shape[0], rows_at_once(X.shape[1]))
    parts = (
        coder.codes(X[rows].toarray(), dictionary, known.of_rows(rows, complete=True))
        for rows in slices
    )
    return np.concatenate(list(parts))


def _precomputed(
    name: str, given: ArrayLike | None, shape: tuple[int, int], dtype: np.dtype
) -> NDArray | None:
    """Return an array that a caller has computed beforehand, after a check of its shape."""
    if given is None:
        return None
    array = np.asarray(to_host(given), dtype=dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, but has {array.shape}.")
    return array


def _device_of(X: Any) -> str:
    """Return the device of a tensor, or 'auto' for other arrays."""
    return str(X.device) if isinstance(X, torch.Tensor) else "auto"
