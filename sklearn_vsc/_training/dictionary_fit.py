"""One fit of a dictionary, from rows to fitted arrays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_array
from torch import Tensor

from .._inference import exponential_model, laplace_model
from .._inference.row_coder import RowCoder
from .._rows.arrays import few_rows, resolve_device, row_slices, seeded_generator, to_numpy
from ..solvers.dictionary.full_batch import Epoch, FullBatchLearner, block_size, row_blocks
from ..solvers.dictionary.online import OnlineLearner
from ..solvers.dictionary.sparse_codes import SparseCodes
from ..solvers.dictionary.statistics import Statistics
from ..solvers.dictionary.stopping import MiniBatchStopping
from ..solvers.dictionary.update import initial_dictionary, normalise_atoms
from ..solvers.lasso.coders import Coder, block_coder
from ..solvers.sparse_rows import SparseRows, dense
from .dictionary_progress import (
    FitProgress,
    LearnedDictionary,
    LearningOptions,
    SeenRows,
    gram_array,
    record_of,
    shown,
    signs_of,
)
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts

# Maximum number of rows that the noise variance is estimated from.
_NOISE_ROWS = 4096
# Maximum number of training rows coded at once after the fit, and of numbers in them or in their
# codes.
_CHUNK_ROWS, _NUMBERS_AT_ONCE = 4096, 2**24
# Latest rows that `partial_fit` keeps at most: rows, numbers in them, and in any case so many rows.
_RECENT_ROWS, _RECENT_NUMBERS, _LEAST_RECENT = 1024, 2**20, 16
# Rows of a fit that stand for all in a noise variance after further calls of `partial_fit`.
_SAMPLE_ROWS = 256
# Iterations of a full-batch fit between two calls of the callback, as in scikit-learn.
_CALLBACK_EVERY = 5


class DictionaryFit:
    """A fit on all rows, by full batches or mini-batches.

    Parameters
    ----------
    options : LearningOptions
        Parameters of the fit.
    X : ndarray or CSR matrix of shape (n_rows, n_features)
        Training rows; NaN is a missing entry.
    seed : int
        Seed of the first dictionary, the order of the rows and renewed atoms.
    """

    def __init__(self, options: LearningOptions, X: NDArray, seed: int) -> None:
        self.options = options
        generator = seeded_generator(seed)
        self.rows, dictionary, norms = _start(options, X, generator)
        codes = _initial_codes(options, X, dictionary, norms, generator)
        self._epochs = _epochs(options, self.rows, codes, dictionary, generator)
        self.progress = FitProgress.before(dictionary)

    def run(
        self,
        interrupts: HeldInterrupts,
        tasks: FitTasks | None = None,
        fitted: Callable[[], Any] = lambda: None,
    ) -> None:
        """Learn until a pass has converged, or a callback or Ctrl-C ends the fit.

        ``fitted`` returns the estimator as if the fit had ended with the last pass, for callbacks
        that ask for it. Without ``tasks`` passes are not reported.
        """
        epochs, max_iter = self._epochs, self.options.max_iter
        if self.options.verbose:
            epochs = shown(epochs, max_iter)

        def after() -> bool:
            self._call_back()
            return tasks is not None and tasks.end_epoch(fitted)

        def before() -> None:
            if tasks is not None:
                tasks.begin_epoch()

        self.progress.follow(
            epochs, max_iter, len(self.rows), interrupts, before=before, after=after
        )

    @property
    def objective(self) -> float:
        """Objective of all rows after the last pass; infinite before the first."""
        return self.progress.errors[-1] if self.progress.errors else math.inf

    def unconverged(self) -> str | None:
        """Return a warning where ``max_iter`` ended the fit."""
        options, progress = self.options, self.progress
        if options.tol == 0 or progress.epoch.converged:
            return None
        if not 0 < options.max_iter == len(progress.history):
            return None
        errors = progress.errors
        fall = (errors[-2] - errors[-1]) / errors[-1] if len(errors) > 1 and errors[-1] else 0.0
        return (
            f"The objective still fell after max_iter={options.max_iter} passes, by {fall:.1g} of "
            f"its value in the last one: raise max_iter or tol (tol={options.tol!r})."
        )

    def few(self) -> LearnedDictionary:
        """Do the same as `look` for a sample of the rows, which takes little time."""
        return self.look(few_rows(self.rows))

    def look(self, rows: Tensor | SparseRows) -> LearnedDictionary:
        """Code training rows once more, for the use of the atoms and the noise variance."""
        options, lasso = self.options, self.options.lasso
        # Where codes are never negative, signs mean something.
        fixed = not (options.keeps_dictionary or options.positive_code)
        learned = self.progress.learned(fixed_signs=fixed)
        every = math.ceil(len(rows) / _NOISE_ROWS)
        dictionary = lasso.to_rows(learned.components)
        n_uses = torch.zeros(len(dictionary), dtype=torch.int64, device=rows.device)

        def noise_blocks() -> Iterator[tuple[Tensor, Tensor]]:
            size = max(1, min(_CHUNK_ROWS, _NUMBERS_AT_ONCE // max(dictionary.shape)))
            for block in row_slices(len(rows), every * math.ceil(size / every)):
                part = dense(rows[block])
                codes = lasso.lasso(part, dictionary).codes
                n_uses.add_((codes != 0).sum(0))
                yield part[::every], codes[::every]

        noise = _best_noise_variance(self.options, noise_blocks(), dictionary)
        seen = learned.seen
        seen.n_uses, seen.n_rows = to_numpy(n_uses), len(rows)
        n_most = min(_SAMPLE_ROWS, _n_recent(rows.shape[1]))
        sample = to_numpy(dense(rows[:: math.ceil(len(rows) / n_most)]))
        seen.recent = _recent(sample[:0], sample)
        return replace(learned, noise_variance=noise)

    def _call_back(self) -> None:
        options, index = self.options, len(self.progress.history) - 1
        if options.batch_size is None and options.callback and index % _CALLBACK_EVERY == 0:
            atoms, errors = to_numpy(self.progress.epoch.dictionary), list(self.progress.errors)
            options.callback({"ii": index, "errors": errors, "dictionary": atoms})


def take_step(
    options: LearningOptions, X: NDArray, seed: int, before: LearnedDictionary | None
) -> LearnedDictionary:
    """Take one online step: code the rows of X, then update the dictionary.

    Parameters
    ----------
    options : LearningOptions
        Parameters of the fit.
    X : ndarray of shape (n_rows, n_features)
        Rows of one mini-batch; NaN is a missing entry.
    seed : int
        Seed of the first step; each step has its own generator.
    before : LearnedDictionary or None
        Result of earlier steps or of a fit.

    Returns
    -------
    learned : LearnedDictionary
        Result of this step, without a noise variance.
    """
    start = time.perf_counter()
    generator = seeded_generator(seed if before is None else seed + before.n_steps)
    before = _before_stream(options, X, generator) if before is None else before
    seen, components = before.seen, before.components
    X = X.astype(components.dtype, copy=False)
    rows, dictionary = options.lasso.to_rows(X), options.lasso.to_rows(components)
    if options.dict_init is not None and before.n_steps == 0:
        # A fit without a pass does not change the dictionary.
        dictionary = normalise_atoms(
            dictionary, positive=options.positive_dict, generator=generator
        )
    learner = _online_learner(options, dictionary, generator, seen)
    codes, objective = learner.step(rows)
    epoch = Epoch(
        learner.dictionary,
        objective,
        learner.statistics,
        before.n_steps + 1,
        time.perf_counter() - start,
        converged=False,
    )
    history = [*before.history, record_of(epoch, len(before.history) + 1)]
    components = to_numpy(learner.dictionary)
    # Where codes are never negative, signs mean something.
    signs = np.ones((len(components), 1), X.dtype)
    signs = signs if options.positive_code else signs_of(components)
    seen = SeenRows(
        code_gram=gram_array(learner.statistics.code_gram, signs),
        code_data=signs * to_numpy(learner.statistics.code_data),
        idle=to_numpy(learner.idle),
        n_uses=seen.n_uses + to_numpy((codes != 0).sum(0)),
        n_rows=learner.n_rows,
        n_placed=learner.n_placed,
        recent=_recent(seen.recent, X),
    )
    errors = [*before.errors, objective.total]
    return LearnedDictionary(signs * components, history, errors, epoch.n_steps, seen)


def _before_stream(
    options: LearningOptions, X: NDArray, generator: torch.Generator
) -> LearnedDictionary:
    """Return the state before the first step, of atoms that wait for rows or are given."""
    if options.dict_init is not None:
        return FitProgress.before(_start(options, X, generator, keep=False)[1]).learned()
    n_components, n_features = int(options.n_components or X.shape[1]), X.shape[1]
    waiting = options.lasso.to_rows(np.zeros((n_components, n_features), X.dtype))
    waiting = normalise_atoms(waiting, positive=options.positive_dict, generator=generator)
    before = FitProgress.before(waiting).learned()
    before.seen.n_placed = 0
    return before


def _recent(before: NDArray, X: NDArray) -> NDArray:
    """Return the latest rows, with those of X."""
    n_kept = _n_recent(X.shape[1])
    if len(X) >= n_kept:
        return X[-n_kept:].copy()
    return np.concatenate([before[max(0, len(before) + len(X) - n_kept) :], X])


def _n_recent(n_features: int) -> int:
    """Return how many rows `partial_fit` keeps at most."""
    return max(_LEAST_RECENT, min(_RECENT_ROWS, _RECENT_NUMBERS // n_features))


def noise_of_recent_rows(options: LearningOptions, recent: NDArray, components: NDArray) -> float:
    """Return the noise variance that suits the latest rows of ``partial_fit`` best."""
    rows, dictionary = options.lasso.to_rows(recent), options.lasso.to_rows(components)
    codes = options.lasso.lasso(rows, dictionary).codes
    return _best_noise_variance(options, [(rows, codes)], dictionary)


def _best_noise_variance(
    options: LearningOptions,
    blocks: Iterable[tuple[Tensor, Tensor]],
    dictionary: Tensor,
) -> float:
    """Return the noise variance that suits rows and their codes best."""
    if options.positive_code:
        return exponential_model.best_noise_variance(blocks, dictionary, options.alpha)
    return laplace_model.best_noise_variance(blocks, dictionary, options.alpha)


# --- the start of a fit


def coder_of_fit(algorithm: str, coder: RowCoder) -> Coder:
    """Return the coder of a ``fit_algorithm``, for blocks of rows while the dictionary changes."""
    if algorithm != "lars":
        method = coder.method if algorithm == "auto" else algorithm
        return block_coder(method, coder.alpha, coder.max_iter, coder.positive)

    def code(X: Tensor, dictionary: Tensor, start: Tensor | None, distance: float) -> Tensor:
        return torch.from_numpy(coder.codes(to_numpy(X), to_numpy(dictionary))).to(X)

    return code


def _start(
    options: LearningOptions, X: NDArray, generator: torch.Generator, *, keep: bool = True
) -> tuple[Any, Tensor, Tensor]:
    """Return rows, the first dictionary, and the norms that its atoms were divided by.

    With ``keep``, a given dictionary that no pass will change is not normalised.
    """
    rows, positive, n_features = _rows(options, X), options.positive_dict, X.shape[1]
    if options.dict_init is None:
        n_components = int(options.n_components or n_features)
        dictionary = initial_dictionary(rows, n_components, positive=positive, generator=generator)
        return rows, dictionary, dictionary.new_ones(n_components)
    n_components = int(options.n_components or np.shape(options.dict_init)[0])
    shape = n_components, n_features
    atoms = options.lasso.to_rows(_checked(options.dict_init, "dict_init", shape, X.dtype))
    if keep and options.keeps_dictionary:
        return rows, atoms, atoms.new_ones(n_components)
    norms = torch.linalg.vector_norm(atoms, dim=1)
    return rows, normalise_atoms(atoms, positive=positive, generator=generator), norms


def _rows(options: LearningOptions, X: Any) -> Tensor | SparseRows:
    """Bring rows to the device of the fit."""
    if issparse(X):
        return SparseRows(X, resolve_device(options.lasso.device))
    return options.lasso.to_rows(X)


def _checked(given: ArrayLike, name: str, shape: tuple[int, int], dtype: np.dtype) -> NDArray:
    """Return a copy of ``dict_init`` or ``code_init`` after a check of its shape."""
    try:
        given = np.asarray(given, dtype=None if isinstance(given, np.ndarray) else np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must hold numbers, with shape {shape}: {error}.") from error
    with np.errstate(over="ignore", invalid="ignore"):
        array = check_array(
            given,
            dtype=dtype,
            input_name=name,
            copy=True,
            # The shape is checked below: older versions do not name the parameter.
            ensure_2d=False,
            allow_nd=True,
            ensure_min_samples=0,
        )
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, but has {array.shape}.")
    return array


def _initial_codes(
    options: LearningOptions,
    X: NDArray,
    dictionary: Tensor,
    norms: Tensor,
    generator: torch.Generator,
) -> SparseCodes:
    """Return the codes that a fit starts from, in its blocks of rows."""
    n_components = len(dictionary)
    order = generator if options.shuffle else None
    n_rows, n_features = X.shape
    size = int(min(options.batch_size or block_size(n_components, n_features), n_rows))
    blocks = row_blocks(n_rows, size, order, dictionary.device)
    if options.code_init is None:
        return SparseCodes(blocks, n_components, dictionary.dtype)
    shape = X.shape[0], n_components
    codes = options.lasso.to_rows(_checked(options.code_init, "code_init", shape, X.dtype))
    # Atoms were divided by their norms; codes are multiplied by them.
    codes = codes * norms
    return SparseCodes.of(codes.clamp_min(0) if options.positive_code else codes, blocks)


def _epochs(
    options: LearningOptions,
    rows: Tensor | SparseRows,
    codes: SparseCodes,
    dictionary: Tensor,
    generator: torch.Generator,
) -> Iterator[Epoch]:
    learner = FullBatchLearner(
        rows,
        codes,
        dictionary,
        options.alpha,
        options.block_coder,
        options.positive_dict,
        generator,
    )
    tol = None if options.tol == "auto" else float(options.tol)
    if options.batch_size is None:
        return learner.epochs(tol, options.shuffle)
    stopping = MiniBatchStopping(tol or 0.0, options.max_no_improvement)

    def on_step(step: int, block: int, cost: float, before: Tensor, after: Tensor) -> bool:
        if options.callback is not None:
            state = {"i": step, "batch_cost": cost, "dictionary": to_numpy(after)}
            options.callback(state)
        change = float(torch.linalg.matrix_norm(after - before)) / len(after)
        return stopping.update(block, cost, change, len(codes.blocks))

    return learner.epochs(None if tol is None else 0.0, options.shuffle, on_step)


def _online_learner(
    options: LearningOptions, dictionary: Tensor, generator: torch.Generator, seen: SeenRows
) -> OnlineLearner:
    statistics = Statistics.zeros_like(dictionary)
    seen.add_gram(statistics)
    statistics.code_data += torch.from_numpy(seen.code_data).to(dictionary)
    return OnlineLearner(
        dictionary,
        options.alpha,
        options.block_coder,
        options.positive_dict,
        generator,
        statistics,
        torch.from_numpy(seen.idle).to(dictionary.device),
        seen.n_placed,
        torch.from_numpy(seen.recent).to(dictionary),
        seen.n_rows,
        options.forget,
    )
