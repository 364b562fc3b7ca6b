"""Noise, draws of codes that gradients pass through, and helpers to make them."""

from __future__ import annotations

from dataclasses import dataclass

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
        """Choose one or the other for each code; a relaxed gate takes a weighted mean of both.

        Parameters
        ----------
        on, off : Tensor, broadcast to (n_draws, n_rows, n_components)
            Values for codes that are not zero, and for codes that are.
        """
        if self.gate is None:
            return torch.where(self.active, on, off)
        return off + self.gate * (on - off)


@dataclass(frozen=True)
class Noise:
    """Noise that does not depend on the parameters of the posterior, which turn it into draws.

    Attributes
    ----------
    base : Tensor of shape (n_draws, n_rows, n_components)
        Noise of the values of the codes.
    gate : Tensor of shape (n_draws, n_rows, n_components) or None
        Logistic noise of the gates.
    threshold : Tensor of shape (n_draws, n_rows, n_components) or None
        Thresholds, where they are drawn along with the codes.
    """

    base: Tensor
    gate: Tensor | None = None
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


def open_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw uniform numbers that are never exactly 0 or 1.

    So the inverse of any distribution function is finite at them.

    Parameters
    ----------
    shape : tuple of int
        Shape of the result.
    generator : torch.Generator
        Source of the numbers. The result is on its device.

    Returns
    -------
    uniform : Tensor of the given shape
        In float64, or in float32 on MPS devices, which do not have float64.
    """
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    uniform = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return uniform.clamp_min(torch.finfo(dtype).eps / 2)


def logistic_noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw standard logistic noise, as gates need it.

    A gate that is open where its log-odds plus this noise are positive is open with the
    probability that the log-odds say.

    Parameters
    ----------
    shape : tuple of int
        Shape of the result.
    generator : torch.Generator
        Source of the numbers.
    like : Tensor
        Gives the result its dtype and device.

    Returns
    -------
    noise : Tensor of the given shape
        Finite numbers.
    """
    return torch.logit(open_uniform(shape, generator)).to(like)


def gated_draws(
    argument: Tensor,
    slab: Tensor,
    gradient: str,
    temperature: float,
    threshold: Tensor | None = None,
) -> Draws:
    """Multiply draws of a slab by gates, each open where its argument is positive.

    Parameters
    ----------
    argument : Tensor of shape (n_draws, n_rows, n_components)
        Log-odds of each gate plus `logistic_noise`.
    slab : Tensor of shape (n_draws, n_rows, n_components)
        Values of the codes whose gates are open.
    gradient : {'gumbel_softmax', 'straight_through', 'score'}
        What a gate is under autograd: relaxed, or hard with the gradient of the relaxed one, or a
        constant. Without autograd gates are hard.
    temperature : float
        Temperature of relaxed gates.
    threshold : Tensor of shape (n_draws, n_rows, n_components) or None
        Thresholds drawn along with the codes, to be kept with the draws.

    Returns
    -------
    draws : Draws
        Where gates pass gradients, with the two factors of each code.
    """
    active = argument > 0
    if gradient == "score" or not torch.is_grad_enabled():
        return Draws(active * slab, active, threshold)
    gate = torch.sigmoid(argument / temperature)
    if gradient == "straight_through":
        # The bracket is exactly zero.
        gate = active.to(gate) + (gate - gate.detach())
    return Draws(gate * slab, active, threshold, gate, slab)


def bounded_exp(head: Tensor, centre: float) -> Tensor:
    """Return ``centre * exp(head)``, with the exponent softly limited.

    Without limits, a single bad training step sends a scale to zero or infinity.

    Parameters
    ----------
    head : Tensor of any shape
        Output of a network.
    centre : float
        Value at a head of zero, usually the scale of the prior.

    Returns
    -------
    scale : Tensor of the shape of head
        Between exp(-10) and exp(3) times the centre.
    """
    reach = torch.where(head < 0, _LOG_RANGE_BELOW, _LOG_RANGE_ABOVE)
    return centre * torch.exp(reach * torch.tanh(head / reach))
