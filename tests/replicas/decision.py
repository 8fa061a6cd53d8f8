"""Key steps of decision-based attacks, one point at a time, as the papers write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def normal(phi: Callable[[Tensor], int], z: Tensor, points: Tensor) -> Tensor:
    """Chen et al. 2020, Eq. 16: the probes' mean, weighted by phi = +-1 less its own mean."""
    votes = [phi(point) for point in points]
    mean = sum(votes) / len(votes)
    total = torch.zeros_like(z)
    for vote, point in zip(votes, points, strict=True):
        total = total + (vote - mean) * (point - z)
    return total


def across(z: Tensor, noise: Tensor, share: float) -> Tensor:
    """Brendel et al. 2018, 2.3.1: a step along the tangent, then back onto the sphere around x."""
    radius = float(z.norm())
    unit = z / radius
    tangent = noise - float(noise @ unit) * unit
    moved = z + share * radius * tangent / tangent.norm()
    return moved * radius / moved.norm()
