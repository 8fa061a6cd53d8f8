"""The progress of a training on a terminal: epoch, time left, accuracy so far."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, Self

from foible.defend.training.history import Epoch


class Showing:
    """A bar on stderr, on a terminal and the main process only."""

    def __init__(self, epochs: int, steps: int, main: bool) -> None:
        self.epochs, self.steps = epochs, steps
        self.show = main and sys.stderr.isatty()
        self._stack = ExitStack()
        self._bar: Any = None
        self._task: Any = None

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

            bar: Any = Progress(
                TextColumn("{task.percentage:>3.0f} %"), BarColumn(12), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar = self._stack.enter_context(bar)
            self._task = bar.add_task("", total=self.epochs * self.steps)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def at(self, epoch: int, position: int, rows: list[Epoch]) -> None:
        """Say how far it is."""
        if self._bar is None:
            return
        said = f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}"
        if rows:
            last = rows[-1]
            parts = [f"loss {last.loss:.3f}"]
            parts += [] if last.clean is None else [f"clean {last.clean:.1%}"]
            parts += [] if last.robust is None else [f"robust {last.robust:.1%}"]
            said += ", last " + ", ".join(parts)
        done = epoch * self.steps + position
        self._bar.update(self._task, completed=done, description=said)
