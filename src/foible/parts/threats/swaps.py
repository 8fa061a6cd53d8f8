"""Cells of a feature map, replaced by cells of another input's map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Threat


def swapped(maps: Tensor, other: Tensor, z: Tensor) -> Tensor:
    """Return maps (B, C, H, W) with cell i of each showing cell z_i - 1 of `other`; 0: its own.

    >>> maps, other = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> swapped(maps, other, torch.tensor([[0.0, 4.0, 0.0, 1.0]])).flatten().tolist()
    [0.0, 4.0, 0.0, 1.0]
    """
    shown = z.long()[:, None]
    taken = other.flatten(2).gather(2, (shown - 1).clamp_min(0).expand(-1, other.shape[1], -1))
    return torch.where(shown > 0, taken, maps.flatten(2)).view_as(maps)


@dataclass(frozen=True)
class Swaps(Threat):
    """Each cell of x's feature map may show a cell of the distractor's; each of those at most once.

    The input itself stays as it is. z is (B, H * W): 1 + the distractor's cell, or 0 for the own.
    The distractor's map is `rows.extra["other"]` (B, C, H, W); the distance counts the swaps.
    """

    parametric: ClassVar[bool] = True

    def clean(self, rows: Rows) -> Tensor:
        """Return zeros."""
        other = self._other(rows)
        return torch.zeros(len(rows), other[0, 0].numel(), dtype=rows.x.dtype, device=other.device)

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Show all cells of the distractor, in a random order."""
        cells = self._other(rows)[0, 0].numel()
        return draw.scalars(cells).argsort(1).to(rows.x.dtype) + 1

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return x: what is swapped lies inside the model."""
        return rows.x.clone()

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Round to cells that there are; which of two equal ones stays is not decided here."""
        return z.round().clamp(0, z.shape[1])

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge that z names cells, none twice, and that the input is untouched."""
        z = self._kept(rows)
        named = (z == z.round()) & (z >= 0) & (z <= z.shape[1])
        counts = torch.zeros(len(z), z.shape[1] + 1, device=z.device, dtype=z.dtype)
        counts = counts.scatter_add(1, z.long().clamp(0, z.shape[1]), torch.ones_like(z))
        once = (counts[:, 1:] <= 1).all(1)
        return named.all(1) & once & (x_adv == rows.x).flatten(1).all(1)

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Count the swaps."""
        return (self._kept(rows) != 0).sum(1).double()

    @staticmethod
    def _other(rows: Rows) -> Tensor:
        if "other" not in rows.extra:
            raise InputError('cells come from a distractor: put its maps in rows.extra["other"]')
        return rows.extra["other"]

    @staticmethod
    def _kept(rows: Rows) -> Tensor:
        if "z" not in rows.extra:
            raise InputError('the input does not tell what was swapped: put z in rows.extra["z"]')
        return rows.extra["z"]
