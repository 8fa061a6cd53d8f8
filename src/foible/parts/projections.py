"""Exact Euclidean projections onto a ball, a box, and their intersection.

v is the point (B, D), low and high its box (B, D) with low <= 0 <= high, radius (B, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def l2_in_box(v: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Project onto {|d|_2 <= radius, low <= d <= high}.

    The optimum is clip(s v, low, high) for the largest s <= 1 that fits the ball. The set of
    clipped entries only grows with s, so the fixed point below rises to it in finitely many
    rounds.
    """
    clipped = v.clamp(low, high)
    over = torch.linalg.vector_norm(clipped, dim=1, keepdim=True) > radius
    which = over.squeeze(1).nonzero().squeeze(1)
    if which.numel() == 0:
        return clipped
    v, low, high, radius = v[which], low[which], high[which], radius[which]
    norm = torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1e-38)
    scale = radius / norm
    for _ in range(100):
        moved = v * scale
        cut = moved.clamp(low, high)
        free = moved == cut
        fixed = torch.where(free, 0.0, cut).square().sum(1, keepdim=True)
        loose = torch.where(free, v, 0.0).square().sum(1, keepdim=True).clamp_min(1e-38)
        new = ((radius.square() - fixed).clamp_min(0.0) / loose).sqrt().maximum(scale)
        if bool((new <= scale * (1 + 2 * torch.finfo(v.dtype).eps)).all()):
            break
        scale = new
    cut = (v * scale).clamp(low, high)
    # Rounding may leave the norm a few ulp outside; shrinking keeps the box.
    size = torch.linalg.vector_norm(cut, dim=1, keepdim=True).clamp_min(1e-38)
    clipped[which] = cut * (radius / size).clamp_max(1.0)
    return clipped


def l1_in_box(v: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Project onto {|d|_1 <= radius, low <= d <= high}.

    Each entry of the optimum is min(max(|v| - t, 0), room) in the direction of v, with t >= 0
    such that the ball is just filled. The filled amount is piecewise linear in t with corners
    at |v| and |v| - room, so sorting the corners gives t exactly (Croce and Hein, *Mind the
    box*, 2021, do the same).
    """
    clipped = v.clamp(low, high)
    over = clipped.abs().sum(1, keepdim=True) > radius
    which = over.squeeze(1).nonzero().squeeze(1)
    if which.numel() == 0:
        return clipped
    v, low, high, radius = v[which], low[which], high[which], radius[which]
    size = v.abs()
    room = torch.where(v >= 0, high, -low).minimum(size)
    # Walking t downwards from max|v|: an entry starts to grow at |v| and is full at |v| - room.
    corners = torch.cat([size, size - room], 1)
    slope = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    corners, order = corners.sort(1, descending=True)
    slope = slope.gather(1, order).cumsum(1)
    gaps = corners[:, :-1] - corners[:, 1:]
    filled = torch.cat([torch.zeros_like(radius), (slope[:, :-1] * gaps).cumsum(1)], 1)
    # The last corner at which the ball is not yet full.
    at = (filled <= radius).sum(1, keepdim=True).sub(1).clamp_min(0)
    rate = slope.gather(1, at).clamp_min(1.0)
    level = corners.gather(1, at) - (radius - filled.gather(1, at)) / rate
    cut = (size - level.clamp_min(0.0)).clamp_min(0.0).minimum(room)
    total = cut.sum(1, keepdim=True, dtype=torch.float64).clamp_min(1e-38).to(cut.dtype)
    clipped[which] = cut * (radius / total).clamp_max(1.0) * v.sign()
    return clipped


def keep_largest(v: Tensor, low: Tensor, high: Tensor, count: Tensor) -> Tensor:
    """Project onto {at most `count` entries differ from 0, low <= d <= high}; count (B, 1).

    Keeping the entry i saves v_i^2 - (v_i - clip(v_i))^2; the largest savings are kept, and
    equal ones by position.
    """
    clipped = v.clamp(low, high)
    saving = v.square() - (v - clipped).square()
    return torch.where(places(saving) < count, clipped, 0.0)


def places(values: Tensor) -> Tensor:
    """Return the place (B, D) int64 of every value in its row, 0 for the largest; ties by position.

    >>> places(torch.tensor([[1.0, 3.0, 1.0]])).tolist()
    [[1, 0, 2]]
    """
    order = values.argsort(dim=1, descending=True, stable=True)
    counted = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, counted)
