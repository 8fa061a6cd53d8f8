"""How far a prediction moves when its input is squeezed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.defend.inputs.squeezing import Bits, Median
from foible.detect.base import Feature, State


@dataclass(frozen=True)
class Squeezed(Feature):
    """The L1 distance of the probabilities from those of each squeezed input: (B, squeezers).

    bits: depths of rounding; medians: sides of windows. For a gradient, rounding is passed straight
    through (BPDA with the identity); a median has a gradient of its own.
    """

    bits: tuple[int, ...] = (1,)
    medians: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        if not self.bits and not self.medians:
            raise InputError("no squeezer: give bits, medians or both")

    @property
    def looks(self) -> int:
        """The input, and one look a squeezer."""
        return 1 + len(self.bits) + len(self.medians)

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, squeezers) in [0, 2]."""
        x, low_high = rows.x, oracle.bounds
        changed = [x + (Bits(b, low_high)(x) - x).detach() for b in self.bits]
        changed += [Median(k)(x) for k in self.medians]
        with torch.set_grad_enabled(create_graph):
            plain, *others = (oracle.scores(at, rows).softmax(1) for at in (x, *changed))
            return torch.stack([(plain - other).abs().sum(1) for other in others], 1)
