"""The code of late layers: how high each unit fires, in a few levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State
from foible.detect.features.activations import Layers, activations, check_layers, in_chunks


@dataclass(frozen=True)
class Codes(Feature):
    """Each unit's activation as one of 0 to levels - 1, cut at quantiles of clean inputs: (B, F).

    Maps are averaged over positions first. For a gradient a cut is passed as a sigmoid of the
    unit's spread over `levels`, with the exact codes forward (BPDA).
    """

    layers: Layers = 2
    levels: int = 4
    access = Access.INTERNALS

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if self.levels < 2:
            raise InputError(f"levels={self.levels}: two at least")

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Learn the cuts (levels - 1, F) and each unit's spread (F,)."""
        found = in_chunks(oracle, rows, lambda some: activations(oracle, some, self.layers))
        data = torch.cat(found, 1).double()
        at = torch.arange(1, self.levels, dtype=data.dtype, device=data.device) / self.levels
        spread = data.std(0, unbiased=False)
        return {
            "cuts": data.quantile(at, 0),
            "spread": torch.where(spread > 1e-12, spread, 1.0) / self.levels,
        }

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, F) float64, whole numbers."""
        found = activations(oracle, rows, self.layers, create_graph=create_graph)
        data = torch.cat(found, 1).double()[:, None]
        above = (data > state["cuts"]).double().sum(1)
        if not create_graph:
            return above
        soft = ((data - state["cuts"]) / state["spread"]).sigmoid().sum(1)
        return soft + (above - soft).detach()
