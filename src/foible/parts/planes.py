"""The smallest step onto a hyperplane inside a box, exactly, in four norms.

What a linear model is broken by in closed form, and what DeepFool, FAB and the ranking of rival
classes repeat on the linearised model.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ORDER = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}
_DUAL = {"linf": 1, "l2": 2, "l1": float("inf"), "l0": float("inf")}


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
    top = normal.abs().amax(1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny)
    # At unit size the squares of tiny gradients do not underflow.
    sign, gain = normal.sign(), normal.abs() / top
    gap = (gap[:, None] / top).clamp_max(torch.finfo(normal.dtype).max / 8)
    # The hot path of many steps: products and minima run several times as fast as `where`.
    way = torch.ones_like(gain).copysign(normal)
    room = (high * way).maximum(low * way).clamp_min(0.0)
    if norm == "linf":
        size = _level(gain, room, gap).minimum(room)
    elif norm == "l2":
        # In units of the gain the L2 optimum is a level as well: d = min(t g, room).
        corner = room / gain.clamp_min(torch.finfo(gain.dtype).tiny)
        size = (_level(gain.square(), corner, gap) * gain).minimum(room)
    elif norm in ("l1", "l0"):
        worth = gain
        if norm == "l0":  # an infinite room against a zero gain is worth nothing
            worth = (gain * room).nan_to_num(nan=0.0, posinf=float("inf"))
        size = _greedy(worth, gain, room, gap)
    else:
        raise ValueError(f"no norm is called {norm!r}: choose linf, l2, l1 or l0")
    return sign * size * (gap > 0)


def onto(norm: str, normal: Tensor, gap: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest d (B, D) with normal . d = gap inside the box, from either side.

    As `nearest`, but for gap < 0 it steps back onto the hyperplane instead of staying.
    """
    side = torch.where(gap < 0, -1.0, 1.0).to(gap.dtype)
    return nearest(norm, normal * side[:, None], gap.abs(), low, high)


def nearest_plane(norm: str, normals: Tensor, gaps: Tensor) -> Tensor:
    """Return which (B,) int64 of M hyperplanes is nearest where there is no box.

    normals (B, M, D), gaps (B, M). A plane without a slope is as far as can be.
    """
    slope: Tensor = torch.linalg.vector_norm(normals, ord=_DUAL[norm], dim=2)
    away = gaps.abs() / slope.clamp_min(torch.finfo(slope.dtype).tiny)
    return away.argmin(1)


def closest(norm: str, normals: Tensor, gaps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest d (B, D) onto any of M hyperplanes inside the box, from either side.

    normals (B, M, D), gaps (B, M). A plane that the box does not reach comes after all that it
    does; of those, the one that comes closest to being reached.
    """
    b, m, size = normals.shape
    flat, gap = normals.flatten(0, 1), gaps.flatten()
    ends = [end.repeat_interleave(m, 0) for end in (low, high)]
    d = onto(norm, flat, gap, *ends)
    left = 1 - ((flat * d).sum(1).abs() / gap.abs().clamp_min(torch.finfo(gap.dtype).tiny))
    length = torch.linalg.vector_norm(d, ord=_ORDER[norm], dim=1)
    far = (left > 1e-4) & (gap != 0)
    key = torch.where(far, (1 + left.clamp(0.0, 1.0)) * 1e30, length).view(b, m)
    return d.view(b, m, size)[torch.arange(b, device=d.device), key.argmin(1)]


def _greedy(worth: Tensor, gain: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Fill the entries in the order of their worth until gain . size = gap."""
    width = worth.shape[1]
    # As a rule a few entries will do, and finding them is far cheaper than sorting all.
    most = min(width, max(16, width // 16))
    size, short = _fill(worth.topk(most, dim=1).indices, gain, room, gap)
    which = short.nonzero().squeeze(1)
    if most < width and which.numel():
        order = worth[which].argsort(dim=1, descending=True, stable=True)
        size[which] = _fill(order, gain[which], room[which], gap[which])[0]
    return size


def _fill(order: Tensor, gain: Tensor, room: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sizes (B, D) and whether (B,) these entries were too few."""
    ordered, rate = room.gather(1, order), gain.gather(1, order)
    total = (rate * ordered).nan_to_num(nan=0.0, posinf=float("inf")).cumsum(1)
    before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], 1)
    part = (gap - before) / rate.clamp_min(torch.finfo(gain.dtype).tiny)
    part = part.clamp_min(0.0).minimum(ordered)
    # Entries that do not count (an infinite room against a zero gain) stay where they are.
    part = torch.where(rate > 0, part, 0.0)
    return torch.zeros_like(room).scatter(1, order, part), total[:, -1] < gap[:, 0]


def _level(slope: Tensor, corner: Tensor, gap: Tensor) -> Tensor:
    """Return t (B, 1) with sum_i slope_i min(t, corner_i) = gap, or the largest useful one.

    The sum is concave and piecewise linear in t, so Newton's method from the left rises to the
    root in finitely many rounds, a handful as a rule: cheaper than sorting the corners.
    """
    kind = torch.finfo(slope.dtype)
    most, above = kind.max / 8, torch.empty_like(slope)
    level = (gap / slope.sum(1, keepdim=True).clamp_min(kind.tiny)).clamp(0.0, most)
    for _ in range(100):
        reached = (slope * corner.minimum(level)).sum(1, keepdim=True)
        torch.gt(corner, level, out=above)
        rest = (slope * above).sum(1, keepdim=True)
        # Once all are full, any level will do.
        step = ((gap - reached) / rest.clamp_min(kind.tiny)).clamp(0.0, most) * (rest > 0)
        higher = (level + step).clamp_max(most)
        if bool((higher <= level * (1 + 2 * kind.eps)).all()):
            break
        level = higher
    return level
