"""The smallest step onto a hyperplane inside a box, exactly, in four norms.

What a linear model is broken by in closed form, and what DeepFool, FAB and the ranking of rival
classes repeat on the linearised model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(norm: str, normal: Tensor, gap: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest d (B, D) with normal . d >= gap and low <= d <= high.

    norm: "linf", "l2", "l1" or "l0". normal (B, D), gap (B,), low <= 0 <= high (B, D), may be
    infinite. Where gap <= 0, d is 0; where the box holds no such point, d is the farthest corner
    (every entry that helps at its end), and infinite ends mean there always is one.

    >>> d = nearest("l2", torch.tensor([[3.0, 4.0]]), torch.tensor([5.0]),
    ...             torch.full((1, 2), -9.0), torch.full((1, 2), 9.0))
    >>> [round(v, 4) for v in d[0].tolist()]
    [0.6, 0.8]
    """
    sign, gain = normal.sign(), normal.abs()
    room = torch.where(normal > 0, high, -low).clamp_min(0.0)
    room = torch.where(gain > 0, room, 0.0)
    gap = gap[:, None]
    if norm == "linf":
        size = _level(gain, room, gap).minimum(room)
    elif norm == "l2":
        # In units of the gain the L2 optimum is a level as well: d = min(t g, room).
        corner = room / gain.clamp_min(torch.finfo(gain.dtype).tiny)
        size = (_level(gain.square(), corner, gap) * gain).minimum(room)
    elif norm in ("l1", "l0"):
        worth = gain * room if norm == "l0" else gain
        order = worth.argsort(dim=1, descending=True, stable=True)
        full = (gain * room).gather(1, order)
        need = gap - (full.cumsum(1) - full)  # what is left to reach before each entry
        ordered = room.gather(1, order)
        part = need / gain.gather(1, order).clamp_min(torch.finfo(gain.dtype).tiny)
        size = torch.zeros_like(room).scatter(1, order, part.clamp_min(0.0).minimum(ordered))
    else:
        raise ValueError(f"no norm is called {norm!r}: choose linf, l2, l1 or l0")
    # Entries that do not count (an infinite room against a zero gain) stay where they are.
    return torch.where((gap > 0) & (gain > 0), sign * size, 0.0)


def _level(slope: Tensor, corner: Tensor, gap: Tensor) -> Tensor:
    """Return t (B, 1) with sum_i slope_i min(t, corner_i) = gap, or the largest useful one.

    The sum is concave and piecewise linear in t; sorting its corners gives t exactly.
    """
    corner, order = corner.sort(1)
    slope = slope.gather(1, order)
    finite = corner.isfinite()
    # Slope to the left of each corner, and the sum there.
    rest = slope.flip(1).cumsum(1).flip(1)
    ends = torch.where(finite, corner, 0.0)
    before = (slope * ends).cumsum(1) - slope * ends
    value = torch.where(finite, before + rest * ends, float("inf"))
    at = (value < gap).sum(1, keepdim=True).clamp_max(corner.shape[1] - 1)
    level = (gap - before.gather(1, at)) / rest.gather(1, at).clamp_min(
        torch.finfo(slope.dtype).tiny
    )
    return level.clamp_min(0.0)
