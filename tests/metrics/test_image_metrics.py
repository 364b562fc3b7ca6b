import math
import sys
import types

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from sklearn_vsc.metrics import _images, frechet_distance, lpips, psnr, rfid, ssim


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------- PSNR


def test_psnr_by_hand():
    X = np.array([[0.0, 1.0], [0.0, 0.5]])
    X_hat = np.array([[0.1, 0.9], [0.0, 0.7]])
    # Mean squared errors 0.01 and 0.02.
    expected = [20.0, 10 * math.log10(1 / 0.02)]
    assert_allclose(psnr(X, X_hat, per_image=True), expected)
    assert psnr(X, X_hat) == pytest.approx(np.mean(expected))
    assert isinstance(psnr(X, X_hat), float)
    # Twice the range means four times the peak power.
    assert psnr(X, X_hat, data_range=2) == pytest.approx(np.mean(expected) + 20 * math.log10(2))
    assert psnr(255 * X, 255 * X_hat) == pytest.approx(np.mean(expected))


def test_psnr_of_images_matches_psnr_of_flat_rows(rng):
    X, X_hat = rng.random((2, 5, 3, 4, 6))
    rows = psnr(X.reshape(5, -1), X_hat.reshape(5, -1), per_image=True)
    assert_allclose(psnr(X, X_hat, per_image=True), rows)
    assert rows.shape == (5,)


def test_psnr_of_a_perfect_copy_is_infinite():
    assert psnr([[0.0, 1.0]], [[0.0, 1.0]]) == math.inf


def test_psnr_of_bytes_does_not_overflow():
    X, X_hat = np.array([[0, 255]], dtype=np.uint8), np.array([[1, 254]], dtype=np.uint8)
    assert psnr(X, X_hat) == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("metric", [psnr, ssim, lpips, rfid])
def test_pairs_must_have_the_same_shape(metric):
    with pytest.raises(ValueError, match=r"same shape; got \(2, 4\) and \(2, 5\)"):
        metric(np.zeros((2, 4)), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="contains NaN"):
        metric(np.full((2, 4), np.nan), np.zeros((2, 4)))


@pytest.mark.parametrize("data_range", [0, -1.0, np.inf, np.nan, "1"])
def test_error_messages_name_the_bad_range(data_range):
    with pytest.raises(ValueError, match="'data_range' parameter must be a positive number; got"):
        psnr(np.eye(2), np.eye(2), data_range=data_range)
    with pytest.raises(ValueError, match="not None where all values are equal; got None"):
        psnr(np.ones((2, 2)), np.ones((2, 2)))


# ------------------------------------------------------------------------------------- SSIM


def by_hand(one, other, data_range, sigma):
    """SSIM of two grey images by its definition, window by window."""
    reach = int(3.5 * sigma + 0.5)
    t = np.arange(-reach, reach + 1)
    window = np.exp(-0.5 * (t / sigma) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    size, values = 2 * reach + 1, []
    for i in range(one.shape[0] - 2 * reach):
        for j in range(one.shape[1] - 2 * reach):
            a, b = one[i : i + size, j : j + size], other[i : i + size, j : j + size]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + c1) * (2 * cov + c2)
            values.append(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


@pytest.mark.parametrize("sigma", [1.5, 0.8])
def test_ssim_matches_its_definition(rng, sigma):
    pytest.importorskip("skimage")
    images = rng.random((3, 2, 13, 14))
    other = images + 0.2 * rng.normal(size=images.shape)
    expected = [
        np.mean([by_hand(a, b, 1.0, sigma) for a, b in zip(one, two, strict=True)])
        for one, two in zip(images, other, strict=True)
    ]
    found = ssim(images, other, data_range=1, sigma=sigma, per_image=True)
    assert_allclose(found, expected, rtol=1e-6)
    assert ssim(images, other, data_range=1, sigma=sigma) == pytest.approx(np.mean(expected))
    rows = images.reshape(3, -1), other.reshape(3, -1)
    params = {"data_range": 1, "sigma": sigma, "per_image": True}
    assert_allclose(ssim(*rows, image_shape=(2, 13, 14), **params), found)
    assert_allclose(
        ssim(images[:, 0], other[:, 0], **params), ssim(images[:, :1], other[:, :1], **params)
    )
    assert ssim(images, images) == pytest.approx(1)


def test_ssim_passes_the_documented_settings_to_scikit_image(rng, monkeypatch):
    calls = []

    def structural_similarity(one, other, **params):
        calls.append((one, other, params))
        return len(calls)

    module = types.ModuleType("skimage.metrics")
    module.structural_similarity = structural_similarity
    monkeypatch.setitem(sys.modules, "skimage", types.ModuleType("skimage"))
    monkeypatch.setitem(sys.modules, "skimage.metrics", module)
    images, other = rng.random((2, 2, 3 * 12 * 11))
    assert ssim(images, other, image_shape=(3, 12, 11)) == 1.5
    (one, two, params), _ = calls
    assert_allclose(one, images[0].reshape(3, 12, 11))
    assert_allclose(two, other[0].reshape(3, 12, 11))
    assert params == {
        "data_range": np.ptp(images),
        "channel_axis": 0,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }


def test_ssim_explains_what_is_wrong_with_images():
    rows, small = np.eye(64), np.random.default_rng(0).random((2, 8, 8))
    with pytest.raises(ValueError, match=r"'image_shape' .* for flat rows, .*; got None"):
        ssim(rows, rows)
    with pytest.raises(ValueError, match=r"multiply to the 64 features of X; got \(1, 8, 9\)"):
        ssim(rows, rows, image_shape=(1, 8, 9))
    with pytest.raises(ValueError, match=r"'sigma' .* 8x8 pixels; got 1.5, .* 11 pixels wide"):
        ssim(small, small)
    with pytest.raises(ValueError, match="'sigma' parameter must be positive"):
        ssim(small, small, sigma=-1)
    with pytest.raises(ValueError, match=r"got an array of shape \(2, 2, 2, 2, 2\)"):
        ssim(np.ones((2,) * 5), np.ones((2,) * 5))


# ------------------------------------------------------------------------- Frechet distance


def sample(rng, mean, covariance, n=40):
    """Rows whose moments are exactly these."""
    rows = rng.normal(size=(n, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T).reshape(2 * (len(mean),)))).T
    values, vectors = np.linalg.eigh(covariance)
    return rows @ (vectors * np.sqrt(values.clip(0))).T + mean


def test_frechet_distance_of_known_normal_distributions(rng):
    # For covariances that commute, only the square roots of paired eigenvalues matter.
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    first, second = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    mean, other = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    found = frechet_distance(
        sample(rng, mean, rotation * first @ rotation.T),
        sample(rng, other, rotation * second @ rotation.T, n=70),
    )
    assert found == pytest.approx(5 + (2 - 1) ** 2 + (1 - 3) ** 2)
    # In one dimension, it depends on means and standard deviations.
    one, two = sample(rng, [2.0], np.array([[9.0]])), sample(rng, [-1.0], np.array([[16.0]]))
    assert frechet_distance(one, two) == pytest.approx(9 + 1)


def test_frechet_distance_matches_its_formula(rng):
    one, two = rng.normal(size=(50, 4)), rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4)) + 1
    first, second = np.cov(one.T), np.cov(two.T)
    gap = one.mean(0) - two.mean(0)
    expected = gap @ gap + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(two, one) == pytest.approx(expected, rel=1e-9)
    # A large mean does not cost the covariance digits.
    assert frechet_distance(one + 1e6, two + 1e6) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "n_features"), [(40, 3), (5, 20), (2, 2)])
def test_frechet_distance_works_with_singular_covariances(rng, n, n_features):
    one = rng.normal(size=(n, n_features))
    one[:, -1] = one[:, 0]
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one[::-1] + 2) == pytest.approx(4 * n_features)
    # One distribution lies in a plane, the other on a line orthogonal to it; then a single point.
    plane = sample(rng, np.zeros(3), np.diag([1.0, 4.0, 0.0]))
    line = sample(rng, np.zeros(3), np.diag([0.0, 0.0, 9.0]))
    assert frechet_distance(plane, line) == pytest.approx(5 + 9)
    assert frechet_distance(plane, np.ones((3, 3))) == pytest.approx(3 + 5)


def test_frechet_distance_explains_what_is_wrong(rng):
    with pytest.raises(ValueError, match="same number of columns; got 3 and 4"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


# ------------------------------------------------------------------- optional libraries


IMAGES = np.random.default_rng(0).random((2, 1, 12, 12))


@pytest.mark.parametrize(
    ("metric", "library", "extra"),
    [
        (ssim, "scikit-image", "images"),
        (lpips, "torchmetrics", "perceptual"),
        (rfid, "torchmetrics", "perceptual"),
    ],
)
def test_missing_libraries_are_named(metric, library, extra, monkeypatch):
    for name in ("skimage", "skimage.metrics", "torchmetrics"):
        monkeypatch.setitem(sys.modules, name, None)
    message = rf'{metric.__name__} needs {library} .* pip install "sklearn-vsc\[{extra}\]"'
    with pytest.raises(ImportError, match=message):
        metric(IMAGES, IMAGES)


class FakeMetric:
    """Stands in for a metric of torchmetrics and records its arguments."""

    made = None

    def __init__(self, **params):
        type(self).made = self
        self.params, self.updates = params, []
        # Networks draw random weights like this before they load trained ones.
        torch.randn(3)

    def update(self, *images, **params):
        self.updates.append((images, params))

    def compute(self):
        return torch.tensor(0.25)


def install(monkeypatch, metric=FakeMetric):
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, cls in [
        ("torchmetrics.image.lpip", "LearnedPerceptualImagePatchSimilarity"),
        ("torchmetrics.image.fid", "FrechetInceptionDistance"),
    ]:
        module = types.ModuleType(name)
        setattr(module, cls, metric)
        monkeypatch.setitem(sys.modules, name, module)


def test_networks_receive_batches_of_colour_images_in_the_unit_interval(monkeypatch):
    install(monkeypatch)
    monkeypatch.setattr(_images, "_BATCH", 2)
    images = np.random.default_rng(0).random((3, 20))
    other = images + np.linspace(-1, 1, 20)
    before = torch.get_rng_state()
    assert lpips(images, other, image_shape=(1, 4, 5), net="vgg") == 0.25
    metric = FakeMetric.made
    assert metric.params == {"net_type": "vgg", "normalize": True}
    (first, _), ((last, last_other), _) = metric.updates
    assert first[0].shape == (2, 3, 4, 5) and last.shape == (1, 3, 4, 5)
    assert last.dtype == torch.float32
    for channel in range(3):
        assert_allclose(last[0, channel].ravel(), images[2], rtol=1e-6)
        assert_allclose(last_other[0, channel].ravel(), other[2].clip(0, 1), rtol=1e-6)

    assert rfid(images, other, image_shape=(1, 4, 5)) == 0.25
    metric = FakeMetric.made
    assert metric.params == {"normalize": True}
    assert [params["real"] for _, params in metric.updates] == [True, False] * 2
    assert_allclose(metric.updates[2][0][0], last)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("metric", [lpips, rfid])
def test_images_that_networks_cannot_take_are_an_error(metric, monkeypatch):
    install(monkeypatch)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]; got .* to 1\.5"):
        metric(1.5 * np.ones((2, 3, 4, 4)), np.ones((2, 3, 4, 4)))
    with pytest.raises(ValueError, match="1 or 3 channels; got 2"):
        metric(np.ones((2, 2, 4, 4)), np.ones((2, 2, 4, 4)))


@pytest.mark.parametrize("metric", [lpips, rfid])
def test_missing_weights_are_named(metric, monkeypatch):
    class NoWeights(FakeMetric):
        def __init__(self, **params):
            raise OSError("no route to host")

    install(monkeypatch, NoWeights)
    with pytest.raises(OSError, match=r"could not load the weights .* no route to host"):
        metric(IMAGES, IMAGES)
