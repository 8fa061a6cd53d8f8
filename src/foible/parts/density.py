"""A density of benign data as a term of the objective."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.problem import Objective, View

KERNELS = ("laplace", "rbf")


def kernel_density(x: Tensor, points: Tensor, bandwidth: float, kernel: str) -> Tensor:
    """Return the mean kernel (B,) between inputs (B, *shape) and points (N, *shape).

    "laplace": exp(-|x - p|_1 / h); "rbf": exp(-|x - p|_2^2 / (2 h^2)). Not normalised.
    """
    flat, held = x.flatten(1), points.to(x).flatten(1)
    if kernel == "laplace":
        return torch.exp(-torch.cdist(flat, held, p=1.0) / bandwidth).mean(1)
    exact = "donot_use_mm_for_euclid_dist"  # the quick way loses near points to rounding
    away = torch.cdist(flat, held, compute_mode=exact) / bandwidth
    return torch.exp(-0.5 * away**2).mean(1)


@dataclass(frozen=True, eq=False)
class Density:
    """An objective plus `weight` times the density of benign points at x_adv.

    Biggio et al. 2013: the term draws an attack into the region of the class it imitates. Far
    from all points (in bandwidths) the term and its gradient are 0: choose a bandwidth of the
    order of the distance between the inputs and the points.
    """

    inner: Objective
    points: Tensor
    weight: float = 1.0
    bandwidth: float = 10.0
    kernel: str = "laplace"

    def __post_init__(self) -> None:
        if not isinstance(self.points, Tensor):
            raise KindError(f"data is {type(self.points).__name__}: pass a tensor (N, *shape)")
        if self.kernel not in KERNELS:
            raise InputError(f"kernel={self.kernel!r}: choose {' or '.join(map(repr, KERNELS))}")
        if not self.bandwidth > 0 or len(self.points) == 0:
            raise InputError(
                f"bandwidth={self.bandwidth}, {len(self.points)} points: a density needs a "
                "positive bandwidth and one point at least"
            )

    def for_restart(self, restart: int, classes: int) -> Density:
        """Pass a restart's aim on."""
        aim = getattr(self.inner, "for_restart", None)
        return self if aim is None else replace(self, inner=aim(restart, classes))

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        if self.points.shape[1:] != view.x_adv.shape[1:]:
            raise InputError(
                f"data holds inputs of shape {tuple(self.points.shape[1:])} and the attack is on "
                f"{tuple(view.x_adv.shape[1:])}: give benign inputs as the model takes them"
            )
        value = self.inner(view)
        if self.weight == 0:
            return value
        return value + self.weight * kernel_density(
            view.x_adv, self.points, self.bandwidth, self.kernel
        )
