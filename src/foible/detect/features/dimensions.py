"""The local intrinsic dimensionality of an input's activations among clean ones."""

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
class LocalDimension(Feature):
    """-(mean over i of log(r_i / r_k))^-1 with r_1 <= ... <= r_k, for each layer: (B, layers).

    r_i: the distance to the i-th nearest of `reference` clean inputs; k: `neighbours`. An input
    that is in the reference itself leaves itself out.
    """

    layers: Layers = 3
    neighbours: int = 20
    reference: int = 200
    access = Access.INTERNALS

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if not 1 < self.neighbours < self.reference:
            raise InputError(
                f"neighbours={self.neighbours}, reference={self.reference}: two neighbours at "
                "least, and more inputs in the reference than that"
            )

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Keep the activations of some clean inputs, chosen by the seed."""
        if len(rows) <= self.neighbours:
            raise InputError(
                f"{len(rows)} clean inputs to learn from, and {self.neighbours} neighbours are "
                "asked for: give more, or ask for fewer"
            )
        some = rows.take(draw.scalars(1).squeeze(1).argsort()[: self.reference].sort().values)
        found = in_chunks(
            oracle, some, lambda part: activations(oracle, part, self.layers, pooled=False)
        )
        return {f"points{i}": a for i, a in enumerate(found)}

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, layers) float64, above 0."""
        found = activations(oracle, rows, self.layers, create_graph=create_graph, pooled=False)
        return torch.stack(
            [dimension(a, state[f"points{i}"], self.neighbours) for i, a in enumerate(found)], 1
        )


def dimension(at: Tensor, points: Tensor, neighbours: int) -> Tensor:
    """Return the maximum-likelihood estimate (B,) at (B, F) among points (N, F)."""
    a, p = at.double(), points.double()
    apart = a.square().sum(1, keepdim=True) + p.square().sum(1) - 2 * a @ p.T
    near = apart.clamp_min(1e-12).sqrt().topk(neighbours + 1, 1, largest=False).values
    # Itself, up to what another batch size changes in the last bit.
    own = near[:, 0] < 1e-3 * near[:, -1]
    near = torch.where(own[:, None], near[:, 1:], near[:, :-1])
    ratios = (near / near[:, -1:]).log().mean(1)
    return -1 / ratios.clamp(max=-1e-6)
