"""scikit-learn's callbacks on all estimators, and the callbacks of this package."""

import copy
import importlib.util
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import skorch.callbacks
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import LoadInitState

import sklearn_vsc
from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc._base.coder import BaseSparseCoder
from sklearn_vsc.callbacks import EstimatorCheckpoint, ScoreMonitor

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

X = np.random.default_rng(0).standard_normal((60, 6))
NEURAL = [ThresholdedVSC, SparseVAE, SCVAE]
ALL = [*NEURAL, FISTADictionaryLearner]
needs_callbacks = pytest.mark.skipif(
    importlib.util.find_spec("sklearn.callback") is None, reason="scikit-learn before 1.9"
)
needs_save = pytest.mark.skipif(not hasattr(sklearn_vsc, "load"), reason="no save and load")


def make(cls, **params):
    return cls(4, **({"max_iter": 3, "random_state": 0, "tol": 0} | params))


class Recorder:
    """Records events from scikit-learn; stops the fit or fails after some epochs."""

    def __init__(self, stop_at=None, fail_at=None):
        self.events, self.fitted = [], []
        self.stop_at, self.fail_at = stop_at, fail_at

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        self.events.append(f"end {context.task_name}")
        self.fitted.append((fitted_estimator, fitted_estimator.score(X)))
        n_epochs = self.events.count("end epoch")
        if n_epochs == self.fail_at:
            raise ValueError("mine")
        return n_epochs == self.stop_at


# ------------------------------------------------------------------- scikit-learn's protocol


@needs_callbacks
@pytest.mark.parametrize("cls", ALL)
def test_a_fit_is_a_task_and_so_is_each_epoch(cls):
    recorder = Recorder()
    model = make(cls).set_callbacks(recorder).fit(X)
    epochs = ["begin epoch", "end epoch"] * 3
    assert recorder.events == ["setup", "begin fit", *epochs, "end fit", "teardown"]
    assert [fitted.n_iter_ for fitted, _ in recorder.fitted] == [1, 2, 3, 3]
    for fitted, score in recorder.fitted:
        # An estimator that was passed to a callback does not change as the fit continues.
        assert fitted.score(X) == score
        assert len(fitted.history_) == fitted.n_iter_
        assert fitted.history_ == model.history_[: fitted.n_iter_]
    # With so few rows all are used for evaluation, so the last epoch gives the final score.
    assert recorder.fitted[-2][1] == recorder.fitted[-1][1] == model.score(X)
    assert len({score for _, score in recorder.fitted}) == 3
    model.partial_fit(X)
    assert len(recorder.events) == 10


@needs_callbacks
@pytest.mark.parametrize("cls", ALL)
def test_watching_a_fit_does_not_change_it(cls):
    alone = make(cls).fit(X)
    watched = make(cls).set_callbacks(Recorder()).fit(X)
    assert_array_equal(alone.components_, watched.components_)
    assert alone.score(X) == watched.score(X)
    # Later draws do not change either.
    alone.partial_fit(X), watched.partial_fit(X)
    assert_array_equal(alone.components_, watched.components_)


@needs_callbacks
@pytest.mark.parametrize("cls", ALL)
def test_the_estimator_of_an_epoch_can_be_trained_further(cls):
    recorder = Recorder()
    make(cls).set_callbacks(recorder).fit(X)
    fitted = recorder.fitted[1][0]
    rest = [other for other, _ in recorder.fitted if other is not fitted]
    before = [copy.deepcopy(other.components_) for other in rest]
    fitted.partial_fit(X)
    assert fitted.n_iter_ == 3
    for other, components in zip(rest, before, strict=True):
        assert_array_equal(other.components_, components)


@needs_callbacks
@pytest.mark.parametrize("cls", ALL)
def test_a_callback_may_stop_the_fit(cls):
    model = make(cls).set_callbacks(Recorder(stop_at=2)).fit(X)
    assert model.n_iter_ == len(model.history_) == 2


@needs_callbacks
@pytest.mark.parametrize("cls", ALL)
def test_a_callback_that_fails_ends_the_fit_and_changes_nothing(cls):
    model, recorder = make(cls).fit(X), Recorder(fail_at=2)
    before = vars(model).copy()
    with pytest.raises(ValueError, match="mine"):
        model.set_callbacks(recorder).fit(X)
    assert recorder.events[-1] == "teardown"
    assert vars(model.set_callbacks()) == before


@needs_callbacks
def test_clones_pipelines_and_searches_keep_callbacks():
    recorder = Recorder()
    model = make(FISTADictionaryLearner).set_callbacks(recorder)
    make_pipeline(StandardScaler(), clone(model)).fit(X)
    assert recorder.events.count("end epoch") == 3
    GridSearchCV(model, {"alpha": [0.5, 1.0]}, cv=2).fit(X)
    assert recorder.events.count("end epoch") == 3 + 3 * 5


@needs_callbacks
@pytest.mark.parametrize("cls", [SCVAE, FISTADictionaryLearner])
def test_progress_bar_of_scikit_learn_is_shown(cls, capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    make(cls).set_callbacks(ProgressBar()).fit(X)
    assert f"{cls.__name__} - fit" in capsys.readouterr().out


WITHOUT = """
import numpy as np, sklearn.decomposition, sklearn.model_selection, sklearn.pipeline
try:
    import sklearn.callback
    del sklearn.callback.CallbackSupportMixin
except ImportError:
    pass
import sklearn_vsc
from sklearn_vsc.callbacks import ScoreMonitor
X = np.random.default_rng(0).standard_normal((20, 3))
for cls in (sklearn_vsc.FISTADictionaryLearner, sklearn_vsc.SCVAE):
    model = cls(2, max_iter=2, random_state=0).fit(X).partial_fit(X)
    for call in (lambda: model.set_callbacks(), ScoreMonitor):
        try:
            call()
        except TypeError as error:
            assert "needs scikit-learn 1.9" in str(error), error
        else:
            raise AssertionError("no error")
"""


def test_estimators_work_with_versions_of_scikit_learn_without_callbacks():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------- score monitor


@needs_callbacks
@pytest.mark.parametrize("cls", ALL)
def test_scores_of_each_epoch_are_recorded(cls):
    monitor, apart, recorder = ScoreMonitor(), ScoreMonitor(X[:20]), Recorder()
    model = make(cls).set_callbacks(monitor, apart, recorder).fit(X[20:])
    rows = {row["task_name"]: [] for row in monitor.get_logs().data}
    for row in monitor.get_logs().data:
        rows[row["task_name"]].append(row["score"])
    assert rows["epoch"] == [score for _, score in recorder.fitted[:-1]]
    assert rows["fit"] == [model.score(X[20:])]
    table = apart.get_logs().data_as_pandas
    assert table[table.task_name == "fit"].score.item() == model.score(X[:20])
    assert len(table) == 4


@needs_callbacks
def test_scores_of_frames_give_no_warning():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    monitor = ScoreMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(FISTADictionaryLearner).set_callbacks(monitor).fit(frame)
    assert len(monitor.get_logs().data) == 4


# ----------------------------------------------------------------------------- checkpoints


@pytest.fixture
def saved(monkeypatch):
    """Record every estimator that would be saved, with its path."""
    found = []

    def save(self, path):
        assert not [name for name in vars(self) if "callback_" in name or "_skl_call" in name]
        assert getattr(self, "callbacks", None) is None and getattr(self, "callback", None) is None
        found.append((path, self))

    monkeypatch.setattr(BaseSparseCoder, "save", save, raising=False)
    return found


@needs_callbacks
@pytest.mark.parametrize("how", ["callbacks", "set_callbacks"])
@pytest.mark.parametrize("cls", ALL)
def test_checkpoints_are_saved_at_the_given_interval(cls, how, saved):
    checkpoint = EstimatorCheckpoint("folder", every=2)
    if how == "set_callbacks":
        model = make(cls, max_iter=5).set_callbacks(checkpoint)
    elif cls is FISTADictionaryLearner:
        pytest.skip("does not have skorch callbacks")
    else:
        model = make(cls, max_iter=5, callbacks=[checkpoint])
    model.fit(X)
    assert [(path, kept.n_iter_) for path, kept in saved] == [("folder", 2), ("folder", 4)]
    assert saved[0][1].history_ == model.history_[:2]
    assert saved[0][1].score(X) != saved[1][1].score(X)
    # The estimator itself keeps its callbacks.
    assert getattr(model, "callbacks", None) == ([checkpoint] if how == "callbacks" else None)


@pytest.mark.parametrize("cls", NEURAL)
def test_checkpoints_count_the_epochs_of_all_fits(cls, saved):
    model = make(cls, callbacks=[EstimatorCheckpoint("folder", every=4)], warm_start=True).fit(X)
    assert not saved
    model.fit(X).partial_fit(X).partial_fit(X)
    assert [kept.n_iter_ for _, kept in saved] == [4, 8]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_intervals_must_be_whole_numbers(every):
    with pytest.raises(ValueError, match="'every' parameter must be a whole number"):
        EstimatorCheckpoint("folder", every=every)


@needs_callbacks
@needs_save
@pytest.mark.parametrize("cls", ALL)
def test_training_continues_from_a_checkpoint(cls, tmp_path):
    recorder = Recorder()
    checkpoint = EstimatorCheckpoint(tmp_path / "model", every=2)
    # Warnings are errors, so attributes for callbacks must be removed before saving.
    make(cls).set_callbacks(checkpoint, recorder).fit(X)
    model = sklearn_vsc.load(tmp_path / "model")
    kept, score = recorder.fitted[1]
    assert model.score(X) == score
    if cls is FISTADictionaryLearner:
        model.partial_fit(X), kept.partial_fit(X)
    else:
        for estimator in (model, kept.set_callbacks()):
            estimator.set_params(warm_start=True, max_iter=2).fit(X)
        assert model.n_iter_ == len(model.history_) == 4
    assert_array_equal(model.components_, kept.components_)


KILLED = """
import sys, numpy as np
from sklearn_vsc import SparseVAE
from sklearn_vsc.callbacks import EstimatorCheckpoint
X = np.random.default_rng(0).standard_normal((60, 6))
checkpoint = EstimatorCheckpoint(sys.argv[1])
model = SparseVAE(4, max_iter=100_000, tol=0, n_iter_no_change=100_000, random_state=0)
print("begins", flush=True)
model.set_params(callbacks=[checkpoint]).fit(X)
"""


@needs_save
@pytest.mark.slow
def test_the_last_checkpoint_opens_after_a_kill(tmp_path):
    rng, n_epochs = np.random.default_rng(0), []
    for attempt in range(8):
        path = tmp_path / str(attempt)
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "begins\n"
        while not path.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.0))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        model = sklearn_vsc.load(path)
        n_epochs.append(model.n_iter_)
        assert model.n_iter_ == len(model.history_) >= 1
        assert np.isfinite(model.score(X))
        model.set_params(warm_start=True, max_iter=1).fit(X)
    assert len(set(n_epochs)) > 1


# ------------------------------------------------------------------ skorch's own checkpoints


@pytest.mark.parametrize("cls", NEURAL)
def test_training_continues_from_checkpoints_of_skorch(cls, tmp_path):
    """A new estimator with the same parameters and rows continues from the files."""

    def checkpoint():
        return skorch.callbacks.Checkpoint(monitor=None, dirname=str(tmp_path))

    first = make(cls, callbacks=[checkpoint()]).fit(X)
    assert {path.name for path in tmp_path.iterdir()} >= {"params.pt", "optimizer.pt"}
    # The names in the file are those of module_, prefixed with "model.".
    weights = torch.load(tmp_path / "params.pt")
    assert {name.removeprefix("model.") for name in weights} == set(first.module_.state_dict())

    class Start(skorch.callbacks.Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 4:
                self.state = copy.deepcopy(net.module_.state_dict())
                self.steps = {
                    float(s["step"]) for s in net.optimizer_.state_dict()["state"].values()
                }

    start, source = Start(), checkpoint()
    second = make(cls, max_iter=2, callbacks=[source, LoadInitState(source), start]).fit(X)
    # Closed forms have no optimiser that counts its steps.
    assert start.steps == (set() if cls is ThresholdedVSC else {3.0})
    assert all((start.state[name] == weights[name]).all() for name in weights)
    assert second.n_iter_ == len(second.history_) == 5
    assert [record["epoch"] for record in second.history_] == [1, 2, 3, 4, 5]
    losses = [record["loss"] for record in second.history_]
    assert losses[:3] == pytest.approx([record["loss"] for record in first.history_])
    assert np.isfinite(second.score(X))


@pytest.mark.parametrize("cls", NEURAL)
def test_interruption_after_loading_keeps_the_loaded_model(cls, tmp_path):
    class Interrupt(skorch.callbacks.Callback):
        def on_batch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    checkpoint = skorch.callbacks.Checkpoint(monitor=None, dirname=str(tmp_path))
    first = make(cls, callbacks=[checkpoint]).fit(X)
    model = make(cls, callbacks=[checkpoint, LoadInitState(checkpoint), Interrupt()])
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(X)
    assert model.n_iter_ == len(model.history_) == 3
    assert model.score(X) == pytest.approx(first.score(X), abs=0.3)
