"""Parameters, progress and result of a fit of a dictionary."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm.auto import tqdm

from .._inference.row_coder import RowCoder
from .._rows.arrays import to_numpy
from ..solvers.dictionary.accumulation import ObjectiveSums
from ..solvers.dictionary.full_batch import Epoch
from ..solvers.dictionary.sparse_gram import CodeGram, SparseGram
from ..solvers.dictionary.statistics import Statistics
from ..solvers.lasso.coders import Coder
from .interruption import HeldInterrupts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningOptions:
    """Parameters of a fit; its fields are parameters of `FISTADictionaryLearner`.

    In addition, ``block_coder`` codes blocks of rows by ``fit_algorithm`` while the dictionary is
    learned, and ``lasso`` solves their lasso for ``alpha`` afterwards.
    """

    n_components: int | None
    alpha: float
    max_iter: int
    tol: float | str
    code_init: ArrayLike | None
    dict_init: ArrayLike | None
    callback: Callable[[dict[str, Any]], Any] | None
    verbose: bool | int
    positive_code: bool
    positive_dict: bool
    batch_size: int | None
    shuffle: bool
    max_no_improvement: int | None
    forget: float | None
    block_coder: Coder
    lasso: RowCoder

    @property
    def keeps_dictionary(self) -> bool:
        """Whether ``dict_init`` is not changed."""
        return self.dict_init is not None and self.max_iter == 0


@dataclass
class SeenRows:
    """State of ``partial_fit`` that depends on earlier rows.

    Attributes
    ----------
    code_gram, code_data : ndarray
        Sums over the rows, from which the dictionary is updated. Of many atoms, ``code_gram`` has
        the ``entries`` of a `SparseGram`.
    idle : ndarray of shape (n_components,)
        Rows since each atom was last used.
    n_uses : ndarray of shape (n_components,)
        Rows that used each atom.
    n_rows : int
        Number of rows.
    n_placed : int
        Number of atoms that come from rows, the first ones; the others wait for further rows.
    recent : ndarray of shape (n_recent, n_features)
        The latest rows of ``partial_fit``, from which the noise variance is computed when it is
        asked for.
    """

    code_gram: NDArray
    code_data: NDArray
    idle: NDArray
    n_uses: NDArray
    n_rows: int
    n_placed: int
    recent: NDArray

    def __post_init__(self) -> None:
        n_components, shape = len(self.idle), self.code_gram.shape
        if shape == (n_components, n_components):
            return
        places = self.code_gram[..., :2]
        right = len(shape) == 2 and shape[1] == 3 and not (places % 1).any()
        if not right or not ((places >= 0) & (places < n_components)).all():
            raise ValueError("'code_gram' must have a row and a column for each atom, or entries.")

    def add_gram(self, statistics: Statistics) -> None:
        """Add the inner products of codes to other statistics."""
        if isinstance(statistics.code_gram, SparseGram):
            n_components = len(self.idle)
            statistics.code_gram += SparseGram.from_entries(self.code_gram, n_components)
        else:
            statistics.code_gram += torch.from_numpy(self.code_gram).to(statistics.code_gram)


def gram_array(gram: CodeGram, signs: NDArray) -> NDArray:
    """Return the inner products of codes as one array, for atoms times a column of signs."""
    if not isinstance(gram, SparseGram):
        return signs * to_numpy(gram) * signs.T
    entries = gram.entries
    pairs = signs[entries[:, :2].astype(np.int64), 0]
    entries[:, 2] *= pairs.prod(1)
    return entries


@dataclass(frozen=True)
class LearnedDictionary:
    """Result of a fit: the values of the fitted attributes.

    Attributes
    ----------
    components : ndarray of shape (n_components, n_features)
        Atoms.
    history : list of dict
        One record per pass.
    errors : list of float
        Objective of all rows after each pass.
    n_steps : int
        Updates of the dictionary.
    seen : SeenRows
        Sums over the rows.
    noise_variance : float or None
        Value at which the mean bound of the rows is highest; None before it is estimated.
    """

    components: NDArray
    history: list[dict[str, Any]]
    errors: list[float]
    n_steps: int
    seen: SeenRows
    noise_variance: float | None = None


@dataclass
class FitProgress:
    """Progress of a fit: the last full pass, and a record of all passes."""

    epoch: Epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @classmethod
    def before(cls, dictionary: Tensor) -> Self:
        """Return the progress of a fit before its first pass."""
        statistics = Statistics.zeros_like(dictionary)
        return cls(Epoch(dictionary, ObjectiveSums(), statistics, 0, 0.0, False))

    def add(self, epoch: Epoch, n_rows: int) -> None:
        """Add a pass; raise an error where its objective is not finite."""
        self.epoch = epoch
        self.history.append(record_of(epoch, len(self.history) + 1))
        self.errors.append(epoch.loss * n_rows)

    def follow(
        self,
        epochs: Iterator[Epoch],
        max_iter: int,
        n_rows: int,
        interrupts: HeldInterrupts,
        *,
        before: Callable[[], None],
        after: Callable[[], bool],
    ) -> None:
        """Add passes until one has converged, or ``after`` or Ctrl-C ends the fit."""

        def next_epoch() -> Epoch:
            before()
            return next(epochs)

        for _ in range(max_iter):
            epoch = interrupts.attempt(next_epoch)
            if epoch is None:
                break
            self.add(epoch, n_rows)
            if interrupts.attempt(after) or interrupts.came or epoch.converged:
                break

    def learned(self, *, fixed_signs: bool = False) -> LearnedDictionary:
        """Return the result of the passes, before the rows have been counted.

        With ``fixed_signs``, the entry of largest absolute value in each atom is positive.
        """
        statistics, n_components = self.epoch.statistics, len(self.epoch.dictionary)
        components = to_numpy(self.epoch.dictionary).copy()
        signs = np.ones((n_components, 1), components.dtype)
        if fixed_signs:
            signs = signs_of(components)
            components *= signs
        seen = SeenRows(
            code_gram=gram_array(statistics.code_gram, signs),
            code_data=signs * to_numpy(statistics.code_data),
            idle=np.zeros(n_components, dtype=np.int64),
            n_uses=np.zeros(n_components),
            n_rows=0,
            n_placed=n_components,
            recent=components[:0],
        )
        history, errors = list(self.history), list(self.errors)
        return LearnedDictionary(components, history, errors, self.epoch.n_steps, seen)


def signs_of(atoms: NDArray) -> NDArray:
    """Return the signs that make the entries of largest absolute value positive, as a column."""
    largest = np.take_along_axis(atoms, np.abs(atoms).argmax(1, keepdims=True), 1)
    return np.where(largest < 0, -1, 1).astype(atoms.dtype)


def record_of(epoch: Epoch, number: int) -> dict[str, Any]:
    """Return the record of a pass; raise an error where its objective is not finite."""
    if not math.isfinite(epoch.loss):
        raise ValueError(
            f"The objective became {epoch.loss} in epoch {number}: the values of X are too "
            f"large for {str(epoch.dictionary.dtype).removeprefix('torch.')}. Scale X down, "
            "and alpha with it, or give float64."
        )
    _log.info("epoch %d: mean objective %.6g", number, epoch.loss)
    return {"epoch": number, "loss": epoch.loss, "duration": epoch.duration} | epoch.parts


def shown(epochs: Iterator[Epoch], n_epochs: int) -> Iterator[Epoch]:
    """Yield passes, with a progress bar."""
    with tqdm(total=n_epochs, unit="epoch") as bar:
        for epoch in epochs:
            bar.set_postfix(objective=f"{epoch.loss:.6g}", refresh=False)
            bar.update()
            yield epoch
