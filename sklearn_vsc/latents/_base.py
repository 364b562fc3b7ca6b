"""What a latent family answers: its prior, and its posterior given the heads of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

# Heads move a scale at most this far, in log units, below and above the scale of the prior. A
# posterior much wider than its prior is the result of a bad step, so that bound is tight.
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
        Which codes are not zero, as the sampler decided (not derived from the value again).
    threshold : Tensor of shape (n_draws, n_rows, n_components) or None
        The thresholds drawn along with the codes, where they are latent variables too.
    gate, slab : Tensor of shape (n_draws, n_rows, n_components) or None
        The two factors of the code, where it is the product of a gate that passes gradients and
        of the value that it has if it is not zero.
    """

    code: Tensor
    active: Tensor
    threshold: Tensor | None = None
    gate: Tensor | None = None
    slab: Tensor | None = None

    @property
    def code_if_on(self) -> Tensor:
        """Values of the codes that are not zero; the others have no meaning."""
        return self.code if self.slab is None else self.slab

    def where_on(self, on: Tensor, off: Tensor) -> Tensor:
        """Choose one or the other for each code; a relaxed gate takes a weighted mean of both."""
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

    Under autograd the gate passes gradients: relaxed ('gumbel_softmax'), or hard with the gradient
    of the relaxed one ('straight_through'); otherwise ('score') it is a constant.
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
    """Noise that does not depend on the parameters of the posterior, which turn it into draws."""

    base: Tensor
    # Logistic noise of the gates.
    gate: Tensor | None = None
    # Thresholds, where they are drawn along with the codes.
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

    All methods return values for each code, of shape (n_rows, n_components) or, where draws are
    involved, (n_draws, n_rows, n_components). Where the family has an atom at zero, densities are
    taken with respect to a point mass at zero plus Lebesgue measure.
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
        """Turn base noise into draws that pass gradients."""

    @abstractmethod
    def kl(self, draws: Draws | None = None) -> Tensor:
        """KL(q || p) in nats; uses draws only where there is no closed form."""

    @abstractmethod
    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x) at the draws, in nats."""

    def as_gated(self) -> GatedPosterior:
        """Return the same distribution with location, scale and log-odds as its parameters."""
        raise NotImplementedError(f"{type(self).__name__} is not a spike and slab with free gates.")

    def detached(self) -> Self:
        """Return the same distribution with parameters that no gradient reaches."""
        raise NotImplementedError(f"{type(self).__name__} cannot detach its parameters.")

    def training_kl(self, draws: Draws | None = None) -> Tensor:
        """KL term of the training objective; ``kl`` unless the family is configured otherwise."""
        return self.kl(draws)

    @abstractmethod
    def row(self, index: int) -> LatentPosterior:
        """Return the posterior of one row, as a batch of one."""


class GatedFamily(Protocol):
    """A prior that is a spike and slab, whose posteriors have location, scale and log-odds.

    What closed forms need: coordinate ascent on the posterior, slabs that integrate out, and
    score-function gradients of the gates.
    """

    prior_scale: float
    temperature: float

    @property
    def slab_name(self) -> str:
        """Distribution of a code that is not zero: 'gaussian' or 'laplace'."""

    @property
    def slab_scale(self) -> float:
        """Standard deviation under the prior of a code that is not zero."""

    @property
    def prior_logit(self) -> float:
        """Prior log-odds of a code not being zero."""

    def gated_posterior(self, loc: Tensor, scale: Tensor, logit: Tensor) -> GatedPosterior:
        """Return the posterior with these parameters, each (n_rows, n_components)."""


class GatedPosterior(LatentPosterior):
    """Posterior of a gated code: location and scale of its slab, log-odds of its gate."""

    family: GatedFamily
    loc: Tensor
    scale: Tensor
    logit: Tensor

    @abstractmethod
    def slab_draws(self, noise: Noise, noise_scale: float = 1.0) -> Tensor:
        """Return what the codes are if their gates are open."""

    @abstractmethod
    def gate_argument(self, noise: Noise) -> Tensor:
        """Return what opens a gate where it is positive: log-odds plus logistic noise."""

    @abstractmethod
    def gate_log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(S) - log q(S given x) of the gates alone, nats."""


class LatentFamily(ABC):
    """Prior of one code, and the map from a network's heads to the posterior."""

    prior_scale: float
    # Temperature of relaxed gates.
    temperature: float = 1.0

    @property
    @abstractmethod
    def n_heads(self) -> int:
        """Number of posterior parameters per code."""

    @property
    def gate_heads(self) -> tuple[float, ...]:
        """For each head, how far it moves when the log-odds of a non-zero code move by one."""
        return (0.0,) * self.n_heads

    @property
    def has_relaxed_gates(self) -> bool:
        """Whether training may draw gates that are relaxed by a temperature."""
        return False

    @property
    def is_continuous(self) -> bool:
        """Whether draws are differentiable functions of the posterior's parameters."""
        return False

    @property
    def has_closed_kl(self) -> bool:
        """Whether the KL needs no draws."""
        return True

    @property
    def has_infinite_variance(self) -> bool:
        """Whether posteriors are distributions without a variance, so that it may be infinite."""
        return False

    def as_gated(self) -> GatedFamily | None:
        """Return this prior as a spike and slab with free gates; None where it is not one."""
        return None

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data, which ``save`` writes.

        Only families of this package need it: other classes are given to ``load`` again.
        """
        raise NotImplementedError(f"{type(self).__name__} does not name its arguments.")

    @abstractmethod
    def posterior(self, heads: Tensor) -> LatentPosterior:
        """Read the posterior from heads of shape (n_rows, n_heads, n_components).

        All heads at zero give the prior itself, where prior and posterior are of the same kind.
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
    """Draw uniform numbers, none exactly 0 or 1, at the precision of the generator's device."""
    # MPS has no float64.
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    uniform = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return uniform.clamp_min(torch.finfo(dtype).eps / 2)


def logistic_noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw the noise of gates: a gate is open where its log-odds plus its noise are positive."""
    return torch.logit(open_uniform(shape, generator)).to(like)


def bounded_exp(head: Tensor, centre: float) -> Tensor:
    """Return ``centre * exp(head)``, with the exponent softly limited.

    Without limits a single bad training step sends a scale to zero or infinity.
    """
    reach = torch.where(head < 0, _LOG_RANGE_BELOW, _LOG_RANGE_ABOVE)
    return centre * torch.exp(reach * torch.tanh(head / reach))
