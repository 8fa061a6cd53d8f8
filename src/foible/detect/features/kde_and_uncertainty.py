"""A density and an uncertainty side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State
from foible.detect.features.density import ClassDensity
from foible.detect.features.uncertainty import Uncertainty


@dataclass(frozen=True)
class DensityAndUncertainty(Feature):
    """Both as columns: (B, 2)."""

    density: ClassDensity = field(default_factory=ClassDensity)
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    access = Access.INTERNALS

    @property
    def looks(self) -> int:
        """Of both."""
        return 1 + self.uncertainty.looks

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Learn the density; the uncertainty has nothing to learn."""
        return self.density.learn(oracle, rows, draw)

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, 2) float64."""
        both = (
            part(oracle, rows, state, draw, create_graph=create_graph)
            for part in (self.density, self.uncertainty)
        )
        return torch.cat([one.double() for one in both], 1)
