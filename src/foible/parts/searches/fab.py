"""FAB: a walk along the decision boundary, drawn towards the original (Croce and Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row, take
from foible.core.search import Evaluate, Evaluation, Search
from foible.parts.planes import closest, nearest_plane, onto
from foible.parts.searches.linearised import (
    ball_of,
    margin,
    onto_goal,
    planes,
    pull_back,
    rivals,
    slack,
)
from foible.parts.threats import Ball


class FabState(NamedTuple):
    """z (B, *shape) the walk; classes (B, C): measured next, or the aims of the runs.

    best (B, *shape), size (B,), reached (B,): this run's smallest success, its size (inf for none)
    and its margin. shortest (B,): the smallest size of all runs. over (B,) bool.
    """

    z: Tensor
    classes: Tensor
    best: Tensor
    size: Tensor
    reached: Tensor
    shortest: Tensor
    over: Tensor


@dataclass(frozen=True)
class FastBoundary(Search):
    """Project the walk and the original onto the nearest linearised boundary, and mix the two.

    steps: of all runs together. targets: 0 to linearise all classes at every step; else the runs
    aim at one of so many rival classes each, and linearise only its difference to the label.
    restarts: how often the runs are repeated, later ones from random starts. alpha: the largest
    weight of the original. eta: the overshoot. beta: how far a success is drawn back. classes: at
    most how many are linearised. polish: forwards of a run's final search.
    """

    steps: int = 100
    targets: int = 0
    restarts: int = 1
    alpha: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    classes: int = 10
    polish: int = 3

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> FabState:
        """Start at the clean input."""
        ball_of(problem)
        assert rows.scores is not None
        classes = rivals(rows.scores, rows, self.classes)
        if self._aimed(rows):
            classes = rivals(rows.scores, rows, self.targets + 1)[:, 1:]
        none = torch.zeros_like(rows.x)
        size = torch.full((len(rows),), float("inf"), dtype=none.dtype, device=none.device)
        over = torch.zeros_like(rows.y, dtype=torch.bool)
        return FabState(none, classes, none, size, size, size, over)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: FabState, draw: Draw
    ) -> FabState:
        """One forward; one backward with an aim, else one a class; one move."""
        ball = ball_of(problem)
        aims = state.classes.shape[1] if self._aimed(rows) else 1
        each = self.steps // (self.restarts * max(1, self.targets))
        place, run = draw.step.to(rows.y.device) % each, draw.step.to(rows.y.device) // each
        fresh = ((place == 0) & (run > 0)).nonzero().squeeze(1)
        if fresh.numel():
            state = self._again(ball, rows, state, draw, fresh, run < aims)
        seen, normals, gaps = self._look(rows, evaluate, state, run % aims)
        assert seen.scores is not None
        state, found = self._keep(ball, rows, state, state.z, seen.scores)
        first = (draw.step == 0).nonzero().squeeze(1).to(rows.y.device)
        if first.numel() and normals.shape[1] > 1 and rows.target is None:
            state = self._probe(ball, rows, evaluate, state, first, (normals, gaps))
        # The paper looks again at the point that is drawn back; its planes from one step away
        # serve as well, and save a forward.
        base = torch.where(per_row(found, state.z), self.beta * state.z, state.z)
        z = self._move(ball, rows, base, normals, _seen_from(base, state.z, normals, gaps))
        last = place == each - 1
        ends = (last & state.size.isfinite()).nonzero().squeeze(1)
        if ends.numel():
            z[ends] = pull_back(
                evaluate, rows.take(ends), state.best[ends], state.reached[ends], self.polish
            )
        if not self._aimed(rows):
            state = state._replace(classes=rivals(seen.scores, rows, self.classes))
        over = run + 1 >= aims * self.restarts
        # The solver judges the point that the last run ends on; the others are looked at here.
        more = (last & ~over & state.size.isfinite()).nonzero().squeeze(1)
        if more.numel():
            evaluate(z[more], rows.take(more))
        return state._replace(z=z, over=last & over)

    def ended(self, state: FabState) -> Tensor:
        """Return which rows have no run left: there may be fewer classes than `targets`."""
        return state.over

    def _aimed(self, rows: Rows) -> bool:
        # Towards a given target the other classes matter as well: all are linearised.
        return self.targets > 0 and rows.target is None

    def _look(
        self, rows: Rows, evaluate: Evaluate, state: FabState, run: Tensor
    ) -> tuple[Evaluation, Tensor, Tensor]:
        """Evaluate z; return also the normals (B, M, D) and the gaps (B, M) of its planes."""
        if not self._aimed(rows):
            seen = evaluate(state.z, need="jacobian", classes=state.classes)
            return seen, *planes(seen, rows, state.classes)
        aim = state.classes.gather(1, run[:, None])
        aimed = replace(rows, extra={**rows.extra, "aim": aim[:, 0]})
        seen = evaluate(state.z, aimed, need="grad")
        assert seen.grad is not None and seen.scores is not None and rows.scores is not None
        own = rows.y[:, None]
        here, start = (s.gather(1, own) - s.gather(1, aim) for s in (seen.scores, rows.scores))
        return seen, seen.grad.flatten(1)[:, None], here + slack(seen.scores, start)

    def _probe(
        self,
        ball: Ball,
        rows: Rows,
        evaluate: Evaluate,
        state: FabState,
        which: Tensor,
        seen: tuple[Tensor, Tensor],
    ) -> FabState:
        """Look at the nearest point that crosses any plane inside the box, from the clean input.

        The walk chooses its class as the paper does, by the distance without the box; on a linear
        model this point is the optimum.
        """
        some = rows.take(which)
        normals, gaps = (part[which] for part in seen)
        low, high = ball._room(some)
        z = closest(ball.norm, normals, gaps, low.flatten(1), high.flatten(1)).view_as(low)
        scores = evaluate(z, some, need="scores").scores
        assert scores is not None
        kept, _ = self._keep(ball, some, take(state, which), z, scores)
        joined = zip(state, kept, strict=True)
        return FabState(*(old.index_copy(0, which, new) for old, new in joined))

    def _keep(
        self, ball: Ball, rows: Rows, state: FabState, z: Tensor, scores: Tensor
    ) -> tuple[FabState, Tensor]:
        """Return the state with this run's smallest success, and whether z is one."""
        reached = margin(scores, rows)
        found = reached > 0
        size = ball.length(z.flatten(1)).to(reached.dtype)
        better = found & (size < state.size)
        kept = state._replace(
            best=torch.where(per_row(better, z), z, state.best),
            size=torch.where(better, size, state.size),
            reached=torch.where(better, reached, state.reached),
            shortest=torch.where(better, size.minimum(state.shortest), state.shortest),
        )
        return kept, found

    def _move(self, ball: Ball, rows: Rows, base: Tensor, normals: Tensor, gaps: Tensor) -> Tensor:
        """Return the next point: both projections, overshot and mixed, inside the box."""
        room = ball._room(rows)
        at = base.flatten(1)
        low, high = (end.flatten(1) for end in room)
        ends = torch.cat([low - at, low]), torch.cat([high - at, high])
        start = gaps + (normals @ at[:, :, None])[:, :, 0]  # the gaps at the original
        if rows.target is not None:
            pairs = torch.cat([normals, normals]), torch.cat([gaps, start])
            both = onto_goal(ball.norm, *pairs, *ends, True)
        else:
            places = torch.arange(len(at), device=at.device)
            which = nearest_plane(ball.norm, normals, gaps)
            normal, twice = normals[places, which], (gaps[places, which], start[places, which])
            both = onto(ball.norm, torch.cat([normal, normal]), torch.cat(twice), *ends)
        walk, home = both.chunk(2)
        far, near = ball.length(walk)[:, None], ball.length(home)[:, None]
        share = (far / (far + near).clamp_min(torch.finfo(far.dtype).tiny)).clamp_max(self.alpha)
        mixed = (1 - share) * (at + self.eta * walk) + share * self.eta * home
        return mixed.view_as(base).maximum(room[0]).minimum(room[1])

    def _again(
        self, ball: Ball, rows: Rows, state: FabState, draw: Draw, which: Tensor, clean: Tensor
    ) -> FabState:
        """Begin the next run of some rows: at the clean input, or in half the known radius."""
        some = rows.take(which)
        radius = state.shortest[which]
        if some.eps is not None:
            radius = radius.minimum(some.eps)
        # Nothing found and no eps: what the last run walked is the only length known.
        walked = ball.length(state.z[which].flatten(1)).to(radius.dtype)
        radius = torch.where(radius.isfinite(), radius, walked) / 2
        start = ball.start(replace(some, eps=radius), draw.take(which).split(5))
        start = torch.where(per_row(clean[which], start), 0.0, start)
        none = torch.full_like(radius, float("inf"))
        return state._replace(
            z=state.z.index_copy(0, which, start), size=state.size.index_copy(0, which, none)
        )


def _seen_from(base: Tensor, z: Tensor, normals: Tensor, gaps: Tensor) -> Tensor:
    """Return the gaps (B, M) of the planes at another point."""
    return gaps - (normals @ (base - z).flatten(1)[:, :, None])[:, :, 0]
