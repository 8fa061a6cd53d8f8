"""Square search: random windows of an image, kept where the objective rises.

Andriushchenko et al. 2020 (Linf, L2); Croce and Hein 2021 (L1). An input of any shape is read as
channels of an H x W picture; a table is a picture of one row.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search

# Of 10,000 proposals, those after which the share of the image that a window covers is halved.
MARKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
NORMS = ("linf", "l2", "l1")
_TRIES = 3  # proposals that are looked at before the last is turned round


def picture(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of inputs of a shape: (D,) is one row, (H, W) one channel.

    >>> picture((3, 32, 32)), picture((7,))
    ((3, 32, 32), (1, 1, 7))
    """
    height, width = (1, 1, *shape)[-2:]
    return prod(shape[:-2]), height, width


def window(share: float, height: int, width: int, least: int = 1) -> tuple[int, int]:
    """Return the sides of a window that covers a share of the picture: a square if one fits.

    A picture flatter than that gets a wider window of the same area. least: 3 makes the sides odd
    and at least 3, as the windows of L2 and L1 are.

    >>> window(0.8, 28, 28), window(0.5, 1, 12), window(0.001, 28, 28, least=3)
    ((25, 25), (1, 6), (3, 3))
    """
    side = max(round(sqrt(share * height * width)), least)
    if least > 1:
        side += 1 - side % 2
    tall, wide = min(side, height), min(side, width)
    if side > height:
        wide = min(width, max(least, round(share * width)))
    elif side > width:
        tall = min(height, max(least, round(share * height)))
    return tall, wide


@lru_cache(maxsize=64)
def schedule(p: float, steps: int, height: int, width: int, least: int) -> np.ndarray:
    """Return the sides (steps, 2) int64 of the window of every proposal."""
    halved = [bisect_left(MARKS, step * 10_000 // steps) for step in range(steps)]
    return np.array([window(p / 2**times, height, width, least) for times in halved])


class SquareState(NamedTuple):
    """z, best (B, *shape): the proposal and the best point; value, held (B,): the best's verdict.

    low, high (B, *shape): how far each value may move. made (B,) int64: proposals so far.
    """

    z: Tensor
    best: Tensor
    value: Tensor
    held: Tensor
    low: Tensor
    high: Tensor
    made: Tensor


@dataclass(frozen=True)
class SquareSearch(Search):
    """One window a step, its place and signs of each row's own; p: the share it covers at first.

    steps: proposals. A proposal of Linf often changes nothing (three in ten at 1,000, half of the
    single values). It costs no query. redraw: it does not count as a proposal either.
    """

    steps: int = 5000
    p: float = 0.8
    redraw: bool = False
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> SquareState:
        """Start at vertical stripes (Linf) or at a grid of pyramids (L2, L1)."""
        norm, shape = _norm(problem), picture(rows.shape)
        low, high = problem.threat._room(rows)  # type: ignore[attr-defined]
        low, high = low.contiguous(), high.contiguous()  # x may be laid out channels last
        if norm == "linf":
            radius = rows.radius()
            low, high = low.maximum(-radius), high.minimum(radius)
            up = draw.split(3).scalars(shape[0] * shape[2]) < 0.5
            stripes = up.view(-1, shape[0], 1, shape[2]).expand(-1, *shape)
            z = torch.where(stripes.reshape(rows.x.shape), high, low)
        else:
            grid = _grid(shape, draw.split(3), rows.x)
            z = _fitted(norm, grid.view_as(rows.x), rows, low, high)
        value = torch.full((len(rows),), float("-inf"), dtype=z.dtype, device=z.device)
        held = torch.zeros_like(value, dtype=torch.bool)
        return SquareState(z, z, value, held, low, high, torch.zeros_like(rows.index))

    def ended(self, state: SquareState) -> Tensor:
        """Return which rows have made all their proposals."""
        return state.made >= self.steps

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SquareState, draw: Draw
    ) -> SquareState:
        """Judge the proposal, keep it if it is better, and propose a window on the best."""
        found = evaluate(state.z, need="scores")
        value = found.value.to(state.value.dtype)
        better = torch.where(found.success == state.held, value > state.value, found.success)
        best = torch.where(per_row(better, state.z), state.z, state.best)
        value = torch.where(better, value, state.value)
        held = state.held | found.success
        return self._propose(rows, state._replace(best=best, value=value, held=held), problem, draw)

    def _propose(self, rows: Rows, state: SquareState, problem: Problem, draw: Draw) -> SquareState:
        norm, shape = _norm(problem), picture(rows.shape)
        table = schedule(self.p, self.steps, shape[1], shape[2], 1 if norm == "linf" else 3)
        if norm == "linf":
            return _flipped(shape, table, state, draw, self.redraw)
        at = table[state.made.clamp_max(self.steps - 1).cpu().numpy()]
        sizes, which = np.unique(at, axis=0, return_inverse=True)
        bumps = bank(norm, tuple(map(tuple, sizes.tolist())))[which.reshape(-1)]
        windows = (torch.from_numpy(at).to(rows.x.device), bumps.to(rows.x))
        change = _moved_mass(norm, state.best.view(-1, *shape), windows, rows, draw)
        z = _fitted(norm, change.view_as(rows.x), rows, state.low, state.high)
        return state._replace(z=z, made=state.made + 1)


def _norm(problem: Problem) -> str:
    norm = getattr(problem.threat, "norm", "")
    if norm not in NORMS:
        raise KindError(
            f"{type(problem.threat).__name__} has no square search: use a ball in Linf, L2 or L1"
        )
    return str(norm)


def _flipped(
    shape: tuple[int, int, int], table: np.ndarray, state: SquareState, draw: Draw, redraw: bool
) -> SquareState:
    """Push a window to one end of the interval, a channel up or down: the first that moves.

    Where none of three moves anything, the last one takes the opposite signs.
    """
    (channels, height, width), many, device = shape, len(state.z), state.z.device
    # Small numbers are quicker in numpy, and a step must cost little beside the model's forward.
    u = draw.scalars(_TRIES * (2 + channels)).cpu().numpy().reshape(many, _TRIES, 2 + channels)
    number = state.made.cpu().numpy()[:, None] + (0 if redraw else np.arange(_TRIES))
    # With redraw every try is the same proposal, of one size.
    number = np.broadcast_to(np.minimum(number, len(table) - 1), (many, _TRIES))
    tall, wide = (side[number] for side in table.T)
    # A window smaller than the largest one of the batch names its last row and column again.
    down = _span(u[:, :, 0], tall, height)[:, :, :, None]
    right = _span(u[:, :, 1], wide, width)[:, :, None, :]
    places = torch.from_numpy((down * width + right).reshape(many, 1, _TRIES, -1)).to(device)
    up = torch.from_numpy(u[:, :, 2:].swapaxes(1, 2)[:, :, :, None] < 0.5).to(device)
    places = places.expand(-1, channels, -1, -1)
    best, low, high = (p.view(many, channels, -1) for p in (state.best, state.low, state.high))
    flat = places.flatten(2)

    def within(part: Tensor) -> Tensor:
        return part.gather(2, flat).view(places.shape)

    moves = (torch.where(up, within(high), within(low)) != within(best)).any(3).any(1)
    moved, chosen = moves.max(1)
    chosen = torch.where(moved, chosen, _TRIES - 1)
    pick = chosen.view(-1, 1, 1, 1).expand(-1, channels, 1, places.shape[3])
    place = places.gather(2, pick).squeeze(2)
    up = (up.gather(2, pick[:, :, :, :1]) ^ ~moved.view(-1, 1, 1, 1)).squeeze(2)
    end = torch.where(up, high.gather(2, place), low.gather(2, place))
    z = best.scatter(2, place, end).view_as(state.best)
    return state._replace(z=z, made=state.made + (1 if redraw else chosen + 1))


def _span(u: np.ndarray, side: np.ndarray, extent: int) -> np.ndarray:
    """Return the indices (B, tries, longest side) of windows placed by u in [0, 1).

    Every place is possible, the last row and column included, which the published code never
    reaches.
    """
    first = (u * (extent - side + 1)).astype(np.int64)
    steps = np.minimum(np.arange(side.max()), side[:, :, None] - 1)
    return np.asarray(first[:, :, None] + steps)


def _moved_mass(
    norm: str, best: Tensor, windows: tuple[Tensor, Tensor], rows: Rows, draw: Draw
) -> Tensor:
    """Empty one window into another, which gains a pyramid of random sign (Algorithm 3).

    windows: the sides (B, 2) of each row's, and from `bank` the pyramids (B, 2, h, w) for it.
    The mass that the box has cut off before is spent again here, a channel's share in each.
    """
    many, channels, height, width = best.shape
    u, tiny = draw.scalars(5 + channels), torch.finfo(best.dtype).tiny
    sides, bumps = windows
    tall, wide = sides[:, :1], sides[:, 1:]
    # Small windows name their last row and column again, as in `_flipped`; `real` counts once.
    down, right = (torch.arange(int(side.max()), device=u.device) for side in (tall, wide))
    real = ((down < tall)[:, :, None] & (right < wide)[:, None, :]).view(many, 1, -1)
    i, j = down.minimum(tall - 1), right.minimum(wide - 1)
    span = torch.tensor([height, width], device=u.device) + 1 - sides
    (top, left), (other_top, other_left) = (
        (u[:, k : k + 2] * span).long().split(1, 1) for k in (0, 2)
    )
    into = ((top + i)[:, :, None] * width + (left + j)[:, None, :]).view(many, 1, -1)
    out_of = ((other_top + i)[:, :, None] * width + (other_left + j)[:, None, :]).view(many, 1, -1)
    over, across = other_top + i - top, other_left + j - left
    both = ((over >= 0) & (over < tall))[:, :, None] & ((across >= 0) & (across < wide))[:, None, :]
    into, out_of = (place.expand(-1, channels, -1) for place in (into, out_of))

    def root_of(values: Tensor, where: Tensor) -> Tensor:
        return _root(norm, (_mass(norm, values) * where).sum(2, keepdim=True)).clamp_min(tiny)

    flat = best.reshape(many, channels, -1)
    bump = torch.where((u[:, 4] < 0.5)[:, None, None], bumps[:, 1], bumps[:, 0])
    old, lost = flat.gather(2, into), flat.gather(2, out_of)
    alone = real & ~both.view(many, 1, -1)
    kept = ((_mass(norm, old) * real) + (_mass(norm, lost) * alone)).sum(2, keepdim=True)
    spent = _mass(norm, flat).sum((1, 2), keepdim=True)
    free = (_mass(norm, rows.radius().view(-1, 1, 1)) - spent).clamp_min(0.0)
    sign = torch.where(u[:, 5:] < 0.5, 1.0, -1.0).to(best.dtype)[:, :, None]
    new = sign * bump.reshape(many, 1, -1) + old / root_of(old, real)
    new = new * (_root(norm, kept + free / channels) / root_of(new, real))
    return flat.scatter(2, out_of, 0.0).scatter_(2, into, new).view_as(best)


def _fitted(norm: str, change: Tensor, rows: Rows, low: Tensor, high: Tensor) -> Tensor:
    """Scale a change to the radius, then cut it by the box: what is cut is free for later."""
    size = _root(norm, _mass(norm, change).flatten(1).sum(1)).clamp_min(1e-30)
    return (change * per_row(rows.radius().flatten() / size, change)).clamp(low, high)


def _mass(norm: str, values: Tensor) -> Tensor:
    return values.abs() if norm == "l1" else values.square()


def _root(norm: str, mass: Tensor) -> Tensor:
    return mass if norm == "l1" else mass.sqrt()


def pyramid(i: Tensor, tall: Tensor, j: Tensor, wide: Tensor, across: Tensor) -> Tensor:
    """Return two pyramids of opposite sign side by side (B, H, W), the paper's eta, unscaled.

    i (B, H), j (B, W): the place within the window, whose sides are tall, wide (B,); values
    outside of it mean nothing. across (B,) bool: the second lies below the first, not beside it.
    """
    # A side of one cannot be halved.
    across = ((across & (tall > 1)) | (wide < 2))[:, None]
    di, si, mi = _halved(i, tall)
    dj, sj, mj = _halved(j, wide)
    di = torch.where(across, di, (i - (tall // 2)[:, None]).abs())
    dj = torch.where(across, (j - (wide // 2)[:, None]).abs(), dj)
    away = di[:, :, None].maximum(dj[:, None, :])
    last = torch.where(
        across[:, :, None],
        mi.maximum((wide // 2 + 1)[:, None])[:, :, None],
        mj.maximum((tall // 2 + 1)[:, None])[:, None, :],
    )
    most = max(i.shape[1], j.shape[1]) + 2
    # Layer k = 0, 1, ... adds 1 / (k + 1)^2 wherever the centre is at most k away.
    layers = 1.0 / torch.arange(1, most + 1, dtype=torch.float64, device=i.device).square()
    sums = torch.cat([layers.new_zeros(1), layers.cumsum(0)])
    height = (sums[last] - sums[away.clamp_max(most)]).clamp_min(0.0)
    return height * torch.where(across[:, :, None], si[:, :, None], sj[:, None, :])


@lru_cache(maxsize=64)
def bank(norm: str, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the pyramids of windows (n, 2, h, w), of unit norm: side by side, and across.

    h, w: of the largest one; the others repeat their last row and column.
    """
    sides = torch.tensor(sizes)
    tall, wide = sides[:, 0], sides[:, 1]
    i = torch.arange(int(tall.max())).minimum(tall[:, None] - 1)
    j = torch.arange(int(wide.max())).minimum(wide[:, None] - 1)
    both = [
        pyramid(i, tall, j, wide, torch.full((len(sides),), across)) for across in (False, True)
    ]
    found = torch.stack(both, 1)
    for k, (h, w) in enumerate(sizes):
        for across in (0, 1):
            found[k, across] /= _root(norm, _mass(norm, found[k, across, :h, :w]).sum())
    return found


def _halved(at: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, along a halved side: distance to the half's own centre, sign, and layers."""
    half = (side // 2)[:, None]
    first = at < half
    length = torch.where(first, half, side[:, None] - half)
    away = (torch.where(first, at, at - half) - length // 2).abs()
    return away, torch.where(first, 1.0, -1.0).double(), length // 2 + 1


def _grid(shape: tuple[int, int, int], draw: Draw, like: Tensor) -> Tensor:
    """Return five by five pyramids of random signs (B, C, H, W), over the whole picture."""
    channels, height, width = shape
    tall, wide = ceil(height / 5), ceil(width / 5)
    down, right = ceil(height / tall), ceil(width / wide)
    count = len(like)
    u = draw.scalars(channels * down * right + 1)
    i = (torch.arange(height, device=like.device) % tall).expand(count, -1)
    j = (torch.arange(width, device=like.device) % wide).expand(count, -1)
    sides = torch.tensor([tall, wide], device=like.device).expand(count, 2)
    tile = pyramid(i, sides[:, 0], j, sides[:, 1], u[:, -1] < 0.5)
    sign = torch.where(u[:, :-1] < 0.5, 1.0, -1.0).view(count, channels, down, right)
    sign = sign.repeat_interleave(tall, 2).repeat_interleave(wide, 3)[:, :, :height, :width]
    return (tile[:, None] * sign).to(like.dtype)
