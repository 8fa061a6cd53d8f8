"""HopSkipJump: the border's normal estimated from labels alone (Chen et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.parts.searches.border import beyond, bisect, blend, first, left, light
from foible.parts.searches.probing import FIRST_GAIN, kinds_for, noise
from foible.parts.threats import Ball

# Queries kept back from the probes for the step and the bisection that follow them.
RESERVE = 24
HALVINGS = 12
LAST = 64  # the most points that are asked when no iteration is left
PIECE = 128  # the most probes of one draw, so that memory is bounded by the chunk alone


class Hops(NamedTuple):
    """z (B, *shape): on the border; held (B,): whether a point beyond it is known.

    gain (B, K): what each kind of noise last won, in log-distance a query. over (B,): nothing is
    left to try.
    """

    z: Tensor
    held: Tensor
    gain: Tensor
    over: Tensor


@dataclass(frozen=True)
class HopSkipJump(Search):
    """One step is one iteration: probes, a step along the normal, a bisection back.

    probes, most: B_0 and the largest B_t = B_0 sqrt(t). plain: white noise only; else each row
    takes the kind of noise that last won most. tries: random starts. tolerance: of a bisection.
    reach: the length of a probe, relative to the change.
    """

    steps: int = 5000
    probes: int = 30
    most: int = 10_000
    plain: bool = False
    tries: int = 100
    tolerance: float = 1e-3
    reach: float = 0.036
    access = Access.LABELS

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Hops:
        """Know nothing yet: the first step finds the border."""
        if getattr(problem.threat, "norm", "") not in ("l2", "linf"):
            raise KindError(
                f"{type(problem.threat).__name__} has no HopSkipJump: use a ball in L2 or Linf"
            )
        none = torch.zeros_like(rows.index, dtype=torch.bool)
        hopes = [FIRST_GAIN[kind] for kind in kinds_for(rows, self.plain)]
        gain = rows.x.new_tensor(hopes).repeat(len(rows), 1)
        return Hops(torch.zeros_like(rows.x), none, gain, none)

    def ended(self, state: Hops) -> Tensor:
        """Return the rows that have no start, or no queries for another iteration."""
        return state.over

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Hops, draw: Draw
    ) -> Hops:
        """Do one iteration of every row, or its last bisection."""
        threat = problem.threat
        assert isinstance(threat, Ball)
        z, held, gain, over = (part.clone() for part in state)
        fresh = (draw.step.to(z.device) == 0).nonzero().squeeze(1)
        if len(fresh):
            some = rows.take(fresh)
            start, found = first(problem, some, evaluate, draw.take(fresh), self.tries)
            at, some = fresh[found], light(some.take(found))
            z[at] = bisect(evaluate, some, threat, start[found], self.tolerance)
            held[fresh], over[fresh] = found, ~found
        rows = light(rows)
        count = self._count(left(problem, rows), draw.step.to(z.device))
        last = (held & (count < 1)).nonzero().squeeze(1)
        if len(last):
            z[last] = bisect(evaluate, rows.take(last), threat, z[last], 1e-6)
            self._spend(problem, rows.take(last), evaluate, z[last], draw.take(last))
            over[last] = True
        go = (held & (count >= 1)).nonzero().squeeze(1)
        if len(go):
            some, before = rows.take(go), left(problem, rows.take(go))
            kind = gain[go].argmax(1)
            moved = self._hop(problem, some, evaluate, z[go], (count[go], kind), draw.take(go))
            was, now = (threat.length(part.flatten(1)) for part in (z[go], moved))
            spent = (before - left(problem, some)).clamp_min(1)
            tiny = torch.finfo(now.dtype).tiny
            won = (was.clamp_min(tiny) / now.clamp_min(tiny)).log() / spent
            gain[go, kind] = won.to(gain.dtype)
            z[go] = moved
        return Hops(z, held, gain, over)

    def _count(self, rest: Tensor, step: Tensor) -> Tensor:
        """Return how many probes (B,) each row makes: 0 where too few queries are left.

        An iteration that would leave less than half of itself takes the rest at once.
        """
        count = (self.probes * (step + 1).double().sqrt()).long().clamp_max(self.most)
        room = rest - RESERVE
        count = torch.where(room < 1.5 * count + RESERVE, room.minimum(2 * count), count)
        return torch.where(count >= min(16, self.probes), count, 0)

    def _spend(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, z: Tensor, draw: Draw
    ) -> None:
        """Ask the queries that are too few for an iteration around z, a little closer to x.

        The solver keeps the best point asked, so any of them may be the answer.
        """
        count = left(problem, rows).clamp(0, LAST)
        threat, flat = problem.threat, z.flatten(1)
        assert isinstance(threat, Ball)
        u = draw.split(3).normal((LAST, flat.shape[1]), z.dtype)
        at = (torch.arange(LAST, device=z.device) < count[:, None]).nonzero()
        if len(at) == 0:
            return
        which, near = at[:, 0], flat[at[:, 0]]
        size = 0.05 * torch.linalg.vector_norm(near, dim=1, keepdim=True)
        u = u[which, at[:, 1]]
        moved = near + u * (size / torch.linalg.vector_norm(u, dim=1, keepdim=True))
        tiny = torch.finfo(z.dtype).tiny
        share = 0.998 * threat.length(near) / threat.length(moved).clamp_min(tiny)
        low, high = (part.flatten(1)[which] for part in threat._room(rows))
        point = blend(threat.norm, moved, share).clamp(low, high)
        evaluate(point.view(-1, *rows.shape), rows=rows.take(which))

    def _hop(
        self,
        problem: Problem,
        rows: Rows,
        evaluate: Evaluate,
        z: Tensor,
        plan: tuple[Tensor, Tensor],
        draw: Draw,
    ) -> Tensor:
        """Return the next point on the border (the paper's Algorithm 2, its loop)."""
        threat = problem.threat
        assert isinstance(threat, Ball)
        normal = self._normal(problem, rows, evaluate, z, plan, draw)
        tiny = torch.finfo(z.dtype).tiny
        if threat.norm == "l2":
            size = torch.linalg.vector_norm(normal.flatten(1), dim=1).clamp_min(tiny)
            normal = normal / per_row(size, z)
        else:
            normal = normal.sign()
        low, high = threat._room(rows)
        length = threat.length(z.flatten(1)) / (draw.step.to(z.device) + 1).to(z.dtype).sqrt()
        moved = z.clone()
        waiting = torch.arange(len(z), device=z.device)
        for _ in range(HALVINGS):
            ahead = z[waiting] + per_row(length[waiting], z) * normal[waiting]
            ahead = ahead.clamp(low[waiting], high[waiting])
            there = beyond(evaluate, rows.take(waiting), ahead)
            moved[waiting[there]] = ahead[there]
            waiting, length = waiting[~there], length / 2
            if len(waiting) == 0:
                break
        return bisect(evaluate, rows, threat, moved, self.tolerance)

    def _normal(
        self,
        problem: Problem,
        rows: Rows,
        evaluate: Evaluate,
        z: Tensor,
        plan: tuple[Tensor, Tensor],
        draw: Draw,
    ) -> Tensor:
        """Estimate the border's normal at z, unscaled: sum_b (phi_b - mean phi) u_b.

        Rows of an equal number of probes and an equal kind of noise share batches of about a chunk.
        """
        chunk, normal = problem.oracle.chunk(rows.x), torch.zeros_like(z)
        kinds = kinds_for(rows, self.plain)
        plans = torch.stack(plan, 1)
        for number, kind in plans.unique(dim=0).tolist():
            same = (plans == plans.new_tensor([number, kind])).all(1).nonzero().squeeze(1)
            for some in same.split(max(1, chunk // min(number, PIECE))):
                part = rows.take(some)
                normal[some] = self._probe(
                    problem, part, evaluate, z[some], (number, kinds[kind]), draw.take(some)
                )
        return normal

    def _probe(
        self,
        problem: Problem,
        rows: Rows,
        evaluate: Evaluate,
        z: Tensor,
        plan: tuple[int, str],
        draw: Draw,
    ) -> Tensor:
        threat, (number, kind) = problem.threat, plan
        assert isinstance(threat, Ball)
        low, high = (part.flatten(1)[:, None] for part in threat._room(rows))
        flat = z.flatten(1)
        length = self.reach * torch.linalg.vector_norm(flat, dim=1)[:, None, None]
        voted, total = torch.zeros_like(flat), torch.zeros_like(flat)
        votes = torch.zeros_like(flat[:, 0])
        for start in range(0, number, PIECE):
            count = min(PIECE, number - start)
            u = noise(kind, draw.split(1000 + start), count, rows, flat)
            u = u * (length / torch.linalg.vector_norm(u, dim=2, keepdim=True))
            u = (flat[:, None] + u).clamp(low, high)
            which = torch.arange(len(rows), device=z.device).repeat_interleave(count)
            there = beyond(evaluate, rows.take(which), u.view(-1, *rows.shape))
            u = u - flat[:, None]
            vote = there.view(-1, count).to(u.dtype) * 2 - 1
            voted += torch.einsum("bp,bpd->bd", vote, u)
            total += u.sum(1)
            votes += vote.sum(1)
        mean = (votes / number)[:, None]
        # Where all probes agree there is no contrast; their mean still says which way.
        normal = torch.where(mean.abs() == 1, voted, voted - mean * total)
        return normal.view_as(z)
