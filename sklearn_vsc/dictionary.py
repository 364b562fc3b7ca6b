"""Dictionary learning with fast lasso coding, a likelihood bound for its score."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array
from torch import Tensor

from ._base.coder import check_size
from ._laplace_model import LaplaceModelCoder
from ._rows.array_api import follows_input, learns_from_input
from ._rows.arrays import (
    draw_seed,
    few_rows,
    private_random_state,
    resolve_device,
    row_slices,
    seeded_generator,
    to_numpy,
    to_tensor,
)
from ._rows.compat import Interval, StrOptions, fit_context
from ._rows.sparse_output import join_codes
from ._training.dictionary_fit import FitProgress, SeenRows, shown
from ._training.fit_tasks import FitTasks
from ._training.interruption import HeldInterrupts, unchanged_on_error
from .solvers.dictionary.full_batch import (
    Epoch,
    FullBatchLearner,
    row_blocks,
)
from .solvers.dictionary.online import OnlineLearner, OnlineStopping, forgetting
from .solvers.dictionary.sparse_codes import SparseCodes
from .solvers.dictionary.statistics import Statistics
from .solvers.dictionary.update import initial_dictionary, normalise_atoms
from .solvers.lasso.coders import Coder, block_coder
from .solvers.lasso.solve import default_tolerance, fastest_method, solve_lasso
from .solvers.lasso.stopping import LassoResult

# Names of coders that are not scikit-learn's, though it has some of the names.
_OURS = ("auto", "fista", "cd", "lasso_cd")
# Rows that the noise variance is estimated from, at most.
_NOISE_ROWS = 4096
# Rows of the final look at the training rows coded at once, at least.
_CHUNK_ROWS = 1024
# Codes that a transform holds at once where its output is sparse, at least.
_CODES_AT_ONCE = 2**24
# A full-batch fit calls back every so many iterations, as in scikit-learn.
_CALLBACK_EVERY = 5


class FISTADictionaryLearner(LaplaceModelCoder):
    r"""Dictionary learning with lasso codes by compiled coordinate descent or batched FISTA.

    It minimises over codes :math:`U` and a dictionary :math:`V` of unit-norm atoms

    .. math:: \tfrac12 \|X - U V\|_F^2 + \alpha \|U\|_1 .

    The class has every parameter of :class:`sklearn.decomposition.DictionaryLearning` and
    :class:`sklearn.decomposition.MiniBatchDictionaryLearning`, with the same meaning. Rows are
    coded block by block, starting from their codes of the last pass: on a CPU by coordinate
    descent that moves several codes at a time, on a GPU by accelerated proximal gradient descent
    with adaptive restart. After each block the dictionary is updated by block coordinate descent
    from accumulated statistics. Only the non-zero codes are stored. Atoms that no row uses are
    replaced by rows that are badly coded.

    NaN in X marks a missing entry: the fit, the codes and the scores use observed entries only,
    and ``inverse_transform(transform(X))`` imputes the missing ones.

    The parameters come in this order:

    * **Most used**: ``n_components``, ``alpha``, ``max_iter``.
    * **Model**: ``positive_code``, ``positive_dict``.
    * **Training**: ``fit_algorithm``, ``dict_init``, ``code_init``, ``batch_size``, ``shuffle``,
      ``tol``, ``max_no_improvement``.
    * **Inference**: ``transform_algorithm``, ``transform_alpha``, ``transform_n_nonzero_coefs``,
      ``transform_tol``, ``transform_max_iter``, ``split_sign``.
    * **Running**: ``random_state``, ``verbose``, ``callback``, ``n_jobs``, ``sparse_output``,
      ``device``.

    Parameters
    ----------
    n_components : int, default=None
        Number of components K. None: as many as ``dict_init`` has atoms; without ``dict_init``, as
        many as features.

    alpha : float, default=1.0
        Weight of the l1 norm of the codes: a higher one makes them sparser. It has the unit of X.
        With ``alpha=0`` there is no prior, and thus no score.

    max_iter : int, default=1000
        Maximum number of epochs, that is, of passes over the rows.

    positive_code : bool, default=False
        Whether codes must be non-negative.

    positive_dict : bool, default=False
        Whether atoms must be non-negative.

    fit_algorithm : {'auto', 'fista', 'lars', 'cd'}, default='auto'
        Coder used in ``fit``. 'cd': compiled coordinate descent, which runs on the CPU. 'fista':
        batched FISTA. 'auto': the faster of these two, which is 'cd' on a CPU and 'fista' on other
        devices. 'lars': scikit-learn's coder.

    dict_init : ndarray of shape (n_components, n_features), default=None
        Initial dictionary; its atoms are scaled to unit norm. None: distinct random rows of X,
        scaled likewise.

    code_init : ndarray of shape (n_samples, n_components), default=None
        Initial codes of the training rows in a full-batch fit.

    batch_size : int, default=None
        Number of rows per training step. With mini-batches the dictionary is learned online, from
        statistics that gradually forget earlier rows. None: full batch.

    shuffle : bool, default=True
        Whether each pass visits the rows, or the blocks of rows, in a new random order.

    tol : float, default=1e-8
        Full batch: stop when a pass lowers the objective by less than ``tol`` times its value, once
        codes are solved as closely as that requires. Mini-batch: stop when the Frobenius norm of
        the dictionary's change in a step, divided by the number of atoms, is at most ``tol``; with
        zero it never stops.

    max_no_improvement : int, default=10
        Mini-batch: number of consecutive steps without a new minimum of the smoothed cost after
        which the fit stops. None: it never stops for this reason.

    transform_algorithm : str, default='auto'
        Coder used in ``transform``. 'auto', 'lasso_cd' and 'fista' solve the lasso by the methods
        of ``fit_algorithm``, and solve rows that are slow to converge exactly, by an active-set
        method. 'lasso_lars', 'lars', 'omp' and 'threshold' are scikit-learn's
        (:func:`sklearn.decomposition.sparse_encode`).

    transform_alpha : float, default=None
        Weight of the l1 norm in ``transform``, or the threshold of 'threshold'. None: ``alpha``.

    transform_n_nonzero_coefs : int, default=None
        Number of non-zero codes that 'lars' and 'omp' aim at. None: a tenth of the number of
        observed features.

    transform_tol : float, default=None
        The lasso code of a row is done when its duality gap is at most ``transform_tol`` times its
        objective. The gap is an upper bound on the distance of the objective from its minimum, and
        usually far larger: where the gap is 1e-4 of the objective, the distance is mostly below
        1e-7. None: 1e-6 in float64, 1e-5 in float32.

    transform_max_iter : int, default=1000
        Maximum number of iterations of a lasso solve. One iteration of coordinate descent moves as
        many codes as there are atoms.

    split_sign : bool, default=False
        Whether ``transform`` returns the positive and negative parts of the codes side by side, as
        2 ``n_components`` non-negative columns.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial model, the order of the rows and all draws. The rows that replace unused
        atoms depend on it, too.

    verbose : bool or int, default=False
        Whether to show a progress bar. The bar gives the mean objective of the last pass.

    callback : callable, default=None
        Called with one dict. Full batch: every five iterations, with ``ii`` (number of the
        iteration, from 0), ``errors`` (list of objectives) and ``dictionary``. Mini-batch: at each
        step, with ``i`` (number of the step, from 0), ``batch_cost`` and ``dictionary``.

    n_jobs : int, default=None
        Number of jobs of scikit-learn's coders. Our coders use torch's threads.

    sparse_output : bool, default=False
        Whether ``transform`` returns a SciPy CSR matrix instead of an array.

    device : str, default='auto'
        Where to compute: 'auto' (CUDA if there is one, else MPS, else CPU) or the name of a torch
        device. Results come back as NumPy arrays or, with scikit-learn's ``array_api_dispatch``, as
        arrays of the same namespace and device as X.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary. Its atoms have unit norm.

    component_usage_ : ndarray of shape (n_components,)
        Share of the training rows that use each atom. A row uses an atom where its lasso code is
        not zero. After an interrupted fit up to 4096 rows are counted; after ``partial_fit`` all
        rows seen, with the codes that they had then.

    n_dead_ : int
        Number of atoms that no training row uses: the zeros of ``component_usage_``.

    noise_variance_ : float
        Variance of the Gaussian likelihood, in squared units of X. It is s2 in the model of the
        score, and maximises the mean bound of the training rows (of up to 4096 of them).

    prior_scale_ : float
        Scale b = s2 / alpha of the Laplace prior in the model of the score; infinite where
        ``alpha`` is zero.

    error_ : ndarray of shape (`n_iter_`,)
        Objective of all rows, over observed entries, after each pass; in a full-batch fit with our
        coders it never rises. Mini-batch: sum of the costs that the rows had in their steps.

    history_ : list of dict
        One record per epoch. ``epoch`` counts from 1 and ``duration`` is in seconds. ``loss`` is
        the mean objective of a row, with its two parts: ``reconstruction``, half the squared error,
        and ``penalty``, ``alpha`` times the l1 norm of the codes. ``density`` is the share of codes
        that are not zero. Full batch: these values are taken at the end of the pass, when codes are
        half a pass old on average. Mini-batch: they are taken in the steps of the pass.

    n_iter_ : int
        Number of epochs; each call of ``partial_fit`` counts as one.

    n_steps_ : int
        Number of dictionary updates.

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X has names that are all strings.

    See Also
    --------
    sklearn.decomposition.DictionaryLearning : The same objective, with atoms of norm at most one.
    sklearn.decomposition.MiniBatchDictionaryLearning : Its online variant.

    Notes
    -----
    ``score_samples`` regards the fit as the model z ~ Laplace(0, b), x given z ~ N(z V, s2 I)
    with alpha = s2 / b. The lasso code is the mode of its posterior. A product of Laplace
    distributions around that code, with the scales that maximise the bound, gives a lower bound
    on log p(x) in closed form. Codes have a density under this model, so their posterior
    probability of being non-zero is one. ``positive_code`` restricts the lasso codes, not this
    model.

    An interrupted ``fit`` (Ctrl-C) warns and leaves the dictionary of the last full pass, or the
    initial dictionary if no pass was finished. An interrupted ``partial_fit`` raises
    KeyboardInterrupt and changes nothing.

    The codes of the rows in a full-batch fit are half a pass old on average. From the second
    pass on, the statistics that update the dictionary are therefore extrapolated along the trend
    of the latest blocks. If the objective is not lower after such a pass, the pass is undone and
    repeated without extrapolation. The rows are divided into blocks once, at random; ``shuffle``
    changes the order of the blocks.

    Where values are missing, the pattern differs from row to row, and so do the inner products
    of the atoms. Coordinate descent then keeps those of the few atoms that a row comes to use.
    The statistics are computed from rows whose missing entries are imputed from their codes,
    which gives an upper bound on the objective that touches it at the current dictionary. The
    step that minimises this bound is too short, by the share of observed entries; residuals are
    therefore scaled up to make up for that share, and a pass after which the objective is not
    lower is repeated without scaling. A full-batch fit keeps a copy of X for this.

    References
    ----------
    .. [1] J. Mairal, F. Bach, J. Ponce and G. Sapiro (2009). Online dictionary learning for
       sparse coding. ICML.
    .. [2] A. Beck and M. Teboulle (2009). A fast iterative shrinkage-thresholding algorithm
       for linear inverse problems. SIAM Journal on Imaging Sciences 2.
    .. [3] B. O'Donoghue and E. Candes (2015). Adaptive restart for accelerated gradient
       schemes. Foundations of Computational Mathematics 15.
    .. [4] O. Fercoq, A. Gramfort and J. Salmon (2015). Mind the duality gap: safer rules for
       the Lasso. ICML.
    .. [5] H. Lee, A. Battle, R. Raina and A. Ng (2007). Efficient sparse coding algorithms.
       NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import make_sparse_coded_signal
    >>> from sklearn_vsc import FISTADictionaryLearner
    >>> X, dictionary, code = make_sparse_coded_signal(
    ...     n_samples=200, n_components=15, n_features=20, n_nonzero_coefs=3, random_state=0
    ... )
    >>> learner = FISTADictionaryLearner(n_components=15, alpha=0.1, random_state=0).fit(X)
    >>> codes = learner.transform(X)
    >>> codes.shape
    (200, 15)
    >>> X_hat = learner.inverse_transform(codes)
    >>> bool(np.mean((X - X_hat) ** 2) < 0.1 * np.mean(X**2))
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, np.inf, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "fit_algorithm": [StrOptions({"auto", "fista", "lars", "cd"})],
        "transform_algorithm": [
            StrOptions({"auto", "fista", "lasso_lars", "lasso_cd", "lars", "omp", "threshold"})
        ],
        "transform_n_nonzero_coefs": [Interval(Integral, 1, None, closed="left"), None],
        "transform_alpha": [Interval(Real, 0, np.inf, closed="left"), None],
        "n_jobs": [Integral, None],
        "code_init": [np.ndarray, None],
        "dict_init": [np.ndarray, None],
        "callback": [callable, None],
        "verbose": ["verbose"],
        "split_sign": ["boolean"],
        "random_state": ["random_state"],
        "positive_code": ["boolean"],
        "positive_dict": ["boolean"],
        "transform_max_iter": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "shuffle": ["boolean"],
        "max_no_improvement": [Interval(Integral, 0, None, closed="left"), None],
        "transform_tol": [Interval(Real, 0, 1, closed="right"), None],
        "sparse_output": ["boolean"],
        "device": [str],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1,
        max_iter: int = 1000,
        tol: float = 1e-8,
        fit_algorithm: str = "auto",
        transform_algorithm: str = "auto",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        n_jobs: int | None = None,
        code_init: NDArray | None = None,
        dict_init: NDArray | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        verbose: bool | int = False,
        split_sign: bool = False,
        random_state: int | np.random.RandomState | None = None,
        positive_code: bool = False,
        positive_dict: bool = False,
        transform_max_iter: int = 1000,
        batch_size: int | None = None,
        shuffle: bool = True,
        max_no_improvement: int | None = 10,
        transform_tol: float | None = None,
        sparse_output: bool = False,
        device: str = "auto",
    ):
        self.n_components = n_components
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.fit_algorithm = fit_algorithm
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_alpha = transform_alpha
        self.n_jobs = n_jobs
        self.code_init = code_init
        self.dict_init = dict_init
        self.callback = callback
        self.verbose = verbose
        self.split_sign = split_sign
        self.random_state = random_state
        self.positive_code = positive_code
        self.positive_dict = positive_dict
        self.transform_max_iter = transform_max_iter
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.max_no_improvement = max_no_improvement
        self.transform_tol = transform_tol
        self.sparse_output = sparse_output
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn the dictionary from the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows; NaN means missing.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            Where X or a parameter does not fit, a value is infinite, nothing is observed of
            a row or a column, or the objective is no longer finite.
        """
        tasks = FitTasks(self, X, y, self.max_iter)
        # Ctrl-C ends the fit before it has a dictionary, and after that the passes alone.
        with HeldInterrupts() as interrupts:
            with unchanged_on_error(self):
                X = self._validate_rows(X, reset=True)
                rows, dictionary, norms, generator = self._begin(X)
                if self.batch_size is None:
                    codes = self._initial_codes(X, dictionary, norms, generator)
                    epochs = self._full_batch_epochs(rows, codes, dictionary, generator)
                else:
                    epochs = self._online_epochs(rows, dictionary, generator)
                if self.verbose:
                    epochs = shown(epochs, self.max_iter)
                progress = FitProgress.before(dictionary)
                progress.follow(
                    epochs,
                    self.max_iter,
                    len(rows),
                    interrupts,
                    before=tasks.begin_epoch,
                    after=lambda: self._after_epoch(progress, rows, tasks),
                )
                self._keep(progress)
                interrupts.attempt(lambda: self._summarise(rows))
                if interrupts.came:
                    self._summarise(few_rows(rows), warn=False)
            interrupts.attempt(tasks.end)
        if interrupts.came:
            # At the very end: where warnings are errors, nothing is lost by it.
            warnings.warn(
                f"fit was interrupted after {self.n_iter_} full epochs; the estimator is left "
                + ("as it was then." if self.n_iter_ else "with its first dictionary."),
                UserWarning,
                stacklevel=3,
            )
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Take one online step: code the rows of X, then update the dictionary.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows of one mini-batch; NaN means missing.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator, ready for use.

        Raises
        ------
        ValueError
            Where X or a parameter does not fit, a value is infinite, nothing is observed of a row
            or, in the first call, of a column, or the objective is no longer finite.
        KeyboardInterrupt
            On Ctrl-C, so that a loop around the call ends too. The estimator is then, as
            after any error, what it was before the call.
        """
        with unchanged_on_error(self):
            self._take_step(X)
        return self

    def _take_step(self, X: ArrayLike) -> None:
        start = time.perf_counter()
        first = not hasattr(self, "components_")
        X = self._validate_rows(X, reset=first)
        if first:
            rows, dictionary, _, generator = self._begin(X)
            self._keep(FitProgress.before(dictionary))
        else:
            rows = self._to_rows(X.astype(self.components_.dtype, copy=False))
            dictionary = self._to_rows(self.components_)
            generator = seeded_generator(self._seed + self.n_steps_)
        learner = self._online_learner(dictionary, generator, self._seen, self.n_steps_)
        codes, objective = learner.step(rows)
        seconds = time.perf_counter() - start
        found = learner.dictionary, objective, learner.statistics, learner.n_steps
        epoch = Epoch(*found, seconds, converged=False)
        progress = FitProgress(epoch, list(self.history_), list(self.error_))
        progress.add(epoch, len(rows))
        self._keep(progress, self._seen)
        self._add_rows(codes, rows, dictionary, learner.idle)

    @follows_input
    def transform(self, X: ArrayLike) -> NDArray:
        """Return the sparse codes of the rows of X by ``transform_algorithm``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code. NaN means missing: a row is coded from what is observed of it.

        Returns
        -------
        codes : ndarray or CSR matrix of shape (n_samples, n_components)
            Codes, or (n_samples, 2 n_components) with ``split_sign``: positive parts, then
            the sizes of the negative ones. Sparse with ``sparse_output=True``.

        Raises
        ------
        ValueError
            Where X does not fit, a value is infinite, or nothing is observed of a row.
        """
        X = self._validate_rows(X, reset=False)
        n_components = len(self.components_)
        # What all rows share in a solve grows with the square of the number of atoms.
        chunks = row_slices(len(X), max(_CODES_AT_ONCE // n_components, n_components))
        codes = (self._codes(X[rows]) for rows in chunks)
        return join_codes(codes, sparse_output=self.sparse_output)

    def _codes(self, X: NDArray) -> NDArray:
        alpha = self.alpha if self.transform_alpha is None else self.transform_alpha
        if self.transform_algorithm in _OURS:
            rows = self._to_rows(X)
            dictionary = self._to_rows(self.components_).to(rows.dtype)
            result = self._solve(rows, dictionary, alpha, self._method(self.transform_algorithm))
            self._warn_unconverged(result)
            codes = to_numpy(result.codes, X.dtype)
        else:
            codes = self._sklearn_codes(X, self.components_, self.transform_algorithm, alpha)
        if self.split_sign:
            codes = np.hstack([np.maximum(codes, 0), np.maximum(-codes, 0)])
        return codes

    @follows_input
    def inverse_transform(self, Z: ArrayLike) -> NDArray:
        """Return the rows that codes stand for.

        Parameters
        ----------
        Z : array-like or sparse matrix of shape (n_samples, n_components)
            Codes as ``transform`` gives them; with ``split_sign``, of twice the columns.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            The product of codes and dictionary, without holes.
        """
        Z = self._validate_codes(Z)
        if self.split_sign:
            n_components = len(self.components_)
            Z = Z[:, :n_components] - Z[:, n_components:]
        return Z @ self.components_.astype(Z.dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_) * (2 if self.split_sign else 1)

    def _dead_atoms_cure(self) -> str:
        return "Lower alpha or n_components, or train on more rows."

    def _check_size(self, X: NDArray, *, reset: bool) -> None:
        """Check the size of X, whose squares are taken as it stands."""
        limit = 1e15 if X.dtype == np.float32 else 1e100
        # Rows to code may be small: then their codes are zero.
        size = check_size(X, 1 / limit if reset else 0.0, limit)
        if reset:
            self._check_alpha(size)

    def _begin(self, X: NDArray) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        """Return rows, first dictionary, the norms taken from its atoms, and a generator."""
        random_state = private_random_state(self.random_state)
        self._seed, self._draw_seed = draw_seed(random_state), draw_seed(random_state)
        generator = seeded_generator(self._seed)
        rows = self._to_rows(X)
        positive, n_features = self.positive_dict, X.shape[1]
        if self.dict_init is None:
            n_components = int(self.n_components or n_features)
            dictionary = initial_dictionary(
                rows, n_components, positive=positive, generator=generator
            )
            return rows, dictionary, rows.new_ones(n_components), generator
        n_components = int(self.n_components or len(self.dict_init))
        atoms = self._check_init("dict_init", (n_components, n_features), X.dtype)
        norms = torch.linalg.vector_norm(atoms, dim=1)
        dictionary = normalise_atoms(atoms, positive=positive, generator=generator)
        return rows, dictionary, norms, generator

    def _check_init(self, name: str, shape: tuple[int, int], dtype: np.dtype) -> Tensor:
        """Return ``dict_init`` or ``code_init`` as a tensor, once its shape is right."""
        with np.errstate(over="ignore", invalid="ignore"):
            array = check_array(
                getattr(self, name),
                dtype=dtype,
                input_name=name,
                copy=True,
                # The shape is judged here: older versions do not name what has another.
                ensure_2d=False,
                allow_nd=True,
                ensure_min_samples=0,
            )
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, but has {array.shape}.")
        return self._to_rows(array)

    def _initial_codes(
        self, X: NDArray, dictionary: Tensor, norms: Tensor, generator: torch.Generator
    ) -> SparseCodes:
        """Return the codes that a full-batch fit starts from."""
        n_components = len(dictionary)
        order = generator if self.shuffle else None
        blocks = row_blocks(len(X), n_components, order, dictionary.device)
        if self.code_init is None:
            return SparseCodes(blocks, n_components, dictionary.dtype)
        # What is taken from the norm of an atom goes to its codes.
        codes = self._check_init("code_init", (len(X), n_components), X.dtype) * norms
        return SparseCodes.of(codes.clamp_min(0) if self.positive_code else codes, blocks)

    def _coder(self) -> Coder:
        """Return the coder of ``fit_algorithm``."""
        method = self._method(self.fit_algorithm)
        if method in ("cd", "fista"):
            return block_coder(method, self.alpha, self.transform_max_iter, self.positive_code)

        def code(X: Tensor, dictionary: Tensor, start: Tensor | None, distance: float) -> Tensor:
            arrays = to_numpy(X), to_numpy(dictionary)
            codes = self._sklearn_codes(*arrays, f"lasso_{method}", self.alpha)
            return torch.from_numpy(codes).to(X)

        return code

    def _online_learner(
        self,
        dictionary: Tensor,
        generator: torch.Generator,
        seen: SeenRows | None = None,
        n_steps: int = 0,
    ) -> OnlineLearner:
        statistics = Statistics.zeros_like(dictionary)
        idle = torch.zeros(len(dictionary), dtype=torch.int64, device=dictionary.device)
        if seen is not None:
            statistics.code_gram += torch.from_numpy(seen.code_gram).to(dictionary)
            statistics.code_data += torch.from_numpy(seen.code_data).to(dictionary)
            idle += torch.from_numpy(seen.idle).to(idle)
        return OnlineLearner(
            dictionary,
            self.alpha,
            self._coder(),
            self.positive_dict,
            generator,
            statistics,
            idle,
            n_steps,
        )

    def _full_batch_epochs(
        self, rows: Tensor, codes: SparseCodes, dictionary: Tensor, generator: torch.Generator
    ) -> Iterator[Epoch]:
        learner = FullBatchLearner(
            rows, codes, dictionary, self.alpha, self._coder(), self.positive_dict, generator
        )
        return learner.epochs(self.tol, self.shuffle)

    def _online_epochs(
        self, rows: Tensor, dictionary: Tensor, generator: torch.Generator
    ) -> Iterator[Epoch]:
        def on_step(step: int, cost: float, atoms: Tensor) -> None:
            if self.callback is not None:
                self.callback({"i": step, "batch_cost": cost, "dictionary": to_numpy(atoms)})

        return self._online_learner(dictionary, generator).epochs(
            rows,
            int(min(self.batch_size or len(rows), len(rows))),
            shuffle=self.shuffle,
            stopping=OnlineStopping(self.tol, self.max_no_improvement),
            on_step=on_step,
        )

    def _after_epoch(self, progress: FitProgress, rows: Tensor, tasks: FitTasks) -> bool:
        """Report a pass; return whether a callback wants the fit to stop."""
        index = len(progress.history) - 1
        if self.batch_size is None and self.callback and index % _CALLBACK_EVERY == 0:
            atoms, errors = to_numpy(progress.epoch.dictionary), list(progress.errors)
            self.callback({"ii": index, "errors": errors, "dictionary": atoms})

        def fitted() -> FISTADictionaryLearner:
            estimator = copy.copy(self)
            estimator._keep(progress)
            estimator._summarise(few_rows(rows), warn=False)
            return estimator

        return tasks.end_epoch(fitted)

    def _keep(self, progress: FitProgress, seen: SeenRows | None = None) -> None:
        """Set the attributes that a pass changes; without rows seen, start their count."""
        epoch = progress.epoch
        self.components_ = to_numpy(epoch.dictionary).copy()
        self.history_ = list(progress.history)
        self.error_ = np.asarray(progress.errors, dtype=np.float64)
        self.n_iter_ = len(progress.history)
        self.n_steps_ = epoch.n_steps
        n_components = len(self.components_)
        self._seen = SeenRows(
            code_gram=to_numpy(epoch.statistics.code_gram),
            code_data=to_numpy(epoch.statistics.code_data),
            idle=np.zeros(n_components, dtype=np.int64) if seen is None else seen.idle,
            n_uses=np.zeros(n_components) if seen is None else seen.n_uses,
            n_rows=0 if seen is None else seen.n_rows,
            noise_rows=0.0 if seen is None else seen.noise_rows,
        )

    def _summarise(self, rows: Tensor, *, warn: bool = True) -> None:
        """Code the training rows once more: use of the atoms and noise variance."""
        every = math.ceil(len(rows) / _NOISE_ROWS)
        dictionary = self._to_rows(self.components_)
        n_uses = torch.zeros(len(dictionary), dtype=torch.int64, device=rows.device)

        def noise_blocks() -> Iterator[tuple[Tensor, Tensor]]:
            # What all rows share in a solve grows with the square of the number of atoms.
            size = max(_CHUNK_ROWS, len(dictionary))
            for block in row_slices(len(rows), every * math.ceil(size / every)):
                codes = self._solve(rows[block], dictionary, self.alpha, "auto").codes
                n_uses.add_((codes != 0).sum(0))
                yield rows[block][::every], codes[::every]

        self.noise_variance_ = self._fit_noise(noise_blocks(), dictionary)
        seen = self._seen
        seen.n_uses, seen.n_rows, seen.noise_rows = to_numpy(n_uses), len(rows), len(rows)
        self._record_usage(seen.n_uses / seen.n_rows, warn=warn)

    def _add_rows(self, codes: Tensor, rows: Tensor, dictionary: Tensor, idle: Tensor) -> None:
        """Let the rows of a step count in the use of the atoms and the noise variance."""
        seen = self._seen
        old = seen.noise_rows * forgetting(self.n_steps_ - 1, len(rows))
        every = math.ceil(len(rows) / _NOISE_ROWS)
        noise = self._fit_noise([(rows[::every], codes[::every])], dictionary)
        if old > 0:
            noise = (old * self.noise_variance_ + len(rows) * noise) / (old + len(rows))
        self.noise_variance_ = noise
        seen.noise_rows, seen.n_rows = old + len(rows), seen.n_rows + len(rows)
        seen.n_uses, seen.idle = seen.n_uses + to_numpy((codes != 0).sum(0)), to_numpy(idle)
        self.component_usage_ = seen.n_uses / seen.n_rows
        self.n_dead_ = int(np.count_nonzero(seen.n_uses == 0))

    def _solve_lasso(self, X: NDArray, alpha: float) -> LassoResult:
        rows = self._to_rows(X)
        return self._solve(rows, self._to_rows(self.components_).to(rows.dtype), alpha, "auto")

    def _solve(self, rows: Tensor, dictionary: Tensor, alpha: float, method: str) -> LassoResult:
        return solve_lasso(
            rows,
            dictionary,
            # Beyond any residual's product with an atom, all are alike.
            min(float(alpha), torch.finfo(rows.dtype).max),
            method=method,
            tol=self._tolerance(rows.dtype),
            max_iter=self.transform_max_iter,
            positive=self.positive_code,
        )

    def _method(self, algorithm: str) -> str:
        """Return the method that stands behind the name of an algorithm."""
        if algorithm == "auto":
            return fastest_method(resolve_device(self.device))
        return algorithm.removeprefix("lasso_") if algorithm in _OURS else algorithm

    def _warn_unconverged(self, result: LassoResult) -> None:
        n_left = int((~result.converged).sum())
        if n_left:
            warnings.warn(
                f"The lasso codes of {n_left} of {len(result.converged)} rows did not reach a "
                f"relative duality gap of {self._tolerance(result.codes.dtype):.1e} in "
                f"{self.transform_max_iter} iterations. Raise transform_max_iter or "
                "transform_tol.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _sklearn_codes(
        self, X: NDArray, dictionary: NDArray, algorithm: str, alpha: float
    ) -> NDArray:
        """Code rows by scikit-learn; those with holes over what is observed of them."""
        dictionary = dictionary.astype(X.dtype, copy=False)
        if np.isnan(X).any():
            codes = np.empty((len(X), len(dictionary)), X.dtype)
            patterns, pattern = np.unique(~np.isnan(X), axis=0, return_inverse=True)
            for number, observed in enumerate(patterns):
                rows = pattern.reshape(-1) == number
                codes[rows] = self._sklearn_codes(
                    X[np.ix_(rows, observed)], dictionary[:, observed], algorithm, alpha
                )
            return codes
        return sparse_encode(
            X,
            dictionary,
            algorithm=algorithm,
            n_nonzero_coefs=self.transform_n_nonzero_coefs,
            alpha=alpha,
            max_iter=self.transform_max_iter,
            n_jobs=self.n_jobs,
            positive=self.positive_code,
        )

    def _tolerance(self, dtype: torch.dtype) -> float:
        return default_tolerance(dtype) if self.transform_tol is None else self.transform_tol

    def _to_rows(self, X: NDArray) -> Tensor:
        # Nothing here writes to rows; those in a read-only memmap need not fit into memory.
        return to_tensor(X, resolve_device(self.device), borrow=True)
