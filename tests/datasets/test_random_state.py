import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.utils import check_random_state

from sklearn_vsc.datasets import load_natural_patches, make_bars, make_sparse_coded

LOADERS = {
    "load_natural_patches": lambda **kw: (load_natural_patches(50, patch_size=8, **kw),),
    "make_sparse_coded": lambda **kw: make_sparse_coded(50, 12, 9, noise=0.1, **kw),
    "make_bars": lambda **kw: make_bars(50, 4, noise=0.1, **kw),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_random_state_alone_determines_the_data(load):
    state = check_random_state(None).get_state()
    first, again, other = load(random_state=3), load(random_state=3), load(random_state=4)
    from_instance = load(random_state=np.random.RandomState(3))
    unseeded, unseeded_again = load(), load()
    for a, b, c in zip(first, again, from_instance, strict=True):
        assert_array_equal(a, b)
        assert_array_equal(a, c)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(unseeded[0], unseeded_again[0])
    now = check_random_state(None).get_state()
    for before, after in zip(state, now, strict=True):
        assert_array_equal(before, after)
