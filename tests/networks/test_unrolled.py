"""The unrolled coder is truncated FISTA and cannot diverge; its heads start at known posteriors."""

import math

import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn.functional import softshrink
from training_bounds import training_bound

from sklearn_vsc._models.latent_variable import LatentVariableModel
from sklearn_vsc._models.objectives import Objective
from sklearn_vsc.latents import Continuous, SpikeSlab, Thresholded
from sklearn_vsc.likelihoods import GaussianLikelihood
from sklearn_vsc.networks import AtomHeads, LinearDecoder, TiedEncoder, UnrolledCoder
from sklearn_vsc.networks.unrolled import unit_atoms
from sklearn_vsc.solvers.lasso.fista import lipschitz_bound
from sklearn_vsc.solvers.lasso.solve import solve_lasso


def _normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _coder(n_components, n_unrolled, **options):
    return UnrolledCoder(n_components, n_unrolled, **options).double()


# The first takes the Gram form, the second the residual form.
SHAPES = [(12, 10), (30, 10)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_step_thresholds_the_correlations(shape):
    x, dictionary = _normal(5, 10), 3 * _normal(*shape, seed=1)
    coder = _coder(shape[0], 1, thresholds=(0.7, 0.7), step=0.6)
    code, correlation = coder(x, dictionary)
    atoms = dictionary / dictionary.norm(dim=1, keepdim=True)
    step = 0.6 / float(lipschitz_bound(atoms))
    expected = softshrink(step * x @ atoms.T, step * 0.7)
    assert_allclose(code.detach(), expected, rtol=1e-6)
    assert_allclose(correlation.detach(), (x - code.detach() @ atoms) @ atoms.T, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_many_steps_solve_the_lasso(shape):
    """For atoms of any norm, the codes are those for the atoms scaled to unit norm."""
    x, dictionary = _normal(6, 10), _normal(*shape, seed=1)
    atoms = unit_atoms(dictionary)
    coder = _coder(shape[0], 3000, thresholds=(0.4, 0.4))
    alpha = coder.thresholds[0, 0].item()
    solution = solve_lasso(x, atoms, alpha, tol=1e-12).codes
    assert 0.05 < (solution != 0).double().mean() < 0.6
    with torch.no_grad():
        for scale in (1.0, 20.0):
            assert_allclose(coder(x, scale * dictionary)[0], solution, atol=1e-5)
        # The unit multiplies the thresholds.
        twice = solve_lasso(x, atoms, 2 * alpha, tol=1e-12).codes
        assert_allclose(coder(x, dictionary, unit=2.0)[0], twice, atol=1e-5)


def test_thresholds_decrease_from_the_first_to_the_last():
    thresholds = _coder(3, 4, thresholds=(8.0, 1.0)).thresholds.detach()
    expected = torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None].expand(-1, 3)
    assert_allclose(thresholds, expected, rtol=1e-6)
    assert_allclose(_coder(3, 1, thresholds=(8.0, 1.0)).thresholds.detach(), expected[3:])


def test_each_step_and_atom_has_its_own_threshold():
    x, dictionary = _normal(5, 10), _normal(12, 10, seed=1)
    coder = _coder(12, 2)
    with torch.no_grad():
        plain = coder(x, dictionary)[0]
        coder.raw_thresholds[1, 3] = 100.0
        code = coder(x, dictionary)[0]
        assert (plain[:, 3] != 0).any() and (code[:, 3] == 0).all()
        others = [k for k in range(12) if k != 3]
        assert torch.equal(code[:, others], plain[:, others])
        # With a high threshold in the first step, the second starts from zero.
        coder.raw_thresholds[:] = torch.tensor([[100.0], [0.5]])
        single = _coder(12, 1)
        single.raw_thresholds[:] = 0.5
        assert_allclose(coder(x, dictionary)[0], single(x, dictionary)[0])


def test_error_falls_with_the_number_of_steps():
    x, dictionary = _normal(20, 16), unit_atoms(_normal(32, 16, seed=1))

    def objective(n_unrolled):
        coder = _coder(32, n_unrolled, thresholds=(0.5, 0.5))
        with torch.no_grad():
            code = coder(x, dictionary)[0]
            fit = 0.5 * (x - code @ dictionary).square().sum()
            return float(fit + (coder.thresholds[0] * code.abs()).sum())

    values = [objective(n) for n in (1, 2, 4, 8, 16, 64, 1000)]
    assert values == sorted(values, reverse=True)
    # Thanks to momentum, eight steps cover most of the way.
    assert values[3] - values[-1] < 0.15 * (values[0] - values[-1])


@pytest.mark.parametrize("n_components", [19, 20])
def test_forms_agree(n_components):
    """A mask takes the residual form; without one, 19 atoms take the Gram form and 20 do not."""
    x, dictionary = _normal(7, 10), _normal(n_components, 10, seed=1)
    coder = _coder(n_components, 8, thresholds=(0.3, 0.3))
    plain = coder(x, dictionary)
    masked = coder(x, dictionary, torch.ones(7, 10, dtype=torch.bool))
    for ours, other in zip(plain, masked, strict=True):
        assert_allclose(ours.detach(), other.detach(), atol=1e-12)


def test_missing_entries_do_not_count_in_the_residual():
    """A masked row is coded like a shorter row with truncated atoms, at the full atoms' step."""
    x, dictionary = _normal(4, 10), unit_atoms(_normal(12, 10, seed=1))
    mask = torch.ones(4, 10, dtype=torch.bool)
    mask[:, 6:] = False
    coder = _coder(12, 4000, thresholds=(0.3, 0.3))
    with torch.no_grad():
        code, correlation = coder(x, dictionary, mask)
        hidden = torch.where(mask, x, math.nan)
        assert torch.equal(coder(hidden, dictionary, mask)[0], code)
    solution = solve_lasso(
        x[:, :6], dictionary[:, :6], coder.thresholds[0, 0].item(), tol=1e-12
    ).codes
    assert_allclose(code, solution, atol=1e-4)
    residual = x[:, :6] - code @ dictionary[:, :6]
    assert_allclose(correlation, residual @ dictionary[:, :6].T, atol=1e-12)


def test_correction_starts_at_zero():
    x, dictionary = _normal(4, 10), _normal(12, 10, seed=1)
    plain, corrected = _coder(12, 3)(x, dictionary), _coder(12, 3, correction=True)
    assert torch.equal(corrected(x, dictionary)[1], plain[1])
    code, correlation = corrected(x, dictionary)
    correlation.sum().backward()
    by_code = code.detach().sum(0)[:, None].expand(-1, 12)
    assert_allclose(corrected.correction.grad, by_code)


def _wild(n_components, n_features, kind):
    dictionary = _normal(n_components, n_features, seed=1)
    if kind == "norms":
        dictionary *= torch.logspace(-3, 3, n_components, dtype=torch.float64)[:, None]
    elif kind == "equal":
        dictionary[1:] = dictionary[0] * torch.linspace(-2, 2, n_components - 1)[:, None]
    elif kind == "zero":
        dictionary[:] = 0
    else:
        dictionary *= 1e-30
    return dictionary


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_components", [12, 30])
@pytest.mark.parametrize("kind", ["norms", "equal", "zero", "tiny"])
def test_no_dictionary_makes_it_diverge(kind, n_components, dtype):
    dictionary = _wild(n_components, 10, kind).to(dtype).requires_grad_()
    x = _normal(6, 10).to(dtype)
    coder = _coder(n_components, 200, thresholds=(0.1, 0.1)).to(dtype)
    code = coder(x, dictionary)[0]
    assert (code.norm(dim=1) ** 2 < 1e3 * (x.norm(dim=1) ** 2)).all()
    encoder = TiedEncoder(coder, 0.5, 0.7)
    features = encoder(x, dictionary, torch.tensor(0.3, dtype=dtype))
    assert features.isfinite().all()
    features.sum().backward()
    for parameter in (dictionary, *coder.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()


# --- the heads


def _model(family, dictionary, noise_variance=0.3):
    n_components = len(dictionary)
    # A high threshold keeps the codes at zero, so that each atom is seen by itself.
    coder = UnrolledCoder(n_components, 2, thresholds=(50.0, 50.0))
    variance = family.prior_variance / family.prior_inclusion
    likelihood = GaussianLikelihood(noise_variance)
    model = LatentVariableModel(
        TiedEncoder(coder, family.prior_scale, variance),
        AtomHeads(n_components, family.gate_heads),
        LinearDecoder(dictionary),
        likelihood,
        family,
    )
    with torch.no_grad():
        model.decoder.bias += 0.2
    return model.double()


def test_heads_start_at_the_exact_posterior_of_orthogonal_atoms():
    """This holds up to the soft bounds on the heads."""
    family = SpikeSlab(prior_scale=0.7, density=0.2)
    norms = torch.tensor([0.3, 1.0, 1.5, 0.0], dtype=torch.float64)
    dictionary = norms[:, None] * torch.linalg.qr(_normal(6, 4))[0].T
    model, x = _model(family, dictionary), 0.8 * _normal(9, 6, seed=1)
    with torch.no_grad():
        q = model.posterior(x)
        noise = float(model.likelihood.noise_variance)
    # Codes are then independent: Gaussian given an open gate, with a known Bayes factor.
    precision = norms**2 / noise + 1 / 0.7**2
    loc = (x - 0.2) @ dictionary.T / noise / precision
    log_factor = 0.5 * (precision * loc**2 - torch.log(precision * 0.7**2))
    assert_allclose(q.loc, loc, rtol=1e-6, atol=1e-12)
    assert_allclose(q.scale, precision.rsqrt().expand_as(loc), rtol=0.02)
    assert_allclose(q.logit, family.prior_logit + log_factor, atol=0.05)


@pytest.mark.parametrize(
    "family",
    [
        SpikeSlab("laplace"),
        Thresholded("laplace", gamma_shape=3.0),
        Thresholded("gaussian", gamma_shape=3.0),
        Thresholded("gaussian"),
        Continuous("laplace", "gaussian"),
    ],
    ids=lambda family: type(family).__name__,
)
def test_inclusion_rises_with_the_evidence(family):
    atom = torch.tensor([[1.5, 0.0]], dtype=torch.float64)
    x = torch.linspace(0, 5, 20, dtype=torch.float64)[:, None] * atom + 0.2
    with torch.no_grad():
        q = _model(family, atom).posterior(x)
    assert (q.loc.diff(dim=0) > 0).all()
    inclusion = q.inclusion[:, 0]
    assert (inclusion.diff() >= -1e-12).all()
    if any(family.gate_heads):
        assert inclusion[0] < 0.2 and inclusion[-1] > 0.7


def _gradients(bound, parameters):
    return torch.autograd.grad(bound.sum(), parameters, allow_unused=True)


def test_with_refinement_the_decoder_learns_from_the_refined_bound_alone():
    model = _model(SpikeSlab(), _normal(8, 6))
    x = _normal(10, 6, seed=1)
    generator = torch.Generator()
    learned = [*model.decoder.parameters(), *model.likelihood.parameters()]
    coder = [*model.heads.parameters()]
    bound = training_bound(model, x, Objective("exact", n_refine=3), generator, kl_weight=1.0)
    by_decoder = _gradients(bound, learned)
    bound = training_bound(model, x, Objective("exact", n_refine=3), generator, kl_weight=1.0)
    by_heads = _gradients(bound, coder)

    with torch.no_grad():
        posterior = model.posterior(x)
    refined = model.refine(x, posterior, 3)
    value = model.expected_log_likelihood(x, refined) - refined.kl().sum(-1)
    assert_allclose(bound.detach(), value.detach())
    for ours, expected in zip(by_decoder, _gradients(value, learned), strict=True):
        assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)

    # The heads learn from the bound that they attain by themselves.
    plain = training_bound(model, x, Objective("exact"), generator, kl_weight=1.0)
    for ours, expected in zip(by_heads, _gradients(plain, coder), strict=True):
        assert ours.abs().max() > 0
        assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)
    assert all(parameter.requires_grad for parameter in learned)


def test_without_refinement_the_decoder_learns_through_its_encoder_too():
    model = _model(SpikeSlab(), _normal(8, 6))
    x = _normal(10, 6, seed=1)
    tied = training_bound(model, x, Objective("exact"), torch.Generator(), kl_weight=1.0)
    with torch.no_grad():
        q = model.posterior(x)
    held = model.expected_log_likelihood(x, q) - q.kl().sum(-1)
    by_tied, by_held = (_gradients(b, [model.decoder.weight])[0] for b in (tied, held))
    assert (by_tied - by_held).abs().max() > 1e-3 * by_held.abs().max()
    # The noise variance learns from the likelihood alone.
    noise = [model.likelihood.log_noise_variance]
    tied = training_bound(model, x, Objective("exact"), torch.Generator(), kl_weight=1.0)
    held = model.expected_log_likelihood(x, q) - q.kl().sum(-1)
    assert_allclose(_gradients(tied, noise)[0], _gradients(held, noise)[0])
