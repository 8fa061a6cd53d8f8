"""The threat: what may change, how much, and the independent judge of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from foible.core.randomness import Draw
from foible.core.rows import Rows


@dataclass(frozen=True)
class Box:
    """The legal interval of every input value; infinite ends mean no limit."""

    low: float = float("-inf")
    high: float = float("inf")

    @property
    def width(self) -> float:
        """high - low; 1 where that is infinite, as a unit of length."""
        width = self.high - self.low
        return width if width < float("inf") else 1.0


@dataclass(frozen=True, kw_only=True)
class Threat(ABC):
    """What an attacker may do to an input.

    z is the variable that is searched over; `render` turns it into an input. All methods take
    Rows, whose eps and x they read; they hold no per-sample tensor themselves.

    parametric: z is a few parameters of a renderer, which x_adv alone does not tell: they are kept
    beside each point, and `contains` and `distance` find them in `rows.extra["z"]`.
    """

    box: Box | None = None
    scope: ClassVar[str] = "each"
    parametric: ClassVar[bool] = False

    def inside(self, bounds: tuple[float, float]) -> Self:
        """Bind the model's bounds, unless the threat came with a box of its own."""
        return self if self.box is not None else replace(self, box=Box(*bounds))

    def radii(self, rows: int, like: Tensor) -> Tensor | None:
        """Return eps as (B,) in the dtype of x; None for threats without a radius."""
        return None

    @abstractmethod
    def clean(self, rows: Rows) -> Tensor:
        """Return the z that changes nothing."""

    @abstractmethod
    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Return a random z inside the threat."""

    @abstractmethod
    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Turn z into inputs (B, *shape), differentiably."""

    @abstractmethod
    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Return the nearest z inside the threat."""

    @abstractmethod
    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge (B,) bool, in float64 and from x_adv alone, whether each input is allowed.

        Tolerance: 1e-6 of eps plus 1e-7 of the box. Never reuses `project`.
        """

    @abstractmethod
    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Measure the change (B,) float64 in the threat's own unit."""

    def in_box(self, x_adv: Tensor) -> Tensor:
        """Judge (B,) bool whether every value lies in the box, to 1e-7 of its width."""
        if self.box is None:
            return torch.ones(len(x_adv), dtype=torch.bool, device=x_adv.device)
        slack = 1e-7 * self.box.width
        flat = x_adv.detach().flatten(1)
        low, high = flat.amin(1).double(), flat.amax(1).double()
        return (low >= self.box.low - slack) & (high <= self.box.high + slack)


class Steepest(Threat):
    """A threat that knows the direction of steepest ascent inside it."""

    @abstractmethod
    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return the unit move (in the threat's norm) along which `grad` rises most."""

    @abstractmethod
    def step_size(self, rows: Rows, share: float) -> Tensor:
        """Return a step of `share` times the radius, (B, 1, ..., 1), for `steepest`."""

    def by_z(self, grad: Tensor) -> Tensor:
        """Turn a gradient by x into one by z; they differ where z has units of its own."""
        return grad
