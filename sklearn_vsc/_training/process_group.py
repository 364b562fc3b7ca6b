"""Training that the processes of a group share, each with its part of every batch."""

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
    """Return what accelerate knows of this process; the first call makes it join its group.

    Returns
    -------
    state : accelerate.PartialState
        Its device, and how many processes there are; one where none were launched.

    Raises
    ------
    ImportError
        When accelerate, which the extra ``accelerate`` installs, is missing.
    ValueError
        When processes were launched, and accelerate was set up without them.
    """
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise ImportError(
            f"device='accelerate' needs accelerate ({error}); install it with: "
            'pip install "sklearn-vsc[accelerate]", or choose another device by '
            "set_params(device='auto')"
        ) from error
    n_launched = int(os.environ.get("WORLD_SIZE", 1))
    # Without a word about the CPU, processes that were launched where there is no GPU stay alone.
    alone = n_launched > 1 and not torch.cuda.is_available()
    state = PartialState(cpu=alone or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes < n_launched:
        raise ValueError(
            f"device='accelerate' finds accelerate set up for {state.num_processes} process, but "
            f"{n_launched} were launched. Where there is no GPU, the first PartialState or "
            "Accelerator of a script needs cpu=True."
        )
    return state


class ProcessGroup:
    """The processes that train one model, seen from one of them.

    Attributes
    ----------
    size : int
        Number of processes.
    index : int
        This one among them.
    """

    def __init__(self, state: Any) -> None:
        self.size: int = state.num_processes
        self.index: int = state.process_index

    @classmethod
    def of_device(cls, device: str) -> ProcessGroup | None:
        """Return the group that the ``device`` parameter asks for, if it has several processes."""
        if device != "accelerate":
            return None
        state = accelerate_state()
        return cls(state) if state.num_processes > 1 else None

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes; no gradient passes."""
        from accelerate.utils import reduce

        return reduce(value.detach(), "mean")

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes; no gradient passes."""
        from accelerate.utils import reduce

        return reduce(value.detach(), "sum")

    def from_first(self, value: T) -> T:
        """Return what the first process has."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        from accelerate.utils import broadcast

        broadcast(tensors)

    def seed(self, seed: int) -> int:
        """Seed of this process's own draws; the first process draws as one alone would."""
        if self.index == 0:
            return seed
        return int(np.random.SeedSequence(seed, spawn_key=(self.index,)).generate_state(1)[0])

    def check_same(self, X: Iterable[NDArray], parameters: dict[str, Any]) -> None:
        """Raise in all processes, should one of them have other chunks of rows or parameters.

        Each would wait for the others where they train for different numbers of steps.
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
                "device='accelerate' needs the same rows and parameters in every process, and "
                f"shares out each batch itself; the processes differ in {', '.join(differing)}."
            )


class DataParallelNet(NeuralNet):
    """A net whose batches are shared out: the gradient is that of one process with all rows.

    Its module maps rows (n, D) to their losses (n,), and takes means over a batch by an attribute
    ``batch_mean``, sums over rows by ``parts.row_sum``.

    Parameters
    ----------
    *args, **kwargs
        Of `NeuralNet`.
    group : ProcessGroup
        Whose processes all train this net, with the same rows in the same order.
    """

    def __init__(self, *args: Any, group: ProcessGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def initialize(self) -> DataParallelNet:
        """Initialise, with the weights of the first process in all."""
        super().initialize()
        # Around the module and not in its place, so that callbacks find it where it always is.
        replica = DistributedDataParallel(
            self.module_, find_unused_parameters=_has_foreign_parts(self.module_)
        )
        # Not the replica itself, whose parameters skorch would take for further ones.
        self.losses_of_ = replica.__call__
        self.module_.batch_mean = self._batch_mean
        self.module_.parts.row_sum = self._row_sum
        return self

    def _batch_mean(self, values: Tensor) -> Tensor:
        """Mean of a value of each row over the batch, of which this process has a part."""
        return self.group.mean(values.sum() * self.weight_)

    def _row_sum(self, values: Tensor) -> Tensor:
        """Sum of a value of each row of this process; a row that stands in counts for nothing."""
        return values.sum() * float(self.weight_ > 0)

    def infer(self, x: Tensor, **fit_params: Any) -> Tensor:
        """Losses of this process's rows of a batch."""
        mine = x[self.group.index :: self.group.size]
        self.weight_ = self.group.size / len(x)
        if not len(mine):
            # Fewer rows than processes: one stands in, and counts for nothing.
            mine, self.weight_ = x[:1], 0.0
        return self.losses_of_(mine)

    def get_loss(self, y_pred: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Share of this process in the loss; its mean over processes is the loss of the batch."""
        return y_pred.sum() * self.weight_

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Gradients and loss of the whole batch."""
        with warnings.catch_warnings():
            # Of layers with one channel, which have strides to choose from.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            step = super().train_step_single(batch, **fit_params)
        return step | {"loss": self.group.mean(step["loss"])}

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Loss of the whole batch."""
        step = super().validation_step(batch, **fit_params)
        return step | {"loss": self.group.mean(step["loss"])}

    def on_epoch_end(self, net: NeuralNet, *args: Any, **kwargs: Any) -> None:
        """Agree on what no gradient moves, such as running means."""
        super().on_epoch_end(net, *args, **kwargs)
        self.group.share_tensors(list(self.module_.buffers()))

    def on_train_end(self, net: NeuralNet, *args: Any, **kwargs: Any) -> None:
        """Leave no circle of references, which would keep the memory of a device."""
        super().on_train_end(net, *args, **kwargs)
        self.module_.batch_mean = torch.mean
        self.module_.parts.row_sum = torch.sum


def _has_foreign_parts(module: nn.Module) -> bool:
    """Whether some part is of a user's own class, which may not use all of its parameters."""
    homes = {type(part).__module__.split(".")[0] for part in module.modules()}
    return not homes <= {__name__.split(".")[0], "torch"}
