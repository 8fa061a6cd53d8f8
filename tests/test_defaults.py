"""Default settings are those that the papers give and that the documentation tells."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from foible import attacks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "attacks.md"

PUBLISHED: dict[str, dict[str, float]] = {
    "apgd": {"steps": 100, "restarts": 1},  # Croce and Hein 2020
    "apgd_targeted": {"steps": 100, "targets": 9},
    "cw": {"searches": 9},  # Carlini and Wagner 2017
    "deepfool": {"steps": 50, "overshoot": 0.02},  # Moosavi-Dezfooli et al. 2016
    "ead": {"searches": 9},  # Chen et al. 2018
    "fab": {"steps": 100},  # Croce and Hein 2020
    "fab_targeted": {"steps": 100, "targets": 9},
    "mim": {"decay": 1.0},  # Dong et al. 2018
    "nes": {"samples": 50, "sigma": 1e-3, "momentum": 0.9},  # Ilyas et al. 2018
    "simba": {"step": 0.2, "low": 1 / 8},  # Guo et al. 2019: 28 of 224 frequencies
    "spsa": {"samples": 128, "delta": 0.01},  # Uesato et al. 2018
    "square": {"queries": 5000, "p": 0.8},  # as in AutoAttack
    "substitute": {"rounds": 6, "step": 0.1},  # Papernot et al. 2017
    "Teaching": {"epochs": 10},
}


def defaults(name: str) -> dict[str, object]:
    made = inspect.signature(getattr(attacks, name)).parameters
    return {key: parameter.default for key, parameter in made.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name: str) -> None:
    given = defaults(name)
    assert {key: given[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def told() -> dict[str, list[int]]:
    """The last column of the page's table of smallest changes: steps, runs or targets."""
    text = PAGE.read_text(encoding="utf-8")
    table = re.search(r"^\| recipe .* steps by default \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert table is not None
    rows = [line.strip("| \n").split(" | ") for line in table[1].splitlines()]
    return {row[0].strip("`"): sorted(map(int, re.findall(r"\d+", row[-1]))) for row in rows}


@pytest.mark.parametrize(("name", "numbers"), told().items())
def test_the_page_tells_the_steps_that_are_taken(name: str, numbers: list[int]) -> None:
    given = defaults(name)
    counts = ("steps", "searches", "iterations", "targets")
    assert sorted(given[key] for key in counts if key in given) == numbers
