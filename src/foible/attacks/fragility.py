"""Fragile explanations: the label stays, and the map leaves its features or its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import needs_eps
from foible.attacks.explanations import MapAttack
from foible.core.errors import InputError
from foible.core.rows import Rows
from foible.core.threat import Threat
from foible.explain.base import Explanation, check_inputs
from foible.explain.evaluate import rank_correlation, topk_intersection
from foible.explain.moving import OfMap
from foible.parts.searches import Ascent


def mass(found: Tensor) -> Tensor:
    """Return |map| (B, *positions), summed over channels, at sum 1; 0 where the map is 0.

    The first axis of a sample of three or more is the channels'; others have none.

    >>> mass(torch.tensor([[[[3.0, 0.0]], [[-1.0, 4.0]]]]))
    tensor([[[0.5000, 0.5000]]])
    """
    size = found.abs()
    size = size.sum(1) if size.dim() > 3 else size
    total = size.flatten(1).sum(1).view(-1, *[1] * (size.dim() - 1))
    return size / torch.where(total > 0, total, 1.0)


def centre(share: Tensor) -> Tensor:
    """Return the mean position (B, axes) of a mass (B, *positions), in pixels.

    >>> centre(torch.tensor([[[0.0, 0.5], [0.0, 0.5]]]))
    tensor([[0.5000, 1.0000]])
    """
    axes, along = range(1, share.dim()), []
    for axis in axes:
        others = [other for other in axes if other != axis]
        line = share.sum(others) if others else share
        along.append(line @ torch.arange(line.shape[1], dtype=share.dtype, device=share.device))
    return torch.stack(along, 1)


def positions(x: Tensor, k: int) -> tuple[int, ...]:
    """Return the shape of a map's positions; refuse a k that is not among them."""
    places = tuple(x.shape[2:] if x.dim() > 3 else x.shape[1:])
    count = math.prod(places)
    if not 1 <= k <= count:
        raise InputError(f"k={k} of {count} positions: choose 1 to {count}")
    return places


@dataclass(frozen=True)
class LessOnTop(OfMap):
    """Minus the share of the mass that lies on the k strongest positions of the clean map."""

    k: int = 100

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return minus that share, (B,) in [-1, 0]; -1 for a map that is 0 and names nothing."""
        top = mass(rows.extra["map"]).flatten(1).topk(self.k, 1).indices
        share = mass(found).flatten(1)
        return -torch.where(share.sum(1) > 0, share.gather(1, top).sum(1), 1.0)


@dataclass(frozen=True)
class FarFromCentre(OfMap):
    """How far the centre of the mass has moved from that of the clean map, squared."""

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return the squared distance (B,) in pixels; 0 for a map that is 0 and has no centre."""
        share = mass(found)
        shift = (centre(share) - centre(mass(rows.extra["map"]))).square().sum(1)
        return torch.where(share.flatten(1).sum(1) > 0, shift, 0.0)


@dataclass(frozen=True)
class MoreInRegion(OfMap):
    """The share of the mass that lies in `rows.extra["region"]`, bool (B, *positions)."""

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return that share, (B,) in [0, 1]."""
        return (mass(found) * rows.extra["region"]).flatten(1).sum(1)


AIMS = ("top", "centre", "region")


@dataclass(frozen=True)
class Moved:
    """What moving the maps found; all figures are the true model's, against the clean map.

    x: (B, *shape), the clean input where no point with the label had a better map. kept: (B,)
    bool, the label stayed. before, after: (B,) what the aim counts, larger is better for the
    attacker: minus the share on the clean map's top k, the squared shift of the centre in pixels,
    or the share in the region. topk: (B,) the share of the k strongest positions that are still
    among them. rank: (B,) Spearman's correlation of the masses. shift: (B,) how far the centre of
    the mass moved, in pixels; NaN for inputs without image axes. clean_map, map: (B, *shape) of
    the label. forwards, backwards: (B,) int64, of both models together.
    """

    x: Tensor
    kept: Tensor
    before: Tensor
    after: Tensor
    topk: Tensor
    rank: Tensor
    shift: Tensor
    clean_map: Tensor
    map: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def moved(self) -> Tensor:
        """Return (B,) bool: a point was found whose map is better for the attacker."""
        return self.after > self.before


@dataclass(frozen=True)
class Fragile(MapAttack):
    """Move a map while the label stays; call it with (model, x, y), and a region for that aim."""

    aim: str = "top"
    k: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aim not in AIMS:
            raise InputError(f"aim is {self.aim!r}: choose {', '.join(AIMS)}")
        if self.k < 1:
            raise InputError(f"k={self.k}: how many positions are the top; at least 1")

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, region: Tensor | None = None, *, seed: int = 0
    ) -> Moved:
        """Search a softplus twin; judge label and map on the true model.

        x: (B, *shape), y: (B,) the labels to keep and to explain. Samples of another label come
        back as they are. region: bool, one of the positions for all (H, W) or one a sample
        (B, H, W): where the mass shall go. Raises InputError for a k above the number of
        positions, and where aim and input do not fit.
        """
        given = self._given(x, region)
        wishes: dict[str, OfMap] = {
            "top": LessOnTop(self.explainer, self.k),
            "centre": FarFromCentre(self.explainer),
            "region": MoreInRegion(self.explainer),
        }
        hunted = self.hunt(model, x, y, wishes[self.aim], given, seed)
        clean, now = mass(hunted.clean), mass(hunted.found)
        shift = (centre(now) - centre(clean)).norm(dim=1)
        return Moved(
            hunted.x, hunted.success, hunted.before, hunted.after,
            topk_intersection(clean, now, self.k), rank_correlation(clean, now),
            shift if clean.dim() > 2 else torch.full_like(shift, math.nan),
            hunted.clean, hunted.found, hunted.forwards, hunted.backwards,
        )  # fmt: skip

    def _given(self, x: Tensor, region: Tensor | None) -> dict[str, Tensor]:
        """Check x and the region; return the latter as (B, *positions)."""
        check_inputs(x)
        places = positions(x, self.k)
        if self.aim == "centre" and len(places) < 2:
            raise InputError(
                f'aim="centre" moves the centre of an image\'s map, and x has shape '
                f'{tuple(x.shape)}, without image axes: use aim="top" or aim="region"'
            )
        if (region is None) == (self.aim == "region"):
            raise InputError(
                'aim="region" needs a region at the call, e.g. attack(model, x, y, region)'
                if region is None
                else f'aim="{self.aim}" takes no region: use aim="region"'
            )
        if region is None:
            return {}
        if tuple(region.shape) not in (places, (len(x), *places)):
            raise InputError(
                f"region has shape {tuple(region.shape)}: give {places}, or one a sample "
                f"{(len(x), *places)}"
            )
        inside = region.to(x.device) != 0
        return {"region": inside.expand(len(x), *places)}


def fragile(
    threat: Threat, explainer: Explanation, aim: str = "top", k: int = 100, steps: int = 100,
    beta: float | None = 100.0,
) -> Fragile:  # fmt: skip
    """Return the attack that moves a map while the label stays.

    Ghorbani et al. 2019 (X1). aim: "top" takes the map's mass from the k strongest positions,
    "centre" moves its centre, "region" raises the share in a region that the call is given. The
    mass is |map| summed over channels, at sum 1. A softplus twin of sharpness `beta` is searched
    (None: the model itself); the best point whose label on the true model is kept is returned, the
    clean input where there is none. Any differentiable explainer.

    We add momentum to the paper's sign steps and take steps of half of eps: of 64 images of the
    bundled standard model 49 % of the top 100 stay after 50 steps at eps 0.02, instead of 56 %
    after steps of a tenth without momentum.

    >>> import foible
    >>> net, x = foible.zoo.load("standard"), foible.zoo.sample()[0][:8]
    >>> attack = foible.attacks.fragile(foible.Linf(0.05), foible.explain.saliency(), steps=10)
    >>> moved = attack(net, x, net(x).argmax(1))
    >>> bool(moved.kept.all()), float(moved.topk.mean()) < 0.5
    (True, True)
    """
    # At the clean input the centre's own gradient is 0: that search begins beside it.
    start = "random" if aim == "centre" else "clean"
    search = Ascent(steps, None, 0.5, start, 0.9)
    return Fragile(needs_eps(threat), explainer, search, beta, aim, k)
