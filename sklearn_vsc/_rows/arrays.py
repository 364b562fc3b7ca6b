"""Conversion between NumPy arrays and torch tensors: devices, dtypes and randomness."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state

Rows = TypeVar("Rows", NDArray, torch.Tensor)
# Maximum number of rows used to evaluate a fit that is in progress or was interrupted.
FEW_ROWS = 4096
# Maximum number of array entries, and of rows, processed at once; bounds memory.
NUMBERS_AT_ONCE = 2**24
_ROWS_AT_ONCE = 4096
_SEED_BOUND = np.iinfo(np.int32).max


def resolve_device(device: str) -> torch.device:
    """Turn the ``device`` parameter of an estimator into an available device.

    Parameters
    ----------
    device : str
        ``'auto'`` (CUDA if available, else MPS, else CPU) or the name of a torch device.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ValueError
        If the name is not a torch device, or the device is not available on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"The 'device' parameter must be 'auto' or the name of a torch device such as 'cpu', "
            f"'cuda', 'cuda:1' or 'mps'; got {device!r}."
        ) from error
    n_cuda = torch.cuda.device_count()
    there = {
        "cpu": True,
        "cuda": (resolved.index or 0) < n_cuda,
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(resolved.type, False):
        raise ValueError(
            f"device={device!r} is not available here (CUDA devices found: {n_cuda}). "
            "Use device='auto' for the best available device, or device='cpu'."
        )
    return resolved


def compute_dtype(dtype: np.dtype | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the torch dtype used on a device for data of a NumPy dtype."""
    if isinstance(dtype, torch.dtype):
        return dtype
    # MPS has no float64.
    return torch.float32 if dtype == np.float32 or device.type == "mps" else torch.float64


def to_tensor(
    X: NDArray,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    borrow: bool = False,
) -> torch.Tensor:
    """Convert an array to a tensor on a device; the array itself is never written to.

    A read-only array is copied, since torch does not support read-only memory. With ``borrow``
    it is not copied, and the caller promises not to modify the tensor.
    """
    if any(stride < 0 for stride in X.strides):
        # torch does not support negative strides.
        X = X.copy()
    elif not X.flags.writeable:
        X = np.asarray(_Borrowed(X)) if borrow else X.copy()
    return torch.from_numpy(X).to(device=device, dtype=dtype or compute_dtype(X.dtype, device))


class _Borrowed:
    """The memory of a read-only array, declared writeable because torch insists on it."""

    def __init__(self, array: NDArray) -> None:
        self._array = array
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def to_numpy(tensor: torch.Tensor, dtype: np.dtype | None = None) -> NDArray:
    """Convert a tensor to a NumPy array, with dtype ``dtype`` if given."""
    array = tensor.detach().cpu().numpy()
    return array if dtype is None else array.astype(dtype, copy=False)


def private_random_state(
    random_state: int | np.random.RandomState | None,
) -> np.random.RandomState:
    """Like ``check_random_state``, but None gives a new state, not NumPy's global generator."""
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw one integer seed from a NumPy random state."""
    return int(random_state.randint(_SEED_BOUND))


def seeded_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a private generator; torch's global generator is not affected."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return generator


def row_generators(X: NDArray, seed: int) -> Iterator[torch.Generator]:
    """Yield a CPU generator for each row, seeded by ``seed`` and the content of the row.

    Its draws depend only on the row, not on other rows, so that sampled codes and scores of a
    subset equal the subset of all codes and scores.
    """
    generator = torch.Generator()
    key = seed.to_bytes(8, "little")
    # Equal rows need equal bytes: adding 0.0 turns -0.0 into 0.0, and NaN is made unique below.
    rows = np.ascontiguousarray(X) + 0.0
    rows[np.isnan(rows)] = np.nan
    for row in rows:
        digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield generator


def draw_blocks(n_draws: int) -> Iterator[int]:
    """Yield sizes of blocks with at least ``n_draws`` draws in total; the last is often too large.

    torch fills an array in an order that depends on its size. With draws made in blocks, each as
    large as all blocks before it, and then truncated, the first draws are the same for any
    ``n_draws``.
    """
    n_drawn = 0
    while n_drawn < n_draws:
        size = max(1, n_drawn)
        yield size
        n_drawn += size


def few_rows(X: Rows) -> Rows:
    """Return at most ``FEW_ROWS`` rows, evenly spaced, for a quick evaluation."""
    return X[:: math.ceil(len(X) / FEW_ROWS)]


def rows_at_once(n_numbers: int) -> int:
    """Return how many rows to process at once if each needs ``n_numbers`` array entries."""
    return min(_ROWS_AT_ONCE, max(1, NUMBERS_AT_ONCE // n_numbers))


def row_slices(n_rows: int, size: int) -> Iterator[slice]:
    """Yield slices that cover ``n_rows`` rows, ``size`` at a time."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
