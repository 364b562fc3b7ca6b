"""What `import sklearn_vsc` provides: classes, modules on first use, versions."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import sklearn_vsc
from sklearn_vsc import _show_versions, show_versions

ROOT = Path(__file__).parents[2]
PUBLIC_MODULES = [
    "callbacks",
    "datasets",
    "inspection",
    "latents",
    "likelihoods",
    "metrics",
    "networks",
    "solvers",
]
ESTIMATOR_MODULES = ["dictionary", "scvae", "sparse_vae", "thresholded"]


def run(program):
    """Run a program in a new interpreter; return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------- names


def test_dir_lists_public_names_and_nothing_else():
    names = dir(sklearn_vsc)
    assert names == sorted({*sklearn_vsc.__all__, *PUBLIC_MODULES})
    assert {"FISTADictionaryLearner", "ThresholdedVSC", "SparseVAE", "SCVAE"} < set(names)
    assert {"load", "show_versions", "__version__"} < set(names)
    for name in names:
        assert getattr(sklearn_vsc, name).__doc__


def test_internal_modules_are_importable_but_not_listed():
    modules = {module.name for module in pkgutil.iter_modules(sklearn_vsc.__path__)}
    assert modules > {*PUBLIC_MODULES, *ESTIMATOR_MODULES}
    for name in modules - set(PUBLIC_MODULES):
        assert name not in dir(sklearn_vsc)
    for name in ESTIMATOR_MODULES:
        module = importlib.import_module(f"sklearn_vsc.{name}")
        assert getattr(sklearn_vsc, name) is module


def test_star_import_gives_no_modules():
    """They would shadow scikit-learn's modules of the same names."""
    assert not set(sklearn_vsc.__all__) & set(PUBLIC_MODULES)
    names = {}
    exec("from sklearn_vsc import *", names)
    assert set(names) - {"__builtins__"} == set(sklearn_vsc.__all__)


def test_public_modules_come_with_the_package():
    program = f"""
import sys
import sklearn_vsc
for name in {PUBLIC_MODULES}:
    module = getattr(sklearn_vsc, name)
    assert module is sys.modules["sklearn_vsc." + name] is vars(sklearn_vsc)[name], name
from sklearn_vsc import {", ".join(PUBLIC_MODULES)}
assert metrics is sklearn_vsc.metrics
"""
    run(program)


def test_modules_that_estimators_do_not_need_are_imported_on_first_use():
    program = """
import sys
import sklearn_vsc
lazy = ["callbacks", "datasets", "inspection", "metrics"]
early = [name for name in lazy if f"sklearn_vsc.{name}" in sys.modules]
assert not early, early
dir(sklearn_vsc)
hasattr(sklearn_vsc, "no_such_name")
assert not [name for name in lazy if f"sklearn_vsc.{name}" in sys.modules]
sklearn_vsc.metrics.psnr
print([name for name in lazy if f"sklearn_vsc.{name}" in sys.modules])
"""
    assert run(program).strip() == "['metrics']"


def test_unknown_names():
    with pytest.raises(AttributeError, match=r"module 'sklearn_vsc' has no attribute 'datsets'"):
        _ = sklearn_vsc.datsets
    with pytest.raises(ImportError, match="datsets"):
        exec("from sklearn_vsc import datsets")


def test_type_checkers_see_the_same_modules():
    """What ``TYPE_CHECKING`` imports is what ``__getattr__`` imports."""
    tree = ast.parse(Path(sklearn_vsc.__file__).read_text(encoding="utf-8"))
    [block] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    seen = [alias.asname for node in block.body for alias in node.names]
    assert seen == PUBLIC_MODULES == list(sklearn_vsc._PUBLIC_MODULES)


def test_every_public_name_has_a_page():
    """Names of the package, and of the modules whose names docs/api.rst lists one by one."""
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^   ([A-Za-z_.]+)$", page, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(sklearn_vsc.__all__) - {"__version__"} <= set(listed)
    for name in listed:
        module, _, attribute = name.rpartition(".")
        module = importlib.import_module(f"sklearn_vsc.{module}".rstrip("."))
        assert hasattr(module, attribute), name
    for name in ("callbacks", "datasets", "inspection", "latents", "likelihoods"):
        module = importlib.import_module(f"sklearn_vsc.{name}")
        assert {f"{name}.{attribute}" for attribute in module.__all__} <= set(listed)
    for name in PUBLIC_MODULES:
        assert any(entry.split(".")[0] == name for entry in listed), name


# ----------------------------------------------------------------------------------- versions


@pytest.fixture
def shown(capsys):
    show_versions()
    return capsys.readouterr().out


def test_versions_start_with_the_package_and_python(shown):
    assert shown.splitlines()[0] == f"sklearn-vsc: {sklearn_vsc.__version__}"
    assert re.search(rf"Python: {re.escape(sys.version.split()[0])}\b", shown)
    assert re.search(r"CPUs: [1-9]\d*$", shown, re.MULTILINE)


def test_versions_name_every_dependency_and_extra(shown):
    """All in pyproject.toml, except the tools for developing the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"]]
    for extra in extras.keys() - {"test", "docs"}:
        wanted += extras[extra]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted}
    assert names == {*_show_versions._REQUIRED, *_show_versions._EXTRAS}
    for name in names:
        assert re.search(rf"^ *{re.escape(name)}: \S", shown, re.MULTILINE), name
    assert re.search(rf"^ *scikit-learn: {re.escape(version('scikit-learn'))}$", shown, re.M)


def test_versions_show_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(_show_versions, "_EXTRAS", ("no-such-distribution", "dask"))
    show_versions()
    assert re.search(r"^ *no-such-distribution: not installed$", capsys.readouterr().out, re.M)


def test_versions_show_devices_and_threads(shown):
    import torch

    assert re.search(rf"torch build: {re.escape(str(torch.__version__))}$", shown, re.M)
    assert re.search(rf"^ *torch: {torch.get_num_threads()} threads?$", shown, re.M)
    assert re.search(r"^ *CUDA: (not in this build of torch|\d+\.\d+.*)$", shown, re.M)
    assert re.search(r"^ *numba threading layer: \w+", shown, re.M)
    assert re.search(r"^ *blas \(\w+\): \d+ threads?, version", shown, re.M)


def test_versions_start_nothing():
    """Neither numba's threads nor the import of an optional library."""
    program = """
import sys
import sklearn_vsc
before = set(sys.modules)
sklearn_vsc.show_versions()
optional = {"accelerate", "dask", "distributed", "matplotlib", "pandas", "polars", "torchmetrics"}
assert not optional & (set(sys.modules) - before), optional & (set(sys.modules) - before)
"""
    assert "numba threading layer: not started" in run(program)


def test_versions_contain_no_paths(shown):
    assert str(Path.home()) not in shown and sys.prefix not in shown
    assert not re.search(r"(^|[\s'\"])(/|[A-Z]:\\)\w", shown)
