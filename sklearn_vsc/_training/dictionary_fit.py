"""One fit of a dictionary, from rows to fitted arrays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_array
from torch import Tensor

from .._inference import exponential_model, laplace_model
from .._inference.row_coder import RowCoder
from .._rows.arrays import few_rows, resolve_device, row_slices, seeded_generator, to_numpy
from ..solvers.dictionary.full_batch import Epoch, FullBatchLearner, row_blocks
from ..solvers.dictionary.online import OnlineLearner, OnlineStopping, forgetting
from ..solvers.dictionary.sparse_codes import SparseCodes
from ..solvers.dictionary.statistics import Statistics
from ..solvers.dictionary.update import initial_dictionary, normalise_atoms
from ..solvers.lasso.coders import Coder, block_coder
from ..solvers.sparse_rows import SparseRows, dense
from .dictionary_progress import (
    FitProgress,
    LearnedDictionary,
    LearningOptions,
    SeenRows,
    shown,
)
from .fit_tasks import FitTasks
from .interruption import HeldInterrupts

# Maximum number of rows that the noise variance is estimated from.
_NOISE_ROWS = 4096
# Maximum number of training rows coded at once after the fit, and of numbers in them or in their
# codes.
_CHUNK_ROWS, _NUMBERS_AT_ONCE = 4096, 2**24
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
        if options.batch_size is None:
            codes = _initial_codes(options, X, dictionary, norms, generator)
            self._epochs = _full_batch_epochs(options, self.rows, codes, dictionary, generator)
        else:
            self._epochs = _online_epochs(options, self.rows, dictionary, generator)
        self.progress = FitProgress.before(dictionary)

    def run(self, interrupts: HeldInterrupts, tasks: FitTasks, fitted: Callable[[], Any]) -> None:
        """Learn until a pass has converged, or a callback or Ctrl-C ends the fit.

        ``fitted`` returns the estimator as if the fit had ended with the last pass, for callbacks
        that ask for it.
        """
        epochs, max_iter = self._epochs, self.options.max_iter
        if self.options.verbose:
            epochs = shown(epochs, max_iter)

        def after() -> bool:
            self._call_back()
            return tasks.end_epoch(fitted)

        self.progress.follow(
            epochs, max_iter, len(self.rows), interrupts, before=tasks.begin_epoch, after=after
        )

    def few(self) -> LearnedDictionary:
        """Do the same as `look` for a sample of the rows, which takes little time."""
        return self.look(few_rows(self.rows))

    def look(self, rows: Tensor | SparseRows) -> LearnedDictionary:
        """Code training rows once more, for the use of the atoms and the noise variance."""
        learned, lasso = self.progress.learned(), self.options.lasso
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
        seen.n_uses, seen.n_rows, seen.noise_rows = to_numpy(n_uses), len(rows), len(rows)
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
        Result of this step.
    """
    start = time.perf_counter()
    if before is None:
        generator = seeded_generator(seed)
        rows, dictionary, _ = _start(options, X, generator, keep=False)
        before = FitProgress.before(dictionary).learned()
    else:
        generator = seeded_generator(seed + before.n_steps)
        lasso = options.lasso
        rows = lasso.to_rows(X.astype(before.components.dtype, copy=False))
        dictionary = lasso.to_rows(before.components)
        if options.dict_init is not None and before.n_steps == 0:
            # A fit without a pass does not change the dictionary.
            dictionary = normalise_atoms(
                dictionary, positive=options.positive_dict, generator=generator
            )
    learner = _online_learner(options, dictionary, generator, before.seen, before.n_steps)
    codes, objective = learner.step(rows)
    seconds = time.perf_counter() - start
    found = learner.dictionary, objective, learner.statistics, learner.n_steps
    epoch = Epoch(*found, seconds, converged=False)
    progress = FitProgress(epoch, list(before.history), list(before.errors))
    progress.add(epoch, len(rows))
    learned = progress.learned(before.seen)
    return _with_rows(learned, before, options, rows, codes, dictionary, learner.idle)


def _with_rows(
    learned: LearnedDictionary,
    before: LearnedDictionary,
    options: LearningOptions,
    rows: Tensor,
    codes: Tensor,
    dictionary: Tensor,
    idle: Tensor,
) -> LearnedDictionary:
    """Add the rows of a step to the use of the atoms and the noise variance."""
    seen = learned.seen
    old = seen.noise_rows * forgetting(learned.n_steps - 1, len(rows))
    every = math.ceil(len(rows) / _NOISE_ROWS)
    block = rows[::every], codes[::every]
    noise = _best_noise_variance(options, [block], dictionary, before.noise_variance)
    if old > 0:
        noise = (old * before.noise_variance + len(rows) * noise) / (old + len(rows))
    seen.noise_rows, seen.n_rows = old + len(rows), seen.n_rows + len(rows)
    seen.n_uses, seen.idle = seen.n_uses + to_numpy((codes != 0).sum(0)), to_numpy(idle)
    return replace(learned, noise_variance=noise)


def _best_noise_variance(
    options: LearningOptions,
    blocks: Iterable[tuple[Tensor, Tensor]],
    dictionary: Tensor,
    before: float = math.nan,
) -> float:
    """Return the noise variance that suits rows and their codes best; ``before`` suited others."""
    if options.positive_code:
        return exponential_model.best_noise_variance(blocks, dictionary, options.alpha, before)
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
    n_components = int(options.n_components or len(options.dict_init))
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


def _checked(given: NDArray, name: str, shape: tuple[int, int], dtype: np.dtype) -> NDArray:
    """Return a copy of ``dict_init`` or ``code_init`` after a check of its shape."""
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
    """Return the codes that a full-batch fit starts from."""
    n_components = len(dictionary)
    order = generator if options.shuffle else None
    blocks = row_blocks(X.shape[0], n_components, X.shape[1], order, dictionary.device)
    if options.code_init is None:
        return SparseCodes(blocks, n_components, dictionary.dtype)
    shape = X.shape[0], n_components
    codes = options.lasso.to_rows(_checked(options.code_init, "code_init", shape, X.dtype))
    # Atoms were divided by their norms; codes are multiplied by them.
    codes = codes * norms
    return SparseCodes.of(codes.clamp_min(0) if options.positive_code else codes, blocks)


def _full_batch_epochs(
    options: LearningOptions,
    rows: Tensor,
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
    return learner.epochs(options.tol, options.shuffle)


def _online_epochs(
    options: LearningOptions, rows: Tensor, dictionary: Tensor, generator: torch.Generator
) -> Iterator[Epoch]:
    def on_step(step: int, cost: float, atoms: Tensor) -> None:
        if options.callback is not None:
            options.callback({"i": step, "batch_cost": cost, "dictionary": to_numpy(atoms)})

    return _online_learner(options, dictionary, generator).epochs(
        rows,
        int(min(options.batch_size or len(rows), len(rows))),
        shuffle=options.shuffle,
        stopping=OnlineStopping(options.tol, options.max_no_improvement),
        on_step=on_step,
    )


def _online_learner(
    options: LearningOptions,
    dictionary: Tensor,
    generator: torch.Generator,
    seen: SeenRows | None = None,
    n_steps: int = 0,
) -> OnlineLearner:
    statistics = Statistics.zeros_like(dictionary)
    idle = torch.zeros(len(dictionary), dtype=torch.int64, device=dictionary.device)
    if seen is not None:
        seen.add_gram(statistics)
        statistics.code_data += torch.from_numpy(seen.code_data).to(dictionary)
        idle += torch.from_numpy(seen.idle).to(idle)
    return OnlineLearner(
        dictionary,
        options.alpha,
        options.block_coder,
        options.positive_dict,
        generator,
        statistics,
        idle,
        n_steps,
    )
