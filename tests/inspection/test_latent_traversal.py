import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.inspection import LatentTraversalDisplay

plt = pytest.importorskip("matplotlib.pyplot")
pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

X = make_sparse_coded(n_samples=100, n_features=16, n_components=8, noise=0.1, random_state=0)[0]
INCOMPLETE = X[0].copy()
INCOMPLETE[3] = np.nan
SMALL = {"max_iter": 2, "hidden_layer_sizes": (8,), "random_state": 0}
EACH = {
    "lasso": FISTADictionaryLearner(8, alpha=0.1, max_iter=3, random_state=0),
    "split": FISTADictionaryLearner(8, alpha=0.1, max_iter=3, random_state=0, split_sign=True),
    "csr": FISTADictionaryLearner(8, alpha=0.1, max_iter=3, random_state=0, sparse_output=True),
    "thresholded": ThresholdedVSC(8, max_iter=2, random_state=0),
    "gaussian": SparseVAE(8, prior="gaussian", **SMALL),
    "cauchy": SparseVAE(8, prior="cauchy", posterior_family="gaussian", **SMALL),
    "autoencoder": SCVAE(8, **SMALL),
    "pca": PCA(8),
}


def dense(codes):
    return codes.toarray() if hasattr(codes, "toarray") else codes


@pytest.mark.parametrize("estimator", EACH.values(), ids=EACH)
def test_rows_are_decoded_with_one_code_changed(estimator):
    model = clone(estimator).fit(X)
    row = X[0] if isinstance(model, PCA) else INCOMPLETE
    display = LatentTraversalDisplay.from_estimator(
        model, row, components=[5, 2], values=[-1, 0, 2]
    )
    assert display.decoded.shape == (2, 3, 16)
    for index, component in enumerate([5, 2]):
        for place, value in enumerate([-1, 0, 2]):
            code = dense(model.transform(row[None]))
            code[0, component] = value
            expected = model.inverse_transform(code)[0]
            assert_allclose(display.decoded[index, place], expected, rtol=1e-4, atol=1e-5)
    assert [label.get_text() for label in display.axes_[0].get_yticklabels()] == ["5", "2"]
    assert [label.get_text() for label in display.axes_[0].get_xticklabels()] == ["-1", "0", "2"]


@pytest.mark.parametrize("estimator", EACH.values(), ids=EACH)
def test_defaults_select_components_and_values(estimator):
    model = clone(estimator).fit(X)
    several = LatentTraversalDisplay.from_estimator(model, X, n_components=3)
    codes = dense(model.transform(X))
    assert_array_equal(several.components, np.argsort(-codes.var(0), kind="stable")[:3])
    shown = codes[:, several.components]
    reach = np.quantile(np.abs(shown[shown != 0]), 0.99)
    assert_allclose(several.values, np.linspace(-reach, reach, 9), rtol=1e-6)
    if isinstance(model, PCA):
        with pytest.raises(ValueError, match="Cannot determine a range for the codes of this PCA"):
            LatentTraversalDisplay.from_estimator(model)
        return
    display = LatentTraversalDisplay.from_estimator(model)
    zero = model.inverse_transform(np.zeros((1, codes.shape[1])))
    assert_allclose(display.decoded[:, 4], np.repeat(zero, 8, 0), rtol=1e-4, atol=1e-5)
    usage = model.component_usage_
    if len(usage) == codes.shape[1]:
        assert (np.diff(usage[display.components]) <= 0).all()
    assert display.values[-1] == -display.values[0] > 0


def test_range_without_rows_comes_from_the_prior():
    def reach(model):
        return LatentTraversalDisplay.from_estimator(model).values[-1]

    lasso = clone(EACH["lasso"]).fit(X)
    assert reach(lasso) == pytest.approx(3 * 2**0.5 * lasso.prior_scale_)
    gaussian = SparseVAE(8, prior="gaussian", prior_scale=2.0, **SMALL).fit(X)
    assert reach(gaussian) == pytest.approx(6.0)
    # The slab has unit variance, although most codes are zero.
    spikes = SparseVAE(8, prior="spike_slab", density=0.01, **SMALL).fit(X)
    assert reach(spikes) == pytest.approx(3.0)
    assert reach(clone(EACH["cauchy"]).fit(X)) == pytest.approx(3.0)


def test_equally_used_components_are_ordered_by_how_much_they_change_the_row():
    model = clone(EACH["gaussian"]).fit(X)
    assert (model.component_usage_ == 1).all()
    display = LatentTraversalDisplay.from_estimator(model, X[0], values=[-1, 1])
    change = np.linalg.norm(display.decoded[:, 1] - display.decoded[:, 0], axis=1)
    assert (np.diff(change) <= 1e-6).all()


def test_mosaic_has_a_row_for_each_component():
    decoded = np.random.default_rng(0).normal(size=(3, 5, 6))
    display = LatentTraversalDisplay(
        decoded, components=[4, 0, 2], values=np.arange(5.0), image_shape=(2, 3)
    )
    assert display.plot(cmap="viridis", im_kw={"alpha": 0.5}) is display
    assert display.mosaic_.shape == (3 * 3 + 1, 5 * 4 + 1)
    for component in range(3):
        for value in range(5):
            tile = display.mosaic_[1 + 3 * component :, 1 + 4 * value :][:2, :3]
            assert_array_equal(tile, decoded[component, value].reshape(2, 3))
    (image,) = display.axes_[0].get_images()
    assert image.get_clim() == (decoded.min(), decoded.max())
    assert image.get_alpha() == 0.5
    figure, ax = plt.subplots()
    assert display.plot(ax=ax).figure_ is figure


def test_colour_is_rescaled_only_outside_the_unit_interval():
    decoded = np.random.default_rng(0).uniform(size=(1, 2, 12))
    options = {"components": [0], "values": [0, 1], "image_shape": (3, 2, 2)}
    mosaic = LatentTraversalDisplay(decoded, **options).plot().mosaic_
    assert_array_equal(mosaic[1:3, 1:3], np.moveaxis(decoded[0, 0].reshape(3, 2, 2), 0, -1))
    wide = LatentTraversalDisplay(4 * decoded - 2, **options).plot().mosaic_
    inside = wide[1:3, [1, 2, 4, 5]]
    assert_allclose([inside.min(), inside.max()], [0, 1], atol=1e-12)


def test_rows_that_are_not_images_are_drawn_as_curves():
    decoded = np.random.default_rng(0).normal(size=(5, 3, 6))
    display = LatentTraversalDisplay(decoded, components=range(5), values=[-1, 0, 1]).plot()
    assert display.image_shape is None
    assert len(display.axes_) == 5
    for component, axes in enumerate(display.axes_):
        assert axes.get_title() == f"component {component}"
        for line, row in zip(axes.get_lines(), decoded[component], strict=True):
            assert_array_equal(line.get_ydata(), row)
    display.figure_.canvas.draw()
    # Curves in place of one subplot stay within its space.
    figure, (first, second) = plt.subplots(1, 2)
    display.plot(ax=first, cmap="viridis", line_kw={"linewidth": 3})
    figure.canvas.draw()
    assert display.figure_ is figure
    assert display.axes_[0].get_lines()[0].get_linewidth() == 3
    assert all(axes.get_position().x1 <= second.get_position().x0 for axes in display.axes_)


def test_kind_and_shape_determine_how_rows_are_drawn():
    square = np.zeros((1, 2, 9))
    options = {"components": [0], "values": [0, 1]}
    assert LatentTraversalDisplay(square, **options).image_shape == (3, 3)
    assert LatentTraversalDisplay(square, kind="line", **options).image_shape is None
    with pytest.raises(ValueError, match="do not form a square"):
        LatentTraversalDisplay(np.zeros((1, 2, 6)), kind="image", **options)
    model = SparseVAE(
        4, encoder="conv", decoder="conv", image_shape=(1, 4, 4), max_iter=1, random_state=0
    )
    display = LatentTraversalDisplay.from_estimator(model.fit(X))
    assert display.image_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"components": [8]}, "from 0 to 7"),
        ({"components": [-1]}, "from 0 to 7"),
        ({"components": [0.5]}, "from 0 to 7"),
        ({"components": []}, "from 0 to 7"),
        ({"n_components": 0}, "'n_components' parameter must be"),
        ({"values": [np.nan]}, "values contains NaN"),
        ({"kind": "picture"}, "kind must be"),
        ({"image_shape": (3, 4)}, "multiplies to 12, but the decoded rows have 16"),
    ],
)
def test_bad_parameters_raise_an_error(params, message):
    model = clone(EACH["lasso"]).fit(X)
    with pytest.raises(ValueError, match=message):
        LatentTraversalDisplay.from_estimator(model, **params)
    assert not plt.get_fignums()


def test_bad_input_raises_an_error():
    with pytest.raises(TypeError, match="KMeans has no inverse_transform"):
        LatentTraversalDisplay.from_estimator(KMeans(2, n_init=1, random_state=0).fit(X))
    with pytest.raises(ValueError, match=r"decoded has shape \(2, 3\)"):
        LatentTraversalDisplay(np.zeros((2, 3)), components=[0, 1], values=[0, 1, 2])
    with pytest.raises(ValueError, match="X has 15 features"):
        LatentTraversalDisplay.from_estimator(clone(EACH["lasso"]).fit(X), X[0, 1:])
