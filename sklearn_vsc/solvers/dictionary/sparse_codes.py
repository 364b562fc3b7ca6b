"""Codes of all training rows, block by block, of which only what is not zero is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

# Codes that a stretch of memory has room for.
_STRETCH = 2**19


class SparseCodes:
    """Codes of rows that are visited in fixed blocks.

    Attributes
    ----------
    blocks : list of Tensor
        Numbers of the rows of each block.
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
        """Keep what is not zero of dense codes."""
        kept = cls(blocks, codes.shape[1], codes.dtype)
        for block, rows in enumerate(blocks):
            kept[block] = codes[rows]
        return kept

    def copy(self) -> Self:
        """Return a copy that later changes leave alone."""
        kept = type(self)(self.blocks, self._n_components, self._empty.dtype)
        # What is kept of a block is replaced, never written to.
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
        """Write what is kept of a block behind that of the block before.

        Kept in many small pieces, it would tear the free memory between them apart.
        """
        start, end = self._n_filled, self._n_filled + len(values)
        if end > len(self._stretch[1]):
            size = max(_STRETCH, len(values))
            # Blocks are far too small for their places to need 64 bits.
            empty = values.new_empty(size, dtype=torch.int32), values.new_empty(size)
            self._stretch, start, end = empty, 0, len(values)
        kept = self._stretch[0][start:end], self._stretch[1][start:end]
        kept[0].copy_(places)
        kept[1].copy_(values)
        self._n_filled = end
        return kept

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers of the rows of each block and their codes."""
        for block, rows in enumerate(self.blocks):
            yield rows, self[block]
