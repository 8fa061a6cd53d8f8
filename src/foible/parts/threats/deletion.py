"""Deletion: features may be replaced by a baseline, and nothing else may happen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Threat


@dataclass(frozen=True)
class Deletion(Threat):
    """z is a 0/1 mask of x's shape: 1 replaces the feature by its baseline.

    The baseline is `rows.extra["baseline"]`, of x's shape. The distance counts features that
    truly changed: deleting what already equals the baseline is free and does nothing.
    """

    def clean(self, rows: Rows) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(rows.x)

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Return a random half of the features."""
        return draw.bernoulli(rows.shape, 0.5).to(rows.x.dtype)

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return x where z is 0 and the baseline where it is 1, bit for bit."""
        if z.requires_grad:
            return rows.x + z * (rows.extra["baseline"] - rows.x)
        return torch.where(z > 0.5, rows.extra["baseline"], rows.x)

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Round the mask to 0 or 1."""
        return (z > 0.5).to(z.dtype)

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge whether every feature equals its input or its baseline."""
        same = (x_adv == rows.x) | (x_adv == rows.extra["baseline"])
        return same.flatten(1).all(1) & self.in_box(x_adv)

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Count the changed features."""
        return (x_adv != rows.x).flatten(1).sum(1).double()
