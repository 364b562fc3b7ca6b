"""A model folder is written completely or not at all, and reading it is safe."""

import ctypes
import errno
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from sklearn_vsc._persistence import folder as _model_folder
from sklearn_vsc._persistence.folder import read_folder, write_folder

OLD = {"name": "old"}, {"weight": torch.arange(6.0).reshape(2, 3)}
NEW = {"name": "new"}, {"weight": torch.ones(4), "none": torch.zeros(0, 2, dtype=torch.int64)}
REFUSED = (ValueError, TypeError, OSError)

links = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs links of POSIX")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model"


def written(target):
    """Return which of the two models a folder contains."""
    config, tensors = read_folder(target)
    for known, expected in (OLD, NEW):
        if config == known:
            assert tensors.keys() == expected.keys()
            for name, tensor in tensors.items():
                assert tensor.dtype == expected[name].dtype
                assert torch.equal(tensor, expected[name])
            return config["name"]
    raise AssertionError(config)


def test_a_written_model_is_read_back(target):
    write_folder(target, *OLD)
    assert written(target) == "old"
    write_folder(str(target), *NEW)
    assert written(str(target)) == "new"
    assert os.listdir(target.parent) == ["model"]


def test_permissions_are_the_same_as_for_any_new_folder(target):
    write_folder(target, *OLD)
    (target.parent / "other").mkdir()
    (target.parent / "other" / "file").touch()
    for one, other in ((target, "other"), (target / "config.json", "other/file")):
        assert one.stat().st_mode == (target.parent / other).stat().st_mode


# ------------------------------------------------------------------------------- interruptions


class Killed(BaseException):
    """Simulates a killed process: nothing runs after it."""


def kill_after(n_calls, monkeypatch):
    """Allow only this many calls to the file system; record all of them in a list."""
    calls = []

    def counted(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            if len(calls) > n_calls:
                raise Killed
            return function(*args, **kwargs)

        return call

    for module, name in [
        (os, "mkdir"),
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
        (_model_folder, "_exchange"),
    ]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return calls


@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two renames"])
def test_a_complete_model_exists_whenever_the_process_is_killed(target, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(_model_folder, "_exchange", no_exchange)
    outcomes = []
    for n_calls in range(30):
        shutil.rmtree(target, ignore_errors=True)
        write_folder(target, *OLD)
        with monkeypatch.context() as patch:
            calls = kill_after(n_calls, patch)
            try:
                write_folder(target, *NEW)
            except Killed:
                pass
            else:
                assert len(calls) == n_calls
        # Between the two renames it only exists under another name.
        places = [target] if target.exists() else list(target.parent.glob(".saving-*-old"))
        assert swaps <= (places == [target])
        outcomes.append(written(*places))
        for rest in target.parent.glob(".saving-*"):
            # An incomplete model cannot be opened.
            if rest.exists() and rest not in places and n_calls < 2:
                with pytest.raises(REFUSED):
                    read_folder(rest)
            shutil.rmtree(rest)
        if len(calls) == n_calls:
            break
    # The kills came before and after the decisive moment, and in the last round not at all.
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes.count("old") >= 4 and outcomes.count("new") >= 2
    assert len(calls) == n_calls < 29


def no_exchange(one, other):
    return False


@pytest.mark.parametrize("n_calls", range(4))
def test_no_model_opens_after_a_first_save_was_killed(target, monkeypatch, n_calls):
    with monkeypatch.context() as patch:
        kill_after(n_calls, patch)
        with pytest.raises(Killed):
            write_folder(target, *NEW)
    with pytest.raises(FileNotFoundError):
        read_folder(target)
    write_folder(target, *NEW)
    assert written(target) == "new"


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("swaps", [True, False])
def test_an_error_leaves_only_the_old_model(target, monkeypatch, name, swaps):
    write_folder(target, *OLD)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if not swaps:
        monkeypatch.setattr(_model_folder, "_exchange", no_exchange)
    elif name == "replace":
        monkeypatch.setattr(_model_folder, "_exchange", full)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OSError, match="No space left"):
            write_folder(target, *NEW)
    assert written(target) == "old"
    assert os.listdir(target.parent) == ["model"]


def test_the_first_of_two_renames_is_undone_if_the_second_fails(target, monkeypatch):
    write_folder(target, *OLD)
    replace, seen = os.replace, []

    def second_fails(source, name):
        seen.append(name)
        if len(seen) == 2:
            raise OSError(5, "Input/output error")
        replace(source, name)

    monkeypatch.setattr(_model_folder, "_exchange", no_exchange)
    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(target, *NEW)
    assert len(seen) == 3
    assert written(target) == "old"
    assert os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize("code, swapped", [("ENOSYS", False), ("EINVAL", False), ("EIO", None)])
def test_errors_of_an_exchange_are_handled(target, monkeypatch, code, swapped):
    number = getattr(errno, code)

    class Library:
        @staticmethod
        def renameat2(*args):
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(_model_folder.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: Library)
    if swapped is None:
        with pytest.raises(OSError) as caught:
            _model_folder._exchange(target, target)
        assert caught.value.errno == number
    else:
        assert _model_folder._exchange(target, target) is swapped
    # A C library without the function, and another operating system.
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    assert _model_folder._exchange(target, target) is False
    monkeypatch.setattr(_model_folder.sys, "platform", "darwin")
    assert _model_folder._exchange(target, target) is False


# ------------------------------------------------------------------ where writing is allowed


def test_other_folders_and_files_are_not_overwritten(target):
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        write_folder(target, *OLD)
    assert target.read_text() == "mine"
    target.unlink()

    target.mkdir()
    write_folder(target, *OLD)  # an empty folder contains nothing that could be lost
    (target / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something other than a saved model"):
        write_folder(target, *NEW)
    assert (target / "notes.txt").read_text() == "mine"
    (target / "notes.txt").unlink()
    # Other libraries write files with these names too.
    for text in ('{"model_type": "bert"}', "no JSON", "[1]"):
        (target / "config.json").write_text(text)
        with pytest.raises(FileExistsError, match="something other"):
            write_folder(target, *NEW)
    assert os.listdir(target.parent) == ["model"]


def test_invalid_paths_are_an_error(target, monkeypatch):
    with pytest.raises(FileNotFoundError, match="create it before you save"):
        write_folder(target / "deeper", *OLD)
    for path, error in ((3, TypeError), (None, TypeError), ("a\0b", (TypeError, ValueError))):
        with pytest.raises(error):
            write_folder(path, *OLD)
        with pytest.raises(error):
            read_folder(path)
    with pytest.raises(FileExistsError):
        write_folder("/", *OLD)
    with pytest.raises(FileNotFoundError):
        read_folder(target)
    # A relative path works too.
    monkeypatch.chdir(target.parent)
    write_folder("model", *OLD)
    assert written(Path("..") / target.parent.name / "model") == "old"


@links
def test_a_link_to_a_model_stands_for_the_model(target):
    write_folder(target, *OLD)
    link = target.parent / "latest"
    link.symlink_to(target)
    assert written(link) == "old"
    write_folder(link, *NEW)
    assert link.is_symlink() and written(target) == written(link) == "new"


# ------------------------------------------------------------------ what can be read


@links
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_only_regular_files_are_read(target, name):
    write_folder(target, *OLD)
    outside = target.parent / name
    (target / name).rename(outside)
    with pytest.raises(FileNotFoundError):
        read_folder(target)
    for make in (
        lambda: (target / name).symlink_to(outside),
        lambda: (target / name).symlink_to(Path("..") / name),
        lambda: (target / name).symlink_to(target / name),
        lambda: (target / name).mkdir(),
        lambda: os.mkfifo(target / name),
        lambda: (target / name).symlink_to("/dev/zero"),
    ):
        make()
        with pytest.raises(ValueError, match="is not a plain file"):
            read_folder(target)
        os.rmdir(target / name) if (target / name).is_dir() else (target / name).unlink()
    outside.rename(target / name)
    assert written(target) == "old"


@links
def test_a_socket_is_not_a_regular_file(target, monkeypatch):
    target.mkdir()
    # Paths of sockets must be short.
    monkeypatch.chdir(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("config.json")
        with pytest.raises(ValueError, match="is not a plain file"):
            read_folder(target)


def test_a_file_is_not_a_folder(target):
    target.write_bytes(b"\x80\x04\x95")
    with pytest.raises(NotADirectoryError, match="pass the folder"):
        read_folder(target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"format": "pytorch"}',
        '{"format": ["sklearn-vsc"]}',
        '{"format": "sklearn-vsc"}',
        '{"format": "sklearn-vsc", "format_version": true}',
        '{"format": "sklearn-vsc", "format_version": 1}',
        '{"format": "sklearn-vsc", "format_version": 1, "tensors_size": "x"}',
        '{"format": "sklearn-vsc", "format_version": 1, "tensors_size": -1}',
        '{"format": "sklearn-vsc", "format_version": 1, "x": NaN}',
        '{"format": "sklearn-vsc", "format_version": 1' + "0" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "\u00e9",
        "\x80\x04\x95pickle",
    ],
)
def test_configurations_of_other_programs_are_an_error(target, text):
    write_folder(target, *OLD)
    (target / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):
        read_folder(target)


def test_error_names_a_newer_format(target):
    write_folder(target, *OLD)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"format_version": 7}))
    with pytest.raises(ValueError, match=r"format version 7.*upgrade"):
        read_folder(target)


def test_a_configuration_too_large_to_read_is_not_written(target, monkeypatch):
    write_folder(target, *OLD)
    monkeypatch.setattr(_model_folder, "_LARGEST_CONFIG", 1000)
    with pytest.raises(ValueError, match="at most 1000 are allowed"):
        write_folder(target, {"names": ["x"] * 1000}, {})
    assert written(target) == "old"


def test_a_large_file_is_not_read(target):
    write_folder(target, *OLD)
    for name in ("config.json", "model.safetensors"):
        content = (target / name).read_bytes()
        with open(target / name, "ab") as file:
            # The file is sparse, so this takes no disk space.
            file.truncate(2**40)
        with pytest.raises(ValueError, match="at most"):
            read_folder(target)
        (target / name).write_bytes(content)
    assert written(target) == "old"


def test_tensors_in_another_format_are_an_error(target, monkeypatch):
    monkeypatch.setattr(_model_folder.safetensors.torch, "save", lambda tensors: b"\x80\x04pickle")
    write_folder(target, *OLD)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_folder(target)
