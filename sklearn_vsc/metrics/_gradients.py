"""Signal-to-noise ratio of training gradients."""

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

# If the mean is at least this many times the standard deviation, the variation is only rounding.
_MOST = 1e5
_PARTS = {"decoder": ("decoder.",), "encoder": ("encoder.", "heads.")}


@dataclass(frozen=True)
class GradientSNR:
    """Signal-to-noise ratios of the training gradient.

    Attributes
    ----------
    decoder : float
        Ratio for the decoder's parameters; if the decoder is linear, these are the dictionary and
        an intercept.
    encoder : float
        Ratio for the parameters of the inference network.
    decoder_noiseless, encoder_noiseless : float
        Share of the parameters whose gradient has no noise, among those that have a gradient; they
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
    """Signal-to-noise ratio of the training gradient, for the decoder and the encoder.

    The gradient of the training loss of a batch is computed `n_repeats` times, with new draws from
    the posterior each time. The ratio of a parameter is the absolute mean of its gradient over the
    standard deviation (dividing by `n_repeats`); the ratio of a network is the mean over its
    parameters and then over batches.

    Parameters
    ----------
    estimator : ThresholdedVSC, SparseVAE or SCVAE
        Fitted estimator; it is not changed. The loss is its training loss with its current
        parameters, after any warm-up and before gradients are clipped.

    X : array-like of shape (n_samples, n_features)
        Rows; missing entries are NaN. Rows beyond the last full batch are left out.

    n_repeats : int, default=100
        Number of gradients computed for each batch, at least 2. The published figures used 1000.
        Pure noise has a ratio of about ``sqrt(2 / (pi * n_repeats))``, which is 0.08 for 100.

    batch_size : int, default=100
        Number of rows in a batch.

    n_draws : int, default=None
        Number of draws per row; None takes the estimator's. It has no effect if training makes
        no draws or, as for SCVAE, always one.

    random_state : int, RandomState instance or None, default=None
        Determines the draws.

    Returns
    -------
    snr : GradientSNR
        Result with ``decoder`` and ``encoder``. Parameters whose gradient is always zero are left
        out, and so are those whose gradient does not vary, which ``decoder_noiseless`` and
        ``encoder_noiseless`` count: in closed-form training, with ``gradient='exact'``, all
        parameters are like this and the ratio is infinite. NaN if no parameter has a gradient.

    Raises
    ------
    TypeError
        If the estimator does not train a network by gradients.

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
    """Return the ratios of decoder and encoder for one batch, then their shares without noise."""
    n_seen = 0
    for n_seen, gradients in enumerate(passes, start=1):
        now = {part: _joined(gradients, prefixes) for part, prefixes in _PARTS.items()}
        if n_seen == 1:
            # Sums of differences to the first lose no digits if all gradients are alike.
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
    """Return the mean ratio of the parameters with noise, and the share of those without."""
    moved = (size > 0) | (spread > 0)
    if not moved.any():
        return math.nan, math.nan
    size, spread = size[moved], spread[moved]
    noisy = size < _MOST * spread
    ratio = float(np.mean(size[noisy] / spread[noisy])) if noisy.any() else math.inf
    return ratio, float(1 - noisy.mean())


def _joined(gradients: dict[str, Tensor], prefixes: tuple[str, ...]) -> NDArray:
    """Return all gradient values for parameters with these name prefixes, in float64."""
    parts = [g.flatten() for name, g in gradients.items() if name.startswith(prefixes)]
    return np.concatenate([part.cpu().double().numpy() for part in parts] or [np.empty(0)])
