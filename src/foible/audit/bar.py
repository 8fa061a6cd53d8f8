"""The progress bar of an audit: cells weighted by cost, rows as they finish inside a cell."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from foible.core.progress import listening


class Bar:
    """A bar on stderr; None shows it on a terminal only, False never.

    cells: (title, cost) in the order in which they will begin or be skipped.
    """

    def __init__(self, cells: list[tuple[str, float]], show: bool | None, folder: Path) -> None:
        self.cells, self.place = cells, 0
        self.show = sys.stderr.isatty() if show is None else show
        self.folder = folder
        self._stack = ExitStack()
        self._progress: Any = None
        self._task: Any = None
        self._within, self._rows = 0.0, 1

    def __enter__(self) -> Self:
        if self.show:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = self._stack.enter_context(
                Progress(
                    TextColumn("{task.percentage:>3.0f} %"), BarColumn(30),
                    TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                    TextColumn("{task.description}"),
                    console=Console(stderr=True), transient=True,
                )
            )  # fmt: skip
            total = sum(cost for _, cost in self.cells)
            self._task = self._progress.add_task("", total=total)
        self._stack.enter_context(listening(self._tick))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin(self, rows: int) -> None:
        """Start the next cell, which will tick about `rows` times."""
        self._within, self._rows = 0.0, max(1, rows)
        self._say(self.cells[self.place][0])

    def skip(self) -> None:
        """Pass a cell that was already done; it leaves the total, so that the rest stays true."""
        cost = self.cells[self.place][1]
        self.place += 1
        if self._progress is not None:
            total = self._progress.tasks[0].total - cost
            self._progress.update(self._task, total=max(total, 1e-9))

    def end(self) -> None:
        """Finish the cell."""
        self._advance(self.cells[self.place][1] - self._within)
        self.place += 1

    def _tick(self, rows: int) -> None:
        cost = self.cells[self.place][1] if self.place < len(self.cells) else 0.0
        step = min(rows / self._rows * cost, 0.95 * cost - self._within)
        if step > 0:
            self._within += step
            self._advance(step)

    def _advance(self, amount: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, advance=amount)

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=text)
