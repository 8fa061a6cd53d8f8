"""`foible report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="A run folder, or the log.jsonl in it.")
    ],
) -> None:
    """Write report.html of a run folder again, finished or not."""
    from foible.audit import write_report

    folder = log.parent if log.is_file() else log
    typer.echo(write_report(folder))
