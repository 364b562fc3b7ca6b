"""Model folders: tensors and a configuration, written completely or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

TENSORS, CONFIG = "model.safetensors", "config.json"
_FORMAT, _VERSION = "sklearn-vsc", 2
# In bytes; enough for a history of half a million epochs.
_LARGEST_CONFIG = 2**26
# Flags that only some systems have. A link created since the check is not followed either.
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# From linux/fs.h and fcntl.h.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _checked(path: Any) -> str | os.PathLike[str]:
    """Return the path; raise an error if it is not a valid one."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in str(path):
        raise TypeError(f"path must be a string or path-like, without null bytes; got {path!r}.")
    return path


def write_folder(
    path: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a model into a folder, replacing an existing model, if any.

    Both files are complete and on disk before the folder gets its name.

    Parameters
    ----------
    path : str or path-like
        The folder; its parent must exist.
    config : dict
        Plain data that can be stored as JSON.
    tensors : dict of str to Tensor
        Tensors, none of which may share memory.

    Raises
    ------
    ValueError
        If the configuration is too large to be read back.
    OSError
        If the folder cannot be written, or the path exists and is not a saved model.
    """
    # If the path is a link, its target is written.
    target = Path(os.path.realpath(_checked(path)))
    _check_replaceable(target)
    content = safetensors.torch.save(tensors)
    files = {
        TENSORS: content,
        CONFIG: _config_bytes(config, content, _checksum(config, content, _VERSION), _VERSION),
    }
    if len(files[CONFIG]) > _LARGEST_CONFIG:
        raise ValueError(
            f"The configuration has {len(files[CONFIG])} bytes, but at most {_LARGEST_CONFIG} are "
            "allowed: there are too many feature names, or the history is too long."
        )
    new = target.parent / f".saving-{secrets.token_hex(8)}"
    os.mkdir(new)
    try:
        for name, content in files.items():
            with open(new / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(new)
        _put_in_place(new, target)
        _sync_folder(target.parent)
    finally:
        # This name now belongs to nothing, to the previous model, or to an incomplete one.
        shutil.rmtree(new, ignore_errors=True)


def read_folder(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors that were passed to `write_folder`.

    Raises
    ------
    ValueError
        If the folder contains no model, a damaged model, or a model in a newer format.
    OSError
        If a file cannot be read.
    """
    folder = Path(_checked(path))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; pass the folder that 'save' has written.")
    written = _read(folder / CONFIG, _LARGEST_CONFIG)
    config = _parse(written)
    if config is None or config.get("format") != _FORMAT:
        raise ValueError(f"{folder / CONFIG} is not the configuration of a sklearn-vsc model.")
    version = config.pop("format_version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"{folder / CONFIG} has no valid 'format_version'; got {version!r}.")
    if version > _VERSION:
        raise ValueError(
            f"{folder} has format version {version}, but this sklearn-vsc only reads versions up "
            f"to {_VERSION}: upgrade sklearn-vsc."
        )
    size = config.pop("tensors_size", None)
    content = _read(folder / TENSORS, size if type(size) is int else 0)
    checksum = config.pop("checksum", None)
    del config["format"]
    # The bytes themselves are compared, since a change that does not affect the JSON counts too.
    same_bytes = (
        len(content) == size and _config_bytes(config, content, checksum, version) == written
    )
    if not same_bytes or checksum != _checksum(config, content, version):
        raise ValueError(
            f"The checksum of {folder} does not match: its files are damaged or were changed after "
            "'save'."
        )
    try:
        return config, safetensors.torch.load(content)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder / TENSORS} is not a safetensors file: {error}") from error


# --- the contents of the files


def _checksum(config: dict[str, Any], tensors: bytes, version: int) -> str:
    """Return the SHA-256 digest of both files, with a configuration that has no checksum."""
    digest = hashlib.sha256(_config_bytes(config, tensors, None, version))
    digest.update(tensors)
    return digest.hexdigest()


def _config_bytes(config: dict[str, Any], tensors: bytes, checksum: Any, version: int) -> bytes:
    head = {"format": _FORMAT, "format_version": version}
    tail = {"tensors_size": len(tensors), "checksum": checksum}
    text = json.dumps(head | config | tail, indent=1, allow_nan=False)
    return (text + "\n").encode("ascii")


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object that these bytes encode, or None if they do not."""
    try:
        config = json.loads(content.decode("ascii"))
    # Text that is nested too deeply, or bytes that are not text, are not a configuration either.
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


# --- files


def _read(path: Path, largest: int) -> bytes:
    """Read a regular file, without following links or waiting for devices or pipes."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path} is not a plain file, unlike the files of a saved model.")
    descriptor = os.open(path, os.O_RDONLY | _NOT_FOLLOWED)
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > largest:
            raise ValueError(f"{path} has {size} bytes; at most {largest} are expected.")
        return file.read(largest + 1)


def _check_replaceable(target: Path) -> None:
    """Raise an error if writing here would overwrite anything other than a saved model."""
    if not target.exists():
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"The folder {target.parent} does not exist; create it before you save into it."
            )
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, but 'save' writes a folder.")
    names = set(os.listdir(target))
    if not names:
        return
    if names == {TENSORS, CONFIG}:
        config = _parse(_read(target / CONFIG, _LARGEST_CONFIG))
        if config is not None and config.get("format") == _FORMAT:
            return
    raise FileExistsError(
        f"{target} contains something other than a saved model, which 'save' does not overwrite: "
        "choose another folder, or remove this one."
    )


def _put_in_place(new: Path, target: Path) -> None:
    """Give the new folder its final name; an existing folder keeps that name until then."""
    if not target.exists():
        os.replace(new, target)
        return
    if _exchange(new, target):
        return
    # For a moment the old folder exists only under another name.
    old = new.with_name(f"{new.name}-old")
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Atomically exchange two folders if the system supports it; return whether it does."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, on systems where folders can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
