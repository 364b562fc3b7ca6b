"""From the parameters of a sparse autoencoder to its model, for rows and for images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ._construction import _probe
from ._models.latent_variable import LatentVariableModel
from ._models.objectives import Objective
from ._models.sparse_autoencoder import SparseAutoencoder
from ._neural import NeuralSparseCoder
from ._read_off import start_sample
from ._rows.array_api import follows_input
from ._rows.arrays import draw_seed, seeded_generator
from ._rows.sources import RowSource
from .latents import Continuous, LatentFamily
from .networks import (
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
from .networks._init import linear_layer

# Length of latent vectors at the start, in thresholds: at least this, and one for each coordinate.
# Shorter ones would code to zero, and stay there.
_FIRST_LENGTH = 4.0
# Images, at most, that the first atoms are made from: each has many latent vectors.
_START_IMAGES = 256
# Of the decoder's last layer: a start near the mean row is better than noise on top of it.
_FIRST_GAIN = 0.3
# Draws of each row that settle the noise variance: its estimate varies little between draws.
_SETTLING_DRAWS = 8


class AutoencoderBuilder(NeuralSparseCoder):
    """Base of an estimator whose codes lie between an encoder and a decoder network.

    Images come in as flat rows or with their axes; inside they are rows.
    """

    alpha: float
    latent_size: int | None
    latent_weight: float | str
    n_downsamplings: int
    grid_shape_: tuple[int, int]

    # What the base asks for and a deterministic code does not have.
    gradient = "code"
    objective = "elbo"
    kl_weight = 1.0
    decoder_penalty = 0.0
    n_refine = 0
    # While the decoder is of no use yet, a full penalty empties the codes, and atoms die of it.
    kl_warmup = 0.5

    # --- rows, images and grids

    def _shape_of_images(self) -> tuple[int, int, int] | None:
        """Channels, height and width, where rows are images."""
        return None if self.image_shape is None else self._image_shape()

    @property
    def _is_conv(self) -> bool:
        """Whether there is a grid of codes."""
        if isinstance(self.encoder, nn.Module):
            return False
        return self.encoder == "conv" or (self.encoder == "auto" and self.image_shape is not None)

    def _grid_shape(self) -> tuple[int, int]:
        shape = self._shape_of_images()
        if not self._is_conv or shape is None:
            return 1, 1
        return grid_shape(shape, self.n_downsamplings)

    def _validate_table(self, X: ArrayLike, *, reset: bool) -> NDArray:
        """Check rows; images with axes of their own are laid flat."""
        shape = self._shape_of_images()
        if shape is None:
            return super()._validate_table(X, reset=reset)
        if getattr(X, "ndim", None) == 4:
            X = np.asarray(X)
            if X.shape[1:] != shape:
                raise ValueError(
                    f"X holds images of shape {X.shape[1:]}, but image_shape={shape!r} "
                    "(channels, height, width)."
                )
            X = X.reshape(len(X), -1)
        X = super()._validate_table(X, reset=reset)
        self._image_shape(X.shape[1])
        return X

    def _validate_codes(self, Z: ArrayLike) -> NDArray:
        """Check codes, flat or in their grid."""
        if getattr(Z, "ndim", None) == 4 and hasattr(self, "grid_shape_"):
            Z = np.asarray(Z)
            wanted = (*self.grid_shape_, self._n_components)
            if Z.shape[1:] != wanted:
                raise ValueError(f"Z holds grids of shape {Z.shape[1:]}; expected {wanted}.")
            Z = Z.reshape(len(Z), -1)
        return super()._validate_codes(Z)

    @property
    def _n_features_out(self) -> int:
        return math.prod(self.grid_shape_) * self._n_components

    @property
    def _numbers_per_row(self) -> int:
        n_codes = math.prod(self._grid_shape()) * self._n_components
        # The widest layer of a convolutional network.
        n_active = N_CHANNELS * self.n_features_in_ if self._is_conv else self.n_features_in_
        return max(n_codes, n_active)

    @property
    def _n_settling_draws(self) -> int:
        return max(self.n_draws, _SETTLING_DRAWS)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._grid_shape()
        if isinstance(self.decoder, str) and self.decoder == "conv" and not self._is_conv:
            raise ValueError(
                "decoder='conv' decodes the grid that encoder='conv' makes; use both, with an "
                "'image_shape', or decoder='mlp'."
            )

    # --- the model

    def _make_family(self) -> LatentFamily:
        return Continuous("laplace", "laplace")

    def _make_objective(self) -> Objective:
        return Objective("code")

    @property
    def _latent_size(self) -> int:
        return int(self.latent_size or max(1, self._n_components // 2))

    @property
    def _first_size(self) -> float:
        """Size of a coordinate of latent vectors at the start."""
        return self.alpha * max(1.0, _FIRST_LENGTH / self._latent_size**0.5)

    def _build(self, rows: Tensor, generator: torch.Generator) -> SparseAutoencoder:
        encoder, latents = self._make_latents(rows, generator)
        atoms = atoms_from_rows(latents, self._n_components, 1.0, generator)
        coder = UnrolledCoder(
            self._n_components, self.n_unrolled, thresholds=(self.alpha, self.alpha)
        )
        # With thresholds of their own, codes could shrink away from the penalty.
        coder.raw_thresholds.requires_grad_(False)
        with torch.no_grad():
            size = float(coder(latents, atoms)[0].abs().mean()) or self.alpha
        network = self._make_network(rows, generator)
        return SparseAutoencoder(
            encoder,
            coder,
            DictionaryDecoder(atoms, network, math.prod(self._grid_shape()), unit=size),
            self._make_likelihood(),
            self._make_likelihood(),
            alpha=self.alpha,
            latent_weight=None if isinstance(self.latent_weight, str) else self.latent_weight,
        )

    def _make_latents(self, rows: Tensor, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
        """Return an encoder to latent vectors, and some that it makes."""
        if self._is_conv:
            encoded = self._encoded_shape(rows.shape[1])
            network = residual_encoder(encoded, self.n_downsamplings, generator)
            body, n_hidden = nn.Sequential(self._encoder_input(), network), N_CHANNELS
            rows = rows[:: math.ceil(len(rows) / _START_IMAGES)]
        else:
            body, n_hidden = self._make_encoder(rows, generator)
        last = linear_layer(n_hidden, self._latent_size, generator)
        body.eval()
        with torch.no_grad():
            features = body(rows).flatten(0, -2)
            standardize_outputs(last, last(features), self._first_size)
            return nn.Sequential(body, last, nn.Flatten()), last(features)

    def _make_network(self, rows: Tensor, generator: torch.Generator) -> nn.Module:
        """Return what decodes latent vectors, with the output activation in it."""
        n_features, n_inputs = rows.shape[1], math.prod(self._grid_shape()) * self._latent_size
        shape = self._shape_of_images()
        network: nn.Module
        if isinstance(self.decoder, nn.Module):
            network = copy.deepcopy(self.decoder).cpu().float()
            _probe(network, "decoder", rows.new_zeros(1, n_inputs), n_features)
        else:
            if self.decoder != "mlp" and self._is_conv and shape is not None:
                layers = residual_decoder(shape, self.n_downsamplings, self._latent_size, generator)
            else:
                layers = mlp_decoder(n_inputs, self._hidden_sizes(), n_features, generator)
            self._start_at_mean(cast(Tensor, layers[-1].bias), rows)
            weights = _weights(layers)
            with torch.no_grad():
                weights[0] /= self._first_size
                weights[-1] *= _FIRST_GAIN
            network = layers
        return self._bounded(network)

    def _settle_noise_variance(self, rows: RowSource, device: torch.device) -> None:
        """Set the scales of codes and the noise variance to the best for the training rows."""
        generator = seeded_generator(draw_seed(self._random_state), device)
        model = cast(SparseAutoencoder, self.module_).to(device)
        dtype = next(model.parameters()).dtype
        sample = self._normalize(start_sample(rows), device)
        model.settle_scales(sample.to(dtype), generator)
        model.cpu()
        super()._settle_noise_variance(rows, device)

    def _finish(self, rows: RowSource, device: torch.device) -> NDArray:
        self.grid_shape_ = self._grid_shape()
        return super()._finish(rows, device)

    def _training_codes(
        self, rows: RowSource, device: torch.device
    ) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """Yield rows, their codes summed over positions, and which atoms each row uses."""

        def summed(model: LatentVariableModel, rows: Tensor, raw: NDArray) -> Tensor:
            codes = self._map_codes(model, rows, raw).unflatten(1, (-1, self._n_components))
            return torch.cat([codes.sum(1), (codes != 0).any(1).to(codes)], dim=1)

        for raw, found in self._evaluated_chunks(rows, device, summed):
            codes, uses = np.split(found, 2, axis=1)
            yield raw, codes, uses

    def _dead_atoms_cure(self) -> str:
        return "Train longer or on more rows, or lower n_components or alpha."

    @follows_input
    def transform_grid(self, X: ArrayLike) -> NDArray:
        """Return the codes of images at each position.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Rows to code.

        Returns
        -------
        code : ndarray of shape (n_samples, height, width, n_components)
            What ``transform`` returns, with the axes of ``grid_shape_``.
        """
        codes = np.concatenate(list(self._codes(X)))
        return codes.reshape(-1, *self.grid_shape_, self._n_components)


def _weights(network: nn.Module) -> list[Tensor]:
    """Weights of the layers, from first to last, biases and norms left out."""
    return [weight for weight in network.parameters() if weight.ndim > 1]
