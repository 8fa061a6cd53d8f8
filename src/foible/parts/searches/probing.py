"""Kinds of noise for probes that see labels only.

White noise in D values tells little of a border's normal. Borders of images bend along smooth
directions first (Li et al., QEBA, 2020, probe in a subspace of low frequencies), and once a change
has formed, along the values that it already moves. No kind is best everywhere, or all the way, so
a search keeps what each one last won.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, pi, sqrt

import torch
from torch import Tensor

from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.parts.searches.square import picture

SHARES = {"quarter": 0.25, "half": 0.5}
# What each kind is hoped to win before it was tried, in log-distance a query: white noise, which
# alone reaches every point, waits until the others win less than 3 % in a hundred.
FIRST_GAIN = {
    "quarter": float("inf"),
    "half": float("inf"),
    "grown": float("inf"),
    "white": 3e-4,
}


def kinds_for(rows: Rows, plain: bool) -> tuple[str, ...]:
    """Return the kinds of noise that inputs of this shape take; a table has no frequencies."""
    if plain:
        return ("white",)
    _, tall, wide = picture(rows.shape)
    if len(rows.shape) < 2 or min(tall, wide) < 4:
        return ("grown", "white")
    return ("quarter", "half", "grown", "white")


@lru_cache(maxsize=32)
def waves(count: int, length: int) -> Tensor:
    """Return the `count` lowest cosines (count, length) of an axis, of unit norm (DCT-II)."""
    at = torch.arange(length, dtype=torch.float64) + 0.5
    wave = torch.cos(pi / length * at * torch.arange(count, dtype=torch.float64)[:, None])
    wave[0] /= sqrt(2.0)
    return wave * sqrt(2.0 / length)


def noise(kind: str, draw: Draw, count: int, rows: Rows, z: Tensor) -> Tensor:
    """Return normal noise (B, count, D) of a kind around changes z (B, D).

    quarter, half: that share of the lowest frequencies of both axes. grown: every value in
    proportion to the root of its change so far. white: every value alike.
    """
    if kind in SHARES:
        channels, tall, wide = picture(rows.shape)
        down, right = ceil(SHARES[kind] * tall), ceil(SHARES[kind] * wide)
        weight = draw.normal((count, channels, down, right), rows.x.dtype)
        columns, lines = waves(down, tall).to(weight), waves(right, wide).to(weight)
        return (columns.T @ weight @ lines).flatten(2)
    u = draw.normal((count, z.shape[1]), rows.x.dtype)
    if kind == "grown":
        size = z.abs() / z.square().mean(1, keepdim=True).sqrt().clamp_min(
            torch.finfo(z.dtype).tiny
        )
        u *= (size.sqrt() + 0.1)[:, None]
    return u
