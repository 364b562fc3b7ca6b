"""The versions in pyproject.toml agree with those in the constraints files."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file):
    """Names and versions of a constraints file."""
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_oldest_constraints_are_the_floors(project):
    extras = project["optional-dependencies"]
    floors = {}
    for requirement in [*project["dependencies"], *extras["plot"], *extras["test"]]:
        name, floor = re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement).groups()
        floors[name] = floor
    assert pins("constraints-oldest.txt") == floors


def test_every_development_pin_is_at_least_its_floor(project):
    pinned = {normal(name): version for name, version in pins("constraints.txt").items()}
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["docs"]]:
        name, floor = re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement).groups()
        assert normal(name) in pinned, f"{name} has no pin in constraints.txt"
        version = [int(part) for part in re.findall(r"\d+", pinned[normal(name)])]
        assert version >= [int(part) for part in floor.split(".")], name
