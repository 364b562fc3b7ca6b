"""Free-form posteriors in torch: the factors of the compiled ascent, and their draws."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mixed_measure import assert_mean, posterior_integrals
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

from sklearn_vsc.latents import Noise
from sklearn_vsc.latents.free_form import FreeFormPosterior, SlabLaws
from sklearn_vsc.solvers.linear_model.parameters import Slab
from sklearn_vsc.solvers.posterior.free_form import solve

SCALE, DENSITY = 0.8, 0.2
FIELDS = [[-2.5, 0.3, 4.0, -3.5], [0.0, 1.7, -0.4, 5.0]]
CURVATURES = [0.7, 2.0, 5.0, 1.3]
CONTRASTS = [0.5, 3.0]

each_slab = pytest.mark.parametrize("slab", ["laplace", "gaussian", "thresholded"])
each_sign = pytest.mark.parametrize("positive", [False, True], ids=["two-sided", "positive"])


def _priors(slab, n_components, positive=False, density=DENSITY):
    return Slab(slab, SCALE, positive).priors(np.full(n_components, density))


def _posterior(
    slab, fields=FIELDS, curvatures=CURVATURES, contrasts=CONTRASTS, *, positive=False,
    density=DENSITY, dtype=torch.float64,
):  # fmt: skip
    def tensor(values):
        return torch.from_numpy(np.array(values, float)).to(dtype)

    fields = np.array(fields, float)
    priors = _priors(slab, fields.shape[1], positive, density)
    laws = (priors.logit, priors.log_constant, priors.rate, priors.precision)
    return FreeFormPosterior(
        SlabLaws(*map(tensor, laws), positive),
        tensor(fields),
        tensor(np.broadcast_to(curvatures, fields.shape)),
        tensor(contrasts)[:, None],
    )


def _factors(slab, fields=FIELDS, curvatures=CURVATURES, positive=False):
    """Factors by the compiled ascent, for atoms that are orthogonal: one row for each code."""
    fields = np.array(fields, float)
    priors = _priors(slab, fields.shape[1], positive)
    n_rows = len(fields)
    return solve(fields, np.diag(curvatures), np.zeros(n_rows), np.ones(n_rows), priors)


def _draws(q, n_draws, seed=0):
    return q.rsample(q.noise(n_draws, torch.Generator().manual_seed(seed)))


# ------------------------------------------------------------------ moments

FAR = [[-1000.0, -60.0, -3.9, -0.2], [5.0, 4.1, 40.0, 1000.0], [0.0, -7.0, 6.0, -4.2]]


@each_slab
@each_sign
def test_moments_and_kl_are_those_of_the_compiled_ascent(slab, positive):
    q = _posterior(slab, FAR, contrasts=[0.5, 3.0, 1.0], positive=positive)
    found = _factors(slab, FAR, positive=positive)
    contrast = np.array([[0.5], [3.0], [1.0]])
    assert_array_equal(q.field, found.field)
    assert_allclose(q.inclusion, found.inclusion, rtol=1e-8)
    assert_allclose(q.mean, contrast * found.mean, rtol=1e-7, atol=1e-15)
    variance = found.second - found.mean**2
    # A difference, where the code is known well.
    assert_allclose(q.variance, contrast**2 * variance, rtol=1e-7, atol=1e-9 * found.second.max())
    assert_allclose(q.kl().sum(1), found.kl, rtol=1e-8)
    on = found.inclusion > 0.5
    mode = np.where(on, contrast * found.mean / found.inclusion, 0)
    assert on.any() and not on.all()
    assert_allclose(q.mode(), mode, rtol=1e-7)


@each_slab
@each_sign
def test_float32_keeps_the_digits_of_tails(slab, positive):
    exact = _posterior(slab, FAR, contrasts=[1.0] * 3, positive=positive)
    q = _posterior(slab, FAR, contrasts=[1.0] * 3, positive=positive, dtype=torch.float32)
    for name in ("inclusion", "mean"):
        found = getattr(q, name)
        assert found.dtype == torch.float32
        assert_allclose(found, getattr(exact, name), rtol=1e-4, atol=1e-30)
    assert_allclose(q.variance, exact.variance, rtol=1e-3, atol=1e-6 * exact.mean.max().item() ** 2)
    assert_allclose(q.kl(), exact.kl(), rtol=1e-4, atol=1e-6 * 1000**2)


@each_slab
@each_sign
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_atom_of_norm_zero_leaves_the_prior(slab, positive, dtype):
    q = _posterior(slab, [[0.0]], [0.0], [1.0], positive=positive, dtype=dtype)
    law, density = Slab(slab, SCALE, positive), np.array([DENSITY])
    rtol = 1e-4 if dtype == torch.float32 else 1e-8
    assert_allclose(q.inclusion, [[DENSITY]], rtol=rtol)
    assert q.kl().abs() < 10 * rtol
    square = q.variance + q.mean**2
    assert_allclose(square, [DENSITY * law.mean_square(density)], rtol=rtol)
    draws = _draws(q, 2000)
    assert draws.code.isfinite().all() and draws.active.any()
    assert_allclose(q.log_ratio(draws), 0, atol=10 * rtol)


def test_a_row_is_a_batch_of_one():
    q = _posterior("laplace")
    one = q.row(1)
    assert one.field.shape == (1, 4)
    assert_allclose(one.mean[0], q.mean[1], rtol=1e-12)
    assert_allclose(one.kl()[0], q.kl()[1], rtol=1e-12)


# ------------------------------------------------------------------ draws


@each_slab
@each_sign
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_moments_of_the_posterior(slab, positive, dtype):
    q = _posterior(slab, positive=positive, dtype=dtype)
    draws = _draws(q, 40_000)
    assert draws.code.dtype == dtype
    assert_array_equal(draws.code != 0, draws.active)
    assert_mean(draws.active, q.inclusion)
    assert_mean(draws.code, q.mean)
    assert_mean(draws.code.double() ** 2, q.variance + q.mean**2)
    if positive:
        assert (draws.code >= 0).all()


def _share_below(t, z):
    """Distribution function, and one minus it, of a normal number (t, 1) that is above zero."""
    if t < 0:
        # Scaled, as numerator and denominator underflow.
        root = np.sqrt(0.5)
        above = special.erfcx((z - t) * root) / special.erfcx(-t * root)
        above = above * np.exp(z * (t - 0.5 * z))
    else:
        above = special.ndtr(t - z) / special.ndtr(t)
    return 1 - above, above


CUTS = [-1e6, -200.0, -60.0, -31.0, -30.0, -29.0, -10.0, -4.1, -3.9, -1.0, 0.0, 2.0, 8.0, 40.0]
SHARES = np.array([1e-5, 0.01, 0.2, 0.5, 0.9, 0.999, 1 - 1e-9])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_quantiles_far_in_the_tails(dtype):
    """Uniform noise is the share of the slab below the draw."""
    priors = _priors("laplace", 1, positive=True)
    fields = np.array(CUTS) + priors.rate
    q = _posterior(
        "laplace", fields[:, None], [1.0], np.ones(len(CUTS)), positive=True, dtype=dtype
    )
    base = torch.from_numpy(SHARES)[:, None, None].expand(-1, len(CUTS), 1)
    draws = q.rsample(Noise(base, torch.full_like(q.field, 1e9).expand(base.shape)))
    assert draws.active.all()
    for i, cut in enumerate(CUTS):
        if dtype == torch.float32:
            # The cut itself is rounded.
            cut = float(q.field[i, 0] - q.laws.rate)
        code = draws.code[:, i, 0].double().numpy()
        below, above = _share_below(cut, code)
        rtol = 1e-9
        if dtype == torch.float32:
            rtol = 1e-5 * (1 + abs(cut)) if cut > 0 else 1e-5
        assert_allclose(above, 1 - SHARES, rtol=25 * rtol, atol=1e-15)
        assert_allclose(below, SHARES, rtol=1e4 * rtol, atol=1e-12)


def test_each_side_has_its_share_of_the_draws():
    q = _posterior("laplace", [[0.4]], [1.0], [1.0])
    grid = (torch.arange(20_000).double() + 0.5) / 20_000
    base = grid[:, None, None]
    draws = q.rsample(Noise(base, torch.full_like(base, 1e9)))
    # A regular grid of uniform numbers has the moments of the slab.
    assert draws.code.mean().item() == pytest.approx(float(q.mean / q.inclusion), rel=1e-3)
    square = float((q.variance + q.mean**2) / q.inclusion)
    assert draws.code.square().mean().item() == pytest.approx(square, rel=1e-3)
    assert torch.unique(draws.code.sign()).tolist() == [-1, 1]


@each_slab
@each_sign
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_finite_whatever_the_uniform_number(slab, positive, dtype):
    q = _posterior(slab, FAR, contrasts=[1.0] * 3, positive=positive, dtype=dtype)
    eps = torch.finfo(torch.float64).eps
    for number in (eps / 2, 1 - eps / 2):
        base = torch.full((1, 3, 4), number, dtype=torch.float64)
        draws = q.rsample(Noise(base, torch.full_like(base, 1e9).to(dtype)))
        assert draws.code.isfinite().all()
        assert q.log_ratio(draws).isfinite().all()
        assert not positive or (draws.code >= 0).all()


# ------------------------------------------------------------------ log ratio


@each_slab
@each_sign
def test_log_ratio_gives_a_distribution_with_the_moments_and_the_kl(slab, positive):
    """The density that the log ratio implies, by quadrature, the mass at zero included."""
    contrast = 1.7
    q = _posterior(slab, FIELDS[:1], contrasts=[contrast], positive=positive)
    priors = _priors(slab, 1, positive)

    def log_slab(z):
        if positive and z < 0:
            return -np.inf
        z = abs(z) / contrast
        slab_at = priors.log_constant - priors.rate * z - 0.5 * priors.precision * z**2
        return float(np.log(DENSITY) + slab_at[0] - np.log(contrast))

    def functions(z, ratio):
        return np.stack([np.ones_like(ratio), z + 0 * ratio, z**2 + 0 * ratio, -ratio])

    prior = SimpleNamespace(prior_inclusion=DENSITY)
    (mass, mean, square, kl), zero = posterior_integrals(prior, q, log_slab, functions)
    assert_allclose(mass, 1, rtol=1e-8)
    assert_allclose(zero, 1 - q.inclusion, rtol=1e-9)
    assert_allclose(mean, q.mean, rtol=1e-7, atol=1e-12)
    assert_allclose(square - mean**2, q.variance, rtol=1e-7)
    assert_allclose(kl, q.kl(), rtol=1e-7)


@each_slab
@each_sign
def test_log_ratio_of_draws_averages_to_the_kl(slab, positive):
    q = _posterior(slab, positive=positive)
    draws = _draws(q, 30_000, seed=1)
    assert_mean(q.log_ratio(draws), -q.kl())


def test_gates_alone():
    q = _posterior("laplace", density=0.3)
    draws = _draws(q, 100)
    on = q.inclusion.numpy()
    expected = np.where(draws.active, np.log(0.3 / on), np.log(0.7 / (1 - on)))
    assert_allclose(q.gate_log_ratio(draws), expected, rtol=1e-7, atol=1e-8)
