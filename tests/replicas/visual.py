"""Goyal et al. 2019, their greedy search, in plain loops over cells."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def swap(maps: Tensor, other: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """One image's maps (C, H, W) with cell i showing the other's cell j, of each pair (i, j)."""
    made, width = maps.clone(), maps.shape[2]
    for i, j in pairs:
        made[:, i // width, i % width] = other[:, j // width, j % width]
    return made


def greedy(
    head: Callable[[Tensor], Tensor], maps: Tensor, other: Tensor, target: int, most: int
) -> list[tuple[int, int]]:
    """The pairs in the order in which they are swapped; stops once the head says the target."""
    cells = maps.shape[1] * maps.shape[2]
    pairs: list[tuple[int, int]] = []
    for _ in range(most):
        best, chosen = -float("inf"), (0, 0)
        for i in range(cells):
            for j in range(cells):
                if any(i == a or j == b for a, b in pairs):
                    continue
                scores = head(swap(maps, other, [*pairs, (i, j)])[None])
                value = float(torch.log_softmax(scores, 1)[0, target])
                if value > best:
                    best, chosen = value, (i, j)
        pairs.append(chosen)
        if int(head(swap(maps, other, pairs)[None]).argmax()) == target:
            break
    return pairs
