"""The input itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State


@dataclass(frozen=True)
class Pixels(Feature):
    """The input as it is: nothing of the model is looked at but the class that it sees."""

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return rows.x."""
        return rows.x
