"""What the bound is made of, over an epoch: summed on the device, and read out once at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor

# Names under which an objective gives its parts, and a training run records them.
PARTS = ("log_likelihood", "kl", "penalty", "density")


class PartSums:
    """Sums over the rows of an epoch, for each part."""

    def __init__(self) -> None:
        # Of rows that processes share out, only those that count.
        self.row_sum: Callable[[Tensor], Tensor] = torch.sum
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.names: tuple[str, ...] = ()
        self.totals: Tensor | None = None

    @torch.no_grad()
    def add(self, parts: dict[str, Tensor]) -> None:
        """Take in parts of each row (n,) of a batch."""
        if self.totals is None:
            some = next(iter(parts.values()))
            # MPS has no float64.
            dtype = torch.float32 if some.device.type == "mps" else torch.float64
            self.names = tuple(parts)
            self.totals = torch.zeros(len(parts), dtype=dtype, device=some.device)
        self.totals += torch.stack([self.row_sum(parts[name]) for name in self.names])


class RecordParts(Callback):
    """Record the mean of each part over the rows of an epoch.

    Parameters
    ----------
    sum_over_processes : callable or None
        Of a tensor, where processes share out the rows.
    """

    def __init__(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        self.sum_over_processes = sum_over_processes

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Forget what an epoch that was broken off has left."""
        net.module_.parts.clear()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Read the sums out."""
        parts = net.module_.parts
        if parts.totals is None:
            return
        totals = parts.totals
        if self.sum_over_processes is not None:
            totals = self.sum_over_processes(totals)
        n_rows = sum(batch.get("train_batch_size", 0) for batch in net.history[-1]["batches"])
        for name, total in zip(parts.names, totals.tolist(), strict=True):
            net.history.record(name, total / n_rows)
