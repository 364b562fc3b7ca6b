"""Fashion-MNIST, from files in the IDX format or from OpenML."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

from ._checks import check_option

# Where the Debian package dataset-fashion-mnist installs the files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_SIDE = 28
# OpenML has a single table, with the training images first.
_N_TRAIN, _N_ALL = 60_000, 70_000
_UNSIGNED_BYTES = 8  # data type code in the IDX format

_TARGET_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_DESCR = """\
Fashion-MNIST
-------------

Grey images of articles from the shop Zalando: 60,000 for training and 10,000 for testing, with
28 by 28 pixels, in ten classes of equal size. Pixels lie in [0, 1]; the background is 0.
Published under the MIT licence at https://github.com/zalandoresearch/fashion-mnist

Xiao, H., Rasul, K. and Vollgraf, R. (2017). Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms. arXiv:1708.07747.
"""


def fetch_fashion_mnist(
    *,
    subset: str = "train",
    data_home: str | os.PathLike[str] | None = None,
    return_X_y: bool = False,
) -> Bunch | tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Load Fashion-MNIST [1]_: 28 by 28 pictures of clothes, shoes and bags.

    =================   =========================
    Classes                                    10
    Samples total       60,000 train, 10,000 test
    Dimensionality                            784
    Features            real, between 0 and 1
    =================   =========================

    Parameters
    ----------
    subset : {'train', 'test', 'all'}, default='train'
        The published split; `'all'` returns the training pictures followed by the test pictures.

    data_home : str or path-like, default=None
        Folder with the four published files, ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``,
        each unpacked or as ``.gz``. Nothing is downloaded then. None uses the folder of the Debian
        package ``dataset-fashion-mnist`` if it is installed, and otherwise
        :func:`sklearn.datasets.fetch_openml`, which downloads the data once and caches it.

    return_X_y : bool, default=False
        Whether to return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, 784), float32
            Pixels in [0, 1], each picture in row-major order.
        images : ndarray of shape (n_samples, 28, 28), float32
            The same pixels in the shape of images.
        target : ndarray of shape (n_samples,), int64
            Class of each picture, 0 to 9.
        target_names : list of str
            Names of the ten classes.
        DESCR : str
            Description of the data.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    FileNotFoundError
        If a file is missing from `data_home`, or from the folder of the Debian package.

    ValueError
        If a file is damaged or contains something else.

    References
    ----------
    .. [1] Xiao, H., Rasul, K. and Vollgraf, R. (2017). Fashion-MNIST: a Novel Image Dataset
       for Benchmarking Machine Learning Algorithms. arXiv:1708.07747.

    Examples
    --------
    >>> from sklearn_vsc.datasets import fetch_fashion_mnist
    >>> clothes = fetch_fashion_mnist(subset="test")  # doctest: +SKIP
    >>> clothes.data.shape, clothes.images.shape  # doctest: +SKIP
    ((10000, 784), (10000, 28, 28))
    >>> clothes.target_names[clothes.target[0]]  # doctest: +SKIP
    'Ankle boot'
    """
    check_option("subset", subset, ("train", "test", "all"))
    if data_home is not None:
        pixels, target = _from_folder(Path(data_home).expanduser(), subset)
    elif DEBIAN_FOLDER.is_dir():
        pixels, target = _from_folder(DEBIAN_FOLDER, subset)
    else:
        pixels, target = _from_openml(subset)
    data = pixels.reshape(-1, _SIDE**2).astype(np.float32)
    data /= 255
    target = target.astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        images=data.reshape(-1, _SIDE, _SIDE),
        target=target,
        target_names=list(_TARGET_NAMES),
        DESCR=_DESCR,
    )


def _from_folder(folder: Path, subset: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Read pixels and classes from the published files."""
    parts = [_read_pair(folder, part) for part in _FILES if subset in (part, "all")]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read_pair(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    images_path, labels_path = (_find(folder, name) for name in _FILES[part])
    images, labels = _read_idx(images_path, n_axes=3), _read_idx(labels_path, n_axes=1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise ValueError(
            f"{images_path} contains pictures of {images.shape[1]} by {images.shape[2]} pixels; "
            f"Fashion-MNIST has {_SIDE} by {_SIDE} pixels."
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} contains {len(images)} pictures, but {labels_path} contains "
            f"{len(labels)} labels; they must come from the same publication."
        )
    if len(labels) and labels.max() >= len(_TARGET_NAMES):
        raise ValueError(
            f"{labels_path} contains the label {labels.max()}; labels must be from 0 to 9."
        )
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder} contains neither {name} nor {name}.gz. As data_home, pass the folder with the "
        "four files from https://github.com/zalandoresearch/fashion-mnist"
    )


def _read_idx(path: Path, n_axes: int) -> npt.NDArray[np.uint8]:
    """Read an array of unsigned bytes; the header is two zeros, type, number of axes and sizes."""
    content = _unpacked(path)
    magic = bytes((0, 0, _UNSIGNED_BYTES, n_axes))
    start = len(magic) + 4 * n_axes
    if content[: len(magic)] != magic[: len(content)]:
        raise ValueError(
            f"{path} does not start like an IDX file of unsigned bytes with {n_axes} axes: "
            f"expected {magic.hex(' ')}, got {content[: len(magic)].hex(' ')}."
        )
    if len(content) < start:
        raise ValueError(
            f"{path} is truncated: it ends after {len(content)} bytes, within its header."
        )
    shape = tuple(int(n) for n in np.frombuffer(content[len(magic) : start], dtype=">u4"))
    n_numbers = len(content) - start
    if n_numbers != math.prod(shape):
        what = "is truncated" if n_numbers < math.prod(shape) else "is too long"
        raise ValueError(
            f"{path} {what}: its header announces {math.prod(shape)} numbers, but it contains "
            f"{n_numbers}."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not an intact gzip file: {error}") from error


def _from_openml(subset: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Let scikit-learn download pixels and classes, or read them from its cache."""
    try:
        pixels, target = fetch_openml(
            "Fashion-MNIST",
            version=1,
            as_frame=False,
            return_X_y=True,
            # scikit-learn's faster reader needs pandas, which is optional here.
            parser="pandas" if find_spec("pandas") else "liac-arff",
        )
    except Exception as error:
        error.add_note(
            "fetch_fashion_mnist could not get Fashion-MNIST from OpenML. Without a network, pass "
            "a folder with the four files from https://github.com/zalandoresearch/fashion-mnist "
            "as data_home."
        )
        raise
    if pixels.shape != (_N_ALL, _SIDE**2):
        raise ValueError(
            f"OpenML returned a table of shape {pixels.shape}; expected {(_N_ALL, _SIDE**2)}. "
            "Pass data_home to read local files."
        )
    rows = {"train": slice(_N_TRAIN), "test": slice(_N_TRAIN, None), "all": slice(None)}[subset]
    # OpenML stores the classes as text.
    return pixels[rows], target[rows].astype(np.int64)
