"""How much noise is in the gradients of training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._rows.array_api import on_host, to_host
from .._rows.arrays import private_random_state
from .._rows.numbers import check_count
from ._checks import check_estimator

# Where the mean is so many times the standard deviation there is rounding, and no noise.
_MOST = 1e5
_PARTS = {"decoder": ("decoder.",), "encoder": ("encoder.", "heads.")}


@dataclass(frozen=True)
class GradientSNR:
    """Signal-to-noise ratios of the gradient of training.

    Attributes
    ----------
    decoder : float
        Of the decoder's parameters, which for a linear one are the dictionary and an intercept.
    encoder : float
        Of the inference network's.
    decoder_noiseless, encoder_noiseless : float
        Share of the parameters, of those that have a gradient, whose gradient has no noise; they
        are left out of the ratios.
    """

    decoder: float
    encoder: float
    decoder_noiseless: float
    encoder_noiseless: float


def gradient_snr(
    estimator: Any,
    X: ArrayLike,
    *,
    n_repeats: int = 100,
    batch_size: int = 100,
    n_draws: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> GradientSNR:
    """Signal-to-noise ratio of the gradient of training, of decoder and encoder.

    The gradient of the training loss of a batch is computed `n_repeats` times, with new draws of
    the posterior each time. The ratio of a parameter is the size of its mean over its standard
    deviation (divided by `n_repeats`); that of a network is the mean over its parameters, then
    over batches.

    Parameters
    ----------
    estimator : ThresholdedVSC, SparseVAE or SCVAE
        Fitted; it is not changed. The loss is that of its training with the parameters that it
        has now, at the end of any warm-up, before gradients are clipped.

    X : array-like of shape (n_samples, n_features)
        Rows; NaN is a missing entry. Rows beyond the last whole batch are left out.

    n_repeats : int, default=100
        Gradients of each batch, two or more. The published figures took 1000. Mere noise has a
        ratio of about ``sqrt(2 / (pi * n_repeats))``, 0.08 for 100.

    batch_size : int, default=100
        Rows of a batch.

    n_draws : int, default=None
        Draws of each row; None: the estimator's. It changes nothing where training makes no
        draws or, as that of SCVAE, one.

    random_state : int, RandomState instance or None, default=None
        Decides the draws.

    Returns
    -------
    snr : GradientSNR
        With ``decoder`` and ``encoder``. Parameters whose gradient is zero throughout are left
        out, and those whose gradient does not vary, which ``decoder_noiseless`` and
        ``encoder_noiseless`` count: closed-form training, with ``gradient='exact'``, has no
        others, and a ratio of infinity. NaN where no parameter has a gradient.

    Raises
    ------
    TypeError
        When the estimator trains no network by gradients.

    References
    ----------
    Fallah, K. and Rozell, C. J. (2022). Variational Sparse Coding with Learned Thresholding.
    International Conference on Machine Learning.

    Examples
    --------
    >>> from sklearn_vsc import SparseVAE
    >>> from sklearn_vsc.datasets import make_sparse_coded
    >>> from sklearn_vsc.metrics import gradient_snr
    >>> X, _, _ = make_sparse_coded(200, 8, 8, noise=0.1, random_state=0)
    >>> model = SparseVAE(8, objective="iwae", max_iter=2, random_state=0).fit(X)
    >>> snr = [
    ...     gradient_snr(model, X, n_repeats=20, n_draws=n_draws, random_state=0).decoder
    ...     for n_draws in (1, 50)
    ... ]
    >>> snr[0] < snr[1]
    True
    """
    check_estimator(
        estimator,
        "_training_gradients",
        "gradient_snr needs a fitted ThresholdedVSC, SparseVAE or SCVAE, which train by stochastic "
        "gradients",
    )
    if check_count(n_repeats, "n_repeats") < 2:
        raise ValueError(f"The 'n_repeats' parameter must be at least 2; got {n_repeats!r}.")
    batches = on_host(estimator)._training_gradients(
        to_host(X),
        batch_size=check_count(batch_size, "batch_size"),
        n_passes=n_repeats,
        n_draws=None if n_draws is None else check_count(n_draws, "n_draws"),
        random_state=private_random_state(random_state),
    )
    found = np.array([_ratios(passes) for passes in batches])
    known = ~np.isnan(found)
    sums = np.where(known, found, 0).sum(axis=0)
    counts = known.sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return GradientSNR(*(float(mean) for mean in means))


def _ratios(passes: Iterator[dict[str, Tensor]]) -> list[float]:
    """Ratios of decoder and encoder for one batch, then shares without noise."""
    n_seen = 0
    for n_seen, gradients in enumerate(passes, start=1):
        now = {part: _joined(gradients, prefixes) for part, prefixes in _PARTS.items()}
        if n_seen == 1:
            # Of the first nothing is lost where all are alike.
            first = now
            sums = {part: np.zeros_like(values) for part, values in now.items()}
            squares = {part: np.zeros_like(values) for part, values in now.items()}
        for part, values in now.items():
            apart = values - first[part]
            sums[part] += apart
            squares[part] += apart**2
    found = []
    for part in _PARTS:
        mean = sums[part] / n_seen
        spread = np.sqrt(np.maximum(squares[part] / n_seen - mean**2, 0))
        found.append(_summary(np.abs(first[part] + mean), spread))
    (decoder, decoder_noiseless), (encoder, encoder_noiseless) = found
    return [decoder, encoder, decoder_noiseless, encoder_noiseless]


def _summary(size: NDArray, spread: NDArray) -> tuple[float, float]:
    """Mean ratio of the parameters that have noise, and share of those that have none."""
    moved = (size > 0) | (spread > 0)
    if not moved.any():
        return math.nan, math.nan
    size, spread = size[moved], spread[moved]
    noisy = size < _MOST * spread
    ratio = float(np.mean(size[noisy] / spread[noisy])) if noisy.any() else math.inf
    return ratio, float(1 - noisy.mean())


def _joined(gradients: dict[str, Tensor], prefixes: tuple[str, ...]) -> NDArray:
    """All numbers of the parameters with these names, float64."""
    parts = [g.flatten() for name, g in gradients.items() if name.startswith(prefixes)]
    return np.concatenate([part.cpu().double().numpy() for part in parts] or [np.empty(0)])
