"""Refined posteriors through the estimators: `n_refine`."""

import copy
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from training_bounds import training_bound

from sklearn_vsc import SparseVAE, ThresholdedVSC
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.datasets import make_sparse_coded

X = load_digits().data[:500]
TRAINING = {"n_components": 24, "max_iter": 30, "random_state": 0, "solver": "gradient"}
SHORT = {"n_components": 12, "max_iter": 3, "random_state": 0, "solver": "gradient"}
PLAIN = {"encoder": "mlp", "n_refine": 0}


@pytest.fixture(
    params=[
        ThresholdedVSC(**PLAIN, **TRAINING),
        SparseVAE(prior="spike_slab", decoder="linear", **PLAIN, **TRAINING),
        SparseVAE(prior="spike_slab", slab="laplace", decoder="linear", **PLAIN, **TRAINING),
    ],
    ids=["thresholded", "gaussian_slab", "laplace_slab"],
    scope="module",
)
def plain(request):
    """An estimator fitted without refinement."""
    return clone(request.param).fit(X[:400])


def test_more_sweeps_raise_the_score_of_every_row(plain):
    model = copy.deepcopy(plain)
    bounds = [model.set_params(n_refine=n).score_samples(X[400:]) for n in (0, 1, 3, 10)]
    # Sweeps do not start from the posterior of the encoder.
    for fewer, more in pairwise(bounds[1:]):
        assert (more >= fewer - 1e-8 * np.abs(fewer)).all()
    assert bounds[-1].mean() > bounds[0].mean() + 1


def test_training_with_refinement_gives_a_better_model(plain):
    refined = clone(plain).set_params(n_refine=5).fit(X[:400])
    assert refined.score(X[400:]) > plain.score(X[400:]) + 2
    code = refined.transform(X[400:])
    assert 0.02 < np.mean(code != 0) < 0.6
    error = np.sum((X[400:] - refined.inverse_transform(code)) ** 2)
    plain_error = np.sum((X[400:] - plain.inverse_transform(plain.transform(X[400:]))) ** 2)
    assert error < plain_error


def test_codes_moments_and_draws_come_from_the_refined_posterior():
    model = ThresholdedVSC(n_refine=4, **TRAINING).fit(X[:200])
    rows = X[200:230]
    q = model.posterior(rows)
    code = model.transform(rows)
    assert ((code != 0) == (q.inclusion > 0.5)).all()
    draws = model.sample_posterior(rows, 400)
    assert_allclose((draws != 0).mean(0), q.inclusion, atol=0.12)
    assert_allclose(model.transform(rows[3:5]), code[3:5], rtol=1e-7, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*atoms are used")
@pytest.mark.parametrize(
    "model",
    [ThresholdedVSC(), SparseVAE(prior="spike_slab", decoder="linear")],
    ids=["thresholded", "spike_slab"],
)
def test_draws_for_codes_leave_posteriors_refined(model):
    """With more draws training would have differed, but this model is already trained."""
    model = clone(model).set_params(**SHORT).fit(X[:200])
    codes, score = model.transform(X[:50]), model.score(X[:50])
    unrefined = copy.deepcopy(model).set_params(n_refine=0).score(X[:50])
    assert score > unrefined + 0.1
    model.set_params(n_draws=20, objective="max_elbo")
    assert_array_equal(model.transform(X[:50]), codes)
    assert model.score(X[:50]) == score


@pytest.mark.filterwarnings("ignore:.*atoms are used")
def test_a_model_trained_on_draws_stays_unrefined_with_one_draw():
    sampled = SparseVAE(prior="spike_slab", decoder="linear", n_draws=2, **SHORT).fit(X[:200])
    score = sampled.score(X[:50])
    assert sampled.set_params(n_draws=1).score(X[:50]) == score
    assert sampled.set_params(n_refine=3).score(X[:50]) > score


@pytest.mark.filterwarnings("ignore:.*atoms are used")
def test_learning_rates_of_sampled_training_ignore_later_refinement():
    """Only refined posteriors tolerate the dictionary's higher learning rate."""
    fits = [
        SparseVAE(prior="spike_slab", decoder="linear", n_draws=2, n_refine=n_refine, **SHORT).fit(
            X[:200]
        )
        for n_refine in (0, 3)
    ]
    assert_array_equal(fits[0].components_, fits[1].components_)


@pytest.mark.parametrize(
    "model",
    [
        ThresholdedVSC(threshold_prior=None, n_refine=2, max_iter=1, solver="gradient"),
        ThresholdedVSC(decoder="mlp", n_refine=2, max_iter=1),
        SparseVAE(prior="laplace", decoder="linear", n_refine=2, max_iter=1),
    ],
)
def test_models_without_free_gates_are_refused(model):
    with pytest.raises(ValueError, match="n_refine=2 needs a linear decoder"):
        model.fit(X[:50])


@pytest.mark.filterwarnings("ignore:.*atoms are used by no training row")
@pytest.mark.parametrize(
    "model",
    [ThresholdedVSC(**TRAINING), SparseVAE(prior="spike_slab", decoder="linear", **TRAINING)],
    ids=["thresholded", "spike_slab"],
)
def test_the_encoder_learns_from_its_own_bound(model):
    """Refinement leaves the encoder's gradient unchanged, including that of its gates."""
    model = clone(model).set_params(max_iter=30).fit(X[:200])
    module, rows = model.module_.float(), torch.randn(20, 64, generator=torch.Generator())
    encoder = [*module.encoder.parameters(), *module.heads.parameters()]
    slopes = []
    for n_refine in (0, 3):
        objective = Objective("exact", n_refine=n_refine)
        bound = training_bound(module, rows, objective, torch.Generator(), kl_weight=1.0)
        slopes.append(torch.autograd.grad(bound.sum(), encoder))
    for alone, refined in zip(*slopes, strict=True):
        assert alone.abs().max() > 0
        assert_allclose(refined, alone, rtol=1e-5, atol=1e-6)


def test_codes_of_a_refined_model_are_no_denser_than_its_prior():
    """The noise variance stops where the codes of the training rows have the prior's density."""
    for density in (0.05, 0.2):
        model = ThresholdedVSC(density=density, n_refine=5, **TRAINING).fit(X)
        assert np.mean(model.transform(X) != 0) < 1.25 * density


def test_the_density_of_the_prior_does_not_bind_if_the_data_are_sparser():
    rows, *_ = make_sparse_coded(
        2000, n_features=20, n_components=20, density=0.05, noise=0.05, random_state=0
    )
    model = ThresholdedVSC(
        20, density=0.4, n_refine=5, max_iter=60, random_state=0, solver="gradient"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*atoms are used by no training row")
        model.fit(rows)
    assert np.mean(model.transform(rows) != 0) < 0.2
    assert_allclose(model.noise_variance_, 0.05**2, rtol=0.5)
