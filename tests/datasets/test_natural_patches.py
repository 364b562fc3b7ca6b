import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.fft import fft2, fftfreq
from scipy.stats import kurtosis

from sklearn_vsc.datasets import _natural_patches, load_natural_patches


@pytest.fixture(scope="module")
def photograph():
    return _natural_patches._to_grey(_natural_patches._load_photographs()[0], 0)


def _power(picture, low, high):
    """Mean power of a picture between two radial frequencies."""
    height, width = picture.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    spectrum = np.abs(fft2((picture - picture.mean()) * window)) ** 2
    frequency = np.hypot(fftfreq(height)[:, None], fftfreq(width)[None, :])
    return spectrum[(frequency >= low) & (frequency < high)].mean()


def test_whitening_flattens_the_spectrum(photograph):
    whitened = _natural_patches._whiten(photograph)
    bands = [(0.03, 0.06), (0.06, 0.12), (0.12, 0.18), (0.18, 0.24)]
    raw = np.array([_power(photograph, *band) for band in bands])
    flat = np.array([_power(whitened, *band) for band in bands])
    assert raw.max() / raw.min() > 10
    assert flat.max() / flat.min() < 2
    assert _power(whitened, 0.6, 0.7) < 1e-2 * flat.min()  # the corners are removed


def test_whitening_is_the_published_filter_of_the_mirrored_picture():
    picture = np.random.RandomState(0).normal(size=(14, 23))
    mirrored = np.block([[picture, picture[:, ::-1]], [picture[::-1], picture[::-1, ::-1]]])
    frequency = np.hypot(fftfreq(28)[:, None], fftfreq(46)[None, :])
    gain = frequency * np.exp(-((frequency * 512 / 200) ** 4))
    expected = np.fft.ifft2(gain * fft2(mirrored)).real[:14, :23]
    assert_allclose(_natural_patches._whiten(picture), expected, atol=1e-12)


def test_whitening_treats_both_axes_alike():
    # One eighth of a cycle per pixel along each axis of a picture that is not square.
    rows, columns = np.mgrid[0:64, 0:96] + 0.5
    down, across = np.cos(np.pi / 4 * rows), np.cos(np.pi / 4 * columns)
    gain = 0.125 * np.exp(-((0.125 * 512 / 200) ** 4))
    assert_allclose(_natural_patches._whiten(down), gain * down, atol=1e-12)
    assert_allclose(_natural_patches._whiten(across), gain * across, atol=1e-12)


@pytest.mark.parametrize("subset", ["all", "train", "test"])
def test_natural_patches_are_centred_scaled_and_sparse(subset):
    X = load_natural_patches(4000, subset=subset, random_state=0)
    assert X.shape == (4000, 256)
    assert X.dtype == np.float32
    assert abs(X.mean()) < 0.05
    assert_allclose(X.std(), 1.0, rtol=0.1)
    # Every position within the patch has nearly the same statistics.
    assert_allclose(X.std(axis=0), X.std(), rtol=0.15)
    assert kurtosis(X.ravel()) > 3  # heavier tails than the Gaussian


def test_raw_patches_are_the_grey_photograph(photograph):
    X = load_natural_patches(
        30, patch_size=(3, 5), whitening=None, images=[photograph], random_state=0, dtype=np.float64
    )
    standard = (photograph - photograph.mean()) / photograph.std()
    windows = np.lib.stride_tricks.sliding_window_view(standard, (3, 5)).reshape(-1, 15)
    for patch in X:
        assert np.isclose(windows, patch, atol=1e-12).all(axis=1).any()


def test_grey_values_are_luma():
    rgb = np.zeros((1, 3, 3), dtype=np.uint8)
    rgb[0, [0, 1, 2], [0, 1, 2]] = 200
    assert_allclose(_natural_patches._to_grey(rgb, 0), 200 * np.array([[0.299, 0.587, 0.114]]))


def test_train_and_test_share_no_pixel():
    image = np.arange(30 * 41, dtype=float).reshape(30, 41)  # every pixel has its own value
    pixels = {}
    for subset, n_positions in {"train": 29 * 19, "test": 29 * 20, "all": 29 * 40}.items():
        region = _natural_patches._cut(image, subset)
        X = load_natural_patches(
            n_positions,
            patch_size=2,
            subset=subset,
            whitening=None,
            images=[image],
            dtype=np.float64,
        )
        values = X * region.std() + region.mean()
        assert_allclose(values, np.round(values), atol=1e-9)
        assert len(np.unique(np.round(values), axis=0)) == n_positions  # without replacement
        pixels[subset] = set(np.round(values).ravel())
    assert not pixels["train"] & pixels["test"]
    assert pixels["train"] | pixels["test"] == pixels["all"] == set(image.ravel())


def test_no_test_pixel_influences_the_train_patches():
    image = np.random.RandomState(0).normal(size=(40, 60))
    changed = image.copy()
    changed[:, 30:] = np.random.RandomState(1).normal(size=(40, 30))
    params = {"n_samples": 100, "patch_size": 8, "random_state": 0}
    for subset, same in {"train": True, "test": False, "all": False}.items():
        before = load_natural_patches(**params, subset=subset, images=[image])
        after = load_natural_patches(**params, subset=subset, images=[changed])
        assert np.array_equal(before, after) == same


def test_positions_are_uniform_over_images_of_different_sizes():
    dark, bright = np.zeros((20, 20)), np.ones((20, 40))
    dark[10, 10], bright[10, 10] = 1, 0
    X = load_natural_patches(
        800, patch_size=1, whitening=None, images=[dark, bright], random_state=0, dtype=np.float64
    )
    # After centring, the background is below zero in one picture and above zero in the other.
    assert_allclose((X > 0).mean(), 2 / 3, atol=0.06)


def test_scale_of_the_intensities_does_not_matter(photograph):
    params = {"n_samples": 20, "patch_size": 8, "random_state": 0, "dtype": np.float64}
    X = load_natural_patches(**params, images=[photograph])
    assert_allclose(load_natural_patches(**params, images=[1e-4 * photograph]), X, atol=1e-9)


def test_error_for_too_many_patches_says_how_many_there_are():
    image = np.random.RandomState(0).normal(size=(10, 12))
    assert load_natural_patches(63, patch_size=4, images=[image]).shape == (63, 16)
    with pytest.raises(ValueError, match="n_samples must be at most 63"):
        load_natural_patches(64, patch_size=4, images=[image])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "'n_samples' parameter must be"),
        ({"n_samples": 2.5}, "'n_samples' parameter must be"),
        ({"n_samples": True}, "'n_samples' parameter must be"),
        ({"patch_size": 0}, "'patch_size' parameter must be"),
        ({"patch_size": (8, 8, 3)}, "'patch_size' parameter must be"),
        ({"patch_size": "16"}, "'patch_size' parameter must be"),
        ({"patch_size": 500}, "patch_size=500 does not fit"),
        ({"patch_size": (8, 400), "subset": "test"}, "427 by 320"),
        ({"whitening": "zca"}, "'whitening' parameter must be one of 'olshausen', None"),
        ({"whitening": False}, "'whitening' parameter must be"),
        ({"subset": None}, "'subset' parameter must be"),
        ({"subset": "valid"}, "'subset' parameter must be"),
        ({"dtype": int}, "'dtype' parameter must be"),
        (
            {"dtype": "float16"},
            "'dtype' parameter must be one of 'float32', 'float64'; got 'float16'",
        ),
        ({"dtype": "nonsense"}, "'dtype' parameter must be"),
        ({"images": []}, "images is empty"),
        ({"images": [np.zeros((30, 30, 4))]}, r"images\[0\] has shape"),
        ({"images": [np.full((30, 30), np.nan)]}, r"images\[0\] must contain"),
        ({"images": [np.full((30, 30), 0.7)]}, r"images\[0\] has no contrast"),
        ({"images": [np.full((30, 30), 0.7)], "whitening": None}, "has no contrast"),
        ({"images": [np.zeros((30, 30), dtype=np.uint8)]}, "has no contrast"),
    ],
)
def test_bad_parameters_raise_an_error(params, message):
    with pytest.raises(ValueError, match=message):
        load_natural_patches(**{"n_samples": 10, **params})


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    def load_sample_images():
        raise ImportError("no module named PIL")

    monkeypatch.setattr(_natural_patches, "load_sample_images", load_sample_images)
    with pytest.raises(ImportError, match=r"sklearn-vsc\[plot\]"):
        load_natural_patches(10)
