"""What a dictionary fit keeps of the passes and of the rows that it has seen."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from .solvers.dictionary_learning import Epoch
from .solvers.statistics import Statistics

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
        return cls(Epoch(dictionary, math.nan, Statistics.zeros_like(dictionary), 0, 0.0, False))

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
        self.history.append({"epoch": number, "loss": epoch.loss, "duration": epoch.duration})

    def follow(
        self, epochs: Iterator[Epoch], n_rows: int, after: Callable[[FitProgress], None]
    ) -> bool:
        """Take in passes until one has converged or there are no more.

        Returns
        -------
        interrupted : bool
            Whether Ctrl-C came, of which a warning tells.
        """
        try:
            for epoch in epochs:
                self.add(epoch, n_rows)
                after(self)
                if epoch.converged:
                    break
        except KeyboardInterrupt:
            n_done = len(self.history)
            warnings.warn(
                f"fit was interrupted after {n_done} full epochs; the estimator is left "
                + ("as it was then." if n_done else "with its first dictionary."),
                UserWarning,
                stacklevel=3,
            )
            return True
        return False


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
