"""Lines with bands: accuracy against the size of a perturbation or the features deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foible.figures.canvas import (
    INK,
    MUTED,
    Floats,
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


@dataclass(frozen=True)
class Curve:
    """One line of shares in 0..1; None is a gap.

    `series` is the place of the model and picks the ink (-1 is muted), `quiet` makes the line thin.
    """

    label: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    series: int = 0
    dashed: bool = False
    quiet: bool = False


@drawn
def line_chart(
    curves: Sequence[Curve], *, x_label: str, y_label: str = "accuracy", height: float = 260
) -> Figure:
    """Accuracy of several models against the size of a perturbation, with interval bands.

    Solid lines carry markers; dashed ones are controls. The legend is the page's, in the same inks.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = blank(height)
    for curve in curves:
        ink = MUTED if curve.series < 0 else series_ink(curve.series)
        x, y = floats(curve.x), floats(curve.y)
        if curve.low is not None and curve.high is not None:
            band = (floats(curve.low), floats(curve.high))
            axes.fill_between(x, *band, color=ink, alpha=0.16, linewidth=0)
        style = (
            {"linestyle": (0, (4, 3)), "linewidth": 1.3}
            if curve.dashed
            else {"linewidth": 2.0, "marker": "o"}
        )
        axes.plot(x, y, color=ink, markersize=4.5, solid_capstyle="round", **style)  # type: ignore[arg-type]
    percent_axis(axes)
    axes.set_ylabel(y_label)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines["left"].set_visible(False)
    return figure


@drawn
def labelled_lines(
    curves: Sequence[Curve], *, x_label: str, y_label: str = "accuracy", by_area: bool = False
) -> Figure:
    """The same axes with each line named at its right end; bands where there are intervals.

    by_area: lines that end in one point are told apart by their inks, and each name stands at the
    height of its line's mean.
    """
    figure, axes = blank(height=260)
    ends: list[float] = []
    for curve in curves:
        ink = MUTED if curve.dashed or curve.series < 0 else series_ink(curve.series)
        if curve.low is not None and curve.high is not None:
            band = (floats(curve.low), floats(curve.high))
            axes.fill_between(floats(curve.x), *band, color=ink, alpha=0.12, linewidth=0)
        width = 1.2 if curve.quiet or curve.dashed else 2.6
        axes.plot(
            floats(curve.x),
            floats(curve.y),
            color=ink,
            linewidth=width,
            alpha=0.75 if curve.quiet else 1.0,
            linestyle=(0, (4, 3)) if curve.dashed else "-",
        )
        known = floats(curve.y)[~np.isnan(floats(curve.y))]
        at = known.mean() if by_area and known.size else known[-1:].sum()
        ends.append(float(at) if known.size else np.nan)
    percent_axis(axes)
    axes.set_ylabel(y_label)
    axes.set_xlabel(x_label)
    axes.spines["left"].set_visible(False)
    named = [(c, e) for c, e in zip(curves, ends, strict=True) if not np.isnan(e)]
    if named:
        right = axes.secondary_yaxis("right")
        right.spines["right"].set_visible(False)
        heights = spread(np.array([e for _, e in named]), gap=0.075)
        right.set_yticks(heights, [shorten(c.label, 20) for c, _ in named])
        for height, (curve, _) in zip(heights, named, strict=True):
            if by_area and not curve.dashed:  # the ink is in a mark: as text it would be too pale
                axes.plot(
                    [1.03], [height], marker="s", markersize=6, color=series_ink(curve.series),
                    transform=axes.get_yaxis_transform(), clip_on=False,
                )  # fmt: skip
        right.tick_params(axis="y", colors=INK, pad=12 if by_area else 1)
        for tick, (curve, _) in zip(right.get_yticklabels(), named, strict=True):
            tick.set_color(MUTED if curve.quiet or curve.dashed else INK)
    return figure


def spread(at: Floats, gap: float, low: float = 0.0, high: float = 1.0) -> Floats:
    """Move label positions apart as little as possible, in their order.

    Args:
        at: (n,) float64 positions.
        gap: the least distance between two labels.
        low: no label goes below this, if the labels fit at all.
        high: no label goes above this.

    >>> spread(np.array([0.5, 0.5, 0.9]), gap=0.1).round(2).tolist()
    [0.45, 0.55, 0.9]
    """
    order = np.argsort(at, kind="stable")
    # Runs of labels that touch are merged and centred on the mean of where they wanted to be.
    runs: list[list[float]] = []
    for value in at[order]:
        runs.append([float(value)])
        while (
            len(runs) > 1
            and _bottom(runs[-1], gap, low, high) - _top(runs[-2], gap, low, high) < gap
        ):
            last = runs.pop()
            runs[-1] += last
    placed = np.concatenate(
        [_bottom(run, gap, low, high) + gap * np.arange(len(run)) for run in runs] or [at]
    )
    out = np.empty_like(placed)
    out[order] = placed
    return out


def _bottom(run: list[float], gap: float, low: float, high: float) -> float:
    half = gap * (len(run) - 1) / 2
    return float(np.clip(np.mean(run), low + half, max(high - half, low + half))) - half


def _top(run: list[float], gap: float, low: float, high: float) -> float:
    return _bottom(run, gap, low, high) + gap * (len(run) - 1)
