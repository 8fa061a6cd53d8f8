"""sigma-zero: a smooth count of changed features, and a threshold that drops the small ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search
from foible.parts.searches.fmn import ball_of
from foible.parts.searches.pruning import Kept, by_phase, prune, reach
from foible.parts.threats import Ball


class SparseState(NamedTuple):
    """z (B, *shape); tau (B,) the threshold, a share of the box's width; kept the best so far."""

    z: Tensor
    tau: Tensor
    kept: Kept


@dataclass(frozen=True)
class SigmaZero(Search):
    """Climb the objective, or the smooth count down once it is reached, and drop what is small.

    sigma: of the smooth count sum u^2 / (u^2 + sigma), u the change in widths of the box. tau:
    the first threshold; rate: its change, a share of the step; eta: the first step, in widths.
    prune: the last steps, which take features out one by one; at most a fifth of the steps.
    """

    steps: int = 300
    sigma: float = 1e-3
    tau: float = 0.3
    rate: float = 0.02
    eta: float = 4.0
    prune: int = 10

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> SparseState:
        """Begin at the clean input."""
        z = ball_of(problem).clean(rows)
        tau = torch.full((len(rows),), self.tau, dtype=z.dtype, device=z.device)
        return SparseState(z, tau, Kept.nothing(z))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SparseState, draw: Draw
    ) -> SparseState:
        """One forward and one backward; the last steps prune."""
        ball = ball_of(problem)
        moves = self.steps - min(self.prune, self.steps // 5)

        def move(rows: Rows, state: SparseState, draw: Draw) -> SparseState:
            done = draw.step.to(rows.x.device, rows.x.dtype) / max(1, moves - 1)
            eta = self.eta * (1 + torch.cos(math.pi * done.clamp_max(1.0))) / 2
            return self._move(ball, rows, evaluate, state, eta)

        def clear(rows: Rows, state: SparseState, draw: Draw) -> SparseState:
            kept = prune(ball, rows, evaluate, state.kept)
            return state._replace(kept=kept, z=kept.z)

        after: SparseState = by_phase(move, clear, draw.step >= moves, rows, state, draw)
        return after

    def _move(
        self, ball: Ball, rows: Rows, evaluate: Evaluate, state: SparseState, eta: Tensor
    ) -> SparseState:
        seen = evaluate(state.z, rows, need="grad")
        assert seen.grad is not None
        grad, width = seen.grad.flatten(1), 1.0 if ball.box is None else ball.box.width
        low, high = reach(ball, rows)
        won = seen.success | (seen.value > 0)
        gain = _unit(grad * torch.where(grad > 0, high, -low))
        u = state.z.flatten(1) / width
        fewer = 2 * u * self.sigma / (u.square() + self.sigma).square() / u.shape[1]
        up = _unit(torch.where(won[:, None], 0.0, gain) - fewer)
        moved = (u + eta[:, None] * up).maximum(low / width).minimum(high / width)
        kept_up = torch.where(moved.abs() < state.tau[:, None], 0.0, moved) * width
        z = kept_up.maximum(low).minimum(high).view_as(state.z)
        tau = (state.tau + torch.where(won, self.rate, -self.rate) * eta).clamp(0.0, 1.0)
        return SparseState(z, tau, state.kept.offered(state.z, won))


def _unit(move: Tensor) -> Tensor:
    size = move.abs().amax(1, keepdim=True)
    return move / size.clamp_min(torch.finfo(move.dtype).tiny)
