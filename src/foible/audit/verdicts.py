"""What a run says about each model: accuracy, worst case, thresholds, failed checks.

Only a threshold of the plan turns a tile green, and only accuracy has thresholds. No explanation
score is read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foible.audit.reading import Cell, Run, real
from foible.audit.wording import NORMS, fraction, percent

#: Judged by distance, so with the tolerance of the threat's judge: 1e-6 of eps and 1e-7 of the box.
_SLACK = (1e-6, 1e-7)
_Z = 1.959963984540054


@dataclass(frozen=True)
class Verdict:
    """A threshold of the plan; its `state` is "met", "missed" or "not measured"."""

    model: str
    what: str
    cell: str
    at_least: float
    value: float | None
    state: str
    size: tuple[str, float] | None = None


@dataclass(frozen=True)
class Tile:
    """One large figure; `state` is "met", "missed", "spoiled" (a failed check) or "plain"."""

    title: str
    value: float | None
    interval: tuple[float, float] | None
    note: str
    state: str
    kind: str = "accuracy"
    verdicts: tuple[Verdict, ...] = ()
    spoiled_by: tuple[Cell, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


def tiles(run: Run, model: str) -> list[Tile]:
    """The tiles of one model: clean accuracy, the worst case for each norm and size, the checks."""
    clean = run.cell(model, "clean")
    verdicts = [v for v in thresholds(run) if v.model == model]
    value = None if clean is None else clean.value
    mine = tuple(v for v in verdicts if v.what == "accuracy")
    spoilers = tuple(failed_checks(run, model, ["clean"]))
    note = f"{clean.n:,} samples, nothing changed" if clean and clean.n is not None else ""
    interval = None if clean is None else clean.interval
    out = [
        Tile(
            "Clean accuracy",
            value,
            interval,
            note,
            _state(value, mine, spoilers),
            "clean",
            mine,
            spoilers,
        )
    ]
    for norm, eps in sizes(run, model):
        out.append(_worst_tile(run, model, norm, eps, verdicts))
    known = {norm for norm, _ in sizes(run, model)}
    for norm in _absent_norms(run, model):
        if norm not in known:
            out.append(_absent_tile(run, model, norm, verdicts))
    return [*out, _checks_tile(run, model)]


def sizes(run: Run, model: str) -> list[tuple[str, float]]:
    """Each (norm, eps) that some attack on the model was given, in the order of the plan."""
    found = [
        (str(c.detail.get("norm")), real(c.detail.get("eps"))) for c in run.of_kind("attack", model)
    ]
    return list(dict.fromkeys((norm, eps) for norm, eps in found if eps is not None))


def worst_case(run: Run, model: str, norm: str, eps: float) -> tuple[float | None, int, list[Cell]]:
    """Accuracy when each sample meets the attack that is worst for it.

    A sample counts as broken if any attack in this norm, also one with a smaller eps or with none,
    found a success within `eps`. An attack whose tensors are gone still counts with its accuracy as
    an upper bound.

    Returns:
        (accuracy or None, n, the attacks that count).
    """
    used: list[Cell] = []
    broken: list[npt.NDArray[np.bool_]] = []
    bound = 1.0
    for cell in run.of_kind("attack", model):
        if cell.detail.get("norm") != norm:
            continue
        size = real(cell.detail.get("eps"))
        success, distance = run.tensor(cell, "success"), run.tensor(cell, "distance")
        if success is not None and (distance is not None or (size is not None and size <= eps)):
            near = (
                np.ones(len(success), bool)
                if distance is None
                else distance <= eps * (1 + _SLACK[0]) + _SLACK[1]
            )
            broken.append(success.astype(bool) & near)
            used.append(cell)
        elif cell.value is not None and size is not None and size <= eps:
            bound = min(bound, cell.value)
            used.append(cell)
    if not used:
        return None, 0, []
    # Attacks on a part of the samples cannot be lined up with the others: only those on the most
    # samples count.
    n = max((len(b) for b in broken), default=used[0].n or 0)
    rows = [b for b in broken if len(b) == n]
    value = float(1 - np.logical_or.reduce(rows).mean()) if rows and n else 1.0
    return min(value, bound), n, used


def wilson(share: float, n: int) -> tuple[float, float] | None:
    """The 95 % Wilson interval of a share of n samples; None for n = 0.

    >>> [round(v, 3) for v in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    if n <= 0:
        return None
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * float(np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)))
    return max(0.0, centre - half), min(1.0, centre + half)


def thresholds(run: Run) -> list[Verdict]:
    """Every threshold of the plan for every model that it speaks of."""
    out = []
    for wanted in run.plan.get("thresholds") or []:
        least = real(wanted.get("at_least"))
        if least is None:
            continue
        for model in run.models:
            if wanted.get("model") not in (None, model):
                continue
            name, value, size = _judged(run, model, wanted)
            state = "not measured" if value is None else "met" if value >= least else "missed"
            out.append(Verdict(model, str(wanted.get("what")), name, least, value, state, size))
    return out


def _judged(
    run: Run, model: str, wanted: dict[str, Any]
) -> tuple[str, float | None, tuple[str, float] | None]:
    """What a threshold speaks of, its value, and for a worst case its (norm, eps).

    A threshold on a norm is judged on the worst case over all attacks in it, one on a cell on
    that cell alone.
    """
    if wanted.get("cell") is None and wanted.get("norm") is not None:
        norm = str(wanted["norm"])
        size = next((s for s in sizes(run, model) if s[0] == norm), None)
        value = None if size is None else worst_case(run, model, *size)[0]
        return f"worst case, {NORMS.get(norm, norm)}", value, size
    name = str(wanted.get("cell") or ("clean" if wanted.get("what") == "accuracy" else ""))
    cell = run.cell(model, name)
    return name, None if cell is None else cell.value, None


def failed_checks(run: Run, model: str, names: Iterable[str] | None = None) -> list[Cell]:
    """Failed checks of a model; with `names`, those that spoil one of these ("*" spoils all)."""
    failed = [c for c in run.of_kind("check", model) if c.status == "failed"]
    if names is None:
        return failed
    wanted = {"*", *names}
    return [c for c in failed if wanted.intersection(map(str, c.detail.get("spoils") or []))]


def summary(run: Run, model: str) -> str:
    """One sentence about a model for the top of the page."""
    clean = run.cell(model, "clean")
    said = []
    if clean is not None and clean.value is not None:
        said.append(f"on {percent(clean.value)} of clean inputs")
    worst = []
    for norm, eps in sizes(run, model):
        value, _, _ = worst_case(run, model, norm, eps)
        if value is not None:
            worst.append(f"{percent(value)} ({NORMS.get(norm, norm)}\u00a0{fraction(eps)})")
    if worst:
        listed = " and ".join(filter(None, (", ".join(worst[:-1]), worst[-1])))
        said.append(f"on {listed} when each meets its worst attack")
    return "is right " + ", and ".join(said) if said else "was not measured"


def derived(run: Run) -> dict[str, Any]:
    """The figures of the tiles as plain data: what the page computes beyond the log."""
    out: dict[str, Any] = {}
    for model in run.models:
        cases = []
        for norm, eps in sizes(run, model):
            value, n, used = worst_case(run, model, norm, eps)
            band = None if value is None else wilson(value, n)
            row = {"norm": norm, "eps": eps, "n": n, "value": value, "interval": band}
            cases.append({**row, "attacks": [c.name for c in used]})
        out[model] = {"worst_case": cases, "checks": _check_counts(run, model)}
    verdicts = [{**v.__dict__} for v in thresholds(run)]
    return {"models": out, "thresholds": verdicts}


def _worst_tile(run: Run, model: str, norm: str, eps: float, verdicts: list[Verdict]) -> Tile:
    value, n, used = worst_case(run, model, norm, eps)
    absent = _absent_attacks(run, model, norm)
    names = {*absent, *(c.name for c in used)}
    # A threshold belongs to the tile of its own norm and size, or of those of its attack.
    mine = []
    for verdict in verdicts:
        cell = run.cell(model, verdict.cell)
        if verdict.size is not None:
            belongs = verdict.size == (norm, eps)
        elif cell is None:
            belongs = verdict.cell in absent
        else:
            belongs = (cell.detail.get("norm"), real(cell.detail.get("eps"))) == (norm, eps)
        if verdict.what == "robust" and belongs:
            mine.append(verdict)
    spoilers = tuple(failed_checks(run, model, names))
    plural = "attack" if len(used) == 1 else "attacks"
    note = f"each sample against the worst of {len(used)} {plural}"
    if absent:
        note += f"; not measured: {', '.join(absent)}"
    interval = None if value is None else wilson(value, n)
    title = f"Robust accuracy, {NORMS.get(norm, norm)}\u00a0{fraction(eps)}"
    return Tile(
        title,
        value,
        interval,
        note,
        _state(value, tuple(mine), spoilers),
        "robust",
        tuple(mine),
        spoilers,
    )


def _absent_norms(run: Run, model: str) -> list[str]:
    names = [name for kind, name, owner in run.missing if (kind, owner) == ("attack", model)]
    return list(dict.fromkeys(end for end in (n.rpartition("-")[2] for n in names) if end in NORMS))


def _absent_tile(run: Run, model: str, norm: str, verdicts: list[Verdict]) -> Tile:
    absent = _absent_attacks(run, model, norm)
    mine = tuple(v for v in verdicts if v.what == "robust" and v.cell in absent)
    title = f"Robust accuracy, {NORMS[norm]}"
    return Tile(title, None, None, "planned: " + ", ".join(absent), "plain", "robust", mine)


def _absent_attacks(run: Run, model: str, norm: str) -> list[str]:
    """Planned attacks in this norm without a figure; one without a line has it in its name."""
    never = [
        n for kind, n, m in run.missing if (kind, m) == ("attack", model) and n.endswith(f"-{norm}")
    ]
    cells = run.of_kind("attack", model)
    return never + [c.name for c in cells if c.value is None and c.detail.get("norm") == norm]


def _checks_tile(run: Run, model: str) -> Tile:
    counts = _check_counts(run, model)
    done = counts["failed"] + counts["passed"]
    note = f"of {done} that apply" + (
        f", {counts['missing']} not measured" if counts["missing"] else ""
    )
    state = "missed" if counts["failed"] else "plain"
    value = float(counts["failed"]) if done else None
    return Tile("Checks failed", value, None, note if done else "", state, "checks", counts=counts)


def _check_counts(run: Run, model: str) -> dict[str, int]:
    cells = run.of_kind("check", model)
    return {
        "failed": sum(c.status == "failed" for c in cells),
        "passed": sum(c.status == "ok" for c in cells),
        "not applicable": sum(c.status not in ("failed", "ok") for c in cells),
        "missing": sum(kind == "check" and name == model for kind, _, name in run.missing),
    }


def _state(value: float | None, verdicts: tuple[Verdict, ...], spoilers: tuple[Cell, ...]) -> str:
    """Green needs thresholds, all met by the figure on the tile too, and no failed check."""
    if spoilers:
        return "spoiled"
    if any(v.state == "missed" for v in verdicts):
        return "missed"
    if value is None or not verdicts or any(v.state != "met" for v in verdicts):
        return "plain"
    return "met" if all(value >= v.at_least for v in verdicts) else "plain"
