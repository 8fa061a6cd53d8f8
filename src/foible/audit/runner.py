"""The runner: cells in order, each logged when done; a killed audit goes on where it stopped."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foible
from foible.attacks.base import check_batch, check_labels
from foible.audit import cells as work
from foible.audit import thesis
from foible.audit.bar import Bar
from foible.audit.breaking import breaker_cell
from foible.audit.cells import Cell, Context, Measured
from foible.audit.checks import CHECKS, EVERY_ATTACK
from foible.audit.distances import CurveWork
from foible.audit.explaining import explanation_cells
from foible.audit.log import SCHEMA, Log, write_atomically
from foible.audit.planning import Plan
from foible.audit.textures import TextureWork
from foible.core.access import Access
from foible.core.errors import AccessError, FoibleError, InputError
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.core.spec import digest
from foible.defend.breaking import defence_of
from foible.models import TorchModel, as_model
from foible.models.identity import hash_tensors


@dataclass(frozen=True)
class Report:
    """What an audit ended with.

    folder: the run folder. cells: the log's lines, in order. passed: every threshold met and no
    failed check behind it. exit_code: 0 passed or not asked, 1 a threshold failed, 3
    incomplete. report: the HTML file. notes: what the reader should know (a resume, a cut line).
    """

    folder: Path
    cells: list[dict[str, Any]]
    passed: bool
    exit_code: int
    report: Path
    checks_failed: list[dict[str, Any]] = field(default_factory=list)
    thresholds: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True


def plan_cells(plan: Plan, defence: str = "") -> list[Cell]:
    """Return the cells of a plan for one model, in an order that respects what they read.

    defence: the model's own, as `foible.defend.breaker` names it: what breaks it is run as well.
    """
    out = [Cell("clean", "clean", {}, work.clean, cost=0.2)]
    for table in plan.attacks:
        cost = {"pgd": 5.0, "mim": 1.5, "smoothgrad_attack": 3.0, "bim": 1.5}.get(
            table["recipe"], 0.4
        )
        out.append(Cell("attack", table["name"], dict(table), work.AttackWork(table), cost=cost))
    if defence and plan.attacks:
        out.append(breaker_cell(plan, defence))
    for norm in plan.curves:
        read = tuple(
            str(t["name"]) for t in plan.attacks
            if t["norm"] == norm and t["recipe"] != "random_noise"
        )  # fmt: skip
        quick = plan.name == "quick"
        made = CurveWork(norm, 60 if quick else 300, read, 500 if quick else None)
        part = {"norm": norm, "steps": made.steps, "most": made.most}
        out.append(Cell("curve", f"curve-{norm}", part, made, read, cost=10))
    if plan.thesis:
        for name, page, cost in (
            ("follow", thesis.follow, 16.0), ("distance", thesis.distance, 8.0),
            ("frames", thesis.frames, 0.4), ("bent", thesis.bent, 2.0),
        ):  # fmt: skip
            out.append(Cell("thesis", f"thesis-{name}", {}, page, cost=cost))
    names = tuple(str(table["name"]) for table in plan.attacks)
    after = ("pgd-linf",) if "pgd-linf" in names else ()
    for explainer in plan.explanations:
        stable = work.StabilityWork(explainer)
        cost = 0.3 if explainer in ("saliency", "gradient_x_input") else 7.0
        out.append(Cell("stability", f"stability-{explainer}", {}, stable, after, cost))
    out.append(Cell("strips", "strips", {}, work.StripsWork(), after, 0.5))
    if plan.gallery:
        out += explanation_cells(plan.explanations, after)
        if plan.explanations:
            out.append(Cell("explanation", "explain-texture", {}, TextureWork(), (), 2.0))
    if plan.checks:
        for c in CHECKS:
            reads = names if c.after == EVERY_ATTACK else c.after
            out.append(Cell("check", c.name, {}, c, reads, c.cost))
    return out


def keys(plan: Plan, cells: Sequence[Cell], identity: Any, data: str) -> dict[str, str]:
    """Return each cell's identity: a hash of all that its numbers depend on."""
    base = {
        "schema": SCHEMA, "foible": foible.__version__, "model": identity, "data": data,
        "seed": plan.seed, "eps": plan.eps, "torch": torch.__version__,
    }  # fmt: skip
    found: dict[str, str] = {}
    for cell in cells:
        own = {"kind": cell.kind, "name": cell.name, "part": dict(cell.part)}
        reads = [found[name] for name in cell.after if name in found]
        found[cell.name] = digest([base, own, reads])
    return found


def run(
    model: Any,
    data: tuple[Tensor, Tensor],
    out: str | Path = "runs/first",
    *,
    plan: Plan | None = None,
    fail_under: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Report:
    """Audit one model or several, and write log, tensors and report.html into a folder.

    model: an `nn.Module`, a wrapped model, or a dict of them by name. data: x (B, *shape)
    inside the bounds and y (B,) int64. out: the run folder; finished cells found there are not
    run again. plan: what to do, `Plan.preset("quick")` if None. fail_under: whether a missed
    threshold or a failed check makes the exit code 1. about: what the report should call
    things: "classes" (names), "data", "command", "sources" (of models, by name).
    progress: a bar on stderr; None shows it on a terminal.

    Raises InputError for data that cannot be audited, before any work; LogError for a folder
    that cannot be written. Ctrl-C ends it early: finished cells are kept, `complete` is False.

    >>> import foible, tempfile
    >>> x, y = foible.zoo.sample()
    >>> plan = foible.audit.Plan(attacks=(), curves=(), explanations=(), thesis=False)
    >>> out = tempfile.mkdtemp()
    >>> r = foible.audit.run(foible.zoo.load("standard"), (x[:50], y[:50]), out, plan=plan)
    >>> r.exit_code
    0
    """
    plan = Plan.preset() if plan is None else plan
    plan.validate()
    models = _models(model)
    x, y = _subset(*_checked(data, models), plan)
    _fitting(models, x, y)
    folder = Path(out)
    data_hash = hash_tensors([("", x), ("", y)])
    cells = {name: plan_cells(plan, defence_of(held)) for name, held in models.items()}
    identities = {name: held.identity() for name, held in models.items()}
    found = {name: keys(plan, cells[name], identities[name], data_hash) for name in models}
    log = Log(folder)
    try:
        plan_file = _plan_file(plan, identities, (data_hash, x, about or {}), found, cells)
        plan_file["fail_under"] = fail_under
        write_atomically(folder / "plan.json", json.dumps(plan_file, indent=1).encode())
        wanted = {key for by_name in found.values() for key in by_name.values()}
        notes = _notes(log, wanted)
        jobs = [(m, cell) for m in models for cell in cells[m]]
        complete = _work(jobs, models, (x, y), plan, found, log, progress)
    finally:
        log.close()
    return _report(folder, log, found, complete, fail_under, notes)


def _work(
    jobs: Sequence[tuple[str, Cell]],
    models: Mapping[str, TorchModel],
    data: tuple[Tensor, Tensor],
    plan: Plan,
    found: Mapping[str, Mapping[str, str]],
    log: Log,
    progress: bool | None,
) -> bool:
    """Run what is not yet done; return whether everything was."""
    training = {name: any(m.training for m in held.net.modules()) for name, held in models.items()}
    with Bar([(f"{m}: {c.name}", c.cost) for m, c in jobs], progress, log.folder) as bar:
        try:
            for name, cell in jobs:
                key = found[name][cell.name]
                if log.finished(key):
                    bar.skip()
                    continue
                bar.begin(len(data[0]))
                results = _reader(log, found[name])
                context = Context(models[name], *data, plan, training[name], results)
                started = time.monotonic()
                try:
                    measured = cell.work(context)
                except AccessError as error:
                    # Nothing went wrong: the model gives less than this measurement asks.
                    detail = {**getattr(cell.work, "says", {}), "reason": str(error)}
                    measured = Measured(None, 0, status="not measured", detail=detail)
                except Exception as error:
                    # One cell that cannot be measured must not cost the others, whatever the
                    # model raises in it.
                    detail = {**getattr(cell.work, "says", {}), "error": _told(error)}
                    measured = Measured(None, 0, status="failed", detail=detail)
                log.append(_line(key, cell, name, measured, time.monotonic() - started),
                           measured.tensors)  # fmt: skip
                bar.end()
        except KeyboardInterrupt:
            return False
    return all("error" not in log.lines[found[m][c.name]]["detail"] for m, c in jobs)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, FoibleError) else f"{type(error).__name__}: {error}"


def _line(key: str, cell: Cell, model: str, measured: Measured, seconds: float) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "key": key, "kind": cell.kind, "name": cell.name, "model": model,
        "part": dict(cell.part), "n": measured.n, "value": measured.value,
        "interval": measured.interval, "forwards": measured.forwards,
        "backwards": measured.backwards, "status": measured.status, "detail": measured.detail,
        "seconds": round(seconds, 3),
    }  # fmt: skip


def _reader(log: Log, names: Mapping[str, str]) -> Any:
    def result(name: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        from safetensors.torch import load_file

        line = log.lines.get(names.get(name, ""))
        if line is None or line["value"] is None:
            return None
        path = log.tensors(line["key"])
        return line, (load_file(str(path)) if line.get("tensors") else {})

    return result


def _models(model: Any) -> dict[str, TorchModel]:
    named = dict(model) if isinstance(model, Mapping) else {"model": model}
    held: dict[str, TorchModel] = {}
    for name, one in named.items():
        wrapped = as_model(one)
        if not isinstance(wrapped, TorchModel):
            raise InputError(f"the audit needs a torch model, and {name!r} is {type(one).__name__}")
        for label, value in wrapped.net.state_dict().items():
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"the weight {label!r} of {name!r} is NaN or infinite: "
                    "load the last good checkpoint"
                )
        held[str(name)] = wrapped
    return held


def _checked(data: Any, models: Mapping[str, TorchModel]) -> tuple[Tensor, Tensor]:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError("data must be the pair (x, y): inputs (B, *shape) and labels (B,)")
    x, y = data
    for held in models.values():
        check_batch(x, y, None, held.bounds)
    if len(torch.unique(y)) < 2:
        raise InputError(
            f"all {len(y)} labels are class {int(y[0])}: accuracy under attack on one class says "
            "nothing of the others. Give samples of at least two classes"
        )
    return x.detach(), y.detach().long()


def _fitting(models: Mapping[str, TorchModel], x: Tensor, y: Tensor) -> None:
    """Try one sample on each model, and its classes on the labels: the first model calls."""
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x, y)
    for held in models.values():
        oracle = Oracle(held, len(x), Access.SCORES)
        with oracle.session(), torch.no_grad():
            oracle.scores(x[:1], rows.take(index[:1]))
        check_labels(rows, oracle.classes)


def _subset(x: Tensor, y: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    if len(x) <= plan.samples:
        return x, y
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(plan.seed))
    chosen = order[: plan.samples].sort().values
    return x[chosen], y[chosen]


def _plan_file(
    plan: Plan,
    identities: Mapping[str, dict[str, Any]],
    data: tuple[str, Tensor, Mapping[str, Any]],
    found: Mapping[str, Mapping[str, str]],
    cells: Mapping[str, Sequence[Cell]],
) -> dict[str, Any]:
    digest_, x, about = data
    classes = about.get("classes")
    sources = about.get("sources") or {}
    models = [
        {"name": m, "hash": digest(identity, 64), "source": sources.get(m), **identity}
        for m, identity in identities.items()
    ]
    bounds = next(iter(identities.values()))["bounds"]
    return {
        "schema": SCHEMA, "foible": foible.__version__, "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "seed": plan.seed, "preset": plan.name, "eps": plan.eps, "models": models,
        "command": str(about.get("command", "foible.audit.run(...)")),
        "data": {"name": str(about.get("data", "data")), "hash": digest_, "n": len(x),
                 "shape": list(x.shape[1:]),
                 "classes": None if classes is None else list(classes)},
        "bounds": [b if abs(b) < 1e300 else None for b in bounds],
        "thresholds": [dict(t) for t in plan.thresholds],
        "cells": [
            {"key": found[m][c.name], "kind": c.kind, "name": c.name, "model": m}
            for m in identities for c in cells[m]
        ],
    }  # fmt: skip


def _notes(log: Log, wanted: set[str]) -> list[str]:
    notes = []
    if log.dropped:
        notes.append("the log ended in a torn line (a kill or a full disk): it was cut off")
    done = sum(1 for key in wanted if log.finished(key))
    if done:
        notes.append(f"resumed: {done} of {len(wanted)} cells were already done")
    other = len(set(log.lines) - wanted)
    if other:
        notes.append(
            f"{other} cells in this folder belong to another model, data or plan: they are kept "
            "and not shown"
        )
    return notes


def _report(
    folder: Path, log: Log, found: Mapping[str, Mapping[str, str]], complete: bool,
    fail_under: bool, notes: list[str],
) -> Report:  # fmt: skip
    from foible.audit.reading import read_run
    from foible.audit.reporting import write_report
    from foible.audit.verdicts import failed_checks, thresholds

    path = write_report(folder)
    seen = read_run(folder)
    verdicts = thresholds(seen)
    failed = [
        {"model": m, "name": c.name, **c.detail}
        for m in seen.models
        for c in failed_checks(seen, m)
    ]
    passed = complete and not failed and all(v.state == "met" for v in verdicts)
    code = 3 if not complete else 1 if fail_under and not passed else 0
    # One key may stand for two models: the same weights under two names.
    lines = [
        {**log.lines[key], "model": model}
        for model, names in found.items() for key in names.values() if key in log.lines
    ]  # fmt: skip
    return Report(
        folder, lines, passed, code, path, failed, [dict(v.__dict__) for v in verdicts], notes,
        complete,
    )  # fmt: skip


__all__ = ["Report", "plan_cells", "run"]
