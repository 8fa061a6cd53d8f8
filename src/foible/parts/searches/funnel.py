"""The funnel: ascent in a ball that shrinks from several eps to eps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.errors import KindError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.search import Evaluate, Search
from foible.core.threat import Steepest


class FunnelState(NamedTuple):
    """z (B, *shape) the next point."""

    z: Tensor


@dataclass(frozen=True)
class Funnel(Search):
    """Cross the boundary far away, where the gradient is good, and walk back along it.

    A net that was trained against small changes is flat around its inputs: ascent inside eps
    stalls there (Linf training against L2 attacks is the known case). The radius falls
    geometrically from `wide` times eps to eps over the share `descent` of the steps and stays
    there; a step is `length` of the radius and falls linearly over the rest. AutoAttack's L1
    attack begins in larger balls for the same reason (Croce and Hein 2021), in three stages.
    """

    steps: int = 100
    wide: float = 5.0
    descent: float = 0.8
    length: float = 0.5
    last: float = 0.02

    @property
    def strays(self) -> bool:
        """It begins outside of the threat."""
        return True

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> FunnelState:
        """Start at a random point of the wide ball."""
        threat = problem.threat
        if not isinstance(threat, Steepest):
            raise KindError(f"{type(threat).__name__} has no radius to shrink: use a norm ball")
        return FunnelState(threat.start(self._at(rows, draw.step), draw.split(3)))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: FunnelState, draw: Draw
    ) -> FunnelState:
        """One forward, one backward, one move in the ball of this step."""
        threat = problem.threat
        assert isinstance(threat, Steepest)
        grad = evaluate(state.z, need="grad").grad
        if grad is None:
            return state
        now = draw.step.to(rows.x.device)
        ball = self._at(rows, now + 1)
        done = now.to(rows.x.dtype) / self.steps
        size = self.length + (self.last - self.length) * done
        move = threat.steepest(ball, state.z, grad) * threat.step_size(ball, 1.0)
        return FunnelState(threat.project(ball, state.z + per_row(size, move) * move))

    def _at(self, rows: Rows, step: Tensor) -> Rows:
        """Return the rows with the radius of a step."""
        assert rows.eps is not None
        part = (step.to(rows.eps) / max(1.0, self.descent * self.steps)).clamp_max(1.0)
        factor = torch.exp((1 - part) * torch.log(torch.tensor(self.wide))).to(rows.eps)
        # Exactly eps at the end: a hair more would be outside.
        return replace(rows, eps=torch.where(part >= 1, rows.eps, rows.eps * factor))
