"""The report and the run folder behind it, without a browser."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_fixture import HOSTILE, VARIANTS, make_run
from safetensors.numpy import load_file, save_file

from foible.audit.reading import read_run
from foible.audit.reporting import write_report
from foible.audit.verdicts import tiles, worst_case
from foible.core.errors import LogError

SECTIONS = {"verdict", "thesis", "curves", "attacks", "examples", "stability", "checks"}
SECTIONS |= {"costs", "reading", "provenance"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a report; complains about tags that do not close."""

    VOID = ("meta", "img", "br", "line", "rect", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, options in VARIANTS.items():
        write_report(make_run(folder / name, **options))
    return folder


def read(runs: Path, name: str) -> str:
    return (runs / name / "report.html").read_text("utf-8")


def numbers(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="foible-data">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_one_closed_page_that_loads_nothing(runs: Path, name: str) -> None:
    text = read(runs, name)
    page = Page(text)
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(ids) >= SECTIONS
    assert not re.search(r"https?:|//www|@import|@font-face", text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not any(key.startswith("on") for key in attributes)
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
        target = attributes.get("href")
        assert target is None or (target[0] == "#" and target[1:] in ids)
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert len(text.encode()) < 3_000_000
    for reference in re.findall(r"url\(#([^)]*)\)", text):
        assert reference in ids


def test_the_same_folder_gives_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    import matplotlib

    shutil.copytree(runs / "two", tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red", "svg.hashsalt": None}):
        path = write_report(tmp_path / "copy")
        assert matplotlib.rcParams["font.size"] == 31.0
    assert path.read_bytes() == (runs / "two" / "report.html").read_bytes()
    assert [p.name for p in (tmp_path / "copy").iterdir() if p.name.startswith(".")] == []


def test_the_order_of_the_log_does_not_matter(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "copy")
    log = tmp_path / "copy" / "log.jsonl"
    log.write_text("".join(reversed(log.read_text().splitlines(keepends=True))))
    assert write_report(tmp_path / "copy").read_text("utf-8") == read(runs, "one")


def test_all_numbers_are_in_the_page(runs: Path) -> None:
    data = numbers(read(runs, "two"))
    lines = [json.loads(line) for line in (runs / "two" / "log.jsonl").read_text().splitlines()]
    assert data["log"] == lines
    assert data["plan"] == json.loads((runs / "two" / "plan.json").read_text())
    case = data["derived"]["models"]["hardened"]["worst_case"][0]
    names = ("fgsm", "pgd", "smoothgrad", "random", "strongest", "square")
    assert case["attacks"] == [f"{name}-linf" for name in names]


def test_text_of_the_run_is_escaped(runs: Path) -> None:
    text = read(runs, "hostile")
    page = Page(text)
    assert [t for t, _ in page.tags].count("script") == 1
    assert "<b>bold</b>" not in text
    for name in HOSTILE[:4]:
        assert name in page.text
    assert numbers(text)["plan"]["data"]["classes"] == HOSTILE


def test_text_inside_figures_is_escaped_and_no_formula(tmp_path: Path) -> None:
    make_run(tmp_path, models=("standard",))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text().replace('"SmoothGrad"', '"<i>$x$</i> \\u732b"'))
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "i" not in {t for t, a in page.tags if not a}
    assert page.words.count("<i>$x$</i> 猫") >= 2


def test_what_is_missing_is_not_measured_and_never_zero(runs: Path) -> None:
    page = Page(read(runs, "empty")).text
    assert page.count("not measured") > 20
    assert not re.search(r"\b0(\.0)? %", page.split("The thesis in one minute")[1])
    assert "78 of 78 cells have no result" in page
    holes = Page(read(runs, "holes")).text
    assert "not measured: pgd-linf" in holes
    assert "14 of 78 cells have no result" in holes
    clean = tiles(read_run(runs / "holes"), "standard")[0]
    assert (clean.value, clean.interval, clean.state) == (None, None, "plain")


def test_null_values_are_not_measured(tmp_path: Path) -> None:
    make_run(tmp_path, models=("standard",))
    log = tmp_path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]

    def emptied(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: emptied(v) for k, v in value.items()}
        if isinstance(value, list):
            return [emptied(v) for v in value]
        return None if isinstance(value, float) else value

    for line in lines:
        line |= {"value": None, "interval": None, "forwards": None, "backwards": None}
        line |= {"n": None, "detail": emptied(line["detail"])}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(tmp_path / "tensors")
    page = Page(write_report(tmp_path).read_text("utf-8")).text
    assert page.count("not measured") > 20
    assert (
        "0.0 %"
        not in page.split("The thesis in one minute")[1].split("Can these numbers be trusted?")[0]
    )


def test_the_worst_case_is_taken_for_each_sample(runs: Path) -> None:
    run = read_run(runs / "two")
    success = []
    for name in ("fgsm", "pgd", "smoothgrad", "random", "strongest", "square"):
        cell = run.cell("hardened", f"{name}-linf")
        assert cell is not None
        path = runs / "two" / "tensors" / f"{cell.key}.safetensors"
        success.append(load_file(path)["success"])
    expected = 1 - np.any(success, axis=0).mean()
    value, n, used = worst_case(run, "hardened", "linf", 0.1)
    assert value == pytest.approx(expected)
    assert (n, len(used)) == (400, 6)
    best = min(c.value for c in used if c.value is not None)
    assert value < best  # no single attack is the worst for all samples


def test_a_minimum_norm_attack_counts_within_eps_only(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "copy")
    run = read_run(tmp_path / "copy")
    keys = {name: run.cells[("standard", name)].key for name in ("pgd-l2", "random-l2")}
    none = {"success": np.zeros(4, bool), "distance": np.zeros(4)}
    for key in keys.values():
        save_file(none, tmp_path / "copy" / "tensors" / f"{key}.safetensors")
    found = {"success": np.ones(4, bool), "distance": np.array([0.0, 0.5, 1.0, 1.01])}
    key = run.cells[("standard", "deepfool-l2")].key
    save_file(found, tmp_path / "copy" / "tensors" / f"{key}.safetensors")
    value, n, used = worst_case(run, "standard", "l2", 1.0)
    assert (value, n) == (0.25, 4)
    assert "deepfool-l2" in {c.name for c in used}


def test_only_a_threshold_turns_a_tile_green(tmp_path: Path) -> None:
    make_run(tmp_path / "with", failed=False)
    run = read_run(tmp_path / "with")
    states = {t.title.split(",")[0] + t.kind: t.state for t in tiles(run, "standard")}
    assert states["Clean accuracyclean"] == "met"
    # the threshold of pgd-linf is missed, and there is none for L2
    assert [t.state for t in tiles(run, "standard")] == ["met", "missed", "plain", "plain"]
    make_run(tmp_path / "without", failed=False, thresholds=False)
    run = read_run(tmp_path / "without")
    assert {t.state for m in run.models for t in tiles(run, m)} == {"plain"}
    for line in (tmp_path / "without" / "log.jsonl").read_text().splitlines():
        if json.loads(line)["kind"] == "stability":
            assert json.loads(line)["value"] > 0  # there were scores to be fooled by


def spoil(log: Path, name: str) -> None:
    """Let the failed check of a log spoil another cell."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["status"] == "failed":
            line["detail"]["spoils"] = [name]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_failed_check_stands_beside_what_it_spoils(runs: Path, tmp_path: Path) -> None:
    page = Page(read(runs, "two")).text
    # on the tile and in the table of attacks, and once as a check
    assert page.count("check failed: More steps change little") == 2
    assert "Raise the steps to 200" in page
    make_run(tmp_path)
    log = tmp_path / "log.jsonl"
    spoil(log, "*")
    run = read_run(tmp_path)
    assert {t.state for t in tiles(run, "standard")[:3]} == {"spoiled"}
    page = Page(write_report(tmp_path).read_text("utf-8")).text
    assert page.count("Check failed for standard") >= 7
    assert "Check failed for hardened" not in page


def test_a_spoiled_tile_is_not_green(tmp_path: Path) -> None:
    make_run(tmp_path)
    log = tmp_path / "log.jsonl"
    spoil(log, "clean")
    assert tiles(read_run(tmp_path), "standard")[0].state == "spoiled"


def test_a_torn_last_line_and_strange_lines_are_left_out(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "copy")
    log = tmp_path / "copy" / "log.jsonl"
    whole = read_run(tmp_path / "copy")
    first = json.loads(log.read_text().splitlines()[0])
    other = {**first, "key": "unknown", "value": 0.0}
    strange = {**first, "kind": "horoscope", "value": 0.0}
    with log.open("a") as file:
        file.write(json.dumps(other) + "\n" + json.dumps(strange) + "\n" + json.dumps(first)[:40])
    assert read_run(tmp_path / "copy").cells == whole.cells
    assert write_report(tmp_path / "copy").read_text("utf-8") == read(runs, "one")


def test_the_last_of_two_lines_counts(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "copy")
    log = tmp_path / "copy" / "log.jsonl"
    first = json.loads(log.read_text().splitlines()[0])
    with log.open("a") as file:
        file.write(json.dumps({**first, "value": 0.125}) + "\n")
    assert read_run(tmp_path / "copy").cells[("standard", "clean")].value == 0.125


def test_one_key_may_stand_for_two_models(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "copy")
    plan = json.loads((tmp_path / "copy" / "plan.json").read_text())
    plan["models"].append({**plan["models"][0], "name": "twin"})
    plan["cells"] += [{**cell, "model": "twin"} for cell in plan["cells"]]
    (tmp_path / "copy" / "plan.json").write_text(json.dumps(plan))
    run = read_run(tmp_path / "copy")
    assert run.missing == ()
    assert run.cells[("twin", "clean")].value == run.cells[("standard", "clean")].value
    assert {c.model for c in run.of_kind("attack")} == {"standard", "twin"}


def test_a_cell_that_ended_in_an_error_says_why(tmp_path: Path) -> None:
    make_run(tmp_path, models=("standard",))
    log = tmp_path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["name"] in ("thesis-bent", "pgd-l2"):
            line |= {"status": "failed", "value": None, "interval": None, "n": 0}
            line["detail"] = {"error": "the gradient is <NaN>"}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(tmp_path).read_text("utf-8")).text
    for name in ("thesis-bent", "pgd-l2"):
        assert f"{name} of standard ended in an error: the gradient is <NaN>" in page


def test_inputs_without_bounds_are_drawn_by_what_occurs(tmp_path: Path) -> None:
    make_run(tmp_path, models=("standard",), shape=(7,))
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["bounds"] = [None, None]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    text = write_report(tmp_path).read_text("utf-8")
    assert "(unbounded)" in text
    bars = re.findall(r'<svg class="bars".*?</svg>', text)
    assert all(bar.count("<rect") == 7 for bar in bars)
    assert len(bars) == 9 + 1 + 5 + 8 * 6 + (3 * 8 + 6 + 3 * 4 + 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "not a folder"),
        ("no plan", "no plan.json"),
        ("plan cut", "cannot be read"),
        ("plan is a list", "holds a list"),
        ("schema", "reads schema 1"),
        ("no cells", "does not list its cells"),
        ("middle line", "line 3 is damaged"),
        ("line without model", "line 1 lacks one of"),
        ("tensors", "Delete this file"),
    ],
)
def test_a_damaged_folder_says_what_to_do(tmp_path: Path, damage: str, message: str) -> None:
    folder = make_run(tmp_path / "run", models=("standard",))
    plan, log = folder / "plan.json", folder / "log.jsonl"
    lines = log.read_text().splitlines()
    if damage == "no folder":
        folder = tmp_path / "nowhere"
    elif damage == "no plan":
        plan.unlink()
    elif damage == "plan cut":
        plan.write_text(plan.read_text()[:100])
    elif damage == "plan is a list":
        plan.write_text("[]")
    elif damage == "schema":
        plan.write_text(plan.read_text().replace('"schema": 1', '"schema": 2'))
    elif damage == "no cells":
        plan.write_text('{"schema": 1}')
    elif damage == "middle line":
        lines[2] = lines[2][:50]
    elif damage == "line without model":
        lines[0] = json.dumps({**json.loads(lines[0]), "model": None})
    elif damage == "tensors":
        for path in (folder / "tensors").iterdir():
            path.write_bytes(path.read_bytes()[:20])
    if folder.is_dir():
        log.write_text("\n".join(lines) + "\n")
    with pytest.raises(LogError, match=re.escape(message)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", models=("standard",))
    (folder / "report.html").mkdir()
    with pytest.raises(LogError, match="The measurements are safe"):
        write_report(folder)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
