"""Training in mixed precision: networks multiply in bfloat16, all else is float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._models.latent_variable import LatentVariableModel
from .._models.sparse_autoencoder import SparseAutoencoder
from ..networks import BoundedDecoder


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError where the device does not have the ``precision`` parameter's numbers."""
    if precision != "bf16" or device.type == "cpu":
        return
    if device.type != "cuda" or not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"precision='bf16' trains on a CPU, or on a CUDA device with bfloat16; the device here "
            f"is {str(device)!r}. Use precision='float32', or another 'device'."
        )


@contextmanager
def networks_in(precision: str, model: LatentVariableModel, device: torch.device) -> Iterator[None]:
    """Have the networks of a model work in this precision for a while.

    What they return is float32, so that posteriors, KL and likelihoods are computed in it.
    """
    if precision != "bf16":
        yield
        return
    networks = _networks(model)
    for network in networks:
        # An attribute of the instance goes before the method of its class.
        network.forward = _in_bfloat16(network.forward, device.type)
    try:
        yield
    finally:
        for network in networks:
            del network.forward


def _networks(model: LatentVariableModel) -> list[nn.Module]:
    """Networks of a model, none inside another; output activations are left out."""
    last = model.decoder.network if isinstance(model, SparseAutoencoder) else model.decoder
    if isinstance(last, BoundedDecoder):
        last = last.decoder
    return [model.encoder, model.heads, last]


def _in_bfloat16(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, torch.bfloat16):
            output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return tuple(part.float() for part in output)
        return output.float()

    return wrapped
