"""The versions in use, for reports of problems."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import joblib
import numba
import torch
from threadpoolctl import threadpool_info

from ._version import __version__

# Distributions by the names of pyproject.toml: what is always installed, what the extras add, and
# what users often combine with the estimators.
_REQUIRED = (
    "numba",
    "numpy",
    "safetensors",
    "scikit-learn",
    "scipy",
    "skorch",
    "threadpoolctl",
    "torch",
    "tqdm",
)
_EXTRAS = ("accelerate", "dask", "distributed", "matplotlib", "scikit-image", "torchmetrics")
_RELATED = ("joblib", "llvmlite", "pandas", "pip", "polars", "skops")


def show_versions() -> None:
    """Print the versions of this package, of Python and of the libraries it uses.

    Also printed: the platform and the number of CPUs that this process may use, whether torch
    finds a GPU, and how many threads each numerical library uses. Please include all of it when
    you report a problem; it contains neither data nor paths.

    No optional library is imported; one that is missing is reported as not installed.

    Examples
    --------
    >>> import sklearn_vsc
    >>> sklearn_vsc.show_versions()  # doctest: +ELLIPSIS
    sklearn-vsc: ...
    """
    print(f"sklearn-vsc: {__version__}")
    _print_section("System", _system())
    _print_section("Dependencies", _installed(_REQUIRED))
    _print_section("Optional dependencies", _installed(_EXTRAS))
    _print_section("Related packages", _installed(_RELATED))
    _print_section("Devices and threads", _devices_and_threads())


def _print_section(title: str, entries: Iterable[tuple[str, str]]) -> None:
    entries = list(entries)
    width = max(len(name) for name, _ in entries)
    print(f"\n{title}")
    for name, value in entries:
        print(f"  {name:>{width}}: {value}")


def _system() -> list[tuple[str, str]]:
    return [
        ("Python", sys.version.replace("\n", " ")),
        ("platform", platform.platform()),
        ("CPUs", str(joblib.cpu_count())),
    ]


def _installed(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the version of each distribution, from its metadata."""
    return [(name, _version(name)) for name in names]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices_and_threads() -> list[tuple[str, str]]:
    pools = [
        (
            f"{pool['user_api']} ({pool['internal_api']})",
            f"{_threads(pool['num_threads'])}, version {pool['version'] or 'unknown'}",
        )
        for pool in threadpool_info()
    ]
    return [
        ("torch build", str(torch.__version__)),
        ("CUDA", _cuda()),
        ("MPS", "available" if torch.backends.mps.is_available() else "not available"),
        ("torch", _threads(torch.get_num_threads())),
        ("numba threading layer", _numba_layer()),
        *pools,
    ]


def _threads(n_threads: int) -> str:
    return "1 thread" if n_threads == 1 else f"{n_threads} threads"


def _cuda() -> str:
    """Return the CUDA (or ROCm) version that torch was built with, and the GPUs that it finds."""
    built_with = torch.version.cuda or torch.version.hip
    if built_with is None:
        return "not in this build of torch"
    if not torch.cuda.is_available():
        return f"{built_with}, not available"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{built_with}, {', '.join(names)}"


def _numba_layer() -> str:
    """Return the threading layer of numba, or its setting as long as none was started."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return f"not started (set to {vars(numba.config)['THREADING_LAYER']!r})"
