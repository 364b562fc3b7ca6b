"""Convolutional encoders and decoders; images are given and returned as flat rows.

For images of 28x28 and 64x64 pixels the convolutions are those of Fallah and Rozell (2022), and
the decoder mirrors the encoder. They use batch normalisation; here nothing is normalised, so that
the bound of a row, and the gradient of its gates, do not depend on the other rows of the batch.
The benefit of normalisation, a start from which training progresses, also comes from a small last
layer.

References
----------
Fallah and Rozell (2022), Variational sparse coding with learned thresholding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._init import he_normal, linear_layer

# Sides longer than the first are halved; once they are down to the second, one filter of the
# size of the map reduces it to a single position.
_LONGEST_UNHALVED = 7
_LAST_SIDE = 4
# Channels of each layer; deeper layers have the last number.
_WIDTHS = (64, 64, 128, 256)
_LEAST_FEATURES = 128
# Initial gain of a decoder's last layer. In experiments with a gain of 1 or a third, decoders
# learned nothing for many epochs, since codes are mostly noise at first.
_OUTPUT_GAIN = 0.07
# Entries in the largest feature map held at once outside training; limits memory only.
_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True)
class _Side:
    """How one layer treats one side of the map."""

    before: int
    after: int
    kernel_size: int
    stride: int = 1
    padding: int = 0

    @property
    def output_padding(self) -> int:
        """Padding that makes a transposed convolution restore the original length of the side."""
        return self.before + 2 * self.padding - self.kernel_size - self.stride * (self.after - 1)


@dataclass(frozen=True)
class _Layer:
    """One convolution of the encoder, which the decoder uses transposed."""

    n_in: int
    n_out: int
    sides: tuple[_Side, _Side]

    def pairs(self, *names: str) -> dict[str, tuple[int, ...]]:
        """Return fields of both sides, as keyword arguments for a torch convolution."""
        return {name: tuple(getattr(side, name) for side in self.sides) for name in names}

    @property
    def map_size(self) -> int:
        """Entries in the larger of the maps before and after the layer."""
        before, after = (math.prod(pair) for pair in self.pairs("before", "after").values())
        return max(self.n_in * before, self.n_out * after)


def _plan(image_shape: tuple[int, int, int]) -> list[_Layer]:
    """Return layers that reduce an image to a 1x1 map."""
    n_in, *sizes = image_shape
    layers: list[_Layer] = []
    while max(sizes) > _LAST_SIDE:
        reduce = _halve if max(sizes) > _LONGEST_UNHALVED else _trim
        height, width = (reduce(size) for size in sizes)
        n_out = _WIDTHS[min(len(layers), len(_WIDTHS) - 1)]
        layers.append(_Layer(n_in, n_out, (height, width)))
        n_in, sizes = n_out, [height.after, width.after]
    height, width = (_Side(size, 1, size) for size in sizes)
    n_out = max(_LEAST_FEATURES, n_in if layers else 0)
    return [*layers, _Layer(n_in, n_out, (height, width))]


def _halve(size: int) -> _Side:
    return _Side(size, size // 2, 4, 2, 1) if size > _LONGEST_UNHALVED else _keep(size)


def _trim(size: int) -> _Side:
    return _Side(size, size - 3, 4) if size > _LAST_SIDE else _keep(size)


def _keep(size: int) -> _Side:
    """Keep the shorter side of an oblong map while the longer side is still being reduced."""
    return _Side(size, size, 3, 1, 1) if size > 1 else _Side(1, 1, 1)


class ConvEncoder(nn.Module):
    """Convolutions that reduce an image to a feature vector, with a ReLU after each.

    Parameters
    ----------
    image_shape : tuple of three ints
        (channels, height, width) of a row.
    generator : torch.Generator
        Generator for the initial weights.

    Attributes
    ----------
    n_out : int
        Number of features.
    """

    def __init__(self, image_shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        plan = _plan(image_shape)
        layers: list[nn.Module] = []
        for layer in plan:
            options = layer.pairs("kernel_size", "stride", "padding")
            conv = nn.utils.skip_init(nn.Conv2d, layer.n_in, layer.n_out, **options)
            fan_in = layer.n_in * math.prod(options["kernel_size"])
            he_normal(conv.weight, conv.bias, fan_in, generator)
            layers += [conv, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.image_shape = image_shape
        self.n_out = plan[-1].n_out
        self.map_size = max(layer.map_size for layer in plan)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of rows (n, n_features)."""
        return _in_chunks(self._encode, x, self.map_size)

    def _encode(self, x: Tensor) -> Tensor:
        return self.layers(x.unflatten(-1, self.image_shape)).flatten(1)


class ConvDecoder(nn.Module):
    """Mirror image of `ConvEncoder`: a linear layer followed by transposed convolutions.

    Every pixel has its own intercept, as in the other decoders.

    Parameters
    ----------
    n_components : int
        Length of a code.
    image_shape : tuple of three ints
        (channels, height, width) of a row.
    generator : torch.Generator
        Generator for the initial weights.
    """

    def __init__(
        self, n_components: int, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        plan = _plan(image_shape)
        self.linear = linear_layer(n_components, plan[-1].n_out, generator)
        layers: list[nn.Module] = []
        for layer in reversed(plan):
            last = layer is plan[0]
            options = layer.pairs("kernel_size", "stride", "padding", "output_padding")
            # The last layer has no bias, since every pixel has its own intercept.
            conv = nn.utils.skip_init(
                nn.ConvTranspose2d, layer.n_out, layer.n_in, bias=not last, **options
            )
            # Mean number of kernel positions that contribute to an output entry.
            taps = math.prod(side.kernel_size * side.after / side.before for side in layer.sides)
            gain = _OUTPUT_GAIN if last else 1.0
            he_normal(conv.weight, conv.bias, layer.n_out * taps, generator, gain=gain)
            layers += [nn.ReLU(), conv]
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(math.prod(image_shape)))
        self.map_size = max(layer.map_size for layer in plan)

    def forward(self, code: Tensor) -> Tensor:
        """Return the decoded rows of codes (..., n_components)."""
        rows = _in_chunks(self._decode, code.flatten(0, -2), self.map_size)
        return rows.unflatten(0, code.shape[:-1])

    def _decode(self, code: Tensor) -> Tensor:
        return self.layers(self.linear(code)[..., None, None]).flatten(1) + self.bias


def _in_chunks(network: Callable[[Tensor], Tensor], rows: Tensor, map_size: int) -> Tensor:
    """Apply a network to a few rows at a time, so that its feature maps fit in memory.

    Feature maps are many times larger than rows. With gradients enabled, all of them are needed at
    once anyway.
    """
    size = max(1, _CHUNK_NUMBERS // map_size)
    if torch.is_grad_enabled() or len(rows) <= size:
        return network(rows)
    return torch.cat([network(chunk) for chunk in rows.split(size)])
