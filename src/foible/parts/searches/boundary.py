"""The boundary attack: a walk along the border, with labels alone (Brendel et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search
from foible.parts.searches.border import bisect, first, left, light
from foible.parts.searches.probing import FIRST_GAIN, kinds_for, noise
from foible.parts.threats import L2

BURST = 10  # proposals a step: their noise is drawn at once


class Walk(NamedTuple):
    """z (B, *shape): the best point; held, over (B,): beyond the border; nothing left to try.

    around, inward (B, K): the lengths of the orthogonal and of the source step, relative to |z|,
    for each kind of noise. gain (B, K): what each kind wins, in log-distance a query.
    """

    z: Tensor
    held: Tensor
    over: Tensor
    around: Tensor
    inward: Tensor
    gain: Tensor


@dataclass(frozen=True)
class BoundaryWalk(Search):
    """Ten proposals a step, one after another: across at equal distance, then towards x.

    around, inward: the first lengths of both steps, relative to the change. plain: white noise
    only; else each row takes the kind of noise that wins most. tries: random starts.
    """

    steps: int = 5000
    around: float = 0.1
    inward: float = 0.03
    plain: bool = False
    tries: int = 100
    access = Access.LABELS

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Walk:
        """Know nothing yet: the first step finds the border."""
        if not isinstance(problem.threat, L2):
            raise KindError(
                f"{type(problem.threat).__name__} has no boundary attack: its steps are lengths "
                "in L2. Use L2(), or hop_skip_jump for Linf"
            )
        none = torch.zeros_like(rows.index, dtype=torch.bool)
        gain = rows.x.new_tensor([FIRST_GAIN[kind] for kind in kinds_for(rows, self.plain)])
        gain = gain.repeat(len(rows), 1)
        around, inward = (torch.full_like(gain, size) for size in (self.around, self.inward))
        return Walk(torch.zeros_like(rows.x), none, none, around, inward, gain)

    def ended(self, state: Walk) -> Tensor:
        """Return the rows that have no start."""
        return state.over

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Walk, draw: Draw
    ) -> Walk:
        """Make a burst of proposals for every row, and adapt its steps."""
        z, held, over, around, inward, gain = (part.clone() for part in state)
        fresh = (draw.step.to(z.device) == 0).nonzero().squeeze(1)
        if len(fresh):
            some = rows.take(fresh)
            start, found = first(problem, some, evaluate, draw.take(fresh), self.tries)
            at, some = fresh[found], light(some.take(found))
            assert isinstance(problem.threat, L2)
            z[at] = bisect(evaluate, some, problem.threat, start[found], 1e-2)
            held[fresh], over[fresh] = found, ~found
        go = held.nonzero().squeeze(1)
        if len(go):
            some, kind = light(rows).take(go), gain[go].argmax(1)
            flat = z[go].flatten(1)
            u = flat.new_empty(len(go), BURST, flat.shape[1])
            for place, name in enumerate(kinds_for(rows, self.plain)):
                at = (kind == place).nonzero().squeeze(1)
                if len(at):
                    who = draw.take(go[at]).split(2)
                    u[at] = noise(name, who, BURST, some.take(at), flat[at])
            walk = (flat, around[go, kind], inward[go, kind])
            moved, around[go, kind], inward[go, kind] = self._burst(
                problem, some, evaluate, walk, u
            )
            was, now = (torch.linalg.vector_norm(part, dim=1) for part in (flat, moved))
            tiny = torch.finfo(now.dtype).tiny
            won = (was.clamp_min(tiny) / now.clamp_min(tiny)).log() / BURST
            before = gain[go, kind]
            gain[go, kind] = torch.where(before.isinf(), won, before + 0.2 * (won - before))
            z[go] = moved.view(-1, *rows.shape)
        return Walk(z, held, over, around, inward, gain)

    def _burst(
        self,
        problem: Problem,
        rows: Rows,
        evaluate: Evaluate,
        walk: tuple[Tensor, Tensor, Tensor],
        u: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the rows (B, D) are after ten proposals, and their steps' new lengths."""
        z, around, inward = walk
        assert isinstance(problem.threat, L2)
        low, high = (part.flatten(1) for part in problem.threat._room(rows))
        length = torch.linalg.vector_norm(z, dim=1)
        won, room = torch.zeros_like(length), left(problem, rows)
        flat: Tensor  # of the first turn
        for turn in range(BURST):
            across = sphere(z, u[:, turn], around[:, None])
            point = (across * (1 - inward[:, None])).clamp(low, high)
            asked, whose = point, rows
            if turn == 0:
                # One look at the sphere alone a burst: whether the border is flat at this step.
                asked = torch.cat([point, across.clamp(low, high)])
                whose = rows.repeat(2)
            there = evaluate(asked.view(-1, *rows.shape), rows=whose).value > 0
            if turn == 0:
                there, flat = there.split(len(z))
            size = torch.linalg.vector_norm(point, dim=1)
            better = there & (size < length)
            z = torch.where(better[:, None], point, z)
            length = torch.where(better, size, length)
            won += better.to(won.dtype)
        # A burst that the cap cut short says nothing of the border.
        whole = room > BURST
        up = torch.where(flat, 1.0, -1.0).to(z.dtype)
        wider = (around * (0.1 * up).exp()).clamp(1e-7, 1.0)
        longer = (inward * (0.5 * (won / BURST - 0.2)).exp()).clamp(1e-9, 0.5)
        return z, torch.where(whole, wider, around), torch.where(whole, longer, inward)


def sphere(z: Tensor, u: Tensor, step: Tensor) -> Tensor:
    """Move z (B, D) by `step` times its length along u, and back to its distance from x."""
    tiny = torch.finfo(z.dtype).tiny
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    toward = z / length.clamp_min(tiny)
    u = u - (u * toward).sum(1, keepdim=True) * toward
    u = u * (step * length / torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(tiny))
    moved = z + u
    size: Tensor = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    back: Tensor = moved * (length / size.clamp_min(tiny))
    return back
