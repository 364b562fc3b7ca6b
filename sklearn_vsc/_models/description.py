"""What an estimator's parameters say about a model, before there are any rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._rows.images import check_image_shape
from .._rows.user_warnings import warn_user
from ..likelihoods import Likelihood
from ..networks import RANGES
from .inferred_posterior import REFINE_TOL
from .latent_variable import LatentVariableModel
from .objectives import Objective
from .units import Units


@dataclass(frozen=True)
class Start:
    """What a model is built from: a sample of rows in its units, and those units."""

    rows: Tensor
    units: Units

    @property
    def filled_rows(self) -> Tensor:
        """The rows with every missing entry filled."""
        return self.units.filled(self.rows)

    @property
    def n_features(self) -> int:
        """Length of a row."""
        return self.rows.shape[1]


@dataclass(frozen=True)
class NetworkParameters:
    """Parameters of the encoder and the decoder, by the names that users know.

    Attributes
    ----------
    encoder, decoder : str or nn.Module
        As given to the estimator.
    hidden_layer_sizes, image_shape, output_activation
        As given to the estimator.
    n_unrolled : int
        Steps of an unrolled encoder.
    """

    encoder: str | nn.Module
    decoder: str | nn.Module
    hidden_layer_sizes: int | Sequence[int]
    image_shape: Sequence[int] | None
    output_activation: str
    n_unrolled: int

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Sizes of the hidden layers of an MLP.

        Raises
        ------
        ValueError
            Where they are not whole positive numbers.
        """
        sizes = np.atleast_1d(self.hidden_layer_sizes)
        if sizes.ndim > 1 or (sizes.size and (sizes.dtype.kind not in "iu" or sizes.min() < 1)):
            raise ValueError(
                "The 'hidden_layer_sizes' parameter must hold whole numbers of at least 1; "
                f"got {self.hidden_layer_sizes!r}."
            )
        return tuple(int(size) for size in sizes)

    def image(self, n_features: int | None = None) -> tuple[int, int, int]:
        """Return the checked shape of a row, which has ``n_features`` where they are known."""
        return check_image_shape(self.image_shape, n_features, "a 'conv' encoder or decoder")

    def names(self, word: str) -> bool:
        """Whether the encoder or the decoder is the network of this name."""
        return any(isinstance(part, str) and part == word for part in (self.encoder, self.decoder))

    @property
    def has_own_modules(self) -> bool:
        """Whether the encoder or the decoder is a module of the user's."""
        return any(isinstance(part, nn.Module) for part in (self.encoder, self.decoder))


@dataclass(frozen=True)
class ModelDescription(ABC):
    """A model and its training objective, as the parameters of an estimator describe them.

    It can be made at any time and costs nothing; `check` raises the errors of a bad combination,
    and `build` makes the model.

    Attributes
    ----------
    n_components : int or None
        Number of codes; None: as many as features.
    likelihood : Likelihood
        Distribution of a row given its code, in the units of X.
    likelihood_name : str
        The likelihood as the user gave it, for messages.
    networks : NetworkParameters
        Encoder and decoder.
    n_draws : int
        Draws of the posterior for each row.
    n_refine : int or 'auto'
        Sweeps of coordinate ascent on posteriors after training.
    refine_tol : float
        Rise of the bound of a row below which sweeps end, in nats.
    kl_weight : float
        Weight of the KL in training, and for posteriors that codes are read from.
    decoder_penalty, kl_warmup, noise_warmup : float
        Further terms of training.
    temperatures : tuple of two floats
        First and last temperature of relaxed gates.
    """

    n_components: int | None
    likelihood: Likelihood
    likelihood_name: str
    networks: NetworkParameters
    n_draws: int = 1
    n_refine: int | str = 0
    refine_tol: float = REFINE_TOL
    kl_weight: float = 1.0
    decoder_penalty: float = 0.0
    kl_warmup: float = 0.0
    noise_warmup: float = 0.0
    temperatures: tuple[float, float] = (1.0, 1.0)

    # What tol='auto' stands for: nats per row.
    default_tol: ClassVar[float] = 1e-4

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """The bound that training maximises."""

    @property
    def obstacle_to_collapsing(self) -> str | None:
        """Name the parameter that keeps slabs from being integrated out, if there is one."""
        return type(self).__name__

    @property
    def settling_draws(self) -> int:
        """Draws of each row that settle the noise variance."""
        return self.n_draws

    @property
    def activation(self) -> str:
        """Activation of the decoder's output."""
        if self.likelihood.link is not None:
            return self.likelihood.link
        word = self.networks.output_activation
        return "identity" if word == "auto" else word

    def check(self) -> None:
        """Check what the constraints of single parameters cannot say.

        Raises
        ------
        ValueError
            Where parameters do not go together; the message names them.
        """
        link, word = self.likelihood.link, self.networks.output_activation
        if link is not None and word not in ("auto", link):
            raise ValueError(
                f"output_activation={word!r} does not go with "
                f"likelihood={self.likelihood_name}, whose mean is {_LINKS.get(link, link)} of the "
                f"decoder's output; use 'auto'" + (f" or {link!r}." if link in RANGES else ".")
            )
        _ = self.networks.hidden_sizes
        if self.networks.names("conv"):
            self.networks.image()

    def check_range(self, least: float, most: float) -> None:
        """Refuse a range of X that the likelihood does not allow; warn about values out of reach.

        Parameters
        ----------
        least, most : float
            Range of the observed entries of X.
        """
        self.likelihood.check_range(least, most)
        if self.activation == "identity" or self.likelihood.link is not None:
            return
        low, high = RANGES[self.activation]
        if least < low or most > high:
            warn_user(
                f"output_activation={self.activation!r} decodes to values in [{low:g}, {high:g}], "
                f"but X goes from {least:.3g} to {most:.3g}. Rescale X, or use 'identity'."
            )

    def started_likelihood(self, start: Start) -> Likelihood:
        """Return a copy of the likelihood in the units of the model, started from its rows."""
        likelihood = self.likelihood.in_units(start.units.scale)
        likelihood.start(start.rows)
        return likelihood

    def n_codes(self, n_features: int) -> int:
        """Return the number of components for rows of this length."""
        return int(self.n_components or n_features)

    @abstractmethod
    def build(self, start: Start, generator: torch.Generator) -> LatentVariableModel:
        """Return the model, with its first weights."""


# Links of likelihoods, as messages call them.
_LINKS = {"sigmoid": "a sigmoid", "exp": "the exponential"}
