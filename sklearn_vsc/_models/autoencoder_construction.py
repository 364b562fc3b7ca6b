"""From a description to a sparse autoencoder, for rows and for images."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..networks import (
    N_CHANNELS,
    DictionaryDecoder,
    UnrolledCoder,
    atoms_from_rows,
    grid_shape,
    mlp_decoder,
    residual_decoder,
    residual_encoder,
    standardize_outputs,
)
from ..networks._init import linear_layer
from .construction import bounded, encoded_shape, encoder_input, make_encoder, probe, start_at_mean
from .description import ModelDescription, Start
from .objectives import Objective
from .sparse_autoencoder import SparseAutoencoder

# Length of latent vectors at the start, in thresholds: at least this, and one for each coordinate.
# Shorter ones would be coded as zero, and stay there.
_FIRST_LENGTH = 4.0
# Images, at most, that the first atoms are made from: each has many latent vectors.
_START_IMAGES = 256
# Draws of each row that settle the noise variance: the estimate varies little between draws.
_SETTLING_DRAWS = 8
# Gain of the decoder's last layer: a start near the mean row is better than noise on top of it.
_FIRST_GAIN = 0.3


@dataclass(frozen=True)
class AutoencoderDescription(ModelDescription):
    """An autoencoder whose latent vectors are sparse sums of atoms.

    Attributes
    ----------
    alpha, latent_size, latent_weight, n_downsamplings
        As given to the estimator.
    """

    alpha: float = field(kw_only=True)
    latent_size: int | None = field(kw_only=True)
    latent_weight: float | str = field(kw_only=True)
    n_downsamplings: int = field(kw_only=True)

    @property
    def objective(self) -> Objective:
        """The penalised likelihood of the codes."""
        return Objective("code", kl_weight=self.kl_weight)

    @property
    def settling_draws(self) -> int:
        """Draws of each row that settle the noise variance."""
        return max(self.n_draws, _SETTLING_DRAWS)

    @property
    def is_conv(self) -> bool:
        """Whether there is a grid of codes."""
        encoder = self.networks.encoder
        if isinstance(encoder, nn.Module):
            return False
        has_images = self.networks.image_shape is not None
        return encoder == "conv" or (encoder == "auto" and has_images)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Height and width of the grid of codes."""
        if not self.is_conv:
            return 1, 1
        return grid_shape(self.networks.image(), self.n_downsamplings)

    @property
    def n_positions(self) -> int:
        """Number of positions of the grid of codes."""
        return math.prod(self.grid_shape)

    def check(self) -> None:
        """Check what the constraints of single parameters cannot say."""
        super().check()
        if self.networks.image_shape is not None:
            self.networks.image()
        _ = self.grid_shape
        decoder = self.networks.decoder
        if isinstance(decoder, str) and decoder == "conv" and not self.is_conv:
            raise ValueError(
                "decoder='conv' decodes the grid that encoder='conv' makes; use both, with an "
                "'image_shape', or decoder='mlp'."
            )

    def build(self, start: Start, generator: torch.Generator) -> SparseAutoencoder:
        """Return the model, with its first weights."""
        n_components = self.n_codes(start.n_features)
        latent_size = int(self.latent_size or max(1, n_components // 2))
        # Size of a coordinate of latent vectors at the start.
        first_size = self.alpha * max(1.0, _FIRST_LENGTH / latent_size**0.5)
        likelihoods = [self.started_likelihood(start) for _ in range(2)]
        likelihood = likelihoods[0]
        encoder, latents = self._encoder(start, likelihood, latent_size, first_size, generator)
        atoms = atoms_from_rows(latents, n_components, 1.0, generator)
        coder = UnrolledCoder(
            n_components, self.networks.n_unrolled, thresholds=(self.alpha, self.alpha)
        )
        # If thresholds were learned, codes could evade the penalty by shrinking.
        coder.raw_thresholds.requires_grad_(False)
        with torch.no_grad():
            size = float(coder(latents, atoms)[0].abs().mean()) or self.alpha
        network = self._network(start, likelihood, latent_size, first_size, generator)
        model = SparseAutoencoder(
            encoder,
            coder,
            DictionaryDecoder(atoms, network, self.n_positions, unit=size),
            *likelihoods,
            alpha=self.alpha,
            latent_weight=None if isinstance(self.latent_weight, str) else self.latent_weight,
        )
        # The widest layer of a convolutional network.
        n_active = N_CHANNELS * start.n_features if self.is_conv else start.n_features
        model.grid_shape = self.grid_shape
        model.numbers_per_row = max(self.n_positions * n_components, n_active)
        return model

    def _encoder(
        self,
        start: Start,
        likelihood: Likelihood,
        latent_size: int,
        first_size: float,
        generator: torch.Generator,
    ) -> tuple[nn.Module, Tensor]:
        """Return an encoder to latent vectors, and some that it makes."""
        rows = start.rows
        if self.is_conv:
            encoded = encoded_shape(self, start)
            network = residual_encoder(encoded, self.n_downsamplings, generator)
            body: nn.Module = nn.Sequential(encoder_input(self, start, likelihood), network)
            n_hidden = N_CHANNELS
            rows = rows[:: math.ceil(len(rows) / _START_IMAGES)]
        else:
            body, n_hidden = make_encoder(self, start, likelihood, generator)
        last = linear_layer(n_hidden, latent_size, generator)
        body.eval()
        with torch.no_grad():
            features = body(likelihood.encoder_input(rows)).flatten(0, -2)
            standardize_outputs(last, last(features), first_size)
            return nn.Sequential(body, last, nn.Flatten()), last(features)

    def _network(
        self,
        start: Start,
        likelihood: Likelihood,
        latent_size: int,
        first_size: float,
        generator: torch.Generator,
    ) -> nn.Module:
        """Return the network that decodes latent vectors, with the output activation in it."""
        n_features, n_inputs = start.n_features, self.n_positions * latent_size
        own = self.networks.decoder
        if isinstance(own, nn.Module):
            network = copy.deepcopy(own).cpu().float()
            probe(network, "decoder", start.rows.new_zeros(1, n_inputs), n_features)
            return bounded(self, start, network)
        if own != "mlp" and self.is_conv:
            shape = self.networks.image(n_features)
            layers = residual_decoder(shape, self.n_downsamplings, latent_size, generator)
        else:
            layers = mlp_decoder(n_inputs, self.networks.hidden_sizes, n_features, generator)
        start_at_mean(self, start, likelihood, cast(Tensor, layers[-1].bias))
        weights: list[Tensor] = [weight for weight in layers.parameters() if weight.ndim > 1]
        with torch.no_grad():
            weights[0] /= first_size
            weights[-1] *= _FIRST_GAIN
        return bounded(self, start, layers)
