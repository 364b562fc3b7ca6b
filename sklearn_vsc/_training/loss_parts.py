"""Parts of the bound over an epoch, summed on the device and read out once at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor

# Names of the parts that objectives return and that training records.
PARTS = ("log_likelihood", "kl", "penalty", "density")


class PartSums:
    """Sum of each part over the rows of an epoch."""

    def __init__(self) -> None:
        # With several processes, replaced by a sum that leaves out placeholder rows.
        self.row_sum: Callable[[Tensor], Tensor] = torch.sum
        self.clear()

    def clear(self) -> None:
        """Start a new epoch."""
        self.names: tuple[str, ...] = ()
        self.totals: Tensor | None = None

    @torch.no_grad()
    def add(self, parts: dict[str, Tensor]) -> None:
        """Add the parts of a batch, given per row (n,)."""
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
        Sums a tensor over processes, if several share the rows.
    """

    def __init__(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        self.sum_over_processes = sum_over_processes

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Discard the remains of an interrupted epoch."""
        net.module_.parts.clear()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record the means of the epoch."""
        parts = net.module_.parts
        if parts.totals is None:
            return
        totals = parts.totals
        if self.sum_over_processes is not None:
            totals = self.sum_over_processes(totals)
        n_rows = sum(batch.get("train_batch_size", 0) for batch in net.history[-1]["batches"])
        for name, total in zip(parts.names, totals.tolist(), strict=True):
            net.history.record(name, total / n_rows)
