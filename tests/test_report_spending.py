"""What the report says of costs, cascades, who set the curve and what each attack adds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_helpers import mlp, table
from report_fixture import make_run
from safetensors.numpy import load_file, save_file
from test_report import Page

from foible.audit import Plan
from foible.audit import run as audit_run
from foible.audit.reading import Run, read_run
from foible.audit.reporting import write_report
from foible.audit.spending import leaders, smallest, spending


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("spent") / "two")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(folder).read_text("utf-8")


def limit(run: Run, model: str, title: str) -> dict[str, Any]:
    part = next(p for p in spending(run) if p["name"] == model)
    return next(p for p in part["limits"] if p["title"].replace("\u00a0", " ") == title)


def fell(run: Run, model: str, name: str) -> np.ndarray:
    cell = run.cell(model, name)
    success, distance = run.tensor(cell, "success"), run.tensor(cell, "distance")
    assert success is not None and distance is not None
    return success & (distance > 0)


def right(run: Run, model: str) -> int:
    cell = run.cell(model, "pgd-linf")
    assert cell is not None and cell.n is not None
    return cell.n - int(cell.detail["statuses"]["wrong"])


def test_calls_to_success_are_counted_over_what_was_right(folder: Path) -> None:
    run = read_run(folder)
    rows = {row["name"]: row for row in limit(run, "standard", "L∞ 0.1")["rows"]}
    assert list(rows) == ["strongest-linf", "square-linf"]  # only what ends at a success
    for name, row in rows.items():
        down = fell(run, "standard", name)
        calls = run.tensor(run.cell("standard", name), "calls")
        assert calls is not None
        n = right(run, "standard")
        assert row["share"] == pytest.approx(down.sum() / n)
        # By so many calls half have fallen, and by one call fewer they have not.
        assert (calls[down] <= row["half"]).sum() >= n / 2 > (calls[down] < row["half"]).sum()
        assert row["most"] == calls.max()
    assert rows["strongest-linf"]["half"] < rows["square-linf"]["half"]


def test_half_is_never_where_fewer_fell(folder: Path) -> None:
    rows = limit(read_run(folder), "hardened", "L∞ 0.1")["rows"]
    assert all((row["half"] is None) == (row["share"] < 0.5) for row in rows)
    assert any(row["half"] is None for row in rows)
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert len({row["dashes"] for row in rows}) == len(rows)


def test_what_an_attack_broke_alone(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder)
    names = ("fgsm", "pgd", "smoothgrad", "strongest", "square")
    table = np.stack([fell(run, "hardened", f"{name}-linf") for name in names])
    part = limit(run, "hardened", "L∞ 0.1")
    counts = (table & (table.sum(0) == 1)).sum(1)
    for name, count in zip(names, counts, strict=True):
        said = any(line.startswith(f"{name}-linf broke {count} sample") for line in part["alone"])
        assert said == (count > 0)
    gap = table.any(0).sum() - table.sum(1).max()
    assert f"the others add {gap} of {right(run, 'hardened')}" in part["bars_said"]


def test_noise_and_other_sizes_are_no_part_of_it(folder: Path) -> None:
    run = read_run(folder)
    part = next(p for p in spending(run) if p["name"] == "hardened")
    text = " ".join(p.get("bars", "") + str(p.get("rows")) for p in part["limits"])
    assert "random-" not in text and "deepfool-l2" not in text


def test_a_run_of_old_has_no_calls(folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "old")
    for path in (tmp_path / "old" / "tensors").iterdir():
        kept = load_file(path)
        if kept.pop("calls", None) is not None:
            save_file(kept, path)
    part = limit(read_run(tmp_path / "old"), "hardened", "L∞ 0.1")
    assert "rows" not in part and "bars" in part
    text = write_report(tmp_path / "old").read_text("utf-8")
    assert "Success over model calls" not in text and "What each attack adds" in text


def test_an_attack_that_broke_nothing_and_one_that_broke_all(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    for name, value in (("square-linf", False), ("strongest-linf", True)):
        cell = run.cell("standard", name)
        assert cell is not None
        path = tmp_path / "run" / "tensors" / f"{cell.key}.safetensors"
        kept = load_file(path)
        kept["success"] = np.full_like(kept["success"], value)
        kept["distance"] = np.maximum(kept["distance"], 1e-3 * value).astype(np.float64)
        save_file(kept, path)
    part = limit(read_run(tmp_path / "run"), "standard", "L∞ 0.1")
    assert part["bars_said"] == "strongest-linf broke all that fell to any."
    rows = {r["name"]: r for r in part["rows"]}
    assert rows["square-linf"]["share"] == 0 and rows["square-linf"]["half"] is None
    assert "square-linf" in write_report(tmp_path / "run").read_text("utf-8")


def test_stages_and_advice_stand_in_the_page(folder: Path, page: str) -> None:
    text = Page(page).text
    cell = read_run(folder).cell("hardened", "strongest-linf")
    assert cell is not None
    assert "Stages of strongest-linf" in text and "nearest class" in text
    assert cell.detail["advice"] + "." in text
    part = next(p for p in spending(read_run(folder)) if p["name"] == "hardened")
    first, second = part["cascades"][0]["rows"]
    stages = cell.detail["stages"]
    assert (first["forwards"], first["backwards"], second["forwards"]) == (6, 6, 30)
    assert first["each"] == pytest.approx(12 * stages[0]["tried"] / stages[0]["broke"])


def test_a_stage_that_broke_nothing_has_no_price(folder: Path) -> None:
    run = read_run(folder)
    cell = run.cell("standard", "strongest-linf")
    assert cell is not None
    stage = {"name": "last", "tried": 0, "broke": 0, "forwards": 0, "backwards": 0}
    bare = replace(cell, detail={**cell.detail, "stages": [stage, None], "advice": None})
    run = replace(run, cells={**run.cells, ("standard", "strongest-linf"): bare})
    part = next(p for p in spending(run) if p["name"] == "standard")["cascades"][0]
    assert [row["each"] for row in part["rows"]] == [None] and part["advice"] == ""
    assert part["rows"][0]["forwards"] is None  # tried on none: not a cost of zero


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["fmn", "fmn", "a"], "FMN up to 0.2, then a"),
        (["a", None, "a"], "a throughout"),
        (["a", "fmn", "a"], "a up to 0.1, then FMN up to 0.2, then a"),
        ([None, None, None], ""),
        (["a"], ""),
        (None, ""),
    ],
)
def test_who_set_the_points(folder: Path, named: Any, said: str) -> None:
    cell = read_run(folder).cell("standard", "curve-linf")
    assert cell is not None
    cell = replace(cell, detail={**cell.detail, "leader": named})
    assert leaders(cell, [0.1, 0.2, 0.3]) == said


def test_who_set_the_points_is_counted_where_it_changes_often(folder: Path) -> None:
    cell = read_run(folder).cell("standard", "curve-linf")
    assert cell is not None
    named = ["fmn", "a", "fmn", None, "a", "fmn"]
    cell = replace(cell, detail={**cell.detail, "leader": named})
    assert leaders(cell, [0.1 * i for i in range(1, 7)]) == "FMN at 3 of 5 sizes, a at 2 of 5 sizes"


def test_the_smallest_perturbation_of_each_model_and_norm(folder: Path, page: str) -> None:
    cell = read_run(folder).cell("standard", "curve-l2")
    assert cell is not None
    found = smallest(cell)
    assert found is not None
    assert found["quartiles"][2] is None and found["quartiles"][0] < found["quartiles"][1]
    assert found["set_by"] == "FMN 301, pgd-l2 60"
    assert smallest(replace(cell, detail={})) is None
    assert page.count("FMN 301, pgd-l2 60") == 2 and "none found" in page
    assert "Who set the points" in page


def test_the_new_figures_have_no_colours_of_their_own(page: str) -> None:
    charts = re.findall(r'<svg class="chart".*?</svg>', page, re.S)
    charts = [c for c in charts if re.search(r'aria-label="Share broken (against|by)', c)]
    assert len(charts) == 5  # two limits of two models; one limit has one attack only
    for chart in charts:
        assert re.search(r"var\(--series-[0-3], ?#", chart)
        bare = re.sub(r"var\(--[a-z0-9-]+, ?#[0-9a-f]{6}\)", "", chart)
        assert not re.findall(r"#[0-9a-f]{6}\b", bare)


def test_an_audit_with_a_cascade_fills_the_section(tmp_path: Path) -> None:
    attacks = (
        {"name": "pgd", "recipe": "pgd", "norm": "linf", "steps": 3, "stop": "success"},
        {"name": "most", "recipe": "strongest", "norm": "linf", "budget": 60},
    )
    plan = Plan(attacks=attacks, curves=("linf",), explanations=(), thesis=False, checks=False)
    held = audit_run(mlp(), table(), tmp_path, plan=plan)
    run = read_run(tmp_path)
    cell = run.cell("model", "most")
    assert cell is not None and cell.value is not None
    calls = run.tensor(cell, "calls")
    assert calls is not None and calls.sum() == (cell.forwards or 0) + (cell.backwards or 0)
    part = spending(run)[0]
    assert {row["name"] for row in part["limits"][0]["rows"]} == {"pgd", "most"}
    stages = part["cascades"][0]["rows"]
    assert sum(row["broke"] for row in stages) == cell.detail["statuses"]["fooled"]
    assert stages[0]["tried"] == cell.detail["success_n"]
    text = Page(held.report.read_text("utf-8")).text
    for said in ("Stages of most", "Success over model calls", "Who set the points", "Median"):
        assert said in text
