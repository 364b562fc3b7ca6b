"""What a latent family answers: its prior, and its posterior given a network's heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .spike_slab import SpikeSlab, SpikeSlabPosterior

# Heads move a scale at most this far, in log units, below and above the prior's. A posterior
# much wider than its prior is a step gone wrong, so there the bound is tight.
_LOG_RANGE_BELOW = 10.0
_LOG_RANGE_ABOVE = 3.0


@dataclass(frozen=True)
class Draws:
    """Reparameterised draws of the code.

    Attributes
    ----------
    code : Tensor of shape (n_draws, n_rows, n_components)
        The drawn codes.
    active : bool Tensor of shape (n_draws, n_rows, n_components)
        Which codes are not zero, as the sampler decided (not re-derived from the value).
    threshold : Tensor of shape (n_draws, n_rows, n_components) or None
        The thresholds drawn along with the codes, where they are part of the latent.
    gate, slab : Tensor of shape (n_draws, n_rows, n_components) or None
        Where the code is the product of a gate that gradients pass, and of what it would be
        if it were on, these two.
    """

    code: Tensor
    active: Tensor
    threshold: Tensor | None = None
    gate: Tensor | None = None
    slab: Tensor | None = None

    @property
    def code_if_on(self) -> Tensor:
        """What the codes are where they are on; of no meaning elsewhere."""
        return self.code if self.slab is None else self.slab

    def where_on(self, on: Tensor, off: Tensor) -> Tensor:
        """Take one or the other for each code, a mean of both under a gate in between."""
        if self.gate is None:
            return torch.where(self.active, on, off)
        return off + self.gate * (on - off)


def gated_draws(
    argument: Tensor,
    slab: Tensor,
    gradient: str,
    temperature: float,
    threshold: Tensor | None = None,
) -> Draws:
    """Multiply draws of a slab by gates, each open where its argument is positive.

    Where gradients are asked the gate passes them: relaxed ('gumbel_softmax'), or hard with the
    gradient of the relaxed one ('straight_through'); else ('score') it is a constant.
    """
    active = argument > 0
    if gradient == "score" or not torch.is_grad_enabled():
        return Draws(active * slab, active, threshold)
    gate = torch.sigmoid(argument / temperature)
    if gradient == "straight_through":
        # The bracket is exactly zero.
        gate = active.to(gate) + (gate - gate.detach())
    return Draws(gate * slab, active, threshold, gate, slab)


@dataclass(frozen=True)
class Noise:
    """Base noise of draws: what is random before the posterior's parameters shape it."""

    base: Tensor
    # Of gates, logistic.
    gate: Tensor | None = None
    # Thresholds that are drawn along with the codes.
    threshold: Tensor | None = None

    @staticmethod
    def concatenate(parts: list[Noise], dim: int = 1) -> Noise:
        """Join noise along the axis of rows (1) or of draws (0)."""

        def joined(tensors: list[Tensor | None]) -> Tensor | None:
            found = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(found, dim=dim) if found else None

        return Noise(
            torch.cat([part.base for part in parts], dim=dim),
            joined([part.gate for part in parts]),
            joined([part.threshold for part in parts]),
        )

    def first(self, n_draws: int) -> Noise:
        """Return the noise of the first draws."""
        gate = None if self.gate is None else self.gate[:n_draws]
        threshold = None if self.threshold is None else self.threshold[:n_draws]
        return Noise(self.base[:n_draws], gate, threshold)


class LatentPosterior(ABC):
    """Posterior q(z given x) of a batch of rows, independent over codes.

    All methods return per-code values of shape (n_rows, n_components) or, where draws are
    involved, (n_draws, n_rows, n_components). Densities are taken with respect to a point
    mass at zero plus Lebesgue measure where the family has an atom at zero.
    """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of the code."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of the code."""

    @property
    @abstractmethod
    def inclusion(self) -> Tensor:
        """Probability that the code is not zero."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Sparse point estimate: exact zeros where the posterior prefers zero."""

    @abstractmethod
    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw the base noise of ``n_draws`` draws."""

    @abstractmethod
    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Shape base noise into draws that gradients pass through."""

    @abstractmethod
    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL(q || p) in nats; uses draws only where no closed form exists."""

    @abstractmethod
    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x) at the draws, in nats."""

    def as_spike_slab(self) -> SpikeSlabPosterior:
        """Return the same law with gate, location and scale as its parameters."""
        raise NotImplementedError(f"{type(self).__name__} is no spike and slab with free gates.")

    def training_kl(self, draws: Draws | None = None) -> Tensor:
        """KL term of the training objective; ``kl`` unless the family is told otherwise."""
        return self.kl(draws)

    @abstractmethod
    def row(self, index: int) -> LatentPosterior:
        """Return the posterior of one row, as a batch of one."""


class LatentFamily(ABC):
    """Prior of one code, and the map from a network's heads to the posterior."""

    prior_scale: float
    # Of relaxed gates.
    temperature: float = 1.0

    @property
    @abstractmethod
    def n_heads(self) -> int:
        """Number of posterior parameters per code."""

    @property
    def gate_heads(self) -> tuple[float, ...]:
        """For each head, how far it moves where the log-odds of a code being on move by one."""
        return (0.0,) * self.n_heads

    @property
    def has_relaxed_gates(self) -> bool:
        """Whether training may draw gates that a temperature relaxes."""
        return False

    @property
    def is_continuous(self) -> bool:
        """Whether draws are differentiable functions of the posterior's parameters."""
        return False

    @property
    def has_closed_kl(self) -> bool:
        """Whether the KL needs no draws."""
        return True

    def as_spike_slab(self) -> SpikeSlab | None:
        """Return the spike and slab that this prior is, if it is one with free gates."""
        return None

    @abstractmethod
    def posterior(self, heads: Tensor) -> LatentPosterior:
        """Read the posterior from heads of shape (n_rows, n_heads, n_components).

        All heads at zero give the prior itself, where the two are of one kind.
        """

    @abstractmethod
    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Draw codes from the prior."""

    @cached_property
    @abstractmethod
    def prior_inclusion(self) -> float:
        """Probability under the prior that a code is not zero."""

    @cached_property
    @abstractmethod
    def prior_variance(self) -> float:
        """Variance of a code under the prior."""


def open_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw uniform numbers, none exactly 0 or 1, as finely as the generator's device can."""
    # MPS has no float64.
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    uniform = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return uniform.clamp_min(torch.finfo(dtype).eps / 2)


def logistic_noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw the noise of gates: one is open where its log-odds and this have a positive sum."""
    return torch.logit(open_uniform(shape, generator)).to(like)


def bounded_exp(head: Tensor, centre: float) -> Tensor:
    """Return ``centre * exp(head)`` with the exponent softly held within bounds.

    Without them a single bad step of training sends a scale to zero or infinity.
    """
    reach = torch.where(head < 0, _LOG_RANGE_BELOW, _LOG_RANGE_ABOVE)
    return centre * torch.exp(reach * torch.tanh(head / reach))
