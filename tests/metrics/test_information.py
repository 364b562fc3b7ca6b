import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import entropy

from sklearn_vsc.metrics import multi_information


def coin(p):
    """Entropy in bits of a coin that shows heads with probability p."""
    return float(entropy([p, 1 - p], base=2))


def correlation(rng, n_codes):
    factors = rng.normal(size=(n_codes, 2 * n_codes))
    covariance = factors @ factors.T
    return covariance / np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))


def sparse(rng, shape, density):
    return rng.laplace(size=shape) * (rng.random(shape) < density)


# ------------------------------------------------------------------------------ lower bound


@pytest.mark.parametrize(
    ("n_rows", "n_codes"), [(2000, 40), (600, 150), (160, 150)], ids=["few", "many", "full"]
)
@pytest.mark.parametrize("density", [1.0, 0.2, 0.01])
def test_independent_codes_have_no_multi_information(n_rows, n_codes, density):
    rng = np.random.default_rng(0)
    found = multi_information(sparse(rng, (n_rows, n_codes), density))
    # Twice the variance of half the log-determinant of a Wishart matrix; converted to bits below.
    used = math.log(n_rows / (n_rows - n_codes)) - n_codes / n_rows
    # This bound is small: sampling alone makes plug-in estimates larger by tens of bits.
    assert abs(found) < 4 * math.sqrt(used) / math.log(2) + 0.05


@pytest.mark.parametrize("n_codes", [2, 20, 200])
@pytest.mark.parametrize("shape", [np.array, np.exp, np.cbrt], ids=["normal", "skewed", "heavy"])
def test_gaussian_copula_is_exact(n_codes, shape):
    rng = np.random.default_rng(1)
    R = correlation(rng, n_codes)
    codes = shape(rng.multivariate_normal(np.zeros(n_codes), R, size=3000))
    expected = -0.5 * np.linalg.slogdet(R)[1] / math.log(2)
    # Standard error of the sample's log-determinant: each squared correlation adds 4 r^2 / n.
    error = math.sqrt(np.sum(np.triu(R, 1) ** 2) / 3000) / math.log(2)
    assert multi_information(codes) == pytest.approx(expected, abs=4 * error + 0.05)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_dependence_of_pairs_of_supports_is_fully_captured(density):
    """The codes of a pair are on together, with independent values."""
    rng = np.random.default_rng(2)
    n_rows, n_pairs = 6000, 20
    on = np.repeat(rng.random((n_rows, n_pairs)) < density, 2, axis=1)
    codes = rng.laplace(size=on.shape) * on
    error = (
        n_pairs**0.5
        * abs(math.log2(density / (1 - density)) or 1)
        * (density * (1 - density) / n_rows) ** 0.5
    )
    expected = n_pairs * coin(density)
    assert multi_information(codes) == pytest.approx(expected, abs=4 * error + 0.15)


def test_dependence_of_a_chain_of_supports_is_fully_captured():
    """Each code is on exactly when its neighbour is, except one time in ten."""
    rng = np.random.default_rng(3)
    n_rows, n_codes, flip = 20_000, 12, 0.1
    on = [rng.random(n_rows) < 0.5]
    for _ in range(n_codes - 1):
        on.append(on[-1] ^ (rng.random(n_rows) < flip))
    codes = rng.laplace(size=(n_rows, n_codes)) * np.array(on).T
    expected = (n_codes - 1) * (1 - coin(flip))
    assert multi_information(codes) == pytest.approx(expected, abs=0.25)


def test_copies_of_codes_are_detected():
    rng = np.random.default_rng(4)
    dense = rng.laplace(size=(1000, 5))
    assert multi_information(np.hstack([dense, -2 * dense])) == math.inf
    codes = sparse(rng, (6000, 5), 0.1)
    # For sparse codes, the supports are fully captured but the values only in part.
    found = multi_information(np.hstack([codes, -2 * codes]))
    assert 5 * coin(0.1) - 0.15 < found < 5 * coin(0.1) + 1


def test_magnitudes_without_correlation():
    """For pairs that share a scale, the result is a lower bound on the numerical integral."""
    rng = np.random.default_rng(5)
    n_rows, n_pairs = 8000, 10
    scales = np.repeat(np.where(rng.random((n_rows, n_pairs)) < 0.5, 0.2, 2.0), 2, axis=1)
    codes = rng.normal(size=scales.shape) * scales
    grid = np.linspace(-9, 9, 1801)

    def normal(scale):
        return np.exp(-0.5 * (grid / scale) ** 2) / scale / math.sqrt(2 * math.pi)

    low, high = normal(0.2), normal(2.0)
    marginal = 0.5 * (low + high)
    joint = 0.5 * (np.outer(low, low) + np.outer(high, high))
    truth = (joint * np.log2(joint / np.outer(marginal, marginal))).sum() * 0.01**2
    assert 0.4 * n_pairs * truth < multi_information(codes) < n_pairs * truth


def test_constant_codes_contribute_nothing():
    rng = np.random.default_rng(6)
    codes = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    padded = np.hstack([np.zeros((500, 3)), codes, np.full((500, 2), 3.0)])
    assert multi_information(padded) == multi_information(codes) > 0
    for method in ("copula", "plug_in"):
        assert multi_information(np.zeros((5, 3)), method=method) == 0
        assert multi_information(codes[:, :1], method=method) == 0
    # Columns that differ from zero, or from one, in a single row.
    rare = np.zeros((500, 3))
    rare[0] = 1
    assert math.isfinite(multi_information(np.hstack([codes, rare, rare + 1])))


@given(
    st.integers(0, 2**31 - 1),
    st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5),
    st.lists(st.sampled_from([-1, 1]), min_size=5, max_size=5),
    st.permutations(range(5)),
)
@settings(max_examples=25, deadline=None)
def test_sign_scale_and_order_of_dense_codes_do_not_matter(seed, scales, signs, order):
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    changed = (codes * scales * signs)[:, order]
    assert multi_information(changed) == pytest.approx(multi_information(codes), abs=1e-8)


def test_result_is_determined_by_random_state():
    codes = sparse(np.random.default_rng(7), (200, 6), 0.5)
    before = np.random.get_state()[1].copy()
    found = [multi_information(codes, random_state=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert multi_information(csr_array(codes)) == found[0]
    assert (np.random.get_state()[1] == before).all()


def test_error_messages_name_the_bad_input():
    rng = np.random.default_rng(8)
    with pytest.raises(ValueError, match=r"needs more rows than codes .* 20 rows and 20 codes"):
        multi_information(rng.normal(size=(20, 20)))
    with pytest.raises(ValueError, match="method must be 'copula' or 'plug_in', got 'knn'"):
        multi_information(np.eye(3), method="knn")
    with pytest.raises(ValueError, match="contains NaN"):
        multi_information([[0.0, np.nan], [1.0, 1.0]])
    for bins in (0, -3, 2.5, True, [0.0, np.inf], "auto", [[1.0]]):
        with pytest.raises(ValueError, match="bins must be a whole number of at least 1"):
            multi_information(rng.normal(size=(9, 2)), method="plug_in", bins=bins)


# ---------------------------------------------------------------------------------- plug-in


@pytest.mark.parametrize(("bins", "n_symbols"), [(20, 23), (30, 33)])
def test_published_bins(bins, n_symbols):
    """Two identical codes, uniform over all symbols, share the entropy of a fair die."""
    edges = np.sort([*np.linspace(-2, 2, bins), -1e-50, 1e-50])
    values = np.concatenate([[-3.0], (edges[1:] + edges[:-1]) / 2, [3.0]])
    assert len(values) == n_symbols
    assert 0.0 in values
    codes = np.repeat(np.column_stack([values, values]), 100, axis=0)
    found = multi_information(codes, method="plug_in", bins=bins)
    assert found == pytest.approx(math.log2(n_symbols))
    assert multi_information(codes, method="plug_in", bins=edges) == pytest.approx(found)


def test_plug_in_by_brute_force():
    rng = np.random.default_rng(9)
    codes = sparse(rng, (3000, 3), 0.5)
    edges = [-1.0, 1.0]

    def symbol(value):
        return "zero" if value == 0 else (np.searchsorted(edges, value), value > 0)

    symbols = [tuple(symbol(value) for value in row) for row in codes]
    rows = {row: symbols.count(row) for row in set(symbols)}
    marginal = 0.0
    for k in range(3):
        column = [row[k] for row in symbols]
        marginal += entropy([column.count(s) for s in set(column)], base=2)
    expected = marginal - entropy(list(rows.values()), base=2)
    assert len(rows) > 50
    assert multi_information(codes, method="plug_in", bins=edges) == pytest.approx(expected)


def test_plug_in_of_a_known_distribution():
    """Two fair coins and their parity share one bit, which depends on all three codes."""
    rows = [(a, b, a ^ b) for a, b in itertools.product((0, 1), repeat=2)]
    codes = np.array(rows * 50, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert multi_information(codes, method="plug_in") == pytest.approx(1)
    # The codes are pairwise independent.
    assert abs(multi_information(codes)) < 0.1


def test_plug_in_warns_when_nearly_every_row_has_its_own_cell():
    codes = np.random.default_rng(10).normal(size=(4000, 64))
    message = (
        r"joint entropy of 4000 rows in 64 columns is 11\.97 bits, close to its maximum of "
        r"log2 4000 = 11\.97: .* entropies, 273\.\d bits"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        found = multi_information(codes, method="plug_in")
    assert caught[0].filename == __file__
    # The truth is zero.
    assert found == pytest.approx(261.6, abs=1)
