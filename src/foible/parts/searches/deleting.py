"""Delete features in the order of a map until the goal is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.problem import Problem
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.search import Evaluate, Search
from foible.parts.projections import places


class DeletionState(NamedTuple):
    """z (B, *shape) the mask; rank (B, *shape) the place of each feature; deleted, limit (B,)."""

    z: Tensor
    rank: Tensor
    deleted: Tensor
    limit: Tensor


@dataclass(frozen=True)
class DeleteInOrder(Search):
    """Delete the features of `rows.extra["map"]` from the largest down, one a step.

    Only features with a positive map that differ from the baseline are deleted: the others
    speak against the target, or their deletion changes nothing. steps: how many at most.
    """

    steps: int = 1_000_000
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> DeletionState:
        """Rank the features."""
        worth = rows.extra["map"].flatten(1)
        useful = (worth > 0) & (rows.x != rows.extra["baseline"]).flatten(1)
        worth = torch.where(useful, worth, float("-inf"))
        rank = places(worth)
        none = torch.zeros(len(rows), dtype=torch.int64, device=rows.x.device)
        limit = useful.sum(1)
        return DeletionState(torch.zeros_like(rows.x), rank.view_as(rows.x), none, limit)

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: DeletionState, draw: Draw
    ) -> DeletionState:
        """Judge the mask, unless it is still empty, and delete one feature more."""
        begun = state.deleted > 0
        if bool(begun.any()):
            evaluate(state.z[begun], rows.take(begun), need="scores")
        count = state.deleted + 1
        z = self._mask(rows, state.rank, count, state.limit)
        return DeletionState(z, state.rank, count, state.limit)

    def ended(self, state: DeletionState) -> Tensor:
        """Return which rows have no useful feature left."""
        return state.deleted >= state.limit

    @staticmethod
    def _mask(rows: Rows, rank: Tensor, count: Tensor, limit: Tensor) -> Tensor:
        shown = torch.minimum(count, limit).reshape(-1, *([1] * (rows.x.dim() - 1)))
        return (rank < shown).to(rows.x.dtype)
