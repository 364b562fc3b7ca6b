import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import Lasso
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from torch import nn

from sklearn_vsc import SCVAE
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.datasets import make_sparse_coded

pytestmark = pytest.mark.filterwarnings("ignore:.*atoms are used by no training row:UserWarning")

DIGITS = load_digits().data[:300]
SMALL = {"max_iter": 3, "hidden_layer_sizes": (8,), "random_state": 0}
CODE = Objective("code")
IMAGES = {"image_shape": (1, 8, 8), "n_components": 6, "max_iter": 2, "random_state": 0}


def scvae(n_components=16, **params):
    defaults = {
        "hidden_layer_sizes": (32,),
        "learning_rate_init": 5e-3,
        "max_iter": 30,
        "n_iter_no_change": 1000,
        "random_state": 0,
    }
    return SCVAE(n_components, **(defaults | params))


@pytest.fixture(scope="module")
def images():
    """A model fitted to images, and the images."""
    return SCVAE(**IMAGES).fit(DIGITS[:60]), DIGITS[:60].reshape(-1, 1, 8, 8)


def latents_of(model, X):
    """Latent vectors and amplitudes of rows, and atoms of unit norm, as arrays."""
    module = model.module_
    with torch.no_grad():
        latents = module.latents(model._units.to_model(X, torch.device("cpu")).double())
        amplitudes = module.amplitudes(latents)
        atoms = nn.functional.normalize(module.decoder.weight, dim=1)
    return latents.numpy(), amplitudes.numpy(), atoms.numpy()


# ----------------------------------------------------------------- scikit-learn's checks


@parametrize_with_checks(
    [
        SCVAE(
            latent_weight=0.5,
            latent_size=3,
            early_stopping=True,
            transform_method="max_elbo",
            n_draws=2,
            score_method="iwae",
            **SMALL,
        ),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API")
def test_check_estimator_has_no_expected_failure():
    results = check_estimator(SCVAE(max_iter=5, hidden_layer_sizes=(32,)), on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    assert not [result for result in results if result["expected_to_fail"]]


# ----------------------------------------------------------------------------- the codes


def test_codes_are_those_of_a_lasso_on_latent_vectors():
    model = scvae(n_unrolled=400, max_iter=5).fit(DIGITS)
    latents, amplitudes, atoms = latents_of(model, DIGITS[:20])
    n = atoms.shape[1]
    lasso = Lasso(model.alpha / n, fit_intercept=False, tol=1e-10, max_iter=100_000)
    for latent, amplitude in zip(latents[:, 0], amplitudes[:, 0], strict=True):
        expected = lasso.fit(atoms.T, latent).coef_
        assert_allclose(amplitude, expected, atol=2e-3 * np.abs(expected).max())
    # Codes are amplitudes in a common unit.
    codes = model.transform(DIGITS[:20])
    assert_array_equal(codes != 0, amplitudes[:, 0] != 0)
    ratio = (amplitudes[:, 0] / np.where(codes == 0, 1, codes))[codes != 0]
    assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_thresholds_of_the_coder_stay_at_alpha():
    model = scvae(alpha=0.7).fit(DIGITS)
    assert_allclose(model.module_.heads.thresholds.detach(), 0.7, rtol=1e-5)


def test_higher_alpha_means_sparser_codes():
    share = [np.mean(scvae(alpha=a).fit_transform(DIGITS) != 0) for a in (0.3, 1.0, 3.0)]
    assert share[0] > 1.3 * share[1] > 1.6 * share[2] > 0


def test_every_atom_is_used():
    model = SCVAE(max_iter=10, random_state=0).fit(load_digits().data)
    assert model.n_dead_ <= 0.05 * 64


@pytest.mark.filterwarnings("default")
def test_idle_atoms_are_turned_to_the_largest_residuals():
    module = scvae(max_iter=2).fit(DIGITS).module_.float().train()
    x, generator = torch.randn(5, 64), torch.Generator()
    module.n_idle_rows.zero_()
    module.training_step(x, CODE, generator)
    with torch.no_grad():
        latents = module.latents(x)
        amplitudes = module.amplitudes(latents)
        residual = (latents - module.decoder.latents(amplitudes))[:, 0]
    unused = (amplitudes == 0).all(0)[0]
    assert_array_equal(module.n_idle_rows, 5.0 * unused)

    worst = residual[residual.norm(dim=1).argsort(descending=True)]
    before, idle = module.decoder.weight.detach().clone(), torch.arange(16) % 7 == 3
    module.n_idle_rows[idle] = 2000
    module.eval().training_step(x, CODE, generator)
    assert_array_equal(module.decoder.weight.detach(), before)
    module.train().training_step(x, CODE, generator)
    after = module.decoder.weight.detach()
    assert_array_equal(after[~idle], before[~idle])
    assert_allclose(after[idle].norm(dim=1), before[idle].norm(dim=1), rtol=1e-5)
    cosines = nn.functional.cosine_similarity(after[idle], worst[: idle.sum()])
    assert_allclose(cosines, 1, rtol=1e-5)
    assert (module.n_idle_rows[idle] <= 5).all()


def test_warning_about_dead_atoms_suggests_a_remedy():
    with pytest.warns(UserWarning, match="lower n_components or alpha"):
        model = scvae(alpha=50.0).fit(DIGITS)
    assert model.n_dead_ > 3 and np.isfinite(model.score(DIGITS))


def test_mean_and_map_are_the_code_and_draws_lie_around_it():
    model = scvae(max_iter=5).fit(DIGITS)
    codes = model.transform(DIGITS)
    assert_array_equal(model.posterior(DIGITS).mean, codes)
    assert_array_equal(model.set_params(transform_method="mean").transform(DIGITS), codes)
    posterior = model.posterior(DIGITS)
    assert (posterior.inclusion == 1).all()
    # Each atom has one scale, the same for all rows.
    assert_allclose(posterior.std, np.broadcast_to(posterior.std[0], codes.shape))
    assert len(np.unique(posterior.std[0])) == 16
    assert (model.sample_posterior(DIGITS, 2) != 0).all()


# ----------------------------------------------------------------------------- the bound


def log_evidence(model, X):
    """Log p(x) by quadrature, for one code with a Laplace prior of scale one."""
    panels = np.linspace(-40, 40, 4001)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    half = (panels[1] - panels[0]) / 2
    codes = (panels[:-1, None] + half * (nodes + 1)).ravel()
    log_prior = np.log(np.tile(half * weights, len(panels) - 1)) - np.abs(codes) - np.log(2)
    means = model.inverse_transform(codes[:, None])
    if model.likelihood == "gaussian":
        error = ((X[:, None] - means) ** 2).sum(-1)
        s2 = model.noise_variance_
        log_likelihood = -0.5 * (error / s2 + X.shape[1] * np.log(2 * np.pi * s2))
    else:
        log_likelihood = special.xlogy(X[:, None], means) + special.xlog1py(1 - X[:, None], -means)
        log_likelihood = log_likelihood.sum(-1)
    return special.logsumexp(log_prior + log_likelihood, axis=1)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_score_is_below_log_p_and_close(likelihood):
    X = make_sparse_coded(300, 1, 3, density=1.0, noise=0.4, random_state=0)[0]
    if likelihood == "bernoulli":
        X = (X > 0).astype(float)
    model = scvae(1, likelihood=likelihood, alpha=0.3, max_iter=200, score_draws=3000).fit(X)
    X = X[:60]
    truth = log_evidence(model, X)
    bound = model.score_samples(X)
    assert bound.mean() < truth.mean() < bound.mean() + 0.7
    assert (bound < truth + 0.1).all()
    tighter = model.set_params(score_method="iwae").score_samples(X)
    assert bound.mean() < tighter.mean() < truth.mean() + 0.02
    assert_allclose(tighter.mean(), truth.mean(), atol=0.1)


def test_score_is_the_bound_of_the_documented_distributions():
    model = scvae(4, score_draws=4000, max_iter=10).fit(DIGITS)
    X = DIGITS[:3]
    posterior, s2 = model.posterior(X), model.noise_variance_
    scale = posterior.std / np.sqrt(2)
    draws = np.random.RandomState(0).laplace(posterior.mean, scale, (4000, 3, 4))
    means = model.inverse_transform(draws.reshape(-1, 4)).reshape(4000, 3, -1)
    log_likelihood = stats.norm.logpdf(X, means, s2**0.5).sum(-1)
    prior = stats.laplace.logpdf(draws).sum(-1)
    entropy = stats.laplace.logpdf(draws, posterior.mean, scale).sum(-1)
    terms = log_likelihood + prior - entropy
    error = model.score_samples(X) - terms.mean(0)
    assert (np.abs(error) < 5 * terms.std(0) * (2 / 4000) ** 0.5).all()


def test_scales_and_noise_are_near_the_best():
    model = scvae(max_iter=100, score_draws=16).fit(DIGITS)
    score = model.score(DIGITS)
    module = model.module_
    for parameter in (
        module.log_spread,
        module.decoder.log_unit,
        module.likelihood.log_noise_variance,
    ):
        for step in (-0.3, 0.3):
            with torch.no_grad():
                parameter += step
                assert model.score(DIGITS) < score + 0.05
                parameter -= step


def test_no_gradient_of_the_scales_reaches_the_networks():
    module = scvae(max_iter=2).fit(DIGITS).module_.float()
    x = torch.randn(5, 64)
    amplitudes = module.amplitudes(module.latents(x)).detach()
    bound = module._bound_of_scales(x, amplitudes, torch.Generator().manual_seed(0))
    module.zero_grad()
    bound.sum().backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None}
    assert moved == {"log_spread", "decoder.log_unit", "likelihood.log_noise_variance"}


def test_scales_train_on_the_bound_and_the_decoder_on_codes_and_draws():
    module = scvae(max_iter=2).fit(DIGITS).module_.float()
    x = torch.randn(5, 64)

    def slopes(value):
        module.zero_grad()
        value.sum().backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    trained = slopes(module.training_step(x, CODE, torch.Generator().manual_seed(0)).bound)
    amplitudes = module.amplitudes(module.latents(x)).detach()
    bound = slopes(module._bound_of_scales(x, amplitudes, torch.Generator().manual_seed(0)))
    for name, slope in bound.items():
        assert_allclose(trained[name], slope / 2, rtol=1e-3, atol=1e-4, err_msg=name)

    posterior = module._around(amplitudes)
    draw = module._drawn(amplitudes, posterior, torch.Generator().manual_seed(0)).detach()
    outputs = [
        module.decoder.network(module.decoder.latents(a).flatten(1)) for a in (amplitudes, draw)
    ]
    fit = module.fit_likelihood.log_prob(x, outputs[0]) + module.likelihood.log_prob(x, outputs[1])
    halves = slopes(fit / 2)
    names = [name for name in halves if name.startswith("decoder.network")]
    assert names
    for name in names:
        assert_allclose(trained[name], halves[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_warm_up_of_the_penalty_changes_its_gradient_but_not_its_value():
    module = scvae(max_iter=2).fit(DIGITS).module_.float()
    x, bounds, slopes = torch.randn(5, 64), [], []
    for weight in (0.0, 0.5, 1.0):
        module.zero_grad()
        generator = torch.Generator().manual_seed(0)
        bound = module.training_step(x, CODE, generator, kl_weight=weight).bound.sum()
        bound.backward()
        bounds.append(bound.item())
        slopes.append(module.decoder.weight.grad.clone())
    assert_allclose(bounds, bounds[0], rtol=1e-6)
    assert_allclose(slopes[1], (slopes[0] + slopes[2]) / 2, rtol=1e-3, atol=1e-4)
    assert not np.allclose(slopes[0], slopes[2], rtol=0.01)


def test_attention_weights_sum_to_one_and_are_detached():
    module = scvae(max_iter=1).fit(DIGITS).module_
    distance = torch.rand(5, 7, requires_grad=True)
    weights = module._position_weights(distance)
    assert not weights.requires_grad
    assert_allclose(weights.sum(1), 1, rtol=1e-6)
    order = distance.detach().argsort(1)
    assert (torch.diff(torch.gather(weights, 1, order), dim=1) >= 0).all()
    assert torch.isfinite(module._position_weights(torch.zeros(2, 3))).all()


def test_noise_variance_may_be_given():
    model = scvae(noise_variance=2.5, max_iter=3).fit(DIGITS)
    assert model.noise_variance_ == pytest.approx(2.5, rel=1e-12)


def test_output_activation_bounds_the_mean():
    X = DIGITS / 16
    model = scvae(output_activation="sigmoid", max_iter=3).fit(X)
    decoded = model.inverse_transform(1e3 * np.random.RandomState(0).normal(size=(9, 16)))
    assert decoded.min() > -1e-6 and decoded.max() < 1 + 1e-6


# ---------------------------------------------------------------------------- the networks


class Doubled(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x):
        return 2 * self.linear(x)


def test_user_defined_networks():
    torch.manual_seed(0)
    model = scvae(encoder=Doubled(64, 7), decoder=Doubled(5, 64), latent_size=5).fit(DIGITS)
    assert isinstance(model.module_.decoder.network, Doubled)
    assert model.transform(DIGITS).shape == (300, 16)
    with pytest.raises(ValueError, match=r"'decoder' must map \(n, 8\) to \(n, 64\)"):
        scvae(decoder=Doubled(5, 64)).fit(DIGITS)
    with pytest.raises(ValueError, match="'encoder' must map"):
        scvae(encoder=Doubled(5, 64)).fit(DIGITS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.0),
        ("latent_size", 0),
        ("latent_weight", -1.0),
        ("latent_weight", "most"),
        ("n_downsamplings", -1),
        ("n_unrolled", 0),
        ("encoder", "lista"),
        ("decoder", "linear"),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter"):
        SCVAE(**{name: value}).fit(DIGITS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"encoder": "conv"}, "'image_shape' parameter must be .* got None"),
        ({"decoder": "conv", "encoder": "mlp", "image_shape": (1, 8, 8)}, "use both"),
        ({"image_shape": (1, 8, 7)}, "must multiply to the 64 features|halves"),
        ({"image_shape": (8, 8)}, "channels, height, width"),
        ({"image_shape": (1, 8, 0)}, "channels, height, width"),
        ({"image_shape": (1, 8, 8), "n_downsamplings": 4}, "n_downsamplings=4"),
        ({"likelihood": "bernoulli"}, r"needs X in \[0, 1\]"),
    ],
)
def test_incompatible_parameters_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        SCVAE(**params).fit(DIGITS)


# -------------------------------------------------------------------------------- images


def test_images_give_grids_of_codes(images):
    model, X = images
    assert model.grid_shape_ == (2, 2)
    grid = model.transform_grid(X)
    assert grid.shape == (60, 2, 2, 6)
    codes = model.transform(X)
    assert codes.shape == (60, 24) and len(model.get_feature_names_out()) == 24
    assert_array_equal(grid.reshape(60, -1), codes)
    assert (codes == 0).any() and (codes != 0).any()
    assert_array_equal(model.transform(X.reshape(60, -1)), codes)
    decoded = model.inverse_transform(codes)
    assert decoded.shape == (60, 64)
    assert_array_equal(model.inverse_transform(grid), decoded)
    assert model.components_.shape == (6, 64) and model.component_usage_.shape == (6,)
    assert_allclose(model.component_usage_, (grid != 0).any((1, 2)).mean(0))
    assert model.sample(3).shape == (3, 64)
    assert model.sample_posterior(X[:4], 2).shape == (2, 4, 24)


def test_images_with_axes_train_like_flat_rows(images):
    model, X = images
    other = clone(model).fit(X)
    assert_array_equal(other.transform(X), model.transform(X))
    assert other.score(X[:9]) == model.score(X[:9])


def test_an_image_does_not_depend_on_other_images(images):
    model, X = images
    assert_allclose(model.transform(X[3:5]), model.transform(X)[3:5], atol=1e-9)
    assert_allclose(model.score_samples(X[3:5]), model.score_samples(X[:9])[3:5], rtol=1e-9)


def test_each_position_codes_its_own_part_of_the_image(images):
    model, X = images
    changed = X.copy()
    # Far from the last position, which it only reaches through normalisation.
    changed[:, :, :1, :1] += 8
    moved = np.abs(model.transform_grid(changed) - model.transform_grid(X)).sum((0, 3))
    assert moved[0, 0] > 3 * moved[1, 1]


def test_images_of_another_shape_are_refused(images):
    model, X = images
    with pytest.raises(ValueError, match="X holds images of shape"):
        model.transform(X.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match="Z holds grids of shape"):
        model.inverse_transform(np.zeros((2, 2, 3, 6)))


@pytest.mark.parametrize("n_downsamplings", [0, 1, 3])
def test_number_of_downsamplings(n_downsamplings):
    model = SCVAE(**IMAGES).set_params(n_downsamplings=n_downsamplings, max_iter=1)
    model.fit(DIGITS[:20])
    side = 8 // 2**n_downsamplings
    assert model.transform_grid(DIGITS[:5]).shape == (5, side, side, 6)
    assert np.isfinite(model.score(DIGITS[:2]))


def test_conv_leaves_global_generators_alone():
    before = torch.get_rng_state()
    model = SCVAE(**IMAGES).set_params(max_iter=1, decoder="mlp", hidden_layer_sizes=(8,))
    model.fit(DIGITS[:20])
    assert torch.equal(before, torch.get_rng_state())
    assert model.inverse_transform(model.transform(DIGITS[:5])).shape == (5, 64)
