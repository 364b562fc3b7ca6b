"""The layers of the package: which may import which, length of class chains, cost of import."""

import ast
import inspect
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sklearn_vsc
from sklearn_vsc import SCVAE, FISTADictionaryLearner, SparseCoder, SparseVAE, ThresholdedVSC

PACKAGE = Path(sklearn_vsc.__file__).parent
ESTIMATORS = (FISTADictionaryLearner, SparseCoder, ThresholdedVSC, SparseVAE, SCVAE)

# The layers from the bottom to the top. A module imports from its own layer and from those below,
# never from those above. A layer is a list of modules and folders.
LAYERS = [
    ["_version", "_show_versions"],
    ["latents", "solvers", "_rows"],
    ["likelihoods", "networks", "_persistence", "metrics", "inspection", "datasets"],
    ["_models"],
    ["_inference"],
    ["_training"],
    ["_base"],
    ["dictionary", "sparse_coder", "thresholded", "sparse_vae", "scvae", "callbacks"],
    ["loading"],
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
NUMERICS = {"numpy", "scipy", "torch"}
# Other libraries that a layer may import; modules that are not listed may import any dependency.
LIBRARIES = {
    "latents": NUMERICS,
    "likelihoods": NUMERICS,
    "networks": NUMERICS,
    "solvers": NUMERICS | {"llvmlite", "numba"},
    "_models": NUMERICS,
    # Some algorithms for coding rows are those of scikit-learn.
    "_inference": NUMERICS | {"sklearn"},
    "metrics": NUMERICS | {"sklearn"},
}
# Modules of the same layer that a module must not import.
NEVER = {
    "solvers": {"latents", "_rows"},
    "latents": {"solvers", "_rows"},
    "metrics": {"_persistence", "datasets", "inspection", "likelihoods", "networks"},
    "datasets": {"_persistence", "inspection", "likelihoods", "metrics", "networks"},
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


def _modules():
    """Files of the package by the full names of their modules, except the top-level `__init__`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["sklearn_vsc", *path.relative_to(PACKAGE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        if len(parts) > 1:
            yield ".".join(parts), path


def _top(name):
    """The top-level module or folder that a full name belongs to."""
    return name.split(".")[1]


def _imported_modules(path, modules):
    """Modules of the package that a file imports."""
    for name in _imports(path):
        parts = name.split(".")
        while parts and ".".join(parts) not in modules:
            parts.pop()
        if parts:
            yield ".".join(parts)


MODULES = dict(_modules())
TOPS = sorted({_top(name) for name in MODULES})


def test_every_module_has_a_layer():
    assert set(TOPS) - {"_versions"} == set(LAYER_OF)
    assert len(LAYERS) <= 9


@pytest.mark.parametrize("top", sorted(LAYER_OF))
def test_imports_run_downwards(top):
    inside, outside = set(), set()
    for name, path in MODULES.items():
        if _top(name) != top:
            continue
        for found in _imports(path):
            first = found.split(".")[0]
            if first == "sklearn_vsc":
                inside.add(_top(found))
            elif first not in sys.stdlib_module_names:
                outside.add(first)
    above = {other for other in inside if LAYER_OF[other] > LAYER_OF[top]}
    assert not above
    assert not inside & NEVER.get(top, set())
    assert outside <= LIBRARIES.get(top, outside)


def test_there_is_no_import_circle():
    graph = {
        name: {other for other in _imported_modules(path, MODULES) if other != name}
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 200
    # A package's `__init__` gathers its modules: importing one of them is not a circle.
    for name, others in graph.items():
        graph[name] = {other for other in others if not name.startswith(f"{other}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_estimators_do_not_import_each_other():
    homes = {estimator.__module__ for estimator in ESTIMATORS}
    assert len(homes) == len(ESTIMATORS)
    for home in homes:
        assert not homes & set(_imported_modules(MODULES[home], MODULES)) - {home}


def _own_classes(estimator):
    return [c for c in estimator.__mro__ if c.__module__.startswith("sklearn_vsc")]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_class_chains_are_short_and_rarely_call_subclasses(estimator):
    """A reader of one class needs to know few others."""
    chain = _own_classes(estimator)
    assert len(chain) <= 3
    owner = {}
    for owned in reversed(chain):
        for name, value in vars(owned).items():
            if callable(value) or isinstance(value, (property, staticmethod, classmethod)):
                owner[name] = chain.index(owned)
    upwards = []
    for rank, owned in enumerate(chain):
        for node in ast.walk(ast.parse(inspect.getsource(owned))):
            of_self = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"
            if of_self and owner.get(node.attr, rank) < rank:
                upwards.append(f"{owned.__name__}: {node.attr}")
    assert 0 < len(upwards) <= 4, upwards


def test_no_code_checks_the_class_of_a_model():
    """Methods of models replace `assert isinstance` in models, training and inference."""
    for name, path in MODULES.items():
        if _top(name) not in ("_models", "_training", "_inference", "_base"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asserted = isinstance(node, ast.Assert) and isinstance(node.test, ast.Call)
            assert not (asserted and getattr(node.test.func, "id", "") == "isinstance"), name
            if name != "sklearn_vsc._models.sparse_autoencoder" and isinstance(node, ast.Call):
                kinds = [getattr(arg, "id", "") for arg in node.args[1:]]
                asked = getattr(node.func, "id", "") == "isinstance"
                assert not (asked and "SparseAutoencoder" in kinds), name


def test_imports_are_read_like_python_reads_them(tmp_path, monkeypatch):
    """The tests above would pass on anything if they found no imports."""
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
        "sklearn_vsc.bounds",
        "sklearn_vsc.model.Heads",
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


def test_public_names_exist():
    assert len(set(sklearn_vsc.__all__)) == len(sklearn_vsc.__all__) >= 4
    for name in sklearn_vsc.__all__:
        assert getattr(sklearn_vsc, name).__doc__
