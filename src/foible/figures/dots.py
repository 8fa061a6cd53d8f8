"""Dot plots: a row for each thing compared, a dot for its value, a line for its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foible.figures.canvas import (
    INK,
    MUTED,
    PAPER,
    RULE,
    blank,
    drawn,
    percent_axis,
    series_ink,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Dot:
    """One measured share in 0..1 with its interval.

    `style` is "main", "control" (hollow) or "full" (a diamond).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    style: str = "main"


@dataclass(frozen=True)
class DotRow:
    """A label on the left, dots on one line, a figure in words on the right."""

    label: str
    dots: tuple[Dot, ...]
    text: str


@drawn
def dot_rows(rows: Sequence[DotRow], *, series: int = 0, x_label: str = "") -> Figure:
    """A horizontal dot plot of shares from 0 to 100 %.

    Args:
        rows: from top to bottom. A dot whose value is None is left out: nothing was measured there.
        series: the place of the model, which picks its ink.
        x_label: what the shares are.
    """
    figure, axes = blank(height=62 + 27 * max(len(rows), 1))
    at = np.arange(len(rows), dtype=np.float64)
    for y, row in zip(at, rows, strict=True):
        for dot in sorted(row.dots, key=lambda d: d.style != "control"):
            _draw(axes, float(y), dot, series_ink(series))
    percent_axis(axes, "x")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(at, [shorten(row.label) for row in rows])
    axes.tick_params(axis="y", colors=INK, pad=7)
    axes.hlines(at, 0, 1, color=RULE, linewidth=0.8, zorder=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(at, [row.text for row in rows])
    right.tick_params(axis="y", colors=INK, pad=2)
    right.spines["right"].set_visible(False)
    axes.set_xlabel(x_label)
    return figure


def _draw(axes: Axes, y: float, dot: Dot, ink: str) -> None:
    if dot.value is None:
        return
    colour = MUTED if dot.style == "control" else ink
    if dot.low is not None and dot.high is not None:
        axes.plot(
            [dot.low, dot.high],
            [y, y],
            color=colour,
            linewidth=2.2,
            alpha=0.55,
            solid_capstyle="round",
        )
    axes.plot(
        [dot.value],
        [y],
        marker="D" if dot.style == "full" else "o",
        markersize=6.5 if dot.style == "full" else 7.5,
        markerfacecolor=PAPER if dot.style == "control" else colour,
        markeredgecolor=colour,
        markeredgewidth=1.5,
        linestyle="none",
        zorder=3,
    )
