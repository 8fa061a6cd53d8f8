"""A point that was worked out beforehand, to be judged and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from foible.core.access import Access
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search


class Proposal(NamedTuple):
    """z (B, *shape)."""

    z: Tensor


@dataclass(frozen=True)
class Proposed(Search):
    """Judge the z that `prepare` left in `rows.extra[key]`: one query a row."""

    key: str = "proposed"
    steps: int = 1
    access = Access.LABELS

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> Proposal:
        """Take it."""
        return Proposal(rows.extra[self.key])

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: Proposal, draw: Draw
    ) -> Proposal:
        """Keep it: the solver judges it as the row leaves."""
        return state
