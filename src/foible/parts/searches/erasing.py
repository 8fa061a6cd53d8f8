"""Erase segments one after the other, each time the one that helps most, and take back what can."""

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


class ErasureState(NamedTuple):
    """z (B, *shape) the mask; gone (B, S) bool; fooled (B,): whether the goal holds at z; over."""

    z: Tensor
    gone: Tensor
    fooled: Tensor
    over: Tensor


@dataclass(frozen=True)
class EraseGreedily(Search):
    """Erase the segment that raises the objective most until the goal holds; then put back.

    A step tries every segment that is left, one forward each. Once the goal holds, a step tries to
    put each erased segment back, and keeps the change that leaves the goal reached and the
    objective highest, until none does: greedy choices that later ones made needless are undone.
    rows.extra holds "segment" (B, *shape) int64 and "useful" (B, S) bool: which segments there are
    and whose erasure changes anything.
    """

    steps: int = 1_000_000
    access = Access.SCORES

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> ErasureState:
        """Begin with nothing erased."""
        none = torch.zeros_like(rows.extra["useful"])
        no = torch.zeros(len(rows), dtype=torch.bool, device=rows.x.device)
        return ErasureState(torch.zeros_like(rows.x), none, no, ~rows.extra["useful"].any(1))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: ErasureState, draw: Draw
    ) -> ErasureState:
        """Flip one segment of every row that has one worth flipping."""
        useful, fooled = rows.extra["useful"], state.fooled[:, None]
        tried = torch.where(fooled, state.gone, useful & ~state.gone)
        tried &= ~state.over[:, None]
        worth = torch.full(tried.shape, float("-inf"), dtype=rows.x.dtype, device=rows.x.device)
        reached = torch.zeros_like(tried)
        row, which = tried.nonzero().unbind(1)
        width = max(1, problem.oracle.chunk(rows.x) // problem.draws)
        for some in torch.arange(len(row), device=row.device).split(width):
            r, s = row[some], which[some]
            flipped = state.gone[r].scatter(1, s[:, None], ~state.gone[r, s][:, None])
            found = evaluate(self._mask(rows.take(r), flipped), rows.take(r), need="scores")
            worth[r, s], reached[r, s] = found.value, found.success
        # A success is worth more than any failure; to put back, only successes count.
        top = torch.where(reached, worth.clamp_min(-1e30) + 0.0, float("-inf"))
        best = torch.where(reached.any(1), top.argmax(1), worth.argmax(1))
        moves = torch.where(state.fooled, reached.any(1), tried.any(1)) & ~state.over
        flip = torch.zeros_like(state.gone).scatter_(1, best[:, None], moves[:, None])
        gone = state.gone ^ flip
        now = torch.where(moves, reached.gather(1, best[:, None]).squeeze(1), state.fooled)
        left = (useful & ~gone).any(1)
        over = state.over | ~moves | (~now & ~left) | (now & (gone.sum(1) <= 1))
        return ErasureState(self._mask(rows, gone), gone, now, over)

    def ended(self, state: ErasureState) -> Tensor:
        """Return which rows have nothing left to flip."""
        return state.over

    @staticmethod
    def _mask(rows: Rows, gone: Tensor) -> Tensor:
        label = rows.extra["segment"].flatten(1)
        return gone.to(rows.x.dtype).gather(1, label).view_as(rows.x)
