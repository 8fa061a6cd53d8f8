"""Rotation and translation: the image is moved as a whole, and no pixel is changed beside that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.randomness import Draw
from foible.core.rows import Rows, per_row
from foible.core.threat import Steepest
from foible.parts.transforms import images, moved, warp


@dataclass(frozen=True)
class Spatial(Steepest):
    """Turn by at most `rotation` degrees and shift by at most `translation` pixels, both ways.

    Engstrom et al. 2019, whose MNIST and CIFAR attacks take 30 degrees and 3 pixels. scale: the
    share by which the size may change as well; fill: the value that comes in from outside.

    z is (B, 3), (B, 4) with a scale: angle (counter-clockwise), shift to the right, shift down,
    and scale, each as a share of its limit in [-1, 1]. The distance is the largest share. z of
    zeros gives x bit for bit; all else is read bilinearly. x_adv does not tell z, so the judge
    renders the z that is kept beside it again, in float64, and compares.

    >>> Spatial(rotation=10.0).sizes
    (10.0, 3.0, 3.0)
    """

    rotation: float = 30.0
    translation: float = 3.0
    scale: float = 0.0
    fill: float = 0.0
    parametric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        limits = (self.rotation, self.translation, self.scale)
        if not all(math.isfinite(v) and v >= 0 for v in limits) or self.scale >= 1:
            raise InputError(
                f"rotation={self.rotation}, translation={self.translation}, scale={self.scale}: "
                "limits are finite and not negative, and scale lies below 1"
            )

    @property
    def sizes(self) -> tuple[float, ...]:
        """The limit of each part of z: degrees, pixels, pixels, and the scale where it has one."""
        moves = (self.rotation, self.translation, self.translation)
        return (*moves, self.scale) if self.scale else moves

    def clean(self, rows: Rows) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(rows), len(self.sizes), dtype=rows.x.dtype, device=rows.x.device)

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Draw uniformly within the limits."""
        return (2 * draw.scalars(len(self.sizes)) - 1).to(rows.x.dtype)

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return the moved images, differentiable by z."""
        x, shape = rows.x, images(rows.x, "Spatial")
        scale = 1 + self.scale * z[:, 3] if self.scale else torch.ones_like(z[:, 0])
        at = moved(
            math.radians(self.rotation) * z[:, 0], self.translation * z[:, 1:3], scale, shape
        )
        turned = warp(x, at, self.fill)
        # x itself where nothing moves, with the gradient of the rendering all the same.
        still = per_row((z == 0).all(1), x)
        x_adv = torch.where(still, x + (turned - turned.detach()), turned)
        if self.box is not None:
            with torch.no_grad():
                x_adv.clamp_(self.box.low, self.box.high)
        return x_adv

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Cut every share to [-1, 1]."""
        return z.clamp(-1, 1)

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Render the kept z again, in float64, and compare; a float32 rendering rounds more."""
        z = self._kept(rows).double()
        wide = Rows(rows.index, rows.id, rows.x.double(), rows.y)
        gap = (self.render(wide, z) - x_adv.double()).flatten(1).abs().amax(1)
        span = (rows.x.amax() - rows.x.amin()).double().clamp_min(1e-12) + abs(self.fill)
        rounding = 1e-5 + 2e-6 * max(rows.x.shape[2:])
        inside = z.abs().amax(1) <= 1 + 1e-6
        return inside & (gap <= rounding * span) & self.in_box(x_adv)

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Return the largest share of a limit (B,) that is used."""
        live = torch.tensor(self.sizes, device=x_adv.device) > 0
        return torch.where(live, self._kept(rows).double().abs(), 0.0).amax(1)

    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return the sign of the gradient."""
        return grad.sign()

    def step_size(self, rows: Rows, share: float) -> Tensor:
        """Return the share of every limit, (B, 1)."""
        return torch.full((len(rows), 1), share, dtype=rows.x.dtype, device=rows.x.device)

    @staticmethod
    def _kept(rows: Rows) -> Tensor:
        if "z" not in rows.extra:
            raise InputError(
                'a moved image does not tell how it was moved: put z in rows.extra["z"], as '
                "Attack does"
            )
        return rows.extra["z"]
