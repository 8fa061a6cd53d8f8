"""What the attacks cost and what each adds: for the report's section on attacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foible.audit.reading import Cell, Run, real, whole
from foible.audit.sections import models
from foible.audit.verdicts import sizes
from foible.audit.wording import NORMS, count, fraction, number, percent
from foible.figures import DASHES, Bar, Steps, inline_svg, share_bars, step_chart

Part = dict[str, Any]
# More lines cannot be told apart, more points cannot be seen.
LINES, POINTS = len(DASHES), 200
# More changes of who leads than this are counted, not told one by one.
LEADERS = 3


@dataclass(frozen=True)
class _Fall:
    """What one attack did to the samples that were right."""

    cell: Cell
    fell: npt.NDArray[np.bool_]
    calls: npt.NDArray[np.float64] | None
    right: int

    @property
    def share(self) -> float:
        return float(self.fell.sum()) / self.right

    @property
    def cost(self) -> float:
        """Mean calls a sample."""
        return float("inf") if self.calls is None else float(self.calls.mean())

    @property
    def stops(self) -> bool:
        """Whether calls are what it took: not of an attack that goes on after a success."""
        return self.calls is not None and self.cell.detail.get("stop") == "success"


def spending(run: Run) -> list[Part]:
    """For each model and limit: success over calls, and what each attack broke alone."""
    out = []
    for model in models(run):
        limits = []
        for place, (norm, eps) in enumerate(sizes(run, model["name"])):
            falls = [f for f in _falls(run, model["name"], norm, eps) if f.right > 0]
            title = f"{NORMS.get(norm, norm)}\u00a0{fraction(eps)}"
            part = _steps(falls, model, place, title) | _bars(falls, model, place, title)
            if part:
                limits.append({"title": title, **part})
        out.append({**model, "limits": limits, "cascades": cascades(run, model["name"])})
    return out


def _falls(run: Run, model: str, norm: str, eps: float) -> list[_Fall]:
    found = []
    for cell in run.of_kind("attack", model):
        success, distance = run.tensor(cell, "success"), run.tensor(cell, "distance")
        wrong = whole((cell.detail.get("statuses") or {}).get("wrong"))
        if (
            (cell.detail.get("norm"), real(cell.detail.get("eps"))) != (norm, eps)
            or cell.detail.get("control")
            or success is None
            or distance is None
            or wrong is None
        ):
            continue
        calls = run.tensor(cell, "calls")
        kept = None if calls is None or len(calls) != len(success) else calls.astype(np.float64)
        # A sample that was wrong from the start lies at distance 0.
        fell = success.astype(bool) & (distance > 0)
        found.append(_Fall(cell, fell, kept, len(success) - wrong))
    most = max((len(f.fell) for f in found), default=0)
    return [f for f in found if len(f.fell) == most]


def _steps(falls: list[_Fall], model: Part, place: int, title: str) -> Part:
    # The strongest first; of equals the cheaper one.
    chosen = sorted((f for f in falls if f.stops), key=lambda f: (-f.share, f.cost))[:LINES]
    if not chosen:
        return {}
    lines, rows = [], []
    for i, fall in enumerate(chosen):
        assert fall.calls is not None
        calls = np.sort(fall.calls[fall.fell])
        at, ends = np.unique(calls, return_index=True)
        share = np.append(ends[1:], len(calls)) / fall.right if len(at) else np.zeros(0)
        rows.append(_row(fall, calls, i))
        if len(at):
            keep = np.unique(np.linspace(0, len(at) - 1, min(len(at), POINTS)).astype(int))
            lines.append(Steps(fall.cell.name, np.maximum(at[keep], 1.0), share[keep]))
        else:
            lines.append(Steps(fall.cell.name, np.ones(1), np.zeros(1)))
    end = max(float(f.calls.max()) for f in chosen if f.calls is not None)
    figure = step_chart(lines, series=model["index"], end=end)
    alt = f"Share broken against model calls, {title}: " + "; ".join(
        f"{row['name']} {percent(row['share'])}, half by {count(row['half'])} calls"
        if row["half"] is not None
        else f"{row['name']} {percent(row['share'])}"
        for row in rows
    )
    return {"steps": inline_svg(figure, f"calls-{model['index']}-{place}", alt), "rows": rows}


def _row(fall: _Fall, calls: npt.NDArray[np.float64], place: int) -> Part:
    """What the page says of one line; the pattern is that of the chart."""
    assert fall.calls is not None
    half = int(np.ceil(fall.right / 2))
    return {
        "name": fall.cell.name,
        "dashes": " ".join(f"{d:g}" for d in DASHES[place]),
        "share": fall.share,
        "half": float(calls[half - 1]) if len(calls) >= half else None,
        "mean": fall.cost,
        "most": float(fall.calls.max()),
    }


def _bars(falls: list[_Fall], model: Part, place: int, title: str) -> Part:
    if len(falls) < 2:
        return {}
    # An attack may be measured on other samples than its neighbours only in a damaged folder.
    right = max(f.right for f in falls)
    table = np.stack([f.fell for f in falls])
    together = table.any(0)
    lone = table & (table.sum(0) == 1)
    bars, said = [], []
    order = sorted(range(len(falls)), key=lambda i: (-falls[i].share, i))
    for i in order:
        alone = int(lone[i].sum())
        share = float(table[i].sum()) / right
        note = f", {alone} alone" if alone else ""
        bars.append(Bar(falls[i].cell.name, share, alone / right, percent(share) + note))
        if alone:
            samples = "sample" if alone == 1 else "samples"
            said.append(f"{falls[i].cell.name} broke {alone} {samples} that no other broke")
    total = float(together.sum()) / right
    bars.append(Bar("all together", total, 0.0, percent(total), total=True))
    best = falls[order[0]]
    gap = int(together.sum() - best.fell.sum())
    ties = sum(int(f.fell.sum()) == int(best.fell.sum()) for f in falls)
    if gap:
        words = (
            f"{best.cell.name} is the strongest alone; the others add {gap} of {right:,} samples."
        )
    elif ties > 1:
        words = f"{ties} attacks each broke all that fell to any."
    else:
        words = f"{best.cell.name} broke all that fell to any."
    figure = share_bars(bars, series=model["index"], x_label="broken, of those that were right")
    alt = f"Share broken by each attack, {title}: " + ", ".join(f"{b.label} {b.text}" for b in bars)
    svg = inline_svg(figure, f"worst-{model['index']}-{place}", alt)
    return {"bars": svg, "bars_said": words, "alone": said}


def cascades(run: Run, model: str) -> list[Part]:
    """The stages of each attack that has some: tried, broke, cost, and what more would take."""
    out = []
    for cell in run.of_kind("attack", model):
        stages = cell.detail.get("stages")
        if not isinstance(stages, list) or not stages:
            continue
        rows = [_stage(stage) for stage in stages if isinstance(stage, dict)]
        advice = str(cell.detail.get("advice") or "").strip()
        out.append(
            {
                "name": cell.name,
                "title": str(cell.detail.get("title") or cell.name),
                "rows": rows,
                "advice": advice and advice[0].upper() + advice[1:].rstrip(".") + ".",
            }
        )
    return out


def _stage(stage: Part) -> Part:
    tried, broke = whole(stage.get("tried")), whole(stage.get("broke"))
    forwards, backwards = real(stage.get("forwards")), real(stage.get("backwards"))
    calls = None if forwards is None or backwards is None else forwards + backwards
    return {
        "name": str(stage.get("name")),
        "tried": tried,
        "broke": broke,
        "forwards": forwards / tried if forwards is not None and tried else None,
        "backwards": backwards / tried if backwards is not None and tried else None,
        "each": calls / broke if calls is not None and broke else None,
    }


def leaders(cell: Cell, eps: list[Any]) -> str:
    """Who set the points of a curve, from small to large: "FMN to 0.06, then strongest-linf"."""
    named = cell.detail.get("leader")
    if not isinstance(named, list) or len(named) != len(eps):
        return ""
    runs: list[tuple[str, float]] = []
    for name, size in zip(named, eps, strict=True):
        if name is None:
            continue  # nothing fell between this size and the one before
        if runs and runs[-1][0] == str(name):
            runs.pop()
        runs.append((str(name), float(size)))
    if not runs:
        return ""
    if len(runs) > LEADERS:
        known = Counter(_attack(str(name)) for name in named if name is not None)
        total = sum(known.values())
        return ", ".join(f"{name} at {n} of {total} sizes" for name, n in known.most_common())
    first = [f"{_attack(name)} up to {number(size)}" for name, size in runs[:-1]]
    last = _attack(runs[-1][0])
    return ", then ".join([*first, last]) if first else f"{last} throughout"


def _attack(name: str) -> str:
    return "FMN" if name == "fmn" else name


def smallest(cell: Cell) -> Part | None:
    """Quartiles of the smallest perturbation, and on how many samples each attack was closest."""
    quartiles = cell.detail.get("quartiles")
    if not isinstance(quartiles, list) or len(quartiles) != 3:
        return None
    raw = cell.detail.get("set_by")
    counts = raw.items() if isinstance(raw, dict) else ()
    ranked = sorted(((_attack(str(k)), whole(v) or 0) for k, v in counts), key=lambda p: -p[1])
    return {
        "quartiles": [real(q) for q in quartiles],
        "set_by": ", ".join(f"{name} {n:,}" for name, n in ranked),
    }
