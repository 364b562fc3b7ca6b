"""Metrics for reconstructions of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array
from torch import Tensor

from .._rows.images import check_image_shape

# Radius of SSIM's Gaussian window, in standard deviations.
_WINDOW_REACH = 3.5
# Number of images per batch passed to a network.
_BATCH = 64


def psnr(
    X: ArrayLike, X_hat: ArrayLike, *, data_range: float | None = None, per_image: bool = False
) -> float | NDArray:
    """Peak signal-to-noise ratio of reconstructions (PSNR), in decibels.

    For each image, 10 log10(data_range^2 / mean squared error); infinite for an image that is
    reproduced exactly.

    Parameters
    ----------
    X : array-like of shape (n_images, ...)
        Images, or rows of any kind.

    X_hat : array-like of the shape of X
        Their reconstructions.

    data_range : float, default=None
        Largest possible difference between two values of X: 1 for X in [0, 1], 255 for bytes.
        None takes the difference between the maximum and minimum of X. Set it when comparing
        results across data sets.

    per_image : bool, default=False
        Whether to return the ratio of each image instead of their mean.

    Returns
    -------
    psnr : float, or ndarray of shape (n_images,)
        Mean ratio over the images (higher is better), or the ratio of each image.

    Examples
    --------
    >>> from sklearn_vsc.metrics import psnr
    >>> psnr([[0.0, 1.0]], [[0.1, 0.9]], data_range=1)
    20.0
    """
    X, X_hat = _check_pair(X, X_hat, ("X", "X_hat"))
    data_range = _check_data_range(data_range, X)
    error = np.mean((X - X_hat).reshape(len(X), -1) ** 2, axis=1)
    with np.errstate(divide="ignore"):
        ratios = 20 * np.log10(data_range) - 10 * np.log10(error)
    return _mean_or_all(ratios, per_image)


def ssim(
    images: ArrayLike,
    other: ArrayLike,
    *,
    image_shape: tuple[int, int, int] | None = None,
    data_range: float | None = None,
    sigma: float = 1.5,
    per_image: bool = False,
) -> float | NDArray:
    """Structural similarity of two sets of images (SSIM), computed by scikit-image.

    Uses the settings of Wang et al. [1]_: a Gaussian window, and moments without Bessel's
    correction; positions at which the window extends beyond the border are left out.

    Parameters
    ----------
    images : array-like of shape (n_images, channels, height, width), (n_images, height, width) \
or (n_images, n_features)
        Images; flat rows need `image_shape`.

    other : array-like of the same shape as `images`
        Images to compare with, one for each of `images`.

    image_shape : tuple of three ints, default=None
        (channels, height, width) of flat rows.

    data_range : float, default=None
        Largest possible difference between two values of `images`. None takes the difference
        between their maximum and minimum.

    sigma : float, default=1.5
        Standard deviation of the window, which is 11 pixels wide by default. Smaller images need
        a smaller window.

    per_image : bool, default=False
        Whether to return the similarity of each pair instead of their mean.

    Returns
    -------
    ssim : float, or ndarray of shape (n_images,)
        Mean similarity, or the similarity of each pair; at most 1, for identical images.

    Raises
    ------
    ImportError
        If scikit-image, which the extra ``images`` installs, is missing.

    References
    ----------
    .. [1] Wang, Z., Bovik, A., Sheikh, H. and Simoncelli, E. (2004). Image quality assessment:
       from error visibility to structural similarity. IEEE Transactions on Image Processing.
    """
    images, other = _check_pair(images, other, ("images", "other"))
    images, other = _as_images(images, image_shape), _as_images(other, image_shape)
    data_range = _check_data_range(data_range, images)
    window = 2 * int(_WINDOW_REACH * sigma + 0.5) + 1
    if not sigma > 0 or window > min(images.shape[-2:]):
        raise ValueError(
            "The 'sigma' parameter must be positive and its window no wider than the images, "
            f"{images.shape[-2]}x{images.shape[-1]} pixels; got {sigma!r}, whose window is "
            f"{window} pixels wide."
        )
    with _extra("ssim", "scikit-image", "images"):
        structural_similarity = import_module("skimage.metrics").structural_similarity
    values = [
        structural_similarity(
            one,
            another,
            data_range=data_range,
            channel_axis=0,
            gaussian_weights=True,
            sigma=sigma,
            use_sample_covariance=False,
        )
        for one, another in zip(images, other, strict=True)
    ]
    return _mean_or_all(np.array(values), per_image)


def frechet_distance(features: ArrayLike, other: ArrayLike) -> float:
    """Squared Frechet distance between normal distributions with the moments of two samples.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` with means m and covariances C (dividing by
    n - 1). On features of an Inception network this is the FID. Covariances may be singular: the
    trace of the root is computed as a sum of singular values, without a matrix square root.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        First sample, with at least two rows.

    other : array-like of shape (n_other, n_features)
        Second sample, with at least two rows.

    Returns
    -------
    distance : float
        Zero for samples with equal moments. Small samples bias it upwards, so only compare
        distances computed from samples of the same size.

    References
    ----------
    Heusel, M. et al. (2017). GANs trained by a two time-scale update rule converge to a local
    Nash equilibrium. Advances in Neural Information Processing Systems.

    Examples
    --------
    >>> from sklearn_vsc.metrics import frechet_distance
    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    features = check_array(features, dtype=np.float64, ensure_min_samples=2, input_name="features")
    other = check_array(other, dtype=np.float64, ensure_min_samples=2, input_name="other")
    if features.shape[1] != other.shape[1]:
        raise ValueError(
            "features and other must have the same number of columns; got "
            f"{features.shape[1]} and {other.shape[1]}."
        )
    mean, factor = _mean_and_factor(features)
    other_mean, other_factor = _mean_and_factor(other)
    # C1 = F1'F1 and C2 = F2'F2: the eigenvalues of C1 C2 are the squared singular values of F1 F2'.
    root = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
    spread = np.sum(factor**2) + np.sum(other_factor**2) - 2 * root
    return float(np.sum((mean - other_mean) ** 2) + max(spread, 0.0))


def _mean_and_factor(sample: NDArray) -> tuple[NDArray, NDArray]:
    """Return the mean and a factor F of the covariance F'F."""
    mean = sample.mean(axis=0)
    factor: Any = np.linalg.qr((sample - mean) / math.sqrt(len(sample) - 1), mode="r")
    return mean, factor


def lpips(
    images: ArrayLike,
    other: ArrayLike,
    *,
    image_shape: tuple[int, int, int] | None = None,
    net: str = "alex",
) -> float:
    """Learned perceptual distance between two sets of images (LPIPS), computed by torchmetrics.

    Parameters
    ----------
    images, other : array-like of shape (n_images, channels, height, width), \
(n_images, height, width) or (n_images, n_features)
        Images with values in [0, 1] and 1 or 3 channels, and images of the same shape to compare
        with, which are clipped to [0, 1]; flat rows need `image_shape`.

    image_shape : tuple of three ints, default=None
        (channels, height, width) of flat rows.

    net : {'alex', 'vgg', 'squeeze'}, default='alex'
        The network that computes features of the images. torchvision loads its weights, and
        downloads them if they are not in its cache.

    Returns
    -------
    lpips : float
        Mean distance; lower is better.

    Raises
    ------
    ImportError
        If torchmetrics or torchvision, which the extra ``perceptual`` installs, is missing.
    OSError
        If the weights can be neither found nor downloaded.
    """
    batches = _rgb_batches(images, other, image_shape)
    with _extra("lpips", "torchmetrics", "perceptual"):
        metric = import_module("torchmetrics.image.lpip").LearnedPerceptualImagePatchSimilarity(
            net_type=net, normalize=True
        )
        for one, another in batches:
            metric.update(one, another)
        return float(metric.compute())


def rfid(
    images: ArrayLike, other: ArrayLike, *, image_shape: tuple[int, int, int] | None = None
) -> float:
    """Frechet inception distance of reconstructions from their images, computed by torchmetrics.

    For your own features, use :func:`frechet_distance`.

    Parameters
    ----------
    images, other : array-like of shape (n_images, channels, height, width), \
(n_images, height, width) or (n_images, n_features)
        Images with values in [0, 1] and 1 or 3 channels, and their reconstructions, which are
        clipped to [0, 1]; flat rows need `image_shape`.

    image_shape : tuple of three ints, default=None
        (channels, height, width) of flat rows.

    Returns
    -------
    rfid : float
        The distance; lower is better.

    Raises
    ------
    ImportError
        If torchmetrics or torch-fidelity, which the extra ``perceptual`` installs, is missing.
    OSError
        If the weights can be neither found nor downloaded.
    """
    batches = _rgb_batches(images, other, image_shape)
    with _extra("rfid", "torchmetrics", "perceptual"):
        metric = import_module("torchmetrics.image.fid").FrechetInceptionDistance(normalize=True)
        for one, another in batches:
            metric.update(one, real=True)
            metric.update(another, real=False)
        return float(metric.compute())


@contextmanager
def _extra(name: str, library: str, extra: str) -> Iterator[None]:
    """Explain what to do if an optional library, or the weights that it needs, are missing."""
    try:
        # Networks initialise their weights at random before they load trained ones.
        with torch.random.fork_rng(devices=[]):
            yield
    except ImportError as error:
        raise ImportError(
            f'{name} needs {library} ({error}); install it with: pip install "sklearn-vsc[{extra}]"'
        ) from error
    except OSError as error:
        raise OSError(
            f"{name} could not load the weights of its network: {error}. Put them where {library} "
            "looks for them, or connect to the internet."
        ) from error


def _check_pair(X: ArrayLike, other: ArrayLike, names: tuple[str, str]) -> tuple[NDArray, NDArray]:
    """Return two arrays of the same shape in float64, since differences of bytes would overflow."""
    X, other = (
        check_array(part, dtype=np.float64, allow_nd=True, input_name=name)
        for part, name in zip((X, other), names, strict=True)
    )
    if X.shape != other.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape; got {X.shape} and {other.shape}."
        )
    return X, other


def _check_data_range(data_range: float | None, X: NDArray) -> float:
    """Return the given range, or the range of X if none is given."""
    found = float(np.ptp(X)) if data_range is None else data_range
    if not (isinstance(found, Real) and math.isfinite(found) and found > 0):
        raise ValueError(
            "The 'data_range' parameter must be a positive number"
            + (", and not None where all values are equal" if data_range is None else "")
            + f"; got {data_range!r}."
        )
    return float(found)


def _as_images(X: NDArray, image_shape: tuple[int, int, int] | None) -> NDArray:
    """Return the images with shape (n_images, channels, height, width)."""
    if X.ndim == 2:
        return X.reshape(len(X), *check_image_shape(image_shape, X.shape[1], "flat rows"))
    if X.ndim not in (3, 4):
        raise ValueError(
            "Images must be of shape (n_images, channels, height, width), (n_images, height, "
            f"width), or flat rows with 'image_shape'; got an array of shape {X.shape}."
        )
    return X[:, None] if X.ndim == 3 else X


def _rgb_batches(
    images: ArrayLike, other: ArrayLike, image_shape: tuple[int, int, int] | None
) -> list[tuple[Tensor, Tensor]]:
    """Return batches of images with three channels, as networks expect them."""
    images, other = _check_pair(images, other, ("images", "other"))
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"images must have values in [0, 1]; got {images.min():.3g} to {images.max():.3g}."
        )
    images, other = _as_images(images, image_shape), _as_images(other, image_shape)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels; got {images.shape[1]}.")
    one, another = (
        torch.from_numpy(part).float().clamp(0, 1).expand(-1, 3, -1, -1) for part in (images, other)
    )
    return list(zip(one.split(_BATCH), another.split(_BATCH), strict=True))


def _mean_or_all(values: NDArray, per_image: bool) -> float | NDArray:
    return values if per_image else float(values.mean())
