import gzip
import struct
import urllib.error

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc.datasets import _fashion_mnist, fetch_fashion_mnist

IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}


def _pictures(n_train=5, n_test=3):
    rng = np.random.RandomState(0)
    return {
        part: (
            rng.randint(256, size=(n, 28, 28)).astype(np.uint8),
            rng.randint(10, size=n).astype(np.uint8),
        )
        for part, n in (("train", n_train), ("test", n_test))
    }


def _idx(array):
    """The IDX format as documented: a big-endian header, then the numbers."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def _write(folder, packed, pictures=None):
    for part, arrays in (pictures or _pictures()).items():
        for name, array in zip((IMAGES[part], LABELS[part]), arrays, strict=True):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
            else:
                (folder / name).write_bytes(_idx(array))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with intact files; neither Debian's folder nor the network is available."""

    def fetch_openml(*args, **kwargs):
        raise AssertionError("tried to use the network")

    monkeypatch.setattr(_fashion_mnist, "fetch_openml", fetch_openml)
    monkeypatch.setattr(_fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nowhere")
    _write(tmp_path, packed=False)
    return tmp_path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("subset", ["train", "test", "all"])
def test_reads_the_published_files(tmp_path, packed, subset):
    _write(tmp_path, packed)
    parts = [_pictures()[part] for part in ("train", "test") if subset in (part, "all")]
    images = np.concatenate([images for images, _ in parts])
    found = fetch_fashion_mnist(subset=subset, data_home=str(tmp_path))
    assert found.data.shape == (len(images), 784)
    assert found.data.dtype == found.images.dtype == np.float32
    assert_allclose(found.images, images / 255, rtol=1e-6)
    assert_array_equal(found.data, found.images.reshape(-1, 784))
    assert found.data.min() >= 0
    assert found.data.max() <= 1
    assert found.target.dtype == np.int64
    assert_array_equal(found.target, np.concatenate([labels for _, labels in parts]))
    assert len(found.target_names) == 10
    assert "Fashion-MNIST" in found.DESCR


def test_train_is_the_default_and_arrays_are_writable(folder):
    X, y = fetch_fashion_mnist(data_home=folder, return_X_y=True)
    bunch = fetch_fashion_mnist(subset="train", data_home=folder)
    assert_array_equal(X, bunch.data)
    assert_array_equal(y, bunch.target)
    X[0, 0], y[0] = 0, 0


def test_data_home_comes_before_the_debian_folder(folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    _write(other, packed=True, pictures=_pictures(n_train=2))
    monkeypatch.setattr(_fashion_mnist, "DEBIAN_FOLDER", other)
    assert len(fetch_fashion_mnist(data_home=folder).data) == 5
    assert len(fetch_fashion_mnist().data) == 2


def _fake_openml(monkeypatch, pixels, target):
    calls = []

    def fetch_openml(name, **kwargs):
        calls.append((name, kwargs))
        return pixels, target

    monkeypatch.setattr(_fashion_mnist, "fetch_openml", fetch_openml)
    monkeypatch.setattr(_fashion_mnist, "_N_TRAIN", 5)
    monkeypatch.setattr(_fashion_mnist, "_N_ALL", 8)
    return calls


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_openml_gives_the_same_data(folder, monkeypatch, dtype):
    pictures = _pictures()
    pixels, target = (np.concatenate(arrays) for arrays in zip(*pictures.values(), strict=True))
    # As scikit-learn returns them: numbers of varying dtype, and classes as text.
    text = np.array([str(label) for label in target], dtype=object)
    calls = _fake_openml(monkeypatch, pixels.reshape(8, 784).astype(dtype), text)
    for subset in ("train", "test", "all"):
        from_files = fetch_fashion_mnist(subset=subset, data_home=folder)
        assert not calls
        from_openml = fetch_fashion_mnist(subset=subset)
        name, kwargs = calls.pop()
        assert (name, kwargs["version"], kwargs["as_frame"]) == ("Fashion-MNIST", 1, False)
        for key in ("data", "images", "target"):
            assert_array_equal(from_openml[key], from_files[key])
            assert from_openml[key].dtype == from_files[key].dtype


@pytest.mark.parametrize("installed", [True, False])
def test_openml_works_without_pandas(folder, monkeypatch, installed):
    calls = _fake_openml(monkeypatch, np.zeros((8, 784)), np.zeros(8))
    monkeypatch.setattr(_fashion_mnist, "find_spec", lambda name: object() if installed else None)
    fetch_fashion_mnist()
    assert calls[0][1]["parser"] == ("pandas" if installed else "liac-arff")


def test_network_error_is_raised_with_a_hint(folder, monkeypatch):
    failure = urllib.error.URLError("no route to host")

    def fetch_openml(*args, **kwargs):
        raise failure

    monkeypatch.setattr(_fashion_mnist, "fetch_openml", fetch_openml)
    with pytest.raises(urllib.error.URLError, match="no route to host") as caught:
        fetch_fashion_mnist()
    assert caught.value is failure
    assert "data_home" in "".join(failure.__notes__)


def test_unexpected_table_from_openml_is_an_error(folder, monkeypatch):
    _fake_openml(monkeypatch, np.zeros((7, 784)), np.zeros(7))
    with pytest.raises(ValueError, match=r"shape \(7, 784\)"):
        fetch_fashion_mnist()


def test_errors_name_missing_files(folder):
    with pytest.raises(FileNotFoundError, match="data_home"):
        fetch_fashion_mnist(data_home=folder / "nowhere")
    (folder / LABELS["test"]).unlink()
    assert len(fetch_fashion_mnist(subset="train", data_home=folder).data) == 5
    with pytest.raises(FileNotFoundError, match=LABELS["test"]):
        fetch_fashion_mnist(subset="all", data_home=folder)


def _damage(content, how):
    magic, rest = content[:4], content[4:]
    return {
        "empty": b"",
        "in the magic": magic[:2],
        "in the header": magic + rest[:5],
        "cut off": content[:-1],
        "too long": content + b"\0",
        "other numbers": b"\0\0\x0d\x03" + rest,
        "other axes": b"\0\0\x08\x02" + rest,
        "text": b"<!DOCTYPE html><html></html>",
    }[how]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "is truncated: it ends after 0 bytes"),
        ("in the magic", "is truncated: it ends after 2 bytes"),
        ("in the header", "is truncated: it ends after 9 bytes"),
        (
            "cut off",
            "is truncated: its header announces 3920 numbers, but it contains 3919",
        ),
        ("too long", "is too long"),
        ("other numbers", "expected 00 00 08 03, got 00 00 0d 03"),
        ("other axes", "with 3 axes"),
        ("text", "does not start like an IDX file"),
    ],
)
def test_errors_name_damaged_files(folder, packed, how, message):
    plain = folder / IMAGES["train"]
    path = folder / f"{plain.name}.gz" if packed else plain
    damaged = _damage(plain.read_bytes(), how)
    plain.unlink()
    path.write_bytes(gzip.compress(damaged) if packed else damaged)
    with pytest.raises(ValueError, match=message) as caught:
        fetch_fashion_mnist(data_home=folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("how", ["not packed", "cut off", "bits changed"])
def test_errors_name_damaged_gzip_files(folder, how):
    plain = folder / IMAGES["train"]
    content, path = gzip.compress(plain.read_bytes()), folder / f"{plain.name}.gz"
    damaged = {
        "not packed": plain.read_bytes(),
        "cut off": content[:-20],
        "bits changed": content[:10] + bytes(b ^ 255 for b in content[10:20]) + content[20:],
    }[how]
    plain.unlink()
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is not an intact gzip file") as caught:
        fetch_fashion_mnist(data_home=folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (IMAGES["train"], np.zeros((5, 32, 32), np.uint8), "32 by 32 pixels"),
        (IMAGES["train"], np.zeros((4, 28, 28), np.uint8), "contains 4 pictures, but"),
        (LABELS["train"], np.full(5, 10, np.uint8), "contains the label 10"),
    ],
)
def test_errors_name_files_with_other_data(folder, name, array, message):
    (folder / name).write_bytes(_idx(array))
    with pytest.raises(ValueError, match=message) as caught:
        fetch_fashion_mnist(data_home=folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("subset", ["valid", None, 1])
def test_unknown_subset_is_an_error(subset):
    message = "The 'subset' parameter must be one of 'train', 'test', 'all'; got "
    with pytest.raises(ValueError, match=message):
        fetch_fashion_mnist(subset=subset)
