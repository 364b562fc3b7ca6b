"""Latent families: prior and posterior of a code, torch only."""

from ._base import Draws, GatedFamily, GatedPosterior, LatentFamily, LatentPosterior, Noise
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
]
