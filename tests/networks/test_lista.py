"""Estimators whose encoder is unrolled from their own dictionary: ``encoder='lista'``."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn

from sklearn_vsc import SparseVAE, ThresholdedVSC

X = load_digits().data[:500]
TRAINING = {"encoder": "lista", "max_iter": 15, "learning_rate_init": 1e-2, "random_state": 0}
SHORT = TRAINING | {"max_iter": 2, "n_components": 10}
SPIKES = {"prior": "spike_slab", "decoder": "linear"}

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

each = pytest.mark.parametrize(
    "estimator",
    [ThresholdedVSC(24, **TRAINING), SparseVAE(24, **SPIKES, **TRAINING)],
    ids=["thresholded", "spike_slab"],
)


@each
def test_it_learns_digits(estimator):
    model = clone(estimator).fit(X[:400])
    code = model.transform(X[400:])
    residual = X[400:] - model.inverse_transform(code)
    assert 0.05 < np.mean(code != 0) < 0.6
    assert np.sum(residual**2) < 0.4 * np.sum((X[400:] - X[:400].mean(0)) ** 2)
    # The score if all codes are zero: the best noise variance alone.
    power = np.mean((X[:400] - X[:400].mean(0)) ** 2)
    nothing = -32 * np.log(2 * np.pi * power) - np.sum(
        (X[400:] - X[:400].mean(0)) ** 2, 1
    ).mean() / (2 * power)
    assert model.score(X[400:]) > nothing + 10
    perceptron = clone(estimator).set_params(encoder="mlp").fit(X[:400])
    assert model.score(X[400:]) > perceptron.score(X[400:])


@each
def test_n_unrolled_is_the_number_of_steps(estimator):
    more = clone(estimator).set_params(n_unrolled=3, max_iter=1).fit(X)
    assert more.module_.encoder.coder.n_unrolled == 3
    one = clone(estimator).set_params(n_unrolled=1, max_iter=1).fit(X)
    assert not np.allclose(one.transform(X), more.transform(X))


@pytest.mark.parametrize(
    "estimator",
    [
        ThresholdedVSC(threshold_prior=None, **SHORT),
        ThresholdedVSC(prior="gaussian", threshold_prior="gamma", score_draws=4, **SHORT),
        ThresholdedVSC(gradient="straight_through", n_draws=2, objective="iwae", **SHORT),
        SparseVAE(prior="gaussian", decoder="linear", **SHORT),
        SparseVAE(prior="laplace", decoder="linear", objective="iwae", n_draws=3, **SHORT),
        SparseVAE(
            prior="cauchy", posterior_family="gaussian", decoder="linear", score_draws=4, **SHORT
        ),
        SparseVAE(gradient="nvil", **SPIKES, **SHORT),
        SparseVAE(n_refine=2, **SPIKES, **SHORT),
    ],
    ids=lambda e: "-".join(str(v) for v in (type(e).__name__, e.prior, e.objective, e.gradient)),
)
def test_every_family_and_objective_learns(estimator):
    model = clone(estimator).fit(X[:200])
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]
    assert np.isfinite(model.score(X[200:300]))


@each
def test_training_continues(estimator):
    model = clone(estimator).set_params(max_iter=5, warm_start=True).fit(X)
    before = model.score(X)
    module = model.module_
    model.fit(X)
    assert model.n_iter_ == 10 and model.module_ is not module
    assert model.score(X) > before
    assert model.partial_fit(X).n_iter_ == 11
    started = clone(estimator).partial_fit(X).partial_fit(X)
    assert started.n_iter_ == 2 and np.isfinite(started.score(X))


def test_types_and_units_of_rows():
    wide = ThresholdedVSC(**SHORT).fit(X)
    assert next(wide.module_.parameters()).dtype == torch.float64
    narrow = ThresholdedVSC(**SHORT).fit(X.astype(np.float32))
    assert narrow.transform(X.astype(np.float32)).dtype == np.float32
    assert_allclose(narrow.score(X), wide.score(X), rtol=1e-3)
    scaled = ThresholdedVSC(**SHORT).fit(1024 * X)
    assert_allclose(scaled.transform(1024 * X), wide.transform(X), rtol=1e-3, atol=1e-3)


def test_the_same_seed_starts_the_same_decoder():
    """The encoder draws no random numbers."""
    model, again = (ThresholdedVSC(**SHORT).fit(X) for _ in range(2))
    assert_array_equal(model.components_, again.components_)


def _make_degenerate(weight, kind):
    with torch.no_grad():
        if kind == "norms":
            weight *= torch.logspace(-3, 3, len(weight))[:, None]
        elif kind == "equal":
            weight[:] = weight[0].clone()
        else:
            weight[:5] = 0


@each
@pytest.mark.parametrize("kind", ["norms", "equal", "zero"])
def test_degenerate_dictionaries_code_and_train(estimator, kind):
    model = clone(estimator).set_params(max_iter=1).fit(X[:200].astype(np.float32))
    _make_degenerate(model.module_.decoder.weight, kind)
    rows = X[200:230].astype(np.float32)
    assert np.isfinite(model.score_samples(rows)).all()
    assert np.isfinite(model.transform(rows)).all()
    assert np.isfinite(model.posterior(rows).std).all()
    model.partial_fit(X[:200].astype(np.float32))
    assert np.isfinite(model.score_samples(rows)).all()


@pytest.mark.parametrize(
    ("estimator", "named"),
    [
        (SparseVAE(encoder="lista"), "decoder='mlp'"),
        (ThresholdedVSC(encoder="lista", decoder=nn.Linear(10, 64)), "decoder=Linear"),
        (ThresholdedVSC(encoder="lista", likelihood="bernoulli"), "likelihood='bernoulli'"),
        (ThresholdedVSC(encoder="lista", output_activation="tanh"), "output_activation='tanh'"),
    ],
)
def test_other_decoders_are_refused(estimator, named):
    with pytest.raises(ValueError, match=f"which {named}.* use decoder='linear', .*encoder='mlp'"):
        estimator.fit(X / 16)


@pytest.mark.parametrize("n_unrolled", [0, 2.5, "auto"])
def test_bad_numbers_of_steps_are_named(n_unrolled):
    with pytest.raises(ValueError, match="The 'n_unrolled' parameter"):
        ThresholdedVSC(n_unrolled=n_unrolled).fit(X)
