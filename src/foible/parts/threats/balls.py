"""Norm balls around each input, cut by the box of legal values.

z is the change: x_adv = x + z. eps is a float for all rows or a tensor (B,) of one a row, in
the units of the input (of features changed, for L0).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Steepest
from foible.parts.projections import keep_largest, l1_in_box, l2_in_box, places


def _plain(eps: Any) -> float | tuple[float, ...] | None:
    """Turn eps into plain floats, so that a threat is a value: frozen, hashable, storable."""
    if eps is None:
        return None
    given = eps.detach().cpu().double() if isinstance(eps, Tensor) else eps
    listed = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    many = isinstance(listed, list | tuple)
    values = tuple(listed) if many else (listed,)
    if not all(isinstance(value, Real) for value in values):
        raise KindError(f"eps is {eps!r}: give one float, or one float a sample, (B,)")
    values = tuple(map(float, values))
    for value in values:
        if not math.isfinite(value) or value < 0:
            raise InputError(f"eps is {value}: a radius must be finite and not negative")
    return values if many else values[0]


@dataclass(frozen=True)
class Ball(Steepest):
    """What the four norms share: z = x_adv - x, a radius a row, the box."""

    eps: float | tuple[float, ...] | None = None
    norm: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _plain(self.eps))

    def radii(self, rows: int, like: Tensor) -> Tensor | None:
        """Return eps as (B,), or None for a ball without a radius (minimum-norm attacks)."""
        if self.eps is None:
            return None
        if isinstance(self.eps, tuple) and len(self.eps) != rows:
            raise InputError(
                f"{type(self).__name__} holds {len(self.eps)} eps for {rows} samples: give one "
                "float, or a tensor with one eps a sample"
            )
        eps = torch.tensor(self.eps, dtype=like.dtype, device=like.device)
        return eps.expand(rows) if eps.dim() == 0 else eps

    def without_radius(self) -> Self:
        """Return the same norm without eps, for minimum-norm attacks."""
        return replace(self, eps=None)

    def clean(self, rows: Rows) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(rows.x)

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return x + z; z that `project` gave stays in ball and box but for rounding, cut here."""
        x_adv = rows.x + z
        # Outside the graph: a clamp inside would cut the gradient where x + z rounds past the
        # box by one ulp.
        with torch.no_grad():
            if self._rounds_inward and x_adv.dtype in (torch.float32, torch.float64):
                # x + z is rounded to the nearest float, and the errors of many entries could
                # leave the ball together. One float back towards x, every |x_adv - x| is at
                # most |z|, whatever the size of eps beside x.
                x_adv.copy_(torch.nextafter(x_adv, rows.x))
            if self.box is not None:
                x_adv.clamp_(self.box.low, self.box.high)
        return x_adv

    @property
    def _rounds_inward(self) -> bool:
        return True

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Return the Euclidean projection of z onto the ball and the box together."""
        low, high = self._room(rows)
        flat = self._onto(z.flatten(1), low.flatten(1), high.flatten(1), rows)
        return flat.view_as(z)

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge in float64, from x_adv alone; a ball without a radius leaves only the box."""
        if rows.eps is None:
            return self.in_box(x_adv)
        eps = rows.radius().double().flatten()
        slack = 1e-6 * eps + 1e-7 * (self.box.width if self.box is not None else 1.0)
        return (self.distance(rows, x_adv) <= eps + slack) & self.in_box(x_adv)

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Return the norm (B,) of x_adv - x in float64."""
        return self.length((x_adv.detach().double() - rows.x.detach().double()).flatten(1))

    def step_size(self, rows: Rows, share: float) -> Tensor:
        """Return share * eps, (B, 1, ..., 1)."""
        return rows.radius() * share

    @staticmethod
    @abstractmethod
    def length(change: Tensor) -> Tensor:
        """Return the norm (B,) of changes (B, D)."""

    @abstractmethod
    def _onto(self, z: Tensor, low: Tensor, high: Tensor, rows: Rows) -> Tensor: ...

    def _room(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return how far each value may fall and rise inside the box."""
        if self.box is None:
            wide = torch.full_like(rows.x, float("inf"))
            return -wide, wide
        # An x that lies a rounding outside of the box has no room there, not a negative one.
        return (self.box.low - rows.x).clamp_max(0.0), (self.box.high - rows.x).clamp_min(0.0)

    def _eps(self, rows: Rows) -> Tensor:
        return rows.radius().flatten(1)


@dataclass(frozen=True)
class Linf(Ball):
    """Every value may change by at most eps.

    >>> Linf(8 / 255).eps == 8 / 255
    True
    """

    norm: ClassVar[str] = "linf"

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Draw each value uniformly from the ball, then cut by the box."""
        z = (draw.uniform(rows.shape, rows.x.dtype) * 2 - 1) * rows.radius()
        return self.project(rows, z)

    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return the sign of the gradient."""
        return grad.sign()

    @property
    def _rounds_inward(self) -> bool:
        # One entry's rounding is within the tolerance, unless x may be far larger than the box
        # is wide. Then the cheaper way is taken: this is the hot path of most attacks.
        if self.box is None or not math.isfinite(self.box.high - self.box.low):
            return True
        return max(abs(self.box.low), abs(self.box.high)) > 1.5 * self.box.width

    @staticmethod
    def length(change: Tensor) -> Tensor:
        """Return the largest absolute value."""
        return change.abs().amax(1)

    def _onto(self, z: Tensor, low: Tensor, high: Tensor, rows: Rows) -> Tensor:
        eps = self._eps(rows)
        return z.clamp(low.maximum(-eps), high.minimum(eps))


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of the change is at most eps."""

    norm: ClassVar[str] = "l2"

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Draw uniformly from the ball, then cut by the box."""
        z = draw.normal(rows.shape, rows.x.dtype)
        size = torch.linalg.vector_norm(z.flatten(1), dim=1).clamp_min(1e-12)
        radius = draw.split(1).uniform((), rows.x.dtype) ** (1 / z[0].numel())
        scale = (radius / size).reshape(-1, *([1] * (z.dim() - 1)))
        return self.project(rows, z * scale * rows.radius())

    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient at unit length; zeros stay zero."""
        # Scaling by the largest entry first keeps tiny float32 gradients from underflowing.
        flat = grad.flatten(1)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
        size: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat / size.clamp_min(1e-12)).view_as(grad)

    @staticmethod
    def length(change: Tensor) -> Tensor:
        """Return the Euclidean norm."""
        size: Tensor = torch.linalg.vector_norm(change, dim=1)
        return size

    def _onto(self, z: Tensor, low: Tensor, high: Tensor, rows: Rows) -> Tensor:
        return l2_in_box(z, low, high, self._eps(rows))


@dataclass(frozen=True)
class L1(Ball):
    """The absolute changes sum to at most eps.

    density: the share of features that one step moves (SLIDE of Tramer and Boneh 2019 moves
    1 %; we weight them by the gradient, so that a linear model's optimum is a fixed point).
    """

    density: float = 0.01
    norm: ClassVar[str] = "l1"

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Draw uniformly from the L1 ball (exponential spacings), then cut by the box."""
        size = -torch.log1p(-draw.uniform(rows.shape, rows.x.dtype))
        sign = draw.split(1).uniform(rows.shape, rows.x.dtype).lt(0.5).to(rows.x.dtype) * 2 - 1
        rest = -torch.log1p(-draw.split(2).uniform((), rows.x.dtype))
        total = (size.flatten(1).sum(1) + rest).reshape(-1, *([1] * (size.dim() - 1)))
        return self.project(rows, sign * size / total * rows.radius())

    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return a move of unit L1 length along the largest entries that still have room.

        Full entries that are larger are pushed as well: the box takes the push away, and without
        it the shrinking of `project` would empty them a little at every step, to be filled again
        at the next.
        """
        low, high = (room.flatten(1) for room in self._room(rows))
        g, flat = grad.flatten(1), z.flatten(1)
        slack = 1e-6 * (self.box.width if self.box is not None else 1.0)
        stuck = ((g > 0) & (flat >= high - slack)) | ((g < 0) & (flat <= low + slack))
        count = max(1, round(self.density * g.shape[1]))
        size, index = torch.where(stuck, 0.0, g).abs().topk(count, dim=1)
        share = size / size.sum(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        move = torch.where(stuck & (g.abs() >= size[:, -1:]), g.sign(), 0.0)
        move.scatter_add_(1, index, share * g.gather(1, index).sign())
        return move.view_as(grad)

    @staticmethod
    def length(change: Tensor) -> Tensor:
        """Return the sum of absolute values."""
        return change.abs().sum(1)

    def _onto(self, z: Tensor, low: Tensor, high: Tensor, rows: Rows) -> Tensor:
        return l1_in_box(z, low, high, self._eps(rows))


@dataclass(frozen=True)
class L0(Ball):
    """At most eps features may change, each to anywhere in the box.

    A feature is one value, not one pixel: a colour pixel has three.
    """

    norm: ClassVar[str] = "l0"

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Change randomly chosen features to uniform values."""
        low, high = self._room(rows)
        width = self.box.width if self.box is not None else 1.0
        low, high = low.clamp_min(-width), high.clamp_max(width)
        where = draw.split(1).uniform(rows.shape, rows.x.dtype).flatten(1)
        rank = where.argsort(1).argsort(1).view_as(rows.x)
        value = low + draw.uniform(rows.shape, rows.x.dtype) * (high - low)
        return torch.where(rank < rows.radius().floor(), value, 0.0)

    def steepest(self, rows: Rows, z: Tensor, grad: Tensor) -> Tensor:
        """Return the way to the best corner: the features whose full move gains most.

        The ball is not convex, so the linearised optimum itself is the target (as in
        Frank-Wolfe) and a step is a share of the way there.
        """
        low, high = self._room(rows)
        width = self.box.width if self.box is not None else 1.0
        move = torch.where(grad > 0, high.clamp_max(width), low.clamp_min(-width))
        move = torch.where(grad == 0, 0.0, move)
        gain = (grad * move).flatten(1)
        corner = torch.where(places(gain) < self._eps(rows).floor(), move.flatten(1), 0.0)
        return corner.view_as(z) - z

    def step_size(self, rows: Rows, share: float) -> Tensor:
        """Return the share of the way to the corner, at least a quarter and at most all."""
        return torch.full_like(rows.radius(), min(1.0, max(share, 0.25)))

    @property
    def _rounds_inward(self) -> bool:
        return False  # the size of a change does not matter here

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Count in whole features: a tolerance would give one away."""
        if rows.eps is None:
            return self.in_box(x_adv)
        eps = rows.radius().double().flatten()
        return (self.distance(rows, x_adv) <= eps) & self.in_box(x_adv)

    @staticmethod
    def length(change: Tensor) -> Tensor:
        """Return how many features changed."""
        return (change != 0).sum(1).double()

    def _onto(self, z: Tensor, low: Tensor, high: Tensor, rows: Rows) -> Tensor:
        return keep_largest(z, low, high, self._eps(rows).floor())
