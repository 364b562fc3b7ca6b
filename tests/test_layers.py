"""The floors of the package: who may import whom, and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_vsc

PACKAGE = Path(sklearn_vsc.__file__).parent

# Each floor, and the floors of the package that it may import. A floor is a module or a folder.
FLOORS = {
    "latents": {"latents"},
    "masks": set(),
    "likelihoods": {"masks"},
    "networks": {"masks", "networks", "solvers"},
    "solvers": {"solvers"},
    "bounds": set(),
    "gate_gradients": {"networks"},
    "model": {"gate_gradients", "latents", "likelihoods", "masks", "networks", "solvers"},
    "sparse_autoencoder": {"latents", "likelihoods", "model", "networks"},
    "objectives": {
        "bounds",
        "gate_gradients",
        "latents",
        "likelihoods",
        "masks",
        "model",
        "sparse_autoencoder",
    },
    "_data_parallel": set(),
    "_precision": {"model", "networks", "sparse_autoencoder"},
    "_epoch_parts": set(),
    "training": {
        "_data_parallel",
        "_epoch_parts",
        "_interruption",
        "_precision",
        "latents",
        "model",
        "networks",
        "objectives",
    },
}
NUMERICS = {"numpy", "scipy", "torch"}
LIBRARIES = {floor: NUMERICS for floor in FLOORS} | {
    "solvers": NUMERICS | {"llvmlite", "numba"},
    "_data_parallel": NUMERICS | {"accelerate", "skorch"},
    "_epoch_parts": NUMERICS | {"skorch"},
    "training": NUMERICS | {"skorch", "tqdm"},
}

ESTIMATORS = {
    getattr(sklearn_vsc, name).__module__.removeprefix("sklearn_vsc.")
    for name in sklearn_vsc.__all__
    if isinstance(getattr(sklearn_vsc, name), type)
}


def _imports(path):
    """Modules that a file imports anywhere in it, with their full names."""
    package = ["sklearn_vsc", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            # What is imported may itself be a module: `from . import bounds`.
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _files(floor):
    module, folder = PACKAGE / f"{floor}.py", PACKAGE / floor
    return [module] if module.exists() else sorted(folder.rglob("*.py"))


def _split(floor):
    """Imports of a floor: floors of the package, and other libraries."""
    inside, outside = set(), set()
    for path in _files(floor):
        for name in _imports(path):
            top, *rest = name.split(".")
            if top == "sklearn_vsc":
                inside.add(rest[0] if rest else "")
            elif top not in sys.stdlib_module_names:
                outside.add(top)
    return inside, outside


@pytest.mark.parametrize("floor", FLOORS)
def test_floor_stays_below(floor):
    assert _files(floor)
    inside, outside = _split(floor)
    assert inside <= FLOORS[floor]
    assert "torch" in outside
    assert outside <= LIBRARIES[floor]


def test_metrics_need_no_model():
    """What they want to know of an estimator they ask it."""
    inside, outside = _split("metrics")
    assert inside == {"_array_api", "_arrays", "_images", "_numbers", "metrics", "solvers"}
    assert outside == {"numpy", "scipy", "sklearn", "torch"}
    assert _split("_images") == (set(), {"numpy"})
    assert _split("_numbers") == (set(), set())


def test_estimators_do_not_import_each_other():
    assert len(ESTIMATORS) >= 2
    for estimator in ESTIMATORS:
        inside, _ = _split(estimator)
        assert inside
        assert not inside & (ESTIMATORS - {estimator})


def test_nothing_below_imports_an_estimator():
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        tops = {name.split(".")[1] for name in _imports(path) if name.startswith("sklearn_vsc.")}
        assert not tops & (ESTIMATORS - {module}), path


def test_imports_are_read_as_python_reads_them(tmp_path, monkeypatch):
    """A test that sees no import would pass on anything."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "latents").mkdir()
    path = tmp_path / "latents" / "one.py"
    path.write_text(
        "import torch.nn\nfrom . import two\nfrom ._base import Draws\nfrom .. import bounds\n"
        "def f():\n    from ..model import Heads\n    from sklearn.utils import check_array\n"
    )
    assert set(_imports(path)) == {
        "torch.nn",
        "sklearn_vsc.latents.two",
        "sklearn_vsc.latents._base.Draws",
        "sklearn_vsc._models.bounds",
        "sklearn_vsc._models.latent_variable.Heads",
        "sklearn.utils.check_array",
    }


IMPORT = """
import sys
import torch

def refuse(*args, **kwargs):
    raise AssertionError("importing the package asked for CUDA")

for name in ("_lazy_init", "init", "is_available", "device_count", "current_device"):
    setattr(torch.cuda, name, refuse)
import sklearn_vsc
assert not torch.cuda.is_initialized()
print(sorted({name.split(".")[0] for name in sys.modules} & {"matplotlib", "pandas", "polars"}))
"""


def test_import_starts_no_cuda_and_needs_no_optional_library():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "matplotlib" not in done.stdout


def test_public_names_are_there():
    assert len(set(sklearn_vsc.__all__)) == len(sklearn_vsc.__all__) >= 4
    for name in sklearn_vsc.__all__:
        assert getattr(sklearn_vsc, name).__doc__
