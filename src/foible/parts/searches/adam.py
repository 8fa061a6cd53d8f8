"""Adam's ascent of the objective in whatever the threat searches over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search
from foible.parts.searches.carlini import adam


class AdamState(NamedTuple):
    """z (B, ...); inner (B,) int64 the moves so far; memory: Adam's moments, each like z."""

    z: Tensor
    inner: Tensor
    memory: dict[str, Tensor]


@dataclass(frozen=True)
class Adam(Search):
    """`steps` moves of Adam (Kingma and Ba 2015) up the objective, each projected.

    rate, last: the size of an entry's first and last move, in units of z; it falls geometrically.
    It starts at `rows.extra["start"]` where that is given, else at the threat's clean point.
    """

    steps: int = 300
    rate: float = 0.1
    last: float = 0.1

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> AdamState:
        """Place z, with moments of zero."""
        given = rows.extra.get("start")
        z = problem.threat.clean(rows) if given is None else given
        moments = {"first": torch.zeros_like(z), "second": torch.zeros_like(z)}
        return AdamState(z, torch.zeros_like(rows.index), moments)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: AdamState, draw: Draw
    ) -> AdamState:
        """One forward, one backward, one move."""
        grad = evaluate(state.z, need="grad").grad
        assert grad is not None
        done = state.inner.double() / max(1, self.steps - 1)
        move, memory = adam(state, grad, self.rate * (self.last / self.rate) ** done)
        z = problem.threat.project(rows, state.z + move)
        return AdamState(z, state.inner + 1, memory)
