"""Masking: parts of an image fade into what would be there without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.errors import InputError
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.parts.transforms import images


@dataclass(frozen=True)
class Masking(Threat):
    """z (B, 1, h, w) in [0, 1] says which cells of a coarse grid are chosen, and how far.

    The chosen part is what is deleted, or (`keep`) all that is kept: with s the grid read
    bilinearly at every pixel, x_adv = x + s (null - x), or null + s (x - null). The null image
    is `rows.extra["null"]`, of x's shape. cell: the side of a grid cell in pixels.

    A coarse grid cannot draw the fine patterns that adversarial perturbations are made of
    (Fong and Vedaldi 2017). The distance is the mean of s over the grid: the area.
    """

    cell: int = 4
    keep: bool = False
    parametric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cell < 1:
            raise InputError(f"cell={self.cell}: a cell has a side of at least 1 pixel")

    def full(self, rows: Rows, value: float) -> Tensor:
        """Return the grid with one value everywhere."""
        high, wide = (-(-side // self.cell) for side in images(rows.x, "Masking"))
        return torch.full((len(rows), 1, high, wide), value, dtype=rows.x.dtype).to(rows.x.device)

    def clean(self, rows: Rows) -> Tensor:
        """Return the grid that leaves x as it is: nothing deleted, or all kept."""
        return self.full(rows, float(self.keep))

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Return a random grid."""
        return draw.uniform(tuple(self.full(rows, 0.0).shape[1:]), rows.x.dtype)

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Fade x into the null image; bit for bit x where nothing goes."""
        # A grid of zeros is read as zeros, one of ones may be off by rounding: so of what goes.
        gone = upsampled(1 - z if self.keep else z, rows.x)
        x_adv = torch.lerp(rows.x, rows.extra["null"], gone)
        if self.box is not None:
            with torch.no_grad():
                x_adv.clamp_(self.box.low, self.box.high)
        return x_adv

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Cut every cell to [0, 1]."""
        return z.clamp(0, 1)

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Mix the kept z again, in float64 and by hand, and compare."""
        z, x, null = (t.double() for t in (self._kept(rows), rows.x, rows.extra["null"]))
        share = upsampled(z, x)
        share = share if self.keep else 1 - share
        gap = (share * x + (1 - share) * null - x_adv.double()).flatten(1).abs().amax(1)
        span = torch.maximum(x.abs().flatten(1).amax(1), null.abs().flatten(1).amax(1))
        inside = ((z >= -1e-6) & (z <= 1 + 1e-6)).flatten(1).all(1)
        return inside & (gap <= 1e-5 * span.clamp_min(1e-12)) & self.in_box(x_adv)

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Return the share (B,) of the grid that is chosen."""
        return self._kept(rows).double().flatten(1).mean(1)

    @staticmethod
    def _kept(rows: Rows) -> Tensor:
        if "z" not in rows.extra:
            raise InputError(
                'a faded image does not tell its mask: put z in rows.extra["z"], as Attack does'
            )
        return rows.extra["z"]


def upsampled(z: Tensor, x: Tensor) -> Tensor:
    """Return a grid (B, 1, h, w) read bilinearly at every pixel of x: (B, 1, H, W).

    >>> upsampled(torch.tensor([[[[0.0, 1.0]]]]), torch.zeros(1, 3, 1, 4)).tolist()
    [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    return F.interpolate(z, x.shape[-2:], mode="bilinear", align_corners=False)


def roughness(z: Tensor, power: float = 3.0) -> Tensor:
    """Return the sum (B,) over a grid's neighbours of |difference|^power, for each cell.

    With power 1 it is the total variation; Fong and Vedaldi 2017 take 3, which spares small
    differences and punishes jumps.

    >>> roughness(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).item()
    0.5
    """
    down = (z[..., 1:, :] - z[..., :-1, :]).abs() ** power
    right = (z[..., 1:] - z[..., :-1]).abs() ** power
    return (down.flatten(1).sum(1) + right.flatten(1).sum(1)) / z[0].numel()
