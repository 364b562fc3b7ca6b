import copy
import itertools
import pickle
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from torch import nn

from sklearn_vsc import SparseVAE
from sklearn_vsc._models.objectives import SCORE_GRADIENTS, Objective
from sklearn_vsc.datasets import make_sparse_coded

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

DIGITS = load_digits().data[:300]
SMALL = {"max_iter": 3, "hidden_layer_sizes": (8,), "random_state": 0}

# Each prior with each compatible posterior.
PRIORS = {
    "gaussian": {"prior": "gaussian"},
    "gaussian_laplace": {"prior": "gaussian", "posterior_family": "laplace"},
    "laplace": {},
    "laplace_laplace": {"posterior_family": "laplace"},
    "cauchy_gaussian": {"prior": "cauchy", "posterior_family": "gaussian"},
    "cauchy_laplace": {"prior": "cauchy", "posterior_family": "laplace"},
    "cauchy": {"prior": "cauchy", "output_activation": "tanh"},
    "spike_slab": {"prior": "spike_slab", "density": 0.4},
    "spike_slab_laplace": {"prior": "spike_slab", "slab": "laplace", "density": 0.4},
}
each_prior = pytest.mark.parametrize("prior", PRIORS)


def vae(n_components=8, **params):
    defaults = {
        "hidden_layer_sizes": (32,),
        "learning_rate_init": 5e-3,
        "max_iter": 30,
        "n_iter_no_change": 1000,
        "random_state": 0,
    }
    return SparseVAE(n_components, **(defaults | params))


def explained(model, X):
    residual = X - model.inverse_transform(model.transform(X))
    return 1 - np.sum(residual**2) / np.sum((X - X.mean(0)) ** 2)


def match(learned, true):
    """Mean absolute cosine of the best assignment of atoms."""
    learned = learned / np.linalg.norm(learned, axis=1, keepdims=True)
    cosine = np.abs(learned @ true.T)
    return cosine[linear_sum_assignment(-cosine)].mean()


# ----------------------------------------------------------------- scikit-learn's checks


@parametrize_with_checks(
    [
        SparseVAE(**SMALL),
        SparseVAE(prior="spike_slab", transform_method="max_elbo", n_draws=2, **SMALL),
        SparseVAE(prior="cauchy", posterior_family="gaussian", score_method="iwae", **SMALL),
        SparseVAE(prior="gaussian", decoder="linear", early_stopping=True, **SMALL),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API")
def test_default_passes_check_estimator():
    results = check_estimator(SparseVAE(), on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    assert not [result for result in results if result["expected_to_fail"]]


# ----------------------------------------------------------------------------- the bound


def prior_quadrature(model):
    """Quadrature nodes and weights of one code's prior away from zero, and its mass at zero."""
    spikes = model.prior == "spike_slab"
    distribution = {"gaussian": stats.norm, "laplace": stats.laplace, "cauchy": stats.cauchy}[
        model.slab if spikes else model.prior
    ]
    # Far out the panels are logarithmic; the kink of a Laplace density lies between two panels.
    reach = 15 if distribution is stats.cauchy else 6
    x, w = np.polynomial.legendre.leggauss(10)
    panels = np.arange(-2 * reach, 2 * reach)[:, None]
    t = (0.5 * (panels + (x + 1) / 2)).ravel()
    nodes = np.sinh(t)
    weights = np.tile(w / 4, len(panels)) * np.cosh(t) * distribution.pdf(nodes)
    on = model.density if spikes else 1.0
    return model.prior_scale * nodes, on * weights, 1 - on


def log_evidence(model, X):
    """Log p(x) of a model with one or two codes, from its public interface."""
    nodes, weights, zero = prior_quadrature(model)
    nodes, weights = np.append(nodes, 0.0), np.append(weights, zero)
    nodes, weights = nodes[weights > 1e-40], weights[weights > 1e-40]
    n_codes = len(model.components_)
    codes = np.stack(np.meshgrid(*[nodes] * n_codes, indexing="ij"), -1).reshape(-1, n_codes)
    log_prior = sum(np.meshgrid(*[np.log(weights)] * n_codes, indexing="ij")).ravel()
    means = model.inverse_transform(codes)
    evidence = []
    for x in X:
        if model.likelihood == "gaussian":
            s2 = np.broadcast_to(model.noise_variance_, len(x))
            square = ((x - means) ** 2 / s2).sum(-1)
            log_likelihood = -0.5 * (square + np.log(2 * np.pi * s2).sum())
        else:
            log_likelihood = special.xlogy(x, means).sum(-1)
            log_likelihood += special.xlog1py(1 - x, -means).sum(-1)
        evidence.append(special.logsumexp(log_prior + log_likelihood))
    return np.array(evidence)


def standard_error(values):
    return values.std() / len(values) ** 0.5


@each_prior
def test_quadrature_of_the_prior_is_correct(prior):
    model = SparseVAE(prior_scale=0.7, **PRIORS[prior])
    nodes, weights, zero = prior_quadrature(model)
    # A Cauchy distribution has one millionth of its mass beyond a million.
    assert weights.sum() + zero == pytest.approx(1, rel=1e-6)
    slab = prior.endswith("laplace") if model.prior == "spike_slab" else model.prior == "laplace"
    if model.prior != "cauchy":
        variance = 0.7**2 * (2 if slab else 1)
        assert weights @ nodes**2 == pytest.approx((1 - zero) * variance, rel=1e-9)
    else:
        assert weights @ np.exp(-(nodes**2)) == pytest.approx(special.erfcx(0.7), rel=1e-5)


def bound_data(n_components, noise=0.6):
    X = make_sparse_coded(300, n_components, 4, density=0.6, noise=noise, random_state=0)[0]
    # Within the range of a tanh.
    return 0.95 * X / np.abs(X).max()


@pytest.mark.parametrize("n_components", [1, 2])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
@each_prior
def test_score_is_a_bound_on_log_evidence(prior, decoder, n_components):
    X = bound_data(n_components)
    model = vae(
        n_components,
        decoder=decoder,
        prior_scale=0.8,
        hidden_layer_sizes=(16,),
        max_iter=10,
        **PRIORS[prior],
    ).fit(X)
    X = X[:40]
    evidence = log_evidence(model, X)

    elbo = model.set_params(score_draws=300).score_samples(X)
    closed = decoder == "linear" and not prior.startswith("cauchy")
    if closed:
        assert (elbo <= evidence + 1e-6).all()
        assert_array_equal(model.set_params(score_draws=2).score_samples(X), elbo)
    assert elbo.mean() <= evidence.mean() + 4 * standard_error(elbo - evidence) + 1e-9

    model.set_params(score_method="iwae")
    before = model.set_params(score_draws=1).score_samples(X)
    if prior != "cauchy" or decoder == "mlp":
        # With one draw the mean is the ELBO, or the collapsed ELBO where slabs integrate out.
        one = elbo
        if decoder == "linear" and prior == "spike_slab":
            model.set_params(score_method="collapsed_elbo", score_draws=300)
            one = model.score_samples(X)
            model.set_params(score_method="iwae")
        assert abs((before - one).mean()) < 4 * standard_error(before - one) + 1e-9
    for n_draws in (8, 64, 2000):
        tighter = model.set_params(score_draws=n_draws).score_samples(X)
        assert tighter.mean() <= evidence.mean() + 4 * standard_error(tighter - evidence) + 1e-9
        rise = tighter - before
        assert rise.mean() > -3 * standard_error(rise) - 1e-9
        before = tighter
    # Convergence is slowest where the posterior has lighter tails than the prior.
    left = evidence.mean() - tighter.mean()
    assert left < (0.5 if "cauchy_" in prior else 0.3) * (evidence.mean() - elbo.mean()) + 1e-6


@pytest.mark.parametrize("prior", ["gaussian", "laplace", "cauchy_gaussian", "spike_slab"])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_bernoulli_score_bounds_the_probability_of_binary_rows(prior, decoder):
    """The exact probabilities of all binary rows sum to one: a mass, not a density."""
    X = (bound_data(2, noise=0.1) > 0).astype(float)
    model = vae(
        2,
        likelihood="bernoulli",
        decoder=decoder,
        hidden_layer_sizes=(16,),
        n_draws=5,
        objective="iwae",
        prior_scale=2.0,
        **PRIORS[prior],
    ).fit(X)
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    evidence = log_evidence(model, rows)
    assert np.exp(evidence).sum() == pytest.approx(1, rel=1e-5)
    elbo = model.set_params(score_draws=1000).score_samples(rows)
    iwae = model.set_params(score_method="iwae", score_draws=4000).score_samples(rows)
    # The tolerance is for the Monte Carlo error.
    assert (elbo < evidence + 0.15).all() and elbo.mean() < evidence.mean()
    assert (iwae > elbo - 0.15).all() and iwae.mean() > elbo.mean()
    assert evidence.mean() - iwae.mean() < 0.5 * (evidence.mean() - elbo.mean())
    assert np.isnan(model.noise_variance_)


def test_binary_digits():
    X = (DIGITS > 7).astype(float)
    model = vae(
        10, prior="laplace", likelihood="bernoulli", hidden_layer_sizes=(64,), max_iter=80
    ).fit(X)
    scores = model.score_samples(X)
    assert (scores < 0).all()
    codes = np.random.RandomState(0).normal(0, 1e3, size=(200, 10))
    for rows in (model.inverse_transform(model.transform(X)), model.inverse_transform(codes)):
        assert (rows >= 0).all() and (rows <= 1).all()
    # One sigmoid, not two.
    assert rows.min() < 1e-3 and rows.max() > 1 - 1e-3
    assert set(np.unique(model.sample(50))) == {0.0, 1.0}
    # Better than independent pixels.
    p = (X.mean(0) * len(X) + 1) / (len(X) + 2)
    alone = (X @ np.log(p) + (1 - X) @ np.log1p(-p)).mean()
    assert scores.mean() > alone + 2
    # A probability has no unit, so no score subtracts the log of a unit.
    assert model.set_params(score_method="iwae").score(X) > scores.mean()


# Orthonormal atoms: each code sees only its own projection of the row, in any dimension.


def marginal(model, y, sigma):
    """Exact density of y = z + sigma e for a code z from the prior."""
    scale, spikes = model.prior_scale, model.prior == "spike_slab"
    name = model.slab if spikes else model.prior
    if name == "gaussian":
        on = stats.norm.pdf(y, 0, np.hypot(scale, sigma))
    elif name == "cauchy":
        on = special.voigt_profile(y, sigma, scale)
    else:
        low, high = sigma / (scale * np.sqrt(2)), y / (sigma * np.sqrt(2))
        tails = special.erfcx(low - high) + special.erfcx(low + high)
        on = np.exp(-(high**2)) / (4 * scale) * tails
    if not spikes:
        return on
    return model.density * on + (1 - model.density) * stats.norm.pdf(y, 0, sigma)


@each_prior
def test_score_bounds_the_evidence_of_orthonormal_atoms(prior):
    if prior == "cauchy":
        pytest.skip("A Cauchy posterior does not work with a linear decoder.")
    n_codes, n_features = 6, 8
    X = make_sparse_coded(300, n_codes, n_features, density=0.5, noise=0.3, random_state=0)[0] + 2
    model = vae(n_codes, encoder="mlp", decoder="linear", n_refine=0, **PRIORS[prior]).fit(X)
    decoder, likelihood = model.module_.decoder, model.module_.likelihood
    with torch.no_grad():
        # The nearest dictionary with orthogonal atoms of equal length.
        left, _, right = torch.linalg.svd(decoder.weight, full_matrices=False)
        decoder.weight.copy_(0.8 * left @ right)
    likelihood.set_noise_variance(0.4)
    X = X[:60]
    zero = model.inverse_transform(np.zeros((1, n_codes)))[0]
    atoms = model.inverse_transform(np.eye(n_codes)) - zero
    size = np.linalg.norm(atoms[0])
    assert_allclose(atoms @ atoms.T, size**2 * np.eye(n_codes), atol=1e-9)
    s2 = likelihood.noise_variance_in(model._units.scale)

    projections = (X - zero) @ atoms.T / size**2
    evidence = np.log(marginal(model, projections, np.sqrt(s2) / size)).sum(1)
    evidence -= n_codes * np.log(size)
    left = ((X - zero) ** 2).sum(1) - size**2 * (projections**2).sum(1)
    evidence -= left / (2 * s2) + (n_features - n_codes) / 2 * np.log(2 * np.pi * s2)

    elbo = model.score_samples(X)
    if not prior.startswith("cauchy"):
        assert (elbo <= evidence + 1e-9).all()
    assert elbo.mean() < evidence.mean()
    means = [elbo.mean()]
    for n_draws in (5, 50, 2000):
        bound = model.set_params(score_method="iwae", score_draws=n_draws).score_samples(X)
        assert bound.mean() < evidence.mean() + 4 * standard_error(bound - evidence)
        means.append(bound.mean())
    # With the slabs integrated out, a few draws suffice, and more change only the noise.
    assert np.all(np.diff(means) > [0, 0, -0.02])
    assert evidence.mean() - means[-1] < 0.3 * (evidence.mean() - means[0])
    if prior == "spike_slab":
        # The family contains the exact posterior, and one sweep finds it.
        exact = model.set_params(score_method="elbo", n_refine=1).score_samples(X)
        assert_allclose(exact, evidence, rtol=1e-9)


def test_spike_and_slab_against_a_sum_over_all_supports():
    """With a Gaussian slab p(x) is a sum of normal densities, one for each set of open gates."""
    n_codes = 6
    X = make_sparse_coded(
        600, n_codes, 5, density=0.3, noise=0.2, code_distribution="gaussian", random_state=0
    )[0]
    params = {"density": 0.3, "prior_scale": 1.5, "learning_rate_init": 2e-2}
    model = vae(n_codes, prior="spike_slab", decoder="linear", **params).fit(X)
    X = X[:100]
    terms = []
    for gates in itertools.product([0, 1], repeat=n_codes):
        gates = np.array(gates)
        loading = 1.5 * gates[:, None] * model.components_
        covariance = loading.T @ loading + model.noise_variance_ * np.eye(5)
        log_prior = stats.bernoulli(0.3).logpmf(gates).sum()
        terms.append(stats.multivariate_normal(model.intercept_, covariance).logpdf(X) + log_prior)
    evidence = special.logsumexp(terms, axis=0)
    elbo = model.score_samples(X)
    assert (elbo <= evidence + 1e-9).all()
    # Nor is the bound loose.
    assert evidence.mean() - elbo.mean() < 1
    means = [elbo.mean()]
    for n_draws in (5, 50, 3000):
        bound = model.set_params(score_method="iwae", score_draws=n_draws).score_samples(X)
        means.append(bound.mean())
        assert means[-1] < evidence.mean() + 4 * standard_error(bound - evidence)
    assert means[-1] > means[0]
    assert evidence.mean() - means[-1] < 0.1


# ---------------------------------------------------------------- probabilistic PCA


def pca_data(n_rows=600, noise=1.0):
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(3, 10)) * np.array([[2.0], [1.4], [1.0]])
    return rng.normal(size=(n_rows, 3)) @ atoms + noise * rng.normal(size=(n_rows, 10)) + 3


def pca_vae(**params):
    fast = {"learning_rate_init": 2e-2, "batch_size": 50, "max_iter": 100}
    params = fast | {"hidden_layer_sizes": (64,)} | params
    return vae(3, prior="gaussian", decoder="linear", **params)


@pytest.mark.parametrize(
    "params",
    [{}, {"gradient": "straight_through", "n_draws": 5}, {"prior_scale": 2.0}],
    ids=["exact", "drawn", "scaled"],
)
def test_gaussian_prior_and_linear_decoder_are_probabilistic_pca(params):
    """Training reaches the maximum likelihood, minus the gap of a diagonal posterior."""
    X = pca_data()
    model = pca_vae(**params).fit(X)
    loading = model.prior_scale * model.components_
    covariance = loading.T @ loading + model.noise_variance_ * np.eye(10)
    evidence = stats.multivariate_normal(model.intercept_, covariance).logpdf(X)
    bound = model.score_samples(X)
    assert (bound <= evidence + 1e-9).all()
    precision = loading @ loading.T / model.noise_variance_ + np.eye(3)
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    # No diagonal posterior is better than this, and the network finds it.
    assert (evidence - bound).min() >= gap - 1e-9
    assert (evidence - bound).mean() < gap + 0.02
    best = PCA(3).fit(X)
    assert best.score(X) - gap - 0.05 < bound.mean() < best.score(X)
    assert model.noise_variance_ == pytest.approx(best.noise_variance_, rel=0.02)
    # The gap is zero along the principal axes, so the bound rotates the dictionary to them.
    assert gap < 0.02
    # With more draws the bound closes the remaining gap.
    tight = model.set_params(score_method="iwae", score_draws=100).score(X)
    assert tight == pytest.approx(evidence.mean(), abs=0.01)


def test_codes_of_probabilistic_pca_are_those_of_the_exact_posterior():
    X = pca_data()
    # A linear posterior needs no hidden layer.
    model = pca_vae(hidden_layer_sizes=(), learning_rate_init=5e-2).fit(X)
    posterior, s2 = model.posterior(X), model.noise_variance_
    precision = model.components_ @ model.components_.T / s2 + np.eye(3)
    mean = np.linalg.solve(precision, model.components_ @ (X - model.intercept_).T / s2).T
    assert_allclose(posterior.mean, mean, atol=0.05)
    assert_allclose(posterior.std, np.diag(precision) ** -0.5 + 0 * mean, rtol=0.05)
    assert_array_equal(model.transform(X), posterior.mean)
    assert (posterior.inclusion == 1).all()


# ------------------------------------------------------------------ prior and generation


@pytest.mark.parametrize("prior", ["gaussian", "laplace", "spike_slab", "spike_slab_laplace"])
def test_samples_have_the_moments_of_the_model(prior):
    X = make_sparse_coded(400, 3, 5, density=0.4, noise=0.3, random_state=1)[0] + 2
    model = vae(3, decoder="linear", prior_scale=0.7, **PRIORS[prior]).fit(X)
    nodes, weights, _ = prior_quadrature(model)
    covariance = weights @ nodes**2 * model.components_.T @ model.components_
    covariance += model.noise_variance_ * np.eye(5)
    rows = model.sample(60_000)
    scale = np.sqrt(np.diag(covariance))
    assert (np.abs(rows.mean(0) - model.intercept_) < 5 * scale / len(rows) ** 0.5).all()
    centred = rows - model.intercept_
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / len(rows) ** 0.5
    assert (np.abs(products.mean(0) - covariance) < 5 * error).all()


def test_samples_of_a_cauchy_prior_have_its_tails():
    X = bound_data(1)
    model = vae(1, prior="cauchy", posterior_family="gaussian", decoder="linear").fit(X)
    rows = model.sample(100_000)
    k = np.argmax(np.abs(model.components_[0]))
    # Rows far above the noise level show their code.
    codes = (rows[:, k] - model.intercept_[k]) / model.components_[0, k]
    far = np.abs(codes) > 100 * max(1, model.noise_variance_**0.5 / abs(model.components_[0, k]))
    reach = np.abs(codes)[far].min()
    expected = 2 * stats.cauchy.sf(reach)
    assert far.mean() == pytest.approx(expected, abs=4 * (expected / 100_000) ** 0.5)


def test_linear_decoder_is_components_and_intercept():
    model = vae(decoder="linear").fit(DIGITS)
    codes = model.transform(DIGITS)
    assert_allclose(
        model.inverse_transform(codes), codes @ model.components_ + model.intercept_, rtol=1e-9
    )


@pytest.mark.parametrize("prior", ["gaussian", "spike_slab"])
def test_components_of_other_decoders_are_least_squares(prior):
    model = vae(4, **PRIORS[prior]).fit(DIGITS)
    codes = model.transform(DIGITS)
    assert_allclose(
        model.components_, np.linalg.lstsq(codes, DIGITS, rcond=None)[0], rtol=1e-5, atol=1e-6
    )
    assert not hasattr(model, "intercept_")


# --------------------------------------------------------------------------------- codes


def test_spike_and_slab_codes_have_exact_zeros():
    model = vae(12, prior="spike_slab", decoder="linear", n_refine=0, max_iter=60).fit(DIGITS)
    q = model.posterior(DIGITS)
    codes = model.transform(DIGITS)
    on = q.inclusion > 0.5
    assert 0.02 < on.mean() < 0.6
    assert_array_equal(codes != 0, on)
    assert_allclose(codes[on], (q.mean / q.inclusion)[on], rtol=1e-9)
    draws = model.sample_posterior(DIGITS[:20], n_draws=2000)
    error = np.sqrt(q.inclusion * (1 - q.inclusion) / 2000)[:20]
    assert (np.abs((draws != 0).mean(0) - q.inclusion[:20]) <= 5 * error + 1 / 2000).all()
    # The same holds in single precision.
    single = vae(12, prior="spike_slab", decoder="linear").fit(DIGITS.astype(np.float32))
    drawn = single.sample_posterior(DIGITS.astype(np.float32), n_draws=5)
    assert drawn.dtype == np.float32 and 0.2 < np.mean(drawn == 0) < 1
    assert np.abs(drawn[drawn != 0]).min() > 1e-7


@pytest.mark.parametrize("prior", ["gaussian", "laplace", "laplace_laplace", "cauchy_laplace"])
def test_codes_without_an_atom_at_zero_are_never_zero(prior):
    model = vae(**PRIORS[prior]).fit(DIGITS)
    posterior = model.posterior(DIGITS)
    assert_array_equal(model.transform(DIGITS), posterior.mean)
    assert (posterior.inclusion == 1).all()
    assert (model.transform(DIGITS) != 0).all() and (model.sample_posterior(DIGITS) != 0).all()


def test_cauchy_codes_have_a_median_but_no_variance():
    X = bound_data(2)
    model = vae(2, **PRIORS["cauchy"]).fit(X)
    posterior = model.posterior(X)
    assert np.isfinite(posterior.mean).all() and (posterior.std == np.inf).all()
    draws = model.sample_posterior(X[:30], n_draws=2000)
    assert np.isfinite(draws).all()
    middle = (draws < posterior.mean[:30]).mean(0)
    assert (np.abs(middle - 0.5) < 5 * 0.5 / 2000**0.5).all()
    assert np.isfinite(model.score(X))


@pytest.mark.parametrize("prior", ["laplace", "spike_slab"])
def test_transform_methods_do_what_they_say(prior):
    model = vae(n_draws=6, **PRIORS[prior]).fit(DIGITS)
    q = model.posterior(DIGITS)
    assert_array_equal(model.set_params(transform_method="mean").transform(DIGITS), q.mean)
    drawn = model.set_params(transform_method="sample").transform(DIGITS)
    draws = model.sample_posterior(DIGITS, n_draws=6)
    assert_array_equal(drawn, draws[0])
    # The KL is the same for all draws, so the best draw is the one that decodes best.
    errors = [np.sum((DIGITS - model.inverse_transform(z)) ** 2, axis=1) for z in draws]
    best = draws[np.argmin(errors, axis=0), np.arange(len(DIGITS))]
    assert_array_equal(model.set_params(transform_method="max_elbo").transform(DIGITS), best)


def test_best_draw_of_a_cauchy_prior_accounts_for_its_density():
    """The KL has no closed form, so each draw's log ratio counts."""
    X = bound_data(2)
    model = vae(2, n_draws=6, transform_method="max_elbo", **PRIORS["cauchy_gaussian"]).fit(X)
    draws, q = model.sample_posterior(X, n_draws=6), model.posterior(X)
    errors = np.sum((X - np.stack([model.inverse_transform(z) for z in draws])) ** 2, axis=-1)
    weights = -0.5 * errors / model.noise_variance_
    weights += stats.cauchy.logpdf(draws).sum(-1) - stats.norm(q.mean, q.std).logpdf(draws).sum(-1)
    best = draws[np.argmax(weights, axis=0), np.arange(len(X))]
    assert_array_equal(model.transform(X), best)


# ------------------------------------------------------------------- output activation


@pytest.mark.parametrize(("activation", "low", "high"), [("sigmoid", 0, 1), ("tanh", -1, 1)])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_output_activation_bounds_rows_in_units_of_x(activation, low, high, decoder):
    X = low + (high - low) * DIGITS / 16
    model = vae(output_activation=activation, decoder=decoder, max_iter=40).fit(X)
    assert explained(model, X) > 0.2
    codes = np.random.RandomState(0).normal(0, 1e3, size=(200, 8))
    for rows in (model.inverse_transform(model.transform(X)), model.inverse_transform(codes)):
        assert (rows >= low - 1e-6).all() and (rows <= high + 1e-6).all()
    # The bounds are reached, so the range is not narrower than stated.
    assert rows.min() < low + 0.01 and rows.max() > high - 0.01
    # Only the mean is bounded: samples have noise on them.
    assert np.isfinite(model.sample(10)).all()
    # The dictionary is that of a nonlinear decoder.
    assert not hasattr(model, "intercept_")
    codes = model.transform(X)
    assert_allclose(
        model.components_, np.linalg.lstsq(codes, X, rcond=None)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_codes_of_zero_decode_to_the_mean_row_at_first(activation, decoder):
    X = 0.1 + 0.8 * DIGITS / 16
    model = vae(output_activation=activation, decoder=decoder, learning_rate_init=1e-12, max_iter=1)
    model.fit(X)
    assert_allclose(model.inverse_transform(np.zeros((1, 8)))[0], X.mean(0), atol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_rows_out_of_range_cause_a_warning(activation):
    model = vae(output_activation=activation, max_iter=2)
    for call in (model.fit, model.partial_fit):
        with pytest.warns(UserWarning, match=rf"{activation}.* X goes from .* to 16.*'identity'"):
            call(DIGITS)
    below = -0.1 - DIGITS / 16
    if activation == "sigmoid":
        with pytest.warns(UserWarning, match=r"X goes from -1.1 to -0.1"):
            clone(model).fit(below)


def test_identity_activation_changes_nothing():
    plain, named = vae(max_iter=3).fit(DIGITS), vae(max_iter=3, output_activation="identity")
    assert_array_equal(named.fit(DIGITS).score_samples(DIGITS), plain.score_samples(DIGITS))
    X = DIGITS / 16
    auto = vae(max_iter=3, likelihood="bernoulli").fit(X)
    named = vae(max_iter=3, likelihood="bernoulli", output_activation="sigmoid").fit(X)
    assert_array_equal(named.score_samples(X), auto.score_samples(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_score_of_a_bounded_decoder_is_the_density_of_x(dtype):
    """In units of X, computed from the model's own codes and noise."""
    X = (0.2 + 0.6 * DIGITS / 16).astype(dtype)
    model = vae(4, prior="gaussian", output_activation="sigmoid", score_draws=16).fit(X)
    q = model.posterior(X)
    draws = model.sample_posterior(X, n_draws=16)
    means = np.stack([model.inverse_transform(z) for z in draws])
    likelihood = stats.norm(means, model.noise_variance_**0.5).logpdf(X).sum(-1).mean(0)
    kl = (-np.log(q.std) + (q.std**2 + q.mean**2) / 2 - 0.5).sum(-1)
    rtol = 1e-3 if dtype == np.float32 else 1e-6
    assert_allclose(model.score_samples(X), likelihood - kl, rtol=rtol, atol=rtol)


# -------------------------------------------------------------------------- combinations


GREY = DIGITS[:60, 16:40] / 16
TINY = {"max_iter": 2, "hidden_layer_sizes": (6,), "random_state": 0, "batch_size": 30}


def refusal(params):
    """Pattern of the error that fit raises for incompatible parameters, or None."""
    prior, posterior = params["prior"], params["posterior_family"]
    spikes = prior == "spike_slab"
    if posterior == "auto":
        posterior = prior if prior in ("cauchy", "spike_slab") else "gaussian"
    identity = params["output_activation"] in ("auto", "identity")
    if params["likelihood"] == "bernoulli" and params["output_activation"] in ("identity", "tanh"):
        return r"output_activation=.* use 'auto' or 'sigmoid'"
    if spikes != (posterior == "spike_slab"):
        return r"posterior_family=.* does not go with prior=.* Use posterior_family='auto'"
    if posterior == "cauchy" and prior != "cauchy":
        return r"posterior_family='cauchy' has an infinite KL from prior=.*; use prior='cauchy'"
    if posterior == "cauchy" and (identity or params["likelihood"] == "bernoulli"):
        return r"minus infinity.* Use output_activation='sigmoid'.*posterior_family='gaussian'"
    if spikes and params["gradient"] in SCORE_GRADIENTS and params["objective"] != "elbo":
        return r"gradient=.* with objective=.* use gradient='straight_through'"
    if spikes and params["gradient_of_bound"] == "dreg":
        return r"gradient_of_bound='dreg' needs .* use gradient_of_bound='auto'"
    not_closed = (
        params["decoder"] != "linear"
        or params["likelihood"] != "gaussian"
        or not identity
        or prior == "cauchy"
    )
    if params["gradient"] == "exact" and not_closed:
        return r"gradient='exact' needs an ELBO in closed form, which .*use gradient='auto'"
    return None


def check_combination(**params):
    defaults = {
        "prior": "laplace",
        "posterior_family": "auto",
        "slab": "gaussian",
        "gradient": "auto",
        "objective": "elbo",
        "gradient_of_bound": "auto",
        "decoder": "mlp",
        "likelihood": "gaussian",
        "output_activation": "auto",
    }
    params = defaults | params
    n_draws = 1 if params["objective"] == "elbo" else 3
    model = SparseVAE(4, n_draws=n_draws, score_draws=4, **params, **TINY)
    X = np.round(GREY) if params["likelihood"] == "bernoulli" else GREY
    message = refusal(params)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            model.fit(X)
        assert not [name for name in vars(model) if name.endswith("_")]
        return
    model.fit(X)
    assert len(model.history_) == 2
    assert np.isfinite([record["loss"] for record in model.history_]).all()
    for method in ("elbo", "iwae"):
        assert np.isfinite(model.set_params(score_method=method).score_samples(X)).all()
    assert np.isfinite(model.transform(X)).all()


each_objective = pytest.mark.parametrize("objective", ["elbo", "max_elbo", "iwae"])
each_decoder = pytest.mark.parametrize("decoder", ["linear", "mlp"])
each_likelihood = pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
# The exact gradient warns that it uses no draws, whether or not it is then refused.
no_draws = pytest.mark.filterwarnings("ignore:gradient='exact' trains:UserWarning")


@no_draws
@pytest.mark.parametrize("prior", ["gaussian", "laplace", "cauchy", "spike_slab"])
@pytest.mark.parametrize(
    "posterior_family", ["auto", "gaussian", "laplace", "cauchy", "spike_slab"]
)
@each_objective
@each_decoder
@each_likelihood
def test_every_pair_trains_or_is_refused(prior, posterior_family, objective, decoder, likelihood):
    params = {"prior": prior, "posterior_family": posterior_family, "objective": objective}
    for activation in ("auto", "tanh" if likelihood == "gaussian" else "sigmoid"):
        check_combination(
            decoder=decoder, likelihood=likelihood, output_activation=activation, **params
        )


@no_draws
@pytest.mark.parametrize("slab", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    "gradient", ["auto", "exact", "gumbel_softmax", "straight_through", *SCORE_GRADIENTS]
)
@each_objective
@each_decoder
@each_likelihood
def test_every_gradient_of_gates_trains_or_is_refused(
    slab, gradient, objective, decoder, likelihood
):
    check_combination(
        prior="spike_slab",
        slab=slab,
        gradient=gradient,
        objective=objective,
        decoder=decoder,
        likelihood=likelihood,
    )


@no_draws
@pytest.mark.parametrize("prior", ["gaussian", "laplace", "cauchy", "spike_slab"])
@pytest.mark.parametrize("gradient", ["auto", "exact"])
@pytest.mark.parametrize("gradient_of_bound", ["auto", "standard", "dreg"])
@each_objective
def test_every_gradient_of_the_bound_trains_or_is_refused(
    prior, gradient, gradient_of_bound, objective
):
    for decoder, activation in itertools.product(["linear", "mlp"], ["auto", "sigmoid"]):
        check_combination(
            prior=prior,
            gradient=gradient,
            gradient_of_bound=gradient_of_bound,
            objective=objective,
            decoder=decoder,
            output_activation=activation,
        )


@pytest.mark.parametrize("activation", ["identity", "tanh", "sigmoid"])
@each_likelihood
def test_every_activation_trains_or_is_refused(activation, likelihood):
    for prior, decoder in itertools.product(["laplace", "cauchy"], ["linear", "mlp"]):
        check_combination(
            prior=prior, decoder=decoder, output_activation=activation, likelihood=likelihood
        )


def test_user_defined_bounded_decoder_allows_a_cauchy_posterior():
    bounded = nn.Sequential(nn.Linear(4, 24), nn.Tanh())
    model = SparseVAE(4, prior="cauchy", decoder=bounded, **TINY).fit(GREY)
    assert np.isfinite(model.score(GREY))


@pytest.mark.parametrize("params", [{"n_draws": 2}, {"objective": "iwae"}])
def test_exact_gradient_warns_about_unused_draws(params):
    model = SparseVAE(4, decoder="linear", gradient="exact", **params, **TINY)
    for call in (model.fit, model.partial_fit):
        with pytest.warns(UserWarning, match="gradient='exact' trains"):
            call(GREY)


def objective_of(**params):
    return SparseVAE(**params)._describe().objective


def test_parameters_choose_the_objective():
    linear = {"decoder": "linear", "prior": "spike_slab"}
    assert objective_of(**linear) == Objective("exact")
    assert objective_of(decoder="linear", kl_weight=0.3) == Objective("exact", kl_weight=0.3)
    assert objective_of(n_draws=4, **linear, solver="gradient") == Objective("elbo", 4)
    assert objective_of(gradient="gumbel_softmax", **linear) == Objective("elbo")
    assert objective_of(gradient="nvil", **linear) == Objective("elbo", gates="nvil")
    assert objective_of(objective="iwae", n_draws=3, **linear) == Objective("iwae", 3)
    for bound, doubly in [("auto", True), ("dreg", True), ("standard", False)]:
        found = objective_of(objective="iwae", n_draws=3, gradient_of_bound=bound)
        assert found == Objective("iwae", 3, doubly_reparameterised=doubly)
    # Options for gates do not affect codes without gates.
    assert objective_of(gradient="rebar") == Objective("elbo")


def test_auto_is_exact_where_it_applies():
    def components(**params):
        model = SparseVAE(5, decoder="linear", solver="gradient", **params, **TINY)
        return model.fit(GREY).components_

    for prior in ("gaussian", "laplace", "spike_slab"):
        exact = components(prior=prior, gradient="exact")
        assert_array_equal(components(prior=prior), exact)
        assert not np.array_equal(components(prior=prior, n_draws=2), exact)
    relaxed = components(prior="spike_slab", n_draws=2, gradient="gumbel_softmax")
    assert_array_equal(components(prior="spike_slab", n_draws=2), relaxed)


def test_training_settings_matter():
    def means(**params):
        defaults = {"prior": "spike_slab", "decoder": "linear", "n_draws": 2, "solver": "gradient"}
        return SparseVAE(4, **(defaults | params), **TINY).fit(GREY).posterior(GREY).mean

    gradients = ("gumbel_softmax", "straight_through", *SCORE_GRADIENTS)
    variants = [{"gradient": gradient} for gradient in gradients] + [
        {"temperature": 0.7},
        {"temperature": (1.0, 0.1)},
        {"temperature": 0.7, "gradient": "rebar"},
        {"density": 0.3},
        {"slab": "laplace"},
        {"prior_scale": 0.5},
        {"kl_weight": 0.1},
        {"kl_warmup": 1.0},
        {"decoder_penalty": 10.0},
        {"n_draws": 4},
        {"objective": "iwae"},
        {"prior": "laplace"},
        {"prior": "laplace", "posterior_family": "laplace"},
        {"prior": "laplace", "objective": "iwae"},
        {"prior": "laplace", "objective": "iwae", "gradient_of_bound": "standard"},
        {"prior": "cauchy", "posterior_family": "gaussian"},
    ]
    found = [means(**params) for params in variants]
    for (one, first), (other, second) in itertools.combinations(
        zip(variants, found, strict=True), 2
    ):
        assert not np.allclose(first, second, rtol=1e-6), (one, other)


# ------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("gradient", ["gumbel_softmax", "straight_through"])
@pytest.mark.parametrize("objective", ["elbo", "max_elbo", "iwae"])
def test_sampled_gates_learn_with_every_objective(objective, gradient):
    """Gates are not all on or all off, as they would be if the prior did not affect them."""
    drawn = {"objective": objective, "gradient": gradient, "n_draws": 5, "max_iter": 80}
    model = vae(16, prior="spike_slab", decoder="linear", **drawn).fit(DIGITS)
    empty = -32 * (1 + np.log(2 * np.pi * DIGITS.var(0).mean()))
    assert model.score(DIGITS) > empty + 5
    assert explained(model, DIGITS) > 0.1
    assert 0.02 < model.posterior(DIGITS).inclusion.mean() < 0.3


def test_recovers_a_known_dictionary():
    X, atoms, _ = make_sparse_coded(2000, 10, 20, density=0.15, noise=0.05, random_state=0)
    params = {"decoder": "linear", "learning_rate_init": 2e-2, "batch_size": 50, "max_iter": 40}
    spikes = vae(10, prior="spike_slab", density=0.15, hidden_layer_sizes=(64,), **params)
    models = [clone(spikes).set_params(random_state=seed).fit(X) for seed in (0, 1)]
    # The score, which does not use the truth, picks the best fit. Observed: 0.97.
    best = models[np.argmax([model.score(X) for model in models])]
    assert match(best.components_, atoms) > 0.93
    assert 0.05 < np.mean(best.transform(X) != 0) < 0.3
    assert np.mean(best.noise_variance_) < 2 * 0.05**2
    # The true codes are closer to a spike and slab than to a prior without an atom at zero.
    other = vae(10, hidden_layer_sizes=(64,), **params).fit(X)
    assert best.score(X) > other.score(X) + 1


@pytest.mark.parametrize("gradient", ["gumbel_softmax", "straight_through", *SCORE_GRADIENTS])
def test_every_gradient_of_gates_learns(gradient):
    X = make_sparse_coded(1000, 8, 12, density=0.2, noise=0.1, random_state=0)[0]
    params = {"prior": "spike_slab", "density": 0.2, "max_iter": 60, "n_draws": 2}
    model = vae(8, decoder="linear", gradient=gradient, **params).fit(X)
    empty = -6 * (1 + np.log(2 * np.pi * X.var(0).mean()))
    assert model.score(X) > empty + 1
    assert 0.02 < model.posterior(X).inclusion.mean() < 0.6


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("prior", ["gaussian", "laplace", "cauchy_gaussian", "cauchy"])
def test_every_prior_learns(prior, objective):
    X = 0.05 + 0.9 * (DIGITS / 16)
    params = PRIORS[prior] | {"n_draws": 3, "objective": objective, "max_iter": 60}
    model = vae(10, **params).fit(X)
    # Observed: 0.4 and above.
    assert explained(model, X) > 0.25
    if prior != "cauchy":
        # Outlying draws of a Cauchy posterior cost more than the codes gain.
        alone = stats.norm(X.mean(0), X.std()).logpdf(X).sum(1).mean()
        assert model.score(X) > alone + 5


# ------------------------------------------------------------ reproducibility and copies


@each_prior
def test_same_seed_gives_same_model_and_copies_agree(prior):
    model = SparseVAE(4, **PRIORS[prior], **TINY).fit(GREY)
    again = clone(model).fit(GREY)
    other = clone(model).set_params(random_state=1).fit(GREY)
    copied = pickle.loads(pickle.dumps(model))
    for call in ("transform", "score_samples", "sample_posterior"):
        expected = getattr(model, call)(GREY)
        assert_array_equal(getattr(again, call)(GREY), expected)
        assert_array_equal(getattr(copied, call)(GREY), expected)
        assert not np.allclose(getattr(other, call)(GREY), expected)
    assert_array_equal(again.sample(5), model.sample(5))
    assert_array_equal(
        copied.partial_fit(GREY).transform(GREY), again.partial_fit(GREY).transform(GREY)
    )


@pytest.mark.parametrize("gradient", ["gumbel_softmax", "nvil", "rebar"])
def test_training_continues_and_stops_early(gradient):
    params = {"prior": "spike_slab", "gradient": gradient, "warm_start": True}
    model = SparseVAE(4, early_stopping=True, **params, **TINY).fit(GREY)
    assert "valid_loss" in model.history_[0]
    model.fit(GREY).partial_fit(GREY)
    assert len(model.history_) == model.n_iter_ == 5
    assert np.isfinite(model.score(GREY))


def test_nvil_baseline_is_in_the_model_only_where_it_is_used():
    for gradient, used in [("nvil", True), ("rebar", False)]:
        model = SparseVAE(4, prior="spike_slab", gradient=gradient, **TINY).fit(GREY)
        assert (model.module_.gate_baseline is not None) == used


def test_score_uses_kl_weight_one_and_hard_gates():
    model = vae(4, prior="spike_slab", max_iter=3).fit(GREY)
    changed = copy.deepcopy(model).set_params(kl_weight=0.0, temperature=5.0, kl_warmup=1.0)
    assert_array_equal(changed.score_samples(GREY), model.score_samples(GREY))
    with torch.enable_grad():
        assert_array_equal(model.score_samples(GREY), changed.score_samples(GREY))


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prior", "thresholded"),
        ("prior_scale", 0.0),
        ("density", 0.0),
        ("density", 1.0),
        ("slab", "cauchy"),
        ("posterior_family", "normal"),
        ("gradient", "subgradient"),
        ("temperature", 0.0),
        ("temperature", -1),
        ("temperature", "cold"),
        ("temperature", None),
        ("gradient_of_bound", "stl"),
        ("objective", "vae"),
        ("n_draws", 0),
        ("output_activation", "relu"),
        ("likelihood", "gamma"),
        ("decoder", "conv3d"),
        ("score_method", "max_elbo"),
        ("kl_warmup", 1.5),
    ],
)
def test_bad_parameters_are_named(name, value):
    model = SparseVAE(**(TINY | {name: value}))
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter"):
        model.fit(GREY)
    assert not [attribute for attribute in vars(model) if attribute.endswith("_")]


@pytest.mark.parametrize(
    "temperature",
    [(1.0, 0.0), (1.0, -0.5), (1.0, 0.5, 0.1), (), ("a", "b"), (np.nan, 1.0), (np.inf, 1.0)],
)
def test_bad_pairs_of_temperatures_are_named(temperature):
    model = SparseVAE(prior="spike_slab", temperature=temperature, **TINY)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=r"'temperature' .* one number from .* or a pair"):
            call(GREY)


def test_bernoulli_needs_rows_in_the_unit_interval():
    model = SparseVAE(likelihood="bernoulli", **TINY)
    with pytest.raises(ValueError, match=r"likelihood='bernoulli' needs X in \[0, 1\]; got"):
        model.fit(DIGITS)


def test_refusals_leave_an_earlier_fit_alone():
    model = SparseVAE(4, **TINY).fit(GREY)
    before = model.transform(GREY)
    model.set_params(prior="spike_slab", posterior_family="laplace")
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match="posterior_family='laplace'"):
            call(GREY)
    assert_array_equal(model.transform(GREY), before)


def test_docstring_states_the_rule_of_each_prior():
    text = re.sub(r"\s+", " ", SparseVAE.__doc__)
    for word in ("biased", "minus infinity", "infinite standard deviation", "no atom at zero"):
        assert word in text
