"""Worst-case sensitivity: how far can a map move within a small ball?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import Goal, Problem, View
from foible.core.rows import Rows
from foible.core.search import Search
from foible.core.threat import Threat
from foible.explain.base import Explanation
from foible.explain.moving import MapSearch, OfMap
from foible.parts.searches import Ascent, RandomPoints
from foible.parts.statistics import mean_interval
from foible.parts.threats import Linf

HOWS = ("attack", "random", "corners")
# What one search spends beside its points, in forwards and backwards: both maps, the clean scores
# and a verdict.
OVERHEAD = 6


@dataclass(frozen=True)
class Everywhere(Goal):
    """Every point counts, whatever its label."""

    def __call__(self, view: View) -> Tensor:
        """Return True everywhere, without a forward."""
        return torch.ones(len(view.rows), dtype=torch.bool, device=view.x_adv.device)


@dataclass(frozen=True)
class FarFromMap(OfMap):
    """The Euclidean distance from the clean map, as a share of that map's own length."""

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return |found - map| / |map|, (B,); 0 for a clean map of 0."""
        clean = rows.extra["map"].flatten(1)
        length = clean.norm(dim=1)
        gone = (found.flatten(1) - clean).square().sum(1)
        # The root has no slope at 0, where a search that starts at the clean input begins.
        gone = torch.where(gone > 0, gone, torch.ones_like(gone)).sqrt() * (gone > 0)
        return torch.where(length > 0, gone / torch.where(length > 0, length, 1.0), 0.0)


@dataclass(frozen=True)
class Anywhere(MapSearch):
    """A search over maps that no label bounds."""

    def posed(self, twin: Oracle, judge: Oracle | None, threat: Threat, wish: OfMap) -> Problem:
        """Return the problem: please the wish, wherever in the threat."""
        return replace(super().posed(twin, judge, threat, wish), goal=Everywhere())


@dataclass(frozen=True)
class Sensitive:
    """How far maps were moved.

    definition: what was measured, in a sentence. values: (B,) float64, 0 for a map that is 0. x:
    (B, *shape) the inputs where the maps are so far away. forwards, backwards: (B,) int64, all
    that was spent, on the twin and the true model together.
    """

    definition: str
    values: Tensor
    x: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def mean(self) -> list[float] | None:
        """[mean, low, high], a 95 % interval over samples."""
        return mean_interval(self.values)


@dataclass(frozen=True)
class Sensitivity:
    """max |map(x') - map(x)| / |map(x)| over an Linf ball; call it with (model, x, target).

    explainer: whose maps. radius: of the ball. budget: what a sample may cost, in explanations of
    one forward and one backward (times the explainer's own draws). how: "random" tries uniform
    points (as captum does), "corners" random signs of full size; "attack" spends a tenth on those
    and the rest on ascent from the best, on a softplus twin of sharpness `beta`. All report what
    the true model says.
    """

    explainer: Explanation
    radius: float = 0.02
    budget: int = 100
    how: str = "attack"
    beta: float | None = 100.0

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise InputError(f"how is {self.how!r}: choose {' or '.join(HOWS)}")
        if not self.radius > 0 or self.budget < 20:
            raise InputError(
                f"radius={self.radius}, budget={self.budget}: a positive radius, and at least 20 "
                "explanations, for the maps themselves cost some"
            )
        if self.how == "attack":
            self._search(Ascent(1), self.beta)  # refuses what is not differentiable

    @property
    def definition(self) -> str:
        """One sentence."""
        how = "found by an attack" if self.how == "attack" else f"among {self.how} points"
        how = how.replace("corners points", "random corners")
        return (
            f"the largest change of a map within {self.radius:g} in Linf, {how}, as a share of the "
            "map's length"
        )

    def __call__(
        self, model: Any, x: Tensor, target: Tensor | int | None = None, *, seed: int = 0
    ) -> Sensitive:
        """Measure the maps of x (B, *shape) for `target`: (B,) classes, one int, or as predicted.

        Needs the explainer's access, and gradients for the attack.
        """
        wish = FarFromMap(self.explainer)
        calls = 2 * self.budget - OVERHEAD
        # An ascent step costs a map with its slope on the twin, and a map on the true model.
        step = 5 if self.beta is not None else 3
        points = max(1, self.budget // 10) if self.how == "attack" else calls // 2
        tried = self._search(RandomPoints(points, corners=self.how != "random"), None)
        found = tried.hunt(model, x, target, wish, {}, seed)
        values, where = found.after, found.x
        forwards, backwards = found.forwards, found.backwards
        if self.how == "attack":
            steps = max(1, (calls - OVERHEAD - 2 * points - step) // step)
            climb = self._search(Ascent(steps, None, 0.5, "given", 0.9), self.beta)
            start = {"start": found.x - found.rows.x}
            higher = climb.hunt(model, x, found.rows.y, wish, start, seed)
            better = (higher.after > values).view(-1, *[1] * (x.dim() - 1))
            where = torch.where(better, higher.x, where)
            values = torch.maximum(values, higher.after)
            forwards, backwards = forwards + higher.forwards, backwards + higher.backwards
        return Sensitive(self.definition, values.double(), where, forwards, backwards)

    def _search(self, search: Search, beta: float | None) -> Anywhere:
        return Anywhere(Linf(self.radius), self.explainer, search, beta)

    @property
    def access(self) -> Access:
        """The explainer's access; an attack asks for gradients besides."""
        least = Access.GRADIENTS if self.how == "attack" else Access.SCORES
        return max(least, self.explainer.access)


def sensitivity(
    explainer: Explanation, radius: float = 0.02, budget: int = 100, how: str = "attack",
    beta: float | None = 100.0,
) -> Sensitivity:  # fmt: skip
    """Return the worst-case sensitivity of an explainer (Yeh et al. 2019): lower is better.

    The paper and captum take the largest of a few random points, which in many dimensions is far
    from the largest there is. We search for it, at the same cost. A stable map need not be right:
    a constant one has sensitivity 0.

    >>> import foible
    >>> net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    >>> e = foible.explain
    >>> worst, tried = (
    ...     e.sensitivity(e.saliency(), 0.02, 50, how)(net, x[:8], y[:8]).values
    ...     for how in ("attack", "random")
    ... )
    >>> bool((worst > tried).all())
    True
    """
    return Sensitivity(explainer, radius, budget, how, beta)
