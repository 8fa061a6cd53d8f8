"""`foible audit`."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foible.cli.sharing import (
    BoundsOption,
    MeanOption,
    ModelOption,
    OutputsOption,
    StdOption,
    WeightsOption,
    console,
    loaded,
    model_table,
    refuse_model_options,
)

if TYPE_CHECKING:
    from torch import Tensor

    from foible.audit import Plan
    from foible.audit.runner import Report
    from foible.audit.verdicts import Tile
    from foible.models import TorchModel

_WORDS = {"met": "met", "missed": "missed", "spoiled": "doubtful: a check failed"}
_STYLES = {"met": "green", "missed": "red", "spoiled": "yellow"}


def audit(
    model: ModelOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What the report calls the model.")
    ] = None,
    weights: WeightsOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="An .npz with x and y, a folder of class folders of pictures, "
            "package.module:dataset, zoo:sample or zoo:fashion_mnist.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="An .npy with y, where --data has only x."),
    ] = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            metavar="SIZE",
            help="The largest change of a value, such as 8/255; L2 and L1 sizes follow from it. "
            "A tenth of the bounds' range if not given.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Use at most so many samples, balanced.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="quick|full", help="How much; quick if none.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Fixes all randomness; 0.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run folder; what is finished in it is not run again."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="A TOML plan; options win."),
    ] = None,
    print_plan: Annotated[
        bool, typer.Option("--print-plan", help="Print the plan as TOML and do nothing else.")
    ] = False,
    fail_under: Annotated[
        bool,
        typer.Option("--fail-under", help="Exit with 1 if a threshold is missed or a check fails."),
    ] = False,
) -> None:
    """Audit a model and write a report; without --model, two bundled ones side by side.

    A killed or interrupted audit goes on where it stopped when the same command runs again.
    Exit codes: 0 done, 1 a threshold missed (with --fail-under), 2 a mistake in the call,
    3 incomplete.
    """
    try:
        table = _from_file(plan)
        if model is None:
            refuse_model_options(weights, bounds, mean, std, outputs)
        else:
            own = model_table(model, weights, bounds, mean, std, outputs)
            table["models"] = [{"name": name or _name(model), **own}]
        if data is not None or labels is not None:
            table["data"] = {"source": data} if data is not None else {**table.get("data", {})}
            table["data"] |= {"labels": str(labels)} if labels is not None else {}
        models = _named(table, name)
        asked = _plan(table["plan"], preset, eps, seed, samples, models)
        chosen = _data_table(table, models)
        folder = str(out or table.get("out") or _folder(models))
        if print_plan:
            typer.echo(asked.to_toml(models, chosen, folder), nl=False)
            return
        done = _run(asked, models, chosen, folder, fail_under)
    except KeyboardInterrupt:
        typer.echo("foible: stopped. The same command goes on from there.", err=True)
        raise typer.Exit(3) from None
    except Exception as error:
        if not _disk_full(error):
            raise
        typer.echo(f"foible: {error}", err=True)
        raise typer.Exit(3) from error
    tell(done, fail_under)
    raise typer.Exit(done.exit_code)


def _run(
    plan: Plan,
    models: list[dict[str, Any]],
    data: Mapping[str, Any],
    folder: str,
    fail_under: bool,
) -> Report:
    from foible.audit import run

    held = {str(table["name"]): loaded(_without_name(table)) for table in models}
    x, y, classes = _samples(plan, data, held)
    command = "foible " + shlex.join(sys.argv[1:])
    report: Report = run(
        held,
        (x, y),
        folder,
        plan=plan,
        fail_under=fail_under,
        about={
            "command": command,
            "classes": classes,
            "data": _data_name(str(data["source"])),
            "sources": {str(table["name"]): str(table["source"]) for table in models},
        },
    )
    return report


def _samples(
    plan: Plan, data: Mapping[str, Any], held: Mapping[str, TorchModel]
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Load the data for the first model and try them on all."""
    from foible.audit.sources import check_fit, load_data

    x, y, classes = load_data(
        str(data["source"]),
        plan.samples,
        plan.seed,
        labels=data.get("labels"),
        model=next(iter(held.values())),
        note=lambda text: typer.echo(f"note: {text}", err=True),
    )
    for name, model in held.items():
        check_fit(model, x, y, name)
    named = data.get("classes")
    return x, y, tuple(str(n) for n in named) if named else classes


def _disk_full(error: BaseException) -> bool:
    """Say whether an error of the log came from a full disk: what is finished is kept."""
    from foible.core.errors import LogError

    full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, LogError) and full


def _from_file(path: Path | None) -> dict[str, Any]:
    """Return the tables of a plan file, and its plan under "plan" (None without a file)."""
    from foible.audit import Plan
    from foible.core.errors import InputError

    if path is None:
        return {"plan": None}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the plan {path} cannot be read ({error}): `foible audit --print-plan > plan.toml` "
            "writes one"
        ) from error
    plan, rest = Plan.from_toml(text)
    return {**rest, "plan": plan}


def _plan(
    held: Plan | None,
    preset: str | None,
    eps: str | None,
    seed: int | None,
    samples: int | None,
    models: list[dict[str, Any]],
) -> Plan:
    """Return the plan of the file or of the preset, changed by the options that were given."""
    from foible.audit import Plan
    from foible.audit.sources import parse_number
    from foible.core.errors import InputError

    if held is not None and preset is not None:
        raise InputError("--preset and --plan exclude each other: the plan file says what is done")
    if samples is not None and samples < 2:
        raise InputError(f"--samples {samples}: at least 2, so that there are two classes")
    size = None if eps is None else parse_number(eps)
    if held is not None:
        changes: dict[str, Any] = {"eps": size, "seed": seed, "samples": samples}
        plan = replace(held, **{k: v for k, v in changes.items() if v is not None})
        plan.validate()
        return plan
    if size is None:
        low, high = (parse_number(b) for b in models[0].get("bounds", (0, 1)))
        size = 0.1 * (high - low) if 0 < high - low < 1e30 else None
    return Plan.preset(preset or "quick", eps=size, seed=seed or 0, samples=samples)


def _named(table: Mapping[str, Any], name: str | None) -> list[dict[str, Any]]:
    """Return the tables of the models, each with a name of its own."""
    from foible.core.errors import InputError

    models = table.get("models") or [
        {"name": "standard", "source": "zoo:standard"},
        {"name": "hardened", "source": "zoo:hardened"},
    ]
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise InputError("models of the plan are tables: write [[models]] above each")
    models = [{"name": _name(str(m.get("source", f"model {i + 1}"))), **m}
              for i, m in enumerate(models)]  # fmt: skip
    if name is not None:
        if len(models) > 1:
            raise InputError(f"--name {name} and {len(models)} models: name them in the plan file")
        models[0]["name"] = name
    names = [str(m["name"]) for m in models]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"two models are called {twice[0]!r}: give each a name of its own")
    return models


def _data_table(table: Mapping[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    from foible.core.errors import InputError

    data = table.get("data")
    if data is None:
        if any(not str(m.get("source", "")).startswith("zoo:") for m in models):
            raise InputError(
                "--data is missing: give samples of what the model is for, an .npz with arrays x "
                "and y, a folder of class folders with pictures, or package.module:dataset "
                "(zoo:sample is the bundled Fashion-MNIST)"
            )
        return {"source": "zoo:sample"}
    if not isinstance(data, dict) or not isinstance(data.get("source"), str):
        raise InputError('the data of the plan have no source: write source = "images.npz"')
    if unknown := sorted(set(data) - {"source", "labels", "classes"}):
        raise InputError(f"data of the plan hold {', '.join(unknown)}: source, labels or classes")
    return data


def _without_name(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "name"}


def _name(source: str) -> str:
    """Name a model after its source: "standard", or "models.make" for my.models:make."""
    module, _, thing = source.partition(":")
    return thing if module == "zoo" else f"{module.rpartition('.')[2]}.{thing}".strip(".")


def _folder(models: list[dict[str, Any]]) -> str:
    """Name a run folder: runs/first for the bundled models, else after the model."""
    if all(str(m.get("source", "")).startswith("zoo:") for m in models) and len(models) > 1:
        return "runs/first"
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(models[0]["name"]))
    return f"runs/{plain.strip('.-') or 'model'}"


def _data_name(source: str) -> str:
    bundled = {"zoo:sample": "Fashion-MNIST sample", "zoo:fashion_mnist": "Fashion-MNIST test set"}
    return bundled.get(source, source)


def tell(report: Report, fail_under: bool) -> None:
    """Print verdicts, failed checks and where the report lies."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from foible.audit.reading import read_run
    from foible.audit.verdicts import tiles

    run = read_run(report.folder)
    paper = console()
    for note in report.notes:
        paper.print(f"note: {note}", soft_wrap=True)
    columns = {name: {tile.title: tile for tile in tiles(run, name)} for name in run.models}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(Text(name))
    for title in dict.fromkeys(title for column in columns.values() for title in column):
        row = [_tile(column[title]) if title in column else Text("") for column in columns.values()]
        table.add_row(Text(title), *row)
    paper.print(table)
    for check in report.checks_failed:
        paper.print(Text(f"failed check, {check['model']}: {check.get('title')}", style="yellow"))
        measured, expected = check.get("measured"), check.get("expected")
        paper.print(f"  measured {measured}; expected {expected}", soft_wrap=True)
        paper.print(f"  {check.get('advice')}", soft_wrap=True)
    _tell_rest(report, fail_under)


def _tell_rest(report: Report, fail_under: bool) -> None:
    """Print what is missing, what the thresholds mean, and the path of the report."""
    paper = console()
    for cell in report.cells:
        if "error" in cell["detail"]:
            where = f"{cell['model']}, {cell['name']}"
            paper.print(f"not measured, {where}: {cell['detail']['error']}", soft_wrap=True)
    if not report.complete:
        paper.print(
            "Incomplete. Finished cells are kept: the same command goes on from there.",
            soft_wrap=True,
        )
    missed = any(t["state"] == "missed" for t in report.thresholds)
    if missed and not fail_under:
        paper.print("A threshold is missed; with --fail-under the exit code would be 1.")
    elif report.exit_code == 1:
        paper.print("A threshold is missed, or a check behind it failed: exit code 1.")
    paper.print(f"Report: {report.report}", soft_wrap=True)


def _tile(tile: Tile) -> Any:
    """Write one figure of a model, with its interval and what became of its threshold."""
    from rich.text import Text

    from foible.audit.wording import count, percent, span

    figure = count(tile.value) if tile.kind == "checks" else percent(tile.value)
    if tile.kind == "checks" and tile.value is None:
        figure = "not measured"
    text = Text(figure, style=_STYLES.get(tile.state, ""))
    if tile.value is not None and tile.interval is not None:
        text.append(f"  ({span(tile.interval)})", style="dim")
    said = [f"at least {percent(v.at_least)}: {v.state}" for v in tile.verdicts]
    if tile.state == "spoiled":
        said.append(_WORDS["spoiled"])
    if said:
        text.append(f"\n{'; '.join(said)}", style=_STYLES.get(tile.state, ""))
    return text
