"""Random points of the threat: the control of equal budget that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from foible.core.access import Access
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search


class Point(NamedTuple):
    """z (B, *shape)."""

    z: Tensor


@dataclass(frozen=True)
class RandomPoints(Search):
    """Try `steps` random points; corners: of the largest size (random signs in Linf)."""

    steps: int = 1
    corners: bool = True
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Point:
        """Begin at the clean input, which is not worth a query."""
        return Point(problem.threat.clean(rows))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Point, draw: Draw
    ) -> Point:
        """Judge the last point drawn, if any, and draw the next."""
        drawn = draw.step.to(rows.x.device) > 0
        if bool(drawn.any()):
            evaluate(state.z[drawn], rows.take(drawn), need="scores")
        return Point(self._draw(problem, rows, draw))

    def _draw(self, problem: Problem, rows: Rows, draw: Draw) -> Tensor:
        threat = problem.threat
        if not self.corners:
            return threat.start(rows, draw)
        noise = draw.normal(rows.shape, rows.x.dtype)
        steepest = getattr(threat, "steepest", None)
        if steepest is None:
            return threat.start(rows, draw)
        size = threat.step_size(rows, 1.0)  # type: ignore[attr-defined]
        return threat.project(rows, steepest(rows, threat.clean(rows), noise) * size)
