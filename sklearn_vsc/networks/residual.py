"""Convolutional residual encoders to a grid of latent vectors, and decoders that mirror them.

The encoder maps rows, which are flat images (channels, height, width), to flat grids, position by
position; the decoder does the reverse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

N_CHANNELS = 64
_N_BLOCKS = 2
_N_GROUPS = 8


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions with a skip connection."""

    def __init__(self, n_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        # The last convolution starts at zero, so that the block starts as the identity.
        self.body = nn.Sequential(
            *_norm_swish(n_channels),
            conv_layer(nn.Conv2d, n_channels, n_channels, 3, 1, generator),
            *_norm_swish(n_channels),
            conv_layer(nn.Conv2d, n_channels, n_channels, 3, 1, generator, gain=0.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual_encoder(
    image_shape: tuple[int, int, int], n_downsamplings: int, generator: torch.Generator
) -> nn.Sequential:
    """Return an encoder of flat images (n, C * H * W) to features (n, h * w, N_CHANNELS)."""
    n_in = image_shape[0]
    layers: list[nn.Module] = [nn.Unflatten(1, image_shape)]
    for _ in range(n_downsamplings):
        layers += [conv_layer(nn.Conv2d, n_in, N_CHANNELS, 4, 2, generator), nn.SiLU()]
        n_in = N_CHANNELS
    if not n_downsamplings:
        layers.append(conv_layer(nn.Conv2d, n_in, N_CHANNELS, 3, 1, generator))
    layers += [ResidualBlock(N_CHANNELS, generator) for _ in range(_N_BLOCKS)]
    return nn.Sequential(*layers, *_norm_swish(N_CHANNELS), _ChannelsLast())


def residual_decoder(
    image_shape: tuple[int, int, int],
    n_downsamplings: int,
    latent_size: int,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return a decoder of flat grids (n, h * w * latent_size) to flat images.

    Its last layer adds a separate bias to each feature of the image.
    """
    grid = grid_shape(image_shape, n_downsamplings)
    layers: list[nn.Module] = [
        _ChannelsFirst(*grid, latent_size),
        conv_layer(nn.Conv2d, latent_size, N_CHANNELS, 3, 1, generator),
    ]
    layers += [ResidualBlock(N_CHANNELS, generator) for _ in range(_N_BLOCKS)]
    layers += _norm_swish(N_CHANNELS)
    for _ in range(n_downsamplings - 1):
        up = conv_layer(nn.ConvTranspose2d, N_CHANNELS, N_CHANNELS, 4, 2, generator)
        layers += [up, nn.SiLU()]
    last = (nn.ConvTranspose2d, 4, 2) if n_downsamplings else (nn.Conv2d, 3, 1)
    kind, size, stride = last
    layers.append(
        conv_layer(kind, N_CHANNELS, image_shape[0], size, stride, generator, gain=0.5**0.5)
    )
    return nn.Sequential(*layers, nn.Flatten(), FeatureBias(math.prod(image_shape)))


def grid_shape(image_shape: tuple[int, int, int], n_downsamplings: int) -> tuple[int, int]:
    """Return height and width of the grid; raise an error if the image cannot be halved to it."""
    _, height, width = image_shape
    # No image has sides this long, and a larger power might exhaust the memory.
    factor = 2 ** min(n_downsamplings, 62)
    if height % factor or width % factor:
        raise ValueError(
            f"n_downsamplings={n_downsamplings} halves the sides of an image {n_downsamplings} "
            f"times, which is not possible for the {height} x {width} pixels of "
            f"image_shape={tuple(image_shape)!r}. Use a lower n_downsamplings, or sides that are "
            f"divisible by 2**{n_downsamplings}."
        )
    return height // factor, width // factor


def conv_layer(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d],
    n_in: int,
    n_out: int,
    size: int,
    stride: int,
    generator: torch.Generator,
    *,
    gain: float = 1.0,
) -> nn.Module:
    """Return a convolution with padding 1, He-normal weights times ``gain`` and zero bias."""
    layer = nn.utils.skip_init(kind, n_in, n_out, size, stride=stride, padding=1)
    # In a transposed convolution with a stride, fewer inputs contribute to each output.
    fan = n_in * size**2 / (stride**2 if kind is nn.ConvTranspose2d else 1)
    with torch.no_grad():
        layer.weight.normal_(0.0, gain * (2.0 / fan) ** 0.5, generator=generator)
        layer.bias.zero_()
    return layer


def _norm_swish(n_channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(_N_GROUPS, n_channels), nn.SiLU()]


class _ChannelsLast(nn.Module):
    """Reshape grids (n, C, h, w) to (n, h * w, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class _ChannelsFirst(nn.Module):
    """Reshape flat grids (n, h * w * C) to (n, C, h, w)."""

    def __init__(self, height: int, width: int, n_channels: int) -> None:
        super().__init__()
        self.shape = (height, width, n_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, self.shape).permute(0, 3, 1, 2)


class FeatureBias(nn.Module):
    """Add a separate learned bias to each feature."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias
