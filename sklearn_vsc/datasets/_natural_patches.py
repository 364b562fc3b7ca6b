"""Patches of whitened photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn, idctn
from sklearn.datasets import load_sample_images

from .._rows.arrays import private_random_state
from .._rows.numbers import check_count
from ._checks import check_option, check_sides

_LUMA = np.array([0.299, 0.587, 0.114])
_CUTOFF = 200 / 512  # cycles per pixel: 200 cycles per picture of 512 pixels


def load_natural_patches(
    n_samples: int = 20_000,
    *,
    patch_size: int | tuple[int, int] = 16,
    whitening: str | None = "olshausen",
    subset: str = "all",
    images: Sequence[npt.ArrayLike] | None = None,
    random_state: int | np.random.RandomState | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[Any]:
    """Draw random patches from whitened photographs.

    The photographs are the two that ship with scikit-learn
    (:func:`sklearn.datasets.load_sample_images`, 427 by 640 pixels), or your own.
    Nothing is downloaded.

    Each photograph is converted to grey (luma of the stored values, whose gamma already
    compresses the intensities), whitened, centred, and scaled to unit variance.
    A patch keeps its own mean and contrast, and its pixels are not standardised
    individually, since all positions of a patch have nearly the same statistics.

    Parameters
    ----------
    n_samples : int, default=20000
        Number of patches. Their positions are drawn uniformly, without replacement.

    patch_size : int or tuple of (int, int), default=16
        Side of a square patch, or height and width, in pixels.

    whitening : {'olshausen', None}, default='olshausen'
        - `'olshausen'`: the filter ``f * exp(-(f / f0) ** 4)`` of [1]_, [2]_, where ``f``
          is the radial frequency and ``f0 = 200 / 512``, both in cycles per pixel. The
          linear factor flattens the spectrum of natural images, whose amplitude falls as
          ``1 / f``; the exponential removes the corners of the spectrum, where noise
          dominates. At its borders the photograph is extended by its mirror image.
        - `None`: no whitening.

    subset : {'all', 'train', 'test'}, default='all'
        Randomly drawn patches overlap, so patches held out from one draw would share
        pixels with the remaining ones. `'train'` takes patches only from the left half of
        each photograph, and `'test'` only from the right half. The halves are separated first
        and then whitened and scaled as separate images, so that no pixel of one influences
        the other. `'all'` treats each photograph as a whole.

    images : sequence of array-like of shape (height, width) or (height, width, 3), default=None
        Photographs to use instead of scikit-learn's, grey or RGB.

    random_state : int, RandomState instance or None, default=None
        Determines the positions. Pass an int for the same patches in each call. With None
        they differ each time; NumPy's global generator is not used.

    dtype : {np.float32, np.float64}, default=np.float32
        Data type of the returned array.

    Returns
    -------
    X : ndarray of shape (n_samples, height * width)
        The patches, each in row-major order.

    Raises
    ------
    ImportError
        If `images` is None and Pillow, which reads the photographs, is missing.

    References
    ----------
    .. [1] Olshausen, B. A. and Field, D. J. (1996). Emergence of simple-cell receptive
       field properties by learning a sparse code for natural images. Nature 381, 607-609.
    .. [2] Olshausen, B. A. and Field, D. J. (1997). Sparse coding with an overcomplete
       basis set: a strategy employed by V1? Vision Research 37(23), 3311-3325.

    Examples
    --------
    >>> from sklearn_vsc.datasets import load_natural_patches
    >>> X = load_natural_patches(1000, patch_size=8, subset="train", random_state=0)
    >>> X.shape
    (1000, 64)
    """
    check_count(n_samples, "n_samples")
    height, width = check_sides("patch_size", patch_size)
    check_option("whitening", whitening, ("olshausen", None))
    check_option("subset", subset, ("all", "train", "test"))
    try:
        type_name = np.dtype(dtype).name
    except TypeError:
        type_name = "unknown"
    check_option("dtype", type_name, ("float32", "float64"))

    pictures = _load_photographs() if images is None else images
    windows = []
    for index, picture in enumerate(pictures):
        region = _cut(_to_grey(picture, index), subset)
        if region.shape[0] < height or region.shape[1] < width:
            raise ValueError(
                f"patch_size={patch_size!r} does not fit into the region of {region.shape[0]} by "
                f"{region.shape[1]} pixels that subset={subset!r} takes from images[{index}]; "
                "use smaller patches or larger images."
            )
        peak = np.abs(region).max()
        region = _whiten(region) if whitening == "olshausen" else region - region.mean()
        scale = region.std()
        if scale <= 1e-10 * peak:  # a constant image leaves rounding errors instead of zeros
            raise ValueError(
                f"images[{index}] has no contrast in the region for subset={subset!r}, so it "
                "cannot be scaled to unit variance. Leave it out."
            )
        windows.append(np.lib.stride_tricks.sliding_window_view(region / scale, (height, width)))
    if not windows:
        raise ValueError("images is empty; pass at least one image, or None.")

    counts = [view.shape[0] * view.shape[1] for view in windows]
    ends = np.cumsum(counts)
    if n_samples > ends[-1]:
        raise ValueError(
            f"n_samples={n_samples} is more than the {ends[-1]} possible positions of a patch "
            f"with patch_size={patch_size!r} in subset={subset!r}; "
            f"n_samples must be at most {ends[-1]}."
        )
    chosen = private_random_state(random_state).choice(ends[-1], size=n_samples, replace=False)
    X = np.empty((n_samples, height, width), dtype=type_name)
    for view, count, end in zip(windows, counts, ends, strict=True):
        here = (chosen < end) & (chosen >= end - count)
        X[here] = view[np.unravel_index(chosen[here] - (end - count), view.shape[:2])]
    return X.reshape(n_samples, height * width)


def _load_photographs() -> list[npt.NDArray[np.uint8]]:
    try:
        return load_sample_images().images
    except ImportError as error:
        raise ImportError(
            "load_natural_patches needs Pillow to read scikit-learn's photographs; "
            'install it with: pip install "sklearn-vsc[plot]"'
        ) from error


def _to_grey(picture: npt.ArrayLike, index: int) -> npt.NDArray[np.float64]:
    picture = np.asarray(picture)
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError(
            f"images[{index}] has shape {picture.shape}; it must be (height, width) or "
            "(height, width, 3)."
        )
    if picture.dtype.kind not in "buif" or not np.isfinite(picture).all():
        raise ValueError(f"images[{index}] must contain real, finite numbers.")
    values = picture.astype(np.float64)
    return values @ _LUMA if picture.ndim == 3 else values


def _cut(picture: npt.NDArray[np.float64], subset: str) -> npt.NDArray[np.float64]:
    """Return the columns of a picture that belong to a subset."""
    # Halves, because a narrower strip beside the flower would show only blurred background.
    middle = picture.shape[1] // 2
    if subset == "train":
        return picture[:, :middle]
    if subset == "test":
        return picture[:, middle:]
    return picture


def _whiten(picture: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Apply the filter f exp(-(f / f0)^4).

    The cosine transform is the Fourier transform of the picture extended by its mirror image,
    which is continuous at the borders, where a periodic extension would jump.
    """
    vertical, horizontal = (np.arange(n) / (2 * n) for n in picture.shape)
    frequency = np.hypot(vertical[:, None], horizontal[None, :])
    gain = frequency * np.exp(-((frequency / _CUTOFF) ** 4))
    return idctn(gain * dctn(picture, norm="ortho"), norm="ortho")
