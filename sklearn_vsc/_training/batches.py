"""Batches of rows for training: cut from one tensor, or read when they are asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .._rows.sources import ArrayRows, RowSource


class InMemoryBatches:
    """Batches cut from one tensor by a permutation, without workers or collation."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.X = dataset.X
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.X) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_rows = len(self.X)
        if self.generator is None:
            order = torch.arange(n_rows)
        else:
            order = torch.randperm(n_rows, generator=self.generator)
        for picked in order.to(self.X.device).split(self.batch_size):
            rows = self.X[picked]
            yield rows, rows[:, :0]


class StreamedRows(Dataset[Tensor], ABC):
    """Rows that are not held as one tensor; each batch is made when it is needed.

    Attributes
    ----------
    shape : tuple of two ints
        Numbers of rows and of features.
    device : torch.device
        Device of the batches.
    """

    shape: tuple[int, int]
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def batches(self, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Yield all rows, ``size`` at a time; in a random order if there is a generator."""


class StreamedBatches:
    """Batches of rows that are not in memory."""

    def __init__(
        self,
        dataset: StreamedRows,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.rows = dataset
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.rows.batches(self.batch_size, self.generator):
            yield rows, rows[:, :0]


class NormalizedRows(StreamedRows):
    """Rows in the units of a model, read when a training step needs them.

    Parameters
    ----------
    rows : RowSource
        Rows in the units of X.
    device : torch.device
        Device of the training.
    normalize : callable
        Maps an array of rows to a tensor in the units of the model, on the device.
    """

    def __init__(
        self, rows: RowSource, device: torch.device, normalize: Callable[[NDArray], Tensor]
    ) -> None:
        self.shape = (len(rows), rows.n_features)
        self.device = device
        self._rows = rows
        self._normalize = normalize

    def batches(self, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Yield batches, in a new order where rows can be picked by their index."""
        order = None
        if generator is not None and self._rows.has_numbers:
            order = torch.randperm(len(self), generator=generator)
        return (self._normalize(batch) for batch in self._rows.batches(size, order))


def training_rows(
    rows: RowSource, device: torch.device, normalize: Callable[[NDArray], Tensor]
) -> Tensor | StreamedRows:
    """Return rows for training: as one tensor where they are in memory."""
    if isinstance(rows, ArrayRows) and rows.in_memory:
        return normalize(rows.X)
    return NormalizedRows(rows, device, normalize)
