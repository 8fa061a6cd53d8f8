"""SimBA (Guo et al. 2019): one direction of an orthonormal basis a step, up or down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, pi
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.parts.searches.square import picture


class SimbaState(NamedTuple):
    """z, best (B, *shape); value, held (B,): the best's verdict; order (B, D): of directions.

    place (B,) int64: twice the number of directions left behind, plus 1 on the way down.
    """

    z: Tensor
    best: Tensor
    value: Tensor
    held: Tensor
    order: Tensor
    place: Tensor


@dataclass(frozen=True)
class Simba(Search):
    """Try each direction by `step`, upwards and then downwards, and keep what rises.

    basis: "pixel" (single values) or "dct" (cosines of the picture). low: the share of each axis
    whose frequencies come first; then twice that share, and so on. A move that changes
    nothing (a value at the box's end) costs no query.
    """

    steps: int = 5000
    basis: str = "pixel"
    size: float = 0.2
    low: float = 0.125
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> SimbaState:
        """Begin at the clean input, with an order of directions of each row's own."""
        z = problem.threat.clean(rows)
        count = rows.x[0].numel()
        number = draw.split(3).uniform((count,), torch.float64)
        if self.basis == "dct":
            number = number + _bands(picture(rows.shape), self.low).to(number.device)
        order = number.argsort(1)
        value = _clean_value(problem, rows).to(z.dtype)
        held = torch.zeros_like(value, dtype=torch.bool)
        place = torch.zeros_like(rows.index)
        return self._next(problem, rows, SimbaState(z, z, value, held, order, place))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SimbaState, draw: Draw
    ) -> SimbaState:
        """Judge the move, keep it if it is better, and propose the next."""
        found = evaluate(state.z, need="scores")
        value = found.value.to(state.value.dtype)
        better = torch.where(found.success == state.held, value > state.value, found.success)
        best = torch.where(per_row(better, state.z), state.z, state.best)
        # Down only where up failed; after either the next direction.
        down = (state.place % 2 == 0) & ~better
        place = torch.where(down, state.place + 1, state.place // 2 * 2 + 2)
        state = SimbaState(
            state.z, best, torch.where(better, value, state.value), state.held | found.success,
            state.order, place,
        )  # fmt: skip
        return self._next(problem, rows, state)

    def _next(self, problem: Problem, rows: Rows, state: SimbaState) -> SimbaState:
        """Propose the first move from `place` on that changes something."""
        z = self._move(problem, rows, state)
        place = state.place.clone()
        which = torch.arange(len(rows), device=z.device)
        for _ in range(8):
            idle = (z[which] == state.best[which]).flatten(1).all(1)
            which = which[idle]
            if len(which) == 0:
                break
            place[which] += 1
            some = SimbaState(*(part[which] for part in state._replace(place=place)))
            z[which] = self._move(problem, rows.take(which), some)
        return state._replace(z=z, place=place)

    def _move(self, problem: Problem, rows: Rows, state: SimbaState) -> Tensor:
        count = state.order.shape[1]
        # After the last direction the first comes again.
        at = state.order.gather(1, (state.place // 2 % count)[:, None]).squeeze(1)
        box = problem.threat.box
        size = self.size * (1.0 if box is None else box.width)
        signed = torch.where(state.place % 2 == 0, size, -size).to(state.best.dtype)
        if self.basis == "pixel":
            flat = state.best.reshape(len(at), -1)
            moved = flat.scatter_add(1, at[:, None], signed[:, None]).view_as(state.best)
        else:
            channels, height, width = picture(rows.shape)
            down, across = at // width % height, at % width
            wave = (
                _cosines(height, state.best)[down][:, :, None]
                * _cosines(width, state.best)[across][:, None, :]
            )
            channel = torch.arange(channels, device=at.device) == (at // (height * width))[:, None]
            wave = wave[:, None] * channel[:, :, None, None] * per_row(signed, wave[:, None])
            moved = state.best + wave.view_as(state.best)
        if rows.eps is not None:
            return problem.threat.project(rows, moved)
        low, high = problem.threat._room(rows)  # type: ignore[attr-defined]
        return torch.minimum(torch.maximum(moved, low), high)


def _clean_value(problem: Problem, rows: Rows) -> Tensor:
    """Return the objective (B,) at the clean inputs, whose scores are known."""
    from foible.core.problem import View

    with torch.no_grad():
        return problem.objective(View(problem.oracle, rows, rows.x, scores=rows.scores))


def _bands(shape: tuple[int, int, int], low: float) -> Tensor:
    """Return the band (D,) of every frequency: 0 below `low` on both axes, 1 below twice it, ..."""
    channels, height, width = shape
    away = torch.maximum(
        torch.arange(height)[:, None] / height, torch.arange(width)[None, :] / width
    )
    band = torch.zeros(height, width, dtype=torch.float64)
    share = low
    for _ in range(ceil(-torch.log2(torch.tensor(low)).item())):
        band += (away >= share).double()
        share *= 2
    return band.expand(channels, -1, -1).flatten()


@lru_cache(maxsize=16)
def _table(count: int) -> Tensor:
    """Return the orthonormal cosines (frequency, place) of the DCT of type 2."""
    place = torch.arange(count, dtype=torch.float64) + 0.5
    table = torch.cos(pi / count * torch.arange(count, dtype=torch.float64)[:, None] * place)
    table *= (2 / count) ** 0.5
    table[0] *= 0.5**0.5
    return table


def _cosines(count: int, like: Tensor) -> Tensor:
    return _table(count).to(like)
