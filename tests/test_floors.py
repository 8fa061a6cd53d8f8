"""Imports go down only, and the lower floors import torch and numpy only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
FLOORS = {
    "core": 1,
    "parts": 2,
    "models": 2,
    "figures": 2,
    "explain": 3,
    "attacks": 4,
    "defend": 5,
    "detect": 6,
    "audit": 7,
    "serve": 8,
    "cli": 9,
}
PLAIN = ("core", "parts", "explain", "attacks")
"""Packages that import torch and numpy only, besides the standard library."""
# Extras: imported inside one function of one file, with an error that says how to install them.
EXTRAS = {
    *(
        ("foible.explain.relevance", f"zennit.{name}")
        for name in (
            "canonizers.SequentialMergeBatchNorm",
            "composites.LayerMapComposite",
            "layer.Sum",
            "rules.AlphaBeta",
            "rules.Epsilon",
            "rules.Gamma",
            "rules.Norm",
            "rules.Pass",
            "rules.ZPlus",
            "types.Activation",
            "types.AvgPool",
            "types.Convolution",
        )
    ),
    *(
        ("foible.explain.mimics", f"sklearn.{name}")
        for name in (
            "base.clone",
            "base.is_regressor",
            "ensemble.GradientBoostingRegressor",
            "linear_model.LinearRegression",
            "multioutput.MultiOutputRegressor",
            "tree.DecisionTreeRegressor",
            "tree.export_text",
        )
    ),
    ("foible.explain.masking_nets", "safetensors.torch"),
    ("foible.explain.removal", "skimage.segmentation.quickshift"),
    ("foible.explain.shapley_trees", "shap.TreeExplainer"),
    ("foible.parts.searches.lbfgs", "scipy.optimize.minimize"),
}
ZOO_MAY_IMPORT = ("foible.core.errors",)
ZOO_PACKAGES = ("torch", "numpy", "safetensors")


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every module or name that a source imports, at any depth, as (line, full dotted name)."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"


def room(name: str) -> str:
    """The package of foible that a dotted name lies in: "" is foible itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def faults(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports that it may not."""
    found, here = [], room(module)
    for line, name in imported(source, module, is_package):
        if (module, name) not in EXTRAS and (why := refused(here, name)):
            found.append(f"{module}:{line} imports {name}: {why}")
    return found


def refused(here: str, name: str) -> str | None:
    top = name.split(".")[0]
    if top != "foible":
        if top in sys.stdlib_module_names:
            return None
        if here in PLAIN and top not in ("torch", "numpy"):
            return f"{here} imports torch and numpy only"
        if here == "zoo" and top not in ZOO_PACKAGES:
            return f"zoo imports {', '.join(ZOO_PACKAGES)} only"
        return None
    there = room(name)
    if here in ("", there):
        return None
    if here == "zoo":
        fine = any(name == m or name.startswith(f"{m}.") for m in ZOO_MAY_IMPORT)
        return None if fine else f"zoo stands beside: it imports {ZOO_MAY_IMPORT[0]} only"
    if there == "zoo":
        return None if FLOORS[here] >= FLOORS["audit"] else "only audit and above use the zoo"
    if there not in FLOORS:
        # The root is above all floors; only the verbs may ask it, for example for its version.
        return None if FLOORS[here] >= FLOORS["audit"] else "foible itself is above every floor"
    if FLOORS[there] >= FLOORS[here]:
        return f"{there} is floor {FLOORS[there]}, {here} is floor {FLOORS[here]}"
    return None


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((SRC / "foible").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value)[-40:])
def test_imports_go_down_only(module: str, path: Path) -> None:
    assert faults(path.read_text(), module, path.name == "__init__.py") == []


def test_every_package_has_a_floor() -> None:
    rooms = {p.name for p in (SRC / "foible").iterdir() if p.is_dir() and p.name[0] not in "_."}
    assert rooms - set(FLOORS) == {"zoo"}
    assert "core" in rooms


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foible.core.oracle", "from foible.attacks import pgd"),
        ("foible.core.oracle", "def f():\n    from ..attacks.gradient import pgd"),
        ("foible.core.oracle", "import foible"),
        ("foible.core.oracle", "from foible import Linf"),
        ("foible.core.oracle", "import scipy.optimize"),
        ("foible.explain.path", "from foible import attacks"),
        ("foible.explain.path", "import matplotlib"),
        ("foible.parts.objectives", "from foible.models.twins import softplus"),
        ("foible.attacks.gradient", "from foible.zoo import load"),
        ("foible.defend.trainer", "import foible.detect.head"),
        ("foible.serve.app", "from foible.cli import main"),
        ("foible.zoo.bundled", "from foible.core.oracle import Oracle"),
        ("foible.zoo.bundled", "import matplotlib"),
    ],
)
def test_an_import_that_goes_up_is_found(module: str, source: str) -> None:
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foible.core.oracle", "import math, torch\nfrom .errors import InputError"),
        ("foible.attacks.gradient", "from foible.explain import saliency\nimport numpy as np"),
        ("foible.audit.runner", "from foible import zoo\nfrom ..attacks import pgd\nimport rich"),
        ("foible.zoo.bundled", "from foible.core.errors import InputError\nimport safetensors"),
        ("foible.cli.main", "import foible"),
    ],
)
def test_an_import_that_goes_down_is_fine(module: str, source: str) -> None:
    assert faults(source, module) == []


def test_a_relative_import_of_a_package_is_resolved() -> None:
    found = list(imported("from .base import x\nfrom . import y", "foible.attacks", True))
    assert found == [(1, "foible.attacks.base.x"), (2, "foible.attacks.y")]
