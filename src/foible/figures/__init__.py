"""Every picture that foible shows, once: charts, and inputs and maps as small images.

matplotlib is imported when a chart is drawn, and only through its object interface: nothing global
changes.
"""

from __future__ import annotations

from foible.figures.costs import DASHES, Bar, Steps, share_bars, step_chart
from foible.figures.curves import Curve, labelled_lines, line_chart
from foible.figures.dots import Dot, DotRow, dot_rows
from foible.figures.features import FEATURE_COLUMNS, feature_tiles
from foible.figures.maps import (
    input_tile,
    is_picture,
    picture_pixels,
    shared_scale,
    signed_pixels,
    signed_tile,
)
from foible.figures.strips import (
    BENT_COLUMNS,
    STRIP_COLUMNS,
    amplification,
    bent_tiles,
    frame_tiles,
    map_tile,
    strip_tiles,
)
from foible.figures.svg import inline_svg, png_uri
from foible.figures.thesis import distance_scatter, measured_pairs, padded_limits, walk_chart

__all__ = [
    "BENT_COLUMNS",
    "DASHES",
    "FEATURE_COLUMNS",
    "STRIP_COLUMNS",
    "Bar",
    "Curve",
    "Dot",
    "DotRow",
    "Steps",
    "amplification",
    "bent_tiles",
    "distance_scatter",
    "dot_rows",
    "feature_tiles",
    "frame_tiles",
    "inline_svg",
    "input_tile",
    "is_picture",
    "labelled_lines",
    "line_chart",
    "map_tile",
    "measured_pairs",
    "padded_limits",
    "picture_pixels",
    "png_uri",
    "share_bars",
    "shared_scale",
    "signed_pixels",
    "signed_tile",
    "step_chart",
    "strip_tiles",
    "walk_chart",
]
