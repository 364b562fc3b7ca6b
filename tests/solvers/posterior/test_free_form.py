"""Free-form factors are the best there are: against quadrature and enumeration of supports."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats
from scipy.special import logsumexp

from sklearn_vsc.solvers.linear_model.parameters import Slab
from sklearn_vsc.solvers.posterior.free_form import CodePriors, RowNoise, solve

SLABS = ["laplace", "gaussian", "thresholded"]
SCALE, DENSITY = 0.8, 0.15
NORMAL = RowNoise()
TIGHT = {"max_sweeps": 5000, "tol": 1e-7, "bound_tol": 1e-9}

each_slab = pytest.mark.parametrize("slab", SLABS)
each_sign = pytest.mark.parametrize("positive", [False, True], ids=["two-sided", "positive"])
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _priors(slab, n_components=1, positive=False, density=DENSITY):
    return Slab(slab, SCALE, positive).priors(np.full(n_components, density))


# ------------------------------------------------------------------ references

NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def _slab(priors):
    """The laws of the first code as numbers: log-odds, log density at zero, rate, precision."""
    return [float(v[0]) for v in (priors.logit, priors.log_constant, priors.rate, priors.precision)]


@dataclass
class _Side:
    """What quadrature finds above zero for the density ``exp(h z - c z^2 / 2)``."""

    h: float
    c: float

    def __post_init__(self):
        spread, peak = 1 / math.sqrt(self.c), max(self.h, 0) / self.c
        width = spread if self.h > 0 else min(spread, 1 / max(-self.h, 1e-300))
        low, high = max(0.0, peak - 12 * spread), peak + (12 if self.h > 0 else 45) * width
        # Panels, so that the rule is exact to rounding.
        cuts = np.linspace(low, high, 9)
        half = 0.5 * np.diff(cuts)[:, None]
        self.z = (cuts[:-1, None] + half * (NODES + 1)).ravel()
        # Relative to the value at the peak, which may be huge.
        log_density = (
            self.h * self.z - 0.5 * self.c * self.z**2
            if peak == 0
            else (-0.5 * self.c * (self.z - peak) ** 2)
        )
        log_mass = logsumexp(log_density, b=(half * WEIGHTS).ravel())
        self.share = np.exp(log_density - log_mass) * (half * WEIGHTS).ravel()
        self.log_mass = log_mass + 0.5 * self.h * peak

    def mean_of(self, values):
        return float(self.share @ values)


def _exact_factor(field, curvature, priors):
    """Inclusion, mean, mean square, mean absolute value and KL divergence, by quadrature."""
    logit, constant, rate, precision = _slab(priors)
    sides = [_Side(field - rate, curvature + precision)]
    if not priors.positive:
        sides.append(_Side(-field - rate, curvature + precision))
    log_mass = constant + logsumexp([side.log_mass for side in sides])
    log_odds = logit + log_mass
    on = 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else math.exp(log_odds)
    shares = [math.exp(constant + side.log_mass - log_mass) for side in sides]
    mean = second = size = ratio = 0.0
    for share, side, sign in zip(shares, sides, (1, -1), strict=False):
        z = sign * side.z
        mean += on * share * side.mean_of(z)
        second += on * share * side.mean_of(z**2)
        size += on * share * side.mean_of(side.z)
        # The log ratio of the slabs of posterior and prior.
        ratio += share * side.mean_of(field * z - 0.5 * curvature * z**2 - log_mass)
    log_on, log_off = -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)
    prior_on, prior_off = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
    kl = on * (log_on - prior_on + ratio) + math.exp(log_off) * (log_off - prior_off)
    return on, mean, second, size, kl


def _log_evidence_gain(field, curvature, priors):
    """Log of p(x) over p(x given z = 0), for one code, by quadrature."""
    logit, constant, rate, precision = _slab(priors)
    masses = [_Side(field - rate, curvature + precision).log_mass]
    if not priors.positive:
        masses.append(_Side(-field - rate, curvature + precision).log_mass)
    return float(np.logaddexp(0, logit + constant + logsumexp(masses)) - np.logaddexp(0, logit))


class _Problem:
    """Rows of a random model with correlated noise, and what `solve` is given for them."""

    def __init__(self, n_rows, n_components, n_features, *, seed=0, common=0.0, density=DENSITY):
        rng = np.random.default_rng(seed)
        self.atoms = rng.standard_normal((n_components, n_features))
        self.atoms += common * rng.standard_normal(n_features)
        root = 0.1 * rng.standard_normal((n_features, n_features))
        self.covariance = root @ root.T + np.diag(0.05 + 0.2 * rng.random(n_features))
        codes = rng.laplace(size=(n_rows, n_components))
        codes *= rng.random((n_rows, n_components)) < density
        noise = rng.multivariate_normal(np.zeros(n_features), self.covariance, n_rows)
        self.rows = codes @ self.atoms + noise

    def solve(self, priors, noise=NORMAL, *, rows=None, dtype=np.float64, **options):
        rows = self.rows if rows is None else rows
        weighted = np.linalg.solve(self.covariance, self.atoms.T)
        energy = np.einsum("nd,nd->n", rows, np.linalg.solve(self.covariance, rows.T).T)
        n_observed = np.full(len(rows), float(rows.shape[1]))
        products, self.gram = (rows @ weighted).astype(dtype), self.atoms @ weighted
        return solve(products, self.gram, energy, n_observed, priors, noise, **options)

    def bound(self, found, freedom=math.inf):
        n_features = self.rows.shape[1]
        log_det = np.linalg.slogdet(self.covariance)[1]
        if math.isinf(freedom):
            fit = -0.5 * (found.error + log_det + n_features * math.log(2 * math.pi))
        else:
            half = 0.5 * (freedom + n_features)
            fit = math.lgamma(half) - math.lgamma(freedom / 2) - 0.5 * log_det
            fit -= 0.5 * n_features * math.log(freedom * math.pi)
            fit = fit - half * np.log1p(found.error / freedom)
        return fit - found.kl


# ------------------------------------------------------------------ one factor

FIELDS = [-1000.0, -61.0, -8.5, -1.0, -0.001, 0.0, 0.3, 4.4, 6.6, 33.0, 1000.0]


def _one_code(fields, curvature, priors, dtype=np.float64):
    fields = np.array(fields, dtype)[:, None]
    n_rows = len(fields)
    return solve(
        fields, np.array([[curvature]]), np.zeros(n_rows), np.ones(n_rows), priors, max_sweeps=1
    )


@each_slab
@each_sign
@pytest.mark.parametrize("curvature", [1e-3, 1.0, 64.0])
def test_moments_and_kl_of_a_factor_are_those_of_quadrature(slab, positive, curvature):
    priors = _priors(slab, positive=positive)
    found = _one_code(FIELDS, curvature, priors)
    expected = np.array([_exact_factor(field, curvature, priors) for field in FIELDS]).T
    assert_allclose(found.field[:, 0], FIELDS, atol=1e-15)
    assert_allclose(found.inclusion[:, 0], expected[0], rtol=1e-8)
    assert_allclose(found.mean[:, 0], expected[1], rtol=1e-8, atol=1e-15)
    assert_allclose(found.second[:, 0], expected[2], rtol=1e-8)
    assert_allclose(found.size[:, 0], expected[3], rtol=1e-8)
    # The KL divergence is a difference of terms of this size.
    rounding = np.square(FIELDS) / (curvature + priors.precision[0])
    assert np.all(np.abs(found.kl - expected[4]) < 1e-8 + 1e-8 * expected[4] + 1e-15 * rounding)
    assert (found.kl >= -1e-12).all()


@each_slab
@each_sign
def test_factors_in_float32(slab, positive):
    priors = _priors(slab, positive=positive)
    found, expected = (_one_code(FIELDS, 2.0, priors, dtype) for dtype in (np.float32, float))
    for name in ("field", "inclusion", "mean", "second", "size"):
        values = getattr(found, name)
        assert values.dtype == np.float32
        assert_allclose(values, getattr(expected, name), rtol=2e-4, atol=1e-12)
    assert found.kl.dtype == found.error.dtype == np.float64
    assert_allclose(found.kl, expected.kl, rtol=1e-5, atol=1e-6 * np.square(FIELDS).max())


@each_slab
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.5, 1.0])
def test_tails_join_without_a_step(slab, density):
    """Formulas change with the field; the factor does not jump where they do."""
    priors = _priors(slab, density=density)
    fields = np.linspace(-12, 12, 20_001)
    found = _one_code(fields, 1.0, priors)
    for values in (found.mean[:, 0], found.second[:, 0], found.size[:, 0], found.kl):
        assert np.isfinite(values).all()
        curving = np.abs(np.diff(values, 3))
        assert curving.max() < 1e-7 * (1 + np.abs(values).max())


@each_slab
@each_sign
def test_an_atom_of_norm_zero_leaves_the_prior(slab, positive):
    priors = _priors(slab, positive=positive)
    found = _one_code([0.0], 0.0, priors)
    law = Slab(slab, SCALE, positive)
    density = np.array([DENSITY])
    assert_allclose(found.inclusion[0], DENSITY, rtol=1e-9)
    assert_allclose(found.size[0], DENSITY * law.mean_size(density), rtol=1e-8)
    assert_allclose(found.second[0], DENSITY * law.mean_square(density), rtol=1e-8)
    assert_allclose(found.mean[0], found.size[0] if positive else 0.0, rtol=1e-8, atol=1e-12)
    assert found.kl[0] == pytest.approx(0, abs=1e-10)


# ------------------------------------------------------------------ the bound


@each_slab
@each_sign
def test_the_bound_of_one_code_is_the_evidence(slab, positive):
    problem, priors = _Problem(6, 1, 4), _priors(slab, positive=positive)
    found = problem.solve(priors)
    normal = stats.multivariate_normal(np.zeros(4), problem.covariance)
    logit, constant, rate, precision = _slab(priors)
    for row, bound in zip(problem.rows, problem.bound(found), strict=True):
        # Quadrature of the joint density itself, which knows nothing of fields.
        def joint(z, row=row):
            log_prior = constant - rate * abs(z) - 0.5 * precision * z**2
            return math.exp(log_prior + normal.logpdf(row - z * problem.atoms[0]))

        low = 0 if positive else -12
        on = integrate.quad(joint, low, 12, points=[0], limit=200, epsabs=1e-14, epsrel=1e-11)[0]
        share = 1 / (1 + math.exp(-logit))
        expected = math.log((1 - share) * normal.pdf(row) + share * on)
        assert bound == pytest.approx(expected, abs=1e-8)


def _evidence_by_supports(problem, density):
    """Log p(x) for a normal slab, as a sum over all supports."""
    n_components, n_features = problem.atoms.shape
    terms = []
    for support in itertools.product([False, True], repeat=n_components):
        w = SCALE * problem.atoms[list(support)]
        normal = stats.multivariate_normal(np.zeros(n_features), problem.covariance + w.T @ w)
        log_prior = len(w) * math.log(density) + (n_components - len(w)) * math.log1p(-density)
        terms.append(log_prior + normal.logpdf(problem.rows))
    return logsumexp(terms, axis=0)


@pytest.mark.parametrize("n_components", [2, 4, 6])
def test_the_bound_is_below_the_sum_over_all_supports(n_components):
    problem = _Problem(20, n_components, 5, common=0.5)
    priors = _priors("gaussian", n_components, density=0.3)
    exact = _evidence_by_supports(problem, 0.3)
    for options in ({"max_sweeps": 1}, {}, TIGHT):
        gap = exact - problem.bound(problem.solve(priors, **options))
        assert (gap > 0).all()
        assert np.median(gap) < 1.5


@each_slab
@each_sign
def test_the_bound_is_the_evidence_for_atoms_orthogonal_in_the_metric(slab, positive):
    problem = _Problem(15, 5, 7)
    root = np.linalg.cholesky(problem.covariance)
    directions = np.linalg.qr(np.random.default_rng(1).standard_normal((7, 5)))[0].T
    problem.atoms = np.diag([0.3, 1, 2, 4, 9]) @ directions @ root.T
    priors = _priors(slab, 5, positive)
    found = problem.solve(priors, **TIGHT)
    assert_allclose(problem.gram, np.diag(np.diag(problem.gram)), atol=1e-12)
    products = problem.rows @ np.linalg.solve(problem.covariance, problem.atoms.T)
    exact = stats.multivariate_normal(np.zeros(7), problem.covariance).logpdf(problem.rows)
    for k, curvature in enumerate(np.diag(problem.gram)):
        exact += [_log_evidence_gain(field, curvature, priors) for field in products[:, k]]
    assert_allclose(problem.bound(found), exact, rtol=0, atol=2e-7)
    if slab == "gaussian" and not positive:
        assert_allclose(exact, _evidence_by_supports(problem, DENSITY), rtol=1e-9)


@each_slab
@each_sign
@pytest.mark.parametrize("freedom", [math.inf, 4.0])
def test_error_and_kl_are_those_of_the_factors(slab, positive, freedom):
    """The factors end at their own best values given all others."""
    problem, priors = _Problem(4, 9, 6), _priors(slab, 9, positive)
    found = problem.solve(priors, RowNoise(freedom), **TIGHT)
    inverse, gram = np.linalg.inv(problem.covariance), problem.gram
    for i, row in enumerate(problem.rows):
        residual = row - found.mean[i] @ problem.atoms
        variance = found.second[i] - found.mean[i] ** 2
        error = residual @ inverse @ residual + variance @ np.diag(gram)
        assert found.error[i] == pytest.approx(error, rel=1e-8)
        kl = 0.0
        for k in range(9):
            others = residual + found.mean[i, k] * problem.atoms[k]
            field = found.weight[i] * others @ inverse @ problem.atoms[k]
            assert found.field[i, k] == pytest.approx(field, rel=1e-3, abs=1e-3)
            curvature = found.weight[i] * gram[k, k]
            *moments, divergence = _exact_factor(found.field[i, k], curvature, priors)
            ours = (getattr(found, name)[i, k] for name in ("inclusion", "mean", "second", "size"))
            assert_allclose(list(ours), moments, rtol=1e-8)
            kl += divergence
        assert found.kl[i] == pytest.approx(kl, rel=1e-7)


# ------------------------------------------------------------------ sweeps


@each_slab
@each_dtype
@pytest.mark.parametrize("freedom", [math.inf, 4.0])
def test_a_further_sweep_never_lowers_the_bound_of_a_row(slab, dtype, freedom):
    """A row ends no worse where codes have moved ahead too far."""
    problem, priors = _Problem(200, 40, 16, common=1.0), _priors(slab, 40)
    rounding = 300 * np.finfo(dtype).eps
    before, rises = -np.inf, []
    for max_sweeps in range(1, 16):
        stops = {"max_sweeps": max_sweeps, "tol": 0.0, "bound_tol": 1e-6}
        found = problem.solve(priors, RowNoise(freedom), dtype=dtype, **stops)
        after = problem.bound(found, freedom)
        assert (after >= before - rounding * (1 + np.abs(after))).all()
        rises.append(np.mean(after - before))
        before = after
    # There was something to gain, and in late sweeps too.
    assert min(rises[1:4]) > 0 and sum(rises[4:]) > 0.01


@each_slab
def test_looser_tolerances_cost_little(slab):
    problem, priors = _Problem(300, 40, 25), _priors(slab, 40)
    loose = problem.bound(problem.solve(priors))
    tight = problem.bound(problem.solve(priors, **TIGHT))
    assert np.mean(tight - loose) < 0.3


@each_dtype
@pytest.mark.parametrize("freedom", [math.inf, 4.0])
def test_a_row_alone_gives_what_it_gives_in_company(dtype, freedom):
    problem, priors = _Problem(70, 30, 12, common=0.5), _priors("laplace", 30)
    weighted = np.linalg.solve(problem.covariance, problem.atoms.T)
    products, gram = (problem.rows @ weighted).astype(dtype), problem.atoms @ weighted
    energy, n_observed = np.sum(problem.rows**2, axis=1) / 0.1, np.full(70, 12.0)
    n_threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(solve(products, gram, energy, n_observed, priors, RowNoise(freedom)))
    finally:
        torch.set_num_threads(n_threads)
    for i in (0, 33, 69):
        cut = slice(i, i + 1)
        given = (products[cut], gram, energy[cut], n_observed[cut], priors)
        alone = solve(*given, RowNoise(freedom))
        for name, values in vars(alone).items():
            assert_array_equal(values[0], getattr(found[0], name)[i])
            assert_array_equal(values[0], getattr(found[1], name)[i])


@each_slab
@each_sign
@pytest.mark.parametrize("freedom", [math.inf, 1.0, 6.0])
def test_a_start_from_the_solution_stays_there(slab, positive, freedom):
    problem, priors = _Problem(60, 30, 20, common=0.3), _priors(slab, 30, positive)
    # Some rows whose noise is far off.
    problem.rows[:10] *= 5
    noise = RowNoise(freedom)
    found = problem.solve(priors, noise, **TIGHT)
    start = {"start": found.field, "start_weight": found.weight}
    again = problem.solve(priors, noise, **start, **TIGHT)
    assert_allclose(again.mean, found.mean, atol=1e-3)
    rise = problem.bound(again, freedom) - problem.bound(found, freedom)
    assert (rise > -1e-7).all() and (rise < 1e-3).all()
    # The fields given are left as they are, and one sweep suffices.
    assert_array_equal(start["start"], found.field)
    once = problem.solve(priors, noise, **start, max_sweeps=1)
    assert_allclose(problem.bound(once, freedom), problem.bound(found, freedom), atol=1e-3)


# ------------------------------------------------------------------ Student t rows


@each_slab
@each_sign
@pytest.mark.parametrize("freedom", [0.7, 5.0])
def test_bound_of_student_t_rows_is_below_the_evidence(slab, positive, freedom):
    problem, priors = _Problem(6, 1, 4), _priors(slab, positive=positive)
    problem.rows[:2] *= 10
    found = problem.solve(priors, RowNoise(freedom), **TIGHT)
    student = stats.multivariate_t(np.zeros(4), problem.covariance, df=freedom)
    logit, constant, rate, precision = _slab(priors)
    gaps = []
    for row, bound in zip(problem.rows, problem.bound(found, freedom), strict=True):

        def joint(z, row=row):
            log_prior = constant - rate * abs(z) - 0.5 * precision * z**2
            return math.exp(log_prior + student.logpdf(row - z * problem.atoms[0]))

        peak = float(row @ problem.atoms[0] / (problem.atoms[0] @ problem.atoms[0]))
        low = 0 if positive else -30
        points = sorted({0.0, min(max(peak, low), 30)})
        on = integrate.quad(joint, low, 30, points=points, limit=300, epsabs=1e-15, epsrel=1e-10)[0]
        share = 1 / (1 + math.exp(-logit))
        gaps.append(math.log((1 - share) * student.pdf(row) + share * on) - bound)
    assert min(gaps) > -1e-9
    assert max(gaps) < 0.6 and min(gaps) < 0.1


@pytest.mark.parametrize("freedom", [0.5, 4.0, 1e6])
@pytest.mark.parametrize("bound_tol", [0.5, 0.05, 1e-6])
def test_weights_of_rows_follow_from_their_errors(freedom, bound_tol):
    problem, priors = _Problem(100, 30, 20), _priors("laplace", 30)
    problem.rows[:20] *= 4
    found = problem.solve(priors, RowNoise(freedom), bound_tol=bound_tol)
    best = (freedom + 20) / (freedom + found.error)
    # A better weight would bring less than the tolerance.
    half = 0.5 * (freedom + 20)
    nats = half * (best / found.weight - 1 - np.log(best / found.weight))
    assert nats.max() < 0.15 * bound_tol
    normal = problem.solve(priors, bound_tol=bound_tol)
    assert_array_equal(normal.weight, 1)
    if freedom == 1e6:
        assert_allclose(found.weight, 1, atol=1e-2)


# ------------------------------------------------------------------ extreme input


@each_slab
@each_sign
@each_dtype
@pytest.mark.parametrize("freedom", [math.inf, 2.0])
def test_extreme_input_gives_numbers(slab, positive, dtype, freedom):
    rng = np.random.default_rng(0)
    n_components, n_features = 300, 8
    atoms = rng.standard_normal((n_components, n_features)).astype(dtype)
    atoms *= np.logspace(-6, 4, n_components, dtype=dtype)[rng.permutation(n_components), None]
    atoms[::7] = 0
    atoms[1::7] = atoms[2::7]
    rows = rng.standard_normal((6, n_features)) * np.logspace(-8, 8, 6)[:, None]
    rows[3] = 0
    rows = rows.astype(dtype)
    priors = _priors(slab, n_components, positive)
    energy, n_observed = np.sum(rows.astype(float) ** 2, axis=1), np.full(6, float(n_features))
    found = solve(
        rows @ atoms.T, atoms @ atoms.T, energy, n_observed, priors, RowNoise(freedom),
        max_sweeps=30,
    )  # fmt: skip
    for name, values in vars(found).items():
        assert np.isfinite(values).all(), name
    assert (found.inclusion >= 0).all() and (found.inclusion <= 1).all()
    assert (found.second >= 0).all() and (found.size >= 0).all() and (found.weight > 0).all()
    assert not positive or (found.mean >= 0).all()


def test_huge_rows_in_float32_agree_with_float64():
    problem, priors = _Problem(20, 8, 12), _priors("laplace", 8)
    rows = 1e5 * problem.rows
    found, exact = (problem.solve(priors, rows=rows, dtype=d) for d in (np.float32, float))
    assert_allclose(found.mean, exact.mean, rtol=1e-3, atol=1e-3 * np.abs(exact.mean).max())
    assert_allclose(problem.bound(found), problem.bound(exact), rtol=1e-4)


def test_many_components():
    problem, priors = _Problem(3, 2500, 10), _priors("laplace", 2500, density=0.01)
    found = problem.solve(priors, dtype=np.float32)
    assert np.isfinite(problem.bound(found)).all()
    zero = problem.solve(priors, rows=np.zeros((1, 10)))
    assert_array_equal(zero.inclusion > 0.5, False)


def test_no_rows_and_no_components():
    priors = _priors("laplace", 3)
    empty = solve(np.empty((0, 3)), np.eye(3), np.empty(0), np.empty(0), priors)
    assert empty.mean.shape == (0, 3) and empty.kl.shape == (0,)
    none = CodePriors(*(np.empty(0) for _ in range(4)))
    found = solve(np.empty((2, 0)), np.empty((0, 0)), np.array([3.0, 4.0]), np.ones(2), none)
    assert_array_equal(found.error, [3, 4])
    assert_array_equal(found.kl, 0)
