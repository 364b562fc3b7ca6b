"""The loss of each row, and what warm-ups change in it from step to step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._models.latent_variable import LatentVariableModel
from ..networks import LinearDecoder
from .loss_parts import PartSums
from .options import TrainingOptions
from .precision import networks_in

# Factor of the draws' noise at the first step of its warm-up.
_NOISE_SCALE_START = 0.1


class TrainingObjective(nn.Module):
    """The loss of each row, with the state that warm-ups move during training."""

    def __init__(
        self, model: LatentVariableModel, options: TrainingOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.generator = generator
        self.progress = 1.0
        self.annealed = 1.0
        # The mean over a batch, also where processes share it.
        self.batch_mean: Callable[[Tensor], Tensor] = torch.mean
        self.parts = PartSums()

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each row (n,), nats."""
        options = self.options
        progress = self.progress if self.training else 1.0
        if self.model.family.has_relaxed_gates:
            first, last = options.temperature
            annealed = self.annealed if self.training else 1.0
            self.model.family.temperature = first * (last / first) ** annealed
        with networks_in(options.precision, self.model.networks, x.device):
            step = self.model.training_step(
                x,
                options.objective,
                self.generator,
                kl_weight=options.objective.kl_weight * _ramp(progress, options.kl_warmup, 0.0),
                noise_scale=_ramp(progress, options.noise_warmup, _NOISE_SCALE_START),
                batch_mean=self.batch_mean,
            )
        if self.training:
            self.parts.add(step.parts)
        loss = -step.bound
        if options.decoder_penalty:
            loss = loss + options.decoder_penalty * _squared_weights(self.model.decoder)
        return loss


def _ramp(progress: float, share: float, start: float) -> float:
    """Grow linearly from ``start`` to one over the first ``share`` of the steps."""
    return 1.0 if progress >= share else start + (1 - start) * progress / share


def _squared_weights(decoder: nn.Module) -> Tensor:
    """Squared Frobenius norm of the decoder's weights, without biases."""
    if isinstance(decoder, LinearDecoder):
        return decoder.weight.square().sum()
    return sum(p.square().sum() for p in decoder.parameters() if p.ndim > 1)  # type: ignore


class MeanLoss(nn.Module):
    """skorch's criterion: the module already returns the loss of each row."""

    def forward(self, loss: Tensor, _: Tensor) -> Tensor:
        return loss.mean()
