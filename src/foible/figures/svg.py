"""Pictures as text inside one HTML file: a figure as inline SVG, an array as base64 PNG.

Both are functions of their input alone: no dates, no random ids, no user settings.
"""

from __future__ import annotations

import base64
import io
import re
import struct
import warnings
import zlib
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foible.core.errors import InputError
from foible.figures.canvas import INKS, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG_KINDS = {1: 0, 3: 2, 4: 6}  # channels -> colour type of the PNG format
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^)"]+)')
_ID = re.compile(r' id="([^"]*)"')
_INK = re.compile("|".join(map(re.escape, INKS)))
_FONT = re.compile(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*")
_TAG = re.compile(r"<[^>]*>")
_NUMBER = re.compile(r"(-?\d+\.\d{2})\d+")


@drawn
def inline_svg(figure: Figure, prefix: str, title: str) -> str:
    """`figure` as an `<svg>` element for an HTML page.

    Args:
        figure: drawn with the inks of `foible.figures.canvas`; they become CSS variables.
        prefix: put before each id, so that two figures on one page do not share clip paths or
            markers.
        title: what a screen reader says in place of the figure; it is escaped here.

    Returns:
        Markup without width and height (it takes the width of its box), scripts, links or metadata.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text: the reader's font has the letter, also where DejaVu does not.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        warnings.filterwarnings("ignore", message=".*constrained_layout.*")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None
    body = body[body.index(">") + 1 :].replace("xlink:href", "href")
    tags = _TAG.findall(body)
    used = {name for tag in tags for name in _REFERENCE.findall(tag)}
    body = _TAG.sub(lambda m: _own(m[0], prefix, used), body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    head = f'<svg class="chart" viewBox="{box[1]}" role="img" aria-label="{escape(title)}">'
    return f"{head}<title>{escape(title)}</title>{body}"


def _own(tag: str, prefix: str, used: set[str]) -> str:
    """One tag with its ids made the page's own, its inks made variables and its numbers short."""
    tag = _ID.sub(lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", tag)
    tag = _REFERENCE.sub(lambda m: m[0][: -len(m[1])] + f"{prefix}-{m[1]}", tag)
    tag = _INK.sub(lambda m: "var({}, {})".format(*INKS[m[0]]), tag)
    tag = _FONT.sub(r"\1var(--sans, sans-serif)", tag)
    return _NUMBER.sub(r"\1", tag)


def png_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """`pixels` as a `data:` address of a PNG.

    Args:
        pixels: uint8, (H, W) grey, (H, W, 3) colour or (H, W, 4) colour with opacity.

    Raises:
        InputError: for any other dtype or shape.

    >>> png_uri(np.zeros((2, 2), dtype=np.uint8))[:22]
    'data:image/png;base64,'
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise InputError(
            "png_uri needs uint8 pixels of shape (H, W), (H, W, 3) or (H, W, 4), "
            f"and got {pixels.dtype} {pixels.shape}"
        )
    cube = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = cube.shape
    if channels not in _PNG_KINDS:
        raise InputError(f"png_uri needs 1, 3 or 4 channels, and got {channels}")
    rows = cube.reshape(height, width * channels)
    raw = np.concatenate([np.zeros((height, 1), dtype=np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_KINDS[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    ]
    return "data:image/png;base64," + base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    ).decode("ascii")
