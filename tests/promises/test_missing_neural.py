"""Missing values (NaN) in the estimators that train a network."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils import get_tags
from torch import nn
from training_bounds import training_bound

from sklearn_vsc import SCVAE, SparseVAE, ThresholdedVSC
from sklearn_vsc._models.inferred_posterior import inferred
from sklearn_vsc._models.latent_variable import Heads, LatentVariableModel
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.latents import SpikeSlab
from sklearn_vsc.likelihoods import BernoulliLikelihood, GaussianLikelihood
from sklearn_vsc.networks import (
    EncoderInput,
    LinearDecoder,
    TiedEncoder,
    UnrolledCoder,
    mlp,
)
from sklearn_vsc.solvers.least_squares import effective_dictionary
from sklearn_vsc.solvers.linear_model.parameters import Slab, SparseLinear
from sklearn_vsc.solvers.linear_model.row_posteriors import Stops
from sklearn_vsc.solvers.missing import n_observed, observed
from sklearn_vsc.solvers.posterior.collapsed import conditional_mean, log_evidence
from sklearn_vsc.solvers.posterior.coordinate_ascent import SlabPrior, refine, refine_observed

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

DIGITS = load_digits().data[:240]
NOISE, SCALE, DENSITY = 0.2, 1.3, 0.3
SMALL = {
    "n_components": 8,
    "max_iter": 3,
    "hidden_layer_sizes": (16,),
    "learning_rate_init": 5e-3,
    "random_state": 0,
}
VARIANTS = {
    "thresholded": ThresholdedVSC(**SMALL),
    "thresholded_mlp": ThresholdedVSC(threshold_prior=None, decoder="mlp", n_draws=2, **SMALL),
    "spike_slab": SparseVAE(prior="spike_slab", decoder="linear", **SMALL),
    "laplace": SparseVAE(**SMALL),
    "scvae": SCVAE(**SMALL),
}
# The same with networks.
NETWORKS = {
    key: clone(estimator).set_params(solver="gradient")
    for key, estimator in VARIANTS.items()
    if hasattr(estimator, "solver")
}
each = pytest.mark.parametrize("estimator", VARIANTS.values(), ids=VARIANTS.keys())


def with_missing(X, share=0.3, seed=0):
    """X with a share of its entries missing; the first row is complete."""
    hidden = np.random.RandomState(seed).uniform(size=X.shape) < share
    hidden[0] = False
    # Each row keeps at least one entry.
    hidden[:, 20 % X.shape[1]] = False
    return np.where(hidden, np.nan, X)


INCOMPLETE = with_missing(DIGITS)

_FITS: dict = {}


def fitted(estimator, X=INCOMPLETE):
    """A fit of 200 digits, with or without missing entries, made once and returned as a copy."""
    key = (id(estimator), id(X))
    if key not in _FITS:
        _FITS[key] = clone(estimator).fit(X[:200])
    return copy.deepcopy(_FITS[key])


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def observed_mask(*shape, seed=3):
    """A mask of observed entries: all of the first row, at least one of each row."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[0], mask[:, 1] = True, True
    return mask


# --------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(NOISE), BernoulliLikelihood()])
def test_log_prob_is_that_of_the_observed_features(likelihood):
    likelihood = likelihood.double()
    x, output, mask = torch.rand(6, 5).double(), normal(3, 6, 5), observed_mask(6, 5)
    found = likelihood.log_prob(torch.where(mask, x, math.nan), output)
    for i, seen in enumerate(mask):
        alone = likelihood.log_prob(x[i : i + 1, seen], output[:, i : i + 1, seen])
        assert_allclose(found[:, i : i + 1].detach(), alone.detach(), rtol=1e-12)


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(NOISE), BernoulliLikelihood()])
def test_no_gradient_comes_from_a_missing_entry(likelihood):
    x, output, mask = torch.rand(6, 5), torch.randn(6, 5, requires_grad=True), observed_mask(6, 5)
    likelihood.log_prob(torch.where(mask, x, math.nan), output).sum().backward()
    assert (output.grad[~mask] == 0).all()
    assert torch.isfinite(output.grad).all() and (output.grad[mask] != 0).all()
    assert all(p.grad.isfinite().all() for p in likelihood.parameters())


def test_a_mask_of_complete_rows_is_none():
    x = normal(4, 3)
    assert observed(x) is None and n_observed(x) == 3
    x[1, 2] = math.nan
    assert_array_equal(observed(x), ~np.isnan(x.numpy()))
    assert n_observed(x).tolist() == [3, 2, 3, 3]


# -------------------------------------------------------------------------------- solvers


@pytest.mark.parametrize("slab", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refining_is_that_of_the_dictionary_on_the_observed_features(slab, dtype):
    rows, atoms, mask = normal(9, 7).to(dtype), normal(5, 7, seed=1).to(dtype), observed_mask(9, 7)
    atoms[3] = 0
    # An atom of which one row observes nothing.
    atoms[4, mask[5]] = 0
    prior = SlabPrior(slab, SCALE, special.logit(DENSITY))
    start = tuple(normal(3, 9, 5, seed=2).to(dtype))
    start = (start[0], start[1].exp(), start[2])
    hidden = torch.where(mask, rows, math.nan)
    found = refine_observed(hidden, atoms, mask, NOISE, prior, start, 50, tol=0.0)
    assert not mask.all() and mask[0].all()
    for i, seen in enumerate(mask):
        row, w = rows[i : i + 1, seen], atoms[:, seen]
        held = tuple(t[i : i + 1] for t in start)
        alone = refine(row @ w.T, w @ w.T, NOISE, prior, held, 50, tol=0.0)
        tolerance = 1e-3 if dtype == torch.float32 else 1e-6
        for ours, theirs in zip(found, alone, strict=True):
            assert_allclose(ours[i : i + 1], theirs, rtol=tolerance, atol=tolerance)


def test_each_sweep_raises_the_bound_of_the_observed_entries():
    rows, atoms, mask = normal(40, 12), normal(20, 12, seed=1), observed_mask(40, 12)
    hidden = torch.where(mask, rows, math.nan)
    for slab in ("gaussian", "laplace"):
        family = SpikeSlab(slab, prior_scale=SCALE, density=DENSITY)
        model = linear_model(atoms, family)
        q = family.posterior(normal(40, 3, 20, seed=2))
        before = model.expected_log_likelihood(hidden, q) - q.kl().sum(-1)
        for _ in range(6):
            q = model.refine(hidden, q, 1)
            after = model.expected_log_likelihood(hidden, q) - q.kl().sum(-1)
            assert (after >= before - 1e-10 * (1 + before.abs())).all()
            before = after


def linear_model(atoms, family, encoder=None):
    """A linear model in float64 whose noise variance is NOISE."""
    n_components, n_features = atoms.shape
    generator = torch.Generator().manual_seed(7)
    encoder_input = EncoderInput(torch.zeros(n_features), reads_mask=True)
    body = encoder or nn.Sequential(encoder_input, mlp(2 * n_features, (6,), generator))
    heads = Heads(6, family.n_heads, n_components, generator)
    model = LatentVariableModel(
        body, heads, LinearDecoder(atoms.clone()), GaussianLikelihood(NOISE), family
    ).double()
    model.likelihood.set_noise_variance(NOISE)
    with torch.no_grad():
        model.decoder.bias.copy_(normal(n_features, seed=9))
    return model.requires_grad_(False)


def restricted(model, seen):
    """The same model restricted to the features that one row observes."""
    other = linear_model(model.decoder.weight[:, seen], model.family)
    other.decoder.bias.copy_(model.decoder.bias[seen])
    return other


def test_elbo_is_that_of_the_decoder_on_the_observed_features():
    rows, atoms, mask = normal(8, 6), normal(4, 6, seed=1), observed_mask(8, 6)
    hidden = torch.where(mask, rows, math.nan)
    for slab in ("gaussian", "laplace"):
        family = SpikeSlab(slab, prior_scale=SCALE, density=DENSITY)
        model = linear_model(atoms, family)
        q = model.posterior(hidden)
        bound = model.expected_log_likelihood(hidden, q)
        draws = q.rsample(q.noise(5, torch.Generator().manual_seed(0)))
        weights = model.log_weights(hidden, q, draws, exact_ratio=True)
        for i, seen in enumerate(mask):
            alone, row = restricted(model, seen), rows[i : i + 1, seen]
            assert_allclose(bound[i], alone.expected_log_likelihood(row, q.row(i))[0], rtol=1e-12)
            log_likelihood = alone.log_likelihood(row, draws.code[:, i : i + 1])
            ratio = q.log_ratio(draws).sum(-1)[:, i : i + 1]
            assert_allclose(weights[:, i : i + 1], log_likelihood + ratio, rtol=1e-12)


def test_collapsed_weights_and_means_are_those_of_the_observed_features():
    """Compared with the dense covariance and the normal equations of each support."""
    rows, atoms, mask = normal(5, 6), normal(4, 6, seed=1), observed_mask(5, 6)
    supports = torch.tensor(list(itertools.product([False, True], repeat=4)))
    on = supports[:, None].expand(-1, 5, -1)
    hidden = torch.where(mask, rows, math.nan)
    found = log_evidence(hidden, atoms, NOISE, SCALE, on, mask)
    means = conditional_mean(hidden, atoms, NOISE, SCALE, on, mask)
    assert found.shape == (16, 5) and means.shape == (16, 5, 4)
    assert (means[~on] == 0).all()
    for (j, support), (i, seen) in itertools.product(enumerate(supports), enumerate(mask)):
        w, x = SCALE * atoms[support][:, seen].numpy(), rows[i, seen].numpy()
        covariance = NOISE * np.eye(len(x)) + w.T @ w
        density = stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(x)
        assert_allclose(found[j, i], density, rtol=1e-10)
        mean = SCALE * w @ np.linalg.solve(covariance, x)
        assert_allclose(means[j, i, support], mean, rtol=1e-9, atol=1e-12)
    none = torch.zeros(1, 5, 4, dtype=torch.bool)
    assert (conditional_mean(hidden, atoms, NOISE, SCALE, none, mask) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_effective_dictionary_solves_each_feature_from_its_observed_rows(dtype):
    codes, X, mask = normal(60, 6).to(dtype), normal(60, 9, seed=1).to(dtype), observed_mask(60, 9)
    codes[:, 2] = 0  # never used
    codes *= torch.tensor([100, 1, 1, 1, 0.1, 1], dtype=dtype)
    X = X + codes @ normal(6, 9, seed=2).to(dtype)
    found = effective_dictionary(torch.where(mask, X, math.nan), codes)
    for d in range(9):
        expected = np.linalg.lstsq(codes[mask[:, d]], X[mask[:, d], d], rcond=1e-6)[0]
        tolerance = 2e-3 if dtype == torch.float32 else 1e-8
        assert_allclose(found[:, d], expected, rtol=tolerance, atol=tolerance)


def test_effective_dictionary_where_fewer_rows_than_codes_are_observed():
    codes, X, mask = normal(20, 6), normal(20, 3, seed=1), torch.ones(20, 3, dtype=torch.bool)
    mask[4:, 0] = False
    found = effective_dictionary(torch.where(mask, X, math.nan), codes)
    assert_allclose((codes @ found)[:4, 0], X[:4, 0], rtol=1e-6)
    assert_allclose(found[:, 1:], effective_dictionary(X, codes)[:, 1:], rtol=1e-9)


# ------------------------------------------------------------------------------- encoders


def test_encoder_input_fills_missing_entries_and_marks_them():
    fill, mask = torch.tensor([1.0, 2.0, 3.0]), observed_mask(5, 3)
    x = torch.where(mask, 7.0, math.nan)
    filled, missing = EncoderInput(fill, reads_mask=True)(x).chunk(2, dim=1)
    assert_array_equal(missing, (~mask).float())
    assert_array_equal(filled, torch.where(mask, 7.0, fill))
    assert_array_equal(EncoderInput(fill, reads_mask=False)(x), filled)
    whole = torch.ones(2, 3)
    assert EncoderInput(fill, reads_mask=False)(whole) is whole
    assert_array_equal(EncoderInput(fill, reads_mask=True)(whole)[:, 3:], torch.zeros(2, 3))


def test_features_of_an_unrolled_coder_are_bayes_factors_of_observed_entries():
    """Atoms on disjoint features make the codes independent, so the start is exact."""
    mask = torch.tensor([[True, False, True, True, False, True], [False, True] * 3])
    atoms = torch.zeros(3, 6, dtype=torch.float64)
    for k in range(3):
        atoms[k, 2 * k : 2 * k + 2] = normal(2, seed=k)
    x = torch.where(mask, 3 * normal(2, 6, seed=5), math.nan)
    encoder = TiedEncoder(UnrolledCoder(3, 6), SCALE, SCALE**2).double()
    with torch.no_grad():
        features = encoder(x, atoms, torch.tensor(NOISE).double(), mask)
    loc, _, _, evidence, log_scale, _ = features.unbind(1)
    for i, k in itertools.product(range(2), range(3)):
        w, row = atoms[k, mask[i]], x[i, mask[i]]
        precision = w @ w / NOISE + 1 / SCALE**2
        assert_allclose(loc[i, k] * SCALE, w @ row / NOISE / precision, rtol=1e-6)
        assert_allclose(log_scale[i, k], -0.5 * torch.log(precision * SCALE**2), rtol=1e-6)
        assert_allclose(evidence[i, k], 0.5 * (w @ row / NOISE) ** 2 / precision, rtol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        Objective("exact"),
        Objective("exact", n_refine=2),
        Objective("elbo", 2),
        Objective("iwae", 3),
        Objective("elbo", 2, gates="rebar"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_finite(objective, tied):
    gates = "score" if objective.gates else "gumbel_softmax"
    family = SpikeSlab("gaussian", prior_scale=SCALE, density=DENSITY, gradient=gates)
    estimator = SparseVAE(
        prior="spike_slab", decoder="linear", encoder="lista" if tied else "mlp", **SMALL
    )
    model = copy.deepcopy(fitted_module(estimator, tied))
    model.family = family
    x, mask = normal(12, 64), observed_mask(12, 64)

    def gradients(rows):
        model.zero_grad()
        bound = training_bound(
            model, rows, objective, torch.Generator().manual_seed(0), kl_weight=1.0
        )
        bound.sum().backward()
        return bound.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    bound, found = gradients(torch.where(mask, x, math.nan))
    assert bound.isfinite().all() and len(found) >= 5
    assert all(g.isfinite().all() for g in found)
    assert any(g.abs().max() > 0 for g in found)


_MODULES: dict = {}


def fitted_module(estimator, key):
    if key not in _MODULES:
        _MODULES[key] = clone(estimator).fit(INCOMPLETE[:200]).module_.double()
    return _MODULES[key]


# ------------------------------------------------------------------------------ estimators


@each
def test_imputation_is_better_than_column_means(estimator):
    model = clone(estimator).set_params(
        n_components=24, max_iter=50, hidden_layer_sizes=(64,), learning_rate_init=1e-2
    )
    X = load_digits().data[:400]
    incomplete = with_missing(X)
    hidden = np.isnan(incomplete)
    model.fit(incomplete)
    filled = model.inverse_transform(model.transform(incomplete))
    assert np.isfinite(filled).all()
    error = np.mean((filled - X)[hidden] ** 2)
    by_means = np.mean((np.nanmean(incomplete, axis=0) - X)[hidden] ** 2)
    # An MLP decoder learns little from so few rows.
    assert error < (0.95 if model.get_params()["decoder"] == "mlp" else 0.6) * by_means


@each
def test_every_result_is_finite_and_reproducible(estimator):
    model = fitted(estimator)
    again = clone(estimator).fit(INCOMPLETE[:200])
    rows = INCOMPLETE[200:]
    posterior = model.posterior(rows)
    for value in (posterior.mean, posterior.std, posterior.inclusion, model.components_):
        assert np.isfinite(value).all()
    assert_array_equal(again.transform(rows), model.transform(rows))
    assert_array_equal(again.score_samples(rows), model.score_samples(rows))
    draws = model.sample_posterior(rows, 2)
    assert np.isfinite(draws).all() and np.isfinite(model.score_samples(rows)).all()
    assert np.isfinite(model.history_[-1]["loss"])


@each
@pytest.mark.parametrize("trained_on", ["incomplete", "complete"])
def test_complete_rows_do_not_depend_on_incomplete_ones(estimator, trained_on):
    model = fitted(estimator, INCOMPLETE if trained_on == "incomplete" else DIGITS)
    rows = DIGITS[200:].copy()
    rows[1::2] = INCOMPLETE[201::2]
    assert_array_equal(model.transform(rows)[::2], model.transform(rows[::2]))
    assert_array_equal(model.score_samples(rows)[::2], model.score_samples(rows[::2]))
    assert_array_equal(model.posterior(rows).std[::2], model.posterior(rows[::2]).std)
    drawn, alone = model.sample_posterior(rows, 2), model.sample_posterior(rows[::2], 2)
    assert_array_equal(drawn[:, ::2], alone)
    one = model.transform(rows[5:6])
    assert_allclose(one[0], model.transform(rows)[5], rtol=1e-6, atol=1e-8)


@each
def test_the_bits_of_nan_do_not_matter(estimator):
    model = fitted(estimator)
    rows = INCOMPLETE[200:].copy()
    payload = np.frombuffer(np.uint64(0xFFF8000000000123).tobytes(), dtype=np.float64)[0]
    other = np.where(np.isnan(rows), payload, rows)
    assert rows.tobytes() != other.tobytes()
    assert_array_equal(model.sample_posterior(other, 2), model.sample_posterior(rows, 2))
    assert_array_equal(model.score_samples(other), model.score_samples(rows))


@each
def test_dtypes_are_kept(estimator):
    model = clone(estimator).fit(INCOMPLETE[:200].astype(np.float32))
    codes = model.transform(INCOMPLETE[200:].astype(np.float32))
    assert codes.dtype == model.components_.dtype == np.float32
    assert model.score_samples(INCOMPLETE[200:].astype(np.float32)).dtype == np.float32


@each
def test_complete_data_add_no_inputs_to_the_encoder(estimator):
    if hasattr(estimator, "solver"):
        estimator = clone(estimator).set_params(solver="gradient")
    whole, incomplete = fitted(estimator, DIGITS).module_, fitted(estimator).module_
    size = sum(p.numel() for p in incomplete.parameters()) - sum(
        p.numel() for p in whole.parameters()
    )
    tied = isinstance(whole.encoder, TiedEncoder)
    assert size == (0 if tied else 64 * 16)


@each
def test_unusable_rows_are_refused(estimator):
    model = fitted(estimator)
    X = INCOMPLETE.copy()
    X[7] = np.nan
    for call in (clone(estimator).fit, clone(estimator).partial_fit, model.transform, model.score):
        with pytest.raises(ValueError, match=r"no observed entries in row 7\b"):
            call(X)
    with pytest.raises(ValueError, match="no observed entries in row 0"):
        model.posterior(X[7:8])
    X = INCOMPLETE.copy()
    X[:, 5] = np.nan
    for call in (clone(estimator).fit, clone(estimator).partial_fit):
        with pytest.raises(ValueError, match=r"no observed entries in column 5\b"):
            call(X)
    # Rows that are only coded do not need the others.
    assert np.isfinite(model.transform(X)).all() and np.isfinite(model.score(X))
    assert np.isfinite(model.partial_fit(X[:50]).score(X))
    X = INCOMPLETE.copy()
    X[3, 2] = np.inf
    for call in (clone(estimator).fit, model.transform, model.score_samples):
        with pytest.raises(ValueError, match=r"infinity: X\[3, 2\]"):
            call(X)


@each
def test_tags_allow_nan(estimator):
    assert get_tags(estimator).input_tags.allow_nan


@each
def test_a_failed_fit_leaves_the_model(estimator):
    model = fitted(estimator)
    codes = model.transform(INCOMPLETE[200:])
    X = INCOMPLETE.copy()
    X[7] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        model.fit(X)
    assert_array_equal(model.transform(INCOMPLETE[200:]), codes)


@each
def test_entries_missing_only_later_are_filled_with_the_mean(estimator):
    """A network built for complete rows has no inputs for a mask."""
    model = clone(estimator).partial_fit(DIGITS[:200])
    n_weights = sum(p.numel() for p in model.module_.parameters())
    model.partial_fit(INCOMPLETE[:200])
    assert sum(p.numel() for p in model.module_.parameters()) == n_weights
    assert np.isfinite(model.score(INCOMPLETE))
    model = clone(estimator).set_params(warm_start=True).fit(DIGITS[:200]).fit(INCOMPLETE[:200])
    assert np.isfinite(model.score(INCOMPLETE))


def test_encoder_reads_zero_in_the_units_of_the_model():
    model = SparseVAE(prior="gaussian", **SMALL).fit(DIGITS)
    assert_allclose(model.module_.encoder[0].fill, 0, atol=1e-6)
    mean = np.where(np.isnan(INCOMPLETE), DIGITS.mean(0), INCOMPLETE)
    assert_allclose(model.transform(INCOMPLETE), model.transform(mean), rtol=1e-5, atol=1e-7)
    binary = (DIGITS > 7).astype(float)
    model = SparseVAE(prior="gaussian", likelihood="bernoulli", **SMALL).fit(binary)
    filled = np.where(np.isnan(INCOMPLETE), binary.mean(0), binary)
    incomplete = np.where(np.isnan(INCOMPLETE), np.nan, binary)
    assert_allclose(model.transform(incomplete), model.transform(filled), rtol=1e-5, atol=1e-7)


def test_early_stopping_with_missing_entries():
    for estimator in VARIANTS.values():
        model = clone(estimator).set_params(early_stopping=True).fit(INCOMPLETE[:200])
        assert np.isfinite([record["valid_loss"] for record in model.history_]).all()


def test_bernoulli_rows():
    truth = (DIGITS > 7).astype(float)
    binary = np.where(np.isnan(INCOMPLETE), np.nan, truth)
    hidden = np.isnan(binary)
    by_means = np.mean((np.nanmean(binary, axis=0) - truth)[hidden] ** 2)
    for cls in (ThresholdedVSC, SparseVAE, SCVAE):
        params = SMALL | {"max_iter": 60, "n_components": 24, "hidden_layer_sizes": (64,)}
        model = cls(likelihood="bernoulli", score_draws=8, **params).fit(binary)
        filled = model.inverse_transform(model.transform(binary))
        assert filled.min() >= 0 and filled.max() <= 1
        # The codes of ThresholdedVSC are all zero after so few steps, missing entries or not.
        limit = 1.02 if cls is ThresholdedVSC else 0.95
        assert np.mean((filled - truth)[hidden] ** 2) < limit * by_means
        # Only observed features count, so the score of a single one is small.
        row = np.full((1, 64), np.nan)
        row[0, 20] = 1.0
        assert model.score(row) > -5
        with pytest.raises(ValueError, match="got values from 0 to 2"):
            model.fit(np.where(binary == 1, 2, binary))


def test_range_of_an_activation_is_compared_with_observed_entries():
    X = INCOMPLETE / 16
    SparseVAE(output_activation="sigmoid", **SMALL).fit(X)  # without a warning
    with pytest.warns(UserWarning, match="X goes from 0 to 2"):
        SparseVAE(output_activation="sigmoid", **SMALL).fit(2 * X)


@pytest.mark.parametrize("cls", [ThresholdedVSC, SparseVAE, SCVAE])
def test_images(cls):
    params = SMALL | {"image_shape": (1, 8, 8), "encoder": "conv", "score_draws": 4, "max_iter": 1}
    model, rows = cls(**params).fit(INCOMPLETE[:60]), INCOMPLETE[200:]
    codes = model.transform(rows)
    assert np.isfinite(codes).all() and np.isfinite(model.score(rows))
    hidden = rows.copy()
    hidden[:, 30] = np.nan
    assert np.abs(model.transform(hidden) - codes).max() > 1e-6
    if cls is SCVAE:
        images = rows.reshape(-1, 1, 8, 8)
        assert_array_equal(model.transform(images), codes)


def test_user_defined_networks_read_filled_rows():
    class Checked(nn.Linear):
        def forward(self, x):
            assert x.shape[1] == 64 and x.isfinite().all()
            return super().forward(x)

    torch.manual_seed(0)
    for estimator in (ThresholdedVSC(n_refine=0, **SMALL), SparseVAE(**SMALL), SCVAE(**SMALL)):
        model = estimator.set_params(encoder=Checked(64, 12)).fit(INCOMPLETE)
        assert np.isfinite(model.score(INCOMPLETE))


@pytest.mark.parametrize("gradient", ["nvil", "muprop", "reinforce"])
def test_gates_learn_from_incomplete_rows(gradient):
    model = SparseVAE(prior="spike_slab", gradient=gradient, **SMALL).fit(INCOMPLETE[:200])
    assert np.isfinite(model.score(INCOMPLETE))
    dreg = SparseVAE(objective="iwae", n_draws=3, score_method="iwae", **SMALL).fit(
        INCOMPLETE[:200]
    )
    assert np.isfinite(dreg.score(INCOMPLETE))


# --------------------------------------------------------------------------------- bounds


def one_code(prior):
    """Nodes of the prior of a single code, and the logarithms of their weights."""
    x, w = np.polynomial.legendre.leggauss(10)
    panels = np.arange(-100, 100)[:, None]
    nodes, width = (0.25 * (panels + (x + 1) / 2)).ravel(), 0.25
    slab = stats.laplace if prior == "laplace" else stats.norm
    weights = np.tile(width / 2 * w, 200) * slab.pdf(nodes)
    on = DENSITY if prior == "spike_slab" else 1.0
    weights = np.append(on * weights, 1 - on)
    with np.errstate(divide="ignore"):
        return np.append(nodes, 0.0), np.log(weights)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize(
    "estimator",
    [
        SparseVAE(1, prior="spike_slab", density=DENSITY, decoder="linear"),
        SparseVAE(1, prior="laplace", decoder="linear"),
        SparseVAE(1, prior="gaussian", decoder="mlp"),
        SCVAE(1, alpha=0.3),
    ],
    ids=["spike_slab", "laplace", "gaussian_mlp", "scvae"],
)
def test_score_bounds_the_evidence_of_observed_entries(estimator, likelihood):
    """By quadrature over the single code, from the model's public interface."""
    X = make_sparse_coded(300, 1, 6, density=0.7, noise=0.3, random_state=0)[0]
    # A different unit shows errors in the model's own. Fractional rows are all different.
    X = 3 * X + 7 if likelihood == "gaussian" else special.expit(3 * X)
    X = with_missing(X)
    model = clone(estimator).set_params(
        likelihood=likelihood,
        hidden_layer_sizes=(16,),
        learning_rate_init=1e-2,
        max_iter=15,
        score_draws=300,
        random_state=0,
    )
    model.fit(X)
    X = X[:60]
    prior = "laplace" if isinstance(model, SCVAE) else model.prior
    nodes, log_prior = one_code(prior)
    means = model.inverse_transform(nodes[:, None])
    if likelihood == "gaussian":
        log_likelihood = stats.norm.logpdf(X[:, None], means, model.noise_variance_**0.5)
    else:
        log_likelihood = special.xlogy(X[:, None], means) + special.xlog1py(1 - X[:, None], -means)
    evidence = special.logsumexp(np.nansum(log_likelihood, axis=-1) + log_prior, axis=1)

    def error(values):
        return values.std() / len(values) ** 0.5

    elbo = model.score_samples(X)
    if likelihood == "gaussian" and model.decoder == "linear":
        assert (elbo <= evidence + 1e-6).all()
    # A single refined code has the exact posterior.
    assert elbo.mean() <= evidence.mean() + 4 * error(elbo - evidence) + 1e-9
    model.set_params(score_method="iwae")
    few, many = (model.set_params(score_draws=n).score_samples(X) for n in (2, 2000))
    assert many.mean() > few.mean() - 3 * error(many - few) - 1e-9
    assert many.mean() <= evidence.mean() + 4 * error(many - evidence) + 1e-9
    assert abs(many.mean() - evidence.mean()) < max(0.1, 0.5 * (evidence - elbo).mean())


def test_score_with_a_fixed_threshold_bounds_the_evidence_of_observed_entries():
    X = with_missing(make_sparse_coded(300, 1, 6, density=0.7, noise=0.3, random_state=0)[0])
    model = ThresholdedVSC(
        1, threshold=0.5, threshold_prior=None, encoder="mlp", max_iter=15, random_state=0
    ).fit(X)
    x, w = np.polynomial.legendre.leggauss(10)
    nodes = (0.25 * (np.arange(-100, 100)[:, None] + (x + 1) / 2)).ravel()
    weights = np.tile(0.125 * w, 200) * stats.laplace.pdf(np.abs(nodes) + 0.5)
    nodes, weights = np.append(nodes, 0.0), np.append(weights, 1 - np.exp(-0.5))
    assert weights.sum() == pytest.approx(1)
    means = model.inverse_transform(nodes[:, None])
    density = stats.norm.logpdf(X[:60, None], means, model.noise_variance_**0.5)
    evidence = special.logsumexp(np.nansum(density, axis=-1) + np.log(weights), axis=1)
    elbo = model.score_samples(X[:60])
    assert (elbo <= evidence + 1e-6).all()
    tight = model.set_params(score_method="iwae", score_draws=2000).score_samples(X[:60])
    assert tight.mean() > elbo.mean()
    assert_allclose(tight.mean(), evidence.mean(), atol=0.1)


@pytest.mark.parametrize("method", ["elbo", "collapsed_elbo", "iwae"])
def test_scores_are_those_of_a_model_of_the_observed_columns(method):
    """With the same columns missing in all rows, a smaller model gives the same scores."""
    model = fitted(NETWORKS["spike_slab"]).set_params(score_method=method, n_refine=0)
    seen = np.arange(64) % 3 > 0
    rows = np.where(seen, DIGITS[200:], np.nan)
    module = model.module_
    x = model._units.to_model(rows, torch.device("cpu"))
    with torch.no_grad():
        q = module.posterior(x)
        other = copy.deepcopy(module)
        other.decoder = LinearDecoder(module.decoder.weight[:, seen].clone())
        other.decoder.bias.data = module.decoder.bias[seen].clone()
        x = x[:, seen]
        if method == "elbo":
            bound = other.expected_log_likelihood(x, q) - q.kl().sum(-1)
        else:
            draws = model._fitted.draws(q, rows, model.score_draws)
            weights = other.collapsed_log_weights(x, q, draws)
            bound = weights.mean(0)
            if method == "iwae":
                bound = weights.logsumexp(0) - math.log(len(weights))
    expected = bound.numpy() - seen.sum() * np.log(model._units.scale)
    assert_allclose(model.score_samples(rows), expected, rtol=1e-9)


def test_refined_codes_are_those_of_the_observed_columns():
    """A row with holes has the posterior that its observed columns have alone."""
    for key in ("thresholded", "spike_slab"):
        model = fitted(NETWORKS[key]).set_params(refine_tol=1e-12)
        rows = INCOMPLETE[200:215]
        model.module_.refine_tol = 1e-12
        q = model.posterior(rows)
        x = model._units.to_model(rows, torch.device("cpu"))
        gated = model.module_.family.as_gated()
        slab, density = Slab(gated.slab_name, gated.prior_scale), gated.prior_inclusion
        decoder, likelihood = model.module_.decoder, model.module_.likelihood
        noise = float(likelihood.noise_variance.detach())
        stops = Stops(bound_tol=1e-12)
        for i, seen in enumerate(~np.isnan(rows)):
            w, row = decoder.weight.detach()[:, seen], (x[i] - decoder.bias.detach())[seen]
            alone = inferred(SparseLinear.plain(w.numpy(), noise, slab, density), row[None], stops)
            assert_allclose(q.inclusion[i], alone.inclusion[0], atol=1e-6)
            assert_allclose(q.mean[i], alone.mean[0], atol=1e-6)
