import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.inspection import CodeDisplay

plt = pytest.importorskip("matplotlib.pyplot")
pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

X = make_sparse_coded(n_samples=100, n_components=8, noise=0.1, random_state=0)[0]
INCOMPLETE = X.copy()
INCOMPLETE[::4, 0] = np.nan
SMALL = {"max_iter": 2, "hidden_layer_sizes": (8,), "random_state": 0}
# Each with whether its posterior puts mass on zero.
EACH = {
    "lasso": (FISTADictionaryLearner(8, alpha=0.1, max_iter=3, random_state=0), False),
    "no prior": (FISTADictionaryLearner(8, alpha=0.0, max_iter=3, random_state=0), False),
    "thresholded": (ThresholdedVSC(8, max_iter=2, random_state=0), True),
    "spike and slab": (SparseVAE(8, prior="spike_slab", decoder="linear", **SMALL), True),
    "continuous": (SparseVAE(8, **SMALL), False),
    "autoencoder": (SCVAE(8, **SMALL), False),
}


def heights(axes):
    return np.array([patch.get_height() for patch in axes.patches])


@pytest.mark.parametrize(("estimator", "has_atom"), EACH.values(), ids=EACH)
def test_panels_show_codes_and_posterior(estimator, has_atom):
    model = clone(estimator).fit(INCOMPLETE)
    display = CodeDisplay.from_estimator(model, INCOMPLETE)
    codes = model.transform(INCOMPLETE)
    assert_array_equal(display.values, codes[codes != 0])
    assert_allclose(display.usage, (codes != 0).mean(0))
    assert len(display.axes_) == 2 + has_atom
    sizes, use = display.axes_[:2]
    assert codes.any()
    counts, _ = np.histogram(codes[codes != 0], bins=50)
    assert_array_equal(heights(sizes), counts)
    assert sizes.get_yscale() == "log"
    values, edges, _ = use.patches[0].get_data()
    assert_allclose(values, sorted((codes != 0).mean(0), reverse=True))
    assert_allclose(edges, np.arange(9) + 0.5)
    if has_atom:
        inclusion = model.posterior(INCOMPLETE).inclusion
        counts, _ = np.histogram(inclusion, bins=50, range=(0, 1))
        assert_array_equal(heights(display.axes_[2]), counts)
        assert display.axes_[2].get_yscale() == "log"
    display.figure_.canvas.draw()


def test_codes_may_be_sparse_matrices_frames_and_tensors():
    codes = np.array([[0.0, 2.0, 0.0], [1.0, -3.0, 0.0]])
    explicit_zeros = csr_matrix(([0.0, 2.0, 1.0, -3.0], [0, 1, 0, 1], [0, 2, 4]), shape=(2, 3))
    frames = pytest.importorskip("pandas").DataFrame(codes)
    for given in (codes, csr_matrix(codes), explicit_zeros, frames, torch.from_numpy(codes)):
        display = CodeDisplay.from_codes(given, n_bins=5)
        assert sorted(display.values) == [-3, 1, 2]
        assert_array_equal(display.usage, [0.5, 1.0, 0.0])
        assert display.axes_[0].get_title() == "Non-zero: 50.0% of all"
        assert display.axes_[1].get_title() == "Atoms: 1 of 3 unused"
        assert len(display.axes_[0].patches) == 5
    model = FISTADictionaryLearner(8, alpha=0.1, max_iter=2, random_state=0, sparse_output=True)
    display = CodeDisplay.from_estimator(model.fit(X), X)
    dense = model.set_params(sparse_output=False).transform(X)
    assert_array_equal(np.sort(display.values), np.sort(dense[dense != 0]))
    assert_array_equal(display.usage, (dense != 0).mean(0))


def test_codes_that_are_all_zero_are_drawn():
    display = CodeDisplay.from_codes(np.zeros((3, 4)))
    assert display.axes_[0].texts[0].get_text() == "all codes are zero"
    assert display.axes_[1].get_title() == "Atoms: 4 of 4 unused"
    display.figure_.canvas.draw()


def test_estimators_of_scikit_learn_can_be_drawn():
    model = PCA(3).fit(X)
    assert_allclose(CodeDisplay.from_estimator(model, X).usage, 1)
    with pytest.raises(NotFittedError):
        CodeDisplay.from_estimator(PCA(3), X)
    with pytest.raises(TypeError, match=r"DBSCAN has no transform to draw.*from_codes"):
        CodeDisplay.from_estimator(DBSCAN().fit(X), X)


def test_plot_on_given_axes():
    display = CodeDisplay([[0.0, 1.0]], inclusion=[[0.25, 1.0]])
    figure, given = plt.subplots(3)
    assert display.plot(ax=given, n_bins=4, hist_kw={"color": "red"}) is display
    assert display.figure_ is figure
    assert list(display.axes_) == list(given)
    assert_array_equal(heights(given[2]), [0, 1, 0, 1])
    assert given[0].patches[0].get_facecolor() == (1, 0, 0, 1)
    assert given[2].get_title() == "Inclusion: mean 0.62"
    with pytest.raises(ValueError, match="a single axes, or 3, one for each panel; got 2"):
        display.plot(ax=plt.subplots(2)[1])


def test_bad_input_raises_an_error():
    with pytest.raises(ValueError, match="codes contains NaN"):
        CodeDisplay([[np.nan]])
    with pytest.raises(ValueError, match="inclusion must contain probabilities"):
        CodeDisplay([[1.0]], inclusion=[[1.5]])
    with pytest.raises(ValueError, match="'n_bins' parameter must be"):
        CodeDisplay.from_codes([[1.0]], n_bins=0)
