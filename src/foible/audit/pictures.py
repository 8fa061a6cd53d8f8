"""The sections of the report that hold figures: thesis, curves, examples, explanations.

Each function gives plain data for a template; figures are markup from `foible.figures`. A cell that
is not there gives an entry without a figure, and the page says "not measured".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foible.audit.reading import Cell, Run, real, reals
from foible.audit.sections import class_name, input_bounds, models, spoiled
from foible.audit.spending import leaders, smallest
from foible.audit.wording import MISSING, NORMS, fraction, percent, score
from foible.figures import (
    BENT_COLUMNS,
    STRIP_COLUMNS,
    Curve,
    Dot,
    DotRow,
    amplification,
    bent_tiles,
    distance_scatter,
    dot_rows,
    frame_tiles,
    inline_svg,
    labelled_lines,
    line_chart,
    map_tile,
    measured_pairs,
    padded_limits,
    strip_tiles,
    walk_chart,
)

Part = dict[str, Any]


def _is_control(direction: str) -> bool:
    return direction.lower().startswith("random")


def _is_attack(direction: str) -> bool:
    return "pgd" in direction.lower()


def follow(run: Run) -> list[Part]:
    """Thesis (a): accuracy after one step along each direction, and after deleting its features."""
    out = []
    for model in models(run):
        cell = run.measured(model["name"], "thesis-follow")
        part: Part = {**model, "dots": None, "lines": None}
        if cell is not None:
            part |= _follow_dots(cell, model) | _follow_lines(cell, model)
        out.append(part)
    return out


def _follow_dots(cell: Cell, model: Part) -> Part:
    rows = []
    known: list[tuple[float, str]] = []
    control = None
    for row in cell.detail.get("rows") or []:
        name, value = str(row.get("direction")), real(row.get("accuracy"))
        style = "control" if _is_control(name) else "full" if _is_attack(name) else "main"
        dot = Dot(value, real(row.get("low")), real(row.get("high")), style)
        rows.append(DotRow(name, (dot,), percent(value)))
        if value is not None and style == "main":
            known.append((value, name))
        if value is not None and style == "control":
            control = value
    if not rows:
        return {}
    figure = dot_rows(rows, series=model["index"], x_label="accuracy after one step")
    alt = "Accuracy after one step: " + ", ".join(f"{r.label} {r.text}" for r in rows)
    said = ""
    if known:
        value, name = min(known)
        said = f"One step along the {name} map leaves {percent(value)} accuracy"
        said += (
            f"; a random step of the same size leaves {percent(control)}."
            if control is not None
            else "."
        )
    eps = real(cell.detail.get("eps"))
    svg = inline_svg(figure, f"follow-{model['index']}", alt)
    return {"dots": svg, "dots_said": said, "eps": fraction(eps) if eps is not None else None}


def _follow_lines(cell: Cell, model: Part) -> Part:
    deletion = cell.detail.get("delete") or {}
    k = reals(deletion.get("k"))
    rows = [(str(r.get("direction")), reals(r.get("accuracy"))) for r in deletion.get("rows") or []]
    rows = [
        (name, values)
        for name, values in rows
        if len(values) == len(k) and any(v is not None for v in values)
    ]
    if not k or not rows:
        return {}
    means = {
        name: np.nanmean([np.nan if v is None else v for v in values]) for name, values in rows
    }
    named = {name: mean for name, mean in means.items() if not _is_control(name)}
    best = min(named, key=lambda name: named[name]) if named else None
    lines = [
        Curve(name, k, values, series=model["index"], dashed=_is_control(name), quiet=name != best)
        for name, values in rows
    ]
    figure = labelled_lines(lines, x_label="features deleted")
    alt = "Accuracy after deleting features: " + ", ".join(
        f"{name} {percent(v[-1])} at the end" for name, v in rows
    )
    said = f"Deleting what {best} names first costs accuracy soonest." if best else ""
    return {"lines": inline_svg(figure, f"delete-{model['index']}", alt), "lines_said": said}


def distances(run: Run) -> list[Part]:
    """Thesis (b): the distance that the map foretells against the one measured, on equal axes."""
    clouds = {}
    for model in models(run):
        cell = run.measured(model["name"], "thesis-distance")
        predicted, measured = run.tensor(cell, "predicted"), run.tensor(cell, "measured")
        if predicted is not None and measured is not None and predicted.shape == measured.shape:
            clouds[model["name"]] = measured_pairs(predicted.ravel(), measured.ravel())
    limits = padded_limits(*(axis for pair in clouds.values() for axis in pair))
    out = []
    for model in models(run):
        cell = run.measured(model["name"], "thesis-distance")
        part: Part = {**model, "figure": None, "cell": cell}
        if cell is not None:
            part |= {
                "spearman": cell.value,
                "confidence": real(cell.detail.get("confidence")),
                "n": cell.n,
            }
        if model["name"] in clouds and clouds[model["name"]][0].size:
            x, y = clouds[model["name"]]
            figure = distance_scatter(x, y, series=model["index"], limits=limits)
            rank = score(part.get("spearman"))
            alt = f"Predicted against measured smallest eps, {x.size} samples, Spearman {rank}"
            part |= {
                "figure": inline_svg(figure, f"distance-{model['index']}", alt),
                "drawn": int(x.size),
            }
        out.append(part)
    return out


def walks(run: Run) -> list[Part]:
    """Thesis (c): one example walked along its map, with the predicted crossing marked."""
    out = []
    for model in models(run):
        cell = run.measured(model["name"], "thesis-frames")
        frames, drawn_map = run.tensor(cell, "frames"), run.tensor(cell, "map")
        part: Part = {**model, "frames": [], "chart": None}
        if cell is not None and frames is not None:
            part |= _walk(run, cell, model, frames, None if drawn_map is None else drawn_map[0])
        out.append(part)
    return out


def _walk(run: Run, cell: Cell, model: Part, frames: Any, drawn_map: Any) -> Part:
    detail = cell.detail
    t, labels = reals(detail.get("t")), detail.get("label") or []
    confidence, true_confidence = (
        reals(detail.get("confidence")),
        reals(detail.get("true_confidence")),
    )
    predicted, measured = (
        real(detail.get("predicted_crossing")),
        real(detail.get("measured_crossing")),
    )
    true = detail.get("true")
    rows = []
    crossed = predicted is None
    for i, tile in enumerate(frame_tiles(frames, input_bounds(run))):
        at = t[i] if i < len(t) else None
        first = not crossed and at is not None and predicted is not None and at >= predicted
        crossed = crossed or first
        label = labels[i] if i < len(labels) else None
        rows.append(
            {
                "tile": tile,
                "t": at,
                "label": class_name(run, label),
                "wrong": label is not None and label != true,
                "confidence": confidence[i] if i < len(confidence) else None,
                "crossing": first,
            }
        )
    chart = None
    if len(t) == len(true_confidence) and any(v is not None for v in true_confidence):
        figure = walk_chart(
            t, true_confidence, predicted=predicted, measured=measured, series=model["index"]
        )
        chart = inline_svg(
            figure, f"walk-{model['index']}", "Confidence in the true class along the walk"
        )
    return {
        "frames": rows,
        "chart": chart,
        "map": None if drawn_map is None else map_tile(drawn_map, "the map that is followed"),
        "true": class_name(run, true),
        "predicted": predicted,
        "measured": measured,
        "beyond": predicted is not None and not crossed,
    }


def bends(run: Run) -> list[Part]:
    """Thesis (d), the warning: a map bent to order while the label stays."""
    out = []
    for model in models(run):
        cell = run.measured(model["name"], "thesis-bent")
        part: Part = {**model, "tiles": []}
        found = kept(run, cell, "clean", "adversarial", "clean_map", "target_map", "bent_map")
        if cell is not None:
            keys = (
                "confidence_before",
                "confidence_after",
                "eps",
                "similarity_before",
                "similarity_after",
            )
            part |= {key: real(cell.detail.get(key)) for key in keys}
            part["label"] = class_name(run, cell.detail.get("label"))
        if found:
            clean, adversarial, *maps = (a[0] for a in found)
            tiles = bent_tiles(clean, adversarial, maps[0], maps[1], maps[2], input_bounds(run))
            part["tiles"] = list(zip(BENT_COLUMNS, tiles, strict=True))
        out.append(part)
    return out


def kept(run: Run, cell: Cell | None, *names: str) -> list[Any]:
    """All these tensors of a cell, or none."""
    found = [tensor for tensor in (run.tensor(cell, name) for name in names) if tensor is not None]
    return found if len(found) == len(names) else []


def curves(run: Run) -> list[Part]:
    """Accuracy against eps, one chart for each kind of curve, with all models on it."""
    names = dict.fromkeys(c.name for c in run.of_kind("curve"))
    out = []
    for place, name in enumerate(names):
        lines: list[Curve] = []
        table, shown, norm, attack = [], [], "", ""
        for model in models(run):
            cell = run.measured(model["name"], name)
            eps = reals(cell.detail.get("eps")) if cell else []
            if cell is None or not eps or None in eps:
                continue
            norm, attack = str(cell.detail.get("norm", "")), str(cell.detail.get("attack") or "")
            columns = {k: _column(cell, k, len(eps)) for k in ("accuracy", "low", "high", "random")}
            table.append(
                {**model, "points": list(zip(eps, *columns.values(), strict=True))}
                | {"leaders": leaders(cell, eps), "smallest": smallest(cell)}
            )
            points = _from_clean(run, cell, eps, columns)
            x, place_in = points.pop("eps"), model["index"]
            if any(v is not None for v in columns["random"]):
                lines.append(Curve("random", x, points["random"], series=place_in, dashed=True))
            band = (points["low"], points["high"])
            lines.append(Curve(model["name"], x, points["accuracy"], *band, series=place_in))
            shown.append(model)
        if not lines:
            continue
        title = NORMS.get(norm, norm)
        figure = line_chart(lines, x_label=f"size of the perturbation, {title} eps")
        alt = f"Accuracy against {title} eps for {', '.join(m['name'] for m in shown)}"
        svg = inline_svg(figure, f"curve-{place}", alt)
        control = any(line.dashed for line in lines)
        out.append(
            {
                "norm": title,
                "attack": attack,
                "figure": svg,
                "models": shown,
                "table": table,
                "control": control,
            }
            | {"spoiled": spoiled(run, [name])}
        )
    return out


def _from_clean(
    run: Run, cell: Cell, eps: list[Any], columns: dict[str, list[float | None]]
) -> dict[str, list[float | None]]:
    """The curve with its start: the clean accuracy, if that was measured on as many samples."""
    clean = run.measured(cell.model, "clean")
    if clean is None or clean.value is None or clean.n != cell.n or eps[0] <= 0:
        return {"eps": eps, **columns}
    low, high = clean.interval or (None, None)
    start = {"accuracy": clean.value, "low": low, "high": high, "random": clean.value}
    return {"eps": [0.0, *eps], **{k: [start[k], *v] for k, v in columns.items()}}


def _column(cell: Cell, key: str, size: int) -> list[float | None]:
    values = reals(cell.detail.get(key))
    return values if len(values) == size else [None] * size


def examples(run: Run) -> list[Part]:
    """Strips of examples before and after the attack, with predictions."""
    out = []
    for model in models(run):
        for cell in run.of_kind("strips", model["name"]):
            arrays = kept(run, cell, "clean", "adversarial", "clean_map", "adversarial_map")
            part: Part = {**model, "rows": [], "columns": STRIP_COLUMNS}
            if arrays:
                part |= _strip_rows(run, cell, arrays)
            eps = real(cell.detail.get("eps"))
            part["attack"] = str(cell.detail.get("attack") or MISSING)
            part["eps"] = fraction(eps) if eps is not None else None
            part["explainer"] = str(cell.detail.get("explainer") or MISSING)
            out.append(part)
    return out


def _strip_rows(run: Run, cell: Cell, arrays: list[Any]) -> Part:
    clean, adversarial, clean_map, adversarial_map = arrays
    tiles = strip_tiles(clean, adversarial, clean_map, adversarial_map, input_bounds(run))
    rows = []
    for facts, row in zip(cell.detail.get("rows") or [], tiles, strict=False):
        fooled = facts.get("label_adv") is not None and facts.get("label_adv") != facts.get("true")
        rows.append(
            {
                "tiles": list(zip(STRIP_COLUMNS, row, strict=True)),
                "id": facts.get("id"),
                "true": class_name(run, facts.get("true")),
                "clean": class_name(run, facts.get("label_clean")),
                "clean_confidence": real(facts.get("confidence_clean")),
                "adv": class_name(run, facts.get("label_adv")),
                "adv_confidence": real(facts.get("confidence_adv")),
                "fooled": fooled,
                "clean_wrong": facts.get("label_clean") != facts.get("true"),
            }
        )
    return {"rows": rows, "reach": amplification(arrays[0], arrays[1])}


def stability(run: Run) -> list[Part]:
    """How much of an explanation survives an attack, against noise of the same size."""
    out = []
    for model in models(run):
        cells = run.of_kind("stability", model["name"])
        rows, table = [], []
        for cell in cells:
            title = str(cell.detail.get("title") or cell.detail.get("explainer") or cell.name)
            attack, noise = _triple(cell, "topk", "attack"), _triple(cell, "topk", "noise")
            rows.append(
                DotRow(title, (Dot(*noise, style="control"), Dot(*attack)), percent(attack[0]))
            )
            residual = cell.detail.get("residual") or {}
            table.append(
                {
                    "title": title,
                    "k": cell.detail.get("k"),
                    "attack": attack[0],
                    "noise": noise[0],
                    "rank_attack": _triple(cell, "rank", "attack")[0],
                    "rank_noise": _triple(cell, "rank", "noise")[0],
                    "residual": real(residual.get("median")),
                    "worst": real(residual.get("worst")),
                }
            )
        part: Part = {**model, "figure": None, "table": table}
        if any(d.value is not None for r in rows for d in r.dots):
            figure = dot_rows(rows, series=model["index"], x_label="top features that stay")
            alt = "Share of top features that stay: " + ", ".join(
                f"{r.label} {r.text}" for r in rows
            )
            part["figure"] = inline_svg(figure, f"stability-{model['index']}", alt)
            part["k"], part["eps"] = cells[0].detail.get("k"), real(cells[0].detail.get("eps"))
        out.append(part)
    return out


def _triple(cell: Cell, what: str, under: str) -> tuple[float | None, float | None, float | None]:
    values = reals((cell.detail.get(what) or {}).get(under))
    return (values[0], values[1], values[2]) if len(values) == 3 else (None, None, None)
