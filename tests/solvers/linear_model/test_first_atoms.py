"""Atoms that learning starts from."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc.datasets import make_sparse_coded
from sklearn_vsc.metrics import atom_recovery
from sklearn_vsc.solvers.linear_model.first_atoms import lasso_atoms


@pytest.mark.parametrize("positive", [False, True])
def test_first_atoms_are_near_those_of_the_rows(positive):
    rows, dictionary, codes = make_sparse_coded(
        2000, 16, 24, density=0.15, noise=0.05, random_state=0
    )
    if positive:
        rows = np.abs(codes) @ dictionary
    atoms = lasso_atoms(rows, 16, np.random.default_rng(0), positive=positive)
    assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-5)
    random = rows[np.random.default_rng(0).permutation(2000)[:16]]
    found = atom_recovery(atoms, dictionary).mean_cosine
    assert found > 0.9 > atom_recovery(random, dictionary).mean_cosine
    again = lasso_atoms(rows, 16, np.random.default_rng(0), positive=positive)
    assert_array_equal(again, atoms)


def test_rows_of_zero_give_some_atoms():
    atoms = lasso_atoms(np.zeros((40, 5)), 3, np.random.default_rng(0), positive=False)
    assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-5)
