"""Changes of a table's row: each feature in a unit of its own, some fixed, some one way only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.parts.threats.balls import L1


def _floats(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if not isinstance(values, tuple | list) or not all(isinstance(v, int | float) for v in values):
        raise KindError(f"{name} is {values!r}: give one number a feature")
    return tuple(map(float, values))


def _places(name: str, values: Any) -> tuple[int, ...]:
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    whole = isinstance(values, tuple | list) and all(isinstance(v, int) for v in values)
    if not whole or any(isinstance(v, bool) or v < 0 for v in values):
        raise InputError(f"{name} is {values!r}: give the features' places, counted from 0")
    return tuple(sorted(set(values)))


@dataclass(frozen=True)
class Features(L1):
    """The sum of |change| / unit over the features is at most eps, or as small as can be.

    units: one a feature, as a rule its median absolute deviation (`Features.of` measures them);
    None counts each as it is. fixed: places of the features that never change; rising, falling:
    of those that may only grow or only shrink. lowest, highest: the range of each feature; a row
    that lies beyond its range may stay there. Places count the flattened features.

    z is the change in units, so that every search in L1 works on it as it is.

    >>> Features(units=(1.0, 10.0), fixed=(0,)).units
    (1.0, 10.0)
    """

    units: tuple[float, ...] | None = None
    fixed: tuple[int, ...] = ()
    rising: tuple[int, ...] = ()
    falling: tuple[int, ...] = ()
    lowest: tuple[float, ...] | None = None
    highest: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("units", "lowest", "highest"):
            object.__setattr__(self, name, _floats(name, getattr(self, name)))
        for name in ("fixed", "rising", "falling"):
            object.__setattr__(self, name, _places(name, getattr(self, name)))
        bad = [u for u in self.units or () if not 0 < u < math.inf]
        if bad:
            raise InputError(f"units hold {bad[0]}: a unit is finite and above 0")
        ends = zip(self.lowest or (), self.highest or (), strict=False)
        if any(not low <= high for low, high in ends):
            raise InputError("a feature's lowest value is above its highest: swap the two")

    @classmethod
    def of(
        cls, data: Tensor, *, fixed: tuple[int, ...] = (), rising: tuple[int, ...] = (),
        falling: tuple[int, ...] = (), eps: float | None = None,
    ) -> Self:  # fmt: skip
        """Return the threat whose units and ranges are those of `data` (N, *shape).

        A unit is the median absolute deviation (Wachter et al. 2017, who cite its robustness and
        that in L1 it keeps a change sparse). Where that is 0, because more than half of the data
        agree, it is the standard deviation; a feature that never varies is fixed.
        """
        flat = torch.as_tensor(data).flatten(1).double()
        if len(flat) < 2 or not bool(torch.isfinite(flat).all()):
            raise InputError(f"data holds {len(flat)} rows: give two at least, all finite")
        away = (flat - flat.median(0).values).abs().median(0).values
        unit = torch.where(away > 0, away, flat.std(0))
        still = (flat == flat[:1]).all(0)
        unit = torch.where(still, 1.0, unit)
        ends = (flat.amin(0).tolist(), flat.amax(0).tolist())
        held = tuple(fixed) + tuple(still.nonzero().flatten().tolist())
        return cls(eps, units=tuple(unit.tolist()), fixed=held, rising=rising, falling=falling,
                   lowest=tuple(ends[0]), highest=tuple(ends[1]))  # fmt: skip

    def start(self, rows: Rows, draw: Draw) -> Tensor:
        """Draw as in L1; without a radius, one unit of normal noise a feature."""
        if rows.eps is not None:
            return super().start(rows, draw)
        return self.project(rows, draw.normal(rows.shape, rows.x.dtype))

    def render(self, rows: Rows, z: Tensor) -> Tensor:
        """Return x + z * unit."""
        return super().render(rows, self.by_z(z))

    def project(self, rows: Rows, z: Tensor) -> Tensor:
        """Return the nearest z in the room; in the ball as well where there is a radius."""
        if rows.eps is not None:
            return super().project(rows, z)
        return z.clamp(*self._room(rows))

    def by_z(self, grad: Tensor) -> Tensor:
        """Multiply by the units: a change becomes one of x, and a gradient by x one by z."""
        unit = self._row("units", grad)
        return grad if unit is None else grad * unit

    def contains(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Judge budget, box and ranges; fixed features bit for bit, no step the wrong way."""
        change = (x_adv.detach().double() - rows.x.detach().double()).flatten(1)
        fine = super().contains(rows, x_adv)
        for places, wrong in (
            (self.fixed, change != 0), (self.rising, change < 0), (self.falling, change > 0)
        ):  # fmt: skip
            if places:
                fine = fine & ~wrong[:, list(places)].any(1)
        for name, side in (("lowest", -1.0), ("highest", 1.0)):
            end = self._row(name, rows.x.double())
            if end is None:
                continue
            over = side * (x_adv.detach().double() - end)
            free = (side * (rows.x.double() - end)).clamp_min(0.0)  # lay beyond it already
            slack = 1e-7 * end.abs().clamp_min(1.0)
            fine = fine & (over <= free + slack).flatten(1).all(1)
        return fine

    def distance(self, rows: Rows, x_adv: Tensor) -> Tensor:
        """Return the sum (B,) of |x_adv - x| / unit, in float64."""
        change = x_adv.detach().double() - rows.x.detach().double()
        unit = self._row("units", change)
        return self.length((change if unit is None else change / unit).flatten(1))

    def _room(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return how far each feature may fall and rise, in units."""
        low, high = super()._room(rows)
        lowest, highest = self._row("lowest", rows.x), self._row("highest", rows.x)
        if lowest is not None:
            low = low.maximum((lowest - rows.x).clamp_max(0.0))
        if highest is not None:
            high = high.minimum((highest - rows.x).clamp_min(0.0))
        unit = self._row("units", rows.x)
        if unit is not None:
            low, high = low / unit, high / unit
        no_fall, no_rise = self._barred(rows.x)
        return low.masked_fill(no_fall, 0.0), high.masked_fill(no_rise, 0.0)

    def _barred(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return which features (1, *shape) may not fall, and which may not rise."""
        size, masks = like[0].numel(), []
        for places in (self.fixed + self.rising, self.fixed + self.falling):
            if places and max(places) >= size:
                raise InputError(
                    f"place {max(places)} is named and a row has {size} features, counted from 0"
                )
            mask = torch.zeros(size, dtype=torch.bool, device=like.device)
            mask[list(places)] = True
            masks.append(mask.view(1, *like.shape[1:]))
        return masks[0], masks[1]

    def _row(self, name: str, like: Tensor) -> Tensor | None:
        """Return a setting of one number a feature, shaped (1, *shape)."""
        values = getattr(self, name)
        if values is None:
            return None
        if len(values) != like[0].numel():
            raise InputError(
                f"{name} holds {len(values)} numbers and a row has {like[0].numel()} features: "
                "give one a feature"
            )
        row = torch.tensor(values, dtype=like.dtype, device=like.device)
        return row.view(1, *like.shape[1:])
