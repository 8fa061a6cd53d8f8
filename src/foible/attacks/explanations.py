"""Attacks on explanations: the label stays, the map goes where it is told.

The engine of all of them is here: an `OfMap` objective says what is wanted of the map at x_adv, a
`MapAttack` searches it on a softplus twin and judges map and label on the true net.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.attacks.base import check_batch, clean_scores, needs_eps
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.problem import Kept, Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows, per_row
from foible.core.search import Search
from foible.core.solver import independent_verdict, solve
from foible.core.threat import Threat
from foible.explain.base import Explanation
from foible.models import as_model, softplus_twin
from foible.parts.searches import Ascent


def map_at(explainer: Explanation, view: View, labels: Tensor | None = None) -> Tensor:
    """Return the map (B, *shape) at x_adv, of the row's label or of other classes (B,).

    On the graph where x_adv is. Its randomness is that of a user's call with seed 0.
    """
    rows = view.rows.at(view.x_adv)
    # Maps are of the label to keep, or of the class that is said; a target is the attack's own.
    rows = replace(rows, target=None, y=rows.y if labels is None else labels)
    around = Field(view.oracle, explainer.explained(), view.oracle.chunk(view.x_adv))
    keep = view.x_adv.requires_grad and torch.is_grad_enabled()
    draw = Rng(0).split(5).at(rows.id)
    return explainer.attribute(around, rows, draw, create_graph=keep)


@dataclass(frozen=True)
class OfMap(ABC):
    """An objective over the map at x_adv: a subclass says how much it likes a map.

    `rows.extra` holds what the map is compared with: "map", the true model's map at x, and what
    the attack was called with.
    """

    explainer: Explanation

    def __call__(self, view: View) -> Tensor:
        """One explanation; on the graph where x_adv is."""
        return self.value(map_at(self.explainer, view), view.rows)

    @abstractmethod
    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return how good (B,) maps (B, *shape) are for the attacker: larger is better."""


@dataclass(frozen=True)
class MapSimilarity(OfMap):
    """The cosine of |map| at x_adv and `rows.extra["target_map"]`, (B,) in [0, 1]."""

    def value(self, found: Tensor, rows: Rows) -> Tensor:
        """Return the cosine (B,)."""
        target = rows.extra["target_map"]
        return F.cosine_similarity(found.abs().flatten(1), target.abs().flatten(1))


@dataclass(frozen=True)
class Hunted:
    """What a search over maps found, judged on the true model.

    x: (B, *shape), the clean input where nothing better was found. success: (B,) bool, the goal
    holds at x, within the threat, in a forward of its own. clean, found: (B, *shape) the maps of
    the input as it was and of x. before, after: (B,) what the wish says of both. rows: as
    searched. forwards, backwards: (B,) int64, of the twin and of the true model together.
    """

    x: Tensor
    success: Tensor
    clean: Tensor
    found: Tensor
    before: Tensor
    after: Tensor
    rows: Rows
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class MapAttack:
    """What attacks on explanations share: a softplus twin is searched, the true model judges.

    beta: the sharpness of the twin; None searches the model itself, for nets without ReLUs.
    """

    threat: Threat
    explainer: Explanation
    search: Search = field(default_factory=lambda: Ascent(100, None, 0.05))
    beta: float | None = 10.0

    def __post_init__(self) -> None:
        if not self.explainer.differentiable:
            raise InputError(
                f"{type(self.explainer).__name__} is not differentiable, and bending follows the "
                "map's own gradient: choose another, e.g. foible.explain.saliency()"
            )

    def posed(self, twin: Oracle, judge: Oracle, threat: Threat, wish: OfMap) -> Problem:
        """Return the problem: keep the label, and please the wish; another attack, another one."""
        return Problem(twin, threat, wish, Kept(), prefer=wish, judge=judge)

    def hunt(
        self, model: Any, x: Tensor, y: Tensor, wish: OfMap, given: dict[str, Tensor],
        seed: int = 0,
    ) -> Hunted:  # fmt: skip
        """Search for the point whose map `wish` likes best among those that reach the goal.

        given: tensors (B, ...) for `rows.extra`; "map" is added, the true model's map at x.
        """
        held = as_model(model)
        check_batch(x, y, None, held.bounds)
        asked = max(Access.GRADIENTS, self.explainer.access)
        judge = Oracle(held, len(x), asked)
        soft = held if self.beta is None else softplus_twin(held, self.beta)
        twin = Oracle(soft, len(x), asked)
        threat = self.threat.inside(held.bounds)
        index = torch.arange(len(x), device=x.device)
        rows = Rows(index, index, x.detach(), y.to(index), None, threat.radii(len(x), x))
        problem = self.posed(twin, judge, threat, wish)
        # A map made of many draws holds as many graphs: fewer rows share a batch.
        draws = int(getattr(self.explainer, "steps", getattr(self.explainer, "samples", 1)))
        problem = replace(problem, draws=draws)
        with twin.session(seed), judge.session(seed):
            rows = replace(rows, scores=clean_scores(judge, rows))
            clean = self._maps(judge, rows, rows.x)
            rows.extra.update(given, map=clean)
            best = solve(problem, rows, self.search, seed=seed)
            found, before = self._maps(judge, rows, best.x), wish.value(clean, rows)
            better = best.success & self._won(before, wish.value(found, rows))
            end, found = (
                torch.where(per_row(better, x), a, b) for a, b in ((best.x, rows.x), (found, clean))
            )
            success, _ = independent_verdict(problem, rows, end, judge)
        calls = (
            getattr(twin.meter, of) + getattr(judge.meter, of) for of in ("forwards", "backwards")
        )
        return Hunted(end, success, clean, found, before, wish.value(found, rows), rows, *calls)

    def _won(self, before: Tensor, after: Tensor) -> Tensor:
        """Return which points (B,) that reach the goal are worth leaving the clean input for."""
        return after > before

    def _maps(self, judge: Oracle, rows: Rows, x: Tensor) -> Tensor:
        parts = torch.arange(len(rows), device=x.device).split(judge.chunk(x))
        found = [map_at(self.explainer, View(judge, rows.take(p), x[p])) for p in parts]
        return torch.cat(found).detach()


@dataclass(frozen=True)
class Bent:
    """What bending found.

    x: (B, *shape) the bent inputs; similarity: (B,) of the true model's map to the order,
    and `before` that of the clean one; kept: (B,) bool, the label stayed.
    """

    x: Tensor
    similarity: Tensor
    before: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Bend(MapAttack):
    """Bend a map to order; call it with (model, x, y, target_map)."""

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, target_map: Tensor, *, seed: int = 0
    ) -> Bent:
        """Search a softplus twin; judge label and map on the true model.

        x: (B, *shape), y: (B,) the labels to keep and to explain, target_map: (B, *shape) the
        order, of which the absolute value counts.
        """
        same_shape("target_map", target_map, x)
        wish = MapSimilarity(self.explainer)
        given = {"target_map": target_map.detach().to(x)}
        hunted = self.hunt(model, x, y, wish, given, seed)
        return Bent(hunted.x, hunted.after, hunted.before, hunted.success)


def bend(
    threat: Threat, explainer: Explanation, steps: int = 100, beta: float | None = 10.0
) -> Bend:
    """Return the attack that bends a map to order while the label stays.

    Dombrowski et al. 2019 (X4): a ReLU net's map has no useful derivative, so a softplus copy
    with sharpness `beta` is searched (None: the net itself), and success is measured on the true
    net. We maximise the cosine of absolute maps inside a ball instead of penalising a squared
    distance.
    """
    return Bend(needs_eps(threat), explainer, Ascent(steps, None, 5 / steps), beta)


def same_shape(name: str, given: Tensor, x: Tensor) -> None:
    """Refuse what is not one tensor a sample, of its shape."""
    if given.shape != x.shape:
        raise InputError(
            f"{name} has shape {tuple(given.shape)} and x {tuple(x.shape)}: give one a sample, of "
            "its shape"
        )
