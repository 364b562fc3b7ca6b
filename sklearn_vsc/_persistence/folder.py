"""A folder that holds a model: tensors and configuration, written whole or not at all."""

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
# In bytes: a history of half a million epochs.
_LARGEST_CONFIG = 2**26
# Flags of which each system has some: a link that has just come is not followed either.
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# Of linux/fs.h and fcntl.h.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _checked(path: Any) -> str | os.PathLike[str]:
    """Return a path, if it is one."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in str(path):
        raise TypeError(f"path must be a string or path-like, without null bytes; got {path!r}.")
    return path


def write_folder(
    path: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a model into a folder, in place of the model that is there, if any.

    Both files are complete and on the disk before the folder takes its name.

    Parameters
    ----------
    path : str or path-like
        The folder; its parent exists.
    config : dict
        Plain data for JSON.
    tensors : dict of str to Tensor
        No two may share memory.

    Raises
    ------
    ValueError
        Where the configuration is too large to be read again.
    OSError
        Where the folder cannot be written, or something else is there.
    """
    # Where the path is a link, what it points to is written.
    target = Path(os.path.realpath(_checked(path)))
    _check_replaceable(target)
    content = safetensors.torch.save(tensors)
    files = {
        TENSORS: content,
        CONFIG: _config_bytes(config, content, _checksum(config, content, _VERSION), _VERSION),
    }
    if len(files[CONFIG]) > _LARGEST_CONFIG:
        raise ValueError(
            f"The configuration has {len(files[CONFIG])} bytes, and may have {_LARGEST_CONFIG}: "
            "too many names of features, or too long a history."
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
        # What is left under this name: nothing, the model before, or one not written in full.
        shutil.rmtree(new, ignore_errors=True)


def read_folder(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors that `write_folder` was given.

    Raises
    ------
    ValueError
        Where the folder holds no model, a damaged one, or one of a newer format.
    OSError
        Where a file cannot be read.
    """
    folder = Path(_checked(path))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folder that 'save' has written.")
    written = _read(folder / CONFIG, _LARGEST_CONFIG)
    config = _parse(written)
    if config is None or config.get("format") != _FORMAT:
        raise ValueError(f"{folder / CONFIG} is not the configuration of a model of sklearn-vsc.")
    version = config.pop("format_version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"{folder / CONFIG} has no valid 'format_version'; got {version!r}.")
    if version > _VERSION:
        raise ValueError(
            f"{folder} has format version {version}, and this sklearn-vsc reads versions up to "
            f"{_VERSION}: upgrade sklearn-vsc."
        )
    size = config.pop("tensors_size", None)
    content = _read(folder / TENSORS, size if type(size) is int else 0)
    checksum = config.pop("checksum", None)
    del config["format"]
    # The very bytes: a change that JSON does not see is a change too.
    same_bytes = (
        len(content) == size and _config_bytes(config, content, checksum, version) == written
    )
    if not same_bytes or checksum != _checksum(config, content, version):
        raise ValueError(
            f"The checksum of {folder} is wrong: its files are damaged or were changed after "
            "'save'."
        )
    try:
        return config, safetensors.torch.load(content)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder / TENSORS} is not a safetensors file: {error}") from error


# --- the contents of the files


def _checksum(config: dict[str, Any], tensors: bytes, version: int) -> str:
    """SHA-256 of both files, of the configuration as it stands without the checksum."""
    digest = hashlib.sha256(_config_bytes(config, tensors, None, version))
    digest.update(tensors)
    return digest.hexdigest()


def _config_bytes(config: dict[str, Any], tensors: bytes, checksum: Any, version: int) -> bytes:
    head = {"format": _FORMAT, "format_version": version}
    tail = {"tensors_size": len(tensors), "checksum": checksum}
    text = json.dumps(head | config | tail, indent=1, allow_nan=False)
    return (text + "\n").encode("ascii")


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object in these bytes, if there is one."""
    try:
        config = json.loads(content.decode("ascii"))
    # Text that is nested too deeply, or bytes that are no text, are no configuration either.
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


# --- files


def _read(path: Path, largest: int) -> bytes:
    """Read a plain file; no link, device or pipe is followed or waited for."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path} is not a plain file, as those of a saved model are.")
    descriptor = os.open(path, os.O_RDONLY | _NOT_FOLLOWED)
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > largest:
            raise ValueError(f"{path} has {size} bytes; at most {largest} are expected.")
        return file.read(largest + 1)


def _check_replaceable(target: Path) -> None:
    """Refuse to write where something other than a saved model would be lost."""
    if not target.exists():
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"The folder {target.parent} is not there; make it before you save into it."
            )
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; 'save' writes a folder.")
    names = set(os.listdir(target))
    if not names:
        return
    if names == {TENSORS, CONFIG}:
        config = _parse(_read(target / CONFIG, _LARGEST_CONFIG))
        if config is not None and config.get("format") == _FORMAT:
            return
    raise FileExistsError(
        f"{target} holds something other than a saved model, which 'save' does not overwrite: "
        "choose another folder, or remove this one."
    )


def _put_in_place(new: Path, target: Path) -> None:
    """Give a folder its name; the one that has it keeps it until then."""
    if not target.exists():
        os.replace(new, target)
        return
    if _exchange(new, target):
        return
    # Here the old one is for a moment under another name alone.
    old = new.with_name(f"{new.name}-old")
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step, on systems that can; say whether."""
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
    """Have the names in a folder on the disk, on systems that open folders."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
