"""DDN: the direction from the gradient, the length from the row's radius alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foible.core.rows import Rows, per_row
from foible.parts.searches.fmn import FastMinimum
from foible.parts.threats import Ball


@dataclass(frozen=True)
class Decoupled(FastMinimum):
    """`FastMinimum` on the sphere: every point has the row's radius as its length (L2 only).

    Rony et al. 2019 scale to the radius and then cut by the box, which shortens the change;
    here what is left inside the box has that length.
    """

    def _place(self, ball: Ball, rows: Rows, z: Tensor, eps: Tensor, found: Tensor) -> Tensor:
        # Far out along the ray, of which the projection keeps what box and radius allow. Before the
        # first success the ball is used: a radius that has grown too large would leave of its
        # sphere no more than a corner of the box.
        size = torch.linalg.vector_norm(z.flatten(1), dim=1)
        far = 1e3 * eps / size.clamp_min(torch.finfo(z.dtype).tiny)
        far = torch.where(found & (size > 0), far.clamp_max(1e30), 1.0)
        return super()._place(ball, rows, z * per_row(far, z), eps, found)
