"""Inputs and maps as small pictures.

Signed maps are drawn on a diverging scale that is centred at zero: orange pushes towards the class,
blue away from it, and zero is clear, so that the paper behind it (light or dark) is the neutral
colour. Compared maps share one scale. Whatever is not a picture (a table row, say) becomes a bar
chart of its features.
"""

from __future__ import annotations

from html import escape

import numpy as np
import numpy.typing as npt

from foible.core.errors import InputError
from foible.figures.canvas import Floats
from foible.figures.svg import png_uri

Pixels = npt.NDArray[np.uint8]

POSITIVE = (214, 86, 28)
NEGATIVE = (36, 108, 178)
#: Larger pictures are averaged down to about this many pixels a side: they are shown at about this
#: size.
LARGEST = 80
MANY = 400
#: A table row with more features is shown as the strongest of each of this many groups.
MOST_BARS = 128


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether one sample of this shape is shown as a picture: (C, H, W) with one or three channels.

    >>> is_picture((1, 28, 28)), is_picture((30,))
    (True, False)
    """
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1


def shared_scale(*maps: npt.ArrayLike) -> float:
    """The absolute value at full colour for all `maps`: the largest, or 1.0 if all are zero.

    Channels are added up first, as the pictures do. In maps of many pixels the 98th percentile
    stands for the largest: one bright pixel would make the others pale.

    >>> shared_scale(np.array([[-2.0, 2.0]]), np.array([[0.5, 0.5]]))
    2.0
    """
    sizes = np.concatenate(
        [np.abs(flat_map(np.asarray(m, dtype=np.float64))).ravel() for m in maps]
    )
    sizes = sizes[np.isfinite(sizes)]
    if not sizes.size:
        return 1.0
    typical = float(np.quantile(sizes, 0.98)) if sizes.size >= MANY else 0.0
    return typical or float(sizes.max()) or 1.0


def flat_map(values: Floats) -> Floats:
    """One signed number for each pixel: the sum over the channels of a picture."""
    return values.sum(axis=0) if is_picture(values.shape) else values


def picture_pixels(x: npt.ArrayLike, bounds: tuple[float, float] = (0.0, 1.0)) -> Pixels:
    """(C, H, W) values within `bounds` as uint8 grey (H, W) or colour (H, W, 3)."""
    values = _shrink(_picture(x))
    low, high = bounds
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    grey: Pixels = pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
    return grey


def signed_pixels(values: npt.ArrayLike, scale: float) -> Pixels:
    """A signed map as uint8 (H, W, 4): the hue is the sign, the opacity the size, zero is clear.

    Args:
        values: (C, H, W), channels are added up; or (H, W).
        scale: the absolute value at full colour, from `shared_scale` of all maps that are compared.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 3:
        array = _picture(array).sum(axis=0)
    array = np.nan_to_num(_shrink(array[None])[0])
    strength = np.clip(np.abs(array) / max(scale, 1e-300), 0, 1)
    out = np.empty((*array.shape, 4), dtype=np.uint8)
    out[..., :3] = np.where(array[..., None] >= 0, POSITIVE, NEGATIVE)
    out[..., 3] = np.round(255 * strength)
    out[strength == 0] = 0
    return out


def drawing_range(
    bounds: tuple[float, float] | None, *inputs: npt.ArrayLike
) -> tuple[float, float]:
    """The values that are drawn as black and white, or as no bar and the longest bar.

    For pictures the bounds of the input; without bounds, and for anything else, what occurs.
    """
    arrays = [np.asarray(x, dtype=np.float64) for x in inputs]
    if bounds is not None and arrays and is_picture(arrays[0].shape[1:]):
        return bounds
    values = np.concatenate([a[np.isfinite(a)] for a in arrays] or [np.zeros(0)])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def input_tile(x: npt.ArrayLike, alt: str, bounds: tuple[float, float] = (0.0, 1.0)) -> str:
    """One sample as markup: `<img>` for a picture, bars for anything else. `alt` is escaped."""
    values = np.asarray(x, dtype=np.float64)
    if is_picture(values.shape):
        return _image(picture_pixels(values, bounds), alt, "photo")
    return _bars(values.ravel(), alt, max(abs(bounds[0]), abs(bounds[1]), 1e-12), signed=False)


def signed_tile(values: npt.ArrayLike, alt: str, scale: float) -> str:
    """One signed map, or one difference of maps, as markup on the diverging scale."""
    array = np.asarray(values, dtype=np.float64)
    if is_picture(array.shape):
        return _image(signed_pixels(array, scale), alt, "map")
    return _bars(array.ravel(), alt, scale, signed=True)


def _picture(x: npt.ArrayLike) -> Floats:
    values = np.asarray(x, dtype=np.float64)
    if not is_picture(values.shape):
        raise InputError(
            f"a picture has shape (1, H, W) or (3, H, W), this has {values.shape}: use input_tile"
        )
    return values


def _shrink(values: Floats) -> Floats:
    """(C, H, W) averaged over blocks so that no side is much longer than LARGEST."""
    block = max(1, round(max(values.shape[1:]) / LARGEST))
    if block == 1:
        return values
    channels, height, width = values.shape
    pad = ((0, 0), (0, -height % block), (0, -width % block))
    padded = np.pad(values, pad, mode="edge")
    grid = padded.reshape(
        channels, padded.shape[1] // block, block, padded.shape[2] // block, block
    )
    out: Floats = grid.mean(axis=(2, 4))
    return out


def _image(pixels: Pixels, alt: str, kind: str) -> str:
    height, width = pixels.shape[:2]
    return (
        f'<img class="{kind} px" src="{png_uri(pixels)}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}" title="{escape(alt)}">'
    )


def _bars(values: Floats, alt: str, scale: float, *, signed: bool) -> str:
    """Features as bars around a zero line; hand-made, because a page holds about a hundred."""
    values = np.nan_to_num(values, posinf=scale, neginf=-scale)
    if values.size > MOST_BARS:
        groups = np.array_split(values, MOST_BARS)
        values = np.array([g[np.argmax(np.abs(g))] for g in groups])
    tall = np.clip(values / scale, -1, 1)
    below = bool((tall < 0).any()) or signed
    zero = 50 if below else 96
    unit = 46 if below else 92
    step = 100 / max(values.size, 1)
    bars = []
    for i, v in enumerate(tall):
        kind = ("pos" if v >= 0 else "neg") if signed else "bar"
        top = zero - max(float(v), 0.0) * unit
        size = abs(float(v)) * unit
        bars.append(
            f'<rect class="{kind}" x="{(i + 0.12) * step:.2f}" y="{top:.2f}" '
            f'width="{0.76 * step:.2f}" height="{size:.2f}"/>'
        )
    return (
        f'<svg class="bars" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(alt)}">'
        f"<title>{escape(alt)}</title>"
        f'<line class="zero" x1="0" x2="100" y1="{zero}" y2="{zero}"/>{"".join(bars)}</svg>'
    )
