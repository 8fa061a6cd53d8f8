"""docs/survey.md holds all 133 rows, and what it says works is there, tested and measured."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LAST = {"A": 25, "B": 33, "C": 5, "D": 7, "L": 5, "N": 5, "P": 3, "R": 11, "S": 24, "T": 13, "X": 5}
TWICE = {"L2": 2, "P1": 2}  # the survey comes back to these under another heading


class Row(NamedTuple):
    row: str
    system: str
    names: tuple[str, ...]
    state: str
    test: str
    figure: str
    planned: str


def read(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines():
        if not line.startswith("|") or line.startswith(("| row |", "|---")):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 7, f"seven cells are wanted: {line}"
        names = tuple(re.findall(r"`([^`]+)`", cells[2]))
        rows.append(Row(cells[0], cells[1], names, *(c.strip("`") for c in cells[3:])))
    return rows


ROWS = read((ROOT / "docs" / "survey.md").read_text(encoding="utf-8"))
WORKING = [pytest.param(row, id=row.row) for row in ROWS if row.state == "works"]


def resolve(name: str) -> Any:
    """The thing of a dotted name; ImportError or AttributeError when there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:cut]).startswith(error.name):
                continue
            raise
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def has_test(place: str) -> bool:
    """Whether path::function names a function (or a method, path::Class::function)."""
    path, _, names = place.partition("::")
    name = names.split("::")[-1].split("[")[0]
    if not name.startswith("test") or not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(isinstance(n, ast.FunctionDef) and n.name == name for n in ast.walk(tree))


def keys(value: Any) -> set[str]:
    """Every key of a JSON value, and every "row" or "name" that a list item gives itself."""
    if isinstance(value, dict):
        own = {str(value[k]) for k in ("row", "name") if k in value}
        return own | set(value) | {k for v in value.values() for k in keys(v)}
    return {k for item in value for k in keys(item)} if isinstance(value, list) else set()


def has_row(place: str, folder: Path = RESULTS) -> bool:
    """Whether file#row is a key of a JSON file, or the first cell of a row of a table."""
    name, _, row = place.partition("#")
    path = folder / name
    if not row or not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return row in keys(json.loads(text))
    return re.search(rf"^\|\s*`?{re.escape(row)}`?\s*\|", text, re.MULTILINE) is not None


def test_all_133_rows_are_there_and_none_twice() -> None:
    assert len(ROWS) == 133
    twice = [k for k, n in Counter((r.row, r.system) for r in ROWS).items() if n > 1]
    assert twice == []
    ids = Counter(part for r in ROWS for part in re.split(r"[ /]", r.row))
    wanted = {f"{letter}{i}" for letter, last in LAST.items() for i in range(1, last + 1)}
    assert set(ids) == wanted
    assert {k: n for k, n in ids.items() if n > TWICE.get(k, 1)} == {}


def test_every_row_has_a_state_and_a_name() -> None:
    assert {r.state for r in ROWS} <= {"works", "planned"}
    assert [r.row for r in ROWS if not r.names] == []
    assert [n for r in ROWS for n in r.names if not n.startswith("foible.")] == []


def test_a_planned_row_claims_no_test_and_no_figure() -> None:
    assert [r.row for r in ROWS if r.state == "planned" and (r.test or r.figure)] == []


@pytest.mark.parametrize("row", WORKING)
def test_a_working_row_has_its_name(row: Row) -> None:
    assert all(callable(resolve(name)) for name in row.names)


@pytest.mark.parametrize("row", WORKING)
def test_a_working_row_has_its_test(row: Row) -> None:
    missing = [place for place in re.split(r"`?, `?", row.test) if not has_test(place)]
    assert missing == [], f"{row.row} ({row.system}): fill the cell `test` with path::function"


@pytest.mark.parametrize("row", WORKING)
def test_a_working_row_has_its_figure(row: Row) -> None:
    missing = [place for place in re.split(r"`?, `?", row.figure) if not has_row(place)]
    assert missing == [], f"{row.row} ({row.system}): fill the cell `figure` with file#row"


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    assert resolve("foible.zoo.load").__name__ == "load"
    with pytest.raises((ImportError, AttributeError)):
        resolve("foible.zoo.nothing")
    assert has_test("tests/test_survey.py::test_what_does_not_exist_is_found")
    assert not has_test("tests/test_survey.py::test_nothing")
    assert not has_test("tests/nowhere.py::test_what")
    assert not has_test("TODO")
    (tmp_path / "a.md").write_text("| row | value |\n|---|---|\n| A1 | 0.3 |\n")
    (tmp_path / "b.json").write_text('{"rows": [{"row": "A2", "value": 1}], "A3": {}}')
    assert has_row("a.md#A1", tmp_path) and not has_row("a.md#A", tmp_path)
    assert has_row("b.json#A2", tmp_path) and has_row("b.json#A3", tmp_path)
    assert not has_row("b.json#A1", tmp_path) and not has_row("TODO", tmp_path)
