"""The border between classes as labels show it: a first point beyond it, and the way back to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from foible.core.problem import Fooled, Problem, View
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate
from foible.parts.searches.square import picture
from foible.parts.threats import Ball


@dataclass(frozen=True)
class Flipped:
    """1 where the label is lost (or the target reached), else 0: all that labels tell.

    Unlike the verdict it does not ask whether the point lies inside eps, so a search may come
    from afar.
    """

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        return Fooled()(view).to(view.x_adv.dtype)


def beyond(evaluate: Evaluate, rows: Rows, z: Tensor) -> Tensor:
    """Ask (B,) bool whether each point lies beyond the border; a refused one does not."""
    return evaluate(z, rows=rows).value > 0


def left(problem: Problem, rows: Rows) -> Tensor:
    """Return how many points (B,) int64 each row may still ask."""
    spent = problem.oracle.meter.forwards[rows.index.cpu()].to(rows.index.device)
    if problem.cap is None:
        return torch.full_like(spent, torch.iinfo(torch.int64).max // 2)
    return (problem.cap - problem.price - spent) // problem.price


def light(rows: Rows) -> Rows:
    """Return the rows without their start, so that repeating a row does not copy it."""
    return replace(rows, extra={k: v for k, v in rows.extra.items() if k != "start"})


def blend(norm: str, z: Tensor, share: Tensor) -> Tensor:
    """Return the point at a share (B,) of the length of z: scaled in L2, cut off in Linf."""
    if norm == "l2":
        return z * per_row(share, z)
    most = per_row(share * z.flatten(1).abs().amax(1), z)
    return z.clamp(-most, most)


def bisect(evaluate: Evaluate, rows: Rows, threat: Ball, z: Tensor, tolerance: float) -> Tensor:
    """Return the point closest to x on the way from z, which lies beyond the border.

    tolerance: of the length, relative to what is left of it. Where the queries end first, the
    best point so far.
    """
    high = torch.ones(len(z), dtype=z.dtype, device=z.device)
    low = torch.zeros_like(high)
    for _ in range(80):
        which = (high - low > tolerance * high).nonzero().squeeze(1)
        if len(which) == 0:
            break
        middle = (low[which] + high[which]) / 2
        point = blend(threat.norm, z[which], middle)
        there = beyond(evaluate, rows.take(which), point)
        high[which] = torch.where(there, middle, high[which])
        low[which] = torch.where(there, low[which], middle)
    return blend(threat.norm, z, high)


def first(
    problem: Problem, rows: Rows, evaluate: Evaluate, draw: Draw, tries: int
) -> tuple[Tensor, Tensor]:
    """Find a point beyond the border for each row: z (B, *shape) and whether it was found (B,).

    Random inputs: noise in every value, noise of two values in a random proportion, and coarse
    blocks, in turn; plain noise alone looks the same to many models, whose class of noise could
    then never be attacked. `rows.extra["start"]`, an input that may lie beyond the border (or x
    itself: none), comes first where there is a target, else last.
    """
    z, found = torch.zeros_like(rows.x), torch.zeros_like(rows.index, dtype=torch.bool)
    start, bare = rows.extra.get("start"), light(rows)

    def offer(which: Tensor, candidate: Tensor) -> None:
        there = beyond(evaluate, bare.take(which), candidate)
        z[which[there]], found[which[there]] = candidate[there], True

    def offer_start() -> None:
        if start is not None:
            known = (start != rows.x).flatten(1).any(1)
            which = (known & ~found).nonzero().squeeze(1)
            if len(which):
                offer(which, start[which] - rows.x[which])

    if rows.target is not None:
        offer_start()
    for attempt in range(tries):
        which = (~found & (left(problem, rows) > 0)).nonzero().squeeze(1)
        if len(which) == 0:
            break
        offer(which, _random(problem, bare.take(which), draw.take(which), attempt))
    if rows.target is None:
        offer_start()
    return z, found


def _random(problem: Problem, rows: Rows, draw: Draw, attempt: int) -> Tensor:
    """Return the change to a random input of the box; where that has no end, ever farther out."""
    assert isinstance(problem.threat, Ball)
    low, high = problem.threat._room(rows)
    reach = (1 + rows.x.flatten(1).abs().amax(1)) * 2.0 ** (attempt // 3)
    reach = per_row(torch.where(reach.isfinite(), reach, 1.0), rows.x)
    low, high = (
        torch.where(low.isfinite(), low, -reach),
        torch.where(high.isfinite(), high, reach),
    )
    draw = draw.split(100 + attempt)
    if attempt % 3 == 2:
        channels, tall, wide = picture(rows.shape)
        cells = 2 + (attempt // 3) % 6
        down, right = min(cells, tall), min(cells, wide)
        grid = draw.uniform((channels, down, right), rows.x.dtype)
        grid = grid.repeat_interleave(ceil(tall / down), 2)[:, :, :tall]
        grid = grid.repeat_interleave(ceil(wide / right), 3)[:, :, :, :wide]
        u = grid.reshape(rows.x.shape)
    else:
        u = draw.uniform(rows.shape, rows.x.dtype)
        if attempt % 3 == 1:
            u = (u < per_row(draw.split(1).scalars(1)[:, 0], u)).to(u.dtype)
    return low + u * (high - low)
