import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erfcx, log_ndtr
from scipy.stats import expon, kstest, truncnorm

from sklearn_vsc.solvers.posterior import exponential_bound
from sklearn_vsc.solvers.posterior.exponential_bound import (
    ExponentialModel,
    best_factors,
    lower_bounds,
    noise_variance_update,
)


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def factors_of(slopes, precisions, rate):
    return exponential_bound._with_moments(double(slopes), double(precisions), rate)


def random_problem(seed, n_rows=20, n_components=6, n_features=4):
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((n_components, n_features))
    codes = rng.exponential(size=(n_rows, n_components))
    codes[codes < 1] = 0
    X = codes @ dictionary + 0.3 * rng.standard_normal((n_rows, n_features))
    return double(X), double(codes), double(dictionary)


MODEL = ExponentialModel(alpha=0.4, noise_variance=0.13)


def solved(X, start, dictionary, model=MODEL, tol=1e-9):
    factors = best_factors(X, start, dictionary, model, tol)
    return factors, lower_bounds(X, factors, dictionary, model)


# ---------------------------------------------------------------------------- one factor


# From far in the tail to far from zero, with all the places where a formula takes over.
PLACES = [-1e7, -3e4, -300.0, -20.0, -10.001, -9.999, -5.001, -4.999, -1.0, 0.0, 0.7, 6.0, 300.0]


@pytest.mark.parametrize("precision", [1e-6, 1.0, 4e5])
@pytest.mark.parametrize("place", PLACES)
def test_moments_and_cost_match_quadrature(place, precision):
    slope, rate = place * math.sqrt(precision), 2.3
    # Integrate in units of the width of the density, around its mode.
    mode = max(slope, 0) / precision
    width = 1 / max(math.sqrt(precision), -slope)

    def log_density(u):
        z = mode + width * u
        return slope * z - 0.5 * precision * z**2 - slope * mode + 0.5 * precision * mode**2

    def integral(function):
        ends = max(-40.0, -mode / width), 40.0
        options = {"epsabs": 1e-13, "epsrel": 1e-11, "limit": 500, "points": [0.0, 1.0, 5.0]}
        return quad(lambda u: function(u) * math.exp(log_density(u)), *ends, **options)[0]

    mass = integral(lambda u: 1.0)
    first = integral(lambda u: u) / mass
    factors = factors_of([[slope]], [[precision]], rate)
    mean, variance = mode + width * first, width**2 * integral(lambda u: (u - first) ** 2) / mass
    assert factors.means.item() == pytest.approx(mean, rel=1e-9)
    assert factors.variances.item() == pytest.approx(variance, rel=1e-8)
    # E log q - E log p, where the density of a code is that of u divided by the width.
    divergence = integral(lambda u: log_density(u) - math.log(mass * width)) / mass
    divergence += rate * mean - math.log(rate)
    close = pytest.approx(divergence, rel=1e-9, abs=1e-9 * (1 + rate * mean))
    assert factors.divergences.item() == close
    assert factors.costs.item() == pytest.approx(
        divergence + 0.5 * precision * variance, rel=1e-9, abs=1e-9 * (1 + rate * mean)
    )


def test_a_code_without_data_keeps_its_prior():
    rate = 0.7
    factors = factors_of([[-rate]], [[0.0]], rate)
    assert factors.means.item() == pytest.approx(1 / rate, rel=1e-15)
    assert factors.variances.item() == pytest.approx(1 / rate**2, rel=1e-15)
    assert factors.costs.item() == pytest.approx(0, abs=1e-15)
    draws = factors.draw(0, np.array([[0.3], [2.0]]))
    np.testing.assert_allclose(draws, np.array([[0.3], [2.0]]) / rate, rtol=1e-15)


@pytest.mark.parametrize("place", [-900.0, -300.0, -20.0, -2.0, 0.0, 1.0, 8.0, 100.0])
def test_draws_are_quantiles_of_the_factor(place):
    precision = 2.6
    root = math.sqrt(precision)
    factors = factors_of([[place * root]], [[precision]], 1.0)
    exponentials = np.geomspace(1e-12, 50, 200)
    codes = factors.draw(0, exponentials[:, None])[:, 0]
    assert (codes >= 0).all() and (np.diff(codes) >= 0).all()
    # The log of the survival function of a draw is minus its exponential variable.
    survival = log_ndtr(place - codes * root) - log_ndtr(place)
    np.testing.assert_allclose(-survival, exponentials, rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("place", [-1e5, -9.0, 0.4, 12.0])
def test_draws_have_the_distribution_of_the_factor(place):
    rng = np.random.default_rng(0)
    draws = factors_of([[place]], [[1.0]], 1.0).draw(0, rng.exponential(size=(20_000, 1)))[:, 0]
    exact = truncnorm(-place, np.inf, loc=place) if place > -100 else expon(scale=-1 / place)
    assert kstest(draws, exact.cdf).pvalue > 1e-3


# ------------------------------------------------------------------------------ the bound


def log_evidence_one_atom(x, atom, model):
    """Exact log p(x): an exponential density convolved with a Gaussian density along the atom."""
    s2, rate = model.noise_variance, model.rate
    norm = np.linalg.norm(atom)
    y, s = atom @ x / norm**2, math.sqrt(s2) / norm
    argument = (s * rate - y / s) / math.sqrt(2)
    convolved = math.log(rate / 2) - y**2 / (2 * s**2) + math.log(erfcx(argument))
    across = x @ x - (atom @ x) ** 2 / norm**2
    constant = -0.5 * (len(x) - 1) * math.log(2 * math.pi * s2) - across / (2 * s2)
    return constant - math.log(norm) + convolved


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("noise_variance", [0.01, 0.25, 4.0])
def test_bound_is_the_exact_evidence_of_one_atom(alpha, noise_variance):
    model = ExponentialModel(alpha, noise_variance)
    X = np.random.default_rng(2).standard_normal((20, 3))
    atom = np.array([1.0, -0.5, 0.8])
    bounds = solved(double(X), double(np.zeros((20, 1))), double(atom[None]), model)[1]
    exact = [log_evidence_one_atom(x, atom, model) for x in X]
    np.testing.assert_allclose(bounds, exact, rtol=1e-12)


def test_bound_is_below_the_evidence_of_two_atoms_by_quadrature():
    dictionary = np.array([[1.0, 0.2], [0.6, -0.8]])
    rate, s2 = MODEL.rate, MODEL.noise_variance
    X = np.random.default_rng(3).standard_normal((12, 2))
    bounds = solved(double(X), double(np.zeros((12, 2))), double(dictionary))[1]
    a = dictionary[0] @ dictionary[0] / s2
    gaps = []
    for x, bound in zip(X, bounds.tolist(), strict=True):

        def log_marginal(second, x=x):
            """Log density of x and the second code: the first has a normal integral."""
            left = x - second * dictionary[1]
            h = left @ dictionary[0] / s2 - rate
            log_z = 0.5 * math.log(2 * math.pi / a) + h**2 / (2 * a) + log_ndtr(h / math.sqrt(a))
            fit = -(left @ left) / (2 * s2) - math.log(2 * math.pi * s2)
            return log_z + fit + 2 * math.log(rate) - rate * second

        grid = np.linspace(0, 6, 601)
        values = [log_marginal(z) for z in grid]
        top, mode = max(values), float(grid[np.argmax(values)])
        points = [mode, mode + 0.1] + ([mode - 0.1] if mode > 0.1 else [])
        mass = quad(lambda z, t=top: math.exp(log_marginal(z) - t), 0, 8, points=points)[0]
        gaps.append(top + math.log(mass) - bound)
    assert min(gaps) > 0 and max(gaps) < 0.2


def test_bound_is_the_sum_of_its_terms():
    X, codes, dictionary = random_problem(0)
    factors, bounds = solved(X, codes, dictionary)
    s2 = MODEL.noise_variance
    residual = X - factors.means @ dictionary
    spread = (factors.variances * dictionary.square().sum(1)).sum(1)
    expected = -2 * math.log(2 * math.pi * s2) - (residual.square().sum(1) + spread) / (2 * s2)
    torch.testing.assert_close(bounds, expected - factors.divergences.sum(1), rtol=1e-12, atol=0)


def test_no_sweep_lowers_the_bound(monkeypatch):
    X, codes, dictionary = random_problem(1)
    bounds = []
    for n_sweeps in range(1, 30):
        monkeypatch.setattr(exponential_bound, "_MAX_SWEEPS", n_sweeps)
        bounds.append(solved(X, codes, dictionary, tol=0)[1])
    assert (torch.stack(bounds).diff(dim=0) >= -1e-12).all()
    assert (bounds[5] > bounds[0]).all()


def test_no_other_factors_are_better_and_the_start_does_not_matter():
    X, codes, dictionary = random_problem(2)
    factors, best = solved(X, codes, dictionary)
    for start in (torch.zeros_like(codes), 10 * torch.ones_like(codes)):
        torch.testing.assert_close(solved(X, start, dictionary)[1], best, rtol=0, atol=1e-10)
    rng = np.random.default_rng(1)
    for _ in range(20):
        moved = factors.slopes + 0.3 * double(rng.standard_normal(codes.shape))
        scaled = factors.precisions * double(np.exp(0.1 * rng.standard_normal(codes.shape)))
        # With another precision, the cost is that of the divergence and the spread of the factor.
        for slopes, precisions in ((moved, factors.precisions), (factors.slopes, scaled)):
            other = factors_of(slopes, precisions.expand(codes.shape), MODEL.rate)
            excess = 0.5 * (factors.precisions - precisions) * other.variances
            # E log q has the factor's own precision, the likelihood that of the model.
            bound = lower_bounds(X, other, dictionary, MODEL) - excess.sum(1)
            assert (bound < best).all()


@pytest.mark.parametrize("scale", [1e-3, 0.7, 1e3])
def test_changing_the_unit_shifts_the_bound_by_its_log(scale):
    X, codes, dictionary = random_problem(4)
    scaled = ExponentialModel(scale * 0.4, scale**2 * 0.13)
    ours = solved(X, codes, dictionary)[1]
    moved = solved(scale * X, scale * codes, dictionary, scaled)[1]
    torch.testing.assert_close(moved, ours - 4 * math.log(scale), rtol=1e-9, atol=1e-9)


def test_features_that_no_atom_has_change_nothing():
    # More atoms than features, or fewer, are stored in two ways.
    X, codes, dictionary = random_problem(5, n_components=17, n_features=4)
    wide = (torch.cat([part, torch.zeros(len(part), 30)], dim=1) for part in (X, dictionary))
    (factors, bounds), (wide_factors, wide_bounds) = (
        solved(rows, codes, atoms) for rows, atoms in ((X, dictionary), tuple(wide))
    )
    torch.testing.assert_close(wide_factors.means, factors.means, rtol=1e-7, atol=1e-7)
    constant = 15 * math.log(2 * math.pi * MODEL.noise_variance)
    torch.testing.assert_close(wide_bounds, bounds - constant, rtol=1e-10, atol=1e-10)


def test_rows_with_missing_entries_have_the_model_of_their_observed_columns():
    X, codes, dictionary = random_problem(6)
    missing = torch.from_numpy(np.random.default_rng(0).random(X.shape) < 0.4)
    missing[:, 0] = False
    missing[:3] = False
    rows = torch.where(missing, torch.nan, X)
    factors, bounds = solved(rows, codes, dictionary)
    for i, row in enumerate(rows):
        seen = ~row.isnan()
        alone, bound = solved(row[None, seen], codes[[i]], dictionary[:, seen])
        torch.testing.assert_close(bounds[[i]], bound, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(factors.means[[i]], alone.means, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            factors.divergences[[i]], alone.divergences, rtol=1e-6, atol=1e-7
        )


def test_updates_of_the_noise_variance_raise_the_mean_bound_to_its_maximum():
    X, codes, dictionary = random_problem(7, n_rows=40)
    X[3, 1] = X[5, 2] = torch.nan

    def step(variance):
        model = ExponentialModel(0.4, variance)
        factors, bounds = solved(X, codes, dictionary, model)
        return bounds.mean().item(), noise_variance_update(X, factors, dictionary, model)

    variance, last = 1.0, -math.inf
    for _ in range(300):
        bound, new = step(variance)
        assert bound >= last - 1e-12
        variance, last = new, bound
    for factor in (0.01, 0.5, 0.99, 1.01, 2, 100):
        assert step(factor * variance)[0] < last
