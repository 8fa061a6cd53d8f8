"""How much of a model a part may see, and the meter of what it cost."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Access(IntEnum):
    """Levels of access to a model; each includes the ones below it."""

    LABELS = 0
    SCORES = 1
    GRADIENTS = 2
    INTERNALS = 3


class Meter:
    """Forwards and backwards per sample: two (B,) int64 tensors, verification included.

    looks: how many of each one look at a sample costs; more than 1 where the model votes.
    """

    def __init__(self, rows: int, looks: int = 1) -> None:
        self.looks = looks
        self.forwards = torch.zeros(rows, dtype=torch.int64)
        self.backwards = torch.zeros(rows, dtype=torch.int64)

    def count(self, index: Tensor, *, backward: bool = False) -> None:
        """Add one forward (or backward) for every position in `index`; repeats count."""
        ledger = self.backwards if backward else self.forwards
        index = index.detach().cpu()
        ledger.index_add_(0, index, torch.full_like(index, self.looks))
