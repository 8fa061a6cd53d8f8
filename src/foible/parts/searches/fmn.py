"""Fast minimum-norm search: every row has a radius, which falls on success and rises on failure.

Pintor et al. 2021 (FMN) project onto the ball of that radius, Rony et al. 2019 (DDN) onto its
sphere (`parts.searches.ddn`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Evaluation, Search
from foible.parts.searches.pruning import Kept, by_phase, prune, reach
from foible.parts.threats import Ball

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf, "l0": math.inf}


@dataclass(frozen=True)
class Pace:
    """How long the moves are, as shares of the radius (L0: of the box's width), and how fast the
    radius changes.

    first, last: of the moves, with a geometric fall between them. targeted: the first one where
    rows have a target. gamma, still: by what share the radius changes at first and at last.
    """

    first: float
    targeted: float
    last: float
    gamma: float = 0.02
    still: float = 0.001


# A first move of many radii forgets where it came from: the point is the best of the ball for the
# gradient alone. On nets such jumps find far better valleys. Towards a target they would bounce
# between its rivals, each gradient knowing one of them only.
PACES = {
    "linf": Pace(0.5, 0.5, 0.01),
    "l2": Pace(100.0, 2.0, 0.001),
    "l1": Pace(30.0, 1.0, 0.002),
    "l0": Pace(1000.0, 1000.0, 0.1, 0.05),
}


class FastState(NamedTuple):
    """z (B, *shape); all else (B,): eps the radius; best the smallest success, inf for none;
    rate the last change of the radius; won whether the last point succeeded; kept, for L0, the
    best point so far.
    """

    z: Tensor
    eps: Tensor
    best: Tensor
    rate: Tensor
    won: Tensor
    kept: Kept


@dataclass(frozen=True)
class FastMinimum(Search):
    """Move along the gradient, project onto the row's own ball, adapt its radius.

    pace: None is the norm's own (`PACES`). prune: the last steps of an L0 search that take
    features out one by one instead; at most a fifth of the steps.
    """

    steps: int = 200
    pace: Pace | None = None
    prune: int = 10

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> FastState:
        """Begin at the clean input with no radius."""
        ball = ball_of(problem)
        z = ball.clean(rows)
        none = torch.zeros(len(rows), dtype=z.dtype, device=z.device)
        never = torch.full_like(none, math.inf)
        sparse = ball.norm == "l0"
        kept = Kept.nothing(z if sparse else z.flatten(1)[:, :0])
        return FastState(z, none, never, none, none > 0, kept)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: FastState, draw: Draw
    ) -> FastState:
        """One forward and one backward; for L0 the last steps prune."""
        ball = ball_of(problem)
        if ball.norm != "l0":
            return self._move(ball, rows, evaluate(state.z, need="grad"), state, draw)

        def move(rows: Rows, state: FastState, draw: Draw) -> FastState:
            seen = evaluate(state.z, rows, need="grad")
            return self._move(ball, rows, seen, state, draw)

        def clear(rows: Rows, state: FastState, draw: Draw) -> FastState:
            kept = prune(ball, rows, evaluate, state.kept)
            return state._replace(kept=kept, z=kept.z)

        after: FastState = by_phase(move, clear, draw.step >= self._moves, rows, state, draw)
        return after

    @property
    def _moves(self) -> int:
        return self.steps - min(self.prune, self.steps // 5)

    def _move(
        self, ball: Ball, rows: Rows, seen: Evaluation, state: FastState, draw: Draw
    ) -> FastState:
        assert seen.grad is not None
        grad, z = seen.grad.flatten(1), state.z.flatten(1)
        pace = self.pace or PACES[ball.norm]
        sparse = ball.norm == "l0"
        steps = self._moves if sparse else self.steps
        done = (draw.step.to(grad.device, grad.dtype) / max(1, steps - 1)).clamp_max(1.0)
        left = (1 + torch.cos(math.pi * done)) / 2
        gamma = pace.still + (pace.gamma - pace.still) * left
        won = seen.success | (seen.value > 0)
        size = ball.length(z).to(grad.dtype)
        best = torch.where(won, size.minimum(state.best), state.best)
        # A row that keeps winning is still far from the boundary; with gamma decayed it would
        # never arrive, so the longer the search, the faster such a row falls.
        again = won & state.won & state.best.isfinite()
        rate = torch.where(again, state.rate * (1.5 - left / 2), gamma).maximum(gamma)
        rate = rate.clamp_max(0.5)
        eps = torch.where(
            won,
            state.eps * (1 - rate),
            torch.where(best.isfinite(), state.eps * (1 + gamma), 0.0),
        ).minimum(best)
        # Until the first success: what would reach the boundary of a linear model. It grows by half
        # at most a step: among several rivals the points bounce, and each longer jump would ask
        # for a longer one still.
        slope = torch.linalg.vector_norm(grad, ord=_DUAL[ball.norm], dim=1)
        # In L0 the radius counts features, each of which may cross the whole box.
        gain = slope * (_width(ball) if sparse else 1.0)
        ahead = torch.where(slope > 0, seen.value.abs() / gain, 0.0)
        guess = (size + torch.where(ahead.isfinite(), ahead, 0.0)) * (1 + gamma)
        guess = torch.where(state.eps > 0, guess.minimum(1.5 * state.eps), guess)
        eps = torch.where(best.isfinite(), eps, guess.minimum(_largest(ball, rows)))
        if sparse:
            eps = _whole(eps, state.eps, best, won)
        first = pace.first if rows.target is None else pace.targeted
        share = first * (pace.last / first) ** done
        length = share * (_width(ball) if sparse else eps)
        moved = z + _unit(ball, rows, grad, 1 - left) * length[:, None]
        # Where a long move has left all gradients behind, halfway back may have some.
        moved = torch.where(slope[:, None] > 0, moved, z / 2)
        new = self._place(ball, rows, moved.view_as(state.z), eps, best.isfinite())
        kept = state.kept.offered(state.z, won) if sparse else state.kept
        return FastState(new, eps, best, rate, won, kept)

    def _place(self, ball: Ball, rows: Rows, z: Tensor, eps: Tensor, found: Tensor) -> Tensor:
        """Project onto the ball of radius eps (B,) and the box; found: (B,) ever successful."""
        return ball.project(replace(rows, eps=eps), z)


def ball_of(problem: Problem) -> Ball:
    """Return the threat, which must be a norm ball."""
    if not isinstance(problem.threat, Ball):
        raise KindError(
            f"{type(problem.threat).__name__} has no norm to make small: minimum-norm attacks "
            "need a ball (Linf, L2, L1, L0)"
        )
    return problem.threat


def _unit(ball: Ball, rows: Rows, grad: Tensor, late: Tensor) -> Tensor:
    """Return the direction (B, D) of the move; late: 0 at the first step, 1 at the last."""
    if ball.norm == "l0":
        # What a whole feature gains counts, not the slope: the box may leave it no room.
        low, high = reach(ball, rows)
        grad = grad * torch.where(grad > 0, high, -low)
    grad = grad / grad.abs().amax(1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    if ball.norm == "l0":
        return grad
    if ball.norm == "linf":
        # From the sign, which is best on nets, to the gradient, which settles where several
        # boundaries meet.
        mean = grad.abs().mean(1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
        return grad.sign() * (grad.abs() / mean) ** late[:, None]
    size: Tensor = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    return grad / size.clamp_min(torch.finfo(grad.dtype).tiny)


def _width(ball: Ball) -> float:
    return 1.0 if ball.box is None else ball.box.width


def _largest(ball: Ball, rows: Rows) -> Tensor:
    """Return the norm (B,) of the largest change; an endless box must not end in overflow."""
    low, high = ball._room(rows)
    end = 1e6 * (1 + rows.x.abs())
    return ball.length(high.maximum(-low).minimum(end).flatten(1)).to(rows.x.dtype)


def _whole(eps: Tensor, before: Tensor, best: Tensor, won: Tensor) -> Tensor:
    """Return the number of features to change next: fewer than ever worked."""
    eps = torch.where(won, eps.floor(), torch.maximum(eps, before + 1).ceil())
    return eps.minimum(best - 1).clamp_min(1.0)
