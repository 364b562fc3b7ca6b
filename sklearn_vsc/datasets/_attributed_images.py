"""Pictures in a folder, with a file that lists the attributes of each."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.utils import Bunch

from .._rows.numbers import check_count
from ._checks import check_sides

_VALUES = {"-1": 0, "0": 0, "1": 1}
# Pillow's names for image modes with at most eight bits per channel.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class _Table:
    """Contents of an attributes file, and the line number of each picture in it."""

    path: Path
    attributes: list[str]
    filenames: list[str]
    lines: list[int]
    target: npt.NDArray[np.int64]


def load_attributed_images(
    folder: str | os.PathLike[str],
    attributes: str | os.PathLike[str],
    *,
    crop: int | tuple[int, int] | None = None,
    size: int | tuple[int, int] | None = None,
    color: bool = True,
    n_images: int | None = None,
    return_X_y: bool = False,
) -> Bunch | tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Load pictures from a folder, with their attributes from a file.

    Works with CelebA [1]_, whose `list_attr_celeba.txt` it reads, and with any folder of pictures
    that has a similar table. Pictures are read one by one into a single float32 array: 150,000
    pictures with 3 channels of 64 by 64 pixels take 7.4 GB.

    Parameters
    ----------
    folder : str or path-like
        Folder with the pictures, in any format that Pillow reads.

    attributes : str or path-like
        File with the attributes, in UTF-8. Either in the format of CelebA: the number of pictures
        on the first line, the names of the attributes on the second, then one line per picture
        with its file name and, separated by spaces, 1 or -1 for each attribute. Or comma-separated
        with a header: file names in the first column and one attribute in each further column.
        A value of 1 means that the picture has the attribute, -1 or 0 that it does not.

    crop : int or tuple of (int, int), default=None
        Side of the square, or height and width, in pixels, to crop from the centre of each
        picture. None keeps the whole picture.

    size : int or tuple of (int, int), default=None
        Side, or height and width, to which the (cropped) picture is resized (bilinear, averaging
        over the area that a pixel covers). None does not resize; the pictures must then all have
        the same size.

    color : bool, default=True
        Whether to return three channels, red, green and blue (all equal for grey pictures), or
        a single grey channel (the luma of ITU-R 601).

    n_images : int, default=None
        Number of pictures to load, from the start of the file; None loads all.

    return_X_y : bool, default=False
        Whether to return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, channels * height * width), float32
            Pixels in [0, 1], channel by channel, each in row-major order, as expected with the
            `image_shape` parameter of the estimators.
        images : ndarray of shape (n_samples, channels, height, width), float32
            The same pixels in the shape of images.
        image_shape : tuple of (int, int, int)
            Channels, height and width.
        target : ndarray of shape (n_samples, n_attributes), int64
            1 if a picture has an attribute, 0 otherwise.
        target_names : list of str
            Names of the attributes.
        filenames : list of str
            File name of each picture, as given in the attributes file.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    FileNotFoundError
        If the folder, the attributes file or a picture listed in it does not exist.

    ImportError
        If Pillow, which comes with the extra ``images``, is missing.

    ValueError
        If the attributes are not in one of the two formats, if a picture is damaged, has more than
        eight bits per channel, is smaller than `crop` or differs in size from the others, or if a
        parameter is out of range. The message names the file, and the line for attributes.

    See Also
    --------
    sklearn.datasets.load_files : Load files from one folder per class.

    References
    ----------
    .. [1] Liu, Z., Luo, P., Wang, X. and Tang, X. (2015). Deep learning face attributes in the
       wild. International Conference on Computer Vision.

    Examples
    --------
    >>> from sklearn_vsc.datasets import load_attributed_images
    >>> faces = load_attributed_images(
    ...     "img_align_celeba", "list_attr_celeba.txt", crop=140, size=64, n_images=10_000
    ... )  # doctest: +SKIP
    >>> faces.data.shape, faces.image_shape, faces.target.shape  # doctest: +SKIP
    ((10000, 12288), (3, 64, 64), (10000, 40))
    """
    cut = None if crop is None else check_sides("crop", crop)
    resized = None if size is None else check_sides("size", size)
    if n_images is not None:
        check_count(n_images, "n_images")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"folder={str(folder)!r} does not exist or is not a folder.")
    table = _read_attributes(Path(attributes).expanduser())
    n_rows = len(table.filenames) if n_images is None else int(n_images)
    if n_rows > len(table.filenames):
        raise ValueError(
            f"n_images={n_images} is more than the {len(table.filenames)} pictures listed in "
            f"{table.path}."
        )
    images = _read_images(folder, table, n_rows, cut, resized, "RGB" if color else "L")
    data, target = images.reshape(n_rows, -1), table.target[:n_rows]
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        images=images,
        image_shape=images.shape[1:],
        target=target,
        target_names=table.attributes,
        filenames=table.filenames[:n_rows],
    )


# --- the file of attributes


def _read_attributes(path: Path) -> _Table:
    if not path.is_file():
        raise FileNotFoundError(f"attributes={str(path)!r} does not exist or is not a file.")
    try:
        # Some programs start a UTF-8 file with a byte order mark.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}") from error
    first = lines[0].strip() if lines else ""
    if first.isdecimal():
        rows = [(number, line.split()) for number, line in enumerate(lines, start=1)][1:]
        names = rows[0][1] if rows else []
    elif "," in first:
        rows = list(_comma_separated(path, lines))
        names = rows[0][1][1:]
    else:
        raise ValueError(
            f"{path}, line 1: expected the number of pictures, as in CelebA, or a header of "
            f"comma-separated names; got {first[:60]!r}."
        )
    if not names or max(Counter(names).values()) > 1:
        raise ValueError(
            f"{path}: expected the names of the attributes, without duplicates, on line "
            f"{rows[0][0] if rows else 2}; got {names!r}."
        )
    table = _tabulated(path, names, [row for row in rows[1:] if row[1]])
    if first.isdecimal() and int(first) != len(table.filenames):
        raise ValueError(
            f"{path}, line 1 says {int(first)} pictures, but {len(table.filenames)} follow: "
            "the file is truncated, or the number is wrong."
        )
    return table


def _comma_separated(path: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the values of each line."""
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            yield reader.line_num, [value.strip() for value in row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def _tabulated(path: Path, names: list[str], rows: list[tuple[int, list[str]]]) -> _Table:
    """Check each line and collect the values in an array."""
    target = np.empty((len(rows), len(names)), dtype=np.int64)
    seen: dict[str, int] = {}
    for index, (line, (filename, *values)) in enumerate(rows):
        if len(values) != len(names):
            raise ValueError(
                f"{path}, line {line}: expected a file name and {len(names)} values, one for each "
                f"attribute; got {len(values)} values."
            )
        for name, value in zip(names, values, strict=True):
            if value not in _VALUES:
                raise ValueError(
                    f"{path}, line {line}: the attribute {name!r} must be 1, 0 or -1, "
                    f"got {value!r}."
                )
        if filename in seen:
            raise ValueError(
                f"{path}, line {line}: {filename} was already listed on line {seen[filename]}."
            )
        seen[filename] = line
        target[index] = [_VALUES[value] for value in values]
    if not rows:
        raise ValueError(f"{path} lists no pictures.")
    return _Table(path, names, list(seen), list(seen.values()), target)


# --- the pictures


def _read_images(
    folder: Path,
    table: _Table,
    n_images: int,
    crop: tuple[int, int] | None,
    size: tuple[int, int] | None,
    mode: str,
) -> npt.NDArray[np.float32]:
    """Read pictures one by one into an array of shape (n_images, channels, height, width)."""
    images: npt.NDArray[np.float32] | None = None
    named = zip(table.filenames[:n_images], table.lines[:n_images], strict=True)
    for index, (filename, line) in enumerate(named):
        path = folder / filename
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}, which {table.path} lists on line {line}, does not exist. Pass the folder "
                "that contains the pictures as `folder`."
            )
        image = _read_image(path, crop, size, mode)
        if images is None:
            images = np.empty((n_images, *image.shape), dtype=np.float32)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{path} has {image.shape[1]} by {image.shape[2]} pixels, but the pictures before "
                f"it have {images.shape[2]} by {images.shape[3]}: set `crop` or `size`."
            )
        np.divide(image, np.float32(255), out=images[index])
    assert images is not None
    return images


def _read_image(
    path: Path, crop: tuple[int, int] | None, size: tuple[int, int] | None, mode: str
) -> npt.NDArray[np.uint8]:
    """Read, crop and resize one picture; return it with shape (channels, height, width)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "load_attributed_images needs Pillow to read pictures; "
            'install it with: pip install "sklearn-vsc[images]"'
        ) from error
    try:
        with Image.open(path) as file:
            image, stored = file.convert(mode), file.mode
    # Each file format raises its own kinds of errors for damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an intact picture: {error}") from error
    if stored not in _MODES:
        raise ValueError(
            f"{path} does not have eight bits per channel (Pillow calls its mode {stored!r}): "
            "convert it."
        )
    if crop is not None:
        height, width = crop
        if height > image.height or width > image.width:
            raise ValueError(
                f"{path} has {image.height} by {image.width} pixels, fewer than crop={crop}."
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if size is not None:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return np.moveaxis(pixels, -1, 0)
