import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_vsc._rows import arrays as _arrays
from sklearn_vsc._rows.arrays import (
    compute_dtype,
    draw_seed,
    resolve_device,
    row_generators,
    row_slices,
    seeded_generator,
    to_numpy,
    to_tensor,
)

CPU = torch.device("cpu")


# --- devices


def test_cpu_is_always_available():
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_best_available_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize("name", ["nonsense", "", "gpu", "cuda:one", "CPU"])
def test_error_names_an_unknown_device(name):
    with pytest.raises(ValueError, match=r"'device' parameter must be") as raised:
        resolve_device(name)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "mps", "meta", "xla"])
def test_error_names_an_unavailable_device(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"device='{name}' is not available"):
        resolve_device(name)


def test_cuda_device_with_too_high_a_number_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"device='cuda:2'.*CUDA devices found: 2"):
        resolve_device("cuda:2")


# --- types


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (np.dtype(np.float32), "cpu", torch.float32),
        (np.dtype(np.float64), "cpu", torch.float64),
        (np.dtype(np.int64), "cpu", torch.float64),
        (np.dtype(np.float64), "mps", torch.float32),
        (torch.float64, "cpu", torch.float64),
    ],
)
def test_compute_dtype_depends_on_data_and_device(dtype, device, expected):
    assert compute_dtype(dtype, torch.device(device)) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_survive_a_round_trip(dtype):
    X = np.random.RandomState(0).normal(size=(4, 3)).astype(dtype)
    back = to_numpy(to_tensor(X, CPU))
    assert back.dtype == dtype
    assert_array_equal(back, X)
    assert to_numpy(to_tensor(X, CPU), np.dtype(np.float32)).dtype == np.float32
    assert to_numpy(to_tensor(X, CPU).requires_grad_()).dtype == dtype


def test_read_only_arrays_are_never_written_to(tmp_path):
    """Not even by in-place operations on the tensor; and torch does not warn."""
    X = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "X.npy", X)
    frozen = X.copy()
    frozen.flags.writeable = False
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    for array in (frozen, mapped):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_tensor(array, CPU).mul_(-1.0)
        assert_array_equal(array, X)
    assert_array_equal(np.load(tmp_path / "X.npy"), X)


def test_read_only_rows_can_be_borrowed_without_a_copy(tmp_path):
    X = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = to_tensor(mapped, CPU, borrow=True)
    assert rows.data_ptr() == mapped.ctypes.data
    assert_array_equal(rows, X)
    assert not mapped.flags.writeable
    # The tensor keeps the map alive.
    del mapped
    assert_array_equal(rows, X)


@pytest.mark.parametrize("cut", [np.s_[::-1], np.s_[:, ::-1], np.s_[::2], np.s_[:, 1:]])
def test_views_of_any_stride_become_tensors(cut):
    X = np.arange(12.0).reshape(4, 3)[cut]
    assert_array_equal(to_tensor(X, CPU), X)
    assert_array_equal(to_tensor(np.asfortranarray(X), CPU), X)


# --- randomness


def _draws(X, seed=3):
    return torch.stack([torch.rand(5, generator=g) for g in row_generators(X, seed)])


def test_draws_depend_only_on_the_row():
    X = np.random.RandomState(0).normal(size=(8, 3))
    draws = _draws(X)
    assert len(torch.unique(draws, dim=0)) == 8
    order = np.random.RandomState(1).permutation(8)
    assert_array_equal(_draws(X[order]), draws[order])
    assert_array_equal(_draws(X[2:5]), draws[2:5])
    assert_array_equal(_draws(X[6:7]), draws[6:7])
    # The memory layout does not matter.
    assert_array_equal(_draws(np.asfortranarray(X)), draws)
    assert_array_equal(_draws(X[::-1]), draws.flip(0))
    assert_array_equal(_draws(np.hstack([X, X])[:, :3]), draws)


def test_equal_rows_have_equal_draws():
    X = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    draws = _draws(X)
    assert_array_equal(draws[0], draws[1])
    assert_array_equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_draws_depend_on_the_seed():
    X = np.random.RandomState(0).normal(size=(4, 3))
    assert_array_equal(_draws(X, 7), _draws(X, 7))
    assert not np.isin(_draws(X, 7), _draws(X, 8)).any()
    # Every seed that can be drawn works.
    for seed in (0, np.iinfo(np.int32).max):
        assert _draws(X, seed).isfinite().all()


def test_draws_are_random():
    """For each draw, one fifth of the rows are below one fifth."""
    X = np.arange(20_000.0)[:, None]
    draws = _draws(X)
    share = (draws < 0.2).double().mean(0)
    assert_allclose(share, 0.2, atol=4 * np.sqrt(0.16 / len(X)))
    correlation = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(X))


def test_global_generators_are_not_affected():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    X = np.ones((2, 2))
    _draws(X)
    first = torch.rand(3, generator=seeded_generator(5))
    assert torch.equal(first, torch.rand(3, generator=seeded_generator(5)))
    seed = draw_seed(np.random.RandomState(0))
    assert seed == draw_seed(np.random.RandomState(0))
    assert isinstance(seed, int)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state)


def test_none_does_not_mean_the_global_generator():
    state = np.random.get_state()[1].copy()
    private = [_arrays.private_random_state(None) for _ in range(2)]
    assert draw_seed(private[0]) != draw_seed(private[1])
    assert_array_equal(np.random.get_state()[1], state)
    given = np.random.RandomState(0)
    assert _arrays.private_random_state(given) is given
    assert draw_seed(_arrays.private_random_state(0)) == draw_seed(np.random.RandomState(0))


# --- chunks


@pytest.mark.parametrize(("n_rows", "size"), [(10, 3), (9, 3), (2, 5), (1, 1), (0, 4)])
def test_slices_cover_every_row_once(n_rows, size):
    rows = np.arange(n_rows)
    parts = [rows[s] for s in row_slices(n_rows, size)]
    assert_array_equal(np.concatenate([*parts, rows[:0]]), rows)
    assert all(0 < len(part) <= size for part in parts)
