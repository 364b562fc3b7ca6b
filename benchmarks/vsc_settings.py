"""The settings of Fallah & Rozell (2022) for patches, as parameters of our estimators.

The published optimiser, for which the estimators have no parameter, is a skorch callback.
"""

import itertools
import math

import torch
from data import natural_patches
from skorch.callbacks import Callback
from torch import nn
from torch.nn.functional import normalize

from sklearn_vsc import SparseVAE, ThresholdedVSC

N_COMPONENTS = 256
N_FEATURES = 256
BATCH_SIZE = 100
# Weight of the KL relative to a squared error that is a mean over pixels.
BETA = 0.01
# Variance of the Gaussian likelihood to which this loss corresponds.
NOISE_VARIANCE = BETA * N_FEATURES / 2
# The published "spread" 0.1 is the scale of a Laplace and the variance of a Gaussian distribution.
SCALES = {"laplace": 0.1, "gaussian": 0.1**0.5, "spike_slab": 0.1**0.5}
# Penalty of the published yardstick.
PENALTY = 20.0
THRESHOLDS = {"laplace": 0.25, "gaussian": 0.52}
# Step at which the published warm-up ends, for any length of the run.
LAST_WARMUP_STEP = 6_000


def patches(n_rows, n_test):
    """Return whitened patches, each pixel standardised, from non-overlapping halves."""
    return natural_patches(n_rows, n_test, patch_size=16, standardised=True)


class PublishedOptimizer(Callback):
    """The published training: SGD with a cyclic rate for the encoder, steps for the dictionary.

    The published encoder minimises the mean squared error over pixels plus BETA times the KL, which
    is BETA times our loss, by SGD with Nesterov momentum. The dictionary minimises half the sum of
    squared errors, which is our loss times the noise variance, by plain gradient steps. Neither
    clips its gradients. Our locations are multiples of the prior's scale, unlike the published
    ones. To compensate, the head's initial weights and its gradient are scaled up accordingly. With
    ``from_noise`` atoms start as published, as noise of unit norm; otherwise they start as patches.
    """

    def __init__(self, prior, n_steps, from_noise=False):
        self.prior = prior
        self.n_steps = n_steps
        self.from_noise = from_noise

    def on_train_begin(self, net, **kwargs):
        model = net.module_.model
        dict(net.callbacks_)["clipping"].gradient_clip_value = None
        model.decoder.bias.requires_grad_(False)  # the published decoder has none
        self.step_, self.head_ = 0, model.heads.linear
        with torch.no_grad():
            self.head_.reset_parameters()
            self.head_.weight[:N_COMPONENTS] /= SCALES[self.prior]
            self.head_.bias[:N_COMPONENTS] /= SCALES[self.prior]
            if self.from_noise:
                atoms = model.decoder.weight
                atoms.copy_(normalize(torch.randn_like(atoms), dim=1))
        encoder = [*model.encoder.parameters(), *model.heads.parameters()]
        dictionary = {"params": [model.decoder.weight], "momentum": 0.0, "nesterov": False}
        net.optimizer_ = torch.optim.SGD(
            [{"params": encoder}, dictionary], lr=0.01, momentum=0.9, nesterov=True
        )

    def on_batch_begin(self, net, training=False, **kwargs):
        encoder, dictionary = net.optimizer_.param_groups
        encoder["lr"] = BETA * _cycle(self.step_ / max(1, self.n_steps - 1))
        dictionary["lr"] = NOISE_VARIANCE * 0.5 * 0.99 ** (len(net.history) - 1)
        self.step_ += 1

    def on_grad_computed(self, net, **kwargs):
        for parameter in (self.head_.weight, self.head_.bias):
            parameter.grad[:N_COMPONENTS] /= SCALES[self.prior] ** 2


def _cycle(progress, peak=0.01, rise=0.05):
    """Return the learning rate after this share of the steps: linear rise, then cosine decay."""
    first, last = peak / 25, peak / 25e4
    if progress < rise:
        return first + (peak - first) * progress / rise
    fall = 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))
    return last + (peak - last) * fall


def published_encoder():
    """Return the published MLP, with torch's default initial weights."""
    sizes = (N_FEATURES, 512, 1024, 512, 256)
    layers = [(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*layers))


def published(family, n_steps, n_rows, *, n_draws=1, from_noise=False, **parameters):
    """Return an estimator with the published settings, for about `n_steps` steps.

    ``family`` is 'gaussian', 'laplace', 'spike_slab', or 'thresholded_' plus one of the first two,
    with the suffix '_gamma' for an inferred threshold. With ``from_noise``, atoms start as noise,
    and the noise of samples reaches its full size as late as published.
    """
    base = family.removeprefix("thresholded_").removesuffix("_gamma")
    steps_per_epoch = math.ceil(n_rows / BATCH_SIZE)
    n_epochs = max(1, round(n_steps / steps_per_epoch))
    settings = {
        "n_components": N_COMPONENTS,
        "prior": base,
        "prior_scale": SCALES[base],
        "n_draws": n_draws,
        "objective": "max_elbo",
        "noise_variance": NOISE_VARIANCE,
        "encoder": published_encoder(),
        "decoder": "linear",
        "decoder_penalty": 1e-4 / NOISE_VARIANCE,
        "batch_size": BATCH_SIZE,
        "max_iter": n_epochs,
        "n_iter_no_change": n_epochs,
        "transform_method": "max_elbo",
        "callbacks": [PublishedOptimizer(base, n_epochs * steps_per_epoch, from_noise)],
        "random_state": 0,
    }
    if family == "spike_slab":
        settings |= {"density": 0.1, "gradient": "gumbel_softmax", "temperature": (1.0, 0.5)}
    elif family == base:
        settings |= {"posterior_family": base}
    else:
        settings |= {
            "threshold": THRESHOLDS[base],
            "threshold_prior": "gamma" if family.endswith("_gamma") else None,
            "threshold_kl_weight": 0.1,
            "gradient": "straight_through",
            "kl": "base",
            "noise_warmup": 0.02 if base == "laplace" else 0.0,
        }
    if from_noise:
        settings["noise_warmup"] = min(1.0, LAST_WARMUP_STEP / (n_epochs * steps_per_epoch))
    model = ThresholdedVSC if family.startswith("thresholded") else SparseVAE
    return model(**settings | parameters)
