"""precision='bf16': networks, and nothing else, multiply in bfloat16."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn

import sklearn_vsc
from sklearn_vsc import SCVAE, SparseVAE, ThresholdedVSC
from sklearn_vsc._training.precision import check_precision, networks_in

DIGITS = load_digits().data[:300]
CPU = torch.device("cpu")
PARAMS = {"n_components": 16, "max_iter": 6, "random_state": 0, "device": "cpu"}
BERNOULLI = {"likelihood": "bernoulli", "decoder": "mlp", "hidden_layer_sizes": (64,)}
TANH = {"output_activation": "sigmoid", "decoder": "mlp", "hidden_layer_sizes": (64,)}
CONV = {"image_shape": (1, 8, 8), "encoder": "conv", "decoder": "conv"}
MODELS = {
    "lista": ThresholdedVSC(**PARAMS, solver="gradient"),
    "mlp": ThresholdedVSC(**PARAMS, encoder="mlp", gradient="straight_through"),
    "vae": SparseVAE(**PARAMS),
    "bernoulli": SparseVAE(**PARAMS, **BERNOULLI),
    "bounded": SparseVAE(**PARAMS, **TANH),
    "conv": SparseVAE(**PARAMS | {"max_iter": 2}, **CONV),
    "autoencoder": SCVAE(**PARAMS, hidden_layer_sizes=(64,)),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row")


def make(name, **params):
    return clone(MODELS[name]).set_params(**params)


class Watched(nn.Module):
    """An encoder that records the dtype of its layers' output."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.seen = set()

    def forward(self, x):
        features = self.layers(x)
        self.seen.add((self.training, features.dtype))
        return features


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_close_to_float32(name):
    X = DIGITS / 16 if name in ("bernoulli", "bounded") else DIGITS
    plain, mixed = make(name).fit(X), make(name, precision="bf16").fit(X)
    losses = [[record["loss"] for record in model.history_] for model in (plain, mixed)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert mixed.score(X) == pytest.approx(plain.score(X), rel=0.02)


def test_missing_entries_train_in_bfloat16():
    X = DIGITS.copy()
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    plain, mixed = make("vae").fit(X), make("vae", precision="bf16").fit(X)
    assert mixed.score(X) == pytest.approx(plain.score(X), rel=0.02)


def test_bfloat16_is_used_only_by_networks_and_only_in_training():
    model = make("vae", precision="bf16", encoder=Watched(), max_iter=2, early_stopping=True)
    model.fit(DIGITS)
    (watched,) = [part for part in model.module_.modules() if isinstance(part, Watched)]
    assert watched.seen == {
        (False, torch.float32),  # called once to find the number of its features
        (True, torch.bfloat16),
        (False, torch.bfloat16),  # the validation rows of early stopping
        (False, torch.float64),  # the codes of the fitted model
    }
    watched.seen.clear()
    model.transform(DIGITS)
    model.score(DIGITS)
    assert watched.seen == {(False, torch.float64)}
    assert {p.dtype for p in model.module_.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", MODELS)
def test_networks_return_float32(name):
    X = DIGITS[:8].astype(np.float32) / 16
    model = make(name, max_iter=1).fit(X).module_
    rows = torch.from_numpy(X)
    plain = model.posterior(rows)
    with networks_in("bf16", model.networks, CPU):
        posterior = model.posterior(rows)
        outputs = model.decoder(posterior.mean)
    assert posterior.mean.dtype == outputs.dtype == torch.float32
    error = (posterior.mean - plain.mean).norm()
    assert 0 < error < 0.05 * plain.mean.norm()
    assert not any("forward" in vars(part) for part in model.modules())


def test_networks_are_put_back_after_an_error():
    model = make("vae", max_iter=1).fit(DIGITS).module_
    with pytest.raises(RuntimeError, match="stop"), networks_in("bf16", model.networks, CPU):
        raise RuntimeError("stop")
    assert not any("forward" in vars(part) for part in model.modules())
    with networks_in("float32", model.networks, CPU):
        assert not any("forward" in vars(part) for part in model.modules())


def test_same_seed_gives_same_model():
    first, second = (make("vae", precision="bf16").fit(DIGITS) for _ in range(2))
    np.testing.assert_array_equal(first.components_, second.components_)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_dtype_of_the_rows(dtype):
    X = DIGITS.astype(dtype)
    model = make("vae", precision="bf16").fit(X)
    assert model.transform(X).dtype == model.components_.dtype == dtype


@pytest.mark.parametrize("name", ["lista", "vae", "autoencoder"])
def test_precision_is_kept(name, tmp_path):
    model = make(name, precision="bf16", max_iter=2).fit(DIGITS)
    model.save(tmp_path / "model")
    for again in (sklearn_vsc.load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        assert again.precision == "bf16"
        assert again.score(DIGITS) == model.score(DIGITS)
        np.testing.assert_array_equal(
            again.partial_fit(DIGITS).components_, clone_of(model).partial_fit(DIGITS).components_
        )


def clone_of(model):
    return pickle.loads(pickle.dumps(model))


def test_devices_without_bfloat16_are_refused(monkeypatch):
    for precision in ("float32", "bf16"):
        check_precision(precision, CPU)
    check_precision("float32", torch.device("mps"))
    with pytest.raises(ValueError, match=r"precision='bf16' .*'mps'.*precision='float32'"):
        check_precision("bf16", torch.device("mps"))
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda there=supported: there)
        if supported:
            check_precision("bf16", torch.device("cuda"))
        else:
            with pytest.raises(ValueError, match="precision='bf16'"):
                check_precision("bf16", torch.device("cuda:1"))


@pytest.mark.parametrize("name", ["lista", "vae", "autoencoder"])
def test_fit_checks_the_device_before_training(name, monkeypatch):
    model = make(name, precision="bf16")
    monkeypatch.setattr(type(model), "_device", lambda self: torch.device("mps"))
    for fit in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match="precision='bf16'"):
            fit(DIGITS)
    assert not hasattr(model, "module_")


@pytest.mark.parametrize("value", ["fp16", "bfloat16", None, 16])
def test_other_precisions_are_refused(value):
    with pytest.raises(ValueError, match="'precision' parameter"):
        make("vae", precision=value).fit(DIGITS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["lista", "vae", "conv", "autoencoder"])
def test_scores_on_a_gpu_are_close_to_float32(name):
    plain, mixed = (
        make(name, precision=precision, device="cuda").fit(DIGITS)
        for precision in ("float32", "bf16")
    )
    assert mixed.score(DIGITS) == pytest.approx(plain.score(DIGITS), rel=0.02)
