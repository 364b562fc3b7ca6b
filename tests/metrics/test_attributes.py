import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.sparse import csr_array
from scipy.stats import pointbiserialr

from sklearn_vsc.metrics import attribute_correlation


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    attributes = rng.random((50, 4)) < [0.1, 0.5, 0.9, 0.3]
    codes = rng.laplace(size=(50, 6)) * (rng.random((50, 6)) < 0.5) + attributes[:, :1]
    return codes, attributes


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_correlation_is_point_biserial(data, scale):
    codes, attributes = data
    expected = [
        [pointbiserialr(attribute, code).statistic for code in codes.T]
        for attribute in attributes.T
    ]
    assert_allclose(attribute_correlation(scale * codes, attributes), expected, rtol=1e-9)
    # The textbook formula.
    has = attributes[:, 1]
    code, n1, n0 = codes[:, 0], has.sum(), (~has).sum()
    by_hand = (code[has].mean() - code[~has].mean()) / code.std() * np.sqrt(n1 * n0) / 50
    assert expected[1][0] == pytest.approx(by_hand)


def test_labels_may_be_of_any_kind(data):
    codes, attributes = data
    found = attribute_correlation(codes, attributes)
    assert found.shape == (4, 6)
    for labels in (attributes.astype(int), 2.0 * attributes - 1, attributes.tolist()):
        assert_allclose(attribute_correlation(codes, labels), found)
    assert_allclose(attribute_correlation(csr_array(codes), attributes), found)
    assert_allclose(attribute_correlation(torch.from_numpy(codes), attributes), found)
    assert_allclose(attribute_correlation(codes, attributes[:, 2]), found[2:3])


def test_constant_columns_have_zero_correlation(data):
    codes, attributes = data
    codes[:, 1], codes[:, 2] = 0, 0.1 + 0.2
    attributes[:, 3] = True
    found = attribute_correlation(codes, attributes)
    assert (found[3] == 0).all() and (found[:, 1:3] == 0).all()
    assert (found[:3, [0, 3, 4, 5]] != 0).all()
    assert attribute_correlation([[1.0], [0.0]], [-1, -1]) == 0


@given(st.integers(0, 2**31 - 1), st.floats(1e-3, 1e3), st.floats(-10, 10))
@settings(max_examples=25, deadline=None)
def test_unit_and_origin_do_not_matter(seed, scale, shift):
    rng = np.random.default_rng(seed)
    codes, attributes = rng.normal(size=(20, 3)), rng.random((20, 2)) < 0.5
    found = attribute_correlation(codes, attributes)
    assert_allclose(attribute_correlation(scale * codes + shift, attributes), found, atol=1e-9)
    assert_allclose(attribute_correlation(-codes, ~attributes), found, atol=1e-9)


def test_error_messages_name_the_bad_input(data):
    codes, attributes = data
    with pytest.raises(ValueError, match=r"got values 0, 1, 2, 3, 4, \.\.\.\. Turn class labels"):
        attribute_correlation(codes, np.arange(50) % 10)
    with pytest.raises(ValueError, match="got values -1, 0, 1"):
        attribute_correlation(codes, np.arange(50) % 3 - 1)
    with pytest.raises(ValueError, match="same number of rows; got 50 and 40"):
        attribute_correlation(codes, attributes[:40])
    with pytest.raises(ValueError, match="codes contains NaN"):
        attribute_correlation(codes * np.nan, attributes)
