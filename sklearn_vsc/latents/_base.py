"""What a latent family answers: its prior, and its posterior given the heads of a network."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ._draws import Draws, Noise


class LatentPosterior(ABC):
    """Posterior q(z given x) of a batch of rows, independent over codes.

    All methods return values for each code, of shape (n_rows, n_components) or, where draws are
    involved, (n_draws, n_rows, n_components). Where the family has an atom at zero, densities are
    taken with respect to a point mass at zero plus Lebesgue measure.

    The usual subclass is a dataclass of the family and of the parameters, each a tensor of shape
    (n_rows, n_components).
    """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of the code, (n_rows, n_components)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of the code, (n_rows, n_components)."""

    @property
    @abstractmethod
    def inclusion(self) -> Tensor:
        """Probability that the code is not zero, (n_rows, n_components)."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Return a sparse point estimate: exact zeros where the posterior prefers zero.

        Returns
        -------
        code : Tensor of shape (n_rows, n_components)
            The estimate.
        """

    @abstractmethod
    def noise(self, n_draws: int, generator: torch.Generator) -> Noise:
        """Draw the noise of ``n_draws`` draws.

        Parameters
        ----------
        n_draws : int
            Number of draws.
        generator : torch.Generator
            Source of all random numbers; torch's global generator is left alone.

        Returns
        -------
        noise : Noise
            Its distribution does not depend on the parameters of the posterior.
        """

    @abstractmethod
    def rsample(self, noise: Noise, noise_scale: float = 1.0) -> Draws:
        """Turn noise into draws that pass gradients.

        Parameters
        ----------
        noise : Noise
            As `noise` returns it.
        noise_scale : float
            Factor of the noise, which may warm up in training.

        Returns
        -------
        draws : Draws
            Codes of shape (n_draws, n_rows, n_components).
        """

    @abstractmethod
    def kl(self, draws: Draws | None = None) -> Tensor:
        """Return KL(q || p) of each code.

        Parameters
        ----------
        draws : Draws or None
            Draws of this posterior, where the KL divergence has no closed form.

        Returns
        -------
        kl : Tensor of shape (n_rows, n_components), or (n_draws, n_rows, n_components)
            In nats. With a draw axis, its mean over draws estimates the divergence.
        """

    @abstractmethod
    def log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(z) - log q(z given x) at the draws.

        Parameters
        ----------
        draws : Draws
            Codes, (n_draws, n_rows, n_components).

        Returns
        -------
        log_ratio : Tensor of shape (n_draws, n_rows, n_components)
            In nats.
        """

    @abstractmethod
    def row(self, index: int) -> LatentPosterior:
        """Return the posterior of one row, as a batch of one."""

    def training_kl(self, draws: Draws | None = None) -> Tensor:
        """KL term of the training objective; ``kl`` unless the family is configured otherwise."""
        return self.kl(draws)

    def as_gated(self) -> GatedPosterior:
        """Return the same distribution with location, scale and log-odds as its parameters.

        Raises
        ------
        NotImplementedError
            Where the family is not a spike and slab with free gates; its ``as_gated`` is then
            None.
        """
        raise NotImplementedError(f"{type(self).__name__} is not a spike and slab with free gates.")

    def detached(self) -> Self:
        """Return the same distribution with parameters that no gradient reaches.

        The doubly reparameterised gradient needs it. This default serves dataclasses whose fields
        are the family and tensors.

        Raises
        ------
        NotImplementedError
            Where the class holds its parameters in another way, and does not override this.
        """
        kept = (LatentFamily, bool, int, float, str, type(None))
        values: dict[str, Any] = {}
        if is_dataclass(self):
            values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not values or not all(isinstance(v, (Tensor, *kept)) for v in values.values()):
            raise NotImplementedError(
                f"{type(self).__name__} has no 'detached': return the same distribution with "
                "detached parameters, or make the class a dataclass of its family and tensors."
            )
        parameters = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **parameters)  # type: ignore[type-var]


class LatentFamily(ABC):
    """Prior of one code, and the map from a network's heads to the posterior.

    The abstract methods are all that a family must have; the other answers have defaults.
    An estimator copies the family that it is given as ``prior`` and leaves it unchanged.

    Attributes
    ----------
    prior_scale : float
        Unit of the codes: a scale of the prior. Encoders that code with the atoms of a linear
        decoder need it.
    temperature : float
        Temperature of relaxed gates; training sets it in the copy that it trains.
    """

    prior_scale: float
    temperature: float = 1.0

    # --- what a family must answer

    @property
    @abstractmethod
    def n_heads(self) -> int:
        """Number of posterior parameters per code."""

    @abstractmethod
    def posterior(self, heads: Tensor) -> LatentPosterior:
        """Read the posterior from the heads of a network.

        Parameters
        ----------
        heads : Tensor of shape (n_rows, n_heads, n_components)
            Any real numbers. All heads at zero give the prior itself, where prior and posterior
            are of the same kind.

        Returns
        -------
        posterior : LatentPosterior
            Of n_rows rows.
        """

    @abstractmethod
    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Draw codes from the prior.

        Parameters
        ----------
        shape : tuple of int
            Shape of the result.
        generator : torch.Generator
            Source of all random numbers.
        dtype : torch.dtype
            Type of the result.

        Returns
        -------
        code : Tensor of the given shape
            Independent draws.
        """

    @cached_property
    @abstractmethod
    def prior_inclusion(self) -> float:
        """Probability under the prior that a code is not zero."""

    @cached_property
    @abstractmethod
    def prior_variance(self) -> float:
        """Variance of a code under the prior."""

    # --- what has defaults

    @property
    def is_continuous(self) -> bool:
        """Whether draws are differentiable functions of the posterior's parameters."""
        return False

    @property
    def has_closed_kl(self) -> bool:
        """Whether the KL divergence needs no draws."""
        return True

    @property
    def has_infinite_variance(self) -> bool:
        """Whether posteriors are distributions without a variance, so that it may be infinite."""
        return False

    @property
    def has_relaxed_gates(self) -> bool:
        """Whether training may draw gates that are relaxed by a temperature."""
        return False

    @property
    def gate_heads(self) -> tuple[float, ...]:
        """For each head, how far it moves when the log-odds of a non-zero code move by one."""
        return (0.0,) * self.n_heads

    @property
    def can_be_doubly_reparameterised(self) -> bool:
        """Whether importance-weighted bounds have a doubly reparameterised gradient.

        Draws must be differentiable, and posteriors must have `LatentPosterior.detached`.
        """
        if not self.is_continuous:
            return False
        try:
            self.posterior(torch.zeros(1, self.n_heads, 1)).detached()
        except NotImplementedError:
            return False
        return True

    def as_gated(self) -> GatedFamily | None:
        """Return this prior as a spike and slab with free gates; None where it is not one."""
        return None

    def with_gradient(self, gradient: str) -> Self:
        """Return a copy whose draws pass gradients in a given way.

        This default suits families whose draws have only one kind of gradient.

        Parameters
        ----------
        gradient : str
            'auto': the way of this family. 'exact': no draw will be differentiated. Otherwise the
            name of an estimator, as the ``gradient`` of an estimator of this package.

        Raises
        ------
        ValueError
            Where the family knows several ways, and this is not one of them.
        """
        return copy.deepcopy(self)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the constructor by name.

        This default reads the attributes that a constructor sets: for an argument ``df`` it is
        ``_df`` or ``df``. ``save`` writes the arguments of the families of this package.

        Raises
        ------
        NotImplementedError
            Where there is no such attribute.
        """
        found = {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            own = vars(self)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not (
                name in own or f"_{name}" in own
            ):
                raise NotImplementedError(f"{type(self).__name__} does not keep its {name!r}.")
            found[name] = own[f"_{name}"] if f"_{name}" in own else own[name]
        return found

    def __repr__(self) -> str:
        """Return the call that makes this family; defaults are left out, as in scikit-learn."""
        try:
            arguments = self.arguments()
        except NotImplementedError:
            return f"{type(self).__name__}(...)"
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in arguments.items()
            if repr(value) != repr(defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


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
    """Posterior of a gated code: location and scale of its slab, log-odds of its gate.

    Attributes
    ----------
    family : GatedFamily
        The prior.
    loc, scale, logit : Tensor of shape (n_rows, n_components)
        Location and scale of the slab, and log-odds of an open gate.
    """

    family: GatedFamily
    loc: Tensor
    scale: Tensor
    logit: Tensor

    @abstractmethod
    def slab_draws(self, noise: Noise, noise_scale: float = 1.0) -> Tensor:
        """Return the codes as if all gates were open, (n_draws, n_rows, n_components)."""

    @abstractmethod
    def gate_argument(self, noise: Noise) -> Tensor:
        """Return log-odds plus logistic noise; a gate is open where they are positive."""

    @abstractmethod
    def gate_log_ratio(self, draws: Draws) -> Tensor:
        """Return log p(S) - log q(S given x) of the gates alone, in nats, for each draw."""
