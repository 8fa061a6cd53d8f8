"""The charts of the thesis: a map foretells the distance, and a walk along it crosses there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foible.figures.canvas import (
    BAD,
    INK,
    MUTED,
    RULE,
    Floats,
    Values,
    blank,
    drawn,
    floats,
    percent_axis,
    series_ink,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: More points than this are thinned to every k-th: the cloud looks the same and the page stays
#: small.
MOST_POINTS = 600


def measured_pairs(predicted: Values, measured: Values) -> tuple[Floats, Floats]:
    """The pairs that can stand on log axes: both finite and above zero.

    A smallest eps of 0 is a sample that was wrong from the start, inf one that no size broke.
    """
    x, y = floats(predicted), floats(measured)
    keep = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    return x[keep], y[keep]


@drawn
def distance_scatter(
    predicted: Values,
    measured: Values,
    *,
    series: int = 0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Predicted against measured smallest eps, one point for each sample, on equal log axes.

    Args:
        predicted: (n,) the distance that the map foretells.
        measured: (n,) the smallest eps that an attack needed; 0 and inf are left out.
        series: the place of the model, which picks its ink.
        limits: of both axes, so that two models can be compared; by default those of the data.
    """
    x, y = measured_pairs(predicted, measured)
    low, high = limits or padded_limits(x, y)
    figure, axes = blank(height=305)
    every = max(1, -(-x.size // MOST_POINTS))
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        x[::every],
        y[::every],
        marker="o",
        markersize=4.2,
        markeredgewidth=0,
        alpha=0.5,
        color=series_ink(series),
        linestyle="none",
    )
    for which in ("x", "y"):
        _log_axis(axes, which, low, high)
    axes.set_box_aspect(0.82)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel("predicted by the map")
    axes.set_ylabel("smallest eps measured")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def padded_limits(*clouds: Floats) -> tuple[float, float]:
    """Limits of a log axis around all finite positive values, with a little air."""
    values = np.concatenate([c.ravel() for c in clouds]) if clouds else np.zeros(0)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.01, 1.0
    return float(values.min()) / 1.25, float(values.max()) * 1.25


def _log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    ticks = _nice_ticks(low, high)
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticklabels([f"{t:g}" for t in ticks])


def _nice_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 in each decade; only powers of ten where that would be too many."""
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    if len(fine) <= 7:
        return fine
    coarse = [10.0**d for d in decades if low <= 10.0**d <= high]
    return coarse[:: max(1, -(-len(coarse) // 6))]


@drawn
def walk_chart(
    t: Values,
    confidence: Values,
    *,
    predicted: float | None,
    measured: float | None,
    series: int = 0,
) -> Figure:
    """Confidence in the true class along a walk x - t sign(map), with the two crossings marked.

    Args:
        t: (F,) the sizes of the steps.
        confidence: (F,) in the true class, 0..1.
        predicted: where the map says that the label changes; None or not finite is not drawn.
        measured: where it did.
        series: the place of the model, which picks its ink.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    x, y = floats(t), floats(confidence)
    figure, axes = blank(height=235)
    axes.plot(x, y, color=series_ink(series), linewidth=2.2, marker="o", markersize=5)
    percent_axis(axes)
    left, right = float(np.nanmin(x)), float(np.nanmax(x))
    marks = [
        (m, name, ink, style)
        for m, name, ink, style in (
            (predicted, "predicted", INK, (0, (4, 3))),
            (measured, "measured", BAD, "solid"),
        )
        if m is not None and np.isfinite(m)
    ]
    right = max([right] + [m for m, *_ in marks if m <= right * 1.5])
    span = max(right - left, 1e-12)
    axes.set_xlim(left - 0.03 * span, right + 0.03 * span)
    # Each name has a line of its own above the chart, so that near crossings stay readable.
    lines = [(m, f"{name} {m:.3g}", ink, style) for m, name, ink, style in marks]
    for level, (mark, text, ink, style) in enumerate(lines):
        inside = mark <= right
        place = (min(mark, right) - left) / span
        side = "left" if place < 0.3 else "right" if place > 0.7 else "center"
        if inside:
            axes.axvline(mark, color=ink, linewidth=1.4, linestyle=style, zorder=1)
        axes.annotate(
            text if inside else f"{text} →",
            (min(mark, right), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 15 * level),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=ink,
            fontsize=10.5,
        )
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.set_xlabel("size of the step along the map, t")
    axes.set_ylabel("confidence, true class")
    return figure
