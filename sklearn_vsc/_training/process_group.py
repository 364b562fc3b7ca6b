"""Data-parallel training: each process of a group handles its part of every batch."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def accelerate_state() -> Any:
    """Return accelerate's state of this process; on the first call the process joins its group.

    Returns
    -------
    state : accelerate.PartialState
        Device of this process, and number of processes; one if no launcher was used.

    Raises
    ------
    ImportError
        If accelerate, which the extra ``accelerate`` installs, is missing.
    ValueError
        If several processes were launched, but accelerate was set up for fewer.
    """
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise ImportError(
            f"device='accelerate' needs accelerate ({error}); install it with: "
            'pip install "sklearn-vsc[accelerate]", or choose another device with '
            "set_params(device='auto')"
        ) from error
    n_launched = int(os.environ.get("WORLD_SIZE", 1))
    # Unless told to use the CPU, processes launched without a GPU do not form a group.
    alone = n_launched > 1 and not torch.cuda.is_available()
    state = PartialState(cpu=alone or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes < n_launched:
        raise ValueError(
            f"device='accelerate' found accelerate set up for {state.num_processes} process, but "
            f"{n_launched} were launched. Without a GPU, the first PartialState or Accelerator "
            "created in a script needs cpu=True."
        )
    return state


class ProcessGroup:
    """The processes that train a model together, from the perspective of one of them.

    Attributes
    ----------
    size : int
        Number of processes.
    index : int
        Index of this process.
    """

    def __init__(self, state: Any) -> None:
        self.size: int = state.num_processes
        self.index: int = state.process_index

    @classmethod
    def of_device(cls, device: str) -> ProcessGroup | None:
        """Return the group for the ``device`` parameter, or None if there is only one process."""
        if device != "accelerate":
            return None
        state = accelerate_state()
        return cls(state) if state.num_processes > 1 else None

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes, without gradient."""
        from accelerate.utils import reduce

        return reduce(value.detach(), "mean")

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the processes, without gradient."""
        from accelerate.utils import reduce

        return reduce(value.detach(), "sum")

    def from_first(self, value: T) -> T:
        """Return the value of the first process."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        from accelerate.utils import broadcast

        broadcast(tensors)

    def seed(self, seed: int) -> int:
        """Return a seed for this process; the first draws as a single process would."""
        if self.index == 0:
            return seed
        return int(np.random.SeedSequence(seed, spawn_key=(self.index,)).generate_state(1)[0])

    def check_same(self, X: Iterable[NDArray], parameters: dict[str, Any]) -> None:
        """Raise an error in all processes if any of them has different rows or parameters.

        Otherwise processes that train for different numbers of steps would wait for each other.
        """
        from accelerate.utils import gather_object

        digest = hashlib.blake2b()
        for chunk in X:
            digest.update(f"{chunk.dtype} {chunk.shape}".encode())
            digest.update(np.ascontiguousarray(chunk).data)
        mine = {"X": digest.hexdigest()}
        mine |= {name: repr(value) for name, value in parameters.items()}
        seen = gather_object([mine])
        differing = [name for name in mine if any(other.get(name) != mine[name] for other in seen)]
        if differing:
            raise ValueError(
                "device='accelerate' needs the same rows and parameters in every process, since it "
                f"splits each batch itself; the processes differ in {', '.join(differing)}."
            )


class DataParallelNet(NeuralNet):
    """A net that splits each batch among processes; gradients equal those of a single process.

    Its module maps rows (n, D) to their losses (n,). It computes means over a batch with its
    attribute ``batch_mean``, and sums over rows with ``parts.row_sum``.

    Parameters
    ----------
    *args, **kwargs
        Arguments of `NeuralNet`.
    group : ProcessGroup
        Group whose processes all train this net, with the same rows in the same order.
    """

    def __init__(self, *args: Any, group: ProcessGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def initialize(self) -> DataParallelNet:
        """Initialise, giving all processes the weights of the first."""
        super().initialize()
        # It wraps the module without replacing it, so that callbacks find the module as usual.
        replica = DistributedDataParallel(
            self.module_, find_unused_parameters=_has_foreign_parts(self.module_)
        )
        # Only its call is stored: skorch would take the replica's parameters for additional ones.
        self.losses_of_ = replica.__call__
        self.module_.batch_mean = self._batch_mean
        self.module_.parts.row_sum = self._row_sum
        return self

    def _batch_mean(self, values: Tensor) -> Tensor:
        """Return the mean over the whole batch, given the values for this process's rows."""
        return self.group.mean(values.sum() * self.weight_)

    def _row_sum(self, values: Tensor) -> Tensor:
        """Return the sum over this process's rows; a placeholder row does not count."""
        return values.sum() * float(self.weight_ > 0)

    def infer(self, x: Tensor, **fit_params: Any) -> Tensor:
        """Return the losses of this process's rows of a batch."""
        mine = x[self.group.index :: self.group.size]
        self.weight_ = self.group.size / len(x)
        if not len(mine):
            # With fewer rows than processes, a placeholder row is used that does not count.
            mine, self.weight_ = x[:1], 0.0
        return self.losses_of_(mine)

    def get_loss(self, y_pred: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return this process's part of the loss; its mean over processes is the batch loss."""
        return y_pred.sum() * self.weight_

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute gradients and loss for the whole batch."""
        with warnings.catch_warnings():
            # Layers with one channel cause this warning, since their strides are ambiguous.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            step = super().train_step_single(batch, **fit_params)
        return step | {"loss": self.group.mean(step["loss"])}

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of the whole batch."""
        step = super().validation_step(batch, **fit_params)
        return step | {"loss": self.group.mean(step["loss"])}

    def on_epoch_end(self, net: NeuralNet, *args: Any, **kwargs: Any) -> None:
        """Synchronise buffers that are not trained by gradients, such as running means."""
        super().on_epoch_end(net, *args, **kwargs)
        self.group.share_tensors(list(self.module_.buffers()))

    def on_train_end(self, net: NeuralNet, *args: Any, **kwargs: Any) -> None:
        """Break reference cycles, which would keep device memory allocated."""
        super().on_train_end(net, *args, **kwargs)
        self.module_.batch_mean = torch.mean
        self.module_.parts.row_sum = torch.sum


def _has_foreign_parts(module: nn.Module) -> bool:
    """Whether any part has a user-defined class, which may not use all of its parameters."""
    homes = {type(part).__module__.split(".")[0] for part in module.modules()}
    return not homes <= {__name__.split(".")[0], "torch"}
