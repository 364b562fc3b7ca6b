"""Models of `vsc_images.py`: the published networks and settings as our parameters."""

import itertools
from dataclasses import dataclass

import torch
from skorch.callbacks import Callback
from torch import nn

from sklearn_vsc import SparseVAE, ThresholdedVSC

# The published spread: the variance of a Gaussian base, the scale of a Laplace base.
SPREAD = 0.1
GAMMA_KL_WEIGHT = 0.1


@dataclass(frozen=True)
class Layer:
    """One convolution of the encoder, which the decoder mirrors."""

    n_out: int
    stride: int = 2
    padding: int = 1
    kernel_size: int = 4


@dataclass(frozen=True)
class Task:
    """A data set, its published networks and the weight of the KL."""

    name: str
    image_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    # Relative to a squared error that is a mean over pixels.
    kl_weight: float

    @property
    def n_pixels(self):
        channels, height, width = self.image_shape
        return channels * height * width

    @property
    def noise_variance(self):
        """Variance of the Gaussian likelihood to which the published loss corresponds."""
        return self.kl_weight * self.n_pixels / 2


FASHION = Task(
    "Fashion-MNIST",
    (1, 28, 28),
    (Layer(64), Layer(64), Layer(128, 1, 0), Layer(128, 2, 0)),
    0.01,
)
CELEBA = Task(
    "CelebA",
    (3, 64, 64),
    (Layer(64), Layer(64), Layer(128), Layer(256), Layer(256, 1, 0)),
    0.001,
)


def published_networks(task, n_components, seed=0):
    """Return the published encoder and decoder, with batch norm, as keywords of an estimator."""
    channels = [task.image_shape[0], *(layer.n_out for layer in task.layers)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = [nn.Unflatten(1, task.image_shape)]
        for layer, (n_in, n_out) in zip(task.layers, itertools.pairwise(channels), strict=True):
            conv = nn.Conv2d(n_in, n_out, layer.kernel_size, layer.stride, layer.padding)
            encoder += [conv, nn.BatchNorm2d(n_out), nn.ReLU()]
        decoder = [nn.Linear(n_components, channels[-1]), nn.Unflatten(1, (channels[-1], 1, 1))]
        for layer, (n_out, n_in) in zip(
            task.layers[::-1], list(itertools.pairwise(channels))[::-1], strict=True
        ):
            # The linear layer is not normalised.
            norm = [] if layer is task.layers[-1] else [nn.BatchNorm2d(n_in)]
            options = layer.kernel_size, layer.stride, layer.padding
            decoder += [*norm, nn.ReLU(), nn.ConvTranspose2d(n_in, n_out, *options)]
    return {
        "encoder": nn.Sequential(*encoder, nn.Flatten()),
        "decoder": nn.Sequential(*decoder, nn.Flatten()),
        "output_activation": "sigmoid",
    }


class PublishedAdam(Callback):
    """Set the published moments and weight decay; learning rate and clipping stay ours."""

    def on_train_begin(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group.update(betas=(0.5, 0.999), weight_decay=1e-5)


def _vae(prior, prior_scale, **parameters):
    return lambda density: (
        SparseVAE,
        {"prior": prior, "prior_scale": prior_scale, "density": density, **parameters},
    )


def _thresholded(prior, prior_scale, gamma, gradient="straight_through"):
    return lambda density: (
        ThresholdedVSC,
        {
            "prior": prior,
            "prior_scale": prior_scale,
            "density": density,
            "threshold_prior": "gamma" if gamma else None,
            "threshold_kl_weight": GAMMA_KL_WEIGHT,
            "gradient": gradient,
            "kl": "auto",
        },
    )


# Class and parameters, given the share of codes that the prior expects to be non-zero.
PRIORS = {
    "Gaussian": _vae("gaussian", SPREAD**0.5),
    "Laplace": _vae("laplace", SPREAD, posterior_family="laplace"),
    "spike and slab": _vae("spike_slab", SPREAD**0.5, gradient="gumbel_softmax"),
    "thresholded Gaussian": _thresholded("gaussian", SPREAD**0.5, False),
    "thresholded Gaussian, Gamma": _thresholded("gaussian", SPREAD**0.5, True),
    "thresholded Laplace": _thresholded("laplace", SPREAD, False),
    "thresholded Laplace, Gamma": _thresholded("laplace", SPREAD, True),
    # Not published: our gradient, and the KL of the thresholded distributions.
    "thresholded Laplace, relaxed": _thresholded("laplace", SPREAD, True, "gumbel_softmax"),
}
# Priors with exact zeros.
SPARSE = tuple(name for name in PRIORS if name not in ("Gaussian", "Laplace"))
LINEAR = "linear, exact ELBO"


def deep_model(task, prior, n_components, density, **training):
    """Return the published model with a prior."""
    model, parameters = PRIORS[prior](density)
    return model(
        n_components,
        objective="max_elbo",
        callbacks=[PublishedAdam()],
        n_iter_no_change=training["max_iter"],
        random_state=0,
        **published_networks(task, n_components),
        **parameters,
        **training,
    )


def linear_model(n_components, density, **training):
    """Return ThresholdedVSC with its defaults: a linear decoder and the closed-form ELBO."""
    return ThresholdedVSC(n_components, density=density, random_state=0, **training)
