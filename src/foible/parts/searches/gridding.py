"""Every point of a grid: for threats of a few parameters, where the gradient leads nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search


class GridState(NamedTuple):
    """z (B, P) the next point; place (B,) int64, its place in the grid."""

    z: Tensor
    place: Tensor


@lru_cache(maxsize=16)
def grid(counts: tuple[int, ...]) -> Tensor:
    """Return the points (N, P) of a grid over [-1, 1]^P, the farthest from the middle first.

    counts: points a side; one point a side is 0. The middle is not among them: it is the clean
    input.
    """
    sides = [
        torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1) for n in counts
    ]
    # linspace may miss the middle by a rounding.
    sides = [torch.where(side.abs() < 1e-9, 0.0, side.double()) for side in sides]
    points = torch.cartesian_prod(*sides).reshape(-1, len(counts))
    points = points[(points != 0).any(1)]
    return points[torch.argsort(-points.square().sum(1), stable=True)]


@dataclass(frozen=True)
class GridPoints(Search):
    """Judge every point of a grid over the parameters of a threat.

    counts: points a side, one number a parameter. As many points of a row go into one query as
    fit; one at a time where a row leaves at its first success, so that the one it leaves with does
    not depend on its neighbours.
    """

    steps: int = 774
    counts: tuple[int, ...] = (31, 5, 5)
    access = Access.SCORES

    def __post_init__(self) -> None:
        if min(self.counts, default=0) < 1 or prod(self.counts) < 2:
            raise InputError(f"a grid of {self.counts} points a side has nothing to try")

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> GridState:
        """Begin with the farthest point."""
        clean = problem.threat.clean(rows)
        if clean.shape != (len(rows), len(self.counts)):
            raise InputError(
                f"the grid has {len(self.counts)} sides and z of {type(problem.threat).__name__} "
                f"has shape {tuple(clean.shape[1:])}: a grid is for threats of a few parameters"
            )
        place = torch.zeros(len(rows), dtype=torch.int64, device=rows.x.device)
        return self._at(place, clean)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: GridState, draw: Draw
    ) -> GridState:
        """Judge the next points of every row; the last one is left to the solver."""
        last = len(grid(self.counts)) - 1
        width = problem.oracle.chunk(rows.x) // problem.draws
        some = 1 if problem.stop == "success" else max(1, width // len(rows))
        ahead = torch.arange(some, device=state.place.device)
        places = (state.place[:, None] + ahead).flatten()
        which = torch.arange(len(rows), device=places.device).repeat_interleave(some)
        asked = places < last
        if bool(asked.any()):
            points = self._at(places[asked], state.z).z
            evaluate(points, rows.take(which[asked]), need="scores")
        return self._at((state.place + some).clamp_max(last), state.z)

    def ended(self, state: GridState) -> Tensor:
        """Return which rows have only the last point left, which the solver judges."""
        return state.place >= len(grid(self.counts)) - 1

    def _at(self, place: Tensor, like: Tensor) -> GridState:
        return GridState(grid(self.counts).to(like)[place], place)
