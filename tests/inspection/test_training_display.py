import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.inspection import TrainingDisplay

plt = pytest.importorskip("matplotlib.pyplot")

X = make_sparse_coded(n_samples=100, n_components=8, noise=0.1, random_state=0)[0]
TINY = {"max_iter": 3, "random_state": 0}
SMALL = TINY | {"hidden_layer_sizes": (8,)}
# What is drawn for each class: entries with their signs, and the labels of the panels.
DRAWN = {
    "lasso": (
        FISTADictionaryLearner(8, alpha=0.1, **TINY),
        {"loss": 1, "reconstruction": 1, "penalty": 1, "density": 1},
        ", ".join(["loss per row", "parts of the loss per row", "share of non-zero codes"]),
    ),
    "thresholded": (
        ThresholdedVSC(8, early_stopping=True, **TINY),
        {"loss": 1, "valid_loss": 1, "log_likelihood": -1, "kl": 1, "density": 1},
        "loss, nats per row, parts of the loss, nats per row, share of non-zero codes",
    ),
    "continuous": (
        SparseVAE(8, **SMALL),
        {"loss": 1, "log_likelihood": -1, "kl": 1},
        "loss, nats per row, parts of the loss, nats per row",
    ),
    "autoencoder": (
        SCVAE(8, **SMALL),
        {"loss": 1, "log_likelihood": -1, "penalty": 1, "density": 1},
        "loss, nats per row, parts of the loss, nats per row, share of non-zero codes",
    ),
}


@pytest.mark.parametrize(("estimator", "signs", "labels"), DRAWN.values(), ids=DRAWN)
def test_curves_show_the_history(estimator, signs, labels):
    model = estimator.fit(X)
    display = TrainingDisplay.from_estimator(model)
    assert list(display.lines_) == list(signs)
    for name, line in display.lines_.items():
        assert_array_equal(line.get_xdata(), range(1, model.n_iter_ + 1))
        assert_array_equal(line.get_ydata(), [signs[name] * r[name] for r in model.history_])
    assert ", ".join(axes.get_ylabel() for axes in display.axes_) == labels
    assert {axes.get_xlabel() for axes in display.axes_} == {"epoch"}
    assert all(axes.figure is display.figure_ for axes in display.axes_)
    display.figure_.canvas.draw()


def test_panels_with_several_curves_have_a_legend():
    history = [{"epoch": n, "loss": 1.0 / n, "kl": 0.5, "log_likelihood": 0.0} for n in (1, 2)]
    loss, parts = TrainingDisplay.from_history(history).axes_
    assert loss.get_legend() is None
    texts = [text.get_text() for text in parts.get_legend().get_texts()]
    assert texts == [r"$-$ log likelihood", "KL"]


def test_records_without_an_entry_leave_a_gap():
    history = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0, "density": 0.5}]
    display = TrainingDisplay.from_history(history)
    assert_array_equal(display.lines_["density"].get_xdata(), [2])
    assert display.axes_[1].get_ylim()[0] == 0
    assert len(display.axes_) == 2
    nothing = [{"epoch": 1, "loss": 1.0, "density": 0.0}]
    assert TrainingDisplay.from_history(nothing).axes_[1].get_ylim() == (0, 1)


def test_plot_on_given_axes():
    history = [{"epoch": n, "loss": 1.0 / n, "density": 0.5} for n in range(1, 50)]
    display = TrainingDisplay(history)
    figure, given = plt.subplots(1, 2)
    assert display.plot(ax=given, line_kw={"color": "red"}) is display
    assert list(display.axes_) == list(given)
    assert display.figure_ is figure
    assert display.lines_["loss"].get_color() == "red"
    assert display.lines_["loss"].get_marker() == ""
    # A single given axes is split into panels.
    figure, (first, second) = plt.subplots(1, 2)
    display.plot(ax=first)
    figure.canvas.draw()
    assert not first.axison
    assert display.figure_ is figure
    assert all(axes.get_position().x1 <= second.get_position().x0 for axes in display.axes_)
    with pytest.raises(ValueError, match="a single axes, or 2, one for each panel; got 3"):
        display.plot(ax=plt.subplots(1, 3)[1])
    with pytest.raises(ValueError, match="grid of subplots"):
        display.plot(ax=plt.figure().add_axes((0, 0, 1, 1)))


def test_bad_input_raises_an_error():
    with pytest.raises(ValueError, match="history is empty"):
        TrainingDisplay([])
    with pytest.raises(ValueError, match=r"needs 'epoch' and 'loss'; one has only \['epoch'\]"):
        TrainingDisplay([{"epoch": 1}])
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(SparseVAE())
    with pytest.raises(TypeError, match=r"PCA has no history_ to draw.*from_history"):
        TrainingDisplay.from_estimator(PCA(2).fit(X))
    with pytest.raises(TypeError, match=r"pipeline\[-1\]"):
        TrainingDisplay.from_estimator(make_pipeline(StandardScaler(), PCA(2)).fit(X))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    display = TrainingDisplay([{"epoch": 1, "loss": np.pi}])
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"TrainingDisplay needs .*sklearn-vsc\[plot\]"):
        display.plot()
