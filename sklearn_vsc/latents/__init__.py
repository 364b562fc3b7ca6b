"""Latent families: prior and posterior of a code, torch only."""

from ._base import Draws, LatentFamily, LatentPosterior, Noise
from .thresholded import Thresholded, ThresholdedPosterior

__all__ = [
    "Draws",
    "LatentFamily",
    "LatentPosterior",
    "Noise",
    "Thresholded",
    "ThresholdedPosterior",
]
