"""Convolutional networks have the published layers and fit images of any size."""

import math

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from sklearn_vsc.networks import ConvDecoder, ConvEncoder, conv

SHAPES = [
    (1, 28, 28),
    (3, 64, 64),
    (1, 8, 8),
    (1, 1, 1),
    (2, 1, 30),
    (3, 5, 9),
    (1, 7, 28),
    (1, 15, 17),
    (4, 2, 3),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def networks(shape, n_components=5, seed=0):
    draws = generator(seed)
    return ConvEncoder(shape, draws), ConvDecoder(n_components, shape, draws)


def layers(network):
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    for layer in network.layers:
        if isinstance(layer, kinds):
            (kernel,) = set(layer.kernel_size)
            (stride,), (padding,) = set(layer.stride), set(layer.padding)
            yield layer.in_channels, layer.out_channels, kernel, stride, padding


def test_layers_for_28_by_28_are_the_published_ones():
    encoder, decoder = networks((1, 28, 28))
    # The last filter is as large as its map, so its stride does not matter.
    assert list(layers(encoder)) == [
        (1, 64, 4, 2, 1),
        (64, 64, 4, 2, 1),
        (64, 128, 4, 1, 0),
        (128, 128, 4, 1, 0),
    ]
    assert encoder.n_out == decoder.linear.out_features == 128
    assert list(layers(decoder)) == [
        (128, 128, 4, 1, 0),
        (128, 64, 4, 1, 0),
        (64, 64, 4, 2, 1),
        (64, 1, 4, 2, 1),
    ]


def test_layers_for_64_by_64_are_the_published_ones():
    encoder, decoder = networks((3, 64, 64))
    assert list(layers(encoder)) == [
        (3, 64, 4, 2, 1),
        (64, 64, 4, 2, 1),
        (64, 128, 4, 2, 1),
        (128, 256, 4, 2, 1),
        (256, 256, 4, 1, 0),
    ]
    assert encoder.n_out == decoder.linear.out_features == 256
    mirrored = [(n_out, n_in, *rest) for n_in, n_out, *rest in layers(encoder)][::-1]
    assert list(layers(decoder)) == mirrored


@each_shape
def test_networks_map_between_rows_and_features_of_the_right_size(shape):
    encoder, decoder = networks(shape)
    n_features = math.prod(shape)
    x = torch.randn(6, n_features, generator=generator(1))
    features = encoder(x)
    assert features.shape == (6, encoder.n_out) and encoder.n_out >= 128
    for lead in [(6,), (2, 6), (1, 1, 3)]:
        code = torch.randn(*lead, 5, generator=generator(2))
        rows = decoder(code)
        assert rows.shape == (*lead, n_features)
        # Each code is decoded independently of the others.
        alone = decoder(code.reshape(-1, 5)[-1:])
        assert_allclose(rows.reshape(-1, n_features)[-1:].detach(), alone.detach(), atol=1e-5)
    # The encoder keeps the scale of signals; the decoder's outputs are small at first.
    assert 0.3 < features.std() < 2
    assert rows.std() < 0.3


@pytest.mark.parametrize("size", range(1, 41))
def test_every_pixel_is_read_and_written(size):
    for shape in [(1, size, size), (2, size, 3)]:
        encoder, decoder = networks(shape)
        with torch.no_grad():
            for part in (*encoder.parameters(), *decoder.parameters()):
                part.fill_(1e-2)
            decoder.bias.zero_()
        x = torch.ones(1, math.prod(shape), requires_grad=True)
        (slope,) = torch.autograd.grad(encoder(x).sum(), x)
        assert (slope > 0).all()
        assert (decoder(torch.ones(1, 5)) > 0).all()


def test_rows_are_flattened_channel_by_channel():
    encoder, decoder = networks((3, 6, 10))
    images = torch.randn(4, 3, 6, 10, generator=generator(1))
    expected = encoder.layers(images).flatten(1)
    assert_allclose(encoder(images.reshape(4, -1)).detach(), expected.detach(), atol=1e-5)
    code = torch.randn(4, 5, generator=generator(2))
    decoded = decoder(code).reshape(4, 3, 6, 10)
    expected = decoder.layers(decoder.linear(code)[..., None, None])
    assert_allclose(decoded.detach(), expected.detach(), atol=1e-5)


def test_zero_codes_give_the_intercept_of_each_pixel():
    _, decoder = networks((2, 7, 9))
    assert decoder.bias.shape == (2 * 7 * 9,)
    with torch.no_grad():
        decoder.bias.copy_(torch.arange(2.0 * 7 * 9))
        assert torch.equal(decoder(torch.zeros(1, 5))[0], decoder.bias)


def test_weights_come_from_the_private_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = networks((1, 8, 8)), networks((1, 8, 8)), networks((1, 8, 8), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for one, two, three in zip(first, again, other, strict=True):
        two, three = two.state_dict(), three.state_dict()
        for name, value in one.state_dict().items():
            assert torch.equal(value, two[name])
            assert value.ndim == 1 or not torch.equal(value, three[name])


@each_shape
def test_many_rows_are_processed_in_chunks(shape, monkeypatch):
    encoder, decoder = networks(shape)
    x = torch.randn(7, math.prod(shape), generator=generator(1))
    code = torch.randn(3, 7, 5, generator=generator(2))
    expected = encoder(x).detach(), decoder(code).detach()
    monkeypatch.setattr(conv, "_CHUNK_NUMBERS", 2 * max(encoder.map_size, decoder.map_size))
    sizes = []
    for network in (encoder, decoder):
        network.layers.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    with torch.no_grad():
        assert_allclose(encoder(x), expected[0], atol=1e-5)
        assert_allclose(decoder(code), expected[1], atol=1e-5)
    assert sum(sizes) == 7 + 21 and max(sizes) == 2
    # Training needs all feature maps anyway.
    encoder(x)
    assert sizes[-1] == 7


def test_gradients_reach_every_parameter():
    for network, given in zip(networks((1, 9, 20)), (180, 5), strict=True):
        network(torch.randn(8, given, generator=generator(1))).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())
