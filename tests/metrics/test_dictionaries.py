import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from sklearn_vsc.metrics import atom_recovery, coherence, effective_dictionary


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_effective_dictionary_is_least_squares(rng):
    codes = rng.normal(size=(60, 5)) * (rng.random((60, 5)) < 0.5)
    X = codes @ rng.normal(size=(5, 7)) + 0.1 * rng.normal(size=(60, 7)) + 3
    found = effective_dictionary(X, codes)
    assert_allclose(found, np.linalg.lstsq(codes, X, rcond=None)[0], rtol=1e-8)
    # As published: moments divided by n, and a pseudo-inverse.
    moments = (X.T @ codes / 60) @ np.linalg.pinv(codes.T @ codes / 60)
    assert_allclose(found, moments.T, rtol=1e-8)
    assert_allclose(effective_dictionary(X, csr_array(codes)), found)


def test_effective_dictionary_of_dependent_codes_has_minimum_norm(rng):
    codes = rng.normal(size=(30, 4))
    codes[:, 1], codes[:, 3] = 0, codes[:, 2]
    X = rng.normal(size=(30, 3))
    found = effective_dictionary(X, codes)
    assert_allclose(found, np.linalg.pinv(codes) @ X, atol=1e-8)
    assert_allclose(found[1], 0, atol=1e-12)
    assert_allclose(found[2], found[3], atol=1e-8)


def test_effective_dictionary_of_rows_with_missing_entries(rng):
    codes = rng.normal(size=(60, 3))
    X = codes @ rng.normal(size=(3, 5)) + 0.1 * rng.normal(size=(60, 5))
    X[rng.random(X.shape) < 0.3] = np.nan
    before = X.copy()
    X.setflags(write=False)
    expected = []
    for column in X.T:
        there = ~np.isnan(column)
        expected.append(np.linalg.lstsq(codes[there], column[there], rcond=None)[0])
    assert_allclose(effective_dictionary(X, codes), np.transpose(expected), rtol=1e-8)
    assert_array_equal(X, before)


# ------------------------------------------------------------------------------ true atoms


def test_recovery_is_the_best_of_all_matchings(rng):
    learned, true = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))

    def cosine(a, b):
        return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    best = max(
        np.mean([cosine(true[i], learned[j]) for i, j in enumerate(order)])
        for order in itertools.permutations(range(6), 4)
    )
    found = atom_recovery(learned, true, threshold=0.8)
    assert found.mean_cosine == pytest.approx(best)
    assert len(set(found.matches)) == 4
    assert_allclose(
        found.cosines, [cosine(true[i], learned[j]) for i, j in enumerate(found.matches)]
    )
    assert found.recovered == np.mean(found.cosines >= 0.8)
    assert 0 < found.recovered < 1


@given(
    st.integers(0, 2**31 - 1),
    st.permutations(range(6)),
    st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
    st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_order_sign_and_length_of_atoms_do_not_matter(seed, order, scales, signs):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(6, 4))
    learned = (true * np.multiply(scales, signs)[:, None])[order]
    found = atom_recovery(learned, true)
    assert found.recovered == 1
    assert found.mean_cosine == pytest.approx(1)
    assert_array_equal(np.array(order)[found.matches], range(6))
    assert coherence(learned) == pytest.approx(coherence(true))


def test_true_atoms_without_a_match(rng):
    true = np.eye(4)
    found = atom_recovery(true[[2, 0]], true)
    assert (found.recovered, found.mean_cosine) == (0.5, 0.5)
    assert_array_equal(found.cosines, [1, 0, 1, 0])
    assert_array_equal(found.matches, [1, -1, 0, -1])
    # An atom of zeros has cosine zero with every other.
    assert atom_recovery(np.zeros((4, 4)), true).mean_cosine == 0


def test_error_messages_name_the_bad_dictionary():
    with pytest.raises(ValueError, match="same number of columns; got 3 and 4"):
        atom_recovery(np.eye(3), np.eye(4))
    for threshold in (-0.1, 1.5, "1", True):
        with pytest.raises(
            ValueError, match="'threshold' parameter must be a finite number from 0 to 1"
        ):
            atom_recovery(np.eye(3), np.eye(3), threshold=threshold)
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        coherence([[1.0, 2.0]])
    with pytest.raises(ValueError, match="same number of rows; got 2 and 3"):
        effective_dictionary(np.eye(2), np.eye(3))


# ------------------------------------------------------------------------------- coherence


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_coherence_of_known_dictionaries(scale):
    assert coherence(scale * np.eye(3)) == 0
    angles = 2 * math.pi * np.arange(3) / 3
    # Three atoms at equal angles in the plane attain the Welch bound.
    frame = np.column_stack([np.cos(angles), np.sin(angles)])
    assert coherence(scale * frame) == pytest.approx(math.sqrt((3 - 2) / (2 * (3 - 1))))
    # Spikes and sines.
    hadamard = np.array([[1.0]])
    for _ in range(4):
        hadamard = np.kron(hadamard, [[1, 1], [1, -1]])
    assert coherence(np.vstack([np.eye(16), scale * hadamard])) == pytest.approx(1 / 4)
    assert coherence(scale * np.array([[1.0, 2.0], [-3.0, -6.0], [1.0, 0.0]])) == pytest.approx(1)
    assert coherence(scale * np.array([[1.0, 0.0], [0.0, 0.0]])) == 0
