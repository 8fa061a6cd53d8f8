"""The paper that every chart is drawn on: sizes, inks and a private matplotlib style.

A chart does not know whether it will be read on a light or a dark page. So it is drawn in *inks*:
placeholder colours, which `foible.figures.svg` replaces by CSS variables with a light fallback.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from foible.core.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
Floats = npt.NDArray[np.float64]
Values = Sequence[float | None] | Floats

INK = "#010203"
MUTED = "#010204"
RULE = "#010205"
PAPER = "#010206"
BAD = "#010207"
SERIES = ("#010208", "#010209", "#01020a", "#01020b")

#: placeholder -> (CSS variable, colour outside a page that defines it)
INKS: dict[str, tuple[str, str]] = {
    INK: ("--ink", "#1d2327"),
    MUTED: ("--muted", "#5c6670"),
    RULE: ("--rule", "#dfe2e0"),
    PAPER: ("--card", "#ffffff"),
    BAD: ("--bad", "#b3261e"),
    SERIES[0]: ("--series-0", "#b9770e"),
    SERIES[1]: ("--series-1", "#24618e"),
    SERIES[2]: ("--series-2", "#5f7a34"),
    SERIES[3]: ("--series-3", "#7b5590"),
}

#: Figures are drawn at this width in CSS pixels, so that on a phone a letter keeps its size.
WIDTH = 350
_DPI = 72

_STYLE = {
    "text.parse_math": False,  # a class named "$5" is a name, not a formula
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same layout on every machine
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "foible",
}


def drawn(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` under foible's own style and restore the user's settings after."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib.style
        except ImportError as error:
            raise MissingExtra("charts need matplotlib: run `pip install matplotlib`") from error

        with matplotlib.style.context(["default", _STYLE]):
            return function(*args, **kwargs)

    return inside


def blank(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty chart of `width` x `height` CSS pixels. Call it under `drawn`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=3 / _DPI, h_pad=3 / _DPI)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout=layout)
    return figure, figure.add_subplot()


def series_ink(index: int) -> str:
    """The ink of the model at place `index`; the four inks repeat."""
    return SERIES[index % len(SERIES)]


def floats(values: Values | None, size: int = 0) -> Floats:
    """`values` as float64 with NaN for None; `size` NaNs when there are no values."""
    if values is None:
        return np.full(size, np.nan)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def shorten(text: str, width: int = 22) -> str:
    """`text` on one line of at most `width` letters.

    >>> shorten("integrated gradients, 50 steps", 22)
    'integrated gradients,…'
    """
    flat = " ".join(text.split())
    return flat if len(flat) <= width else textwrap.shorten(flat, width, placeholder="…") or "…"


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Accuracy from 0 to 100 % on one axis, with quiet grid lines."""
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = ["0", "25", "50", "75", "100\u00a0%"]
    if which == "y":
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks(ticks, labels)
    else:
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks(ticks, labels)
    axes.grid(axis="y" if which == "y" else "x")
    axes.set_axisbelow(True)
