"""What attacks cost and what each is good for: steps over model calls, bars of what fell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foible.figures.canvas import (
    BAD,
    INK,
    RULE,
    Values,
    blank,
    drawn,
    floats,
    percent_axis,
    series_ink,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: dash patterns in points, told apart without colour; the page's legend draws the same ones
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 3), (2, 2.5), (9, 3, 2, 3), (4, 2), (1, 3.5))


@dataclass(frozen=True)
class Steps:
    """A share in 0..1 that rises with the model calls of a sample.

    calls: where it rises, ascending, at least 1. share: its value from there on.
    """

    label: str
    calls: Values
    share: Values


@drawn
def step_chart(lines: Sequence[Steps], *, series: int = 0, end: float = 1.0) -> Figure:
    """Share broken against calls on a logarithmic axis; the first line is drawn strongest.

    series: the place of the model, which picks its ink. end: calls at which all lines end.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure, axes = blank(height=250)
    top = max(10.0, end)
    for place, line in enumerate(lines):
        x, y = floats(line.calls), floats(line.share)
        x, y = np.concatenate([[1.0], x, [top]]), np.concatenate([[0.0], y, y[-1:]])
        dashes = DASHES[place % len(DASHES)]
        axes.step(
            x,
            y,
            where="post",
            color=series_ink(series),
            linewidth=1.5 if place else 2.4,
            linestyle=(0, dashes) if dashes else "-",
        )
    percent_axis(axes)
    axes.set_xscale("log")
    axes.set_xlim(1, top)
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("model calls spent on a sample")
    axes.set_ylabel("broken")
    axes.spines["left"].set_visible(False)
    return figure


@dataclass(frozen=True)
class Bar:
    """A share in 0..1 of which `alone` is marked at its end; `text` stands on the right."""

    label: str
    share: float
    alone: float
    text: str
    total: bool = False


@drawn
def share_bars(bars: Sequence[Bar], *, series: int = 0, x_label: str = "") -> Figure:
    """Horizontal bars, from top to bottom; the part that nobody else has is in another ink."""
    figure, axes = blank(height=62 + 27 * max(len(bars), 1))
    at = np.arange(len(bars), dtype=np.float64)
    for y, bar in zip(at, bars, strict=True):
        shared = max(0.0, bar.share - bar.alone)
        axes.barh(y, 1.0, height=0.5, color=RULE, alpha=0.55, linewidth=0)
        axes.barh(
            y,
            shared,
            height=0.5,
            color=series_ink(series),
            alpha=1.0 if bar.total else 0.6,
            linewidth=0,
        )
        # One sample of thousands is still to be seen.
        width = max(bar.alone, 0.008) if bar.alone > 0 else 0.0
        axes.barh(y, width, left=bar.share - width, height=0.5, color=BAD, linewidth=0)
    percent_axis(axes, "x")
    axes.set_xlim(0.0, 1.0)
    axes.grid(visible=False)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks(at, [shorten(bar.label) for bar in bars])
    axes.tick_params(axis="y", colors=INK, pad=7)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(at, [bar.text for bar in bars])
    right.tick_params(axis="y", colors=INK, pad=2)
    right.spines["right"].set_visible(False)
    axes.set_xlabel(x_label)
    return figure
