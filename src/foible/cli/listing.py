"""`foible list`."""

from __future__ import annotations

from typing import Annotated

import typer

from foible.cli.sharing import console


def listed(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[attacks|explanations|defences|detectors|threats|models]",
            help="What to list; without it, all.",
        ),
    ] = None,
) -> None:
    """List attacks, explanations, defences, detectors, threats and models, with what each needs."""
    from rich import box
    from rich.table import Table

    from foible.audit.catalogue import KINDS, entries

    found = entries(kind)
    paper = console()
    for group in KINDS:
        mine = [entry for entry in found if entry.kind == group]
        if not mine:
            continue
        table = Table(
            title=group,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("name", no_wrap=True)
        table.add_column("what", ratio=1)
        table.add_column("needs", no_wrap=True)
        table.add_column("source")
        for entry in mine:
            table.add_row(entry.name, entry.line, entry.access, entry.facts.cite)
        paper.print(table)
    paper.print("`foible show NAME` tells more.")
