import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.fft import fft2, fftfreq
from scipy.stats import kurtosis
from sklearn.utils import check_random_state

from sklearn_vsc import datasets
from sklearn_vsc.datasets import load_natural_patches, make_bars, make_sparse_coded

LOADERS = {
    "load_natural_patches": lambda **kw: (load_natural_patches(50, patch_size=8, **kw),),
    "make_sparse_coded": lambda **kw: make_sparse_coded(50, 12, 9, noise=0.1, **kw),
    "make_bars": lambda **kw: make_bars(50, 4, noise=0.1, **kw),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_random_state_alone_decides(load):
    state = check_random_state(None).get_state()
    first, again, other = load(random_state=3), load(random_state=3), load(random_state=4)
    from_instance = load(random_state=np.random.RandomState(3))
    unseeded, unseeded_again = load(), load()
    for a, b, c in zip(first, again, from_instance, strict=True):
        assert_array_equal(a, b)
        assert_array_equal(a, c)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(unseeded[0], unseeded_again[0])
    now = check_random_state(None).get_state()
    for before, after in zip(state, now, strict=True):
        assert_array_equal(before, after)


# --- load_natural_patches


@pytest.fixture(scope="module")
def photograph():
    return datasets._to_grey(datasets._load_photographs()[0], 0)


def _power(picture, low, high):
    """Mean power of a picture between two radial frequencies."""
    height, width = picture.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    spectrum = np.abs(fft2((picture - picture.mean()) * window)) ** 2
    frequency = np.hypot(fftfreq(height)[:, None], fftfreq(width)[None, :])
    return spectrum[(frequency >= low) & (frequency < high)].mean()


def test_whitening_flattens_the_spectrum(photograph):
    whitened = datasets._whiten(photograph)
    bands = [(0.03, 0.06), (0.06, 0.12), (0.12, 0.18), (0.18, 0.24)]
    raw = np.array([_power(photograph, *band) for band in bands])
    flat = np.array([_power(whitened, *band) for band in bands])
    assert raw.max() / raw.min() > 10
    assert flat.max() / flat.min() < 2
    assert _power(whitened, 0.6, 0.7) < 1e-2 * flat.min()  # the corners are taken out


def test_whitening_is_the_published_filter_of_the_mirrored_picture():
    picture = np.random.RandomState(0).normal(size=(14, 23))
    mirrored = np.block([[picture, picture[:, ::-1]], [picture[::-1], picture[::-1, ::-1]]])
    frequency = np.hypot(fftfreq(28)[:, None], fftfreq(46)[None, :])
    gain = frequency * np.exp(-((frequency * 512 / 200) ** 4))
    expected = np.fft.ifft2(gain * fft2(mirrored)).real[:14, :23]
    assert_allclose(datasets._whiten(picture), expected, atol=1e-12)


def test_whitening_treats_both_axes_alike():
    # An eighth of a cycle per pixel along either axis, in a picture that is not square.
    rows, columns = np.mgrid[0:64, 0:96] + 0.5
    down, across = np.cos(np.pi / 4 * rows), np.cos(np.pi / 4 * columns)
    gain = 0.125 * np.exp(-((0.125 * 512 / 200) ** 4))
    assert_allclose(datasets._whiten(down), gain * down, atol=1e-12)
    assert_allclose(datasets._whiten(across), gain * across, atol=1e-12)


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


def test_grey_is_luma():
    rgb = np.zeros((1, 3, 3), dtype=np.uint8)
    rgb[0, [0, 1, 2], [0, 1, 2]] = 200
    assert_allclose(datasets._to_grey(rgb, 0), 200 * np.array([[0.299, 0.587, 0.114]]))


def test_train_and_test_share_no_pixel():
    image = np.arange(30 * 41, dtype=float).reshape(30, 41)  # every pixel has its own value
    pixels = {}
    for subset, n_positions in {"train": 29 * 19, "test": 29 * 20, "all": 29 * 40}.items():
        region = datasets._cut(image, subset)
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
    # The mean is taken off, so the ground of one picture lies below zero, of the other above.
    assert_allclose((X > 0).mean(), 2 / 3, atol=0.06)


def test_scale_of_the_intensities_does_not_matter(photograph):
    params = {"n_samples": 20, "patch_size": 8, "random_state": 0, "dtype": np.float64}
    X = load_natural_patches(**params, images=[photograph])
    assert_allclose(load_natural_patches(**params, images=[1e-4 * photograph]), X, atol=1e-9)


def test_too_many_patches_says_how_many_there_are():
    image = np.random.RandomState(0).normal(size=(10, 12))
    assert load_natural_patches(63, patch_size=4, images=[image]).shape == (63, 16)
    with pytest.raises(ValueError, match="n_samples must be at most 63"):
        load_natural_patches(64, patch_size=4, images=[image])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "n_samples must be"),
        ({"n_samples": 2.5}, "n_samples must be"),
        ({"n_samples": True}, "n_samples must be"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"patch_size": (8, 8, 3)}, "patch_size must be"),
        ({"patch_size": "16"}, "patch_size must be"),
        ({"patch_size": 500}, "patch_size=500 does not fit"),
        ({"patch_size": (8, 400), "subset": "test"}, "427 by 320"),
        ({"whitening": "zca"}, "whitening must be one of 'olshausen', None"),
        ({"whitening": False}, "whitening must be"),
        ({"subset": None}, "subset must be"),
        ({"subset": "valid"}, "subset must be"),
        ({"dtype": int}, "dtype must be"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"dtype": "nonsense"}, "dtype must be"),
        ({"images": []}, "images is empty"),
        ({"images": [np.zeros((30, 30, 4))]}, r"images\[0\] has shape"),
        ({"images": [np.full((30, 30), np.nan)]}, r"images\[0\] must hold"),
        ({"images": [np.full((30, 30), 0.7)]}, r"images\[0\] has no contrast"),
        ({"images": [np.full((30, 30), 0.7)], "whitening": None}, "has no contrast"),
        ({"images": [np.zeros((30, 30), dtype=np.uint8)]}, "has no contrast"),
    ],
)
def test_natural_patches_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        load_natural_patches(**{"n_samples": 10, **params})


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    def load_sample_images():
        raise ImportError("no module named PIL")

    monkeypatch.setattr(datasets, "load_sample_images", load_sample_images)
    with pytest.raises(ImportError, match=r"sklearn-vsc\[plot\]"):
        load_natural_patches(10)


# --- make_sparse_coded


def test_sparse_coded_is_linear_with_unit_atoms():
    X, dictionary, codes = make_sparse_coded(200, 30, 12, random_state=0)
    assert (X.shape, dictionary.shape, codes.shape) == ((200, 12), (30, 12), (200, 30))
    assert_allclose(np.linalg.norm(dictionary, axis=1), 1.0)
    assert_array_equal(X, codes @ dictionary)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 1.0])
def test_sparse_coded_density_is_bernoulli(density):
    _, _, codes = make_sparse_coded(5000, 20, 5, density=density, random_state=0)
    active = codes != 0
    n = active.size
    assert abs(active.mean() - density) <= 4 * np.sqrt(density * (1 - density) / n)
    # Independent: the number of active codes has the variance of a binomial.
    assert_allclose(active.sum(axis=1).var(), 20 * density * (1 - density), rtol=0.1)


@pytest.mark.parametrize(
    ("distribution", "absolute", "square"),
    [("laplace", 1, 2), ("gaussian", np.sqrt(2 / np.pi), 1), ("uniform", 1 / 2, 1 / 3)],
)
@pytest.mark.parametrize("positive", [False, True])
def test_code_distribution(distribution, absolute, square, positive):
    _, _, codes = make_sparse_coded(
        20_000,
        density=0.2,
        code_distribution=distribution,
        code_scale=3.0,
        positive_code=positive,
        random_state=0,
    )
    values = codes[codes != 0]
    assert_allclose(np.abs(values).mean(), 3 * absolute, rtol=0.02)
    assert_allclose((values**2).mean(), 9 * square, rtol=0.04)
    assert_allclose((values > 0).mean(), 1.0 if positive else 0.5, atol=0.01)


def test_sparse_coded_noise_is_a_standard_deviation():
    X, dictionary, codes = make_sparse_coded(5000, noise=0.7, random_state=0)
    residual = X - codes @ dictionary
    assert_allclose(residual.std(), 0.7, rtol=0.02)
    clean, same_dictionary, same_codes = make_sparse_coded(5000, random_state=0)
    assert_array_equal(dictionary, same_dictionary)
    assert_array_equal(codes, same_codes)
    assert_array_equal(clean, codes @ dictionary)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "n_samples must be a whole number from 1, got 0"),
        ({"n_components": -1}, "n_components must be"),
        ({"n_features": 3.0}, "n_features must be"),
        ({"density": 1.1}, r"density must be a finite number from 0 to 1, got 1\.1"),
        ({"density": np.nan}, "density must be"),
        ({"density": None}, "density must be"),
        ({"code_distribution": "cauchy"}, "code_distribution must be one of 'laplace'"),
        ({"code_scale": 0}, "code_scale must be a finite number above 0"),
        ({"code_scale": np.inf}, "code_scale must be"),
        ({"noise": -0.1}, "noise must be"),
    ],
)
def test_sparse_coded_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        make_sparse_coded(**params)


# --- make_bars


def test_bars_are_all_rows_and_columns():
    _, components, _ = make_bars(1, size=5)
    images = components.reshape(10, 5, 5)
    for k in range(5):
        for bar in (images[k], images[5 + k].T):
            assert_array_equal(bar[k], 1)
            assert bar.sum() == 5


def test_bars_combine():
    X, components, codes = make_bars(300, size=4, random_state=0)
    assert (X.shape, components.shape, codes.shape) == ((300, 16), (8, 16), (300, 8))
    drawn = np.where(codes[:, :, None] > 0, components, 0).max(axis=1)
    assert_array_equal(X, drawn)
    total, _, same_codes = make_bars(300, size=4, combine="sum", random_state=0)
    assert_array_equal(codes, same_codes)
    assert_array_equal(total, codes @ components)
    assert total.max() == 2


@pytest.mark.parametrize(("density", "expected"), [(None, 1 / 8), (0.3, 0.3)])
def test_bars_density(density, expected):
    _, _, codes = make_bars(3000, density=density, random_state=0)
    assert set(np.unique(codes)) == {0.0, 1.0}
    assert abs(codes.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / codes.size)


def test_bars_noise():
    clean, _, _ = make_bars(2000, random_state=0)
    noisy, _, _ = make_bars(2000, noise=0.2, random_state=0)
    assert_allclose((noisy - clean).std(), 0.2, rtol=0.02)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": None}, "n_samples must be"),
        ({"size": 0}, "size must be"),
        ({"density": -1}, "density must be"),
        ({"combine": "max"}, "combine must be one of 'or', 'sum', got 'max'"),
        ({"noise": "low"}, "noise must be"),
    ],
)
def test_bars_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        make_bars(**params)
