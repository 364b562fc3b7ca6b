"""What a dictionary fit keeps of the passes and of the rows that it has seen."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..solvers.dictionary.accumulation import ObjectiveSums
from ..solvers.dictionary.full_batch import Epoch
from ..solvers.dictionary.statistics import Statistics
from .interruption import HeldInterrupts

_log = logging.getLogger(__name__)


@dataclass
class FitProgress:
    """How far a fit has come: the last full pass and the record of all of them."""

    epoch: Epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @classmethod
    def before(cls, dictionary: Tensor) -> Self:
        """Stand at the first dictionary."""
        statistics = Statistics.zeros_like(dictionary)
        return cls(Epoch(dictionary, ObjectiveSums(), statistics, 0, 0.0, False))

    def add(self, epoch: Epoch, n_rows: int) -> None:
        """Take in a pass, unless the objective is lost."""
        number = len(self.history) + 1
        if not math.isfinite(epoch.loss):
            raise ValueError(
                f"The objective became {epoch.loss} in epoch {number}: the values of X are too "
                f"large for {str(epoch.dictionary.dtype).removeprefix('torch.')}. Scale X down, "
                "and alpha with it, or give float64."
            )
        self.epoch = epoch
        self.errors.append(epoch.loss * n_rows)
        _log.info("epoch %d: mean objective %.6g", number, epoch.loss)
        record = {"epoch": number, "loss": epoch.loss, "duration": epoch.duration}
        self.history.append(record | epoch.parts)

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
        """Take in passes until one has converged, or ``after`` or Ctrl-C ends it."""

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


def shown(epochs: Iterator[Epoch], n_epochs: int) -> Iterator[Epoch]:
    """Yield passes, with a progress bar."""
    with tqdm(total=n_epochs, unit="epoch") as bar:
        for epoch in epochs:
            bar.set_postfix(objective=f"{epoch.loss:.6g}", refresh=False)
            bar.update()
            yield epoch


@dataclass
class SeenRows:
    """What ``partial_fit`` needs of the rows seen before."""

    code_gram: NDArray
    code_data: NDArray
    # Rows since each atom was last used, and rows that used it.
    idle: NDArray
    n_uses: NDArray
    n_rows: int
    # Rows that the noise variance rests on; old ones count less and less.
    noise_rows: float
