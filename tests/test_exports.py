"""Every public name is there, stays there, and is not hidden by a file of its name."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import foible

ROOT = Path(__file__).resolve().parents[1]


def names_of_modules(packages_only: bool = False) -> Iterator[str]:
    yield "foible"
    for found in pkgutil.walk_packages(foible.__path__, "foible."):
        if (found.ispkg or not packages_only) and not found.name.endswith(".__main__"):
            yield found.name


PACKAGES = sorted(names_of_modules(packages_only=True))


def exports() -> list[tuple[str, str]]:
    return [(p, n) for p in PACKAGES for n in getattr(importlib.import_module(p), "__all__", ())]


@pytest.fixture(scope="module")
def before_and_after() -> dict[tuple[str, str], tuple[object, object]]:
    """Each export as it is at first, and again after every module has been imported."""
    first = {(p, n): getattr(importlib.import_module(p), n, None) for p, n in exports()}
    for name in names_of_modules():
        importlib.import_module(name)
    return {
        (p, n): (value, getattr(importlib.import_module(p), n, None))
        for (p, n), value in first.items()
    }


def test_the_packages_export_something() -> None:
    for package in ("foible", "foible.attacks", "foible.explain", "foible.zoo"):
        assert package in PACKAGES
        assert getattr(importlib.import_module(package), "__all__", ()), f"{package} has no __all__"


@pytest.mark.parametrize(("package", "name"), exports())
def test_an_export_resolves_twice_and_is_no_module(package, name, before_and_after) -> None:
    first, second = before_and_after[package, name]
    assert first is not None, f"{package}.{name} is in __all__ and nowhere else"
    assert first is second, f"{package}.{name} changed when all modules were imported"
    if package == "foible" and f"foible.{name}" in PACKAGES:
        assert isinstance(first, ModuleType)  # foible.attacks and its like are rooms, and meant
    else:
        assert not isinstance(first, ModuleType)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_bears_the_name_of_an_export(package: str) -> None:
    module = importlib.import_module(package)
    files = {found.name for found in pkgutil.iter_modules(module.__path__)}
    rooms = {p.removeprefix("foible.") for p in PACKAGES} if package == "foible" else set()
    assert (files & set(getattr(module, "__all__", ()))) - rooms == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_export_is_named_twice(package: str) -> None:
    names = list(getattr(importlib.import_module(package), "__all__", ()))
    assert len(names) == len(set(names))


def test_the_version_is_the_one_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert foible.__version__ == project["version"]
