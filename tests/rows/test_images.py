"""Estimators with convolutional networks, for rows that represent images."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils._param_validation import InvalidParameterError
from skorch.callbacks import Callback
from torch import nn

from sklearn_vsc import SparseVAE, ThresholdedVSC
from sklearn_vsc.networks import BoundedDecoder, ConvDecoder, ConvEncoder, LinearDecoder

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

DIGITS = load_digits().data[:200]
CLASSES = [ThresholdedVSC, SparseVAE]
NETWORKS = [("conv", "conv"), ("mlp", "conv"), ("conv", "mlp"), ("conv", "linear")]
each_class = pytest.mark.parametrize("cls", CLASSES)
each_pair = pytest.mark.parametrize(("encoder", "decoder"), NETWORKS)


def small(cls, encoder="conv", decoder="conv", **params):
    defaults = {
        "image_shape": (1, 8, 8),
        "hidden_layer_sizes": (16,),
        "n_refine": 0,
        "score_draws": 4,
        "learning_rate_init": 5e-3,
        "batch_size": 20,
        "max_iter": 2,
        "random_state": 0,
    }
    return cls(6, encoder=encoder, decoder=decoder, **(defaults | params))


@each_class
@each_pair
def test_estimators_fit_improve_and_can_be_copied(cls, encoder, decoder):
    model = small(cls, encoder, decoder).fit(DIGITS)
    first, second = (record["loss"] for record in model.history_)
    assert second < first - 0.1
    parts = model.module_
    assert isinstance(parts.encoder[-1], ConvEncoder) == (encoder == "conv")
    assert isinstance(parts.decoder, ConvDecoder) == (decoder == "conv")
    assert isinstance(parts.decoder, LinearDecoder) == (decoder == "linear")
    codes = model.transform(DIGITS)
    assert codes.shape == (200, 6)
    assert model.inverse_transform(codes).shape == (200, 64)
    assert model.components_.shape == (6, 64) and model.sample(3).shape == (3, 64)
    assert np.isfinite(model.score(DIGITS))
    # The code of a row does not depend on other rows.
    assert_allclose(model.transform(DIGITS[7:8]), codes[7:8], rtol=1e-6, atol=1e-9)
    restored, again = pickle.loads(pickle.dumps(model)), clone(model).fit(DIGITS)
    for other in (restored, again):
        assert_array_equal(other.transform(DIGITS), codes)
        assert_array_equal(other.score_samples(DIGITS), model.score_samples(DIGITS))
    before = model.score(DIGITS)
    model.partial_fit(DIGITS).partial_fit(DIGITS)
    assert model.score(DIGITS) != before


def test_digits_are_learned():
    model = small(SparseVAE, prior="gaussian", max_iter=20, batch_size=50).fit(DIGITS)
    residual = DIGITS - model.inverse_transform(model.transform(DIGITS))
    # It actually explains 66%.
    assert np.sum(residual**2) < 0.5 * np.sum((DIGITS - DIGITS.mean(0)) ** 2)


@each_class
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_global_generators_and_batches_of_one_row(cls, dtype):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    X = DIGITS.astype(dtype)
    # The last batch has one row, and so has the data of partial_fit.
    model = small(cls, batch_size=179, early_stopping=True, validation_fraction=0.1).fit(X)
    model.partial_fit(X[:1])
    codes = model.transform(X)
    assert codes.dtype == model.inverse_transform(codes).dtype == dtype
    assert model.sample(2).dtype == dtype
    assert torch.equal(torch.get_rng_state(), before)


@each_class
def test_colour_images_may_have_odd_sizes(cls):
    X = np.random.default_rng(0).normal(size=(30, 3 * 5 * 9)) + np.arange(135)
    for image_shape in [(3, 5, 9), [3, 5, 9], np.array([3, 5, 9])]:
        model = small(cls, image_shape=image_shape).fit(X)
        assert model.inverse_transform(model.transform(X)).shape == X.shape


@each_class
@pytest.mark.parametrize(
    "params", [{"likelihood": "bernoulli"}, {"output_activation": "sigmoid"}], ids=str
)
def test_zero_codes_start_at_the_mean_image(cls, params):
    X = DIGITS / 16
    model = small(cls, learning_rate_init=1e-9, max_iter=1, **params).fit(X)
    decoder = model.module_.decoder
    bounded = isinstance(decoder, BoundedDecoder)
    assert isinstance(decoder.decoder if bounded else decoder, ConvDecoder)
    mean = X.mean(0).clip(0.01, 0.99)
    assert_allclose(model.inverse_transform(np.zeros((1, 6)))[0], mean, atol=1e-4)


def test_a_convolutional_decoder_is_not_linear():
    for encoder in ("conv", "mlp"):
        model = small(SparseVAE, encoder, prior="spike_slab").fit(DIGITS)
        assert not model._describe().trains_exactly and not model.module_.has_closed_likelihood
        assert not hasattr(model, "intercept_")
    assert small(SparseVAE, "conv", "linear")._describe().trains_exactly
    message = "decoder='conv'"
    for params in [
        {"gradient": "exact"},
        {"score_method": "collapsed_elbo"},
        {"encoder": "lista"},
    ]:
        with pytest.raises(ValueError, match=message):
            small(SparseVAE, **({"prior": "spike_slab"} | params)).fit(DIGITS)
    with pytest.raises(ValueError, match="n_refine=3 needs a linear decoder"):
        small(SparseVAE, prior="spike_slab", n_refine=3).fit(DIGITS)
    with pytest.raises(ValueError, match="a Cauchy posterior with an unbounded decoder"):
        small(SparseVAE, prior="cauchy").fit(DIGITS)


@each_class
@pytest.mark.parametrize(("encoder", "decoder"), [("mlp", "conv"), ("conv", "linear")])
@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        (None, r"must be \(channels, height, width\) .*'conv'.* got None"),
        ((8, 8), r"must be \(channels, height, width\) .* got \(8, 8\)"),
        ((), r".* three whole numbers of at least 1; got \(\)"),
        ((1, 8, 8.0), r".* three whole numbers of at least 1; got \(1, 8, 8.0\)"),
        ((1, 8, "8"), ".* three whole numbers of at least 1"),
        ((True, 8, 8), ".* three whole numbers of at least 1"),
        ((1, 0, 8), ".* three whole numbers of at least 1"),
        ((1, -8, -8), ".* three whole numbers of at least 1"),
        ([[1, 8, 8]], ".* three whole numbers of at least 1"),
        ((1, 8, 9), r"must multiply to the 64 features of X; got \(1, 8, 9\), .* to 72"),
    ],
)
def test_error_messages_name_the_bad_shape(cls, encoder, decoder, image_shape, message):
    model = small(cls, encoder, decoder, image_shape=image_shape)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=f"^The 'image_shape' parameter {message}"):
            call(DIGITS)
    assert not [name for name in vars(model) if name.endswith("_")]


@each_class
def test_error_messages_name_shapes_of_the_wrong_type(cls):
    with pytest.raises(InvalidParameterError, match="The 'image_shape' parameter"):
        small(cls, image_shape=64).fit(DIGITS)


@each_class
def test_other_networks_ignore_the_shape(cls):
    plain = small(cls, "mlp", "linear", image_shape=None).fit(DIGITS)
    for image_shape in [(1, 8, 8), (3, 3, 3)]:
        model = small(cls, "mlp", "linear", image_shape=image_shape).fit(DIGITS)
        assert_array_equal(model.transform(DIGITS), plain.transform(DIGITS))


@each_class
def test_a_users_own_convolutional_modules_work(cls):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten()
        )
        decoder = nn.Sequential(
            *(nn.Unflatten(1, (6, 1, 1)), nn.ConvTranspose2d(6, 4, 4), nn.ReLU()),
            *(nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Flatten()),
        )
        wrong = nn.Sequential(nn.Unflatten(1, (1, 8, 9)), nn.Conv2d(1, 4, 3, 2), nn.Flatten())
    # Training and scores decode several draws of each row.
    model = small(cls, encoder, decoder, n_draws=3).fit(DIGITS)
    assert model.module_.heads.linear.in_features == 36
    assert np.isfinite(model.score(DIGITS))
    codes = model.transform(DIGITS[:5])
    assert model.inverse_transform(codes).shape == (5, 64)
    with pytest.raises(ValueError, match=r"'encoder' must map .* fails"):
        small(cls, wrong).fit(DIGITS)


def test_convolutions_are_deterministic_while_training():
    seen = []

    class Watch(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(torch.backends.cudnn.deterministic)

    before = torch.backends.cudnn.deterministic
    model = small(SparseVAE, callbacks=[Watch()]).fit(DIGITS)
    assert all(seen) and len(seen) == 2
    assert torch.backends.cudnn.deterministic == before
    broken = copy.deepcopy(model).set_params(learning_rate_init=1e30, warm_start=True)
    with pytest.raises(ValueError, match="diverged"):
        broken.fit(DIGITS)
    assert torch.backends.cudnn.deterministic == before
