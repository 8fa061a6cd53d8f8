"""A patch: a rectangle of the image may hold anything, and nothing else may change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Box, Steepest
from foible.parts.transforms import images


@dataclass(frozen=True)
class Patch(Steepest):
    """z is the change, of x's shape, inside a rectangle at a fixed place; outside it is 0.

    height, width: of the rectangle in pixels; top, left: its first row and column. Inside, every
    value of the box is allowed, in all colours; outside, x stays bit for bit. The distance counts
    changed pixels.
    """

    height: int = 8
    width: int = 8
    top: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or min(self.top, self.left) < 0:
            raise InputError(
                f"{self}: a patch has a height and a width of at least 1, counted from row and "
                "column 0"
            )

    def where(self, rows: Rows) -> Tensor:
        """Return the patch as a mask (H, W) bool; raises InputError where it does not fit."""
        high, wide = images(rows.x, "Patch")
        if self.top + self.height > high or self.left + self.width > wide:
            raise InputError(
                f"a patch of {self.height} x {self.width} at ({self.top}, {self.left}) leaves an "
                f"image of {high} x {wide}: move it, or make it smaller"
            )
        mask = torch.zeros(high, wide, dtype=torch.bool, device=rows.x.device)
        mask[self.top : self.top + self.height, self.left : self.left + self.width] = True
        return mask

    def clean(self, rows: Rows) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(rows.x)

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Return a patch of uniform noise, within half a unit of x where the box has no low end."""
        noise, box = draw.uniform(rows.shape, rows.x.dtype), self.box or Box(0, 1)
        z = box.low + box.width * noise - rows.x if box.low > float("-inf") else noise - 0.5
        return self.project(rows, z)

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return x + z inside the patch, and x outside."""
        # Not x + 0: that would turn -0.0 into 0.0, and outside nothing at all may change.
        x_adv = torch.where(self.where(rows), rows.x + z, rows.x)
        if self.box is not None:
            with torch.no_grad():
                x_adv.clamp_(self.box.low, self.box.high)
        return x_adv

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Cut z to the patch, and x + z to the box."""
        if self.box is not None:
            z = z.clamp(self.box.low - rows.x, self.box.high - rows.x)
        return torch.where(self.where(rows), z, 0.0)

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge whether every changed pixel lies in the patch, by its place, and in the box."""
        place = (x_adv != rows.x).nonzero()
        inside = torch.ones(len(rows), dtype=torch.bool, device=rows.x.device)
        row, column = place[:, -2] - self.top, place[:, -1] - self.left
        out = (row < 0) | (row >= self.height) | (column < 0) | (column >= self.width)
        inside[place[out, 0]] = False
        return inside & self.in_box(x_adv)

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Count the changed pixels (B,), those of several colours once."""
        return (x_adv != rows.x).any(1).flatten(1).sum(1).double()

    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return the sign of the gradient inside the patch."""
        return torch.where(self.where(rows), grad.sign(), 0.0)

    def step_size(self, rows: Rows, share: float) -> Tensor:
        """Return share times the width of the box, (1, ..., 1)."""
        size = share * (1.0 if self.box is None else self.box.width)
        return torch.full([1] * rows.x.dim(), size, dtype=rows.x.dtype, device=rows.x.device)
