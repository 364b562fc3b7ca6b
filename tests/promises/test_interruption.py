"""Ctrl-C costs at most the epoch in which it is pressed."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from skorch.callbacks import Callback

from sklearn_vsc import (
    SCVAE,
    FISTADictionaryLearner,
    SparseVAE,
    ThresholdedVSC,
)
from sklearn_vsc._rows import arrays as _arrays
from sklearn_vsc._training import closed_form_training, model_fit, network_training
from sklearn_vsc._training.dictionary_fit import DictionaryFit
from sklearn_vsc._training.interruption import HeldInterrupts, unchanged_on_error

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

X = np.random.default_rng(0).standard_normal((60, 6))
NEURAL = [ThresholdedVSC, SparseVAE, SCVAE]
ALL = [*NEURAL, FISTADictionaryLearner]


@pytest.fixture(autouse=True)
def hears_ctrl_c():
    """Install the default handler: background jobs of a shell ignore SIGINT by default."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    """Press Ctrl-C, as a signal that Python handles before the next statement."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


def make(cls, **params):
    return cls(4, **({"max_iter": 3, "random_state": 0, "tol": 0} | params))


def state_of(model):
    """Return the state of an estimator as bytes."""
    return pickle.dumps({name: value for name, value in vars(model).items() if name != "callbacks"})


# --------------------------------------------------------------------------- deferring


def test_ctrl_c_interrupts_attempts_and_is_recorded_between_them():
    steps = []
    with HeldInterrupts() as interrupts:
        assert interrupts.attempt(lambda: "done") == "done"
        assert not interrupts.came
        press()
        assert interrupts.came
        assert interrupts.attempt(lambda: steps.append("not begun")) is None
    assert not steps
    with HeldInterrupts() as interrupts:
        assert interrupts.attempt(lambda: (press(), steps.append("after"))) is None
        assert interrupts.came
        press()
    assert not steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_before_the_first_attempt_ctrl_c_works_as_usual():
    with pytest.raises(KeyboardInterrupt), HeldInterrupts():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_keyboard_interrupt_ends_an_attempt_and_other_errors_are_raised():
    def raise_(error):
        raise error

    with HeldInterrupts() as interrupts:
        with pytest.raises(ValueError, match="mine"):
            interrupts.attempt(lambda: raise_(ValueError("mine")))
        assert not interrupts.came
        assert interrupts.attempt(lambda: raise_(KeyboardInterrupt)) is None
        assert interrupts.came


def test_a_handler_of_the_program_is_kept():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with HeldInterrupts() as interrupts:
            assert interrupts.attempt(lambda: (press(), "done"))[1] == "done"
        make(FISTADictionaryLearner).fit(X)
        press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1, 1]


def test_fits_in_other_threads_do_not_change_the_handler():
    failed, during = [], []

    def callback(_):
        during.append(signal.getsignal(signal.SIGINT))

    def fit():
        try:
            make(FISTADictionaryLearner, callback=callback).fit(X)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert not failed
    assert set(during) == {signal.default_int_handler}


def test_attributes_are_restored_after_an_error():
    class Thing:
        pass

    thing = Thing()
    thing.kept = 1
    with pytest.raises(KeyboardInterrupt), unchanged_on_error(thing):
        thing.kept, thing.new = 2, 3
        raise KeyboardInterrupt
    assert vars(thing) == {"kept": 1}


# ---------------------------------------------------------------------- at random moments


def run_interrupted(name, *numbers):
    script = Path(__file__).with_name("interrupted_fits.py")
    done = subprocess.run(
        [sys.executable, str(script), name, *map(str, numbers)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("cls", ALL)
def test_ctrl_c_at_random_moments(cls):
    run_interrupted(cls.__name__, 4, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("n_presses", [1, 3])
@pytest.mark.parametrize("cls", ALL)
def test_ctrl_c_at_many_random_moments(cls, n_presses):
    run_interrupted(cls.__name__, 60, n_presses, 1)


# ------------------------------------------------------------------- after the last epoch


def _last_look(cls):
    """Module and name of what looks at all rows once a model is trained."""
    if cls is ThresholdedVSC:
        return closed_form_training, "summarise"
    return network_training, "settle"


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("partly", [False, True])
def test_ctrl_c_after_the_training_keeps_it(cls, partly, monkeypatch):
    """The first look at the trained model is cut, before or after it changed something."""
    is_learner = cls is FISTADictionaryLearner
    owner, name = (DictionaryFit, "look") if is_learner else _last_look(cls)
    look, sizes = getattr(owner, name), []

    def cut(self, rows, *args, **kwargs):
        sizes.append(len(rows))
        if len(sizes) == 1:
            if partly:
                look(self, rows, *args, **kwargs)
            press()
        return look(self, rows, *args, **kwargs)

    monkeypatch.setattr(owner, name, cut)
    for module in (_arrays, model_fit):
        monkeypatch.setattr(module, "FEW_ROWS", 20)
    model = make(cls)
    with pytest.warns(UserWarning, match=r"interrupted.* 3 "):
        model.fit(X)
    # Another evaluation with fewer rows follows.
    assert sizes == [60, 20]
    assert model.n_iter_ == len(model.history_) == 3
    monkeypatch.undo()
    whole = make(cls).fit(X)
    if cls is FISTADictionaryLearner:
        assert_array_equal(model.components_, whole.components_)
    else:
        part = "decoder" if cls is ThresholdedVSC else "encoder"
        parts = (getattr(model.module_, part), getattr(whole.module_, part))
        for ours, theirs in zip(*(p.parameters() for p in parts), strict=True):
            assert torch.equal(ours, theirs)
        assert not model.module_.training
    assert model.score(X) == pytest.approx(whole.score(X), abs=0.5)
    model.partial_fit(X)
    assert model.n_iter_ == 4


@pytest.mark.parametrize("cls", NEURAL)
def test_a_second_ctrl_c_does_no_harm(cls, monkeypatch):
    class Twice(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training and len(net.history) == 2:
                press()

    owner, name = _last_look(cls)
    settle = getattr(owner, name)

    def pressed_again(*args):
        press()
        return settle(*args)

    monkeypatch.setattr(owner, name, pressed_again)
    model = make(cls, callbacks=[Twice()])
    with pytest.warns(UserWarning, match="last whole epoch, 1 of 3"):
        model.fit(X)
    assert model.n_iter_ == len(model.history_) == 1
    assert np.isfinite(model.score(X))


# ----------------------------------------------------------------- before the first epoch


@pytest.mark.parametrize("cls", ALL)
def test_ctrl_c_before_there_is_a_model_is_raised(cls, monkeypatch):
    first = "_draw_seeds" if cls is FISTADictionaryLearner else "_begin"
    monkeypatch.setattr(cls, first, lambda *args, **kwargs: press())
    model = make(cls)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert set(vars(model)) == set(model.get_params())


@pytest.mark.parametrize("cls", ALL)
def test_interrupted_partial_fit_raises_and_changes_nothing(cls, monkeypatch):
    fitted = make(cls).fit(X)
    for model in (make(cls), fitted):
        before, again = state_of(model), copy.deepcopy(model)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            # Ctrl-C is pressed in the middle of the pass, and after it.
            patch.setattr(cls, "_record_usage", lambda *args, **kwargs: press())
            model.partial_fit(X)
        assert state_of(model) == before
        assert_array_equal(model.partial_fit(X).components_, again.partial_fit(X).components_)


@pytest.mark.parametrize("cls", NEURAL)
def test_partial_fit_interrupted_in_its_pass_changes_nothing(cls):
    class Press(Callback):
        def on_batch_end(self, net, **kwargs):
            press()

    model = make(cls).fit(X).set_params(callbacks=[Press()])
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(X)
    assert state_of(model) == before


@pytest.mark.parametrize("cls", ALL)
def test_nothing_is_lost_if_warnings_are_errors(cls):
    class Press(Callback):
        def on_epoch_end(self, net, **kwargs):
            press()

    if cls is FISTADictionaryLearner:
        model = make(cls, callback=lambda call: press())
    else:
        model = make(cls, callbacks=[Press()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="interrupted"):
            model.fit(X)
    assert model.n_iter_ == len(model.history_) == 1
    assert np.isfinite(model.score(X))
