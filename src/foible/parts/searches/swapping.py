"""One swap after another: the best of all that are left, or any."""

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


class SwapState(NamedTuple):
    """z (B, cells) the swaps made; made (B,) int64, how many."""

    z: Tensor
    made: Tensor


@dataclass(frozen=True)
class GreedySwaps(Search):
    """Make the swap after which the objective is largest, of all pairs of cells not yet used.

    steps: swaps at most. Every pair is asked: (cells - made)^2 forwards a swap.
    """

    steps: int = 20
    access = Access.INTERNALS

    def init(self, problem: Problem, rows: Rows, draw: Draw) -> SwapState:
        """Begin without a swap."""
        z = problem.threat.clean(rows)
        return SwapState(z, torch.zeros(len(rows), dtype=torch.int64, device=z.device))

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SwapState, draw: Draw
    ) -> SwapState:
        """Ask every pair, in as many queries as they need, and keep the best."""
        z, cells = state.z, state.z.shape[1]
        row, to, source = free_pairs(z).nonzero().unbind(1)
        worth = torch.full((len(z), cells * cells), float("-inf"), dtype=torch.float64)
        width = max(1, problem.oracle.chunk(rows.x))
        for part in torch.arange(len(row), device=z.device).split(width):
            at, i, j = row[part], to[part], source[part]
            tried = z[at].scatter(1, i[:, None], (j[:, None] + 1).to(z.dtype))
            got = evaluate(tried, rows.take(at), need="scores")
            worth[at.cpu(), (i * cells + j).cpu()] = got.value.double().cpu()
        best = worth.argmax(1).to(z.device)
        made = z.scatter(1, (best // cells)[:, None], (best % cells + 1)[:, None].to(z.dtype))
        return SwapState(made, state.made + 1)

    def ended(self, state: SwapState) -> Tensor:
        """Return which rows have no cell left."""
        return state.made >= state.z.shape[1]


@dataclass(frozen=True)
class RandomSwaps(GreedySwaps):
    """Make any swap: the control of the greedy order."""

    def step(
        self, problem: Problem, rows: Rows, evaluate: Evaluate, state: SwapState, draw: Draw
    ) -> SwapState:
        """Judge the swaps made so far, and add one at random."""
        begun = (state.made > 0).nonzero().squeeze(1)
        if len(begun):
            evaluate(state.z[begun], rows.take(begun), need="scores")
        z, cells = state.z, state.z.shape[1]
        chance = draw.scalars(cells * cells).view(-1, cells, cells)
        best = chance.masked_fill(~free_pairs(z), -1.0).flatten(1).argmax(1)
        made = z.scatter(1, (best // cells)[:, None], (best % cells + 1)[:, None].to(z.dtype))
        return SwapState(made, state.made + 1)


def free_pairs(z: Tensor) -> Tensor:
    """Return (B, cells, cells) bool: cell i is its own still, and cell j of the other unused."""
    used = torch.zeros(len(z), z.shape[1] + 1, dtype=torch.bool, device=z.device)
    used = used.scatter(1, z.long(), True)[:, 1:]
    return (z == 0)[:, :, None] & ~used[:, None]
