"""Sources of rows: arrays in memory, memory-mapped arrays, torch datasets and data loaders."""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .arrays import row_slices, rows_at_once

# Rows, and numbers in them, at most, of the sample that a model is started from.
_START_ROWS = 10_000
_START_NUMBERS = 2**26


class RowSource(ABC):
    """Rows read in batches as floating-point arrays; missing entries are NaN.

    Attributes
    ----------
    dtype : numpy.dtype
        Data type of the arrays: float32 or float64.
    n_features : int
        Length of a row.
    """

    dtype: np.dtype
    n_features: int
    # Whether rows can be selected by index.
    has_numbers = True

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def batches(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        """Yield ``size`` rows at a time: those with the indices ``order``, or all in sequence."""

    def chunks(self) -> Iterator[NDArray]:
        """Yield all rows, a few thousand at a time."""
        return self.batches(rows_at_once(self.n_features))

    def sample(self, n_most: int) -> NDArray:
        """Return evenly spaced rows, at most ``n_most``."""
        order = torch.arange(0, len(self), math.ceil(len(self) / n_most))
        return next(self.batches(len(order), order))

    def subset(self, rows: NDArray) -> RowSource:
        """Return a source of the rows with these indices."""
        return _Subset(self, torch.from_numpy(rows))


class ArrayRows(RowSource):
    """The rows of an array, which may be mapped from a file."""

    def __init__(self, X: NDArray) -> None:
        self.X = X
        self.dtype = X.dtype
        self.n_features = X.shape[1]

    @property
    def in_memory(self) -> bool:
        """Whether the array is in memory, not mapped from a file."""
        base: Any = self.X
        while isinstance(base, np.ndarray):
            base = base.base
        return not isinstance(base, mmap.mmap)

    def __len__(self) -> int:
        return len(self.X)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        """Yield ``size`` rows at a time."""
        if order is None:
            yield from (self.X[rows] for rows in row_slices(len(self), size))
        else:
            yield from (self.X[rows.numpy()] for rows in order.split(size))

    def sample(self, n_most: int) -> NDArray:
        """Return evenly spaced rows, at most ``n_most``."""
        return self.X[:: math.ceil(len(self) / n_most)]

    def subset(self, rows: NDArray) -> RowSource:
        """Return a source of the rows with these indices."""
        return ArrayRows(self.X[rows]) if self.in_memory else super().subset(rows)


class _Subset(RowSource):
    """Some of the rows of a source, selected by index."""

    def __init__(self, source: RowSource, rows: Tensor) -> None:
        self._source = source
        self._rows = rows
        self.dtype = source.dtype
        self.n_features = source.n_features

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        return self._source.batches(size, self._rows if order is None else self._rows[order])


class _Items:
    """Converts items of a dataset, which must be rows or tuples whose first element is a row.

    Parameters
    ----------
    image_shape : sequence of int or None
        Shape of items that are images; they are flattened.
    """

    def __init__(self, image_shape: Sequence[int] | None) -> None:
        self._image_shape = None if image_shape is None else tuple(image_shape)
        self.n_features: int | None = None

    def flat(self, item: Any, number: int, *, batches: bool = False) -> NDArray:
        """Return the rows of an item, (n_rows, n_features): one row, unless batches are allowed."""
        name = f"Item {number} of the dataset given as X"
        rows = _numbers(item, name)
        if rows.shape == self._image_shape or rows.ndim == 1:
            rows = rows.reshape(1, -1)
        elif batches and (rows.ndim == 2 or rows.shape[1:] == self._image_shape):
            rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
        else:
            wanted = "a row with one axis"
            if batches:
                wanted += ", or a batch of rows with two axes"
            if self._image_shape is not None:
                wanted += f", or an image with image_shape={self._image_shape}"
            raise ValueError(
                f"{name} has shape {rows.shape}; it must be {wanted}. Flatten it, or set "
                "'image_shape' (channels, height, width) for images."
            )
        if self.n_features is None:
            self.n_features = rows.shape[1]
        if rows.shape[1] != self.n_features:
            raise ValueError(
                f"{name} has {rows.shape[1]} values in a row, but the items before it have "
                f"{self.n_features}: all rows must have the same length."
            )
        return rows


def _numbers(item: Any, name: str) -> NDArray:
    """Return an item, or the first element of a tuple or list, as an array."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        # The only floating-point type that NumPy lacks.
        item = item.float() if item.dtype == torch.bfloat16 else item
    rows = np.asarray(item)
    if rows.dtype.kind not in "fiub" or rows.ndim == 0:
        raise TypeError(
            f"{name} must be a row of real numbers, as a tensor or an array, or a tuple whose "
            f"first element is one; got {type(item).__name__}"
            + (f" of {rows.dtype}." if isinstance(item, (np.ndarray, Tensor)) else ".")
        )
    return rows


class _DatasetRows(RowSource):
    """Rows of a dataset, read again for each pass."""

    def __init__(self, dataset: Any, image_shape: Sequence[int] | None) -> None:
        self._dataset = dataset
        self._items = _Items(image_shape)
        first = next(self._raw(1), None)
        if first is None or not first.size:
            raise ValueError("The dataset given as X is empty: at least one row is needed.")
        # The same rule as for arrays.
        single = first.dtype in (np.float16, np.float32)
        self.dtype = np.dtype(np.float32 if single else np.float64)
        self.n_features = first.shape[1]

    @abstractmethod
    def _raw(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        """Yield rows in their original dtype."""

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        return (rows.astype(self.dtype, copy=False) for rows in self._raw(size, order))


class MapDatasetRows(_DatasetRows):
    """Rows of a map-style dataset, fetched by index."""

    def __init__(self, dataset: Any, image_shape: Sequence[int] | None) -> None:
        try:
            len(dataset)
        except TypeError as error:
            raise TypeError(
                f"The dataset given as X, a {type(dataset).__name__}, has no length: define "
                "__len__, or make it a finite IterableDataset."
            ) from error
        super().__init__(dataset, image_shape)

    def __len__(self) -> int:
        return len(self._dataset)

    def _raw(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        order = torch.arange(len(self)) if order is None else order
        parts = order.split(size) if len(order) else ()
        fetched = DataLoader(
            self._dataset,
            batch_sampler=(part.tolist() for part in parts),
            collate_fn=list,
            # It draws a seed even without workers, but not from the global generator this way.
            generator=torch.Generator(),
        )
        for part, items in zip(parts, fetched, strict=True):
            rows = [self._items.flat(item, int(i)) for i, item in zip(part, items, strict=True)]
            yield np.concatenate(rows)


class IterableDatasetRows(_DatasetRows):
    """Rows of an iterable dataset or a data loader, in the order in which it yields them."""

    has_numbers = False

    def __init__(self, dataset: Any, image_shape: Sequence[int] | None) -> None:
        self._n_rows: int | None = None
        # The first sample taken, so that evaluating a fit in progress does not cost a pass.
        self._kept: NDArray | None = None
        self._kept_step = 0
        super().__init__(dataset, image_shape)

    def __len__(self) -> int:
        if self._n_rows is None:
            self._n_rows = sum(len(rows) for rows in self._in_items())
        return self._n_rows

    def _in_items(self) -> Iterator[NDArray]:
        if not isinstance(self._dataset, DataLoader):
            items = iter(self._dataset)
        else:
            # It draws a seed for its workers from the global generator.
            state = torch.get_rng_state()
            items = iter(self._dataset)
            torch.set_rng_state(state)
        for number, item in enumerate(items):
            yield self._items.flat(item, number, batches=True)

    def own_batches(self) -> Iterator[NDArray]:
        """Yield the rows of one item at a time."""
        return (rows.astype(self.dtype, copy=False) for rows in self._in_items())

    def _raw(self, size: int, order: Tensor | None = None) -> Iterator[NDArray]:
        assert order is None
        held: list[NDArray] = []
        n_held = n_rows = 0
        for rows in self._in_items():
            n_rows += len(rows)
            while n_held + len(rows) >= size:
                n_more = size - n_held
                yield np.concatenate([*held, rows[:n_more]])
                held, n_held, rows = [], 0, rows[n_more:]
            if len(rows):
                held, n_held = [*held, rows], n_held + len(rows)
        if held:
            yield np.concatenate(held)
        if self._n_rows is None:
            self._n_rows = n_rows
        elif n_rows != self._n_rows:
            raise ValueError(
                f"The dataset given as X yielded {self._n_rows} rows when first read, and "
                f"{n_rows} when read again. Its __iter__ must start over and yield the same rows "
                "each time; an exhausted iterator cannot be used for training."
            )

    def sample(self, n_most: int) -> NDArray:
        """Return evenly spaced rows, at most ``n_most``; takes a pass unless a sample is kept."""
        step = math.ceil(len(self) / n_most)
        if self._kept is not None and self._kept_step <= step:
            return self._kept[:: math.ceil(len(self._kept) / n_most)]
        rows = (row for batch in self.chunks() for row in batch)
        # Copies, because a view would keep its whole batch in memory.
        found = np.stack([row.copy() for row in islice(rows, 0, None, step)])
        if self._kept is None:
            self._kept, self._kept_step = found, step
        return found


def is_dataset(X: Any) -> bool:
    """Return whether X is a torch dataset or data loader."""
    return isinstance(X, (Dataset, DataLoader))


def has_no_indices(X: Any) -> bool:
    """Return whether X is a dataset whose rows can only be read in its own order."""
    return isinstance(X, (IterableDataset, DataLoader))


def dataset_rows(dataset: Any, image_shape: Sequence[int] | None) -> RowSource:
    """Return the rows of a dataset or loader; reads the first one to learn dtype and length."""
    of_kind = IterableDatasetRows if has_no_indices(dataset) else MapDatasetRows
    return of_kind(dataset, image_shape)


def held_rows(X: Any, image_shape: Sequence[int] | None = None) -> Any:
    """Return the rows of a dataset or loader as one array, and anything else as it is."""
    if not is_dataset(X):
        return X
    return np.concatenate(list(dataset_rows(X, image_shape).chunks()))


def batches_of(X: Any, image_shape: Sequence[int] | None = None) -> Iterator[Any]:
    """Yield the rows of X in batches: those of a data loader, or a few thousand rows at a time."""
    if isinstance(X, DataLoader):
        yield from IterableDatasetRows(X, image_shape).own_batches()
    elif isinstance(X, Dataset):
        yield from dataset_rows(X, image_shape).chunks()
    else:
        X = X if hasattr(X, "shape") else np.asarray(X)
        size = rows_at_once(max(1, math.prod(X.shape[1:])))
        for rows in row_slices(X.shape[0], size):
            yield X.iloc[rows] if hasattr(X, "iloc") else X[rows]


def start_sample(rows: RowSource) -> NDArray:
    """Return a sample of rows, enough to start and to settle a model from."""
    return rows.sample(_n_start_rows(rows))


def start_sample_step(rows: RowSource) -> int:
    """Return n, where `start_sample` takes every n-th row."""
    return math.ceil(len(rows) / _n_start_rows(rows))


def _n_start_rows(rows: RowSource) -> int:
    return min(_START_ROWS, max(1, _START_NUMBERS // rows.n_features))
