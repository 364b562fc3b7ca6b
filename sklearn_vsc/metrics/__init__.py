"""Metrics for codes, dictionaries, posteriors, training gradients and reconstructions."""

from ._attributes import attribute_correlation
from ._collapse import feature_collapse, posterior_collapse
from ._dictionaries import AtomRecovery, atom_recovery, coherence, effective_dictionary
from ._gradients import GradientSNR, gradient_snr
from ._images import frechet_distance, lpips, psnr, rfid, ssim
from ._information import multi_information
from ._penalty import alpha_max
from ._sparsity import hoyer_sparsity, support_consistency

__all__ = [
    "AtomRecovery",
    "GradientSNR",
    "alpha_max",
    "atom_recovery",
    "attribute_correlation",
    "coherence",
    "effective_dictionary",
    "feature_collapse",
    "frechet_distance",
    "gradient_snr",
    "hoyer_sparsity",
    "lpips",
    "multi_information",
    "posterior_collapse",
    "psnr",
    "rfid",
    "ssim",
    "support_consistency",
]
