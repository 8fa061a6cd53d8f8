"""The page of explanations: methods side by side, their scores, randomisation, drift with eps.

No method is ranked over several definitions: each score stands with its own, and with chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foible.audit.pictures import kept
from foible.audit.reading import Cell, Run, real, reals, whole
from foible.audit.sections import class_name, input_bounds, models
from foible.audit.textures import VERSIONS
from foible.audit.wording import MISSING, fraction
from foible.figures import Curve, inline_svg, input_tile, labelled_lines, shared_scale, signed_tile
from foible.figures.maps import drawing_range

Part = dict[str, Any]
SCORES = ("deletion", "insertion")
COUNTER_COLUMNS = ("input", "counterfactual", "change", "enough for its class")


def galleries(run: Run) -> list[Part]:
    """The same inputs, clean and adversarial, under every method."""
    out = []
    for model in models(run):
        cell = run.cell(model["name"], "explain-gallery")
        part: Part = {**model, "rows": [], "columns": [], "skipped": [], "attack": MISSING}
        if cell is not None:
            arrays = kept(run, cell, "clean", "adversarial", "clean_maps", "adversarial_maps")
            part["attack"] = str(cell.detail.get("attack") or MISSING)
            part["skipped"] = [
                {key: str(item.get(key)) for key in ("name", "reason")}
                for item in cell.detail.get("skipped") or []
            ]
            if arrays:
                part |= _gallery(run, cell, arrays)
        out.append(part)
    return out


def _gallery(run: Run, cell: Cell, arrays: list[Any]) -> Part:
    clean, adversarial, clean_maps, adversarial_maps = arrays
    titles = [str(m.get("title")) for m in cell.detail.get("methods") or []]
    drawn = drawing_range(input_bounds(run), clean, adversarial)
    rows = []
    for r, facts in enumerate(cell.detail.get("rows") or []):
        lines: list[list[str]] = [
            [input_tile(clean[r], "clean input", drawn)],
            [input_tile(adversarial[r], "adversarial input", drawn)],
        ]
        for m, title in enumerate(titles[: clean_maps.shape[1]]):
            # Methods have units of their own: each is shown relative to its two maps' largest.
            pair = clean_maps[r, m], adversarial_maps[r, m]
            scale = shared_scale(*pair)
            for line, values, name in zip(lines, pair, ("clean", "adversarial"), strict=True):
                line.append(signed_tile(values, f"{title}, {name} input", scale))
        seen = [class_name(run, facts.get(key)) for key in ("label_clean", "label_adv")]
        rows.append(
            {
                "true": class_name(run, facts.get("true")),
                "lines": list(zip(("clean", "attacked"), seen, lines, strict=True)),
            }
        )
    found = [m.get("residual") or {} for m in cell.detail.get("methods") or []]
    missed = [_missed(real(one.get("median"))) for one in found]
    return {"rows": rows, "columns": ["input", *titles], "residuals": [None, *missed]}


def _missed(share: float | None) -> str | None:
    if share is None:
        return None
    return "under 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def scores(run: Run) -> list[Part]:
    """Deletion and insertion of each method's maps: a chart each, and a table with chance."""
    out = []
    for model in models(run):
        cells = [c for c in run.of_kind("explanation", model["name"]) if "deletion" in c.detail]
        part: Part = {**model, "charts": [], "table": [_score_row(c) for c in cells]}
        for name in SCORES:
            lines, definition = _score_lines(cells, name)
            if not lines:
                continue
            figure = labelled_lines(
                lines,
                x_label="share of features deleted" if name == "deletion" else "share inserted",
                y_label="probability",
                by_area=True,
            )
            alt = f"{name}: " + ", ".join(f"{line.label}" for line in lines)
            svg = inline_svg(figure, f"{name}-{model['index']}", alt)
            part["charts"].append({"name": name, "figure": svg, "definition": definition})
        out.append(part)
    return out


def _score_lines(cells: list[Cell], name: str) -> tuple[list[Curve], str]:
    lines: list[Curve] = []
    definition = ""
    for cell in cells:
        found = cell.detail.get(name) or {}
        x, y = reals(found.get("shares")), reals(found.get("curve"))
        if not x or len(x) != len(y):
            continue
        band = reals(found.get("low")), reals(found.get("high"))
        low, high = band if all(len(b) == len(x) for b in band) else (None, None)
        control = str(cell.detail.get("method")) == "random_map"
        label = "random" if control else str(cell.detail.get("title") or cell.name)
        lines.append(Curve(label, x, y, low, high, series=len(lines), dashed=control))
        definition = str(found.get("definition") or definition)
    return lines, definition


def _score_row(cell: Cell) -> Part:
    row: Part = {"title": str(cell.detail.get("title") or cell.name), "n": cell.n}
    for name in SCORES:
        found = cell.detail.get(name) or {}
        mean, chance = reals(found.get("mean")), reals(found.get("chance"))
        row[name] = tuple(mean) if len(mean) == 3 else None
        row[f"{name}_chance"] = chance[0] if chance else None
    residual = cell.detail.get("residual") or {}
    row["residual"], row["worst"] = real(residual.get("median")), real(residual.get("worst"))
    return row


def sanity(run: Run) -> list[Part]:
    """One map while the net loses its layers, and how much of all maps is left."""
    out = []
    for model in models(run):
        cell = run.cell(model["name"], "explain-sanity")
        part: Part = {**model, "tiles": []}
        arrays = kept(run, cell, "maps", "x")
        if cell is not None and arrays:
            part |= {"title": str(cell.detail.get("title")), "n": cell.n}
            part["tiles"] = _sanity_tiles(run, cell, arrays[0], arrays[1][0])
            last = reals((cell.detail.get("rank") or [None])[-1])
            part["left"] = last[0] if last else None
        out.append(part)
    return out


def _sanity_tiles(run: Run, cell: Cell, maps: Any, x: Any) -> list[Part]:
    layers, ranks = cell.detail.get("layers") or [], cell.detail.get("rank") or []
    drawn = drawing_range(input_bounds(run), x[None])
    tiles: list[Part] = [
        {"caption": "input", "tile": input_tile(x, "input", drawn), "rank": None},
        {"caption": "trained", "tile": _own(maps[0], "map of the trained net"), "rank": 1.0},
    ]
    for i, values in enumerate(maps[1:]):
        layer = str(layers[i]) if i < len(layers) else MISSING
        rank = reals(ranks[i] if i < len(ranks) else None)
        tiles.append(
            {
                "caption": f"… {layer}",
                "tile": _own(values, f"map after {layer} and all later layers were shuffled"),
                "rank": rank[0] if rank else None,
            }
        )
    return tiles


def _own(values: Any, alt: str) -> str:
    return signed_tile(values, alt, shared_scale(np.asarray(values)))


def drift(run: Run) -> list[Part]:
    """How much of a map stays as eps grows, under noise and under attacks."""
    out = []
    for model in models(run):
        cells = [c for c in run.of_kind("explanation", model["name"]) if "lines" in c.detail]
        for cell in cells:
            eps = reals(cell.detail.get("eps"))
            lines, table = [], []
            for name, points in (cell.detail.get("lines") or {}).items():
                triples = [reals(point) for point in points]
                if len(triples) != len(eps) or any(len(t) != 3 for t in triples):
                    continue
                low, high = ([t[i] for t in triples] for i in (1, 2))
                y, noise = [t[0] for t in triples], "noise" in name
                lines.append(Curve(name, eps, y, low, high, series=model["index"], dashed=noise))
                table.append({"name": name, "values": y})
            part: Part = {**model, "figure": None, "table": table, "n": cell.n}
            part |= {"title": str(cell.detail.get("title")), "k": whole(cell.detail.get("k"))}
            part |= {key: whole(cell.detail.get(key)) for key in ("steps", "map_steps")}
            part["left_out"] = str(cell.detail.get("left_out") or "")
            part["eps"] = [fraction(e) if e is not None else MISSING for e in eps]
            if lines:
                figure = labelled_lines(lines, x_label="Linf eps", y_label="top features that stay")
                alt = f"Share of the top features of {part['title']} that stay, against eps"
                part["figure"] = inline_svg(figure, f"drift-{model['index']}", alt)
            out.append(part)
    return out


def textures(run: Run) -> list[Part]:
    """What is left of each model without texture and without shape, and where its maps look."""
    out = []
    for model in models(run):
        cell = run.cell(model["name"], "explain-texture")
        part: Part = {**model, "rows": [], "tiles": []}
        detail = {} if cell is None else cell.detail
        rates = [reals(rate) for rate in detail.get("rates") or []]
        if cell is not None and len(rates) == len(VERSIONS):
            part["rows"] = [
                {"name": name, "rate": rate[0], "interval": None if None in rate else rate[1:]}
                for name, rate in zip(VERSIONS, rates, strict=True)
                if len(rate) == 3
            ]
            part |= {key: whole(detail.get(key)) for key in ("k", "n", "maps")}
            spread = {key: reals(detail.get(key)) for key in ("edges", "gini")}
            part |= {k: v if len(v) == 3 and None not in v else None for k, v in spread.items()}
            part["tiles"] = _texture_tiles(run, cell)
        out.append(part)
    return out


def _texture_tiles(run: Run, cell: Cell) -> list[Part]:
    arrays = kept(run, cell, "shown")
    seen = cell.detail.get("seen") or []
    if not arrays or len(seen) != len(VERSIONS):
        return []
    true = (cell.detail.get("true") or [None])[0]
    drawn = drawing_range(input_bounds(run), arrays[0])
    return [
        {
            "tile": input_tile(image, f"an input {name}", drawn),
            "name": name,
            "label": class_name(run, label),
            "wrong": label != true,
        }
        for image, name, label in zip(arrays[0], VERSIONS, seen, strict=True)
    ]


def counterfactuals(run: Run) -> list[Part]:
    """The nearest input of another class, what was changed, and what is enough for the class."""
    out = []
    for model in models(run):
        cell = run.cell(model["name"], "explain-counter")
        part: Part = {**model, "rows": []}
        arrays = kept(run, cell, "x", "other", "part")
        if cell is not None and arrays:
            part["rows"] = _counter_rows(run, cell, *arrays)
        out.append(part)
    return out


def _counter_rows(run: Run, cell: Cell, x: Any, other: Any, enough: Any) -> list[Part]:
    drawn = drawing_range(input_bounds(run), x, other)
    rows = []
    for r, facts in enumerate(cell.detail.get("rows") or []):
        change = other[r] - x[r]
        tiles = [
            input_tile(x[r], "input", drawn),
            input_tile(other[r], "counterfactual", drawn),
            signed_tile(change, "what was changed", float(np.abs(change).max()) or 1.0),
            input_tile(enough[r], "what is enough for the class", drawn),
        ]
        rows.append(
            {
                "true": class_name(run, facts.get("true")),
                "label": class_name(run, facts.get("label")),
                "found": bool(facts.get("found")),
                "distance": real(facts.get("distance")),
                "enough": bool(facts.get("enough")),
                "kept": real(facts.get("kept")),
                "tiles": list(zip(COUNTER_COLUMNS, tiles, strict=True)),
            }
        )
    return rows
