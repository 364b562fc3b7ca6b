import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import erfcx

from sklearn_vsc.solvers.posterior.laplace_bound import (
    CodeStatistics,
    LaplaceModel,
    coordinate_cost,
    lower_bounds,
    posterior_scales,
    relative_scales,
)


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def bound_of_one_row(x, codes, dictionary, model, scales):
    """The bound term by term, from the formulas of the densities."""
    s2, b = model.noise_variance, model.prior_scale
    residual = x - codes @ dictionary
    spread = np.sum(2 * scales**2 * (dictionary**2).sum(1))
    expected = -0.5 * len(x) * math.log(2 * math.pi * s2) - (residual @ residual + spread) / (
        2 * s2
    )
    size = np.abs(codes)
    divergence = np.log(b / scales) + size / b + scales / b * np.exp(-size / scales) - 1
    return expected - divergence.sum()


@pytest.mark.parametrize("curvature", [1e-8, 1e-2, 1.0, 30.0, 1e8])
@pytest.mark.parametrize("magnitude", [0.0, 1e-6, 0.1, 1.0, 7.0, 1e3])
def test_scales_match_numerical_optimisation(magnitude, curvature):
    rho = relative_scales(double(magnitude), double(curvature)).item()

    def cost(log_rho):
        r = math.exp(log_rho)
        return curvature * r**2 - log_rho + magnitude + r * math.exp(-magnitude / r) - 1

    best = minimize_scalar(
        cost,
        bounds=(math.log(rho) - 2, math.log(rho) + 2),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert cost(math.log(rho)) <= best.fun + 1e-12 * max(1, magnitude)
    assert math.log(rho) == pytest.approx(best.x, abs=1e-5)
    assert coordinate_cost(double(magnitude), double(curvature))[0].item() == pytest.approx(
        best.fun, rel=1e-10, abs=1e-12
    )


def test_scales_satisfy_their_equation():
    magnitude = double(np.geomspace(1e-8, 1e8, 60))[:, None]
    curvature = double(np.geomspace(1e-10, 1e10, 50))
    rho = relative_scales(magnitude, curvature)
    left = 2 * curvature * rho.square() + (rho + magnitude) * torch.exp(-magnitude / rho)
    torch.testing.assert_close(left, torch.ones_like(left), rtol=1e-9, atol=0)


def test_divergence_matches_quadrature():
    b, c, u = 0.7, 0.4, 0.55

    def integrand(z):
        log_density = -abs(z - u) / c - math.log(2 * c)
        return math.exp(log_density) * (log_density + abs(z) / b + math.log(2 * b))

    exact = sum(quad(integrand, *ends, epsabs=1e-13)[0] for ends in ((-20, 0), (0, u), (u, 20)))
    model = LaplaceModel(alpha=1.0, noise_variance=b)
    x, dictionary = np.zeros(1), np.zeros((1, 1))
    # With a zero atom the bound is the log-likelihood minus the divergence.
    ours = bound_of_one_row(x, np.array([u]), dictionary, model, np.array([c]))
    assert -ours - 0.5 * math.log(2 * math.pi * b) == pytest.approx(exact, rel=1e-9)


def random_problem(seed, n_rows=20, n_components=6, n_features=4):
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features))
    codes = rng.standard_normal((n_rows, n_components))
    codes[np.abs(codes) < 0.7] = 0
    X = codes @ dictionary + 0.3 * rng.standard_normal((n_rows, n_features))
    return X, codes, dictionary


def test_bounds_are_the_sum_of_their_terms_at_the_best_scales():
    X, codes, dictionary = random_problem(0)
    model = LaplaceModel(alpha=0.4, noise_variance=0.13)
    energy = ((X - codes @ dictionary) ** 2).sum(1)
    ours = lower_bounds(double(codes), double(energy), double(dictionary), model).numpy()
    scales = posterior_scales(double(codes), double(dictionary), model).numpy()

    def by_hand(scales):
        rows = zip(X, codes, scales, strict=True)
        return [bound_of_one_row(x, u, dictionary, model, c) for x, u, c in rows]

    expected = by_hand(scales)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = scales * np.exp(0.1 * rng.standard_normal(scales.shape))
        assert np.all(np.array(by_hand(other)) < ours)


def log_evidence_one_atom(x, atom, model):
    """Exact log p(x): a Laplace density convolved with a Gaussian density along the atom."""
    s2, b = model.noise_variance, model.prior_scale
    norm = np.linalg.norm(atom)
    y, s = atom @ x / norm**2, math.sqrt(s2) / norm
    along = [s / (b * math.sqrt(2)) + sign * y / (s * math.sqrt(2)) for sign in (-1, 1)]
    convolved = math.exp(-(y**2) / (2 * s**2)) / (4 * b) * sum(erfcx(a) for a in along)
    across = x @ x - (atom @ x) ** 2 / norm**2
    constant = -0.5 * (len(x) - 1) * math.log(2 * math.pi * s2) - across / (2 * s2)
    return constant - math.log(norm) + math.log(convolved)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("noise_variance", [0.01, 0.25, 4.0])
def test_bound_is_below_the_exact_evidence_of_one_atom(alpha, noise_variance):
    model = LaplaceModel(alpha, noise_variance)
    rng = np.random.default_rng(2)
    atom = np.array([1.0, -0.5, 0.8])
    for _ in range(20):
        x = rng.standard_normal(3)
        along = atom @ x
        code = np.sign(along) * max(abs(along) - alpha, 0) / (atom @ atom)
        exact = log_evidence_one_atom(x, atom, model)
        energy = ((x - code * atom) ** 2).sum()
        ours = lower_bounds(double([[code]]), double([energy]), double(atom[None]), model).item()
        assert ours <= exact + 1e-10
        # With a single code, the bound is close to the evidence where the code is well determined.
        assert ours >= exact - 1.0 - alpha**2 / noise_variance


def test_bound_is_below_the_evidence_of_two_atoms_by_quadrature():
    dictionary = np.array([[1.0, 0.2], [0.6, -0.8]])
    model = LaplaceModel(alpha=0.4, noise_variance=0.2)
    b, s2 = model.prior_scale, model.noise_variance
    grid = np.linspace(-12, 12, 2401)
    first, second = np.meshgrid(grid, grid, indexing="ij")
    log_prior = -(np.abs(first) + np.abs(second)) / b - 2 * math.log(2 * b)
    rng = np.random.default_rng(3)
    for x in rng.standard_normal((6, 2)):
        residual = x[:, None, None] - dictionary[0][:, None, None] * first
        residual = residual - dictionary[1][:, None, None] * second
        log_joint = log_prior - (residual**2).sum(0) / (2 * s2) - math.log(2 * math.pi * s2)
        exact = np.log(np.exp(log_joint).sum() * (grid[1] - grid[0]) ** 2)
        best = np.unravel_index(log_joint.argmax(), log_joint.shape)
        codes = np.array([[grid[best[0]], grid[best[1]]]])
        energy = ((x - codes @ dictionary) ** 2).sum(1)
        ours = lower_bounds(double(codes), double(energy), double(dictionary), model).item()
        assert exact - 3 < ours < exact


@pytest.mark.parametrize("scale", [1e-3, 0.7, 1e3])
def test_changing_the_unit_shifts_the_bound_by_its_log(scale):
    X, codes, dictionary = random_problem(4)
    energy = ((X - codes @ dictionary) ** 2).sum(1)
    model = LaplaceModel(0.4, 0.13)
    scaled = LaplaceModel(scale * 0.4, scale**2 * 0.13)
    ours = lower_bounds(double(codes), double(energy), double(dictionary), model)
    moved = lower_bounds(
        double(scale * codes), double(scale**2 * energy), double(dictionary), scaled
    )
    torch.testing.assert_close(moved, ours - 4 * math.log(scale), rtol=1e-11, atol=1e-10)


def test_joined_statistics_of_blocks_match_those_of_all_rows():
    X, codes, dictionary = random_problem(5)
    energy = double(((X - codes @ dictionary) ** 2).sum(1))
    whole, *parts = (
        CodeStatistics.from_codes(double(codes[rows]), energy[rows], X.shape[1])
        for rows in (slice(None), slice(1), slice(1, None))
    )
    joined = CodeStatistics.join(parts)
    assert joined.residual_energy == pytest.approx(whole.residual_energy, rel=1e-12)
    assert torch.equal(joined.magnitudes, whole.magnitudes)
    for name in ("n_zero", "n_rows", "n_features"):
        assert getattr(joined, name) == getattr(whole, name)


def test_statistics_give_the_best_noise_variance():
    X, codes, dictionary = random_problem(5)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    energy = double(((X - codes @ dictionary) ** 2).sum(1))
    statistics = CodeStatistics.from_codes(double(codes), energy, X.shape[1])

    def mean_bound(variance):
        model = LaplaceModel(0.4, variance)
        return lower_bounds(double(codes), energy, double(dictionary), model).mean().item()

    variance = 1.0
    for _ in range(2000):
        new = statistics.noise_variance_update(LaplaceModel(0.4, variance))
        # Each update is a step of coordinate ascent on the bound.
        assert mean_bound(new) >= mean_bound(variance) - 1e-12
        if abs(new - variance) < 1e-14:
            break
        variance = new
    grid = variance * np.geomspace(1e-6, 1e6, 400)
    assert max(map(mean_bound, grid)) <= mean_bound(variance)
    for nearby in (0.999 * variance, 1.001 * variance):
        assert mean_bound(nearby) < mean_bound(variance)
