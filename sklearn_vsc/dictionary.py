"""Dictionary learning with fast lasso coding, a likelihood bound for its score."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from torch.utils.data import DataLoader, Dataset

from ._base.coder import Posterior
from ._base.lasso_coder import LassoCoder
from ._inference.exponential_model import PositiveLassoModel
from ._inference.laplace_model import SignedLassoModel
from ._inference.lasso_model import LassoModel, check_alpha
from ._rows.array_api import follows_fit, follows_input, learns_from_input
from ._rows.arrays import draw_seed, private_random_state
from ._rows.compat import Interval, StrOptions, fit_context
from ._rows.numbers import check_count
from ._rows.sources import batches_of
from ._rows.sparse_output import dense_blocks, dense_rows
from ._rows.user_warnings import warn_user
from ._training.density import DensityFit
from ._training.dictionary_fit import DictionaryFit, coder_of_fit, noise_of_recent_rows, take_step
from ._training.dictionary_progress import LearnedDictionary, LearningOptions, SeenRows
from ._training.fit_tasks import FitTasks
from ._training.interruption import HeldInterrupts, unchanged_on_error

# Names of the parameters of a fit.
_OPTIONS = [f.name for f in fields(LearningOptions) if f.name not in ("block_coder", "lasso")]


class FISTADictionaryLearner(LassoCoder):
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

    * **Most used**: ``n_components``, ``alpha``, ``density``, ``max_iter``.
    * **Model**: ``positive_code``, ``positive_dict``.
    * **Training**: ``fit_algorithm``, ``dict_init``, ``code_init``, ``batch_size``, ``shuffle``,
      ``tol``, ``max_no_improvement``, ``forget``, ``n_init``, ``warm_start``.
    * **Inference**: ``transform_algorithm``, ``transform_alpha``, ``transform_n_nonzero_coefs``,
      ``refit``, ``transform_tol``, ``transform_max_iter``, ``split_sign``.
    * **Running**: ``random_state``, ``verbose``, ``callback``, ``n_jobs``, ``sparse_output``,
      ``device``.

    Parameters
    ----------
    n_components : int, default=None
        Number of components K. None: as many as ``dict_init`` has atoms; without ``dict_init``, as
        many as features.

    alpha : float, default=1.0
        Weight of the l1 norm of the codes: a higher one makes them sparser. It has the unit of X.
        With ``alpha=0`` there is no prior, and thus no score. See
        :func:`sklearn_vsc.metrics.alpha_max` and the guide.

    density : float, default=None
        Share of the training codes that are not zero, in (0, 1). ``alpha`` is then ignored, and
        ``fit`` finds its value, ``alpha_``, which codes, score and ``partial_fit`` use.

    max_iter : int, default=1000
        Maximum number of epochs, that is, of passes over the rows.

    positive_code : bool, default=False
        Whether codes must be non-negative, in the model of the score as well: its prior is then
        exponential.

    positive_dict : bool, default=False
        Whether atoms must be non-negative.

    fit_algorithm : {'auto', 'fista', 'lars', 'cd'}, default='auto'
        Coder used in ``fit``. 'cd': compiled coordinate descent, which runs on the CPU. 'fista':
        batched FISTA. 'auto': the faster of these two, which is 'cd' on a CPU and 'fista' on other
        devices. 'lars': scikit-learn's coder.

    dict_init : array-like of shape (n_components, n_features), default=None
        Initial dictionary; its atoms are scaled to unit norm. With ``max_iter=0`` it is kept as it
        is given, whatever the norms and signs of its atoms. None: distinct random rows of X, scaled
        to unit norm.

    code_init : array-like of shape (n_samples, n_components), default=None
        Initial codes of the training rows in a full-batch fit.

    batch_size : int, default=None
        Number of rows per training step. What a mini-batch contributes to the statistics is
        replaced when it is visited again, so the objective is that of all rows, as in a full batch.
        None: full batch, in blocks of at least 512 rows.

    shuffle : bool, default=True
        Whether each pass visits the rows, or the blocks of rows, in a new random order.

    tol : float or 'auto', default='auto'
        'auto': stop when the later half of the passes has lowered the objective by less than 0.3%,
        which leaves about as much to gain. A number, full batch: stop when a pass lowers the
        objective by less than ``tol`` times its value, once codes are solved as closely as that
        requires; scikit-learn's value is 1e-8. A number, mini-batch: stop when the Frobenius norm
        of the dictionary's change in a step, divided by the number of atoms, is at most ``tol``;
        scikit-learn's value is 1e-3. With zero it never stops. When ``max_iter`` comes first, a
        ConvergenceWarning says so, except with zero.

    max_no_improvement : int, default=10
        Mini-batch: number of consecutive steps, after the first pass, without a new minimum of the
        summed latest costs of all mini-batches, after which the fit stops. None: it never stops
        for this reason.

    forget : float, default=None
        Share of the statistics that a step of ``partial_fit`` keeps, in (0, 1]: lower it where the
        rows of a stream change over time. None: it follows from the number of rows so far, n, and
        of the step, m, as (n / (n + m)) ** 5, so that the statistics always cover about the last
        fifth of the rows.

    n_init : int, default=1
        Number of fits from different initial dictionaries, of which the one with the lowest
        objective is kept. ``dict_init`` and ``warm_start`` leave nothing to vary but the order of
        the rows.

    warm_start : bool, default=False
        Whether ``fit`` continues from the last fit.

    transform_algorithm : str, default='auto'
        Coder used in ``transform``. 'auto', 'lasso_cd' and 'fista' solve the lasso by the methods
        of ``fit_algorithm``, and solve rows that are slow to converge exactly, by an active-set
        method. 'omp' is compiled orthogonal matching pursuit, and 'threshold' shrinks the inner
        products of row and atoms. 'lasso_lars' and 'lars' are scikit-learn's
        (:func:`sklearn.decomposition.sparse_encode`).

    transform_alpha : float, default=None
        Weight of the l1 norm in ``transform``, or the threshold of 'threshold'. None: ``alpha``.

    transform_n_nonzero_coefs : int, default=None
        Number of non-zero codes of a row. 'lars' and 'omp' aim at it; None is a tenth of the number
        of observed features, or the number that ``transform_tol`` asks of 'omp'. The other
        algorithms keep so many of their codes, the largest in absolute value; None keeps all.

    refit : bool, default=False
        Whether the codes are least-squares values on their support, that is, on the atoms whose
        codes the lasso or 'threshold' has kept: this undoes the shrinkage of the penalty. With
        ``positive_code`` they are the best non-negative ones. 'omp' and 'lars' do not use it.

    transform_tol : float, default=None
        The lasso code of a row is done when its duality gap is at most ``transform_tol`` times its
        objective. The gap is an upper bound on the distance of the objective from its minimum, and
        usually far larger: where the gap is 1e-4 of the objective, the distance is mostly below
        1e-7. None: 1e-6 in float64, 1e-5 in float32. 'omp' without a number of codes ends when the
        squared norm of the residual is at most ``transform_tol`` times the squared norm of the row.

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
        The dictionary. Its atoms have unit norm and the sign that makes the entry of largest
        absolute value positive, except those of a ``dict_init`` that ``max_iter=0`` keeps. With
        ``partial_fit``, atoms are random until as many different rows as atoms were seen, and not
        used before.

    alpha_ : float
        Weight of the l1 norm that the fit used: ``alpha``, or what ``density`` came to.

    component_usage_ : ndarray of shape (n_components,)
        Share of the training rows that use each atom. A row uses an atom where its lasso code is
        not zero. After an interrupted fit up to 4096 rows are counted; after ``partial_fit`` all
        rows seen, with the codes that they had then.

    n_dead_ : int
        Number of atoms that no training row uses: the zeros of ``component_usage_``.

    noise_variance_ : float
        Variance of the Gaussian likelihood, in squared units of X. It is s2 in the model of the
        score, and maximises the mean bound of the training rows (of up to 4096 of them, or 1024
        with ``positive_code``). After ``partial_fit`` it is computed from up to 1024 of the latest
        rows, when it is first asked for.

    prior_scale_ : float
        Scale b = s2 / alpha of the Laplace prior in the model of the score, or mean of its
        exponential prior with ``positive_code``; infinite where ``alpha`` is zero.

    error_ : ndarray of shape (`n_iter_`,)
        Objective of all rows, over observed entries, after each pass; with our coders it never
        rises. In ``partial_fit``: sum of the costs that the rows had in the step.

    history_ : list of dict
        One record per epoch. ``epoch`` counts from 1 and ``duration`` is in seconds. ``loss`` is
        the mean objective of a row, with its two parts: ``reconstruction``, half the squared error,
        and ``penalty``, ``alpha`` times the l1 norm of the codes. ``density`` is the share of codes
        that are not zero. These values are taken at the end of the pass, when codes are half a pass
        old on average; in ``partial_fit``, before the update.

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
    SparseCoder : Sparse codes with a dictionary that is given.
    sklearn.decomposition.DictionaryLearning : The same objective, with atoms of norm at most one.
    sklearn.decomposition.MiniBatchDictionaryLearning : Its online variant.

    Notes
    -----
    ``score_samples`` regards the fit as the model z ~ Laplace(0, b), x given z ~ N(z V, s2 I)
    with alpha = s2 / b. The lasso code is the mode of its posterior. A product of Laplace
    distributions around that code, with the scales that maximise the bound, gives a lower bound
    on log p(x) in closed form. Codes have a density under this model, so their posterior
    probability of being non-zero is one.

    With ``positive_code`` the prior is the exponential distribution with mean b. The posterior is
    then a product of normal distributions truncated to non-negative codes, the best of all
    products for the bound, which sweeps of coordinate ascent compute from the lasso code. Scoring
    a row takes several times as long as coding it.

    An interrupted ``fit`` (Ctrl-C) warns and leaves the dictionary of the last full pass, or the
    initial dictionary if no pass was finished. An interrupted ``partial_fit`` raises
    KeyboardInterrupt and changes nothing.

    The codes of the rows in a fit are half a pass old on average. From the second pass on, the
    statistics that update the dictionary are therefore extrapolated along the trend of the latest
    blocks, and before each pass the dictionary moves on along its last change. If the objective is
    not lower after such a pass, the pass is undone and repeated without either. The rows are
    divided into blocks once, at random; ``shuffle`` changes the order of the blocks.

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
        **LassoCoder._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, np.inf, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "fit_algorithm": [StrOptions({"auto", "fista", "lars", "cd"})],
        "code_init": ["array-like", None],
        "dict_init": ["array-like", None],
        "callback": [callable, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "positive_dict": ["boolean"],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "shuffle": ["boolean"],
        "max_no_improvement": [Interval(Integral, 0, None, closed="left"), None],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "density": [Interval(Real, 0, 1, closed="neither"), None],
        "forget": [Interval(Real, 0, 1, closed="right"), None],
    }
    _dead_atoms_cure = "Lower alpha or n_components, or train on more rows."
    _kept: ClassVar[dict[str, Any]] = {
        **{name: kind for name, kind in LassoCoder._kept.items() if name != "noise_variance_"},
        # `partial_fit` leaves it to be computed when it is asked for.
        "noise_variance_?": Real,
        # Models of version 0.1 have none.
        "alpha_?": Real,
        "error_": ("n_iter",),
        "n_steps_": Integral,
        "_seed": Integral,
        "_draw_seed": Integral,
        "_seen": (
            SeenRows,
            {
                "code_gram": np.ndarray,
                "code_data": ("K", "D"),
                "idle": ("K",),
                "n_uses": ("K",),
                "n_rows": Integral,
                "n_placed": Integral,
                "recent": (None, "D"),
            },
        ),
    }

    # What the passes have left for `partial_fit`, and the seeds that `fit` has drawn.
    _seen: SeenRows
    _seed: int
    _draw_seed: int

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1,
        max_iter: int = 1000,
        tol: float | str = "auto",
        fit_algorithm: str = "auto",
        transform_algorithm: str = "auto",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        n_jobs: int | None = None,
        code_init: ArrayLike | None = None,
        dict_init: ArrayLike | None = None,
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
        forget: float | None = None,
        n_init: int = 1,
        warm_start: bool = False,
        density: float | None = None,
        transform_tol: float | None = None,
        sparse_output: bool = False,
        device: str = "auto",
        refit: bool = False,
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
        self.forget = forget
        self.n_init = n_init
        self.warm_start = warm_start
        self.density = density
        self.transform_tol = transform_tol
        self.sparse_output = sparse_output
        self.device = device
        self.refit = refit

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def fit(self, X: ArrayLike | Dataset | DataLoader, y: Any = None) -> Self:
        """Learn the dictionary from the rows of X.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), Dataset or DataLoader
            Training rows; NaN is a missing entry. Entries that a sparse matrix does not store are
            zeros, and its rows are made dense block by block; where values are missing, all of
            them. The rows of a torch dataset, whose items are rows or tuples that begin with one,
            or of a data loader are read into memory.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            Where X or a parameter is not valid, a value is infinite, a row or a column has no
            observed entries, or the objective becomes infinite or NaN.
        """
        tasks = FitTasks(self, X, y, self.max_iter * self.n_init)
        # Before there is a dictionary Ctrl-C ends the fit, and after that only the passes.
        with HeldInterrupts() as interrupts:
            with unchanged_on_error(self):
                X, size = self._rows_and_size(X, reset=True)
                if self.density is None:
                    check_alpha(self.alpha, size)
                self._draw_seeds()
                fit = self._best_fit(X, interrupts, tasks)
                interrupts.attempt(lambda: self._keep(fit.look(fit.rows), fit.options.alpha))
                if interrupts.came:
                    self._keep(fit.few(), fit.options.alpha, warn=False)
            interrupts.attempt(tasks.end)
        if interrupts.came:
            # At the very end: where warnings are errors, nothing is lost by it.
            warn_user(
                f"fit was interrupted after {self.n_iter_} full epochs; the estimator is left "
                + ("as it was then." if self.n_iter_ else "with its first dictionary.")
            )
        elif message := fit.unconverged():
            warn_user(message, ConvergenceWarning)
        return self

    @fit_context(prefer_skip_nested_validation=True)
    @learns_from_input
    def partial_fit(self, X: ArrayLike | Dataset | DataLoader, y: Any = None) -> Self:
        """Take one online step: code the rows of X, then update the dictionary.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features), Dataset or DataLoader
            Rows of one mini-batch; NaN is a missing entry. Each batch of a torch data loader is a
            mini-batch, and takes a step.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator, ready for use.

        Raises
        ------
        ValueError
            Where X or a parameter is not valid, a value is infinite, a row (or, in the first call,
            a column) has no observed entries, or the objective becomes infinite or NaN.
        KeyboardInterrupt
            On Ctrl-C, so that a loop around the call ends too. As after any error, the estimator
            is then as it was before the call.
        """
        with unchanged_on_error(self):
            for batch in batches_of(X) if isinstance(X, DataLoader) else (X,):
                self._step(batch)
        return self

    def _step(self, X: Any) -> None:
        """Take one online step."""
        first = not hasattr(self, "components_")
        X, size = self._rows_and_size(X, reset=first)
        if first:
            if self.density is not None:
                raise ValueError(
                    f"density={self.density!r}: fit finds the alpha that gives this density, "
                    "partial_fit cannot. Call fit first, or set alpha in place of density."
                )
            check_alpha(self.alpha, size)
            self._draw_seeds()
        before, alpha = None if first else self._kept_so_far(), self._weight
        X = dense_rows(X, slice(None))
        self._keep(take_step(self._options(alpha), X, self._seed, before), alpha, warn=False)

    @follows_input
    def score_samples(self, X: ArrayLike) -> NDArray:
        """Return a lower bound on log p(x) of each row, in nats.

        The bound is taken at the lasso code for ``alpha``, or computed from it with
        ``positive_code``; ``transform_algorithm`` does not matter.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to score. NaN is a missing entry: the bound is on log p of the observed entries.

        Returns
        -------
        bounds : ndarray of shape (n_samples,)
            Float64, with the normalising constants of the densities.

        Raises
        ------
        ValueError
            Where a row has no observed entries, or ``alpha`` is zero: the model then has no
            proper prior.
        """
        X = self._validate_rows(X, reset=False)
        model = self._model()
        return np.concatenate([model.bounds(block) for block in dense_blocks(X)])

    @follows_input
    def posterior(self, X: ArrayLike) -> Posterior:
        """Return the moments of the posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.

        Returns
        -------
        posterior : Posterior
            ``mean`` is the lasso code for ``alpha``, except with ``positive_code``: means of
            truncated distributions are positive. ``inclusion`` is one throughout, since there is
            no mass at zero.

        Raises
        ------
        ValueError
            Where a row has no observed entries, or ``alpha`` is zero: the model then has no
            proper prior.
        """
        X = self._validate_rows(X, reset=False)
        model = self._model()
        parts = [model.posterior(block) for block in dense_blocks(X)]
        return Posterior(*map(np.concatenate, zip(*parts, strict=True)))

    @follows_input
    def sample_posterior(self, X: ArrayLike, n_draws: int = 1) -> NDArray:
        """Draw codes from the posterior of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to code; NaN is a missing entry.
        n_draws : int, default=1
            Draws for each row. They depend only on the row and the fit, and a longer call begins
            with the draws of a shorter one.

        Returns
        -------
        draws : ndarray of shape (n_draws, n_samples, n_components)
            Codes; they have a density at zero, and no mass. With ``positive_code`` none is
            negative.

        Raises
        ------
        ValueError
            Where ``n_draws`` is not positive, or ``alpha`` is zero.
        """
        n_draws = check_count(n_draws, "n_draws")
        X = self._validate_rows(X, reset=False)
        model = self._model()
        parts = [model.sample_posterior(block, n_draws) for block in dense_blocks(X)]
        return np.concatenate(parts, axis=1)

    @follows_fit
    def sample(self, n_samples: int = 1) -> NDArray:
        """Draw new rows from the model of the score: prior, dictionary, observation noise.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows. With an integer ``random_state`` each call draws the same rows.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            New rows.

        Raises
        ------
        ValueError
            Where ``n_samples`` is not positive, or ``alpha`` is zero.
        """
        self._check_usable()
        n_samples = check_count(n_samples, "n_samples")
        return self._model().sample(n_samples, self.random_state)

    @cached_property
    def noise_variance_(self) -> float:
        """Noise variance of the score's model; ``fit`` sets it, after ``partial_fit`` it waits."""
        if "_seen" not in vars(self):
            raise AttributeError("noise_variance_ is known after fit or partial_fit.")
        return noise_of_recent_rows(
            self._options(self._weight), self._seen.recent, self.components_
        )

    @property
    def prior_scale_(self) -> float:
        """Scale of the prior of the score's model."""
        return self.noise_variance_ / self._weight if self._weight else math.inf

    def _code_divergence(self, X: ArrayLike) -> NDArray:
        """KL of each code's posterior from its prior, nats, (n_samples, n_components)."""
        X = self._validate_rows(X, reset=False)
        model = self._model()
        return np.concatenate([model.code_divergence(block) for block in dense_blocks(X)])

    def _model(self) -> LassoModel:
        """Return the generative model of the score."""
        coder = self._row_coder("auto", self._weight)
        model = PositiveLassoModel if self.positive_code else SignedLassoModel
        return model(self.components_, coder, self.noise_variance_, self._draw_seed)

    def _best_fit(self, X: NDArray, interrupts: HeldInterrupts, tasks: FitTasks) -> DictionaryFit:
        """Run ``n_init`` fits, and return the one with the lowest objective."""
        best = None
        for number in range(self.n_init):
            seed = self._seed + number
            if self.density is None:
                options = self._first_options(X, self.alpha)
            else:
                options = self._density_fit(X).start(X, seed, interrupts)
            fit = DictionaryFit(options, X, seed)

            def so_far(fit: DictionaryFit = fit) -> FISTADictionaryLearner:
                return copy.copy(self)._keep(fit.few(), fit.options.alpha, warn=False)

            fit.run(interrupts, tasks, so_far)
            if best is None or fit.objective < best.objective:
                best = fit
            if interrupts.came:
                break
        assert best is not None
        if self.density is not None and not interrupts.came:
            # The dictionary has moved on since alpha was found.
            best.options = self._options(self._density_fit(X).alpha(best))
        return best

    def _density_fit(self, X: NDArray) -> DensityFit:
        assert self.density is not None
        return DensityFit(lambda alpha: self._first_options(X, alpha), self.density)

    @property
    def _weight(self) -> float:
        """Weight of the l1 norm: ``alpha``, or the one that a fit found."""
        return self.alpha if self.density is None else getattr(self, "alpha_", self.alpha)

    def _first_options(self, X: NDArray, alpha: float) -> LearningOptions:
        """Return the parameters of a fit to X, which may continue the last one."""
        options = self._options(alpha)
        if self.warm_start and hasattr(self, "components_"):
            default = X.shape[1] if self.dict_init is None else np.shape(self.dict_init)[0]
            n_components = self.n_components or default
            if self.components_.shape == (n_components, X.shape[1]):
                return replace(options, dict_init=self.components_)
        return options

    def _options(self, alpha: float) -> LearningOptions:
        """Return the parameters of a fit with a weight of the l1 norm."""
        # Faster than `get_params`, which reads the signature of the class each time.
        named = {name: getattr(self, name) for name in _OPTIONS} | {"alpha": alpha}
        lasso = self._row_coder("auto", alpha)
        lars = self._row_coder("lasso_lars", alpha)
        coder = coder_of_fit(self.fit_algorithm, lars if self.fit_algorithm == "lars" else lasso)
        return LearningOptions(**named, block_coder=coder, lasso=lasso)

    def _draw_seeds(self) -> None:
        random_state = private_random_state(self.random_state)
        self._seed, self._draw_seed = draw_seed(random_state), draw_seed(random_state)

    def _keep(self, found: LearnedDictionary, alpha: float, *, warn: bool = True) -> Self:
        """Set the fitted attributes."""
        self.alpha_ = float(alpha)
        self.components_ = found.components
        self.history_ = found.history
        self.error_ = np.asarray(found.errors, dtype=np.float64)
        self.n_iter_ = len(found.history)
        self.n_steps_ = found.n_steps
        self.__dict__.pop("noise_variance_", None)
        if found.noise_variance is not None:
            self.noise_variance_ = found.noise_variance
        self._seen = found.seen
        # A given dictionary may have atoms that these rows do not need: no reason to warn.
        given = self.dict_init is not None and self.max_iter == 0
        usage = found.seen.n_uses / found.seen.n_rows
        self._record_usage(usage, warn=warn and not given)
        return self

    def _kept_so_far(self) -> LearnedDictionary:
        """Return the values of the fitted attributes."""
        return LearnedDictionary(
            self.components_,
            self.history_,
            list(self.error_),
            self.n_steps_,
            self._seen,
        )
