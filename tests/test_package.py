"""The package is whole, light to import, and its rooms stand on each other in one direction only."""

import ast
import doctest
import functools
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sessiongym

ROOT = Path(__file__).parents[1]

FLOORS = [
    {"errors"},
    {"interrupts", "progress", "scalars"},
    {"envs"},
    {"nn"},
    {"agents", "baselines"},
    {"evaluate"},
    {"describe", "commands"},
    {"cli"},
    {"__main__"},
]
"""Rooms from the ground up; a module imports from its own room and from floors below, siblings never."""

ROOMS = set().union(*FLOORS)


@functools.cache
def tree_packages() -> dict[str, Path]:
    """Every folder of the repository that is a package, by import name; hidden and outer folders are none."""
    packages = {"sessiongym": ROOT}
    for file in ROOT.rglob("__init__.py"):
        parts = file.parent.relative_to(ROOT).parts
        inside = all((ROOT.joinpath(*parts[: i + 1]) / "__init__.py").exists() for i in range(len(parts)))
        if parts and inside:
            packages[".".join(("sessiongym", *parts))] = file.parent
    return packages


def source_files() -> list[Path]:
    return sorted(file for folder in tree_packages().values() for file in folder.glob("*.py"))


def imports(file: Path) -> list[ast.Import | ast.ImportFrom]:
    """All imports of a file, those inside functions and of type checking included."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def rooms_of(node: ast.Import | ast.ImportFrom, file: Path) -> set[str]:
    """The rooms that a relative import reaches; ``from . import x`` names them itself."""
    if isinstance(node, ast.Import) or node.level == 0:
        return set()
    package = file.parent.relative_to(ROOT).parts
    base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
    base = tuple(part for part in base if part)
    return {base[0]} if base else {alias.name for alias in node.names}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_pyproject_lists_exactly_the_packages_of_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == listed and set(listed) == set(tree_packages())


def test_every_module_has_a_floor():
    assert {room_of(file) for file in source_files()} - {"__init__"} == ROOMS


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_within_the_package_are_relative_and_point_down(file):
    nodes = imports(file)
    absolute = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    absolute |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    assert not {name for name in absolute if name.split(".")[0] == "sessiongym"}, "use relative imports"
    if file == ROOT / "__init__.py":
        return
    here = room_of(file)
    floor = next(i for i, rooms in enumerate(FLOORS) if here in rooms)
    allowed = {here}.union(*FLOORS[:floor])
    reached = set().union(*(rooms_of(node, file) for node in nodes))
    assert reached <= allowed, f"{here} must not import {sorted(reached - allowed)}"


@pytest.mark.parametrize("module", ["sessiongym", "sessiongym.cli", "sessiongym.agents.config", "sessiongym.evaluate"])
def test_importing_it_stays_light(module, tmp_path):
    heavy = ("torch", "numba", "pandas", "pyarrow", "stable_baselines3", "tensorboard", "safetensors")
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_public_names_are_there_and_nothing_else():
    for name in ("InputError", "PreparedData", "SessionBatch", "SessionLog", "logged"):
        assert name in dir(sessiongym) and getattr(sessiongym, name).__name__ == name
    for package in ("sessiongym.envs", "sessiongym.evaluate"):
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
        assert all(getattr(module, name) is not None for name in names)
        with pytest.raises(AttributeError, match="nothing_of_that_name"):
            getattr(module, "nothing_of_that_name")  # noqa: B009 - pyright knows that it is not there
    with pytest.raises(AttributeError, match=r"module 'sessiongym' has no attribute 'nothing_of_that_name'"):
        getattr(sessiongym, "nothing_of_that_name")  # noqa: B009


def module_names() -> list[str]:
    """All modules but `__main__`, which would run the command."""
    packages = tree_packages().items()
    found = {f"{package}.{module.name}" for package, folder in packages for module in pkgutil.iter_modules([folder])}
    return sorted({"sessiongym", *found} - {"sessiongym.__main__"})


@pytest.mark.parametrize("name", module_names())
def test_the_module_imports_and_its_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def tracked_files() -> list[Path]:
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a git clone: nothing says which files belong to the project")
    return [ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_on_somebodys_machine():
    # Put together here, or this file would name them itself.
    places = "|".join(("home", "root", "work", "tmp", "Users", "mnt", "var"))
    pattern = re.compile(rf"""(?:^|[\s"'(=:`])/(?:{places})/[\w.]""")
    found = []
    for file in tracked_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), start=1)
        found += [f"{file.relative_to(ROOT)}:{number}" for number, line in lines if pattern.search(line)]
    assert found == []
