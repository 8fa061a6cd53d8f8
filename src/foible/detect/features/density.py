"""How dense clean activations of the predicted class lie around an input's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.detect.base import Feature, State
from foible.detect.features.activations import activations, in_chunks, last_hidden

SCALES = torch.logspace(-1.5, 0.5, 17, dtype=torch.float64)


@dataclass(frozen=True)
class ClassDensity(Feature):
    """-log mean over clean p of the predicted class of exp(-|a - p|^2 / (2 h^2)): (B, 1).

    a: the activations of `layer`, as in `foible.models.layers_of`; None is the last hidden one. h:
    `bandwidth`, in the unit of the activations; None is that of 17 steps from 0.03 to 3 times the
    median distance within a class under which left-out inputs are likeliest.
    """

    layer: str | None = None
    bandwidth: float | None = None
    access = Access.INTERNALS

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise InputError(f"bandwidth={self.bandwidth}: above 0, or None to have it chosen")

    def activations(self, oracle: Oracle, rows: Rows, create_graph: bool = False) -> list[Tensor]:
        """Return the layer's output (B, F)."""
        layer = self.layer or last_hidden(oracle, rows.x)
        return activations(oracle, rows, (layer,), create_graph=create_graph, pooled=False)

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Keep the activations of all clean inputs (N, F), their labels, and the bandwidth."""
        (points,) = in_chunks(oracle, rows, lambda some: self.activations(oracle, some))
        points = points.double()
        width = likeliest(points, rows.y) if self.bandwidth is None else self.bandwidth
        return {
            "points": points, "labels": rows.y,
            "bandwidth": torch.tensor(width, dtype=torch.float64),
        }  # fmt: skip

    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, 1) float64: the larger, the emptier the place."""
        (a,) = self.activations(oracle, rows, create_graph)
        points = state["points"]
        other = rows.y[:, None] != state["labels"]
        # A class without clean inputs: all of them are asked.
        other = other & ~other.all(1, keepdim=True)
        exponents = -squared(a.double(), points) / (2 * state["bandwidth"] ** 2)
        held = exponents.masked_fill(other, -math.inf).logsumexp(1)
        return ((~other).sum(1).double().log() - held)[:, None]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances (A, B) between rows (A, F) and (B, F), in float64."""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def likeliest(points: Tensor, labels: Tensor) -> float:
    """Return the bandwidth of largest likelihood, each point left out of its own class's density.

    Units that are the same for all points have no say in how many dimensions there are.
    """
    size = int((points.std(0) > 1e-9 * points.abs().max()).sum())
    groups = [points[labels == c] for c in labels.unique()]
    apart = [squared(g, g).fill_diagonal_(math.inf) for g in groups if len(g) > 2]
    if not apart:
        raise InputError("no class has three clean inputs to learn from: give more, or a bandwidth")
    finite = torch.cat([d[d.isfinite()] for d in apart])
    widths = SCALES.to(points) * finite.median().sqrt().clamp_min(1e-12)
    worth = [
        float(torch.cat([(-d / (2 * h**2)).logsumexp(1) - math.log(len(d) - 1) for d in apart])
              .mean() - size * h.log())
        for h in widths
    ]  # fmt: skip
    return float(widths[max(range(len(worth)), key=worth.__getitem__)])
