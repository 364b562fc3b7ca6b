"""Priors as objects: the package's match the named priors, and user-defined ones can be trained."""

import copy
import json
import math
import pickle
from dataclasses import dataclass
from functools import cached_property

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import integrate, stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import Tensor, distributions, nn

from sklearn_vsc import SparseVAE, ThresholdedVSC, load
from sklearn_vsc._models.objectives import SCORE_GRADIENTS
from sklearn_vsc._persistence.folder import read_folder, write_folder
from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.latents import (
    Continuous,
    Draws,
    LatentFamily,
    LatentPosterior,
    Noise,
    SpikeSlab,
    Thresholded,
    bounded_exp,
)

X = make_sparse_coded(n_samples=60, n_features=8, n_components=5, random_state=0)[0]
TINY = {"n_components": 4, "max_iter": 2, "random_state": 0, "hidden_layer_sizes": 8}
# Two epochs leave atoms unused.
pytestmark = pytest.mark.filterwarnings("ignore:.*used by no training row")
each_class = pytest.mark.parametrize("estimator_class", [ThresholdedVSC, SparseVAE])


# --- a user-defined family


class StudentT(LatentFamily):
    """Student's t prior with a Gaussian posterior; the KL is estimated from draws."""

    def __init__(self, df=5.0, *, prior_scale=1.0):
        self.df = df
        self.prior_scale = prior_scale

    n_heads = 2
    is_continuous = True
    has_closed_kl = False
    prior_inclusion = 1.0

    @cached_property
    def prior_variance(self):
        return self.prior_scale**2 * self.df / (self.df - 2)

    def prior(self, like):
        return distributions.StudentT(like.new_tensor(self.df), 0.0, self.prior_scale)

    def posterior(self, heads):
        loc = self.prior_scale * heads[:, 0]
        return NormalPosterior(self, loc, bounded_exp(heads[:, 1], self.prior_scale))

    def sample_prior(self, shape, generator, dtype):
        normal = torch.randn(shape, generator=generator, dtype=dtype)
        concentration = torch.full(shape, self.df / 2, dtype=dtype)
        half_chi2 = torch._standard_gamma(concentration, generator=generator)
        return self.prior_scale * normal / (half_chi2 / concentration).sqrt()


@dataclass(frozen=True)
class NormalPosterior(LatentPosterior):
    """Gaussian codes."""

    family: LatentFamily
    loc: Tensor
    scale: Tensor

    def row(self, index):
        cut = slice(index, index + 1)
        return type(self)(self.family, self.loc[cut], self.scale[cut])

    @property
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return self.scale**2

    @property
    def inclusion(self):
        return torch.ones_like(self.loc)

    def mode(self):
        return self.loc

    def noise(self, n_draws, generator):
        shape = (n_draws, *self.loc.shape)
        return Noise(torch.randn(shape, generator=generator, dtype=self.loc.dtype))

    def rsample(self, noise, noise_scale=1.0):
        code = self.loc + noise_scale * self.scale * noise.base
        return Draws(code, torch.ones_like(code, dtype=torch.bool))

    def log_ratio(self, draws):
        q = distributions.Normal(self.loc, self.scale)
        return self.family.prior(self.loc).log_prob(draws.code) - q.log_prob(draws.code)

    def kl(self, draws=None):
        if draws is None:
            raise ValueError("draws are needed")
        return -self.log_ratio(draws)


class OwnPosterior(NormalPosterior):
    """The same posterior, which says that it cannot detach its parameters."""

    def detached(self):
        raise NotImplementedError


class NotDetachable(StudentT):
    """The same family, with a posterior that has no ``detached``."""

    def posterior(self, heads):
        q = super().posterior(heads)
        return OwnPosterior(self, q.loc, q.scale)


class OwnGaussian(StudentT):
    """Gaussian prior and posterior, with a closed-form KL."""

    has_closed_kl = True

    def __init__(self):
        super().__init__()

    prior_variance = 1.0

    def prior(self, like):
        return distributions.Normal(torch.zeros_like(like), 1.0)

    def posterior(self, heads):
        q = super().posterior(heads)
        return ClosedPosterior(self, q.loc, q.scale)


class ClosedPosterior(NormalPosterior):
    """Gaussian codes with a Gaussian prior."""

    def kl(self, draws=None):
        q = distributions.Normal(self.loc, self.scale)
        return distributions.kl_divergence(q, self.family.prior(self.loc))


# --- named priors and the equivalent objects

SPIKES = {"prior": "spike_slab", "density": 0.2, "prior_scale": 1.5, "slab": "laplace"}


def spikes(**changed):
    return SpikeSlab(**({"slab": "laplace", "prior_scale": 1.5, "density": 0.2} | changed))


def gamma(**changed):
    return Thresholded(**({"density": 0.2, "gamma_shape": 4.0, "prior_scale": 1.5} | changed))


GAMMA = {"density": 0.2, "threshold_shape": 4.0, "prior_scale": 1.5}
FIXED = {"threshold": 0.6, "threshold_prior": None}
PAIRS = {
    # The class, the object, the parameters that name the same family, and shared parameters.
    "gaussian": (SparseVAE, Continuous(), {"prior": "gaussian"}, {}),
    "laplace": (SparseVAE, Continuous("laplace", prior_scale=0.7), {"prior_scale": 0.7}, {}),
    "laplace exact": (SparseVAE, Continuous("laplace"), {}, {"decoder": "linear"}),
    "laplace, laplace": (
        SparseVAE,
        Continuous("laplace", "laplace"),
        {"posterior_family": "laplace"},
        {"objective": "iwae", "n_draws": 3},
    ),
    "laplace standard": (
        SparseVAE,
        Continuous("laplace"),
        {},
        {"objective": "iwae", "n_draws": 3, "gradient_of_bound": "standard"},
    ),
    "laplace, sampled": (
        SparseVAE,
        Continuous("laplace"),
        {},
        {"decoder": "linear", "gradient": "gumbel_softmax"},
    ),
    "cauchy": (
        SparseVAE,
        Continuous("cauchy", "cauchy"),
        {"prior": "cauchy"},
        {"output_activation": "tanh"},
    ),
    "spikes": (SparseVAE, spikes(), SPIKES, {}),
    "spikes exact": (SparseVAE, spikes(), SPIKES, {"decoder": "linear", "gradient": "exact"}),
    "spikes max_elbo": (SparseVAE, spikes(), SPIKES, {"objective": "max_elbo", "n_draws": 3}),
    "spikes straight_through": (
        SparseVAE,
        spikes(gradient="straight_through"),
        SPIKES,
        {"gradient": "straight_through"},
    ),
    "spikes, parameter": (
        SparseVAE,
        spikes(),
        SPIKES,
        {"gradient": "straight_through"},
    ),
    **{
        f"spikes {gradient}": (SparseVAE, spikes(), SPIKES, {"gradient": gradient, "n_draws": 2})
        for gradient in SCORE_GRADIENTS
    },
    "gamma": (ThresholdedVSC, gamma(), GAMMA, {}),
    "gamma exact": (ThresholdedVSC, gamma(), GAMMA, {"gradient": "exact", "n_refine": 0}),
    "gamma draws": (
        ThresholdedVSC,
        gamma(),
        GAMMA,
        {"decoder": "mlp", "transform_method": "sample", "score_method": "iwae"},
    ),
    "gamma, exact, scored by draws": (
        ThresholdedVSC,
        gamma(),
        GAMMA,
        {"transform_method": "max_elbo", "n_draws": 2, "gradient": "exact", "n_refine": 0},
    ),
    "gamma straight_through": (
        ThresholdedVSC,
        gamma(gradient="straight_through", training_kl="base", threshold_kl_weight=0.5),
        GAMMA | {"threshold_kl_weight": 0.5},
        {"gradient": "straight_through", "noise_warmup": 0.5},
    ),
    "gamma, parameter": (
        ThresholdedVSC,
        gamma(training_kl="base"),
        GAMMA | {"kl": "base"},
        {"gradient": "subgradient"},
    ),
    "fixed": (ThresholdedVSC, Thresholded(threshold=0.6), FIXED, {}),
    "fixed sampled": (ThresholdedVSC, Thresholded(threshold=0.6), FIXED, {"decoder": "mlp"}),
    "gaussian thresholds": (
        ThresholdedVSC,
        gamma(base="gaussian"),
        GAMMA | {"prior": "gaussian", "threshold_prior": "gamma"},
        {"objective": "iwae", "n_draws": 2},
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    estimator_class, prior, named, shared = PAIRS[request.param]
    common = {"score_draws": 4} | TINY | shared
    return estimator_class(prior=prior, **common), estimator_class(**(common | named))


@pytest.mark.filterwarnings("ignore:.*do not apply to training", "ignore:.*decodes to values")
def test_objects_fit_like_the_names_of_the_same_family(pair):
    ours, named = (estimator.fit(X) for estimator in pair)
    weights = named.module_.state_dict()
    assert ours.module_.state_dict().keys() == weights.keys()
    for name, value in ours.module_.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for answer in ("transform", "score_samples"):
        assert_array_equal(getattr(ours, answer)(X), getattr(named, answer)(X))
    assert_array_equal(ours.sample_posterior(X, 2), named.sample_posterior(X, 2))
    assert_array_equal(ours.sample(5), named.sample(5))
    assert [r["loss"] for r in ours.history_] == [r["loss"] for r in named.history_]
    if isinstance(ours, ThresholdedVSC):
        assert ours.threshold_ == named.threshold_


def test_each_class_takes_the_priors_of_the_other():
    """ThresholdedVSC takes a spike-and-slab prior, and SparseVAE takes a thresholded one."""
    common = TINY | {"decoder": "linear", "gradient": "exact"}
    thresholded = ThresholdedVSC(prior=spikes(), **common).fit(X)
    sparse = SparseVAE(prior=spikes(), **common).fit(X)
    assert_array_equal(thresholded.transform(X), sparse.transform(X))
    assert math.isnan(thresholded.threshold_)
    one, other = ThresholdedVSC(prior=gamma(), **common), SparseVAE(prior=gamma(), **common)
    assert_array_equal(one.fit(X).transform(X), other.fit(X).transform(X))


def test_gates_of_integrated_thresholds_learn_by_score_functions():
    """These are the gates of a spike and slab, whose temperature REBAR's control variate uses."""
    for gradient in SCORE_GRADIENTS:
        model = SparseVAE(prior=gamma(), gradient=gradient, n_draws=2, **TINY).fit(X)
        assert np.isfinite(model.score(X))
    assert model.module_.family.as_gated().temperature == model.module_.family.temperature == 0.5


# --- an object is copied, not changed


@each_class
@pytest.mark.parametrize("make", [spikes, gamma, StudentT])
def test_the_object_is_left_unchanged(estimator_class, make):
    prior = make()
    prior.temperature = 3.0
    before = copy.deepcopy(vars(prior))
    model = estimator_class(prior=prior, decoder="mlp", **TINY)
    model.fit(X).partial_fit(X).transform(X)
    assert model.prior is prior and model.module_.family is not prior
    assert vars(prior) == before
    # In the copy, training has lowered the temperature of relaxed gates.
    if make is not StudentT:
        assert model.module_.family.temperature == 0.5


def test_gradient_of_the_estimator_is_not_written_into_the_object():
    prior = spikes()
    model = SparseVAE(prior=prior, gradient="straight_through", **TINY).fit(X)
    assert (prior.gradient, model.module_.family.gradient) == ("gumbel_softmax", "straight_through")


def test_auto_keeps_the_gradient_of_the_object():
    for gradient in ("straight_through", "subgradient", "gumbel_softmax"):
        prior = gamma(gradient=gradient)
        model = ThresholdedVSC(prior=prior, decoder="mlp", **TINY).fit(X)
        assert model.module_.family.gradient == gradient


# --- scikit-learn's conventions


@each_class
def test_parameters_and_clones(estimator_class):
    prior = StudentT(4.0)
    model = estimator_class(prior=prior, **TINY)
    assert model.get_params()["prior"] is prior
    other = clone(model)
    assert other.prior is not prior and repr(other.prior) == repr(prior)
    assert_array_equal(other.fit(X).transform(X), model.fit(X).transform(X))
    assert clone(model).set_params(prior="laplace").prior == "laplace"
    with pytest.raises(ValueError, match=r"The 'prior' parameter of .* instance of .*LatentFam"):
        estimator_class(prior=StudentT).fit(X)


@pytest.mark.parametrize(
    ("estimator_class", "priors"),
    [
        (SparseVAE, ["laplace", spikes(), gamma(), StudentT(), "spike_slab"]),
        (ThresholdedVSC, ["gaussian", gamma(), Continuous("laplace"), StudentT()]),
    ],
)
def test_search_over_names_and_objects(estimator_class, priors):
    # Parameters of named priors do not affect objects.
    grid = {"prior": priors, "density": [0.1, 0.3]}
    search = GridSearchCV(estimator_class(**TINY), grid, cv=2, error_score="raise").fit(X)
    scores = search.cv_results_["mean_test_score"].reshape(2, len(priors))
    objects = [isinstance(prior, LatentFamily) for prior in priors]
    assert np.isfinite(scores).all()
    assert_array_equal(scores[0][objects], scores[1][objects])
    assert (
        scores[0][-1 if estimator_class is SparseVAE else 0]
        != scores[1][-1 if estimator_class is SparseVAE else 0]
    )


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        (SpikeSlab(), "SpikeSlab()"),
        (spikes(density=0.05), "SpikeSlab(slab='laplace', prior_scale=1.5, density=0.05)"),
        (gamma(), "Thresholded(prior_scale=1.5, density=0.2, gamma_shape=4.0)"),
        (Thresholded(threshold=0.5), "Thresholded(threshold=0.5)"),
        (Continuous("laplace", "laplace"), "Continuous(prior='laplace', posterior='laplace')"),
        (StudentT(4.0), "StudentT(df=4.0)"),
        (OwnGaussian(), "OwnGaussian()"),
    ],
)
def test_repr(prior, text):
    assert repr(prior) == text
    assert repr(SparseVAE(prior=prior)) == f"SparseVAE(prior={text})"
    assert repr(eval(text)) == text  # it is a valid call of the constructor


def test_repr_of_a_family_that_keeps_its_arguments_elsewhere():
    class Hidden(StudentT):
        def __init__(self, freedom):
            super().__init__(freedom)

    assert repr(Hidden(4.0)) == "Hidden(...)"
    with pytest.raises(NotImplementedError, match="does not keep its 'freedom'"):
        Hidden(4.0).arguments()


def test_arguments_are_unchanged_after_use():
    """A threshold that follows from the density is not an argument."""
    prior = gamma()
    assert prior.threshold > 0 and prior.arguments()["threshold"] is None


# --- training a user-defined family


def test_the_family_of_this_file_is_correct():
    family = StudentT(5.0)
    codes = family.sample_prior((20_000,), torch.Generator().manual_seed(0), torch.float64)
    assert stats.kstest(codes, stats.t(5).cdf).pvalue > 1e-3
    q = family.posterior(torch.tensor([[[0.5], [-1.0]]], dtype=torch.float64))
    by_draws = q.kl(q.rsample(q.noise(200_000, torch.Generator().manual_seed(0)))).mean().item()
    norm, t = stats.norm(0.5, q.scale.item()), stats.t(5)
    exact = integrate.quad(lambda z: norm.pdf(z) * (norm.logpdf(z) - t.logpdf(z)), -5, 6)[0]
    assert by_draws == pytest.approx(exact, abs=0.01)


@each_class
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
@pytest.mark.parametrize("gradient", ["auto", "gumbel_softmax"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("make", [StudentT, NotDetachable])
def test_user_defined_families_train(estimator_class, decoder, gradient, objective, make):
    options = {"decoder": decoder, "gradient": gradient, "objective": objective, "n_draws": 2}
    options |= {"max_iter": 20, "learning_rate_init": 0.02, "score_draws": 8}
    model = estimator_class(prior=make(), **(TINY | options))
    losses = [record["loss"] for record in model.fit(X).history_]
    assert losses[-1] < losses[0] - 0.1
    assert "density" not in model.history_[0]
    assert np.isfinite(model.score_samples(X)).all()
    assert model.sample_posterior(X, 3).shape == (3, len(X), 4)
    assert (model.posterior(X).std > 0).all()
    assert model.sample(4).shape == (4, 8)


def test_user_defined_families_with_a_closed_kl_are_trained_exactly():
    """The model is that of a named Gaussian prior, which trains and scores without draws."""
    common = TINY | {"decoder": "linear", "gradient": "exact", "max_iter": 4}
    ours, named = (SparseVAE(prior=prior, **common).fit(X) for prior in (OwnGaussian(), "gaussian"))
    np.testing.assert_allclose(ours.score_samples(X), named.score_samples(X), rtol=1e-9)
    with pytest.raises(ValueError, match=r"closed form, which prior=StudentT\(\) does not have"):
        SparseVAE(prior=StudentT(), **common).fit(X)


def test_doubly_reparameterised_if_the_posterior_can_be_detached():
    """A dataclass of tensors needs no ``detached`` of its own; others train as before."""
    common = TINY | {"objective": "iwae", "n_draws": 4, "score_draws": 4}

    def codes(prior, gradient):
        model = SparseVAE(prior=prior, gradient_of_bound=gradient, **common)
        return model.fit(X).transform(X)

    standard = codes(StudentT(), "standard")
    assert StudentT().can_be_doubly_reparameterised
    assert not np.array_equal(codes(StudentT(), "auto"), standard)
    assert_array_equal(codes(StudentT(), "auto"), codes(StudentT(), "dreg"))
    assert not NotDetachable().can_be_doubly_reparameterised
    assert_array_equal(codes(NotDetachable(), "auto"), standard)
    with pytest.raises(ValueError, match=r"a posterior with a method 'detached', which prior=NotD"):
        codes(NotDetachable(), "dreg")
    with pytest.raises(ValueError, match="draws without an atom at zero, which prior=SpikeSlab"):
        codes(SpikeSlab(), "dreg")


@pytest.mark.parametrize("family", [StudentT(), spikes(), gamma(), Continuous("laplace")])
def test_detached_is_the_same_distribution_without_gradients(family):
    heads = torch.randn(4, family.n_heads, 3, generator=torch.Generator().manual_seed(0))
    q = family.posterior(heads.double().requires_grad_())
    draws = q.rsample(q.noise(5, torch.Generator().manual_seed(1)))
    draws = Draws(draws.code.detach(), draws.active)
    detached = q.detached()
    assert type(detached) is type(q) and detached.family is q.family
    assert q.log_ratio(draws).requires_grad and not detached.log_ratio(draws).requires_grad
    assert torch.equal(detached.log_ratio(draws), q.log_ratio(draws))


def test_detached_does_not_guess():
    """Parameters inside other objects would silently keep their gradients."""

    @dataclass(frozen=True)
    class Nested(NormalPosterior):
        distribution: distributions.Distribution

    q = Nested(StudentT(), torch.zeros(1, 1), torch.ones(1, 1), distributions.Normal(0.0, 1.0))
    with pytest.raises(NotImplementedError, match="Nested has no 'detached': return the same"):
        q.detached()

    class NoDataclass(NormalPosterior.__base__):
        mean = variance = inclusion = property(lambda self: torch.ones(1, 1))
        mode = noise = rsample = kl = log_ratio = row = None

    with pytest.raises(NotImplementedError, match="make the class a dataclass"):
        NoDataclass().detached()


@each_class
def test_training_continues_with_a_user_defined_family(estimator_class):
    model = estimator_class(prior=StudentT(), **(TINY | {"max_iter": 3}))
    model.partial_fit(X).partial_fit(X)
    assert model.n_iter_ == 2
    warm = estimator_class(prior=StudentT(), warm_start=True, **TINY).fit(X)
    first = warm.score(X)
    assert warm.fit(X).n_iter_ == 4 and warm.score(X) != first


# --- incompatible parameters


@pytest.mark.parametrize(
    ("prior", "params", "message"),
    [
        (
            spikes(),
            {"posterior_family": "spike_slab"},
            r"'spike_slab' does not apply to prior=SpikeSlab\(.*\), which brings .*; use .*'auto'",
        ),
        (
            Thresholded(threshold=0.6),
            {"gradient": "rebar"},
            r"'rebar' needs a spike and slab with free gates, .*Thresholded\(threshold=0.6\) is",
        ),
        (
            spikes(),
            {"gradient": "reinforce", "objective": "iwae"},
            "gradient='reinforce' estimates the gradient of the ELBO",
        ),
        (
            Continuous("cauchy", "cauchy"),
            {},
            r"prior=Continuous\(.*\): codes whose posterior has no variance need .* bounded output",
        ),
        (
            StudentT(),
            {"score_method": "collapsed_elbo"},
            r"prior=StudentT\(\)",
        ),
    ],
)
def test_refused_combinations(prior, params, message):
    with pytest.raises(ValueError, match=message):
        SparseVAE(prior=prior, **(TINY | params)).fit(X)


@pytest.mark.parametrize(
    ("prior", "params", "message"),
    [
        (
            spikes(),
            {"gradient": "subgradient"},
            r"gradient='subgradient' does not apply to prior=SpikeSlab\(.*use 'auto', or one of 'g",
        ),
        (
            Continuous("cauchy", "cauchy"),
            {},
            r"prior=Continuous\(.*\): codes whose posterior has no variance",
        ),
        (
            Thresholded(threshold=1e-12),
            {},
            r"prior=Thresholded\(threshold=1e-12\) makes a threshold of 1e-12 times prior_scale",
        ),
        (Thresholded(threshold=90.0), {}, "threshold=90 is too large for prior_scale=1"),
    ],
)
def test_refused_combinations_of_thresholded(prior, params, message):
    with pytest.raises(ValueError, match=message):
        ThresholdedVSC(prior=prior, **(TINY | params)).fit(X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpikeSlab("cauchy"), "slab must be one of 'gaussian', 'laplace'; got 'cauchy'"),
        (lambda: SpikeSlab(density=1.0), r"density must be a number in \(0, 1\); got 1.0"),
        (lambda: SpikeSlab(density="0.1"), r"density must be a number in \(0, 1\); got '0.1'"),
        (lambda: SpikeSlab(prior_scale=0), r"prior_scale must be a number in \(0, inf\); got 0"),
        (lambda: SpikeSlab(prior_scale=math.nan), "prior_scale must be a number .* got nan"),
        (lambda: SpikeSlab(gradient="subgradient"), "gradient must be one of 'gumbel_softmax', "),
        (lambda: Thresholded("cauchy"), "base must be one of 'laplace', 'gaussian'"),
        (lambda: Thresholded(threshold=-1), r"threshold must be a number in \[0, inf\); got -1"),
        (
            lambda: Thresholded(threshold=0, gamma_shape=3.0),
            r"threshold must be a number in \(0, inf\); got 0",
        ),
        (lambda: Thresholded(training_kl="auto"), "training_kl must be one of 'thresholded', 'ba"),
        (lambda: Thresholded(threshold_kl_weight=-1), r"threshold_kl_weight .* \[0, inf\); got -1"),
        (lambda: Continuous("spikes"), "prior must be one of 'gaussian', 'laplace', 'cauchy'"),
        (lambda: Continuous(posterior=3), "posterior must be one of .* got 3"),
    ],
)
def test_families_refuse_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- pickle, and files that do not use it


@each_class
@pytest.mark.parametrize("prior", [spikes(), gamma(), Continuous("laplace"), StudentT()])
def test_pickle_and_joblib(estimator_class, prior, tmp_path):
    model = estimator_class(prior=prior, **TINY).fit(X)
    expected = model.score_samples(X)
    joblib.dump(model, tmp_path / "model")
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model")):
        assert repr(again.prior) == repr(prior)
        assert_array_equal(again.score_samples(X), expected)
        further = copy.deepcopy(model).partial_fit(X)
        assert_array_equal(again.partial_fit(X).components_, further.components_)


LIBRARY = {
    "spikes": spikes(gradient="straight_through"),
    "gamma": gamma(training_kl="base", gradient="straight_through"),
    "relaxed": gamma(),
    "fixed": Thresholded("gaussian", threshold=np.float64(0.6)),
    "continuous": Continuous("laplace", "laplace", prior_scale=2.0),
}


@each_class
@pytest.mark.parametrize("prior", LIBRARY.values(), ids=LIBRARY)
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_families_of_the_package_are_saved(estimator_class, prior, decoder, tmp_path):
    model = estimator_class(prior=prior, decoder=decoder, **TINY).fit(X)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert type(again.prior) is type(prior) and again.prior.arguments() == prior.arguments()
    for answer in ("transform", "score_samples"):
        assert_array_equal(getattr(again, answer)(X), getattr(model, answer)(X))
    assert again.module_.family.temperature == model.module_.family.temperature
    assert_array_equal(again.partial_fit(X).components_, model.partial_fit(X).components_)
    again.save(tmp_path / "again")
    assert_array_equal(load(tmp_path / "again").transform(X), again.transform(X))


@each_class
def test_user_defined_families_are_passed_to_load(estimator_class, tmp_path):
    model = estimator_class(prior=StudentT(4.0), score_draws=4, **TINY).fit(X)
    model.save(tmp_path / "model")
    prior = StudentT(4.0)
    again = load(tmp_path / "model", prior=prior)
    assert again.prior is prior
    assert_array_equal(again.score_samples(X), model.score_samples(X))
    assert_array_equal(again.partial_fit(X).components_, model.partial_fit(X).components_)
    again.save(tmp_path / "model")
    assert_array_equal(load(tmp_path / "model", prior=prior).transform(X), again.transform(X))
    folder = tmp_path / "model"
    with pytest.raises(TypeError, match=r"your own classes.* call load\(path, prior=...\)"):
        load(folder)
    with pytest.raises(TypeError, match=r"call load\(path, prior=...\)"):
        load(folder, prior="laplace")
    for wrong, found in (
        (StudentT(5.0), r"StudentT\(\)"),
        (NotDetachable(4.0), r"NotDetachable\(df=4.0\)"),
        (SpikeSlab(), r"SpikeSlab\(\)"),
        (nn.Linear(1, 1), "Linear"),
    ):
        message = rf"fitted with prior=StudentT\(df=4.0\), and load was given prior={found}"
        with pytest.raises(ValueError, match=message):
            load(folder, prior=wrong)
    with pytest.raises(TypeError, match="load was given decoder, for which the saved model has no"):
        load(folder, prior=prior, decoder=nn.Linear(4, 8))


@each_class
def test_superfluous_objects_are_refused(estimator_class, tmp_path):
    for prior in ("laplace", gamma()):
        estimator_class(prior=prior, **TINY).fit(X).save(tmp_path / "model")
        with pytest.raises(TypeError, match="load was given prior, for which the saved model has"):
            load(tmp_path / "model", prior=gamma())


def test_subclasses_of_the_packages_families_are_user_defined(tmp_path):
    class SpikeSlab_(SpikeSlab):  # noqa: N801
        pass

    SpikeSlab_.__name__ = "SpikeSlab"
    model = SparseVAE(prior=SpikeSlab_(), **TINY).fit(X)
    model.save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"load\(path, prior=\.\.\.\)"):
        load(tmp_path / "model")
    again = load(tmp_path / "model", prior=SpikeSlab_())
    assert_array_equal(again.transform(X), model.transform(X))


@pytest.mark.parametrize("prior", [spikes(), StudentT()])
def test_changed_and_replaced_objects_are_not_saved(prior, tmp_path):
    """The file would describe a different model from the one that was trained."""
    model = SparseVAE(prior=copy.deepcopy(prior), **TINY).fit(X)
    model.prior.prior_scale = 7.0
    with pytest.raises(ValueError, match="'prior' has been replaced since fit, or changed"):
        model.save(tmp_path / "model")
    model.set_params(prior="laplace")
    with pytest.raises(ValueError, match="'prior' has been replaced since fit, or changed"):
        model.save(tmp_path / "model")
    # An equal object gives the same model.
    model.set_params(prior=copy.deepcopy(prior)).save(tmp_path / "model")


def _tampered(folder, written):
    """Write another prior into a file, with a correct checksum."""
    config, tensors = read_folder(folder)
    config["parameters"]["prior"] = written
    write_folder(folder, config, tensors)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"object": {"class": "Popen", "arguments": {}}}, "'prior' names 'Popen', which load does"),
        ({"object": {"class": "LatentFamily", "arguments": {}}}, "names 'LatentFamily'"),
        ({"object": {"class": ["SpikeSlab"], "arguments": {}}}, r"names \['SpikeSlab'\]"),
        ({"object": {"class": "SpikeSlab"}}, "'prior' is not an object that save writes"),
        ({"object": "SpikeSlab"}, "'prior' is not an object that save writes"),
        (
            {"object": {"class": "SpikeSlab", "arguments": {"shell": True}}},
            "'prior' cannot be a SpikeSlab of these arguments: .*unexpected keyword",
        ),
        (
            {"object": {"class": "SpikeSlab", "arguments": {"density": 2.0}}},
            r"'prior' cannot be a SpikeSlab of these arguments: density must be .*\(0, 1\); got 2",
        ),
        ({"object": {"class": "SpikeSlab", "arguments": []}}, "cannot be a SpikeSlab of these"),
        (
            {"object": {"class": "SpikeSlab", "arguments": {"density": {"code": "1"}}}},
            "cannot be a SpikeSlab of these arguments",
        ),
        # A family that does not match the weights, or not a family at all.
        ({"object": {"class": "Continuous", "arguments": {}}}, "module_.heads"),
        ({"object": {"class": "GaussianLikelihood", "arguments": {}}}, "The 'prior' parameter of"),
        ({"dict": {"module": "prior"}}, "The 'prior' parameter of"),
    ],
)
def test_tampered_objects_are_refused(written, message, tmp_path):
    SparseVAE(prior=spikes(), **TINY).fit(X).save(tmp_path / "model")
    _tampered(tmp_path / "model", written)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model")


def test_files_hold_the_arguments_in_readable_form(tmp_path):
    for prior in (spikes(), StudentT(4.0)):
        SparseVAE(prior=prior, **TINY).fit(X).save(tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        written = config["parameters"]["prior"]
        if isinstance(prior, SpikeSlab):
            assert written == {"object": {"class": "SpikeSlab", "arguments": prior.arguments()}}
        else:
            assert written == {"module": "prior", "is": "StudentT(df=4.0)"}
