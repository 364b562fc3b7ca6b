import copy
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseVAE, ThresholdedVSC
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.metrics import gradient_snr


@pytest.fixture(scope="module", name="X")
def rows():
    X, _, _ = make_sparse_coded(80, 6, 9, density=0.3, noise=0.1, random_state=0)
    X[::5, 2] = np.nan
    return X


def decoder_ratios(model, X, n_draws):
    """Signal-to-noise ratios of dictionary and intercept gradients, for a Gaussian posterior.

    With one code, a linear decoder and r = x - b, the gradient of the loss is the sum over rows of
    (a z - r) z and of (a z - r), divided by the noise variance and the number of rows.
    """
    with torch.no_grad():
        x = model._units.to_model(X, torch.device("cpu"))
        q = model.module_.posterior(x)
        m, s = q.mean.numpy(), q.scale.numpy()
        a, b = model.module_.decoder.weight.numpy(), model.module_.decoder.bias.numpy()
    r = x.numpy() - b
    weight = (a * (m**2 + s**2) - r * m).sum(0)
    weight_noise = (s**2 * (2 * a * m - r) ** 2 + 2 * a**2 * s**4).sum(0)
    bias = (a * m - r).sum(0)
    bias_noise = (a**2 * s**2).sum(0)
    ratios = [
        np.abs(signal) / np.sqrt(noise / n_draws)
        for signal, noise in ((weight, weight_noise), (bias, bias_noise))
    ]
    return np.concatenate(ratios)


@pytest.mark.parametrize("n_draws", [1, 5])
def test_ratio_of_a_dictionary_in_closed_form(n_draws):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 1)) @ rng.normal(size=(1, 6)) + 0.5 * rng.normal(size=(40, 6))
    model = SparseVAE(
        1,
        prior="gaussian",
        decoder="linear",
        gradient="gumbel_softmax",
        hidden_layer_sizes=4,
        max_iter=2,
        random_state=0,
    ).fit(X)
    expected = [decoder_ratios(model, X[rows], n_draws) for rows in (slice(20), slice(20, 40))]
    found = gradient_snr(model, X, n_repeats=250, batch_size=20, n_draws=n_draws, random_state=0)
    # Noise inflates the smallest ratios; with 250 repeats, by a few hundredths.
    assert found.decoder == pytest.approx(np.mean(expected), rel=0.08)
    assert found.decoder_noiseless == 0


def test_rows_beyond_the_last_full_batch_are_ignored(fitted, X):
    model = fitted(SparseVAE(4, hidden_layer_sizes=8, max_iter=1, random_state=0), X)
    options = {"n_repeats": 3, "batch_size": 30, "random_state": 0}
    assert gradient_snr(model, X, **options) == gradient_snr(model, X[:60], **options)
    assert gradient_snr(model, X, **options) != gradient_snr(model, X[:30], **options)
    # Fewer rows than a batch form one batch.
    few = gradient_snr(model, X[:7], **options)
    assert few == gradient_snr(model, X[:7], n_repeats=3, batch_size=7, random_state=0)


def test_number_of_draws_defaults_to_the_estimators(fitted, X):
    model = fitted(SparseVAE(4, prior="gaussian", n_draws=7, max_iter=2, random_state=0), X)
    snr = gradient_snr(model, X, n_repeats=10, random_state=0)
    assert snr == gradient_snr(model, X, n_repeats=10, n_draws=7, random_state=0)
    one = gradient_snr(model, X, n_repeats=10, n_draws=1, random_state=0)
    # Seven times as many draws raise the ratio by nearly the square root of seven.
    assert 1.3 * one.decoder < snr.decoder
    assert 1.1 * one.encoder < snr.encoder
    assert gradient_snr(model, X, n_repeats=10, random_state=1) != snr


@pytest.mark.parametrize(
    "model",
    [
        ThresholdedVSC(4, solver="gradient", max_iter=2, random_state=0),
        SparseVAE(4, decoder="linear", gradient="exact", max_iter=2, random_state=0),
    ],
    ids=["thresholded", "sparse"],
)
def test_gradients_in_closed_form_have_no_noise(fitted, model, X):
    snr = gradient_snr(fitted(model, X), X, n_repeats=3)
    assert (snr.decoder, snr.encoder) == (math.inf, math.inf)
    assert (snr.decoder_noiseless, snr.encoder_noiseless) == (1, 1)


class Dropped(nn.Module):
    """A user's network with state that training changes and noise from the global generator."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(9, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    "model",
    [
        ThresholdedVSC(4, gradient="straight_through", n_draws=3, objective="max_elbo", max_iter=2),
        ThresholdedVSC(4, gradient="subgradient", threshold_prior=None, max_iter=2),
        ThresholdedVSC(4, prior="gaussian", threshold_prior="gamma", max_iter=2),
        SparseVAE(4, prior="spike_slab", gradient="gumbel_softmax", max_iter=2),
        SparseVAE(4, prior="spike_slab", gradient="nvil", max_iter=2),
        SparseVAE(4, encoder=Dropped(), decoder="mlp", max_iter=2),
        SCVAE(4, max_iter=2),
    ],
    ids=["best", "subgradient", "gaussian", "gumbel", "nvil", "own", "scvae"],
)
def test_the_estimator_and_global_generators_are_not_changed(fitted, model, X):
    model = fitted(model.set_params(random_state=0, batch_size=16, hidden_layer_sizes=8), X)
    state = copy.deepcopy(model.module_.state_dict())
    drawn = model._random_state.get_state()[1].copy()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        snr = gradient_snr(model, X, n_repeats=4, batch_size=40, random_state=0)
    for value in (snr.decoder, snr.encoder):
        assert 0 < value < math.inf
    # With 'subgradient', some parameters receive no noise from the draws.
    assert snr.decoder_noiseless < 0.1 > snr.encoder_noiseless
    assert all(torch.equal(value, state[key]) for key, value in model.module_.state_dict().items())
    assert all(p.grad is None for p in model.module_.parameters())
    assert not model.module_.training
    assert (model._random_state.get_state()[1] == drawn).all()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert gradient_snr(model, X, n_repeats=4, batch_size=40, random_state=0) == snr


def test_the_loss_is_the_training_loss(X):
    """It includes the weights of the KL and of the decoder's norm, after any warm-up."""
    params = {"hidden_layer_sizes": 4, "max_iter": 2, "random_state": 0}
    full = np.nan_to_num(X)
    model = SparseVAE(2, prior="gaussian", decoder="linear", gradient="exact", **params).fit(full)
    options = {"batch_size": 80, "n_passes": 1, "n_draws": None}

    def gradient():
        batches = model._training_gradients(full, random_state=np.random.RandomState(0), **options)
        return {k: v.numpy() for batch in batches for one in batch for k, v in one.items()}

    plain = gradient()
    weight = model.module_.decoder.weight.detach().numpy()
    model.set_params(decoder_penalty=0.5)
    assert_allclose(gradient()["decoder.weight"], plain["decoder.weight"] + weight, rtol=1e-4)
    model.set_params(decoder_penalty=0.0, kl_weight=3.0, kl_warmup=1.0)
    third = gradient()
    model.set_params(kl_weight=5.0)
    for name, value in gradient().items():
        assert_allclose(value, 2 * third[name] - plain[name], rtol=1e-3, atol=1e-4)


def test_error_messages_name_the_bad_input(fitted, X):
    with pytest.raises(NotFittedError):
        gradient_snr(SparseVAE(), X)
    model = FISTADictionaryLearner(4, max_iter=2, random_state=0).fit(np.nan_to_num(X))
    with pytest.raises(TypeError, match=r"stochastic gradients; got FISTADictionaryLearner\."):
        gradient_snr(model, X)
    model = fitted(SparseVAE(4, max_iter=1, random_state=0), X)
    with pytest.raises(ValueError, match="'n_repeats' parameter must be at least 2; got 1"):
        gradient_snr(model, X, n_repeats=1)
    for name in ("n_repeats", "batch_size", "n_draws"):
        with pytest.raises(ValueError, match=f"'{name}' parameter must be a whole number"):
            gradient_snr(model, X, **{name: 0})
    with pytest.raises(ValueError, match="9 features"):
        gradient_snr(model, X[:, :3])
