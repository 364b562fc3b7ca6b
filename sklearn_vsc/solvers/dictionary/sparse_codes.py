"""Codes of all training rows, stored block by block without their zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

# Number of codes that one stretch of memory holds.
_STRETCH = 2**19


class SparseCodes:
    """Codes of rows that are visited in fixed blocks.

    Attributes
    ----------
    blocks : list of Tensor
        Row indices of each block.
    """

    def __init__(self, blocks: list[Tensor], n_components: int, dtype: torch.dtype) -> None:
        self.blocks = blocks
        self._n_components = n_components
        device = blocks[0].device
        self._empty = torch.empty(0, dtype=dtype, device=device)
        places = torch.empty(0, dtype=torch.int32, device=device)
        self._kept = [(places, self._empty)] * len(blocks)
        self._stretch, self._n_filled = (places, self._empty), 0

    @classmethod
    def of(cls, codes: Tensor, blocks: list[Tensor]) -> Self:
        """Store the non-zero entries of dense codes."""
        kept = cls(blocks, codes.shape[1], codes.dtype)
        for block, rows in enumerate(blocks):
            kept[block] = codes[rows]
        return kept

    def copy(self) -> Self:
        """Return a copy that later changes do not affect."""
        kept = type(self)(self.blocks, self._n_components, self._empty.dtype)
        # Stored tensors are replaced, never modified, so a shallow copy is enough.
        kept._kept = self._kept.copy()
        return kept

    def __getitem__(self, block: int) -> Tensor:
        """Return the codes of a block, zeros included."""
        places, values = self._kept[block]
        codes = self._empty.new_zeros(len(self.blocks[block]), self._n_components)
        codes.view(-1)[places] = values
        return codes

    def __setitem__(self, block: int, codes: Tensor) -> None:
        flat = codes.reshape(-1)
        places = flat.nonzero().squeeze(1)
        self._kept[block] = self._written(places, flat[places])

    def _written(self, places: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the entries of a block right after those of the block stored before it.

        Many small allocations would fragment the heap.
        """
        start, end = self._n_filled, self._n_filled + len(values)
        if end > len(self._stretch[1]):
            size = max(_STRETCH, len(values))
            # Blocks are far too small for their indices to need 64 bits.
            empty = values.new_empty(size, dtype=torch.int32), values.new_empty(size)
            self._stretch, start, end = empty, 0, len(values)
        kept = self._stretch[0][start:end], self._stretch[1][start:end]
        kept[0].copy_(places)
        kept[1].copy_(values)
        self._n_filled = end
        return kept

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the row indices and the codes of each block."""
        for block, rows in enumerate(self.blocks):
            yield rows, self[block]
