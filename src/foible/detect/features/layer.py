"""What one layer of the model gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State


@dataclass(frozen=True)
class Layer(Feature):
    """The output of a layer as it is: (B, *layer shape).

    layer: a name as in `foible.models.layers_of`; None is the last that gives maps (B, C, H, W).
    """

    layer: str | None = None
    access = Access.INTERNALS

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, *layer shape)."""
        with torch.set_grad_enabled(create_graph):
            return oracle.tap(rows.x, rows, self.layer)[1]
