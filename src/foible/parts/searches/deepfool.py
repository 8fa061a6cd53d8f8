"""DeepFool: step after step onto the nearest boundary of the linearised model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search
from foible.parts.searches.linearised import (
    ball_of,
    margin,
    onto_goal,
    planes,
    pull_back,
    rivals,
)


class DeepFoolState(NamedTuple):
    """z (B, *shape); walked (B, *shape) the sum of all steps, without the overshoot.

    classes (B, C): whose boundaries are measured next; over (B,) bool: found and pulled back.
    """

    z: Tensor
    walked: Tensor
    classes: Tensor
    over: Tensor


@dataclass(frozen=True)
class DeepFool(Search):
    """Walk to the nearest linearised boundary until it is crossed; then pull back to it.

    overshoot: the share by which the walk is lengthened. classes: at most how many boundaries are
    measured, the label's rivals of the largest scores. polish: forwards of the pull back.
    """

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    polish: int = 3

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> DeepFoolState:
        """Start at the clean input."""
        ball_of(problem)
        assert rows.scores is not None
        none = torch.zeros_like(rows.x)
        over = torch.zeros_like(rows.y, dtype=torch.bool)
        return DeepFoolState(none, none, rivals(rows.scores, rows, self.classes), over)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: DeepFoolState, draw: Draw
    ) -> DeepFoolState:
        """One forward, as many backwards as classes, one move, one more forward to look at it."""
        ball = ball_of(problem)
        seen = evaluate(state.z, need="jacobian", classes=state.classes)
        normals, gaps = planes(seen, rows, state.classes)
        low, high = ball._room(rows)
        ends = (low - state.z).flatten(1), (high - state.z).flatten(1)
        if ball.norm != "l1":
            # As in the paper, a step ignores the box, which then cuts it: many short steps hold
            # the linear model closer than few that make up for what the box takes. In L1 a step
            # moves a single entry, which has to have room.
            ends = torch.full_like(ends[0], float("-inf")), torch.full_like(ends[1], float("inf"))
        move = onto_goal(ball.norm, normals, gaps, *ends, rows.target is not None)
        walked = (state.walked + move.view_as(state.z)).clamp(low, high)
        z = (walked * (1 + self.overshoot)).clamp(low, high)
        scores = evaluate(z, need="scores").scores
        assert scores is not None
        reached = margin(scores, rows)
        found = reached > 0
        at = found.nonzero().squeeze(1)
        if at.numel():
            z[at] = pull_back(evaluate, rows.take(at), z[at], reached[at], self.polish)
        return DeepFoolState(z, walked, rivals(scores, rows, self.classes), found)

    def ended(self, state: DeepFoolState) -> Tensor:
        """Return which rows have crossed a boundary."""
        return state.over
