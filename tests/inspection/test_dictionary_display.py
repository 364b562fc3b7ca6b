import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_vsc.inspection import DictionaryDisplay

plt = pytest.importorskip("matplotlib.pyplot")


class Learner(BaseEstimator):
    """Stands in for a dictionary learner."""

    def __init__(self, components=None, usage=None):
        self.components = components
        self.usage = usage

    def fit(self, X=None, y=None):
        self.components_ = self.components
        self.component_usage_ = self.usage
        return self


@pytest.fixture
def components():
    return np.random.RandomState(0).normal(size=(7, 6)) * np.arange(1, 8)[:, None]


def _tiles(mosaic, n_columns, height, width):
    """Cut a mosaic into its tiles according to the documented layout."""
    n_rows = (mosaic.shape[0] - 1) // (height + 1)
    return [
        mosaic[1 + r * (height + 1) :, 1 + c * (width + 1) :][:height, :width]
        for r in range(n_rows)
        for c in range(n_columns)
    ]


def test_tiles_are_the_atoms_in_order_of_use(components):
    usage = np.array([0.1, 0.9, 0.0, 0.5, 0.5, 0.2, 0.3])
    display = DictionaryDisplay.from_estimator(
        Learner(components, usage).fit(), image_shape=(2, 3), scale="common", n_columns=3
    )
    order = [1, 3, 4, 6, 5, 0, 2]
    assert_array_equal(display.indices, order)
    assert_array_equal(display.components, components[order])
    mosaic = display.mosaic_
    assert mosaic.shape == (3 * 3 + 1, 3 * 4 + 1)
    tiles = _tiles(mosaic, 3, 2, 3)
    for tile, atom in zip(tiles[:7], components[order], strict=True):
        assert_array_equal(tile, atom.reshape(2, 3))
    for empty in tiles[7:]:
        assert np.isnan(empty).all()
    assert np.isnan(mosaic[::3]).all()
    assert np.isnan(mosaic[:, ::4]).all()
    assert np.isfinite(mosaic).sum() == components.size
    assert_array_equal(display.im_.get_array().filled(np.nan), mosaic)


def test_scale_each_gives_every_atom_its_own_limits(components):
    components[2] = 0  # a dead atom is drawn as zero
    display = DictionaryDisplay.from_components(components, image_shape=(2, 3), order=None)
    tiles = _tiles(display.mosaic_, 3, 2, 3)[:7]
    for k, (tile, atom) in enumerate(zip(tiles, components, strict=True)):
        peak = np.abs(atom).max() if k != 2 else 1.0
        assert_allclose(tile, (atom / peak).reshape(2, 3))
    assert display.im_.get_clim() == (-1, 1)


def test_scale_common_is_symmetric_around_zero(components):
    components = np.abs(components)
    display = DictionaryDisplay.from_components(components, image_shape=(2, 3), scale="common")
    assert display.im_.get_clim() == (-components.max(), components.max())
    assert display.im_.norm(0.0) == 0.5
    display = DictionaryDisplay.from_components(np.zeros((2, 4)), scale="common")
    assert display.im_.get_clim() == (-1, 1)


def test_atoms_are_ordered_as_asked(components):
    usage = np.arange(7)[::-1]

    def indices(**params):
        return DictionaryDisplay.from_components(
            components, image_shape=(2, 3), **params
        ).indices.tolist()

    by_norm = np.argsort(-np.linalg.norm(components, axis=1)).tolist()
    assert indices(usage=usage) == list(range(7))
    assert indices(usage=usage, order="norm") == by_norm != list(range(7))
    assert indices(order="use") == by_norm  # without usage
    assert indices(order=None, usage=np.arange(7)) == list(range(7))
    assert indices(n_components=2, usage=usage[::-1]) == [6, 5]
    assert len(indices(n_components=100)) == 7


def test_atoms_of_unit_norm_keep_their_order():
    atoms = np.random.RandomState(0).normal(size=(50, 16)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    display = DictionaryDisplay.from_components(atoms)
    assert_array_equal(display.indices, np.arange(50))


def test_pixels_are_square(components):
    display = DictionaryDisplay.from_components(components, image_shape=(1, 6))
    assert display.ax_.get_aspect() == 1.0
    assert display.im_.get_interpolation() == "nearest"


@pytest.mark.parametrize(
    ("n_atoms", "image_shape", "n_columns"),
    [
        (9, (4, 4), 3),
        (10, (4, 4), 4),
        (1, (2, 8), 1),
        (8, (2, 8), 2),
        (8, (8, 2), 6),
        (2, (8, 2), 2),
        (50, (2, 8), 4),
        (50, (1, 16), 2),
    ],
)
def test_mosaic_is_about_square(n_atoms, image_shape, n_columns):
    atoms = np.ones((n_atoms, 16))
    display = DictionaryDisplay.from_components(atoms, image_shape=image_shape)
    assert display.mosaic_.shape[1] == n_columns * (image_shape[1] + 1) + 1


def test_colour_atoms_are_drawn_around_middle_grey():
    atoms = np.random.RandomState(0).normal(size=(4, 3 * 2 * 5))
    display = DictionaryDisplay.from_components(atoms, image_shape=(3, 2, 5), order=None)
    mosaic = display.mosaic_
    assert mosaic.shape[2] == 3
    tiles = _tiles(mosaic, (mosaic.shape[1] - 1) // 6, 2, 5)
    for tile, atom in zip(tiles[:4], atoms, strict=True):
        values = atom.reshape(3, 2, 5) / np.abs(atom).max()
        for channel in range(3):
            assert_allclose(tile[..., channel], 0.5 + 0.5 * values[channel])
    assert_array_equal(mosaic[0], 1)
    assert mosaic.min() >= 0
    assert mosaic.max() <= 1
    common = DictionaryDisplay.from_components(
        atoms, image_shape=(3, 2, 5), order=None, scale="common"
    )
    tile = _tiles(common.mosaic_, (mosaic.shape[1] - 1) // 6, 2, 5)[0]
    expected = 0.5 + 0.5 * atoms[0].reshape(3, 2, 5) / np.abs(atoms).max()
    assert_allclose(tile, np.moveaxis(expected, 0, -1))


def test_one_channel_is_grey(components):
    one = DictionaryDisplay.from_components(components, image_shape=(1, 2, 3)).mosaic_
    assert_array_equal(
        one, DictionaryDisplay.from_components(components, image_shape=(2, 3)).mosaic_
    )


@pytest.mark.parametrize("cmap", ["gray", "RdBu_r", "viridis", "seismic"])
def test_gaps_can_be_distinguished_from_zero(cmap):
    display = DictionaryDisplay.from_components(np.zeros((4, 9)), cmap=cmap)
    colours = display.im_.cmap(display.im_.norm(display.im_.get_array()))
    gap, zero = colours[0, 0, :3], colours[1, 1, :3]
    assert np.abs(gap - zero).mean() > 0.25


def test_plot_again_on_given_axes(components):
    display = DictionaryDisplay(components, image_shape=(2, 3))
    assert_array_equal(display.indices, np.arange(7))
    figure, ax = plt.subplots()
    assert display.plot(ax=ax, im_kw={"alpha": 0.5}) is display
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.im_ in ax.get_images()
    assert display.im_.get_alpha() == 0.5
    before = display.components.copy()
    display.plot(scale="each")
    assert display.ax_ is not ax
    assert_array_equal(display.components, before)


def test_estimators_of_scikit_learn_can_be_drawn():
    X = np.random.RandomState(0).normal(size=(30, 9))
    scaled = make_pipeline(StandardScaler(), PCA(4)).fit(X)
    display = DictionaryDisplay.from_estimator(scaled[-1])
    assert display.image_shape == (3, 3)
    assert display.components.shape == (4, 9)
    with pytest.raises(TypeError, match=r"pipeline\[-1\]"):
        DictionaryDisplay.from_estimator(scaled)
    with pytest.raises(TypeError, match="KMeans has no components_"):
        DictionaryDisplay.from_estimator(KMeans(2, n_init=1, random_state=0).fit(X))
    with pytest.raises(NotFittedError):
        DictionaryDisplay.from_estimator(Learner(np.eye(4)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "pass image_shape"),  # 6 features do not form a square
        ({"image_shape": (2, 4)}, r"image_shape=\(2, 4\) multiplies to 8, but .* 6 features"),
        ({"image_shape": (2, 3, 1)}, "1 or 3 channels"),
        ({"image_shape": 6}, "image_shape must be"),
        ({"image_shape": (-2, -3)}, "image_shape must be"),
        ({"image_shape": (2.0, 3)}, "image_shape must be"),
        ({"image_shape": (2, 3), "order": "size"}, "order must be"),
        ({"image_shape": (2, 3), "scale": "all"}, "scale must be"),
        ({"image_shape": (2, 3), "n_components": 0}, "'n_components' parameter must be"),
        ({"image_shape": (2, 3), "n_columns": 1.5}, "'n_columns' parameter must be"),
        ({"image_shape": (2, 3), "usage": [1, 2]}, "one number for each of the 7 atoms"),
    ],
)
def test_bad_parameters_raise_an_error(components, params, message):
    with pytest.raises(ValueError, match=message):
        DictionaryDisplay.from_components(components, **params)
    assert not plt.get_fignums()


def test_bad_components_raise_an_error(components):
    components[1, 1] = np.nan
    with pytest.raises(ValueError, match="components contains NaN"):
        DictionaryDisplay(components, image_shape=(2, 3))
    with pytest.raises(ValueError, match="indices has shape"):
        DictionaryDisplay(np.ones((3, 4)), indices=[0, 1])


def test_without_matplotlib_the_error_names_the_extra(components, monkeypatch):
    display = DictionaryDisplay(components, image_shape=(2, 3))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn-vsc\[plot\]"):
        display.plot()
