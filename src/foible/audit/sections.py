"""What each section of the report says, as plain data for its template: words, tables, counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foible.audit.reading import Cell, Run, pair, real, reals, whole
from foible.audit.verdicts import failed_checks, summary, thresholds, tiles
from foible.audit.wording import MISSING, NORMS, fraction, number, short_hash

KIND_NAMES = {
    "clean": "clean accuracy",
    "attack": "attacks",
    "curve": "curves",
    "stability": "explanation stability",
    "thesis": "the thesis",
    "strips": "examples",
    "explanation": "explanations side by side",
    "check": "checks",
}
_STOPS = {"never": "all steps", "success": "first success"}


def models(run: Run) -> list[dict[str, Any]]:
    """The audited models with their place, which picks their colour and their ids on the page."""
    out = []
    for index, (name, entry) in enumerate(
        zip(run.models, run.plan.get("models") or [], strict=True)
    ):
        facts = {k: entry.get(k) for k in ("hash", "weights", "parameters", "source")}
        short = short_hash(entry.get("hash")) if entry.get("hash") else ""
        out.append({**facts, "name": name, "index": index, "ink": index % 4, "short": short})
    return out


def header(run: Run) -> dict[str, Any]:
    """What was audited, and the one sentence about each model."""
    data = run.plan.get("data") or {}
    shape = "×".join(str(s) for s in data.get("shape") or [])
    classes, n = data.get("classes") or [], whole(data.get("n"))
    facts = [
        ("Data", str(data.get("name") or MISSING)),
        ("Samples", " of ".join(filter(None, (f"{n:,}" if n else MISSING, shape)))),
        ("Classes", str(len(classes)) if classes else ""),
        ("Preset", str(run.plan.get("preset") or "own plan")),
        ("Seed", str(run.plan.get("seed", MISSING))),
        ("Made by", f"foible {run.plan.get('foible', '')}, torch {run.plan.get('torch', '')}"),
    ]
    facts = [(name, value) for name, value in facts if value]
    said = [{**m, "text": summary(run, m["name"]), "facts": _model_facts(m)} for m in models(run)]
    return {"facts": facts, "said": said, "data": facts[0][1], "command": run.plan.get("command")}


def _model_facts(model: dict[str, Any]) -> list[str]:
    size = whole(model["parameters"])
    facts = [str(model["source"] or ""), f"{size:,} parameters" if size is not None else ""]
    return [fact for fact in facts if fact]


def verdicts(run: Run) -> dict[str, Any]:
    """Tiles for each model, and the thresholds of the plan."""
    rows = [{**m, "tiles": tiles(run, m["name"])} for m in models(run)]
    return {
        "models": rows,
        "thresholds": thresholds(run),
        "fail_under": bool(run.plan.get("fail_under")),
        "unfinished": len(run.missing),
        "broken": _broken(run),
        "cells": len(run.plan["cells"]),
    }


def _broken(run: Run) -> list[dict[str, str]]:
    """Cells that ended in an error, which is no verdict of a check."""
    cells = [c for c in run.cells.values() if c.status == "failed" and c.kind != "check"]
    return [{"model": c.model, "name": c.name, "reason": reason(c) or "no reason"} for c in cells]


def attacks(run: Run) -> list[dict[str, Any]]:
    """The table of attacks of each model; one without a line is shown as not measured."""
    out = []
    for model in models(run):
        rows = [_attack_row(run, cell) for cell in run.of_kind("attack", model["name"])]
        for kind, name, owner in run.missing:
            if kind == "attack" and owner == model["name"]:
                rows.append(
                    {"title": None, "name": name, "value": None, "absent": True, "spoilers": []}
                )
        out.append({**model, "rows": rows})
    return out


def _attack_row(run: Run, cell: Cell) -> dict[str, Any]:
    detail, n = cell.detail, cell.n or 0
    norm, eps = str(detail.get("norm", "")), real(detail.get("eps"))
    limit = "smallest" if eps is None else fraction(eps)
    return {
        "title": str(detail.get("title") or cell.name),
        "name": cell.name,
        "threat": f"{NORMS.get(norm, norm)} {limit}".strip(),
        "value": cell.value,
        "interval": cell.interval,
        "success": real(detail.get("success_rate")),
        "success_interval": pair(detail.get("success_interval")),
        "success_n": whole(detail.get("success_n")),
        "distance": real(detail.get("median_distance")),
        "forwards": None if cell.forwards is None or not n else cell.forwards / n,
        "backwards": None if cell.backwards is None or not n else cell.backwards / n,
        "stop": _STOPS.get(str(detail.get("stop")), str(detail.get("stop") or MISSING)),
        "control": bool(detail.get("control")),
        "naive": real(detail.get("naive")),
        "because": str(detail.get("because") or ""),
        "spoilers": failed_checks(run, cell.model, [cell.name]),
        "absent": cell.value is None,
        "reason": reason(cell),
    }


def reason(cell: Cell) -> str:
    """Why a cell has no figure, where it says so."""
    said = next((cell.detail[k] for k in ("reason", "error", "why") if cell.detail.get(k)), "")
    return str(said)


def checks(run: Run) -> list[dict[str, Any]]:
    """The checks of each model: failed ones first, with advice and what they spoil."""
    out = []
    for model in models(run):
        cells = run.of_kind("check", model["name"])
        groups: dict[str, list[dict[str, Any]]] = {"failed": [], "passed": [], "other": []}
        for cell in cells:
            group = {"failed": "failed", "ok": "passed"}.get(cell.status, "other")
            groups[group].append(_check_row(run, cell))
        absent = [
            name for kind, name, owner in run.missing if (kind, owner) == ("check", model["name"])
        ]
        out.append({**model, **groups, "absent": absent})
    return out


def _check_row(run: Run, cell: Cell) -> dict[str, Any]:
    spoils = []
    for name in cell.detail.get("spoils") or []:
        other = run.cell(cell.model, str(name))
        spoils.append(str(other.detail.get("title") or name) if other else str(name))
    return {
        "title": str(cell.detail.get("title") or cell.name),
        "name": cell.name,
        "measured": cell.detail.get("measured")
        or (None if cell.value is None else number(cell.value)),
        "expected": cell.detail.get("expected"),
        "advice": cell.detail.get("advice"),
        "reason": reason(cell),
        "spoils": spoils,
    }


def costs(run: Run) -> list[dict[str, Any]]:
    """Forwards and backwards of each model by kind of cell; a kind with no count says so."""
    out = []
    for model in models(run):
        rows: list[dict[str, Any]] = []
        for kind, title in KIND_NAMES.items():
            cells = run.of_kind(kind, model["name"])
            if cells:
                forwards, backwards = (
                    _total(c.forwards for c in cells),
                    _total(c.backwards for c in cells),
                )
                row = {
                    "title": title,
                    "cells": len(cells),
                    "forwards": forwards,
                    "backwards": backwards,
                }
                rows.append(row)
        total = {
            name: _total(row[name] for row in rows) for name in ("cells", "forwards", "backwards")
        }
        passes = [int(row["forwards"] or 0) + int(row["backwards"] or 0) for row in rows]
        for row, own in zip(rows, passes, strict=True):
            row["share"] = own / max(passes) if max(passes) else 0.0
        out.append({**model, "rows": rows, "total": total})
    return out


def _total(values: Iterable[Any]) -> int | None:
    known = [int(v) for v in values if v is not None]
    return sum(known) if known else None


def provenance(run: Run) -> dict[str, Any]:
    """Everything needed to run this again, and what is still missing."""
    plan = run.plan
    data = plan.get("data") or {}
    rows: list[tuple[str, Any]] = [
        ("foible", plan.get("foible")),
        ("torch", plan.get("torch")),
        ("Python", plan.get("python")),
        ("Platform", plan.get("platform")),
        ("Seed", plan.get("seed")),
        ("Bounds of the input", _interval(plan.get("bounds"))),
        ("Data", data.get("name")),
        ("Data hash", data.get("hash")),
    ]
    for model in models(run):
        name = model["name"]
        size = model["parameters"]
        rows += [
            (f"{name}: source", model["source"]),
            (f"{name}: model hash", model["hash"]),
            (f"{name}: weights hash", model["weights"]),
            (f"{name}: parameters", f"{size:,}" if isinstance(size, int) else size),
        ]
    rows = [(name, value) for name, value in rows if value is not None]
    return {"rows": rows, "missing": run.missing, "command": plan.get("command")}


def _interval(bounds: Any) -> str | None:
    values = reals(bounds)
    return f"{number(values[0])} to {number(values[1])}" if len(values) == 2 else None


def class_name(run: Run, label: object) -> str:
    """The name of a class, or its number where the plan has no names."""
    index = whole(label)
    classes = (run.plan.get("data") or {}).get("classes") or []
    if index is None:
        return MISSING
    return str(classes[index]) if 0 <= index < len(classes) else f"class {index}"


def input_bounds(run: Run) -> tuple[float, float] | None:
    """The bounds of the input; None if it has none."""
    return pair(run.plan.get("bounds"))


def spoiled(run: Run, names: Iterable[str]) -> list[dict[str, Any]]:
    """Failed checks that spoil any of these cells, for a line beside a figure."""
    wanted = list(names)
    found = []
    for model in run.models:
        for cell in failed_checks(run, model, wanted):
            found.append({"model": model, "title": str(cell.detail.get("title") or cell.name)})
    return found
