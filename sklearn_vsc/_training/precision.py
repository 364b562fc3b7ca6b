"""Training in mixed precision: networks multiply in bfloat16, all else is float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError where the device does not support the ``precision`` parameter."""
    if precision != "bf16" or device.type == "cpu":
        return
    if device.type != "cuda" or not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"precision='bf16' trains on a CPU, or on a CUDA device with bfloat16; the device here "
            f"is {str(device)!r}. Use precision='float32', or another 'device'."
        )


@contextmanager
def networks_in(
    precision: str, networks: Sequence[nn.Module], device: torch.device
) -> Iterator[None]:
    """Have the networks of a model compute in this precision.

    They return float32, so that posteriors, KL and likelihoods are computed in it.
    """
    if precision != "bf16":
        yield
        return
    for network in networks:
        # An attribute of the instance takes precedence over the method of its class.
        network.forward = _in_bfloat16(network.forward, device.type)
    try:
        yield
    finally:
        for network in networks:
            del network.forward


def _in_bfloat16(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, torch.bfloat16):
            output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return tuple(part.float() for part in output)
        return output.float()

    return wrapped
