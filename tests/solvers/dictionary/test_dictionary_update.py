import numpy as np
import pytest
import torch

from sklearn_vsc.solvers.dictionary.renewal import idle_rows, renew_atoms, worst_rows
from sklearn_vsc.solvers.dictionary.update import (
    initial_dictionary,
    normalise_atoms,
    update_dictionary,
)


def problem(n_rows=60, n_components=8, n_features=12, seed=0):
    rng = np.random.default_rng(seed)
    codes = torch.tensor(rng.standard_normal((n_rows, n_components)))
    codes[codes.abs() < 0.8] = 0
    X = torch.tensor(rng.standard_normal((n_rows, n_features)))
    dictionary = torch.nn.functional.normalize(
        torch.tensor(rng.standard_normal((n_components, n_features)))
    )
    return X, codes, dictionary


def surrogate(dictionary, codes, X):
    return 0.5 * (X - codes @ dictionary).square().sum()


def update(dictionary, codes, X, **options):
    return update_dictionary(dictionary, codes.T @ codes, codes.T @ X, **options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("positive", [False, True])
def test_every_sweep_lowers_the_squared_error(positive):
    X, codes, dictionary = problem()
    if positive:
        dictionary = torch.nn.functional.normalize(dictionary.abs())
    values = [surrogate(dictionary, codes, X)]
    for _ in range(5):
        dictionary = update(dictionary, codes, X, positive=positive)
        values.append(surrogate(dictionary, codes, X))
        torch.testing.assert_close(dictionary.norm(dim=1), torch.ones(8, dtype=X.dtype))
        assert not positive or (dictionary >= 0).all()
    assert np.all(np.diff(values) < 0)


@pytest.mark.parametrize("positive", [False, True])
def test_at_convergence_each_atom_is_optimal_given_the_others(positive):
    X, codes, dictionary = problem()
    if positive:
        dictionary = torch.nn.functional.normalize(dictionary.abs())
    dictionary = update(dictionary, codes, X, positive=positive, n_sweeps=500)
    for atom in range(len(dictionary)):
        rest = X - codes @ dictionary + codes[:, [atom]] * dictionary[atom]
        target = codes[:, atom] @ rest
        target = target.clamp_min(0) if positive else target
        torch.testing.assert_close(dictionary[atom], target / target.norm())


def test_a_single_atom_is_set_to_its_minimiser_on_the_sphere():
    X, codes, dictionary = problem(n_components=1)
    updated = update(dictionary, codes, X)
    best = surrogate(updated, codes, X)
    rng = np.random.default_rng(1)
    for _ in range(200):
        other = torch.nn.functional.normalize(torch.tensor(rng.standard_normal((1, 12))))
        assert surrogate(other, codes, X) >= best


def test_unused_atoms_and_the_input_are_not_modified():
    X, codes, dictionary = problem()
    codes[:, 3] = 0
    before = dictionary.clone()
    updated = update(dictionary, codes, X)
    assert torch.equal(dictionary, before)
    assert torch.equal(updated[3], dictionary[3])
    assert not torch.equal(updated[4], dictionary[4])


def test_positive_atom_without_positive_target_is_kept():
    dictionary = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    codes = torch.ones(3, 1, dtype=torch.float64)
    X = -torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(update(dictionary, codes, X, positive=True), dictionary)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_normalising_works_at_any_scale(scale):
    atoms = scale * torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    unit = normalise_atoms(atoms, generator=generator())
    torch.testing.assert_close(unit[0], torch.tensor([0.6, -0.8]))
    assert unit[1].norm() == pytest.approx(1)
    unit = normalise_atoms(atoms, positive=True, generator=generator())
    torch.testing.assert_close(unit[0], torch.tensor([1.0, 0.0]))
    assert (unit >= 0).all()


def test_initial_atoms_are_distinct_nonzero_rows():
    X = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(6, 2).square()
    X[2] = 0
    dictionary = initial_dictionary(X, 5, generator=generator())
    rows = X[X.any(1)] / X[X.any(1)].norm(dim=1, keepdim=True)
    matched = (dictionary @ rows.T > 1 - 1e-12).nonzero()[:, 1].tolist()
    assert sorted(matched) == [0, 1, 2, 3, 4]
    more = initial_dictionary(X, 9, generator=generator())
    torch.testing.assert_close(more.norm(dim=1), torch.ones(9, dtype=X.dtype))


def test_initial_atoms_have_missing_entries_filled_with_column_means():
    X = problem(n_rows=5)[0]
    means = X[1:].mean(0)[:2]
    X[0, :2] = torch.nan
    dictionary = initial_dictionary(X, 5, generator=generator())
    X[0, :2] = means
    rows = torch.nn.functional.normalize(X)
    matched = (dictionary @ rows.T > 1 - 1e-12).nonzero()[:, 1].tolist()
    assert sorted(matched) == [0, 1, 2, 3, 4]


def test_renewed_atoms_point_at_badly_coded_rows_and_leave_the_objective_unchanged():
    X, codes, dictionary = problem()
    dead = torch.zeros(8, dtype=torch.bool)
    dead[[1, 5]] = True
    codes[:, dead] = 0
    residual = X - codes @ dictionary
    # All rows except three are perfectly coded.
    residual[3:] = 0
    renewed = renew_atoms(dictionary, dead, residual, generator=generator())
    assert torch.equal(renewed[~dead], dictionary[~dead])
    directions = residual[:3] / residual[:3].norm(dim=1, keepdim=True)
    assert ((renewed[dead] @ directions.T).amax(1) > 1 - 1e-12).all()
    assert surrogate(renewed, codes, X) == surrogate(dictionary, codes, X)


@pytest.mark.parametrize("positive", [False, True])
def test_renewal_without_badly_coded_rows_gives_unit_vectors(positive):
    _, _, dictionary = problem()
    dead = torch.ones(8, dtype=torch.bool)
    renewed = renew_atoms(
        dictionary, dead, torch.zeros(4, 12).double(), positive=positive, generator=generator()
    )
    torch.testing.assert_close(renewed.norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert torch.linalg.matrix_rank(renewed) == 8
    assert not positive or (renewed >= 0).all()


def test_idle_rows_count_from_the_last_use():
    codes = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -2.0]])
    assert idle_rows(torch.tensor([5, 5, 5]), codes).tolist() == [7, 0, 0]
    assert idle_rows(torch.tensor([5, 5, 5]), torch.zeros(4, 3)).tolist() == [9, 9, 9]


@pytest.mark.parametrize("n_rows", [2, 9])
def test_worst_rows_have_the_largest_energy(n_rows):
    residual = torch.randn(5, 4, generator=generator(), dtype=torch.float64)
    found = worst_rows(residual, n_rows)
    energies = sorted(residual.square().sum(1).tolist(), reverse=True)[:n_rows]
    torch.testing.assert_close(found.square().sum(1).tolist(), energies)
