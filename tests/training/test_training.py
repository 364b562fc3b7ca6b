import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import Dataset
from torch import nn

from sklearn_vsc import SparseVAE, ThresholdedVSC
from sklearn_vsc._models.latent_variable import Heads, LatentVariableModel
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc._training.batches import InMemoryBatches
from sklearn_vsc._training.network_fit import train
from sklearn_vsc._training.options import TrainingOptions
from sklearn_vsc.latents import Thresholded
from sklearn_vsc.likelihoods import GaussianLikelihood
from sklearn_vsc.networks import LinearDecoder

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

DIGITS = load_digits().data[:200]
SMALL = {"max_iter": 6, "hidden_layer_sizes": (16,), "random_state": 0, "batch_size": 50}


def vsc(n_components=8, **params):
    return ThresholdedVSC(n_components, **({"solver": "gradient"} | SMALL | params))


def assert_same_state(module, state):
    """Compare weights with a state dict, except the noise variance, which is set after training."""
    now = {key: value.double() for key, value in module.state_dict().items()}
    assert set(now) == set(state)
    for key, value in state.items():
        if "noise_variance" not in key:
            assert_array_equal(now[key], value.double(), err_msg=key)


class Recorder(Callback):
    """Records what each event shows."""

    def __init__(self):
        self.states, self.optimizers, self.rates, self.events = [], [], [], []

    def on_train_begin(self, net, **kwargs):
        self.initial = copy.deepcopy(net.module_.model.state_dict())
        self.events.append("train_begin")

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.rates.append([group["lr"] for group in net.optimizer_.param_groups])

    def on_epoch_end(self, net, **kwargs):
        self.states.append(copy.deepcopy(net.module_.model.state_dict()))
        self.optimizers.append(copy.deepcopy(net.optimizer_.state_dict()["state"]))
        self.events.append("epoch_end")

    def on_train_end(self, net, **kwargs):
        self.events.append("train_end")


class Interrupt(Recorder):
    """Simulates Ctrl-C at one batch of one epoch, or at the end of the epoch."""

    def __init__(self, epoch, batch=2, at="batch_end"):
        super().__init__()
        self.epoch, self.batch, self.at = epoch, batch, at

    def _press(self, net, at):
        batches = len(net.history[-1]["batches"])
        if at == self.at and len(net.history) == self.epoch and batches >= self.batch:
            raise KeyboardInterrupt

    def on_batch_begin(self, net, training=False, **kwargs):
        self._press(net, "batch_begin")

    def on_batch_end(self, net, training=False, **kwargs):
        super().on_batch_end(net, training=training)
        self._press(net, "batch_end")

    def on_epoch_end(self, net, **kwargs):
        super().on_epoch_end(net)
        self._press(net, "epoch_end")


# ------------------------------------------------------------------------------- batches


def test_batches_hold_every_row_once():
    rows = torch.arange(11.0)[:, None]
    batches = InMemoryBatches(Dataset(rows), 4, torch.Generator().manual_seed(0))
    assert len(batches) == 3
    first, second = ([X for X, _ in batches] for _ in range(2))
    assert [len(X) for X in first] == [4, 4, 3]
    assert_array_equal(torch.cat(first).sort(dim=0)[0], rows)
    assert not torch.equal(torch.cat(first), rows)
    assert not torch.equal(torch.cat(first), torch.cat(second))
    in_order = torch.cat([X for X, _ in InMemoryBatches(Dataset(rows), 4)])
    assert_array_equal(in_order, rows)


# ------------------------------------------------------------------ the training function


def small_model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    family = Thresholded(gamma_shape=3.0)
    return LatentVariableModel(
        nn.Identity(),
        Heads(5, family.n_heads, 3, generator),
        LinearDecoder(torch.randn(3, 5, generator=generator)),
        GaussianLikelihood(1.0),
        family,
    )


def run(model, X, noise, order, state=None, objective="exact", **options):
    options = {"batch_size": 10, "schedule": False} | options
    return train(
        model,
        X,
        None,
        TrainingOptions(Objective(objective), **options),
        noise_generator=noise,
        order_generator=order,
        optimizer_state=state,
    )


@pytest.mark.parametrize("objective", ["exact", "elbo"])
def test_two_runs_equal_one_if_the_optimizer_state_is_passed_on(objective):
    X = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))

    def generators():
        return torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)

    whole, parts, forgetful = small_model(), small_model(), small_model()
    run(whole, X, *generators(), objective=objective, max_iter=6)
    pair = generators()
    first = run(parts, X, *pair, objective=objective, max_iter=2)
    kept = copy.deepcopy(first.optimizer_state)
    second = run(parts, X, *pair, first.optimizer_state, objective=objective, max_iter=4)
    assert [len(result.history) for result in (first, second)] == [2, 4]
    for key, value in whole.state_dict().items():
        assert_allclose(parts.state_dict()[key], value, rtol=1e-5, atol=1e-7, err_msg=key)
    # The state that was passed in is not modified.
    assert kept.keys() == dict(parts.named_parameters()).keys()
    for name, moments in kept.items():
        now = first.optimizer_state[name]
        assert all(torch.equal(moments[key], now[key]) for key in moments)
    pair = generators()
    run(forgetful, X, *pair, objective=objective, max_iter=2)
    run(forgetful, X, *pair, objective=objective, max_iter=4)
    assert not np.allclose(forgetful.decoder.weight.detach(), whole.decoder.weight.detach())


def test_moments_stay_with_their_parameters_when_the_rates_change():
    """The optimiser numbers parameters by learning rate, and refinement adds a rate."""
    X = np.random.default_rng(0).normal(size=(40, 6))
    model = SparseVAE(
        4,
        prior="spike_slab",
        decoder="linear",
        solver="gradient",
        hidden_layer_sizes=(5,),
        max_iter=2,
        random_state=0,
    ).fit(X)
    before = model._optimizer_state
    for n_refine in (0, "auto"):
        model.set_params(n_refine=n_refine, learning_rate_init=1e-9).partial_fit(X)
    assert model._optimizer_state.keys() == before.keys()
    for name, kept in model._optimizer_state.items():
        assert kept["exp_avg"].shape == model.module_.get_parameter(name).shape
        assert kept["step"] == 2 * before[name]["step"]
        # Second moments decay by a thousandth per step, so the earlier ones still dominate.
        left = 0.999 ** (kept["step"] - before[name]["step"])
        assert (kept["exp_avg_sq"] >= left * before[name]["exp_avg_sq"] * (1 - 1e-5)).all()


def test_learning_rate_rises_then_falls_and_a_linear_model_moves_faster():
    recorder = Recorder()
    vsc(max_iter=20, learning_rate_init=2e-3, callbacks=[recorder]).fit(DIGITS)
    rates = np.array(recorder.rates)
    # Weights of the encoder, the dictionary, and the noise variance.
    assert rates.shape == (80, 3)
    slow, fast = rates.min(1), rates.max(1)
    assert_allclose(fast, 10 * slow)
    assert_allclose(np.median(rates, axis=1), fast)
    peak = np.argmax(slow)
    assert 1 <= peak <= 5
    assert slow[peak] == pytest.approx(2e-3, rel=0.05)
    assert (np.diff(slow[: peak + 1]) > 0).all() and (np.diff(slow[peak:]) <= 0).all()
    assert slow[-1] < 1e-2 * slow[peak]


def test_learning_rate_of_partial_fit_is_constant():
    recorder = Recorder()
    model = vsc(learning_rate_init=2e-3, callbacks=[recorder])
    model.partial_fit(DIGITS).partial_fit(DIGITS)
    assert_allclose(np.min(recorder.rates, axis=1), 2e-3)
    assert len(recorder.rates) == 8


@pytest.mark.parametrize(
    ("warmup", "seen", "start"),
    [("kl_warmup", "kl_weight", 0.0), ("noise_warmup", "noise_scale", 0.1)],
)
def test_warm_ups_grow_over_their_share_of_the_steps(monkeypatch, warmup, seen, start):
    values = []
    bound = LatentVariableModel.training_step

    def spy(*args, **kwargs):
        values.append(kwargs[seen])
        return bound(*args, **kwargs)

    monkeypatch.setattr(LatentVariableModel, "training_step", spy)
    # 4 steps per epoch, 24 in total, 12 of them in the warm-up.
    model = vsc(gradient="straight_through", **{warmup: 0.5}).fit(DIGITS)
    expected = [min(1.0, start + (1 - start) * step / 12) for step in range(24)]
    assert_allclose(values, expected)
    values.clear()
    model.partial_fit(DIGITS)
    assert values == [1.0] * 4
    values.clear()
    clone(model).set_params(**{warmup: 0.0}).fit(DIGITS)
    assert values == [1.0] * 24


def test_validation_of_early_stopping_ignores_warm_ups(monkeypatch):
    values = []
    bound = LatentVariableModel.training_step

    def spy(model, *args, **kwargs):
        if not model.training:
            values.append((kwargs["kl_weight"], kwargs["noise_scale"]))
        return bound(model, *args, **kwargs)

    monkeypatch.setattr(LatentVariableModel, "training_step", spy)
    vsc(early_stopping=True, kl_warmup=1.0, noise_warmup=1.0).fit(DIGITS)
    assert values and set(values) == {(1.0, 1.0)}


# ------------------------------------------------------------------------------ stopping


def test_stops_without_improvement_of_the_training_loss():
    model = vsc(max_iter=50, n_iter_no_change=3, tol=1e9).fit(DIGITS)
    assert model.n_iter_ == len(model.history_) == 4
    model = vsc(max_iter=7, n_iter_no_change=3, tol=0.0).fit(DIGITS)
    assert model.n_iter_ == 7


def test_early_stopping_keeps_the_best_epoch():
    recorder = Recorder()
    # Few rows, many epochs and a high learning rate: the model overfits.
    params = {"max_iter": 60, "learning_rate_init": 2e-2, "n_iter_no_change": 5, "tol": 0.0}
    model = vsc(early_stopping=True, callbacks=[recorder], validation_fraction=0.3, **params)
    model.fit(DIGITS[:60])
    losses = [record["valid_loss"] for record in model.history_]
    assert all(type(loss) is float for loss in losses)
    assert model.n_iter_ == len(losses) < 60
    best = int(np.argmin(losses))
    assert best == len(losses) - 6
    assert_same_state(model.module_, recorder.states[best])
    # Callbacks are notified of the last epoch too.
    assert recorder.events == ["train_begin", *["epoch_end"] * len(losses), "train_end"]


def test_early_stopping_sets_rows_aside(monkeypatch):
    sizes = set()
    bound = LatentVariableModel.training_step

    def spy(model, x, *args, **kwargs):
        sizes.add((model.training, len(x)))
        return bound(model, x, *args, **kwargs)

    monkeypatch.setattr(LatentVariableModel, "training_step", spy)
    vsc(early_stopping=True, validation_fraction=0.25, batch_size=1000).fit(DIGITS)
    assert sizes == {(True, 150), (False, 50)}
    with pytest.raises(ValueError, match=r"early_stopping=True .*n_samples=1"):
        vsc(early_stopping=True).fit(DIGITS[:1])


# -------------------------------------------------------------------------- more training


def test_warm_start_continues_training():
    model = vsc(warm_start=True).fit(DIGITS)
    once = model.score(DIGITS)
    model.fit(DIGITS)
    assert model.n_iter_ == len(model.history_) == 12
    assert [record["epoch"] for record in model.history_] == list(range(1, 13))
    assert model.history_[6]["loss"] < model.history_[0]["loss"]
    assert model.score(DIGITS) > once
    with pytest.raises(ValueError, match="X has 63 features"):
        model.fit(DIGITS[:, 1:])
    cold = model.set_params(warm_start=False).fit(DIGITS)
    assert cold.n_iter_ == 6
    assert cold.score(DIGITS) == once


def test_optimizer_state_is_kept_in_partial_fit_and_warm_start():
    recorder = Recorder()
    model = vsc(callbacks=[recorder]).fit(DIGITS)

    def steps():
        return {float(state["step"]) for state in recorder.optimizers[-1].values()}

    assert steps() == {24.0}
    model.partial_fit(DIGITS)
    assert steps() == {28.0}
    model.set_params(warm_start=True, max_iter=2).fit(DIGITS)
    assert steps() == {36.0}
    model.set_params(warm_start=False).fit(DIGITS)
    assert steps() == {8.0}


def test_partial_fit_learns():
    model = vsc(learning_rate_init=5e-3)
    scores = []
    for _ in range(30):
        for start in range(0, 200, 50):
            model.partial_fit(DIGITS[start : start + 50])
        scores.append(model.score(DIGITS))
    assert model.n_iter_ == 120
    assert scores[-1] > scores[0] + 8
    assert model.score(DIGITS) > vsc(max_iter=1).fit(DIGITS).score(DIGITS) + 10


def test_partial_fit_counts_the_rows_of_all_calls():
    model = vsc(8, max_iter=60, learning_rate_init=5e-3).fit(DIGITS)
    usage = 200 * model.component_usage_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.partial_fit(DIGITS[:1])
    usage += model.transform(DIGITS[:1])[0] != 0
    assert_allclose(model.component_usage_, usage / 201)


def test_batches_larger_than_the_data_hold_all_rows():
    model = vsc(batch_size=10_000, learning_rate_init=1e-2).fit(DIGITS)
    assert_array_equal(model.components_, model.set_params(batch_size=200).fit(DIGITS).components_)
    recorder = Recorder()
    vsc(batch_size="auto", max_iter=1, callbacks=[recorder]).fit(DIGITS)
    assert len(recorder.rates) == 2  # 128 and 72


# ------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("epoch", [1, 3, 6])
@pytest.mark.parametrize("at", ["batch_begin", "batch_end"])
@pytest.mark.parametrize("params", [{}, {"early_stopping": True}, {"decoder": "mlp"}])
def test_interrupted_fit_keeps_the_last_whole_epoch(epoch, at, params):
    interrupt = Interrupt(epoch, at=at)
    model = vsc(callbacks=[interrupt], **params)
    with pytest.warns(UserWarning, match=rf"interrupted.*last whole epoch, {epoch - 1} of 6"):
        model.fit(DIGITS)
    assert model.n_iter_ == len(model.history_) == epoch - 1 == len(interrupt.states)
    state = interrupt.states[-1] if interrupt.states else interrupt.initial
    assert_same_state(model.module_, state)
    # The model is usable and can be trained further.
    for call in (model.transform, model.score_samples, model.sample_posterior):
        assert np.isfinite(call(DIGITS)).all()
    assert model.components_.shape == (8, 64)
    assert not model.module_.training
    restored = pickle.loads(pickle.dumps(model.set_params(callbacks=None)))
    assert_array_equal(restored.transform(DIGITS), model.transform(DIGITS))
    model.partial_fit(DIGITS)
    assert model.n_iter_ == len(model.history_) == epoch
    assert model.history_[-1]["epoch"] == epoch


def test_interruption_between_epochs_keeps_the_finished_epoch():
    interrupt = Interrupt(3, at="epoch_end")
    model = vsc(callbacks=[interrupt])
    with pytest.warns(UserWarning, match="3 of 6"):
        model.fit(DIGITS)
    assert model.n_iter_ == 3
    assert_same_state(model.module_, interrupt.states[2])


def test_optimizer_state_after_an_interruption_is_that_of_the_last_whole_epoch():
    interrupt, recorder = Interrupt(3), Recorder()
    model = vsc(callbacks=[interrupt])
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(DIGITS)
    model.set_params(callbacks=[recorder]).partial_fit(DIGITS)
    # Two whole epochs of four steps, then one more.
    assert {float(state["step"]) for state in recorder.optimizers[-1].values()} == {12.0}


def test_interrupted_warm_start_counts_whole_epochs():
    model = vsc(warm_start=True).fit(DIGITS)
    before = copy.deepcopy(model)
    model.set_params(callbacks=[Interrupt(1)])
    with pytest.warns(UserWarning, match="0 of 6"):
        model.fit(DIGITS)
    assert model.n_iter_ == 6
    assert_allclose(model.components_, before.components_, rtol=1e-6)


# ---------------------------------------------------------------------------- divergence


class Spoiled(nn.Module):
    """A linear decoder that gives NaN from a given training step on."""

    def __init__(self, step, n_components=8, n_features=64):
        super().__init__()
        self.linear = nn.Linear(n_components, n_features)
        self.step, self.n_steps = step, 0

    def forward(self, code):
        self.n_steps += self.training
        output = self.linear(code)
        return output * math.nan if self.training and self.n_steps >= self.step else output


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class BadGradient(nn.Linear):
    """A decoder whose output is fine, but not its gradient."""

    def forward(self, code):
        return _BadGradient.apply(super().forward(code))


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (4, 1), (5, 2), (11, 3)])
def test_divergence_names_the_epoch_and_a_remedy(step, epoch):
    model = vsc(decoder=Spoiled(step))
    with pytest.raises(ValueError, match=rf"at epoch {epoch}\. .*'learning_rate_init'"):
        model.fit(DIGITS)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_huge_learning_rates_diverge_with_an_error(gradient):
    model = vsc(learning_rate_init=1e10, gradient=gradient)
    with pytest.raises(ValueError, match=r"Training diverged.*epoch 1\. .*'batch_size'"):
        model.fit(DIGITS)


def test_non_finite_weights_after_the_last_step_are_detected():
    # A single step: its loss is finite, but the weights after it are not.
    model = vsc(decoder=BadGradient(8, 64), max_iter=1, batch_size=200)
    with pytest.raises(ValueError, match="weights are not finite at epoch 1"):
        model.fit(DIGITS)


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_divergence_leaves_an_earlier_fit_alone(call):
    model = vsc(warm_start=True).fit(DIGITS)
    before = copy.deepcopy(model)
    model.set_params(learning_rate_init=1e10, batch_size=10)
    with pytest.raises(ValueError, match="diverged"):
        getattr(model, call)(DIGITS)
    assert_array_equal(model.transform(DIGITS), before.transform(DIGITS))
    assert_array_equal(model.score_samples(DIGITS), before.score_samples(DIGITS))
    assert model.history_ == before.history_
    assert model.n_iter_ == before.n_iter_
    model.set_params(learning_rate_init=1e-3).partial_fit(DIGITS)
    assert model.n_iter_ == 7


def test_divergence_before_any_step_names_other_causes():
    with pytest.raises(ValueError, match=r"epoch 1\. No step was taken yet.*'decoder' of your own"):
        vsc(decoder=Spoiled(1)).fit(DIGITS)
    # The units of a fit that goes on are those of the first one.
    model = vsc(warm_start=True).fit(DIGITS)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="rows of X far larger than those of the first fit"):
        model.fit(DIGITS * 1e60)
    assert_array_equal(model.score_samples(DIGITS), before.score_samples(DIGITS))
    # Random numbers that a failed call drew are drawn again.
    model.partial_fit(DIGITS), before.partial_fit(DIGITS)
    assert_array_equal(model.components_, before.components_)


@pytest.mark.parametrize("scale", [1e-98, 1e30, 1e98])
def test_values_beyond_single_precision_are_trained_on(scale):
    model, scaled = vsc().fit(DIGITS), vsc().fit(DIGITS * scale)
    assert_allclose(scaled.transform(DIGITS * scale), model.transform(DIGITS), rtol=1e-3, atol=1e-4)
    assert scaled.score(DIGITS * scale) == pytest.approx(
        model.score(DIGITS) - 64 * math.log(scale), rel=1e-6
    )


def test_values_whose_squares_overflow_are_refused():
    model = vsc()
    with pytest.raises(ValueError, match=r"at most 1.6e\+161 in size.*scale X"):
        model.fit(DIGITS * 1e160)
    assert not [name for name in vars(model) if name.endswith("_")]


@pytest.mark.parametrize(
    "params",
    [{"learning_rate_init": 1.0}, {"learning_rate_init": 10.0, "decoder": "mlp"}],
)
def test_a_loss_that_rises_without_bound_is_reported(params):
    model = SparseVAE(8, **(SMALL | {"max_iter": 15, "noise_variance": 1.0} | params))
    with pytest.warns(
        UserWarning, match=r"Training diverged: the loss rose from .*'learning_rate_init'"
    ):
        model.fit(DIGITS)


@pytest.mark.parametrize(
    "params",
    [
        {"kl_warmup": 1.0},
        {"kl_warmup": 1.0, "kl_weight": 1000.0},
        {"kl_warmup": 0.5, "kl_weight": 10.0, "noise_variance": 1e-3},
        {"noise_warmup": 1.0, "noise_variance": 1e-2},
        {"decoder": "mlp", "n_draws": 4, "objective": "iwae"},
        {"decoder_penalty": 10.0},
    ],
)
def test_warm_ups_are_not_reported_as_divergence(params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*atoms are used by no training row")
        vsc(**params, max_iter=12, gradient="straight_through").fit(DIGITS)


def test_divergence_of_a_first_fit_leaves_no_fit():
    model = vsc(learning_rate_init=1e10)
    with pytest.raises(ValueError, match="diverged"):
        model.fit(DIGITS)
    assert not [name for name in vars(model) if name.endswith("_")]


# ------------------------------------------------------------------- callbacks, verbosity


def test_callbacks_are_passed_through():
    recorder = Recorder()
    for callbacks in ([recorder], (recorder,), [("mine", recorder)]):
        recorder.events.clear()
        vsc(callbacks=callbacks).fit(DIGITS)
        assert recorder.events == ["train_begin", *["epoch_end"] * 6, "train_end"]


def test_callbacks_that_only_listen_change_nothing():
    plain, listened = vsc().fit(DIGITS), vsc(callbacks=[Recorder()]).fit(DIGITS)
    assert_array_equal(plain.components_, listened.components_)


def test_a_users_early_stopping_is_not_an_interruption():
    stop = EarlyStopping(monitor="train_loss", patience=2, threshold=1e9, threshold_mode="abs")
    model = vsc(callbacks=[stop]).fit(DIGITS)
    assert model.n_iter_ == len(model.history_) == 3


def test_verbose_shows_a_progress_bar(capsys):
    vsc(verbose=1).fit(DIGITS)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Epoch 6 of 6: 100%|" in shown.err and "24/24" in shown.err
    assert "train_loss" in shown.err and "valid_loss" not in shown.err
    vsc(verbose=True, early_stopping=True).fit(DIGITS).partial_fit(DIGITS)
    shown = capsys.readouterr()
    assert "valid_loss" in shown.err and "Epoch 1 of 1: 100%|" in shown.err
    with pytest.warns(UserWarning, match="interrupted"):
        vsc(verbose=1, callbacks=[Interrupt(3)]).fit(DIGITS)
    assert "Epoch 2 of 6" in capsys.readouterr().err


@pytest.mark.parametrize("early_stopping", [False, True])
def test_quiet_by_default(capsys, early_stopping):
    params = {"early_stopping": early_stopping, "n_iter_no_change": 1, "tol": 1e9}
    vsc(**params).fit(DIGITS).partial_fit(DIGITS)
    vsc(verbose=0).fit(DIGITS)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


# ------------------------------------------------------------------------ a user's modules


class Encoder(nn.Module):
    def __init__(self, n_in=64, n_out=10):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return torch.relu(self.drop(self.linear(x)))


def modules():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "encoder": Encoder(),
            "decoder": nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 64)),
        }


@pytest.mark.parametrize("given", [("encoder",), ("decoder",), ("encoder", "decoder")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_users_modules_are_trained_as_copies(given, dtype):
    parts = {name: modules()[name] for name in given}
    kept = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    X = DIGITS.astype(dtype)
    model = vsc(score_draws=4, **parts).fit(X)
    for name, part in parts.items():
        assert getattr(model, name) is part
        assert part.training
        assert all(torch.equal(value, kept[name][key]) for key, value in part.state_dict().items())
        trained = getattr(model.module_, name)
        assert trained is not part
        pairs = zip(trained.parameters(), part.parameters(), strict=True)
        assert not all(torch.equal(ours.float(), theirs) for ours, theirs in pairs)
    assert model.components_.shape == (8, 64)
    assert model.transform(X).dtype == dtype
    assert_array_equal(model.score_samples(X), model.score_samples(X))

    again = vsc(score_draws=4, **parts).fit(X)
    assert_array_equal(again.score_samples(X), model.score_samples(X))
    copied = clone(model).fit(X)
    assert copied.get_params()[given[0]] is not parts[given[0]]
    assert_array_equal(copied.score_samples(X), model.score_samples(X))
    restored = pickle.loads(pickle.dumps(model))
    assert_array_equal(restored.score_samples(X), model.score_samples(X))


def test_dropout_leaves_the_global_generator_alone():
    parts = modules()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = vsc(score_draws=2, **parts).fit(DIGITS)
    model.partial_fit(DIGITS)
    model.score(DIGITS), model.transform(DIGITS), model.sample(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    other = vsc(score_draws=2, **parts).fit(DIGITS)
    other.partial_fit(DIGITS)
    assert_array_equal(other.score_samples(DIGITS), model.score_samples(DIGITS))
    # Here the seed only affects the order of rows, the draws and dropout.
    different = clone(other).set_params(random_state=1).fit(DIGITS).partial_fit(DIGITS)
    assert not np.allclose(different.posterior(DIGITS).mean, model.posterior(DIGITS).mean)


def test_dropout_is_active_only_in_training():
    class Spy(nn.Dropout):
        calls = set()

        def forward(self, x):
            self.calls.add((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    vsc(encoder=nn.Sequential(Spy(0.5), nn.Linear(64, 8))).fit(DIGITS).transform(DIGITS)
    assert Spy.calls == {(True, True), (False, False)}


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("encoder", nn.Linear(63, 10), r"'encoder' must map \(n, 64\) to \(n, n_hidden\)"),
        ("encoder", nn.Flatten(0), r"'encoder' must map .* made \(64,\)"),
        ("encoder", nn.LSTM(64, 3), "'encoder' must map .* gave a tuple"),
        ("encoder", nn.Conv2d(1, 1, 3), "'encoder' must map .* fails"),
        ("encoder", nn.BatchNorm2d(64), "'encoder' must map .* fails"),
        ("decoder", nn.Linear(8, 63), r"'decoder' must map \(n, 8\) to \(n, 64\); .* \(1, 63\)"),
        ("decoder", nn.Linear(9, 64), r"'decoder' must map \(n, 8\) to \(n, 64\), but it fails"),
        ("decoder", nn.Unflatten(1, (2, 4)), r"'decoder' must map .* made \(1, 2, 4\)"),
    ],
)
def test_modules_of_the_wrong_shape_are_named(name, module, message):
    with pytest.raises(ValueError, match=message):
        vsc(**{name: module}).fit(DIGITS)


def test_modules_in_double_precision_are_accepted():
    parts = {"encoder": nn.Linear(64, 6).double(), "decoder": nn.Linear(8, 64).double()}
    model = vsc(**parts).fit(DIGITS)
    assert np.isfinite(model.score(DIGITS))
    assert {part.weight.dtype for part in parts.values()} == {torch.float64}
