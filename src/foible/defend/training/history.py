"""What a training was like, epoch by epoch: rows, a CSV, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from foible.core.errors import LogError
from foible.core.files import replace_file


@dataclass(frozen=True)
class Epoch:
    """One epoch. loss: mean over its steps; lr: at its end; clean, robust: validation accuracy.

    Both are None where nothing was held out, robust also where nothing is attacked. seconds: since
    the run began, pauses left out.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    clean: float | None
    robust: float | None
    seconds: float

    @property
    def worth(self) -> float | None:
        """What the best epoch is chosen by."""
        return self.clean if self.robust is None else self.robust


def write(folder: Path, rows: Sequence[Epoch]) -> None:
    """Write history.csv, whole or not at all; raises LogError where the disk does not take it."""
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow([f.name for f in fields(Epoch)])
    for row in rows:
        out.writerow(["" if v is None else v for v in asdict(row).values()])
    try:
        replace_file(folder / "history.csv", text.getvalue().encode())
    except OSError as error:
        raise LogError(
            f"history.csv could not be written to {folder} ({error.strerror or error}): make room "
            "and run the same command again, which goes on from the checkpoint"
        ) from error


def read(held: Sequence[dict[str, Any]]) -> list[Epoch]:
    """Return rows from a checkpoint."""
    return [Epoch(**row) for row in held]


def draw(folder: Path, rows: Sequence[Epoch]) -> None:
    """Write history.svg: clean and robust validation accuracy over the epochs; none without."""
    if not any(row.clean is not None for row in rows):
        return
    from foible.figures import Curve, inline_svg, labelled_lines

    at = [float(row.epoch) for row in rows]
    curves = [Curve("clean", at, [row.clean for row in rows], series=1)]
    if any(row.robust is not None for row in rows):
        curves.append(Curve("robust", at, [row.robust for row in rows], series=0))
    figure = labelled_lines(curves, x_label="epoch", y_label="validation accuracy")
    text = inline_svg(figure, "history", "validation accuracy by epoch")
    alone = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    (folder / "history.svg").write_text(alone, encoding="utf-8")
