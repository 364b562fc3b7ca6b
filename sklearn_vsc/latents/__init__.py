"""Latent families: the prior of a code and its posterior, in torch alone.

`SpikeSlab`, `Thresholded` and `Continuous` are the families of this package. A family of your own
is a subclass of `LatentFamily` with a subclass of `LatentPosterior`. Either kind is given to an
estimator as its ``prior``.
"""

from ._base import GatedFamily, GatedPosterior, LatentFamily, LatentPosterior
from ._draws import Draws, Noise, bounded_exp, gated_draws, logistic_noise, open_uniform
from .continuous import Continuous, ContinuousPosterior
from .spike_slab import SpikeSlab, SpikeSlabPosterior
from .thresholded import Thresholded, ThresholdedPosterior

__all__ = [
    "Continuous",
    "ContinuousPosterior",
    "Draws",
    "GatedFamily",
    "GatedPosterior",
    "LatentFamily",
    "LatentPosterior",
    "Noise",
    "SpikeSlab",
    "SpikeSlabPosterior",
    "Thresholded",
    "ThresholdedPosterior",
    "bounded_exp",
    "gated_draws",
    "logistic_noise",
    "open_uniform",
]
