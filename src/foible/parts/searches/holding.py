"""Ascent along directions that are dear: asked for now and then, and followed in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foible.core.access import Access
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate
from foible.core.threat import Steepest
from foible.parts.searches.ascent import Ascent, AscentState


@dataclass(frozen=True)
class HeldAscent(Ascent):
    """Ascent that asks for a direction every `refit` steps, and for a verdict at each.

    For directions that cost many queries. A row that is done when its turn comes asks for none.
    The state's velocity (B, *shape) is the direction that is held.
    """

    refit: int = 5
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> AscentState:
        """Begin at the clean input, without a direction."""
        return super().init(problem, rows, draw)._replace(velocity=torch.zeros_like(rows.x))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: AscentState, draw: Draw
    ) -> AscentState:
        """Judge the point, unless it is the clean one; ask for a direction if it is time; move."""
        threat, step = problem.threat, draw.step.to(rows.x.device)
        assert isinstance(threat, Steepest)
        reached, held = torch.zeros_like(step, dtype=torch.bool), state.velocity.clone()
        moved = (step > 0).nonzero().squeeze(1)
        if len(moved):
            found = evaluate(state.z[moved], rows.take(moved), need="scores")
            reached[moved] = problem.done(found.success)
        due = ((step % self.refit == 0) & ~reached).nonzero().squeeze(1)
        if len(due):
            grad = evaluate(state.z[due], rows.take(due), need="grad").grad
            held[due] = torch.zeros_like(held[due]) if grad is None else grad
        length = threat.step_size(rows, self.share) if self.length is None else self.length
        move = threat.steepest(rows, state.z, held) * length
        return AscentState(threat.project(rows, state.z + move), held)
