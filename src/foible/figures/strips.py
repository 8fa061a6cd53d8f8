"""Rows of pictures, read from left to right: an attack, a walk along a map, a bent map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foible.figures.canvas import Floats
from foible.figures.maps import (
    drawing_range,
    flat_map,
    input_tile,
    is_picture,
    shared_scale,
    signed_tile,
)

Bounds = tuple[float, float] | None

STRIP_COLUMNS = (
    "clean",
    "adversarial",
    "amplified difference",
    "clean map",
    "adversarial map",
    "map difference",
)
BENT_COLUMNS = ("clean", "bent picture", "clean map", "map ordered", "bent map")


def amplification(clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> float:
    """The largest change of any feature: full colour in *amplified difference*. 1.0 if none."""
    change = np.abs(np.asarray(adversarial, dtype=np.float64) - np.asarray(clean, dtype=np.float64))
    change = change[np.isfinite(change)]
    return float(change.max()) if change.size and change.max() > 0 else 1.0


def strip_tiles(
    clean: npt.ArrayLike,
    adversarial: npt.ArrayLike,
    clean_map: npt.ArrayLike,
    adversarial_map: npt.ArrayLike,
    bounds: Bounds = None,
) -> list[list[str]]:
    """The six pictures of each sample, in the order of `STRIP_COLUMNS`, as markup.

    Args:
        clean: (r, ...) inputs.
        adversarial: (r, ...) the same after the attack.
        clean_map: (r, ...) signed maps of the clean inputs.
        adversarial_map: (r, ...) signed maps of the adversarial ones.
        bounds: of the inputs; None if they have none.

    Returns:
        r rows of six. The difference of inputs has one scale for all rows; the three maps of a row
        share one.
    """
    x, a = _pair(clean, adversarial)
    m, b = _pair(clean_map, adversarial_map)
    reach, drawn = amplification(x, a), drawing_range(bounds, x, a)
    rows = []
    for i in range(min(len(x), len(m))):
        scale = shared_scale(m[i], b[i])
        rows.append(
            [
                input_tile(x[i], "clean input", drawn),
                input_tile(a[i], "adversarial input", drawn),
                _difference(a[i] - x[i], reach),
                signed_tile(m[i], "map of the clean input", scale),
                signed_tile(b[i], "map of the adversarial input", scale),
                signed_tile(b[i] - m[i], "adversarial map minus clean map", scale),
            ]
        )
    return rows


def frame_tiles(frames: npt.ArrayLike, bounds: Bounds = None) -> list[str]:
    """(F, ...) frames of a walk as markup, one picture each."""
    array = np.asarray(frames, dtype=np.float64)
    drawn = drawing_range(bounds, array)
    return [input_tile(frame, f"frame {i + 1}", drawn) for i, frame in enumerate(array)]


def map_tile(values: npt.ArrayLike, alt: str = "map") -> str:
    """One signed map (...) on a scale of its own."""
    return signed_tile(values, alt, shared_scale(values))


def bent_tiles(
    clean: npt.ArrayLike,
    adversarial: npt.ArrayLike,
    clean_map: npt.ArrayLike,
    target_map: npt.ArrayLike,
    bent_map: npt.ArrayLike,
    bounds: Bounds = None,
) -> list[str]:
    """One sample (...) whose map was bent to order, in the order of `BENT_COLUMNS`, as markup.

    The two maps of the model share a scale. The ordered map is a wish with units of its own, so it
    has its own scale.
    """
    scale = shared_scale(clean_map, bent_map)
    drawn = drawing_range(bounds, np.asarray(clean)[None], np.asarray(adversarial)[None])
    return [
        input_tile(clean, "clean input", drawn),
        input_tile(adversarial, "input that bends the map", drawn),
        signed_tile(clean_map, "map of the clean input", scale),
        signed_tile(target_map, "map that was ordered", shared_scale(target_map)),
        signed_tile(bent_map, "map after bending", scale),
    ]


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Floats, Floats]:
    return np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)


def _difference(change: Floats, reach: float) -> str:
    """A change of an input; of a colour picture the mean over its channels."""
    if is_picture(change.shape):
        change = flat_map(change)[None] / change.shape[0]
    return signed_tile(change, "difference, amplified", reach)
