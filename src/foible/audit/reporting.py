"""The report: one HTML file that is a pure function of the run folder.

The same folder gives the same bytes: no dates, no machine, no order of finishing. The file needs no
network and no JavaScript; a content security policy in it forbids both. All text of the run is
escaped.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from foible.audit import gallery, pictures, sections, spending
from foible.audit.reading import SCHEMA, Run, read_run
from foible.audit.verdicts import derived
from foible.audit.wording import count, fraction, number, percent, score, span
from foible.core.errors import LogError, MissingExtra

NAME = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder.

    Args:
        folder: a run folder (see `read_run`), finished or not; what is not there is shown as not
            measured.

    Returns:
        The path of the report. An older report is replaced in one move, never half written.

    Raises:
        LogError: the folder cannot be read, or the report cannot be written; the message says what
        to do.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    run = read_run(folder)
    page = render(run).encode("utf-8", "replace")
    path, draft = run.folder / NAME, run.folder / f".{NAME}.{os.getpid()}"
    try:
        draft.write_bytes(page)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise LogError(
            f"{path} cannot be written ({error.strerror}). The measurements are safe: make room or "
            "grant the right to write, or copy the folder elsewhere and run `foible report` on it."
        ) from error
    return path


def render(run: Run) -> str:
    """The report of a run as text."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra("the report needs jinja2: run `pip install jinja2`") from error

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (percent, span, number, fraction, count, score)
    environment.filters.update({f.__name__: f for f in filters})
    # Only markup that foible made itself (figures, tiles, the style sheet) goes through `raw`.
    environment.filters["raw"] = Markup
    environment.globals["spoiled"] = lambda names: sections.spoiled(run, names)
    bounds = sections.input_bounds(run)
    page = environment.get_template("report.html.j2").render(
        header=sections.header(run),
        models=sections.models(run),
        verdicts=sections.verdicts(run),
        follow=pictures.follow(run),
        distances=pictures.distances(run),
        walks=pictures.walks(run),
        bends=pictures.bends(run),
        curves=pictures.curves(run),
        attacks=sections.attacks(run),
        spending=spending.spending(run),
        examples=pictures.examples(run),
        stability=pictures.stability(run),
        gallery=gallery.galleries(run),
        scores=gallery.scores(run),
        sanity=gallery.sanity(run),
        drift=gallery.drift(run),
        textures=gallery.textures(run),
        counterfactuals=gallery.counterfactuals(run),
        checks=sections.checks(run),
        costs=sections.costs(run),
        provenance=sections.provenance(run),
        stability_names=[cell.name for cell in run.of_kind("stability")],
        bounds=f"{number(bounds[0])} to {number(bounds[1])}" if bounds else "unbounded",
        style=(_TEMPLATES / "style.css").read_text("utf-8"),
        numbers=Markup(embedded(run)),
    )
    return page.rstrip() + "\n"


def embedded(run: Run) -> str:
    """Plan, log and derived figures as JSON, safe inside a `<script>`; NaN becomes null."""
    content = {
        "schema": SCHEMA,
        "plan": run.plan,
        "log": [cell.line for cell in run.cells.values()],
        "derived": derived(run),
    }
    text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "<" cannot end or open anything inside the script; JSON readers give it back.
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
