import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import jaccard_score

from sklearn_vsc.metrics import hoyer_sparsity, support_consistency


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200, -3.0])
def test_hoyer_of_known_codes(scale):
    assert hoyer_sparsity(scale * np.eye(5)) == pytest.approx(1)
    assert hoyer_sparsity(np.full((3, 5), scale)) == pytest.approx(0, abs=1e-12)
    row = np.array([[3.0, 0.0, -4.0, 0.0]])
    assert hoyer_sparsity(scale * row) == pytest.approx(2 - 7 / 5)


def test_hoyer_is_averaged_over_nonzero_rows():
    codes = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert hoyer_sparsity(codes) == pytest.approx(0.5)
    assert hoyer_sparsity(csr_array(codes)) == hoyer_sparsity(codes)
    assert math.isnan(hoyer_sparsity(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        hoyer_sparsity([[1.0]])


# ---------------------------------------------------------------------------------- supports


def by_scikit_learn(draws):
    active = np.asarray(draws) != 0
    return np.mean(
        [
            jaccard_score(one, other, zero_division=1.0)
            for row in range(active.shape[1])
            for one, other in itertools.combinations(active[:, row], 2)
        ]
    )


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_consistency_is_the_mean_jaccard_index(density):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(5, 12, 7)) * (rng.random((5, 12, 7)) < density)
    # In some pairs, both supports are empty.
    assert density > 0.1 or (draws == 0).all(2).sum(0).max() > 1
    assert support_consistency(draws) == pytest.approx(by_scikit_learn(draws))


def test_consistency_of_independent_draws():
    rng = np.random.default_rng(1)
    density = 0.1
    draws = rng.random((2, 2000, 400)) < density
    assert support_consistency(draws) == pytest.approx(density / (2 - density), abs=1e-3)


def test_consistency_by_hand(monkeypatch):
    one = np.array([[1.0, -2.0, 0.0], [0, 0, 0], [3, 0, 0]])
    other = np.array([[-1.0, 0.0, 0.0], [0, 0, 0], [0, 0, 3]])
    draws = np.array([one, other, one])
    # First row: 1/2, 1/2, 1; second row: always empty; third row: 0, 0, 1.
    assert support_consistency(draws) == pytest.approx((2 / 3 + 1 + 1 / 3) / 3)
    assert support_consistency([one, one]) == 1
    atoms = np.array([[1.0, 0.0], [0.06, 0.06], [0.1, 0.1]])
    # Without the second code, all draws of the first row agree.
    assert support_consistency(draws, components=atoms) == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert support_consistency(draws, components=atoms, min_norm=0.5) == pytest.approx(7 / 9)
    assert support_consistency(draws, components=atoms, min_norm=0) == pytest.approx(2 / 3)
    # The number of rows processed at once does not matter.
    module = "sklearn_vsc.metrics._sparsity.rows_at_once"
    monkeypatch.setattr(module, lambda _: 2)
    assert support_consistency(draws) == pytest.approx(2 / 3)


@given(st.integers(0, 2**31 - 1), st.permutations(range(6)), st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_order_and_size_do_not_matter(seed, atoms, draws):
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(4, 3, 6)) * (rng.random((4, 3, 6)) < 0.4)
    changed = -rng.uniform(0.1, 9, size=6) * codes
    found = support_consistency(changed[draws][:, :, atoms])
    assert found == pytest.approx(support_consistency(codes))
    assert 0 <= found <= 1


def test_consistency_explains_what_is_wrong():
    for shape in ((3, 4), (1, 3, 4), (2, 3, 4, 5)):
        with pytest.raises(ValueError, match="at least two draws; got an array of shape"):
            support_consistency(np.ones(shape))
    draws = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match="a row for each of the 4 codes; got 3"):
        support_consistency(draws, components=np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"longer than min_norm=5; the longest has norm 1\.41"):
        support_consistency(draws, components=np.ones((4, 2)), min_norm=5)
    with pytest.raises(ValueError, match=r"'min_norm' parameter must be a finite number .* got -1"):
        support_consistency(draws, components=np.ones((4, 2)), min_norm=-1)
    with pytest.raises(ValueError, match="contains NaN"):
        support_consistency(draws * np.nan)
