"""The smallest step into the common part of several half-spaces and a box.

What a targeted attack has to solve on a linearised model: the target must beat every other class
at once, and the nearest such point lies on several hyperplanes as a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.rows import take
from foible.parts.planes import nearest

_DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
# The price of a gap that is left open, in units of the largest multiplier one plane may need.
_PRICE = 1e4
_GAP = 1e-5  # how far from the optimum, of unit size, the method stops


def inside(norm: str, normals: Tensor, gaps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest d (B, D) with normals . d >= gaps for all M, low <= d <= high.

    norm: "linf", "l2" or "l1". normals (B, M, D), gaps (B, M), low <= 0 <= high (B, D), may be
    infinite. Where the box holds no such point, d leaves as little open as it can.

    The way onto the hardest plane alone is taken where it meets the others as well; else a
    primal-dual interior-point method finds d to about 1e-6, in float64.

    >>> normals = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> d = inside("l2", normals, torch.tensor([[1.0, 2.0]]), torch.full((1, 2), -9.0),
    ...            torch.full((1, 2), 9.0))
    >>> [round(v, 4) for v in d[0].tolist()]
    [1.0, 2.0]
    """
    b, m = gaps.shape
    slope = torch.linalg.vector_norm(normals, ord=_DUAL[norm], dim=2)
    tiny = torch.finfo(slope.dtype).tiny
    away = torch.where(gaps > 0, gaps / slope.clamp_min(tiny), 0.0)
    hardest = away.argmax(1)
    at = torch.arange(b, device=gaps.device)
    d = nearest(norm, normals[at, hardest], gaps[at, hardest], low, high)
    if m == 1:
        return d
    met = _times(normals, d)
    # A plane without a slope can never be met: it must not send the others astray.
    hopeless = slope <= tiny
    open_ = ((met < gaps - 1e-5 * gaps.abs()) & ~hopeless).any(1)
    which = open_.nonzero().squeeze(1)
    if which.numel():
        scale = away.masked_fill(hopeless, 0.0).amax(1)[which].clamp_min(tiny).double()
        pull = normals[which].double() / slope[which].clamp_min(tiny).double()[:, :, None]
        need = gaps[which].double() / slope[which].clamp_min(tiny).double() / scale[:, None]
        need = need.masked_fill(hopeless[which], -1.0).clamp_min(-1e4)
        ends = [end[which].double() / scale[:, None] for end in (low, high)]
        plan = _Plan(pull, need, ends[0].clamp_min(-1e4), ends[1].clamp_max(1e4))
        found = _solve(norm, plan)
        cut = (found * scale[:, None]).to(d.dtype)
        cut = torch.where(cut.isfinite().all(1, keepdim=True), cut, d[which])
        d[which] = cut.maximum(low[which]).minimum(high[which])
    return d


class _Plan(NamedTuple):
    """Minimise |d| + price * e with a d + e >= need, e >= 0, low <= d <= high, all of unit size."""

    a: Tensor
    need: Tensor
    low: Tensor
    high: Tensor

    def slacks(self, d: Tensor, t: Tensor, e: Tensor) -> Tensor:
        """Return all that must stay above 0, (B, N): box, planes, e, and in linf and l1 |d| <= t.

        Every slack is an expression of (d, t, e), so that each iterate is strictly feasible.
        """
        parts = [d - self.low, self.high - d, _times(self.a, d) + e - self.need, e]
        return torch.cat(parts + ([t - d, t + d] if t.shape[1] else []), 1)


class _Point(NamedTuple):
    """d (B, D); t, the bound on |d|, (B, 1) in linf, (B, D) in l1, (B, 0) in l2; e (B, 1), the gap
    left open; z (B, N), the multipliers of the slacks; share (B, 1): the next step's aim.
    """

    d: Tensor
    t: Tensor
    e: Tensor
    z: Tensor
    share: Tensor


def _times(a: Tensor, d: Tensor) -> Tensor:
    return (a @ d[:, :, None])[:, :, 0]


def _solve(norm: str, plan: _Plan) -> Tensor:
    """Return d (B, D): a primal-dual interior-point method, with all but M + 1 unknowns
    eliminated from each Newton step.
    """
    low, high = plan.low - 1e-7, plan.high + 1e-7  # an inside, where the box has none
    plan = plan._replace(low=low, high=high)
    margin = (0.25 * (high - low)).clamp_max(0.1)
    d = torch.zeros_like(low).maximum(low + margin).minimum(high - margin)
    size = d.abs()
    t = {"linf": size.amax(1, keepdim=True) + 1.0, "l1": size + 0.1, "l2": d[:, :0]}[norm]
    e = (plan.need - _times(plan.a, d)).amax(1, keepdim=True).clamp_min(0.0) + 1.0
    slack = plan.slacks(d, t, e)
    point = _Point(d, t, e, 0.1 / slack, torch.full_like(e, 0.2))
    out, index = d.clone(), torch.arange(len(d), device=d.device)
    for _ in range(40):
        gap = (slack * point.z).sum(1, keepdim=True)
        enough = _GAP * (1 + _PRICE * point.e)
        out[index] = point.d
        # A row leaves as soon as it is found, so that its neighbours do not change it.
        stay = (gap > 2 * enough).squeeze(1).nonzero().squeeze(1)
        if len(stay) == 0:
            break
        if len(stay) < len(gap):
            plan, point, slack, gap, enough, index = take(
                (plan, point, slack, gap, enough, index), stay
            )
        mu = (point.share * gap).maximum(enough) / slack.shape[1]
        point = _newton(norm, plan, slack, point, mu)
        slack = plan.slacks(point.d, point.t, point.e)
    return out


def _newton(norm: str, plan: _Plan, slack: Tensor, p: _Point, mu: Tensor) -> _Point:
    """One Newton step on the optimality conditions, perturbed by mu."""
    a, (m, size) = plan.a, plan.a.shape[1:]
    sizes = [size, size, m, 1] + ([size, size] if norm != "l2" else [])
    weight, pull = p.z / slack, mu / slack
    w, r = weight.split(sizes, 1), pull.split(sizes, 1)
    right_d = r[0] - r[1] + (r[2][:, None] @ a)[:, 0]
    right_e = r[2].sum(1, keepdim=True) + r[3] - _PRICE
    if norm == "l2":
        solve: _Quadratic | _Own | _Shared = _Quadratic(w[0] + w[1] + 1.0)
        right_d, right_t = right_d - p.d, p.t
    else:
        right_d, right_t = right_d - r[4] + r[5], r[4] + r[5]
        right_t = (right_t.sum(1, keepdim=True) if norm == "linf" else right_t) - 1.0
        both, cross = w[4] + w[5], w[5] - w[4]
        solve = (_Shared if norm == "linf" else _Own)(w[0] + w[1] + both, cross, both)
    free_d, free_t = solve(right_d[:, None], right_t[:, None])
    free_e = right_e / w[3]
    ways_d, ways_t = solve(a, torch.zeros_like(p.t)[:, None].expand(-1, m, -1))
    # Woodbury: the planes are a correction of rank M.
    schur = a @ ways_d.mT + (1 / w[3])[:, :, None] + torch.diag_embed(1 / w[2])
    y = torch.linalg.solve_ex(schur, _times(a, free_d[:, 0]) + free_e)[0]
    step_d = free_d[:, 0] - (y[:, None] @ ways_d)[:, 0]
    step_t = free_t[:, 0] - (y[:, None] @ ways_t)[:, 0]
    step_e = free_e - y.sum(1, keepdim=True) / w[3]
    moves = [step_d, -step_d, _times(a, step_d) + step_e, step_e]
    move = torch.cat(moves + ([step_t - step_d, step_t + step_d] if norm != "l2" else []), 1)
    turn = pull - p.z - weight * move
    primal, dual = _reach(slack, move), _reach(p.z, turn)
    return _Point(
        p.d + primal * step_d, p.t + primal * step_t, p.e + primal * step_e, p.z + dual * turn,
        # After a long step the next one may aim closer to the optimum.
        (1 - 0.95 * primal.minimum(dual)).square().clamp(0.02, 0.5),
    )  # fmt: skip


@dataclass
class _Quadratic:
    """The Newton matrix in (d, t) without the planes, l2: solve for right-hand sides (B, R, D)."""

    diagonal: Tensor

    def __call__(self, d: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return d / self.diagonal[:, None], t


@dataclass
class _Own:
    """The same in l1, where every entry has a bound of its own: blocks of two."""

    diagonal: Tensor
    cross: Tensor
    own: Tensor

    def __call__(self, d: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.cross / self.own
        first = (d - t * ratio[:, None]) / (self.diagonal - self.cross * ratio)[:, None]
        return first, (t - first * self.cross[:, None]) / self.own[:, None]


@dataclass
class _Shared:
    """The same in linf, where all entries share one bound: an arrow."""

    diagonal: Tensor
    cross: Tensor
    own: Tensor

    def __call__(self, d: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        over = self.cross / self.diagonal
        pivot = self.own.sum(1) - (self.cross * over).sum(1)
        last = (t - d @ over[:, :, None]) / pivot[:, None, None]
        return (d - last * self.cross[:, None]) / self.diagonal[:, None], last


def _reach(value: Tensor, move: Tensor) -> Tensor:
    """Return the share (B, 1) of the move, at most 1, that keeps every value above 0."""
    return 0.95 / (-move / value).amax(1, keepdim=True).clamp_min(0.95)
